"""A streaming standby of an embedded server, made with the same binaries."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer

PORT = 5433


@dataclass(frozen=True)
class Standby:
    url: str


@contextmanager
def standby_of(primary: EmbeddedServer) -> Iterator[Standby]:
    """Copy the primary and start the copy as its standby, on a socket in its own data directory; gone afterwards."""
    account = installation.server_account()
    binaries = installation.locate_binaries(18, account)
    directory = Path(tempfile.mkdtemp(prefix="up_standby_"))
    data = directory / "data"

    def run(program: str, *options: str) -> None:
        # pg_ctl's server must not inherit a pipe of ours, which would never end.
        with (directory / "log").open("wb") as log:
            done = account.run(binaries / program, *options, data=data, out=log)
        assert done.returncode == 0, (directory / "log").read_text()

    try:
        os.chown(directory, account.uid, account.gid)
        connection = ["-h", str(primary.socket_dir), "-p", str(primary.port), "-U", "postgres"]
        run("pg_basebackup", *connection, "-D", str(data), "-R", "-c", "fast", "--no-sync")
        run("pg_ctl", "start", "-s", "-w", "-t", "30", "-o", f"-h '' -p {PORT} -k {data}")
        try:
            yield Standby(f"postgresql://postgres@/postgres?host={quote(str(data))}&port={PORT}")
        finally:
            run("pg_ctl", "stop", "-s", "-m", "immediate")
    finally:
        shutil.rmtree(directory)
