"""``uuid-pipeline status`` answers in every state of a store, and names the command to give next."""

import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import gates
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.conftest import SPEC
from uuid_pipeline_tests.integration import cycle

DEFAULT = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


@pytest.fixture
def command_line(command_line: CommandLine, tmp_path: Path) -> CommandLine:
    """With the spec that the states which tests begin in were made with."""
    return with_spec(command_line, tmp_path, "backup: dump", "backup: none")


def with_spec(command_line: CommandLine, directory: Path, old: str, new: str) -> CommandLine:
    """With the demo's spec, or that of before, in which one thing is changed."""
    before = Path(command_line.environment.get("UUID_PIPELINE_SPEC", DEFAULT)).read_text(encoding="utf-8")
    assert old in before
    path = directory / f"{uuid.uuid4().hex}.yaml"
    path.write_text(before.replace(old, new), encoding="utf-8")
    return command_line.but(UUID_PIPELINE_SPEC=str(path))


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


# One row of a document that was moved holds its old id again, past the alias.
LEFT_BEHIND = """
SET session_replication_role = replica;
UPDATE upload_pipeline.events e SET document_id = m.old_id FROM uuid_pipeline.id_map_document m
WHERE m.new_id = e.document_id AND m.old_id = (
    SELECT old_id FROM uuid_pipeline.id_map_document x JOIN upload_pipeline.events o ON o.document_id = x.new_id
    ORDER BY ordinal LIMIT 1)
"""


@pytest.mark.begins("migrated")
def test_while_a_gate_on_rows_is_red_it_offers_the_way_back_and_finalize_keeps_it(
    command_line: CommandLine, incident: Engine
) -> None:
    cycle.run_sql(incident, LEFT_BEHIND)
    assert command_line("validate").code == 1

    said = command_line("status", "--json")
    kept = command_line("finalize", "--yes", "--json")

    assert said.data["next"].startswith("uuid-pipeline rollback --all; or mend what is wrong")
    assert "whole_no_dangling_reference is red" in said.data["next"]
    assert (kept.code, "--despite-red-gates" in kept.data["error"]) == (1, True)
    assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") == [("completed",)]
    ended = command_line("finalize", "--yes", "--json", "--despite-red-gates")
    assert (ended.code, any("is red" in one for one in ended.data["consequences"])) == (0, True)


@pytest.mark.begins("begun")
def test_what_a_later_execution_proved_for_the_whole_store_ends_what_an_earlier_ones_wave_had_found(
    command_line: CommandLine, incident: Engine
) -> None:
    [wave, *_] = cycle.waves_of(incident, cycle.newest_execution(incident))
    red = GateResult.of("no_dangling_reference", False, "dangling: events 1", "roll back")
    with incident.begin() as connection:
        gates.record(connection, Scope(execution=wave.execution_id, wave=wave.wave), gates.WAVE_STAGE, red, cycle.RUN)
    assert "no_dangling_reference is red" in command_line("status", "--json").data["next"]
    assert command_line("cancel").code == 0
    assert "no_dangling_reference is red" in command_line("status", "--json").data["next"]

    cycle.run_all(incident, SPEC)

    assert command_line("status", "--json").data["next"].startswith("uuid-pipeline plan, for what is new")


def test_a_plan_that_waits_for_an_execution_under_way_says_so(command_line: CommandLine, incident: Engine) -> None:
    assert command_line("approve", command_line("plan", "--json").data["plan_id"]).code == 0
    assert command_line("migrate", "--wave", "canary").code == 0

    made = command_line("plan", "--json")

    assert (made.code, "has begun and can go on" in made.data["hindered"]) == (0, True)
    assert "cannot be approved yet" in command_line("plan").out


@pytest.mark.begins("migrated")
def test_what_is_half_rolled_back_or_given_up_is_named_by_what_would_validate_or_carry_it_out(
    command_line: CommandLine, incident: Engine
) -> None:
    status = "UPDATE uuid_pipeline.executions SET status = %(status)s"
    cycle.run_sql(incident, status, status="rolling_back")
    assert "is being rolled back" in command_line("validate", "--json").data["error"]
    refused = command_line("migrate", "--json")
    assert (refused.code, "Run: uuid-pipeline rollback --all" in refused.data["error"]) == (1, True)
    cycle.run_sql(incident, status, status="cancelled")
    assert "was cancelled when it had moved a part" in command_line("validate", "--json").data["error"]


