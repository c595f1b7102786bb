"""Metrics as a file for node_exporter's textfile collector, or on loopback for Prometheus itself, with /healthz."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app, write_to_textfile
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.health import history
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.engine.installed import guard
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports.metrics import GuardCounts, registry

LOOPBACK = ("127.0.0.1", "::1", "localhost")
StartResponse = Callable[..., Any]


def read(engine: Engine) -> tuple[Tick | None, GuardCounts]:
    """The newest tick and the guard's counts; nothing before there is a ledger."""
    with engine.begin() as connection:
        if not ledger.exists(connection):
            return None, []
        return history.newest(connection), guard.counts(connection)


def write(engine: Engine, path: Path) -> None:
    """The metrics into a file, which is there whole or as it was before. Raises UsageError when it cannot be."""
    try:
        write_to_textfile(str(path), registry(lambda: read(engine)))
    except OSError as error:
        raise UsageError(f"The metrics cannot be written to {path}: {error.strerror}.") from error


def address(text: str) -> tuple[str, int]:
    """HOST:PORT of ``--listen``. Raises UsageError for anything but loopback: who may read is a proxy's matter."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not port.isdigit() or not 0 <= int(port) <= 65535:
        raise UsageError(f"--listen wants HOST:PORT, such as 127.0.0.1:9187; this is {text}.")
    if host not in LOOPBACK:
        raise UsageError(
            f"--listen takes loopback only, not {host}: there is no login here. Put a proxy before it that has one."
        )
    return host, int(port)


def state(engine: Engine) -> dict[str, Any]:
    """Whether the store and the ledger can be reached, and when the newest tick was."""
    found: dict[str, Any] = {"store": False, "ledger": False, "last_tick": None}
    try:
        with engine.begin() as connection:
            found["store"] = True
            found["ledger"] = ledger.exists(connection)
            tick = history.newest(connection) if found["ledger"] else None
    except DBAPIError:
        return found
    return found | {"last_tick": tick.at.isoformat() if tick else None}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


def server(engine: Engine, host: str, port: int) -> WSGIServer:
    """A server of /metrics and /healthz, not yet serving. Raises UsageError when the port is taken."""
    metrics = make_wsgi_app(registry(lambda: read(engine)))

    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/healthz":
            return _answer_health(engine, start)
        if path != "/metrics":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics, /healthz\n"]
        try:
            page: Iterable[bytes] = metrics(environ, start)
        except DBAPIError:
            start("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"the store cannot be reached\n"]
        return page

    try:
        return make_server(host, port, answer, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be listened on: {error.strerror}.") from error


def _answer_health(engine: Engine, start: StartResponse) -> Iterable[bytes]:
    found = state(engine)
    good = found["store"] and found["ledger"]
    start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
    return [json.dumps(found).encode() + b"\n"]
