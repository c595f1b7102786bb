"""Functions and views of the ledger schema, made where they are missing or differ; those that read embedded ids."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, ledger_rights, sql
from uuid_pipeline.engine.ledger import SCHEMA

# Names mean the server's own objects, whoever calls and whatever search_path the caller has set.
PINNED = "SET search_path = pg_catalog, pg_temp"
_JSON = f"IMMUTABLE PARALLEL SAFE {PINNED}"


@dataclass(frozen=True)
class Definition:
    """A function or view of the ledger schema, as a statement that makes it or replaces it."""

    name: str
    arguments: tuple[str, ...] | None  # types; None for a view
    statement: sql.Composable

    @property
    def kind(self) -> str:
        return "VIEW" if self.arguments is None else "FUNCTION"

    @property
    def signature(self) -> sql.Composable:
        """Its name in a statement, a function's with the types of its arguments."""
        qualified = sql.table(SCHEMA, self.name)
        if self.arguments is None:
            return qualified
        return sql.compose("{name}({types})", name=qualified, types=sql.Text(", ".join(self.arguments)))

    @property
    def mark(self) -> str:
        """The comment by which a later installation knows that this very definition stands."""
        digest = hashlib.sha256(self.statement.as_string(None).encode()).hexdigest()
        return f"Made by uuid-pipeline, {digest[:16]}"


def function(
    name: str, arguments: Mapping[str, str], returns: str, properties: str, body: sql.Composable
) -> Definition:
    listed = ", ".join(f"{argument} {type_name}" for argument, type_name in arguments.items())
    statement = sql.compose(
        "CREATE OR REPLACE FUNCTION {name}({arguments}) RETURNS {returns} LANGUAGE {properties} AS {body}",
        name=sql.table(SCHEMA, name),
        arguments=sql.Text(listed),
        returns=sql.Text(returns),
        properties=sql.Text(properties),
        body=sql.literal(sql.shown(body)),
    )
    return Definition(name, tuple(arguments.values()), statement)


def put(connection: Connection, wanted: Definition) -> None:
    """Make or replace what is defined, unless it stands; nobody but its owner is granted anything."""
    if stands(connection, wanted):
        return
    # Two that make it at once would collide in the catalog: the second waits here, and then finds that it stands.
    sql.execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('uuid_pipeline.functions', 0))")
    if stands(connection, wanted):
        return
    new_view = wanted.arguments is None and not ledger.is_table(connection, wanted.signature)
    sql.execute(connection, wanted.statement)
    if new_view:
        ledger_rights.revoke_unasked(connection, sql.shown(wanted.signature))
    kind = sql.Text("FUNCTION" if wanted.arguments is not None else "TABLE")
    revoke = sql.compose("REVOKE ALL ON {kind} {object} FROM PUBLIC", kind=kind, object=wanted.signature)
    sql.execute(connection, revoke)
    comment = sql.compose(
        "COMMENT ON {kind} {object} IS {mark}",
        kind=sql.Text(wanted.kind),
        object=wanted.signature,
        mark=sql.literal(wanted.mark),
    )
    sql.execute(connection, comment)


def stands(connection: Connection, wanted: Definition) -> bool:
    """Whether this very definition is there."""
    found = (
        "SELECT obj_description(to_regclass(%(name)s), 'pg_class')"
        if wanted.arguments is None
        else "SELECT obj_description(to_regprocedure(%(name)s), 'pg_proc')"
    )
    return bool(sql.scalar(connection, found, {"name": sql.shown(wanted.signature)}) == wanted.mark)


# Values in json columns: those at a path of names, where * stands for every element of an array.
_IDS_IN_JSONB = """
WITH RECURSIVE at (value, depth) AS (
    SELECT $1, 0
    UNION ALL
    SELECT n.value, at.depth + 1 FROM at CROSS JOIN LATERAL (
        SELECT at.value -> $2[at.depth + 1]
        WHERE $2[at.depth + 1] <> '*' AND jsonb_typeof(at.value) = 'object'
        UNION ALL
        SELECT e.value FROM jsonb_array_elements(
            CASE WHEN $2[at.depth + 1] = '*' AND jsonb_typeof(at.value) = 'array' THEN at.value ELSE '[]' END) e
    ) n (value)
    WHERE at.depth < cardinality($2) AND n.value IS NOT NULL)
SELECT at.value #>> '{}' FROM at WHERE at.depth = cardinality($2) AND jsonb_typeof(at.value) = 'string'
"""

# The ids to put in the places of others come as one JSON object, in which the server finds a name by bisection: what
# holds thousands of ids would else be read through once for each.
_REWRITTEN_JSONB = """
BEGIN
    IF cardinality(path) = 0 AND jsonb_typeof(value) = 'string' THEN
        RETURN coalesce(new_ids -> (value #>> '{}'), value);
    ELSIF path[1] = '*' AND jsonb_typeof(value) = 'array' THEN
        RETURN coalesce((
            SELECT jsonb_agg(uuid_pipeline.rewritten_json(e.value, path[2:], new_ids) ORDER BY e.place)
            FROM jsonb_array_elements(value) WITH ORDINALITY e (value, place)), value);
    ELSIF path[1] <> '*' AND jsonb_typeof(value) = 'object' AND jsonb_exists(value, path[1]) THEN
        RETURN jsonb_set(value, path[:1], uuid_pipeline.rewritten_json(value -> path[1], path[2:], new_ids));
    END IF;
    RETURN value;
END
"""

