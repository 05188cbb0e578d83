"""Paces and prompts of MLPerf's entries: found again where moesim itself made the runs."""

from dataclasses import replace
from statistics import median

import pytest

from moesim.evidence.accuracy.causes import cause_of, limit_of
from moesim.evidence.accuracy.costs import Costs, Slower
from moesim.evidence.accuracy.course import of_course, simulated
from moesim.evidence.accuracy.experiments import Figure, figure_of
from moesim.evidence.accuracy.mixtral import MIXTRAL_PROMPT
from moesim.evidence.accuracy.paces import (
    AGAIN,
    PROMPTS_OFF,
    Fit,
    Prompts,
    Setting,
    entry_of,
    fitted_paces,
    fitted_prompts,
    kin,
    paces_of,
    simulated_with,
)
from moesim.evidence.accuracy.predictions import DRAWS, predicted
from moesim.evidence.accuracy.wording import fit_words
from moesim.evidence.accuracy.workloads import SERVER_S, requests_of
from tests.evidence.accuracy.test_understanding import ROW

OFFLINE = replace(
    ROW,
    source="logs/one/Offline",
    tp=1,
    n_gpus=8,
    isl=None,
    osl=None,
    load="all-at-once",
    scenario="mlperf_offline_closed",
    metric="output_tokens_per_s",
    software="TensorRT 10.2.0",
)
SERVER = replace(
    OFFLINE,
    source="logs/one/Server",
    load="160 req/s target",
    scenario="mlperf_server_closed",
    metric="tpot_mean_ms",
)
COSTS = Costs("roofline")
PACES = {"one": 1.5, "two": 1.6, "three": 1.8}


def _run(entry: str, pace: float, scale: float = 1.0) -> Figure:
    """Return an offline run of a machine whose iterations take so much longer."""
    figure = figure_of(replace(OFFLINE, source=f"logs/{entry}/Offline"))
    course = simulated_with(figure.experiment, Setting(scale * MIXTRAL_PROMPT, 1.0), COSTS)
    rate = of_course(figure, course) / pace
    return replace(figure, row=replace(figure.row, value=rate))


def _server(entry: str, pace: float, scale: float) -> Figure:
    """Return the mean time per token of a machine near its limit, with prompts of a length."""
    row = replace(SERVER, source=f"logs/{entry}/Server", load="480 req/s target")
    figure = figure_of(row)
    setting = Setting(scale * MIXTRAL_PROMPT, pace)
    value = of_course(figure, simulated_with(figure.experiment, setting, COSTS))
    return replace(figure, row=replace(row, value=value))


@pytest.fixture(scope="module")
def fit() -> Fit:
    """Three entries, of which the first is half as slow again as kernels, and one unknown."""
    servers = [figure_of(SERVER), figure_of(replace(SERVER, source="logs/four/Server"))]
    figures = [*(_run(entry, pace) for entry, pace in PACES.items()), *servers]
    (found,) = fitted_paces(figures, COSTS, {})
    return found


def _of(fit: Fit, source: str) -> Figure:
    return next(figure for figure in fit.settings if figure.row.source == source)


def test_a_pace_is_found_again(fit: Fit) -> None:
    assert fit.paces == pytest.approx([1.5, 1.6, 1.8])


def test_an_offline_run_is_predicted_by_the_others(fit: Fit) -> None:
    """At the median pace of the two others, which are the ends; nothing is fitted on it."""
    figure = _of(fit, "logs/one/Offline")
    found = predicted([figure], COSTS, paces=paces_of([fit]), told=lambda *_: None, what="")
    rate = figure.row.value
    prediction = found.predictions[figure]
    assert prediction.value == pytest.approx(rate * 1.5 / 1.7)
    assert prediction.low == pytest.approx(rate * 1.5 / 1.8 * (1 - AGAIN))
    assert prediction.high == pytest.approx(rate * 1.5 / 1.6 * (1 + AGAIN))
    assert fit.figures == ()


