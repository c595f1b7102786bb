"""Rows with the target ids that their natural keys give, read straight from the store: no inventory is taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.natural_keys import first_invalid, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher


@dataclass(frozen=True)
class Identified:
    """A row's key, and its target id: None when it has none (a part is NULL or not valid, or the parent is missing)."""

    key: str
    target: str | None


def stream(
    connection: Connection,
    store: Store,
    entity: Entity,
    restriction: sql.Composable | None = None,
    values: Mapping[str, Any] | None = None,
) -> Iterator[list[Identified]]:
    """The rows of an entity, 10,000 at a time.

    ``restriction`` follows the table, whose alias is ``t``: WHERE, ORDER BY, LIMIT.
    """
    chain = [entity]
    while chain[-1].parent is not None:
        chain.append(store.entity(chain[-1].parent))
    target_of = hasher(store.spec.namespace)

    def target(parts: list[list[str | None] | None]) -> str | None:
        above: str | None = None
        for level, found in reversed(list(zip(chain, parts, strict=True))):
            if found is None:
                return None
            values_of = dict(zip(level.spec.template.fields, found, strict=True))
            if level.parent_column is not None:
                values_of[level.parent_column] = above
            known = {field: value for field, value in values_of.items() if value is not None}
            if len(known) < len(values_of) or first_invalid(level, [known[f] for f in level.spec.valid]) is not None:
                return None
            above = target_of(level.spec.template.fill(known))
        return above

    for chunk in sql.stream(connection, _statement(chain, restriction), values or {}):
        yield [Identified(key, target(parts)) for key, *parts in chunk]


def _statement(chain: list[Entity], restriction: sql.Composable | None) -> sql.Composable:
    """The key, then for the row and each parent above it the normalised parts of its natural key."""
    joins = [
        sql.compose(
            "LEFT JOIN {level} {alias} ON {alias}.key = {below}.parent",
            level=_level(entity, sql.Text("")),
            alias=sql.name(f"e{number}"),
            below=sql.name(f"e{number - 1}"),
        )
        for number, entity in enumerate(chain[1:], 1)
    ]
    return sql.compose(
        "SELECT e0.key::text, {parts} FROM {first} e0 {joins}",
        parts=sql.join(", ", [sql.compose("{alias}.parts", alias=sql.name(f"e{n}")) for n in range(len(chain))]),
        first=_level(chain[0], restriction or sql.Text("")),
        joins=sql.join(" ", joins),
    )


def _level(entity: Entity, restriction: sql.Composable) -> sql.Composable:
    # The parent's column stands for its target id, which is not known here; it is filled in later.
    parts = [
        sql.Text("NULL") if field == entity.parent_column else part(entity, field, None)
        for field in entity.spec.template.fields
    ]
    return sql.compose(
        "(SELECT t.{key} AS key, {parent} AS parent, ARRAY[{parts}]::text[] AS parts FROM {table} t {restriction})",
        key=sql.name(entity.key),
        parent=sql.compose("t.{column}", column=sql.name(entity.parent_column))
        if entity.parent_column
        else sql.Text("NULL::text"),
        parts=sql.join(", ", parts),
        table=sql.table(entity.table.schema, entity.table.name),
        restriction=restriction,
    )
