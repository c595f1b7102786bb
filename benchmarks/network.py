"""A round trip between client and server, as between two machines: `python -m benchmarks.network DIRECTORY SOCKET
MILLISECONDS`.

Listens on a unix socket of its own in that directory, and hands every byte on to the other one, later. Bytes under way
delay no others, so only waiting for answers gets slower, as on a network with room.
"""

import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import make_url

from uuid_pipeline.errors import PipelineError

_SOCKET = ".s.PGSQL.5432"
_AT_ONCE = 1 << 16


@contextmanager
def between(url: str, milliseconds: float) -> Iterator[str]:
    """A URL that leads to the same database by way of a round trip of so long; of a server on a unix socket."""
    parsed = make_url(url)
    target = Path(str(parsed.query["host"])) / _SOCKET
    with tempfile.TemporaryDirectory(prefix="bench_net_") as directory:
        command = [sys.executable, "-m", "benchmarks.network", directory, str(target), str(milliseconds)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as proxy:
            try:
                if proxy.stdout is None or not proxy.stdout.readline():
                    raise PipelineError("The network's proxy did not start; what it said stands above.")
                yield parsed.set(query={**parsed.query, "host": directory}).render_as_string(hide_password=False)
            finally:
                proxy.terminate()


def round_trip(url: str) -> float:
    """Milliseconds that the shortest question takes here, the fastest of many."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = []
        for _ in range(50):
            began = time.perf_counter()
            connection.execute("SELECT 1")
            found.append(1000 * (time.perf_counter() - began))
    return min(found)


def _serve(directory: str, target: str, milliseconds: float) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{directory}/{_SOCKET}")
        listening.listen()
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            client, _ = listening.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(target)
            for source, goal in ((client, server), (server, client)):
                _hand_on(source, goal, milliseconds / 2000)


def _hand_on(source: socket.socket, goal: socket.socket, seconds: float) -> None:
    """One direction of a connection: what was read is written so many seconds later, whatever is read meanwhile."""
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(64)

    def read() -> None:
        read_bytes = b"-"
        while read_bytes:
            try:
                read_bytes = source.recv(_AT_ONCE)
            except OSError:
                read_bytes = b""
            under_way.put((time.perf_counter() + seconds, read_bytes))

    def write() -> None:
        while True:
            due, to_write = under_way.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                if not to_write:
                    goal.shutdown(socket.SHUT_WR)
                    return
                goal.sendall(to_write)
            except OSError:
                source.close()
                return

    for work in (read, write):
        threading.Thread(target=work, daemon=True).start()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
