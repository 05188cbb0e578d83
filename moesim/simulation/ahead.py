"""Running ahead: a replica that nothing outside can reach is simulated without waking for anyone.

Its arrivals are known and its queue is first come, first served, so its state shrinks to sums. All
decoding sequences advance by one token an iteration: the iteration in which each will finish is
known when it starts to decode, and a heap of those numbers replaces the list of sequences. Until
the next arrival or completion the batch does not change; decode attention is linear in the summed
context, so k iterations of n sequences last

    k * base + slope * n * k * (k - 1) / 2

Blocks need no counting as long as all that the running sequences could ever need fits the cache.
When it does not, the replica goes on under pressure (`moesim.simulation.pressure`), unless its
policy promises every sequence its blocks: then nobody enters until somebody finishes.

The rules are those of `moesim.serving.scheduling`: a property test demands the records of stepping
through every iteration with it.

Where somebody can reach the replica the same loop stops before every step that would end after a
horizon, and says when that would be (`moesim.simulation.worker`). A step that was not taken has
changed nothing, so whatever comes to light meanwhile is taken into account.
"""

from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Row
from heapq import heapify, heappop, heappush
from math import inf, sqrt

import numpy as np

from moesim.cost.iteration import Cost
from moesim.serving.iterations import Floats
from moesim.serving.kv_cache import KvCache
from moesim.serving.sequences import Sequence
from moesim.simulation.course import Course, Stream
from moesim.simulation.replica import Replica

SHIFT = 32
"""Bits of a heap's entry that are the request."""
MASK = (1 << SHIFT) - 1

ITERATIONS = 3
"""The first of the columns of `_runs` that count: iterations, decodes, tokens, context."""

