"""The server as a process: its socket, its signals, its end.

The first SIGTERM or SIGINT drains: new requests get 503, those that run are finished, then the
process ends with exit code 0. When the time for that is over, or at a second signal, the answers
that are left end with an error.
"""

import resource
import socket
import time
from types import FrameType

import uvicorn

from engine.server.app import application
from engine.server.service import Service
from moesim.errors import EngineError

FAREWELL_S = 5
"""What a client that does not read its answer to the end is granted after draining [s]."""
MOST_FILES = 65_536


def bound_socket(host: str, port: int) -> socket.socket:
    """Take an address, before anything is loaded; it does not listen yet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # With the protocol named asyncio sends small packets at once, not 40 ms later.
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except (OSError, UnicodeError) as wrong:
        raise EngineError(f"--host {host} --port {port}: {wrong}; choose another") from None
    return taken


def run(service: Service, taken: socket.socket, drain_s: float) -> None:
    """Serve on a bound socket until a signal comes, and drain for at most `drain_s` seconds."""
    _allow_many_connections()
    config = uvicorn.Config(
        application(service),
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FAREWELL_S,
    )
    DrainingServer(config, service, drain_s).run(sockets=[taken])


def _allow_many_connections() -> None:
    """Lift this process's own limit of open files as far as the host lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which keeps answering while it drains."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s
        self._deadline_s = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal there is no more time. None is raised again."""
        granted_s = 0.0 if self._service.draining else self._drain_s
        self._service.draining = True
        self._deadline_s = time.monotonic() + granted_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for taken in sockets or []:
            host, port = taken.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"serving {', '.join(self._service.models)} on http://{shown}:{port}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Leave once everything is answered, or the time for it is over."""
        if time.monotonic() >= self._deadline_s:
            self._service.hang_up()
            self.should_exit = True
        elif self._service.draining:
            self.should_exit = not self._service.open
        return await super().on_tick(counter)
