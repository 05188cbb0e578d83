"""Redrawn profiles: each of the three errors alone, with the others switched off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesim.cost.profile import ExpertLoad, Profile, Swap, Transfers, load_profile
from moesim.cost.residuals import level, median_errors, resampled, streams
from moesim.errors import ProfileError

Content = Callable[[], dict[str, Any]]


@pytest.fixture
def profile(tiny_content: Content) -> Callable[..., Profile]:
    """Build the tiny profile with cells of a given spread and a verdict changed by keyword."""

    def build(spread: float = 0.0, repeats: int = 9, **verdict: Any) -> Profile:
        content = tiny_content()
        for cells in content["operations"].values():
            for cell in cells:
                cell |= {"spread": spread, "repeats": repeats}
        content["verdict"] |= verdict
        return Profile.model_validate(content)

    return build


def medians(profile: Profile) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([cell.median_s for cells in profile.operations.values() for cell in cells])


def factors(profile: Profile, draws: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return by what each cell was scaled in each draw, (draws, cells)."""
    known = medians(profile) > 0
    rng = np.random.default_rng(0)
    redrawn = [medians(resampled(profile, rng))[known] for _ in range(draws)]
    return np.array(redrawn) / medians(profile)[known]


def test_a_profile_without_errors_is_itself(profile: Callable[..., Profile]) -> None:
    """No spread, no error on iterations known, no drift: nothing to redraw."""
    exact = profile()
    assert resampled(exact, np.random.default_rng(0)) == exact


def test_cells_scatter_by_the_error_of_their_median(profile: Callable[..., Profile]) -> None:
    """IQR 26.98 % is sigma 20 %; of 100 repeats the median is known to 2.5066 %, half as many."""
    scattered = np.log(factors(profile(spread=0.2698, repeats=100), 2000))
    assert scattered.std(axis=0) == pytest.approx(0.025066, rel=0.1)
    assert np.median(scattered, axis=0) == pytest.approx(0, abs=0.003)
    apart = np.corrcoef(scattered[:, :6].T) - np.eye(6)
    assert np.abs(apart).max() < 0.1


def test_a_median_of_more_repeats_is_known_better(profile: Callable[..., Profile]) -> None:
    """By the root of their number."""
    few, many = (profile(0.1, repeats).operations["host"] for repeats in (4, 64))
    assert median_errors(few) == pytest.approx(4 * median_errors(many))


def test_residuals_scale_all_cells_alike(profile: Callable[..., Profile]) -> None:
    """One of what was found: half as long, or twice; each about as often."""
    found = factors(profile(iteration_residuals=[-0.5, 1.0], iteration_error_p50=0.1), 200)
    assert np.ptp(found, axis=1) == pytest.approx(0, abs=1e-9)
    assert set(found[:, 0].round(9)) == {0.5, 2.0}
    assert 70 < (found[:, 0] > 1).sum() < 130


def test_without_residuals_the_error_s_median_is_kept(profile: Callable[..., Profile]) -> None:
    """Half of the runs are off by more than 5 %, as the profile says, and to both sides."""
    found = factors(profile(iteration_error_p50=0.05), 4000)[:, 0]
    assert np.median(np.abs(np.log(found))) == pytest.approx(0.05, rel=0.05)
    assert np.median(found) == pytest.approx(1, abs=0.005)


def test_drift_stays_between_the_slowest_and_the_fastest(profile: Callable[..., Profile]) -> None:
    """21 % apart: from 1/1.1 to 1.1, and as often slower as faster."""
    found = factors(profile(drift=0.21), 2000)[:, 0]
    assert 1 / 1.1 < found.min() < 0.915
    assert 1.094 < found.max() < 1.1
    assert np.median(found) == pytest.approx(1, abs=0.01)


