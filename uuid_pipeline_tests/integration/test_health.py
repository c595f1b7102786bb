"""Health: each figure against what the test itself made of the store, thresholds, history, and what a tick may cost."""

import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import gates, ledger
from uuid_pipeline.engine.gates import GateResult, Scope
from uuid_pipeline.engine.health import generation, history, identified, latency, tick
from uuid_pipeline.engine.health.history import Tick
from uuid_pipeline.spec import Describe, Health, HealthThresholds, Spec
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()
# As on a store too large to be read whole at each tick.
LARGE = cycle.spec_with(health=Health(small_rows=0))
DOCUMENT = """
INSERT INTO upload_pipeline.documents
    (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path, created_at)
VALUES (%(id)s, %(user)s, 'f', 'm', 1, %(sha)s, 'r', %(at)s)
"""
JOB = """
INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES (gen_random_uuid(), %(id)s, 'queued')
"""

BASELINE = "SELECT value FROM uuid_pipeline.health_baselines WHERE figure = 'lookup_milliseconds'"


@pytest.fixture
def store(incident: Engine) -> Engine:
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    return incident


def look(engine: Engine, spec: Spec = SPEC, **how: bool) -> Tick:
    found = tick.take(engine, cycle.bound_store(engine, spec), "a run", **how)
    assert found is not None
    return found


def values(found: Tick) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in found.figures}


def finding(found: Tick, name: str) -> str:
    return next(figure.finding for figure in found.figures if figure.name == name)


def failed(found: Tick) -> dict[str, str]:
    return {check.name: check.severity for check in found.checks if not check.passed}


def put(engine: Engine, right: bool, at: datetime | None = None) -> None:
    user, sha = str(uuid.uuid4()), uuid.uuid4().hex * 2
    id = str(uuid.uuid5(cycle.NAMESPACE, f"{user}:{sha}")) if right else str(uuid.uuid4())
    cycle.run_sql(engine, DOCUMENT, id=id, user=user, sha=sha, at=at or datetime.now(UTC))


def test_the_incidents_figures_before_the_migration_are_the_reports_and_alarm_as_it_says(store: Engine) -> None:
    rows = cycle.rows_of(store)
    with_chunks = {row["document_id"] for row in rows["document_chunks"]}
    found = look(store)

    figures = values(found)
    assert figures["generation"] == 0
    assert figures["mismatch"] == 1
    assert figures["mismatch_chunk"] == 1
    assert figures["consistency"] == len(with_chunks) / 38 == pytest.approx(0.763, abs=0.001)
    assert figures["retrieval"] == 0
    assert figures["orphans"] == 0
    assert figures["migration_failure"] is None
    assert finding(found, "migration_failure") == "unknown: nothing was migrated yet"
    assert figures["alias_uses"] is None
    assert {name: severity for name, severity in failed(found).items() if name != "generation_success"} == {
        "mismatch_rate": "critical",
        "retrieval_success": "critical",
        "pipeline_consistency": "warning",
    }
    assert [check.name for check in found.alarming if check.name != "generation_success"] == [
        "mismatch_rate", "retrieval_success",
    ]  # fmt: skip


def test_after_the_migration_it_is_green_but_for_what_has_no_chunks(store: Engine) -> None:
    look(store)
    cycle.run_all(store, SPEC)
    found = look(store)

    figures = values(found)
    assert [figures[name] for name in ("generation", "mismatch", "mismatch_chunk", "stray")] == [1, 0, 0, 0]
    assert figures["retrieval"] == 1
    assert figures["migration_failure"] == 0
    assert failed(found) == {"pipeline_consistency": "warning"}
    assert found.alarming == []


@pytest.mark.begins("migrated")
def test_ids_that_only_look_right_are_stray_and_rows_without_target_id_are_counted_apart(store: Engine) -> None:
    user, at = str(uuid.uuid4()), datetime.now(UTC)
    cycle.run_sql(store, DOCUMENT, id=str(uuid.uuid5(uuid.NAMESPACE_URL, "x")), user=user, sha="ab" * 32, at=at)
    cycle.run_sql(store, DOCUMENT, id=str(uuid.uuid4()), user=user, sha="not a digest", at=at)
    figures = values(look(store))
    assert figures["stray"] == figures["mismatch"] == 1 / 39
    assert figures["quarantined"] == 1


