"""At every named point of the engine: killed, disconnected, timed out, stopped. The next run finishes, exactly."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sync_points
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline_tests.conftest import opened
from uuid_pipeline_tests.faults import scene
from uuid_pipeline_tests.faults.nursery import Fate, Nursery
from uuid_pipeline_tests.integration import cycle

DOCUMENTS = 38


@pytest.fixture
def store(empty_url: str) -> Iterator[Engine]:
    with opened(empty_url) as engine:
        scene.build(engine)
        yield engine


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    scene.write_spec(path)
    return path


@pytest.fixture
def spec(spec_file: Path) -> Spec:
    return load_spec(spec_file)


Fault = Callable[[str, str, int], None]


def there_and_back_and_the_end(store: Engine, spec: Spec, fault: Fault) -> None:
    """The fault at every point of every direction: nothing is broken at that instant, and all of it comes right."""
    before, objects = cycle.rows_of(store), cycle.catalog_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    counts = []

    def strike(work: str) -> None:
        for point in scene.POINTS[work]:
            fault(work, point, 2 if point in ("held", "moved", "journaled", "committed") else 1)
            moved, wrong = scene.moved_and_broken(store, before)
            assert wrong == [], (work, point)
            counts.append(moved)

    strike("forward")
    assert any(0 < moved < DOCUMENTS for moved in counts)
    scene.forward(store, spec)
    cycle.assert_green(cycle.validate(store))
    assert scene.moved_and_broken(store, before) == (DOCUMENTS, [])
    assert len(cycle.rows_of(store)["documents"]) == DOCUMENTS
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []

    counts.clear()
    strike("back")
    assert any(0 < moved < DOCUMENTS for moved in counts)
    scene.back(store, spec)
    assert cycle.rows_of(store) == before
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []

    strike("finalize")
    scene.finalize(store, spec)
    assert cycle.rows_of(store) == before
    assert cycle.catalog_of(store) == objects
    assert cycle.alias_triggers(store) == []


@pytest.mark.system
def test_killed_at_every_point_a_run_is_finished_by_the_next(
    store: Engine, empty_url: str, spec_file: Path, spec: Spec
) -> None:
    with Nursery(empty_url, spec_file) as nursery:

        def kill(work: str, point: str, nth: int) -> None:
            writer = nursery.run(Fate(work, point, nth, signal.SIGKILL))
            assert writer.code == -signal.SIGKILL, (work, point, writer)
            scene.wait_until_free(store)
            # What a dead run had altered stays on record, for the next one to put back.
            assert len(scene.altered(store)) == 3 or point not in ("guarded", "waves done", "committed")

        there_and_back_and_the_end(store, spec, kill)


def at(point: str, nth: int, deed: Callable[[], None]) -> None:
    """Do this when the engine is there the nth time, once."""
    left = nth

    def hook() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            deed()

    sync_points.on(point, hook)


@pytest.fixture
def mine(empty_url: str) -> Iterator[Engine]:
    """The engine of the run that the fault strikes."""
    with opened(empty_url) as engine:
        yield engine


def strike_in_process(deed: Callable[[], None], mine: Engine, spec: Spec) -> Fault:
    """A fault that the run meets as an error from the server."""

    def strike(work: str, point: str, nth: int) -> None:
        at(point, nth, deed)
        try:
            if work == "finalize" and deed.__name__ == "disconnect":
                # What is left to do needs no session that was there before.
                scene.WORK[work](mine, spec)
            else:
                with pytest.raises(DBAPIError):
                    scene.WORK[work](mine, spec)
        finally:
            sync_points.clear()

    return strike


@pytest.mark.system
def test_disconnected_at_every_point_a_run_is_finished_by_the_next(
    store: Engine, mine: Engine, empty_url: str, spec: Spec
) -> None:
    with psycopg.connect(empty_url, autocommit=True) as other:

        def disconnect() -> None:
            store.dispose()
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'uuid_pipeline'"
            )

        there_and_back_and_the_end(store, spec, strike_in_process(disconnect, mine, spec))


@pytest.mark.system
def test_timed_out_at_every_point_a_run_is_finished_by_the_next(
    store: Engine, mine: Engine, empty_url: str, spec: Spec
) -> None:
    def time_out() -> None:
        with store.begin() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 1")
            connection.exec_driver_sql("SELECT pg_sleep(1)")

    there_and_back_and_the_end(store, spec, strike_in_process(time_out, mine, spec))


@pytest.mark.parametrize("point", ["guarded", "committed"])
def test_a_run_that_was_stopped_and_wakes_when_another_has_finished_changes_nothing_more(
    store: Engine, empty_url: str, spec_file: Path, spec: Spec, point: str
) -> None:
    before, objects = cycle.rows_of(store), cycle.catalog_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    with Nursery(empty_url, spec_file) as nursery:
        stopped = nursery.run(Fate("forward", point, 1, signal.SIGSTOP))
        assert stopped.code is None
        with pytest.raises(RefusedError, match=f"process {stopped.pid} on"):
            scene.forward(store, spec)

        # Taken for dead, as behind a pooler after a minute.
        cycle.run_sql(store, "UPDATE uuid_pipeline.lease SET backend_start = backend_start - interval '1 hour'")
        scene.forward(store, spec)
        cycle.assert_green(cycle.validate(store))
        rows, journal = cycle.rows_of(store), cycle.run_sql(store, "SELECT batch_no FROM uuid_pipeline.batches")
        revived = nursery.wake(stopped)

    assert revived.code == 1
    assert "RefusedError" in revived.said
    assert "lost its lease" in revived.said
    assert scene.moved_and_broken(store, before) == (DOCUMENTS, [])
    assert cycle.rows_of(store) == rows
    assert cycle.run_sql(store, "SELECT batch_no FROM uuid_pipeline.batches") == journal
    assert cycle.catalog_of(store) == objects


def test_a_run_stopped_with_its_rows_locked_keeps_others_out_until_its_session_is_ended(
    store: Engine, empty_url: str, spec_file: Path, spec: Spec
) -> None:
    before, objects = cycle.rows_of(store), cycle.catalog_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    with Nursery(empty_url, spec_file) as nursery:
        stopped = nursery.run(Fate("forward", "journaled", 2, signal.SIGSTOP))
        assert stopped.code is None
        assert scene.moved_and_broken(store, before)[1] == []
        cycle.run_sql(store, "SELECT pg_terminate_backend(backend_pid, 5000) FROM uuid_pipeline.lease")
        scene.forward(store, spec)
        revived = nursery.wake(stopped)

    assert revived.code == 1
    assert scene.moved_and_broken(store, before) == (DOCUMENTS, [])
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []
