"""Gates bind: without this execution's own green gates no wave writes a row, whoever asks."""

import re
import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import gates, ledger, migration
from uuid_pipeline.engine.batches import deletions
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.proofs import dangling, exactness
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
PLANNING_GATES = [(stage, gate) for stage in gates.PLANNING_STAGES for gate in gates.GATES[stage]]
WAVE_GATES = gates.GATES[gates.WAVE_STAGE]


@pytest.fixture
def refused(incident: Engine) -> Iterator[Callable[[str], "pytest.RaisesExc[RefusedError]"]]:
    """Expects a refusal that says this, and rows and ids as before the test."""
    before = cycle.rows_of(incident)
    yield lambda message: pytest.raises(RefusedError, match=message)
    after = cycle.rows_of(incident)
    known = {table: [{column: row[column] for column in before[table][0]} for row in after[table]] for table in before}
    assert known == before


Refused = Callable[[str], "pytest.RaisesExc[RefusedError]"]


def approved(engine: Engine, spec: Spec = SPEC) -> tuple[ledger.Execution, list[ledger.Wave]]:
    cycle.approve(engine, spec, cycle.assess_and_plan(engine, spec).plan_id)
    return at_hand(engine)


def at_hand(engine: Engine) -> tuple[ledger.Execution, list[ledger.Wave]]:
    execution = cycle.newest_execution(engine)
    return execution, cycle.waves_of(engine, execution)


@pytest.mark.begins("planned")
def test_a_plan_without_approval_has_no_wave_to_run(incident: Engine, refused: Refused) -> None:
    plan = cycle.newest_plan(incident)
    name = f"{plan.plan_id}-{plan.waves[0].name}"

    with refused("knows no wave .* approve"):
        migration.run_wave(incident, cycle.bound_store(incident, SPEC), name, cycle.RUN, lambda _: None)


@pytest.mark.begins("planned")
@pytest.mark.parametrize(("stage", "gate"), PLANNING_GATES)
def test_approval_is_refused_while_a_gate_was_not_evaluated(
    incident: Engine, refused: Refused, stage: str, gate: str
) -> None:
    cycle.run_sql(incident, "DELETE FROM uuid_pipeline.gates WHERE gate = %(gate)s", gate=gate)
    plan = cycle.newest_plan(incident)

    with refused(rf"{stage}\.{gate} was not evaluated in assessment 1"):
        cycle.approve(incident, SPEC, plan.plan_id)


@pytest.mark.begins("planned")
def test_approval_is_refused_while_a_gate_is_red_and_names_finding_and_remedy(
    incident: Engine, refused: Refused
) -> None:
    plan = cycle.newest_plan(incident)
    red = GateResult.of("no_orphans", False, "orphans: events.document_id 7", "delete them")
    with incident.begin() as connection:
        gates.record(connection, Scope(assessment=plan.assessment_no), "document_inventory", red, "x")

    with refused(r"no_orphans did not pass in assessment 1: orphans: events.document_id 7\. Remedy: delete them"):
        cycle.approve(incident, SPEC, plan.plan_id)


@pytest.mark.begins("planned")
def test_a_gate_that_passed_for_an_earlier_plan_does_not_count_for_a_later_one(
    incident: Engine, refused: Refused
) -> None:
    plan = cycle.assess_and_plan(incident, SPEC, skip=["no_orphans"])

    with refused("no_orphans was not evaluated in assessment 2"):
        cycle.approve(incident, SPEC, plan.plan_id)


@pytest.mark.begins("approved")
def test_the_newest_result_of_a_gate_counts(incident: Engine) -> None:
    execution, [canary, *_] = at_hand(incident)
    scope = Scope(execution=execution.execution_id)
    with incident.begin() as connection:
        for passed in (False, True):
            result = GateResult.of("no_orphans", passed, "found", "remedy")
            gates.record(connection, scope, "document_inventory", result, "x")

    assert cycle.migrate(incident, SPEC, canary).documents == 5


@pytest.mark.begins("planned")
def test_an_unknown_plan_is_refused_and_the_newest_one_named(incident: Engine, refused: Refused) -> None:
    plan = cycle.newest_plan(incident)

    with refused(f"There is no plan 0123.*newest plan is {plan.plan_id}"):
        cycle.approve(incident, SPEC, "0123")


