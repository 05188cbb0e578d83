"""What Prometheus reads: counters and histograms under vLLM's names, one set a model.

The worker's thread counts, the event loop renders: a lock keeps a histogram's sums together.
Format: https://prometheus.io/docs/instrumenting/exposition_formats (text, version 0.0.4).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS_S = tuple(step * 10.0**power for power in range(-4, 3) for step in (1.0, 2.5, 5.0))
"""Upper bounds of the histograms' buckets [s]."""

GAUGES = {
    "vllm:num_requests_running": "Requests in the running batch.",
    "vllm:num_requests_waiting": "Requests that wait to enter the batch.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache's blocks in use, 1 is all.",
}
COUNTERS = {
    "vllm:prompt_tokens_total": "Prompt tokens of requests that got their first token.",
    "vllm:generation_tokens_total": "Tokens generated.",
    "vllm:num_preemptions_total": "Times that a running request lost its blocks.",
    "moesim:reconfigurations_total": "Times that a variant's non-expert layers were loaded.",
    "moesim:expert_hits_total": "Experts that iterations found on the device, where some are not.",
    "moesim:expert_misses_total": "Experts that iterations waited for, as they were absent.",
}
SUCCESS = "vllm:request_success_total"
SUCCESS_HELP = "Requests that ended, by why: stop, length, or abort where the client left."
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "From a request's arrival to its first token.",
    "vllm:inter_token_latency_seconds": "Between two tokens of a request.",
    "vllm:request_time_per_output_token_seconds": "Mean gap between the tokens of a request.",
    "vllm:request_queue_time_seconds": "From a request's arrival to its first iteration.",
    "vllm:e2e_request_latency_seconds": "From a request's arrival to its last token.",
}


@dataclass(slots=True)
class Histogram:
    """Observations by bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BOUNDS_S, value)] += 1
        self.total += value


class Metrics:
    """The counts of one model since its start."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counters = Counter(dict.fromkeys(COUNTERS, 0))
        self._ended = Counter({"stop": 0, "length": 0, "abort": 0})
        self._histograms = {name: Histogram() for name in HISTOGRAMS}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep whoever reads from seeing half of several counts."""
        with self._lock:
            yield

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of `COUNTERS`, within `together`."""
        self._counters[name] += amount

    def observe(self, name: str, seconds: float) -> None:
        """Add an observation to one of `HISTOGRAMS`, within `together`."""
        self._histograms[name].observe(seconds)

    def ended(self, why: str) -> None:
        """Count a request that ended."""
        with self._lock:
            self._ended[why] += 1

    def lines(self, name: str, label: str) -> Iterator[str]:
        """Yield the samples of one metric under the label of a model."""
        with self._lock:
            if name == SUCCESS:
                for why, count in self._ended.items():
                    yield f'{name}{{{label},finished_reason="{why}"}} {count}'
            elif name in COUNTERS:
                yield f"{name}{{{label}}} {self._counters[name]}"
            else:
                yield from _buckets(name, label, self._histograms[name])


def _buckets(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    *within, everything = accumulate(histogram.counts)
    for bound, count in zip(BOUNDS_S, within, strict=True):
        yield f'{name}_bucket{{{label},le="{bound:.10g}"}} {count}'
    yield f'{name}_bucket{{{label},le="+Inf"}} {everything}'
    yield f"{name}_sum{{{label}}} {histogram.total!r}"
    yield f"{name}_count{{{label}}} {everything}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One model's metrics at the moment of a scrape."""

    model: str
    metrics: Metrics
    gauges: Mapping[str, float]

    @property
    def label(self) -> str:
        """The label that tells models apart."""
        name = self.model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        return f'model_name="{name}"'


def exposition(readings: Iterable[Reading]) -> str:
    """Return the text that Prometheus scrapes."""
    return "\n".join(_exposition(list(readings))) + "\n"


def _exposition(readings: list[Reading]) -> Iterator[str]:
    for name, text in GAUGES.items():
        yield from _head(name, text, "gauge")
        yield from (f"{name}{{{one.label}}} {one.gauges[name]!r}" for one in readings)
    counted = [
        *((name, text, "counter") for name, text in COUNTERS.items()),
        (SUCCESS, SUCCESS_HELP, "counter"),
        *((name, text, "histogram") for name, text in HISTOGRAMS.items()),
    ]
    for name, text, kind in counted:
        yield from _head(name, text, kind)
        for one in readings:
            yield from one.metrics.lines(name, one.label)


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
