"""Statements of the application that are at work for longer than it takes to install what a wave moves."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.faults.test_rows_being_written import WAITING
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_hanging import DOCUMENTS, ENTITIES
from uuid_pipeline_tests.integration.test_merging_odd import built, target

STORE = (
    DOCUMENTS  # noqa: S608
    + """
CREATE TABLE app.buffer (n int PRIMARY KEY, document_id uuid);
INSERT INTO app.buffer SELECT row_number() OVER (), id FROM app.documents WHERE sha <> 'k';
CREATE TABLE app.jobs (n int PRIMARY KEY, document_id uuid REFERENCES app.documents)
"""
)
SPEC = parse_spec(f"{ENTITIES}soft_references: [{{table: buffer, column: document_id, entity: document}}]", "test")
LATE = "bbbbbbbb-0000-4000-8000-000000000001"
UPLOAD = "INSERT INTO app.documents VALUES (%(id)s, 'u', 'late')"
KNOWN = "SELECT id FROM app.documents WHERE sha = 'other'"
BEGUN = "SELECT coalesce(max(tuples_processed), 0) > 0 FROM pg_stat_progress_copy"


def load_beside(store: Engine, table: str, work: Callable[[], object]) -> None:
    """Do the work beside a COPY that began before it, and mentions the late document once the work waits for it."""
    [(known,)] = cycle.run_sql(store, KNOWN)
    with cycle.session(store) as loader, ThreadPoolExecutor(1) as helper:
        with loader.cursor().copy(f"COPY app.{table} FROM STDIN") as copy:
            for n in range(1000, 4000):
                copy.write_row((n, known))
            while cycle.run_sql(store, BEGUN) == [(False,)]:
                time.sleep(0.01)
            done = helper.submit(work)
            while cycle.run_sql(store, WAITING) == [(False,)]:
                assert not done.done(), done.result()
                time.sleep(0.01)
            copy.write_row((100, LATE))
        loader.commit()
        done.result(120)


LATE_ROW = {
    "buffer": "SELECT document_id::text FROM app.buffer WHERE n = 100",
    "jobs": "SELECT document_id::text FROM app.jobs WHERE n = 100",
}


@pytest.mark.parametrize("table", ["buffer", "jobs"])
def test_a_load_that_a_sweep_finds_at_work_mentions_what_was_swept_by_its_new_id(
    empty_store: Engine, table: str
) -> None:
    built(empty_store, STORE)
    execution = cycle.approve(empty_store, SPEC, cycle.assess_and_plan(empty_store, SPEC).plan_id)
    for wave in cycle.waves_of(empty_store, execution):
        cycle.migrate(empty_store, SPEC, wave)
        cycle.assert_green(cycle.check_wave(empty_store, SPEC, wave))
    cycle.run_sql(empty_store, UPLOAD, id=LATE)
    [sweep, *_] = [wave for wave in cycle.all_waves_of(empty_store, execution) if wave.kind == "sweep"]

    load_beside(empty_store, table, lambda: cycle.migrate(empty_store, SPEC, sweep))

    cycle.assert_green(cycle.check_wave(empty_store, SPEC, sweep))

    assert cycle.run_sql(empty_store, LATE_ROW[table]) == [(target("u:late"),)]


@pytest.mark.parametrize("table", ["buffer", "jobs"])
def test_a_load_that_a_second_execution_finds_at_work_mentions_what_it_moves_by_the_new_id(
    empty_store: Engine, table: str
) -> None:
    built(empty_store, STORE)
    cycle.run_all(empty_store, SPEC)
    cycle.run_sql(empty_store, UPLOAD, id=LATE)
    execution = cycle.approve(empty_store, SPEC, cycle.assess_and_plan(empty_store, SPEC).plan_id)

    load_beside(empty_store, table, lambda: cycle.migrate_all(empty_store, SPEC, execution))

    cycle.assert_green(cycle.validate(empty_store))
    assert cycle.run_sql(empty_store, LATE_ROW[table]) == [(target("u:late"),)]
