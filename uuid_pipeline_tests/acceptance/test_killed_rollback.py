"""``uuid-pipeline rollback``, killed as by kill -9: the same command again gives every row back."""

import random
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.acceptance.test_command_line import SEED, ask, kill_while_writing, runs, slow_spec
from uuid_pipeline_tests.integration import cycle

__all__ = ["slow_spec"]

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]


def test_a_rollback_killed_while_it_writes_is_finished_by_the_next_and_shown_as_failed(
    command_line: CommandLine,
    incident: Engine,
    incident_url: str,
    slow_spec: Path,
) -> None:
    before, catalog = cycle.rows_of(incident), cycle.catalog_of(incident)
    assert command_line("run", "--approve", "--json", "--spec", str(slow_spec)).code == 0
    arguments = ("rollback", "--all", "--json", "--spec", str(slow_spec))
    wanted = 38 + random.Random(f"{SEED} back").randrange(1, 34)
    done = kill_while_writing(command_line.start(*arguments), incident_url, wanted)
    assert wanted <= done < 76
    assert cycle.rows_of(incident) != before
    dead = {run_id for run_id, status in runs(command_line).items() if status == "STARTED"}

    finished = command_line(*arguments)

    assert finished.code == 0, finished
    assert cycle.rows_of(incident) == before
    assert cycle.catalog_of(incident) == catalog
    journal = "SELECT count(*), count(DISTINCT first_ordinal) FROM uuid_pipeline.batches WHERE direction = 'back'"
    assert ask(incident_url, journal) == [(38, 38)]
    assert "STARTED" not in runs(command_line).values()
    assert {runs(command_line)[run_id] for run_id in dead} <= {"FAILURE"}
