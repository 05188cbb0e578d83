"""Several models on one slice, one at a time: whose step is next, and what a change costs.

Looks from outside like one worker (`moesim.simulation.worker`): it says when its next step ends, a
step of the model whose turn it is, or the reconfiguration that a change of model needs. Who is next
is `moesim.serving.turns`'; it is asked at the end of every step, and a run of equal iterations is
cut where the answer could change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from moesim.cost.iteration import Cost
from moesim.serving.turns import Moment, Standing, next_turn, stays_until_s
from moesim.simulation.course import Stream
from moesim.simulation.crowd import Activity
from moesim.simulation.shelf import Shelves
from moesim.simulation.transfer import Transfer
from moesim.simulation.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How models share a slice: `policy` and quantum, and what loading each model takes [s].

    `copy_s` is how much of that a copy takes on a host link of its own, where others may use it at
    the same time; it comes last.
    """

    policy: str
    quantum_s: float
    reconfigure_s: tuple[float, ...]
    copy_s: tuple[float, ...] = ()
    urgent: bool = False
    """Whether requests have priorities that go before turns."""

    @property
    def lasting(self) -> bool:
        """Whether a turn lasts at least until a request finishes."""
        return self.policy != "quantum" and not self.urgent

    @property
    def copies(self) -> bool:
        """Whether a change of model copies anything over the host link."""
        return any(self.copy_s)

    def load(self, model: int) -> tuple[float, float]:
        """Return what loading a model takes without the link, and then on it alone [s]."""
        copy_s = self.copy_s[model] if self.copy_s else 0.0
        return self.reconfigure_s[model] - copy_s, copy_s


def alone() -> Rules:
    """Return how a model has a slice that is its own."""
    return Rules(policy="fcfs", quantum_s=inf, reconfigure_s=(0.0,))


@dataclass(slots=True)
class Account:
    """How a model stands while the clock moves on: who has come, and who of them is unfinished."""

    stream: Stream
    urgent: bool
    arrived: int = 0
    finished: int = 0
    _oldest: int = 0
    _levels: dict[int, int] = field(default_factory=dict)

    def arrive(self, now_s: float) -> None:
        """Count who has arrived by now."""
        arrival_s = self.stream.arrival_s
        while arrival_s[self.arrived] <= now_s:
            if self.urgent:
                level = self._level(self.arrived)
                self._levels[level] = self._levels.get(level, 0) + 1
            self.arrived += 1

    def finish(self, done: Sequence[tuple[int, int]]) -> None:
        """Count who has finished; a request is its model and its index."""
        self.finished += len(done)
        if self.urgent:
            for _, request in done:
                self._levels[self._level(request)] -= 1

    def standing(self) -> Standing:
        """Return how the model stands."""
        unfinished = self.arrived - self.finished
        if not unfinished:
            return Standing()
        finish_s = self.stream.finish_s
        while finish_s[self._oldest]:
            self._oldest += 1
        urgency = min(n for n, count in self._levels.items() if count) if self.urgent else 0
        return Standing(unfinished, self.stream.arrival_s[self._oldest], urgency)

    @property
    def next_s(self) -> float:
        """When the next request arrives, as far as is known [s]."""
        return self.stream.arrival_s[self.arrived]

    def _level(self, request: int) -> int:
        return self.stream.priorities.get(self.stream.tenant[request], 0)


