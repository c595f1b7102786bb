"""The embedded PostgreSQL server of a home directory, driven by initdb and pg_ctl.

A server counts as running when its socket answers and the kernel says that the listener is the process in
postmaster.pid. It listens on a unix socket in a directory of mode 0700 and nowhere else, and outlives its
starter. As whom it runs, from which binaries and on which data is the matter of `installation`.
"""

import errno
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from uuid_pipeline.demo import installation
from uuid_pipeline.errors import PipelineError, UsageError

_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
_WAIT_SECONDS = 60
# Greater than any pid of any system, and the greatest that PostgreSQL reads.
_NOBODYS_PID = 2**31 - 1
_SETTINGS = (
    "listen_addresses=",
    "cluster_name=uuid_pipeline",
    "max_connections=200",
    "shared_buffers=256MB",
    "max_wal_size=2GB",
    "timezone=UTC",
    "log_timezone=UTC",
)


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server; its superuser `postgres` needs no password on the socket."""

    home: Path
    data: Path
    socket_dir: Path
    port: int

    def url(self, database: str) -> str:
        """Give the URL of a database, as libpq and SQLAlchemy both read it."""
        # Said always: else PGPORT and PGOPTIONS would be asked, which are meant for somebody's store. Empty options are
        # lost on the way, so one that says what the server does anyway.
        socket = f"host={quote(str(self.socket_dir))}&port={self.port}&options=-ctimezone%3DUTC"
        return f"postgresql://postgres@/{quote(database, safe='')}?{socket}"


@dataclass(frozen=True)
class _PidFile:
    pid: int
    port: int
    socket_dir: Path
    ready: bool


def start(home: Path, version: int = 18) -> EmbeddedServer:
    """Start the server of a home, made on first use; one that runs is returned as it is.

    Raises UsageError if the home cannot hold a server of this version for this user, PipelineError if
    PostgreSQL fails.
    """
    home = home.expanduser().resolve()
    server = find(home)
    if server is None:
        with _locked(home) as lock:
            server = find(home) or _start(home, version, lock)
    _check_version(server.data, version)
    return server


def find(home: Path) -> EmbeddedServer | None:
    """Give the server of a home if it takes connections, else None. Raises UsageError as `start` does."""
    home = home.expanduser().resolve()
    data = installation.data_dir(home)
    stated = _read_pid_file(data)
    # 0: the listener is in a pid namespace that we do not see, as in another container with this home.
    if stated is None or not stated.ready or _listener(stated) not in (stated.pid, 0):
        return None
    server = EmbeddedServer(home, data, stated.socket_dir, stated.port)
    # The socket exists and pid is right also during recovery and shutdown.
    taken = pq.PGconn.ping(make_conninfo(server.url("postgres"), connect_timeout=5).encode())
    return server if taken == pq.Ping.OK else None


def stop(home: Path) -> bool:
    """Shut the server of a home down, rolling open transactions back; False when none was running.

    Raises UsageError as `start` does, PipelineError if the server is still there after 60 seconds.
    """
    home = home.expanduser().resolve()
    if not home.exists():
        return False
    with _locked(home):
        data = installation.data_dir(home)
        return data.exists() and _shut_down(data, installation.server_account())


def destroy(home: Path) -> None:
    """Stop the server of a home and delete its data, wherever that is. Raises as `stop` does."""
    home = home.expanduser().resolve()
    if not home.exists():
        return
    with _locked(home):
        data = installation.data_dir(home)
        if data.exists():
            _shut_down(data, installation.server_account())
            shutil.rmtree(data)
        if data == installation.state_dir(home):
            shutil.rmtree(data.parent, ignore_errors=True)
            (home / "server.json").unlink()


def ensure_database(server: EmbeddedServer, name: str) -> None:
    """Create a database if it is missing; several processes may ask at once. Raises psycopg.Error."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None:
            return
        # template1 cannot be copied while anybody is connected to it, template0 always.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
        with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            connection.execute(statement)


