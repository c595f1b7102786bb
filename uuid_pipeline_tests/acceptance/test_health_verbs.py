"""The verbs that watch a store: health with its files and endpoints, guard, status --watch; and the schedules."""

import http.client
import json
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from uuid_pipeline.cli import watching
from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.health.checks import RULES
from uuid_pipeline.operations import metrics, schedules
from uuid_pipeline.spec import Schedules
from uuid_pipeline_tests.acceptance.conftest import ROOT, CommandLine
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

SPEC = cycle.spec_with()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def samples(text: str) -> dict[str, float]:
    """Every sample of an exposition, by name and labels, as Prometheus's own parser reads it."""
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_runs_a_job_shows_its_checks_and_its_exit_code_is_theirs(
    command_line: CommandLine, instance: dg.DagsterInstance, incident: Engine, tmp_path: Path
) -> None:
    said = command_line("health", "--last")
    assert (said.code, said.out) == (1, "")
    assert "Run: uuid-pipeline health" in said.err

    before = command_line("health", "--json", "--prometheus", str(tmp_path / "uuid.prom"))
    assert before.code == 1
    failed = {check["check"]: check for check in before.data["checks"] if not check["passed"]}
    assert failed["mismatch_rate"]["value"] == 1
    assert failed["mismatch_rate"]["threshold"] == 0.01
    assert before.data["figures"]["consistency"]["value"] == 29 / 38

    cycle.run_all(incident, SPEC)
    after = command_line("health", "--full")
    assert after.code == 0, after.out
    assert "generation" in after.out
    # It is seen in the UI: numbers that it plots, and checks with their severity.
    [newest] = instance.fetch_materializations(dg.AssetKey("uuid_health"), limit=1).records
    assert newest.asset_materialization is not None
    assert newest.asset_materialization.metadata["mismatch"].value == 0.0
    written = samples((tmp_path / "uuid.prom").read_text())
    assert written["uuid_pipeline_mismatch_ratio{entity=main}"] == 1
    assert written["uuid_pipeline_mismatch_ratio{entity=chunk}"] == 1
    assert written["uuid_pipeline_check_passing{check=mismatch_rate}{severity=critical}"] == 0
    assert "uuid_pipeline_migration_failure_ratio" not in written
    assert list(tmp_path.glob("*.prom*")) == [tmp_path / "uuid.prom"]


def test_a_failed_check_has_the_reports_severity_and_stops_nothing(
    command_line: CommandLine, instance: dg.DagsterInstance
) -> None:
    from uuid_pipeline.definitions import defs

    result = defs.resolve_job_def("health").execute_in_process(instance=instance)
    assert result.success
    found = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert set(found) == {rule.name for rule in RULES}
    assert not found["mismatch_rate"].passed
    assert found["mismatch_rate"].severity == dg.AssetCheckSeverity.ERROR
    assert found["pipeline_consistency"].severity == dg.AssetCheckSeverity.WARN
    assert found["mismatch_rate"].metadata["threshold"].value == 0.01
    # What nothing was measured of does not alarm.
    assert found["migration_failures"].passed
    assert defs.resolve_job_def("review_aliases").execute_in_process(instance=instance).success