@pytest.mark.begins("migrated")
def test_generation_is_of_documents_created_since_the_tick_before_and_the_last_ones_stand(store: Engine) -> None:
    look(store)
    # Beyond the minute that two ticks overlap by.
    cycle.run_sql(store, "UPDATE uuid_pipeline.health_ticks SET at = now() - interval '1 hour'")
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    for right in (True, True, True, False):
        put(store, right)
    put(store, False, long_ago)

    bad = look(store)
    assert values(bad)["generation_new"] == 3 / 4
    assert failed(bad)["generation_success"] == "error"

    # An hour later nobody has uploaded anything: what the last ones got is no better for that.
    cycle.run_sql(store, "UPDATE upload_pipeline.documents SET created_at = created_at - interval '60 minutes'")
    cycle.run_sql(store, "UPDATE uuid_pipeline.health_ticks SET at = at - interval '55 minutes'")
    quiet = look(store)
    assert values(quiet)["generation_new"] == 3 / 4
    since = next(check.failing_since for check in quiet.checks if check.name == "generation_success")
    assert since == bad.at

    # Until they are mended.
    cycle.run_sql(store, "DELETE FROM upload_pipeline.documents WHERE substr(document_id::text, 15, 1) <> '5'")
    mended = look(store)
    assert values(mended)["generation_new"] == 1
    assert failed(mended) == {"pipeline_consistency": "warning"}


def test_without_created_at_generation_is_unknown_and_no_alarm(store: Engine) -> None:
    document = SPEC.entities["document"].model_copy(update={"describe": Describe()})
    spec = cycle.spec_with(entities=SPEC.entities | {"document": document})
    found = look(store, spec)
    assert values(found)["generation_new"] is None
    assert finding(found, "generation_new") == (
        "unknown: the spec does not say which column of documents is created_at"
    )
    assert "generation_success" not in failed(found)


@pytest.mark.begins("migrated")
def test_a_large_store_is_read_whole_only_when_it_is_due_and_new_rows_are_found_at_every_tick(store: Engine) -> None:
    first = look(store, LARGE)
    assert first.whole
    put(store, False)

    second = look(store, LARGE)
    assert not second.whole
    assert values(second)["mismatch"] == 0
    assert f"[as of {first.at:%Y-%m-%d %H:%M} UTC; now unknown: whole tables are read every 24 hours]" in finding(
        second, "mismatch"
    )
    assert values(second)["generation_new"] == 0
    assert finding(second, "generation_new").endswith(", in the last 1000 pages: no index begins with created_at")
    # The sample sees it, whatever has been read whole.
    assert values(second)["mismatch_sampled"] == 1 / 39
    cycle.run_sql(store, "CREATE INDEX ON upload_pipeline.documents (created_at)")
    third = look(store, LARGE)
    assert finding(third, "generation_new").startswith("0 of 1 documents created since")
    assert "pages" not in finding(third, "generation_new")
    assert not third.whole

    cycle.run_sql(store, "UPDATE uuid_pipeline.health_ticks SET at = at - interval '25 hours'")
    assert values(look(store, LARGE))["mismatch"] == 1 / 39
    assert look(store, LARGE, full=True).whole


