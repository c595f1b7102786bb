"""Restoring: re-pointed rows get their former references, archived rows come back, in one statement that is proven."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.batches.held import BatchPlan, held_of, map_part
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.merges import coming_back, partial_places, turning_back
from uuid_pipeline.engine.merges.archive import Shelf, shelf, shelves
from uuid_pipeline.engine.merges.partial_places import Places
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.sync_points import reach
from uuid_pipeline.errors import BatchError, OvertakenError, RefusedError

OF_WAVES: LiteralString = "uuid_pipeline_wave = ANY(%(waves)s)"
_OF_BATCH: LiteralString = "uuid_pipeline_ordinal = ANY(%(ordinals)s)"


def require_defaults(
    connection: Connection, kept: Sequence[Shelf], which: LiteralString, values: Mapping[str, Any]
) -> None:
    """Raise RefusedError when a table has got a column since that archived rows can have no value for.

    ``which`` of them, with its ``values`` to bind, are to come back.
    """
    for one in kept:
        statement = sql.compose(
            """SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
               WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped AND attnotnull AND NOT atthasdef
                 AND attidentity = '' AND attname <> ALL(%(known)s)
                 AND EXISTS (SELECT FROM {archive} WHERE {which})""",
            archive=one.relation,
            which=sql.Text(which),
        )
        known = [column.name for column in one.columns]
        missing = sql.scalar(connection, statement, {**values, "oid": one.table.oid, "known": known})
        if missing:
            raise RefusedError(
                f"{one.table.name} has columns that are NOT NULL, without a default, and newer than its archived rows, "
                f"which therefore cannot come back: {missing}. Give them a default until the rollback is over (ALTER "
                "TABLE ... ALTER COLUMN ... SET DEFAULT ...), then give the same command again."
            )


def _restorable(
    connection: Connection, store: Store, plan: BatchPlan, archives: Sequence[Shelf], partial: Places
) -> list[int]:
    """Ordinals of the batch with something to restore whose survivor is held and whose losers' keys are free.

    Where the application deleted the survivor, the losers stay archived: they were merged into what it deleted. So do
    they where it deleted what one of them refers to, or gave another row what is unique about one; and what refers to
    such a loser in its turn.
    """
    coming = [row.ordinal for kept in archives for row in sql.rows(connection, _archived_of_batch(kept), plan.values)]
    while True:
        with_roots = _with_their_roots(connection, store, plan, archives, partial, coming, coming_back.OF_ORDINALS)
        found = with_roots + _without_losing_roots(connection, store, plan, archives)
        if set(coming) <= set(found):
            return found + _only_turned(connection, plan, archives)
        coming = found


def _archived_of_batch(kept: Shelf) -> sql.Composable:
    return sql.compose(
        """SELECT DISTINCT uuid_pipeline_ordinal AS ordinal FROM {archive}
           WHERE uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s""",
        archive=kept.relation,
    )


def _note_coming(
    connection: Connection,
    store: Store,
    plan: BatchPlan,
    archives: Sequence[Shelf],
    partial: Places,
    ordinals: Sequence[int],
) -> list[int]:
    """Note the rows of these ordinals that come back (:func:`coming_back.find`); returns the ordinals that are left.

    Below a document a row may have to stay to which another document refers: that one stays with its cluster too.
    """
    left = list(ordinals)
    while True:
        coming_back.find(connection, store, archives, partial, {**plan.values, "ordinals": left})
        judged, again = (
            set(_with_their_roots(connection, store, plan, archives, partial, left, coming))
            for coming in (coming_back.OF_ORDINALS, coming_back.is_coming("r"))
        )
        stay = judged - again
        if not stay & set(left):
            return left
        left = [ordinal for ordinal in left if ordinal not in stay]


def _with_their_roots(
    connection: Connection,
    store: Store,
    plan: BatchPlan,
    archives: Sequence[Shelf],
    partial: Places,
    ordinals: Sequence[int],
    coming: sql.Composable,
) -> list[int]:
    """Ordinals whose archived documents may come back, while of ``ordinals`` those rows ``r`` are ``coming``."""
    found: list[int] = []
    for root in store.roots:
        kept = next((one for one in archives if one.table.oid == root.table.oid), None)
        if kept is None:
            continue
        there = coming_back.all_there(connection, store, kept, archives, "a", coming)
        odd = [partial_places.is_taken(kept, place) for place in partial[kept.table.oid]]
        statement = sql.compose(
            """SELECT a.uuid_pipeline_ordinal AS ordinal FROM {archive} a
               WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s
                 AND EXISTS (SELECT FROM {held} h WHERE h.ordinal = a.uuid_pipeline_ordinal)
               GROUP BY 1 HAVING NOT bool_or({taken}) AND bool_and(true{there})""",
            taken=sql.join(" OR ", _ways_to_be_taken(store, root, kept, archives, coming) + odd),
            there=sql.join("", there),
            archive=kept.relation,
            held=held_of(store, root.name).relation,
        )
        values = {**plan.values, "ordinals": list(ordinals)}
        found += [int(row.ordinal) for row in sql.rows(connection, statement, values)]
    return found


def _ways_to_be_taken(
    store: Store, root: Entity, kept: Shelf, archives: Sequence[Shelf], coming: sql.Composable
) -> list[sql.Composable]:
    plain = [(root.key,), *coming_back.plain_unique_keys(store, root.table)]
    of_ids = [unique for unique in coming_back.unique_keys_of_ids(store, root.table) if unique != (root.key,)]
    return [coming_back.is_taken(kept, unique) for unique in plain] + [
        coming_back.is_taken_for_good(store, kept, unique, archives, coming) for unique in of_ids
    ]


def _only_turned(connection: Connection, plan: BatchPlan, archives: Sequence[Shelf]) -> list[int]:
    """Ordinals of the batch where nothing was archived, and references were turned that held target ids early."""
    archived = [
        sql.compose(
            " AND NOT EXISTS (SELECT FROM {archive} a WHERE a.uuid_pipeline_ordinal = r.ordinal)", archive=kept.relation
        )
        for kept in archives
    ]
    statement = sql.compose(
        """SELECT DISTINCT r.ordinal FROM uuid_pipeline.repointed r
           WHERE r.wave = %(wave)s AND r.ordinal BETWEEN %(first)s AND %(last)s
             AND r.foreign_key IS NULL{archived}""",
        archived=sql.join("", archived),
    )
    return [int(row.ordinal) for row in sql.rows(connection, statement, plan.values)]


def _without_losing_roots(
    connection: Connection, store: Store, plan: BatchPlan, archives: Sequence[Shelf]
) -> list[int]:
    """Ordinals where only rows below a document were merged, so that the root's archive does not name them."""
    roots = [shelf(root.table, plan.assessment_no).relation.as_string(None) for root in store.roots]
    found: set[int] = set()
    for kept in archives:
        if kept.relation.as_string(None) in roots:
            continue
        for root in store.roots:
            map_table = map_part(root.name, plan.assessment_no)
            statement = sql.compose(
                """SELECT DISTINCT a.uuid_pipeline_ordinal AS ordinal FROM {archive} a
                   WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s
                     AND EXISTS (SELECT FROM {held} h WHERE h.ordinal = a.uuid_pipeline_ordinal)
                     AND NOT EXISTS (SELECT FROM {map} m WHERE m.ordinal = a.uuid_pipeline_ordinal
                                     AND m.role = 'merge')""",
                archive=kept.relation,
                held=held_of(store, root.name).relation,
                map=map_table,
            )
            found |= {int(row.ordinal) for row in sql.rows(connection, statement, plan.values)}
    return sorted(found)


