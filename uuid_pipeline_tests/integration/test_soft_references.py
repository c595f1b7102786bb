"""References without a foreign key that move: columns of several entities, arrays of any shape; there and back."""

import re
import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import orphans
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.cycle import Rows

NAMESPACE = uuid.UUID("11111111-2222-3333-4444-555555555555")
LIBRARY = """
CREATE SCHEMA lib;
CREATE TABLE lib.books (id {key} PRIMARY KEY, title text NOT NULL);
CREATE TABLE lib.pages (id {key} PRIMARY KEY, book {key} NOT NULL REFERENCES lib.books, n int NOT NULL);
CREATE TABLE lib.marks (mark int PRIMARY KEY, kind text, target {key}, written text, several {key}[]);
INSERT INTO lib.books SELECT {book}, 'title ' || mod(n, {titles}) FROM generate_series(1, 12) n;
INSERT INTO lib.pages SELECT {page}, id, n FROM lib.books, generate_series(1, 2) n;
INSERT INTO lib.marks SELECT row_number() OVER (), 'book', id, id::text, ARRAY[id] FROM lib.books;
INSERT INTO lib.marks SELECT 100 + row_number() OVER (), 'page', id, id::text, ARRAY[id, book] FROM lib.pages;
INSERT INTO lib.marks VALUES (200, 'none', NULL, 'no id', '{{}}');
"""
UUIDS = {"key": "uuid", "book": "md5('b' || n)::uuid", "page": "md5(id::text || n)::uuid"}
TEXTS = {"key": "text", "book": "'book-' || n", "page": "id || '/page-' || n"}
SPEC = """
namespace: 11111111-2222-3333-4444-555555555555
schema: lib
backup: none
entities:
  book: {table: books, key: id, identity: "{title}"}
  page: {table: pages, key: id, parent: book, identity: "{book}:{n}"}
soft_references:
"""
MARKS = "".join(
    f"  - {{table: marks, column: {column}, entity: {entity}}}\n"
    for column in ("target", "written", "several")
    for entity in ("book", "page")
)


def spec_of(soft_references: str) -> Spec:
    return parse_spec(SPEC + soft_references, "lib.yaml")


def targets(before: Rows) -> dict[str, str]:
    books = {str(row["id"]): str(uuid.uuid5(NAMESPACE, str(row["title"]))) for row in before["books"]}
    return books | {
        str(row["id"]): str(uuid.uuid5(NAMESPACE, f"{books[str(row['book'])]}:{row['n']}")) for row in before["pages"]
    }


def rewritten(before: Rows, table: str) -> list[cycle.Row]:
    """A table with every id replaced, whatever holds it."""
    new = targets(before)

    def renewed(value: str | None) -> str | None:
        return re.sub(r"[^{},=]+", lambda found: new.get(found[0], found[0]), value) if value else value

    return cycle.ordered([{column: renewed(value) for column, value in row.items()} for row in before[table]])


@pytest.mark.parametrize("titles", [12, 7], ids=["no duplicates", "merging"])
@pytest.mark.parametrize("keys", [UUIDS, TEXTS], ids=["uuid", "text"])
def test_a_column_that_holds_ids_of_several_entities_moves_for_each_of_them(
    empty_store: Engine, keys: dict[str, str], titles: int
) -> None:
    cycle.run_sql(empty_store, LIBRARY.format(**keys, titles=titles))
    spec, before = spec_of(MARKS), cycle.rows_of(empty_store, "lib")

    cycle.run_all(empty_store, spec)

    after = cycle.rows_of(empty_store, "lib")
    assert after["marks"] == rewritten(before, "marks")
    assert {row["id"] for row in after["pages"]} == {targets(before)[str(row["id"])] for row in before["pages"]}
    page, book = str(before["pages"][0]["id"]), str(before["books"][0]["id"])
    write = "INSERT INTO lib.marks (mark, target, several) VALUES (%(n)s, %(id)s, ARRAY[%(id)s]::{key}[])"
    for number, stale in ((300, page), (301, book)):
        cycle.run_sql(empty_store, write.format(**keys), n=number, id=stale)
    late = "SELECT target::text, several[1]::text FROM lib.marks WHERE mark >= 300 ORDER BY mark"
    assert cycle.run_sql(empty_store, late) == [(targets(before)[old],) * 2 for old in (page, book)]
    cycle.run_sql(empty_store, "DELETE FROM lib.marks WHERE mark >= 300")

    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "lib") == before


