"""Which archived rows may come back: those whose place is free, when all that they refer to is there or comes too."""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.batches.locks import wait_briefly
from uuid_pipeline.engine.catalog import ForeignKey, Table
from uuid_pipeline.engine.merges import partial_places
from uuid_pipeline.engine.merges.archive import Shelf, shelves
from uuid_pipeline.engine.merges.partial_places import Places
from uuid_pipeline.engine.store import Entity, Reference, Store

_ANYWAY = sql.Text("")


def checked_keys(connection: Connection, store: Store, assessment: int) -> list[ForeignKey]:
    """The foreign keys, but plain references, of the tables that have an archive: rows may have been put back there."""
    return [key for kept in shelves(connection, store, assessment) for key in _checked_keys(connection, store, kept)]


def remembered(table: Table) -> sql.Composable:
    """Whether the row ``t`` is the one that ``m`` of ``repointed`` remembers, by its primary key."""
    same = [
        sql.compose("t.{c} = (m.row_key->>{n})::{t}", c=sql.name(c), n=sql.literal(c),
                    t=sql.as_written(table.columns[c].type))
        for c in table.primary_key
    ]  # fmt: skip
    return sql.join(" AND ", same)


def staying(entity: Entity) -> sql.Composable:
    """Of the entity's archived rows those that do not come back: (source, goal), both as text; :func:`find` notes them.

    Of this batch and of those that were undone before it. ``source`` is the row's id, ``goal`` its survivor's, NULL
    where it has none.
    """
    return sql.compose(
        "(SELECT y.source, y.goal FROM pg_temp.staying y WHERE y.entity = {entity})", entity=sql.literal(entity.name)
    )


_MAKE_STAYING = """
CREATE TEMPORARY TABLE IF NOT EXISTS staying (entity text, source text, goal text, PRIMARY KEY (entity, source))
ON COMMIT DELETE ROWS
"""
_UNDONE: LiteralString = """
SELECT coalesce(range_agg(int8range(b.first_ordinal, b.last_ordinal, '[]')), '{}') FROM uuid_pipeline.batches b
WHERE b.execution_id = %(execution)s AND b.direction = 'back'
"""


def _note_staying(connection: Connection, store: Store, kept: Sequence[Shelf], values: Mapping[str, Any]) -> None:
    """A table with an index: for each value that is turned back it is asked which of its ids are in it."""
    sql.execute(connection, "DELETE FROM pg_temp.staying")
    for entity in store.entities:
        for one in kept:
            if one.table.oid == entity.table.oid:
                note = sql.compose(
                    """INSERT INTO pg_temp.staying
                       SELECT %(entity)s, r.{key}::text, r.uuid_pipeline_survivor FROM {archive} r
                       WHERE (r.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s AND NOT ({coming}))
                          OR r.uuid_pipeline_ordinal <@ ({undone}) ON CONFLICT DO NOTHING""",
                    key=sql.name(entity.key),
                    archive=one.relation,
                    coming=is_coming("r"),
                    undone=sql.Text(_UNDONE),
                )
                sql.execute(connection, note, {**values, "entity": entity.name})


def hold_targets(connection: Connection, store: Store, kept: Sequence[Shelf], plan: BatchPlan) -> None:
    """Lock what the batch's archived rows refer to by foreign key, as the server's own check would: nobody deletes it
    between the judgement and the rows' return.

    Where this role may not lock it, the server checks the key. Raises the driver's 55P03 when a lock is not had in
    time.
    """
    for one in kept:
        if not sql.scalar(connection, _archived_of_batch(one), plan.values):
            continue
        for key in _keys_of(store, one):
            # A lock on a row wants both rights.
            if not key.period and _may(connection, key, "SELECT") and _may(connection, key, "UPDATE"):
                wait_briefly(connection, plan)
                sql.execute(connection, _hold_targets_statement(one, key), plan.values)


def _may(connection: Connection, key: ForeignKey, right: str) -> bool:
    """Whether this role has the right on the table that the key leads to, in whatever schema."""
    asked = """SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, %(right)s)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = %(schema)s AND c.relname = %(table)s"""
    values = {"right": right, "schema": key.target_schema, "table": key.target}
    return bool(sql.scalar(connection, asked, values))


def _archived_of_batch(one: Shelf) -> sql.Composable:
    return sql.compose(
        """SELECT EXISTS (SELECT FROM {archive} a
                          WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s)""",
        archive=one.relation,
    )