@dataclass(frozen=True)
class Restored:
    """By table: rows that came back from the archive; and of those that were turned back the ones that the application
    had written since."""

    rows: dict[str, int] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)


def restore(connection: Connection, store: Store, plan: BatchPlan) -> Restored:
    """Give re-pointed rows their former references and put archived rows back.

    The survivors are back under their old ids already. One statement: foreign keys are checked at its end, when
    both are there; re-pointing comes first, since a restored row may want a unique key that a re-pointed one holds.
    A row whose place the application has filled since stays archived: what the application wrote counts.

    A column that the table has got since has its default.

    Raises BatchError when a restored row is not the row that was archived, or is missed by one that refers to it,
    OvertakenError when somebody took the place of one meanwhile, RefusedError when a new column has no default.
    """
    archives = shelves(connection, store, plan.assessment_no)
    coming_back.hold_targets(connection, store, archives, plan)
    partial = partial_places.read(connection, archives, plan.execution_id)
    ordinals = _restorable(connection, store, plan, archives, partial)
    repointed = turning_back.repointed_tables(connection, store, plan)
    if not ordinals and not repointed:
        return Restored()
    turning_back.hold(connection, store, repointed, plan)
    touched = turning_back.written(connection, repointed, plan)
    kept = _targets_first(store, archives)
    # Again: a column may be added while the rollback is under way.
    require_defaults(connection, kept, _OF_BATCH, {"ordinals": ordinals})
    values = {
        **plan.values,
        **turning_back.paths(store),
        "ordinals": _note_coming(connection, store, plan, kept, partial, ordinals),
    }
    statement = _restoring(connection, store, repointed, kept)
    if statement is None:
        return Restored()
    rows = sql.rows(connection, statement, values)
    wrong = [row.table for row in rows if (row.taken, row.archived) != (row.rows, row.digest)]
    if wrong:
        raise BatchError(
            f"A batch was rolled back: rows of {', '.join(wrong)} did not come back from the archive as they went in. "
            "Look at triggers and defaults of these tables."
        )
    if not plan.patient and any(row.coming > row.rows for row in rows):
        # References were turned back, in the same statement, to a row whose place somebody took after it was judged.
        raise OvertakenError("A place was taken while rows came back to it.")
    left = {row.table: int(row.due - row.rows) for row in rows if row.due > row.rows}
    if left:
        _require_unmissed(connection, store, kept, values)
        ledger.audit(connection, "left in the archive: their place is filled, or what they refer to is gone", left)
    forget = """DELETE FROM uuid_pipeline.repointed
                WHERE wave = %(wave)s AND ordinal = ANY(%(ordinals)s) AND foreign_key IS NULL"""
    sql.execute(connection, forget, values)
    reach("restored")
    return Restored({row.table: int(row.rows) for row in rows if row.rows}, touched)