# json keeps its text byte for byte, so it is read as tokens; the server's own functions also stop at escapes that the
# type allows (a zero, half a surrogate pair). A string with one of these is no id.
_JSON_TOKENS = """
DECLARE
    names text[] := '{}';       -- the way to this token: a name, or * in an array
    objects boolean[] := '{}';  -- for each level whether it is an object
    level integer := 0;
    name_is_next boolean := false;
    content text;
BEGIN
    FOR place, token IN
        SELECT t.place, t.matched[1]
        FROM regexp_matches($1::text, {token}, 'g') WITH ORDINALITY t (matched, place)
    LOOP
        id := NULL;
        IF token IN ('{', '[') THEN
            level := level + 1;
            objects[level] := token = '{';
            names[level] := CASE token WHEN '[' THEN '*' END;
            name_is_next := objects[level];
        ELSIF token IN ('}', ']') THEN
            level := level - 1;
            names := names[:level];
        ELSIF token = ',' THEN
            name_is_next := objects[level];
        ELSIF token = ':' THEN
            name_is_next := false;
        ELSIF left(token, 1) = '"' AND (name_is_next OR names = $2) THEN
            content := CASE WHEN strpos(token, {backslash}) = 0 THEN substr(token, 2, length(token) - 2)
                            WHEN token !~ {unreadable} THEN token::json #>> '{}' END;
            IF name_is_next THEN
                names[level] := nullif(content, '*');
            ELSE
                id := content;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
"""
_TOKEN = r'("(?:[^"\\]|\\.)*"|[][{}:,]|[^][{}:,"\s]+|\s+)'
_UNREADABLE = r"\\u(0000|[dD][89a-fA-F])"

_IDS_IN_JSON = "SELECT t.id FROM uuid_pipeline.json_tokens($1, $2) t WHERE t.id IS NOT NULL"
_REWRITTEN_JSON = """
SELECT string_agg(coalesce(to_json($3 ->> t.id)::text, t.token), '' ORDER BY t.place)::json
FROM uuid_pipeline.json_tokens($1, $2) t
"""

# Dimensions and bounds stay. Where they are unusual, one id after the other: no new id is another row's old one (gate
# no_collision).
_REWRITTEN_ARRAY = """
DECLARE
    id text;
BEGIN
    IF array_ndims(value) = 1 AND array_lower(value, 1) = 1 THEN
        RETURN (SELECT array_agg(coalesce(new_ids ->> e.id, e.id) ORDER BY e.place)
                FROM unnest(value) WITH ORDINALITY e (id, place));
    END IF;
    FOR id IN SELECT DISTINCT e.id FROM unnest(value) e (id) WHERE jsonb_exists(new_ids, e.id) LOOP
        value := array_replace(value, id, new_ids ->> id);
    END LOOP;
    RETURN value;
END
"""


def of_embedded() -> list[Definition]:
    """Functions that read and rewrite ids inside json and jsonb values and arrays, for triggers and for batches."""
    tokens = _JSON_TOKENS
    for part, constant in (("{token}", _TOKEN), ("{backslash}", "\\"), ("{unreadable}", _UNREADABLE)):
        # The driver writes a backslash so that it means the same whatever standard_conforming_strings says.
        tokens = tokens.replace(part, sql.shown(sql.literal(constant)))
    found = {"value": "jsonb", "path": "text[]"}
    rewritten = {**found, "new_ids": "jsonb"}
    in_sql, in_plpgsql = f"sql {_JSON}", f"plpgsql {_JSON}"
    table = "TABLE (place bigint, token text, id text)"
    return [
        function("ids_in_json", found, "SETOF text", in_sql, sql.Text(_IDS_IN_JSONB)),
        function("rewritten_json", rewritten, "jsonb", in_plpgsql, sql.Text(_REWRITTEN_JSONB)),
        function("json_tokens", {**found, "value": "json"}, table, in_plpgsql, sql.Text(tokens)),
        function("ids_in_json", {**found, "value": "json"}, "SETOF text", in_sql, sql.Text(_IDS_IN_JSON)),
        function("rewritten_json", {**rewritten, "value": "json"}, "json", in_sql, sql.Text(_REWRITTEN_JSON)),
        function(
            "rewritten_array", {"value": "text[]", "new_ids": "jsonb"}, "text[]", in_plpgsql,
            sql.Text(_REWRITTEN_ARRAY),
        ),
    ]  # fmt: skip


def put_embedded(connection: Connection) -> None:
    """Make the functions of :func:`of_embedded`, where they do not stand yet."""
    for wanted in of_embedded():
        put(connection, wanted)
