"""Lanes: two batches at once while nobody else is at work, one beside others; whichever of two stops, none is lost."""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import control, lease, ledger, migration, sync_points
from uuid_pipeline.engine.batches import lanes, writing
from uuid_pipeline.errors import BatchError, RefusedError
from uuid_pipeline.spec import SoftReference, Spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with(batch_rows=1)
JOURNAL = """
SELECT first_ordinal, last_ordinal, count(*) FROM uuid_pipeline.batches WHERE direction = '{}' GROUP BY 1, 2 ORDER BY 1
"""
ONCE_EACH = [(ordinal, ordinal, 1) for ordinal in range(1, 39)]


@dataclass
class Meeting:
    """Notes at a sync point how many batches have come there and not committed yet; each stays a moment."""

    inside: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, seconds: float = 0.05) -> None:
        def come() -> None:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            time.sleep(seconds)

        def leave() -> None:
            with self.lock:
                self.inside -= 1

        sync_points.on("held", come)
        sync_points.on("committed", leave)


@pytest.fixture
def rounds_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "BATCHES_A_ROUND", 1)


class StoppedError(Exception):
    """What a test throws into a batch."""


def stop_one_of_two() -> None:
    """Of the first two batches that hold their rows at once, let the first go no further and the second commit."""
    met, lock, stopped = threading.Barrier(2, timeout=20), threading.Lock(), list[int]()

    def come() -> None:
        if stopped:
            return
        met.wait()
        with lock:
            if not stopped:
                stopped.append(threading.get_ident())
                raise StoppedError

    sync_points.on("held", come)


def approved(engine: Engine) -> list[ledger.Wave]:
    execution = cycle.approve(engine, SPEC, cycle.assess_and_plan(engine, SPEC).plan_id)
    return cycle.waves_of(engine, execution)


def test_two_batches_are_written_at_once_and_every_row_has_the_id_that_it_should_have(incident: Engine) -> None:
    before = cycle.rows_of(incident)
    meeting = Meeting()
    meeting.watch()

    cycle.run_all(incident, SPEC)

    assert meeting.most == 2
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert cycle.run_sql(incident, JOURNAL.format("forward")) == ONCE_EACH
    sync_points.clear()
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


def test_beside_a_session_that_was_at_work_a_moment_ago_there_is_one(incident: Engine) -> None:
    [canary, *_] = approved(incident)
    meeting = Meeting()
    meeting.watch()

    with cycle.session(incident) as application:
        application.execute("SELECT 1")
        application.commit()
        cycle.migrate(incident, SPEC, canary)

    assert meeting.most == 1


def test_an_application_that_begins_to_work_has_the_next_batch_alone(incident: Engine, rounds_of_two: None) -> None:
    [canary, recent, *_] = approved(incident)
    cycle.migrate(incident, SPEC, canary)
    cycle.assert_green(cycle.check_wave(incident, SPEC, canary))
    first_two, lock = threading.Barrier(2, timeout=20), threading.Lock()
    begun: list[int] = []
    inside: list[int] = []
    beside_the_application: list[int] = []

    application: list[object] = []

    with ExitStack() as stack:

        def come() -> None:
            with lock:
                number = len(begun)
                begun.append(number)
                inside.append(number)
            if number < 2:
                first_two.wait()
                return
            time.sleep(0.02)
            with lock:
                beside_the_application.append(len(inside))

        def leave() -> None:
            with lock:
                inside.pop()
                if not application:
                    application.append(stack.enter_context(cycle.session(incident)))

        sync_points.on("held", come)
        sync_points.on("committed", leave)
        cycle.migrate(incident, SPEC, recent)

    assert beside_the_application == [1] * (recent.documents - 2)


def test_one_lane_is_what_the_spec_may_ask_for(incident: Engine) -> None:
    [canary, *_] = approved(incident)
    alone = SPEC.model_copy(update={"lanes": 1})

    store = cycle.bound_store(incident, alone)
    with incident.connect() as connection:
        spans = migration.open_spans(connection, canary)
        assert lanes.most(connection, store, canary, spans, 1) == 1
        assert lanes.most(connection, cycle.bound_store(incident, SPEC), canary, spans, 1) == 2
        assert lanes.most(connection, cycle.bound_store(incident, SPEC), canary, spans, canary.documents) == 1


@pytest.mark.parametrize(
    ("alteration", "soft"),
    [
        ("ALTER TABLE upload_pipeline.events ADD copy_of uuid REFERENCES upload_pipeline.documents", ()),
        ("ALTER TABLE upload_pipeline.documents ADD copy_of uuid REFERENCES upload_pipeline.documents", ()),
        (
            "ALTER TABLE upload_pipeline.webhook_log ADD note text",
            (SoftReference(table="webhook_log", column="note", entity="document"),),
        ),
    ],
    ids=["two documents in a row", "a document that refers to another", "ids in text"],
)
def test_where_two_batches_could_meet_in_a_row_there_is_one(
    incident: Engine, alteration: str, soft: tuple[SoftReference, ...]
) -> None:
    before = lanes_for(incident, SPEC)
    cycle.run_sql(incident, alteration)

    assert (before, lanes_for(incident, cycle.spec_with(batch_rows=1, soft_references=list(soft)))) == (2, 1)


def test_a_wave_that_merges_has_one(twins: Engine) -> None:
    assert lanes_for(twins, SPEC) == 1


def lanes_for(engine: Engine, spec: Spec) -> int:
    """How many batches at once the largest wave of a plan may have."""
    execution = cycle.approve(engine, spec, cycle.assess_and_plan(engine, spec).plan_id)
    wave = max(cycle.waves_of(engine, execution), key=lambda wave: wave.documents)
    with engine.connect() as connection:
        spans = migration.open_spans(connection, wave)
        return lanes.most(connection, cycle.bound_store(engine, spec), wave, spans, 1)


