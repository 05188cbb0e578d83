"""Under pressure: blocks may run out, so the scheduler decides, as often as it must.

Arrivals are all known, so that nobody needs to be woken: a pass of equal iterations is cut at the
next arrival that could enter.
"""

from moesim.simulation.course import Course, Stream, iterations_until
from moesim.simulation.drive import Drive
from moesim.simulation.replica import Replica

AHEAD = 8
"""How many requests like the next must fit before sums take over; it decides only who computes."""


def press_on(replica: Replica, stream: Stream, course: Course, *, stay: bool = False) -> bool:
    """Run until the stream is served (True), or sums would do again (False).

    `stay` keeps to the scheduler even then.
    """
    drive = Drive(replica, stream, course)
    arrived = course.admitted
    while True:
        arrived = _receive(drive, arrived)
        if drive.scheduler.idle:
            break
        step = drive.plan()
        iterations = step.most
        if iterations > 1 and drive.takes_arrivals:
            left_s = stream.arrival_s[arrived] - course.now_s
            iterations = iterations_until(left_s, step.base_s, step.growth_s, iterations)
        finished = drive.finish(step, iterations, course.now_s + step.duration_s(iterations))
        if finished and not stay and _relieved(drive):
            course.admitted = arrived - len(drive.scheduler.waiting)
            drive.leave()
            return False
    drive.leave()
    return True


def _receive(drive: Drive, arrived: int) -> int:
    """Take in who has arrived, waiting for the next if idle; return how many were taken in.

    Where nobody overtakes, no more need to queue than may enter at once.
    """
    arrival_s, course, waiting = drive.stream.arrival_s, drive.course, drive.scheduler.waiting
    if drive.scheduler.idle and arrived < len(drive.stream):
        course.now_s = max(course.now_s, arrival_s[arrived])
    seats = drive.scheduler.limits.max_num_seqs
    while arrival_s[arrived] <= course.now_s and (waiting.overtakes or len(waiting) < seats):
        drive.submit(arrived)
        arrived += 1
    return arrived


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