@pytest.mark.begins("approved")
def test_a_gate_that_turned_red_after_approval_stops_the_first_wave(incident: Engine, refused: Refused) -> None:
    execution, [canary, *_] = at_hand(incident)
    red = GateResult.of("witnesses_agree", False, "they do not", "correct the spec")
    with incident.begin() as connection:
        gates.record(connection, Scope(execution=execution.execution_id), "id_mapping", red, "x")

    with refused("id_mapping.witnesses_agree did not pass"):
        cycle.migrate(incident, SPEC, canary)


@pytest.mark.begins("approved")
def test_a_wave_does_not_run_before_the_one_ahead_of_it(incident: Engine, refused: Refused) -> None:
    _, [canary, recent, _] = at_hand(incident)

    with refused(f"wave {canary.wave} comes before {recent.wave} and is planned"):
        cycle.migrate(incident, SPEC, recent)


@pytest.mark.begins("approved")
def test_a_wave_does_not_run_while_the_checks_of_the_one_ahead_were_deselected(incident: Engine) -> None:
    _, [canary, recent, _] = at_hand(incident)
    cycle.migrate(incident, SPEC, canary)
    before = cycle.rows_of(incident)

    with pytest.raises(RefusedError) as refusal:
        cycle.migrate(incident, SPEC, recent)

    assert [gate for gate in WAVE_GATES if f"{gate} was not evaluated" in refusal.value.message] == list(WAVE_GATES)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("begun")
@pytest.mark.parametrize("gate", WAVE_GATES)
def test_a_wave_does_not_run_after_a_red_check_of_the_one_ahead(incident: Engine, gate: str) -> None:
    execution, [canary, recent, _] = at_hand(incident)
    red = GateResult.of(gate, False, "made red", "look")
    with incident.begin() as connection:
        scope = Scope(execution=execution.execution_id, wave=canary.wave)
        gates.record(connection, scope, gates.WAVE_STAGE, red, "x")
    before = cycle.rows_of(incident)

    with pytest.raises(RefusedError, match=f"{gate} did not pass in execution .*{canary.wave}: made red"):
        cycle.migrate(incident, SPEC, recent)

    assert cycle.rows_of(incident) == before


@pytest.mark.begins("planned")
def test_a_changed_spec_makes_the_plan_stale_before_and_after_approval(incident: Engine, refused: Refused) -> None:
    plan = cycle.newest_plan(incident)
    other = cycle.spec_with(batch_rows=7)

    with refused("stale: the spec changed"):
        cycle.approve(incident, other, plan.plan_id)
    execution = cycle.approve(incident, SPEC, plan.plan_id)
    with refused("stale: the spec changed"):
        cycle.approve(incident, other, plan.plan_id)
    with refused("stale: the spec changed"):
        cycle.migrate(incident, other, cycle.waves_of(incident, execution)[0])
    assert cycle.approve(incident, SPEC, plan.plan_id).execution_id == execution.execution_id


@pytest.mark.begins("approved")
@pytest.mark.parametrize(
    "change",
    [
        "CREATE INDEX ON upload_pipeline.documents (filename)",
        "ALTER TABLE upload_pipeline.events ADD COLUMN note text",
        "ALTER TABLE upload_pipeline.documents DISABLE TRIGGER touch_updated_at",
        "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_document_id_fkey",
        "DROP POLICY own_jobs ON upload_pipeline.upload_jobs",
        "GRANT DELETE ON upload_pipeline.documents TO authenticated",
        "GRANT UPDATE (filename) ON upload_pipeline.documents TO authenticated",
        "ALTER TABLE upload_pipeline.documents FORCE ROW LEVEL SECURITY",
        """CREATE OR REPLACE FUNCTION upload_pipeline.touch_updated_at() RETURNS trigger LANGUAGE plpgsql
           AS 'BEGIN RETURN NEW; END'""",
        "CREATE TABLE upload_pipeline.notes (document_id uuid REFERENCES upload_pipeline.documents)",
    ],
)
def test_a_changed_catalog_makes_the_plan_stale(incident: Engine, refused: Refused, change: str) -> None:
    execution = cycle.newest_execution(incident)
    [canary, *_] = cycle.waves_of(incident, execution)
    store = cycle.bound_store(incident, SPEC)
    cycle.run_sql(incident, change)

    with refused("stale: the store's tables"):
        cycle.migrate(incident, SPEC, canary)
    with refused("stale: the store's tables"):
        # As a process does that read the catalog before the change.
        migration.run_wave(incident, store, canary.wave, cycle.RUN, lambda _: None)


