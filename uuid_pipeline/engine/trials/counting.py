"""For how many rows of the store an obstacle refuses an approach: set-based, over the rows that would move."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Reference, Store
from uuid_pipeline.engine.trials import collisions
from uuid_pipeline.engine.trials.approaches import Approach, relation
from uuid_pipeline.engine.trials.moving import MOVES, table
from uuid_pipeline.engine.trials.obstacles import UNIQUE, Obstacle, references_to

NO_CASCADE = ("a", "r")


def refused(approach: Approach, obstacle: Obstacle, store: Store, entity: Entity) -> sql.Composable | None:
    """The condition on ``m`` (looked-at row) and ``t`` (its row in the store) under which an obstacle refuses it.

    None where nothing in the catalogs says that it would.
    """
    if obstacle.kind == "foreign key":
        return _foreign_key(approach, obstacle, entity)
    if obstacle.kind in UNIQUE and obstacle.kind != "exclusion":
        return _unique(approach, obstacle, store, entity)
    return None


def _foreign_key(approach: Approach, obstacle: Obstacle, entity: Entity) -> sql.Composable | None:
    if not obstacle.refers_to(entity) or approach.inserts or approach.at_once:
        return None
    if approach.references_first:
        waits = obstacle.deferred or (approach.defers and obstacle.deferrable)
        refuses = not waits
    else:
        refuses = obstacle.on_update in NO_CASCADE
    return has_reference(obstacle, entity) if refuses else None


def has_reference(obstacle: Obstacle, entity: Entity) -> sql.Composable:
    """Whether a row refers to ``m`` by this foreign key; one with a NULL in it refers to nothing."""
    return sql.compose(
        "EXISTS (SELECT FROM {child} c WHERE c.{column} = m.old AND {whole})",
        child=sql.table(*obstacle.place),
        column=sql.name(obstacle.column_of(entity)),
        whole=sql.join(" AND ", [sql.compose("c.{c} IS NOT NULL", c=sql.name(c)) for c in obstacle.columns]),
    )


def has_row(trigger: Obstacle, store: Store, entity: Entity) -> sql.Composable:
    """Whether the trigger's table has a row that moves with ``m``."""
    columns = [r.column for r in references_to(store, entity)
               if (r.table.schema, r.table.name) == trigger.place]  # fmt: skip
    if trigger.place == (entity.table.schema, entity.table.name):
        columns.append(entity.key)
    return sql.join(
        " OR ",
        [
            sql.compose(
                "EXISTS (SELECT FROM {t} c WHERE c.{column} = m.old)",
                t=sql.table(*trigger.place),
                column=sql.name(column),
            )
            for column in columns
        ],
    )


def holds(reference: Reference) -> sql.Composable:
    """Whether a row holds the old id of ``m`` without a foreign key."""
    return sql.compose(
        "EXISTS (SELECT FROM {table} c WHERE c.{column} = {old})",
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        old=sql.Text("m.old" if reference.table.columns[reference.column].type == "uuid" else "m.old::text"),
    )


def _unique(approach: Approach, obstacle: Obstacle, store: Store, entity: Entity) -> sql.Composable | None:
    if obstacle.place == (entity.table.schema, entity.table.name):
        if entity.key in obstacle.columns:
            return sql.join(" OR ", [sql.compose("{c}", c=c) for _, c in _holders(entity)])
        return _own_row(obstacle, entity) if approach.inserts else None
    return _beside_another(obstacle, store, entity) if approach.moves_references or approach.at_once else None


def _own_row(obstacle: Obstacle, entity: Entity) -> sql.Composable:
    """A copy of the row has the same indexed values, where these can collide at all."""
    present = sql.Text("true") if obstacle.nulls_collide else sql.join(
        " AND ", [sql.compose("({e}) IS NOT NULL", e=sql.as_written(e)) for e in obstacle.expressions]
    )  # fmt: skip
    return sql.compose(
        # The expressions may fail for rows that the predicate leaves out; they may name the table.
        """EXISTS (SELECT FROM {table} WHERE {key} = m.old
                   AND CASE WHEN {predicate} THEN {present} ELSE false END)""",
        table=relation(entity),
        key=sql.name(entity.key),
        present=present,
        predicate=collisions.predicate(obstacle),
    )


def _holders(entity: Entity) -> list[tuple[str, sql.Composable]]:
    """By whose row it is: the conditions under which the key ``m.new`` is taken, or will have been."""
    owner = sql.Text("h.owner IS NOT DISTINCT FROM m.owner")
    held = "EXISTS (SELECT FROM {looked} h JOIN {table} x ON x.{key} = h.old WHERE h.old = m.new AND {which})"
    # Of several that want one id the first gets it.
    race = "EXISTS (SELECT FROM {looked} h WHERE h.new = m.new AND h.old < m.old AND h.new <> h.old AND {which})"
    unseen = """EXISTS (SELECT FROM {table} x WHERE x.{key} = m.new
                        AND NOT EXISTS (SELECT FROM {looked} h WHERE h.old = m.new))"""
    natural = sql.Text("h.natural_key IS NOT DISTINCT FROM m.natural_key")
    whose = [
        ("a twin", sql.compose("{o} AND {n}", o=owner, n=natural)),
        ("another user's row", sql.compose("NOT ({o})", o=owner)),
        ("another row", sql.compose("{o} AND NOT ({n})", o=owner, n=natural)),
    ]
    parts = {"looked": table(entity), "table": relation(entity), "key": sql.name(entity.key)}
    found: list[tuple[str, sql.Composable]] = [
        (
            who,
            sql.compose(
                "({held} OR {race})",
                held=sql.compose(held, which=which, **parts),
                race=sql.compose(race, which=which, looked=table(entity)),
            ),
        )
        for who, which in whose
    ]
    return [*found, ("another row", sql.compose(unseen, **parts))]