def test_an_offline_run_of_one_entry_is_not_judged() -> None:
    known = _run("one", 1.5)
    (found,) = fitted_paces([known, figure_of(SERVER)], COSTS, {})
    assert found.figures == (known,)
    assert "1.50 times as long as kernels alone" in fit_words(found)
    assert "(1 in all) are not judged" in fit_words(found)


def test_longer_prompts_leave_a_faster_pace(fit: Fit) -> None:
    likeliest, (least, most) = fit.settings[_of(fit, "logs/one/Server")]
    assert likeliest == Setting(MIXTRAL_PROMPT, pytest.approx(1.5), 1.0, "h100-sxm-80gb")
    assert (least.memory, most.memory) == (0.95, 1.05)
    assert least.prompt_tokens == pytest.approx(MIXTRAL_PROMPT * (1 + PROMPTS_OFF))
    assert most.prompt_tokens == pytest.approx(MIXTRAL_PROMPT * (1 - PROMPTS_OFF))
    assert least.pace < likeliest.pace < most.pace


def test_an_entry_without_an_offline_run_has_the_medians(fit: Fit) -> None:
    known, other = _of(fit, "logs/one/Server"), _of(fit, "logs/four/Server")
    assert entry_of(known) == "logs/one"
    assert fit.settings[known].likeliest.pace == pytest.approx(1.5)
    assert fit.settings[other].likeliest.pace == pytest.approx(1.6)


def test_a_server_run_has_the_pace_of_its_machine(fit: Fit) -> None:
    """In the middle the median of draws with that pace; the ends with fewer and more in flight."""
    figure = _of(fit, "logs/one/Server")
    paces = paces_of([fit])
    found = predicted([figure], COSTS, paces=paces, told=lambda *_: None, what="").predictions
    slower = Slower.all_by(paces[figure].likeliest.pace)
    own = [
        of_course(figure, simulated(figure.experiment, COSTS, slower=slower, seed=seed))
        for seed in range(DRAWS)
    ]
    assert found[figure].value == pytest.approx(median(own))
    assert found[figure].low < min(own) < max(own) < found[figure].high


@pytest.fixture(scope="module")
def others() -> list[Figure]:
    """Return the runs of two machines whose prompts are 7 % shorter than reckoned."""
    paces = {"two": 1.5, "three": 1.53}
    return [
        run
        for entry, pace in paces.items()
        for run in (_run(entry, pace, 0.93), _server(entry, pace, 0.93))
    ]


def test_prompts_are_found_again_on_other_servers(others: list[Figure]) -> None:
    """Whatever the entry's own server says."""
    own = replace(figure_of(SERVER), row=replace(SERVER, value=1e6))
    figures = [*others, _run("one", 1.4, 0.93), own]
    found = fitted_prompts(figures, COSTS)["logs/one"]
    assert found.scale == pytest.approx(0.93, rel=0.005)
    assert found.fastest == pytest.approx(1, abs=2 * AGAIN)
    assert found.slowest == pytest.approx(1, abs=2 * AGAIN)
    (fit,) = fitted_paces(figures, COSTS, {"logs/one": found})
    assert fit.settings[own].likeliest.pace == pytest.approx(1.4, rel=0.005)
    assert fit.prompts == pytest.approx([0.93 * MIXTRAL_PROMPT], rel=0.005)
    assert "353 tokens on average (of 331 to 429" in fit_words(fit)


def test_a_server_slower_than_its_offline_run_is_slack_for_others(others: list[Figure]) -> None:
    """By 2 %: of three others two say how long prompts are, and the third is slower than these."""
    slower = [_run("four", 1.5, 0.93), _server("four", 1.5 * 1.02, 0.93)]
    found = fitted_prompts([*others, *slower, figure_of(SERVER)], COSTS)["logs/one"]
    assert found.scale == pytest.approx(0.93, rel=0.01)
    assert found.slowest == pytest.approx(1.02, abs=0.004)


@pytest.mark.parametrize(("times", "scale"), [(10.0, 1 - PROMPTS_OFF), (0.1, 1 + PROMPTS_OFF)])
def test_prompts_are_within_what_they_may_be(
    others: list[Figure], times: float, scale: float
) -> None:
    absurd = [
        replace(figure, row=replace(figure.row, value=figure.row.value * times))
        if figure.experiment.workload.timed
        else figure
        for figure in others
    ]
    found = fitted_prompts([*absurd, figure_of(SERVER)], COSTS)["logs/one"]
    assert found.scale == pytest.approx(scale)


