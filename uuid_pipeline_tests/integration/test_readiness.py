"""Production readiness: each criterion follows the store, and the verdict follows the criteria."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import finalizing, ledger, planning
from uuid_pipeline.engine.catalog import read_catalog
from uuid_pipeline.engine.evidence import figures, lookups, present, readiness, readiness_criteria
from uuid_pipeline.engine.evidence.lookups import Timing
from uuid_pipeline.engine.evidence.readiness import Criterion, Readiness
from uuid_pipeline.engine.plans import notice_facts
from uuid_pipeline.engine.store import bind
from uuid_pipeline.spec import Describe, load_spec, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)


def judged(engine: Engine, spec: Any = SPEC) -> dict[str, Criterion]:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        found = readiness.subject(connection)
        assert found is not None
        evidence = readiness.gather(connection, bind(spec, read_catalog(connection, spec.schema_name)), *found)
        return {criterion.name: criterion for criterion in readiness_criteria.evaluate(evidence).criteria}


def overall(found: dict[str, Criterion]) -> str:
    return Readiness(tuple(found.values())).verdict


def new_document(engine: Engine, key: str, user: str, sha: str) -> None:
    cycle.run_sql(
        engine,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           VALUES (%(id)s, %(user)s, 'new.pdf', 'application/pdf', 1, %(sha)s, 'storage://new')""",
        id=key, user=user, sha=sha,
    )  # fmt: skip


@pytest.mark.begins("planned")
def test_a_plan_that_nobody_approved_is_not_ready_and_says_the_command(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)

    found = judged(incident)

    assert overall(found) == "not ready"
    assert found["data_migration"].action is not None
    assert found["data_migration"].action.command == f"uuid-pipeline approve {plan.plan_id}"
    assert found["id_consistency"].verdict == found["user_impact"].verdict == "not ready"
    assert found["lookup_by_target"].figure.startswith("0 of 38 found now")
    assert found["conservation"].verdict == "not measured"


