"""Values made from an id (a path that holds it, a hash of it): counted and reported, never rewritten, never blocking.

They are looked for where the id stands in the same row: in an entity's own table, and in tables that refer to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from uuid_pipeline.engine import sql

CONTAINS = "contains the id"
SHORTEST_KEY = 6  # a shorter text key stands inside other words by accident


@dataclass(frozen=True)
class DerivedValue:
    """Rows of a column that hold something made from an entity's id.

    ``sampled_of`` is None when every row was looked at, else about how many rows the table has.
    """

    table: str
    column: str
    entity: str
    kind: str
    rows: int
    sampled_of: int | None

    def __str__(self) -> str:
        rows = f"{self.rows} rows" if self.sampled_of is None else f"at least {self.rows} of {self.sampled_of} rows"
        return f"{self.table}.{self.column}: {rows}, {self.kind} ({self.entity})"


@dataclass(frozen=True)
class IdInRow:
    """A column of the row that holds an entity's id; ``is_text``: the id may be any text, not only a uuid."""

    column: str
    entity: str
    is_text: bool


_MADE_FROM = """
SELECT v.col, {entity} AS entity, CASE
    WHEN position(left(i.md5, 8) IN v.value) > 0
    THEN CASE WHEN position(i.md5 IN v.value) > 0 THEN 'md5 of the id' ELSE 'first 8 of md5 of the id' END
    WHEN position(i.sha256 IN v.value) > 0 THEN 'sha256 of the id'
    WHEN i.bare <> i.id AND position(i.bare IN v.value) > 0 THEN 'the id without dashes'
    WHEN {inside} THEN 'contains the id' END AS kind
FROM (SELECT t.{column}::text COLLATE "C" AS id, md5(t.{column}::text) COLLATE "C" AS md5,
             encode(sha256(convert_to(t.{column}::text, 'UTF8')), 'hex') COLLATE "C" AS sha256,
             replace(t.{column}::text COLLATE "C", '-', '') AS bare
      WHERE length(t.{column}::text) >= {shortest} OFFSET 0) i  -- OFFSET keeps the digests from being made once a use
CROSS JOIN (VALUES {values}) v(col, value, whole)
"""

# An id of uuid shape is found inside texts everywhere, by its shape; any other only beside itself.
_TEXT_INSIDE = "v.whole AND v.value <> i.id AND position(i.id IN v.value) > 0"


def made_from_ids(ids: Sequence[IdInRow], texts: Sequence[tuple[int, sql.Composable, bool]]) -> list[sql.Composable]:
    """A SELECT of (col, entity, kind) for each id of the row ``t``; ``texts`` are (number, expression, plain text)."""
    values = [
        sql.compose("({number}, {text}, {plain})", number=sql.literal(number), text=text, plain=sql.Text(str(plain)))
        for number, text, plain in texts
    ]
    if not values:
        return []
    return [
        sql.compose(
            _MADE_FROM,
            entity=sql.literal(held.entity),
            column=sql.name(held.column),
            shortest=sql.literal(SHORTEST_KEY),
            inside=sql.Text(_TEXT_INSIDE if held.is_text else "false"),
            values=sql.join(", ", values),
        )
        for held in ids
    ]