@pytest.mark.begins("approved")
def test_statistics_and_new_rows_do_not_make_a_plan_stale(incident: Engine) -> None:
    _, [canary, *_] = at_hand(incident)
    cycle.run_sql(incident, "ANALYZE upload_pipeline.documents")
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT gen_random_uuid(), user_id, 'new', 'x', 1, repeat('e', 64), 'x'
           FROM upload_pipeline.documents LIMIT 1""",
    )

    assert cycle.migrate(incident, SPEC, canary).documents == 5


@pytest.mark.begins("approved")
def test_an_expired_approval_is_refused(incident: Engine, refused: Refused) -> None:
    _, [canary, *_] = at_hand(incident)
    cycle.run_sql(incident, "UPDATE uuid_pipeline.executions SET expires_at = now() - interval '1 second'")

    with refused("approval of plan .* expired"):
        cycle.migrate(incident, SPEC, canary)


@pytest.mark.begins("begun")
def test_an_execution_that_has_begun_in_time_may_end_after_its_approval_expired(incident: Engine) -> None:
    _, [_, recent, _] = at_hand(incident)
    cycle.run_sql(incident, "UPDATE uuid_pipeline.executions SET expires_at = now() - interval '1 second'")

    assert cycle.migrate(incident, SPEC, recent).documents == 15


@pytest.mark.begins("approved")
def test_a_second_approval_supersedes_a_first_that_has_moved_nothing(incident: Engine, refused: Refused) -> None:
    first, [canary, *_] = at_hand(incident)
    second, _ = approved(incident, cycle.spec_with(approval_hours=1))

    with refused("superseded"):
        cycle.migrate(incident, SPEC, canary)
    assert first.execution_id != second.execution_id


@pytest.mark.begins("planned")
def test_approving_the_same_plan_twice_is_one_execution(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)

    first, second = (cycle.approve(incident, SPEC, plan.plan_id) for _ in range(2))

    assert first == second


@pytest.mark.begins("approved")
def test_no_new_plan_is_approved_while_an_execution_has_begun_and_can_go_on(incident: Engine) -> None:
    execution, [canary, *_] = at_hand(incident)
    cycle.migrate(incident, SPEC, canary)

    with pytest.raises(RefusedError, match=f"Execution {execution.execution_id} .* has begun and can go on"):
        approved(incident)


@pytest.mark.begins("approved")
def test_the_execution_is_complete_only_when_every_gate_of_the_whole_store_is_green(incident: Engine) -> None:
    execution, _ = at_hand(incident)
    waves = cycle.all_waves_of(incident, execution)[:-1]  # the second sweep is not needed
    for wave in waves:
        assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") != [("completed",)]
        cycle.migrate(incident, SPEC, wave)
        cycle.assert_green(cycle.check_wave(incident, SPEC, wave))
        cycle.assert_green(cycle.validate(incident))

    assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") == [("completed",)]
    with incident.begin() as connection:
        assert ledger.unfinished(connection) is None
        assert ledger.execution(connection, execution.execution_id).status == "completed"


DAMAGE = {
    "whole_conservation": "UPDATE upload_pipeline.documents SET filename = 'x'",
    "timestamps_untouched": "UPDATE upload_pipeline.documents SET created_at = created_at - interval '1 day'",
    "whole_ids_exact": "UPDATE upload_pipeline.document_chunks c SET chunk_id = m.old_id "
    "FROM uuid_pipeline.id_map_chunk m WHERE m.new_id = c.chunk_id",
    "whole_no_dangling_reference": "UPDATE upload_pipeline.events SET document_id = gen_random_uuid()",
    "whole_schema_unchanged": "DROP INDEX upload_pipeline.uq_user_filehash",
}


@pytest.mark.begins("moved")
@pytest.mark.parametrize("gate", ["whole_ids_exact", "whole_no_dangling_reference", "whole_schema_unchanged"])
def test_a_check_of_the_whole_store_turns_red_when_the_store_is_damaged(incident: Engine, gate: str) -> None:
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(DAMAGE[gate])

    red = {result.gate for result in cycle.validate(incident) if not result.passed}

    assert gate in red
    assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") == [("running",)]


@pytest.mark.begins("moved")
def test_of_many_changes_to_the_schema_each_kind_is_named(incident: Engine) -> None:
    for n in range(50):
        cycle.run_sql(incident, f"ALTER TABLE upload_pipeline.documents ADD COLUMN extra_{n} int")
    cycle.run_sql(incident, "DROP POLICY own_documents ON upload_pipeline.documents")

    [found] = [one for one in cycle.validate(incident) if one.gate == "whole_schema_unchanged"]

    assert found.finding.startswith("51 differ: ")
    assert "own_documents is gone" in found.finding
    assert found.finding.endswith("; and 11 more")


LAST_CHUNK = "SELECT old_id, new_id FROM uuid_pipeline.id_map_chunk ORDER BY ordinal DESC, old_id LIMIT 1"
CHUNK_PUT_BACK = """
UPDATE upload_pipeline.document_chunks c SET chunk_id = m.old_id
FROM (SELECT old_id, new_id FROM uuid_pipeline.id_map_chunk ORDER BY ordinal DESC, old_id LIMIT 1) m
WHERE c.chunk_id = m.new_id
"""
MAPPED = """
SELECT (SELECT count(*) FROM uuid_pipeline.id_map_document) + (SELECT count(*) FROM uuid_pipeline.id_map_chunk)
"""


def tamper(engine: Engine, statement: str) -> None:
    """Behind the back of keys and triggers."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(statement)


