"""What the aliases are made of, as text: functions that find the id which a stale one stands for now."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.installed.functions import PINNED, Definition, function
from uuid_pipeline.engine.ledger import SCHEMA
from uuid_pipeline.engine.store import Entity, MovedTable, Reference, Store

# Names of what is installed, each followed by the entity's name or the table's.
HELD, PLACE, RESOLVE, VIEW, ON_TABLE = "held_", "place_", "resolve_", "alias_", "alias_on_"
IN_FORCE = "in_force"
USES, LAST_USE = "alias_uses_", "alias_last_"

# How far an id is followed: a hop an execution. A row that got its natural key back comes to the same id again.
HOPS = 8
CANONICAL_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

_HELD = "plpgsql VOLATILE STRICT"
_ASKING = f"plpgsql STABLE STRICT {PINNED}"
_RESOLVE = f"plpgsql STABLE STRICT SECURITY DEFINER {PINNED}"
_TRIGGER = f"plpgsql VOLATILE SECURITY DEFINER {PINNED}"


# The number of no assessment: the ids that the guard rewrote, which resolve as those that a plan moved.
GUARD, GUARDED = 0, "guarded_"
LAST = 2**31 - 1


def map_part(entity: Entity, assessment: int) -> str:
    """The name of one assessment's id map, which stands by itself when other partitions are detached or dropped."""
    if assessment == GUARD:
        return GUARDED + entity.name
    return f"id_map_{entity.name}_{assessment}"


# Ids only ever went up (old to new) and came back down, newest execution first. So from a stale id the row is reached
# by going down and then up; going down after up would end at another row of a merged cluster. Down only where a
# rollback has begun: before that no row had the new id, and one that the application makes itself is none of ours.
_REACH = """
WITH RECURSIVE reach (alias, id, hops, rank, rising, number, path) AS (
    {start}
    UNION ALL
    SELECT r.alias, n.id, r.hops + 1, r.rank + array_position(ARRAY['move', 'keep', 'merge'], n.role), n.rising,
           n.number, r.path || n.id
    FROM reach r CROSS JOIN LATERAL ({neighbours}) n (id, role, rising, number)
    WHERE r.hops < {hops} AND (n.id <> ALL (r.path) OR (n.rising AND r.rising AND n.number > r.number)))
"""
_NEIGHBOURS = """
SELECT m.new_id, m.role, true, {number} FROM {part} m WHERE m.old_id = r.id AND {in_force}
UNION ALL SELECT m.old_id, m.role, false, {number} FROM {part} m WHERE m.new_id = r.id AND NOT r.rising AND EXISTS (
    SELECT FROM uuid_pipeline.waves w JOIN uuid_pipeline.executions e ON e.execution_id = w.execution_id
    WHERE coalesce(w.assessment_no, e.assessment_no) = m.assessment_no
      AND m.ordinal BETWEEN w.first_ordinal AND w.last_ordinal AND w.status IN ('rolling_back', 'rolled_back'))
"""


# Whether what the map says of an ordinal was done, and not undone since. The batches tell while its wave is at work.
IS_IN_FORCE: LiteralString = """
EXISTS (SELECT FROM uuid_pipeline.waves w JOIN uuid_pipeline.executions e ON e.execution_id = w.execution_id
        WHERE coalesce(w.assessment_no, e.assessment_no) = {number}
          AND {ordinal} BETWEEN w.first_ordinal AND w.last_ordinal AND w.status <> 'rolled_back'
          AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.wave = w.wave AND u.ordinal = {ordinal})
          AND (w.status = 'moved' OR 1 = (
              SELECT count(DISTINCT b.direction) FROM uuid_pipeline.batches b
              WHERE b.wave = w.wave AND {ordinal} BETWEEN b.first_ordinal AND b.last_ordinal)))
"""
# For one id at a time: asked of the few rows that the index finds, it spares each look-up the start of a large plan.
_ASKED: LiteralString = "uuid_pipeline.in_force({number}, {ordinal})"
# A row that a later map moved on has left its id; and where one moved another row to it, the one before had lost it.
_MOVED_ON = """
EXISTS (SELECT FROM {part} m WHERE m.old_id = {id} AND m.new_id <> m.old_id AND {number} > {since} AND {in_force})
OR EXISTS (SELECT FROM {part} m WHERE m.new_id = {id} AND m.new_id <> m.old_id AND m.role = 'move'
           AND {number} > {since} AND {in_force})
"""


