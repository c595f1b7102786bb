"""Ids inside a text, an array or a json value: SQL that finds them, tells rows that hold some, and replaces them."""

import re
from collections.abc import Sequence

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Reference
from uuid_pipeline.errors import BatchError


def ids_in(reference: Reference, path: str = "path") -> sql.Composable:
    """The ids that ``w.was`` (the value of an embedded reference) holds, as text; ``path`` names a bound value."""
    if reference.form == "text":
        return sql.Text("(SELECT w.was::text)")
    if reference.form == "array":
        return sql.Text("(SELECT DISTINCT unnest(w.was)::text)")
    if _type_of(reference) == "jsonb" and _is_one_place(reference.path):
        # The server's own operator is dozens of times as fast as a walk from step to step.
        return sql.compose(
            "(SELECT w.was #>> {path} WHERE jsonb_typeof(w.was #> {path}) = 'string')", path=sql.bound(path)
        )
    return sql.compose("(SELECT DISTINCT uuid_pipeline.ids_in_json(w.was, {path}))", path=sql.bound(path))


def _type_of(reference: Reference) -> str:
    return reference.table.columns[reference.column].type


def _is_one_place(path: Sequence[str]) -> bool:
    """Whether the server's operators mean by this path what we do: no element of an array, by * or by its number."""
    return all(step != "*" and not step.strip().lstrip("+-").isdigit() for step in path)


# For :func:`rewritten`, where the ids ``b`` (source, goal) are joined to those of one value.
GOALS_OF_B = sql.Text("jsonb_object_agg(b.source, b.goal)")


def rewritten(reference: Reference, goals: sql.Composable, path: str = "path") -> sql.Composable:
    """The value ``w.was``, which holds an id of ``goals``, with each of these replaced.

    ``goals``: a jsonb object from ids to what stands in their places.
    """
    if reference.form == "text":
        return sql.compose("({goals} ->> w.was::text)::{type}", goals=goals, type=sql.as_written(_type_of(reference)))
    if reference.form == "array":
        return sql.compose(
            "uuid_pipeline.rewritten_array(w.was::text[], {goals})::{type}",
            goals=goals,
            type=sql.as_written(_type_of(reference)),
        )
    # Of json and of jsonb alike; a json text stays byte for byte but for the id.
    return sql.compose("uuid_pipeline.rewritten_json(w.was, {path}, {goals})", path=sql.bound(path), goals=goals)


_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def changed_alone(reference: Reference, moves: sql.Composable) -> sql.Composable:
    """Whether nothing but ids of ``moves`` differs between the value ``w.was`` and ``w.becomes``, told in another way
    than the one by which it was made.

    Of ids that are no uuids inside json it cannot be told, nor of uuids whether two of them have changed places.
    """
    if reference.form == "text":
        return sql.Text("true")
    if reference.form == "array":
        return sql.compose(
            """array_dims(w.was) = array_dims(w.becomes) AND NOT EXISTS (
                   SELECT FROM unnest(w.was::text[], w.becomes::text[]) u (one, other)
                   WHERE u.one IS DISTINCT FROM u.other
                     AND ((u.one, u.other) IN (SELECT m.source, m.goal FROM {moves} m)) IS NOT TRUE)""",
            moves=moves,
        )
    without = [sql.compose("regexp_replace(w.{v}::text, {uuid}, '', 'g')", v=sql.Text(v), uuid=sql.literal(_UUID))
               for v in ("was", "becomes")]  # fmt: skip
    return sql.compose(
        "{same} OR NOT (SELECT bool_and(m.source ~ {whole} AND m.goal ~ {whole}) FROM {moves} m)",
        same=sql.join(" = ", without),
        whole=sql.literal(f"^{_UUID}$"),
        moves=moves,
    )


def require_changed_alone(reference: Reference, others: int) -> None:
    """Raise BatchError where so many values would have changed in more than ids."""
    if others:
        raise BatchError(
            f"A batch was rolled back because {others} values of {reference.name} would have changed in more than "
            "their ids. This is a fault of uuid-pipeline: report it, with the spec and one such value."
        )


def holds_one_of(reference: Reference, moves: sql.Composable) -> sql.Composable:
    """A condition on ``t`` that an index may serve; rows that it lets through are looked at one by one."""
    column = sql.name(reference.column)
    if reference.form == "text":
        source = sql.Text("m.source::uuid" if _type_of(reference) == "uuid" else "m.source")
        return sql.compose("t.{column} IN (SELECT {source} FROM {moves} m)", column=column, source=source, moves=moves)
    if reference.form == "array" and reference.column not in reference.table.found_by_element:
        # Read as a whole, each value would be compared with every id.
        return sql.compose(
            """EXISTS (SELECT FROM unnest(t.{column}) i(id)
                       WHERE (i.id::text IN (SELECT m.source FROM {moves} m)) IS TRUE)""",
            column=column,
            moves=moves,
        )
    if reference.form == "array":
        return sql.compose(
            "t.{column} && (SELECT array_agg(m.source) FROM {moves} m)::{type}",
            column=column,
            moves=moves,
            type=sql.as_written(_type_of(reference)),
        )
    # IS TRUE keeps it a look-up in one hash of the ids; as a join it would read them all again for each row.
    walked = sql.compose(
        """EXISTS (SELECT FROM uuid_pipeline.ids_in_json(t.{column}, %(path)s) i(id)
                   WHERE (i.id IN (SELECT m.source FROM {moves} m)) IS TRUE)""",
        column=column,
        moves=moves,
    )
    if "*" in reference.path:
        return walked
    found = sql.compose("(t.{column} #>> %(path)s) IN (SELECT m.source FROM {moves} m)", column=column, moves=moves)
    if _type_of(reference) != "json":
        return found
    return sql.compose(
        "CASE WHEN {plain} THEN ({found}) IS TRUE ELSE {walked} END",
        plain=_is_plain_json(reference),
        found=found,
        walked=walked,
    )


# A name of other characters may be spelled with a backslash in more ways than one.
_PLAIN_NAME = re.compile(r"[\w .:-]+")


def _is_plain_json(reference: Reference) -> sql.Composable:
    """Whether the server's own operator reads the json of ``t`` as we do.

    It stops at escapes that the type allows (a zero, half a surrogate pair), wherever they stand, and of several values
    under one name it knows the last alone.
    """
    if not all(_PLAIN_NAME.fullmatch(step) for step in reference.path):
        return sql.Text("false")
    text = sql.compose("t.{column}::text", column=sql.name(reference.column))
    once = [
        sql.compose(
            "length({text}) - length(replace({text}, {name}, '')) <= length({name})",
            text=text,
            name=sql.literal(f'"{step}"'),
        )
        for step in reference.path
    ]
    escaped = sql.compose("strpos({text}, {escape}) = 0", text=text, escape=sql.literal("\\u"))
    return sql.join(" AND ", [escaped, *once])
