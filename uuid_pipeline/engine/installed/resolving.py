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
IN_FORCE, STOOD = "in_force", "stood"
USES, LAST_USE = "alias_uses_", "alias_last_"

CANONICAL_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

_HELD = "plpgsql VOLATILE STRICT"
_ASKING = f"plpgsql STABLE STRICT {PINNED}"
_RESOLVE = f"plpgsql STABLE STRICT SECURITY DEFINER {PINNED}"
_TRIGGER = f"plpgsql VOLATILE SECURITY DEFINER {PINNED}"


# The number of no assessment: the ids that the guard rewrote, which resolve as those that a plan moved. Beside each the
# guard writes which map was the newest then that had given or taken one of the two ids, or that none had.
GUARD, GUARDED = 0, "guarded_"
NONE_BEFORE = -1
LAST = 2**31 - 1


def map_part(entity: Entity, assessment: int) -> str:
    """The name of one assessment's id map, which stands by itself when other partitions are detached or dropped."""
    if assessment == GUARD:
        return GUARDED + entity.name
    return f"id_map_{entity.name}_{assessment}"


# Whose an id is, the maps tell that took it from a row or gave it to one. From an id of now a row is reached by falling
# through what was undone, newest first, to where it came to rest, and then by rising with what moved it since. Each
# step takes the nearest map, which is the row's own; where that one gave the id to another row, this one had lost it
# before. A merge is followed up only: down it would lead to any row of a cluster.
_WALK = """
WITH RECURSIVE walk (alias, id, number, moved, rising, step) AS (
    {start}
    UNION ALL
    SELECT r.alias,
           CASE WHEN e.turn IN ('up', 'down') THEN e.other WHEN e.turn = 'lost' THEN NULL ELSE r.id END,
           CASE WHEN e.turn IN ('up', 'down', 'back') THEN e.number ELSE r.number END,
           CASE e.turn WHEN 'down' THEN lower(e.stood) WHEN 'back' THEN greatest(r.moved, lower(e.stood))
                       ELSE r.moved END,
           r.rising OR e.turn IS NULL OR e.turn IN ('up', 'rest'), r.step + 1
    FROM walk r LEFT JOIN LATERAL ({nearest}) e ON true
    WHERE r.id IS NOT NULL AND (e.turn IS NOT NULL OR NOT r.rising)
)
"""
# What a map did with the id: took it from a row (arrives: false), or gave it to one. What it planned and has not done
# is nothing; what was undone before the row's move from here was undone of a row that had the id before it. The journal
# is asked of the nearest first, and nearly always of no other.
_NEAREST = """
SELECT m.number, m.other, d.stood,
       CASE WHEN r.rising THEN CASE WHEN m.arrives THEN 'lost' ELSE 'up' END
            WHEN d.in_force THEN CASE WHEN m.arrives OR r.number < {last} THEN 'rest' ELSE 'up' END
            WHEN NOT m.arrives THEN 'back'
            WHEN upper(d.stood) > r.moved THEN 'down' ELSE 'rest' END AS turn
FROM (SELECT *, CASE WHEN r.rising THEN number ELSE -number END AS distance, arrives = r.rising AS behind
      FROM ({events}) e (number, place, arrives, other) ORDER BY distance, behind OFFSET 0) m
CROSS JOIN LATERAL (SELECT f.in_force, CASE WHEN NOT (f.in_force OR r.rising) THEN {stood} END AS stood
                    FROM (SELECT m.place IS NULL OR {in_force} OR {left_there} AS in_force OFFSET 0) f OFFSET 0) d
WHERE d.in_force OR d.stood IS NOT NULL ORDER BY m.distance, m.behind LIMIT 1
"""
# Whether a rollback had to leave the document under its new id: by that it is set aside then, not by its old one.
_LEFT_THERE: LiteralString = """
EXISTS (SELECT FROM uuid_pipeline.waves w JOIN uuid_pipeline.executions e ON e.execution_id = w.execution_id
        JOIN uuid_pipeline.unmoved u ON u.wave = w.wave AND u.ordinal = m.place
        WHERE coalesce(w.assessment_no, e.assessment_no) = m.number AND w.status IN ('rolling_back', 'rolled_back')
        HAVING bool_or(u.old_id = CASE WHEN m.arrives THEN r.id ELSE m.other END::text)
           AND NOT bool_or(u.old_id = CASE WHEN m.arrives THEN m.other ELSE r.id END::text))
"""
_EVENTS = """
SELECT {number}, m.ordinal, false, m.new_id FROM {part} m
WHERE m.old_id = r.id AND m.role <> 'keep' AND CASE WHEN r.rising THEN {number} > r.number ELSE {number} < r.number END
UNION ALL
SELECT {number}, m.ordinal, true, m.old_id FROM {part} m
WHERE m.new_id = r.id AND m.role = 'move' AND CASE WHEN r.rising THEN {number} > r.number ELSE {number} < r.number END
"""
# The application's own name of a row: none that another one ever had by a map.
_GUARD_EVENTS = """
SELECT {number}, NULL::bigint, false, m.new_id FROM {part} m
WHERE m.old_id = r.id AND r.number = {last} AND NOT r.rising
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
# The first and last batch between which what the map says of an ordinal stood that was undone since; NULL of any other.
_STOOD: LiteralString = """
(SELECT int8range(min(b.batch_no) FILTER (WHERE b.direction = 'forward'),
                  max(b.batch_no) FILTER (WHERE b.direction = 'back'), '[]')
 FROM uuid_pipeline.waves w JOIN uuid_pipeline.executions e ON e.execution_id = w.execution_id
 JOIN uuid_pipeline.batches b ON b.wave = w.wave AND {ordinal} BETWEEN b.first_ordinal AND b.last_ordinal
 WHERE coalesce(w.assessment_no, e.assessment_no) = {number}
   AND {ordinal} BETWEEN w.first_ordinal AND w.last_ordinal AND w.status IN ('rolling_back', 'rolled_back')
   AND NOT EXISTS (SELECT FROM uuid_pipeline.unmoved u WHERE u.wave = w.wave AND u.ordinal = {ordinal})
 HAVING bool_or(b.direction = 'forward') AND bool_or(b.direction = 'back'))
