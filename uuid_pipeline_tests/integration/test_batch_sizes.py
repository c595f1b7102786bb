"""Batches: about as many rows each as the spec says, be they of many small documents or of a few large ones."""

import re
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine.batches import sizes
from uuid_pipeline.engine.batches.lanes import Ordinals
from uuid_pipeline.spec import load_spec, parse_spec
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
BATCH_ROWS = 100
# Documents of one page; a few of three hundred side by side; small ones again.
LARGE = range(301, 311)
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.books (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code int NOT NULL UNIQUE);
CREATE TABLE shop.pages (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), book uuid NOT NULL REFERENCES shop.books,
                         number int NOT NULL);
CREATE INDEX ON shop.pages (book);
INSERT INTO shop.books (code) SELECT n FROM generate_series(1, 600) n;
INSERT INTO shop.pages (book, number)
SELECT id, n FROM shop.books, generate_series(1, CASE WHEN code BETWEEN 301 AND 310 THEN 300 ELSE 1 END) n;
ANALYZE;
"""
BOOKS = parse_spec(
    f"""
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
batch_rows: {BATCH_ROWS}
waves: {{canary: 1, recent: 0}}
entities:
  book: {{table: books, key: id, identity: "{{code}}"}}
  page: {{table: pages, key: id, parent: book, identity: "{{book}}:{{number}}"}}
""",
    "test",
)


@pytest.fixture
def books(empty_store: Engine) -> Engine:
    cycle.run_sql(empty_store, SHOP)
    return empty_store


def rows_by_batch(store: Engine, direction: str) -> list[tuple[int, int]]:
    """Documents of each committed batch, and books and pages written by it, by our own count of the store's rows."""
    return cycle.run_sql(
        store,
        """SELECT count(DISTINCT m.ordinal), count(DISTINCT m.ordinal) + count(p.id)
           FROM uuid_pipeline.batches b
           JOIN uuid_pipeline.id_map_book m ON m.ordinal BETWEEN b.first_ordinal AND b.last_ordinal
           JOIN shop.books t ON t.id IN (m.old_id, m.new_id) LEFT JOIN shop.pages p ON p.book = t.id
           WHERE b.direction = %(direction)s GROUP BY b.batch_no ORDER BY b.batch_no""",
        direction=direction,
    )


def test_no_batch_has_more_rows_than_wanted_but_those_of_one_document(books: Engine) -> None:
    """By the average of the store a batch would have all the large documents, which lie side by side."""
    cycle.run_all(books, BOOKS)
    cycle.roll_back(books, BOOKS)

    for direction in ("forward", "back"):
        found = rows_by_batch(books, direction)
        assert sum(documents for documents, _ in found) == 600
        assert all(rows <= BATCH_ROWS + 301 for _, rows in found)
        assert [documents for documents, rows in found if rows > 2 * BATCH_ROWS].count(1) >= len(LARGE) - 1
        assert len(found) < 2 * (600 * 2 / BATCH_ROWS + len(LARGE))


LOANS = """
CREATE TABLE shop.loans (loan int GENERATED ALWAYS AS IDENTITY, book uuid NOT NULL REFERENCES shop.books);
CREATE INDEX ON shop.loans (book);
INSERT INTO shop.loans (book) SELECT id FROM shop.books WHERE code = 1;
ANALYZE shop.loans;
INSERT INTO shop.loans (book) SELECT id FROM shop.books, generate_series(1, 250) WHERE code BETWEEN 21 AND 30;
"""


def test_rows_that_refer_to_few_documents_count_for_these_whatever_the_statistics_say(books: Engine) -> None:
    """A table loaded since it was analyzed passes for one of a row; no average knows of which documents they are."""
    cycle.run_sql(books, LOANS)

    plan = cycle.assess_and_plan(books, BOOKS)
    [large] = [risk for risk in plan.content["risks"] if risk.startswith("larger than a batch")]
    assert f" and {len(LARGE) + 10 - 3} more" in large
    cycle.finish(books, BOOKS, cycle.approve(books, BOOKS, plan.plan_id))
    cycle.roll_back(books, BOOKS)

    for direction in ("forward", "back"):
        assert max(loans for (loans,) in cycle.run_sql(books, LOANS_BY_BATCH, direction=direction)) <= 251