@dataclass(frozen=True)
class _Part:
    """One assessment's id map, with its number; what the guard rewrote no map is known to have moved on."""

    table: sql.Composable
    assessment: int

    def named(self, in_force: LiteralString) -> dict[str, sql.Composable]:
        """What statements over the map are composed of; ``in_force`` is how these ask it of a row ``m``."""
        number = sql.literal(LAST if self.assessment == GUARD else self.assessment)
        asked = sql.compose(in_force, number=number, ordinal=sql.Text("m.ordinal"))
        return {
            "part": self.table,
            "number": number,
            "in_force": sql.Text("true") if self.assessment == GUARD else asked,
        }


def _moved_on(
    parts: Sequence[_Part], key: LiteralString, since: LiteralString, in_force: LiteralString
) -> sql.Composable:
    """Whether the row that had this id, by the map of the number ``since``, has another one by a later map."""
    later = [
        sql.compose(_MOVED_ON, **part.named(in_force), id=sql.Text(key), since=sql.Text(since))
        for part in parts
        if part.assessment != GUARD
    ]
    return sql.compose("({any})", any=sql.join(" OR ", later or [sql.Text("false")]))


def _reach(start: sql.Composable, parts: Sequence[_Part], in_force: LiteralString) -> sql.Composable:
    """A WITH list: ``reach`` holds every id that the ones of ``start`` may stand for, and how near it is."""
    neighbours = [sql.compose(_NEIGHBOURS, **part.named(in_force)) for part in parts]
    return sql.compose(
        _REACH, start=start, neighbours=sql.join(" UNION ALL ", neighbours), hops=sql.Text(str(HOPS))
    )  # fmt: skip


def _parts(entity: Entity, assessments: Sequence[int]) -> list[_Part]:
    return [_Part(sql.table(SCHEMA, map_part(entity, number)), number) for number in assessments]


# Sequences count without a row or a lock that another transaction would wait for.
_COUNT = """
PERFORM nextval({uses}::regclass), setval({last}::regclass, floor(extract(epoch FROM clock_timestamp()))::bigint);
"""


def _count(entity: Entity) -> sql.Composable:
    return sql.compose(
        _COUNT,
        uses=sql.literal(sql.shown(sql.table(SCHEMA, USES + entity.name))),
        last=sql.literal(sql.shown(sql.table(SCHEMA, LAST_USE + entity.name))),
    )


_HELD_BODY = """
DECLARE
    current_id {type};
    since integer;
    tries integer := 0;
BEGIN
    -- Waits behind a batch that holds the row, and keeps a later one away until the writer's transaction ends.
    PERFORM FROM {table} t WHERE t.{key} = $1 FOR KEY SHARE;
    IF FOUND THEN
        RETURN $1;
    END IF;
    -- Statements of their own, whose snapshots have what the batch committed. Nearly always one step up is enough.
    SELECT m.id, m.number INTO current_id, since FROM ({known}) m (id, number) LIMIT 1;
    IF NOT FOUND THEN
        RETURN $1;
    END IF;
    PERFORM FROM {table} t WHERE t.{key} = current_id AND NOT {current_moved_on} FOR KEY SHARE;
    -- Again, when another batch came between.
    WHILE NOT FOUND AND tries < 3 LOOP
        tries := tries + 1;
        {reach}
        SELECT t.{key} INTO current_id FROM reach r JOIN {table} t ON t.{key} = r.id
        WHERE NOT (r.rising AND {reached_moved_on}) ORDER BY r.hops, r.rank LIMIT 1 FOR KEY SHARE OF t;
    END LOOP;
    IF NOT FOUND OR current_id = $1 THEN
        RETURN $1;
    END IF;
    {count}
    RETURN current_id;
END
"""

