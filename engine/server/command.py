"""What `moesim-engine serve` does: check what was asked for, load, serve, write the records."""

import re
import warnings
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from engine.server import process
from engine.server.hosting import Hosting, records_of, service_of
from engine.server.service import Bounds
from moesim.errors import EngineError, MoesimWarning
from moesim.serving.records import records_frame, write_records

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


def serve(setting: Setting) -> None:
    """Serve until a signal comes; EngineError for what can be seen to be wrong before."""
    checkpoints = named(setting.models)
    if setting.records and setting.records.suffix not in TABLES:
        raise EngineError(f"--records {setting.records}: give a name ending in .parquet or .csv")
    if not setting.api_key and not _is_loopback(setting.host):
        warnings.warn(
            f"--host {setting.host} without an API key: whoever reaches this address may use it",
            MoesimWarning,
            stacklevel=1,
        )
    with process.bound_socket(setting.host, setting.port) as taken:
        service = service_of(
            checkpoints,
            setting.hosting,
            bounds=setting.bounds,
            api_key=setting.api_key,
            keep_records=setting.records is not None,
        )
        process.run(service, taken, setting.drain_s)
    if setting.records:
        write_records(records_frame(records_of(service)), setting.records)


def named(models: list[str]) -> dict[str, Path]:
    """Return checkpoint folders by model name.

    >>> named(["a=models/first", "b=second"])
    {'a': PosixPath('models/first'), 'b': PosixPath('second')}
    """
    checkpoints: dict[str, Path] = {}
    for text in models:
        name, _, folder = text.partition("=")
        if not folder or not NAME.fullmatch(name):
            raise EngineError(f"--model {text}: is not NAME=FOLDER, as in tiny=checkpoint/")
        if name in checkpoints:
            raise EngineError(f"--model {text}: the name {name!r} is given twice")
        checkpoints[name] = Path(folder)
    return checkpoints


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
