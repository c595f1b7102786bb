"""Merging: the rows of a cluster become one, before the batch moves anything.

Everything happens at the old ids. The losers' references are turned to the survivor, what then would stand twice is
archived, and the batch goes on as if the losers had never been: a loser that already had the target id is out of
the way by then. Which document survives stands in the approved plan; which children do is decided here, from what
is there now, under the locks.
"""

from typing import LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.batches import locks
from uuid_pipeline.engine.batches.locks import FORWARD, BatchPlan, held_of, held_tables, map_part
from uuid_pipeline.engine.catalog import ForeignKey, Table
from uuid_pipeline.engine.merges import checks, emptying
from uuid_pipeline.engine.merges.collapse import Collapsed, collapse
from uuid_pipeline.engine.merges.folding import (
    Fold,
    fold_embedded,
    fold_key,
    folds,
    forget_embedded,
    forget_unturned,
    left_behind,
)
from uuid_pipeline.engine.natural_keys import cast_type, first_invalid, part
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import BatchError, UnmergeableError

MAX_ROUNDS = 20


def wanted(connection: Connection, store: Store, plan: BatchPlan) -> bool:
    """Whether the plan merges rows of this batch's documents, or references hold their target ids already."""
    return bool(sql.scalar(connection, _wanted_statement(store, plan.assessment_no), plan.values))


@sql.composed_once
def _wanted_statement(store: Store, assessment_no: int) -> sql.Composable:
    clauses = [
        sql.compose(
            """EXISTS (SELECT FROM {map} m WHERE m.ordinal BETWEEN %(first)s AND %(last)s
                       AND (m.role = 'merge' OR m.early) AND {not_aside})""",
            map=map_part(entity.name, assessment_no),
            not_aside=sql.Text(locks.NOT_ASIDE),
        )
        for entity in store.entities
    ]
    return sql.compose("SELECT {clauses}", clauses=sql.join(" OR ", clauses))


def merge(connection: Connection, store: Store, plan: BatchPlan) -> Collapsed:
    """Merge the clusters of the held documents; returns what was archived and re-pointed, with its digests.

    Raises BatchError when the rows written are not the rows read, UnmergeableError when documents would be archived or
    refused that the plan does not merge.
    """
    _make_room(connection, store)
    _note_ordinals(connection, store, plan)
    _merge_roots(connection, store, plan)
    for entity in store.entities:
        if entity.parent is not None:
            locks.hold_children(connection, store, entity, plan, FORWARD)
            _forget_invalid(connection, store, entity)
            _decide_children(connection, store, entity)
        _note_early(connection, store, entity, plan)
    _settle_references(connection, store)
    done = collapse(connection, store, plan)
    for entity in store.entities:
        _correct_roles(connection, store, entity, plan)
    _forget_held(connection, store)
    return done


def merged(store: Store, entity: str) -> sql.Composable:
    """The temporary table (loser, survivor, ordinal); no survivor means that nothing stands in the row's place."""
    return locks.temporary(store, f"merged_{entity}")


def _make_room(connection: Connection, store: Store) -> None:
    for entity in store.entities:
        key = cast_type(entity.table.columns[entity.key].type)
        statement = sql.compose(
            """CREATE TEMPORARY TABLE IF NOT EXISTS {merged} (loser {key} PRIMARY KEY, survivor {key}, ordinal bigint)
               ON COMMIT DELETE ROWS""",
            merged=merged(store, entity.name),
            key=key,
        )
        sql.execute(connection, statement)
    sql.execute(
        connection,
        """CREATE TEMPORARY TABLE IF NOT EXISTS displaced
               (relation oid, at tid, ordinal bigint, survivor text, PRIMARY KEY (relation, at))
           ON COMMIT DELETE ROWS""",
    )
    sql.execute(connection, "CREATE TEMPORARY TABLE IF NOT EXISTS merging (ordinal bigint) ON COMMIT DELETE ROWS")
    emptying.make_room(connection)
    for fold in folds(store):
        fold.make_room(connection)


