"""What an erasure finds outside the ledger: reports, and what Dagster keeps of runs, assets and alerts."""

import html
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from uuid_pipeline.operations import keeping

USER = "b2ce7b42-29f7-49eb-b0ae-e211b0815b36"
CHECK = dg.AssetCheckKey(dg.AssetKey("document_inventory"), "natural_keys_valid_or_quarantined")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(instance: dg.DagsterInstance, finding: str) -> str:
    """A run of an asset with a gate that says this; its id."""

    @dg.asset
    def document_inventory() -> int:
        return 1

    @dg.asset_check(asset=document_inventory)
    def natural_keys_valid_or_quarantined() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True, description=finding)

    checks = [natural_keys_valid_or_quarantined]
    job = dg.Definitions(assets=[document_inventory], asset_checks=checks).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance).run_id


def findings(instance: dg.DagsterInstance) -> str:
    found = instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=10)
    return " ".join(dg.serialize_value(one.event) for one in found if one.event)


def test_what_a_gate_said_of_the_user_goes_though_a_later_run_is_the_newest(instance: dg.DagsterInstance) -> None:
    named, later = run(instance, f"quarantined: {USER}"), run(instance, "none")
    assert USER in findings(instance)

    runs = keeping.runs_that_mention(instance, frozenset([USER]))
    keeping.forget_runs(instance, runs)

    assert runs == [named]
    assert USER not in findings(instance)
    assert [one.run_id for one in instance.get_runs()] == [later]


def test_what_the_alerts_have_shown_goes_and_is_left_where_nobody_is_named(instance: dg.DagsterInstance) -> None:
    def shown() -> list[str]:
        found = instance.fetch_observations(dg.AssetKey("alerts"), limit=10).records
        return [str(one.asset_observation.description) for one in found if one.asset_observation]

    instance.report_runless_asset_event(dg.AssetObservation("alerts", description="check failed"))
    keeping.forget_runs(instance, keeping.runs_that_mention(instance, frozenset([USER])))
    assert shown() == ["check failed"]
    instance.report_runless_asset_event(dg.AssetObservation("alerts", description=f"check failed: {USER}"))

    keeping.forget_runs(instance, keeping.runs_that_mention(instance, frozenset([USER])))

    assert shown() == []


@pytest.mark.parametrize("user", ["josé@example.org", "o'brien@example.org", "a&b-consulting"])
def test_an_id_is_found_as_html_and_json_write_it(user: str, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    report, other = tmp_path / "reports/x/report.html", tmp_path / "reports/x/other.html"
    report.parent.mkdir(parents=True)
    report.write_text(f"<td>{html.escape(user)}</td>", encoding="utf-8")
    other.write_text("<td>josef@example.org</td>", encoding="utf-8")
    named = run(instance, f"1 row of {user} is quarantined")

    assert keeping.reports_that_mention(tmp_path, frozenset([user])) == [report]
    assert keeping.runs_that_mention(instance, frozenset([user])) == [named]
