"""What the guard is made of, as text: functions that recompute a new row's target id inside the server."""

import re
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.installed.functions import PINNED, Definition, function
from uuid_pipeline.engine.installed.resolving import GUARDED, NONE_BEFORE
from uuid_pipeline.engine.installed.sha1 import plpgsql_body
from uuid_pipeline.engine.ledger import SCHEMA, map_table
from uuid_pipeline.engine.natural_keys import natural_key, part
from uuid_pipeline.engine.store import Entity, Store

Mode = Literal["warn", "rewrite", "reject"]

# Names of what is installed, each but the last followed by the entity's name.
ON_TABLE, TARGET, SHA1 = "guard_on_", "guard_target_", "guard_sha1"
CAUGHT, UNJUDGED, LAST = "guard_caught_", "guard_unjudged_", "guard_last_"

# The first so many are said and sampled one by one, then every SAMPLED_EVERY-th: a bulk load floods no log.
SAMPLED_FIRST, SAMPLED_EVERY = 100, 100

# Types whose text no setting of the caller's session changes.
_FIXED_TEXT = re.compile(
    r"(uuid|text|character varying|character|citext|smallint|integer|bigint|numeric|boolean)(\(.*\))?"
)
_SETTINGS = """ SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'iso_8601'
SET extra_float_digits = 1 SET bytea_output = 'hex'"""


@dataclass(frozen=True)
class Hashing:
    """How this server makes a target id: by an extension, or (``None``) by our own SHA-1."""

    extension: Literal["uuid-ossp", "pgcrypto"] | None
    schema: str | None

    @property
    def name(self) -> str:
        return self.extension or "PL/pgSQL"


# uuid-ossp hashes the text as the database encodes it, so it serves where that is UTF-8.
_EXTENSIONS = """
SELECT e.extname, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
JOIN (VALUES ('uuid-ossp', 1, 'uuid_generate_v5', '(uuid,text)'), ('pgcrypto', 2, 'digest', '(bytea,text)'))
     f (extname, rank, name, arguments) ON f.extname = e.extname
WHERE has_schema_privilege(n.oid, 'USAGE')
  AND has_function_privilege(to_regprocedure(format('%%I.%%I%%s', n.nspname, f.name, f.arguments)), 'EXECUTE')
  AND (e.extname = 'pgcrypto' OR current_setting('server_encoding') = 'UTF8')
ORDER BY f.rank LIMIT 1
"""


def hashing(connection: Connection) -> Hashing:
    """The fastest way that this server and role have."""
    found = sql.rows(connection, _EXTENSIONS)
    return Hashing(found[0].extname, found[0].nspname) if found else Hashing(None, None)


def sha1() -> Definition:
    """Our own SHA-1, for servers without an extension that has it."""
    properties = f"plpgsql IMMUTABLE STRICT PARALLEL SAFE {PINNED}"
    return function(SHA1, {"message": "bytea"}, "bytea", properties, sql.Text(plpgsql_body()))


def _target(store: Store, how: Hashing, text: sql.Composable) -> sql.Composable:
    """An assignment of the target id of a natural key's text to ``target_id``."""
    if how.extension == "uuid-ossp":
        return sql.compose(
            "target_id := {function}({namespace}::uuid, {text});",
            function=sql.table(how.schema or "", "uuid_generate_v5"),
            namespace=sql.literal(str(store.spec.namespace)),
            text=text,
        )
    seeded = sql.compose(
        "decode({namespace}, 'hex') || convert_to({text}, 'UTF8')",
        namespace=sql.literal(store.spec.namespace.hex),
        text=text,
    )
    digest = (
        sql.compose("{digest}({seeded}, 'sha1')", digest=sql.table(how.schema or "", "digest"), seeded=seeded)
        if how.extension
        else sql.compose("{sha1}({seeded})", sha1=sql.table(SCHEMA, SHA1), seeded=seeded)
    )
    return sql.compose(
        """hashed := {digest};
    target_id := encode(set_byte(set_byte(substr(hashed, 1, 16), 6, (get_byte(hashed, 6) & 15) | 80),
                                 8, (get_byte(hashed, 8) & 63) | 128), 'hex')::uuid;""",
        digest=digest,
    )