def _note_ordinals(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """Where the plan merges; duplicates elsewhere that are new since were approved by nobody."""
    for entity in store.entities:
        statement = sql.compose(
            """INSERT INTO pg_temp.merging SELECT DISTINCT m.ordinal FROM {map} m
               WHERE m.ordinal BETWEEN %(first)s AND %(last)s AND m.role = 'merge' AND {not_aside}""",
            map=map_part(entity.name, plan.assessment_no),
            not_aside=sql.Text(locks.NOT_ASIDE),
        )
        sql.execute(connection, statement, plan.values)


def _merge_roots(connection: Connection, store: Store, plan: BatchPlan) -> None:
    for root in store.roots:
        held = held_of(store, root.name)
        statement = sql.compose(
            """WITH roles AS (SELECT h.at, h.key, h.ordinal, m.role FROM {held} h JOIN {map} m ON m.old_id = h.key),
               losers AS (
                   INSERT INTO {merged} (loser, survivor, ordinal)
                   SELECT l.key, s.key, l.ordinal FROM roles l JOIN roles s ON s.ordinal = l.ordinal
                   WHERE l.role = 'merge' AND s.role <> 'merge' RETURNING loser, survivor)
               INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
               SELECT %(oid)s, r.at, r.ordinal, l.survivor::text FROM losers l JOIN roles r ON r.key = l.loser""",
            held=held.relation,
            map=map_part(root.name, plan.assessment_no),
            merged=merged(store, root.name),
        )
        sql.execute(connection, statement, {"oid": root.table.oid})


def _note_early(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """References that hold a row's target id already are turned to the row, as those of a loser are to its survivor.

    So the batch moves them with the others, and a rollback gives them back what they held.
    """
    held = held_of(store, entity.name)
    statement = sql.compose(
        """INSERT INTO {merged} (loser, survivor, ordinal)
           SELECT h.{value}, h.key, h.ordinal FROM {held} h JOIN {map} m ON m.old_id = h.key
           WHERE m.early AND m.new_id = h.{value} AND NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = h.{value})
           ON CONFLICT DO NOTHING""",
        merged=merged(store, entity.name),
        value=held.value(entity.key),
        held=held.relation,
        map=map_part(entity.name, plan.assessment_no),
        table=held.table,
        key=sql.name(entity.key),
    )
    sql.execute(connection, statement)


# A set is what merge_as_set names below one document: the source with most rows stays whole, the survivor's own when
# even; the others go whole. Of rows that still share a natural key the survivor's own stays.
_CHILDREN = """
WITH rows AS (
    SELECT h.at, h.key, h.ordinal, t.{parent} AS parent, coalesce(m.survivor, t.{parent}) AS owner,
           m.loser IS NULL AS own, m.loser IS NOT NULL AND m.survivor IS NULL AS lost,
           h.natural_key, h.natural_key IS NOT NULL AS known, {set_of} AS set_of
    FROM {held} h JOIN {table} t ON t.ctid = h.at LEFT JOIN {merged_parent} m ON m.loser = t.{parent}
    WHERE h.ordinal IN (SELECT ordinal FROM pg_temp.merging)),
sources AS (
    SELECT owner, set_of, parent, row_number() OVER (
               PARTITION BY owner, set_of ORDER BY count(*) DESC, bool_or(own) DESC, parent) AS place
    FROM rows WHERE known AND NOT lost GROUP BY owner, set_of, parent),
ranked AS (
    SELECT r.*, s.place, row_number() OVER (
               PARTITION BY r.owner, r.natural_key ORDER BY {whole_sets} r.own DESC, r.key) AS turn
    FROM rows r LEFT JOIN sources s ON s.owner = r.owner AND s.set_of = r.set_of AND s.parent = r.parent),
judged AS (SELECT ranked.*, lost OR known AND (turn > 1 {outside}) AS goes FROM ranked),
gone AS (
    INSERT INTO {merged} (loser, survivor, ordinal)
    SELECT g.key, k.key, g.ordinal FROM judged g
    LEFT JOIN judged k ON k.owner = g.owner AND k.natural_key = g.natural_key AND NOT k.goes
    WHERE g.goes RETURNING loser, survivor)
INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
SELECT %(oid)s, j.at, j.ordinal, gone.survivor::text FROM gone JOIN judged j ON j.key = gone.loser
"""


def _forget_invalid(connection: Connection, store: Store, entity: Entity) -> None:
    """What is quarantined has no natural key to be merged by: it is left alone, below the survivor."""
    if not entity.spec.valid:
        return
    held = held_of(store, entity.name)
    goal = sql.compose("h.{value}", value=held.value(entity.parent_column or ""))
    statement = sql.compose(
        """SELECT h.key::text AS key, ARRAY[{valid}]::text[] AS checked FROM {held} h JOIN {table} t ON t.ctid = h.at
           WHERE h.natural_key IS NOT NULL AND h.ordinal IN (SELECT ordinal FROM pg_temp.merging)""",
        valid=sql.join(", ", [part(entity, field, goal) for field in entity.spec.valid]),
        held=held.relation,
        table=held.table,
    )
    invalid = [row.key for row in sql.rows(connection, statement) if first_invalid(entity, row.checked) is not None]
    forget = sql.compose("UPDATE {held} SET natural_key = NULL WHERE key::text = ANY(%(keys)s)", held=held.relation)
    sql.execute(connection, forget, {"keys": invalid})


def _decide_children(connection: Connection, store: Store, entity: Entity) -> None:
    held = held_of(store, entity.name)
    columns = [sql.compose("t.{c}", c=sql.name(column)) for column in entity.spec.merge_as_set]
    as_set = bool(columns)
    statement = sql.Text(_CHILDREN).format(
        parent=sql.name(entity.parent_column or ""),
        set_of=sql.compose("jsonb_build_array({c})", c=sql.join(", ", columns)) if as_set else sql.Text("'[]'::jsonb"),
        held=held.relation,
        table=held.table,
        merged_parent=merged(store, entity.parent or ""),
        merged=merged(store, entity.name),
        whole_sets=sql.Text("s.place," if as_set else ""),
        outside=sql.Text("OR place > 1" if as_set else ""),
    )
    sql.execute(connection, statement, {"oid": entity.table.oid})


def _settle_references(connection: Connection, store: Store) -> None:
    """Turn references to the survivors and displace what then stands twice, until nothing more follows from it."""
    for _ in range(MAX_ROUNDS):
        before = _displaced(connection)
        for fold in folds(store):
            _fold_table(connection, store, fold)
            for key in fold.held.moved.table.unique_keys:
                _displace_twins(connection, fold, key)
            checks.displace_forbidden(connection, fold)
            _note_displaced_of(connection, store, fold.held.moved.table)
        for foreign_key in _keys_to_displaced(connection, store):
            _displace_dependants(connection, store, foreign_key)
        for entity in store.entities:
            _follow_survivors(connection, store, entity)
        if _displaced(connection) == before:
            _name_survivors(connection, store)
            for fold in folds(store):
                forget_unturned(connection, fold)
            _require_documents_planned(connection, store)
            _require_own_children(connection, store)
            _require_none_left_behind(connection, store)
            return
    raise BatchError(
        f"A merge was given up: after {MAX_ROUNDS} rounds rows still displace each other. "
        "Set on_duplicate: block for this entity and report the store's foreign keys."
    )


def _require_documents_planned(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when documents would be archived that the plan does not merge into others.

    They refer by a foreign key that they may not lose to what goes, or would meet in a unique key: that they go along
    was approved by nobody.
    """
    for root in store.roots:
        unplanned = sql.compose(
            "LEFT JOIN {merged} m ON m.loser = t.{key} WHERE m.survivor IS NULL",
            merged=merged(store, root.name),
            key=sql.name(root.key),
        )
        words = (
            "is to be merged into no other, and would go to the archive along with one that is: by a foreign key of "
            "its row that may not be NULL or is ON DELETE CASCADE, or by a unique key that two rows would share"
        )
        _require_none_displaced(connection, root, unplanned, words)


def _require_own_children(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when a row below a document would be archived that the cluster does not merge.

    It refers by a key of its own to what goes; its document would lose it, and nobody has approved that.
    """
    for entity in store.entities:
        if entity.parent is None:
            continue
        of_others = sql.compose(
            "LEFT JOIN {held} h ON h.at = d.at WHERE h.ordinal IS DISTINCT FROM d.ordinal",
            held=held_of(store, entity.name).relation,
        )
        words = (
            "is below a document that is not merged, and would go to the archive along with a row that is, to which it "
            "refers"
        )
        _require_none_displaced(connection, entity, of_others, words)


def _require_none_displaced(connection: Connection, entity: Entity, which: sql.Composable, words: str) -> None:
    """``which``: joins and condition over the displaced rows ``d`` of the entity's table ``t``."""
    statement = sql.compose(
        """SELECT t.{key}::text AS key, d.ordinal FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at {which}
             AND d.relation = %(oid)s ORDER BY 1""",
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
        which=which,
    )
    found = sql.rows(connection, statement, {"oid": entity.table.oid})
    if found:
        raise UnmergeableError(
            f"{entity.name} {found[0].key} of {entity.table.schema}.{entity.table.name} {words}; change what it refers "
            "to",
            sorted({int(row.ordinal) for row in found}),
        )


def _name_survivors(connection: Connection, store: Store) -> None:
    """What stands in a displaced row's place may have been displaced itself since the row was."""
    for entity in store.entities:
        statement = sql.compose(
            """UPDATE pg_temp.displaced d SET survivor = m.survivor::text
               FROM {table} t JOIN {merged} m ON m.loser = t.{key}
               WHERE d.relation = %(oid)s AND t.ctid = d.at AND d.survivor IS DISTINCT FROM m.survivor::text""",
            table=sql.table(entity.table.schema, entity.table.name),
            merged=merged(store, entity.name),
            key=sql.name(entity.key),
        )
        sql.execute(connection, statement, {"oid": entity.table.oid})


def _require_none_left_behind(connection: Connection, store: Store) -> None:
    """Raise UnmergeableError when text, an array or JSON that stays holds the id of a row that goes with nothing in its
    place, unless the spec lets such ids stay: where nobody could foresee it."""
    for fold in folds(store):
        for reference in fold.held.moved.embedded:
            if reference.keeps_orphans:
                continue
            found = left_behind(connection, fold, reference, merged(store, reference.entity))
            if found:
                raise UnmergeableError(
                    f"{reference.name} holds ids of {reference.entity} rows that would be archived with nothing in "
                    "their place, and the spec does not say `orphans: keep` of it",
                    found,
                )


def _keys_to_displaced(connection: Connection, store: Store) -> list[ForeignKey]:
    """Foreign keys to tables of which rows are displaced; others may lead to what this role may not read."""
    places = {row.oid for row in sql.rows(connection, "SELECT DISTINCT relation AS oid FROM pg_temp.displaced")}
    targets = {place for place, table in store.catalog.tables.items() if table.oid in places}
    return [key for key in store.catalog.foreign_keys if (key.target_schema, key.target) in targets]


def _follow_survivors(connection: Connection, store: Store, entity: Entity) -> None:
    """A survivor that was displaced itself hands its losers on to what stands in its place, if anything does."""
    statement = sql.compose(
        "UPDATE {merged} m SET survivor = n.survivor FROM {merged} n WHERE n.loser = m.survivor",
        merged=merged(store, entity.name),
    )
    sql.execute(connection, statement)


def _displaced(connection: Connection) -> int:
    return int(sql.scalar(connection, "SELECT count(*) FROM pg_temp.displaced"))


def _fold_table(connection: Connection, store: Store, fold: Fold) -> None:
    own = fold.held.moved.entity
    forget_embedded(connection, fold)
    for column, entity in fold.held.moved.columns:
        if own is None or column != own.key:
            fold_key(connection, fold, column, merged(store, entity))
    for reference in fold.held.moved.embedded:
        fold_embedded(connection, fold, reference, merged(store, reference.entity))


def _displace_twins(connection: Connection, fold: Fold, key: tuple[str, ...]) -> None:
    """Of rows that a unique key would now refuse, the one that was there stays, and of turned ones the first."""
    turned = {column for column, _ in fold.held.values}
    if not turned & set(key):
        return
    table = fold.held.moved.table
    after = [fold.after(column) for column in key]
    nulls_equal = key in table.null_equal_keys
    equal: LiteralString = "o.{c} IS NOT DISTINCT FROM a.{n}" if nulls_equal else "o.{c} = a.{n}"
    same = [sql.compose(equal, c=sql.name(column), n=sql.name(f"k{n}")) for n, column in enumerate(key)]
    named = [sql.compose("{v} AS {n}", v=value, n=sql.name(f"k{n}")) for n, value in enumerate(after)]
    twins = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(oid)s, d.at, d.ordinal, NULL FROM (
               SELECT a.at, a.ordinal, row_number() OVER (PARTITION BY {keys} ORDER BY a.at) AS turn,
                      EXISTS (SELECT FROM {table} o WHERE {same} AND o.ctid <> a.at
                              AND NOT EXISTS (SELECT FROM {fold} f WHERE f.at = o.ctid)
                              AND NOT EXISTS (SELECT FROM pg_temp.displaced x
                                              WHERE x.relation = %(oid)s AND x.at = o.ctid)) AS held
               FROM (SELECT f.at, f.ordinal, {named} FROM {fold} f JOIN {table} t ON t.ctid = f.at
                     WHERE NOT EXISTS (SELECT FROM pg_temp.displaced x
                                       WHERE x.relation = %(oid)s AND x.at = f.at)) a
               WHERE {present}) d
           WHERE d.turn > 1 OR d.held ON CONFLICT DO NOTHING""",
        keys=sql.join(", ", [sql.compose("a.{n}", n=sql.name(f"k{n}")) for n in range(len(key))]),
        present=sql.Text("true")
        if nulls_equal
        else sql.join(" AND ", [sql.compose("a.{n} IS NOT NULL", n=sql.name(f"k{n}")) for n in range(len(key))]),
        table=fold.held.table,
        same=sql.join(" AND ", same),
        fold=fold.relation,
        named=sql.join(", ", named),
    )
    sql.execute(connection, twins, {"oid": table.oid})


def _note_displaced(connection: Connection, store: Store, entity: Entity) -> None:
    """A displaced row of an entity that had no natural twin: what refers to it has nothing to turn to."""
    statement = sql.compose(
        """INSERT INTO {merged} (loser, survivor, ordinal)
           SELECT t.{key}, NULL, d.ordinal FROM pg_temp.displaced d JOIN {table} t ON t.ctid = d.at
           WHERE d.relation = %(oid)s ON CONFLICT DO NOTHING""",
        merged=merged(store, entity.name),
        key=sql.name(entity.key),
        table=sql.table(entity.table.schema, entity.table.name),
    )
    sql.execute(connection, statement, {"oid": entity.table.oid})


def _displace_dependants(connection: Connection, store: Store, key: ForeignKey) -> None:
    """Rows that refer to a displaced row by another key than an entity's, and may not lose that, go with it.

    They have no other to turn to.

    Of a key that holds an entity's among others only a part is turned: there may be no row that has the rest too.
    """
    source = store.catalog.tables[key.table_schema, key.table]
    target = store.catalog.tables[key.target_schema, key.target]
    if emptying.holds_id(store, key):
        if len(key.columns) > 1:
            _displace_without_counterpart(connection, store, key, source, target)
            _fold_in_place(connection, store, key, source, target)
        return
    if emptying.may_empty(store, key):
        emptying.note(connection, key, source, target)
        return
    statement = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(source)s, s.ctid, d.ordinal, NULL FROM pg_temp.displaced d
           JOIN {target} t ON t.ctid = d.at JOIN {table} s ON {on}
           WHERE d.relation = %(target)s FOR UPDATE OF s ON CONFLICT DO NOTHING""",
        target=sql.table(target.schema, target.name),
        table=sql.table(source.schema, source.name),
        on=emptying.refers(key),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})
    _note_displaced_of(connection, store, source)


def _note_displaced_of(connection: Connection, store: Store, source: Table) -> None:
    for entity in store.entities:
        if entity.table.oid == source.oid:
            _note_displaced(connection, store, entity)


def _displace_without_counterpart(
    connection: Connection, store: Store, key: ForeignKey, source: Table, target: Table
) -> None:
    """Rows that refer to a displaced row, and to none that stays once their part of the key is turned.

    Where turning leaves NULL in the key, the row refers to nothing any more, and stays; MATCH FULL does not let it.
    """
    of_table = {fold.held.moved.table.oid: fold for fold in folds(store)}
    own, other = of_table[source.oid], of_table[target.oid]
    wanted = [sql.compose("{v} AS {k}", v=own.after(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.columns)]
    plain = [sql.compose("o.{c} = s.{k}", c=sql.name(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.target_columns)]
    turned = [
        sql.compose("{v} = s.{k}", v=other.after(c), k=sql.name(f"k{n}")) for n, c in enumerate(key.target_columns)
    ]
    statement = sql.compose(
        """INSERT INTO pg_temp.displaced (relation, at, ordinal, survivor)
           SELECT %(source)s, s.at, s.ordinal, NULL FROM (
               SELECT t.ctid AS at, d.ordinal, {wanted}
               FROM pg_temp.displaced d JOIN {target} p ON p.ctid = d.at JOIN {table} t ON {on}
               LEFT JOIN {own} f ON f.at = t.ctid WHERE d.relation = %(target)s FOR UPDATE OF t) s
           WHERE ({refers}) AND NOT EXISTS (SELECT FROM {target} o WHERE {plain} AND {stays_o}
                             AND NOT EXISTS (SELECT FROM {other} g WHERE g.at = o.ctid))
             AND NOT EXISTS (SELECT FROM {other} f JOIN {target} t ON t.ctid = f.at WHERE {turned} AND {stays_t})
           ON CONFLICT DO NOTHING""",
        wanted=sql.join(", ", wanted),
        refers=sql.Text("true")
        if key.match_full
        else sql.join(
            " AND ", [sql.compose("s.{k} IS NOT NULL", k=sql.name(f"k{n}")) for n in range(len(key.columns))]
        ),
        target=sql.table(target.schema, target.name),
        table=sql.table(source.schema, source.name),
        on=_named_by(key),
        own=own.relation,
        other=other.relation,
        plain=sql.join(" AND ", plain),
        turned=sql.join(" AND ", turned),
        stays_o=sql.Text(_STAYS.format("o")),
        stays_t=sql.Text(_STAYS.format("t")),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})
    _note_displaced_of(connection, store, source)


def _fold_in_place(connection: Connection, store: Store, key: ForeignKey, source: Table, target: Table) -> None:
    """Rows that name a displaced row by what another gets are noted as turned: they mean that one from then on.

    Their text stays. Without the note a rollback would take them along with the row that they mean by then.
    """
    fold = next(fold for fold in folds(store) if fold.held.moved.table.oid == source.oid)
    columns = [column for column in key.columns if column in dict(fold.held.values)]
    if not columns:
        return
    statement = sql.compose(
        """INSERT INTO {fold} AS f (at, ordinal, {value}, {turned})
           SELECT t.ctid, d.ordinal, t.{column}, true
           FROM pg_temp.displaced d JOIN {target} p ON p.ctid = d.at JOIN {table} t ON {on}
           WHERE d.relation = %(target)s
             AND NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(source)s AND x.at = t.ctid)
             AND NOT EXISTS (SELECT FROM {fold} o WHERE o.at = t.ctid AND ({any_turned}))
           FOR UPDATE OF t ON CONFLICT (at) DO UPDATE SET {value} = excluded.{value}, {turned} = true""",
        fold=fold.relation,
        value=fold.held.value(columns[0]),
        turned=fold.turned(columns[0]),
        column=sql.name(columns[0]),
        any_turned=sql.join(" OR ", [sql.compose("o.{t}", t=fold.turned(column)) for column in columns]),
        target=sql.table(target.schema, target.name),
        table=fold.held.table,
        on=_named_by(key),
    )
    sql.execute(connection, statement, {"source": source.oid, "target": target.oid})


def _named_by(key: ForeignKey) -> sql.Composable:
    """Whether the row ``t`` names the row ``p``, as both stand now."""
    pairs = zip(key.columns, key.target_columns, strict=True)
    return sql.join(" AND ", [sql.compose("t.{a} = p.{b}", a=sql.name(a), b=sql.name(b)) for a, b in pairs])


_STAYS = "NOT EXISTS (SELECT FROM pg_temp.displaced x WHERE x.relation = %(target)s AND x.at = {}.ctid)"


def _correct_roles(connection: Connection, store: Store, entity: Entity, plan: BatchPlan) -> None:
    """The map says who was displaced in fact; the plan could only foresee it of the rows that were there then.

    Of what the batch set aside nothing was decided: it merges when it is taken up.
    """
    statement = sql.compose(
        """UPDATE {map} m SET role = CASE WHEN g.loser IS NOT NULL THEN 'merge'
               WHEN m.old_id = m.new_id THEN 'keep' ELSE 'move' END
           FROM {map} o LEFT JOIN {merged} g ON g.loser = o.old_id
           WHERE o.old_id = m.old_id AND o.ordinal BETWEEN %(first)s AND %(last)s AND {not_aside}
             AND (g.loser IS NOT NULL) <> (o.role = 'merge')""",
        map=map_part(entity.name, plan.assessment_no),
        merged=merged(store, entity.name),
        not_aside=sql.Text(locks.NOT_ASIDE),
    )
    sql.execute(connection, statement, plan.values)


def lead_aliases(connection: Connection, store: Store, plan: BatchPlan) -> None:
    """The map says of each merged row where its survivor goes, once that is known: the plan may have foreseen another.

    A row whose natural key changed since was planned to go elsewhere than what then stands in its place.
    """
    for entity in store.entities:
        statement = sql.compose(
            """UPDATE {map} m SET new_id = s.new_id, natural_key = s.natural_key
               FROM {merged} g JOIN {map} s ON s.old_id = g.survivor
               WHERE m.old_id = g.loser AND m.role = 'merge' AND m.new_id <> s.new_id
                 AND m.ordinal BETWEEN %(first)s AND %(last)s""",
            map=map_part(entity.name, plan.assessment_no),
            merged=merged(store, entity.name),
        )
        sql.execute(connection, statement, plan.values)


def _forget_held(connection: Connection, store: Store) -> None:
    """Rows have new places now; the batch holds them anew (their locks are ours already)."""
    for held in held_tables(store):
        sql.execute(connection, sql.compose("DELETE FROM {held}", held=held.relation))
    for fold in folds(store):
        sql.execute(connection, sql.compose("DELETE FROM {fold}", fold=fold.relation))
