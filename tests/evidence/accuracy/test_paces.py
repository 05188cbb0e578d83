"""Paces of MLPerf's entries: found again where moesim itself made the offline runs."""

from dataclasses import replace
from statistics import median

import pytest

from moesim.evidence.accuracy.causes import cause_of, limit_of
from moesim.evidence.accuracy.costs import Costs, Slower
from moesim.evidence.accuracy.course import of_course, simulated
from moesim.evidence.accuracy.experiments import Figure, figure_of
from moesim.evidence.accuracy.mixtral import MIXTRAL_PROMPT
from moesim.evidence.accuracy.paces import PROMPTS_OFF, Fit, entry_of, fitted_paces, paces_of
from moesim.evidence.accuracy.predictions import DRAWS, predicted
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


def _run(entry: str, pace: float) -> Figure:
    """Return an offline run of a machine whose iterations take so much longer."""
    figure = figure_of(replace(OFFLINE, source=f"logs/{entry}/Offline"))
    rate = of_course(figure, simulated(figure.experiment, COSTS)) / pace
    return replace(figure, row=replace(figure.row, value=rate))


@pytest.fixture(scope="module")
def fit() -> Fit:
    """Three entries, of which the first is half as slow again as kernels."""
    figures = [_run("one", 1.5), _run("two", 1.6), _run("three", 1.8), figure_of(SERVER)]
    (found,) = fitted_paces(figures, COSTS)
    return found


def test_a_pace_is_found_again(fit: Fit) -> None:
    assert fit.paces == pytest.approx([1.5, 1.6, 1.8])
    assert len(fit.figures) == 3


def test_longer_prompts_leave_a_faster_pace(fit: Fit) -> None:
    least, likeliest, most = fit.entries["logs/one"]
    assert (least.memory, most.memory) == (0.95, 1.05)
    assert least.prompt_tokens == pytest.approx(MIXTRAL_PROMPT * (1 + PROMPTS_OFF))
    assert most.prompt_tokens == pytest.approx(MIXTRAL_PROMPT * (1 - PROMPTS_OFF))
    assert least.pace < likeliest.pace < most.pace


def test_an_entry_without_an_offline_run_has_the_medians(fit: Fit) -> None:
    known, other = figure_of(SERVER), figure_of(replace(SERVER, source="logs/four/Server"))
    assert entry_of(known) == "logs/one"
    found = paces_of([known, other], [fit])
    assert found[known].likeliest.pace == pytest.approx(1.5)
    assert found[other].likeliest.pace == pytest.approx(1.6)


def test_a_server_run_has_the_pace_of_its_machine(fit: Fit) -> None:
    """In the middle the median of draws with that pace; the ends with fewer and more in flight."""
    figure = figure_of(SERVER)
    paces = paces_of([figure], [fit])
    found = predicted([figure], COSTS, paces=paces, told=lambda *_: None, what="").predictions
    slower = Slower.all_by(paces[figure].likeliest.pace)
    own = [
        of_course(figure, simulated(figure.experiment, COSTS, slower=slower, seed=seed))
        for seed in range(DRAWS)
    ]
    assert found[figure].value == pytest.approx(median(own))
    assert found[figure].low < min(own) < max(own) < found[figure].high


def test_an_entry_that_does_not_fit_leaves_the_others_theirs() -> None:
    """A GPU has no room for Mixtral in 16 bits."""
    known = _run("one", 1.5)
    too_large = figure_of(replace(OFFLINE, source="logs/large/Offline", precision="FP16"))
    (found,) = fitted_paces([too_large, known], COSTS)
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
    figure = figure_of(SERVER)
    settings = fit.settings_of(figure)
    slower = Slower.all_by(settings.likeliest.pace)
    batch = limit_of(simulated(figure.experiment, COSTS, slower=slower))
    assert cause_of(figure, 50.0, COSTS, settings).batch == batch
    assert cause_of(figure, 50.0, COSTS).batch != batch


def test_server_runs_come_at_just_their_rate() -> None:
    workload = figure_of(SERVER).experiment.workload
    requests = requests_of(workload, seed=1)
    assert len(requests) == 20 * SERVER_S
    assert requests["arrival_s"].max() == pytest.approx(SERVER_S)
    assert requests["output_tokens"].mean() == pytest.approx(workload.output_tokens, rel=0.001)


def test_other_rows_have_no_pace() -> None:
    assert not fitted_paces([figure_of(ROW)], COSTS)
    assert not paces_of([figure_of(ROW)], ())
