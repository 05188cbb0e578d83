"""The profile: one self-describing JSON file, made on a GPU host, read on a planner's laptop.

For each operation it holds measured cells (coordinates, median, spread, repeats), and beside them
the router's popularity per layer, the KV blocks the engine allocated, and where all this comes
from. Times are in seconds. An operation inside a layer is timed for one layer.

| operation | coordinates | per |
|---|---|---|
| embedding | tokens | iteration |
| projections (norm, QKV, RoPE, cache write, O) | tokens | layer |
| attention_decode | sequences, context (summed over them) | layer |
| attention_prefill | new_tokens, context (cached before the chunk) | layer and chunk |
| router (norm, gate, top-k) | tokens | layer |
| experts | tokens, distinct (experts hit) | layer |
| collectives (of a group of devices; optional) | tokens | layer |
| head (norm, lm_head) | sequences (that emit a token) | iteration |
| sampling | sequences (that emit a token) | iteration |
| host (scheduling, batch building, records) | sequences (in the batch) | iteration |
| decode_replay (decodes alone, as a captured graph; optional) | sequences, context | iteration |

A model without experts has one in each layer, its FFN, that every token visits: cells at one
distinct expert, popularity 1. Where only some layers have experts, the router has a row for each of
these, the cells of experts are spread over all layers, and the plain FFNs are in the projections.

A graph is launched at once, so that a replayed iteration takes less than its operations timed one
by one: iterations of decodes alone are read off `decode_replay` where an engine replays them.

`transfers` is optional: loads of absent experts, swaps of layers, experts in a store of several
variants, the gateway, the variants' own routers. So are `decode_replay`, `precision`, the device's
hash and those of pooled measurements. Profiles that were made without them are read.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from moesim.checked import checked
from moesim.errors import ProfileError, ScenarioError
from moesim.facts.catalog import locate
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice
from moesim.files import write_text

FORMAT = "moesim-profile"
FORMAT_VERSION = 1
KERNELS: Literal["moesim-kernels"] = "moesim-kernels"
"""The format of files of kernels, from which profiles are made (`moesim.cost.kernels`)."""

COORDINATES: dict[str, tuple[str, ...]] = {
    "embedding": ("tokens",),
    "projections": ("tokens",),
    "attention_decode": ("sequences", "context"),
    "attention_prefill": ("new_tokens", "context"),
    "router": ("tokens",),
    "experts": ("tokens", "distinct"),
    "head": ("sequences",),
    "sampling": ("sequences",),
    "host": ("sequences",),
}
"""The operations every profile covers, and the coordinates of their cells."""

REPLAY = "decode_replay"

OPTIONAL: dict[str, tuple[str, ...]] = {
    "collectives": ("tokens",),
    REPLAY: ("sequences", "context"),
}
"""The operations that some profiles cover. Absent collectives cost nothing; without replays
decodes alone are added up from their operations."""

PER_LAYER = frozenset(
    {"projections", "attention_decode", "attention_prefill", "router", "experts", "collectives"}
)
"""The operations whose cells are for one layer; the others are for one iteration."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Cell(_Part):
    """One measured point of an operation."""

    at: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
    """Coordinates, in the order of `COORDINATES` and `OPTIONAL`."""
    median_s: float = Field(ge=0, allow_inf_nan=False)
    """Median duration [s]."""
    spread: float = Field(ge=0, allow_inf_nan=False)
    """Interquartile range over the median."""
    repeats: int = Field(gt=0, le=10**12)
    """Timed repetitions behind the median."""


class Kv(_Part):
    """The KV cache as the engine really allocated it."""

    block_size: int = Field(gt=0)
    """Tokens in a block."""
    num_blocks: int = Field(gt=0)
    """Blocks allocated."""


class Router(_Part):
    """What the model's routers did in real forward passes."""

    popularity: list[list[Annotated[float, Field(ge=0, le=1)]]]
    """Share of tokens that each expert of each layer receives; each row sums to top-k.
    A model without experts has rows of one share, 1."""
    tokens: int = Field(gt=0)
    """Tokens observed."""
    distinct: list[tuple[int, float]]
    """Tokens in an iteration, mean distinct experts a layer; a check on the popularity."""