def in_use(home: Path) -> bool:
    """Whether anybody but us is connected to the server of a home."""
    server = find(home)
    if server is None:
        return False
    with psycopg.connect(server.url("postgres")) as connection:
        others = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
    return others is None or others[0] > 0


@contextmanager
def _locked(home: Path) -> Iterator[int]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"the embedded server cannot use {home} ({error.strerror}); "
            "set UUID_PIPELINE_HOME to a directory that you may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _start(home: Path, version: int, lock: int) -> EmbeddedServer:
    account = installation.server_account()
    binaries = installation.locate_binaries(version, account)
    data = installation.data_dir(home)
    if not data.exists():
        data = _initialise(installation.choose_data_dir(home, account), binaries, account, lock)
    _check_version(data, version)
    stated = _read_pid_file(data)
    if stated and stated.ready and _listener(stated) is None:
        # Something deleted its socket, as cleaners of /tmp do: nobody can reach it any more.
        _shut_down(data, account)
    deadline = time.monotonic() + _WAIT_SECONDS
    while (server := find(home)) is None:
        if _postmaster(data, account) is None:
            _launch(home, data, binaries, account)
        elif time.monotonic() > deadline:
            raise PipelineError(f"{data} took no connection for {_WAIT_SECONDS} s{_log_tail(home)}")
        time.sleep(0.02)
    return server


def _check_version(data: Path, version: int) -> None:
    held = (data / "PG_VERSION").read_text().strip()
    if held != str(version):
        raise UsageError(f"{data} is of PostgreSQL {held}, not {version}; set another UUID_PIPELINE_HOME")


def _initialise(data: Path, binaries: Path, account: installation.Account, lock: int) -> Path:
    """Make the data directory beside its place, then rename it: a killed initdb leaves no half of one."""
    for leftover in data.parent.glob("initdb-*"):
        shutil.rmtree(leftover)
    fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=data.parent))
    os.chown(fresh, account.uid, account.gid)
    options = [
        "--username=postgres",
        "--auth-local=trust",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
    ]
    if binaries.parent.name != installation.INSTALLS[16]:
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += [f"--set={setting}" for setting in _SETTINGS]
    # An initdb that outlives us keeps the lock: nobody takes its directory for a leftover.
    result = account.run(binaries / "initdb", *options, data=fresh, keep=(lock,))
    if result.returncode:
        said = result.stdout.decode(errors="replace").strip()
        if os.strerror(errno.ENOSPC) in said:
            raise UsageError(
                f"There is no room for the embedded server's data in {data.parent} (about 60 MB to begin with). Make "
                "room, or set UUID_PIPELINE_HOME to a directory that has it."
            )
        raise PipelineError(f"initdb of {data} failed: {said}")
    fresh.rename(data)
    return data


def _launch(home: Path, data: Path, binaries: Path, account: installation.Account) -> None:
    """Start the postmaster; pg_ctl gives it a session of its own, out of reach of our Ctrl-C."""
    socket_dir = _socket_dir(data, account)
    for stale in (data / "postmaster.pid", socket_dir / f"{_SOCKET}.lock"):
        _disarm(stale)
    options = shlex.join(["-h", "", "-p", str(_PORT), "-k", str(socket_dir)])
    deadline = time.monotonic() + 5
    while True:
        with (home / "postgresql.log").open("ab") as log:
            since = log.tell()
            started = account.run(
                binaries / "pg_ctl",
                "start",
                "-s",
                "-t",
                str(_WAIT_SECONDS),
                "-o",
                options,
                data=data,
                out=log,
            )
        if started.returncode == 0:
            return
        said = _log_tail(home, since)
        # A backend in a long query does not notice that its postmaster was killed; PostgreSQL waits for it.
        if "pre-existing shared memory block" not in said or time.monotonic() > deadline:
            raise PipelineError(f"PostgreSQL did not start in {data}{said}")
        _end_orphans(data, binaries, account)
        time.sleep(0.05)