ROW = 4
"""Numbers of a logged row."""

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
    # Locals, because this loop is what simulated requests per second are made of.
    arrival_s, prompt, output, need = stream.arrival_s, stream.prompt, stream.output, stream.blocks
    scheduled_s, first_token_s, finish_s = (
        stream.scheduled_s,
        stream.first_token_s,
        stream.finish_s,
    )
    total = stream.total
    by_sequences, by_tokens, by_emitting, lines, decoding, joined = cost.tables
    attention_s: dict[tuple[int, int], float] = {}  # by new and cached tokens
    whole_s: dict[int, float] = {}  # the same of whole prompts
    known_s = {cost: (attention_s, whole_s)}
    most_tokens, most_sequences = limits.max_batched_tokens, limits.max_num_seqs
    admits = most_sequences  # decodes from which nobody is admitted; -1 until somebody finishes
    blocks = replica.cache.num_blocks
    count = len(stream)

    now, peak = course.now_s, course.peak_running
    iteration = 0  # counted from the entry
    decodes = context = held = 0  # decoding sequences, their cached tokens, blocks promised
    admitted = arrived = course.admitted  # prompts computed, requests that have come
    done = 0  # tokens computed of the prompt that is next, in chunks
    heap: list[int] = []  # finishing iteration and request in one number, which compares faster
    for sequence in course.running:
        held += need[sequence.request_id]
        if sequence.generated:
            left = sequence.output_tokens - sequence.generated
            heap.append((left << SHIFT) + sequence.request_id)
            decodes += 1
            context += sequence.computed
        else:
            admitted, done = sequence.request_id, sequence.computed
    heapify(heap)
    finishing = heap[0] >> SHIFT if heap else 0  # the iteration at whose end the next one finishes
    most_decodes, most_singles, most_attended = decodes, 0, 0
    pressed = False
    chunked, promises = limits.policy.chunked, not limits.policy.preempts
    # start, iterations (0 idle, or minus the tokens of a mixed one), decodes, context
    rows: list[float] = []
    log, most = rows.extend if course.ran is None else _telling(rows, course.ran), course.most
    prices = [(0, cost)]  # by row: what iterations cost from there on
    pauses: dict[int, tuple[float, list[int]]] = {}  # by row: since when, and who was decoding
    arrival = arrival_s[arrived]
    tell, limit = course.done, _ahead_of(course.limit_s)
    pending = 0.0  # when the step that waits for a later horizon would end

    while True:
        if pending:
            course.now_s, course.idle = now, not decodes and admitted == arrived
            horizon_s = yield pending
            pending = 0.0
            if course.now_s > now:
                log((now, 0, 0, 0))
                if heap:
                    pauses.setdefault(len(rows) // ROW, (now, [entry & MASK for entry in heap]))
                now = course.now_s
            count = len(stream)
            arrival = arrival_s[arrived]
            limit = _ahead_of(course.limit_s)
            if course.cost is not cost and course.cost:
                cost = course.cost
                prices.append((len(rows) // ROW, cost))
                by_sequences, by_tokens, by_emitting, lines, decoding, joined = cost.tables
                attention_s, whole_s = known_s.setdefault(cost, ({}, {}))
        while arrival <= now:
            arrived += 1
            arrival = arrival_s[arrived]
        if admitted == arrived or decodes >= admits:
            if not decodes:
                if arrived == count and course.closed:
                    break
                if arrived == count or arrival > horizon_s:
                    pending = arrival
                    continue
                log((now, 0, 0, 0))
                now = arrival
                continue
            # Jump: nothing changes until a completion, or an arrival that could be admitted.
            jumped = finishing - iteration
            if most is not None:
                jumped = min(jumped, most(decodes))
            flat, slope = decoding[decodes]
            base = flat + slope * context
            half = slope * decodes / 2
            shifted = base - half
            end = now + jumped * (shifted + half * jumped)
            until = arrival if decodes < admits else inf
            if now < limit < until:
                until = limit
            if until < end:
                # `iterations_until`, written out
                until -= now
                if half:
                    jumped = int(
                        (sqrt(shifted * shifted + 4 * half * until) - shifted) / (half + half)
                    )
                else:
                    jumped = int(until / base)
                if jumped * (shifted + half * jumped) < until or not jumped:
                    jumped += 1
                elif jumped > 1 and (jumped - 1) * (shifted + half * (jumped - 1)) >= until:
                    jumped -= 1
                end = now + jumped * (shifted + half * jumped)
            if end > horizon_s:
                pending = end
                continue
            log((now, jumped, decodes, context))
            now = end
            iteration += jumped
            context += decodes * jumped
        elif (
            not done
            and arrived - admitted == 1
            and 1 < (new := prompt[admitted]) <= most_tokens - decodes
        ):
            # The commonest mixed iteration: every decode, and one whole prompt.
            if held + need[admitted] > blocks:
                if promises:
                    admits = -1
                    continue
                pressed = True
                break
            tokens = decodes + new
            flat, slope = joined[decodes]
            try:
                duration = whole_s[new]
            except KeyError:
                duration = whole_s[new] = cost.prefill_attention_s(new, 0)
            end = now + (duration + flat + by_tokens[tokens] + slope * context)
            if end > horizon_s:
                pending = end
                continue
            log((now, -tokens, decodes, context))
            held += need[admitted]
            scheduled_s[admitted] = now
            now = end
            iteration += 1
            context += tokens
            decodes += 1
            first_token_s[admitted] = now
            last = iteration + output[admitted] - 1
            heappush(heap, (last << SHIFT) + admitted)
            if last < finishing or decodes == 1:
                finishing = last
            admitted += 1
            if decodes > most_decodes:
                most_decodes = decodes
        else:
            # A mixed iteration: every decode, the prompt in chunks, then new prompts.
            request, chunk_done = admitted, done
            left = most_tokens - decodes
            promised = held
            sequences = singles = decodes
            attended = context + decodes
            duration = 0.0
            while left and request < arrived and sequences < most_sequences:
                if not chunk_done:
                    if not chunked and prompt[request] > left:
                        break
                    promised += need[request]
                    if promised > blocks:
                        pressed = not promises
                        promised -= need[request]
                        break
                    scheduled_s[request] = now
                sequences += 1
                new = prompt[request] - chunk_done
                if new > left:
                    new = left
                left -= new
                if new == 1:
                    singles += 1
                    attended += chunk_done + 1
                else:
                    chunk = new, chunk_done
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
            if now + duration > horizon_s:
                pending = now + duration
                continue
            log((now, -tokens, decodes, context + done))
            held = promised
            now += duration
            iteration += 1
            context += decodes
            decodes = emitting
            if sequences > peak:
                peak = sequences
            if emitting > most_decodes:
                most_decodes = emitting
            for begun in range(admitted, request):
                first_token_s[begun] = now
                context += prompt[begun]
                heappush(heap, ((iteration + output[begun] - 1) << SHIFT) + begun)
            admitted, done = request, chunk_done
            if heap:
                finishing = heap[0] >> SHIFT
        while finishing == iteration:
            request = heappop(heap) & MASK
            finish_s[request] = now
            if tell is not None:
                tell.append(request)
            decodes -= 1
            context -= total[request]
            held -= need[request]
            admits = most_sequences
            finishing = heap[0] >> SHIFT if heap else 0

    interrupted = pauses.pop(len(rows) // ROW, None)
    runs, duration_s = _runs(rows, now, prices)
    iterations, running, tokens_each, cached = runs[ITERATIONS:]
    cost = replica.cost
    cost.asked.include(
        tokens=int(tokens_each.max(initial=0.0)),
        sequences=max(peak, most_decodes),
        emitting=most_decodes,
        decodes=max(int(running.max(initial=0.0)), most_singles),
        context=max(int((cached + running * iterations).max(initial=0.0)), most_attended),
    )
    course.now_s, course.admitted = now, admitted + (done > 0)
    course.peak_running = max(peak, most_decodes)
    course.iterations += iteration
    course.batched_tokens += int((tokens_each * iterations).sum())
    course.busy_s += float(duration_s.sum())
    course.running = _sequences(stream, heap, iteration, admitted, done, replica.cache)
    since_s, passed_over = interrupted or (now, [])
    for sequence in course.running:
        sequence.last_token_s = since_s if sequence.request_id in passed_over else now
    course.runs.append(_taken_up(runs, rows, pauses, course))
    return not pressed


def _telling(
    rows: list[float], ran: Callable[[float, int, int], None]
) -> Callable[[tuple[float, float, float, float]], None]:
    """Return what logs a row and tells of its iterations."""

    def log(row: tuple[float, float, float, float]) -> None:
        rows.extend(row)
        steps = int(row[1])
        if steps:
            ran(row[0], *((int(row[2]), steps) if steps > 0 else (-steps, 1)))

    return log


def _ahead_of(limit_s: float) -> float:
    """Return a limit, one that is always past where there is none: that is asked fastest."""
    return -inf if limit_s == inf else limit_s


def _runs(rows: list[float], end_s: float, prices: Row[tuple[int, Cost]]) -> tuple[Floats, Floats]:
    """Spell the loop's rows out as the columns of `moesim.serving.iterations`, (7, R).

    A row lasts until the next begins; rows in which nothing ran are left out. `prices` say from
    which row on a cost held. Returns the rows' durations (R,) too.
    """
    start_s, steps, decodes, context = np.fromiter(rows, float, len(rows)).reshape(-1, ROW).T
    duration_s = np.diff(start_s, append=end_s)
    flat, slope = _lines(decodes, prices)
    mixed = steps < 0
    runs = np.empty((7, len(steps)))
    runs[0] = start_s
    runs[1] = np.where(mixed, duration_s, flat + slope * context)
    runs[2] = np.where(mixed, 0.0, slope * decodes)
    runs[3] = np.where(mixed, 1.0, steps)
    runs[4] = decodes
    runs[5] = np.where(mixed, -steps, decodes)
    runs[6] = context
    ran = steps != 0
    return (runs, duration_s) if ran.all() else (runs[:, ran], duration_s[ran])


def _lines(decodes: Floats, prices: Row[tuple[int, Cost]]) -> tuple[Floats, Floats]:
    """Return duration without context and slope over it, of decodes alone, row by row (R,) each."""
    begins = [row for row, _ in prices] + [len(decodes)]
    tables: dict[Cost, int] = {}
    place = [tables.setdefault(cost, len(tables)) for _, cost in prices]
    alone = np.stack([np.array(cost.tables.decoding) for cost in tables])  # [costs, n, 2]
    which = np.repeat(place, np.diff(begins))
    count = np.minimum(decodes, alone.shape[1] - 1).astype(np.intp)
    flat, slope = alone[which, count].T
    return flat, slope


def _taken_up(
    runs: Floats,
    rows: list[float],
    pauses: Mapping[int, tuple[float, list[int]]],
    course: Course,
) -> Floats:
    """Return the runs (7, R) with the first iteration after each pause apart.

    Its tokens end longer gaps, of everybody who was decoding: those go to `course.late`.
    """
    if not pauses:
        return runs
    idle = np.fromiter(rows[1::ROW], float) == 0
    places = np.array(sorted(pauses)) - np.cumsum(idle)[sorted(pauses)]
    for place, row in zip(places, sorted(pauses), strict=True):
        since_s, requests = pauses[row]
        until_s = float(runs[0, place] + runs[1, place])
        course.late.extend((request, since_s, until_s) for request in requests)
    first = runs[:, places].copy()
    first[3], first[4] = 1.0, 0.0
    # What is left of a run begins an iteration later, that much longer, with that much more.
    runs[0, places] += runs[1, places]
    runs[1, places] += runs[2, places]
    runs[6, places] += runs[4, places]
    runs[3, places] -= 1
    merged = np.insert(runs, places, first, axis=1)
    return np.asarray(merged[:, merged[3] > 0])


def _sequences(
    stream: Stream,
    heap: list[int],
    iteration: int,
    admitted: int,
    done: int,
    cache: KvCache,
) -> list[Sequence]:
    """Spell the sums out again as the scheduler's sequences, in order of admission."""
    running = []
    for entry in sorted(heap, key=MASK.__and__):
        sequence = stream.sequence(entry & MASK)
        sequence.generated = sequence.output_tokens - ((entry >> SHIFT) - iteration)
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
