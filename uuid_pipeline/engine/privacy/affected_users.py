"""Whose documents a migration touches: counts and titles a user, from the id map and the store as it is now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Store

TITLES = 20


@dataclass(frozen=True)
class Impact:
    """Documents of one user, or of all; None where the spec does not describe what it takes to know.

    ``changing`` is all whose id changes: ``waiting`` under the old id now, ``moved`` to the target id, ``merged`` into
    another document of the same content, ``gone`` since the plan. Of those that wait or moved, ``with_text`` have
    chunks and are found under the target id, ``without_text`` have none. ``quarantined`` documents keep their ids.
    """

    changing: int
    waiting: int
    moved: int
    merged: int
    gone: int
    with_text: int | None
    without_text: int | None
    quarantined: int | None
    found_now: int | None


@dataclass(frozen=True)
class User:
    """One user with the titles (or ids, where the spec describes no title) of at most TITLES documents of a kind."""

    owner: str
    impact: Impact
    with_text: tuple[str, ...]
    without_text: tuple[str, ...]
    merged: tuple[str, ...]
    quarantined: tuple[str, ...]


# Joined with the table as it is, not with what the journal says of it: an old id that is there was not moved, or went
# back. A loser of a merge whose id was the target id keeps that for its user, and is not among them.
_DOCUMENTS = """
WITH parts AS ({parts}),
mapped AS (
    SELECT coalesce(o.{key}, n.{key})::text AS id, {owner} AS owner, {title} AS title,
           CASE WHEN o.{key} IS NOT NULL THEN 'waiting' WHEN n.{key} IS NULL THEN 'gone'
                WHEN m.role = 'merge' THEN 'merged' ELSE 'moved' END AS state,
           p.parent IS NOT NULL AS has_text
    FROM {map} m LEFT JOIN {table} o ON o.{key} = m.old_id LEFT JOIN {table} n ON n.{key} = m.new_id
    LEFT JOIN parts p ON p.parent = coalesce(o.{key}, n.{key})
    WHERE m.assessment_no = ANY(%(assessments)s) AND m.old_id <> m.new_id
    UNION ALL
    SELECT i.key::text, {aside_owner}, {aside_title}, 'quarantined', NULL FROM {inventory} i
    WHERE i.assessment_no = %(inventory)s AND i.quarantined IS NOT NULL),
sorted AS (
    SELECT owner, state, has_text, coalesce(title, id) AS shown, CASE
               WHEN state IN ('waiting', 'moved') THEN CASE WHEN has_text THEN 'with' ELSE 'without' END
               ELSE state END AS list FROM mapped),
numbered AS (SELECT s.*, row_number() OVER (
                 PARTITION BY owner, list ORDER BY shown COLLATE "C") AS place FROM sorted s)
SELECT owner,
       count(*) FILTER (WHERE state <> 'quarantined') AS changing,
       count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'moved') AS moved,
       count(*) FILTER (WHERE state = 'merged') AS merged, count(*) FILTER (WHERE state = 'gone') AS gone,
       count(*) FILTER (WHERE list = 'with') AS with_text, count(*) FILTER (WHERE list = 'without') AS without_text,
       count(*) FILTER (WHERE state = 'quarantined') AS quarantined,
       count(*) FILTER (WHERE state = 'moved' AND has_text) AS found_now,
       {titles}
FROM numbered GROUP BY owner ORDER BY owner COLLATE "C"
"""
_LISTS = ("with", "without", "merged", "quarantined")


def stream(connection: Connection, store: Store, assessments: Sequence[int]) -> Iterator[tuple[str | None, User]]:
    """Every owner with documents in the id maps of these assessments, the plan's first; memory is bounded.

    Documents without an owner, and all of them where the spec describes none, come under None. Wants an open
    transaction.
    """
    main, described = store.main, store.main.spec.describe
    has_children = bool(store.children(main))
    counted = _inventory_is_there(connection, store, assessments[0])
    statement = sql.Text(_DOCUMENTS).format(
        parts=_parents_with_children(store),
        key=sql.name(main.key),
        owner=_described("coalesce(o.{column}, n.{column})::text", described.owner),
        title=_described("coalesce(o.{column}, n.{column})::text", described.title),
        aside_owner=sql.Text("i.owner" if described.owner else "NULL::text"),
        aside_title=sql.Text("i.title" if described.title else "NULL::text"),
        map=ledger.map_table(main),
        table=sql.table(main.table.schema, main.table.name),
        inventory=ledger.inventory_table(main),
        titles=sql.join(
            ", ",
            [
                sql.compose(
                    "array_agg(shown ORDER BY place) FILTER (WHERE list = {list} AND place <= {limit})",
                    list=sql.literal(name),
                    limit=sql.literal(TITLES),
                )
                for name in _LISTS
            ],
        ),
    )
    values = {"assessments": list(assessments), "inventory": assessments[0]}
    for rows in sql.stream(connection, statement, values):
        for owner, changing, waiting, moved, merged, gone, with_text, without, aside, found, *titles in rows:
            impact = Impact(
                changing, waiting, moved, merged, gone,
                with_text if has_children else None, without if has_children else None,
                aside if counted else None, found if has_children else None,
            )  # fmt: skip
            yield owner, User(owner or "", impact, *[tuple(shown or ()) for shown in titles])


def _described(template: str, column: str | None) -> sql.Composable:
    if column is None:
        return sql.Text("NULL::text")
    return sql.Text(template).format(column=sql.name(column))


def _parents_with_children(store: Store) -> sql.Composable:
    """Keys of documents with rows of any entity below them."""
    key = sql.Text("uuid" if store.main.key_type == "uuid" else "text")
    children = [
        sql.compose(
            "SELECT DISTINCT {parent} AS parent FROM {table}",
            parent=sql.name(child.parent_column or ""),
            table=sql.table(child.table.schema, child.table.name),
        )
        for child in store.children(store.main)
    ]
    if not children:
        return sql.compose("SELECT NULL::{key} AS parent WHERE false", key=key)
    return sql.join(" UNION ", children)


def _inventory_is_there(connection: Connection, store: Store, assessment: int) -> bool:
    """Inventories older than the newest few are dropped."""
    part = f"uuid_pipeline.inventory_{store.main.name}_{assessment}"
    return bool(sql.scalar(connection, "SELECT to_regclass(%(part)s) IS NOT NULL", {"part": part}))


def added(a: Impact, b: Impact) -> Impact:
    """The sum of two; what is unknown in either is unknown in it."""
    sums: dict[str, Any] = {}
    for field in fields(Impact):
        one, other = getattr(a, field.name), getattr(b, field.name)
        sums[field.name] = None if one is None or other is None else one + other
    return Impact(**sums)


NOBODY = Impact(0, 0, 0, 0, 0, 0, 0, 0, 0)
