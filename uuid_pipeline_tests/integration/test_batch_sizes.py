"""Batches: about as many rows each as the spec says, be they of many small documents or of a few large ones."""

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


def test_the_plan_names_the_documents_that_are_larger_than_a_batch(books: Engine) -> None:
    plan = cycle.assess_and_plan(books, BOOKS)

    large = [risk for risk in plan.content["risks"] if "more than a batch wants" in risk]
    assert len(large) == 3
    keys = {str(row["id"]) for row in cycle.rows_of(books, "shop")["books"] if int(str(row["code"])) in LARGE}
    assert {risk.split()[1] for risk in large} <= keys
    assert all("has 300 rows below it" in risk for risk in large)


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
