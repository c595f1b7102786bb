"""A spec that leaves out what moved before: refused while the aliases of that stand."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import finalizing
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_odd import built

STORE = """
CREATE SCHEMA two;
CREATE TABLE two.albums (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE two.books (id uuid PRIMARY KEY, name text NOT NULL);
CREATE TABLE two.loans (n int PRIMARY KEY, album uuid, book uuid);
INSERT INTO two.albums VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'a');
INSERT INTO two.books VALUES ('bbbbbbbb-0000-4000-8000-000000000001', 'b');
INSERT INTO two.loans VALUES (1, 'aaaaaaaa-0000-4000-8000-000000000001', 'bbbbbbbb-0000-4000-8000-000000000001')
"""
HEAD = "namespace: 11111111-2222-3333-4444-555555555555\nschema: two\nbackup: none\n"
ALBUM = '  album: {table: albums, key: id, identity: "{name}"}\n'
BOOK = '  book: {table: books, key: id, identity: "{name}"}\n'
SOFT = "soft_references:\n  - {table: loans, column: book, entity: book}\n"
IN_ALBUMS = "  - {table: loans, column: album, entity: album}\n"
IGNORED = "ignore_references:\n  - {table: loans, column: album, reason: other}\n"
WHOLE = f"{HEAD}entities:\n{ALBUM}{BOOK}{SOFT}{IN_ALBUMS}"
STALE = "INSERT INTO two.loans VALUES (2, 'aaaaaaaa-0000-4000-8000-000000000001', NULL)"


def spec_of(text: str) -> Spec:
    return parse_spec(text, "two.yaml")


def finding(store: Engine, text: str) -> str:
    found = cycle.assess(store, spec_of(text)).gates["nothing_unsupported"]
    return "" if found.passed else found.finding


@pytest.fixture
def moved(empty_store: Engine) -> Engine:
    built(empty_store, STORE)
    cycle.run_all(empty_store, spec_of(WHOLE))
    return empty_store


LEFT_OUT = {
    "an entity": (f"{HEAD}entities:\n{BOOK}{SOFT}", "moved the ids two.albums.id of the entity album"),
    "its name": (
        WHOLE.replace("album:", "record:").replace("entity: album", "entity: record"),
        "moved the ids two.albums.id of the entity album",
    ),
    "a reference": (f"{HEAD}entities:\n{ALBUM}{BOOK}{SOFT}{IGNORED}", "moved two.loans.album with ids of album"),
}


@pytest.mark.parametrize("left_out", LEFT_OUT)
@pytest.mark.parametrize("undone", [False, True], ids=["moved", "rolled back"])
def test_what_moved_and_is_left_out_is_named_until_the_execution_is_finalized(
    moved: Engine, left_out: str, undone: bool
) -> None:
    text, said = LEFT_OUT[left_out]
    if undone:
        cycle.undo(moved)
    assert finding(moved, WHOLE) == ""

    assert said in finding(moved, text)

    finalizing.finalize(moved, cycle.bound_store(moved, spec_of(WHOLE)), "test")
    assert finding(moved, text) == ""


def test_what_the_application_has_dropped_since_need_not_be_in_the_spec(moved: Engine) -> None:
    cycle.run_sql(moved, "DROP TABLE two.loans CASCADE; DROP TABLE two.albums CASCADE")

    assert finding(moved, f"{HEAD}entities:\n{BOOK}") == ""


def test_finalizing_asks_for_the_use_of_every_alias_whatever_the_spec_says(moved: Engine) -> None:
    cycle.run_sql(moved, STALE)
    store = cycle.bound_store(moved, spec_of(LEFT_OUT["an entity"][0]))

    with moved.begin() as connection, pytest.raises(RefusedError, match="old ids are still in use \\(album: 1 uses"):
        finalizing.require_quiet(connection, store)
