"""Variants served by one engine: the tokens of dedicated engines, the turns of the simulator."""

from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.clients import Clients, Prompts
from calibration.serving import drawn_requests, engine_config
from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.routing import observed_routing
from engine.serve.engine import Engine, EngineConfig
from engine.serve.traffic import Arrival, Replay
from engine.variants.assemble import assemble
from engine.variants.command import consolidate
from engine.variants.family import Family, Sharing, load_family
from engine.variants.layout import Layout
from engine.variants.positions import expert_places
from engine.variants.serving import Turns, VariantsEngine
from engine.variants.store import Residency
from moesim.cost.iteration import CostModel
from moesim.cost.profile import load_profile
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.scenario import Scenario, scenario_from
from moesim.serving.records import COLUMNS, COMPLETED, REFUSED, Record
from moesim.serving.scheduling import Limits
from moesim.serving.sequences import Batch
from moesim.serving.turns import POLICIES
from moesim.simulation.run import simulate

SPEC = ModelSpec(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=50,
    max_position_embeddings=64,
    dtype="float32",
)
QWEN3 = replace(
    SPEC,
    num_hidden_layers=3,
    model_type="qwen3_moe",
    qk_norm=True,
    tie_word_embeddings=True,
    dense_layers=(1,),
    dense_intermediate_size=24,
)
NAMES = ("base", "chat", "code")
LIMITS = Limits(max_num_seqs=16, max_batched_tokens=64, max_model_len=64)
CONFIG = EngineConfig(limits=LIMITS, num_blocks=48, block_size=4, experts="loop")

Requests = list[tuple[Record, list[int]]]
Answers = dict[int, list[int]]


