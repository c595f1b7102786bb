"""Whether anything in the store is due at all, without an inventory of it."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.natural_keys import first_invalid, natural_key, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher


def anything_due(connection: Connection, store: Store) -> bool:
    """Whether any row has another id than its natural key gives; read up to the first such row.

    A child's key is made of its parent's id as the row holds it: while no parent is due, that is its target id. What
    hangs on a quarantined parent counts as due, since this does not look there.
    """
    return any(_is_due(connection, store, entity) for entity in store.entities)


def _is_due(connection: Connection, store: Store, entity: Entity) -> bool:
    target_of = hasher(store.spec.namespace)
    parent = sql.compose("t.{c}", c=sql.name(entity.parent_column)) if entity.parent_column else None
    statement = sql.compose(
        "SELECT t.{key}::text, {natural_key}, ARRAY[{valid}]::text[] FROM {table} t",
        key=sql.name(entity.key),
        natural_key=natural_key(entity, parent),
        valid=sql.join(", ", [part(entity, field, parent) for field in entity.spec.valid]),
        table=sql.table(entity.table.schema, entity.table.name),
    )
    return any(
        key != target_of(text)
        for rows in sql.stream(connection, statement, {})
        for key, text, valid in rows
        if text is not None and first_invalid(entity, valid) is None
    )
