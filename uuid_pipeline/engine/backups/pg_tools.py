"""PostgreSQL's own client programs: found for a server's version, run with the password in no command line."""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL

from uuid_pipeline.errors import PipelineError, UsageError
from uuid_pipeline.settings import without_secrets

# Where the packages of Debian, Red Hat and Homebrew put the programs of each version.
_INSTALLED = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
)
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Tools:
    """The programs of one directory, all of one version."""

    directory: Path
    version: str
    major: int


@dataclass(frozen=True)
class Ran:
    """What a program left: its exit code, its output, and its messages without secrets."""

    program: str
    code: int
    output: str
    messages: str

    def require(self, what: str) -> str:
        """The output. Raises PipelineError with the last messages when the program failed."""
        if self.code:
            lines = self.messages.strip().splitlines()[-_SHOWN_LINES:]
            raise PipelineError("\n".join([f"{what} failed: {self.program} ended with code {self.code}.", *lines]))
        return self.output


def find(server_version: int, extra: Sequence[Path] = ()) -> Tools:
    """The pg_dump and pg_restore that fit a server best: of its own major version, else of the next one above.

    ``server_version`` is server_version_num (180004). Looks through PATH, the usual places of packages, and ``extra``.
    Raises UsageError that says which version is needed and where was looked.
    """
    needed = server_version // 10_000
    looked = _directories(extra)
    found = [tools for tools in map(_tools_in, looked) if tools is not None]
    fitting = [tools for tools in found if tools.major >= needed]
    if fitting:
        return min(fitting, key=lambda tools: tools.major)
    older = ", ".join(f"{tools.version} in {tools.directory}" for tools in found) or "none"
    raise UsageError(
        f"The server runs PostgreSQL {needed}; a backup of it needs pg_dump and pg_restore {needed} or newer. "
        f"Found: {older}. Looked in {', '.join(str(path) for path in looked)}. "
        f"Install the client programs (Debian: postgresql-client-{needed}) or put their directory on PATH."
    )


def _directories(extra: Iterable[Path]) -> list[Path]:
    on_path = [Path(part) for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    packaged = [path for root, pattern in _INSTALLED for path in sorted(Path(root).glob(pattern))]
    return list(dict.fromkeys([*on_path, *packaged, *extra]))


def _tools_in(directory: Path) -> Tools | None:
    programs = [directory / name for name in ("pg_dump", "pg_restore")]
    # Debian's wrapper answers with one version and runs another; what it wraps is looked at by itself.
    if not all(os.access(path, os.X_OK) and path.resolve().name != "pg_wrapper" for path in programs):
        return None
    versions = {_version(path) for path in programs}
    version = versions.pop()
    if versions or version is None:
        return None
    return Tools(directory, version, int(version.split(".")[0]))


def _version(program: Path) -> str | None:
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
        found = re.search(r"\(PostgreSQL\) (\d+[\w.]*)", said)
        return re.sub(r"[a-z].*", "", found[1]) if found else None
    return None


def run(
    tools: Tools,
    program: str,
    arguments: Sequence[str | Path | bytes],
    url: URL | None = None,
    script: str | None = None,
) -> Ran:
    """Run a program to its end, connected to ``url`` when one is given; ``script`` is its standard input.

    Raises UsageError when the program is missing, or the URL holds a secret that only a command line could carry.
    """
    path = tools.directory / program
    command: list[str | Path | bytes] = [path, *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    # It would become the encoding of the dump, which must be the store's own: SQL_ASCII can be read as no other.
    environment.pop("PGCLIENTENCODING", None)
    if url is not None:
        # A role may read by default, and a scratch database is restored into all the same. (pg_dump, which only reads,
        # may meet a pooler, and that takes no options.)
        conninfo, password = _parameters(url, "-c default_transaction_read_only=off" if program == "pg_restore" else "")
        command += ["--no-password", f"--dbname={conninfo}"]
        environment |= {"PGPASSWORD": password} if password else {}
    shown = None if url is None else url.render_as_string(hide_password=False)
    try:
        done = subprocess.run(
            command, input=script, stdin=None if script is not None else subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False, env=environment,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"{path} cannot be run: {error.strerror}. Install PostgreSQL's client programs.") from error
    secret = None if url is None else url.password
    messages = without_secrets(done.stderr, shown)
    return Ran(program, done.returncode, done.stdout, messages.replace(secret, "***") if secret else messages)


def _parameters(url: URL, options: str) -> tuple[str, str | None]:
    """The connection as libpq reads it, with these options beside its own, and apart from it the password."""
    target = url.set(drivername="postgresql+psycopg")
    _, read = target.get_dialect()().create_connect_args(target)
    parameters = {name: str(value) for name, value in read.items()}
    if "sslpassword" in parameters:
        raise UsageError(
            "The database URL has an sslpassword, which pg_dump takes in its command line only, where others can read "
            "it. Use a key file without a password and of mode 0600."
        )
    password = parameters.pop("password", None)
    if options:
        parameters["options"] = f"{parameters.get('options', '')} {options}".strip()
    return make_conninfo(**{"connect_timeout": "10", "application_name": "uuid_pipeline", **parameters}), password