_RESOLVE_BODY = """
DECLARE
    current_id {type};
    since integer;
BEGIN
    IF EXISTS (SELECT FROM {table} t WHERE t.{key} = $1) THEN
        RETURN $1;
    END IF;
    SELECT m.id, m.number INTO current_id, since FROM ({known}) m (id, number) LIMIT 1;
    IF NOT FOUND THEN
        RETURN $1;
    END IF;
    IF NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = current_id AND NOT {current_moved_on}) THEN
        {reach}
        SELECT t.{key} INTO current_id FROM reach r JOIN {table} t ON t.{key} = r.id
        WHERE NOT (r.rising AND {reached_moved_on}) ORDER BY r.hops, r.rank LIMIT 1;
        IF NOT FOUND THEN
            RETURN $1;
        END IF;
    END IF;
    -- On a standby every transaction is read-only.
    IF NOT current_setting('transaction_read_only')::boolean THEN
        {count}
    END IF;
    RETURN current_id;
END
"""

_HELD_TEXT_BODY = """
BEGIN
    IF $1 ~ {canonical} THEN
        RETURN {held}($1::uuid)::text;
    END IF;
    RETURN $1;
END
"""

# Where a batch comes to the row of an id: forward it is the map's old one, back its new one. One subquery each, for
# which an index is enough. What is no id of the entity has no place.
_PLACE_BODY = """
BEGIN
    IF {may_be} THEN
        RETURN coalesce((SELECT min(m.ordinal) FROM {part} m WHERE m.old_id = $1::{type}),
                        (SELECT min(m.ordinal) FROM {part} m WHERE m.new_id = $1::{type}));
    END IF;
    RETURN NULL;
END
"""

_VIEW = """
CREATE OR REPLACE VIEW {view} (alias, current) AS
{reach}
SELECT DISTINCT ON (r.alias) r.alias, t.{key}::{type} FROM reach r JOIN {table} t ON t.{key} = r.id
WHERE NOT (r.rising AND {reached_moved_on}) ORDER BY r.alias, r.hops, r.rank
"""
_STALE = """
SELECT k.id, k.id, 0, 0, false, 0, ARRAY[k.id] FROM ({known}) k (id)
WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = k.id)
"""


def in_force() -> Definition:
    """A function from a map's number and an ordinal to whether what the map says of it was done."""
    body = sql.compose(IS_IN_FORCE, number=sql.Text("$1"), ordinal=sql.Text("$2"))
    returned = sql.compose("BEGIN RETURN {found}; END", found=body)
    return function(IN_FORCE, {"number": "integer", "place": "bigint"}, "boolean", _ASKING, returned)


def of_entity(entity: Entity, assessments: Sequence[int]) -> list[Definition]:
    """What finds the rows of one entity: for writers (``held``), for readers (``resolve``), and the list of aliases."""
    parts, type_name = _parts(entity, assessments), entity.key_type
    named = {"table": sql.table(entity.table.schema, entity.table.name), "key": sql.name(entity.key)}
    start = sql.compose("SELECT $1, $1, 0, 0, false, 0, ARRAY[$1]")
    filled = {
        **named,
        "type": sql.as_written(type_name),
        "count": _count(entity),
        "known": _known(parts),
        "reach": _reach(start, parts, _ASKED),
        "current_moved_on": _moved_on(parts, "current_id", "since", _ASKED),
        "reached_moved_on": _moved_on(parts, "r.id", "r.number", _ASKED),
    }
    held, resolve = sql.compose(_HELD_BODY, **filled), sql.compose(_RESOLVE_BODY, **filled)
    of_text = sql.compose(
        _HELD_TEXT_BODY, canonical=sql.literal(CANONICAL_UUID), held=sql.table(SCHEMA, HELD + entity.name)
    )
    made = [
        function(HELD + entity.name, {"id": type_name}, type_name, _HELD, held),
        function(PLACE + entity.name, {"id": "text"}, "bigint", _ASKING, _place(type_name, parts)),
        function(RESOLVE + entity.name, {"id": type_name}, type_name, _RESOLVE, resolve),
        _view(entity, parts),
    ]
    return (
        made if type_name == "text" else [*made, function(HELD + entity.name, {"id": "text"}, "text", _HELD, of_text)]
    )


