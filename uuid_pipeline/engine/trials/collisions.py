"""Whose row a changed key collides with: its own old row, a twin, another user's, or another one."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.natural_keys import as_read
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials.approaches import new_id, old_id, relation
from uuid_pipeline.engine.trials.obstacles import Obstacle, references_to

Who = Literal["its own old row", "a twin", "another user's row", "another row"]


@dataclass(frozen=True)
class Collision:
    """``key``: the primary key of the row that stands in the way, as json text."""

    who: Who
    key: str

    def __str__(self) -> str:
        return f"{self.who} {self.key}"


def with_whom(
    connection: Connection, store: Store, entity: Entity, obstacle: Obstacle, old: str, new: str
) -> Collision | None:
    """The row that refuses ``old`` under the id ``new``, in the state before the attempt; None when there is none."""
    own = obstacle.place == (entity.table.schema, entity.table.name)
    turned = [entity.key] if own else [
        r.column for r in references_to(store, entity)
        if (r.table.schema, r.table.name) == obstacle.place and r.column in obstacle.columns
    ]  # fmt: skip
    if not turned:
        return None
    statement = _own_table(entity, obstacle) if own else _other_table(store, entity, obstacle, turned[0])
    found = sql.rows(connection, statement, {"old": old, "new": new})
    return Collision(found[0].who, found[0].key) if found else None


def expressions(obstacle: Obstacle) -> sql.Composable:
    """The indexed values as text columns e0, e1, … over the one table in FROM."""
    return sql.join(
        ", ",
        [
            sql.compose("({e})::text AS {n}", e=sql.as_written(e), n=sql.name(f"e{i}"))
            for i, e in enumerate(obstacle.expressions)
        ],
    )


def same(obstacle: Obstacle) -> sql.Composable:
    """Whether the indexed values of ``a`` and ``o`` collide."""
    operator = "IS NOT DISTINCT FROM" if obstacle.nulls_collide else "="
    return sql.join(
        " AND ",
        [
            sql.compose("a.{n} {op} o.{n}", n=sql.name(f"e{i}"), op=sql.Text(operator))
            for i in range(len(obstacle.expressions))
        ],
    )


def predicate(obstacle: Obstacle) -> sql.Composable:
    return sql.compose("({p})", p=sql.as_written(obstacle.predicate)) if obstacle.predicate else sql.Text("true")


def replaced(columns: list[str], turned: str, value: sql.Composable) -> sql.Composable:
    """A select list of these columns with one of them replaced by a value."""
    return sql.join(
        ", ",
        [
            sql.compose("{v} AS {c}", v=value, c=sql.name(column)) if column == turned else sql.name(column)
            for column in columns
        ],
    )


# The expressions stand unqualified in the index's definition: one table in each FROM keeps them unambiguous.
_COLLIDING = """
WITH attempted AS (SELECT {expressions} FROM (SELECT {replaced} FROM {table} WHERE {turned} = {old}) r
                   WHERE {predicate}),
held AS (SELECT ctid AS at, {expressions} FROM {table} WHERE {predicate})
SELECT {who} AS who, {key}::text AS key
FROM attempted a JOIN held o ON {same} JOIN {table} t ON t.ctid = o.at {mine}
ORDER BY 1 LIMIT 1
"""


def _own_table(entity: Entity, obstacle: Obstacle) -> sql.Composable:
    owner = entity.spec.describe.owner
    parent = entity.parent_column
    whose = sql.compose("t.{o} IS DISTINCT FROM mine.{o}", o=sql.name(owner)) if owner else sql.Text("false")
    below = sql.compose(
        "AND (t.{p} = mine.{p} OR mine.natural = t_natural.natural)", p=sql.name(parent)
    ) if parent else sql.Text("")  # fmt: skip
    return sql.compose(
        _COLLIDING,
        who=sql.compose(
            """CASE WHEN t.{key} = {old} THEN 'its own old row' WHEN {whose} THEN 'another user''s row'
                    WHEN mine.natural = t_natural.natural {below} THEN 'a twin' ELSE 'another row' END""",
            key=sql.name(entity.key),
            old=old_id(entity),
            whose=whose,
            below=below,
        ),
        mine=sql.compose(
            """CROSS JOIN LATERAL (SELECT {natural} AS natural) t_natural
               CROSS JOIN (SELECT t.*, {natural} AS natural FROM {table} t WHERE t.{key} = {old}) mine""",
            natural=as_read(entity),
            table=relation(entity),
            key=sql.name(entity.key),
            old=old_id(entity),
        ),
        key=_key_of(entity.table.primary_key or (entity.key,)),
        table=relation(entity),
        turned=sql.name(entity.key),
        old=old_id(entity),
        replaced=replaced(list(entity.table.columns), entity.key, new_id(entity)),
        expressions=expressions(obstacle),
        predicate=predicate(obstacle),
        same=same(obstacle),
    )


def _other_table(store: Store, entity: Entity, obstacle: Obstacle, turned: str) -> sql.Composable:
    table = store.catalog.tables[obstacle.place]
    return sql.compose(
        _COLLIDING,
        who=sql.Text("'another row'"),
        mine=sql.Text(""),
        key=_key_of(table.primary_key or tuple(table.columns)[:1]),
        table=sql.table(*obstacle.place),
        turned=sql.name(turned),
        old=old_id(entity),
        replaced=replaced(list(table.columns), turned, new_id(entity)),
        expressions=expressions(obstacle),
        predicate=predicate(obstacle),
        same=same(obstacle),
    )


def _key_of(columns: tuple[str, ...]) -> sql.Composable:
    return sql.compose("concat_ws(', ', {c})", c=sql.join(", ", [sql.compose("t.{c}", c=sql.name(c)) for c in columns]))
