"""Fingerprints: count and order-independent digests of rows, with ids read through the id map.

The digest of a row is PostgreSQL's 64-bit record hash over each column's own binary form (its type's send function;
ENGINE.md, section 6); a set's digest is the sum, so equal rows do not cancel. Not cryptographic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import embedded_ids, ledger, sql
from uuid_pipeline.engine.catalog import Column
from uuid_pipeline.engine.store import MovedTable, Reference, Store


@dataclass(frozen=True)
class Fingerprint:
    """Of a set of rows: how many, the digest of all columns, and that of the date and time columns alone."""

    rows: int
    digest: int
    timestamps: int


def _sent(column: Column, value: sql.Composable) -> sql.Composable:
    if column.send_function is None:
        return sql.compose("{value}::text", value=value)
    return sql.compose("{send}({value})", send=sql.as_written(column.send_function), value=value)


def row_digest(columns: list[Column], mapped: dict[str, sql.Composable], alias: str) -> sql.Composable:
    """The hash of one row as an expression; ``mapped`` gives other expressions for some of its columns.

    A bigint, whose sum is a numeric: each row's made one first would be summed slower, and to no other end.
    """
    values = [
        _sent(
            column,
            mapped.get(column.name, sql.compose("{t}.{c}", t=sql.name(alias), c=sql.name(column.name))),
        )
        for column in columns
        if not column.generated
    ]
    # An empty ROW() cannot be hashed; the constant stands for "no column of this kind".
    fields = sql.join(", ", [sql.Text("0"), *values])
    return sql.compose("hash_record_extended(ROW({fields}), 0)", fields=fields)


def moment_columns(columns: list[Column]) -> list[Column]:
    """Those that hold a date or a time."""
    return [column for column in columns if column.type.startswith(("timestamp", "date", "time"))]


def aggregates(moved: MovedTable, mapped: dict[str, sql.Composable], alias: str) -> sql.Composable:
    """The select list ``rows, digest, timestamps`` over the rows of ``alias``."""
    columns = list(moved.table.columns.values())
    moments = moment_columns(columns)
    return sql.compose(
        "count(*) AS rows, coalesce(sum({all}), 0) AS digest, coalesce(sum({moments}), 0) AS timestamps",
        all=row_digest(columns, mapped, alias),
        moments=row_digest(moments, {k: v for k, v in mapped.items() if k in {c.name for c in moments}}, alias),
    )


def of_table(connection: Connection, moved: MovedTable) -> Fingerprint:
    """A whole table as it is."""
    statement = sql.compose(
        "SELECT {aggregates} FROM {table} t",
        aggregates=aggregates(moved, {}, "t"),
        table=sql.table(moved.table.schema, moved.table.name),
    )
    return Fingerprint(*[int(value) for value in sql.rows(connection, statement)[0]])


# Ordinals whose ids are the new ones now: in a batch that went forward and in none later that went back.
MOVED_ORDINALS = """m.ordinal <@ (SELECT
    coalesce(range_agg(int8range(b.first_ordinal, b.last_ordinal, '[]')) FILTER (WHERE b.direction = 'forward'), '{}')
    - coalesce(range_agg(int8range(b.first_ordinal, b.last_ordinal, '[]')) FILTER (WHERE b.direction = 'back'), '{}')
    FROM uuid_pipeline.batches b WHERE b.execution_id = %(execution)s)
    AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u
                    WHERE u.execution_id = %(execution)s AND u.ordinal = m.ordinal)"""


@dataclass(frozen=True)
class ReadBack:
    """Old ids for new ones: an expression a column, the joins that these need, and values to bind."""

    mapped: dict[str, sql.Composable]
    joins: sql.Composable
    values: dict[str, Any]


# The same, while a batch is at work: what it takes up once more was journaled when it was set aside, and has not moved.
MOVED_BEFORE = f"{MOVED_ORDINALS} AND m.ordinal NOT BETWEEN %(first)s AND %(last)s"


def read_back(
    store: Store,
    moved: MovedTable,
    held: Mapping[str, sql.Composable],
    label: str,
    now: LiteralString = MOVED_ORDINALS,
) -> ReadBack:
    """Read each id of these values back to the one that it had before this execution.

    ``held`` gives the value of each id column as an expression; ``label`` keeps two of these apart in one statement.
    ``now`` says which ordinals of the map ``m`` have moved. Wants %(maps)s (the assessments whose maps count) and
    %(execution)s bound.
    """
    mapped, joins = dict(held), list[sql.Composable]()
    for index, (column, entity_name) in enumerate(moved.columns):
        alias = sql.name(f"{label}_m{index}")
        mapped[column] = sql.compose(
            "coalesce({m}.old_id, {held})::{type}",
            m=alias,
            held=held[column],
            type=sql.as_written(moved.table.columns[column].type),
        )
        joins.append(
            sql.compose(
                """LEFT JOIN (SELECT m.old_id, m.new_id FROM {map} m WHERE m.assessment_no = ANY(%(maps)s)
                              AND m.role = 'move' AND {moved}) {alias} ON {alias}.new_id = {held}""",
                map=ledger.map_table(store.entity(entity_name)),
                moved=sql.Text(now),
                alias=alias,
                held=held[column],
            )
        )
    for index, reference in enumerate(moved.embedded):
        was, alias = mapped[reference.column], sql.name(f"{label}_x{index}")
        joins.append(_read_back_embedded(store, reference, was, f"{label}_path_{index}", alias, now))
        mapped[reference.column] = sql.compose("coalesce({x}.rewritten, {was})", x=alias, was=was)
    paths = {f"{label}_path_{index}": list(reference.path) for index, reference in enumerate(moved.embedded)}
    return ReadBack(mapped, sql.join(" ", joins), paths)


def id_columns(moved: MovedTable) -> dict[str, sql.Composable]:
    """Each id column of the row ``t``, embedded ones included."""
    columns = [*dict(moved.columns), *[reference.column for reference in moved.embedded]]
    return {column: sql.compose("t.{column}", column=sql.name(column)) for column in columns}


def unmapped(connection: Connection, store: Store, moved: MovedTable, execution: ledger.Execution) -> Fingerprint:
    """A whole table with every id that this execution moved read back to the old one."""
    back = read_back(store, moved, id_columns(moved), "now")
    statement = sql.compose(
        "SELECT {aggregates} FROM {table} t {joins}",
        aggregates=aggregates(moved, back.mapped, "t"),
        table=sql.table(moved.table.schema, moved.table.name),
        joins=back.joins,
    )
    # The sweeps' maps too: what came between plan and first wave is in the state before.
    maps = sorted({wave.assessment_no for wave in ledger.waves(connection, execution.execution_id)})
    values = {"maps": maps, "execution": execution.execution_id, **back.values}
    return Fingerprint(*[int(value) for value in sql.rows(connection, statement, values)[0]])


def _read_back_embedded(
    store: Store,
    reference: Reference,
    was: sql.Composable,
    path: str,
    alias: sql.Composable,
    now: LiteralString,
) -> sql.Composable:
    """A join that gives ``rewritten``, the old value of an embedded reference, where it holds a moved id now."""
    entity = store.entity(reference.entity)
    as_key = (
        sql.Text("CASE WHEN i.id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN i.id::uuid END")
        if entity.key_type == "uuid"
        else sql.Text("i.id")
    )
    return sql.compose(
        """LEFT JOIN LATERAL (
               SELECT r.rewritten FROM (SELECT {was} AS was) w CROSS JOIN LATERAL (
                   SELECT {rewritten} AS rewritten FROM {ids} i(id) CROSS JOIN LATERAL (
                       SELECT m.new_id::text AS source, m.old_id::text AS goal FROM {map} m
                       WHERE m.assessment_no = ANY(%(maps)s) AND m.new_id = {as_key} AND m.role = 'move' AND {moved}) b
                   HAVING count(*) > 0) r
               WHERE w.was IS NOT NULL) {x} ON true""",
        was=was,
        rewritten=embedded_ids.rewritten(reference, embedded_ids.GOALS_OF_B, path),
        ids=embedded_ids.ids_in(reference, path),
        map=ledger.map_table(entity),
        as_key=as_key,
        moved=sql.Text(now),
        x=alias,
    )


def take_before(connection: Connection, store: Store, execution: ledger.Execution) -> None:
    """Record every moved table's fingerprint before the first batch; wants REPEATABLE READ, keeps an earlier one."""
    for moved in store.tables:
        taken = of_table(connection, moved)
        sql.execute(
            connection,
            """INSERT INTO uuid_pipeline.fingerprints
                   (execution_id, table_name, rows, row_digest, timestamp_digest, deleted_before, file)
               VALUES (%(execution)s, %(table)s, %(rows)s, %(digest)s, %(timestamps)s,
                       coalesce(pg_stat_get_tuples_deleted(%(oid)s::oid), 0), pg_relation_filenode(%(oid)s::oid))
               ON CONFLICT DO NOTHING""",
            {
                "execution": execution.execution_id,
                "table": qualified(moved),
                "rows": taken.rows,
                "digest": taken.digest,
                "timestamps": taken.timestamps,
                "oid": moved.table.oid,
            },
        )


def qualified(moved: MovedTable) -> str:
    return f"{moved.table.schema}.{moved.table.name}"


def before(connection: Connection, execution: ledger.Execution) -> dict[str, tuple[Fingerprint, int]]:
    """(fingerprint, rows deleted until then as the statistics count) by table, as recorded before the first batch."""
    return {
        row.table_name: (
            Fingerprint(int(row.rows), int(row.row_digest), int(row.timestamp_digest)),
            int(row.deleted_before),
        )
        for row in sql.rows(
            connection,
            """SELECT table_name, rows, row_digest, timestamp_digest, deleted_before
               FROM uuid_pipeline.fingerprints WHERE execution_id = %(id)s""",
            {"id": execution.execution_id},
        )
    }
