"""The words and numbers in which accuracy is shown, on whatever page."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from moesim.evidence.accuracy.outcome import Accuracy
from moesim.evidence.accuracy.paces import Fit
from moesim.evidence.accuracy.summary import BY_MODEL, figures_of
from moesim.evidence.accuracy.worst import Worst
from moesim.scenario import ROOFLINE

SUMMARY = (
    "source", "engine", "model", "gpu", "format", "figure", "rows", "MAPE", "bias", "p50", "p90",
    "in interval", "roofline MAPE", "roofline bias", "with factor: MAPE", "bias", "in interval",
)  # fmt: skip
"""Headings of a summary."""

FACTORS = (
    "software", "gpu", "rows", "folds", "factor", "over folds", "MAPE as is", "bias as is",
    "MAPE", "bias", "p90", "in interval",
)  # fmt: skip
"""Headings of the factors."""

ROWS = (
    "line", "model", "gpu", "tp", "ep", "format", "prompt", "answer", "load", "metric", "measured",
    "predicted", "90 % interval", "error", "roofline error", "with factor", "error",
)  # fmt: skip
"""Headings of the rows."""

WORST = ("line", "model", "gpu", "tp", "prompt", "answer", "load", "metric", "error", "suspect")
"""Headings of the worst rows."""

HOW = (
    "Each row's experiment is simulated: the requests that the source sent, the engine's rules and "
    "memory, iteration by iteration. MAPE is the mean of |predicted/measured - 1|, bias the mean "
    "without the bars, p50 and p90 are percentiles of the former; `in interval` is the share of "
    "rows that lie in their 90 % interval. `As is`, nothing is fitted on any row that is judged: "
    "iterations take the median longer of what other engines were found to add to their kernels, "
    "and the interval holds nine in ten of those; what the row's own software adds is left out, on "
    "all GPUs. `With factor`, the iterations of one engine version on one GPU all take longer by "
    "one factor than kernels alone: the median over the rates and times per token of all other "
    "prompt and answer lengths (a fold is a pair of lengths), with the interval of those other "
    "rows' residuals. Rows whose requests come by a clock have no factor."
)

ASSUMED = (
    "TensorRT-LLM's published maximum loads: its documentation's numbers of requests, guaranteed "
    "no evict with prompts in chunks, engines as large as in trtllm-bench's table (to 0.14; on "
    "eight GPUs for 8,192 sequences where the table has none) or as it reckons them (later), 0.90 "
    "of the memory that weights, activations, the decoder (six values of each sequence for "
    "each entry of the vocabulary and each position, by two logs) and 0.76 GiB (1.76 GiB in a "
    "group) of runtime leave, blocks of 64 tokens (32 from 1.0 on), an FP8 KV cache with FP8 "
    "weights.",
    "MLPerf: one replica a GPU, 896 sequences, 8,192 tokens, FP8 KV cache; answers by the "
    "percentiles of the logs, prompts of 650, 300 and 190 tokens, reckoned from what the three "
    "data sets are and good to 13 % (the interval has longer and shorter ones). An entry's server "
    "run is predicted with the pace of its own offline run; rates are those of a long run without "
    "its beginning and its end; servers' rates are the load, and not judged. "
    "Near saturation a few per cent of capacity decide whether 400 or 650 requests are in flight, "
    "and tails of times to the first token are as the arrivals fall.",
    "Static batches: all prompts in one pass, then all answers to their end. Closed loops: ten "
    "requests a user, InferenceMAX's with lengths from 0.8 of those named to those named. vLLM and "
    "SGLang at their defaults.",
    "Routers choose any expert alike, as they nearly do for random tokens; but in Argonne's "
    "batches of TensorRT-LLM, copies of one prompt, all sequences choose the same.",
    "Kernels know nothing of the software around them: no host, no gaps between launches, and the "
    "kernels are of later versions than most of these engines had. What that adds differs from "
    "engine to engine, from nothing to twice as long: intervals as is are as wide as that. Where "
    "small batches on several GPUs tell a host's time (vLLM and TensorRT-LLM's Python session of "
    "2024), it is added to each iteration: found on 24 runs, which are not judged. Others' small "
    "batches on many GPUs are too fast.",
    "TensorRT-LLM 0.9 decodes four query heads to one of keys and values (Mistral, Mixtral) by an "
    "older kernel, which reads these again for each; how fast was found on two runs, which are not "
    "judged. Its experts in FP8 on Hopper, and how made-up weights routed, are not known.",
    "How many sequences 0.14's Mixtral on eight GPUs was built for is not known; its rows of 128 "
    "and 4,096 tokens look as if there were a round of requests more than memory is reckoned to "
    "need. Llama 70B in FP8 on a single H100 has little memory left, so that its rows hang on it.",
    "Times to the first token of closed loops hang on whether users ask at once or one by one, and "
    "on whether the engine has a seat for each: the interval is from a request alone to one that "
    "waits for a seat. Where lengths are all alike, simulated users keep step, which real ones "
    "lose.",
    "L40S and A100 over PCIe: all-reduces of four and eight devices were chosen between two tables "
    "with these rows in sight, so that their rows on so many are not held out.",
    "Near the edge where one more round of requests is needed, a per cent of KV memory moves a "
    "throughput by ten: rows with `KV memory` as suspect stand there.",
)
"""What predictions assume, and where they are weak."""

NONE = "-"


def headline(found: Accuracy) -> str:
    """Say what came out in all."""
    judged = found.judged
    if judged.empty:
        return f"None of {found.chosen:,} rows could be predicted."
    figures = figures_of(judged)
    text = (
        f"{len(found.rows):,} of {found.chosen:,} rows predicted: MAPE {share(figures['mape'])}, "
        f"bias {signed(figures['bias'])}, half within {share(figures['p50'])}, "
        f"{share(figures['hit'], 0)} in their 90 % intervals"
    )
    if set(found.profiles.values()) == {ROOFLINE}:
        return f"Datasheet rooflines, nothing measured on these GPUs. {text}."
    return f"{text}; the roofline alone: MAPE {share(figures['roofline_mape'])}."


def summary_row(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a summary's cells, in the order of `SUMMARY`."""
    return (
        *(str(row[name]) or NONE for name in BY_MODEL),
        f"{row['rows']:,}",
        share(row["mape"]),
        signed(row["bias"]),
        share(row["p50"]),
        share(row["p90"]),
        share(row["hit"], 0),
        share(row["roofline_mape"]),
        signed(row["roofline_bias"]),
        share(row["fitted_mape"]),
        signed(row["fitted_bias"]),
        share(row["fitted_hit"], 0),
    )


