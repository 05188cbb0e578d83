"""What runs on what: the kinds of deployment that a planner can write.

A deployment divides the devices into slices and puts models on them. On a slice runs one model, or
several in turns; its experts are all resident, or some wait in host memory. What goes together is
composed: MIG instances whose models are partly offloaded, consolidated replicas under a dispatcher,
expert models with deployments of their own behind a gateway.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.serving.policies import POLICIES


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Scheduler(_Part):
    """The replica's scheduler."""

    policy: Literal[
        "chunked_prefill",
        "prefill_priority",
        "padded_prefill",
        "static",
        "no_evict",
        "no_evict_chunked",
        "max_utilisation",
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
    floor_s: float = Field(default=0.0, ge=0, le=3600)
    """What the serving software takes for an iteration's layers at least, while the device computes
    them [s]; attention and the head come on top."""

    @model_validator(mode="after")
    def _swaps(self) -> Self:
        if self.preemption == "swap" and self.swap_gb_per_s is None:
            raise ValueError("preemption: swap needs swap_gb_per_s, the host link's bandwidth")
        if self.preemption == "swap" and self.prefix_caching:
            raise ValueError("preemption: swap does not go with prefix_caching; use recompute")
        if self.preemption == "swap" and not POLICIES[self.policy].preempts:
            raise ValueError(f"preemption: policy {self.policy} never preempts; leave it out")
        return self


class Offloading(_Part):
    """Experts of which some wait in pinned host memory, and how the engine gets at those."""

    resident: Annotated[float, Field(ge=0, le=1)] | Literal["fit"] = "fit"
    """Share of the expert copies that stay on the slice; `fit` is as many as there is room for."""
    cache: Literal["pinned", "lfu", "lru", "lru-by-layer"] = "pinned"
    """Which stay: the most popular (`lfu` keeps the same in the steady state), or the last used."""
    load_gb_per_s: float | None = Field(default=None, gt=0, le=1e5)
    """Bandwidth of copies to the device [GB/s]; the device's pinned copies if not given."""
    load_latency_s: float = Field(default=0.0, ge=0, le=3600)
    """What each copy takes beyond that [s]."""
    overlap: bool = False
    """Whether copies of predicted experts overlap with the computing of the layer before."""
    prefetch_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Share of a layer's absent experts that are predicted one layer ahead."""
    prefetch_waste: float = Field(default=0.0, ge=0, le=100)
    """Wrong copies for each predicted one."""
    cpu_s_per_token_expert: float | None = Field(default=None, gt=0, le=3600)
    """What the CPU takes for one token in one expert, where it may compute absent ones [s]."""

    @model_validator(mode="after")
    def _overlaps(self) -> Self:
        if self.prefetch_accuracy and not self.overlap:
            raise ValueError("prefetch_accuracy: nothing is prefetched unless overlap is true")
        return self


class _Deployment(_Part):
    """What all deployments have in common."""

    dispatcher: Literal["round_robin", "least_loaded", "power_of_two", "prefix_affinity"] = (
        "round_robin"
    )
    """Which of a model's replicas a request goes to."""
    kv_blocks: int | None = Field(default=None, gt=0, le=10**12)
    """KV blocks of each model on a slice; if not given, what the profiled engine allocated or an
    even part of what is free. Before experts that may be absent goes one longest sequence."""
    scheduler: Scheduler = Scheduler()
    """Each replica's scheduler."""

    def problem(self, models: Sequence[str]) -> str | None:
        """Say why these models cannot be deployed so, None if they can."""
        return None

    def devices(self, models: Sequence[str]) -> int:
        """Return how many devices the deployment takes."""
        return 1

    def counted(self, models: Sequence[str]) -> str:
        """Say how the devices add up."""
        return ""


class Dedicated(_Deployment):
    """Each model on devices of its own, one replica a device."""

    kind: Literal["dedicated"]
    """`dedicated`."""
    replicas: int = Field(default=1, gt=0, le=1024)
    """Replicas of each model."""
    experts: Offloading | None = None
    """Which experts wait in host memory; none if not given."""

    def devices(self, models: Sequence[str]) -> int:
        """Return one for each replica of each model."""
        return len(models) * self.replicas

    def counted(self, models: Sequence[str]) -> str:
        """Say how the devices add up."""
        return f" ({len(models)} models x {self.replicas} replicas)"


class _Group(_Deployment):
    """Each replica on several devices of a node."""

    replicas: int = Field(default=1, gt=0, le=1024)
    """Replicas of each model."""

    @property
    def each(self) -> int:
        """Devices of a replica."""
        raise NotImplementedError

    def devices(self, models: Sequence[str]) -> int:
        """Return a group for each replica of each model."""
        return len(models) * self.replicas * self.each

    def counted(self, models: Sequence[str]) -> str:
        """Say how the devices add up."""
        return f" ({len(models)} models x {self.replicas} replicas x {self.each} devices)"


class TensorParallel(_Group):
    """Every layer cut over several devices, which add up their parts by collectives."""

    kind: Literal["tensor_parallel"]
    """`tensor_parallel`."""
    tensor_parallel: int = Field(gt=1, le=8)
    """Devices of each replica."""

    @property
    def each(self) -> int:
        """Devices of a replica."""
        return self.tensor_parallel


class ExpertParallel(_Group):
    """A layer's experts dealt to several devices; attention is cut over all of them."""

    kind: Literal["expert_parallel"]
    """`expert_parallel`."""
    expert_parallel: int = Field(gt=1, le=8)
    """Parts into which each layer's experts are dealt."""
    tensor_parallel: int = Field(default=1, gt=0, le=8)
    """Devices over which each expert is cut."""

    @property
    def each(self) -> int:
        """Devices of a replica."""
        return self.expert_parallel * self.tensor_parallel


class Mig(_Deployment):
    """Models on MIG instances of one GPU, which share nothing but its link to the host."""

    kind: Literal["mig"]
    """`mig`."""
    layout: tuple[str, ...] = Field(min_length=1)
    """The instances' profiles, such as `[3g.40gb, 3g.40gb]`."""
    instances: dict[str, tuple[int, ...]] | None = None
    """Which instances of the layout, from 0, each model has; dealt in turn if not given. Models on
    one instance are all resident and have it in turns."""
    experts: Offloading | None = None
    """Which experts wait in host memory; none if not given."""
    turns: Literal["fcfs", "longest_queue", "quantum", "drain"] = "fcfs"
    """Which of several models an instance serves next; docs/sharing.md explains."""
    quantum_s: float = Field(default=1.0, gt=0, le=3600)
    """How long a turn lasts under `turns: quantum`, while others wait [s]."""

    def dealt(self, models: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
        """Return the instances of each model."""
        if self.instances is not None:
            return self.instances
        count = len(self.layout)
        return {name: tuple(range(n, count, len(models))) for n, name in enumerate(models)}

    def problem(self, models: Sequence[str]) -> str | None:
        """Say which model has no instance, or which instance there is not."""
        dealt = self.dealt(models)
        for name in (*models, *dealt):
            if name not in models:
                return f"instances.{name}: not one of the scenario's models"
            if not dealt.get(name):
                return (
                    f"model {name} has no instance of the layout; add one to layout, or name it "
                    "in instances"
                )
        for name, indices in dealt.items():
            for index in indices:
                if not 0 <= index < len(self.layout) or indices.count(index) > 1:
                    last = len(self.layout) - 1
                    return f"instances.{name}: {index} must be one of 0 to {last}, and given once"
        return None


class Mps(_Deployment):
    """Models on shares of one GPU's SMs (CUDA MPS), which divide neither memory nor bandwidth."""

    kind: Literal["mps"]
    """`mps`."""
    sm_percent: dict[str, Annotated[float, Field(gt=0, le=100)]]
    """Each model's share of the SMs (CUDA_MPS_ACTIVE_THREAD_PERCENTAGE) [%]."""
    experts: Offloading | None = None
    """Which experts wait in host memory; none if not given."""

    def problem(self, models: Sequence[str]) -> str | None:
        """Say which model has no share, or that they are more than the whole."""
        for name in (*models, *self.sm_percent):
            if name not in models:
                return f"sm_percent.{name}: not one of the scenario's models"
            if name not in self.sm_percent:
                return f"sm_percent: model {name} has no share; add one"
        total = sum(self.sm_percent.values())
        if total > 100 + 1e-9:
            return (
                f"sm_percent: shares add up to {total:g} %; more than 100 would have models wait "
                "for each other's SMs, which is not modelled"
            )
        return None


class _Sharing(_Deployment):
    """Several models on one slice, in turns."""

    turns: Literal["fcfs", "longest_queue", "quantum", "drain"] = "fcfs"
    """Which model is served next; docs/sharing.md explains."""
    quantum_s: float = Field(default=1.0, gt=0, le=3600)
    """How long a turn lasts under `turns: quantum`, while others wait [s]."""
    replicas: int = Field(default=1, gt=0, le=1024)
    """Devices, each with all models."""
    layout: tuple[str, ...] | None = Field(default=None, min_length=1)
    """MIG profiles of one GPU, each instance with all models, in place of whole devices."""

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.layout is not None and self.replicas != 1:
            raise ValueError("replicas: the instances of layout are the replicas; leave it out")
        return self

    def devices(self, models: Sequence[str]) -> int:
        """Return one a replica; instances are all of one."""
        return self.replicas

    def counted(self, models: Sequence[str]) -> str:
        """Say how the devices add up."""
        return f" ({self.replicas} replicas, each with all models)"


class TimeShared(_Sharing):
    """Whole models swapped in and out of host memory, one on the device at a time."""

    kind: Literal["time_shared"]
    """`time_shared`."""
    load_gb_per_s: float | None = Field(default=None, gt=0, le=1e5)
    """Bandwidth at which a model is loaded [GB/s]; the device's pinned copies if not given."""
    load_overhead_s: float = Field(default=0.0, ge=0, le=3600)
    """What a change of model takes beyond that [s]."""
    experts: Offloading | None = None
    """Which experts of the loaded model wait in host memory all the same; none if not given."""


class Offloaded(_Sharing):
    """Models side by side on one device, their experts partly in host memory."""

    kind: Literal["offloaded"]
    """`offloaded`."""
    experts: Offloading = Offloading()
    """Which experts wait in host memory, and how the engine gets at them."""


class Consolidated(_Sharing):
    """Variants of one model that share experts; only their other layers are swapped."""

    kind: Literal["consolidated"]
    """`consolidated`."""
    ratio: float = Field(ge=0, le=1)
    """Share of the expert positions, most similar first, of which one copy serves all variants."""
    non_expert_sets: Literal["one", "all"] = "one"
    """Whether one variant's non-expert layers are loaded at a time, or all are resident."""
    swap_gb_per_s: float | None = Field(default=None, gt=0, le=1e5)
    """Bandwidth at which non-expert layers are swapped [GB/s]; needed with `non_expert_sets: one`,
    unless the device's pinned copies are meant to be reached."""
    swap_overhead_s: float = Field(default=0.0, ge=0, le=3600)
    """What a swap takes beyond that [s]."""
    experts: Offloading = Offloading()
    """Which experts wait in host memory, and how the engine gets at them."""


Simple = Annotated[
    Dedicated | TensorParallel | ExpertParallel | Mig | Mps | TimeShared | Offloaded | Consolidated,
    Field(discriminator="kind"),
]
"""Deployments of models that are asked directly."""


class Gateway(_Part):
    """What sends prompts to expert models."""

    name: str
    """What tenants ask, in place of a model."""
    classify_s: float = Field(ge=0, le=3600)
    """How long it takes to classify one prompt; one at a time [s]."""
    shares: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    """How many of the prompts are for each model, in proportion: the skew of its clusters."""


class ExpertRouter(_Deployment):
    """A gateway before expert models, each group of them with a deployment of its own."""

    kind: Literal["expert_router"]
    """`expert_router`."""
    gateway: Gateway
    """What sends prompts to them."""
    experts: dict[str, Simple] = Field(min_length=1)
    """Deployments by the model that each is for."""

    def problem(self, models: Sequence[str]) -> str | None:
        """Say which model has no deployment, or no prompts."""
        if self.gateway.name in models:
            return f"gateway.name: {self.gateway.name!r} is a model's name too; choose another"
        for name in self.experts:
            if name not in models:
                return f"experts.{name}: not one of the scenario's models"
        for name in self.gateway.shares:
            if name not in models:
                return f"gateway.shares.{name}: not one of the scenario's models"
        for name in models:
            if name not in self.experts:
                return f"experts: model {name} has no deployment; add one"
            if name not in self.gateway.shares:
                return f"gateway.shares: model {name} gets no prompts; add its share"
            wrong = self.experts[name].problem([name])
            if wrong:
                return f"experts.{name}: {wrong}"
        return None

    def devices(self, models: Sequence[str]) -> int:
        """Return what the experts' deployments take together."""
        return sum(deployment.devices([name]) for name, deployment in self.experts.items())

    def counted(self, models: Sequence[str]) -> str:
        """Say how the devices add up."""
        each = ", ".join(f"{name} {part.devices([name])}" for name, part in self.experts.items())
        return f" ({each})"


Deployment = Annotated[
    Dedicated
    | TensorParallel
    | ExpertParallel
    | Mig
    | Mps
    | TimeShared
    | Offloaded
    | Consolidated
    | ExpertRouter,
    Field(discriminator="kind"),
]