def _beside_another(obstacle: Obstacle, store: Store, entity: Entity) -> sql.Composable | None:
    """A referring row turned to the new id meets one that has the same other values below it."""
    turned = next(
        (
            r.column
            for r in references_to(store, entity)
            if (r.table.schema, r.table.name) == obstacle.place and r.column in obstacle.columns
        ),
        None,
    )
    plain = set(obstacle.expressions) <= {sql.shown(sql.name(c)).strip('"') for c in obstacle.columns}
    if turned is None or not plain:
        return None
    others = [c for c in obstacle.columns if c != turned]
    return sql.compose(
        "EXISTS (SELECT FROM {child} c JOIN {child} o ON {same} WHERE c.{turned} = m.old AND o.{turned} = m.new)",
        child=sql.table(*obstacle.place),
        turned=sql.name(turned),
        same=sql.join(" AND ", [sql.compose("o.{c} = c.{c}", c=sql.name(c)) for c in others])
        if others
        else sql.Text("true"),
    )


def count(connection: Connection, entity: Entity, conditions: dict[str, sql.Composable]) -> tuple[dict[str, int], int]:
    """Rows that each named condition holds for, and rows that any of them does; one pass."""
    names = list(conditions)
    if not names:
        return {}, 0
    counts = [
        sql.compose("count(*) FILTER (WHERE {n})", n=sql.name(f"c{i}")) for i in range(len(names))
    ]  # fmt: skip
    judged = [sql.compose("({c}) AS {n}", c=conditions[name], n=sql.name(f"c{i}")) for i, name in enumerate(names)]
    statement = sql.compose(
        "SELECT {counts}, count(*) FILTER (WHERE {either}) FROM (SELECT {judged} FROM {looked} m WHERE {moves}) j",
        counts=sql.join(", ", counts),
        either=sql.join(" OR ", [sql.name(f"c{i}") for i in range(len(names))]),
        judged=sql.join(", ", judged),
        looked=table(entity),
        moves=MOVES,
    )
    found = tuple(sql.rows(connection, statement)[0])
    return dict(zip(names, found[:-1], strict=True)), found[-1]


@dataclass
class Tally:
    """Counts of one entity's rows by condition; the approaches share most of their conditions, so each is asked once.

    Wants one snapshot for all its questions.
    """

    entity: Entity
    of_one: dict[str, int] = field(default_factory=dict)
    of_any: dict[frozenset[str], int] = field(default_factory=dict)

    def each(self, connection: Connection, conditions: Mapping[str, sql.Composable]) -> dict[str, int]:
        """Rows that each named condition holds for."""
        texts = {name: condition.as_string(None) for name, condition in conditions.items()}
        new = {text: conditions[name] for name, text in texts.items() if text not in self.of_one}
        counts, either = count(connection, self.entity, new)
        self.of_one |= counts
        self.of_any[frozenset(new)] = either
        return {name: self.of_one[text] for name, text in texts.items()}

    def any(self, connection: Connection, conditions: Mapping[str, sql.Composable]) -> int:
        """Rows that any of these conditions holds for."""
        texts = {condition.as_string(None): condition for condition in conditions.values()}
        asked = frozenset(texts)
        if asked not in self.of_any:
            counts, self.of_any[asked] = count(connection, self.entity, texts)
            self.of_one |= counts
        return self.of_any[asked]


def look_alikes(connection: Connection, entity: Entity) -> int:
    """Rows that would move and have the natural key of another owner's row, but for the owner."""
    alike = sql.compose(
        """m.rest IN (SELECT r.rest FROM {looked} r WHERE r.rest <> '[]' GROUP BY r.rest
                      HAVING count(DISTINCT r.owner) > 1)""",
        looked=table(entity),
    )
    return count(connection, entity, {"alike": alike})[1]


def whose(connection: Connection, entity: Entity, approach: Approach, obstacle: Obstacle) -> dict[str, int]:
    """Of the rows that a unique obstacle of the entity's own table refuses, whose row stands in the way of how many."""
    if obstacle.place != (entity.table.schema, entity.table.name) or obstacle.kind not in UNIQUE:
        return {}
    if entity.key not in obstacle.columns:
        condition = _own_row(obstacle, entity) if approach.inserts else None
        own = {} if condition is None else {"its own old row": condition}
        return {k: n for k, n in count(connection, entity, own)[0].items() if n}
    found: dict[str, int] = {}
    for who, condition in _holders(entity):
        n = count(connection, entity, {who: condition})[0][who]
        found[who] = found.get(who, 0) + n
    return {who: n for who, n in found.items() if n}