"""


@dataclass(frozen=True)
class _Asking:
    """How statements ask whether what a map says of an ordinal is in force, or stood once."""

    in_force: LiteralString
    stood: LiteralString

    def of(self, number: LiteralString, ordinal: LiteralString) -> dict[str, sql.Composable]:
        named = {"number": sql.Text(number), "ordinal": sql.Text(ordinal)}
        return {"in_force": sql.compose(self.in_force, **named), "stood": sql.compose(self.stood, **named)}


# By functions for one id at a time: asked of the few rows that the index finds, it spares each look-up the start of a
# large plan. Not in a view: who may read it may call none of ours.
_CALLED = _Asking("uuid_pipeline.in_force({number}, {ordinal})", "uuid_pipeline.stood({number}, {ordinal})")
_INLINE = _Asking(IS_IN_FORCE, _STOOD)
# Whether a map after the one of ``since`` has to do with either id; nearly always none has, and one step up was right.
_MORE_KNOWN = """
EXISTS (SELECT FROM {part} m WHERE m.old_id = $1 AND m.role <> 'keep' AND {number} > since)
OR EXISTS (SELECT FROM {part} m WHERE m.new_id = $1 AND m.role = 'move' AND {number} >= since)
OR EXISTS (SELECT FROM {part} m WHERE m.old_id = current_id AND m.role <> 'keep' AND {number} > since)
OR EXISTS (SELECT FROM {part} m WHERE m.new_id = current_id AND m.role = 'move' AND {number} > since)
"""
# An earlier version of the guard wrote 0: then what has the id now is taken for the row.
_GUARDED_AFTER = """
CASE WHEN m.assessment_no <> {guard} THEN m.assessment_no
     WHEN EXISTS (SELECT FROM {table} t WHERE t.{key} = m.new_id) THEN {last} ELSE {none_before} END