def _end_orphans(data: Path, binaries: Path, account: installation.Account) -> None:
    """End the backends of a postmaster that was killed: processes of its program that work in its data."""
    condition = '[ "$p/cwd" -ef "$1" ] && [ "$p/exe" -ef "$2" ]'
    listing = f'for p in /proc/[0-9]*; do {condition} && echo "${{p#/proc/}}"; done'
    for pid in account.run("/bin/sh", "-c", listing, "sh", data, binaries / "postgres").stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGQUIT)


def _disarm(lock_file: Path) -> None:
    """Give a stale lock file a pid that nobody has, for PostgreSQL takes whoever has it now for a postmaster.

    Deleting the file is no way: it names the shared memory by which PostgreSQL sees backends still alive.
    """
    # NOFOLLOW: root writes here into a directory of a user of fewer rights.
    with suppress(FileNotFoundError), os.fdopen(os.open(lock_file, os.O_RDWR | os.O_NOFOLLOW), "r+b") as file:
        _, newline, rest = file.read().partition(b"\n")
        file.seek(0)
        file.write(b"%d" % _NOBODYS_PID + (newline or b"\n") + rest)


def _socket_dir(data: Path, account: installation.Account) -> Path:
    """Give the data directory, or if its path is no socket's (of 107 bytes, on macOS 103) one of our own."""
    if len(os.fsencode(data / _SOCKET)) <= 103 and re.fullmatch(r"[\w/ .+=~-]+", str(data)):
        return data
    directory = Path("/tmp" if account.other else tempfile.gettempdir()) / f"uuid_pipeline-{installation.digest(data)}"
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if found.st_mode != stat.S_IFDIR | 0o700 or found.st_uid not in (os.geteuid(), account.uid):
        raise UsageError(
            f"{directory} must be a directory of mode 0700 of {installation.user_name(account.uid)}; remove it"
        )
    os.chown(directory, account.uid, account.gid)
    return directory


def _read_pid_file(data: Path) -> _PidFile | None:
    """Read postmaster.pid, which may be stale; None if there is none, or not a whole one."""
    try:
        lines = [os.fsdecode(line) for line in (data / "postmaster.pid").read_bytes().splitlines()]
        return _PidFile(int(lines[0]), int(lines[3]), Path(lines[4]), ready=lines[7:8] == ["ready   "])
    except (FileNotFoundError, ValueError, IndexError):
        return None


def _listener(stated: _PidFile) -> int | None:
    """Give the pid that the kernel names as the listener on the socket; None if nobody listens."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(stated.socket_dir / f".s.PGSQL.{stated.port}"))
        except OSError:
            return None
        if sys.platform != "linux":
            return stated.pid
        return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _postmaster(data: Path, account: installation.Account) -> int | None:
    """Give the pid of the postmaster at work in a data directory, ready or not."""
    stated = _read_pid_file(data)
    if stated is None:
        return None
    here = _listener(stated) == stated.pid or account.finds('"/proc/$1/cwd" -ef "$2"', str(stated.pid), data)
    return stated.pid if here else None


def _shut_down(data: Path, account: installation.Account) -> bool:
    pid = _postmaster(data, account)
    stated = _read_pid_file(data)
    if pid is None or stated is None:
        return False
    deadline = time.monotonic() + _WAIT_SECONDS
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
        while (still := _read_pid_file(data)) and still.pid == pid:
            if time.monotonic() > deadline:
                raise PipelineError(f"the server of {data}, process {pid}, is still there after {_WAIT_SECONDS} s")
            time.sleep(0.01)
            os.kill(pid, 0)
    if stated.socket_dir != data:
        with suppress(OSError):
            stated.socket_dir.rmdir()
    return True


def _log_tail(home: Path, since: int = 0) -> str:
    """Give the last 15 lines of the server's log as the end of a message."""
    log = home / "postgresql.log"
    lines = log.read_bytes()[since:].decode(errors="replace").splitlines() if log.exists() else []
    return f"; the end of {log}:\n" + "\n".join(lines[-15:])
