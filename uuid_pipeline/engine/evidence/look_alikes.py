"""Look-alikes: rows that are no cluster, and yet the same to a person. Information only: nobody merges them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import savepoints, sql
from uuid_pipeline.engine.natural_keys import as_read
from uuid_pipeline.engine.store import Entity, Store

TIMEOUT = "5s"
SHOWN = 20
IDS = 10


@dataclass(frozen=True)
class LookAlikes:
    """``groups`` of ``rows`` documents; the first are in ``shown`` (ids, owners). ``unknown``: why nobody looked."""

    kind: str
    groups: int
    rows: int
    shown: tuple[dict[str, Any], ...]
    unknown: str | None = None


def find(connection: Connection, store: Store) -> list[LookAlikes]:
    """Documents of different owners with one content, and documents of other contents whose texts are the same."""
    return [_across_owners(connection, store.main), _same_text(connection, store)]


# One pass, one aggregate: what is alike is a value of the row, what differs is the owner.
_GROUPS = """
WITH groups AS (SELECT {alike} AS alike, (array_agg(t.{key}::text ORDER BY t.{key}))[:{ids}] AS ids, count(*) AS rows,
                       {owners} AS owners
                FROM {source} WHERE {present} GROUP BY 1 HAVING {differ})
SELECT g.ids, g.rows, g.owners, count(*) OVER () AS groups, sum(g.rows) OVER () AS all_rows
FROM groups g ORDER BY g.rows DESC, g.ids LIMIT %(shown)s
"""


def _across_owners(connection: Connection, entity: Entity) -> LookAlikes:
    kind = "same content, different owners"
    owner, content = entity.spec.describe.owner, entity.spec.describe.content
    if owner is None:
        return LookAlikes(kind, 0, 0, (), "the spec names no owner")
    if content is None and owner not in entity.spec.template.fields:
        return LookAlikes(kind, 0, 0, (), "the identity has no owner in it: such rows are clusters")
    if content is None and set(entity.spec.template.fields) == {owner}:
        return LookAlikes(kind, 0, 0, (), "the spec names no content, and the identity is the owner alone")
    statement = sql.compose(
        _GROUPS,
        alike=sql.compose("t.{c}::text", c=sql.name(content)) if content else as_read(entity, without=owner),
        key=sql.name(entity.key),
        ids=sql.literal(IDS),
        owners=sql.compose("count(DISTINCT t.{o})", o=sql.name(owner)),
        source=sql.compose("{t} t", t=sql.table(entity.table.schema, entity.table.name)),
        # A natural key that lacks a part says nothing of the content.
        present=sql.compose("t.{c} IS NOT NULL", c=sql.name(content))
        if content
        else sql.compose("NOT {parts} @> '[null]'", parts=as_read(entity, without=owner)),
        differ=sql.compose("count(DISTINCT t.{o}) > 1", o=sql.name(owner)),
    )
    return _look(connection, kind, statement)


def _same_text(connection: Connection, store: Store) -> LookAlikes:
    """Documents whose chunks have the same contents, all of them, though their natural keys differ."""
    kind = "same text, different natural keys"
    main = store.main
    child = next((c for c in store.children(main) if c.spec.describe.content), None)
    if child is None:
        return LookAlikes(kind, 0, 0, (), "the spec names no content of what is below documents")
    owner = main.spec.describe.owner
    texts = sql.compose(
        """(SELECT c.{parent} AS parent, md5(string_agg(md5(c.{content}::text), '' ORDER BY md5(c.{content}::text)))
                   AS texts
            FROM {children} c GROUP BY 1)""",
        parent=sql.name(child.parent_column or ""),
        content=sql.name(child.spec.describe.content or ""),
        children=sql.table(child.table.schema, child.table.name),
    )
    statement = sql.compose(
        _GROUPS,
        alike=sql.Text("x.texts"),
        key=sql.name(main.key),
        ids=sql.literal(IDS),
        owners=sql.compose("count(DISTINCT t.{o})", o=sql.name(owner)) if owner else sql.Text("NULL::bigint"),
        source=sql.compose(
            "{t} t JOIN {texts} x ON x.parent = t.{key}",
            t=sql.table(main.table.schema, main.table.name),
            texts=texts,
            key=sql.name(main.key),
        ),
        present=sql.Text("x.texts IS NOT NULL"),
        differ=sql.compose("count(DISTINCT {natural}) > 1", natural=as_read(main)),
    )
    return _look(connection, kind, statement)


def _look(connection: Connection, kind: str, statement: sql.Composable) -> LookAlikes:
    """In a savepoint with a time limit: a look at most, whatever the size."""
    try:
        with savepoints.undone(connection):
            sql.execute(connection, "SELECT set_config('statement_timeout', %(limit)s, true)", {"limit": TIMEOUT})
            found = sql.rows(connection, statement, {"shown": SHOWN})
    except DBAPIError as error:
        if sql.sqlstate(error) != sql.QUERY_CANCELED:
            raise
        return LookAlikes(kind, 0, 0, (), f"it would take longer than {TIMEOUT}")
    shown = tuple({"ids": list(row.ids), "rows": row.rows, "owners": row.owners} for row in found)
    return LookAlikes(kind, found[0].groups if found else 0, int(found[0].all_rows) if found else 0, shown)
