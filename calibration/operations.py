"""Measure one iteration: put sequences in place, run the engine once, read the laps.

A lap would have to stop a graph half-way, so that replayed iterations are timed whole: the second
of two, as in service most iterations find their blocks given and finish nobody.
"""

from contextlib import nullcontext

import numpy as np

from calibration.grid import Point
from calibration.timing import stopwatch_for
from engine.model.routing import forced_routing
from engine.serve.engine import Engine
from moesim.cost.profile import COORDINATES, PER_LAYER, REPLAY
from moesim.serving.records import Record
from moesim.serving.sequences import Sequence


def place(engine: Engine, point: Point, rng: np.random.Generator) -> None:
    """Put a batch's sequences into a running engine as if their contexts had been computed.

    Their cached keys and values are whatever the cache holds; durations do not depend on them.
    Those that are to be replayed are an iteration earlier, and have one more to go.
    """
    vocabulary = engine.runner.decoder.spec.vocab_size
    before, outputs = (1, 3) if point.replayed else (0, 1)
    for number, part in enumerate(point.parts):
        context = part.context - before
        prompt = context + part.new_tokens
        sequence = Sequence(number, prompt, output_tokens=outputs, computed=context)
        engine.ledger.open(Record(request_id=number, prompt_tokens=prompt, output_tokens=outputs))
        engine.runner.add(number, rng.integers(vocabulary, size=prompt).tolist())
        engine.scheduler.running.append(sequence)


def measure(engine: Engine, point: Point, rng: np.random.Generator) -> dict[str, float]:
    """Run one batch through the engine's own step; return its operations' durations [s].

    Operations inside layers are given for one layer, `iteration` is the whole.
    """
    place(engine, point, rng)
    durations = replayed(engine) if point.replayed else by_operation(engine, point.distinct)
    for number in range(len(point.parts)):
        engine.cancel(number)
        engine.ledger.records.pop(number, None)
        engine.outputs.pop(number, None)
    return durations


def replayed(engine: Engine) -> dict[str, float]:
    """Run what is in place twice as it is served, as a graph; return what the second took [s]."""
    engine.step()
    stopwatch = stopwatch_for(engine.runner.decoder.device)
    stopwatch.start()
    engine.step()
    stopwatch.lap("host")
    whole_s = sum(stopwatch.stop().values())
    return {REPLAY: whole_s, "iteration": whole_s}


def by_operation(engine: Engine, distinct: int | None) -> dict[str, float]:
    """Run what is in place lap by lap, `distinct` experts hit in each layer; return laps [s]."""
    decoder = engine.runner.decoder
    forced = nullcontext() if distinct is None else forced_routing(decoder, distinct)
    stopwatch = stopwatch_for(decoder.device)
    with forced:
        stopwatch.start()
        engine.step(stopwatch.lap)
        sums = stopwatch.stop()
    layers = decoder.spec.num_hidden_layers
    durations = {
        name: seconds / (layers if name in PER_LAYER else 1) for name, seconds in sums.items()
    }
    return {**durations, "iteration": sum(sums.values())}


def cells_of(point: Point) -> dict[str, tuple[float, ...]]:
    """Return the coordinates at which a measured batch is a cell of each operation's table."""
    decodes = [part for part in point.parts if part.new_tokens == 1]
    chunks = [part for part in point.parts if part.new_tokens > 1]
    context = float(sum(part.context + 1 for part in decodes))
    if point.replayed:
        return {REPLAY: (float(len(decodes)), context)}
    at: dict[str, tuple[float, ...]] = {
        name: (float(point.tokens),) for name in ("embedding", "projections", "router")
    }
    if point.distinct is not None:
        at["experts"] = (float(point.tokens), float(point.distinct))
    at |= {name: (float(len(point.parts)),) for name in ("head", "sampling", "host")}
    if decodes:
        at["attention_decode"] = (float(len(decodes)), context)
    if len(chunks) == 1:
        at["attention_prefill"] = (float(chunks[0].new_tokens), float(chunks[0].context))
    return {name: at[name] for name in COORDINATES if name in at}
