"""What a planner writes: models, tenants, hardware, deployment, targets.

A scenario file is YAML, checked key by key. Names of models, profiles, hardware and workloads are
shipped names or paths, paths also relative to the scenario file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.checked import checked
from moesim.errors import ScenarioError
from moesim.facts.catalog import locate
from moesim.files import read_yaml
from moesim.serving.metrics import SloTargets
from moesim.serving.policies import POLICIES
from moesim.traffic.arrivals import Constant, Gamma, Poisson, Weibull
from moesim.traffic.lengths import LONGEST, Fixed, Lognormal, Quantiles, check_table
from moesim.traffic.modulated import Diurnal, OnOff
from moesim.traffic.servegen import ServeGenArrivals, ServeGenLengths
from moesim.traffic.users import Users

PROFILED = "profiled"
"""As `hardware.device`: the device the profile was made on, whatever it is."""

ROOFLINE = "roofline"
"""As a model's `profile`: no measurements, what the device's datasheet lets one expect."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TraceArrivals(_Part):
    """Arrivals replayed from a trace file."""

    kind: Literal["trace"]
    """`trace`."""
    path: str
    """The trace, of any layout that `moesim workload inspect --help` lists."""
    start_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Where in the trace to begin [s of the trace]."""
    speedup: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """How much faster than recorded; 0.5 is half as fast."""
    only_tenant: str | None = None
    """Only the requests of this tenant of the trace; `moesim workload inspect` lists them."""
    max_requests: int | None = Field(default=None, gt=0)
    """At most so many requests, the first ones."""
    skip_bad_rows: bool = False
    """Whether rows that are no requests are left out with a warning instead of refused."""


class TraceLengths(_Part):
    """Lengths of the trace's own requests; needs `arrivals.kind: trace`."""

    kind: Literal["trace"]
    """`trace`."""
    scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on every length; what was at least one token stays at least one."""
    max: int = Field(default=LONGEST, gt=0, le=LONGEST)
    """Longest length; longer ones are clipped to it [tokens]."""


Arrivals = Annotated[
    Poisson
    | Gamma
    | Weibull
    | Constant
    | OnOff
    | Diurnal
    | Users
    | TraceArrivals
    | ServeGenArrivals,
    Field(discriminator="kind"),
]
Lengths = Annotated[
    Fixed | Lognormal | Quantiles | TraceLengths | ServeGenLengths, Field(discriminator="kind")
]


class Slo(_Part):
    """Latency targets; a request counts towards goodput when it meets all that are given."""

    ttft_s: float | None = Field(default=None, gt=0)
    """Time to first token, at most [s]."""
    tpot_s: float | None = Field(default=None, gt=0)
    """Time per output token after the first, at most [s]."""
    turnaround_s: float | None = Field(default=None, gt=0)
    """Arrival to last token, at most [s]."""


class Tenant(_Part):
    """A stream of requests to one model."""

    model: str
    """Which of the scenario's models it asks."""
    arrivals: Arrivals
    """When its requests come."""
    prompt_tokens: Lengths
    """How long its prompts are."""
    output_tokens: Lengths
    """How long its answers are."""
    slo: Slo = Slo()
    """Its latency targets."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Its urgency under `order: priority`; the lowest number goes first."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Its share of the service under `order: fair`."""
    shared_prefix_tokens: int = Field(default=0, ge=0, le=LONGEST)
    """Tokens that all its prompts begin with, for `prefix_caching`; part of `prompt_tokens`."""

    @model_validator(mode="after")
    def _trace_lengths(self) -> Self:
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name).kind == "trace" and self.arrivals.kind != "trace":
                raise ValueError(f"{name}.kind is trace, so arrivals.kind must be trace too")
        return self


class Model(_Part):
    """A model that is served, and the profile that says how fast."""

    architecture: str
    """Its shape: a shipped model, a checkpoint folder or a config.json."""
    profile: str
    """Its measurements: a shipped profile, a profile file, or `roofline` for a datasheet's."""


class Hardware(_Part):
    """The devices there are."""

    device: str
    """A shipped device, a YAML file, or `profiled`: the device the profile was made on."""
    count: int = Field(default=1, gt=0)
    """How many."""