def test_where_the_server_gives_no_further_session_those_that_there_are_do(
    incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    role, before = new_role("CONNECTION LIMIT 3"), cycle.rows_of(incident)
    cycle.run_sql(incident, f"GRANT CREATE ON DATABASE {incident.url.database} TO {role}")
    cycle.run_sql(incident, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    for table in before:
        cycle.run_sql(incident, f"ALTER TABLE upload_pipeline.{table} OWNER TO {role}")
    incident.dispose()
    meeting = Meeting()
    meeting.watch()

    with opened(as_role(incident_url, role)) as owner:
        cycle.run_all(owner, SPEC.model_copy(update={"lanes": 4}))

    assert meeting.most == 3
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_what_one_of_two_batches_left_is_done_by_the_next_run(incident: Engine) -> None:
    before = cycle.rows_of(incident)
    [canary, *_] = approved(incident)
    stop_one_of_two()

    with pytest.raises(StoppedError):
        cycle.migrate(incident, SPEC, canary)

    [(one, _, _)] = cycle.run_sql(incident, JOURNAL.format("forward"))
    with incident.connect() as connection:
        left = [n for first, last in migration.open_spans(connection, canary) for n in range(first, last + 1)]
    assert sorted([*left, one]) == list(range(canary.first_ordinal, canary.last_ordinal + 1))

    sync_points.clear()
    cycle.finish(incident, SPEC, cycle.newest_execution(incident))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert cycle.run_sql(incident, JOURNAL.format("forward")) == ONCE_EACH


def test_a_rollback_takes_back_what_was_moved_and_nothing_of_the_gap(incident: Engine) -> None:
    before, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    [canary, *_] = approved(incident)
    stop_one_of_two()
    with pytest.raises(StoppedError):
        cycle.migrate(incident, SPEC, canary)
    sync_points.clear()
    moved = cycle.run_sql(incident, JOURNAL.format("forward"))
    assert cycle.rows_of(incident) != before

    cycle.roll_back(incident, SPEC)

    assert cycle.run_sql(incident, JOURNAL.format("back")) == moved
    assert cycle.rows_of(incident) == before
    assert cycle.catalog_of(incident) == objects


def test_a_proof_that_fails_in_one_lane_stops_the_wave_and_names_the_row(incident: Engine, rounds_of_two: None) -> None:
    """A trigger marked ALWAYS fires under the replica role; made after the plan, it is none that we silence."""
    before = cycle.rows_of(incident)
    [canary, *_] = approved(incident)
    [(spoiled,)] = cycle.run_sql(
        incident, "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = %(n)s", n=1
    )

    def spoil() -> None:
        cycle.run_sql(
            incident,
            f"""CREATE FUNCTION upload_pipeline.spoil() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN IF OLD.document_id = '{spoiled}' THEN NEW.filename = 'x'; END IF; RETURN NEW; END$$;
                CREATE TRIGGER spoil BEFORE UPDATE ON upload_pipeline.documents FOR EACH ROW
                EXECUTE FUNCTION upload_pipeline.spoil();
                ALTER TABLE upload_pipeline.documents ENABLE ALWAYS TRIGGER spoil;""",
        )

    sync_points.on("guarded", spoil)
    with pytest.raises(BatchError, match=r"filename should be .* and is 'x'"):
        cycle.migrate(incident, SPEC, canary)

    sync_points.clear()
    [(committed,)] = cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches")
    assert committed == 1
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


def test_a_wish_to_cancel_is_obeyed_before_the_next_two(incident: Engine, other: Engine, rounds_of_two: None) -> None:
    [canary, *_] = approved(incident)

    def cancel() -> None:
        with other.begin() as connection:
            control.cancel(connection)

    sync_points.on("held", cancel)
    with pytest.raises(RefusedError, match="was cancelled"):
        cycle.migrate(incident, SPEC, canary)

    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches") == [(2,)]


def test_who_takes_the_lease_over_waits_for_both_and_none_writes_after(
    incident: Engine, other: Engine, rounds_of_two: None
) -> None:
    [canary, *_] = approved(incident)
    met, taken, told = threading.Barrier(2, timeout=20), threading.Event(), list[tuple[object, ...]]()

    def take_over() -> None:
        with lease.held(other, "the next"):
            told.extend(cycle.run_sql(other, "SELECT count(*) FROM uuid_pipeline.batches"))
            taken.set()

    next_one = threading.Thread(target=take_over)

    def as_if_dead() -> None:
        cycle.run_sql(other, "UPDATE uuid_pipeline.lease SET backend_start = backend_start - interval '1 hour'")

    def hold() -> None:
        if met.wait() == 0:
            next_one.start()
        assert not taken.wait(0.5)

    def until_taken(_: writing.Progress) -> None:
        assert taken.wait(20)

    sync_points.on("guarded", as_if_dead)
    sync_points.on("held", hold)
    with pytest.raises(RefusedError, match="lost its lease"):
        migration.run_wave(incident, cycle.bound_store(incident, SPEC), canary.wave, "the first", until_taken)

    next_one.join()
    assert told == [(2,)]
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches") == [(2,)]


def test_once_one_of_a_round_has_failed_no_other_is_begun() -> None:
    begun = list[int]()

    def one(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        if number == 2:
            raise StoppedError

    futures = lanes.at_once([partial(one, number) for number in range(20)], 2)

    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 6
    assert isinstance(futures[2].exception(), StoppedError)
    assert [future.cancelled() for future in futures] == [number not in begun for number in range(20)]
