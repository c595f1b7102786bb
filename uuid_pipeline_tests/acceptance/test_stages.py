"""The stages in Dagster: what there is of them, and gates that bind whatever is launched, in whatever way."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import gates
from uuid_pipeline.operations.instance import open_instance
from uuid_pipeline.settings import read_settings
from uuid_pipeline_tests.acceptance.conftest import CommandLine, with_password
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

SECRET = "pl4nted-s3cret"
SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
STAGES = (
    "store_profile",
    "document_inventory",
    "duplicate_clusters",
    "id_mapping",
    "store_backup",
    "migration_plan",
    "migrated_documents",
    "validation_report",
    "completion_report",
)
WATCHED = ("uuid_health", "alias_review")


class Stages:
    """The project's definitions on one instance, launched as from the UI."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        from uuid_pipeline.definitions import defs

        self.instance = instance
        self.defs = defs

    def job(self, name: str, partition: str | None = None, **ops: dict[str, str]) -> dg.ExecuteInProcessResult:
        """Run one of the project's jobs."""
        return self._execute(self.defs, name, partition, ops)

    def launch(self, *stages: str, partition: str | None = None, checks: bool) -> dg.ExecuteInProcessResult:
        """Materialize chosen stages, with their checks or with all of them deselected."""
        selection = dg.AssetSelection.assets(*stages)
        return self._execute(
            self._launching(selection if checks else selection.without_checks()), "launched", partition, {}
        )

    def only_checks(self, stage: str) -> dg.ExecuteInProcessResult:
        """Run the checks of a stage without the stage."""
        return self._execute(self._launching(dg.AssetSelection.checks_for_assets(stage)), "launched", None, {})

    def _launching(self, chosen: dg.AssetSelection) -> dg.Definitions:
        job = dg.define_asset_job("launched", chosen, executor_def=dg.in_process_executor)
        return dg.Definitions.merge(self.defs, dg.Definitions(jobs=[job]))

    def _execute(
        self, defs: dg.Definitions, name: str, partition: str | None, ops: dict[str, dict[str, str]]
    ) -> dg.ExecuteInProcessResult:
        config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        config["ops"] = {op: {"config": values} for op, values in ops.items()}
        return defs.resolve_job_def(name).execute_in_process(
            instance=self.instance, partition_key=partition, run_config=config, raise_on_error=False
        )

    def plan_id(self) -> str:
        """Plan, and read the plan's id where a person finds it."""
        result = self.job("plan")
        assert result.success
        found = result.asset_materializations_for_node("migration_plan")[0].metadata["plan_id"].value
        assert isinstance(found, str)
        return found

    def approved(self) -> list[str]:
        """Plan and approve; returns the waves."""
        assert self.job("approve", approve_plan={"plan_id": self.plan_id()}).success
        return list(self.instance.get_dynamic_partitions("waves"))


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """The words in which a run was refused, as its step shows them."""
    assert not result.success
    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.STEP_FAILURE:
            failure = event.step_failure_data.user_failure_data
            assert failure is not None, event.step_failure_data.error_display_string
            return str(failure.description)
    raise AssertionError("no step failed")


