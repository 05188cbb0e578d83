"""Two engines at once, a core each: their own cores, and the tokens of engines with all cores."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.serve.generate import generate
from engine.serve.sampling import Sampling
from engine.slices.at_once import Gate, at_once, on_cores, on_streams
from engine.slices.cores import Cores, confined, divide_cores
from engine.slices.green import GreenSlice
from engine.slices.here import on_share, parts_of
from engine.slices.part import Part
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

CPU = torch.device("cpu")
HALVES = [Fraction(1, 2)] * 2
PROMPTS = [[5, 9, 2], [7, 1], [3, 3, 3, 3, 3]]

needs_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="one core cannot be shared",
)


def answers_of(folder: Path) -> list[list[int]]:
    """Return what a checkpoint answers greedily."""
    model = load_decoder(folder, CPU)
    return generate(model, PROMPTS, output_tokens=12, sampling=Sampling(temperature=0.0))


def serve(folder: Path, gate: Gate) -> tuple[list[list[int]], set[int], int, tuple[float, float]]:
    """Answer beside the others; say on which cores, with how many threads, from when to when."""
    answers_of(folder)
    gate.wait()
    begun_s = time.monotonic()
    found = answers_of(folder)
    gate.wait()
    when = begun_s, time.monotonic()
    return found, os.sched_getaffinity(0), torch.get_num_threads(), when


@needs_cores
def test_two_engines_answer_at_once_as_alone(engine_spec: ModelSpec, tmp_path: Path) -> None:
    """Each on cores that the other has not, at the same time, token by token the same."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        save_decoder(random_decoder(engine_spec, seed=seed), folder)
    alone = [answers_of(folder) for folder in folders]
    found = at_once(HALVES, CPU, serve, folders)
    assert [answers for answers, *_ in found] == alone
    assert alone[0] != alone[1]
    (_, one, threads, (begun_s, ended_s)), (_, two, _, (other_begun_s, other_ended_s)) = found
    assert one.isdisjoint(two)
    assert len(one) == len(two) == threads == len(os.sched_getaffinity(0)) // 2
    assert max(begun_s, other_begun_s) < min(ended_s, other_ended_s)


def refuse(number: int, gate: Gate) -> int:
    """Fail, or wait for one who has failed."""
    if number:
        raise EngineError("no such thing; give another")
    return gate.wait()


def vanish(number: int, gate: Gate) -> int:
    """End without a word, or wait for one who has."""
    if number:
        os._exit(3)
    return gate.wait()


@needs_cores
@pytest.mark.parametrize(
    ("task", "words"), [(refuse, "share 2: no such thing"), (vanish, "share 2: its process ended")]
)
def test_one_that_fails_ends_all(task: object, words: str) -> None:
    """Nobody waits at the gate for ever, and the line is that of the one who failed."""
    with pytest.raises(EngineError, match=words):
        on_cores(divide_cores(HALVES), task, [0, 1])  # type: ignore[arg-type]


def greet(name: str, gate: Gate) -> str:
    """Wait for the other, or fail and leave it waiting."""
    if name == "nobody":
        raise EngineError("no such model; give another")
    gate.wait()
    return f"{name} on {torch.cuda.current_stream()}"


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[GreenSlice]:
    """Return two slices for a torch whose streams are their handles' names."""
    current = threading.local()

    class Name(str):
        def synchronize(self) -> None:
            pass

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        current.name = Name(name)
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current.name)
    monkeypatch.setattr(GreenSlice, "stream", property(lambda own: f"stream {own.handle}"))
    part = Part(units=64, of=132, what="SMs")
    return [GreenSlice(part=part, handle=handle) for handle in (5, 7)]


def test_on_a_gpu_each_has_a_thread_and_its_stream(slices: list[GreenSlice]) -> None:
    """Both wait at the gate, so that neither can have run after the other."""
    assert on_streams(slices, greet, ["a", "b"]) == ["a on stream 5", "b on stream 7"]


@pytest.mark.parametrize(
    ("names", "line"), [(["nobody", "b"], "share 1: no such"), (["a", "nobody"], "share 2: no s")]
)
def test_a_thread_that_fails_ends_all(
    slices: list[GreenSlice], names: list[str], line: str
) -> None:
    """What is told is what went wrong, not that somebody waited in vain."""
    with pytest.raises(EngineError, match=line):
        on_streams(slices, greet, names)


@needs_cores
def test_a_share_for_a_while() -> None:
    """Fewer cores and as many threads of torch; afterwards what there was before."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with on_share(Fraction(1, 2), CPU) as part:
        inside = os.sched_getaffinity(0)
        assert len(inside) == torch.get_num_threads() == len(before) // 2 == part.units
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (before, threads)
    assert inside < before
    assert parts_of(HALVES, CPU) == [part, part]


def test_rests_are_left_idle() -> None:
    """Of the cores that this process may use, whatever their numbers."""
    own = sorted(os.sched_getaffinity(0))
    with confined(Cores((own[0],), len(own))):
        assert divide_cores([Fraction(1)]) == [Cores((own[0],), 1)]
        with pytest.raises(EngineError, match="50 % of 1 cores is less than one; give 100 %"):
            divide_cores([Fraction(1, 2)])