def factor_row(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a factor's cells, in the order of `FACTORS`."""
    return (
        str(row["software"]),
        str(row["gpu"]),
        f"{row['rows']:,}",
        f"{row['folds']:,}",
        f"{row['factor']:.3f}",
        f"{row['lowest']:.3f} to {row['highest']:.3f}",
        share(row["mape"]),
        signed(row["bias"]),
        share(row["fitted_mape"]),
        signed(row["fitted_bias"]),
        share(row["fitted_p90"]),
        share(row["fitted_hit"], 0),
    )


def row_cells(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """Return a row's cells, in the order of `ROWS`."""
    return (
        f"{row['line']}",
        *(str(row[name]) or NONE for name in ("model", "gpu")),
        *(count(row[name]) for name in ("tp", "ep")),
        row["precision"] or NONE,
        *(count(row[name]) for name in ("isl", "osl")),
        row["load"] or NONE,
        row["metric"],
        number(row["measured"]),
        number(row["predicted"]),
        f"{number(row['low'])} to {number(row['high'])}",
        signed(row["error"]) + ("" if row["judged"] else " (not judged)"),
        signed(row["roofline_error"]),
        number(row["fitted"]),
        signed(row["fitted_error"]),
    )


def worst_row(each: Worst) -> tuple[str, ...]:
    """Return a bad row's cells, in the order of `WORST`."""
    row = each.row
    return (
        f"{row['line']}",
        *(str(row[name]) for name in ("model", "gpu")),
        *(count(row[name]) for name in ("tp", "isl", "osl")),
        row["load"],
        row["metric"],
        signed(each.error) + (" with factor" if each.factored else ""),
        str(each.cause),
    )


def fit_words(fit: Fit) -> str:
    """Say what was fitted on which rows."""
    entries, paces = len(fit.entries), fit.paces
    return (
        f"{fit.model} on {fit.device}: iterations of MLPerf's entries take {paces[0]:.2f} to "
        f"{paces[-1]:.2f} times as long as kernels alone: each of {entries} by the output rate of "
        f"its offline run, whose rows ({len(fit.figures)} in all) are not judged"
    )


def basis_words(found: Accuracy) -> str:
    """Say what the predictions rest on."""
    parts = (
        f"{device}: {'its datasheet (roofline)' if name == ROOFLINE else f'kernels ({name})'}"
        for device, name in found.profiles.items()
    )
    return "; ".join(parts)


def share(value: float, digits: int = 1) -> str:
    """Write a share in percent.

    >>> share(0.0523), share(float("nan"))
    ('5.2 %', '-')
    """
    return NONE if pd.isna(value) else f"{100 * value:.{digits}f} %"


def signed(value: float) -> str:
    """Write an error in percent.

    >>> signed(-0.0523)
    '-5.2 %'
    """
    return NONE if pd.isna(value) else f"{100 * value:+.1f} %"


def number(value: float) -> str:
    """Write a figure with four digits, no more than a measurement has.

    >>> number(24321.9927), number(0.68831)
    ('24,322', '0.6883')
    """
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def count(value: float | None) -> str:
    """Write a whole number, or that it is not known."""
    return NONE if value is None or pd.isna(value) else f"{value:g}"