def whole_ids(engine: Engine) -> GateResult:
    bound = cycle.bound_store(engine, SPEC)
    with engine.begin() as connection:
        return exactness.whole_ids_exact(connection, bound, ledger.executions(connection)[0])


@pytest.mark.begins("moved")
def test_the_whole_store_s_check_counts_each_row_of_every_wave_once_and_names_the_one_that_was_put_back(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "STATISTICS_SECONDS", 0)
    [(rows,)] = cycle.run_sql(incident, MAPPED)
    assert len(at_hand(incident)[1]) == 3

    assert whole_ids(incident).figures == {"recomputed": rows, "wrong": 0, "returned": 0}

    tamper(incident, CHUNK_PUT_BACK)
    [(old, new)] = cycle.run_sql(incident, LAST_CHUNK)
    found = whole_ids(incident)
    assert found.finding == f"1 wrong: chunk {old} should be {new}"
    # Whoever put it back wrote it since the migration began, as the application would; but nobody deleted a row.
    assert found.figures == {"recomputed": rows - 1, "wrong": 1, "returned": 1}


EVENTS_PUT_BACK = """
UPDATE upload_pipeline.events e SET document_id = m.old_id
FROM uuid_pipeline.id_map_document m WHERE m.new_id = e.document_id AND m.ordinal = 1
"""
DOCUMENT_PUT_BACK = """
UPDATE upload_pipeline.documents d SET document_id = m.old_id
FROM uuid_pipeline.id_map_document m WHERE m.new_id = d.document_id AND m.ordinal = 1
"""


def said_of_dangling(engine: Engine, wave: ledger.Wave) -> str:
    bound = cycle.bound_store(engine, SPEC)
    with engine.begin() as connection:
        return dangling.no_dangling_reference(connection, bound, ledger.wave(connection, wave.wave)).finding


