"""Merging beside references that hold target ids early, of rows that go with nothing in their place."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_hanging import ENTITIES, SETS, TIERS
from uuid_pipeline_tests.integration.test_merging_odd import CHUNKS, built, owner_in, target

NOTES = """
soft_references:
  - {table: notes, column: chunk, entity: chunk, orphans: keep}
  - {table: notes, column: document, entity: document}
"""


@TIERS
@pytest.mark.parametrize("kind", ["uuid", "uuid[]", "text", "jsonb"])
def test_no_reference_gets_the_id_of_a_row_that_goes_in_the_place_of_its_target_id(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str, kind: str
) -> None:
    """Chunk 5 of the first document has no counterpart in the larger set; a worker wrote its target id already."""
    early = target(f"{target('u:k')}:v1:5")
    written = {"uuid": early, "uuid[]": f"{{{early}}}", "text": early, "jsonb": f'["{early}"]'}[kind]
    built(empty_store, f"{SETS};\nCREATE TABLE app.notes (n int PRIMARY KEY, chunk {kind}, document uuid)")
    cycle.run_sql(empty_store, f"INSERT INTO app.notes VALUES (1, %(written)s::{kind})", written=written)  # noqa: S608
    path = ', path: "*"' if kind == "jsonb" else ""
    spec = parse_spec(ENTITIES + CHUNKS + NOTES.replace("orphans: keep", f"orphans: keep{path}"), "app.yaml")
    role, before = owner_in(tier, empty_store, new_role), cycle.rows_of(empty_store, "app")

    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec)
        [note] = cycle.rows_of(empty_store, "app")["notes"]
        cycle.undo(owner)

    assert note["chunk"] in (None, written)
    assert cycle.rows_of(empty_store, "app") == before


def test_a_target_id_that_is_written_between_plan_and_run_makes_no_gate_red(empty_store: Engine) -> None:
    built(empty_store, f"{SETS};\nCREATE TABLE app.notes (n int PRIMARY KEY, chunk uuid, document uuid)")
    spec = parse_spec(ENTITIES + CHUNKS + NOTES, "app.yaml")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.run_sql(empty_store, "INSERT INTO app.notes VALUES (1, NULL, %(id)s::uuid)", id=target("u:k"))
    before = cycle.rows_of(empty_store, "app")

    cycle.finish(empty_store, spec, execution)

    assert [row["document"] for row in cycle.rows_of(empty_store, "app")["notes"]] == [target("u:k")]
    cycle.undo(empty_store)
    assert cycle.rows_of(empty_store, "app") == before