def _restoring(
    connection: Connection, store: Store, repointed: Sequence[Table], kept: Sequence[Shelf]
) -> sql.Composable | None:
    """The statement; by table of ``kept``: rows due, rows judged to come back, taken from the archive and put back, and
    both digests.

    None where all these tables are gone.
    """
    updates = turning_back.turned(store, repointed, kept)
    names = [turning_back.name_of(index) for index in range(len(updates))]
    after = sql.join(" + ", [sql.Text("0"), *[sql.compose("(SELECT count(*) FROM {b})", b=name) for name in names]])
    inserts = [_put_back(connection, store, kept, index, after) for index in range(len(kept))]
    if not updates and not inserts:
        return None
    results = [
        sql.compose(
            """UNION ALL SELECT {name},
                      (SELECT count(*) FROM {archive} WHERE uuid_pipeline_ordinal = ANY(%(ordinals)s)),
                      (SELECT count(*) FROM pg_temp.coming n WHERE n.archive = {place}::regclass),
                      (SELECT count(*) FROM {taken}), count(*),
                      (SELECT coalesce(sum({d}), 0) FROM {taken}), coalesce(sum({d}), 0)
               FROM {put}""",
            name=sql.literal(f"{one.table.schema}.{one.table.name}"),
            archive=one.relation,
            place=sql.literal(sql.shown(one.relation)),
            taken=sql.name(f"taken_{index}"),
            put=sql.name(f"put_{index}"),
            d=sql.name(_DIGEST),
        )
        for index, one in enumerate(kept)
    ]
    # Where nothing was archived, only the references are turned back.
    return sql.compose(
        """WITH {parts}
           SELECT NULL AS "table", 0 AS due, 0 AS coming, 0 AS taken, 0 AS rows, 0 AS archived, 0 AS digest
           WHERE false {results}""",
        parts=sql.join(", ", [*updates, *inserts]),
        results=sql.join(" ", results),
    )


def _require_unmissed(connection: Connection, store: Store, kept: Sequence[Shelf], values: Mapping[str, Any]) -> None:
    """A row that stays archived must not be one that a re-pointed row refers to again."""
    shelf_of = {one.table.oid: one for one in kept}
    for reference in store.references:
        entity = store.entity(reference.entity)
        one = shelf_of.get(entity.table.oid)
        if one is None or reference.form != "key":
            continue
        statement = sql.compose(
            """SELECT count(*) FROM {archive} a JOIN {table} t ON t.{column} = a.{key}
               WHERE a.uuid_pipeline_ordinal = ANY(%(ordinals)s)
                 AND NOT EXISTS (SELECT FROM {entity} e WHERE e.{key} = a.{key})""",
            archive=one.relation,
            table=sql.table(reference.table.schema, reference.table.name),
            column=sql.name(reference.column),
            key=sql.name(entity.key),
            entity=one.source,
        )
        if missed := int(sql.scalar(connection, statement, values)):
            raise BatchError(
                f"A batch was rolled back: {missed} rows of {reference.name} refer to archived rows that cannot come "
                "back, since the application has written others in their place or deleted what they refer to. Look at "
                f"the rows of {one.table.name} written since the merge, and delete them or change what is unique about "
                "them."
            )


def _targets_first(store: Store, kept: Sequence[Shelf]) -> list[Shelf]:
    """Shelves in an order in which a row's references are put back before it, as far as there is one."""
    left, ordered = list(kept), list[Shelf]()
    while left:
        free = [one for one in left if not any(link.target in left for link in _links(store, one, left))]
        ordered += free or left[:1]
        left = [one for one in left if one not in ordered]
    return ordered


@dataclass(frozen=True)
class Link:
    """Columns of a shelf's table that refer to another shelf's, by foreign key or softly."""

    columns: tuple[str, ...]
    target: Shelf
    target_columns: tuple[str, ...]


