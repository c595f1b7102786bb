"""Merging beside what would forbid it: CHECKs that only a merge breaks, actions of keys that it would mislead."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_hanging import ENTITIES, SETS
from uuid_pipeline_tests.integration.test_merging_odd import CHUNKS, DOCUMENTS, SINGLY, built, owner_in, spec_of, target

FIRST, SECOND, THIRD = (f"{letter * 8}-0000-4000-8000-000000000001" for letter in "abc")
UPLOADS = (
    DOCUMENTS
    + """
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k'),
                                 ('bbbbbbbb-0000-4000-8000-000000000001', 'u', 'k'),
                                 ('cccccccc-0000-4000-8000-000000000001', 'u', 'other');
"""
)


def oldest_survives(*lines: str) -> Spec:
    return parse_spec("".join([ENTITIES, *lines]), "app.yaml")


def red_of(engine: Engine, spec: Spec) -> str:
    """What the gate says that is asked before approval."""
    found = cycle.assess(engine, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]
    assert not found.passed
    return found.finding


def archived(store: Engine, table: str) -> list[dict[str, str | None]]:
    ledger = cycle.rows_of(store, "uuid_pipeline")
    return [row for name, rows in ledger.items() if name.startswith(f"archive_app_{table}_") for row in rows]


@pytest.mark.parametrize("tier", ["R", "O"])
def test_a_row_that_names_two_documents_which_a_check_wants_different_is_archived_when_they_become_one(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    built(
        empty_store,
        UPLOADS
        + """CREATE TABLE app.links (n int PRIMARY KEY, a uuid REFERENCES app.documents,
                  b uuid REFERENCES app.documents, "at" text, CONSTRAINT apart CHECK (links.a <> b AND "at" <> '100%'));
              INSERT INTO app.links VALUES
                  (1, 'aaaaaaaa-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001', 'x'),
                  (2, 'bbbbbbbb-0000-4000-8000-000000000001', 'cccccccc-0000-4000-8000-000000000001', 'y')""",
    )
    role, before = owner_in(tier, empty_store, new_role), cycle.rows_of(empty_store, "app")

    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec_of())
        after = cycle.rows_of(empty_store, "app")
        kept = archived(empty_store, "links")
        cycle.roll_back(owner, spec_of())

    assert [(row["n"], row["a"], row["b"]) for row in after["links"]] == [("2", target("u:k"), target("u:other"))]
    assert [(row["n"], row["a"], row["b"]) for row in kept] == [("1", FIRST, SECOND)]
    assert cycle.rows_of(empty_store, "app") == before


def test_a_row_that_a_check_forbids_to_lose_its_reference_is_archived_and_others_lose_it(empty_store: Engine) -> None:
    """The second document's set is the larger one; chunk 2 of the first has nothing in its place."""
    built(
        empty_store,
        UPLOADS  # noqa: S608
        + """CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents,
                                       ver text, ord int, UNIQUE (document_id, ver, ord));
              CREATE TABLE app.events (n int PRIMARY KEY, chunk_id uuid REFERENCES app.chunks, note text,
                                       CHECK (chunk_id IS NOT NULL OR note IS NOT NULL));
              INSERT INTO app.chunks SELECT ('dddddddd-0000-4000-8000-00000000000' || n)::uuid,
                  (CASE WHEN n < 3 THEN 'aaaaaaaa' ELSE 'bbbbbbbb' END || '-0000-4000-8000-000000000001')::uuid,
                  'v', CASE WHEN n < 3 THEN n + 7 ELSE n END
                  FROM generate_series(1, 5) n;
              INSERT INTO app.events SELECT n, ('dddddddd-0000-4000-8000-00000000000' || n)::uuid,
                  CASE n WHEN 1 THEN 'said' END FROM generate_series(1, 5) n""",
    )
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of(CHUNKS))

    events = {row["n"]: row["chunk_id"] is not None for row in cycle.rows_of(empty_store, "app")["events"]}
    assert events == {"1": False, "3": True, "4": True, "5": True}
    assert [row["n"] for row in archived(empty_store, "events")] == ["2"]
    cycle.roll_back(empty_store, spec_of(CHUNKS))
    assert cycle.rows_of(empty_store, "app") == before


CHAIN = """
ALTER TABLE app.documents ADD replaces uuid REFERENCES app.documents, ADD CONSTRAINT other CHECK (replaces <> id)
"""
REFERS = "UPDATE app.documents SET replaces = %(other)s WHERE id = %(id)s"


def test_a_document_that_would_refer_to_itself_against_a_check_turns_the_plan_red(empty_store: Engine) -> None:
    built(empty_store, UPLOADS + CHAIN)
    cycle.run_sql(empty_store, REFERS, id=FIRST, other=SECOND)

    found = red_of(empty_store, spec_of())

    assert "CHECK other on app.documents ((replaces <> id)) fails for rows that stay" in found
    assert FIRST in found
    assert SECOND not in found


def test_where_the_document_that_goes_refers_to_the_one_that_stays_no_check_is_in_the_way(empty_store: Engine) -> None:
    built(empty_store, UPLOADS + CHAIN)
    cycle.run_sql(empty_store, "UPDATE app.documents SET replaces = %(id)s WHERE id <> %(id)s", id=FIRST)
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, spec_of())

    assert {row["replaces"] for row in cycle.rows_of(empty_store, "app")["documents"]} == {None, target("u:k")}
    cycle.roll_back(empty_store, spec_of())
    assert cycle.rows_of(empty_store, "app") == before


