"""Step `profile`: a full calibration of the model, in its own format or a narrower one."""

from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.released import release
from benchmarks.gpu_queue.tables import shown, write_tables
from calibration.calibrate import Settings, calibrate
from calibration.transfers import Asked as Transfers
from calibration.transfers_shown import transfer_lines
from moesim.commands import progress_bar
from moesim.cost.profile import Profile
from moesim.facts.precision import Precision


def run(begun: Begun) -> bool:
    """Calibrate, write the profile, and print its own verdict; False if it is not stable."""
    asked = begun.asked
    with progress_bar() as progress:
        made = calibrate(settings_of(asked), asked.profile, begun.host, progress)
    release()
    row = row_of(made)
    write_tables(begun, {"verdict": [row]}, warnings=made.verdict.warnings)
    for line in (*transfer_lines(made.transfers), *made.verdict.warnings):
        print(line)
    print(shown([row]))
    return made.verdict.stable


def settings_of(asked: Asked) -> Settings:
    """Return what is profiled; copies are timed in the model's own format alone."""
    size = asked.size
    return Settings(
        model=asked.model,
        budget_s=asked.measuring("profile"),
        max_num_seqs=size.max_num_seqs,
        max_batched_tokens=size.max_batched_tokens,
        num_blocks=size.num_blocks,
        device=asked.device,
        transfers=None if asked.precision else Transfers(),
        precision=Precision.uniform(asked.precision) if asked.precision else None,
    )


def row_of(made: Profile) -> dict[str, object]:
    """Return the verdict of a profile in a line."""
    verdict = made.verdict
    return {
        "model": made.provenance.model_source,
        "stable": verdict.stable,
        "unstable": verdict.unstable_cells,
        "points": verdict.cells,
        "drift": verdict.drift,
        "error_p50": verdict.iteration_error_p50,
        "error_p90": verdict.iteration_error_p90,
        "kv_blocks": made.kv.num_blocks,
        "graphs": len(made.decode_graphs),
        "seconds": made.provenance.duration_s,
    }
