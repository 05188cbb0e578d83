"""What sharing a device costs, as a profile has it: every row, of the right sizes, none without."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calibration.copies as copies
import calibration.transfers as transfers
from calibration.calibrate import Settings, calibrate
from calibration.copies import IN_FLIGHT, PARTS, expert_loads
from calibration.host import Host
from calibration.models import model_digest
from calibration.partial import Partial
from calibration.transfers import Asked, classified, made_up
from calibration.transfers_shown import transfer_lines
from engine.gateway.file import save_gateway
from engine.gateway.gateway import Gateway
from engine.model.checkpoint import random_decoder, save_decoder
from engine.variants.skeleton import meta_weights
from moesim.cost.profile import Classification, Profile, load_profile
from moesim.errors import CalibrationError, EngineError
from moesim.facts.catalog import load_model
from moesim.facts.models import ModelSpec

CPU = torch.device("cpu")


def test_every_swap_and_load_is_there(shared_profile: Profile, engine_spec: ModelSpec) -> None:
    """Both ways of both sets, all sizes by all numbers in flight, one load as iterations see it."""
    transfers = shared_profile.transfers
    assert transfers is not None
    plain = sum(weight.nbytes for weight in meta_weights(engine_spec).values())
    assert {(row.what, row.way, row.memory, row.set_bytes) for row in transfers.swaps} == {
        (what, way, "host", size)
        for what, size in (("non_expert_set", plain), ("whole_model", engine_spec.weight_bytes))
        for way in ("packed", "per_tensor")
    }
    own = engine_spec.expert_parameters * 4
    alone = [load for load in transfers.expert_loads if load.how == "alone"]
    assert {(load.expert_bytes, load.in_flight) for load in alone} == {
        (own // part, count) for part in PARTS for count in IN_FLIGHT
    }
    (within,) = [load for load in transfers.expert_loads if load.how == "in_iteration"]
    assert within.expert_bytes == own


def test_stores_have_a_factor_for_each_cell(shared_profile: Profile) -> None:
    """Of one and two variants where all is resident, and where experts run one by one."""
    transfers = shared_profile.transfers
    assert transfers is not None
    kinds = sorted((store.copies, store.complete) for store in transfers.stored)
    assert kinds == [(8, False), (8, True), (16, True)]
    places = {cell.at for cell in shared_profile.operations["experts"]}
    for store in transfers.stored:
        assert {(tokens, distinct) for tokens, distinct, _ in store.factors} == places


def test_each_variant_is_watched(shared_profile: Profile, variants: dict[str, Path]) -> None:
    """Under its own name and digest; the profiled checkpoint's routers are seen as before."""
    transfers = shared_profile.transfers
    assert transfers is not None
    for name, folder in variants.items():
        assert transfers.variants[name].model_digest == model_digest(
            str(folder), shared_profile.spec
        )
    one, other = (shared_profile.of_variant(name).router.popularity for name in variants)
    assert not np.allclose(one, other, atol=0.02)


def test_the_section_is_optional(profile_file: Path) -> None:
    """Nothing is measured that was not asked for, and a profile without it is read."""
    profile = load_profile(profile_file)
    assert profile.transfers is None
    assert list(transfer_lines(profile.transfers)) == []


