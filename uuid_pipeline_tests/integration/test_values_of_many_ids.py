"""Soft references with thousands of ids, in one value or in as many: work grows as their number, not as its square."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import early
from uuid_pipeline.engine.batches import batch
from uuid_pipeline.engine.batches.held import BatchPlan
from uuid_pipeline.engine.installed import functions
from uuid_pipeline.engine.proofs import dangling
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

# Ten times the ids take ten times the time; were each sought among all the others, a hundred times.
TENFOLD_AT_MOST = 35

REWRITTEN = {
    "text[]": """
        SELECT uuid_pipeline.rewritten_array(array_agg('old ' || n ORDER BY n),
                                             jsonb_object_agg('old ' || n, 'new ' || n))::text
        FROM generate_series(1, %(ids)s) n""",
    "jsonb": """
        SELECT uuid_pipeline.rewritten_json(jsonb_agg('old ' || n ORDER BY n), '{*}',
                                            jsonb_object_agg('old ' || n, 'new ' || n))::text
        FROM generate_series(1, %(ids)s) n""",
    "json": """
        SELECT uuid_pipeline.rewritten_json(json_agg('old ' || n ORDER BY n), '{*}',
                                            jsonb_object_agg('old ' || n, 'new ' || n))::text
        FROM generate_series(1, %(ids)s) n""",
}


@pytest.fixture
def readers(empty_store: Engine) -> Engine:
    """A ledger schema with nothing but the functions that rewrite ids inside values."""
    cycle.run_sql(empty_store, "CREATE SCHEMA uuid_pipeline")
    with empty_store.begin() as connection:
        functions.put_embedded(connection)
    return empty_store


def quickest(deed: Callable[[], object]) -> float:
    """Seconds of the quickest of three."""

    def took() -> float:
        started = time.perf_counter()
        deed()
        return time.perf_counter() - started

    return min(took() for _ in range(3))


@pytest.mark.parametrize("kind", REWRITTEN)
def test_ten_times_the_ids_in_one_value_take_about_ten_times_as_long(readers: Engine, kind: str) -> None:
    rewritten = REWRITTEN[kind]
    [(text,)] = cycle.run_sql(readers, rewritten, ids=20_000)
    assert (text.count("new "), text.count("old ")) == (20_000, 0)
    assert text.index("new 19999") < text.index("new 20000")

    few = quickest(lambda: cycle.run_sql(readers, rewritten, ids=2_000))
    many = quickest(lambda: cycle.run_sql(readers, rewritten, ids=20_000))

    assert many < TENFOLD_AT_MOST * few


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("{old,NULL,kept,old}", "{new,NULL,kept,new}"),
        ("{}", "{}"),
        ("{kept}", "{kept}"),
        ("[0:1]={old,kept}", "[0:1]={new,kept}"),
        ("[3:4][1:2]={{old,kept},{kept,old}}", "[3:4][1:2]={{new,kept},{kept,new}}"),
        (None, None),
    ],
)
def test_an_array_keeps_all_but_the_ids(readers: Engine, value: str | None, wanted: str | None) -> None:
    call = 'SELECT uuid_pipeline.rewritten_array(%(value)s::text[], \'{"old": "new"}\')::text'

    assert cycle.run_sql(readers, call, value=value) == [(wanted,)]


LISTS = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL UNIQUE);
INSERT INTO shop.things (code) SELECT 'code ' || n FROM generate_series(1, 2000) n;
CREATE TABLE shop.lists (list int PRIMARY KEY, things uuid[]);
INSERT INTO shop.lists SELECT n, (SELECT array_agg(id) FROM shop.things) FROM generate_series(1, 100) n;
ANALYZE;
"""
LISTS_SPEC = parse_spec(
    """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
entities:
  thing: {table: things, key: id, identity: "{code}"}
soft_references:
  - {table: lists, column: things, entity: thing}
""",
    "test",
)


@pytest.fixture
def lists(empty_store: Engine) -> Engine:
    """Two thousand things, and a hundred lists each of which holds every one of them."""
    cycle.run_sql(empty_store, LISTS)
    return empty_store


@contextmanager
def given_up_after(seconds: float, store: Engine) -> Iterator[None]:
    """Cancel what the store's server is doing when it takes as long as this, which takes a second."""
    cancel = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    timer = threading.Timer(seconds, cycle.run_sql, [store, cancel])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_ids_held_early_are_looked_for_in_one_pass_over_such_values(lists: Engine) -> None:
    """Not in one a document: that there are any is what the planner takes for unlikely."""
    with given_up_after(30, lists):
        assessed = cycle.assess(lists, LISTS_SPEC)

    def look() -> None:
        with lists.begin() as connection:
            early.mark(connection, assessed.store, assessed.number)
            assert not early.marked(connection, assessed.store.main, assessed.number)

    one_pass = quickest(
        lambda: cycle.run_sql(lists, "SELECT count(DISTINCT e.id::text) FROM shop.lists, unnest(things) e (id)")
    )

    assert quickest(look) < 15 * one_pass


NOTES = """
CREATE SCHEMA shop;
CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL UNIQUE);
INSERT INTO shop.things (code) SELECT 'code ' || n FROM generate_series(1, 400) n;
CREATE TABLE shop.notes (note int PRIMARY KEY, said {kind} NOT NULL);
INSERT INTO shop.notes SELECT row_number() OVER (), {value} FROM shop.things, generate_series(1, 5);
ANALYZE;
"""
NOTES_SPEC = """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
waves: {{canary: 0, recent: 0}}
entities:
  thing: {{table: things, key: id, identity: "{{code}}"}}
soft_references:
  - {{table: notes, column: said, entity: thing{path}}}
"""
# What this transaction has read of the tables of such a name; parallel workers are kept away.
READ = """
SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int FROM pg_stat_xact_all_tables
WHERE starts_with(relname, %(name)s)
"""


def rows_read(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(READ, {"name": name}).scalar_one())


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        ("jsonb", "jsonb_build_object('of', id)", ", path: of"),
        ("json", "json_build_object('of', id)", ", path: of"),
        ("uuid[]", "ARRAY[id]", ""),
        ("text", "id::text", ""),
    ],
)
def test_of_many_values_with_an_id_each_none_makes_a_batch_or_its_gate_read_all_the_others(
    empty_store: Engine, kind: str, value: str, path: str
) -> None:
    """Two thousand values and four hundred ids: 800,000 pairs."""
    cycle.run_sql(empty_store, NOTES.format(kind=kind, value=value))
    spec = parse_spec(NOTES_SPEC.format(path=path), "test")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    [wave, *_] = cycle.all_waves_of(empty_store, execution)
    plan = BatchPlan(execution.execution_id, execution.assessment_no, wave.wave, 1, 400)
    with empty_store.connect() as connection, connection.begin() as transaction:
        store = cycle.bound(connection, spec)
        functions.put_embedded(connection)
        batch.set_up(connection)
        batch.hold(connection, store, plan, batch.FORWARD)
        assert rows_read(connection, "held_") < 20_000
        transaction.rollback()

    cycle.migrate(empty_store, spec, wave)

    with empty_store.begin() as connection:
        connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
        assert dangling.no_dangling_reference(connection, store, wave).passed
        assert rows_read(connection, "id_map_") < 20_000
