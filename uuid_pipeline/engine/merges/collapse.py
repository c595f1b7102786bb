"""The write of a merge: displaced rows archived and deleted, references turned, in one statement that proves itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, ledger, sql
from uuid_pipeline.engine.batches.application import written_since
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.merges import archive, emptying
from uuid_pipeline.engine.merges.archive import Shelf
from uuid_pipeline.engine.merges.folding import Fold, folds
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import BatchError


@dataclass(frozen=True)
class Collapsed:
    """By table: rows archived and their digest; rows re-pointed; and what all this took from the table's digests.

    ``digests`` are (digest, digest of dates) before less after, with ids that an earlier batch had moved read back.
    ``touched``: of the archived, re-pointed and emptied rows those that the application had written since the
    execution began.
    """

    archived: dict[str, int] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    repointed: dict[str, int] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)


def collapse(connection: Connection, store: Store, plan: BatchPlan) -> Collapsed:
    """Carry out what was decided.

    Raises BatchError when the rows written are not the rows read, RefusedError when columns were changed meanwhile.
    """
    emptied, nothing = emptying.empty(connection, store, plan), emptying.Emptied()
    oids = {row.relation for row in sql.rows(connection, "SELECT DISTINCT relation FROM pg_temp.displaced")}
    shelves = [archive.shelf(t, plan.assessment_no) for t in store.catalog.tables.values() if t.oid in oids]
    archived = {_name(one): _archive(connection, one, plan) for one in shelves}
    noted = {_fold_name(fold): _remember(connection, store, fold, plan) for fold in folds(store)}
    turned = [fold for fold in folds(store) if noted[_fold_name(fold)]]
    turnings = {_fold_name(fold): _turning(connection, store, fold, plan) for fold in turned}
    taken = {_fold_name(fold): _taken(connection, store, fold, plan) for fold in folds(store)}
    deleted, after = _write(connection, shelves, turned)
    archive.require_whole_rows(connection, shelves)
    if deleted != archived or {name: found.after for name, found in turnings.items()} != after:
        raise BatchError(
            "A batch was rolled back because a merge wrote other rows than it had read: archived "
            f"{archived}, deleted {deleted}; expected {turnings}, wrote {after}. Look at the triggers of these tables."
        )
    if any(found[0] != noted[name] for name, found in after.items()):
        raise BatchError(
            f"A batch was rolled back because a merge noted {noted} rows to turn back later, and turned {after}."
        )
    return Collapsed(
        {name: rows for name, (rows, _) in archived.items()},
        {name: str(digest) for name, (_, digest) in archived.items()},
        {name: found.after[0] for name, found in turnings.items()},
        {
            name: (
                str(gone[0] + emptied.get(name, nothing).taken + (turnings[name].taken if name in turnings else 0)),
                str(gone[1]),
            )
            for name, gone in taken.items()
        },
        {
            name: gone[2] + emptied.get(name, nothing).touched + (turnings[name].touched if name in turnings else 0)
            for name, gone in taken.items()
        },
    )


def _name(one: Shelf) -> str:
    return f"{one.table.schema}.{one.table.name}"


def _fold_name(fold: Fold) -> str:
    return fingerprint.qualified(fold.held.moved)


def _archive(connection: Connection, one: Shelf, plan: BatchPlan) -> tuple[int, int]:
    archive.make_shelf(connection, one)
    statement = sql.compose(
        """WITH kept AS (
               INSERT INTO {archive} AS a (uuid_pipeline_wave, uuid_pipeline_ordinal, uuid_pipeline_survivor, {names})
               SELECT %(wave)s, d.ordinal, d.survivor, {columns}
               FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at WHERE d.relation = %(oid)s
               RETURNING {digest} AS d)
           SELECT count(*) AS n, coalesce(sum(d), 0) AS digest FROM kept""",
        archive=one.relation,
        names=one.names,
        columns=one.listed("t"),
        table=one.source,
        digest=one.digest("a"),
    )
    row = sql.rows(connection, statement, {"wave": plan.wave, "oid": one.table.oid})[0]
    return int(row.n), int(row.digest)


_NOT_DISPLACED = "NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(oid)s AND x.at = f.at)"


def _remember(connection: Connection, store: Store, fold: Fold, plan: BatchPlan) -> int:
    """Note what each turned row held, under its primary key as it will be after the merge: N old ids share one new.

    Of a foreign key of several columns all are noted as they are afterwards: whether the row names the same later on.
    """
    table = fold.held.moved.table
    together = [
        sql.compose("{n}, t.{c}::text", n=sql.literal(column), c=sql.name(column))
        for column in emptying.named_together(store, table)
    ]
    row_key = [
        sql.compose("{n}, {after}", n=sql.literal(column), after=fold.after(column)) for column in table.primary_key
    ]
    before = _values(fold, {column: sql.compose("t.{c}", c=sql.name(column)) for column, _ in fold.held.values})
    after = _values(fold, {column: sql.compose("f.{v}", v=sql.name(value)) for column, value in fold.held.values})
    statement = sql.compose(
        """INSERT INTO uuid_pipeline.repointed (execution_id, wave, ordinal, table_name, row_key, before, after)
           SELECT %(execution)s, %(wave)s, f.ordinal, %(table)s, jsonb_build_object({row_key}), {before}, {after}
           FROM {fold} f JOIN {source} t ON t.ctid = f.at WHERE {not_displaced}""",
        row_key=sql.join(", ", row_key),
        before=before,
        after=sql.compose("jsonb_build_object({own}) || {after}", own=sql.join(", ", together), after=after),
        fold=fold.relation,
        source=fold.held.table,
        not_displaced=sql.Text(_NOT_DISPLACED),
    )
    return sql.execute(connection, statement, {**plan.values, **fold.oid, "table": _fold_name(fold)}).rowcount


def _values(fold: Fold, values: dict[str, sql.Composable]) -> sql.Composable:
    """A json object of the turned columns, each with its value as text."""
    return sql.join(
        " || ",
        [
            sql.compose(
                "CASE WHEN f.{turned} THEN jsonb_build_object({n}, ({value})::text) ELSE '{{}}'::jsonb END",
                turned=fold.turned(column),
                n=sql.literal(column),
                value=value,
            )
            for column, value in values.items()
        ],
    )


@dataclass(frozen=True)
class Turning:
    """Of the rows to turn: how many, with which digests they are to be, and what turning takes from the table's digest.

    ``taken`` is before less after, with ids that an earlier batch had moved read back to the old ones. ``touched``: how
    many the application had written since the execution began; once they are turned they show our write alone.
    """

    after: tuple[int, int, int]
    taken: int
    touched: int


def _turning(connection: Connection, store: Store, fold: Fold, plan: BatchPlan) -> Turning:
    moved = fold.held.moved
    columns = list(moved.table.columns.values())
    moments = fingerprint.moment_columns(columns)
    turned = {column: fold.after(column) for column, _ in fold.held.values}
    was = fingerprint.read_back(store, moved, fingerprint.id_columns(moved), "was", fingerprint.MOVED_BEFORE)
    becomes = fingerprint.read_back(store, moved, turned, "becomes", fingerprint.MOVED_BEFORE)
    statement = sql.compose(
        """SELECT count(*), coalesce(sum({after}), 0), coalesce(sum({dates}), 0),
                  coalesce(sum({was}), 0) - coalesce(sum({becomes}), 0), count(*) FILTER (WHERE {written})
           FROM {fold} f JOIN {table} t ON t.ctid = f.at {joins} WHERE {not_displaced}""",
        after=fingerprint.row_digest(columns, turned, "t"),
        dates=fingerprint.row_digest(moments, {}, "t"),
        was=fingerprint.row_digest(columns, was.mapped, "t"),
        becomes=fingerprint.row_digest(columns, becomes.mapped, "t"),
        written=written_since("t"),
        joins=sql.join(" ", [was.joins, becomes.joins]),
        fold=fold.relation,
        table=fold.held.table,
        not_displaced=sql.Text(_NOT_DISPLACED),
    )
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    values = {**plan.values, "maps": [plan.assessment_no], "snapshot": snapshot, **fold.oid, **was.values}
    rows, after, dates, taken, touched = map(int, sql.rows(connection, statement, values | becomes.values)[0])
    return Turning((rows, after, dates), taken, touched)


def _taken(connection: Connection, store: Store, fold: Fold, plan: BatchPlan) -> tuple[int, int, int]:
    """(digest, digest of dates) of the rows of one table that go, read back as :func:`_turning` does; and how many of
    these the application had written.

    Now, while this batch's own ids have not moved: a loser may have the very id that its survivor is about to get.
    """
    moved = fold.held.moved
    columns = list(moved.table.columns.values())
    back = fingerprint.read_back(store, moved, fingerprint.id_columns(moved), "was", fingerprint.MOVED_BEFORE)
    statement = sql.compose(
        """SELECT coalesce(sum({was}), 0), coalesce(sum({dates}), 0), count(*) FILTER (WHERE {written})
           FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at {joins} WHERE d.relation = %(oid)s""",
        was=fingerprint.row_digest(columns, back.mapped, "t"),
        dates=fingerprint.row_digest(fingerprint.moment_columns(columns), {}, "t"),
        written=written_since("t"),
        table=fold.held.table,
        joins=back.joins,
    )
    snapshot = ledger.first_snapshot(connection, plan.execution_id)
    values = {**plan.values, "maps": [plan.assessment_no], "snapshot": snapshot, **fold.oid, **back.values}
    found = sql.rows(connection, statement, values)[0]
    return int(found[0]), int(found[1]), int(found[2])


def _write(
    connection: Connection, shelves: Sequence[Shelf], turned: Sequence[Fold]
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int, int]]]:
    """Delete and turn in one statement: at its end no reference holds a displaced row, whatever the key's action.

    The updates read the count of the deletes, so that these are done first: a turned row may take the unique key of a
    displaced one.
    """
    deletes = [_delete(index, one) for index, one in enumerate(shelves)]
    gone = sql.join(
        " + ",
        [
            sql.Text("0"),
            *[sql.compose("(SELECT count(*) FROM {d})", d=sql.name(f"d{i}")) for i in range(len(shelves))],
        ],
    )
    updates = [_turn(index, fold, gone) for index, fold in enumerate(turned)]
    results = [_result("d", index, _name(one)) for index, one in enumerate(shelves)]
    results += [_result("u", index, _fold_name(fold)) for index, fold in enumerate(turned)]
    if not results:
        return {}, {}
    statement = sql.compose(
        "WITH {parts} {results}", parts=sql.join(", ", [*deletes, *updates]), results=sql.join(" UNION ALL ", results)
    )
    rows = sql.rows(connection, statement)
    return (
        {row.name: (int(row.n), int(row.digest)) for row in rows if row.kind == "d"},
        {row.name: (int(row.n), int(row.digest), int(row.dates)) for row in rows if row.kind == "u"},
    )


def _result(kind: str, index: int, name: str) -> sql.Composable:
    return sql.compose(
        """SELECT {kind} AS kind, {name} AS name, count(*) AS n, coalesce(sum(d), 0) AS digest,
                  coalesce(sum(m), 0) AS dates FROM {part}""",
        kind=sql.literal(kind),
        name=sql.literal(name),
        part=sql.name(f"{kind}{index}"),
    )


def _delete(index: int, one: Shelf) -> sql.Composable:
    return sql.compose(
        """{name} AS (DELETE FROM {table} t USING pg_temp.displaced d WHERE d.relation = {oid} AND t.ctid = d.at
               RETURNING {digest} AS d, 0::bigint AS m)""",
        name=sql.name(f"d{index}"),
        table=one.source,
        oid=sql.literal(one.table.oid),
        digest=one.digest("t"),
    )


def _turn(index: int, fold: Fold, gone: sql.Composable) -> sql.Composable:
    columns = list(fold.held.moved.table.columns.values())
    return sql.compose(
        """{name} AS (UPDATE {table} t SET {assignments} FROM {fold} f
               WHERE t.ctid = f.at AND ({gone}) >= 0
                 AND NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = {oid} AND x.at = f.at)
               RETURNING {digest} AS d, {moments} AS m)""",
        name=sql.name(f"u{index}"),
        table=fold.held.table,
        assignments=sql.join(
            ", ",
            [sql.compose("{c} = {after}", c=sql.name(c), after=fold.after(c)) for c, _ in fold.held.values],
        ),
        fold=fold.relation,
        gone=gone,
        oid=sql.literal(fold.held.moved.table.oid),
        digest=fingerprint.row_digest(columns, {}, "t"),
        moments=fingerprint.row_digest(fingerprint.moment_columns(columns), {}, "t"),
    )
