"""Migration: every row is what an independent oracle says, and nothing but ids has changed."""

from sqlalchemy import Engine

from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)


def test_every_column_of_every_row_is_as_the_standard_uuid5_says(incident: Engine) -> None:
    before = cycle.rows_of(incident)

    cycle.run_all(incident, SPEC)

    after = cycle.rows_of(incident)
    assert after == cycle.expected_rows(before)
    assert {row["document_id"] for row in after["documents"]}.isdisjoint(
        {row["document_id"] for row in before["documents"]}
    )
    assert {table: len(rows) for table, rows in after.items()} == {table: len(rows) for table, rows in before.items()}