def _key_text(entity: Entity, parent_target: sql.Composable | None) -> sql.Composable:
    """The natural key's text; NULL when a part is NULL or not valid."""
    text = natural_key(entity, parent_target)
    valid = [
        sql.compose('({part}) COLLATE "C" ~ {like}', part=part(entity, field, parent_target), like=sql.literal(found))
        for field, found in entity.spec.valid.items()
    ]
    if not valid:
        return text
    return sql.compose("CASE WHEN {valid} THEN {text} END", valid=sql.join(" AND ", valid), text=text)


_ATOM = r"(?:[\w /:@#%&,;<>=!~\"'`-]|\\[.\-/+*?()\[\]{}|^$]|\[\^?(?:[\w /:@#%&,;<>=!~.+*?(){}|$-])+\])"
_TIMES = r"(?:[*+?]|\{\d+(?:,\d*)?\})?"
_SAME_IN_BOTH = re.compile(rf"(?:(?:{_ATOM}|\)){_TIMES}|\((?:\?:)?|[|^$])*", re.ASCII)


def same_in_both(pattern: str) -> bool:
    """Whether PostgreSQL and Python read this regular expression alike: literals, classes, counts, groups, anchors."""
    return _SAME_IN_BOTH.fullmatch(pattern) is not None


def _properties(entity: Entity) -> str:
    types = [entity.table.columns[field].type for field in entity.spec.template.fields]
    settings = "" if all(_FIXED_TEXT.fullmatch(found) for found in types) else _SETTINGS
    return f"plpgsql VOLATILE SECURITY DEFINER {PINNED}{settings}"


_TARGET_OF = """
DECLARE
    key_text text;
    hashed bytea;
    target_id uuid;
BEGIN
    SELECT {key_text} INTO key_text FROM {table} t WHERE t.{key} = $1;
    IF key_text IS NULL THEN
        RETURN NULL;
    END IF;
    {target}
    RETURN target_id::text;
END
"""


def target_of(store: Store, entity: Entity, how: Hashing) -> Definition:
    """A function from the key of a row that exists to its target id; NULL when it has none."""
    body = sql.compose(
        _TARGET_OF,
        key_text=_key_text(entity, _parent_target(entity, "t")),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        target=_target(store, how, sql.Text("key_text")),
    )
    # A parent that the same statement has just inserted must be seen, so it is VOLATILE.
    return function(TARGET + entity.name, {"id": entity.key_type}, "text", _properties(entity), body)


def _parent_target(entity: Entity, row: str) -> sql.Composable | None:
    if entity.parent is None or entity.parent_column is None:
        return None
    column = sql.compose("{row}.{column}", row=sql.Text(row), column=sql.name(entity.parent_column))
    return sql.compose("{target}({column})", target=sql.table(SCHEMA, TARGET + entity.parent), column=column)


# "t" is what the expressions of a natural key call the row.
_ON_TABLE = """
DECLARE
    t ALIAS FOR NEW;
    key_text text;
    parent_target text;
    hashed bytea;
    target_id uuid;
    number bigint;
    newest_map integer;
BEGIN
    IF NEW.{key} IS NULL OR NEW.{key} IS NOT DISTINCT FROM OLD.{key} THEN
        RETURN NEW;
    END IF;
    {parent}
    key_text := {key_text};
    IF key_text IS NULL THEN
        PERFORM nextval({unjudged}::regclass);
        RETURN NEW;
    END IF;
    {target}
    IF NEW.{key} = target_id{cast} THEN
        RETURN NEW;
    END IF;
    -- A row that is there already, which the statement will meet: an upsert, or an alias of after a rollback.
    PERFORM FROM {table} o WHERE o.{key} = NEW.{key};
    IF FOUND THEN
        RETURN NEW;
    END IF;
    number := nextval({caught}::regclass);
    PERFORM setval({last}::regclass, floor(extract(epoch FROM clock_timestamp()))::bigint);
    {act}
    RETURN NEW;
END
"""

_SAMPLE = """IF number <= {first} OR number % {every} = 0 THEN
        INSERT INTO uuid_pipeline.guard_samples (entity, mode, given_id, target_id)
        VALUES ({entity}, {mode}, NEW.{key}, target_id);
        {say}
    END IF;"""
_WARN = """RAISE WARNING 'uuid_pipeline guard: {label} = % is not the id that its natural key gives', NEW.{key}
            USING DETAIL = format('Expected: %s. It is row %s that this guard has caught.', target_id, number);"""
