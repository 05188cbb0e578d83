"""What a trial does to a profile: errors of its kernels, of a known engine's, and a host."""

from dataclasses import replace

import pytest

from moesim.cost.kernels.uncertainty import SOFTWARE
from moesim.reproduction.publication import load_publication
from moesim.reproduction.trials import TRIALS, Trial, read, served_by, tried
from moesim.scenario import Scenario

EXACT = Trial(0, error=0.0)


def anchor() -> Scenario:
    """Return a batch on two devices: its requests are all there at once, of fixed lengths."""
    scenario = load_publication("friendli").scenario("anchor")
    return scenario.model_copy(update={"duration_s": scenario.duration_s / 16})


def span_s(trial: Trial) -> float:
    return float(tried(anchor(), trial).metrics()["overall"]["span_s"])


def test_a_host_takes_its_time_in_every_iteration_of_a_group() -> None:
    """Nobody arrives meanwhile, so that iterations are as many and only longer."""
    iterations = tried(anchor(), EXACT).usages[0].iterations
    hosted_s = span_s(replace(EXACT, host_s=0.01))
    assert hosted_s - span_s(EXACT) == pytest.approx(0.01 * iterations, rel=1e-6)


def test_an_error_is_of_the_kernels_and_not_of_the_host() -> None:
    iterations = tried(anchor(), EXACT).usages[0].iterations
    wrong_s = span_s(Trial(0, error=0.5, host_s=0.01))
    assert wrong_s == pytest.approx(1.5 * span_s(EXACT) + 0.01 * iterations, rel=1e-6)


def test_an_engines_errors_are_quantiles_of_its_rows() -> None:
    """Ten percentiles, 5, 15, ... 95: the median lies between the fifth and the sixth."""
    (known,) = (
        each
        for each in SOFTWARE
        if (each.name, each.device) == ("TensorRT-LLM 0.14", "a100-sxm-80gb")
    )
    errors = [trial.error for trial in served_by(known.name, known.device)]
    assert errors[2] == pytest.approx(sum(known.slower[4:6]) / 2 - 1)
    assert errors[0] == pytest.approx(sum(known.slower[:2]) / 2 - 1)
    seeds = [trial.seed for trial in served_by(known.name, known.device)]
    assert seeds == [trial.seed for trial in TRIALS]


def test_profiles_are_read_once_and_altered_never() -> None:
    """A trial is of the profile as it is, however many went before."""
    before = read(anchor()).profiles["mixtral"]
    tried(anchor(), Trial(0, error=0.5))
    assert read(anchor()).profiles["mixtral"] is before
    assert span_s(EXACT) == span_s(EXACT)
