"""Running ahead: a replica that nothing outside can reach is simulated without waking for anyone.

Its arrivals are known and its queue is first come, first served, so its state shrinks to sums. All
decoding sequences advance by one token an iteration: the iteration in which each will finish is
known when it starts to decode, and a heap of those numbers replaces the list of sequences. Until
the next arrival or completion the batch does not change; decode attention is linear in the summed
context, so k iterations of n sequences last

    k * base + slope * n * k * (k - 1) / 2

Blocks need no counting as long as all that the running sequences could ever need fits the cache.
When it does not, the replica goes on under pressure (`moesim.simulation.pressure`).

The rules are those of `moesim.serving.scheduling`: a property test demands the records of stepping
through every iteration with it.
"""

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from moesim.cost.iteration import Tables
from moesim.serving.kv_cache import KvCache
from moesim.serving.sequences import Sequence
from moesim.simulation.course import Course, Stream, iterations_until
from moesim.simulation.replica import Replica


def run_ahead(replica: Replica, stream: Stream, course: Course) -> bool:
    """Run until the stream is served (True), or blocks may run out (False).

    `course.running` are decoding sequences and at most one fresh prompt in chunks, the last.
    """
    limits, cache, cost = replica.limits, replica.cache, replica.cost
    # Locals, because this loop is what simulated requests per second are made of.
    arrival_s, prompt, output, need = stream.arrival_s, stream.prompt, stream.output, stream.blocks
    scheduled_s, first_token_s, finish_s = (
        stream.scheduled_s,
        stream.first_token_s,
        stream.finish_s,
    )
    by_sequences, by_tokens, by_emitting, decoding, lines = cost.tables
    prefill_s = cost.prefill_attention_s
    most_tokens, most_sequences = limits.max_batched_tokens, limits.max_num_seqs
    blocks = cache.num_blocks
    count = len(stream)

    now, batched, peak = course.now_s, 0, course.peak_running
    iteration = 0  # counted from the entry; heap entries are (finishing iteration, request)
    admitted = arrived = course.admitted
    decodes = context = held = 0  # decoding sequences, their cached tokens, blocks promised
    partial, partial_done = -1, 0  # the prompt in chunks, and its tokens computed
    heap: list[tuple[int, int]] = []
    for sequence in course.running:
        held += need[sequence.request_id]
        if sequence.generated:
            heap.append((sequence.output_tokens - sequence.generated, sequence.request_id))
            decodes += 1
            context += sequence.computed
        else:
            partial, partial_done = sequence.request_id, sequence.computed
    heapify(heap)
    busy_from, idle_s = now, 0.0
    largest_batch = largest_emitting = largest_decodes = largest_context = 0
    pressed = False
    # start, first duration, iterations (or minus the tokens of a mixed one), decodes, context
    rows: list[float] = []
    log = rows.extend

    while True:
        while arrival_s[arrived] <= now:
            arrived += 1
        if partial < 0 and (admitted == arrived or decodes >= most_sequences):
            if not decodes:
                if arrived == count:
                    break
                idle_s += arrival_s[arrived] - now
                now = arrival_s[arrived]
                continue
            # Jump: nothing changes until a completion, or an arrival that could be admitted.
            jumped = heap[0][0] - iteration
            intercept, slope = lines[decodes]
            base = decoding[decodes] + intercept + slope * (context + decodes)
            growth = slope * decodes
            end = now + jumped * (base + growth * (jumped - 1) / 2)
            if arrival_s[arrived] < end and decodes < most_sequences:
                jumped = iterations_until(arrival_s[arrived] - now, base, growth, jumped)
                end = now + jumped * (base + growth * (jumped - 1) / 2)
            log((now, base, jumped, decodes, context))
            now = end
            iteration += jumped
            context += decodes * jumped
            batched += decodes * jumped
            if context > largest_context:
                largest_context = context
            if decodes > largest_decodes:
                largest_decodes = decodes
        else:
            # One mixed iteration: every decode, the prompt in chunks, then new prompts.
            first_admitted, first_partial = admitted, (partial, partial_done)
            left = most_tokens - decodes
            sequences, emitting, singles = decodes, decodes, decodes
            attended = context + decodes
            duration = 0.0
            begun: list[int] = []
            while left:
                if partial >= 0:
                    request, done = partial, partial_done
                elif admitted < arrived and sequences < most_sequences:
                    request, done = admitted, 0
                    held += need[request]
                    if held > blocks:
                        pressed = True
                        break
                    scheduled_s[request] = now
                    admitted += 1
                else:
                    break
                new = prompt[request] - done
                if new > left:
                    new = left
                left -= new
                sequences += 1
                if new == 1:
                    singles += 1
                    attended += done + 1
                else:
                    duration += prefill_s(new, done)
                if done + new == prompt[request]:
                    emitting += 1
                    begun.append(request)
                    partial, partial_done = -1, 0
                else:
                    partial, partial_done = request, done + new
            if pressed:
                admitted, (partial, partial_done) = first_admitted, first_partial
                break
            tokens = most_tokens - left
            intercept, slope = lines[singles]
            duration += intercept + slope * attended
            if tokens == sequences == emitting:
                duration += decoding[sequences]
            else:
                duration += by_sequences[sequences] + by_tokens[tokens] + by_emitting[emitting]
            log((now, duration, -tokens, decodes, context + first_partial[1]))
            now += duration
            iteration += 1
            context += decodes
            batched += tokens
            if tokens > largest_batch:
                largest_batch = tokens
            if singles:
                if attended > largest_context:
                    largest_context = attended
                if singles > largest_decodes:
                    largest_decodes = singles
            if emitting > largest_emitting:
                largest_emitting = emitting
            if sequences > peak:
                peak = sequences
            for request in begun:
                first_token_s[request] = now
                decodes += 1
                context += prompt[request]
                heappush(heap, (iteration + output[request] - 1, request))
        while heap and heap[0][0] == iteration:
            request = heappop(heap)[1]
            finish_s[request] = now
            decodes -= 1
            context -= prompt[request] + output[request] - 1
            held -= need[request]

    course.now_s, course.admitted, course.peak_running = now, admitted, peak
    course.iterations += iteration
    course.batched_tokens += batched
    course.busy_s += now - busy_from - idle_s
    cost.asked.include(
        tokens=max(largest_batch, largest_decodes),
        sequences=peak,
        emitting=max(largest_emitting, largest_decodes),
        decodes=largest_decodes,
        context=largest_context,
    )
    course.running = _sequences(stream, heap, iteration, partial, partial_done, cache)
    for sequence in course.running:
        sequence.last_token_s = now
    course.runs.append(_runs(rows, cost.tables))
    return not pressed


