"""The end: refused while old ids are in use; then the aliases go, and the ledger, without a trace."""

import re
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.cli.status import next_step
from uuid_pipeline.engine import control, finalizing, ledger, rollback, sync_points
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine.installed import aliases
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Aliases, Spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle, test_sweep

SPEC = cycle.spec_with()
AT_ONCE = cycle.spec_with(aliases=Aliases(quiet_hours=0))
JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(document)s, 'queued')
RETURNING document_id::text
"""
# Everything that is in the database, but for what its server makes by itself.
EVERYTHING = """
SELECT 'schema', nspname::text, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
UNION ALL SELECT 'relation', c.oid::text, concat_ws(' ', relname, relkind, relacl) FROM pg_class c
          JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^pg_(toast|(toast_)?temp_)'
UNION ALL SELECT 'function', p.oid::text, concat_ws(' ', proname, proacl, md5(prosrc)) FROM pg_proc p
UNION ALL SELECT 'trigger', t.oid::text, pg_get_triggerdef(t.oid) FROM pg_trigger t
UNION ALL SELECT 'default', d.oid::text, defaclacl::text FROM pg_default_acl d
UNION ALL SELECT 'event trigger', evtname::text, NULL FROM pg_event_trigger
UNION ALL SELECT 'extension', extname::text, extversion FROM pg_extension
ORDER BY 1, 2, 3
"""


@pytest.fixture
def store(incident_with_buffer: Engine) -> Engine:
    return incident_with_buffer


def finalize(store: Engine, spec: Spec) -> list[str]:
    return finalizing.finalize(store, cycle.bound_store(store, spec), cycle.RUN)


def status(store: Engine, execution: ledger.Execution) -> str:
    with store.begin() as connection:
        return ledger.execution(connection, execution.execution_id).status


def everything(store: Engine) -> list[tuple[str, ...]]:
    with cycle.session(store) as connection:
        return connection.execute(EVERYTHING).fetchall()


@pytest.mark.begins("migrated")
def test_old_ids_in_use_keep_the_aliases_and_after_quiet_hours_nothing_of_them_is_left(
    store: Engine, before: cycle.Rows, objects_before: list[tuple[Any, ...]]
) -> None:
    old = str(before["documents"][0]["document_id"])
    execution = cycle.newest_execution(store)
    assert cycle.run_sql(store, JOB, document=old) == [(cycle.targets(before)[old],)]

    with pytest.raises(RefusedError, match=r"old ids are still in use \(document: 1 uses, .* last 24 hours"):
        finalize(store, SPEC)
    assert status(store, execution) == "completed"
    assert len(cycle.alias_triggers(store)) == 5

    # The same use, 23 and then 25 hours ago.
    for hours, quiet in ((23, False), (25, True)):
        back = "SELECT setval('uuid_pipeline.alias_last_document', extract(epoch FROM now())::bigint - %(seconds)s)"
        cycle.run_sql(store, back, seconds=hours * 3600)
        if not quiet:
            with pytest.raises(RefusedError, match="still in use"):
                finalize(store, SPEC)
    assert finalize(store, SPEC) == [execution.execution_id]

    assert status(store, execution) == "finalized"
    assert cycle.alias_triggers(store) == []
    assert cycle.catalog_of(store) == objects_before
    with pytest.raises(Exception, match="violates foreign key constraint"):
        cycle.run_sql(store, JOB, document=old)
    with store.begin() as connection:
        assert rollback.choose(connection, None) == []
        assert finalizing.consequences(connection) == []
    assert finalize(store, SPEC) == []


@pytest.mark.begins("migrated")
def test_without_quiet_hours_the_aliases_go_at_once_after_a_rollback_too(store: Engine, before: cycle.Rows) -> None:
    old = str(before["documents"][0]["document_id"])
    new = cycle.targets(before)[old]
    execution = cycle.newest_execution(store)
    cycle.roll_back(store, SPEC)
    # The new ids are the stale ones now.
    assert cycle.run_sql(store, JOB, document=new) == [(old,)]
    assert cycle.run_sql(store, "SELECT uuid_pipeline.resolve_document(%(new)s)::text", new=new) == [(old,)]

    assert finalize(store, AT_ONCE) == [execution.execution_id]

    assert cycle.alias_triggers(store) == []
    with pytest.raises(Exception, match="violates foreign key constraint"):
        cycle.run_sql(store, JOB, document=new)
    assert cycle.run_sql(store, JOB, document=old) == [(old,)]


@pytest.mark.begins("approved")
def test_an_open_execution_or_another_writer_is_refused_by_name(store: Engine, other: Engine) -> None:
    execution = cycle.newest_execution(store)
    with pytest.raises(RefusedError, match=rf"{execution.execution_id} is approved\. Finish it first"):
        finalize(store, AT_ONCE)
    with store.begin() as connection:
        control.pause(connection)
    with pytest.raises(RefusedError, match=r"is paused\. Finish it first: uuid-pipeline resume"):
        finalize(store, AT_ONCE)
    with store.begin() as connection:
        control.resume(connection)
    cycle.migrate_all(store, SPEC, execution)
    with pytest.raises(RefusedError, match=rf"{execution.execution_id} is running\. Finish it first"):
        finalize(store, AT_ONCE)
    cycle.assert_green(cycle.validate(store))

    with leases.held(other, "run 17"), pytest.raises(RefusedError, match="run run 17"):
        finalize(store, AT_ONCE)
    with leases.held(other, "run 18"), pytest.raises(RefusedError, match="run run 18"):
        finalizing.drop_ledger(store, cycle.RUN)

    assert len(cycle.alias_triggers(store)) == 5
    assert finalize(store, AT_ONCE) == [execution.execution_id]


# By table or view of the application, what it may make with what docs/aliases.md offers to readers.
BUILT_UPON_IT = {
    "view upload_pipeline.by_old_id": """
        CREATE VIEW upload_pipeline.by_old_id AS SELECT job_id, uuid_pipeline.resolve_document(document_id) AS now
        FROM upload_pipeline.upload_jobs""",
    "view upload_pipeline.ids": "CREATE VIEW upload_pipeline.ids AS SELECT * FROM uuid_pipeline.alias_document",
    "policy resolved on table upload_pipeline.upload_jobs": """
        CREATE POLICY resolved ON upload_pipeline.upload_jobs AS RESTRICTIVE FOR SELECT
        USING (uuid_pipeline.resolve_document(document_id) = document_id)""",
    "constraint resolved on table upload_pipeline.events": """
        ALTER TABLE upload_pipeline.events ADD CONSTRAINT resolved
        CHECK (uuid_pipeline.resolve_document(event_id) IS NOT NULL) NOT VALID""",
    "index by_resolved": """
        CREATE FUNCTION upload_pipeline.resolved(uuid) RETURNS uuid LANGUAGE sql IMMUTABLE
        BEGIN ATOMIC SELECT uuid_pipeline.resolve_document($1); END;
        CREATE INDEX by_resolved ON upload_pipeline.upload_jobs (upload_pipeline.resolved(document_id))""",
}


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("named", BUILT_UPON_IT)
def test_what_the_application_made_with_our_functions_or_views_keeps_the_way_back_and_is_named(
    store: Engine, named: str, objects_before: list[tuple[Any, ...]]
) -> None:
    execution = cycle.newest_execution(store)
    cycle.run_sql(store, BUILT_UPON_IT[named])
    objects = everything(store)
    # Of an index over such a function the function is what would be lost.
    said = "function upload_pipeline.resolved(uuid)" if named.startswith("index") else named
    with pytest.raises(RefusedError, match=f"made with what uuid-pipeline would drop: .*{re.escape(said)}"):
        finalize(store, AT_ONCE)
    assert status(store, execution) == "completed"
    assert everything(store) == objects

    kind, name, *rest = named.split(" ", 2)
    drop = f"DROP {kind} {name}" if not rest else f"ALTER TABLE {rest[0].split()[-1]} DROP CONSTRAINT {name}"
    drop = f"DROP POLICY {name} {rest[0].replace('table ', '')}" if kind == "policy" else drop
    cycle.run_sql(store, "DROP FUNCTION upload_pipeline.resolved CASCADE" if kind == "index" else drop)
    # Of what the ledger keeps until the end: a view of the application over an id map.
    cycle.run_sql(store, "CREATE VIEW upload_pipeline.maps AS SELECT * FROM uuid_pipeline.id_map_document")
    finalize(store, AT_ONCE)
    with pytest.raises(RefusedError, match=r"would drop: .*view upload_pipeline\.maps"):
        finalizing.drop_ledger(store, cycle.RUN)
    cycle.run_sql(store, "DROP VIEW upload_pipeline.maps")
    assert finalizing.drop_ledger(store, cycle.RUN)
    assert cycle.catalog_of(store) == objects_before


@pytest.mark.begins("migrated")
def test_what_a_long_transaction_kept_from_being_removed_is_removed_by_the_next_finalize(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "PATIENCE_SECONDS", 0.0)
    execution = cycle.newest_execution(store)
    with cycle.session(store) as reader:
        reader.execute("SELECT FROM upload_pipeline.upload_jobs")
        with pytest.raises(RefusedError, match=rf"lock on .*upload_jobs.* Held by: pid {reader.info.backend_pid} "):
            finalize(store, AT_ONCE)
    # Nobody rolls back what has lost some of its aliases; and the ledger stays until all of them are gone.
    assert status(store, execution) == "finalized"
    assert "upload_pipeline.upload_jobs" in cycle.alias_triggers(store)
    with pytest.raises(RefusedError, match=r"alias triggers of \d tables\. First: uuid-pipeline finalize"):
        finalizing.drop_ledger(store, cycle.RUN)

    assert finalize(store, AT_ONCE) == []
    assert cycle.alias_triggers(store) == []
    finalizing.drop_ledger(store, cycle.RUN)


def test_the_ledger_is_dropped_after_finalize_only_and_leaves_no_trace(store: Engine) -> None:
    objects, rows = everything(store), cycle.rows_of(store)
    assert not finalizing.drop_ledger(store, cycle.RUN)
    cycle.run_all(store, SPEC)

    with pytest.raises(RefusedError, match="First: uuid-pipeline finalize"):
        finalizing.drop_ledger(store, cycle.RUN)
    # Refused, it gave the lease back.
    finalize(store, AT_ONCE)
    assert finalizing.drop_ledger(store, cycle.RUN)
    assert not finalizing.drop_ledger(store, cycle.RUN)

    assert everything(store) == objects
    assert cycle.rows_of(store) == cycle.expected_rows(rows)
    # As if it had never been: the next plan finds nothing to do.
    assert cycle.assess(store, SPEC).summary.deterministic == 38


def test_a_schema_of_the_ledgers_name_that_is_no_ledger_is_refused_and_left_as_it_is(incident: Engine) -> None:
    cycle.run_sql(incident, "DROP SCHEMA IF EXISTS uuid_pipeline CASCADE; CREATE SCHEMA uuid_pipeline")
    cycle.run_sql(incident, "CREATE TABLE uuid_pipeline.executions AS SELECT 1 AS mine")

    with incident.begin() as connection, pytest.raises(RefusedError, match="no ledger; it holds executions"):
        ledger.create(connection, cycle.bound(connection, SPEC))

    assert cycle.run_sql(incident, "SELECT mine FROM uuid_pipeline.executions") == [(1,)]
    cycle.run_sql(incident, "DROP TABLE uuid_pipeline.executions")
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
        assert ledger.exists(connection)


def test_what_a_run_that_died_had_altered_is_put_back_first(
    store: Engine, incident_url: str, new_role: NewRole
) -> None:
    """Tier O gives triggers a condition; the process dies, and somebody cancels instead of going on."""
    role = new_role("BYPASSRLS")
    cycle.make_owner(store, role)
    objects = cycle.catalog_of(store)
    with opened(as_role(incident_url, role)) as owner:
        execution = cycle.approve(owner, AT_ONCE, cycle.assess_and_plan(owner, AT_ONCE).plan_id)
        sync_points.on("guarded", die)
        try:
            with pytest.raises(KeyboardInterrupt):
                cycle.migrate_all(owner, AT_ONCE, execution)
        finally:
            sync_points.clear()
        assert cycle.catalog_of(store) != objects
        with owner.begin() as connection:
            control.cancel(connection)

        finalize(owner, AT_ONCE)

    assert cycle.catalog_of(store) == objects


def test_aliases_that_an_interrupted_finalize_left_are_told_and_removed_by_the_next(store: Engine) -> None:
    cycle.run_all(store, AT_ONCE)
    sync_points.on("finalized", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            finalize(store, AT_ONCE)
    finally:
        sync_points.clear()

    # A plan that was made meanwhile can wait: who writes an old id is understood in some tables, and not in others.
    test_sweep.upload(store)
    plan = cycle.assess_and_plan(store, AT_ONCE)
    assert not plan.nothing_to_do
    with store.begin() as connection:
        executions = ledger.executions(connection)
        assert finalizing.is_half_done(connection, executions)
        told = next_step(connection, AT_ONCE, executions, {}, plan, live=False)
    assert told.startswith("uuid-pipeline finalize: it was interrupted, and alias triggers still stand on ")
    assert "upload_pipeline.document_chunks" in told

    assert finalize(store, AT_ONCE) == []
    assert cycle.alias_triggers(store) == []


def die() -> None:
    raise KeyboardInterrupt