@pytest.mark.begins("approved")
def test_a_plan_made_while_another_was_carried_out_is_no_subject_of_the_report(
    command_line: CommandLine, incident: Engine
) -> None:
    execution = cycle.newest_execution(incident)
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT gen_random_uuid(), user_id, 'new.pdf', mime, 1, repeat('a', 64), raw_path
           FROM upload_pipeline.documents LIMIT 1""",
    )
    cycle.assess_and_plan(incident, SPEC)
    cycle.finish(incident, SPEC, execution)

    assert execution.execution_id in command_line("report", "--json").data["report"]["path"]


@pytest.mark.begins("approved")
def test_a_rollback_of_what_has_moved_nothing_says_that_the_approval_has_ended(
    command_line: CommandLine, incident: Engine
) -> None:
    said = command_line("rollback", "--all", "--json")

    assert (said.code, said.data["message"].startswith("Nothing had moved; execution ")) == (0, True)
    assert cycle.newest_execution(incident).status == "rolled_back"


@pytest.mark.begins("migrated")
def test_a_rollback_beside_a_spec_that_cannot_be_read_says_what_that_means(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    said = command_line.but(UUID_PIPELINE_SPEC=str(tmp_path / "none.yaml")).process("rollback", "--all", "--json")

    assert (said.code, len(said.data["rolled_back"])) == (0, 3)
    assert "Warning: what this spec alone declares is not rolled back: The spec" in said.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("on_duplicate: merge", "on_duplicate: block", "the spec changed since"),
        ("table: document_chunks", "table: pieces", "has no table pieces"),
    ],
)
@pytest.mark.parametrize(
    "state",
    [
        pytest.param("of plan", marks=pytest.mark.begins("planned")),
        pytest.param("is approved", marks=pytest.mark.begins("approved")),
        pytest.param("is running", marks=pytest.mark.begins("begun")),
    ],
)
def test_a_plan_that_fits_no_longer_is_not_offered(
    command_line: CommandLine, incident: Engine, tmp_path: Path, state: str, old: str, new: str, said: str
) -> None:
    changed = with_spec(command_line, tmp_path, old, new)

    told = changed("status", "--json").data["next"]

    assert told.startswith("uuid-pipeline plan")
    assert state in told
    assert said in told
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ADD note text")
    assert "indexes, triggers, policies or grants changed since" in command_line("status", "--json").data["next"]


@pytest.mark.begins("planned")
def test_a_plan_of_which_a_user_was_erased_is_not_offered(command_line: CommandLine, incident: Engine) -> None:
    user = str(cycle.rows_of(incident)["documents"][0]["user_id"])
    looked = command_line("erase", "--user", user, "--json")
    assert command_line("erase", "--user", user, "--approve", looked.data["digest"]).code == 0

    told = command_line("status", "--json").data["next"]

    assert told.startswith("uuid-pipeline plan")
    assert "a user was erased since" in told


@pytest.mark.begins("migrated")
def test_a_ledger_of_another_version_is_told_as_every_verb_tells_it(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    cycle.run_sql(incident, "UPDATE uuid_pipeline.ledger SET version = version - 1")

    export = ["export", "--output", str(tmp_path / "maps"), "--format", "csv"]
    for verb in (["status"], export, ["drop-ledger"], ["plan"], ["finalize"]):
        said = command_line(*verb, "--json")
        assert (said.code, "Finish with the version that made it" in said.data["error"]) == (1, True), verb


@pytest.mark.begins("migrated")
def test_validation_is_by_the_spec_that_was_approved_whatever_it_says_now(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    """Also where a foreign key by which rows were found is gone: that alone is told, and that the schema changed."""
    other = with_spec(command_line, tmp_path, "{document_id}:{chunker_name}", "{document_id}/{chunker_name}")

    assert other("validate", "--json").code == 0
    assert "uuid-pipeline plan" in other("status", "--json").data["next"]

    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_document_id_fkey")
    said = other("validate", "--json")
    assert said.code == 1
    assert [gate["gate"] for gate in said.data["gates"] if not gate["passed"]] == ["whole_schema_unchanged"]


@pytest.mark.begins("moved")
def test_an_execution_that_has_moved_all_is_validated_by_the_next_run_under_another_spec(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    """A sweep of it is a wave that has looked, and found nothing."""
    cycle.run_sql(incident, "UPDATE uuid_pipeline.waves SET status = 'unneeded' WHERE kind = 'sweep'")
    other = with_spec(command_line, tmp_path, "on_duplicate: merge", "on_duplicate: block")
    assert other("plan").code == 0
    assert other("status", "--json").data["next"].startswith("uuid-pipeline run: it validates execution ")

    said = other("run", "--approve", "--json")

    assert (said.code, said.data["nothing_to_do"], said.data["status"]) == (0, True, "completed")


@pytest.mark.begins("moved")
def test_an_execution_that_has_moved_all_and_cannot_go_on_is_not_left_open_in_silence(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    other = with_spec(command_line, tmp_path, "on_duplicate: merge", "on_duplicate: block")

    said = other("run", "--approve", "--json")

    assert (said.code, said.data["nothing_to_do"]) == (1, True)
    assert "uuid-pipeline cancel" in said.data["error"]
    assert other("status", "--json").data["next"].startswith("uuid-pipeline cancel: ")
    assert other("cancel", "--json").code == 0
    assert other("run", "--approve", "--json").code == 0


@pytest.mark.begins("moved")
def test_given_back_what_it_was_approved_with_it_is_finished(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    assert with_spec(command_line, tmp_path, "on_duplicate: merge", "on_duplicate: block")("run").code == 1

    done = command_line("run", "--json")

    assert (done.code, done.data["status"]) == (0, "completed")