class TickClock:
    """Virtual time: an iteration takes a second, a reconfiguration two."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def wait_until(self, moment_s: float) -> None:
        self.time_s = moment_s

    def ran(self, batch: Batch) -> None:
        self.time_s += 1.0

    def loaded(self, variant: int) -> None:
        self.time_s += 2.0


def saved(spec: ModelSpec, folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """Write a random checkpoint a variant."""
    for seed, name in enumerate(names):
        save_decoder(random_decoder(spec, seed=seed), folder / name)
    return {name: folder / name for name in names}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return saved(SPEC, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def layout(folders: dict[str, Path]) -> Layout:
    return consolidate(folders, 0.5, lambda done, what: None)


def drawn(count: int, names: tuple[str, ...] = NAMES) -> Requests:
    """Draw requests of all variants that arrive over `count` / 4 seconds."""
    rng = np.random.default_rng(0)
    requests = []
    for number in range(count):
        prompt = rng.integers(SPEC.vocab_size, size=rng.integers(1, 9)).tolist()
        record = Record(
            request_id=number,
            model=str(rng.choice(names)),
            arrival_s=number / 4,
            prompt_tokens=len(prompt),
            output_tokens=int(rng.integers(1, 5)),
        )
        requests.append((record, prompt))
    return requests


def replay(requests: Requests) -> Replay:
    return Replay(Arrival(record=replace(record), prompt=prompt) for record, prompt in requests)


def alone(models: Mapping[str, Decoder], requests: Requests) -> Answers:
    """Return what an engine for each model alone answers."""
    answers: Answers = {}
    for name, model in models.items():
        engine = Engine(model, CONFIG)
        for record, prompt in requests:
            if record.model == name:
                assert engine.submit(replace(record), prompt)
        while engine.step():
            pass
        answers |= engine.outputs
    return answers


def answers_of(engine: VariantsEngine) -> Answers:
    return {key: found for seat in engine.seats.values() for key, found in seat.outputs.items()}


def engine_of(family: Family, policy: str = "quantum", quantum_s: float = 3.0) -> VariantsEngine:
    return VariantsEngine(family, CONFIG, Turns(policy=policy, quantum_s=quantum_s), TickClock())


@pytest.fixture(scope="module")
def dedicated(folders: dict[str, Path]) -> Answers:
    """Return the answers of dedicated engines to 500 requests."""
    return alone({name: load_decoder(path) for name, path in folders.items()}, drawn(500))


@pytest.fixture(scope="module")
def assembled(folders: dict[str, Path], layout: Layout) -> dict[float, Answers]:
    """Return the answers of models assembled offline by the layout, for each ratio."""
    models = {
        ratio: {name: assemble(layout.with_ratio(ratio), folders, name) for name in NAMES}
        for ratio in RATIOS
    }
    return {ratio: alone(models[ratio], drawn(500)) for ratio in models}


RATIOS = (0.0, 0.5, 1.0)
RESIDENT = (1.0, 0.5, 0.1)
WAYS = {
    "pinned": (Residency(), {}),
    "lru": (Residency(cache="lru"), {"swap": "loose"}),
    "by layer": (Residency(cache="lru-by-layer", prefetch=True), {"swap": "ahead"}),
    "prefetch": (Residency(prefetch=True), {"non_expert_sets": "all"}),
}
"""Caches, prefetch and ways to change the variant, each of them somewhere."""
CASES = [
    pytest.param(
        ratio,
        Sharing(residency=replace(residency, resident=resident), **more),  # type: ignore[arg-type]
        id=f"{ratio}-{resident}-{way}",
    )
    for ratio in RATIOS
    for resident in RESIDENT
    for way, (residency, more) in WAYS.items()
    # A tenth of the 8 copies that all share is one, which two layers cannot both have.
    if (ratio, resident, way) != (1.0, 0.1, "by layer")
]
HALF = Sharing(residency=Residency(resident=0.5))
ONE_SLOT = Sharing(residency=Residency(resident=0.0, staging=1))


@pytest.mark.parametrize(("ratio", "sharing"), [*CASES, pytest.param(1.0, ONE_SLOT, id="one slot")])
def test_500_interleaved_requests(
    folders: dict[str, Path],
    layout: Layout,
    dedicated: Answers,
    assembled: dict[float, Answers],
    ratio: float,
    sharing: Sharing,
) -> None:
    """The tokens of dedicated engines, where nothing is shared; of assembled models elsewhere."""
    family = load_family(folders, sharing, layout=layout.with_ratio(ratio))
    engine = engine_of(family)
    requests = drawn(500)
    records = engine.serve(replay(requests))
    assert answers_of(engine) == (assembled[ratio] if ratio else dedicated)
    assert list(records["model"]) == [record.model for record, _ in requests]
    assert (records["outcome"] == COMPLETED).all()
    assert min(len(loads) for loads in engine.loads.values()) > 5
    assert (records["expert_misses"].sum() == 0) == family.store.complete
    if not sharing.residency.prefetch or family.store.complete:
        assert family.store.statistics.prefetched == 0
    assert engine.idle
    for seat in engine.seats.values():
        assert seat.runner.free_blocks == CONFIG.num_blocks
        assert not seat.runner.tokens


def test_sharing_changes_answers(dedicated: Answers, assembled: dict[float, Answers]) -> None:
    """Or the test above would compare nothing."""
    assert assembled[0.0] == dedicated
    for answers in (assembled[0.5], assembled[1.0]):
        assert dedicated.keys() == answers.keys()
        assert sum(dedicated[key] != answers[key] for key in dedicated) > 100


@pytest.mark.parametrize("resident", [1.0, 0.2])
def test_other_decoders(tmp_path: Path, resident: float) -> None:
    """Tied heads, norms of heads, a plain layer between those with experts."""
    folders = saved(QWEN3, tmp_path, ("a", "b"))
    layout = consolidate(folders, 0.25, lambda done, what: None)
    requests = drawn(40, ("a", "b"))
    family = load_family(folders, Sharing(residency=Residency(resident=resident)), layout=layout)
    engine = engine_of(family)
    engine.serve(replay(requests))
    assert answers_of(engine) == alone(
        {name: assemble(layout, folders, name) for name in folders}, requests
    )


def test_a_lone_request_waits_for_every_expert_it_hits(folders: dict[str, Path]) -> None:
    """With nothing resident: the distinct experts of all layers and iterations."""
    record, prompt = drawn(1)[0]
    dedicated = load_decoder(folders[record.model])
    engine, hits = Engine(dedicated, CONFIG), 0
    engine.submit(replace(record), prompt)
    with observed_routing(dedicated) as counts:
        while engine.step():
            hits += int((counts > 0).sum())
            counts.zero_()
    family = load_family(folders, Sharing(residency=Residency(resident=0.0, staging=1)))
    records = engine_of(family).serve(replay([(record, prompt)]))
    found = family.store.statistics
    assert records["expert_misses"].tolist() == [found.misses]
    assert found.hits + found.misses == hits
    assert found.hits < hits / 4  # the last expert of a layer may be the next one's first


def test_misses_are_counted_for_everybody_who_waits(folders: dict[str, Path]) -> None:
    """Of two that begin together each waits for all misses until it has its last token."""
    family = load_family(folders, Sharing(residency=Residency(resident=0.0, staging=1)))
    engine = engine_of(family)
    long, short = (
        Record(request_id=n, model="chat", prompt_tokens=3, output_tokens=tokens)
        for n, tokens in enumerate((6, 2))
    )
    for record in (long, short):
        assert engine.submit(record, [1, 2, 3])
    for _ in range(2):
        engine.step()
    assert short.expert_misses == family.store.missed > 0
    while engine.step():
        pass
    assert long.expert_misses == family.store.missed > short.expert_misses


def test_others_misses_are_not_waited_for(folders: dict[str, Path]) -> None:
    """A request's own variant's iterations count, not those while another has the device."""
    family = load_family(folders, Sharing(residency=Residency(resident=0.0, staging=1)))
    engine = engine_of(family, "quantum", quantum_s=1.0)
    records = [
        Record(request_id=n, model=name, prompt_tokens=3, output_tokens=5)
        for n, name in enumerate(("chat", "code"))
    ]
    for record in records:
        assert engine.submit(record, [1, 2, 3])
    changes = [engine.loaded]
    while engine.step():
        changes.append(engine.loaded)
    assert changes.count("chat") == changes.count("code") == 5
    assert all(one != other for one, other in pairwise(changes))
    assert min(record.expert_misses for record in records) > 0
    assert sum(record.expert_misses for record in records) == family.store.missed


def test_waits_are_in_the_records(folders: dict[str, Path]) -> None:
    """Two seconds a reconfiguration, those of one's own variant since one came; and for experts."""
    family = load_family(folders, HALF)
    engine = engine_of(family, "fcfs")
    records = engine.serve(
        Replay(
            Arrival(
                record=Record(
                    request_id=number,
                    model=model,
                    arrival_s=arrival_s,
                    prompt_tokens=2,
                    output_tokens=2,
                ),
                prompt=[7, number],
            )
            # base is loaded. chat comes at 0; its load ends at 2, its tokens at 3 and 4.
            for number, (model, arrival_s) in enumerate(
                [("chat", 0.0), ("base", 0.5), ("chat", 3.0), ("poet", 3.0)]
            )
        )
    )
    # The second of chat joins the first's batch, but base, which came before it, has the device
    # from 4 on; chat is loaded once more for its last token.
    assert records["reconfigurations"].tolist() == [1, 1, 1, 0]
    assert records["reconfiguration_s"].tolist() == [2.0, 2.0, 2.0, 0.0]
    assert records["finish_s"].tolist()[:3] == [4.0, 8.0, 11.0]
    assert ((records["expert_wait_s"] > 0) == (records["expert_misses"] > 0)).all()
    assert records["expert_wait_s"].max() <= family.store.waited_s


