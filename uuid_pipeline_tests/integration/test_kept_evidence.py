"""What other stages keep in the ledger appears in the report and in readiness; a ledger without it is no error."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import planning
from uuid_pipeline.engine.catalog import read_catalog
from uuid_pipeline.engine.evidence import kept_evidence
from uuid_pipeline.engine.evidence.readiness import Criterion
from uuid_pipeline.engine.store import bind
from uuid_pipeline.reports.html import report as reports
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.conftest import NewDatabase, Templates, opened
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
TABLES = """
CREATE TABLE IF NOT EXISTS uuid_pipeline.retrieval_measurements (
    measurement_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, execution_id text NOT NULL, wave text,
    phase text NOT NULL, figures jsonb NOT NULL, measured_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS uuid_pipeline.certificates (
    certificate_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, execution_id text NOT NULL, content jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS uuid_pipeline.backups (
    backup_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, mode text NOT NULL, name text NOT NULL, machine text,
    bytes bigint, sha256 text, snapshot text, catalog_digest text, tables jsonb NOT NULL DEFAULT '[]',
    left_out jsonb NOT NULL DEFAULT '[]', differences jsonb NOT NULL DEFAULT '[]', tool text, restored_on text,
    dump_seconds double precision, restore_seconds double precision, equal boolean, taken_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), recorded_by text NOT NULL,
    executions text[] NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS uuid_pipeline.health_ticks (
    tick_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id text NOT NULL, whole boolean NOT NULL, seconds double precision NOT NULL, sampled_to text);
CREATE TABLE IF NOT EXISTS uuid_pipeline.health_checks (
    tick_no bigint NOT NULL, check_name text NOT NULL, severity text NOT NULL, passed boolean NOT NULL,
    value double precision, threshold double precision, failing_since timestamptz, finding text NOT NULL);
"""
MEASURED = {
    "how": "look-up by target id, and the owner's own query as authenticated", "measured": 38, "found": 29,
    "rate": 0.7632, "rows_by_target": 38, "retrieved_by_target": 29, "by_query": 29, "missed_by_index": 0,
    "p50_ms": 2.5, "p95_ms": 4.0, "not_measured": 0, "failures": {}, "excluded": {}, "sample": "all 38 documents",
    "neighbours": None, "faults": [],
    "not_retrievable": [{"document": "d0c", "reason": "it has no chunks: no re-keying can make it retrievable"}],
}  # fmt: skip


def add(connection: Connection, table: str, **values: Any) -> None:
    columns = ", ".join(values)
    shown = ", ".join(f"%({name})s" for name in values)
    kept = {
        name: json.dumps(v) if isinstance(v, dict | list) and name != "executions" else v for name, v in values.items()
    }
    connection.exec_driver_sql(f"INSERT INTO uuid_pipeline.{table} ({columns}) VALUES ({shown})", kept)  # noqa: S608


def looked_at(engine: Engine) -> tuple[Mapping[str, Criterion], dict[str, Any], str]:
    """(criteria, report.json's sections, the page)"""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        report = reports.build(connection, bind(SPEC, read_catalog(connection, SPEC.schema_name)))
    sections = json.loads(json.dumps(report.as_json(), default=str))["sections"]
    return {c.name: c for c in report.subject.readiness.criteria}, sections, report.as_html()


@pytest.fixture
def migrated(new_database: NewDatabase, templates: Templates) -> Iterator[tuple[Engine, str]]:
    with opened(new_database(templates.name("incident", "migrated"))) as engine:
        with engine.begin() as connection:
            connection.exec_driver_sql(TABLES)
        yield engine, cycle.newest_execution(engine).execution_id


@pytest.mark.begins("planned")
def test_a_ledger_without_any_of_it_says_not_measured(incident: Engine) -> None:
    with incident.begin() as connection:
        plan = planning.newest(connection)
        assert plan is not None
        kept = kept_evidence.gather(connection, plan, None)

    assert (kept.retrieval, kept.certificate, kept.rehearsal, kept.health, kept.guards) == ({}, None, None, [], [])


def test_retrieval_is_that_of_the_newest_measurement_of_the_whole_sample(migrated: tuple[Engine, str]) -> None:
    engine, execution = migrated
    before = MEASURED | {"found": 0, "rate": 0.0, "p50_ms": None, "p95_ms": None, "rows_by_target": 0}
    with engine.begin() as connection:
        for wave, phase, found in (
            (None, "before", before), (None, "after", before), (None, "after", MEASURED),
            (f"{execution}-010-canary", "after", before),
        ):  # fmt: skip
            add(connection, "retrieval_measurements", execution_id=execution, wave=wave, phase=phase, figures=found)
        gate = {"stage": "validation_report", "gate": "whole_documents_retrievable", "passed": True, "finding": "seen"}
        add(connection, "gates", execution_id=execution, remedy="", figures={}, run_id="test", **gate)

    criteria, sections, page = looked_at(engine)

    assert criteria["retrieval"].verdict == "ready"
    assert criteria["retrieval"].figure.startswith("0 of 38 before; 29 of 38 found now")
    assert sections["retrieval"]["figures"]["after"]["found"] == 29
    assert "d0c" in page
    assert "no re-keying can make it retrievable" in page


def test_a_certificate_older_than_the_last_batch_does_not_count(migrated: tuple[Engine, str]) -> None:
    engine, execution = migrated
    content = {
        "digest": "abcdef0123456789", "implementations_agree": True, "entities": {"document": {"rows": 38}},
        "made_at": "2020-01-01 00:00:00+00",
    }  # fmt: skip
    with engine.begin() as connection:
        add(connection, "certificates", execution_id=execution, content=content)
    assert "certificate" not in looked_at(engine)[0]["determinism"].figure

    with engine.begin() as connection:
        fresh = content | {"made_at": "2999-01-01 00:00:00+00"}
        add(connection, "certificates", execution_id=execution, content=fresh)
    assert (
        "certificate abcdef012345: both implementations agree on 38 rows" in looked_at(engine)[0]["determinism"].figure
    )

    with engine.begin() as connection:
        add(connection, "certificates", execution_id=execution, content=fresh | {"implementations_agree": False})
    assert looked_at(engine)[0]["determinism"].verdict == "not ready"


@pytest.mark.parametrize(("equal", "verdict"), [(True, "ready"), (False, "not ready")])
def test_the_backup_that_the_execution_was_approved_with_is_judged(
    migrated: tuple[Engine, str], equal: bool, verdict: str
) -> None:
    engine, execution = migrated
    dump = {
        "mode": "dump", "bytes": 2_000_000, "sha256": "ab" * 32, "tables": [{"table": "documents", "rows": 38}],
        "dump_seconds": 1.0, "restore_seconds": 2.0, "taken_at": "2026-01-01 10:00:00+00", "recorded_by": "test",
        "restored_on": "the embedded server",
    }  # fmt: skip
    with engine.begin() as connection:
        add(connection, "backups", name="used.dump", equal=equal, executions=[execution], **dump)
        add(connection, "backups", name="later.dump", equal=not equal, executions=[], **dump)

    criteria, sections, page = looked_at(engine)

    assert criteria["backup"].verdict == verdict
    assert sections["backup"]["figures"]["backup"]["name"] == "used.dump"
    assert "later.dump" not in page


def test_a_failing_health_check_stands_in_the_way_and_a_warning_does_not(migrated: tuple[Engine, str]) -> None:
    engine, _ = migrated

    def look(*checks: tuple[str, str, bool]) -> Criterion:
        with engine.begin() as connection:
            add(connection, "health_ticks", run_id="test", whole=True, seconds=1)
            number = connection.exec_driver_sql("SELECT max(tick_no) FROM uuid_pipeline.health_ticks").scalar_one()
            for name, severity, passed in checks:
                add(
                    connection,
                    "health_checks",
                    tick_no=number,
                    check_name=name,
                    severity=severity,
                    passed=passed,
                    finding="x",
                )
        return looked_at(engine)[0]["monitoring"]

    red = look(("mismatch_rate", "critical", False), ("pipeline_consistency", "warning", False))
    assert (red.verdict, red.binds) == ("not ready", True)
    assert "mismatch_rate" in red.figure
    green = look(("mismatch_rate", "critical", True), ("pipeline_consistency", "warning", False))
    assert (green.verdict, green.binds) == ("ready", False)
    assert green.figure.startswith("1 of 2 checks pass")


@pytest.mark.begins("planned")
def test_a_kept_constraint_analysis_is_a_section_with_its_verdict(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)
    entry = {
        "approach": "copy, then delete", "entity": "document", "kind": "unique index", "object": "uq_user_filehash",
        "table": "documents", "sqlstate": None, "documents": 0, "collides_with": None, "message": "duplicate key",
    }  # fmt: skip
    analysis = {
        "verdict": "these 38 violations are the copy against its own original; there is no duplicate content",
        "approaches": [{"approach": "copy, then delete", "entity": "document", "does": "", "fails_for": 38, "of": 38,
                        "exact": True, "finding": "fails for all"}],
        "constraint_analysis": [
            entry | {"outcome": "refuses", "sqlstate": "23505", "documents": 38, "collides_with": "its own old row"},
            entry | {"approach": "one statement", "outcome": "passes"},
        ],
        "tried": True, "where": "a copy of 10 rows", "note": "everything was there",
    }  # fmt: skip
    with incident.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE uuid_pipeline.assessments SET profile = profile || %(found)s::jsonb WHERE assessment_no = %(no)s",
            {"found": json.dumps({"constraint_analysis": analysis}), "no": plan.assessment_no},
        )

    _, sections, page = looked_at(incident)

    assert sections["constraints"]["figures"]["verdict"] == analysis["verdict"]
    assert "its own old row" in page
    assert "one statement" not in page
