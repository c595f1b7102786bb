"""The whole cycle of the engine as the stages run it, and what the store must hold after it, computed without it."""

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import (
    approval,
    catalog,
    duplicates,
    earlier_store,
    gates,
    inventory,
    ledger,
    mapping,
    migration,
    planning,
    profile,
    rollback,
    validation,
)
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.engine.batches import writing
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.plans import approach
from uuid_pipeline.engine.proofs import comparison, dangling, exactness, id_map, inventoried
from uuid_pipeline.engine.rehearsals import rehearsal
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.spec import Spec, load_spec

RUN = "test run"
SCHEMA = "upload_pipeline"
NAMESPACE = uuid.UUID("6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42")

Row = dict[str, str | None]
Rows = dict[str, list[Row]]


@dataclass(frozen=True)
class Assessed:
    """What the stages before the plan found; ``gates`` by name."""

    store: Store
    number: int
    summary: inventory.Summary
    gates: Mapping[str, GateResult]


def spec_with(**changes: Any) -> Spec:
    """The default spec with some of its parts changed."""
    return load_spec(None).model_copy(update=changes)


def without_backup(spec: Spec) -> Spec:
    """The spec as the cycle runs it. What `dump` and `attested` ask for has tests of its own, in test_backup."""
    return spec.model_copy(update={"backup": "none"})


def bound(connection: Connection, spec: Spec) -> Store:
    """The spec, without a backup, bound to the store as it is now."""
    return bind(without_backup(spec), catalog.read_catalog(connection, spec.schema_name))


def bound_store(engine: Engine, spec: Spec) -> Store:
    with engine.begin() as connection:
        return bound(connection, spec)


def assess(engine: Engine, spec: Spec, skip: Collection[str] = ()) -> Assessed:
    """Profile, inventory, clusters and id map, each with its gates recorded but those to ``skip``."""
    found: dict[str, GateResult] = {}

    def record(connection: Connection, number: int, stage: str, *results: GateResult) -> None:
        for result in results:
            found[result.gate] = result
            if result.gate not in skip:
                gates.record(connection, Scope(assessment=number), stage, result, RUN)

    with engine.begin() as c:
        store = bound(c, spec)
        profile.require_access(c, store)
        ledger.create(c, store)
        digest = catalog.digest(catalog.snapshot(c, store.catalog))
        number = ledger.begin_assessment(c, RUN, store.spec.digest, digest, profile.describe(c, store))
        visible, known = profile.rows_visible(store), references.references_known(store, references.search(c, store))
        witnessed = id_map.witnesses_agree(c, store)
        record(c, number, "store_profile", witnessed, visible, known, profile.nothing_unsupported(c, store))
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as c, c.begin():
        inventory.take(c, store, number)
    with engine.begin() as c:
        assessment = ledger.newest_assessment(c)
        summary = inventory.summarize(c, store, assessment)
        valid = inventoried.natural_keys_valid_or_quarantined(c, store, number)
        counts = inventoried.counts_agree(assessment)
        record(c, number, "document_inventory", valid, inventoried.no_orphans(c, store, number), counts)
        decided = duplicates.each_cluster_decided(c, store, number)
        users, resolvable = (
            f(c, store, number) for f in (duplicates.never_across_users, duplicates.conflicts_resolvable)
        )
        record(c, number, "duplicate_clusters", decided, users, resolvable)
        mapping.build(c, store, number, kinds=approach.wave_kinds(spec.strategy))
        one = id_map.one_target_per_natural_key(c, store, number)
        free = id_map.no_collision(c, store, number)
        again = id_map.recomputed_independently(c, store, number)
        record(c, number, "id_mapping", id_map.witnesses_agree(c, store), one, free, again)
        record(c, number, "store_backup", backup_gate.as_asked(c, store, assessment))
    return Assessed(store, number, summary, found)


def plan(engine: Engine, assessed: Assessed, skip: Collection[str] = ()) -> Plan:
    """Freeze what was assessed into a plan."""
    with engine.begin() as c:
        made = planning.make(c, assessed.store, ledger.newest_assessment(c), assessed.summary)
        covered = planning.waves_cover_each_document_once(c, assessed.store, made)
        for result in (covered, rehearsal.passed(c, assessed.store, made)):
            if result.gate not in skip:
                gates.record(c, Scope(assessment=assessed.number), "migration_plan", result, RUN)
    return made


def assess_and_plan(engine: Engine, spec: Spec, skip: Collection[str] = ()) -> Plan:
    """Every stage that only reads; gates to ``skip`` are evaluated but not recorded, as when deselected."""
    return plan(engine, assess(engine, spec, skip), skip)


def approve(engine: Engine, spec: Spec, plan_id: str) -> ledger.Execution:
    with engine.begin() as c:
        return approval.approve(c, bound(c, spec), plan_id)


def waves_of(engine: Engine, execution: ledger.Execution) -> list[ledger.Wave]:
    """The planned waves; the sweeps come after them."""
    return [wave for wave in all_waves_of(engine, execution) if wave.kind != "sweep"]


