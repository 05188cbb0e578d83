"""Variants of one model served by one engine: each has a scheduler, all have the device in turns.

It is the simulator's station with tensors in place of durations: `moesim.serving.turns` is asked
before every iteration whose is next, and where that is not the loaded variant, its non-expert set
is loaded first.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import pandas as pd

from engine.model.experts.choosing import AUTO
from engine.model.stopwatch import Lap, no_lap
from engine.serve.clock import Clock, WallClock
from engine.serve.engine import EngineConfig, Reader
from engine.serve.sampling import Sampling
from engine.serve.traffic import Traffic
from engine.variants.family import Family
from engine.variants.ledger import Tally, WaitLedger, variants_frame
from engine.variants.seat import Seat
from moesim.errors import EngineError
from moesim.serving.records import Ledger, Record
from moesim.serving.turns import POLICIES, Moment, next_turn

REFERENCE_STYLE = "loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Whose iteration is next: a policy of `moesim.serving.turns`, and its quantum [s]."""

    policy: str = "fcfs"
    quantum_s: float = 1.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise EngineError(f"turns: {self.policy!r} is none of {', '.join(POLICIES)}")
        if not self.quantum_s > 0:
            raise EngineError(f"quantum_s: {self.quantum_s} must be above zero")


class VariantsClock(Clock, Protocol):
    """Time on a device that several variants have in turns."""

    def loaded(self, variant: int) -> None:
        """Take note of a reconfiguration that has just ended."""


class VariantsWallClock(WallClock):
    """Real time."""

    def loaded(self, variant: int) -> None:
        """Do nothing: real time passes by itself."""


