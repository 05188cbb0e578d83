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
"""

from heapq import heapify, heappop, heappush
from math import sqrt

import numpy as np

from moesim.cost.iteration import Tables
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


def run_ahead(replica: Replica, stream: Stream, course: Course) -> bool:
    """Run until the stream is served (True), or blocks may run out (False).

    `course.running` are decoding sequences and at most one fresh prompt in chunks, the last.
    """
    limits, cost = replica.limits, replica.cost
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
    most_tokens, most_sequences = limits.max_batched_tokens, limits.max_num_seqs
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
    pressed = blocked = False
    chunked, promises = limits.policy.chunked, not limits.policy.preempts
    # start, iterations (0 idle, or minus the tokens of a mixed one), decodes, context
    rows: list[float] = []
    log = rows.extend
    arrival = arrival_s[arrived]

    while True:
        while arrival <= now:
            arrived += 1
            arrival = arrival_s[arrived]
        if admitted == arrived or decodes >= most_sequences or blocked:
            if not decodes:
                if arrived == count:
                    break
                log((now, 0, 0, 0))
                now = arrival
                continue
            # Jump: nothing changes until a completion, or an arrival that could be admitted.
            jumped = finishing - iteration
            flat, slope = decoding[decodes]
            base = flat + slope * context
            half = slope * decodes / 2
            shifted = base - half
            end = now + jumped * (shifted + half * jumped)
            if arrival < end and decodes < most_sequences and not blocked:
                # `iterations_until`, written out
                until = arrival - now
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
            held += need[admitted]
            if held > blocks:
                if promises:
                    held -= need[admitted]
                    blocked = True
                    continue
                pressed = True
                break
            tokens = decodes + new
            flat, slope = joined[decodes]
            log((now, -tokens, decodes, context))
            try:
                duration = whole_s[new]
            except KeyError:
                duration = whole_s[new] = cost.prefill_attention_s(new, 0)
            scheduled_s[admitted] = now
            now += duration + flat + by_tokens[tokens] + slope * context
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
            sequences = singles = decodes
            attended = context + decodes
            duration = 0.0
            while left and request < arrived and sequences < most_sequences:
                if not chunk_done:
                    if not chunked and prompt[request] > left:
                        break
                    held += need[request]
                    if held > blocks:
                        pressed = not promises
                        held -= need[request]
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
                blocked = True  # until somebody finishes
                continue
            tokens = most_tokens - left
            log((now, -tokens, decodes, context + done))
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
            decodes -= 1
            context -= total[request]
            held -= need[request]
            blocked = False
            finishing = heap[0] >> SHIFT if heap else 0

    runs, duration_s = _runs(rows, now, cost.tables)
    iterations, running, tokens_each, cached = runs[ITERATIONS:]
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
    for sequence in course.running:
        sequence.last_token_s = now
    course.runs.append(runs)
    return not pressed


def _runs(rows: list[float], end_s: float, tables: Tables) -> tuple[Floats, Floats]:
    """Spell the loop's rows out as the columns of `moesim.serving.iterations`, (7, R).

    A row lasts until the next begins; rows in which nothing ran are left out. Returns the rows'
    durations (R,) too.
    """
    start_s, steps, decodes, context = np.fromiter(rows, float, len(rows)).reshape(-1, 4).T
    duration_s = np.diff(start_s, append=end_s)
    idle = steps == 0
    if idle.any():
        ran = ~idle
        start_s, steps, duration_s = start_s[ran], steps[ran], duration_s[ran]
        decodes, context = decodes[ran], context[ran]
    mixed = steps < 0
    alone = np.array(tables.decoding)
    flat, slope = alone[np.minimum(decodes, len(alone) - 1).astype(np.intp)].T
    runs = np.empty((7, len(steps)))
    runs[0] = start_s
    runs[1] = np.where(mixed, duration_s, flat + slope * context)
    runs[2] = np.where(mixed, 0.0, slope * decodes)
    runs[3] = np.where(mixed, 1.0, steps)
    runs[4] = decodes
    runs[5] = np.where(mixed, -steps, decodes)
    runs[6] = context
    return runs, duration_s


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