def all_waves_of(engine: Engine, execution: ledger.Execution) -> list[ledger.Wave]:
    with engine.begin() as c:
        return ledger.waves(c, execution.execution_id)


def migrate(engine: Engine, spec: Spec, wave: ledger.Wave) -> writing.Run:
    """Run one wave, without its checks."""
    return migration.run_wave(engine, bound_store(engine, spec), wave.wave, RUN, lambda _: None)


def check_wave(engine: Engine, spec: Spec, wave: ledger.Wave) -> list[GateResult]:
    """Evaluate a wave's checks and record them."""
    with engine.begin() as c:
        store, now = bound(c, spec), ledger.wave(c, wave.wave)
        execution = ledger.execution(c, now.execution_id)
        found = [
            validation.conservation(c, store, now),
            dangling.no_dangling_reference(c, store, now),
            exactness.ids_exact(c, store, now),
            validation.schema_unchanged(c, store, execution, "schema_unchanged"),
            retrieval.documents_retrievable(c, store, now),
        ]
        scope = Scope(execution=execution.execution_id, wave=now.wave)
        for result in found:
            gates.record(c, scope, "migrated_documents", result, RUN)
    return found


def migrate_all(engine: Engine, spec: Spec, execution: ledger.Execution) -> list[writing.Run]:
    """Run every wave with its checks, which must pass."""
    runs = []
    for wave in all_waves_of(engine, execution):
        if any(now.wave == wave.wave and now.status == "unneeded" for now in all_waves_of(engine, execution)):
            continue
        runs.append(migrate(engine, spec, wave))
        assert_green(check_wave(engine, spec, wave))
    return runs


def validate(engine: Engine) -> list[GateResult]:
    """Evaluate the checks of the whole store, record them, and complete the execution when all are green.

    As the command line does it: by the spec that the execution was planned with, whatever is given now.
    """
    with engine.begin() as c:
        execution = validation.subject(c)
        store = earlier_store.store_of(c, execution.assessment_no)
        compared = comparison.compare_patiently(c, store, execution)
        found = [
            comparison.whole_conservation(compared),
            dangling.whole_no_dangling_reference(c, store, execution),
            exactness.whole_ids_exact(c, store, execution),
            validation.schema_unchanged(c, store, execution, "whole_schema_unchanged"),
            comparison.timestamps_untouched(compared),
            retrieval.whole_documents_retrievable(c, store, execution),
            validation.next_step_safe(c, store, execution),
        ]
        for result in found:
            gates.record(c, Scope(execution=execution.execution_id), "validation_report", result, RUN)
        validation.settle(c, execution)
    return found


def run_all(engine: Engine, spec: Spec) -> ledger.Execution:
    """The whole cycle, every check green, the execution completed."""
    return finish(engine, spec, approve(engine, spec, assess_and_plan(engine, spec).plan_id))


def finish(engine: Engine, spec: Spec, execution: ledger.Execution) -> ledger.Execution:
    """Everything after the approval, every check green, the execution completed."""
    migrate_all(engine, spec, execution)
    assert_green(validate(engine))
    with engine.begin() as c:
        done = ledger.execution(c, execution.execution_id)
    assert done.status == "completed"
    return done


def migrate_waves(engine: Engine, spec: Spec, chosen: slice) -> None:
    """Run these of the newest execution's planned waves with their checks, which must pass."""
    for wave in waves_of(engine, newest_execution(engine))[chosen]:
        migrate(engine, spec, wave)
        assert_green(check_wave(engine, spec, wave))


def newest_plan(engine: Engine) -> Plan:
    with engine.begin() as c:
        found = planning.newest(c)
    assert found is not None
    return found


def newest_execution(engine: Engine) -> ledger.Execution:
    with engine.begin() as c:
        return ledger.executions(c)[0]


def roll_back(engine: Engine, spec: Spec, name: str | None = None) -> list[writing.Run]:
    """Roll the named wave back, or all of them."""
    with engine.begin() as c:
        store, chosen = bound(c, spec), rollback.choose(c, name)
    return rollback.roll_back(engine, store, chosen, RUN, lambda _: None)


def undo(engine: Engine, name: str | None = None) -> None:
    """The same as the command line does it: by the spec of the execution to undo, whatever is given now."""
    with engine.begin() as c:
        assessment = rollback.newest_to_undo(c)
        assert assessment is not None
        store, chosen = earlier_store.store_of(c, assessment), rollback.choose(c, name)
    rollback.roll_back(engine, store, chosen, RUN, lambda _: None)


def assert_green(found: Collection[GateResult]) -> None:
    assert [f"{result.gate}: {result.finding}" for result in found if not result.passed] == []


def make_owner(engine: Engine, role: str, schema: str = SCHEMA) -> None:
    """Give the tables of a schema, and the right to make the ledger, to a plain role: such a one has tier O."""
    [(database,)] = run_sql(engine, "SELECT current_database()")
    run_sql(engine, f'GRANT CREATE, TEMPORARY ON DATABASE "{database}" TO "{role}"')
    run_sql(engine, f'GRANT ALL ON SCHEMA "{schema}" TO "{role}"')
    for table in rows_of(engine, schema):
        run_sql(engine, f'ALTER TABLE "{schema}"."{table}" OWNER TO "{role}"')