def test_a_load_of_several_is_divided_among_them(
    engine_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a link of 1 GB/s that takes a second for each request of copies."""

    def copied_s(pairs: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> float:
        assert all(to.shape == source.shape for to, source in pairs)
        return 1.0 + sum(to.nbytes for to, _ in pairs) / 1e9

    monkeypatch.setattr(copies, "_copied_s", copied_s)
    for load in expert_loads(engine_spec, CPU, rounds=2):
        assert load.median_s == pytest.approx(1.0 / load.in_flight + load.expert_bytes / 1e9)
        assert (load.memory, load.repeats, load.spread) == ("host", 2, 0.0)


def test_the_gateway_is_timed(tmp_path: Path) -> None:
    """With prompts that it knows the words of, where none are given."""
    words = {name: row for row, name in enumerate(("sort", "list", "poem", "rhyme"))}
    gateway = Gateway(
        vocabulary=words,
        idf=np.ones(4),
        directions=np.eye(4)[:, :2],
        centres=np.eye(2),
        prompts=np.array([2, 1]),
        trained={"seed": 0},
    )
    save_gateway(gateway, tmp_path / "g.npz")
    assert all(set(text.split()) <= set(words) for text in made_up(gateway))
    found = classified(tmp_path / "g.npz", None)
    assert found.prompts == len(made_up(gateway))
    assert 0 < found.median_s <= found.p90_s
    (tmp_path / "texts.txt").write_text("Sort a list\nA poem that rhymes\n")
    assert classified(tmp_path / "g.npz", tmp_path / "texts.txt").prompts == 2


def test_what_cannot_be_compared_is_refused_first(
    engine_spec: ModelSpec, settings: Settings, host: Host, tmp_path: Path
) -> None:
    """A variant of another shape, before minutes are spent; prompts without a gateway."""
    save_decoder(random_decoder(replace(engine_spec, vocab_size=32), seed=0), tmp_path / "other")
    asked = Asked(variants={"other": tmp_path / "other"})
    with pytest.raises(CalibrationError, match=r"--variants: other: .* is not of the shape"):
        calibrate(replace(settings, transfers=asked), tmp_path / "p.json", host)
    with pytest.raises(CalibrationError, match="--prompts"):
        Asked(prompts=tmp_path / "x.txt").check(engine_spec)
    (tmp_path / "g.npz").write_text("no gateway")
    with pytest.raises(EngineError, match=r"g\.npz: not an npz file"):
        Asked(gateway=tmp_path / "g.npz").check(engine_spec)


def test_interrupted_transfers_go_on(
    settings: Settings, host: Host, variants: dict[str, Path], tmp_path: Path
) -> None:
    """Each part is on file once it is measured, under what it was measured of."""
    out = tmp_path / "p.json"
    asked = replace(settings, budget_s=0.01, transfers=Asked(variants=variants))
    kept: dict[str, Any] = {}

    def interrupted_at(word: str) -> None:
        def tell(fraction: float, doing: str) -> None:
            if word in doing:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(asked, out, host, tell)
        kept.update(json.loads((tmp_path / "p.json.partial").read_text())["parts"])

    router_of = {name: f"router of {digest_of(variants[name])}" for name in ("a", "b")}
    interrupted_at("router of b")
    assert set(kept) == {router_of["a"]}
    assert load_profile(out).transfers is None
    interrupted_at("experts in a store")
    assert set(kept) == {*router_of.values(), "copies"}
    kept["copies"]["swaps"][0]["median_s"] = 123.0
    partial = json.loads((tmp_path / "p.json.partial").read_text())
    (tmp_path / "p.json.partial").write_text(json.dumps({**partial, "parts": kept}))
    found = calibrate(asked, out, host).transfers
    assert found is not None
    assert found.swaps[0].median_s == 123.0
    assert found.variants["a"].router.model_dump(mode="json") == kept[router_of["a"]]
    assert len(found.stored) == 3
    assert not (tmp_path / "p.json.partial").exists()


def test_loads_that_fail_are_told(engine_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other copies are measured all the same."""

    def refused(*_: object) -> Any:
        raise EngineError("the host refuses to pin 1 GB")

    monkeypatch.setattr(transfers, "expert_loads", refused)
    copied = transfers._copied(engine_spec, CPU)
    assert (copied.loads, len(copied.swaps)) == ([], 4)
    assert copied.notes == ["loads of experts: not measured: the host refuses to pin 1 GB"]


def digest_of(folder: Path) -> str:
    return model_digest(str(folder), load_model(str(folder)))


def test_parts_that_are_damaged_are_measured_anew(tmp_path: Path) -> None:
    """Whatever lies in their place; what another name stands for is left alone."""
    partial = Partial(tmp_path / "x", {}, parts={"copies": [1], "other": 5})
    assert partial.once("copies", Classification, timed_gateway) == timed_gateway()
    assert json.loads((tmp_path / "x").read_text())["parts"] == {
        "copies": timed_gateway().model_dump(),
        "other": 5,
    }
    assert partial.once("copies", Classification, never) == timed_gateway()


def timed_gateway() -> Classification:
    return Classification(prompts=1, mean_s=1.0, median_s=1.0, p90_s=1.0)


def never() -> Classification:
    raise AssertionError