def test_a_cluster_that_came_to_be_in_a_checks_way_after_the_plan_is_left_alone(empty_store: Engine) -> None:
    built(empty_store, UPLOADS + CHAIN)
    execution = cycle.approve(empty_store, spec_of(), cycle.assess_and_plan(empty_store, spec_of()).plan_id)
    cycle.run_sql(empty_store, REFERS, id=FIRST, other=SECOND)

    cycle.finish(empty_store, spec_of(), execution)

    ids = {row["id"]: row["replaces"] for row in cycle.rows_of(empty_store, "app")["documents"]}
    assert ids == {FIRST: SECOND, SECOND: None, target("u:other"): None}
    [(why,)] = cycle.run_sql(
        empty_store, "SELECT detail ->> 'why' FROM uuid_pipeline.audit WHERE action = 'left clusters alone'"
    )
    assert why.startswith(f"document {FIRST} of app.documents refers to a row that is to be merged")
    cycle.run_sql(empty_store, "UPDATE app.documents SET replaces = NULL")
    cycle.run_all(empty_store, spec_of())


def test_a_table_that_leaves_its_archive_no_room_for_columns_of_ours_turns_the_plan_red(empty_store: Engine) -> None:
    wide = ", ".join(f"ADD c{n} bool" for n in range(1594))
    built(empty_store, f"{UPLOADS}ALTER TABLE app.documents {wide}")

    assert "app.documents has 1598 columns" in red_of(empty_store, spec_of())
    cycle.run_sql(empty_store, "ALTER TABLE app.documents DROP c0")
    assert cycle.assess(empty_store, spec_of()).gates["conflicts_resolvable"].passed


# The survivor's own chunk (v1, 0) gives way to the other's, which then stands under the same key of several columns.
NOTES = (
    SETS  # noqa: S608
    + """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid, ver text, ord int, CONSTRAINT of_chunk
                        FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord) ACTION);
INSERT INTO app.notes SELECT row_number() OVER (ORDER BY id), document_id, ver, ord FROM app.chunks WHERE ord < 2;
"""
)
ACTIONS = ["ON DELETE CASCADE", "ON DELETE SET NULL", "ON DELETE RESTRICT", "ON UPDATE CASCADE"]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_key_whose_action_would_take_one_row_for_another_turns_the_plan_red_where_keys_are_checked(
    empty_store: Engine, empty_url: str, new_role: NewRole, action: str
) -> None:
    built(empty_store, NOTES.replace("ACTION", action))
    role = owner_in("O", empty_store, new_role)

    with opened(as_role(empty_url, role)) as owner:
        assert f"foreign key of_chunk of app.notes is {action}" in red_of(owner, oldest_survives(CHUNKS))


@pytest.mark.parametrize("action", ["", *ACTIONS])
def test_where_keys_are_not_checked_or_do_not_act_no_note_is_lost_to_them(empty_store: Engine, action: str) -> None:
    built(empty_store, NOTES.replace("ACTION", action))
    before = cycle.rows_of(empty_store, "app")

    cycle.run_all(empty_store, oldest_survives(CHUNKS))

    assert len(cycle.rows_of(empty_store, "app")["notes"]) == 3
    cycle.roll_back(empty_store, oldest_survives(CHUNKS))
    assert cycle.rows_of(empty_store, "app") == before


@pytest.mark.parametrize(("action", "spec"), [("", CHUNKS), ("ON DELETE CASCADE ON UPDATE CASCADE", SINGLY)])
def test_an_owner_merges_beside_such_a_key_where_it_does_not_act_or_chunks_stay_where_they_are(
    empty_store: Engine, empty_url: str, new_role: NewRole, action: str, spec: str
) -> None:
    built(empty_store, NOTES.replace("ACTION", action))
    role, before = owner_in("O", empty_store, new_role), cycle.rows_of(empty_store, "app")

    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, oldest_survives(spec))
        assert len(cycle.rows_of(empty_store, "app")["notes"]) == 3
        cycle.roll_back(owner, oldest_survives(spec))

    assert cycle.rows_of(empty_store, "app") == before


def test_what_was_merged_in_tier_r_is_not_brought_back_in_tier_o_beside_a_key_that_would_act(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    built(empty_store, NOTES.replace("ACTION", "ON UPDATE CASCADE"))
    before, role = cycle.rows_of(empty_store, "app"), new_role("SUPERUSER")
    cycle.make_owner(empty_store, role, "app")
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, oldest_survives(CHUNKS))
    after = cycle.rows_of(empty_store, "app")
    cycle.run_sql(empty_store, f'ALTER ROLE "{role}" NOSUPERUSER BYPASSRLS')

    with opened(as_role(empty_url, role)) as owner:
        with pytest.raises(RefusedError, match=r"of_chunk of app\.notes would act on that"):
            cycle.roll_back(owner, oldest_survives(CHUNKS))
        assert cycle.rows_of(empty_store, "app") == after
        cycle.run_sql(
            owner,
            """ALTER TABLE app.notes DROP CONSTRAINT of_chunk, ADD CONSTRAINT of_chunk
               FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord)""",
        )
        cycle.roll_back(owner, oldest_survives(CHUNKS))

    assert cycle.rows_of(empty_store, "app") == before