@pytest.fixture
def stages(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    """The stages on the incident, with Dagster's events kept in memory."""
    command_line.apply(monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Stages(instance)


def test_before_a_plan_is_approved_no_wave_can_be_launched(stages: Stages, incident: Engine) -> None:
    before = cycle.rows_of(incident)
    plan_id = stages.plan_id()
    assert list(stages.instance.get_dynamic_partitions("waves")) == []
    stages.instance.add_dynamic_partitions("waves", ["2026-01-01-000000-010-canary", plan_id])
    for partition in ("2026-01-01-000000-010-canary", plan_id):
        for checks in (True, False):
            said = refusal(stages.launch("migrated_documents", partition=partition, checks=checks))
            assert partition in said
    assert cycle.rows_of(incident) == before


def test_a_wave_whose_earlier_wave_was_not_checked_or_not_moved_is_refused_and_names_the_gate(
    stages: Stages, incident: Engine
) -> None:
    before = cycle.rows_of(incident)
    canary, recent, remaining, *_ = stages.approved()
    said = refusal(stages.launch("migrated_documents", partition=recent, checks=True))
    assert f"wave {canary} comes before {recent}" in said
    assert cycle.rows_of(incident) == before

    assert stages.launch("migrated_documents", partition=canary, checks=False).success
    moved = cycle.rows_of(incident)
    assert moved != before
    for wave in (recent, remaining):
        for checks in (False, True):
            said = refusal(stages.launch("migrated_documents", partition=wave, checks=checks))
            if wave == recent:
                for gate in ("conservation", "no_dangling_reference", "ids_exact", "schema_unchanged"):
                    assert f"migrated_documents.{gate} was not evaluated" in said
    assert cycle.rows_of(incident) == moved

    # The remedy: the same wave with its checks, which moves nothing a second time.
    assert stages.job("migrate", partition=canary).success
    assert cycle.rows_of(incident) == moved
    assert stages.job("migrate", partition=recent).success
    assert cycle.rows_of(incident) != moved


def test_a_red_check_of_a_wave_fails_its_run_and_refuses_the_next_wave_until_it_is_green(
    stages: Stages, incident: Engine
) -> None:
    canary, recent, *_ = stages.approved()
    assert stages.launch("migrated_documents", partition=canary, checks=False).success
    # A moved chunk under its old id again, past the aliases, which would translate it.
    swap = (
        "SET LOCAL uuid_pipeline.batch = 'on'; "
        "UPDATE upload_pipeline.document_chunks c SET chunk_id = m.{goal} FROM uuid_pipeline.id_map_chunk m "
        "WHERE m.{source} = c.chunk_id AND m.ordinal <= 5"
    )
    cycle.run_sql(incident, swap.format(source="new_id", goal="old_id"))
    red = stages.job("migrate", partition=canary)
    assert not red.success
    assert {check.check_name for check in red.get_asset_check_evaluations() if not check.passed} >= {"ids_exact"}
    broken = cycle.rows_of(incident)
    said = refusal(stages.launch("migrated_documents", partition=recent, checks=False))
    assert "migrated_documents.ids_exact did not pass" in said
    assert "Remedy" in said
    assert cycle.rows_of(incident) == broken

    cycle.run_sql(incident, swap.format(source="old_id", goal="new_id"))
    assert stages.job("migrate", partition=canary).success
    assert stages.job("migrate", partition=recent).success


def test_planning_gates_that_were_never_evaluated_stop_each_later_stage_launched_by_itself(
    stages: Stages, incident: Engine, incident_url: str
) -> None:
    before = cycle.rows_of(incident)
    for position, stage in enumerate(STAGES[:6]):
        if position:
            assert stages.only_checks(STAGES[position - 1]).success
        assert stages.launch(stage, checks=False).success
        for later in STAGES[position + 1 : 6]:
            said = refusal(stages.launch(later, checks=False))
            missing = gates.GATES[stage][0]
            assert f"{stage}.{missing} was not evaluated" in said, later
    with psycopg.connect(incident_url) as connection:
        found = connection.execute("SELECT plan_id FROM uuid_pipeline.plans ORDER BY assessment_no DESC LIMIT 1")
        plan_id = str((found.fetchone() or [None])[0])
    said = refusal(stages.job("approve", approve_plan={"plan_id": plan_id}))
    assert "migration_plan.waves_cover_each_document_once was not evaluated" in said
    assert list(stages.instance.get_dynamic_partitions("waves")) == []
    assert cycle.rows_of(incident) == before


def test_a_red_blocking_check_stops_what_comes_after_it_in_the_same_run_and_by_itself(
    stages: Stages, incident: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = tmp_path / "spec.yaml"
    blocking.write_text(SPEC.read_text(encoding="utf-8").replace("on_duplicate: merge", "on_duplicate: block"))
    monkeypatch.setenv("UUID_PIPELINE_SPEC", str(blocking))
    # A re-upload under the hash in capitals: two documents, one natural key.
    cycle.run_sql(
        incident,
        "UPDATE upload_pipeline.documents SET user_id = first.user_id, file_sha256 = upper(first.file_sha256) "
        "FROM (SELECT document_id, user_id, file_sha256 FROM upload_pipeline.documents ORDER BY document_id LIMIT 1) "
        "first WHERE documents.document_id = (SELECT max(document_id::text)::uuid FROM upload_pipeline.documents)",
    )
    before = cycle.rows_of(incident)
    result = stages.job("plan")
    assert not result.success
    done = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert done == {"store_profile", "document_inventory", "duplicate_clusters"}
    red = [check.check_name for check in result.get_asset_check_evaluations() if not check.passed]
    assert red == ["each_cluster_decided"]
    said = refusal(stages.launch("id_mapping", checks=False))
    assert "duplicate_clusters.each_cluster_decided did not pass" in said
    assert cycle.rows_of(incident) == before


def test_validation_before_all_waves_moved_fails_and_does_not_complete_the_execution(
    stages: Stages, incident_url: str
) -> None:
    canary, *_ = stages.approved()
    assert stages.job("migrate", partition=canary).success
    stages.job("validate")
    with psycopg.connect(incident_url) as connection:
        assert connection.execute("SELECT status FROM uuid_pipeline.executions").fetchall() == [("running",)]


def test_the_ui_shows_the_verdict_and_queues_and_unqueues_what_re_keying_cannot_mend(
    stages: Stages, incident: Engine
) -> None:
    queued = "SELECT count(*) FROM upload_pipeline.upload_jobs WHERE state = 'queued'"
    profiled = stages.job("profile")
    (shown,) = profiled.asset_materializations_for_node("store_profile")
    assert shown.metadata["constraint_verdict"].value == (
        "these 38 violations of uq_user_filehash are the copy against its own original; there is no duplicate content"
    )
    assert "uq_user_filehash on upload_pipeline.documents" in str(shown.metadata["constraint_analysis"].value)
    assert "38 of 38" in str(shown.metadata["usual_approaches"].value)
    assert "a copy of" in str(shown.metadata["constraint_analysis_tried_on"].value)

    found = stages.job("unretrievable").asset_materializations_for_node("unretrievable_documents")[0].metadata
    assert (found["waiting"].value, found["queued"].value) == (9, 0)
    before = cycle.run_sql(incident, queued)
    said = refusal(stages.job("regenerate", queue_documents={"list_id": "0000000000000000"}))
    assert f"which is {found['list_id'].value} with 9 documents" in said
    assert cycle.run_sql(incident, queued) == before
    assert stages.job("regenerate", queue_documents={"list_id": str(found["list_id"].value)}).success
    assert cycle.run_sql(incident, queued) == [(before[0][0] + 9,)]
    assert stages.job("undo_regeneration").success
    assert cycle.run_sql(incident, queued) == before


def test_assets_checks_and_jobs_are_these_and_every_check_blocks() -> None:
    from uuid_pipeline.definitions import defs

    repository = defs.get_repository_def()
    repository.load_all_definitions()  # as the webserver does: names that clash show here alone
    graph = repository.asset_graph
    keys = {key.to_user_string() for key in graph.materializable_asset_keys}
    assert keys == {*STAGES, *WATCHED, "unretrievable_documents", "determinism_certificate"}
    parents = {stage: {key.to_user_string() for key in graph.get(dg.AssetKey(stage)).parent_keys} for stage in STAGES}
    chain = {stage: {before} for before, stage in pairwise(STAGES)}
    assert parents == {"store_profile": set()} | chain
    checks: dict[str, set[str]] = {}
    for key in graph.asset_check_keys:
        checks.setdefault(key.asset_key.to_user_string(), set()).add(key.name)
        # What watches alarms, and stops nothing.
        assert graph.get(key).blocking is (key.asset_key.to_user_string() not in ("uuid_health", "alerts")), key
    assert checks.pop("alerts") == {"alerts_delivered"}
    watched = checks.pop("uuid_health")
    assert watched == {
        "generation_success", "mismatch_rate", "retrieval_success", "migration_failures", "pipeline_consistency",
        "lookup_latency",
    }  # fmt: skip
    assert checks == {
        "store_profile": {"witnesses_agree", "every_row_visible", "references_known", "nothing_unsupported"},
        "document_inventory": {"natural_keys_valid_or_quarantined", "no_orphans", "counts_agree"},
        "duplicate_clusters": {"each_cluster_decided", "never_across_users", "conflicts_resolvable"},
        "id_mapping": {"witnesses_agree", "one_target_per_natural_key", "no_collision", "recomputed_independently"},
        "store_backup": {"backup_as_asked"},
        "migration_plan": {"waves_cover_each_document_once", "rehearsal_passed"},
        "migrated_documents": {
            "conservation", "no_dangling_reference", "ids_exact", "schema_unchanged", "documents_retrievable",
        },
        "validation_report": {
            "whole_conservation", "whole_no_dangling_reference", "whole_ids_exact", "whole_schema_unchanged",
            "timestamps_untouched", "whole_documents_retrievable", "next_step_safe",
        },
        "determinism_certificate": {"implementations_agree"},
    }  # fmt: skip
    checks.pop("determinism_certificate")  # a document beside the stages; nothing waits for it
    assert checks == {stage: set(names) for stage, names in gates.GATES.items()}
    jobs = {name for name in repository.job_names if not name.startswith("__")}
    assert jobs == {
        "assess", "profile", "inventory", "plan", "approve", "migrate", "validate", "certify", "rollback", "pause",
        "resume", "cancel", "finalize", "backup", "rehearse", "unretrievable", "regenerate", "undo_regeneration",
        "notices", "retention",
        "report",
        "health", "review_aliases", "guard_install", "guard_remove",
    }  # fmt: skip


@pytest.mark.system
def test_events_are_written_to_postgresql_and_no_password_is_in_them_or_in_the_ledger_or_the_output(
    command_line: CommandLine, incident: Engine, incident_url: str
) -> None:
    before = cycle.rows_of(incident)
    planted = command_line.but(UUID_PIPELINE_DATABASE_URL=with_password(incident_url, SECRET))
    shown = [
        planted("run", "--approve"),
        planted("rollback", "--wave", "canary", "--json"),
        planted("rollback", "--all"),
    ]
    assert [said.code for said in shown] == [0, 0, 0]
    assert cycle.rows_of(incident) == before

    dagster_url = command_line.environment["UUID_PIPELINE_DAGSTER_URL"]
    with psycopg.connect(dagster_url) as connection:
        written = connection.execute(
            "SELECT asset_key, count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' GROUP BY 1"
        ).fetchall()
        runs = connection.execute("SELECT pipeline_name, status, count(*) FROM runs GROUP BY 1, 2").fetchall()
    # Three waves, and a sweep that found nothing; the report is a verb of its own.
    run = set(STAGES) - {"completion_report"}
    assert dict(written) == {f'["{stage}"]': 4 if stage == "migrated_documents" else 1 for stage in run}
    assert set(runs) == {
        ("plan", "SUCCESS", 1), ("approve", "SUCCESS", 1), ("migrate", "SUCCESS", 4), ("validate", "SUCCESS", 1),
        ("rollback", "SUCCESS", 2),
    }  # fmt: skip

    # The oracle sees a secret where there is one.
    assert holding(incident_url, cycle.SCHEMA, "38 random ids is nowhere") == []
    assert holding(dagster_url, "public", "store_profile")
    assert holding(incident_url, "uuid_pipeline", "whole_conservation")
    assert holding(dagster_url, "public", SECRET) == []
    assert holding(incident_url, "uuid_pipeline", SECRET) == []
    assert not [said for said in shown if SECRET in said.out + said.err]


def holding(url: str, schema: str, text: str) -> list[str]:
    """Tables of a schema with a row that holds a text, in any column."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = %s", [schema]
        ).fetchall()
        return [
            table
            for (table,) in tables
            if connection.execute(
                f"SELECT count(*) FROM {table} t WHERE t::text LIKE %s",  # noqa: S608
                [f"%{text}%"],
            ).fetchone()
            != (0,)
        ]


def test_a_failing_store_writes_no_password_to_dagster(
    command_line: CommandLine, incident: Engine, incident_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_url = with_password(incident_url, SECRET)
    command_line.but(UUID_PIPELINE_DATABASE_URL=secret_url).apply(monkeypatch)
    with open_instance(read_settings()) as instance:
        stages = Stages(instance)
        said = refusal(stages.launch("document_inventory", checks=True))
        assert re.search("uuid-pipeline", said)
        gone = re.sub(r"/t_[0-9a-f]+", "/no_such_database", secret_url)
        monkeypatch.setenv("UUID_PIPELINE_DATABASE_URL", gone)
        assert "no_such_database" in refusal(stages.launch("store_profile", checks=True))
    assert holding(command_line.environment["UUID_PIPELINE_DAGSTER_URL"], "public", "no_such_database")
    assert holding(command_line.environment["UUID_PIPELINE_DAGSTER_URL"], "public", SECRET) == []
