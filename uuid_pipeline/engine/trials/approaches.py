"""The known approaches to changing a key, each with a file of its own, and the steps that they are made of."""

from collections.abc import Callable
from dataclasses import dataclass

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Reference, Store


@dataclass(frozen=True)
class Step:
    """One statement of an approach, for one row: wants ``old`` and ``new`` bound as text. ``does`` says it in words."""

    does: str
    statement: sql.Composable


@dataclass(frozen=True)
class Approach:
    """A way to change one row's key. ``inserts``: a second row under the new id stands beside the old one for a while.

    ``moves_references``: it writes the references itself, before the key or after the copy. ``defers``: it counts on
    foreign keys that are looked at when the transaction ends. ``at_once``: key and references change in one statement.
    """

    name: str
    does: str
    steps: Callable[[Store, Entity], tuple[Step, ...]]
    inserts: bool = False
    moves_references: bool = False
    references_first: bool = False
    defers: bool = False
    at_once: bool = False


def relation(entity: Entity) -> sql.Composable:
    return sql.table(entity.table.schema, entity.table.name)


def new_id(entity: Entity) -> sql.Composable:
    """The bound new id in the key's own type."""
    return sql.compose("%(new)s::{type}", type=sql.as_written(entity.table.columns[entity.key].type))


def old_id(entity: Entity) -> sql.Composable:
    """The bound old id in the key's own type."""
    return sql.compose("%(old)s::{type}", type=sql.as_written(entity.table.columns[entity.key].type))


def turn_reference(reference: Reference, entity: Entity) -> Step:
    """The rows that refer to the old id refer to the new one."""
    column = sql.name(reference.column)
    return Step(
        f"UPDATE {reference.table.name}.{reference.column}",
        sql.compose(
            "UPDATE {table} SET {column} = {new} WHERE {column} = {old}",
            table=sql.table(reference.table.schema, reference.table.name),
            column=column,
            new=new_id(entity),
            old=old_id(entity),
        ),
    )


def change_key(entity: Entity) -> Step:
    return Step(
        f"UPDATE {entity.table.name}.{entity.key}",
        sql.compose(
            "UPDATE {table} SET {key} = {new} WHERE {key} = {old}",
            table=relation(entity),
            key=sql.name(entity.key),
            new=new_id(entity),
            old=old_id(entity),
        ),
    )