@pytest.mark.begins("moved")
def test_a_reference_to_an_old_id_dangles_in_the_wave_that_moved_it_unless_a_row_stands_there(incident: Engine) -> None:
    first, second, _ = at_hand(incident)[1]
    of_first = """SELECT count(*) FROM upload_pipeline.events e JOIN uuid_pipeline.id_map_document m
                  ON m.new_id = e.document_id WHERE m.ordinal = 1"""
    [(events,)] = cycle.run_sql(incident, of_first)
    assert events > 1

    tamper(incident, EVENTS_PUT_BACK)
    [(old,)] = cycle.run_sql(incident, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = 1")
    assert said_of_dangling(incident, first) == f"dangling: events.document_id {events} ({old})"
    assert said_of_dangling(incident, second).startswith("0 dangling")

    tamper(incident, DOCUMENT_PUT_BACK)
    assert said_of_dangling(incident, first).startswith("0 dangling")


@pytest.mark.begins("moved")
@pytest.mark.parametrize("gate", ["whole_conservation", "timestamps_untouched"])
def test_a_value_that_changes_where_nobody_else_wrote_turns_the_whole_red(
    incident: Engine, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "STATISTICS_SECONDS", 0)
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(DAMAGE[gate])
        # Damage of our own making: its transaction stands in the journal as a batch's.
        connection.exec_driver_sql(
            """INSERT INTO uuid_pipeline.batches (execution_id, wave, direction, first_ordinal, last_ordinal, moved,
                   fingerprints, lease_epoch, milliseconds)
               SELECT execution_id, wave, direction, first_ordinal, last_ordinal, '{}', '{}', 0, 0
               FROM uuid_pipeline.batches LIMIT 1"""
        )

    red = {result.gate for result in cycle.validate(incident) if not result.passed}

    assert gate in red
    assert cycle.run_sql(incident, "SELECT status FROM uuid_pipeline.executions") == [("running",)]


@pytest.mark.begins("moved")
def test_what_the_application_wrote_is_said_and_is_no_damage(incident: Engine) -> None:
    cycle.run_sql(incident, DAMAGE["whole_conservation"])

    found = {result.gate: result for result in cycle.validate(incident)}

    cycle.assert_green(found.values())
    assert "The application wrote to upload_pipeline.documents (38 writes seen)" in found["whole_conservation"].finding


@pytest.mark.begins("moved")
@pytest.mark.parametrize("statement", ["DELETE", "INSERT"])
def test_rows_that_the_application_deleted_or_added_since_are_no_damage(incident: Engine, statement: str) -> None:
    statements = {
        "DELETE": """DELETE FROM upload_pipeline.events
                     WHERE event_id IN (SELECT event_id FROM upload_pipeline.events LIMIT 1)""",
        "INSERT": """INSERT INTO upload_pipeline.events
                     SELECT gen_random_uuid(), job_id, document_id, ts, type, severity, code, payload, correlation_id
                     FROM upload_pipeline.events LIMIT 1""",
    }
    with cycle.session(incident) as application:
        application.execute(statements[statement].encode())
        application.commit()
        # Its server process reports a delete to the statistics when it is next busy, a second later or more.
        next_work = threading.Timer(1.2, application.execute, ["SELECT 1; COMMIT"])
        next_work.start()

        found = cycle.validate(incident)

        next_work.join()
    cycle.assert_green(found)


NOWHERE = "11111111-1111-4111-8111-111111111111"
EVENT_OF_NOWHERE = """
UPDATE upload_pipeline.events SET document_id = '11111111-1111-4111-8111-111111111111'
WHERE event_id = (SELECT event_id FROM upload_pipeline.events ORDER BY event_id LIMIT 1)
"""


@pytest.mark.begins("migrated")
def test_an_id_of_no_row_is_named_when_it_is_validated_and_when_it_is_rolled_back(incident: Engine) -> None:
    """Somebody wrote it past the foreign key; putting it right is all that is wanted."""
    tamper(incident, EVENT_OF_NOWHERE)
    said = f"events.document_id 1 ({NOWHERE})"

    [found] = [one for one in cycle.validate(incident) if one.gate == "whole_no_dangling_reference"]
    assert found.finding == f"dangling: {said}"
    assert "put that right and validate again" in found.remedy

    with pytest.raises(RefusedError, match=re.escape(f"not there: {said}. Where somebody wrote these ids")):
        cycle.roll_back(incident, SPEC)
    right = "SELECT count(*) FROM upload_pipeline.events NATURAL JOIN upload_pipeline.documents"
    assert cycle.run_sql(incident, right) == [(len(cycle.rows_of(incident)["events"]) - 1,)]
