"""CHECK constraints that merging may break: what was never equal, or never NULL, becomes so.

Where the ids of a cluster become one, a row that named two of them names one twice; where a row is archived with
nothing in its place, what referred to it is left with NULL.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.merges.folding import Fold
from uuid_pipeline.engine.store import Entity
from uuid_pipeline.errors import UnmergeableError


@dataclass(frozen=True)
class Check:
    """``columns``: those that the expression looks at; ``validated``: whether all rows were looked at."""

    name: str
    expression: str
    validated: bool
    columns: frozenset[str]


# A CHECK that is NOT ENFORCED (18+) stops nothing.
_CHECKS = """
SELECT k.conname AS name, pg_get_expr(k.conbin, k.conrelid) AS expression, k.convalidated AS validated,
       array(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey))
           AS columns
FROM pg_constraint k WHERE k.conrelid = %(oid)s AND k.contype = 'c'
  AND to_jsonb(k) ->> 'conenforced' IS DISTINCT FROM 'false' ORDER BY k.conname
"""


def read(connection: Connection, table: Table) -> list[Check]:
    """The table's CHECK constraints, by name."""
    rows = sql.rows(connection, _CHECKS, {"oid": table.oid})
    return [Check(row.name, row.expression, row.validated, frozenset(row.columns)) for row in rows]


def fails(table: Table, check: Check, values: Mapping[str, sql.Composable]) -> sql.Composable:
    """Whether the CHECK fails for the row ``t`` with these values in place of its own.

    The expression finds its columns by their names alone, or as the table's.
    """
    columns = [
        sql.compose("{v} AS {c}", v=values.get(c, sql.compose("t.{c}", c=sql.name(c))), c=sql.name(c))
        for c in table.columns
    ]
    return sql.compose(
        "(SELECT NOT ({expression}) FROM (SELECT {columns}) AS {alias})",
        expression=sql.as_written(check.expression),
        columns=sql.join(", ", columns),
        alias=sql.name(table.name),
    )


def of_columns(connection: Connection, table: Table, columns: set[str]) -> list[Check]:
    """The CHECKs that look at one of these columns."""
    if not any(table.columns[column].checked for column in columns):
        return []
    return [check for check in read(connection, table) if check.columns & columns]


# A row that goes to the archive is not written any more.
_FORBIDDEN = """
FROM {fold} f JOIN {table} t ON t.ctid = f.at
WHERE {fails} AND NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(oid)s AND x.at = f.at)
"""


def displace_forbidden(connection: Connection, fold: Fold) -> None:
    """Turned rows that a CHECK would refuse go to the archive, as those that a unique key would.

    Raises UnmergeableError where they are documents: to archive these was approved by nobody.
    """
    table, entity = fold.held.moved.table, fold.held.moved.entity
    after = {column: fold.after(column) for column, _ in fold.held.values}
    for check in of_columns(connection, table, set(after)):
        forbidden = sql.Text(_FORBIDDEN).format(
            fold=fold.relation, table=fold.held.table, fails=fails(table, check, after)
        )
        if entity is not None and entity.parent is None:
            _require_none(connection, fold, entity, check, forbidden)
            continue
        statement = sql.compose(
            """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
               SELECT %(oid)s, f.at, f.ordinal, NULL {forbidden}""",
            forbidden=forbidden,
        )
        sql.execute(connection, statement, fold.oid)


def _require_none(connection: Connection, fold: Fold, entity: Entity, check: Check, forbidden: sql.Composable) -> None:
    statement = sql.compose(
        "SELECT t.{key}::text AS key, f.ordinal {forbidden} ORDER BY 1", key=sql.name(entity.key), forbidden=forbidden
    )
    found = sql.rows(connection, statement, fold.oid)
    if found:
        raise UnmergeableError(
            f"{entity.name} {found[0].key} of {entity.table.schema}.{entity.table.name} refers to a row that is to be "
            f"merged, and with the survivor in its place CHECK {check.name} fails ({check.expression}): change what it "
            "refers to",
            sorted({int(row.ordinal) for row in found}),
        )
