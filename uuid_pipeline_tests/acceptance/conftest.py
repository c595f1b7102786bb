"""The command line as a user has it: a home and a Dagster database of its own for each store."""

import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from uuid_pipeline.cli.main import app
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.operations.instance import open_instance
from uuid_pipeline.settings import read_settings
from uuid_pipeline_tests.conftest import NewDatabase

ROOT = Path(__file__).parents[2]
DAGSTER_TEMPLATE = "template_dagster"
OURS = (
    "UUID_PIPELINE_DATABASE_URL",
    "UUID_PIPELINE_DAGSTER_URL",
    "UUID_PIPELINE_DIRECT_URL",
    "UUID_PIPELINE_HOME",
    "UUID_PIPELINE_SPEC",
    "UUID_PIPELINE_NOTIFY_URLS",
    "UUID_PIPELINE_DAGSTER_STORAGE",
    "DAGSTER_HOME",
    "DAGSTER_DISABLE_TELEMETRY",
)


@dataclass(frozen=True)
class Said:
    """What a verb answered."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


class CommandLine:
    """``uuid-pipeline`` in an environment of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def but(self, **changes: str) -> "CommandLine":
        """The same with other variables; an empty one counts as unset."""
        return CommandLine(self.environment | changes)

    def __call__(self, *arguments: str) -> Said:
        """Run a verb in this process."""
        with pytest.MonkeyPatch.context() as patch:
            self.apply(patch)
            try:
                result = CliRunner().invoke(app, list(arguments))
            finally:
                # The handler writes to the stderr of the one call that made it.
                logging.getLogger("uuid_pipeline.progress").handlers.clear()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Make this environment the process's own."""
        for name in OURS:
            patch.setenv(name, "")
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def start(self, *arguments: str, terminal: int | None = None) -> "subprocess.Popen[str]":
        """Run a verb in a process of its own; on a terminal, it is that one's foreground job."""
        own = {name: value for name, value in os.environ.items() if name not in OURS}
        return subprocess.Popen(
            [sys.executable, "-c", "from uuid_pipeline.cli.main import main; main()", *arguments],
            cwd=ROOT,
            env=own | self.environment,
            stdin=terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE if terminal is None else terminal,
            text=True,
            # Between fork and exec it makes system calls only, which no other thread's lock can stop.
            preexec_fn=None if terminal is None else partial(os.login_tty, terminal),  # noqa: PLW1509
        )

    def process(self, *arguments: str) -> Said:
        """Run a verb in a process of its own to its end."""
        return ended(self.start(*arguments))


def ended(process: "subprocess.Popen[str]") -> Said:
    """Wait for a process; the limit is for one that hangs, not for one on a busy machine."""
    out, err = process.communicate(timeout=300)
    return Said(process.returncode, out, err)


CommandLineFor = Callable[[str], CommandLine]


@pytest.fixture(scope="session")
def dagster_template(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database that holds an unused Dagster instance."""
    embedded.ensure_database(server, DAGSTER_TEMPLATE)
    home = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        CommandLine({"UUID_PIPELINE_HOME": str(home), "UUID_PIPELINE_DAGSTER_URL": server.url(DAGSTER_TEMPLATE)}).apply(
            patch
        )
        with open_instance(read_settings()) as instance:
            assert instance.get_run_records(limit=1) == []
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [DAGSTER_TEMPLATE]
        )
    return DAGSTER_TEMPLATE


@pytest.fixture
def command_line_for(new_database: NewDatabase, dagster_template: str, tmp_path: Path) -> Iterator[CommandLineFor]:
    """Makes the command line of a store, in a home of its own."""
    homes: list[Path] = []

    def make(url: str) -> CommandLine:
        homes.append(tmp_path / uuid.uuid4().hex)
        return CommandLine(
            {
                "UUID_PIPELINE_DATABASE_URL": url,
                "UUID_PIPELINE_DAGSTER_URL": new_database(dagster_template),
                "UUID_PIPELINE_HOME": str(homes[-1]),
            }
        )

    yield make
    for home in homes:
        # Started for a copy, where the store's role may make no database.
        embedded.destroy(home)


@pytest.fixture
def command_line(command_line_for: CommandLineFor, incident_url: str) -> CommandLine:
    """The command line on the incident's store."""
    return command_line_for(incident_url)


@pytest.fixture
def instance(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance of the incident's home, in this process's environment."""
    command_line.apply(monkeypatch)
    with open_instance(read_settings()) as opened:
        yield opened


def with_password(url: str, password: str) -> str:
    """The same URL with a password, which the embedded server does not ask for."""
    return make_url(url).set(password=password).render_as_string(hide_password=False)
