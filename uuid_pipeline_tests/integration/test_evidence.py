"""The evidence bundle holds what the ledger says, in one file; the ledger shows what was written otherwise since."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger
from uuid_pipeline.reports import bundle_file, evidence
from uuid_pipeline.reports.bundle_file import Checked
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with()


def write(engine: Engine, directory: Path) -> Checked:
    with engine.begin() as connection:
        execution = ledger.executions(connection)[0]
        path = evidence.write_bundle(connection, cycle.bound(connection, SPEC), execution, directory)
    assert path == directory / f"evidence-{execution.execution_id}.zip"
    checked = bundle_file.check(path)
    assert checked.problems == ()
    assert evidence.digest_of(path) == checked.digest
    return checked


def differences(engine: Engine, checked: Checked) -> list[str]:
    with engine.begin() as connection:
        return evidence.differences(connection, checked)


@pytest.mark.begins("migrated")
def test_the_bundle_holds_plan_gates_journal_maps_certificate_retrieval_and_versions(
    incident: Engine, tmp_path: Path
) -> None:
    execution = cycle.newest_execution(incident)
    checked = write(incident, tmp_path / "new")
    assert set(checked.files) == {
        "manifest.json", "plan.json", "spec.json", "gates.json", "journal.json", "set_aside.json", "fingerprints.json",
        "maps.json", "execution.json", "comparison.json", "certificate.json", "retrieval.json", "versions.json",
    }  # fmt: skip
    read: dict[str, Any] = {name: checked.read(name) for name in checked.files}
    assert read["plan.json"]["plan_id"] == execution.plan_id
    assert read["spec.json"]["namespace"] == str(cycle.NAMESPACE)
    gates = cycle.run_sql(
        incident, "SELECT count(*), bool_and(passed) FROM uuid_pipeline.gates WHERE execution_id IS NOT NULL"
    )
    assert [(len(read["gates.json"]), all(gate["passed"] for gate in read["gates.json"]))] == gates
    assert sum(int(wave["counts"]["entities"]["document"]) for wave in read["journal.json"]["waves"]) == 38
    assert {one["action"] for one in read["journal.json"]["audit"]} >= {"approved", "running", "moved", "completed"}
    rows = cycle.run_sql(
        incident, "SELECT ordinal, wave, role, old_id, new_id FROM uuid_pipeline.id_map_document ORDER BY ordinal"
    )
    by_hand = hashlib.sha256("".join(",".join(map(str, row)) + "\n" for row in rows).encode()).hexdigest()
    documents = [one for one in read["maps.json"] if one["entity"] == "document" and one["rows"]]
    assert [(one["rows"], one["sha256"]) for one in documents] == [(38, by_hand)]
    assert read["certificate.json"]["every_id_deterministic"]
    assert read["retrieval.json"]["after"]["found"] == 29
    assert "PostgreSQL" in read["versions.json"]["postgresql"]
    assert differences(incident, checked) == []


@pytest.mark.begins("migrated")
def test_two_bundles_of_one_state_differ_in_the_audit_alone(incident: Engine, tmp_path: Path) -> None:
    first, second = write(incident, tmp_path / "a"), write(incident, tmp_path / "b")
    assert {name for name in first.files if first.files[name] != second.files[name]} == {
        "manifest.json",
        "journal.json",
    }
    assert differences(incident, first) == differences(incident, second) == []


@pytest.mark.begins("migrated")
def test_the_ledger_says_what_was_changed_in_it_or_in_the_bundle(incident: Engine, tmp_path: Path) -> None:
    checked = write(incident, tmp_path)
    # Somebody rewrites the whole bundle, with a manifest that fits.
    gates = checked.read("gates.json")
    gates[0]["finding"] = "all was well"
    files = {name: text for name, text in checked.files.items() if name != "manifest.json"}
    forged, _ = bundle_file.bundle("x", files | {"gates.json": bundle_file.canonical(gates)})
    assert bundle_file.check_bytes(forged).problems == ()
    assert differences(incident, bundle_file.check_bytes(forged)) == [
        "gates.json is not what the ledger says",
        "the ledger's audit has no bundle of this digest",
    ]
    cycle.run_sql(incident, "UPDATE uuid_pipeline.gates SET passed = false WHERE gate = 'ids_exact'")
    cycle.run_sql(incident, "UPDATE uuid_pipeline.id_map_chunk SET new_id = gen_random_uuid() WHERE ordinal = 1")
    assert differences(incident, checked) == [
        "gates.json is not what the ledger says",
        "maps.json is not what the ledger says",
    ]


@pytest.mark.begins("migrated")
def test_a_rollback_that_came_after_the_bundle_does_not_make_it_wrong(incident: Engine, tmp_path: Path) -> None:
    before = write(incident, tmp_path / "before")
    cycle.roll_back(incident, SPEC)
    assert differences(incident, before) == []
    after = write(incident, tmp_path / "after")
    assert after.read("execution.json")["status"] == "rolled_back"
    assert {wave["direction"] for wave in after.read("journal.json")["waves"]} == {"forward", "back"}
    assert after.read("certificate.json")["entities"]["document"]["under_another_id"] == 38


def test_no_natural_key_and_no_password_stands_in_it(twins: Engine, tmp_path: Path) -> None:
    """Of the twins gates say which are one, by their natural keys."""
    keys = cycle.run_sql(twins, "SELECT file_sha256, filename FROM upload_pipeline.documents")
    cycle.run_all(twins, SPEC)
    told = "SELECT count(*) FROM uuid_pipeline.gates WHERE strpos(finding, %(key)s) > 0"
    assert any(cycle.run_sql(twins, told, key=sha.strip().lower()) != [(0,)] for sha, _ in keys)
    text = json.dumps({name: content.decode() for name, content in write(twins, tmp_path).files.items()})
    assert not [value for row in keys for value in row if value in text]