def test_one_stream_one_draw(profile: Callable[..., Profile]) -> None:
    """Runs of one number meet the same errors, others other ones."""
    noisy = profile(0.1, iteration_error_p50=0.1, drift=0.1)
    first, again, other = (
        medians(resampled(noisy, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first[first > 0] != other[first > 0]).all()


def test_a_redrawn_profile_is_a_valid_one(profile: Callable[..., Profile]) -> None:
    """It can be written and read; only durations differ."""
    noisy = profile(0.1, iteration_error_p50=0.1)
    redrawn = resampled(noisy, np.random.default_rng(0))
    assert Profile.model_validate_json(redrawn.model_dump_json()) == redrawn
    assert redrawn.router == noisy.router
    assert redrawn.verdict == noisy.verdict


def test_a_worthless_profile_stays_finite(profile: Callable[..., Profile]) -> None:
    """Spreads and errors beyond all sense are drawn as a factor of e."""
    worthless = profile(1e300, 1, iteration_error_p50=1e300)
    found = np.log(factors(worthless, 200))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 10
    assert (
        np.log([level(worthless.verdict, np.random.default_rng(n)) for n in range(200)]).std() < 2
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iteration_residuals", [0.1, -1.0]),
        ("iteration_residuals", [float("nan")]),
        ("iteration_error_p50", -0.1),
        ("iteration_error_p90", float("inf")),
        ("drift", float("nan")),
    ],
)
def test_impossible_errors_are_refused(
    tiny_content: Content, tmp_path: Path, field: str, value: Any
) -> None:
    """A file whose verdict cannot be is named with its field."""
    content = tiny_content()
    content["verdict"][field] = value
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=rf"p\.json: verdict\.{field}"):
        load_profile(tmp_path / "p.json")


def test_profiles_of_one_origin_err_together(profile: Callable[..., Profile]) -> None:
    """Cells of one file are the same cells; other models on the device share its level alone."""
    noisy = profile(spread=0.1, iteration_error_p50=0.2, drift=0.1)

    def drawn(of: Profile, seed: int = 3) -> np.ndarray[Any, np.dtype[np.float64]]:
        known = medians(of) > 0
        return medians(resampled(of, *streams(of, seed)))[known] / medians(of)[known]

    def made(**changes: str) -> Profile:
        provenance = noisy.provenance.model_copy(update=changes)
        return noisy.model_copy(update={"provenance": provenance})

    assert drawn(noisy).tolist() == drawn(noisy).tolist()
    assert drawn(noisy).tolist() != drawn(noisy, 4).tolist()
    beside, elsewhere = made(model_source="another"), made(device="another")
    quiet = {"spread": 0.0, "iteration_error_p50": 0.2, "drift": 0.1}
    levels = {
        name: drawn(profile(**quiet).model_copy(update={"provenance": of.provenance}))[0]
        for name, of in (("own", noisy), ("beside", beside), ("elsewhere", elsewhere))
    }
    assert levels["own"] == levels["beside"] != levels["elsewhere"]
    assert drawn(noisy).tolist() != drawn(beside).tolist()


def test_loads_and_swaps_scatter_by_their_own_error(profile: Callable[..., Profile]) -> None:
    """A swap that took from 1 to 2 s in nine tries is not known to a millisecond."""
    swap = Swap(
        what="non_expert_set", way="packed", memory="pinned", set_bytes=1, tensors=1,
        median_s=1.5, spread=0.2698, repeats=100,
    )  # fmt: skip
    load = ExpertLoad(
        memory="pinned", how="alone", expert_bytes=1, in_flight=1,
        median_s=0.01, spread=0.0, repeats=9,
    )  # fmt: skip
    known = profile(iteration_error_p50=0.3, drift=0.2).model_copy(
        update={"transfers": Transfers(swaps=[swap], expert_loads=[load])}
    )
    rng = np.random.default_rng(0)
    redrawn = [resampled(known, rng).transfers for _ in range(2000)]
    assert all(found and found.expert_loads == [load] for found in redrawn)
    swaps_s = np.array([found.swaps[0].median_s for found in redrawn if found])
    assert np.log(swaps_s / 1.5).std() == pytest.approx(0.025066, rel=0.1)