def test_a_table_that_somebody_has_whole_is_not_waited_for_when_batches_are_cut(books: Engine) -> None:
    cycle.run_sql(books, LOANS)
    execution = cycle.approve(books, BOOKS, cycle.assess_and_plan(books, BOOKS).plan_id)
    wave, store = cycle.waves_of(books, execution)[-1], cycle.bound_store(books, BOOKS)
    with books.connect() as connection, cycle.session(books) as holder:
        size = sizes.read(connection, store, wave)
        with_loans, _ = sizes.next_batches(connection, store, wave, size, [(1, 600)])
        holder.execute("LOCK TABLE shop.loans IN ACCESS EXCLUSIVE MODE")

        without, _ = sizes.next_batches(connection, store, wave, size, [(1, 600)])

    assert 1 < len(without) < len(with_loans)


def test_a_documents_own_kind_counts_where_it_refers_to_it(books: Engine) -> None:
    """A folder that all others lie in is one row of the map; they are written with it."""
    cycle.run_sql(
        books,
        """ALTER TABLE shop.books ADD folder uuid REFERENCES shop.books;
           UPDATE shop.books SET folder = (SELECT id FROM shop.books WHERE code = 5) WHERE code <> 5""",
    )

    plan = cycle.assess_and_plan(books, BOOKS)

    [large] = [risk for risk in plan.content["risks"] if risk.startswith("larger than a batch")]
    assert re.findall(r"book \S+ \((\d+) rows\)", large)[0] == str(1 + 1 + 599)


MANY_MORE = """
INSERT INTO shop.loans (book) SELECT book FROM (SELECT book FROM shop.loans ORDER BY loan DESC LIMIT 1) l,
    generate_series(1, 100)
"""


def test_how_many_rows_refer_to_a_document_is_no_part_of_what_is_approved(books: Engine) -> None:
    cycle.run_sql(books, LOANS)
    plan = cycle.assess_and_plan(books, BOOKS)
    cycle.run_sql(books, MANY_MORE)

    again = cycle.assess_and_plan(books, BOOKS)

    assert again.plan_id == plan.plan_id
    assert again.content["risks"] != plan.content["risks"]


LOANS_BY_BATCH = """
SELECT count(l.loan) FROM uuid_pipeline.batches b
JOIN uuid_pipeline.id_map_book m ON m.ordinal BETWEEN b.first_ordinal AND b.last_ordinal
JOIN shop.loans l ON l.book IN (m.old_id, m.new_id) WHERE b.direction = %(direction)s GROUP BY b.batch_no
"""


def test_the_plan_names_the_largest_documents_that_are_larger_than_a_batch(books: Engine) -> None:
    plan = cycle.assess_and_plan(books, BOOKS)

    [large] = [risk for risk in plan.content["risks"] if risk.startswith("larger than a batch (100 rows) by itself: ")]
    named = re.findall(r"book ([0-9a-f-]{36}) \(301 rows\)", large)
    keys = {row["id"] for row in cycle.rows_of(books, "shop")["books"] if int(str(row["code"])) in LARGE}
    assert len(named) == 3
    assert set(named) < keys
    assert f" and {len(LARGE) - 3} more; each moves in one transaction" in large


def test_rows_of_every_level_below_a_document_and_of_its_twins_count(books: Engine) -> None:
    """They move with it: twenty lines on each of six pages; and a document's twin with as many pages as a batch has."""
    cycle.run_sql(
        books,
        """CREATE TABLE shop.lines (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), page uuid REFERENCES shop.pages,
                                    number int);
           DELETE FROM shop.pages WHERE book IN (SELECT id FROM shop.books WHERE code > 300);
           DELETE FROM shop.books WHERE code > 300;
           INSERT INTO shop.pages (book, number) SELECT id, n FROM shop.books, generate_series(2, 6) n WHERE code = 7;
           INSERT INTO shop.lines (page, number) SELECT p.id, n FROM shop.pages p JOIN shop.books b ON b.id = p.book,
               generate_series(1, 20) n WHERE b.code = 7;
           ALTER TABLE shop.books DROP CONSTRAINT books_code_key;
           INSERT INTO shop.books (code) VALUES (8);
           INSERT INTO shop.pages (book, number) SELECT id, n + 1000 * row_number() OVER (ORDER BY id)
           FROM shop.books, generate_series(2, 61) n WHERE code = 8""",
    )
    line = BOOKS.entities["page"].model_copy(
        update={"table": "lines", "parent": "page", "identity": "{page}:{number}"},
    )
    spec = BOOKS.model_copy(update={"entities": {**BOOKS.entities, "line": line}})

    plan = cycle.assess_and_plan(books, spec)

    [large] = [risk for risk in plan.content["risks"] if risk.startswith("larger than a batch")]
    assert sorted(re.findall(r"book \S+ \((\d+) rows\)", large)) == ["123", "127"]