def test_an_expert_that_is_there_serves_whoever_asks(
    folders: dict[str, Path], layout: Layout
) -> None:
    """With the shared copies resident and no others, absent positions are the variant's own.

    So do Imani et al. lay out a device: it holds as many positions as fit, from one variant each.
    """
    shared = len(layout.shared)
    family = load_family(
        folders, Sharing(residency=Residency(resident=shared / layout.copies)), layout=layout
    )
    copies = family.store.copies
    there = {
        copy
        for copy in range(len(copies))
        if family.store.room(copy)[0].data_ptr()
        in {slot.data_ptr() for slot in family.store.gate_up}
    }
    assert [copy.shared for copy in copies.all] == [n in there for n in range(len(copies))]
    for variant, name in enumerate(NAMES):
        model = load_decoder(folders[name])
        own = {
            position: NAMES[copies.all[copies.number(variant, position)].source]
            for position in expert_places(model)
        }
        assert own == {
            position: layout.shared[position] if copies.number(variant, position) in there else name
            for position in own
        }


@pytest.mark.parametrize("swap", ["packed", "ahead", "loose"])
@pytest.mark.parametrize("sets", ["one", "all"])
def test_whole_models_in_turns(
    folders: dict[str, Path], dedicated: Answers, sets: str, swap: str
) -> None:
    """Full time-sharing, the rejected alternative: the same tokens, every weight moved."""
    family = load_family(folders, Sharing(non_expert_sets=sets, swap=swap, whole_models=True))
    requests = drawn(60)
    engine = engine_of(family)
    records = engine.serve(replay(requests))
    answers = answers_of(engine)
    assert answers == {number: dedicated[number] for number in answers}
    assert len(answers) == 60
    moved = sum(weight.nbytes for weight in family.sets.room(0).values())
    assert moved == SPEC.weight_bytes
    assert records["reconfigurations"].sum() > 0
    assert not records["expert_misses"].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_set_is_brought_during_the_last_iteration(
    folders: dict[str, Path], policy: str
) -> None:
    """Where nobody comes in between, every set that is loaded was expected, and at its time."""
    family = load_family(folders, Sharing(swap="ahead"))
    engine = engine_of(family, policy, quantum_s=2.0)
    seen: list[str] = []
    sets: Any = family.sets
    expect, load = sets.expect, sets.load

    def expecting(variant: int) -> None:
        if variant != engine._loaded:
            seen.append(f"expect {variant} at {engine.clock.now():g}")
        expect(variant)

    def loading(variant: int) -> float:
        assert sets._expected == variant
        seen.append(f"load {variant} at {engine.clock.now():g}")
        taken_s: float = load(variant)
        return taken_s

    sets.expect, sets.load = expecting, loading
    for number, name in enumerate(("base", "chat", "code")):
        record = Record(request_id=number, model=name, prompt_tokens=2, output_tokens=3)
        assert engine.submit(record, [number, 5])
    while engine.step():
        pass
    loads = [place for place, what in enumerate(seen) if what.startswith("load")]
    assert len(loads) >= 2
    for place in loads:
        _, variant, _, at_s = seen[place].split()
        assert seen[place - 1] == f"expect {variant} at {float(at_s) - 1:g}"


