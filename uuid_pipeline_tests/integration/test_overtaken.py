"""A process that was held up for so long that another one took its lease changes no triggers when it goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import control, finalizing, sync_points
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Aliases
from uuid_pipeline_tests.integration import cycle, test_sweep

SPEC = cycle.spec_with()
AT_ONCE = cycle.spec_with(aliases=Aliases(quiet_hours=0))
JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(document)s, 'queued')
RETURNING document_id::text
"""

Lost = RefusedError | DBAPIError


@pytest.fixture
def store(incident_with_buffer: Engine) -> Engine:
    return incident_with_buffer


@contextmanager
def held_up(point: str, work: Callable[[], object], lost: Engine) -> Iterator[list[Lost]]:
    """The work stands still at this point while the block runs, and its session is ended: it holds the lease no more.

    What it raised once it went on is in the list after the block.
    """
    reached, go_on, raised = threading.Event(), threading.Event(), list[Lost]()

    def stand_still() -> None:
        reached.set()
        assert go_on.wait(60)

    def run() -> None:
        try:
            work()
        except (RefusedError, DBAPIError) as error:
            raised.append(error)
            reached.set()

    sync_points.on(point, stand_still)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert reached.wait(60)
        assert not raised
        sync_points.clear()
        # As for a machine that is asleep: the server has given it up.
        cycle.run_sql(lost, "SELECT pg_terminate_backend(backend_pid, 10000) FROM uuid_pipeline.lease")
        yield raised
    finally:
        sync_points.clear()
        go_on.set()
        thread.join()


@pytest.mark.begins("approved")
def test_a_run_that_was_installing_aliases_installs_none_once_others_have_finalized(
    store: Engine, other: Engine
) -> None:
    [first, *_] = cycle.waves_of(store, cycle.newest_execution(store))
    with held_up("aliasing", lambda: cycle.migrate(store, SPEC, first), other) as raised:
        with other.begin() as connection:
            control.cancel(connection)
        finalizing.finalize(other, cycle.bound_store(other, AT_ONCE), "other")
        assert cycle.alias_triggers(other) == []

    assert raised
    assert cycle.alias_triggers(other) == []
    [(document,)] = cycle.run_sql(other, "SELECT document_id::text FROM upload_pipeline.documents LIMIT 1")
    assert cycle.run_sql(other, JOB, document=document) == [(document,)]


@pytest.mark.begins("migrated")
def test_a_finalize_that_was_overtaken_leaves_the_aliases_of_the_next_execution(store: Engine, other: Engine) -> None:
    bound = cycle.bound_store(store, AT_ONCE)
    with held_up("finalized", lambda: finalizing.finalize(store, bound, "first"), other) as raised:
        late = test_sweep.upload(other)
        cycle.run_all(other, AT_ONCE)
        installed = cycle.alias_triggers(other)
        assert installed

    assert isinstance(raised[0], RefusedError)
    assert "lost its lease" in str(raised[0])
    assert cycle.alias_triggers(other) == installed
    [(now,)] = cycle.run_sql(other, JOB, document=late["document"])
    assert now != late["document"]
