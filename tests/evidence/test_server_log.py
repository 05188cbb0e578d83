"""Calibrating from a server's log: logs that moesim itself made, broken ones, and a real one."""

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.cost.affine import PARAMETERS, AffineCost, AffineParameters
from moesim.errors import CalibrationError, ScenarioError
from moesim.evidence.server_log import (
    ServerLog,
    fit,
    judge,
    load_server_log,
    predict,
    typical_errors,
)
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import COLUMNS
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica
from moesim.simulation.station import serve

RUN = Path(__file__).parents[2] / "../shared/reference/runs/rtxpro6000_Llama-3.1-8B"
REAL = RUN.with_name(RUN.name + ".requests.jsonl.gz")

TRUTH = AffineParameters(fixed_s=8e-3, mixed_s=4e-3, token_s=5e-5, context_s=1e-7, pair_s=5e-9)
LIMITS = Limits(max_num_seqs=16, max_batched_tokens=512, max_model_len=4096)
META = {
    "vllm_version": "0.9.0",
    "engine_kwargs": {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 4096},
}
WALL_S = 1e9  # what the wall clock shows when the engine's own clock shows 0


def _simulated(count: int = 200) -> pd.DataFrame:
    """Serve requests at a known cost, rather more of them at once than there is room for."""
    rng = np.random.default_rng(5)
    requests = pd.DataFrame(
        {
            "request_id": range(count),
            "tenant": "",
            "model": "",
            "arrival_s": rng.exponential(0.06, count).cumsum(),
            "prompt_tokens": rng.integers(20, 900, count),
            "output_tokens": rng.integers(10, 150, count),
        }
    )
    cost = AffineCost(TRUTH, max_batched_tokens=512, max_num_seqs=16)
    replica = Replica(name="r", limits=LIMITS, cache=KvCache(4096, 16), cost=cost)
    return serve(replica, requests).records


def _rows(records: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "request_id": f"bench-{row.request_id}",
            "input_toks": row.prompt_tokens,
            "output_toks": row.output_tokens,
            "arrival_time": WALL_S + row.arrival_s,
            "queued_ts": row.scheduled_s,
            "scheduled_ts": row.scheduled_s,
            "first_token_ts": row.first_token_s,
            "last_token_ts": row.finish_s,
        }
        for row in records.itertuples()
    ]


