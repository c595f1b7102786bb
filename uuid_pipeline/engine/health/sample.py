"""The rotating sample: so many documents a tick, in the order of their keys, going on where the tick before ended."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health import identified
from uuid_pipeline.engine.health.identified import Identified
from uuid_pipeline.engine.store import Store


def take(connection: Connection, store: Store, after: str | None, size: int) -> tuple[Identified, ...]:
    """The next ``size`` documents after the key ``after``; from the first key again when there are no more."""
    found = _after(connection, store, after, size)
    if after is not None and len(found) < size:
        known = {row.key for row in found}
        found += [row for row in _after(connection, store, None, size - len(found)) if row.key not in known]
    return tuple(found)


def _after(connection: Connection, store: Store, after: str | None, size: int) -> list[Identified]:
    main = store.main
    restriction = sql.compose(
        "ORDER BY t.{key} LIMIT %(size)s"
        if after is None
        else "WHERE t.{key} > %(after)s::{type} ORDER BY t.{key} LIMIT %(size)s",
        key=sql.name(main.key),
        type=sql.as_written(main.table.columns[main.key].type),
    )
    values = {"after": after, "size": size}
    return [row for rows in identified.stream(connection, store, main, restriction, values) for row in rows]