def _place(type_name: str, parts: Sequence[_Part]) -> sql.Composable:
    """Of the newest map: batches of the others are done, or are undone before any of this one is."""
    newest = max(parts, key=lambda part: part.assessment)
    is_uuid = sql.compose("$1 ~ {form}", form=sql.literal(CANONICAL_UUID))
    return sql.compose(
        _PLACE_BODY,
        may_be=sql.Text("true") if type_name == "text" else is_uuid,
        part=newest.table,
        type=sql.as_written(type_name),
    )


def _known(parts: Sequence[_Part]) -> sql.Composable:
    """A row if any map knows the id: where it went up to, and the map's number; or NULL when it is a new one.

    What the newest map says comes first: a row that an earlier plan could not move may have gone elsewhere by it.
    """
    newest_first = [part.named(_ASKED) for part in reversed(parts)]
    up = [
        sql.compose("SELECT m.new_id, {number} FROM {part} m WHERE m.old_id = $1 AND {in_force}", **part)
        for part in newest_first
    ]
    down = [sql.compose("SELECT NULL, {number} FROM {part} m WHERE m.new_id = $1", **part) for part in newest_first]
    return sql.join(" UNION ALL ", [*up, *down])


def _view(entity: Entity, parts: Sequence[_Part]) -> Definition:
    named = {"table": sql.table(entity.table.schema, entity.table.name), "key": sql.name(entity.key)}
    ids = [
        sql.compose("SELECT m.{column} FROM {part} m", part=part.table, column=sql.name(column))
        for part in parts
        for column in ("old_id", "new_id")
    ]
    start = sql.compose(_STALE, **named, known=sql.join(" UNION ", ids))
    statement = sql.compose(
        _VIEW,
        **named,
        view=sql.table(SCHEMA, VIEW + entity.name),
        reach=_reach(start, parts, IS_IN_FORCE),
        reached_moved_on=_moved_on(parts, "r.id", "r.number", IS_IN_FORCE),
        type=sql.as_written(entity.key_type),
    )
    return Definition(VIEW + entity.name, None, statement)


def function_on(moved: MovedTable) -> str:
    """The name of a table's trigger function: readable, short enough, and no other table's."""
    qualified = sql.shown(sql.table(moved.table.schema, moved.table.name))
    readable = moved.table.name.encode()[:40].decode(errors="ignore")
    return f"{ON_TABLE}{readable}_{hashlib.sha256(qualified.encode()).hexdigest()[:8]}"