def test_the_few_documents_that_came_since_are_swept_in_one_batch(books: Engine) -> None:
    """However few they are beside all those of the store."""
    execution = cycle.approve(books, BOOKS, cycle.assess_and_plan(books, BOOKS).plan_id)
    cycle.migrate_waves(books, BOOKS, slice(None))
    cycle.run_sql(books, "INSERT INTO shop.books (code) SELECT n FROM generate_series(1001, 1030) n")

    cycle.finish(books, BOOKS, execution)

    swept = "SELECT last_ordinal - first_ordinal + 1 FROM uuid_pipeline.batches WHERE wave LIKE '%%sweep%%'"
    assert cycle.run_sql(books, swept) == [(30,)]


SPANS = [[(1, 1)], [(1, 600)], [(1, 7), (9, 299), (305, 305), (307, 600)], [(2, 599), (601, 640)]]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("documents", [1, 3, 50])
def test_the_batches_cover_every_open_ordinal_once_and_in_order(
    books: Engine, spans: list[Ordinals], documents: int
) -> None:
    """Also ordinals of which no row is left, and however few batches are cut at once."""
    execution = cycle.approve(books, BOOKS, cycle.assess_and_plan(books, BOOKS).plan_id)
    wave, store = cycle.waves_of(books, execution)[-1], cycle.bound_store(books, BOOKS)

    with books.connect() as connection:
        size = replace(sizes.read(connection, store, wave), documents=documents)
        ahead, left = list[Ordinals](), spans
        while left:
            batches, left = sizes.next_batches(connection, store, wave, size, left)
            ahead += batches
        back, left = list[Ordinals](), spans
        while left:
            batches, left = sizes.last_batches(connection, store, wave, size, left)
            back = batches + back

    for batches in (ahead, back):
        assert all(first <= last for first, last in batches)
        assert all(last < first for (_, last), (first, _) in pairwise(batches))
        assert ordinals_of(batches) == ordinals_of(spans)


def ordinals_of(spans: list[Ordinals]) -> list[int]:
    return [ordinal for first, last in spans for ordinal in range(first, last + 1)]


@pytest.mark.parametrize("analyzed", ["documents", "upload_jobs", None])
def test_the_size_of_a_batch_does_not_hang_on_which_tables_were_analyzed(
    incident: Engine, analyzed: str | None
) -> None:
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state)
           SELECT gen_random_uuid(), document_id, 'queued' FROM upload_pipeline.documents, generate_series(1, 17)""",
    )
    if analyzed:
        cycle.run_sql(incident, f"ANALYZE upload_pipeline.{analyzed}")
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    [wave, *_] = cycle.waves_of(incident, execution)
    rows = sum(len(cycle.rows_of(incident)[table]) for table in
               ("documents", "document_chunks", "upload_jobs", "events"))  # fmt: skip

    with incident.connect() as connection:
        size = sizes.read(connection, cycle.bound_store(incident, SPEC), wave)

    # As many documents as have some 5,000 rows; the store's other tables have few.
    assert size.documents == pytest.approx(5000 * 38 / rows, rel=0.1)


FEW_HAVE_MOST = """
CREATE TABLE shop.seen (n int, book uuid REFERENCES shop.books);
CREATE INDEX ON shop.seen (book);
INSERT INTO shop.seen SELECT n, id FROM shop.books, generate_series(1, 4000) n WHERE code <= 5;
ANALYZE shop.seen;
"""
READ = """
SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE schemaname = 'shop' AND relname = 'seen'
"""


def rows_read(store: Engine) -> int:
    """Rows of the table that any session has read; each tells it when it ends."""
    store.dispose()
    found, seen = -1, 0
    while found != seen:
        time.sleep(0.3)
        found, seen = seen, int(cycle.run_sql(store, READ)[0][0])
        store.dispose()
    return found


def test_where_a_few_documents_have_most_rows_no_batch_reads_those_of_the_others(books: Engine) -> None:
    """A join is estimated by the average: each batch would read the whole table, some thirty times."""
    cycle.run_sql(books, FEW_HAVE_MOST)
    execution = cycle.approve(books, BOOKS, cycle.assess_and_plan(books, BOOKS).plan_id)
    before = rows_read(books)

    cycle.migrate_all(books, BOOKS, execution)

    [(batches,)] = cycle.run_sql(books, "SELECT count(*) FROM uuid_pipeline.batches")
    assert batches > 20
    assert rows_read(books) - before < 12 * 20_000
