"""What `moesim-engine serve` does: check what was asked for, load, serve, write the records."""

import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from math import isfinite
from pathlib import Path

from engine.serve.lead import Leader, led
from engine.server import process
from engine.server.gateway import gateway_model
from engine.server.hosting import Hosting, records_of, service_of
from engine.server.service import Bounds, Service
from engine.variants.hosting import Together, service_together
from engine.variants.ledger import variants_frame
from moesim.errors import EngineError, MoesimWarning
from moesim.serving.records import records_frame, write_records
from moesim.units import MIB

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]*")
TABLES = (".parquet", ".csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the command line says."""

    models: list[str]
    hosting: Hosting
    bounds: Bounds
    host: str
    port: int
    api_key: str
    drain_s: float
    records: Path | None
    overwrite: bool = False
    gateway: Path | None = None
    experts_of: str = ""
    together: Together | None = None


def serve(setting: Setting) -> None:
    """Serve until a signal comes; EngineError for what can be seen to be wrong before."""
    checkpoints = _checkpoints(setting)
    gateway = gateway_model(setting.gateway, setting.experts_of, checkpoints)
    if setting.records:
        _check_place(setting.records, overwrite=setting.overwrite)
    if not setting.api_key and not _is_loopback(setting.host):
        warnings.warn(
            f"--host {setting.host} without an API key: whoever reaches this address may use it",
            MoesimWarning,
            stacklevel=1,
        )
    ranks = setting.hosting.tensor_parallel
    if ranks > 1 and len(checkpoints) > 1:
        raise EngineError(
            f"--tensor-parallel {ranks}: shares one model, not {len(checkpoints)}; "
            "serve each by a command of its own"
        )
    taken = process.bound_socket(setting.host, setting.port)
    with taken, led(ranks, next(iter(checkpoints.values()))) as leader:
        service = _service(setting, checkpoints, leader)
        service.gateway = gateway
        process.run(service, taken, setting.drain_s)
    if setting.records:
        frame = variants_frame if setting.together else records_frame
        write_records(frame(records_of(service)), setting.records)


def _checkpoints(setting: Setting) -> Mapping[str, Path]:
    """Return all folders by name; EngineError unless they are models or variants of one."""
    if bool(setting.models) == bool(setting.together):
        raise EngineError("--model or --variants: give the one or the other")
    return setting.together.folders if setting.together else named(setting.models)


def _service(setting: Setting, checkpoints: Mapping[str, Path], leader: Leader | None) -> Service:
    """Load what is to be served."""
    load = partial(service_of, checkpoints, leader=leader)
    if setting.together:
        load = partial(service_together, setting.together)
    return load(
        hosting=setting.hosting,
        bounds=setting.bounds,
        api_key=setting.api_key,
        keep_records=setting.records is not None,
    )


def _check_place(records: Path, *, overwrite: bool) -> None:
    """Raise EngineError where a table cannot be written; hours later it would be too late."""
    if records.suffix not in TABLES:
        raise EngineError(f"--records {records}: give a name ending in .parquet or .csv")
    if records.is_dir():
        raise EngineError(f"--records {records}: is a folder; give a file name")
    if records.exists() and not overwrite:
        raise EngineError(
            f"--records {records}: exists already; remove it, choose another or add --overwrite"
        )
    try:
        records.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=records.parent).close()
    except OSError as wrong:
        raise EngineError(
            f"--records {records}: cannot be written ({wrong.strerror}); choose another place"
        ) from None


def body_bytes(mib: float) -> int:
    """Return the largest body of a request; EngineError where the limit is no finite number."""
    if not isfinite(mib):
        raise EngineError(f"--max-body-mib {mib:g}: give a number, say 4")
    return int(mib * MIB)


def named(models: list[str], option: str = "--model") -> dict[str, Path]:
    """Return checkpoint folders by model name.

    >>> named(["a=models/first", "b=second"])
    {'a': PosixPath('models/first'), 'b': PosixPath('second')}
    """
    checkpoints: dict[str, Path] = {}
    for text in models:
        name, _, folder = text.partition("=")
        if not folder or not NAME.fullmatch(name):
            raise EngineError(f"{option} {text}: is not NAME=FOLDER, as in tiny=checkpoint/")
        if name in checkpoints:
            raise EngineError(f"{option} {text}: the name {name!r} is given twice")
        checkpoints[name] = Path(folder)
    return checkpoints


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