def _hold_targets_statement(one: Shelf, key: ForeignKey) -> sql.Composable:
    columns, targets = (
        sql.join(", ", [sql.compose("{row}.{c}", row=sql.Text(row), c=sql.name(column)) for column in names])
        for row, names in (("a", key.columns), ("t", key.target_columns))
    )
    return sql.compose(
        """SELECT FROM {target} t WHERE ({targets}) IN (
               SELECT {columns} FROM {archive} a WHERE a.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s)
           ORDER BY t.ctid FOR KEY SHARE OF t""",
        target=sql.table(key.target_schema, key.target),
        targets=targets,
        columns=columns,
        archive=one.relation,
    )


def _keys_of(store: Store, one: Shelf) -> list[ForeignKey]:
    """The foreign keys of an archive's table whose columns it still has."""
    place, known = (one.table.schema, one.table.name), {column.name for column in one.columns}
    return [
        key
        for key in store.catalog.foreign_keys
        if (key.table_schema, key.table) == place and set(key.columns) <= known
    ]


def _is_of(reference: Reference, one: Shelf) -> bool:
    """Whether the reference is a foreign key of an archive's table: what the server would refuse to see dangle.

    By a column that came since, rows of then refer to nothing.
    """
    known = {column.name for column in one.columns}
    return reference.foreign_key is not None and reference.table.oid == one.table.oid and reference.column in known


def find(
    connection: Connection, store: Store, kept: Sequence[Shelf], partial: Places, values: Mapping[str, Any]
) -> None:
    """Note in ``pg_temp.coming`` the archived rows of the ``ordinals`` bound that may come back.

    One whose unique key another row has and keeps does not, nor does one whose foreign key refers to a row that is not
    there, and does not come back; so on until none is left. The documents were judged with their ordinals.
    """
    make = """CREATE TEMPORARY TABLE IF NOT EXISTS coming (archive regclass, at tid, PRIMARY KEY (archive, at))
              ON COMMIT DELETE ROWS"""
    sql.execute(connection, make)
    sql.execute(connection, _MAKE_STAYING)
    sql.execute(connection, "DELETE FROM pg_temp.coming")
    for one in kept:
        fill = sql.compose(
            """INSERT INTO pg_temp.coming SELECT x.tableoid::regclass, x.ctid FROM {archive} x
               WHERE x.uuid_pipeline_ordinal = ANY(%(ordinals)s)""",
            archive=one.relation,
        )
        sql.execute(connection, fill, values)
    roots = {root.table.oid for root in store.roots}
    below = [one for one in kept if one.table.oid not in roots]
    for one in below:
        for unique in plain_unique_keys(store, one.table):
            sql.execute(connection, _whose_place_is_taken(one, is_taken(one, unique)))
        for place in partial[one.table.oid]:
            sql.execute(connection, _whose_place_is_taken(one, partial_places.is_taken(one, place)))
    drops = [_without_target(connection, store, one, kept) for one in below]
    drops += [
        _whose_place_is_taken(one, is_taken_for_good(store, one, unique, kept, is_coming("r")))
        for one in below
        for unique in unique_keys_of_ids(store, one.table)
    ]
    dropped = 1
    while dropped:
        _note_staying(connection, store, kept, values)
        dropped = sum(sql.execute(connection, drop, values).rowcount for drop in drops)


def _whose_place_is_taken(one: Shelf, taken: sql.Composable) -> sql.Composable:
    return sql.compose(
        """DELETE FROM pg_temp.coming c USING {archive} a
           WHERE c.archive = a.tableoid AND c.at = a.ctid AND {taken}""",
        archive=one.relation,
        taken=taken,
    )


def _without_target(connection: Connection, store: Store, one: Shelf, kept: Sequence[Shelf]) -> sql.Composable:
    return sql.compose(
        """DELETE FROM pg_temp.coming c USING {archive} x
           WHERE c.archive = x.tableoid AND c.at = x.ctid AND NOT (true{there})""",
        archive=one.relation,
        there=sql.join("", all_there(connection, store, one, kept, "x", is_coming("r"))),
    )


def is_coming(alias: str) -> sql.Composable:
    """Whether the archived row of this alias is noted as one that comes back."""
    return sql.compose(
        "EXISTS (SELECT FROM pg_temp.coming n WHERE n.archive = {a}.tableoid AND n.at = {a}.ctid)", a=sql.name(alias)
    )


# Which archived rows ``r`` may come back, while only their ordinals are judged.
OF_ORDINALS = sql.Text("r.uuid_pipeline_ordinal = ANY(%(ordinals)s)")


def all_there(
    connection: Connection, store: Store, one: Shelf, kept: Sequence[Shelf], alias: str, coming: sql.Composable
) -> list[sql.Composable]:
    """Whether each row that an archived row refers to is there or may come back, as further conditions.

    ``coming`` says which archived rows ``r`` may.
    """
    there = [_is_there(store, r, kept, alias, coming) for r in store.references if _is_of(r, one)]
    return there + [_is_there_too(store, key, kept, alias, coming) for key in _checked_keys(connection, store, one)]