class ExpertLoad(_Part):
    """What it takes to bring one absent expert to the device."""

    memory: Literal["pinned", "pageable", "host"]
    """Where the expert waits; `host` is a device without memory of its own, such as a CPU."""
    how: Literal["alone", "in_iteration"]
    """Timed by itself, or as what an iteration is longer by for each expert that was absent."""
    expert_bytes: int = Field(gt=0)
    """Size of the expert [B]."""
    in_flight: int = Field(gt=0)
    """Loads that were asked for at once; in an iteration one after the other."""
    median_s: float = Field(gt=0, allow_inf_nan=False)
    """Median duration of one: that of all in flight over their number [s]."""
    spread: float = Field(ge=0, allow_inf_nan=False)
    """Interquartile range over the median."""
    repeats: int = Field(gt=0, le=10**12)
    """Timed repetitions behind the median."""


class Swap(_Part):
    """What it takes to replace what is loaded of one variant by another's."""

    what: Literal["non_expert_set", "whole_model"]
    """What is replaced."""
    way: Literal["packed", "per_tensor"]
    """By one copy, or by a copy a tensor."""
    memory: Literal["pinned", "pageable", "host"]
    """Where the other variant waits; `host` as for an expert."""
    set_bytes: int = Field(gt=0)
    """Size of what is replaced [B]."""
    tensors: int = Field(gt=0)
    """Tensors that it consists of."""
    median_s: float = Field(gt=0, allow_inf_nan=False)
    """Median duration [s]."""
    spread: float = Field(ge=0, allow_inf_nan=False)
    """Interquartile range over the median."""
    repeats: int = Field(gt=0, le=10**12)
    """Timed repetitions behind the median."""


class Classification(_Part):
    """How long the gateway takes for a prompt, one prompt after the other."""

    prompts: int = Field(gt=0)
    """Prompts timed."""
    mean_s: float = Field(gt=0)
    """Mean duration: what a scenario's `classify_s` is [s]."""
    median_s: float = Field(gt=0)
    """Median duration [s]."""
    p90_s: float = Field(gt=0)
    """Its 90th percentile [s]."""


class Stored(_Part):
    """Experts that run from a store of several variants, against the model's own alone."""

    copies: int = Field(gt=0)
    """Expert copies in the store."""
    complete: bool
    """Whether all have a place on the device; where not, none of those that ran was absent."""
    factors: list[tuple[float, float, Annotated[float, Field(gt=0, allow_inf_nan=False)]]]
    """Tokens, distinct experts, and the duration over that of the same cell of `experts`."""


class Variant(_Part):
    """A checkpoint of the profiled shape."""

    model_digest: str
    """Hash of the checkpoint's configuration and weights' sizes."""
    router: Router
    """What its own routers did."""


class Transfers(_Part):
    """What models cost that share a device: experts and layers on their way, and who is asked."""

    expert_loads: list[ExpertLoad] = []
    """Loads of absent experts."""
    swaps: list[Swap] = []
    """Reconfigurations."""
    stored: list[Stored] = []
    """Experts that run from a store."""
    gateway: Classification | None = None
    """The gateway, if one was given."""
    variants: dict[str, Variant] = {}
    """Checkpoints that were given beside the profiled one, by name."""
    notes: list[str] = []
    """What could not be measured, and why."""


class Provenance(_Part):
    """Where and how the profile was made."""

    device: str
    """Device name as the system reports it."""
    device_kind: Literal["cuda", "cpu"]
    """What kind of device it is."""
    share: str | None = Field(default=None, pattern=r"^[1-9]\d*/[1-9]\d* .+$")
    """Share of the device's compute that was measured, `1/2 cores` or `56/132 SMs`; all if none."""
    host_hash: str
    """Hash of the host's identity; profiles of different hosts do not mix."""
    device_hash: str | None = None
    """Hash of the GPU's or MIG instance's UUID, one of several on a host; None of a CPU."""
    software: dict[str, str]
    """Versions: python, torch, driver, moesim."""
    threads: int
    """CPU threads torch used."""
    date: str
    """When it was made (ISO 8601, UTC)."""
    model_source: str
    """The checkpoint profiled: its folder's name or the shipped name."""
    model_digest: str
    """Hash of the checkpoint's configuration and weights' sizes."""
    duration_s: float
    """How long profiling took [s]."""
    pooled: tuple[str, ...] = ()
    """Hashes of the measurements that were pooled; none where it is one measurement itself."""


class Verdict(_Part):
    """What the tool thinks of its own measurement."""

    stable: bool
    """Whether nine in ten cells repeat within the tolerated spread."""
    unstable_cells: int
    """Cells whose spread stayed above the limit after measuring again."""
    cells: int
    """Cells in all."""
    iteration_error_p50: float | None = Field(ge=0, allow_inf_nan=False)
    """Median relative error of whole iterations the tables did not see, |predicted/measured-1|."""
    iteration_error_p90: float | None = Field(ge=0, allow_inf_nan=False)
    """Its 90th percentile."""
    iteration_residuals: list[Annotated[float, Field(gt=-1, allow_inf_nan=False)]] = []
    """Measured over predicted, minus 1, of each whole iteration the tables did not see."""
    drift: float = Field(ge=0, allow_inf_nan=False)
    """Slowest over fastest median of one reference cell measured at intervals, minus 1."""
    probe_s: float | None = None
    """Duration of one small batch while profiling, to tell later how fast the host is [s]."""
    warnings: list[str] = []
    """What a reader should know."""