"""


@dataclass(frozen=True)
class _Part:
    """One assessment's id map, or that of the guard, with the number that orders its rows among the others'."""

    table: sql.Composable
    number: sql.Composable
    of_guard: bool

    def named(self) -> dict[str, sql.Composable]:
        """What statements over the map, as ``m``, are composed of when they are about one id."""
        in_force = sql.compose(_CALLED.in_force, number=self.number, ordinal=sql.Text("m.ordinal"))
        return {
            "part": self.table,
            "number": self.number,
            "in_force": sql.Text("true") if self.of_guard else in_force,
        }


def _parts(entity: Entity, assessments: Sequence[int]) -> list[_Part]:
    after = sql.compose(
        _GUARDED_AFTER,
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        guard=sql.literal(GUARD),
        none_before=sql.literal(NONE_BEFORE),
        last=sql.literal(LAST),
    )
    return [
        _Part(
            sql.table(SCHEMA, map_part(entity, number)),
            after if number == GUARD else sql.literal(number),
            number == GUARD,
        )
        for number in assessments
    ]


def _more_known(parts: Sequence[_Part]) -> sql.Composable:
    found = [sql.compose(_MORE_KNOWN, **part.named()) for part in parts if not part.of_guard]
    return sql.compose("({any})", any=sql.join(" OR ", found or [sql.Text("false")]))


def _walk(start: sql.Composable, parts: Sequence[_Part], asking: _Asking) -> sql.Composable:
    """A WITH list: the last step of ``walk`` from each alias of ``start`` is the id that it stands for, or NULL."""
    last = sql.literal(LAST)
    events = [
        sql.compose(_GUARD_EVENTS if part.of_guard else _EVENTS, part=part.table, number=part.number, last=last)
        for part in parts
    ]
    nearest = sql.compose(
        _NEAREST,
        events=sql.join(" UNION ALL ", events),
        last=last,
        left_there=sql.Text(_LEFT_THERE),
        **asking.of("m.number", "m.place"),
    )  # fmt: skip
    return sql.compose(_WALK, start=start, nearest=nearest)


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
    PERFORM FROM {table} t WHERE t.{key} = current_id AND NOT {more_known} FOR KEY SHARE;
    -- Again, when another batch came between.
    WHILE NOT FOUND AND tries < 3 LOOP
        tries := tries + 1;
        {walk}
        SELECT t.{key} INTO current_id FROM (SELECT w.id FROM walk w ORDER BY w.step DESC LIMIT 1) w
        JOIN {table} t ON t.{key} = w.id FOR KEY SHARE OF t;
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
    IF NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = current_id AND NOT {more_known}) THEN
        {walk}
        SELECT t.{key} INTO current_id FROM (SELECT w.id FROM walk w ORDER BY w.step DESC LIMIT 1) w
        JOIN {table} t ON t.{key} = w.id;
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
{walk}
SELECT w.alias, t.{key}::{type} FROM (SELECT DISTINCT ON (alias) alias, id FROM walk ORDER BY alias, step DESC) w
JOIN {table} t ON t.{key} = w.id
"""
_START = "SELECT {id}, {id}, {last}, 0::bigint, false, 0"
_STALE = """
{start} FROM ({known}) k (id)
WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = k.id)
"""


def journal() -> list[Definition]:
    """Functions from a map's number and an ordinal to whether what the map says of it was done, and when undone."""
    return [
        _of_journal(IN_FORCE, "boolean", IS_IN_FORCE),
        _of_journal(STOOD, "int8range", _STOOD),
    ]


def _of_journal(name: str, returns: str, found: LiteralString) -> Definition:
    body = sql.compose(
        "BEGIN RETURN {found}; END", found=sql.compose(found, number=sql.Text("$1"), ordinal=sql.Text("$2"))
    )
    return function(name, {"number": "integer", "place": "bigint"}, returns, _ASKING, body)


def of_entity(entity: Entity, assessments: Sequence[int]) -> list[Definition]:
    """What finds the rows of one entity: for writers (``held``), for readers (``resolve``), and the list of aliases."""
    parts, type_name = _parts(entity, assessments), entity.key_type
    named = {"table": sql.table(entity.table.schema, entity.table.name), "key": sql.name(entity.key)}
    start = sql.compose(_START, id=sql.Text("$1"), last=sql.literal(LAST))
    filled = {
        **named,
        "type": sql.as_written(type_name),
        "count": _count(entity),
        "known": _known(parts),
        "walk": _walk(start, parts, _CALLED),
        "more_known": _more_known(parts),
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
    newest = parts[-1]
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
    newest_first = [part.named() for part in reversed(parts)]
    step = "SELECT m.new_id, {number} FROM {part} m WHERE m.old_id = $1 AND m.role <> 'keep' AND {in_force}"
    up = [sql.compose(step, **part) for part in newest_first]
    down = [sql.compose("SELECT NULL, {number} FROM {part} m WHERE m.new_id = $1", **part) for part in newest_first]
    return sql.join(" UNION ALL ", [*up, *down])


def _view(entity: Entity, parts: Sequence[_Part]) -> Definition:
    named = {"table": sql.table(entity.table.schema, entity.table.name), "key": sql.name(entity.key)}
    ids = [
        sql.compose("SELECT m.{column} FROM {part} m", part=part.table, column=sql.name(column))
        for part in parts
        for column in ("old_id", "new_id")
    ]
    start = sql.compose(
        _STALE,
        **named,
        start=sql.compose(_START, id=sql.Text("k.id"), last=sql.literal(LAST)),
        known=sql.join(" UNION ", ids),
    )
    statement = sql.compose(
        _VIEW,
        **named,
        view=sql.table(SCHEMA, VIEW + entity.name),
        walk=_walk(start, parts, _INLINE),
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