_REWRITE = """-- Another row's id, as after an edit of its natural key: this one is stored as it came.
    PERFORM FROM {table} o WHERE o.{key} = target_id{cast} AND {target_of}(o.{key}) IS DISTINCT FROM target_id::text;
    IF FOUND THEN
        RETURN NEW;
    END IF;
    -- What a plan made of either id until now, it made of other rows.
    SELECT max(m.assessment_no) INTO newest_map FROM (
        SELECT assessment_no, ordinal FROM {maps} WHERE old_id IN (NEW.{key}, target_id{cast}) UNION ALL
        SELECT assessment_no, ordinal FROM {maps} WHERE new_id IN (NEW.{key}, target_id{cast})) m
    WHERE uuid_pipeline.in_force(m.assessment_no, m.ordinal);
    INSERT INTO {map} AS m (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
    VALUES (coalesce(newest_map, {none_before}), number, '', 'move', key_text, NEW.{key}, target_id{cast})
    ON CONFLICT (old_id) DO UPDATE SET assessment_no = excluded.assessment_no, new_id = excluded.new_id,
        natural_key = excluded.natural_key;
    NEW.{key} := target_id{cast};"""
# The count stands although the row does not: sequences are not rolled back. The log says what samples cannot.
_REJECT = """RAISE LOG 'uuid_pipeline guard: rejected {label} = %, expected %, role %',
        NEW.{key}, target_id, session_user;
    RAISE EXCEPTION 'uuid_pipeline guard: {label} = % is not the id that its natural key gives', NEW.{key}
        USING ERRCODE = 'check_violation', CONSTRAINT = 'uuid_pipeline_guard', SCHEMA = TG_TABLE_SCHEMA,
              TABLE = TG_TABLE_NAME, COLUMN = {column}, DETAIL = format('Expected: %s.', target_id),
              HINT = 'Derive the id from the natural key before inserting. '
                     'To let such rows in meanwhile: uuid-pipeline guard install --mode warn';"""


def on_table(store: Store, entity: Entity, mode: Mode, how: Hashing) -> Definition:
    """The trigger function of one entity's table."""
    parent_target = _parent_target(entity, "NEW")
    filled = {
        "entity": sql.literal(entity.name),
        "key": sql.name(entity.key),
        "table": sql.table(entity.table.schema, entity.table.name),
        "cast": sql.Text("" if entity.key_type == "uuid" else "::text"),
        "unjudged": _sequence(UNJUDGED, entity),
        "caught": _sequence(CAUGHT, entity),
        "last": _sequence(LAST, entity),
        "key_text": _key_text(entity, sql.Text("parent_target") if parent_target else None),
        "target": _target(store, how, sql.Text("key_text")),
    }
    body = sql.compose(
        _ON_TABLE,
        **filled,
        parent=sql.compose("parent_target := {target};", target=parent_target) if parent_target else sql.Text(""),
        act=_act(entity, mode),
    )
    return function(ON_TABLE + entity.name, {}, "trigger", _properties(entity), body)


def _sequence(prefix: str, entity: Entity) -> sql.Composable:
    return sql.literal(sql.shown(sql.table(SCHEMA, prefix + entity.name)))


def _act(entity: Entity, mode: Mode) -> sql.Composable:
    """What happens to a row that was caught. The label stands inside a quoted message, so it holds no quote or %."""
    plain = re.sub(r"[%'\\{}]", "?", f"{entity.table.name}.{entity.key}")
    named = {
        "key": sql.name(entity.key),
        "label": sql.as_written(plain),
        "cast": sql.Text("" if entity.key_type == "uuid" else "::text"),
    }
    if mode == "reject":
        return sql.compose(_REJECT, **named, column=sql.literal(entity.key))
    sample = sql.compose(
        _SAMPLE,
        **named,
        first=sql.Text(str(SAMPLED_FIRST)),
        every=sql.Text(str(SAMPLED_EVERY)),
        entity=sql.literal(entity.name),
        mode=sql.literal(mode),
        say=sql.compose(_WARN, **named) if mode == "warn" else sql.Text(""),
    )
    if mode == "warn":
        return sample
    rewrite = sql.compose(
        _REWRITE,
        **named,
        table=sql.table(entity.table.schema, entity.table.name),
        target_of=sql.table(SCHEMA, TARGET + entity.name),
        map=sql.table(SCHEMA, GUARDED + entity.name),
        maps=map_table(entity),
        none_before=sql.Text(str(NONE_BEFORE)),
    )
    return sql.compose("{sample}\n    {rewrite}", sample=sample, rewrite=rewrite)