def test_cancelling_gives_everything_back(folders: dict[str, Path]) -> None:
    """And the device to whoever is left."""
    engine = engine_of(load_family(folders, Sharing(residency=Residency(resident=0.5))), "fcfs")
    records = [
        Record(request_id=n, model=name, arrival_s=n, prompt_tokens=2, output_tokens=9)
        for n, name in enumerate(NAMES)
    ]
    for record in records:
        engine.submit(record, [4, 5])
    engine.step()
    assert engine.loaded == "base"
    assert engine.cancel(0)
    assert not engine.cancel(0)
    assert (records[0].detail, records[0].output_tokens) == ("cancelled", 1)
    engine.step()
    assert engine.loaded == "chat"
    assert engine.cancel(1)
    assert engine.cancel(2)
    assert not engine.step()
    assert engine.idle


def test_an_unknown_variant_is_refused(folders: dict[str, Path]) -> None:
    """In its record; the others are served."""
    engine = engine_of(load_family(folders, Sharing()))
    requests = drawn(6)
    requests[2][0].model = "poet"
    records = engine.serve(replay(requests))
    assert records["outcome"].tolist() == [COMPLETED] * 2 + [REFUSED] + [COMPLETED] * 3
    assert records["detail"][2] == "model: 'poet' is not one of the variants base, chat, code"
    assert tuple(records.columns)[: len(COLUMNS)] == COLUMNS


