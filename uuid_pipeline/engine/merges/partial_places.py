"""Places that no plain key keeps: those of unique indexes over part of a table or over expressions, and of exclusion
constraints. None of them holds an id, or merging would have been refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.merges.archive import Shelf


@dataclass(frozen=True)
class Part:
    """A column or an expression over columns, and the operator by which two rows agree in it."""

    text: str
    operator: str
    is_column: bool


@dataclass(frozen=True)
class Place:
    """Of the rows of a table for which the ``condition`` holds no two may agree in all ``parts``."""

    parts: tuple[Part, ...]
    condition: str
    nulls_agree: bool


# By the names that this session's path makes of functions and operators, under which the statements below read them.
# An index that is younger than the merge counts for nothing here: the server refuses the row, and people decide.
_PLACES = """
SELECT array(SELECT pg_get_indexdef(i.indexrelid, k, false)
                    || coalesce(' COLLATE ' || quote_ident(m.nspname) || '.' || quote_ident(l.collname), '')
             FROM generate_series(1, i.indnkeyatts) k LEFT JOIN pg_collation l ON l.oid = i.indcollation[k - 1]
             LEFT JOIN pg_namespace m ON m.oid = l.collnamespace ORDER BY k) AS parts,
       array(SELECT 'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')'
             FROM generate_series(1, i.indnkeyatts) k
             JOIN pg_opclass c ON c.oid = i.indclass[k - 1]
             JOIN pg_operator o ON o.oid = coalesce(x.conexclop[k], (
                 SELECT a.amopopr FROM pg_amop a WHERE a.amopfamily = c.opcfamily AND a.amopstrategy = 3
                 AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype))
             JOIN pg_namespace n ON n.oid = o.oprnamespace ORDER BY k) AS operators,
       array(SELECT i.indkey[k - 1] <> 0 FROM generate_series(1, i.indnkeyatts) k ORDER BY k) AS are_columns,
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


Places = Mapping[int, Sequence[Place]]


def read(connection: Connection, archives: Sequence[Shelf], execution_id: str) -> Places:
    """Those that stood when the execution began, by oid of the archives' tables."""
    return {kept.table.oid: _of_table(connection, kept.table.oid, execution_id) for kept in archives}


def _of_table(connection: Connection, oid: int, execution_id: str) -> list[Place]:
    rows = sql.rows(connection, _PLACES, {"oid": oid, "execution": execution_id})
    return [
        Place(
            tuple(Part(*part) for part in zip(row.parts, row.operators, row.are_columns, strict=True)),
            row.condition,
            row.nulls_agree,
        )
        for row in rows
    ]


def is_taken(kept: Shelf, place: Place) -> sql.Composable:
    """Whether another row ``t`` has the place of the archived row ``a``.

    That is made a row of the table again, as the index's expressions may want one; a column that is newer is NULL in
    it.
    """
    agree = (
        "(t.{p} {operator} n.{p} OR t.{p} IS NULL AND n.{p} IS NULL)" if place.nulls_agree else "t.{p} {operator} n.{p}"
    )
    return sql.compose(
        """EXISTS (SELECT FROM (SELECT {parts} FROM {table} WHERE {condition}) t,
                               (SELECT {parts} FROM jsonb_populate_record(NULL::{table}, to_jsonb(a)) AS {alias}
                                WHERE {condition}) n WHERE {agree})""",
        parts=sql.join(", ", [_value(place, part, f"p{n}") for n, part in enumerate(place.parts)]),
        table=kept.source,
        condition=sql.as_written(place.condition),
        alias=sql.name(kept.table.name),
        agree=sql.join(
            " AND ",
            [
                sql.compose(agree, p=sql.name(f"p{n}"), operator=sql.as_written(part.operator))
                for n, part in enumerate(place.parts)
            ],
        ),
    )


def _value(place: Place, part: Part, name: str) -> sql.Composable:
    """A part under a name. An expression may fail for rows that the index leaves out, whenever it is evaluated."""
    value = "{part} AS {name}" if part.is_column else "CASE WHEN {condition} THEN {part} END AS {name}"
    return sql.compose(
        value, part=sql.as_written(part.text), condition=sql.as_written(place.condition), name=sql.name(name)
    )