class Scheduler(_Part):
    """The replica's scheduler."""

    policy: Literal[
        "chunked_prefill", "prefill_priority", "static", "no_evict", "max_utilisation"
    ] = "chunked_prefill"
    """How batches are put together; docs/scheduling.md says what server each mirrors."""
    order: Literal["fcfs", "priority", "fair"] = "fcfs"
    """Who is next: by arrival, by the tenants' priority, or in proportion to their weight."""
    max_num_seqs: int = Field(default=64, gt=0, le=65536)
    """Sequences that run at once."""
    max_batched_tokens: int = Field(default=512, gt=0, le=1_048_576)
    """Tokens that enter one iteration; longer prompts are prefilled in chunks, or refused."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What happens to a preempted sequence's KV blocks: computed again, or copied out and back."""
    swap_gib: float = Field(default=4.0, gt=0, le=1e6)
    """Host memory for the blocks of preempted sequences, per replica [GiB]."""
    swap_gb_per_s: float | None = Field(default=None, gt=0, le=1e5)
    """Bandwidth of those copies [GB/s]; needed by `preemption: swap`, measure or look it up."""
    prefix_caching: bool = False
    """Whether prompts that begin alike share their KV blocks."""

    @model_validator(mode="after")
    def _swaps(self) -> Self:
        if self.preemption == "swap" and self.swap_gb_per_s is None:
            raise ValueError("preemption: swap needs swap_gb_per_s, the host link's bandwidth")
        if self.preemption == "swap" and self.prefix_caching:
            raise ValueError("preemption: swap does not go with prefix_caching; use recompute")
        if self.preemption == "swap" and not POLICIES[self.policy].preempts:
            raise ValueError(f"preemption: policy {self.policy} never preempts; leave it out")
        return self


class _Replicated(_Part):
    """What deployments with replicas have in common."""

    dispatcher: Literal["round_robin", "least_loaded", "power_of_two", "prefix_affinity"] = (
        "round_robin"
    )
    """Which of a model's replicas a request goes to."""
    kv_blocks: int | None = Field(default=None, gt=0)
    """KV blocks of a replica; what the profiled engine allocated, or fits, if not given."""
    scheduler: Scheduler = Scheduler()
    """Each replica's scheduler."""


class Dedicated(_Replicated):
    """Each model on devices of its own, one replica a device."""

    kind: Literal["dedicated"]
    """`dedicated`."""
    replicas: int = Field(default=1, gt=0, le=1024)
    """Replicas of each model."""


