"""Merging beside unique keys that hold ids as text: which row stays, and that a rollback brings every one back."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_forbidden import (
    FIRST,
    SECOND,
    THIRD,
    UPLOADS,
    archived,
)
from uuid_pipeline_tests.integration.test_merging_odd import built, spec_of, target

MARKS = """
soft_references:
  - {table: marks, column: document, entity: document}
  - {table: marks, column: seen, entity: document}
"""


@pytest.mark.parametrize("kind", ["text", "uuid"])
def test_the_row_that_had_the_survivors_id_stays_though_another_of_its_columns_is_turned(
    empty_store: Engine, kind: str
) -> None:
    built(empty_store, UPLOADS + f"CREATE TABLE app.marks (n int PRIMARY KEY, document {kind} UNIQUE, seen text[])")
    rows = "INSERT INTO app.marks VALUES (1, %(second)s, NULL), (2, %(first)s, ARRAY[%(second)s::text])"
    cycle.run_sql(empty_store, rows, first=FIRST, second=SECOND)
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of(MARKS))

    kept, merged = archived(empty_store, "marks"), cycle.rows_of(empty_store, "app")["marks"]
    assert [(row["n"], row["document"]) for row in kept] == [("1", SECOND)]
    assert [(row["n"], row["document"], row["seen"]) for row in merged] == [
        ("2", target("u:k"), f"{{{target('u:k')}}}"),
    ]
    cycle.undo(empty_store)
    assert cycle.rows_of(empty_store, "app") == before


def test_an_archived_row_comes_back_though_one_that_is_about_to_be_turned_back_has_its_unique_text(
    empty_store: Engine,
) -> None:
    """Mark 2 meets mark 3 in another unique key; mark 1 gets what mark 2 held."""
    built(
        empty_store,
        UPLOADS
        + """CREATE TABLE app.marks (n int PRIMARY KEY, about uuid NOT NULL UNIQUE REFERENCES app.documents,
                                     document text UNIQUE, seen text[])""",
    )
    rows = """INSERT INTO app.marks VALUES (1, %(third)s::uuid, %(second)s), (2, %(second)s::uuid, %(first)s),
                                           (3, %(first)s::uuid, NULL)"""
    cycle.run_sql(empty_store, rows, first=FIRST, second=SECOND, third=THIRD)
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of(MARKS))

    kept, merged = archived(empty_store, "marks"), cycle.rows_of(empty_store, "app")["marks"]
    assert [(row["n"], row["document"]) for row in kept] == [("2", FIRST)]
    assert [(row["n"], row["document"]) for row in merged] == [("1", target("u:k")), ("3", None)]
    cycle.undo(empty_store)
    assert cycle.rows_of(empty_store, "app") == before