def test_the_endpoint_serves_the_newest_tick_and_says_whether_store_and_ledger_are_there(
    command_line: CommandLine, incident: Engine, incident_url: str
) -> None:
    server = metrics.server(open_store(incident_url), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert get(server.server_port, "/healthz")[0] == 503
        assert get(server.server_port, "/metrics")[0] == 200
        assert command_line("health").code == 1
        status, body = get(server.server_port, "/healthz")
        assert (status, json.loads(body)["ledger"]) == (200, True)
        found = samples(get(server.server_port, "/metrics")[1])
        assert found["uuid_pipeline_consistency_ratio"] == 29 / 38
        assert found["uuid_pipeline_last_tick_timestamp_seconds"] == pytest.approx(time.time(), abs=600)
        assert get(server.server_port, "/else")[0] == 404
        with incident.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA uuid_pipeline CASCADE")
        status, body = get(server.server_port, "/healthz")
        assert (status, json.loads(body)) == (503, {"store": True, "ledger": False, "last_tick": None})
    finally:
        server.shutdown()
        server.server_close()


def test_listening_is_on_loopback_only_and_ends_with_ctrl_c(command_line: CommandLine) -> None:
    assert command_line("health", "--listen", "0.0.0.0:9187").code == 2
    assert command_line("health", "--listen", "127.0.0.1").code == 2
    process = command_line.start("health", "--listen", "127.0.0.1:0")
    assert process.stderr is not None
    line = process.stderr.readline()
    port = int(line.split("/metrics")[0].rpartition(":")[2])
    assert get(port, "/healthz")[0] in (200, 503)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 0


def test_the_guard_is_installed_reported_and_removed_by_verbs(command_line: CommandLine, incident: Engine) -> None:
    objects = cycle.catalog_of(incident)
    assert command_line("guard", "install", "--mode", "refuse").code == 2
    said = command_line("guard", "install", "--mode", "warn", "--entity", "document", "--json")
    assert said.code == 0, said.err
    assert [(one["entity"], one["mode"]) for one in said.data["guards"]] == [("document", "warn")]
    document = """
        INSERT INTO upload_pipeline.documents
            (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
        VALUES (%(id)s, gen_random_uuid(), 'f', 'm', 1, repeat('a', 64), 'r')"""
    id = str(uuid.uuid4())
    cycle.run_sql(incident, document, id=id)
    found = command_line("guard", "report", "--json").data
    assert found["guards"][0]["caught"] == 1
    assert [sample["given_id"] for sample in found["samples"]] == [id]
    assert command_line("drop-ledger").code == 1
    assert command_line("guard", "remove").code == 0
    assert cycle.catalog_of(incident) == objects
    assert "removed" in command_line("guard", "report").out


def test_watching_ends_when_nothing_runs_and_shows_what_a_wave_has_done_and_waits_for(
    command_line: CommandLine, incident: Engine, incident_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BETWEEN_WAVES_SECONDS", 0.0)
    with incident.begin() as connection:
        ledger.create(connection, cycle.bound(connection, SPEC))
    assert command_line("status", "--watch", "--json").code == 2
    idle = command_line("status", "--watch")
    assert (idle.code, idle.out) == (0, "Nothing runs.\n")

    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    canary, recent, *_ = cycle.waves_of(incident, execution)
    cycle.migrate(incident, SPEC, canary)
    with leases.held(open_store(incident_url), "a run that waits"):
        waits = """INSERT INTO uuid_pipeline.waits (wave, cause, reason)
                   VALUES (%(wave)s, 'replication_lag', 'replay is 9 s behind; the limit is 5 s')"""
        cycle.run_sql(incident, waits, wave=recent.wave)
        watcher = command_line.start("status", "--watch", "--interval", "0.2")
        assert watcher.stdout is not None
        first, second = watcher.stdout.readline(), watcher.stdout.readline()
        running = command_line("status", "--json").data["progress"]
    assert first.startswith(f"{recent.wave}: 0 of {recent.documents} documents (0.0 %), 0 rows in 0 batches")
    assert "(replication_lag): replay is 9 s behind; the limit is 5 s" in second
    assert running["writing"] is True
    watcher.send_signal(signal.SIGINT)
    out, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0, out


@pytest.mark.begins("approved")
def test_progress_counts_what_the_journal_says(command_line: CommandLine, incident: Engine) -> None:
    execution = cycle.newest_execution(incident)
    for wave in cycle.all_waves_of(incident, execution):
        run = cycle.migrate(incident, SPEC, wave)
        cycle.assert_green(cycle.check_wave(incident, SPEC, wave))
        if wave.kind == "remaining":
            break
    # The sweeps are still to come; of the last wave all is known.
    found = command_line("status", "--json").data
    assert found["progress"]["wave"].endswith("sweep-1")
    moved = {wave["wave"]: wave["moved"] for wave in found["waves"]}
    assert moved[wave.wave] == wave.documents == run.documents


@pytest.mark.system
def test_a_waves_progress_and_waits_are_numbers_that_the_ui_plots(
    command_line: CommandLine, instance: dg.DagsterInstance
) -> None:
    assert command_line("run", "--approve").code == 0
    seen = instance.fetch_observations(dg.AssetKey("migrated_documents"), limit=50).records
    last = {str(record.partition_key): record for record in reversed(seen)}
    assert len(last) >= 3
    for record in last.values():
        assert record.asset_observation is not None
        metadata = record.asset_observation.metadata
        assert metadata["documents"].value == metadata["documents_of"].value
        assert float(str(metadata["documents_per_second"].value)) > 0
    done = instance.fetch_materializations(dg.AssetKey("migrated_documents"), limit=1).records[0]
    assert done.asset_materialization is not None
    assert done.asset_materialization.metadata["waited_seconds"].value == 0.0


def by_name(made: list[dg.ScheduleDefinition]) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.name: schedule for schedule in made}


def test_schedules_take_their_times_from_the_spec_and_are_off_but_for_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Schedules(timezone="Europe/Berlin", health="*/2 * * * *", validation=None)
    made = by_name(schedules.build(wanted, dg.DefaultScheduleStatus.STOPPED))
    assert set(made) == {"health_schedule", "assess_schedule", "review_aliases_schedule"}
    assert made["health_schedule"].cron_schedule == "*/2 * * * *"
    assert made["health_schedule"].execution_timezone == "Europe/Berlin"

    monkeypatch.delenv("UUID_PIPELINE_SPEC", raising=False)
    monkeypatch.setenv("UUID_PIPELINE_DATABASE_URL", "postgresql:///a_store_of_ones_own")
    assert {s.default_status for s in schedules.configured()} == {dg.DefaultScheduleStatus.STOPPED}
    monkeypatch.delenv("UUID_PIPELINE_DATABASE_URL")
    assert {s.default_status for s in schedules.configured()} == {dg.DefaultScheduleStatus.RUNNING}


def evaluated(instance: dg.DagsterInstance, name: str) -> Any:
    from uuid_pipeline.definitions import defs

    schedule = defs.get_repository_def().get_schedule_def(name)
    return schedule.evaluate_tick(dg.build_schedule_context(instance=instance, scheduled_execution_time=None))


def test_a_schedule_asks_for_a_run_unless_one_is_at_it_or_it_would_be_in_the_way(
    command_line: CommandLine, instance: dg.DagsterInstance, incident: Engine
) -> None:
    assert len(evaluated(instance, "health_schedule").run_requests) == 1
    assert len(evaluated(instance, "assess_schedule").run_requests) == 1
    nothing = "Nothing is migrated that could be validated. Run: uuid-pipeline run"
    assert evaluated(instance, "validate_schedule").skip_message == nothing
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    assert evaluated(instance, "assess_schedule").skip_message == (
        f"Execution {execution.execution_id} is approved; its plan stands."
    )
    cycle.migrate_all(incident, SPEC, execution)
    cycle.assert_green(cycle.validate(incident))
    assert len(evaluated(instance, "validate_schedule").run_requests) == 1

    from uuid_pipeline.definitions import defs

    run = instance.create_run_for_job(defs.resolve_job_def("health"))
    assert run.status == dg.DagsterRunStatus.NOT_STARTED
    assert "has not ended" in str(evaluated(instance, "health_schedule").skip_message)


def test_every_check_has_its_page_in_the_runbook() -> None:
    for rule in RULES:
        page = (ROOT / "docs" / "runbook" / f"{rule.name}.md").read_text()
        assert "uuid-pipeline" in page, rule.name
