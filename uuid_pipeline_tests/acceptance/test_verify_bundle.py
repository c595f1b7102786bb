"""``verify-bundle`` as a user has it: the exit code says intact, changed or unreadable, and the words say what."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.reports import bundle_file, evidence
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.integration import cycle

FILES = {"execution.json": b'{"execution_id": "2026-01-01-000000"}\n', "gates.json": b"[]\n"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.zip"
    path.write_bytes(bundle_file.bundle("2026-01-01-000000", FILES)[0])
    return path


def test_an_intact_bundle_needs_no_store_and_exits_with_0(command_line: CommandLine, bundle: Path) -> None:
    offline = command_line.but(UUID_PIPELINE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    digest = bundle_file.bundle("2026-01-01-000000", FILES)[1]
    said = offline("verify-bundle", str(bundle), "--digest", digest.upper(), "--json")
    assert said.code == 0
    assert said.data == {
        "intact": True, "digest": digest, "problems": [], "execution_id": "2026-01-01-000000",
        "files": ["execution.json", "gates.json", "manifest.json"], "exit_code": 0,
    }  # fmt: skip
    assert "Intact: 3 files of execution 2026-01-01-000000." in offline("verify-bundle", str(bundle)).out


def test_one_changed_byte_or_another_digest_exits_with_1_and_says_where(
    command_line: CommandLine, bundle: Path
) -> None:
    said = command_line("verify-bundle", str(bundle), "--digest", "0" * 64, "--json")
    assert said.code == 1
    assert "not " + "0" * 64 in said.data["problems"][0]
    bundle.write_bytes(bundle.read_bytes().replace(b"[]\n", b"[ \n"))
    said = command_line("verify-bundle", str(bundle), "--json")
    assert (said.code, said.data["intact"]) == (1, False)
    assert all("gates.json" in problem for problem in said.data["problems"])
    assert "gates.json" in said.err


def test_what_is_no_bundle_exits_with_2(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for name in ("text", "nothing there"):
        said = command_line("verify-bundle", str(tmp_path / name))
        assert said.code == 2
        assert name in said.err


@pytest.mark.begins("migrated")
def test_the_ledger_of_the_store_is_asked_when_wanted(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    with incident.begin() as connection:
        execution = ledger.executions(connection)[0]
        path = evidence.write_bundle(connection, cycle.bound(connection, cycle.spec_with()), execution, tmp_path)
    said = command_line("verify-bundle", str(path), "--against-store")
    assert (said.code, said.err) == (0, "")
    assert "as the store's ledger has it" in said.out
    cycle.run_sql(incident, 'UPDATE uuid_pipeline.plans SET content = content || \'{"approach": "none"}\'')
    said = command_line("verify-bundle", str(path), "--against-store")
    assert said.code == 1
    assert "plan.json is not what the ledger says" in said.err


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")
def test_run_and_validate_give_what_was_measured_of_retrieval(command_line: CommandLine, incident: Engine) -> None:
    ran = command_line("run", "--approve", "--json").data["retrieval"]
    validated = command_line("validate")
    assert (ran["before"]["measured"], ran["before"]["found"], ran["before"]["rate"]) == (38, 0, 0.0)
    assert (ran["after"]["found"], ran["neighbours"]) == (29, {"compared": 29, "same": 29})
    assert len(ran["not_retrievable"]) == 9
    assert "Retrievable before  0 of 38 (0.0 %)" in validated.out
    assert "Retrievable after   29 of 38 (76.3 %)" in validated.out
    assert "9: it has no chunks: no re-keying can make it retrievable" in validated.out