def _is_there(
    store: Store, reference: Reference, kept: Sequence[Shelf], alias: str, coming: sql.Composable
) -> sql.Composable:
    """Whether what an archived row refers to is in its table or may come back too, as a further condition.

    The application may have deleted it since.
    """
    entity = store.entity(reference.entity)
    held = sql.compose("{a}.{c}", a=sql.name(alias), c=sql.name(reference.column))
    archived = [
        sql.compose(
            " OR EXISTS (SELECT FROM {archive} r WHERE {coming} AND r.{key} = {held})",
            archive=other.relation,
            coming=coming,
            key=sql.name(entity.key),
            held=held,
        )
        for other in kept
        if other.table.oid == entity.table.oid
    ]
    return sql.compose(
        " AND ({held} IS NULL OR EXISTS (SELECT FROM {table} l WHERE l.{key} = {held}){archived})",
        held=held,
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        archived=sql.join("", archived),
    )


def _ids_of(store: Store, table: Table) -> set[str]:
    """The columns of a table that hold ids which move."""
    return {column for moved in store.tables if moved.table.oid == table.oid for column, _ in moved.columns}


def _checked_keys(connection: Connection, store: Store, kept: Shelf) -> list[ForeignKey]:
    """A table's foreign keys but those of one column that hold an id, which are references.

    Those that are not validated may have dangled before anybody came; where this role may not look, the server does.
    """
    ids = _ids_of(store, kept.table)
    return [
        key
        for key in _keys_of(store, kept)
        if key.validated and (len(key.columns) > 1 or not ids & set(key.columns)) and _may(connection, key, "SELECT")
    ]


def _is_there_too(
    store: Store, key: ForeignKey, kept: Sequence[Shelf], alias: str, coming: sql.Composable
) -> sql.Composable:
    """As :func:`_is_there`, for a foreign key of several columns or one that holds no id."""
    row = sql.name(alias)
    pairs = [(sql.name(c), sql.name(t)) for c, t in zip(key.columns, key.target_columns, strict=True)]
    null = sql.join(" OR ", [sql.compose("{row}.{c} IS NULL", row=row, c=column) for column, _ in pairs])
    same = sql.join(
        " AND ", [sql.compose("r.{t} = {row}.{c}", t=target, row=row, c=column) for column, target in pairs]
    )
    archived = [
        sql.compose(
            " OR EXISTS (SELECT FROM {archive} r WHERE {coming} AND {same})",
            archive=other.relation,
            coming=coming,
            same=same,
        )
        for other in kept
        if (other.table.schema, other.table.name) == (key.target_schema, key.target)
    ]
    return sql.compose(
        " AND ({null} OR EXISTS (SELECT FROM {target} r WHERE {same}){archived}{turned})",
        null=null,
        target=sql.table(key.target_schema, key.target),
        same=same,
        archived=sql.join("", archived),
        turned=_turned_back(store, key, kept, alias, coming),
    )


def _turned_back(
    store: Store, key: ForeignKey, kept: Sequence[Shelf], alias: str, coming: sql.Composable
) -> sql.Composable:
    """Or whether a row will be as the key says, once it is re-pointed, which happens with the archived row's return."""
    target = store.catalog.tables.get((key.target_schema, key.target))
    entity_of = {c: entity for m in store.tables if target and m.table.oid == target.oid for c, entity in m.columns}
    if target is None or not target.primary_key or not entity_of.keys() & set(key.target_columns):
        return sql.Text("")
    same = [
        sql.compose("{held} = {row}.{c}::text", held=_held_then(store, t, entity_of.get(t), kept, coming),
                    row=sql.name(alias), c=sql.name(c))
        for c, t in zip(key.columns, key.target_columns, strict=True)
    ]  # fmt: skip
    return sql.compose(
        """ OR EXISTS (SELECT FROM {target} t JOIN uuid_pipeline.repointed m ON {remembered}
                       WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.table_name = {label}
                         AND m.foreign_key IS NULL AND {same})""",
        target=sql.table(target.schema, target.name),
        remembered=remembered(target),
        label=sql.literal(f"{target.schema}.{target.name}"),
        same=sql.join(" AND ", same),
    )


