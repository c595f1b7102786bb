"""``erase`` and ``retention`` as people use them: looked at, approved, and gone from Dagster's own database too."""

import re
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import ROOT, CommandLine
from uuid_pipeline_tests.acceptance.test_secrets import everything_below, everything_in
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_erasing import ids_of

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]


def test_a_user_is_erased_after_looking_and_approving_and_nothing_of_ours_names_them_any_more(
    command_line: CommandLine, incident: Engine, incident_url: str
) -> None:
    before = cycle.rows_of(incident)
    assert command_line("run", "--approve").code == 0
    user = str(before["documents"][0]["user_id"])
    wanted = ids_of(before, user)
    home = Path(command_line.environment["UUID_PIPELINE_HOME"])
    dump, report = home / "backups/app.dump", home / "reports/x/report.html"
    for place in (dump, report):
        place.parent.mkdir(parents=True, exist_ok=True)
    dump.write_bytes(b"\0PGDMP")
    report.write_text(f"<p>{user}</p>")

    def places() -> set[str]:
        texts = {
            **everything_in(incident_url, "uuid_pipeline"),
            **everything_in(command_line.environment["UUID_PIPELINE_DAGSTER_URL"], "public"),
            **everything_below(home),
        }
        return {name for name, text in texts.items() if any(one in text for one in wanted)}

    assert {"public.event_logs", "uuid_pipeline.id_map_document_1", str(report)} <= places()

    looked = command_line("erase", "--user", user, "--json")
    assert looked.code == 0
    assert looked.data["deleted"]["id_map_document_1"] == sum(row["user_id"] == user for row in before["documents"])
    assert "no longer be rolled back" in " ".join(looked.data["consequences"])
    assert "uuid_pipeline.id_map_document_1" in places()
    refused = command_line("erase", "--user", user, "--approve", "0" * 16)
    assert refused.code == 1

    done = command_line("erase", "--user", user, "--approve", looked.data["digest"], "--json")

    assert (done.code, done.data["deleted"]) == (0, looked.data["deleted"])
    assert places() == set()
    assert not dump.exists()
    assert not any(one in looked.out + done.out + done.err for one in wanted)
    again = command_line("validate", "--json")
    assert (again.code, "cannot be repeated" in again.data["error"]) == (1, True)
    back = command_line("rollback", "--all", "--json")
    left = len(before["documents"]) - looked.data["deleted"]["id_map_document_1"]
    assert (back.code, f", {left} documents:" in back.data["message"]) == (0, True)


def test_retention_says_what_is_due_and_removes_it_only_when_told(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    text = (ROOT / "uuid_pipeline/specs/upload_pipeline.yaml").read_text(encoding="utf-8")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        text + "\nretention: {maps_days: 0, history_days: 0}\naliases: {quiet_hours: 0}\n", encoding="utf-8"
    )
    command_line = command_line.but(UUID_PIPELINE_SPEC=str(spec))
    assert command_line("run", "--approve").code == 0
    assert command_line("retention", "--json").data["due"] == []
    assert command_line("finalize", "--yes").code == 0

    looked = command_line("retention", "--json")
    assert {one["kind"] for one in looked.data["due"]} == {"map", "history"}
    assert "Nothing was removed" in command_line("retention").out
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.id_map_document") == [(38,)]

    done = command_line("retention", "--apply", "--json")

    assert (done.code, len(done.data["due"])) == (0, len(looked.data["due"]))
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.id_map_document") == [(0,)]
    with psycopg.connect(command_line.environment["UUID_PIPELINE_DAGSTER_URL"]) as connection:
        [(runs,)] = connection.execute("SELECT count(*) FROM runs WHERE pipeline_name = 'retention'").fetchall()
    assert runs == 1
    assert re.search(r"Due: 0", command_line("retention").out)
