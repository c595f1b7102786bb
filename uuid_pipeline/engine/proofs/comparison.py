"""The whole store against the state before: each moved table, ids read back through the map, archives counted in."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.batches import application, deletions
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.fingerprint import Fingerprint
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.merges import archive
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.engine.store import MovedTable, Store

# What merging archived or re-pointed, by table, of one wave or of a whole execution.
MERGED = """
SELECT coalesce(sum((b.moved->'merged'->'archived'->>%(table)s)::bigint), 0) AS archived,
       coalesce(sum((b.moved->'merged'->'archives'->>%(table)s)::numeric), 0) AS archive,
       coalesce(sum((b.moved->'merged'->'digests'->%(table)s->>0)::numeric), 0) AS digest,
       coalesce(sum((b.moved->'merged'->'digests'->%(table)s->>1)::numeric), 0) AS dates
FROM uuid_pipeline.batches b WHERE b.direction = 'forward'
"""


def whole_conservation(compared: list[dict[str, Any]]) -> GateResult:
    """Gate: read back through the id map, every moved table has the rows it had before; see :func:`compare`."""
    wrong = [row for row in compared if row["archive_differs"] or (row["differs"] and not row["application_writes"])]
    live = [row for row in compared if row["application_writes"]]
    said = "; ".join(
        f"{row['table']}: {row['rows_before']} rows before, {row['rows_now']} now"
        + (f" and {row['archived']} archived" if row["archived"] else "")
        for row in compared
    )
    if live:
        names = ", ".join(f"{row['table']} ({row['application_writes']} writes seen)" for row in live)
        said += f". The application wrote to {names} meanwhile; there the proof is each batch's own"
    altered = ", ".join(row["table"] for row in compared if row["other_columns"])
    if altered:
        said += f". Rows alone were counted where columns were changed since: {altered}"
    return GateResult.of(
        "whole_conservation",
        not wrong,
        said if not wrong else "differ though nothing else wrote to them: " + ", ".join(row["table"] for row in wrong),
        "roll back (uuid-pipeline rollback --all) and compare with your backup",
        figures={"rows": sum(row["rows_now"] for row in compared), "differing_tables": len(wrong)},
    )


def timestamps_untouched(compared: list[dict[str, Any]]) -> GateResult:
    """Gate: no date or time column of a moved table changed, but where the application wrote."""
    wrong = [row["table"] for row in compared if row["dates_differ"] and not row["application_writes"]]
    live = ", ".join(row["table"] for row in compared if row["dates_differ"] and row["application_writes"])
    altered = ", ".join(row["table"] for row in compared if row["other_columns"])
    said = "every date and time as before" + (
        f"; not compared, since columns were changed: {altered}" if altered else ""
    )
    if live:
        said += f"; not compared, since the application wrote there: {live}"
    return GateResult.of(
        "timestamps_untouched",
        not wrong,
        said if not wrong else f"dates changed in {', '.join(wrong)}",
        "roll back (uuid-pipeline rollback --all); look at the triggers that set these columns",
    )


def of_run(connection: Connection, store: Store, execution: ledger.Execution, run_id: str) -> list[dict[str, Any]]:
    """The comparison of this run: made by who asks first, since it reads every moved table, and read by the others."""
    made: list[dict[str, Any]] | None = sql.scalar(
        connection,
        "SELECT compared FROM uuid_pipeline.comparisons WHERE execution_id = %(execution)s AND run_id = %(run)s",
        {"execution": execution.execution_id, "run": run_id},
    )
    if made is not None:
        return made
    compared = compare_patiently(connection, store, execution)
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.comparisons (execution_id, run_id, compared)
           VALUES (%(execution)s, %(run)s, %(compared)s::jsonb) ON CONFLICT DO NOTHING""",
        {"execution": execution.execution_id, "run": run_id, "compared": json.dumps(compared)},
    )
    return compared


def compare_patiently(connection: Connection, store: Store, execution: ledger.Execution) -> list[dict[str, Any]]:
    """As :func:`compare`; a difference that nobody seems to have made waits for the statistics of deletes first."""
    compared: list[dict[str, Any]] = deletions.patiently(
        connection, lambda: compare(connection, store, execution), _is_explained
    )
    return compared


def _is_explained(compared: list[dict[str, Any]]) -> bool:
    return not any((row["differs"] or row["dates_differ"]) and not row["application_writes"] for row in compared)


def compare(connection: Connection, store: Store, execution: ledger.Execution) -> list[dict[str, Any]]:
    """Each moved table before and now, ids read back through the map, and how many of the application's writes show."""
    # age() counts from this transaction's own id, once it has one.
    sql.execute(connection, "SELECT pg_current_xact_id()")
    before = fingerprint.before(connection, execution)
    archives = archive.contents(connection, store, execution)
    altered = with_other_columns(connection, store, execution)
    compared = []
    for moved in store.tables:
        name = fingerprint.qualified(moved)
        merged = merged_of(connection, name, execution)
        now = _with_merged(fingerprint.unmapped(connection, store, moved, execution), merged)
        then, deleted = before.get(name, (None, 0))
        writes = application_writes(connection, moved, execution, deleted + int(merged.archived))
        if then != now and not writes:
            writes = moved_twice(connection, store, moved, execution)
        if then is not None and now.rows < then.rows and not writes and may_be_gone(connection, moved, execution):
            writes = then.rows - now.rows
        archived, kept = int(merged.archived), archives.get(name, (0, 0))
        differs, other = then != now, name in altered
        if other and then is not None:
            # What values hashed to under other columns is no measure; how many rows there are still is.
            differs = then.rows != now.rows
        compared.append(
            {
                "table": name,
                "rows_before": then.rows if then else 0,
                "rows_now": now.rows - int(merged.archived),
                "archived": archived,
                "archive_differs": kept[0] != archived or (not other and kept[1] != int(merged.archive)),
                "differs": differs,
                "dates_differ": then is None or (not other and then.timestamps != now.timestamps),
                "other_columns": other,
                "application_writes": writes,
            }
        )
    return compared