class Formats(_Part):
    """What a model's parts are held in, of the formats in `moesim.facts.precision`."""

    experts: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4"]
    """Experts."""
    rest: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4"]
    """All other matrices but embeddings, head, norms and routers."""
    kv: Literal["fp32", "bf16", "fp16", "fp8", "int8"]
    """Keys and values."""


class Parts(Protocol):
    """Draws a profile on a group of devices from the tables that it was made of."""

    def on(self, part: Slice, popularity: list[list[float]]) -> "Profile":
        """Return the profile of each device of the group."""


class Profile(_Part):
    """A whole profile file."""

    format: Literal["moesim-profile"]
    """File type."""
    format_version: Literal[1]
    """Version of this layout."""
    model: dict[str, Any]
    """The model's configuration, in Hugging Face's keys."""
    max_batched_tokens: int = Field(gt=0)
    """Largest iteration measured [tokens]."""
    kv: Kv
    """KV cache."""
    router: Router
    """Router statistics."""
    operations: dict[str, list[Cell]]
    """Measured cells of each operation."""
    precision: Formats | None = None
    """Formats that the weights were narrowed to; those of the model's own dtype if none."""
    decode_graphs: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Batch sizes captured as CUDA graphs: decodes alone run padded to the next of these."""
    provenance: Provenance
    """Origin."""
    transfers: Transfers | None = None
    """What models cost that share the device; None where that was not measured."""
    source: Literal["measured", "scaled", "kernels", "roofline"] = "measured"
    """Whether cells were measured, scaled to a part of the device, added up from tables of kernels,
    or drawn from a datasheet."""
    bases: dict[str, str] = {}
    """What each operation of a profile from kernels rests on at best."""
    verdict: Verdict
    """Self-assessment."""
    _replayed: Router | None = PrivateAttr(default=None)
    _parts: "Parts | None" = PrivateAttr(default=None)
    _level: float = PrivateAttr(default=1.0)
    _on_groups: dict[Any, "Profile"] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> "Profile":
        known = COORDINATES | OPTIONAL
        for name in COORDINATES:
            if not self.operations.get(name):
                raise ValueError(f"operations.{name}: no measured cell")
        for name, cells in self.operations.items():
            if name not in known:
                raise ValueError(f"operations.{name}: unknown operation")
            if not cells:
                raise ValueError(f"operations.{name}: no measured cell")
            _check_places(name, known[name], cells)
        self._check_router()
        return self

    def _check_router(self) -> None:
        try:
            spec = self.spec
        except ScenarioError as wrong:
            raise ValueError(str(wrong)) from None
        visits, experts = spec.num_experts_per_tok, spec.num_local_experts
        rows = spec.num_hidden_layers - len(spec.dense_layers)
        if not experts:
            visits, experts, rows = 1, 1, spec.num_hidden_layers
        routers = [self.router]
        if self.transfers is not None:
            routers += [variant.router for variant in self.transfers.variants.values()]
        for router in routers:
            _check_popularity(router.popularity, visits, experts, rows)

    @cached_property
    def spec(self) -> ModelSpec:
        """The shape of the profiled model."""
        return ModelSpec.from_config(self.model, "model")

    @property
    def narrowed(self) -> Precision | None:
        """The formats that the weights were narrowed to, None where they were not."""
        return None if self.precision is None else Precision(**self.precision.model_dump())

    @property
    def formats(self) -> Precision:
        """The formats that it was measured in."""
        return self.narrowed or Precision.of_dtype(self.spec.dtype)

    @property
    def replayed_router(self) -> Router:
        """The router whose choices the replayed iterations ran, also where a variant's is taken."""
        return self._replayed or self.router

    @cached_property
    def laid_out(self) -> dict[Any, Any]:
        """What was laid out over the cells so far, for whoever asks the same again."""
        return {}

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> "Profile":
        """Return a copy, which lays out its own cells."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("spec", "laid_out"):
            copied.__dict__.pop(name, None)
        return copied

    def launched(self) -> "Profile":
        """Return the profile of an engine that captures no graph: no padding, no replays."""
        if not self.decode_graphs:
            return self
        operations = {name: cells for name, cells in self.operations.items() if name != REPLAY}
        return self.model_copy(update={"operations": operations, "decode_graphs": ()})

    def rests_on(self, name: str) -> str:
        """Return what an operation rests on at best."""
        best = "interpolated" if self.source == "kernels" else self.source
        return self.bases.get(name, best)

    def with_parts(self, parts: "Parts") -> "Profile":
        """Return the profile with what draws it on groups of devices from the same tables."""
        copy = self.model_copy()
        copy._parts, copy._on_groups = parts, {}
        return copy

    def at_level(self, level: float) -> "Profile":
        """Return the profile, told by which factor its cells were redrawn all alike."""
        if self._parts is None:
            return self
        copy = self.model_copy()
        copy._level = self._level * level
        return copy

    def on_group(self, part: Slice) -> "Profile | None":
        """Return the profile of each device of a group from its own tables; None without any."""
        if self._parts is None:
            return None
        # Redrawn copies of a profile are copies of one drawing, which takes a while.
        place = (part, tuple(map(tuple, self.router.popularity)))
        if place not in self._on_groups:
            self._on_groups[place] = self._parts.on(part, self.router.popularity)
        drawn, level = self._on_groups[place], self._level
        cells = {
            name: [cell.model_copy(update={"median_s": cell.median_s * level}) for cell in row]
            for name, row in drawn.operations.items()
        }
        return drawn.model_copy(update={"operations": cells}) if level != 1.0 else drawn

    def of_variant(self, name: str) -> "Profile":
        """Return the profile with a variant's own router, as it is where none was measured."""
        variant = self.transfers.variants.get(name) if self.transfers else None
        if variant is None:
            return self
        copy = self.model_copy(update={"router": variant.router})
        copy._replayed = self.replayed_router
        return copy


