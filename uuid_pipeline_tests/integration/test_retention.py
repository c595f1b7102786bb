"""What is kept no longer than the spec says, and what is kept however old it is."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.engine import finalizing
from uuid_pipeline.engine.privacy import retention
from uuid_pipeline.engine.privacy.retention import Due
from uuid_pipeline.spec import Aliases, Retention, load_spec
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with(aliases=Aliases(quiet_hours=0))
EVERYTHING = Retention(dumps_days=30, archives_days=30, maps_days=30, reports_days=30, history_days=30)
LATER = timedelta(days=31)


def due(engine: Engine, kept: Retention, home: Path, after: timedelta = LATER) -> list[Due]:
    with engine.begin() as connection:
        return retention.due(connection, kept, home, datetime.now(UTC) + after)


def names(found: list[Due]) -> set[str]:
    return {f"{one.kind} {one.name}" for one in found}


def tables(engine: Engine) -> set[str]:
    found = "SELECT relname FROM pg_class WHERE relnamespace = 'uuid_pipeline'::regnamespace AND relkind = 'r'"
    return {name for (name,) in cycle.run_sql(engine, found)}


def age(engine: Engine, days: int) -> None:
    """Make everything that was done that much older."""
    with cycle.session(engine) as connection:
        for table, column in connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'uuid_pipeline' "
            "AND data_type = 'timestamp with time zone' AND table_name !~ '_[0-9]+$' AND table_name <> 'lease'"
        ).fetchall():
            statement = "UPDATE {} SET {} = {} - make_interval(days => %s)"
            parts = (sql.Identifier("uuid_pipeline", table), sql.Identifier(column), sql.Identifier(column))
            connection.execute(sql.SQL(statement).format(*parts), [days])


def finalize(engine: Engine) -> None:
    finalizing.finalize(engine, cycle.bound_store(engine, SPEC), "ending run")


def file(place: Path, days: int) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("kept")
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    os.utime(place, (then, then))
    return place


def test_what_a_rollback_needs_is_kept_however_old_and_rolls_back_after_retention(
    incident: Engine, tmp_path: Path
) -> None:
    before = cycle.rows_of(incident)
    cycle.run_all(incident, SPEC)
    age(incident, 1000)
    dump = file(tmp_path / "backups/app.dump", 1000)
    kept = tables(incident)

    assert names(retention.apply(incident, EVERYTHING, tmp_path, "keeping run")) == set()

    assert tables(incident) == kept
    assert dump.exists()
    cycle.roll_back(incident, SPEC)
    assert cycle.rows_of(incident) == before


def test_the_dump_that_an_execution_was_approved_with_stays_until_that_is_final(
    incident: Engine, tmp_path: Path
) -> None:
    execution = cycle.run_all(incident, SPEC)
    approved, other = (file(tmp_path / f"backups/{name}.dump", 40) for name in ("approved", "other"))
    cycle.run_sql(
        incident,
        """INSERT INTO uuid_pipeline.backups (mode, name, sha256, bytes, equal, taken_at, recorded_by, executions)
           VALUES ('dump', %(name)s, '', 0, true, now(), 'test', ARRAY[%(execution)s])""",
        name=str(approved),
        execution=execution.execution_id,
    )

    assert names(retention.apply(incident, EVERYTHING, tmp_path, "keeping run")) == {"dump other.dump"}
    assert (approved.exists(), other.exists()) == (True, False)

    finalize(incident)
    assert "dump approved.dump" in names(retention.apply(incident, EVERYTHING, tmp_path, "keeping run"))


def test_after_finalize_each_kind_goes_at_its_own_age_and_who_did_what_stays(incident: Engine, tmp_path: Path) -> None:
    execution = cycle.run_all(incident, SPEC)
    finalize(incident)
    file(tmp_path / "backups/app.dump", 40)
    file(tmp_path / "reports/old/report.html", 40)
    file(tmp_path / "reports/new/report.html", 1)
    assert due(incident, EVERYTHING, tmp_path, timedelta(days=29)) != []
    assert {one.kind for one in due(incident, EVERYTHING, tmp_path, timedelta())} == {"dump", "report"}
    assert due(incident, Retention(), tmp_path, timedelta(days=9999)) == []
    assert {one.kind for one in due(incident, Retention(maps_days=30), tmp_path)} == {"map"}

    age(incident, 31)
    seen = due(incident, EVERYTHING, tmp_path, timedelta())
    assert "report old" in names(seen)
    assert "report new" not in names(seen)
    mapped = cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.id_map_document")
    assert [(one.rows,) for one in seen if one.name.startswith("id_map_document_") and one.rows] == mapped

    assert names(retention.apply(incident, EVERYTHING, tmp_path, "keeping run")) == names(seen)

    left = tables(incident)
    assert not [name for name in left if name.startswith(("id_map_document_", "id_map_chunk_", "archive_"))]
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches") == [(0,)]
    assert cycle.run_sql(incident, "SELECT execution_id, status FROM uuid_pipeline.executions") == [
        (execution.execution_id, "finalized")
    ]
    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.audit WHERE action = 'approved'") == [(1,)]
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["report.html"]
    assert retention.apply(incident, EVERYTHING, tmp_path, "keeping run") == []


def test_a_plan_that_may_still_be_approved_keeps_its_map(incident: Engine, tmp_path: Path) -> None:
    plan = cycle.assess_and_plan(incident, SPEC)
    age(incident, 1000)

    assert not {one.kind for one in retention.apply(incident, EVERYTHING, tmp_path, "keeping run")} & {"map", "archive"}

    cycle.migrate_all(incident, SPEC, cycle.approve(incident, SPEC, plan.plan_id))


def test_of_two_executions_the_open_ones_map_stays(incident: Engine, tmp_path: Path) -> None:
    cycle.run_all(incident, SPEC)
    finalize(incident)
    first = tables(incident)
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = repeat('a', 64)
           WHERE document_id = (SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)""",
    )
    cycle.run_all(incident, SPEC)
    age(incident, 1000)

    retention.apply(incident, EVERYTHING, tmp_path, "keeping run")

    left = {name for name in tables(incident) if name.startswith("id_map_document_")}
    assert left
    assert not left & first
    assert sum(run.documents for run in cycle.roll_back(incident, SPEC)) == 1


@pytest.mark.parametrize("field", ["dumps_days", "maps_days", "history_days"])
def test_the_spec_reads_days(field: str) -> None:
    assert getattr(Retention.model_validate({field: 7}), field) == 7
    assert getattr(load_spec(None).retention, field) is None