class Mig(_Replicated):
    """Each model on MIG instances of one GPU, one replica an instance."""

    kind: Literal["mig"]
    """`mig`."""
    layout: tuple[str, ...] = Field(min_length=1)
    """The instances' profiles, such as `[3g.40gb, 3g.40gb]`."""
    instances: dict[str, tuple[int, ...]] | None = None
    """Which instances of the layout, from 0, each model has; dealt in turn if not given."""

    def dealt(self, models: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the instances of each model."""
        if self.instances is not None:
            return self.instances
        count = len(self.layout)
        return {name: tuple(range(n, count, len(models))) for n, name in enumerate(models)}


Deployment = Annotated[Dedicated | Mig, Field(discriminator="kind")]


class Scenario(_Part):
    """A whole scenario file."""

    name: str
    """What to call it."""
    description: str = ""
    """What it is for, in a sentence."""
    duration_s: float = Field(gt=0, le=1e7)
    """Requests arrive for this long; all are then served to the end [s]."""
    models: dict[str, Model] = Field(min_length=1)
    """Models by name."""
    tenants: dict[str, Tenant] = Field(min_length=1)
    """Request streams by name."""
    hardware: Hardware
    """The devices."""
    deployment: Deployment
    """What runs where."""
    folder: Path | None = Field(default=None, exclude=True, repr=False)
    """The folder that relative paths in the file start from; not written in the file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in (*self.models, *self.tenants):
            if name.encode(errors="replace").decode() != name:
                raise ValueError(f"{name!r}: a name must be text that can be written in UTF-8")
        for name, tenant in self.tenants.items():
            if tenant.model not in self.models:
                raise ValueError(
                    f"tenants.{name}.model: {tenant.model!r} is not one of the scenario's models: "
                    f"{', '.join(self.models)}"
                )
        if isinstance(self.deployment, Mig):
            self._instances_consistent(self.deployment)
            return self
        needed = len(self.models) * self.deployment.replicas
        if needed > self.hardware.count:
            raise ValueError(
                f"deployment: dedicated needs {needed} devices ({len(self.models)} models x "
                f"{self.deployment.replicas} replicas), hardware.count is {self.hardware.count}"
            )
        return self

    def _instances_consistent(self, deployment: Mig) -> None:
        dealt = deployment.dealt(list(self.models))
        for name in {*self.models, *dealt}:
            if name not in self.models:
                raise ValueError(f"deployment.instances.{name}: not one of the scenario's models")
            if not dealt.get(name):
                raise ValueError(
                    f"deployment: model {name} has no instance of the layout; add one to layout, "
                    "or name it in instances"
                )
        owned = [index for indices in dealt.values() for index in indices]
        for index in owned:
            if not 0 <= index < len(deployment.layout) or owned.count(index) > 1:
                raise ValueError(
                    f"deployment.instances: {index} must be one of 0 to "
                    f"{len(deployment.layout) - 1}, and given to one model"
                )

    def with_trace(self, path: Path) -> "Scenario":
        """Return the scenario with every trace that its tenants replay replaced by `path`.

        Raises ScenarioError if no tenant replays a trace.
        """
        replaying = {
            name: tenant.model_copy(
                update={"arrivals": tenant.arrivals.model_copy(update={"path": str(path)})}
            )
            for name, tenant in self.tenants.items()
            if isinstance(tenant.arrivals, TraceArrivals)
        }
        if not replaying:
            raise ScenarioError(
                f"scenario {self.name}: no tenant has arrivals.kind: trace, so {path} has no place"
            )
        return self.model_copy(update={"tenants": {**self.tenants, **replaying}})

    def served_here(self, checkpoint: str) -> "Scenario":
        """Return the same traffic for another checkpoint, on the device it was profiled on."""
        models = {
            name: model.model_copy(update={"architecture": checkpoint})
            for name, model in self.models.items()
        }
        hardware = self.hardware.model_copy(update={"device": PROFILED})
        return self.model_copy(update={"models": models, "hardware": hardware})

    def to_content(self) -> dict[str, Any]:
        """Return what a scenario file would hold; paths that start from its folder become whole."""
        content = self.model_dump(mode="json")
        for model in content["models"].values():
            for name in ("architecture", "profile"):
                model[name] = self._whole(model[name])
        content["hardware"]["device"] = self._whole(content["hardware"]["device"])
        for tenant in content["tenants"].values():
            for part in ("arrivals", "prompt_tokens", "output_tokens"):
                if "path" in tenant[part]:
                    tenant[part]["path"] = self._whole(tenant[part]["path"])
        return content

    def _whole(self, name: str) -> str:
        path = next((p for p in (Path(name), (self.folder or Path()) / name) if p.exists()), None)
        return str(path.resolve()) if path else name

    @property
    def slos(self) -> dict[str, SloTargets]:
        """Targets by tenant."""
        return {
            name: SloTargets(**tenant.slo.model_dump()) for name, tenant in self.tenants.items()
        }


class Workload(_Part):
    """A shipped fit of production traffic: burstiness and length quantiles, with its source."""

    name: str
    """What to call it."""
    source: str
    """The data it was fitted on, with licence."""
    rate_per_s: float = Field(gt=0)
    """Mean rate of the source [requests/s]."""
    cv: float = Field(gt=0)
    """Coefficient of variation of the gaps between arrivals."""
    levels: tuple[float, ...]
    """Quantile levels, from 0 to 1."""
    prompt_tokens: tuple[float, ...]
    """Prompt length at each level [tokens]."""
    output_tokens: tuple[float, ...]
    """Output length at each level [tokens]."""

    @model_validator(mode="after")
    def _tables(self) -> Self:
        check_table(self.levels, self.prompt_tokens)
        check_table(self.levels, self.output_tokens)
        return self


def load_scenario(name: str | Path) -> Scenario:
    """Load a scenario file or a shipped scenario.

    Raises ScenarioError naming the file, the field and the remedy.
    """
    path = locate("scenarios", str(name))
    return scenario_from(read_yaml(path), source=str(path), folder=path.parent)


def scenario_from(
    content: Mapping[str, Any], *, source: str = "scenario", folder: Path | None = None
) -> Scenario:
    """Build a scenario from plain data; shipped workloads' tables are filled in."""
    if isinstance(content, Mapping) and "folder" in content:
        raise ScenarioError(f"{source}: folder: unknown key")
    scenario = checked(Scenario, content, source)
    tenants = {
        name: _with_tables(tenant, folder, f"{source}: tenants.{name}")
        for name, tenant in scenario.tenants.items()
    }
    return scenario.model_copy(update={"tenants": tenants, "folder": folder})


def _with_tables(tenant: Tenant, folder: Path | None, source: str) -> Tenant:
    update = {}
    for field in ("prompt_tokens", "output_tokens"):
        lengths = getattr(tenant, field)
        if isinstance(lengths, Quantiles) and lengths.workload is not None:
            workload = load_workload(lengths.workload, relative_to=folder)
            update[field] = lengths.model_copy(
                update={
                    "levels": workload.levels,
                    "tokens": getattr(workload, field),
                    "workload": None,
                }
            )
    return tenant.model_copy(update=update)


def load_workload(name: str, *, relative_to: Path | None = None) -> Workload:
    """Load a workload file or a shipped workload."""
    path = locate("workloads", name, relative_to=relative_to)
    return checked(Workload, read_yaml(path), str(path))
