"""Running ahead: a replica that nothing outside can reach is simulated without waking for anyone.

Its arrivals are known and its queue is first come, first served, so its state shrinks to sums. All
decoding sequences advance by one token an iteration: the iteration in which each will finish is
known when it starts to decode, and those numbers, in order, replace the list of sequences. Until
the next arrival or completion the batch does not change; decode attention is linear in the summed
context, so k iterations of n sequences last

    k * base + slope * n * k * (k - 1) / 2

Blocks need no counting as long as all that the running sequences could ever need fits the cache.
When it does not, the replica goes on under pressure (`moesim.simulation.pressure`), unless its
policy promises every sequence its blocks: then nobody enters until somebody finishes.

The loop stamps requests and logs nothing: the log is written afterwards, from the stamps
(`moesim.simulation.logbook`). The rules are those of `moesim.serving.scheduling`: a property test
demands the records of stepping through every iteration with it.

Where somebody can reach the replica the same loop stops before every step that would end after a
horizon, and says when that would be (`moesim.simulation.worker`). A step that was not taken has
changed nothing, so whatever comes to light meanwhile is taken into account.
"""

from bisect import bisect
from collections.abc import Generator, Mapping
from math import inf, sqrt

from moesim.serving.kv_cache import KvCache
from moesim.serving.sequences import Sequence
from moesim.simulation.course import Course, Stream, iterations_until
from moesim.simulation.logbook import Notes, Piece, taken_up, written
from moesim.simulation.replica import Replica

WHOLE = 2.0**52
"""Added to a number and taken off again it leaves the nearest whole one: beyond it doubles have no
fractions, and adding rounds to the nearest (IEEE 754)."""

Steps = Generator[float, float, bool]
"""Yields when the next step would end, is sent until when steps may be taken."""


