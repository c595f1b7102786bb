"""``uuid-pipeline status`` answers in every state of a store, and names the command to give next."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.conftest import SPEC
from uuid_pipeline_tests.integration import cycle


@pytest.mark.parametrize(
    ("status", "next_step"),
    [
        pytest.param(None, "uuid-pipeline approve ", marks=pytest.mark.begins("planned")),
        pytest.param("approved", "uuid-pipeline run: execution ", marks=pytest.mark.begins("approved")),
        pytest.param("running", "uuid-pipeline run: execution ", marks=pytest.mark.begins("begun")),
        pytest.param("running", "uuid-pipeline run: execution ", marks=pytest.mark.begins("moved")),
        pytest.param("completed", "uuid-pipeline plan, for what is new", marks=pytest.mark.begins("migrated")),
    ],
    ids=["planned", "approved", "one wave moved", "all moved", "completed"],
)
def test_it_names_what_to_do_next(
    command_line: CommandLine, incident: Engine, status: str | None, next_step: str
) -> None:
    said = command_line("status", "--json")

    assert said.code == 0, said.out
    assert [one["status"] for one in said.data["executions"]] == ([] if status is None else [status])
    assert said.data["next"].startswith(next_step)
    people = command_line("status")
    assert (people.code, f"Next: {next_step}" in people.out) == (0, True)


@pytest.mark.begins("begun")
def test_what_waits_for_its_moment_is_counted(command_line: CommandLine, incident: Engine) -> None:
    [wave, *_] = cycle.waves_of(incident, cycle.newest_execution(incident))
    cycle.run_sql(
        incident,
        """INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
           SELECT %(execution)s, %(wave)s, 'document', 1, gen_random_uuid()::text, 'busy'""",
        execution=wave.execution_id,
        wave=wave.wave,
    )

    said = command_line("status", "--json")

    assert (said.code, said.data["next"].endswith("and 1 documents were busy or locked")) == (0, True)


@pytest.mark.begins("migrated")
def test_after_the_way_back_it_offers_to_go_again(command_line: CommandLine, incident: Engine) -> None:
    cycle.roll_back(incident, SPEC)

    said = command_line("status", "--json")

    assert (said.code, said.data["next"].startswith("uuid-pipeline plan, to migrate again")) == (0, True)