def run_sql(engine: Engine, statement: str, **values: object) -> list[tuple[Any, ...]]:
    """Act as the application: one statement in a transaction of its own, triggers and keys as they are."""
    with engine.begin() as c:
        result = c.exec_driver_sql(statement, values or None)
        return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def session(engine: Engine) -> Iterator["psycopg.Connection[Any]"]:
    """A plain connection to the same database, past SQLAlchemy and the engine's settings."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        yield connection


def rows_of(engine: Engine, schema: str = SCHEMA) -> Rows:
    """Every column of every row of every table of a schema, as text, in a fixed order."""
    with session(engine) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1",
            [schema],
        ).fetchall()
        return {table: _rows_of_table(connection, schema, table) for (table,) in tables}


def _rows_of_table(connection: "psycopg.Connection[Any]", schema: str, table: str) -> list[Row]:
    qualified = sql.Identifier(schema, table)
    names = [
        d.name for d in connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(qualified)).description or ()
    ]
    columns = sql.SQL(", ").join([sql.SQL("{}::text").format(sql.Identifier(name)) for name in names])
    found = connection.execute(sql.SQL("SELECT {} FROM {}").format(columns, qualified)).fetchall()
    return ordered([dict(zip(names, row, strict=True)) for row in found])


def ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: [value or "" for value in row.values()])


def targets(before: Rows, left: Collection[str] = ()) -> dict[str, str]:
    """Old id -> target id of the incident's documents and chunks, from raw columns by the standard uuid5."""
    documents = {
        str(row["document_id"]): str(
            uuid.uuid5(NAMESPACE, f"{row['user_id']}:{str(row['file_sha256']).strip(' ').lower()}")
        )
        for row in before["documents"]
        if row["document_id"] not in left
    }
    chunks = {
        str(row["chunk_id"]): str(
            uuid.uuid5(
                NAMESPACE,
                f"{documents[str(row['document_id'])]}:{row['chunker_name']}:{row['chunker_version']}:{row['chunk_ord']}",
            )
        )
        for row in before["document_chunks"]
        if row["document_id"] in documents
    }
    return documents | chunks


def expected_rows(before: Rows, left: Collection[str] = ()) -> Rows:
    """What every row of the incident must be after the migration; documents in ``left`` stay as they are."""
    new = targets(before, left)
    ids = ("document_id", "chunk_id")
    return {
        table: ordered(
            [{c: new.get(v, v) if c in ids and v is not None else v for c, v in row.items()} for row in rows]
        )
        for table, rows in before.items()
    }


_CATALOG = """
WITH s AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s),
rel AS (SELECT c.* FROM pg_class c JOIN s ON s.oid = c.relnamespace)
SELECT 'column', attrelid::regclass::text, attname::text, concat_ws(' ', attnum, format_type(atttypid, atttypmod),
       attnotnull, pg_get_expr(adbin, adrelid)), attacl::text
FROM rel JOIN pg_attribute ON attrelid = rel.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relkind = 'r' AND attnum > 0
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(k.oid), convalidated::text
FROM pg_constraint k JOIN s ON s.oid = connamespace
UNION ALL
SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid),
       concat_ws(' ', indisvalid, indisready, indisclustered)
FROM pg_index JOIN rel ON rel.oid = indexrelid
UNION ALL
SELECT 'trigger', tgrelid::regclass::text, tgname::text, pg_get_triggerdef(t.oid), tgenabled::text
FROM pg_trigger t JOIN rel ON rel.oid = tgrelid JOIN pg_proc f ON f.oid = tgfoid
WHERE NOT tgisinternal AND f.pronamespace <> coalesce(to_regnamespace('uuid_pipeline'), 0)
UNION ALL
SELECT 'policy', tablename::text, policyname::text, qual, with_check FROM pg_policies WHERE schemaname = %(schema)s
UNION ALL
SELECT 'relation', oid::text, relname::text, concat_ws(' ', relkind, relrowsecurity, relforcerowsecurity, relowner,
       reloptions), relacl::text FROM rel
UNION ALL
SELECT 'function', f.oid::text, proname::text, prosrc, proacl::text FROM pg_proc f JOIN s ON s.oid = pronamespace
ORDER BY 1, 2, 3, 4
"""


def catalog_of(engine: Engine, schema: str = SCHEMA) -> list[tuple[Any, ...]]:
    """Every object of a schema with its definition and grants, read by plain SQL and not as the engine does.

    But for our alias triggers, which may stand there until finalize; see :func:`alias_triggers`.
    """
    with session(engine) as connection:
        return connection.execute(_CATALOG, {"schema": schema}).fetchall()


def alias_triggers(engine: Engine) -> list[str]:
    """The tables that have a trigger of ours."""
    found = """SELECT tgrelid::regclass::text FROM pg_trigger JOIN pg_proc f ON f.oid = tgfoid
               WHERE f.pronamespace = to_regnamespace('uuid_pipeline') ORDER BY 1"""
    with session(engine) as connection:
        return [table for (table,) in connection.execute(found).fetchall()]
