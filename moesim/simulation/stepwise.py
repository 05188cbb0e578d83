"""Stepping: a station as a simpy process that wakes for every iteration.

The plainest reading of the rules, and the measure of the faster ways: jumping must give the same
records. The engine's own loop does the same with tensors in place of durations.
"""

from collections import deque
from collections.abc import Generator, Sequence
from heapq import merge

import simpy

from moesim.cost.iteration import Cost
from moesim.requests import Request, requests_from
from moesim.serving.columns import Columns, Table
from moesim.serving.records import Ledger, Record
from moesim.serving.sequences import Sequence as Running
from moesim.serving.turns import Moment, Standing, next_turn
from moesim.simulation.course import Copy
from moesim.simulation.crowd import Activity
from moesim.simulation.neighbours import Neighbours
from moesim.simulation.replica import Replica, Served, Usage
from moesim.simulation.shelf import Shelves
from moesim.simulation.station import Station
from moesim.simulation.transfer import Transfer

Waiting = Generator[simpy.Event, None, None]


class Stepper:
    """Serves requests in order of arrival, one iteration at a time.

    Those of `known` arrive by themselves, others are handed in with `receive`.
    """

    def __init__(
        self,
        env: simpy.Environment,
        station: Station,
        *,
        known: Sequence[Table] | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._env = env
        self._station = station
        self._neighbours = neighbours
        self._counters = [_Counter(replica) for replica in station.replicas]
        self._places = {model: place for place, model in enumerate(station.models)}
        self._arriving = deque(
            merge(*map(requests_from, known or []), key=lambda request: request.reaches_s)
        )
        self._shelves = Shelves(station.shelves)
        self._inbox: list[tuple[_Counter, Running]] = []
        self._done: dict[int, simpy.Event] = {}
        self._loaded, self._since_s, self._finished = 0, 0.0, False
        self._woken, self._changed = env.event(), env.event()
        if neighbours:
            neighbours.join(station.member, self._disturbed)
        env.process(self._serve())

    @property
    def load(self) -> int:
        """Requests handed in and not done."""
        return len(self._done)

    def receive(self, request: Request) -> simpy.Event:
        """Take in a request that arrives now; the event happens when it is done."""
        done = self._done[request.request_id] = self._env.event()
        self._open(request)
        if not self._woken.triggered:
            self._woken.succeed()
        return done

    def served(self) -> list[Served]:
        """Return what became of the requests, model by model."""
        return [counter.served() for counter in self._counters]

    def _serve(self) -> Waiting:
        while True:
            self._take_in()
            chosen = self._turn()
            if chosen is None:
                self._note(Activity.IDLE)
                if self._arriving:
                    reaches_s = self._arriving[0].reaches_s
                    yield self._env.timeout(max(0.0, reaches_s - self._env.now))
                else:
                    self._woken = self._env.event()
                    yield self._woken
                continue
            if chosen != self._loaded:
                yield from self._load(chosen)
            elif self._neighbours:
                self._note(Activity.RUNNING)
                yield self._env.timeout(0)  # a neighbour who moves at this very moment counts
                self._take_in()
            yield from self._iterate(self._counters[chosen])

    def _turn(self) -> int | None:
        """Return whose iteration is next."""
        rules = self._station.rules
        if rules is None:
            return None if self._counters[0].scheduler.idle else 0
        moment = Moment(
            now_s=self._env.now,
            loaded=self._loaded,
            since_s=self._since_s,
            finished=self._finished,
        )
        standings = [counter.standing(urgent=rules.urgent) for counter in self._counters]
        return next_turn(rules.policy, standings, moment, rules.quantum_s)

    def _load(self, chosen: int) -> Waiting:
        """Reconfigure the slice for another model."""
        rules, start_s = self._station.rules, self._env.now
        self._counters[self._loaded].pause()
        apart_s, copy_s = rules.load(chosen) if rules else (0.0, 0.0)
        if apart_s or not copy_s:
            self._note(Activity.IDLE if copy_s else Activity.RUNNING)
            yield self._env.timeout(apart_s)
        if copy_s:
            self._note(Activity.COPYING)
            yield from self._copy(copy_s)
            self._note(Activity.RUNNING)
        self._counters[chosen].loads.append((start_s, self._env.now - start_s))
        self._loaded, self._since_s = chosen, self._env.now
        yield self._env.timeout(0)  # who arrives at this very moment is in time
        self._take_in()

    def _copy(self, copy_s: float) -> Waiting:
        """Copy what takes so long on a link of its own, beside others who come and go."""
        env, copy = self._env, Transfer(since_s=self._env.now, left_s=copy_s)
        while True:
            if self._neighbours:
                copy.restretch(env.now, self._neighbours.stretch(self._station.member))
            self._changed = env.event()
            copied = env.timeout(max(0.0, copy.end_s - env.now))
            yield copied | self._changed
            if copied.processed:
                return

    def _disturbed(self) -> None:
        """Look again: neighbours do something else. What an iteration costs is asked anyway."""
        if not self._changed.triggered:
            self._changed.succeed()

    def _take_in(self) -> None:
        while self._arriving and self._arriving[0].reaches_s <= self._env.now:
            self._open(self._arriving.popleft())
        for counter, sequence in self._inbox:
            counter.scheduler.submit(sequence)
        self._inbox.clear()

    def _open(self, request: Request) -> None:
        counter = self._counters[self._places[request.model]]
        sequence = counter.open(request)
        if sequence is None:
            self._tell(request.request_id)
        else:
            self._inbox.append((counter, sequence))

    def _iterate(self, counter: "_Counter") -> Waiting:
        cost, place = None, self._counters.index(counter)
        if self._neighbours:
            cost = self._neighbours.costs(self._station.member)[place]
        cost = self._shelves.cost(place, cost or self._station.replicas[place].cost)
        start_s, before = self._env.now, counter.batched_tokens
        done = yield from counter.iterate(self._env, cost)
        self._shelves.ran(place, start_s, counter.batched_tokens - before, 1)
        self._finished = bool(done)
        for request_id in done:
            self._tell(request_id)
        if self._done:
            yield self._env.timeout(0)  # who arrives at this very moment is in time

    def _note(self, activity: Activity) -> None:
        if self._neighbours:
            self._neighbours.note(self._station.member, activity)

    def _tell(self, request_id: int) -> None:
        done = self._done.pop(request_id, None)
        if done:
            done.succeed()


class _Counter:
    """One model's scheduler on a station, and the account of what it did."""

    def __init__(self, replica: Replica) -> None:
        self.scheduler = replica.scheduler()
        self.loads: list[tuple[float, float]] = []
        self._replica = replica
        self._ledger = Ledger()
        self._copies: list[Copy] = []
        self._open: dict[int, tuple[float, int]] = {}
        cache = replica.cache
        self._usage = Usage(
            replica.name,
            kv_blocks=cache.num_blocks,
            kv_tokens=cache.num_blocks * cache.block_size,
        )

    @property
    def batched_tokens(self) -> int:
        """Tokens of all iterations so far."""
        return self._usage.batched_tokens

    def open(self, request: Request) -> Running | None:
        """Open a request's record; return its sequence, None if it is refused."""
        self._ledger.open(record_of(request, self._usage.replica))
        reason = self._replica.refusal(request.prompt_tokens, request.output_tokens)
        if reason:
            self._ledger.refuse(request.request_id, reason)
            return None
        sequence = self._replica.sequence_of(request)
        self._open[request.request_id] = (request.reaches_s, sequence.priority)
        return sequence

    def standing(self, *, urgent: bool) -> Standing:
        """Return how the model stands."""
        if not self._open:
            return Standing()
        oldest_s = min(reached_s for reached_s, _ in self._open.values())
        urgency = min(priority for _, priority in self._open.values()) if urgent else 0
        return Standing(len(self._open), oldest_s, urgency)

    def iterate(
        self, env: simpy.Environment, cost: Cost | None
    ) -> Generator[simpy.Event, None, list[int]]:
        """Run one iteration; return who finished."""
        batch = self.scheduler.schedule()
        self._ledger.scheduled(batch, env.now)
        duration_s = self._replica.iteration_s(batch, cost)
        if batch.swapped_blocks:
            copied_s = batch.swapped_blocks * self._replica.swap_block_s
            self._copies.append((env.now, copied_s, batch.swapped_blocks))
        self._account(batch.tokens, duration_s)
        yield env.timeout(duration_s)
        emitted, finished = self.scheduler.advance(batch)
        self._ledger.advanced(batch, emitted, finished, env.now)
        for sequence in finished:
            del self._open[sequence.request_id]
        return [sequence.request_id for sequence in finished]

    def pause(self) -> None:
        """Note that another model has the station now."""
        self._ledger.paused()

    def served(self) -> Served:
        """Return what became of the requests."""
        self._usage.reconfigurations = len(self.loads)
        self._usage.reconfiguring_s = sum(duration_s for _, duration_s in self.loads)
        return Served(
            table=Columns.of(self._ledger.frame()),
            log=self._ledger.log(),
            usage=self._usage,
            basis=self._replica.cost.basis(),
            copies=tuple(self._copies),
            loads=tuple(self.loads),
        )

    def _account(self, tokens: int, duration_s: float) -> None:
        usage = self._usage
        usage.iterations += 1
        usage.busy_s += duration_s
        usage.batched_tokens += tokens
        usage.peak_running = max(usage.peak_running, len(self.scheduler.running))


def step_through(station: Station, requests: Sequence[Table]) -> list[Served]:
    """Serve open-loop streams, one a model, iteration by iteration."""
    env = simpy.Environment(initial_time=0.0)
    stepper = Stepper(env, station, known=requests)
    env.run()
    return stepper.served()


def record_of(request: Request, replica: str) -> Record:
    """Open the record of a request that reaches a replica."""
    return Record(
        request_id=request.request_id,
        tenant=request.tenant,
        model=request.model,
        replica=replica,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
    )
