"""Charts of profiles: every cell that is drawn was measured, every curve is the cost model's."""

import numpy as np
import pytest

from moesim.cost.curves import Curve, Sheet
from moesim.cost.kernels.tables import load_kernels
from moesim.cost.profile import Profile, load_profile
from moesim.views.charts import Figure
from moesim.views.kernels import skew_chart
from moesim.views.profile_charts import profile_charts


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Return the demo's, as if it had kept the errors on whole iterations one by one."""
    shipped = load_profile("demo-cpu")
    kept = shipped.verdict.model_copy(update={"iteration_residuals": [0.1, -0.05, 0.02]})
    return shipped.model_copy(update={"verdict": kept})


def charts(profile: Profile) -> dict[str, Figure]:
    return {figure.layout.title.text.split(" (")[0]: figure for figure in profile_charts(profile)}


def test_each_operation_and_whole_iterations_have_a_chart(profile: Profile) -> None:
    """With axes that say what is on them."""
    found = charts(profile)
    assert set(found) == {
        *profile.operations,
        "Whole iterations that no table had seen: longer than predicted by",
    }
    for figure in found.values():
        assert figure.layout.xaxis.title.text not in ("", "First coordinate", None)


def test_cells_are_those_measured_with_their_spread(profile: Profile) -> None:
    """Of projections all ten, half the spread to either side, the curve through each."""
    points, line = charts(profile)["projections"].data
    cells = sorted(profile.operations["projections"], key=lambda cell: cell.at)
    assert list(points.x) == [cell.at[0] for cell in cells]
    assert list(points.y) == pytest.approx([cell.median_s * 1e6 for cell in cells])
    assert list(points.error_y.array) == pytest.approx(
        [cell.spread * cell.median_s * 1e6 / 2 for cell in cells]
    )
    curve = Curve.through(cells)
    assert list(line.y) == pytest.approx([curve(x) * 1e6 for x in line.x])


def test_experts_have_a_curve_for_each_number_hit(profile: Profile) -> None:
    """More experts hit by the same tokens take longer, which two colours tell apart."""
    data = charts(profile)["experts"].data
    names = [trace.name for trace in data if trace.mode == "markers"]
    assert {"experts hit: 2", "experts hit: 8"} <= set(names)
    sheet = Sheet.through(profile.operations["experts"])
    all_hit = data[[trace.name for trace in data].index("experts hit: 8") + 1]
    assert list(all_hit.y) == pytest.approx([sheet(x, 8) * 1e6 for x in all_hit.x])


def test_residuals_are_in_order(profile: Profile) -> None:
    """As per cent."""
    (points,) = charts(profile)[
        "Whole iterations that no table had seen: longer than predicted by"
    ].data
    assert list(points.y) == pytest.approx([-5, 2, 10])


def test_a_known_device_has_its_datasheet_beside(profile: Profile) -> None:
    """Dotted lines, only of operations that read or compute much; a CPU has none."""

    def dotted(profile: Profile) -> set[str]:
        return {
            name
            for name, figure in charts(profile).items()
            if any(trace.name == "dotted: datasheet" for trace in figure.data)
        }

    assert dotted(profile) == set()
    made = profile.provenance.model_copy(update={"device": "NVIDIA H100 80GB HBM3"})
    assert dotted(profile.model_copy(update={"provenance": made})) == {
        "projections", "experts", "attention_decode", "attention_prefill", "head"
    }  # fmt: skip


def test_skew_is_drawn_over_balanced_visits() -> None:
    """Those are one everywhere, power laws above where experts are many tokens each."""
    curves = [
        curve
        for curve in load_kernels("h100-sxm-80gb").moe
        if (curve.hidden, curve.inner, curve.tensor_parallel) == (4096, 14336, 1)
        and (curve.expert_parallel, curve.format) == (1, "bf16")
    ]
    figure = skew_chart(curves)
    traces = {trace.name: trace for trace in figure.data if trace.name}
    assert np.allclose(traces["balanced"].y, 1)
    skewed = traces["power_law_1.2"]
    long = [y for x, y in zip(skewed.x, skewed.y, strict=True) if x >= 64]
    assert min(long) > 1
    assert max(long) > 1.2