class VariantsEngine:
    """Serves the variants of a family; a request's record names the one that it is for.

    `config` is each variant's: its KV blocks are what it has, whoever is loaded. A variant's
    reconfigurations are in `loads`, when each began and how long it took [s].

    Used so::

        family = load_family({"base": base, "chat": chat}, Sharing(), device)
        engine = VariantsEngine(family, config, Turns(policy="drain"))
        record = Record(request_id=0, model="chat", prompt_tokens=3, output_tokens=8)
        engine.submit(record, prompt=[5, 9, 2])
        while engine.step(): pass
    """

    def __init__(
        self,
        family: Family,
        config: EngineConfig,
        turns: Turns | None = None,
        clock: VariantsClock | None = None,
        ledgers: Mapping[str, WaitLedger] | None = None,
    ) -> None:
        self.family = family
        self.turns = turns or Turns()
        self.clock: VariantsClock = clock or VariantsWallClock()
        self.loads: dict[str, list[tuple[float, float]]] = {name: [] for name in family.names}
        family.sets.load(0)  # before decodes are captured, which run on it
        self.seats = self._seats(config, ledgers or {name: WaitLedger() for name in family.names})
        self._order = list(self.seats.values())
        self._urgent = config.order == "priority"
        self._strangers = Ledger()
        self._loaded, self._since_s, self._finished = 0, self.clock.now(), False
        self._lasted_s = 0.0

    @property
    def loaded(self) -> str:
        """The variant whose non-expert set is on the device."""
        return self.family.names[self._loaded]

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return all(seat.scheduler.idle for seat in self._order)

    def submit(
        self,
        record: Record,
        prompt: Row[int],
        names: Row[int] | None = None,
        *,
        sampling: Sampling | None = None,
        reader: Reader | None = None,
    ) -> bool:
        """Queue a request for the variant that its record names; see `Engine.submit`."""
        seat = self.seats.get(record.model)
        if seat is None:
            known = ", ".join(self.seats)
            self._strangers.open(record)
            self._strangers.refuse(
                record.request_id, f"model: {record.model!r} is not one of the variants {known}"
            )
            return False
        return seat.submit(record, prompt, names, sampling=sampling, reader=reader)

    def cancel(self, request_id: int) -> bool:
        """Drop a request between two iterations; False if it is not here."""
        return any(seat.cancel(request_id) for seat in self._order)

    def step(self, lap: Lap = no_lap) -> bool:
        """Run one iteration of whose turn it is; False when nobody had anything to do."""
        chosen = self._turn()
        if chosen is None:
            return False
        if chosen != self._loaded:
            self._load(chosen)
        self._iterate(chosen, lap)
        return True

    def serve(
        self, traffic: Traffic, on_step: Callable[[float], None] = lambda now_s: None
    ) -> pd.DataFrame:
        """Serve requests as they arrive, to the last token; return their records.

        Arrivals are counted from the engine's clock. `on_step` is told the time after every
        iteration.
        """
        while True:
            self._take_in(traffic)
            chosen = self._turn()
            if chosen is None:
                if traffic.next_s() == inf:
                    return self.frame()
                self.clock.wait_until(traffic.next_s())
                continue
            if chosen != self._loaded:
                self._load(chosen)
                self._take_in(traffic)
            for request_id in self._iterate(chosen, no_lap):
                traffic.done(self._order[chosen].ledger.records[request_id])
            on_step(self.clock.now())

    def output(self, record: Record) -> list[int]:
        """Return the tokens of a request that has finished."""
        return self.seats[record.model].outputs[record.request_id]

    def frame(self) -> pd.DataFrame:
        """Return all records in order of request id, with the columns of `VariantRecord`."""
        ledgers = [self._strangers, *(seat.ledger for seat in self._order)]
        records = {key: each for ledger in ledgers for key, each in ledger.records.items()}
        return variants_frame(records[key] for key in sorted(records))

    def _seats(self, config: EngineConfig, ledgers: Mapping[str, WaitLedger]) -> dict[str, Seat]:
        store, seats = self.family.store, {}
        if not store.complete:
            if config.experts not in (AUTO, REFERENCE_STYLE):
                raise EngineError(
                    f"experts: {config.experts!r}: where some are absent they run one by one, as "
                    f"{REFERENCE_STYLE!r} does; leave it out or keep all resident"
                )
            # Experts run one by one there, and a wait for one of them cannot be captured.
            config = replace(config, experts=REFERENCE_STYLE, graphs=False)
        for name, decoder in self.family.decoders.items():
            ledgers[name].missed = lambda: Tally(store.missed, store.waited_s)
            seats[name] = Seat(decoder, config, self.clock, ledgers[name])
        return seats

    def _take_in(self, traffic: Traffic) -> None:
        """Submit whoever has arrived by now."""
        now_s = self.clock.now()
        while traffic.next_s() <= now_s:
            arrival = traffic.take()
            if not self.submit(arrival.record, arrival.prompt, arrival.names):
                traffic.done(arrival.record)

    def _turn(self) -> int | None:
        """Return whose iteration is next; None where nobody has anything to do."""
        return self._turn_at(self.clock.now(), set(), finished=self._finished)

    def _turn_at(self, now_s: float, ending: set[int], *, finished: bool) -> int | None:
        """Return whose iteration is next at a moment, without those who end before."""
        moment = Moment(now_s=now_s, loaded=self._loaded, since_s=self._since_s, finished=finished)
        standings = [seat.standing(urgent=self._urgent, without=ending) for seat in self._order]
        return next_turn(self.turns.policy, standings, moment, self.turns.quantum_s)

    def _look_ahead(self) -> None:
        """Bring the set that will be next, if this iteration seems to be the variant's last.

        It is taken to last as long as the one before.
        """
        ending = self._order[self._loaded].ending()
        then_s = self.clock.now() + self._lasted_s
        following = self._turn_at(then_s, ending, finished=bool(ending))
        if following is not None:
            self.family.sets.expect(following)

    def _load(self, chosen: int) -> None:
        """Reconfigure the device for another variant."""
        began_s = self.clock.now()
        self._order[self._loaded].pause()
        self.family.sets.load(chosen)
        self.clock.loaded(chosen)
        self._loaded, self._since_s = chosen, self.clock.now()
        self.loads[self.loaded].append((began_s, self._since_s - began_s))
        self._order[chosen].waits.reconfigured(self._since_s - began_s)

    def _iterate(self, chosen: int, lap: Lap) -> list[int]:
        if self.family.sets.ahead:
            self._look_ahead()
        began_s = self.clock.now()
        finished = self._order[chosen].iterate(lap)
        self._lasted_s = self.clock.now() - began_s
        self._finished = bool(finished)
        return finished
