"""Backup, attestation and rehearsal as a user of the command line has them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine, CommandLineFor
from uuid_pipeline_tests.conftest import NewRole, Pooled, as_role
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")

SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"


def spec_with(tmp_path: Path, old: str, new: str) -> str:
    """The default spec with one line of it changed."""
    text = SPEC.read_text()
    assert old in text
    path = tmp_path / "spec.yaml"
    path.write_text(text.replace(old, new))
    return str(path)


def ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


def backups(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as c:
        return c.execute("SELECT mode, equal, cardinality(executions) FROM uuid_pipeline.backups").fetchall()


def test_backup_says_where_how_large_what_digest_and_that_the_copy_was_equal(command_line: CommandLine) -> None:
    said = command_line("backup", "--json")
    assert said.code == 0, said.err
    data = said.data
    path = Path(data["path"])
    assert path.is_file()
    assert path.parent == Path(command_line.environment["UUID_PIPELINE_HOME"]) / "backups"
    assert data["bytes"] == path.stat().st_size
    assert len(data["sha256"]) == 64
    assert data["restore_seconds"] > 0
    assert data["equal"] is True
    assert {table["table"] for table in data["tables"]} == {
        f"upload_pipeline.{name}" for name in ("documents", "document_chunks", "upload_jobs", "events")
    }


@pytest.mark.system
def test_run_takes_a_backup_by_itself_once_and_a_tampered_one_stops_approval(
    command_line: CommandLine, incident_url: str, incident: Engine
) -> None:
    before = cycle.rows_of(incident)
    planned = command_line("plan", "--json")
    assert planned.code == 0
    assert backups(incident_url) == [("dump", True, 0)]
    (dump,) = (Path(command_line.environment["UUID_PIPELINE_HOME"]) / "backups").iterdir()
    content = dump.read_bytes()
    dump.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = command_line("approve", planned.data["plan_id"], "--json")
    assert refused.code == 1
    assert "size or digest changed" in refused.data["error"]
    assert "uuid-pipeline backup" in refused.data["error"]
    assert cycle.rows_of(incident) == before
    dump.write_bytes(content)
    done = command_line("run", "--approve", "--json")
    assert done.code == 0, done.err
    assert backups(incident_url) == [("dump", True, 2)]
    assert done.data["backup"]["name"] == str(dump)
    assert command_line("run", "--json").data["nothing_to_do"]
    assert backups(incident_url) == [("dump", True, 2)]


@pytest.mark.system
def test_an_attested_snapshot_is_given_at_approval_and_its_risk_repeated(
    command_line: CommandLine, incident_url: str, tmp_path: Path
) -> None:
    spec = spec_with(tmp_path, "backup: dump", "backup: attested")
    attested = command_line.but(UUID_PIPELINE_SPEC=spec)
    without = attested("run", "--approve", "--json")
    assert without.code == 1
    assert "--attest NAME --attested-at TIME" in without.data["error"]
    assert attested("run", "--approve", "--attest", "snap", "--json").code == 2
    old = attested("run", "--approve", "--attest", "snap", "--attested-at", ago(30), "--json")
    assert old.code == 1
    assert "30.0 hours old" in old.data["error"]
    assert backups(incident_url) == []
    plan_id = attested("plan", "--json").data["plan_id"]
    said = attested("approve", plan_id, "--attest", "snap-6", "--attested-at", ago(3))
    assert "the attested snapshot snap-6 of" in said.out, said.err
    done = attested("approve", plan_id, "--attest", "snap-7", "--attested-at", ago(2), "--json")
    assert done.data["backup"]["name"] == "snap-7", done.err
    assert any("neither restored nor compared" in risk for risk in done.data["risks"])
    assert attested("run", "--json").code == 0
    assert [row[:2] for row in backups(incident_url)] == [("attested", None)] * 2


@pytest.mark.system
def test_none_is_approved_with_its_risk_said_in_text_and_json(command_line: CommandLine, tmp_path: Path) -> None:
    none = command_line.but(UUID_PIPELINE_SPEC=spec_with(tmp_path, "backup: dump", "backup: none"))
    planned = none("plan", "--json")
    assert any(risk.startswith("no backup:") for risk in planned.data["plan"]["risks"])
    shown = none("approve", planned.data["plan_id"])
    assert shown.code == 0
    assert "Approved with the risk: no backup:" in shown.out
    assert not (Path(command_line.environment["UUID_PIPELINE_HOME"]) / "backups").exists()


@pytest.mark.system
def test_a_required_rehearsal_stops_the_plan_until_it_passed(command_line: CommandLine, tmp_path: Path) -> None:
    strict = command_line.but(
        UUID_PIPELINE_SPEC=spec_with(tmp_path, "backup: dump", "backup: dump\nrehearsal: {required: true, users: 2}")
    )
    stopped = strict("plan", "--json")
    assert stopped.code == 1
    assert "uuid-pipeline rehearse" in stopped.data["error"]
    assert stopped.data["plan_id"]
    rehearsed = strict("rehearse", "--json")
    assert rehearsed.code == 0, rehearsed.err
    assert rehearsed.data["rehearsal"]["users"] == 2
    assert rehearsed.data["rehearsal"]["passed"] is True
    planned = strict("plan", "--json")
    assert planned.code == 0, planned.err
    assert planned.data["plan"]["estimate"]["basis"].startswith("rehearsal 1 of")


@pytest.mark.system
def test_a_rehearsal_that_fails_exits_with_1_and_says_why(command_line: CommandLine, incident_url: str) -> None:
    with psycopg.connect(incident_url) as c:
        # Fine where it is; a copy's rows are written again, and the check that was added NOT VALID asks them.
        c.execute("ALTER TABLE upload_pipeline.events ADD CONSTRAINT later CHECK (code = 'x') NOT VALID")
    failed = command_line("rehearse", "--json")
    assert failed.code == 1
    assert "later" in failed.data["error"]
    assert failed.data["rehearsal"]["passed"] is False


@pytest.mark.system
def test_a_role_without_createdb_uses_the_embedded_server_and_leaves_none_running(
    command_line_for: CommandLineFor, incident_url: str, new_role: NewRole
) -> None:
    from uuid_pipeline.demo import server as embedded

    role = new_role("BYPASSRLS")
    with psycopg.connect(incident_url) as c:
        c.execute(f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
        c.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
        c.execute(f"GRANT SET ON PARAMETER session_replication_role TO {role}")
        c.execute(f"GRANT CREATE ON DATABASE {incident_url.rpartition('@/')[2].split('?')[0]} TO {role}")
    poor = command_line_for(as_role(incident_url, role))
    said = poor("backup", "--json")
    assert said.code == 0, said.err
    assert said.data["equal"] is True
    assert "embedded server (permission denied to create database" in said.data["restored_on"]
    assert embedded.find(Path(poor.environment["UUID_PIPELINE_HOME"])) is None


@pytest.mark.system
def test_behind_a_pooler_the_direct_url_is_asked_for_and_used(
    command_line_for: CommandLineFor, incident_url: str, pgbouncer: Pooled
) -> None:
    pooled = command_line_for(pgbouncer(incident_url))
    refused = pooled("backup", "--json")
    assert refused.code == 1
    assert "UUID_PIPELINE_DIRECT_URL" in refused.data["error"]
    taken = pooled.but(UUID_PIPELINE_DIRECT_URL=incident_url)("run", "--approve", "--json")
    assert taken.code == 0, taken.err
    assert backups(incident_url) == [("dump", True, 2)]