# OLD is all NULL on INSERT, so one comparison serves both: a NULL is no id, and what stayed needs no look.
_KEY = """
    IF NEW.{column} IS DISTINCT FROM OLD.{column} THEN
        NEW.{column} := {held}(NEW.{column}{cast});
    END IF;
"""
_MANY = """
    IF NEW.{column}{cast} IS DISTINCT FROM OLD.{column}{cast} THEN
        -- One after the other as a batch locks them: else each could wait for what the other has.
        SELECT array_agg(e.id), array_agg({held}(e.id)) INTO stale_ids, current_ids
        FROM (SELECT found.id FROM {ids} found (id) WHERE found.id IS NOT NULL
              GROUP BY found.id ORDER BY {place}(found.id), found.id OFFSET 0) e;
        {rewrite}
    END IF;
"""
_IN_JSON = """
        IF stale_ids <> current_ids THEN
            NEW.{column} := uuid_pipeline.rewritten_json(
                NEW.{column}, {path}, jsonb_object(stale_ids, current_ids));
        END IF;
"""
_IN_ARRAY = """
        IF stale_ids <> current_ids THEN
            NEW.{column} := uuid_pipeline.rewritten_array(NEW.{column}::text[], (
                SELECT coalesce(jsonb_object_agg(e.stale_id, e.current_id), '{{}}')
                FROM unnest(stale_ids, current_ids) e (stale_id, current_id)
                WHERE e.stale_id <> e.current_id AND {fits}))::{type};
        END IF;
"""


def on_table(store: Store, moved: MovedTable, entities: Sequence[Entity]) -> Definition | None:
    """The trigger function of one table; None when it holds no id of these entities."""
    held = {entity.name: sql.table(SCHEMA, HELD + entity.name) for entity in entities}
    # Parents first, the order in which a batch locks.
    columns = sorted(moved.columns, key=lambda pair: store.entity(pair[1]).level)
    steps: list[sql.Composable] = [
        sql.compose(_KEY, column=sql.name(column), held=held[entity], cast=sql.Text(""))
        for column, entity in columns
        if entity in held
    ]
    steps += [_embedded(reference) for reference in moved.embedded if reference.entity in held]
    if not steps:
        return None
    body = sql.compose(
        "DECLARE\n    stale_ids text[];\n    current_ids text[];\nBEGIN{steps}\n    RETURN NEW;\nEND",
        steps=sql.join("", steps),
    )
    return function(function_on(moved), {}, "trigger", _TRIGGER, body)


def id_columns(moved: MovedTable, entities: Sequence[Entity]) -> list[str]:
    """The table's columns that hold ids of these entities, in whatever form."""
    known = {entity.name for entity in entities}
    found = [column for column, entity in moved.columns if entity in known]
    found += [reference.column for reference in moved.embedded if reference.entity in known]
    return list(dict.fromkeys(found))


def _embedded(reference: Reference) -> sql.Composable:
    """The step for a reference that holds an id in another form than the key's own."""
    column = sql.name(reference.column)
    held, place = (sql.table(SCHEMA, prefix + reference.entity) for prefix in (HELD, PLACE))
    if reference.form == "text":
        return sql.compose(_KEY, column=column, held=held, cast=sql.Text("::text"))
    kind = reference.table.columns[reference.column].type
    if reference.form == "json":
        path = sql.compose(
            "ARRAY[{steps}]", steps=sql.join(", ", [sql.compose("{s}::text", s=sql.literal(s)) for s in reference.path])
        )
        ids = sql.compose("uuid_pipeline.ids_in_json(NEW.{column}, {path})", column=column, path=path)
        rewrite = sql.compose(_IN_JSON, column=column, path=path)
        # json has no equality.
        cast = "::text" if kind == "json" else ""
        return sql.compose(_MANY, column=column, held=held, place=place, ids=ids, rewrite=rewrite, cast=sql.Text(cast))
    element = kind.removesuffix("[]").split("(")[0]
    fits = sql.compose("e.current_id ~ {form}", form=sql.literal(CANONICAL_UUID))
    rewrite = sql.compose(
        # Without a length: cast to one, a longer id would be cut short; assigned, it is refused.
        _IN_ARRAY,
        column=column,
        type=sql.as_written(f"{element}[]"),
        fits=fits if element == "uuid" else sql.Text("true"),
    )
    ids = sql.compose("unnest(NEW.{column}::text[])", column=column)
    return sql.compose(_MANY, column=column, held=held, place=place, ids=ids, rewrite=rewrite, cast=sql.Text(""))
