"""The profile: what hides rows, what is missing, what would be tripped over; said before anything is written."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger, profile, sql, sync_points
from uuid_pipeline.engine.altered.triggers import MissingRight
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.errors import BatchError, RefusedError
from uuid_pipeline.spec import IgnoredReference, SoftReference, Waves, load_spec
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
TABLES = (
    "upload_pipeline.documents, upload_pipeline.document_chunks, upload_pipeline.upload_jobs, upload_pipeline.events"
)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Engines to dispose of after the test."""
    opened: list[Engine] = []
    yield opened
    for engine in opened:
        engine.dispose()


def connected(engines: list[Engine], url: str, role: str) -> Engine:
    engines.append(open_store(as_role(url, role)))
    return engines[-1]


def missing(engine: Engine) -> list[MissingRight]:
    with engine.begin() as connection:
        return profile.missing_rights(connection, cycle.bound(connection, SPEC))


def described(engine: Engine) -> dict[str, Any]:
    with engine.begin() as connection:
        return profile.describe(connection, cycle.bound(connection, SPEC))


def has_ledger(engine: Engine) -> bool:
    with engine.begin() as connection:
        return ledger.exists(connection)


def test_a_role_from_which_a_policy_hides_rows_is_refused(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    role = new_role()
    cycle.run_sql(incident, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    cycle.run_sql(incident, f"GRANT SELECT, UPDATE ON {TABLES} TO {role}")

    with pytest.raises(RefusedError) as refusal:
        cycle.assess(connected(engines, incident_url, role), SPEC)

    message = refusal.value.message
    assert "Row-level security hides rows of upload_pipeline.document" in message
    assert f"ALTER ROLE {role} BYPASSRLS;" in message
    assert not has_ledger(incident)


def test_forced_row_security_hides_rows_from_the_owner_too(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    role = new_role()
    cycle.run_sql(incident, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    for table in TABLES.split(", "):
        cycle.run_sql(incident, f"ALTER TABLE {table} OWNER TO {role}")
    owner = connected(engines, incident_url, role)
    with owner.begin() as connection:
        assert profile.hidden_tables(cycle.bound(connection, SPEC)) == []

    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents FORCE ROW LEVEL SECURITY")

    with pytest.raises(RefusedError, match=r"hides rows of upload_pipeline\.documents from the role"):
        cycle.assess(owner, SPEC)


def test_missing_rights_are_named_with_the_grants_that_then_suffice_for_the_whole_cycle(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    role = new_role("BYPASSRLS")
    before = cycle.rows_of(incident)
    poor = connected(engines, incident_url, role)

    with pytest.raises(RefusedError) as refusal:
        cycle.assess(poor, SPEC)

    message = refusal.value.message
    assert f"The role {role} lacks rights" in message
    assert not has_ledger(incident)
    assert "session_replication_role" not in message
    grants = re.findall(r"GRANT [^;]+;", message)
    assert len(grants) == len(message.splitlines()) - 1 == 14
    for grant in grants:
        cycle.run_sql(incident, grant)
    assert missing(poor) == []
    assert described(poor)["tier"] == "O"
    cycle.run_sql(incident, f"GRANT SET ON PARAMETER session_replication_role TO {role}")
    poor.dispose()  # a connection has tried it once, and keeps the answer
    assert described(poor)["tier"] == "R"
    cycle.run_all(poor, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    cycle.roll_back(poor, SPEC)
    assert cycle.rows_of(incident) == before


def test_update_on_the_id_columns_alone_suffices_as_far_as_it_is_asked(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    role = new_role("BYPASSRLS")
    poor = connected(engines, incident_url, role)
    for right in missing(poor):
        cycle.run_sql(incident, right.remedy)
    cycle.run_sql(incident, f"REVOKE UPDATE ON upload_pipeline.events FROM {role}")

    assert [(right.right, right.object) for right in missing(poor)] == [("UPDATE", "table upload_pipeline.events")]


def test_a_ledger_of_another_role_is_named_as_missing_ownership(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    role = new_role("BYPASSRLS")
    poor = connected(engines, incident_url, role)
    for right in missing(poor):
        cycle.run_sql(incident, right.remedy)
    cycle.assess(incident, SPEC)

    found = missing(poor)

    assert [(right.right, right.object) for right in found] == [("ownership", "schema uuid_pipeline (the ledger)")]
    assert found[0].remedy == "connect as postgres, who made it"


def test_everybody_else_is_kept_out_of_the_ledger(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    cycle.assess(incident, SPEC)
    other = connected(engines, incident_url, new_role())

    assert cycle.run_sql(other, "SELECT has_schema_privilege('uuid_pipeline', 'USAGE')") == [(False,)]


def test_the_profile_writes_nothing(incident: Engine) -> None:
    rows, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    with incident.begin() as connection:
        store = cycle.bound(connection, SPEC)
        profile.require_access(connection, store)
        profile.describe(connection, store)

    assert (cycle.rows_of(incident), cycle.catalog_of(incident)) == (rows, objects)
    assert not has_ledger(incident)


def test_merging_asks_for_delete_and_insert_where_rows_may_be_displaced_and_nothing_else_does(
    incident: Engine, incident_url: str, new_role: NewRole, engines: list[Engine]
) -> None:
    poor = connected(engines, incident_url, new_role("BYPASSRLS"))
    for right in missing(poor):
        cycle.run_sql(incident, right.remedy)
    assert missing(poor) == []
    with poor.begin() as connection:
        asked = profile.missing_merge_rights(connection, cycle.bound(connection, SPEC))

    assert {(right.right, right.object.split()[1]) for right in asked} == {
        (right, f"upload_pipeline.{table}")
        for right in ("DELETE", "INSERT")
        for table in ("documents", "document_chunks")
    }
    for right in asked:
        cycle.run_sql(incident, right.remedy)
    with poor.begin() as connection:
        assert profile.missing_merge_rights(connection, cycle.bound(connection, SPEC)) == []


def test_references_by_foreign_key_are_found_and_triggers_to_silence_named(incident: Engine) -> None:
    with incident.begin() as connection:
        found = profile.describe(connection, cycle.bound(connection, SPEC))

    assert {(r["table"], r["column"], r["entity"]) for r in found["references"]} == {
        ("document_chunks", "document_id", "document"),
        ("events", "document_id", "document"),
        ("upload_jobs", "document_id", "document"),
    }
    assert {(t["schema"], t["table"]) for t in found["silenced_triggers"]} == {
        ("upload_pipeline", table) for table in ("documents", "document_chunks", "upload_jobs")
    }
    assert found["skipped"] == [
        "soft reference: schema upload_pipeline has no table document_vector_buffer; "
        "the nearest it has is document_chunks"
    ]


SEEN = "CREATE TABLE upload_pipeline.seen AS SELECT document_id AS doc, user_id FROM upload_pipeline.documents"


def test_a_uuid_column_that_holds_ids_undeclared_turns_references_known_red(incident: Engine) -> None:
    cycle.run_sql(incident, SEEN)

    gate = cycle.assess(incident, SPEC).gates["references_known"]

    assert not gate.passed
    assert gate.finding == "undeclared references: seen.doc holds 38 document ids"
    assert "- {table: seen, column: doc, entity: document}" in gate.remedy


def test_once_declared_it_is_moved_and_once_ignored_it_is_left(incident: Engine) -> None:
    cycle.run_sql(incident, SEEN)
    before = cycle.rows_of(incident)
    declared = cycle.spec_with(soft_references=[SoftReference(table="seen", column="doc", entity="document")])
    ignored = cycle.spec_with(
        ignore_references=[*SPEC.ignore_references, IgnoredReference(table="seen", column="doc", reason="history")]
    )
    new = cycle.targets(before)

    cycle.run_all(incident, ignored)
    assert cycle.rows_of(incident)["seen"] == before["seen"]
    cycle.roll_back(incident, ignored)
    cycle.run_all(incident, declared)

    assert cycle.rows_of(incident)["seen"] == cycle.ordered(
        [{**row, "doc": new[str(row["doc"])]} for row in before["seen"]]
    )


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_a_plan_says_which_references_are_looked_up_without_an_index(incident: Engine, kind: str) -> None:
    cycle.run_sql(incident, SEEN)
    cycle.run_sql(incident, f"ALTER TABLE upload_pipeline.seen ALTER doc TYPE {kind}")
    declared = cycle.spec_with(soft_references=[SoftReference(table="seen", column="doc", entity="document")])
    risk = "upload_pipeline.seen: no index on doc; every batch scans the table"

    assert risk in cycle.assess_and_plan(incident, declared).content["risks"]
    cycle.run_sql(incident, "CREATE INDEX ON upload_pipeline.seen (doc)")
    assert risk not in cycle.assess_and_plan(incident, declared).content["risks"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            "CREATE RULE quiet AS ON UPDATE TO upload_pipeline.events DO INSTEAD NOTHING",
            "upload_pipeline.events has rewrite rules",
        ),
        (
            "CREATE TABLE upload_pipeline.more () INHERITS (upload_pipeline.documents)",
            "takes part in table inheritance",
        ),
        (
            "ALTER TABLE upload_pipeline.events REPLICA IDENTITY NOTHING; "
            "CREATE PUBLICATION p FOR TABLE upload_pipeline.events",
            'every UPDATE of upload_pipeline.events fails: cannot update table "events" because it does not have a '
            "replica identity",
        ),
        (
            """CREATE TABLE upload_pipeline.parts (
                   document_id uuid NOT NULL REFERENCES upload_pipeline.documents, n int
               ) PARTITION BY LIST (n)""",
            "upload_pipeline.parts is partitioned",
        ),
    ],
)
def test_what_this_version_cannot_do_is_red_by_name(incident: Engine, change: str, finding: str) -> None:
    cycle.run_sql(incident, change)

    gate = cycle.assess(incident, SPEC).gates["nothing_unsupported"]

    assert not gate.passed
    assert finding in gate.finding


def test_what_the_spec_asks_and_this_version_cannot_do_is_red_by_name(incident: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"busy": "processing_state = 'chunking'"})
    asking = SPEC.model_copy(
        update={"triggers": {"touch_update_at": "fire"}, "entities": {**SPEC.entities, "document": document}}
    )

    gate = cycle.assess(incident, asking).gates["nothing_unsupported"]

    assert not gate.passed
    assert "the spec's triggers name touch_update_at, which no table that moves has" in gate.finding
    assert "busy predicate of document is no condition on documents" in gate.finding
    assert "processing_state" in gate.finding


def test_a_trigger_that_came_unseen_is_caught_by_the_batchs_own_proof_with_the_rows_side_by_side(
    incident: Engine,
) -> None:
    spec = cycle.spec_with(waves=Waves(canary=38))
    execution = cycle.approve(incident, spec, cycle.assess_and_plan(incident, spec).plan_id)
    before = cycle.rows_of(incident)
    victim = before["documents"][0]
    spoil = f"""CREATE FUNCTION upload_pipeline.spoil() RETURNS trigger LANGUAGE plpgsql AS
                    $$BEGIN NEW.filename := 'spoilt'; RETURN NEW; END$$;
                CREATE TRIGGER spoil BEFORE UPDATE ON upload_pipeline.documents FOR EACH ROW
                    WHEN (OLD.filename = '{victim["filename"]}') EXECUTE FUNCTION upload_pipeline.spoil();
                ALTER TABLE upload_pipeline.documents ENABLE ALWAYS TRIGGER spoil"""

    def come_unseen() -> None:
        cycle.run_sql(incident, spoil)

    sync_points.on("guarded", come_unseen)
    try:
        with pytest.raises(BatchError, match=r"changed in more than their ids.*upload_pipeline\.documents") as caught:
            cycle.migrate_all(incident, spec, execution)
    finally:
        sync_points.clear()

    target = next(new for old, new in cycle.targets(before).items() if old == victim["document_id"])
    assert f"documents (document_id {target}): filename should be '{victim['filename']}' and is 'spoilt'" in str(
        caught.value
    )


def known(engine: Engine) -> GateResult:
    with engine.begin() as connection:
        store = cycle.bound(connection, SPEC)
        return references.known_or_nothing_due(connection, store, references.search(connection, store))


@pytest.mark.begins("migrated")
def test_where_nothing_is_due_an_undeclared_column_is_named_and_stops_nothing(incident: Engine) -> None:
    """As when an outbox trigger that the spec lets fire has written the new ids down."""
    cycle.run_sql(incident, SEEN)

    gate = known(incident)

    assert gate.passed
    assert gate.finding.startswith("nothing is due, so no id will change; before anything is, declare or ignore: ")
    assert "seen.doc holds 38 document ids" in gate.finding


NEW_DOCUMENT = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
SELECT gen_random_uuid(), user_id, filename, mime, bytes_len, repeat('0', 64), raw_path
FROM upload_pipeline.documents LIMIT 1
"""
STRAY_CHUNK = """
UPDATE upload_pipeline.document_chunks SET chunk_id = gen_random_uuid()
WHERE chunk_id = (SELECT min(chunk_id::text)::uuid FROM upload_pipeline.document_chunks)
"""


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("deed", [NEW_DOCUMENT, STRAY_CHUNK], ids=["a document", "a chunk"])
def test_one_row_that_is_due_at_any_level_is_enough_to_stop(incident: Engine, deed: str) -> None:
    cycle.run_sql(incident, SEEN)
    cycle.run_sql(incident, deed)

    assert not known(incident).passed


def test_a_row_that_became_due_after_the_gate_refuses_the_plan(incident: Engine) -> None:
    """The gate passed while nothing was due; the inventory found what came since."""
    assessed = cycle.assess(incident, SPEC)
    cycle.run_sql(incident, SEEN)
    with incident.begin() as connection:
        searched = references.as_data(references.search(connection, cycle.bound(connection, SPEC)))
        sql.execute(
            connection,
            "UPDATE uuid_pipeline.assessments SET profile = profile || jsonb_build_object('search', %(found)s::jsonb)",
            {"found": json.dumps(searched)},
        )

    with pytest.raises(RefusedError, match=r"(?s)Rows became due .* seen\.doc holds 38 document ids.* then plan again"):
        cycle.plan(incident, assessed)
