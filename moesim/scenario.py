"""What a planner writes: models, tenants, hardware, deployment, targets.

A scenario file is YAML, checked key by key. Names of models, profiles, hardware and workloads are
shipped names or paths, paths also relative to the scenario file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from moesim.checked import checked
from moesim.deployment import Deployment, ExpertRouter
from moesim.errors import ScenarioError
from moesim.facts.catalog import locate, written_path
from moesim.facts.precision import OF_DTYPE, Precision
from moesim.files import read_yaml
from moesim.serving.metrics import SloTargets
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
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class TraceArrivals(_Part):
    """Arrivals replayed from a trace file."""

    kind: Literal["trace"]
    """`trace`."""
    path: str
    """The trace, of any layout that `moesim workload inspect --help` lists."""
    start_s: float = Field(default=0.0, ge=0, le=1e12, allow_inf_nan=False)
    """Where in the trace to begin [s of the trace]."""
    speedup: float = Field(default=1.0, ge=1e-6, le=1e6, allow_inf_nan=False)
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
    """Its measurements: a shipped profile, a profile file, a device's kernels such as
    `h100-sxm-80gb`, or `roofline` for a datasheet's."""
    precision: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4"] | None = None
    """Format of its weights; the architecture's own, which profiles are measured in, if none."""
    kv_precision: Literal["fp32", "bf16", "fp16", "fp8", "int8"] | None = None
    """Format of its keys and values; that of its weights, but of 16 bits or more, if none."""

    def formats(self, dtype: str) -> Precision:
        """Return the formats it is served in; those of a checkpoint of this dtype if it says none.

        >>> mixtral = Model(architecture="mixtral-8x7b", profile=ROOFLINE, kv_precision="fp8")
        >>> mixtral.formats("bfloat16")
        Precision(experts='bf16', rest='bf16', kv='fp8')
        """
        weights = Precision.uniform(self.precision or OF_DTYPE[dtype])
        return replace(weights, kv=self.kv_precision) if self.kv_precision else weights


class Quality(_Part):
    """What consolidation costs in quality."""

    curve: str
    """A shipped curve of a metric against the consolidation ratio, or a YAML file."""


class Hardware(_Part):
    """The devices there are."""

    device: str
    """A shipped device, a YAML file, or `profiled`: the device the profile was made on."""
    count: int = Field(default=1, gt=0)
    """How many."""


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
    alternatives: dict[str, Deployment] = {}
    """Other deployments of the same traffic, by name, for `moesim compare` to put beside it."""
    quality: Quality | None = None
    """What a consolidation ratio costs in quality; nothing is said about it if not given."""
    sources: dict[str, str] = {}
    """Where figures in this file come from: by field, such as `deployment.swap_gb_per_s`."""
    folder: SkipJsonSchema[Path | None] = Field(default=None, exclude=True, repr=False)
    """The folder that relative paths in the file start from; not written in the file."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in (*self.models, *self.tenants):
            if name.encode(errors="replace").decode() != name:
                raise ValueError(f"{name!r}: a name must be text that can be written in UTF-8")
        self._deployable(self.deployment, "deployment")
        for name, deployment in self.alternatives.items():
            if name == self._own:
                raise ValueError(f"alternatives: {name!r} names the scenario's own; choose another")
            self._deployable(deployment, f"alternatives.{name}")
        return self

    def _deployable(self, deployment: Deployment, field: str) -> None:
        models = list(self.models)
        asked = [deployment.gateway.name] if isinstance(deployment, ExpertRouter) else models
        for name, tenant in self.tenants.items():
            if tenant.model not in asked:
                what = "the gateway's name" if asked != models else "one of the scenario's models"
                raise ValueError(
                    f"tenants.{name}.model: {tenant.model!r} is not {what}: {', '.join(asked)}"
                )
        wrong = deployment.problem(models)
        if wrong:
            raise ValueError(f"{field}.{wrong}")
        needed = deployment.devices(models)
        if needed > self.hardware.count:
            raise ValueError(
                f"{field}: {deployment.kind} needs {needed} devices"
                f"{deployment.counted(models)}, hardware.count is {self.hardware.count}"
            )

    @property
    def _own(self) -> str:
        """What the scenario's own deployment is called beside others."""
        return f"{self.deployment.kind} (the scenario's)"

    def side_by_side(self) -> dict[str, "Scenario"]:
        """Return a scenario for each deployment, by name: the scenario's own and the others."""
        if not self.alternatives:
            return {self.name: self}
        found = {self._own: self.deployment, **self.alternatives}
        return {
            name: self.model_copy(update={"deployment": deployment, "alternatives": {}})
            for name, deployment in found.items()
        }

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

    def with_profile(self, name: str) -> "Scenario":
        """Return the scenario with another profile, shipped or a file, for every model."""
        path = None if name == ROOFLINE else written_path("profiles", name)
        profile = str(path.resolve()) if path else name
        models = {
            each: model.model_copy(update={"profile": profile})
            for each, model in self.models.items()
        }
        return self.model_copy(update={"models": models})

    def served_here(
        self, checkpoint: str, precision: str | None = None, kv_precision: str | None = None
    ) -> "Scenario":
        """Return the same traffic for another checkpoint, on the device it was profiled on.

        In the formats that it was profiled in; its own if none.
        """
        update = {
            "architecture": checkpoint,
            "precision": precision,
            "kv_precision": kv_precision,
        }
        models = {name: model.model_copy(update=update) for name, model in self.models.items()}
        hardware = self.hardware.model_copy(update={"device": PROFILED})
        return self.model_copy(update={"models": models, "hardware": hardware})

    def to_content(self) -> dict[str, Any]:
        """Return what a scenario file would hold; paths that start from its folder become whole."""
        content = self.model_dump(mode="json")
        for part, field, path in self._paths(content):
            part[field] = str(path)
        return content

    def files(self) -> list[Path]:
        """Return the files and folders that the scenario names by their paths."""
        return [path for _, _, path in self._paths(self.model_dump(mode="json"))]

    def _paths(self, content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Path]]:
        """Yield where in the content a path is written, and the whole path that is meant there."""
        for part, field, kind in _names(content):
            name = part[field]
            if name in (PROFILED, ROOFLINE) and kind in ("hardware", "profiles"):
                continue
            path = written_path(kind, name, relative_to=self.folder)
            if path is not None:
                yield part, field, path.resolve()

    def deployment_of(self, model: str) -> Deployment:
        """Return the deployment of a model: its own behind a gateway, the scenario's else."""
        if isinstance(self.deployment, ExpertRouter):
            return self.deployment.experts[model]
        return self.deployment

    @property
    def slos(self) -> dict[str, SloTargets]:
        """Targets by tenant."""
        return {
            name: SloTargets(**tenant.slo.model_dump()) for name, tenant in self.tenants.items()
        }


def _names(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield where a scenario's content names something that may be a file, and of what kind."""
    for model in content["models"].values():
        yield model, "architecture", "models"
        yield model, "profile", "profiles"
    yield content["hardware"], "device", "hardware"
    if content["quality"]:
        yield content["quality"], "curve", "quality"
    for tenant in content["tenants"].values():
        for part in ("arrivals", "prompt_tokens", "output_tokens"):
            if "path" in tenant[part]:
                yield tenant[part], "path", "workloads"


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
