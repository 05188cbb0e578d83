"""Under pressure: blocks may run out, so the scheduler decides, as often as it must.

Arrivals are all known, so that nobody needs to be woken: a pass of equal iterations is cut at the
next arrival that could enter.
"""

from math import inf

from moesim.simulation.ahead import Steps
from moesim.simulation.course import Course, Stream, iterations_until
from moesim.simulation.drive import Drive, Pass
from moesim.simulation.replica import Replica

AHEAD = 8
"""How many requests like the next must fit before sums take over; it decides only who computes."""


def press_on(
    replica: Replica,
    stream: Stream,
    course: Course,
    *,
    stay: bool = False,
    horizon_s: float = inf,
) -> Steps:
    """Run until the stream is served (True), or sums would do again (False).

    `stay` keeps to the scheduler even then. `horizon_s` and what is yielded and sent are as in
    `moesim.simulation.ahead`. `course.stops` has it yield the time that it is whenever a step
    has been taken, before the scheduler decides the next one.
    """
    drive = Drive(replica, stream, course)
    arrived = course.admitted
    while True:
        arrived = _received(drive, arrived)
        if drive.scheduler.idle:
            if arrived == len(stream) and course.closed:
                break
            next_s = stream.arrival_s[arrived]
            if next_s > horizon_s or next_s == inf:
                course.idle = True
                horizon_s = yield next_s
            else:
                course.now_s = max(course.now_s, next_s)
            continue
        step = drive.plan()
        while True:
            iterations = _uncut(drive, step, arrived)
            end_s = course.now_s + step.duration_s(iterations)
            if end_s <= horizon_s:
                break
            cost, course.idle = drive.cost, False
            horizon_s = yield end_s
            if drive.cost is not cost:
                step = drive.priced(step)
        finished = drive.finish(step, iterations, end_s)
        if course.done is not None:
            course.done.extend([sequence.request_id for sequence in finished])
        if finished and not stay and _relieved(drive):
            course.admitted = arrived - len(drive.scheduler.waiting)
            drive.leave()
            return False
        if course.stops:
            course.idle = False
            horizon_s = yield course.now_s
    drive.leave()
    return True


def _received(drive: Drive, arrived: int) -> int:
    """Queue who has arrived; return how many have been queued in all.

    Where nobody overtakes, no more need to queue than may enter at once.
    """
    arrival_s, course, waiting = drive.stream.arrival_s, drive.course, drive.scheduler.waiting
    seats = drive.scheduler.limits.max_num_seqs
    while arrival_s[arrived] <= course.now_s and (waiting.overtakes or len(waiting) < seats):
        drive.submit(arrived)
        arrived += 1
    return arrived


def _uncut(drive: Drive, step: Pass, arrived: int) -> int:
    """Return how many iterations of a step pass before somebody arrives who could enter."""
    if step.most == 1:
        return 1
    course = drive.course
    until_s = drive.stream.arrival_s[arrived] if drive.takes_arrivals else inf
    if course.now_s < course.limit_s < until_s:
        until_s = course.limit_s
    most, left_s = step.most, until_s - course.now_s
    if course.most is not None:
        most = min(most, course.most(len(drive.scheduler.running)))
    return iterations_until(left_s, step.base_s, step.growth_s, most)


def _relieved(drive: Drive) -> bool:
    """Whether sums would do again: only decodes and fresh prompts, and room for all of them."""
    running, waiting = drive.scheduler.running, drive.scheduler.waiting
    if waiting and waiting.head().preemptions:
        return False
    now_s = drive.course.now_s
    for sequence in running:
        if sequence.generated and not (sequence.decodes and sequence.last_token_s == now_s):
            return False
    need = drive.stream.blocks
    promised = sum(need[sequence.request_id] for sequence in running)
    # Room for a few more, lest the sums hand back at once.
    head = AHEAD * need[waiting.head().request_id] if waiting else 0
    return promised + head <= drive.scheduler.cache.num_blocks