def test_a_column_of_several_entities_makes_no_orphans_and_no_children(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, LIBRARY.format(**UUIDS, titles=12))
    mark = "  mark: {table: marks, key: mark_id, parent: book, identity: '{target}'}\n"
    with empty_store.begin() as connection:
        store = cycle.bound(connection, spec_of(MARKS))
        assert set(orphans.count(connection, store)) == {"pages.book"}
        assert references.references_known(store, references.search(connection, store)).passed

        connection.exec_driver_sql("ALTER TABLE lib.marks ADD mark_id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid()")
        spec = parse_spec(SPEC.replace("soft_references:", f"{mark}soft_references:") + MARKS, "lib.yaml")
        with pytest.raises(UsageError, match=r"marks\.target is declared for several entities"):
            cycle.bound(connection, spec)


def test_arrays_keep_their_bounds_and_dimensions(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, LIBRARY.format(**UUIDS, titles=12))
    cycle.run_sql(empty_store, "UPDATE lib.marks SET several = NULL")
    cycle.run_sql(
        empty_store,
        """CREATE TABLE lib.shapes (a uuid[], b text[]);
        INSERT INTO lib.shapes
        SELECT ('[0:1]={' || id || ',' || id || '}')::uuid[], ('[-3:-3]={' || id || '}')::text[] FROM lib.books
        UNION ALL SELECT ARRAY[[id, NULL], [id, id]], ARRAY[[id::text, 'x'], ['', NULL]] FROM lib.books
        UNION ALL VALUES ('{}'::uuid[], '{NULL}'::text[]), (NULL, NULL)""",
    )
    declared = "".join(f"  - {{table: shapes, column: {column}, entity: book}}\n" for column in "ab")
    spec = spec_of(MARKS + declared)
    before = cycle.rows_of(empty_store, "lib")

    cycle.run_all(empty_store, spec)

    assert cycle.rows_of(empty_store, "lib")["shapes"] == rewritten(before, "shapes")
    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "lib") == before


def test_ids_that_json_text_spells_with_escapes_are_refused_before_anything_moves(empty_store: Engine) -> None:
    texts = TEXTS | {"book": "'shelf/' || n"}
    cycle.run_sql(empty_store, LIBRARY.format(**texts, titles=12))
    cycle.run_sql(empty_store, "CREATE TABLE lib.notes (body json)")
    cycle.run_sql(empty_store, r"""INSERT INTO lib.notes VALUES ('{"book": "shelf/1", "said": "a\/b"}')""")
    spec = spec_of(MARKS + "  - {table: notes, column: body, entity: book, path: book}\n")
    assert cycle.assess(empty_store, spec).gates["no_collision"].passed

    cycle.run_sql(empty_store, r"""INSERT INTO lib.notes VALUES ('{"book": "shelf\/2"}'), ('{"book": "\u0000"}')""")

    gate = cycle.assess(empty_store, spec).gates["no_collision"]
    assert not gate.passed
    assert "1 rows of notes.body.book spell ids with escapes" in gate.finding


@pytest.mark.parametrize("keys", [UUIDS, TEXTS], ids=["uuid", "text"])
def test_history_that_holds_ids_of_what_is_gone_moves_where_the_spec_keeps_its_orphans(
    empty_store: Engine, keys: dict[str, str]
) -> None:
    cycle.run_sql(empty_store, LIBRARY.format(**keys, titles=12))
    history = "CREATE TABLE lib.history AS SELECT n, {book} AS book FROM generate_series(1, 15) n"
    cycle.run_sql(empty_store, history.format(**keys))
    line = "  - {{table: history, column: book, entity: book{more}}}\n"
    before = cycle.rows_of(empty_store, "lib")
    red = cycle.assess(empty_store, spec_of(MARKS + line.format(more=""))).gates["no_orphans"]
    assert not red.passed
    assert "history.book 3" in red.finding
    assert "orphans: keep" in red.remedy
    spec = spec_of(MARKS + line.format(more=", orphans: keep"))

    cycle.run_all(empty_store, spec)

    assert cycle.rows_of(empty_store, "lib")["history"] == rewritten(before, "history")
    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "lib") == before
