"""Foreign keys made while a run writes: its plan does not know their rows, and the replica role checks nothing."""

import functools
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import FORWARD, Direction
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

_UNKNOWN = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS "table", quote_ident(f.conname) AS name
FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE f.contype = 'f' AND f.confrelid = ANY(%(oids)s)
  AND EXISTS (SELECT FROM unnest(%(oids)s::oid[], %(columns)s::text[]) i(oid, name)
              JOIN pg_attribute a ON a.attrelid = i.oid AND a.attname = i.name
              WHERE i.oid = f.confrelid AND a.attnum = ANY(f.confkey))
  AND (n.nspname, c.relname, f.conname) NOT IN
      (SELECT * FROM unnest(%(schemas)s::text[], %(tables)s::text[], %(names)s::text[]))
ORDER BY 1, 2 LIMIT 5
"""


def require_none(connection: Connection, store: Store, direction: Direction) -> None:
    """Raise RefusedError when a foreign key that the store was bound without refers to an id that moves.

    A batch asks once it has written every moved table: who makes such a key wants a lock on the table referred to that
    waits for it from there on, so what this statement does not see is made after the batch and checked against it.
    """
    found = sql.rows(connection, _UNKNOWN, _known(store))
    if found:
        shown = ", ".join(f"{row.name} of {row.table}" for row in found)
        remedy = (
            "plan again (uuid-pipeline plan) and approve the new plan, which moves its rows as well"
            if direction is FORWARD
            else "give the same command again, which takes its rows along"
        )
        raise RefusedError(
            f"A foreign key was made while this run was at work, and refers to ids that move: {shown}. The batch was "
            f"rolled back; what was committed before stands. To go on, {remedy}."
        )


@functools.lru_cache(maxsize=64)
def _known(store: Store) -> dict[str, Any]:
    """The ids that move and the foreign keys that the store was bound with: every batch asks for the same ones."""
    moved = [(moved.table.oid, column) for moved in store.tables for column, _ in moved.columns]
    known = [(key.table_schema, key.table, key.name) for key in store.catalog.foreign_keys]
    return {
        "oids": [oid for oid, _ in moved],
        "columns": [column for _, column in moved],
        "schemas": [schema for schema, _, _ in known],
        "tables": [table for _, table, _ in known],
        "names": [name for _, _, name in known],
    }