def test_prompts_that_are_given_stay_as_they_are(others: list[Figure]) -> None:
    known = figure_of(replace(SERVER, isl=400.0))
    assert fitted_prompts([*others, known], COSTS)["logs/one"] == Prompts()


@pytest.mark.parametrize(
    ("device", "kernels"),
    [
        ("h100-sxm-80gb", "h100-sxm-80gb"),
        ("h100-nvl-94gb", "h100-sxm-80gb"),
        ("h200-nvl-141gb", "h200-sxm-141gb"),
        ("a100-pcie-80gb", "a100-sxm-80gb"),
        ("l40s-48gb", "l40s-48gb"),
        ("cpu-2core", "cpu-2core"),
    ],
)
def test_kin_has_as_many_sms(device: str, kernels: str) -> None:
    assert kin(device, Costs(None)) == kernels
    assert kin(device, COSTS) == device


def test_borrowed_kernels_leave_a_device_its_memory() -> None:
    """H100 NVL by the roofline of H200: as fast as that, with its own room."""
    nvl, h200 = (
        figure_of(replace(OFFLINE, gpu=gpu)).experiment for gpu in ("H100-NVL", "H200-SXM-141GB")
    )
    own = simulated_with(nvl, Setting(MIXTRAL_PROMPT, 1.0), COSTS)
    lent = simulated_with(nvl, Setting(MIXTRAL_PROMPT, 1.0, kernels="h200-sxm-141gb"), COSTS)
    other = simulated_with(h200, Setting(MIXTRAL_PROMPT, 1.0), COSTS)
    assert lent.usage.kv_blocks == own.usage.kv_blocks < other.usage.kv_blocks
    assert own.usage.peak_running == other.usage.peak_running  # so that all are alike but in speed
    assert lent.records["finish_s"].tolist() == other.records["finish_s"].tolist()


def test_an_entry_that_does_not_fit_leaves_the_others_theirs() -> None:
    """A GPU has no room for Mixtral in 16 bits."""
    known = _run("one", 1.5)
    too_large = figure_of(replace(OFFLINE, source="logs/large/Offline", precision="FP16"))
    (found,) = fitted_paces([too_large, known], COSTS, {})
    assert found.paces == pytest.approx([1.5])
    assert found.figures == (known,)


def test_sources_without_a_folder_are_entries_of_their_own() -> None:
    one, other = (figure_of(replace(OFFLINE, source=name)) for name in ("one", "other"))
    assert entry_of(one) != entry_of(other)


def test_short_prompts_have_a_token() -> None:
    workload = figure_of(replace(OFFLINE, isl=1.0)).experiment.workload
    assert requests_of(workload, seed=1)["prompt_tokens"].min() == 1


def test_a_cause_is_looked_for_at_the_pace_of_its_machine(fit: Fit) -> None:
    """A slower machine has more requests in flight."""
    figure = _of(fit, "logs/one/Server")
    settings = fit.settings[figure]
    slower = Slower.all_by(settings.likeliest.pace)
    batch = limit_of(simulated(figure.experiment, COSTS, slower=slower), figure.experiment.workload)
    assert cause_of(figure, 50.0, COSTS, settings).batch == batch
    assert cause_of(figure, 50.0, COSTS).batch != batch


def test_server_runs_come_at_just_their_rate() -> None:
    workload = figure_of(SERVER).experiment.workload
    requests = requests_of(workload, seed=1)
    assert len(requests) == 20 * SERVER_S
    assert requests["arrival_s"].max() == pytest.approx(SERVER_S)
    assert requests["output_tokens"].mean() == pytest.approx(workload.output_tokens, rel=0.001)


def test_other_rows_have_no_pace() -> None:
    assert not fitted_prompts([figure_of(ROW)], COSTS)
    assert not fitted_paces([figure_of(ROW)], COSTS, {})