def test_variants_of_other_shapes(folders: dict[str, Path], tmp_path: Path) -> None:
    """The message names the variant and the field."""
    other = saved(replace(SPEC, num_local_experts=8), tmp_path, ("wide",))
    with pytest.raises(EngineError) as refused:
        load_family(folders | other, Sharing())
    assert str(refused.value) == (
        "variants: wide: num_local_experts: 8 is not 4 as in base; give checkpoints of one shape"
    )


def test_a_model_without_experts(tmp_path: Path) -> None:
    """Has nothing to share."""
    plain = replace(
        SPEC,
        model_type="llama",
        num_local_experts=0,
        num_experts_per_tok=0,
        dense_layers=(0, 1),
        dense_intermediate_size=16,
    )
    folders = saved(plain, tmp_path, ("a", "b"))
    with pytest.raises(EngineError, match="a: has no experts; serve it as a model of its own"):
        load_family(folders, Sharing())


def test_a_layout_of_other_checkpoints(
    folders: dict[str, Path], layout: Layout, tmp_path: Path
) -> None:
    """By digest, so that no expert is taken for another's."""
    others = saved(SPEC, tmp_path, ("other", "base"))
    with pytest.raises(EngineError, match="in the layout"):
        load_family(folders | {"base": others["base"]}, Sharing(), layout=layout)
    with pytest.raises(EngineError, match=r"no folder is given for 'code' of the layout"):
        load_family({name: folders[name] for name in NAMES[:2]}, Sharing(), layout=layout)


def test_styles_that_absent_experts_cannot_have(folders: dict[str, Path]) -> None:
    """It is not quietly run in another style."""
    config = replace(CONFIG, experts="grouped")
    with pytest.raises(EngineError, match="experts: 'grouped': where some are absent"):
        VariantsEngine(load_family(folders, HALF), config)


def test_whole_models_share_nothing(folders: dict[str, Path], layout: Layout) -> None:
    """What contradicts is refused before anything is read."""
    with pytest.raises(EngineError, match="layout: whole models share no experts"):
        load_family(folders, Sharing(whole_models=True), layout=layout)
    with pytest.raises(EngineError, match=r"resident: 0\.5 does not go with whole models"):
        Sharing(whole_models=True, residency=Residency(resident=0.5))


@pytest.mark.parametrize("wrong", [{"non_expert_sets": "two"}, {"swap": "slow"}])
def test_sharings_that_cannot_be(wrong: dict[str, str]) -> None:
    """The message names the field, its value and the choices."""
    ((field, value),) = wrong.items()
    with pytest.raises(EngineError, match=f"{field}: '{value}' is not .* or "):
        Sharing(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"policy": "lifo"}, {"quantum_s": 0.0}])
def test_turns_that_cannot_be(wrong: dict[str, Any]) -> None:
    """The message names what there is."""
    with pytest.raises(EngineError, match=r"turns: 'lifo' is none of|quantum_s: 0\.0 must be"):
        Turns(**wrong)


THIN = ModelSpec(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    num_local_experts=2,
    num_experts_per_tok=1,
    vocab_size=16,
    max_position_embeddings=1024,
    dtype="float32",
)
"""Accepts the demo model's lengths and is quick to run."""


class CostClock:
    """Virtual time: an iteration takes what the cost model says, a change of model its share."""

    def __init__(self, cost: CostModel, reconfigure_s: float) -> None:
        self._cost, self._reconfigure_s = cost, reconfigure_s
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def wait_until(self, moment_s: float) -> None:
        self.time_s = moment_s

    def ran(self, batch: Batch) -> None:
        self.time_s += self._cost.iteration_s(batch)

    def loaded(self, variant: int) -> None:
        self.time_s += self._reconfigure_s


