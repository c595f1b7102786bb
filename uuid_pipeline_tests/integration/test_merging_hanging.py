"""Merging beside rows that hang on merged ones by more than an id: by a key of several columns, or by a number."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_odd import CHUNKS, built, owner_in

# Of two with one natural key the older one survives, whatever hangs on it.
ENTITIES = """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  document: {table: documents, key: id, identity: "{owner}:{sha}", describe: {created_at: made}, survivor: [oldest]}
"""
TIERS = pytest.mark.parametrize("tier", ["R", "O"])


def merged_and_back(
    store: Engine, url: str, new_role: NewRole, tier: str, statements: str, *lines: str
) -> tuple[cycle.Rows, cycle.Rows]:
    """Rows before and after; the rollback must give those of before."""
    built(store, statements)
    spec = parse_spec("".join([ENTITIES, *lines]), "app.yaml")
    role, before = owner_in(tier, store, new_role), cycle.rows_of(store, "app")
    with opened(as_role(url, role)) as owner:
        cycle.run_all(owner, spec)
        after = cycle.rows_of(store, "app")
        cycle.roll_back(owner, spec)
    assert cycle.rows_of(store, "app") == before
    return before, after


DOCUMENTS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, made date DEFAULT '2026-01-01');
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k', '2025-01-01'),
                                 ('aaaaaaaa-0000-4000-8000-000000000002', 'u', 'k', '2026-01-01'),
                                 ('aaaaaaaa-0000-4000-8000-000000000003', 'u', 'other', '2026-01-01');
"""
# The second document's set v1 is the larger one, and its chunk 0 is the first's as well; chunk 5 has no counterpart.
SETS = (
    DOCUMENTS
    + """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         UNIQUE (document_id, id), UNIQUE (document_id, ver, ord));
INSERT INTO app.chunks VALUES
    ('cccccccc-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 0),
    ('cccccccc-0000-4000-8000-000000000002', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 5),
    ('cccccccc-0000-4000-8000-000000000003', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 0),
    ('cccccccc-0000-4000-8000-000000000004', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 1),
    ('cccccccc-0000-4000-8000-000000000005', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 2);
"""
)


@TIERS
def test_a_document_whose_cover_has_no_counterpart_stays_and_loses_its_cover(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    cover = """
ALTER TABLE app.documents ADD cover uuid;
UPDATE app.documents SET cover = 'cccccccc-0000-4000-8000-000000000002' WHERE right(id::text, 1) = '1';
ALTER TABLE app.documents ADD FOREIGN KEY (id, cover) REFERENCES app.chunks (document_id, id)"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + cover, CHUNKS)

    assert {(row["sha"], row["cover"]) for row in after["documents"]} == {("k", None), ("other", None)}
    assert {row["ord"] for row in after["chunks"]} == {"0", "1", "2"}


@TIERS
def test_a_chunk_of_a_set_that_stays_only_loses_its_parent_that_goes(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    above = """
ALTER TABLE app.chunks ADD above uuid, ADD FOREIGN KEY (document_id, above) REFERENCES app.chunks (document_id, id);
INSERT INTO app.chunks SELECT ('cccccccc-0000-4000-8000-00000000001' || n)::uuid,
    'aaaaaaaa-0000-4000-8000-000000000001', 'v2', n, 'cccccccc-0000-4000-8000-000000000002'
    FROM generate_series(1, 2) n"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + above, CHUNKS)

    assert {(row["ord"], row["above"]) for row in after["chunks"] if row["ver"] == "v2"} == {("1", None), ("2", None)}


@TIERS
def test_a_row_that_names_a_place_is_left_where_it_was_by_a_rollback_though_others_came_to_name_it_too(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    """The survivor's own note names (survivor, v1, 0) throughout: its text does not change, what it means does."""
    notes = """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid, ver text, ord int,
                        FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord));
INSERT INTO app.notes SELECT 1, document_id, ver, ord FROM app.chunks WHERE right(id::text, 1) = '1';
INSERT INTO app.notes SELECT 2, document_id, ver, ord FROM app.chunks WHERE right(id::text, 1) = '3'"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + notes, CHUNKS)

    assert len(after["notes"]) == 2


COVERS = """
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000004', 'u', 'k', '2026-01-02');
CREATE TABLE app.covers (document_id uuid PRIMARY KEY REFERENCES app.documents, n int UNIQUE,
                         next int REFERENCES app.covers (n));
INSERT INTO app.covers VALUES ('aaaaaaaa-0000-4000-8000-000000000002', 2, 4),
                              ('aaaaaaaa-0000-4000-8000-000000000004', 4, 2)"""


@TIERS
def test_a_row_whose_own_key_was_turned_is_found_again_to_get_back_what_it_was_emptied_of(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    """Of the covers of two losers one stays, as the survivor's, and loses what it says of the other, which goes."""
    _, after = merged_and_back(empty_store, empty_url, new_role, tier, DOCUMENTS + COVERS)

    assert [row["next"] for row in after["covers"]] == [None]


PARTS = """
ALTER TABLE app.documents ADD num int UNIQUE, ADD part_of int REFERENCES app.documents (num) ON DELETE CASCADE;
UPDATE app.documents SET num = right(id::text, 1)::int;
UPDATE app.documents SET part_of = 2 WHERE num = 3"""


def test_a_document_that_would_go_along_with_another_one_that_is_merged_turns_the_plan_red(empty_store: Engine) -> None:
    built(empty_store, DOCUMENTS + PARTS)
    spec = parse_spec(ENTITIES, "app.yaml")

    gate = cycle.assess(empty_store, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]

    assert not gate.passed
    assert "aaaaaaaa-0000-4000-8000-000000000003" in gate.finding
    assert "documents_part_of_fkey" in gate.finding


def test_one_that_came_since_the_plan_stops_its_wave_before_anything_is_written(empty_store: Engine) -> None:
    built(empty_store, DOCUMENTS + PARTS.replace("num = 3", "num = 7"))
    spec = parse_spec(ENTITIES, "app.yaml")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.run_sql(empty_store, "UPDATE app.documents SET part_of = 2 WHERE num = 3")
    before = cycle.rows_of(empty_store, "app")

    with pytest.raises(RefusedError, match=r"document aaaaaaaa-0000-4000-8000-000000000003 of app\.documents is to be"):
        cycle.migrate_all(empty_store, spec, execution)

    assert cycle.rows_of(empty_store, "app") == before
    cycle.run_sql(empty_store, "UPDATE app.documents SET part_of = NULL WHERE num = 3")
    cycle.finish(empty_store, spec, execution)


def test_where_what_goes_along_is_merged_itself_nothing_is_in_the_way(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    _, after = merged_and_back(
        empty_store, empty_url, new_role, "R", DOCUMENTS + PARTS.replace("part_of = 2 WHERE num = 3", "part_of = num")
    )

    assert len(after["documents"]) == 2