def test_after_the_migration_everything_that_was_measured_is_ready(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        timed = lookups.measure_inventory(connection, assessed.store, assessed.number)
        figures.record(connection, "lookups", timed.as_record(), assessment=assessed.number)
    execution = cycle.approve(incident, SPEC, cycle.plan(incident, assessed).plan_id)
    cycle.migrate_all(incident, SPEC, execution)
    cycle.assert_green(cycle.validate(incident))

    found = judged(incident)

    assert (timed.sampled, timed.found_by_target, timed.with_children_by_target) == (38, 0, 0)
    assert found["lookup_by_target"].figure == "0 of 38 before; 38 of 38 found now, 29 of them with chunks"
    assert found["user_impact"].figure == "27 users affected before, 0 now"
    assert found["pipeline_consistency"].figure.startswith("29 of 38 documents have chunks: 76.3 %")
    assert {name for name, criterion in found.items() if criterion.verdict == "not ready"} == {"pipeline_consistency"}
    assert not found["pipeline_consistency"].binds
    assert found["new_documents"].verdict == found["backup"].verdict == "not measured"


@pytest.mark.begins("migrated")
def test_after_a_rollback_it_is_not_ready_again(incident: Engine) -> None:
    cycle.roll_back(incident, SPEC)

    found = judged(incident)

    assert overall(found) == "not ready"
    assert found["data_migration"].figure == "0 of 38 planned documents moved or merged (0.0 %); execution rolled back"
    assert found["user_impact"].figure == "27 users affected before, 27 now"
    assert found["lookup_by_target"].verdict == "not ready"


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(("wave", "moved"), [(None, 0), ("canary", 33)], ids=["all of it", "one wave"])
def test_finalizing_what_was_rolled_back_makes_it_no_migration(incident: Engine, wave: str | None, moved: int) -> None:
    cycle.roll_back(incident, SPEC, wave)
    counted = f"{moved} of 38 planned documents moved or merged"
    assert judged(incident)["data_migration"].figure.startswith(counted)

    finalizing.finalize(incident, cycle.bound_store(incident, SPEC), cycle.RUN)

    found = judged(incident)
    assert found["data_migration"].figure.startswith(counted)
    assert (found["data_migration"].verdict, overall(found)) == ("not ready", "not ready")
    with incident.begin() as connection:
        assert notice_facts.kind_now(connection) == "rollback"


@pytest.mark.begins("begun")
def test_finalizing_what_was_cancelled_makes_it_no_migration(incident: Engine) -> None:
    with incident.begin() as connection:
        ledger.change_status(connection, cycle.newest_execution(incident).execution_id, "cancelled")

    finalizing.finalize(incident, cycle.bound_store(incident, SPEC), cycle.RUN)

    assert judged(incident)["data_migration"].verdict == "not ready"


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(("right", "verdict"), [(True, "ready"), (False, "not ready")])
def test_new_documents_are_recomputed_and_a_wrong_one_stands_in_the_way(
    incident: Engine, right: bool, verdict: str
) -> None:
    assert judged(incident)["new_documents"].verdict == "not measured"
    user, sha = str(uuid.uuid4()), "ab" * 32
    key = uuid.uuid5(cycle.NAMESPACE, f"{user}:{sha}") if right else uuid.uuid4()

    new_document(incident, str(key), user, sha)

    found = judged(incident)
    assert found["new_documents"].verdict == verdict
    assert found["new_documents"].binds is not right
    assert (overall(found) == "not ready") is not right


def test_where_only_quarantined_documents_are_left_their_owner_is_to_mend_them(incident: Engine) -> None:
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = 'no hash' WHERE document_id = (
               SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)""",
    )
    cycle.run_all(incident, SPEC)

    impact = judged(incident)["user_impact"]

    assert impact.verdict == "not ready"
    assert impact.action is not None
    assert (impact.action.who, impact.action.command) == ("owner of the data", "uuid-pipeline inventory")
    assert "1 quarantined" in impact.action.what


@pytest.mark.begins("migrated")
def test_a_spec_without_a_creation_date_is_told_to_name_it(incident: Engine) -> None:
    document = SPEC.entities["document"]
    described = document.describe.model_copy(update={"created_at": None})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document.model_copy(update={"describe": described})})

    action = judged(incident, spec)["new_documents"].action

    assert action is not None
    assert "describe.created_at" in action.what


@pytest.mark.begins("migrated")
def test_an_orphan_and_a_red_gate_stand_in_the_way_by_name(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(
            "DELETE FROM upload_pipeline.documents WHERE document_id = "
            "(SELECT document_id FROM upload_pipeline.document_chunks LIMIT 1)"
        )
        connection.exec_driver_sql(
            "UPDATE uuid_pipeline.gates SET passed = false, finding = 'seen red' "
            "WHERE execution_id = %(id)s AND gate = 'timestamps_untouched'",
            {"id": execution.execution_id},
        )

    found = judged(incident)

    assert found["orphans"].verdict == found["schema"].verdict == found["gates"].verdict == "not ready"
    assert "document_chunks.document_id 3" in found["orphans"].figure
    assert "seen red" in found["schema"].figure


@pytest.mark.begins("migrated")
def test_the_present_is_counted_from_the_rows(incident: Engine) -> None:
    [(one, user)] = cycle.run_sql(
        incident,
        """SELECT document_id::text, user_id::text FROM upload_pipeline.documents d
           WHERE NOT EXISTS (SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id = d.document_id)
           ORDER BY user_id LIMIT 1""",
    )
    with incident.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in ("documents", "upload_jobs", "events"):
            connection.exec_driver_sql(
                f"UPDATE upload_pipeline.{table} SET document_id = gen_random_uuid() WHERE document_id = %(id)s",  # noqa: S608
                {"id": one},
            )
        connection.exec_driver_sql("UPDATE upload_pipeline.events SET document_id = gen_random_uuid() WHERE false")
    since = datetime.now(UTC) - timedelta(days=3)

    with incident.begin() as connection:
        now = present.count(connection, cycle.bound(connection, SPEC), since)

    [(recent,)] = cycle.run_sql(
        incident, "SELECT count(*) FROM upload_pipeline.documents WHERE created_at > %(since)s", since=since
    )
    assert (now.documents, now.deterministic, now.random, now.due) == (38, 37, 1, 1)
    assert (now.users, now.affected_users, now.with_children, now.new) == (27, 1, 29, recent)
    assert user


def test_the_present_of_a_spec_that_describes_nothing_is_counted_all_the_same(incident: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"describe": Describe()})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})

    with incident.begin() as connection:
        now = present.count(connection, cycle.bound(connection, spec), datetime.now(UTC))

    assert (now.documents, now.random, now.users, now.affected_users, now.new) == (38, 38, None, None, None)


def test_documents_of_every_kind_are_judged_by_their_ids(empty_store: Engine) -> None:
    spec = parse_spec(
        f"namespace: {cycle.NAMESPACE}\nschema: s\nentities:\n"
        + "".join(f'  {name}: {{table: {name}, key: id, identity: "{{a}}"}}\n' for name in ("albums", "books")),
        "test",
    )
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA s;
           CREATE TABLE s.albums (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), a text);
           CREATE TABLE s.books (LIKE s.albums INCLUDING ALL);
           INSERT INTO s.albums (a) VALUES ('a');
           INSERT INTO s.books (a) VALUES ('a')""",
    )
    cycle.run_all(empty_store, spec)
    assert judged(empty_store, spec)["id_consistency"].verdict == "ready"

    cycle.run_sql(empty_store, "INSERT INTO s.books (a) VALUES ('b'), (NULL)")

    found = judged(empty_store, spec)["id_consistency"]
    assert found.verdict == "not ready"
    assert found.figure.startswith("2 of 4 ids equal their recomputed target id; mismatch 50.0 %")
    assert found.figure.endswith("1 quarantined")