def scenario_of(turns: str, sets: str, order: str) -> Scenario:
    """Return two busy seconds of two variants, short of memory."""
    lengths = {"kind": "lognormal", "mean": 40, "cv": 0.6, "max": 110}
    demo = {"architecture": "demo-moe", "profile": "demo-cpu"}
    tenant = {"prompt_tokens": lengths, "output_tokens": {**lengths, "mean": 16, "max": 40}}
    bursts = {"kind": "gamma", "rate_per_s": 15, "cv": 2}
    steady = {"kind": "constant", "rate_per_s": 8}
    return scenario_from(
        {
            "name": "equal",
            "duration_s": 2.0,
            "models": {"base": demo, "chat": demo},
            "tenants": {
                "bursts": {**tenant, "model": "chat", "arrivals": bursts, "priority": 1},
                "steady": {**tenant, "model": "base", "arrivals": steady},
                "urgent": {**tenant, "model": "chat", "arrivals": {**steady, "rate_per_s": 2}},
            },
            "hardware": {"device": "cpu-2core"},
            "deployment": {
                "kind": "consolidated",
                "ratio": 0.5,
                "non_expert_sets": sets,
                "swap_gb_per_s": 0.5,
                "swap_overhead_s": 0.01,
                "turns": turns,
                "quantum_s": 0.3,
                "kv_blocks": 10,
                "experts": {"resident": 1.0, "load_gb_per_s": 1.0},
                "scheduler": {"max_num_seqs": 6, "max_batched_tokens": 160, "order": order},
            },
        }
    )


TURNS = [
    *((policy, "one", order) for policy in POLICIES for order in ("fcfs", "priority")),
    ("quantum", "all", "fcfs"),
]


@pytest.mark.parametrize(("policy", "sets", "order"), TURNS)
def test_turns_are_the_simulators(
    tmp_path_factory: pytest.TempPathFactory, policy: str, sets: str, order: str
) -> None:
    """On predicted time: its records, iterations and reconfigurations, equal to the last bit."""
    profile = load_profile("demo-cpu")
    scenario = scenario_of(policy, sets, order)
    profiles = {"base": profile, "chat": profile}
    simulated = simulate(scenario, profiles, stepwise=True)
    config = engine_config(scenario, profile)
    cost = CostModel(profile, max_batched_tokens=160, max_num_seqs=6)
    set_bytes = profile.spec.non_expert_bytes(Precision.of_dtype(profile.spec.dtype))
    reconfigure_s = set_bytes / 0.5e9 + 0.01 if sets == "one" else 0.0
    folders = saved(THIN, tmp_path_factory.mktemp("thin"), ("base", "chat"))
    family = load_family(folders, Sharing(non_expert_sets=sets))
    engine = VariantsEngine(
        family,
        config,
        Turns(policy=policy, quantum_s=scenario.deployment.quantum_s),
        CostClock(cost, reconfigure_s),
    )
    block_size = profile.kv.block_size
    clients = Clients(
        drawn_requests(scenario, block_size, seed=0),
        [],
        Prompts(THIN.vocab_size, block_size, (0, 0)),
        until_s=scenario.duration_s,
    )
    records = engine.serve(clients).sort_values(["arrival_s", "request_id"], ignore_index=True)
    assert records[list(COLUMNS)].equals(simulated.records)
    for name, seat in engine.seats.items():
        ours, theirs = seat.ledger.log(), simulated.logs[f"{name}/0"]
        assert columns_of(ours) == columns_of(theirs)
        assert columns_of(ours.late) == columns_of(theirs.late)
        assert [start_s for start_s, _ in engine.loads[name]] == [
            start_s for start_s, _ in simulated.loads[f"{name}/0"]
        ]
    assert min(len(loads) for loads in engine.loads.values()) > 0


def columns_of(table: Any) -> dict[str, list[float]]:
    """Return the columns of a log or of its late gaps."""
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    return {name: list(c) for name, c in columns.items() if isinstance(c, np.ndarray)}