def _check_popularity(popularity: list[list[float]], visits: int, experts: int, rows: int) -> None:
    if any(abs(sum(row) - visits) > 0.01 for row in popularity):
        raise ValueError(f"router.popularity: rows must sum to {visits}")
    if len(popularity) != rows or any(len(row) != experts for row in popularity):
        raise ValueError("router.popularity: not one row a layer with one share an expert")


def _check_places(name: str, coordinates: tuple[str, ...], cells: list[Cell]) -> None:
    for index, cell in enumerate(cells):
        if len(cell.at) != len(coordinates):
            raise ValueError(f"operations.{name}.{index}.at: expected {', '.join(coordinates)}")
    if len({cell.at for cell in cells}) < len(cells):
        raise ValueError(f"operations.{name}: a cell is given twice")


def load_profile(name: str | Path, *, relative_to: Path | None = None) -> Profile:
    """Load a profile from a file or a shipped name.

    Raises ProfileError, naming file and field, if it is truncated, of another format version,
    or incomplete; ScenarioError if there is no such file.
    """
    path = locate("profiles", str(name), relative_to=relative_to)
    return profile_from(read_json(path), str(path))


def read_profile(name: str | Path, *, relative_to: Path | None = None) -> Any:
    """Read a profile's file, or one of kernels, as plain data."""
    return read_json(locate("profiles", str(name), relative_to=relative_to))


def read_json(path: Path) -> Any:
    """Read a file as plain data; ProfileError where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as wrong:
        raise ProfileError(f"{path}: not readable ({wrong})") from None
    except json.JSONDecodeError as wrong:
        raise ProfileError(
            f"{path}: broken at line {wrong.lineno}, column {wrong.colno} ({wrong.msg}); "
            "truncated? profile again"
        ) from None
    # Numbers of thousands of digits, and lists in lists without end.
    except (ValueError, RecursionError) as wrong:
        raise ProfileError(f"{path}: broken ({wrong}); profile again") from None


def profile_from(content: Any, source: str) -> Profile:
    """Check the content of a profile's file; raises what `load_profile` does."""
    if isinstance(content, dict) and content.get("format") == KERNELS:
        raise ProfileError(
            f"{source}: format: kernels of a device, not a profile of one model; name it as a "
            "model's `profile` in a scenario, `moesim profile show` shows it"
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ProfileError(f"{source}: format: not a moesim profile")
    if content.get("format_version") != FORMAT_VERSION:
        raise ProfileError(
            f"{source}: format_version: {content.get('format_version')!r}, this moesim reads "
            f"{FORMAT_VERSION}; profile again with this version"
        )
    return checked(Profile, content, source, ProfileError)


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile file atomically."""
    write_text(path, profile.model_dump_json(indent=1) + "\n")
