"""References turned from a loser to its survivor, before anything moves: what each row is to hold instead."""

from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import Held, held_tables, temporary
from uuid_pipeline.engine.embedded_ids import (
    GOALS_OF_B,
    changed_alone,
    holds_one_of,
    ids_in,
    require_changed_alone,
    rewritten,
)
from uuid_pipeline.engine.store import Reference, Store

# A row that goes to the archive needs no turning.
_NOT_DISPLACED = "NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(oid)s AND x.at = t.ctid)"


@dataclass(frozen=True)
class Fold:
    """The temporary table of a moved table: place, ordinal, and each column's new value where its flag is set."""

    held: Held
    relation: sql.Composable

    @property
    def oid(self) -> dict[str, int]:
        return {"oid": self.held.moved.table.oid}

    def turned(self, column: str) -> sql.Composable:
        """The name of a column's flag: a new value may be NULL."""
        value = next(value for name, value in self.held.values if name == column)
        return sql.name(f"t_{value}")

    def after(self, column: str) -> sql.Composable:
        """A column's value after the merge; aliases ``f`` (fold) and ``t`` (row)."""
        if column not in dict(self.held.values):
            return sql.compose("t.{c}", c=sql.name(column))
        return sql.compose(
            "CASE WHEN f.{turned} THEN f.{value} ELSE t.{c} END",
            turned=self.turned(column),
            value=self.held.value(column),
            c=sql.name(column),
        )

    def make_room(self, connection: Connection) -> None:
        columns = [
            sql.compose(
                "{value} {type}, {turned} boolean NOT NULL DEFAULT false",
                value=sql.name(value),
                type=sql.as_written(self.held.moved.table.columns[column].type),
                turned=self.turned(column),
            )
            for column, value in self.held.values
        ]
        statement = sql.compose(
            """CREATE TEMPORARY TABLE IF NOT EXISTS {fold} (at tid PRIMARY KEY, ordinal bigint, {columns})
               ON COMMIT DELETE ROWS""",
            fold=self.relation,
            columns=sql.join(", ", columns),
        )
        sql.execute(connection, statement)


def folds(store: Store) -> tuple[Fold, ...]:
    """One a moved table, in the store's order."""
    return tuple(Fold(held, temporary(store, f"fold_{index}")) for index, held in enumerate(held_tables(store)))


def fold_key(connection: Connection, fold: Fold, column: str, merged: sql.Composable) -> None:
    """Rows that refer to a loser turn to its survivor; where there is none they hold NULL if they may, else go."""
    table = fold.held.moved.table
    parts = {
        "fold": fold.relation,
        "value": fold.held.value(column),
        "turned": fold.turned(column),
        "merged": merged,
        "table": fold.held.table,
        "column": sql.name(column),
        "not_displaced": sql.Text(_NOT_DISPLACED),
        "may": sql.Text("true" if not table.columns[column].not_null else "m.survivor IS NOT NULL"),
    }
    turn = sql.compose(
        """INSERT INTO {fold} (at, ordinal, {value}, {turned})
           SELECT t.ctid, m.ordinal, m.survivor, true FROM {merged} m JOIN {table} t ON t.{column} = m.loser
           WHERE {may} AND {not_displaced} ORDER BY m.ordinal FOR UPDATE OF t
           ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}, {turned} = true""",
        **parts,
    )
    sql.execute(connection, turn, fold.oid)
    if table.columns[column].not_null:
        displace = sql.compose(
            """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
               SELECT %(oid)s, t.ctid, m.ordinal, NULL FROM {merged} m JOIN {table} t ON t.{column} = m.loser
               WHERE m.survivor IS NULL FOR UPDATE OF t ON CONFLICT DO NOTHING""",
            **parts,
        )
        sql.execute(connection, displace, fold.oid)