def test_an_empty_store_is_measured_as_empty(empty_store: Engine) -> None:
    spec = parse_spec(
        f'namespace: {cycle.NAMESPACE}\nschema: s\nentities: {{e: {{table: t, key: id, identity: "{{a}}"}}}}',
        "test",
    )
    cycle.run_sql(empty_store, "CREATE SCHEMA s")
    cycle.run_sql(empty_store, "CREATE TABLE s.t (id uuid PRIMARY KEY, a text)")
    plan = cycle.assess_and_plan(empty_store, spec)

    found = judged(empty_store, spec)

    assert plan.nothing_to_do
    assert found["data_migration"].figure == "nothing to move"
    assert found["id_consistency"].verdict == found["lookup_by_target"].verdict == "not measured"
    assert found["user_impact"].binds is False


@pytest.mark.begins("migrated")
def test_a_plan_made_after_an_execution_is_the_subject_only_where_it_has_something_to_move(incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    cycle.assess_and_plan(incident, SPEC)
    with incident.begin() as connection:
        assert readiness.subject(connection) == (
            planning.of_assessment(connection, execution.assessment_no),
            ledger.execution(connection, execution.execution_id),
        )  # fmt: skip
    new_document(incident, str(uuid.uuid4()), str(uuid.uuid4()), "cd" * 32)
    newer = cycle.assess_and_plan(incident, SPEC)

    with incident.begin() as connection:
        assert readiness.subject(connection) == (newer, None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(1.0, 1.4, False), (1.0, 1.9, False), (3.0, 4.4, False), (3.0, 4.6, True), (10.0, 16.0, True), (10.0, 9.0, False)],
)
def test_slower_means_half_as_slow_again_and_more_than_noise(before: float, after: float, expected: bool) -> None:
    assert lookups.degraded(Timing(before, before), Timing(after, after)) is expected


@pytest.mark.parametrize(("trip", "slower"), [(0.1, True), (4.0, False), (0.3, True)])
def test_what_slows_any_round_trip_is_not_held_against_the_tables(trip: float, slower: bool) -> None:
    then, now = Timing(0.2, 0.3), Timing(9.0, 12.0)

    assert lookups.degraded(then, now, (Timing(0.1, 0.2), Timing(trip, trip))) is slower


def test_the_verdict_follows_the_criteria_that_bind() -> None:
    ready = Criterion("a", "A", "", "", "ready")
    unmeasured, red = replace(ready, verdict="not measured"), replace(ready, verdict="not ready")

    assert Readiness((ready, replace(red, binds=False), replace(unmeasured, binds=False))).verdict == "ready"
    assert Readiness((ready, unmeasured)).verdict == "not measured"
    assert Readiness((ready, unmeasured, red)).verdict == "not ready"