MANY = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
SELECT gen_random_uuid(), gen_random_uuid(), repeat('f', 1000), 'm', 1, repeat('a', 64), 'r'
FROM generate_series(1, %(rows)s)
"""


def test_without_an_index_no_more_than_the_end_of_the_table_is_looked_at(
    store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(store, LARGE)
    cycle.run_sql(store, MANY, rows=50)
    for _ in range(3):
        put(store, True)
    [(pages,)] = cycle.run_sql(store, "SELECT pg_relation_size('upload_pipeline.documents') / 8192")
    assert pages > 5
    assert finding(look(store, LARGE), "generation_new").startswith("3 of 53 documents")

    monkeypatch.setattr(generation, "LAST_PAGES", 1)
    last = next(figure for figure in look(store, LARGE).figures if figure.name == "generation_new")
    assert last.part == 3
    assert 3 <= (last.whole or 0) < 53


def test_a_level_that_takes_too_long_costs_its_own_figure_alone(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = cycle.spec_with(health=Health(full_scan_seconds=30))
    stream, real = identified.stream, time.monotonic

    def slow(connection: Any, bound: Any, entity: Any, *how: Any) -> Any:
        """The chunks are read when the time is over."""
        if entity.name == "chunk" and not how:
            clock.append(31)
        return stream(connection, bound, entity, *how)

    clock = [0.0]
    monkeypatch.setattr(identified, "stream", slow)
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(clock))
    found = look(store, spent)
    assert values(found)["mismatch"] == 1
    assert values(found)["consistency"] == pytest.approx(29 / 38)
    assert finding(found, "mismatch_chunk") == "unknown: the scan took longer than health.full_scan_seconds (30)"


@pytest.mark.begins("migrated")
def test_the_sample_goes_round_the_whole_store(store: Engine) -> None:
    spec = cycle.spec_with(health=Health(sample=15))
    put(store, False)
    wrong = [values(look(store, spec))["mismatch_sampled"] for _ in range(6)]
    # 39 documents, 15 a tick: the wrong one is met about every third time.
    assert wrong.count(1 / 15) in (2, 3)
    assert set(wrong) == {0, 1 / 15}


@pytest.mark.begins("migrated")
def test_a_document_that_stands_with_its_chunks_under_another_id_is_not_retrieved(store: Engine) -> None:
    with_chunks = {str(row["document_id"]) for row in cycle.rows_of(store)["document_chunks"]}
    moved = {"old": min(with_chunks), "new": str(uuid.uuid4())}
    with cycle.session(store) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in ("documents", "document_chunks", "upload_jobs", "events"):
            change = "UPDATE upload_pipeline.{} SET document_id = %(new)s WHERE document_id = %(old)s"
            connection.execute(change.format(table), moved)
    figures = values(look(store))
    assert figures["retrieval"] == (len(with_chunks) - 1) / len(with_chunks)


@pytest.mark.begins("approved")
def test_documents_set_aside_and_waves_with_a_red_gate_are_migration_failures(store: Engine) -> None:
    execution = cycle.newest_execution(store)
    changed = cycle.rows_of(store)["documents"][0]["document_id"]
    new_hash = "UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64) WHERE document_id = %(id)s"
    cycle.run_sql(store, new_hash, id=changed)
    for wave in cycle.waves_of(store, execution):
        cycle.migrate(store, SPEC, wave)
        cycle.check_wave(store, SPEC, wave)
    assert values(look(store))["migration_failure"] == 1 / 38

    canary = cycle.waves_of(store, execution)[0]
    red = GateResult.of("ids_exact", False, "made red by a test", "nothing")
    with store.begin() as connection:
        scope = Scope(execution=execution.execution_id, wave=canary.wave)
        gates.record(connection, scope, "migrated_documents", red, cycle.RUN)
    found = look(store)
    assert values(found)["migration_failure"] in (canary.documents / 38, (canary.documents + 1) / 38)
    assert failed(found)["migration_failures"] == "error"


def test_uses_of_old_ids_are_counted_from_tick_to_tick(store: Engine) -> None:
    old = str(cycle.rows_of(store)["documents"][0]["document_id"])
    cycle.run_all(store, SPEC)
    assert values(look(store))["alias_uses"] == 0
    for _ in range(3):
        cycle.run_sql(store, JOB, id=old)
    assert values(look(store))["alias_uses"] == 3
    assert values(look(store))["alias_uses"] == 0


def test_latency_is_compared_with_the_median_of_the_first_ticks(store: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cycle.spec_with(health=Health(latency_floor_milliseconds=0))
    for _ in range(latency.BASELINE_TICKS - 1):
        assert values(look(store, spec))["lookup_degradation"] is None
    assert values(look(store, spec))["lookup_degradation"] is not None
    [(baseline,)] = cycle.run_sql(store, BASELINE)
    measured = cycle.run_sql(
        store, "SELECT value FROM uuid_pipeline.health_figures WHERE figure = 'lookup_milliseconds' ORDER BY value"
    )
    assert baseline == measured[2][0]

    cycle.run_sql(
        store, "UPDATE uuid_pipeline.health_baselines SET value = value / 100 WHERE figure = 'lookup_milliseconds'"
    )
    slow = look(store, spec)
    assert failed(slow)["lookup_latency"] == "warning"
    # A floor keeps fractions of a millisecond from alarming.
    assert "lookup_latency" not in failed(look(store, cycle.spec_with(health=Health(latency_floor_milliseconds=9e9))))
    look(store, spec, new_baseline=True)
    [(again,)] = cycle.run_sql(store, BASELINE)
    assert again > 10 * baseline / 100


def test_a_child_whose_index_was_dropped_since_the_baseline_is_looked_up_all_the_same(store: Engine) -> None:
    for _ in range(latency.BASELINE_TICKS):
        before = finding(look(store), "lookup_milliseconds")
    cycle.run_sql(
        store,
        """ALTER TABLE upload_pipeline.document_chunks
           DROP CONSTRAINT document_chunks_document_id_chunker_name_chunker_version_ch_key""",
    )
    after = finding(look(store), "lookup_milliseconds")

    assert "for 2 statements" in before
    assert "for 2 statements" in after
    assert "document_chunks.document_id had an index when the baseline was taken" in after
    # A baseline of now knows of none.
    look(store, new_baseline=True)
    assert "for 1 statements" in finding(look(store), "lookup_milliseconds")


def test_values_that_only_the_driver_cannot_read_keep_no_figure_from_being_had(store: Engine) -> None:
    cycle.run_sql(
        store,
        """ALTER TABLE upload_pipeline.documents ADD COLUMN lasts interval DEFAULT '1 year 2 months',
           ADD COLUMN seen timestamptz DEFAULT '20000-01-01', ADD COLUMN until date DEFAULT 'infinity'""",
    )

    assert values(look(store))["lookup_milliseconds"] is not None


def test_thresholds_are_the_specs(store: Engine) -> None:
    lax = HealthThresholds(
        mismatch=1, retrieval_failure=1, consistency=0.5, generation_failure=None, migration_failure=0, degradation=None
    )
    found = look(store, cycle.spec_with(health=Health(thresholds=lax)))
    assert failed(found) == {}
    assert next(check.threshold for check in found.checks if check.name == "generation_success") is None


def test_a_tick_beside_a_running_one_is_skipped(store: Engine) -> None:
    bound = cycle.bound_store(store, SPEC)
    with cycle.session(store) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('uuid_pipeline.health', 0))")
        assert tick.take(store, bound, "a run") is None
    taken: list[Tick | None] = []
    threads = [threading.Thread(target=lambda: taken.append(tick.take(store, bound, "a run"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert any(taken)
    [(ticks,)] = cycle.run_sql(store, "SELECT count(*) FROM uuid_pipeline.health_ticks")
    assert ticks == len([one for one in taken if one])


def test_what_takes_too_long_or_is_locked_is_unknown_and_the_rest_is_measured(store: Engine) -> None:
    spec = cycle.spec_with(health=Health(statement_seconds=0.5, full_scan_seconds=0.5))
    bound = cycle.bound_store(store, spec)
    with cycle.session(store) as blocker:
        blocker.execute("LOCK TABLE upload_pipeline.document_chunks IN ACCESS EXCLUSIVE MODE")
        found = tick.take(store, bound, "a run")
    assert found is not None
    assert finding(found, "consistency") == "unknown: canceling statement due to statement timeout"
    assert values(found)["mismatch_chunk"] is None
    assert values(found)["retrieval"] is None
    assert values(found)["generation"] is None
    assert values(found)["mismatch_sampled"] == 1
    assert "pipeline_consistency" not in failed(found)


def test_documents_that_are_locked_leave_every_figure_of_them_unknown_and_the_tick_is_kept(store: Engine) -> None:
    bound = cycle.bound_store(store, cycle.spec_with(health=Health(statement_seconds=0.3, full_scan_seconds=0.3)))
    with cycle.session(store) as blocker:
        blocker.execute("LOCK TABLE upload_pipeline.documents IN ACCESS EXCLUSIVE MODE")
        found = tick.take(store, bound, "a run")
    assert found is not None
    known = {name for name, value in values(found).items() if value is not None}
    assert known <= {"orphans"}
    assert failed(found) == {}


def test_what_failed_and_is_unknown_now_has_not_recovered(store: Engine) -> None:
    first = look(store)
    assert "retrieval_success" in failed(first)
    bound = cycle.bound_store(store, cycle.spec_with(health=Health(statement_seconds=0.5, full_scan_seconds=0.5)))
    with cycle.session(store) as blocker:
        blocker.execute("LOCK TABLE upload_pipeline.document_chunks IN ACCESS EXCLUSIVE MODE")
        found = tick.take(store, bound, "a run")
    assert found is not None
    assert values(found)["retrieval"] is None
    check = next(check for check in found.checks if check.name == "retrieval_success")
    assert (check.passed, check.value, check.failing_since) == (False, None, first.at)
    assert check.finding.endswith("; it failed when it was last known")
    # Where there is nothing left to measure, nothing fails.
    cycle.run_sql(store, "TRUNCATE upload_pipeline.documents CASCADE")
    assert failed(look(store)) == {}


def test_history_is_kept_for_the_specs_days_and_read_back_as_it_was(store: Engine) -> None:
    first = look(store)
    with store.begin() as connection:
        assert history.newest(connection) == first
    cycle.run_sql(store, "UPDATE uuid_pipeline.health_ticks SET at = now() - interval '91 days'")
    second = look(store)
    kept = """SELECT (SELECT array_agg(tick_no) FROM uuid_pipeline.health_ticks), count(*)
              FROM uuid_pipeline.health_figures"""
    found: list[tuple[Any, ...]] = cycle.run_sql(store, kept)
    assert found == [([second.tick_no], len(second.figures))]


def test_an_empty_store_has_nothing_to_measure_and_no_alarm(store: Engine) -> None:
    cycle.run_sql(store, "TRUNCATE upload_pipeline.documents CASCADE")
    found = look(store)
    assert values(found)["mismatch"] is None
    assert failed(found) == {}
