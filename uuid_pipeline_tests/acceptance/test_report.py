"""The verb ``report``: where it writes, what its JSON says, when it refuses."""

import json
from pathlib import Path

import dagster as dg
import pytest

from uuid_pipeline_tests.acceptance.conftest import CommandLine

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


def test_before_any_plan_it_refuses_and_says_what_to_run(command_line: CommandLine) -> None:
    said = command_line("report", "--json")

    assert said.code == 1
    assert "uuid-pipeline plan" in said.data["error"]


def test_it_writes_the_plan_then_the_execution_and_its_json_is_that_of_the_file(
    command_line: CommandLine, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    home = Path(command_line.environment["UUID_PIPELINE_HOME"])
    plan_id = command_line("plan", "--json").data["plan_id"]
    planned = command_line("report", "--json").data["report"]
    assert planned["path"] == str(home / "reports" / plan_id / "report.html")
    assert planned["verdict"] == "not ready"
    assert f"uuid-pipeline approve {plan_id}" in {item["command"] for item in planned["open"]}

    ran = command_line("run", "--approve", "--json")
    execution = ran.data["execution_id"]
    out = tmp_path / "steering" / "page.html"
    said = command_line("report", "--out", str(out), "--json").data["report"]

    kept = json.loads(out.with_suffix(".json").read_text())
    assert (said["path"], said["figures"]) == (str(out), str(out.with_suffix(".json")))
    assert said["verdict"] == kept["verdict"] != "not ready"
    assert said["sections"] == list(kept["sections"])
    assert kept["execution_id"] == execution
    summary = kept["sections"]["summary"]["figures"]
    assert summary["deterministic"] == {"before": 0, "now": 38, "unit": "count"}
    assert summary["found_by_target"] == {"before": 0, "now": 38, "unit": "count"}
    assert kept["sections"]["readiness"]["figures"]["lookups"]["before"]["by_key"]["median"] > 0
    assert [t["after"]["differs"] for t in kept["sections"]["conservation"]["figures"]["tables"]] == [False] * 4
    [record] = instance.get_latest_materialization_events([dg.AssetKey("completion_report")]).values()
    assert record is not None
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["report"].value == str(out)
    assert "Data migration" in str(record.asset_materialization.metadata["readiness"].value)


@pytest.mark.begins("planned")
def test_a_file_that_cannot_be_written_is_a_usage_error(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    said = command_line("report", "--out", str(tmp_path / "taken" / "r.html"), "--json")

    assert said.code == 2
    assert "taken/r.html" in said.data["error"]


def test_an_option_is_not_taken_for_the_bundles_path(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    said = command_line("report", "--bundle", "--json")

    assert (said.code, said.out) == (2, "")
    assert "--bundle wants a path, and --json is an option" in said.err
    assert list(tmp_path.glob("*--*")) == []


@pytest.mark.system
def test_the_bundle_is_written_with_the_report_and_shows_one_changed_byte(
    command_line: CommandLine, tmp_path: Path
) -> None:
    planned = command_line("plan", "--json").data["plan_id"]
    refused = command_line("report", "--bundle", str(tmp_path / "none"), "--json")
    assert refused.code == 1
    assert f"uuid-pipeline approve {planned}" in refused.data["error"]
    assert not (tmp_path / "none").exists()

    execution = command_line("run", "--approve", "--json").data["execution_id"]
    said = command_line("report", "--bundle", str(tmp_path / "kept"), "--json")
    assert said.code == 0
    bundle = said.data["report"]["bundle"]
    assert bundle["path"] == str(tmp_path / "kept" / f"evidence-{execution}.zip")
    assert json.loads(Path(said.data["report"]["figures"]).read_text())["bundle"] == bundle
    assert bundle["digest"] in Path(said.data["report"]["path"]).read_text()

    check = ("verify-bundle", bundle["path"], "--digest", bundle["digest"])
    assert command_line(*check).code == 0
    assert command_line(*check, "--against-store").code == 0
    content = bytearray(Path(bundle["path"]).read_bytes())
    content[len(content) // 2] ^= 1
    Path(bundle["path"]).write_bytes(content)
    assert command_line(*check).code == 1


@pytest.mark.system
@pytest.mark.begins("migrated")
def test_a_bundle_may_be_named_and_one_that_cannot_be_written_is_a_usage_error(
    command_line: CommandLine, tmp_path: Path
) -> None:
    named = command_line("report", "--bundle", str(tmp_path / "a" / "mine.zip"))
    assert (named.code, (tmp_path / "a" / "mine.zip").is_file()) == (0, True)
    assert "Digest" in named.out
    (tmp_path / "taken").write_text("")
    assert command_line("report", "--bundle", str(tmp_path / "taken" / "x")).code == 2