def merged_of(connection: Connection, table: str, execution: ledger.Execution) -> Any:
    """What this execution's merges archived and re-pointed of a table, "schema.table": a row of MERGED."""
    values = {"table": table, "execution": execution.execution_id}
    return sql.rows(connection, MERGED + " AND b.execution_id = %(execution)s", values)[0]


def may_be_gone(connection: Connection, moved: MovedTable, execution: ledger.Execution) -> bool:
    """Whether the application may have taken rows away that the statistics of deletes know nothing of: by a TRUNCATE,
    which gives the table another file, or by deletes not reported yet, or forgotten by the server since."""
    other_file = """SELECT EXISTS (SELECT FROM uuid_pipeline.fingerprints f WHERE f.execution_id = %(execution)s
                       AND f.table_name = %(table)s AND f.file <> pg_relation_filenode(%(oid)s::oid))"""
    values = {
        "execution": execution.execution_id,
        "table": fingerprint.qualified(moved),
        "oid": moved.table.oid,
    }
    return (
        bool(sql.scalar(connection, other_file, values))
        or deletions.may_be_unreported(connection)
        or deletions.began_anew(connection, retrieval.epoch_before(connection, execution.execution_id))
    )


def with_other_columns(connection: Connection, store: Store, execution: ledger.Execution) -> set[str]:
    """Tables that have columns of other names or types than when the execution began, each named as "schema.table"."""
    before = sql.scalar(
        connection,
        "SELECT catalog_before FROM uuid_pipeline.executions WHERE execution_id = %(id)s",
        {"id": execution.execution_id},
    )
    now = catalogs.snapshot(connection, store.catalog)
    tables = [moved.table for moved in store.tables]
    return {f"{t.schema}.{t.name}" for t in tables if before and _types(before, t) != _types(now, t)}


# A column's definition in a catalog's snapshot: its number, its type, whether it is NOT NULL, and more.
_TYPE = re.compile(r"\d+ (.+?) [tf](?: |$)")


def _types(snapshot: Mapping[str, str], table: Table) -> dict[str, str]:
    """The type of each column of a table, by the column's name in a catalog's snapshot."""
    prefix = f"column {table.schema}.{table.name}."
    found = {name: _TYPE.match(definition) for name, definition in snapshot.items() if name.startswith(prefix)}
    return {name: match[1] for name, match in found.items() if match}


def _with_merged(now: Fingerprint, merged: Any) -> Fingerprint:
    """What the table would be without the merges: with the archived rows, and re-pointed ones as they were."""
    return Fingerprint(
        now.rows + int(merged.archived), now.digest + int(merged.digest), now.timestamps + int(merged.dates)
    )


def moved_twice(connection: Connection, store: Store, moved: MovedTable, execution: ledger.Execution) -> int:
    """Ids in this table's columns that this execution made and then moved on, since the application had given the row,
    or one above it, to another parent meanwhile; or that it gave to two rows in turn, of which the application had
    deleted the first. Read back, they are none of before."""
    values = {"maps": [wave.assessment_no for wave in ledger.waves(connection, execution.execution_id)]}
    found = 0
    for name in dict.fromkeys(entity for _, entity in moved.columns):
        statement = sql.compose(
            """SELECT count(*) FROM {map} m WHERE m.assessment_no = ANY(%(maps)s) AND m.role = 'move' AND EXISTS (
                   SELECT FROM {map} e WHERE e.assessment_no = ANY(%(maps)s) AND e.role = 'move'
                     AND (e.new_id = m.old_id OR (e.new_id = m.new_id AND e.assessment_no < m.assessment_no)))""",
            map=ledger.map_table(store.entity(name)),
        )
        found += int(sql.scalar(connection, statement, values))
    return found


def application_writes(
    connection: Connection, moved: MovedTable, execution: ledger.Execution, deleted_before: int
) -> int:
    """Signs of other writers since the first snapshot: rows written, rows rewritten before a batch came, deletes."""
    statement = sql.compose(
        """SELECT (SELECT count(*) FROM {table} t WHERE {written})
                + (SELECT count(*) FROM uuid_pipeline.batches b WHERE b.execution_id = %(execution)s
                   AND (b.moved->'touched'->>%(table)s)::bigint > 0)
                + (SELECT count(*) FROM uuid_pipeline.unmoved u
                   WHERE u.execution_id = %(execution)s AND u.entity = ANY(%(entities)s)
                     AND u.reason NOT IN ('busy', 'locked'))
                + greatest(coalesce(pg_stat_get_tuples_deleted(%(oid)s::oid), 0)
                           -- What a pooled session has not reported, and will not before this transaction ends.
                           + coalesce(pg_stat_get_xact_tuples_deleted(%(oid)s::oid), 0) - %(deleted)s, 0)
           FROM uuid_pipeline.executions e WHERE e.execution_id = %(execution)s""",
        table=sql.table(moved.table.schema, moved.table.name),
        written=application.written_since("t"),
    )
    values = {
        "execution": execution.execution_id,
        "oid": moved.table.oid,
        "table": fingerprint.qualified(moved),
        "entities": [entity for _, entity in moved.columns],
        "deleted": deleted_before,
        "snapshot": ledger.first_snapshot(connection, execution.execution_id),
    }
    return int(sql.scalar(connection, statement, values) or 0)