Load = Callable[..., ServerLog]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write rows and a description to files, and load them."""

    def written(rows: list[dict[str, Any]] | str, meta: dict[str, Any] | str = META) -> ServerLog:
        text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
        log, described = tmp_path / "log.jsonl.gz", tmp_path / "meta.json"
        log.write_bytes(gzip.compress(text.encode()))
        described.write_text(meta if isinstance(meta, str) else json.dumps(meta))
        return load_server_log(log, described)

    return written


def test_what_is_read(load: Load) -> None:
    """The records of what was simulated: its lengths and, counted from the first arrival, times."""
    records = _simulated(50)
    log = load(_rows(records))
    assert list(log.records) == list(COLUMNS)
    assert log.limits == LIMITS
    expected = records[["scheduled_s", "first_token_s", "finish_s"]] - records["arrival_s"].iloc[0]
    assert (log.records[list(expected)] - expected).abs().max().max() < 1e-5
    assert (log.records["prompt_tokens"] == records["prompt_tokens"]).all()


def test_arrivals_are_on_the_engines_clock(load: Load) -> None:
    """Front end at 7 s and 7.5 s, delays of 0.1 s and 0.3 s: the second arrived 0.5 s later."""
    rows = _rows(_simulated(2))
    for row, arrival_time, queued_ts in zip(rows, (7.0, 7.5), (100.1, 100.8), strict=True):
        row |= {"arrival_time": arrival_time, "queued_ts": queued_ts, "scheduled_ts": queued_ts}
        row |= {"first_token_ts": 101.0, "last_token_ts": 102.0}
    records = load(rows).records
    assert records["arrival_s"].tolist() == pytest.approx([0, 0.5])
    assert records["scheduled_s"].tolist() == pytest.approx([0, 0.7])


@pytest.mark.parametrize(
    ("version", "told", "ahead"),
    [("0.13.2", None, False), ("0.14.0", None, True), ("0.19.0", False, False), ("", None, False)],
)
def test_who_schedules_ahead(load: Load, version: str, told: bool | None, ahead: bool) -> None:
    """As the engine was told, else as its version does."""
    engine = META["engine_kwargs"] | {"async_scheduling": told}  # type: ignore[operator]
    log = load(_rows(_simulated(1)), {"vllm_version": version, "engine_kwargs": engine})
    assert log.ahead == ahead


def test_known_parameters_are_found_again(load: Load) -> None:
    """From the first half of a simulated log, which shows them without noise."""
    found = fit(load(_rows(_simulated())), 100)
    for name in ("fixed_s", "token_s", "context_s"):
        assert asdict(found.parameters)[name] == pytest.approx(asdict(TRUTH)[name], rel=0.05)
    assert found.at_bound == []
    assert max(found.scatter.values()) < 0.005


def test_the_half_that_was_not_looked_at(load: Load) -> None:
    """Is predicted to a percent, and far better than by the half that was."""
    log = load(_rows(_simulated()))
    predicted = predict(log, fit(log, 100).parameters)
    table = judge(log, predicted, 100)
    assert table["error"].abs().max() < 0.01
    assert table["persistence_error"].abs().max() > 0.5
    assert max(typical_errors(log.records[100:], predicted[100:]).values()) < 0.01


def test_nothing_of_the_rest_is_looked_at(load: Load) -> None:
    """The fit is the same whatever happened to the rest once it began."""
    rows = _rows(_simulated())
    before = fit(load(rows), 100)
    for row in rows[100:]:
        row |= {"output_toks": 7, "last_token_ts": row["last_token_ts"] + 50}
    for row in rows[:100]:
        if row["last_token_ts"] > before.until_s + rows[0]["scheduled_ts"] + 1e-6:
            row["last_token_ts"] += 50
    assert fit(load(rows), 100).parameters == before.parameters


def test_scheduling_ahead_costs_one_iteration(load: Load) -> None:
    """A request that arrives while another decodes joins not the next iteration but the one after.

    The first decodes at 8 ms + 0.05 + 0.1 us a cached token, about 8.06 ms.
    """
    rows = _rows(_simulated(2))
    rows[0] |= {"input_toks": 100, "output_toks": 100, "arrival_time": WALL_S}
    rows[1] |= {"input_toks": 100, "output_toks": 2, "arrival_time": WALL_S + 0.1}
    for row in rows:
        queued_ts = row["arrival_time"] - WALL_S + 1
        row |= {"queued_ts": queued_ts, "scheduled_ts": queued_ts}
        row |= {"first_token_ts": 50.0, "last_token_ts": 60.0}
    at_once = predict(load(rows), TRUTH)["first_token_s"]
    ahead = predict(load(rows, META | {"vllm_version": "0.19.0"}), TRUTH)["first_token_s"]
    assert ahead[0] == at_once[0]
    assert ahead[1] - at_once[1] == pytest.approx(8.06e-3, abs=0.02e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_toks": 0}, "line 2: input_toks"),
        ({"output_toks": 2**40}, "line 2: output_toks"),
        ({"output_toks": "many"}, "line 2: output_toks"),
        ({"scheduled_ts": None}, "line 2: scheduled_ts"),
        ({"arrival_time": float("nan")}, "line 2"),
        ({"arrival_time": 1e300}, "line 2: arrival_time"),
        ({"first_token_ts": 0.0}, "line 2: queued, scheduled, first and last token must follow"),
    ],
)
def test_a_broken_row_is_one_line(load: Load, change: dict[str, Any], complaint: str) -> None:
    """Naming the line and the field."""
    rows = _rows(_simulated(3))
    rows[1] |= change
    with pytest.raises(ScenarioError, match=complaint) as told:
        load(rows)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[1, 2]", "input_toks,output_toks\n1,2", "\x00", "{"])
def test_another_file_is_refused(load: Load, text: str) -> None:
    """Nothing in it, a table, another JSON."""
    with pytest.raises(ScenarioError, match=r"log\.jsonl\.gz"):
        load(text)


@pytest.mark.parametrize(
    "meta",
    ["", "[]", "{}", "[" * 100_000, '{"engine_kwargs": {"max_num_seqs": 0}}', "\x00"],
)
def test_another_description_is_refused(load: Load, meta: str) -> None:
    """Empty, of another shape, nested too deep, a limit of nothing."""
    with pytest.raises(ScenarioError, match=r"meta\.json"):
        load(_rows(_simulated(1)), meta)


def test_limits_that_the_log_breaks(load: Load) -> None:
    """A served request longer than the model's maximum contradicts it."""
    engine = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 64}
    with pytest.raises(ScenarioError, match="exceed the model's maximum of 64, yet it was served"):
        load(_rows(_simulated(3)), {"engine_kwargs": engine})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Or is not what its ending says."""
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps(META))
    with pytest.raises(ScenarioError, match="no such file"):
        load_server_log(tmp_path / "none.jsonl", meta)
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("{}")
    with pytest.raises(ScenarioError, match="not readable"):
        load_server_log(plain, meta)


@pytest.mark.parametrize("requests", [0, -1, 4])
def test_as_many_as_there_are(load: Load, requests: int) -> None:
    """To fit on none, or on more than the log has, is a mistake."""
    with pytest.raises(CalibrationError, match="the log has 3"):
        fit(load(_rows(_simulated(3))), requests)


def test_too_little_to_fit_on(load: Load) -> None:
    """Where fewer requests than parameters were done before the rest began."""
    with pytest.raises(CalibrationError, match=f"{len(PARAMETERS)} are needed"):
        fit(load(_rows(_simulated())), 10)


def test_a_log_in_milliseconds(load: Load) -> None:
    """Asks for parameters beyond their bounds, and is told so."""
    rows = _rows(_simulated())
    for row in rows:
        for name in row:
            if name.endswith(("_ts", "_time")):
                row[name] = row[name] % WALL_S * 1000
    with pytest.raises(CalibrationError, match="times in seconds"):
        fit(load(rows), 100)


# A real run: 300 ShareGPT requests to Llama-3.1-8B on vLLM 0.19, one RTX PRO 6000.

needs_the_run = pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.resolve()} is not here")


@pytest.fixture(scope="module")
def real() -> ServerLog:
    """Return the log of the real run."""
    return load_server_log(REAL, RUN.with_name(RUN.name + ".meta.json"))


@needs_the_run
def test_the_real_log_is_read(real: ServerLog) -> None:
    """Its mean TTFT and TPOT are those published with it: 7097.2 ms from queueing on, 32.5 ms."""
    records = real.records
    assert len(records) == 300
    assert real.ahead
    tpot_s = (records["finish_s"] - records["first_token_s"]) / (records["output_tokens"] - 1)
    assert tpot_s.mean() == pytest.approx(0.0325, abs=5e-5)
    ttft_s = (records["first_token_s"] - records["arrival_s"]).mean()
    assert 7.0972 < ttft_s < 7.0972 + 0.025


@needs_the_run
@pytest.mark.parametrize(("requests", "bound"), [(140, 0.04), (150, 0.02), (200, 0.03)])
def test_the_real_rest_is_predicted(real: ServerLog, requests: int, bound: float) -> None:
    """Every figure of the requests that were not looked at; regression bounds, set from results."""
    found = fit(real, requests)
    predicted = predict(real, found.parameters)
    table = judge(real, predicted, requests)
    assert table["error"].abs().max() < bound
    assert max(typical_errors(real.records[requests:], predicted[requests:]).values()) < bound


@needs_the_run
def test_the_real_parameters_are_physical(real: ServerLog) -> None:
    """Reading 128 KiB of keys and values a token at no more than 1.79 TB/s, plus 5 % of error.

    And 16 GB of weights take 8 ms, 7.5 G multiply-adds a token at 503 TFLOP/s 30 us, at the least.
    """
    parameters = fit(real, 150).parameters
    assert 131072 / parameters.context_s < 1.05 * 1.792e12
    assert parameters.fixed_s > 8e-3
    assert parameters.token_s > 30e-6
