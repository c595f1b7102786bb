"""Places that no plain key keeps: those of unique indexes over part of a table or over expressions, and of exclusion
constraints. None of them holds an id, or merging would have been refused."""

from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.merges.archive import Shelf
from uuid_pipeline.engine.natural_keys import cast_type


@dataclass(frozen=True)
class Place:
    """Of the rows of a table for which the ``condition`` holds no two may agree in all ``parts``.

    ``parts``: expressions over the table's columns, each with the operator by which two rows agree in it.
    """

    parts: tuple[tuple[str, str], ...]
    condition: str
    nulls_agree: bool


# By the names that this session's path makes of functions and operators, under which the statements below read them.
# An index that is younger than the merge counts for nothing here: the server refuses the row, and people decide.
_PLACES = """
SELECT array(SELECT pg_get_indexdef(i.indexrelid, k::int, false) FROM generate_series(1, i.indnkeyatts) k ORDER BY k)
           AS parts,
       array(SELECT 'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')'
             FROM generate_series(1, i.indnkeyatts) k
             JOIN pg_opclass c ON c.oid = i.indclass[k - 1]
             JOIN pg_operator o ON o.oid = coalesce(x.conexclop[k], (
                 SELECT a.amopopr FROM pg_amop a WHERE a.amopfamily = c.opcfamily AND a.amopstrategy = 3
                 AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype))
             JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY k) AS operators,
       coalesce(pg_get_expr(i.indpred, i.indrelid), 'true') AS condition,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_agree
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class d ON d.oid = i.indexrelid
JOIN pg_namespace s ON s.oid = t.relnamespace
LEFT JOIN pg_constraint x ON x.conindid = i.indexrelid AND x.contype = 'x'
WHERE i.indrelid = %(oid)s AND i.indisvalid
  AND (i.indisexclusion OR i.indisunique AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL))
  AND EXISTS (SELECT FROM uuid_pipeline.executions e WHERE e.execution_id = %(execution)s AND e.catalog_before
              ? ('index ' || s.nspname || '.' || t.relname || '.' || d.relname))
ORDER BY d.relname
"""


def read(connection: Connection, kept: Shelf, execution_id: str) -> list[Place]:
    """Those of an archive's table that stood when the execution began."""
    rows = sql.rows(connection, _PLACES, {"oid": kept.table.oid, "execution": execution_id})
    return [Place(tuple(zip(row.parts, row.operators, strict=True)), row.condition, row.nulls_agree) for row in rows]


def is_taken(kept: Shelf, place: Place) -> sql.Composable:
    """Whether another row ``t`` has the place of the archived row ``a``; a column that is newer is NULL in that."""
    archived = {column.name for column in kept.columns}
    row = [
        sql.compose(
            "{value} AS {c}",
            value=kept.value(column, "a")
            if column.name in archived
            else sql.compose("NULL::{type}", type=cast_type(column.type)),
            c=sql.name(column.name),
        )
        for column in kept.table.columns.values()
    ]
    parts = [
        sql.compose("{part} AS {name}", part=_text(part), name=sql.name(f"p{n}"))
        for n, (part, _) in enumerate(place.parts)
    ]
    agree = (
        "(t.{p} {operator} n.{p} OR t.{p} IS NULL AND n.{p} IS NULL)" if place.nulls_agree else "t.{p} {operator} n.{p}"
    )
    # The row's own columns go by the table's name, as the index's expressions may have them.
    return sql.compose(
        """EXISTS (SELECT FROM (SELECT {parts} FROM {table} WHERE {condition}) t,
                               (SELECT {parts} FROM (SELECT {row}) AS {alias} WHERE {condition}) n WHERE {agree})""",
        parts=sql.join(", ", parts),
        table=kept.source,
        condition=_text(place.condition),
        row=sql.join(", ", row),
        alias=sql.name(kept.table.name),
        agree=sql.join(
            " AND ",
            [
                sql.compose(agree, p=sql.name(f"p{n}"), operator=_text(operator))
                for n, (_, operator) in enumerate(place.parts)
            ],
        ),
    )


def _text(deparsed: str) -> sql.Composable:
    return sql.Text(deparsed.replace("%", "%%"))
