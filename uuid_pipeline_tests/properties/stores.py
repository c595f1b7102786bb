"""A random store as plain data: what hypothesis makes, shrinks and prints, and how it becomes DDL, rows and a spec."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from uuid_pipeline.spec import Spec, parse_spec

SCHEMA = "random store"
NAMESPACE = "7d9f1c52-2f0e-4d55-9c0b-1d2f3a4b5c6d"
Value = str | int | None
Records = list[dict[str, Value]]


@dataclass(frozen=True)
class ForeignKey:
    """How a column refers: actions, then DEFERRABLE and NOT VALID as DDL writes them."""

    on_update: str
    on_delete: str
    deferral: str
    validity: str

    @property
    def ddl(self) -> sql.SQL:
        parts = f"ON UPDATE {self.on_update} ON DELETE {self.on_delete} {self.deferral} {self.validity}"
        return sql.SQL(parts)


@dataclass(frozen=True)
class Level:
    """An entity's table. ``named``: its natural key holds the free text too, not the number alone."""

    table: str
    key: str
    key_type: str
    named: bool
    separator: str
    to_parent: ForeignKey | None
    to_itself: ForeignKey | None


@dataclass(frozen=True)
class Referrer:
    """A further table that refers to a level; without ``key`` by a soft reference, ``composite`` with its parent's."""

    table: str
    level: int
    key: ForeignKey | None
    composite: bool
    in_primary_key: bool


@dataclass(frozen=True)
class Pairs:
    """A table that says which row of a level hangs together with which other one; the two are its primary key."""

    table: str
    level: int
    one: ForeignKey
    other: ForeignKey


@dataclass(frozen=True)
class RandomStore:
    """``levels`` from the root down; ``favourite`` is a key from the root to the lowest level, which closes a circle.

    ``rows`` are by table, each row with all the columns that the table has but its time stamp.
    """

    levels: list[Level]
    referrers: list[Referrer]
    pairs: list[Pairs]
    favourite: ForeignKey | None
    normalize: list[str]
    batch_rows: int
    rows: dict[str, Records]

    def entity(self, level: int) -> str:
        return "abc"[level] * 2

    def ids(self) -> dict[str, dict[str, int]]:
        """Which columns hold ids, and of which level."""
        found = {level.table: {level.key: number} for number, level in enumerate(self.levels)}
        for number, level in enumerate(self.levels):
            found[level.table] |= {"parent": number - 1} if level.to_parent else {}
            found[level.table] |= {"before": number} if level.to_itself else {}
        if self.favourite:
            found[self.levels[0].table]["favourite"] = len(self.levels) - 1
        for referrer in self.referrers:
            found[referrer.table] = {"ref%": referrer.level}
            found[referrer.table] |= {"above": referrer.level - 1} if referrer.composite else {}
        for pairs in self.pairs:
            found[pairs.table] = {"one": pairs.level, "other": pairs.level}
        return found

    def spec(self) -> Spec:
        """As a user would write it: foreign keys are left for the catalogs to tell."""
        entities: dict[str, Any] = {}
        for number, level in enumerate(self.levels):
            parts = ["{parent}"] * (number > 0) + ["{na%me}"] * level.named + ["{nr}"]
            entities[self.entity(number)] = {
                "table": level.table,
                "key": level.key,
                "identity": level.separator.join(parts),
                **({"parent": self.entity(number - 1)} if number else {}),
                **({"normalize": {"na%me": self.normalize}, "valid": {"na%me": "^[^!]*$"}} if level.named else {}),
            }
        soft = [
            {"table": referrer.table, "column": "ref%", "entity": self.entity(referrer.level)}
            for referrer in self.referrers
            if referrer.key is None
        ]
        content = {
            "namespace": NAMESPACE,
            "schema": SCHEMA,
            "entities": entities,
            "soft_references": soft,
            "waves": {"canary": 2, "recent": 0, "remaining": 100},
            "batch_rows": self.batch_rows,
        }
        return parse_spec(json.dumps(content), "random.yaml")


def build(connection: "psycopg.Connection[Any]", store: RandomStore) -> None:
    """Tables, rows, and then the keys, since rows may refer in circles."""
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    for table, columns in _tables(store):
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(_name(table), sql.SQL(", ").join(columns)))
    for table, rows in store.rows.items():
        _copy(connection, table, rows)
    for table, columns_, target, target_columns, key in _foreign_keys(store):
        connection.execute(
            sql.SQL("ALTER TABLE {} ADD FOREIGN KEY ({}) REFERENCES {} ({}) {}").format(
                _name(table), _columns(columns_), _name(target), _columns(target_columns), key.ddl
            )
        )


def _name(table: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA, table)


def _columns(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _column(name: str, definition: str) -> sql.Composed:
    return sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(definition))


def _tables(store: RandomStore) -> Iterator[tuple[str, list[sql.Composed]]]:
    types = [level.key_type for level in store.levels]
    for number, level in enumerate(store.levels):
        columns = [_column(level.key, f"{level.key_type} PRIMARY KEY")]
        if number:
            unique = sql.SQL("UNIQUE ({})").format(_columns([level.key, "parent"]))
            columns += [_column("parent", f"{types[number - 1]} NOT NULL"), unique]
        if level.to_itself:
            columns.append(_column("before", level.key_type))
        if number == 0 and store.favourite:
            columns.append(_column("favourite", types[-1]))
        stamp = "timestamptz NOT NULL DEFAULT now()"
        yield level.table, [*columns, _column("na%me", "text"), _column("nr", "int NOT NULL"), _column("at", stamp)]
    for referrer in store.referrers:
        columns = [_column("id", "int NOT NULL"), _column("ref%", types[referrer.level])]
        if referrer.composite:
            columns.append(_column("above", types[referrer.level - 1]))
        primary = ["ref%", "id"] if referrer.in_primary_key else ["id"]
        columns.append(sql.SQL("PRIMARY KEY ({})").format(_columns(primary)))
        yield referrer.table, [*columns, _column("words", "text")]
    for pairs in store.pairs:
        columns = [_column(name, types[pairs.level]) for name in ("one", "other")]
        columns.append(sql.SQL("PRIMARY KEY ({})").format(_columns(["one", "other"])))
        yield pairs.table, [*columns, _column("words", "text")]


def _foreign_keys(store: RandomStore) -> Iterator[tuple[str, list[str], str, list[str], ForeignKey]]:
    for number, level in enumerate(store.levels):
        above = store.levels[number - 1]
        if level.to_parent:
            yield level.table, ["parent"], above.table, [above.key], level.to_parent
        if level.to_itself:
            yield level.table, ["before"], level.table, [level.key], level.to_itself
    lowest = store.levels[-1]
    if store.favourite:
        yield store.levels[0].table, ["favourite"], lowest.table, [lowest.key], store.favourite
    for referrer in store.referrers:
        target = store.levels[referrer.level]
        if referrer.key and referrer.composite:
            yield referrer.table, ["ref%", "above"], target.table, [target.key, "parent"], referrer.key
        elif referrer.key:
            yield referrer.table, ["ref%"], target.table, [target.key], referrer.key
    for pairs in store.pairs:
        target = store.levels[pairs.level]
        yield pairs.table, ["one"], target.table, [target.key], pairs.one
        yield pairs.table, ["other"], target.table, [target.key], pairs.other


def _copy(connection: "psycopg.Connection[Any]", table: str, rows: Records) -> None:
    if not rows:
        return
    # COPY takes no placeholders, so the names may hold percent signs.
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(_name(table), _columns(list(rows[0])))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(list(row.values()))