def run_ahead(replica: Replica, stream: Stream, course: Course, *, horizon_s: float = inf) -> Steps:
    """Run until the stream is served (True), or blocks may run out (False).

    `course.running` are decoding sequences and at most one fresh prompt in chunks, the last. Steps
    that end after `horizon_s` are not taken: the loop yields when the next would end, and is sent
    another horizon. Meanwhile requests may arrive, `course.cost` may change, `course.limit_s` may
    cut a run of decodes, and `course.now_s` may have moved on while others had the device.
    """
    limits, cost = replica.limits, course.cost or replica.cost
    # Locals, because this loop is what simulated requests per second are made of, and floats where
    # they meet floats: arithmetic of one kind is several times as fast.
    arrival_s, prompt, output, need = stream.arrival_s, stream.prompt, stream.output, stream.blocks
    scheduled_s, first_token_s, finish_s = (
        stream.scheduled_s,
        stream.first_token_s,
        stream.finish_s,
    )
    total = stream.total
    by_sequences, by_tokens, by_emitting, lines, decoding, joined = cost.tables
    attention_s: dict[int, float] = {}  # by the new tokens, and the cached ones `apart` of them
    sums: dict[int, tuple[float, float, float, float]] = {}  # of decodes alone, by their number
    known = {cost: (attention_s, sums)}
    most_tokens, most_sequences = limits.max_batched_tokens, limits.max_num_seqs
    apart = most_tokens + 1
    admits = most_sequences  # decodes from which nobody is admitted; -1 until somebody finishes
    chunked, promises = limits.policy.chunked, not limits.policy.preempts

    now = course.now_s
    iteration = 0.0  # counted from the entry
    admitted = arrived = course.admitted  # prompts computed, requests that have come
    done = 0  # tokens computed of the prompt that is next, in chunks
    room = replica.cache.num_blocks  # blocks that nobody is promised
    decodes, context = 0, 0.0  # decoding sequences, their cached tokens
    ends: list[float] = []  # iterations at whose end they finish, in order, and who does
    who: list[int] = []
    before: dict[int, float] = {}
    for sequence in course.running:
        request = sequence.request_id
        room -= need[request]
        if sequence.generated:
            before[request] = -float(sequence.generated)
            last = float(sequence.output_tokens - sequence.generated)
            place = bisect(ends, last)
            ends.insert(place, last)
            who.insert(place, request)
            decodes += 1
            context += sequence.computed
        else:
            admitted, done = request, sequence.computed
    finishing, newest = (ends[0], ends[-1]) if ends else (-1.0, -1.0)
    notes = Notes(admitted, now, [(0.0, cost)], before)
    entered = notes.entered
    most_seated, most_singles, most_attended = decodes, 0, 0.0
    pressed = False
    due = arrival_s[arrived]  # when somebody arrives
    # Blocks are counted only if they could run out.
    tight = not course.closed or most_sequences * stream.most_blocks > replica.cache.num_blocks
    tell, ran, most, limit = course.done, course.ran, course.most, course.limit_s
    # Steps that end by then are taken without another look: all, where nobody is near.
    watched = ran is not None or most is not None
    guard = -inf if watched or limit < inf else horizon_s
    pending = 0.0  # when the step that waits for a later horizon would end

    while True:
        while True:  # a pass a step, until one would end after the horizon
            while due <= now:
                arrived += 1
                due = arrival_s[arrived]
            if admitted == arrived or decodes >= admits:
                if not decodes:
                    if due > horizon_s or due == inf:
                        pending = 0.0 if due == inf and course.closed else due
                        break
                    now = due
                    continue
                # Jump: nothing changes until a completion, or an arrival that could be admitted.
                try:
                    flat, slope, half, width = sums[decodes]
                except KeyError:
                    flat, slope, half, width = sums[decodes] = _sum_of(decodes, decoding[decodes])
                shifted = flat + slope * context
                steps = finishing - iteration
                end = now + steps * (shifted + half * steps)
                if due < end and decodes < admits:
                    # The first boundary from there on: the nearest to the root, or the next. Never
                    # beyond the completion, whose `passed` is what `end` was compared with.
                    left_s = due - now
                    steps = (
                        (left_s + left_s)
                        / (shifted + sqrt(shifted * shifted + 4.0 * half * left_s))
                        + WHOLE
                        - WHOLE
                    )
                    passed = steps * (shifted + half * steps)
                    if passed < left_s:
                        steps += 1.0
                        passed = steps * (shifted + half * steps)
                    end = now + passed
                if end > guard:
                    if most is not None:
                        steps = min(steps, float(most(decodes)))
                    if now < limit < inf:
                        first_s = shifted + half
                        steps = float(iterations_until(limit - now, first_s, 2 * half, int(steps)))
                    end = now + steps * (shifted + half * steps)
                    if end > horizon_s:
                        pending = end
                        break
                    if ran is not None:
                        ran(now, decodes, int(steps))
                now = end
                iteration += steps
                context += width * steps
            elif (
                not done
                and arrived - admitted == 1
                and (tokens := decodes + (new := prompt[admitted])) <= most_tokens
                and new > 1
            ):
                # The commonest mixed iteration: every decode, and one whole prompt.
                if tight and need[admitted] > room:
                    if promises:
                        admits = -1
                        continue
                    pressed = True
                    break
                flat, slope = joined[decodes]
                try:
                    duration = attention_s[new]
                except KeyError:
                    duration = attention_s[new] = cost.prefill_attention_s(new, 0)
                end = now + (duration + flat + by_tokens[tokens] + slope * context)
                if end > guard:
                    if end > horizon_s:
                        pending = end
                        break
                    if ran is not None:
                        ran(now, tokens, 1)
                if tight:
                    room -= need[admitted]
                scheduled_s[admitted] = now
                first_token_s[admitted] = now = end
                entered.append(iteration)
                last = iteration + output[admitted]
                if last >= newest or not decodes:
                    newest = last
                    ends.append(last)
                    who.append(admitted)
                else:
                    place = bisect(ends, last)
                    ends.insert(place, last)
                    who.insert(place, admitted)
                iteration += 1.0
                context += tokens
                decodes += 1
                finishing = ends[0]
                admitted += 1
            else:
                # A mixed iteration: every decode, the prompt in chunks, then new prompts.
                request, chunk_done = admitted, done
                left = most_tokens - decodes
                unpromised = room
                duration = 0.0
                if not done:
                    # As many whole prompts as there is room for, without ado.
                    seats = min(arrived, admitted + most_sequences - decodes)
                    while (
                        request < seats
                        and 1 < (new := prompt[request]) <= left
                        and not (tight and need[request] > unpromised)
                    ):
                        left -= new
                        if tight:
                            unpromised -= need[request]
                        scheduled_s[request] = now
                        if new not in attention_s:
                            attention_s[new] = cost.prefill_attention_s(new, 0)
                        duration += attention_s[new]
                        request += 1
                sequences = decodes + request - admitted
                singles = decodes
                attended = context + decodes
                while left and request < arrived and sequences < most_sequences:
                    new = prompt[request] - chunk_done
                    if not chunk_done:
                        if tight and need[request] > unpromised:
                            pressed = not promises
                            break
                        if new > left and not chunked:
                            break
                        unpromised -= need[request]
                        scheduled_s[request] = now
                    sequences += 1
                    if new > left:
                        new = left
                    left -= new
                    if new == 1:
                        singles += 1
                        attended += chunk_done + 1
                    else:
                        chunk = new + chunk_done * apart
                        if chunk not in attention_s:
                            attention_s[chunk] = cost.prefill_attention_s(new, chunk_done)
                        duration += attention_s[chunk]
                    chunk_done += new
                    if chunk_done == prompt[request]:
                        request += 1
                        chunk_done = 0
                if pressed:
                    break
                if sequences == decodes:
                    admits = -1
                    continue
                tokens = most_tokens - left
                if singles > decodes:
                    most_singles = max(most_singles, singles)
                    most_attended = max(most_attended, attended)
                emitting = decodes + request - admitted
                if tokens == sequences == emitting:
                    flat, slope = decoding[sequences]
                    duration += flat + slope * (attended - sequences)
                else:
                    intercept, slope = lines[singles]
                    duration += (
                        by_sequences[sequences]
                        + by_tokens[tokens]
                        + by_emitting[emitting]
                        + intercept
                        + slope * attended
                    )
                end = now + duration
                if end > guard:
                    if end > horizon_s:
                        pending = end
                        break
                    if ran is not None:
                        ran(now, tokens, 1)
                if done or chunk_done:
                    notes.pieces.append(Piece(iteration, now, end, tokens, done))
                    most_seated = max(most_seated, sequences)
                room = unpromised
                now = end
                context += decodes
                decodes = emitting
                for begun in range(admitted, request):
                    first_token_s[begun] = now
                    context += prompt[begun]
                    entered.append(iteration)
                    last = iteration + output[begun]
                    place = bisect(ends, last)
                    ends.insert(place, last)
                    who.insert(place, begun)
                if decodes:
                    finishing, newest = ends[0], ends[-1]
                iteration += 1.0
                admitted, done = request, chunk_done
            while finishing == iteration:
                del ends[0]
                finishing = ends[0] if ends else -1.0
                request = who.pop(0)
                finish_s[request] = now
                if tell is not None:
                    tell.append(request)
                decodes -= 1
                context -= total[request]
                if tight:
                    room += need[request]
                admits = most_sequences
        if not pending:
            break
        course.now_s, course.idle = now, not decodes and admitted == arrived
        horizon_s = yield pending
        pending = 0.0
        if course.now_s > now:
            notes.pause(iteration, now, course.now_s, who)
            now = course.now_s
        due, limit = arrival_s[arrived], course.limit_s
        guard = -inf if watched or limit < inf else horizon_s
        if course.cost is not cost and course.cost:
            cost = course.cost
            notes.reprice(iteration, now, cost)
            by_sequences, by_tokens, by_emitting, lines, decoding, joined = cost.tables
            attention_s, sums = known.setdefault(cost, ({}, {}))

    stream.settled = not pressed
    interrupted = notes.pauses.pop(iteration, None)
    runs, entering = written(notes, stream, iteration)
    first_s, growth_s, steps, running, tokens_each, cached = runs[1:]
    most_seated = max(most_seated, int((running + entering).max(initial=0.0)))
    replica.cost.asked.include(
        tokens=int(tokens_each.max(initial=0.0)),
        sequences=most_seated,
        emitting=int((running + entering).max(initial=0.0)),
        decodes=max(int(running.max(initial=0.0)), most_singles),
        context=max(int((cached + running * steps).max(initial=0.0)), int(most_attended)),
    )
    course.now_s, course.admitted = now, admitted + (done > 0)
    course.peak_running = max(course.peak_running, most_seated)
    course.iterations += int(iteration)
    course.batched_tokens += int((tokens_each * steps).sum())
    course.busy_s += float((steps * (first_s + growth_s * (steps - 1) / 2)).sum())
    course.running = _sequences(
        stream, dict(zip(who, ends, strict=True)), iteration, admitted, done, replica.cache
    )
    since_s, passed_over = interrupted or (now, [])
    for sequence in course.running:
        sequence.last_token_s = since_s if sequence.request_id in passed_over else now
    course.runs.append(taken_up(runs, notes.pauses, course.late))
    return not pressed


def _sum_of(decodes: int, line: tuple[float, float]) -> tuple[float, float, float, float]:
    """Return a, b, c and the decodes as a float: k iterations last k (a + b context + c k)."""
    flat, slope = line
    half = slope * decodes / 2
    return flat - half, slope, half, float(decodes)


def _sequences(
    stream: Stream,
    ends: Mapping[int, float],
    iteration: float,
    admitted: int,
    done: int,
    cache: KvCache,
) -> list[Sequence]:
    """Spell the sums out again as the scheduler's sequences, in order of admission."""
    running = []
    for request in sorted(ends):
        sequence = stream.sequence(request)
        sequence.generated = sequence.output_tokens - int(ends[request] - iteration)
        sequence.computed = sequence.prompt_tokens + sequence.generated - 1
        sequence.preemptions = stream.preemptions.get(sequence.request_id, 0)
        running.append(sequence)
    if done:
        sequence = stream.sequence(admitted)
        sequence.computed = done
        sequence.preemptions = stream.preemptions.get(admitted, 0)
        running.append(sequence)
    cache.free_blocks = cache.num_blocks
    for sequence in running:
        sequence.blocks = cache.blocks_for(sequence.computed)
        cache.free_blocks -= sequence.blocks
    return running