def _runs(rows: list[float], tables: Tables) -> NDArray[np.float64]:
    """Spell the rows of the loop out as those of `moesim.serving.iterations`, (R, 7)."""
    start_s, first_s, steps, decodes, context = np.fromiter(rows, float, len(rows)).reshape(-1, 5).T
    mixed = steps < 0
    slopes = np.array([slope for _, slope in tables.lines])
    growth_s = np.where(mixed, 0.0, slopes[decodes.astype(int)] * decodes)
    tokens = np.where(mixed, -steps, decodes)
    iterations = np.where(mixed, 1, steps)
    return np.stack([start_s, first_s, growth_s, iterations, decodes, tokens, context], axis=1)


def _sequences(
    stream: Stream,
    heap: list[tuple[int, int]],
    iteration: int,
    partial: int,
    partial_done: int,
    cache: KvCache,
) -> list[Sequence]:
    """Spell the sums out again as the scheduler's sequences, in order of admission."""
    running = []
    for finishing, request in sorted(heap, key=lambda entry: entry[1]):
        sequence = stream.sequence(request)
        sequence.generated = sequence.output_tokens - (finishing - iteration)
        sequence.computed = sequence.prompt_tokens + sequence.generated - 1
        sequence.preemptions = stream.preemptions.get(request, 0)
        running.append(sequence)
    if partial >= 0:
        sequence = stream.sequence(partial)
        sequence.computed = partial_done
        running.append(sequence)
    cache.free_blocks = cache.num_blocks
    for sequence in running:
        sequence.blocks = cache.blocks_for(sequence.computed)
        cache.free_blocks -= sequence.blocks
    return running
