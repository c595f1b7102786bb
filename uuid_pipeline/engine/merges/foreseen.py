"""What merging the clusters of documents will archive and turn, foreseen from what is there now.

The batch decides anew, under its locks; rows further below, and rows that a unique key then refuses, only it knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Entity, Store


@dataclass(frozen=True)
class Foreseen:
    """Rows by table: ``archives`` go to the ledger, ``turns`` refer to the survivor instead."""

    archives: dict[str, int]
    turns: dict[str, int]


# Members of the clusters with their cluster's number; the survivor is the first of each.
_MEMBERS = """
members AS (SELECT m.no, m.key, m.place = 1 AS survivor
            FROM unnest(%(numbers)s::int[], %(keys)s::text[], %(places)s::int[]) AS m(no, key, place))
"""

# Of each set the document with most rows gives the whole set, the survivor when even; the rest goes.
_SETS = """
WITH {members},
sizes AS (SELECT m.no, {set_of} AS set_of, m.key, count(*) AS n
          FROM members m JOIN {table} t ON t.{parent} = m.key::{type}
          JOIN {inventory} i ON i.assessment_no = %(assessment)s AND i.key = t.{key} AND i.quarantined IS NULL
          GROUP BY 1, 2, 3)
SELECT no, (sum(n) - sum(kept))::bigint AS gone FROM (
    SELECT no, set_of, sum(n) AS n, max(n) AS kept FROM sizes GROUP BY 1, 2) s GROUP BY no
"""

_SINGLY = """
WITH {members}
SELECT m.no, count(*) - count(DISTINCT i.natural_key) AS gone
FROM members m JOIN {inventory} i ON i.assessment_no = %(assessment)s AND i.parent_key = m.key::{type}
WHERE i.quarantined IS NULL GROUP BY m.no
"""

_TURNED = """
WITH {members}
SELECT m.no, count(*) AS turned FROM members m JOIN {table} t ON t.{column} = m.key::{type}
WHERE NOT m.survivor GROUP BY m.no
"""


def foresee(
    connection: Connection, store: Store, root: Entity, assessment: int, clusters: Sequence[Sequence[str]]
) -> list[Foreseen]:
    """For each cluster, given as its ids with the survivor first, what merging does to which table."""
    archives: list[dict[str, int]] = [{_label(root): len(ids) - 1} for ids in clusters]
    turns: list[dict[str, int]] = [{} for _ in clusters]
    values = {
        "assessment": assessment,
        "numbers": [no for no, ids in enumerate(clusters) for _ in ids],
        "keys": [key for ids in clusters for key in ids],
        "places": [place for ids in clusters for place in range(1, len(ids) + 1)],
    }
    for child in store.children(root):
        _add(connection, archives, _label(child), _displaced(child, root), values)
    own = {entity.table.oid for entity in store.entities}
    for reference in store.references:
        if reference.entity == root.name and reference.form == "key" and reference.table.oid not in own:
            statement = sql.compose(
                _TURNED,
                members=sql.Text(_MEMBERS),
                table=sql.table(reference.table.schema, reference.table.name),
                column=sql.name(reference.column),
                type=_type(root),
            )
            _add(connection, turns, f"{reference.table.schema}.{reference.table.name}", statement, values)
    return [Foreseen(a, t) for a, t in zip(archives, turns, strict=True)]


def _add(
    connection: Connection, into: list[dict[str, int]], label: str, statement: sql.Composable,
    values: Mapping[str, object],
) -> None:  # fmt: skip
    for number, rows in sql.rows(connection, statement, values):
        if rows:
            into[number][label] = into[number].get(label, 0) + rows


def _displaced(child: Entity, root: Entity) -> sql.Composable:
    inventory = ledger.inventory_table(child)
    if not child.spec.merge_as_set:
        return sql.compose(_SINGLY, members=sql.Text(_MEMBERS), inventory=inventory, type=_type(root))
    columns = sql.join(", ", [sql.compose("t.{c}", c=sql.name(column)) for column in child.spec.merge_as_set])
    return sql.compose(
        _SETS,
        members=sql.Text(_MEMBERS),
        set_of=sql.compose("jsonb_build_array({c})", c=columns),
        table=sql.table(child.table.schema, child.table.name),
        parent=sql.name(child.parent_column or ""),
        key=sql.name(child.key),
        type=_type(root),
        inventory=inventory,
    )


def _type(entity: Entity) -> sql.Composable:
    return sql.Text("uuid" if entity.key_type == "uuid" else "text")


def _label(entity: Entity) -> str:
    return f"{entity.table.schema}.{entity.table.name}"
