"""The names and units under which figures are shown, the same in tables, charts and reports."""

from collections.abc import Sequence

Interval = Sequence[float]
"""Low and high end of a figure over replications."""

MISSING = "–"
"""Shown where a figure does not exist: no request completed, or a single run has no spread."""

LABELS = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "turnaround_s": "Turnaround",
    "throughput_rps": "Throughput",
    "goodput_rps": "Goodput",
    "output_tokens_per_s": "Output tokens",
    "slo_attainment": "Within targets",
}

LONG_LABELS = {
    "ttft_s": "Time to first token (TTFT)",
    "tpot_s": "Time per output token (TPOT)",
    "turnaround_s": "Turnaround",
}

RATE_UNITS = {"throughput_rps": "req/s", "goodput_rps": "req/s", "output_tokens_per_s": "tokens/s"}

GLOSSARY = {
    "TTFT": "Time to first token: from a request's arrival to the first token of its answer.",
    "TPOT": "Time per output token: the mean gap between a request's tokens after the first.",
    "ITL": "Inter-token latency: each single gap between two tokens of a request.",
    "Turnaround": "From a request's arrival to the last token of its answer.",
    "p50, p90, p95, p99": "Percentiles: p99 is what 99 of 100 requests stay at or below.",
    "Throughput": "Requests completed per second, from the first arrival to the last token.",
    "Goodput": "Requests completed per second that met every target of their tenant.",
    "Within targets": "Share of all requests that met every target of their tenant.",
    "Fairness": (
        "Jain's index of the tenants' mean speeds: 1 if all are served alike, 1/n if one of n gets "
        "everything."
    ),
    "Median [low, high]": (
        "The scenario is run several times with other draws of what chance decides, and with the "
        "profile redrawn within its errors. The median of these runs is shown, and between which "
        "values nine in ten single runs fall. Runs of one's own are expected there too; it is not "
        "how well the median is known."
    ),
    "Error": "Predicted over measured, minus one; measured is the mean of the real runs.",
    "Spread": (
        "The largest minus the smallest of the real runs, over their mean: how far the same "
        "workload on the same machine differs from itself."
    ),
    "Close": "The error is at most 15 %, or at most twice the spread.",
    "Hit": (
        "The mean of the real runs lies between low and high. The simulated runs were asked the "
        "very requests of the real ones, so that low and high are apart by what the profile may be "
        "wrong by, and not by chance. The figures of one validation rise and fall together: nine "
        "hits in ten are to be expected over many validations, not within one."
    ),
}


def figure_name(metric: str, statistic: str) -> str:
    """Name a compared figure: `TTFT p99`; a rate has one statistic, which is left out."""
    label = LABELS.get(metric, metric)
    return label if metric in RATE_UNITS else f"{label} {statistic}"


def time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which a duration reads well, and how many of it are in a second."""
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e3)


def rounded(value: float) -> str:
    """Write three significant digits, and whole numbers from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def in_units(metric: str, values: Sequence[float | None]) -> list[str]:
    """Write figures of one metric in one unit, so that they compare at a glance."""
    unit, scale = unit_of(metric, values)
    return [
        f"{rounded(value * scale)} {unit}" if value is not None and value == value else MISSING
        for value in values
    ]


def unit_of(metric: str, values: Sequence[float | None]) -> tuple[str, float]:
    """Return the unit in which figures of one metric read well, and how many of it make one."""
    if metric in RATE_UNITS:
        return RATE_UNITS[metric], 1.0
    known = [value for value in values if value is not None and value == value]
    return time_unit(max(known, default=0.0))


def written(value: float) -> str:
    """Write a figure: counts as they are, others rounded."""
    return f"{value:,}" if isinstance(value, int) else rounded(value)


def bracketed(interval: Interval | None, scale: float = 1) -> str:
    """Write an interval in some unit: `[38.4, 49.2]`; nothing where there is none."""
    if interval is None:
        return ""
    return f"[{', '.join(written(end * scale) for end in interval)}]"


def percent(share: float | None, *, signed: bool = False) -> str:
    """Write a share in percent with one decimal: `0.081` becomes `8.1 %`."""
    if share is None or share != share:
        return MISSING
    return f"{100 * share:{'+' if signed else ''},.1f} %"
