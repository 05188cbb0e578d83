"""Green contexts, replayed: a driver that splits as NVIDIA's documentation says.

The minimum and the multiple of a group are those of the CUDA Driver API, section Green Contexts: 4
and 2 SMs on compute capability 8, 8 and 8 on 9. Leaving out SMs that do not make a group is what a
H100 of 132 SMs was seen to do.
"""

import ctypes
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from engine.slices.driver import Driver, Resource
from engine.slices.green import green_slices
from moesim.errors import EngineError

HALF = Fraction(1, 2)
INVALID = 1
MISSING: tuple[str, ...] = ()


class Library:
    """What libcuda answers; `fails` at the n-th call of a name, `lacks` some names altogether."""

    def __init__(
        self,
        sms: int = 132,
        group: int = 8,
        *,
        fails: tuple[str, int] = ("", 0),
        lacks: tuple[str, ...] = (),
    ) -> None:
        self.sms, self.group = sms, group
        self.alive: list[int] = []
        self.contexts: dict[int, list[int]] = {}
        self.called: list[str] = []
        self._fails, self._lacks = fails, lacks
        self._described: dict[int, list[int]] = {}
        self._first: dict[int, int] = {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu") or name in self._lacks:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.called.append(name)
            if (name, self.called.count(name)) == self._fails:
                return INVALID
            getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return 0

        return call

    def _cuDeviceGetDevResource(self, device: Any, found: Any, kind: Any) -> None:  # noqa: N802
        assert kind.value == 1
        found._obj.kind, found._obj.sms = 1, self.sms

    def _cuDevSmResourceSplitByCount(  # noqa: N802
        self, results: Any, count: Any, given: Any, rest: Any, flags: Any, least: Any
    ) -> None:
        size = max(self.group, -(-least.value // self.group) * self.group)
        there = given._obj.sms // size
        if results is None:
            count._obj.value = there
            return
        count._obj.value = min(count._obj.value, there)
        for number in range(count._obj.value):
            results[number].kind, results[number].sms = 1, size
            results[number].rest[0] = number  # which group it is, in a place that is the driver's
        rest._obj.sms = given._obj.sms - count._obj.value * size

    def _cuDevResourceGenerateDesc(self, descriptor: Any, several: Any, count: Any) -> None:  # noqa: N802
        handle = 1000 + len(self._described)
        self._described[handle] = [several[n].rest[0] for n in range(count.value)]
        descriptor._obj.value = handle

    def _cuGreenCtxCreate(self, made: Any, descriptor: Any, device: Any, flags: Any) -> None:  # noqa: N802
        made._obj.value = self._born()
        self.contexts[made._obj.value] = self._described[descriptor.value]

    def _cuGreenCtxGetDevResource(self, context: Any, found: Any, kind: Any) -> None:  # noqa: N802
        found._obj.sms = self.group * len(self.contexts[context.value])

    def _cuGreenCtxStreamCreate(self, made: Any, context: Any, flags: Any, priority: Any) -> None:  # noqa: N802
        assert context.value in self.alive
        assert flags.value == 1
        made._obj.value = self._born()

    def _cuStreamDestroy_v2(self, stream: Any) -> None:  # noqa: N802
        self.alive.remove(stream.value)

    def _cuGreenCtxDestroy(self, context: Any) -> None:  # noqa: N802
        self.alive.remove(context.value)

    def _cuGetErrorName(self, code: Any, word: Any) -> None:  # noqa: N802
        word._obj.value = {INVALID: b"CUDA_ERROR_INVALID_VALUE"}[code.value]

    def _born(self) -> int:
        self._first.setdefault(0, 0)
        self._first[0] += 1
        self.alive.append(self._first[0])
        return self._first[0]


@pytest.mark.parametrize(
    ("sms", "group", "shares", "units"),
    [
        (132, 8, (HALF, HALF), (64, 64)),
        (132, 8, (Fraction(3, 4), Fraction(1, 4)), (96, 32)),
        (108, 4, (HALF, HALF), (52, 52)),
        (108, 4, (Fraction(1, 3),) * 3, (36, 36, 36)),
    ],
)
def test_shares_have_sms_of_their_own(
    sms: int, group: int, shares: tuple[Fraction, ...], units: tuple[int, ...]
) -> None:
    """Whole groups of one split, none in two contexts; all is gone in the end."""
    library = Library(sms, group)
    with green_slices(Driver(library), shares) as slices:
        assert tuple(own.part.units for own in slices) == units
        assert {own.part.of for own in slices} == {sms}
        taken = [number for groups in library.contexts.values() for number in groups]
        assert len(set(taken)) == len(taken) == sum(units) // group
        assert len({own.handle for own in slices}) == len(slices)
        assert len(library.alive) == 2 * len(slices)
    assert library.alive == []
    assert library.called.index("cuStreamDestroy_v2") < library.called.index("cuGreenCtxDestroy")


@pytest.mark.parametrize(
    "call",
    [
        ("cuInit", 1),
        ("cuDeviceGet", 1),
        ("cuDeviceGetDevResource", 1),
        ("cuDevSmResourceSplitByCount", 1),
        ("cuDevSmResourceSplitByCount", 2),
        ("cuDevResourceGenerateDesc", 2),
        ("cuGreenCtxCreate", 1),
        ("cuGreenCtxCreate", 2),
        ("cuGreenCtxStreamCreate", 2),
        ("cuGreenCtxGetDevResource", 2),
    ],
)
def test_what_fails_half_way_leaves_nothing_behind(call: tuple[str, int]) -> None:
    """One line with the driver's word, and everything made so far destroyed."""
    library = Library(fails=call)
    with (
        pytest.raises(EngineError, match=f"shares: {call[0]}: CUDA_ERROR_INVALID_VALUE; free"),
        green_slices(Driver(library), [HALF, HALF]),
    ):
        pytest.fail("the device was divided all the same")
    assert library.alive == []


@pytest.mark.parametrize("name", ["cuGreenCtxCreate", "cuGreenCtxStreamCreate"])
def test_an_old_driver_is_named(name: str) -> None:
    """CUDA 12.4 has contexts and no streams in them, drivers before that neither."""
    library = Library(lacks=(name,))
    with (
        pytest.raises(EngineError, match=f"has no {name}: it is too old .* CUDA 12.5 or later"),
        green_slices(Driver(library), [HALF]),
    ):
        pytest.fail("the device was divided all the same")
    assert library.alive == []


def test_too_few_sms_are_refused_before_anything_is_made() -> None:
    """A sixteenth of 16 groups is one; less is none."""
    library = Library()
    with (
        pytest.raises(EngineError, match=r"5 % of 16 groups of 8 SMs is less than one; give 6.3 %"),
        green_slices(Driver(library), [Fraction(1, 20)]),
    ):
        pytest.fail("the device was divided all the same")
    assert "cuGreenCtxCreate" not in library.called


def test_a_resource_is_as_large_as_the_driver_s() -> None:
    """`cuda.h`: a type, 92 bytes, 48 that the kinds share; SMs are the first of these."""
    assert ctypes.sizeof(Resource) == 4 + 92 + 48
    assert Resource.sms.offset == 96


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_two_contexts_have_different_sms_of_a_real_gpu() -> None:
    """Each block of a kernel says which SM it ran on: no SM is in both, none is missing."""
    from engine.slices.driver import open_driver
    from tests.engine.slices.sm_ids import sm_ids

    torch.cuda.synchronize()
    with green_slices(open_driver(), [HALF, HALF]) as slices:
        seen = []
        for own in slices:
            with torch.cuda.stream(own.stream):
                seen.append(sm_ids(blocks=4096))
        assert seen[0].isdisjoint(seen[1])
        assert [len(ids) for ids in seen] == [own.part.units for own in slices]