class Turns:
    """Workers that have a slice in turns; `end_s` is when the next step ends."""

    def __init__(
        self, workers: Sequence[Worker], rules: Rules, shelves: Shelves | None = None
    ) -> None:
        self.workers = tuple(workers)
        self.end_s = inf
        self.now_s = 0.0
        self._rules = rules
        self._accounts = [Account(worker.stream, rules.urgent) for worker in workers]
        self._loaded, self._since_s = 0, 0.0
        self._loading: int | None = None
        self._began_s = 0.0  # when the reconfiguration did
        self._copy_s = 0.0  # what it will copy
        self._copying: Transfer | None = None
        self._working = False
        self._stop_s = -inf
        self._costs = [worker.replica.cost for worker in workers]
        self._shelves = shelves
        for worker in workers:
            worker.course.stops = True
        self._decide(finished=False)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._working and self._loading is None

    @property
    def activity(self) -> Activity:
        """What neighbours notice of it."""
        if self._copying:
            return Activity.COPYING
        if self._working or (self._loading is not None and not self._copy_s):
            return Activity.RUNNING
        return Activity.IDLE

    @property
    def planned(self) -> bool:
        """Whether the next step is known."""
        return True

    def plan(self) -> None:
        """Look again at what the next step is: somebody has arrived."""
        if self._loading is not None:
            return
        if not self._working:
            self._decide(finished=False)
            return
        self._keep_on()

    def step(self) -> list[tuple[int, int]]:
        """Take the next step; return model and index of each request that it finished."""
        if self._loading is not None:
            if self._copy_s and not self._copying:
                self._copy(self.end_s)
            else:
                self._load()
            return []
        if not self._working:
            self.now_s = self.end_s
            self._decide(finished=False)
            return []
        worker = self.workers[self._loaded]
        self.now_s = self.end_s
        done = [(self._loaded, request) for _, request in worker.step()]
        if not done and self._rules.lasting:
            if self._shelves:
                self._price(worker)
            if self._shelves or not worker.planned:
                worker.plan()
            self.end_s = worker.end_s
            return done
        self._accounts[self._loaded].finish(done)
        self._decide(finished=bool(done))
        return done

    def stop_by(self, at_s: float) -> None:
        """Have the next step end with the iteration that is under way at a time."""
        self._stop_s = at_s
        if self._working:
            self._keep_on()

    def reprice(self, costs: Sequence[Cost]) -> None:
        """Have iterations that have not begun cost something else, model by model."""
        self._costs = list(costs)
        for worker, cost in zip(self.workers, costs, strict=True):
            worker.course.cost = cost
        if self._working:
            self._keep_on()

    def stretch(self, now_s: float, factor: float) -> None:
        """Have the copy that goes on take so many times as long as alone from now on."""
        if self._copying:
            self._copying.restretch(now_s, factor)
            self.end_s = self._copying.end_s

    def close(self) -> None:
        """Sum up; nothing more arrives."""
        for worker in self.workers:
            worker.close()

    def _decide(self, *, finished: bool) -> None:
        standings = []
        for account in self._accounts:
            account.arrive(self.now_s)
            standings.append(account.standing())
        moment = self._moment(finished=finished)
        chosen = next_turn(self._rules.policy, standings, moment, self._rules.quantum_s)
        self._working = False
        if chosen is None:
            self.end_s = min(account.next_s for account in self._accounts)
        elif chosen == self._loaded:
            self._work()
        else:
            self._reconfigure(chosen)

    def _moment(self, *, finished: bool) -> Moment:
        return Moment(
            now_s=self.now_s, loaded=self._loaded, since_s=self._since_s, finished=finished
        )

    def _reconfigure(self, chosen: int) -> None:
        """Begin to load a model: what needs no link comes first."""
        self._loading, self._began_s = chosen, self.now_s
        apart_s, self._copy_s = self._rules.load(chosen)
        if self._copy_s and not apart_s:
            self._copy(self.now_s)
        else:
            self.end_s = self.now_s + apart_s

    def _copy(self, now_s: float) -> None:
        """Begin to copy what a reconfiguration copies."""
        self.now_s = now_s
        self._copying = Transfer(since_s=now_s, left_s=self._copy_s)
        self.end_s = self._copying.end_s

    def _load(self) -> None:
        """Finish a reconfiguration; whoever it was for has at least one step."""
        assert self._loading is not None  # noqa: S101 what `step` asked
        loaded = self.workers[self._loading].course
        loaded.loads.append((self._began_s, self.end_s - self._began_s))
        self._loaded, self._loading, self._copying = self._loading, None, None
        self.now_s = self._since_s = self.end_s
        for account in self._accounts:
            account.arrive(self.now_s)
        self._work()

    def _work(self) -> None:
        self._working = True
        worker = self.workers[self._loaded]
        worker.course.now_s = max(worker.course.now_s, self.now_s)
        self._keep_on()

    def _keep_on(self) -> None:
        """Plan the step of the model whose turn it is, to where the turn may end."""
        worker = self.workers[self._loaded]
        stop_s = self._stop_s if self._stop_s > self.now_s else inf
        worker.course.limit_s = min(stop_s, self._stays_until_s())
        if self._shelves:
            self._price(worker)
        worker.plan()
        self.end_s = worker.end_s

    def _price(self, worker: Worker) -> None:
        """Have the next iteration cost what it does with the experts that are there."""
        if self._shelves:
            worker.course.cost = self._shelves.cost(self._loaded, self._costs[self._loaded])

    def _stays_until_s(self) -> float:
        """Return until when no step may go on past the end of an iteration."""
        rules = self._rules
        if rules.lasting:
            return inf
        others_wait, arrival_s = False, inf
        for place, account in enumerate(self._accounts):
            if place != self._loaded:
                others_wait = others_wait or account.arrived > account.finished
                arrival_s = min(arrival_s, account.next_s)
        stays_s = stays_until_s(
            rules.policy,
            self._moment(finished=False),
            others_wait=others_wait,
            arrival_s=arrival_s,
            quantum_s=rules.quantum_s,
        )
        if stays_s <= self.now_s:
            stays_s = inf  # the quantum is over, but nobody waits who is as urgent
        return min(stays_s, arrival_s) if rules.urgent else stays_s
