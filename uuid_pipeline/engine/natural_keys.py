"""Natural keys as SQL text: the expressions that the derivation reads and that a batch reads again under its locks."""

import re
from collections.abc import Sequence

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity
from uuid_pipeline.identity import ASCII_SPACE, Normalization


def part(entity: Entity, field: str, parent_target: sql.Composable | None) -> sql.Composable:
    """One field of the natural key, normalised, as text; NULL where it is NULL, or blank though nobody said it may be.

    The row's alias is ``t``; the field that holds the parent's key reads the parent's target id instead.
    """
    if field == entity.parent_column and parent_target is not None:
        return sql.compose("{target}::text", target=parent_target)
    value: sql.Composable = sql.compose("t.{column}::text", column=sql.name(field))
    for rule in entity.spec.normalize.get(field, []):
        value = _normalized(value, rule)
    return _not_blank(value) if _may_be_blank(entity, field) else value


# Types whose values are never blank as text; any other may be.
_NEVER_BLANK = re.compile(
    r"uuid|smallint|integer|bigint|numeric\b.*|real|double precision|boolean|date|time(stamp)?\b.*|bytea"
)


def _may_be_blank(entity: Entity, field: str) -> bool:
    """Whether a blank of this field is no value; the spec's own pattern for a field says by itself what is one."""
    return field not in entity.spec.valid and not _NEVER_BLANK.fullmatch(entity.table.columns[field].type)


def _not_blank(value: sql.Composable) -> sql.Composable:
    space = sql.literal(ASCII_SPACE)
    return sql.compose("CASE WHEN btrim({value}, {space}) <> '' THEN {value} END", value=value, space=space)


def _normalized(value: sql.Composable, rule: Normalization) -> sql.Composable:
    if rule == "strip":
        return sql.compose("btrim({value}, {space})", value=value, space=sql.literal(ASCII_SPACE))
    # lower() folds ASCII only under "C", as identity.normalize does; another collation would fold more.
    return sql.compose('lower({value} COLLATE "C")', value=value)


def natural_key(entity: Entity, parent_target: sql.Composable | None) -> sql.Composable:
    """The filled template; NULL when any part is NULL or blank."""
    template = entity.spec.template
    pieces: list[sql.Composable] = [sql.literal(template.literals[0])]
    for field, text in zip(template.fields, template.literals[1:], strict=True):
        pieces += [part(entity, field, parent_target), sql.literal(text)]
    return sql.join(" || ", pieces)


def as_stored(entity: Entity) -> sql.Composable:
    """The identity's own columns of the row ``t`` as they are stored, before any normalising, as one json array."""
    return _array([sql.compose("t.{c}::text", c=sql.name(field)) for field in _own_fields(entity)])


def as_read(entity: Entity, without: str | None = None) -> sql.Composable:
    """As :func:`as_stored`, normalised: two rows of one natural key text may still differ in its parts.

    ``without`` leaves one field out, such as the owner's.
    """
    return _array([part(entity, field, None) for field in _own_fields(entity) if field != without])


def _own_fields(entity: Entity) -> list[str]:
    return [field for field in entity.spec.template.fields if field != entity.parent_column]


def _array(values: list[sql.Composable]) -> sql.Composable:
    return sql.compose("jsonb_build_array({values})", values=sql.join(", ", values))


def first_invalid(entity: Entity, values: Sequence[str]) -> str | None:
    """The first field whose normalised value does not match the spec's pattern; ``values`` are those of ``valid``.

    A final newline never matches, though Python's ``$`` would let it.
    """
    for (field, pattern), value in zip(entity.spec.valid.items(), values, strict=True):
        if not re.search(pattern, value) or value.endswith("\n"):
            return field
    return None