def _held_then(
    store: Store, column: str, entity: str | None, kept: Sequence[Shelf], coming: sql.Composable
) -> sql.Composable:
    """What a column of the row ``t`` holds, as text, once it is turned back as ``m`` remembers."""
    if entity is None:
        return sql.compose("t.{c}::text", c=sql.name(column))
    return sql.compose(
        "CASE WHEN m.before ? {n} AND {comes} THEN m.before->>{n} ELSE t.{c}::text END",
        n=sql.literal(column),
        c=sql.name(column),
        comes=comes_back(column, store.entity(entity), kept, coming),
    )


def comes_back(column: str, entity: Entity, kept: Sequence[Shelf], coming: sql.Composable) -> sql.Composable:
    """Whether the row whose id ``m`` of ``repointed`` remembers of this column does not stay archived."""
    stay = staying(entity)
    archived = next((one for one in kept if one.table.oid == entity.table.oid), None)
    if archived is None:
        return sql.Text("true")
    if coming is OF_ORDINALS:
        stay = sql.compose(
            """(SELECT r.{key}::text AS source FROM {archive} r
                WHERE r.uuid_pipeline_ordinal BETWEEN %(first)s AND %(last)s AND NOT ({coming}))""",
            key=sql.name(entity.key),
            archive=archived.relation,
            coming=coming,
        )
    return sql.compose(
        "NOT EXISTS (SELECT FROM {stay} s WHERE s.source = m.before->>{n})", stay=stay, n=sql.literal(column)
    )


def plain_unique_keys(store: Store, table: Table) -> list[tuple[str, ...]]:
    """The unique keys of a table that hold no id, in any form."""
    return [key for key in table.unique_keys if not _entities_in(store, table).keys() & set(key)]


def unique_keys_of_ids(store: Store, table: Table) -> list[tuple[str, ...]]:
    """The unique keys of a table that hold ids, in whatever form."""
    return [key for key in table.unique_keys if _entities_in(store, table).keys() & set(key)]


def _entities_in(store: Store, table: Table) -> dict[str, list[Entity]]:
    """By column that may be turned, the entities of which it is one id; none where it holds several."""
    found: dict[str, list[Entity]] = {}
    for moved in store.tables:
        if moved.table.oid == table.oid:
            for column, entity in moved.columns:
                found.setdefault(column, []).append(store.entity(entity))
            for held in moved.embedded:
                found.setdefault(held.column, []).extend([store.entity(held.entity)] if held.form == "text" else [])
    return found


def is_taken_for_good(
    store: Store, one: Shelf, unique: Sequence[str], kept: Sequence[Shelf], coming: sql.Composable
) -> sql.Composable:
    """As :func:`is_taken` for a key that holds ids, but by a row that is about to be turned back to another."""
    entities = _entities_in(store, one.table)
    leaves = [
        sql.compose(
            "(m.before ? {n} AND t.{c}::text IS NOT DISTINCT FROM m.after->>{n} AND {come})",
            n=sql.literal(column),
            c=sql.name(column),
            come=sql.join(
                " AND ", [sql.Text("true"), *[comes_back(column, entity, kept, coming) for entity in entities[column]]]
            ),
        )
        for column in unique
        if column in entities
    ]
    if not one.table.primary_key or not leaves:
        return is_taken(one, unique)
    stays = sql.compose(
        """ AND NOT EXISTS (SELECT FROM uuid_pipeline.repointed m
                WHERE m.wave = %(wave)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND m.table_name = {label}
                  AND m.foreign_key IS NULL AND {remembered} AND ({leaves}))""",
        label=sql.literal(f"{one.table.schema}.{one.table.name}"),
        remembered=remembered(one.table),
        leaves=sql.join(" OR ", leaves),
    )
    return is_taken(one, unique, stays)


def is_taken(kept: Shelf, unique: Sequence[str], stays: sql.Composable = _ANYWAY) -> sql.Composable:
    """Whether another row ``t``, which ``stays``, has what is unique about the archived row ``a``."""
    equal: LiteralString = (
        "t.{c} IS NOT DISTINCT FROM {a}" if tuple(unique) in kept.table.null_equal_keys else "t.{c} = {a}"
    )
    there = {column.name: column for column in kept.columns}
    same = [
        sql.compose(
            equal,
            c=sql.name(name),
            a=kept.value(there[name], "a") if name in there else _unwritten(kept.table, name),
        )
        for name in unique
    ]
    return sql.compose(
        "EXISTS (SELECT FROM {table} t WHERE {same}{stays})",
        table=kept.source,
        same=sql.join(" AND ", same),
        stays=stays,
    )


def _unwritten(table: Table, column: str) -> sql.Composable:
    """What the archived row ``a`` has in a column that nobody writes; NULL in one that is newer than the archive."""
    value = "(to_jsonb(a) ->> {c})::{type}"
    return sql.compose(value, c=sql.literal(column), type=sql.as_written(table.columns[column].type))
