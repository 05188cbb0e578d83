"""The layouts of traces: which columns a file of each kind has, and what they mean.

A file is recognised by its columns (of JSON, its keys), never by its name; other columns are left
out. The first layout of which all columns are there is the file's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a layout keeps a request's arrival, lengths, tenant and prefix."""

    arrival: str
    """Column of the arrival time."""
    per_second: float | None = 1.0
    """Units of the arrival time in a second; None for dates and times."""
    prompt: str = "prompt_tokens"
    output: str = "output_tokens"
    tenant: str = "tenant"
    """Column whose values are taken as tenants, where it is there."""
    prefix: str | None = None
    """Column of the prompt's block hashes: equal leading ids are an equal prefix."""
    prefix_block: int | None = None
    """Tokens that one hash stands for."""
    marks: tuple[str, ...] = ()
    """Further columns by which it is told from the others."""
    about: str
    """What writes it, in a few words."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that a file of this layout has."""
        prefix = (self.prefix,) if self.prefix else ()
        return (*self.marks, self.arrival, self.prompt, self.output, *prefix)


LAYOUTS = {
    "azure": Layout(
        arrival="TIMESTAMP",
        per_second=None,
        prompt="ContextTokens",
        output="GeneratedTokens",
        about="Azure LLM inference traces of 2023 and 2024",
    ),
    "burstgpt": Layout(
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        tenant="Model",
        marks=("Model",),
        about="BurstGPT, times in s, a tenant a model",
    ),
    "bailian": Layout(
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        tenant="type",
        prefix="hash_ids",
        prefix_block=16,
        marks=("chat_id", "type"),
        about="Qwen-Bailian, times in s, hashes of 16 tokens, a tenant a type",
    ),
    "mooncake": Layout(
        arrival="timestamp",
        per_second=1e3,
        prompt="input_length",
        output="output_length",
        prefix="hash_ids",
        prefix_block=512,
        about="Mooncake, times in ms, hashes of 512 tokens",
    ),
    "sharegpt": Layout(
        arrival="arrival_time_ns",
        per_second=1e9,
        prompt="input_toks",
        output="output_toks",
        about="lengths of ShareGPT conversations, times in ns",
    ),
    "server-log": Layout(
        arrival="arrival_time",
        prompt="input_toks",
        output="output_toks",
        about="a server's log of requests, times in s",
    ),
    "vllm-bench": Layout(
        arrival="start_times",
        prompt="input_lens",
        output="output_lens",
        about="vllm bench serve --save-result --save-detailed",
    ),
    "records": Layout(
        arrival="arrival_s",
        marks=("request_id", "tenant", "outcome"),
        about="moesim's own record tables",
    ),
    "plain": Layout(arrival="arrival_s", about="times in s; tenant if there are several"),
}
"""Layouts by name, the more particular first."""

SERVEGEN = {
    "servegen-trace": (
        "client_id", "window_start_s", "rate_req_s", "cv", "arrival_family", "param1", "param2",
    ),
    "servegen-lengths": (
        "client_id", "window_start_s", "input_tokens_quantiles", "output_tokens_quantiles",
    ),
    "servegen-rates": ("client_id", "mean_rate_req_s"),
}  # fmt: skip
"""Columns of ServeGen's files, which describe clients rather than list requests."""

MOST_NAMED = 12
"""Of a file's columns, so many are named in a message."""

LONGEST_NAME = 30
"""Of a column's name, so many characters; of a file that is no table it may be a paragraph."""


def recognise(found: Collection[str]) -> str | None:
    """Return the name of the layout that a file with these columns has; None for none."""
    known = {name: layout.columns for name, layout in LAYOUTS.items()} | SERVEGEN
    return next((name for name, columns in known.items() if set(columns) <= set(found)), None)


def unknown(found: Sequence[str]) -> str:
    """Say, of columns that are no layout's, what they are, what comes nearest and what is known."""
    named = [name[:LONGEST_NAME] for name in found[:MOST_NAMED]]
    more = ["..."] if len(found) > MOST_NAMED else []
    columns = "".join(c if c.isprintable() else "?" for c in ", ".join(named + more))
    return (
        f"unknown layout with columns {columns or 'none'}{_nearest(found)}; known: "
        f"{', '.join([*LAYOUTS, *SERVEGEN])} (columns: moesim workload inspect --help)"
    )


def _nearest(found: Sequence[str]) -> str:
    absent = {
        name: [c for c in layout.columns if c not in found] for name, layout in LAYOUTS.items()
    }
    name = min(absent, key=lambda name: len(absent[name]) / len(LAYOUTS[name].columns))
    if len(absent[name]) == len(LAYOUTS[name].columns):
        return ""
    return f"; for {name}, {', '.join(absent[name])} is missing"