def _links(store: Store, one: Shelf, others: Sequence[Shelf]) -> list[Link]:
    shelf_of = {(other.table.schema, other.table.name): other for other in others if other != one}
    own = (one.table.schema, one.table.name)
    # A column that came since is in no archive: rows of then refer to nothing by it.
    kept = {column.name for column in one.columns}
    found = [
        Link(key.columns, shelf_of[key.target_schema, key.target], key.target_columns)
        for key in store.catalog.foreign_keys
        if (key.table_schema, key.table) == own
        and (key.target_schema, key.target) in shelf_of
        and kept.issuperset(key.columns)
    ]
    for reference in store.references:
        entity = store.entity(reference.entity)
        place = (entity.table.schema, entity.table.name)
        is_own = (reference.table.schema, reference.table.name) == own and reference.column in kept
        if is_own and reference.form == "key" and place in shelf_of:
            found.append(Link((reference.column,), shelf_of[place], (entity.key,)))
    return found


_DIGEST = "uuid_pipeline_digest"


def _put_back(
    connection: Connection, store: Store, kept: Sequence[Shelf], index: int, after: sql.Composable
) -> sql.Composable:
    one = kept[index]
    # A document that finds its place taken ends the batch, since re-pointed rows are to be its children again.
    links = [_present(link, kept.index(link.target)) for link in _links(store, one, kept[:index])]
    is_root = any(root.table.oid == one.table.oid for root in store.roots)
    referred = {column for other in kept for link in _links(store, other, [one]) for column in link.target_columns}
    asked = [sql.compose("p.{c}", c=sql.name(column)) for column in sorted(referred)]
    return sql.compose(
        """{put} AS (INSERT INTO {table} AS p ({names}) OVERRIDING SYSTEM VALUE
               SELECT {columns} FROM {archive} x
               WHERE x.uuid_pipeline_ordinal = ANY(%(ordinals)s) AND {coming} AND ({after}) >= 0{links}
               {on_conflict} RETURNING {returned}),
           {taken} AS (DELETE FROM {archive} a WHERE a.uuid_pipeline_ordinal = ANY(%(ordinals)s)
               AND {archived} IN (SELECT {d} FROM {put}) RETURNING {archived} AS {d})""",
        taken=sql.name(f"taken_{index}"),
        put=sql.name(f"put_{index}"),
        archive=one.relation,
        archived=one.digest("a"),
        table=one.source,
        names=one.names,
        columns=one.listed("x"),
        coming=coming_back.is_coming("x"),
        after=after,
        links=sql.join("", links),
        # The server looks for a conflict only where a key is checked at once; else the row must find its place free.
        on_conflict=sql.Text("" if is_root or _has_deferrable_key(connection, one) else "ON CONFLICT DO NOTHING"),
        returned=sql.join(", ", [sql.compose("{digest} AS {d}", digest=one.digest("p"), d=sql.name(_DIGEST)), *asked]),
        d=sql.name(_DIGEST),
    )


def _has_deferrable_key(connection: Connection, one: Shelf) -> bool:
    found = """SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = %(oid)s AND (indisunique OR indisexclusion)
                              AND NOT indimmediate)"""
    return bool(sql.scalar(connection, found, {"oid": one.table.oid}))


def _present(link: Link, index: int) -> sql.Composable:
    """Whether what row ``x`` refers to does not stay archived."""
    pairs = list(zip(link.columns, link.target_columns, strict=True))
    put, live, missing, known = (
        [sql.compose(text, c=sql.name(column), t=sql.name(target)) for column, target in pairs]
        for text in ("q.{t} = r.{t}", "l.{t} = r.{t}", "x.{c} IS NULL", "r.{t} IS NOT NULL")
    )
    # IN, over what is known to hold no NULL, is answered from one hash; an anti-join may read it all for each row.
    return sql.compose(
        """ AND ({missing} OR ({columns}) NOT IN (
                SELECT {targets} FROM {archive} r WHERE r.uuid_pipeline_ordinal = ANY(%(ordinals)s) AND {known}
                    AND NOT EXISTS (SELECT FROM {put} q WHERE {same_put})
                    AND NOT EXISTS (SELECT FROM {table} l WHERE {same_live})))""",
        missing=sql.join(" OR ", missing),
        columns=sql.join(", ", [sql.compose("x.{c}", c=sql.name(column)) for column, _ in pairs]),
        targets=sql.join(", ", [sql.compose("r.{t}", t=sql.name(target)) for _, target in pairs]),
        archive=link.target.relation,
        known=sql.join(" AND ", known),
        put=sql.name(f"put_{index}"),
        table=link.target.source,
        same_put=sql.join(" AND ", put),
        same_live=sql.join(" AND ", live),
    )