def forget_embedded(connection: Connection, fold: Fold) -> None:
    """Before they are folded anew: where a survivor was displaced since, what holds its loser's id stays as it was."""
    for reference in fold.held.moved.embedded:
        statement = sql.compose(
            "UPDATE {fold} SET {value} = NULL, {turned} = false WHERE {turned}",
            fold=fold.relation,
            value=fold.held.value(reference.column),
            turned=fold.turned(reference.column),
        )
        sql.execute(connection, statement)


def forget_unturned(connection: Connection, fold: Fold) -> None:
    """Rows of which nothing is turned after all."""
    flags = [fold.turned(column) for column, _ in fold.held.values]
    statement = sql.compose("DELETE FROM {fold} WHERE NOT ({any})", fold=fold.relation, any=sql.join(" OR ", flags))
    sql.execute(connection, statement)


def fold_embedded(connection: Connection, fold: Fold, reference: Reference, merged: sql.Composable) -> None:
    """As :func:`fold_key` for an id inside a text, array or json; one without a survivor stays as it is written.

    Rows are locked below the look at what is in them: of a row that was waited for, only that part is computed anew.
    """
    column = reference.column
    moves = sql.compose(
        "(SELECT loser::text AS source, survivor::text AS goal, ordinal FROM {merged} WHERE survivor IS NOT NULL)",
        merged=merged,
    )
    statement = sql.compose(
        """WITH folded AS MATERIALIZED (
               SELECT w.at, y.ordinal, w.was, y.rewritten AS becomes
               FROM (SELECT t.ctid AS at, coalesce(e.{value}, t.{column}) AS was
                     FROM {table} t LEFT JOIN {fold} e ON e.at = t.ctid
                     WHERE t.{column} IS NOT NULL AND {holds} AND {not_displaced} FOR UPDATE OF t) w
               CROSS JOIN LATERAL (
                   SELECT min(b.ordinal) AS ordinal, {rewritten} AS rewritten
                   FROM {ids} i(id) JOIN {moves} b ON b.source = i.id HAVING count(*) > 0) y),
           noted AS (
               INSERT INTO {fold} (at, ordinal, {value}, {turned}) SELECT w.at, w.ordinal, w.becomes, true FROM folded w
               ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}, {turned} = true)
           SELECT count(*) FROM folded w WHERE ({alone}) IS NOT TRUE""",
        fold=fold.relation,
        value=fold.held.value(column),
        turned=fold.turned(column),
        table=fold.held.table,
        column=sql.name(column),
        rewritten=rewritten(reference, GOALS_OF_B),
        ids=ids_in(reference),
        moves=moves,
        holds=holds_one_of(reference, moves),
        not_displaced=sql.Text(_NOT_DISPLACED),
        alone=changed_alone(reference, moves),
    )
    require_changed_alone(reference, int(sql.scalar(connection, statement, {**fold.oid, "path": list(reference.path)})))


def left_behind(connection: Connection, fold: Fold, reference: Reference, merged: sql.Composable) -> list[int]:
    """Ordinals of rows that go with nothing in their place, and whose ids this reference holds in rows that stay."""
    gone = sql.compose("(SELECT loser::text AS source, ordinal FROM {merged} WHERE survivor IS NULL)", merged=merged)
    statement = sql.compose(
        """SELECT DISTINCT b.ordinal FROM {table} t CROSS JOIN LATERAL (SELECT t.{column} AS was) w
           CROSS JOIN LATERAL {ids} i(id) JOIN {gone} b ON b.source = i.id
           WHERE t.{column} IS NOT NULL AND EXISTS (SELECT FROM {gone} g) AND {holds} AND {not_displaced} ORDER BY 1""",
        table=fold.held.table,
        column=sql.name(reference.column),
        ids=ids_in(reference),
        gone=gone,
        holds=holds_one_of(reference, gone),
        not_displaced=sql.Text(_NOT_DISPLACED),
    )
    values = {**fold.oid, "path": list(reference.path)}
    return [int(row.ordinal) for row in sql.rows(connection, statement, values)]
