"""The words and numbers in which accuracy is shown, on whatever page."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from moesim.evidence.accuracy.mixtral import MIXTRAL_PROMPT
from moesim.evidence.accuracy.outcome import Accuracy
from moesim.evidence.accuracy.paces import PROMPTS_OFF, Fit
from moesim.evidence.accuracy.summary import ALIKE, BY_MODEL, figures_of, like_entries
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
    "rows' residuals. Rows whose requests come by a clock have no factor. MLPerf's entries have a "
    "pace, by kernels and by the roofline alone."
)

ASSUMED = (
    "TensorRT-LLM's published maximum loads: its documentation's numbers of requests, guaranteed "
    "no evict with prompts in chunks, engines as large as in trtllm-bench's table (to 0.14; on "
    "eight GPUs for 8,192 sequences where the table has none, Mixtral 8x7B's with 128 and 4,096 "
    "tokens for 512, found on A100-SXM and L40S) or as it reckons them (later), 0.90 "
    "of the memory that weights, activations, the decoder (six values of each sequence for "
    "each entry of the vocabulary and each position, by two logs) and 0.76 GiB (1.76 GiB in a "
    "group) of runtime leave, blocks of 64 tokens (32 from 1.0 on), an FP8 KV cache with FP8 "
    "weights.",
    "MLPerf: one replica a GPU, 896 sequences, 8,192 tokens, FP8 KV cache; answers by the "
    "percentiles of the logs. An entry's server run is predicted with the pace of its own offline "
    "run; its offline run with the median pace of the device's other entries, which says how alike "
    "machines are, and is not judged where there are none. Prompts of 650, 300 and 190 tokens are "
    "reckoned from what the three data sets are, and good to 13 %; within that one factor on all "
    "of them is fitted: the median of those with which the other entries' servers have their mean "
    "times per token. The interval has longer and shorter ones, and the slack that the others' "
    "servers have. A device without kernels of its own has those of its nearest kin with as many "
    "SMs (H100 NVL those of H100 SXM), which say how iterations grow, and its own pace says how "
    "long they are; a roofline grows otherwise. Rates are those of a long run without its "
    "beginning and its end; servers' rates are the load, and not judged. Near saturation a few per "
    "cent of capacity decide whether 400 or 650 requests are in flight, and tails of times to the "
    "first token are as the arrivals fall. Their medians were 1.5 times per token, as if prompts "
    "took no time, and are predicted to be 1.6: what takes longer than kernels may go with "
    "sequences more than with prompts, while here all parts of an iteration are slower alike.",
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
    "judged. Its experts are in 16 bits whatever the rest, on Hopper by kernels for Ampere, whose "
    "rate was found on one run; how made-up prompts were routed was found on two of A100.",
    "vLLM before 0.4 had tiles of 64 x 64 for experts, bound by the cache on the chip, and NCCL's "
    "all-reduces: nothing was fitted on its rows.",
    "How many sequences 0.14's Mixtral on eight GPUs was built for is known from its rows alone; "
    "that of 2,048 and 2,048 tokens in FP8 looks like fewer than 1,500. Its C++ runtime takes "
    "0.065 us more for each sequence in each layer than the kernels: found on 36 rows of Llama, "
    "which are not judged. Llama 70B in FP8 on a single H100 has little memory left, so that its "
    "rows hang on it.",
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

NAMED = "mean|p99|tokens"
"""Of which figures is said how far apart like entries are."""

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
    paces = fit.paces
    kernels = "kernels" if fit.kernels == fit.device else f"kernels (of {fit.kernels})"
    if len(paces) == 1:
        text = (
            f"{fit.model} on {fit.device}: iterations of MLPerf's one entry take {paces[0]:.2f} "
            f"times as long as {kernels} alone, by the output rate of its offline run, whose rows "
            f"({len(fit.figures)} in all) are not judged"
        )
    else:
        text = (
            f"{fit.model} on {fit.device}: iterations of MLPerf's entries take {paces[0]:.2f} to "
            f"{paces[-1]:.2f} times as long as {kernels} alone: each of {len(paces)} by the output "
            "rate of its own offline run, which is itself predicted with the median of the others"
        )
    return text + _prompt_words(fit.prompts)


def _prompt_words(prompts: tuple[float, ...]) -> str:
    """Say how long prompts were found to be, if they were."""
    if not prompts:
        return ""
    least, most = (MIXTRAL_PROMPT * (1 + off) for off in (-PROMPTS_OFF, PROMPTS_OFF))
    found = f"{prompts[0]:.0f}"
    if f"{prompts[-1]:.0f}" != found:
        found += f" to {prompts[-1]:.0f}"
    return (
        f"; prompts have {found} tokens on average (of {least:.0f} to {most:.0f} that they may "
        "have), by the mean times per token of the other entries' servers"
    )


def like_words(rows: pd.DataFrame) -> list[str]:
    """Say how far apart entries are that ran the same, beside how far off predictions are."""
    known = like_entries(rows)
    if known.empty:
        return []
    parts = []
    for names, group in known.groupby(list(ALIKE[:-1]), sort=False):
        _, gpu, devices, load, _ = names
        figures = (
            f"{row['metric']} {number(row['least'])} to {number(row['most'])}, "
            f"{share(row['apart'])} apart, {share(row['mape'])} off"
            for row in group[group["metric"].str.contains(NAMED)].to_dict("records")
        )
        entries = group["entries"].max()
        parts.append(f"{entries} with {devices:g} {gpu}, {load}: {', '.join(figures)}")
    return [
        "MLPerf's entries that ran the same are as far apart as makers and chance leave them, "
        "which no prediction foretells; beside it stands by how much predictions of them are off "
        f"on average. {'; '.join(parts)}."
    ]


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
