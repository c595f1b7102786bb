"""The exported id map, read back by others' readers and compared with ids made anew from the raw rows."""

import csv
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]
from sqlalchemy import Engine

from uuid_pipeline.engine import export, sql
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.acceptance.conftest import CommandLine, Said
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import NEW_CHUNK

SPEC = load_spec(None)


@pytest.fixture
def command_line(incident_url: str, tmp_path: Path) -> CommandLine:
    """The command line without a Dagster database, which this verb does not need."""
    return CommandLine({"UUID_PIPELINE_DATABASE_URL": incident_url, "UUID_PIPELINE_HOME": str(tmp_path / "home")})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "files" / "today"


def from_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "moved": {"true": True, "false": False}[row["moved"]]} for row in csv.DictReader(file)]


def from_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def ids(engine: Engine, table: str, key: str) -> set[str]:
    """The keys that the store has now."""
    return {str(row[key]) for row in cycle.rows_of(engine)[table]}


def expected(before: cycle.Rows, table: str, key: str) -> dict[str, str]:
    """Old id -> target id of one table, without our code."""
    return {old: new for old, new in cycle.targets(before).items() if old in {row[key] for row in before[table]}}


TABLES = {"document": ("documents", "document_id"), "chunk": ("document_chunks", "chunk_id")}


@pytest.mark.begins("migrated")
def test_both_forms_hold_every_id_that_moved_with_its_target(
    incident: Engine, command_line: CommandLine, out: Path, before: cycle.Rows
) -> None:
    execution = cycle.newest_execution(incident)
    waves = {wave.wave for wave in cycle.waves_of(incident, execution)}
    ledger = cycle.rows_of(incident, "uuid_pipeline")

    said = command_line("export", "--format", "csv", "--output", str(out), "--json")
    assert (said.code, said.data["exit_code"]) == (0, 0), said.err
    assert (said.data["execution_id"], said.data["plan_id"]) == (execution.execution_id, execution.plan_id)
    assert said.data["rows"] == 38 + 87
    assert command_line("export", "--format", "parquet", "--output", str(out)).code == 0

    assert {file["entity"] for file in said.data["files"]} == set(TABLES)
    for file in said.data["files"]:
        path = Path(file["path"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
        rows = from_csv(path)
        assert len(rows) == file["rows"] == file["moved"]
        assert {row["old_id"]: row["new_id"] for row in rows} == expected(before, *TABLES[file["entity"]])
        assert {row["entity"] for row in rows} == {file["entity"]}
        assert {row["wave"] for row in rows} == waves
        assert list(rows[0]) == ["entity", "old_id", "new_id", "role", "wave", "moved"]
        assert all(row["moved"] and row["role"] == "move" for row in rows)
        assert from_parquet(path.with_suffix(".parquet")) == rows
        assert pd.read_csv(path).to_dict("records") == rows
    assert sorted(path.name for path in out.iterdir()) == [
        f"id_map_{entity}.{form}" for entity in ("chunk", "document") for form in ("csv", "parquet")
    ]
    # It only read, and began no run: neither the ledger nor a home shows it.
    assert cycle.rows_of(incident, "uuid_pipeline") == ledger
    assert not Path(command_line.environment["UUID_PIPELINE_HOME"]).exists()


@pytest.mark.begins("approved")
def test_moved_is_what_the_store_holds_now(incident: Engine, command_line: CommandLine, out: Path) -> None:
    execution = cycle.newest_execution(incident)
    canary, recent, _ = cycle.waves_of(incident, execution)

    def moved() -> dict[bool, int]:
        assert command_line("export", "--format", "csv", "--output", str(out)).code == 0
        counts = {True: 0, False: 0}
        for entity, (table, key) in TABLES.items():
            now = ids(incident, table, key)
            for row in from_csv(out / f"id_map_{entity}.csv"):
                assert (row["new_id"] in now, row["old_id"] in now) == (row["moved"], not row["moved"])
                counts[row["moved"]] += entity == "document"
        return counts

    cycle.migrate(incident, SPEC, canary)
    cycle.check_wave(incident, SPEC, canary)
    # This one will be found changed, so that it never moves.
    [(edited,)] = cycle.run_sql(
        incident,
        "SELECT old_id::text FROM uuid_pipeline.id_map_document WHERE ordinal = %(first)s",
        first=recent.first_ordinal,
    )
    assert moved() == {True: 5, False: 33}
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = reverse(file_sha256)
           WHERE document_id = %(id)s::uuid""",
        id=edited,
    )
    cycle.migrate(incident, SPEC, recent)
    assert command_line("export", "--format", "csv", "--output", str(out)).code == 0
    rows = {row["old_id"]: row["moved"] for row in from_csv(out / "id_map_document.csv")}
    assert (rows.pop(edited), sum(rows.values())) == (False, 19)

    cycle.roll_back(incident, SPEC, "recent")
    assert command_line("export", "--format", "csv", "--output", str(out)).code == 0
    assert sum(row["moved"] for row in from_csv(out / "id_map_document.csv")) == 5

    cycle.roll_back(incident, SPEC)
    nothing = command_line("export", "--format", "csv", "--output", str(out))
    assert nothing.code == 1
    assert "Nothing is mapped" in nothing.err
    named = command_line("export", "--format", "csv", "--output", str(out), "--execution", execution.execution_id)
    assert named.code == 0
    assert not any(row["moved"] for row in from_csv(out / "id_map_document.csv"))


def test_each_id_stands_there_once_however_many_sweeps_have_looked_at_it(
    incident: Engine, command_line: CommandLine, out: Path
) -> None:
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    cycle.migrate_waves(incident, SPEC, slice(0, 3))
    moved = cycle.run_sql(incident, "SELECT min(document_id::text) FROM upload_pipeline.document_chunks")[0][0]
    # The sweep looks at a document that has moved with all that is below it.
    cycle.run_sql(incident, NEW_CHUNK, id=str(uuid.uuid4()), document=moved)
    cycle.finish(incident, SPEC, execution)

    said = command_line("export", "--format", "csv", "--output", str(out), "--json")

    assert said.code == 0, said.err
    rows = [row for file in said.data["files"] for row in from_csv(Path(file["path"]))]
    assert len(rows) == said.data["rows"] == 38 + 88
    assert len({row["old_id"] for row in rows}) == len(rows)
    stored = ids(incident, "documents", "document_id") | ids(incident, "document_chunks", "chunk_id")
    assert {row["new_id"] for row in rows} == stored


@pytest.mark.begins("migrated")
def test_an_export_is_of_the_newest_execution_and_names_the_others(
    incident: Engine, command_line: CommandLine, out: Path
) -> None:
    first = cycle.newest_execution(incident).execution_id
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = reverse(file_sha256)
           WHERE document_id = (SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)""",
    )
    second = cycle.run_all(incident, SPEC).execution_id

    newest = command_line("export", "--format", "csv", "--output", str(out / "newest"), "--json")
    said = command_line("export", "--format", "csv", "--output", str(out / "newest"))
    older = command_line("export", "--format", "csv", "--output", str(out / "older"), "--execution", first, "--json")

    assert (newest.data["execution_id"], newest.data["other_executions"]) == (second, [first])
    assert f"the maps of {first}, which moved rows too" in said.out
    assert (older.data["execution_id"], older.data["other_executions"]) == (first, [])
    moved = [sum(row["moved"] for row in from_csv(out / one / "id_map_document.csv")) for one in ("newest", "older")]
    assert moved == [1, 38]


def test_a_plan_is_exported_before_anything_is_approved(incident: Engine, command_line: CommandLine, out: Path) -> None:
    before = cycle.rows_of(incident)
    odd = 'by hand, "twice"\r\nand = so on'
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.document_chunks SET chunker_name = %(odd)s
           WHERE chunk_id = (SELECT min(chunk_id::text)::uuid FROM upload_pipeline.document_chunks)""",
        odd=odd,
    )
    plan = cycle.assess_and_plan(incident, SPEC)

    unapproved = command_line("export", "--format", "parquet", "--output", str(out))
    assert unapproved.code == 1
    assert "uuid-pipeline export --plan" in unapproved.err
    for form in ("csv", "parquet"):
        said = command_line("export", "--format", form, "--output", str(out), "--plan", "--natural-keys", "--json")
        assert said.code == 0, said.err
        assert (said.data["plan_id"], said.data["execution_id"]) == (plan.plan_id, None)

    rows = from_csv(out / "id_map_chunk.csv")
    assert from_parquet(out / "id_map_chunk.parquet") == rows
    assert {row["wave"] for row in rows} == {"010-canary", "020-recent", "030-remaining-001"}
    assert not any(row["moved"] for row in rows)
    [key] = [row["natural_key"] for row in rows if '"' in row["natural_key"]]
    assert f":{odd}:" in key
    documents = from_csv(out / "id_map_document.csv")
    assert {row["old_id"]: row["natural_key"] for row in documents} == {
        row["document_id"]: f"{row['user_id']}:{str(row['file_sha256']).strip(' ').lower()}"
        for row in before["documents"]
    }


@pytest.mark.begins("migrated")
def test_rows_are_streamed_and_their_ids_take_no_dictionary(
    incident: Engine, out: Path, monkeypatch: pytest.MonkeyPatch, before: cycle.Rows
) -> None:
    monkeypatch.setattr(sql, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(export, "ROWS_A_GROUP", 10)

    with export.reading(incident) as connection:
        subject = export.of_newest_moved(connection)
        export.write(connection, subject, export.COLUMNS, "parquet", out)

    path = out / "id_map_chunk.parquet"
    rows = from_parquet(path)
    assert {row["old_id"]: row["new_id"] for row in rows} == expected(before, *TABLES["chunk"])
    found = parquet.ParquetFile(path)
    assert found.metadata.num_row_groups >= 6
    encodings = {
        found.metadata.row_group(0).column(i).path_in_schema: found.metadata.row_group(0).column(i).encodings
        for i in range(found.metadata.num_columns)
    }
    assert "RLE_DICTIONARY" not in encodings["old_id"] + encodings["new_id"]
    assert "RLE_DICTIONARY" in encodings["wave"]
    assert found.schema_arrow.metadata[b"execution_id"].decode() == subject.execution_id


@pytest.mark.begins("migrated")
def test_nothing_is_replaced_unless_everything_is_written(
    incident: Engine, command_line: CommandLine, out: Path
) -> None:
    assert command_line("export", "--format", "csv", "--output", str(out)).code == 0
    earlier = {path.name: path.read_bytes() for path in out.iterdir()}
    cycle.run_sql(incident, "UPDATE uuid_pipeline.id_map_chunk SET role = 'keep'")

    cycle.run_sql(incident, "UPDATE uuid_pipeline.id_map_document SET ordinal = 1000 WHERE ordinal = 1")
    incomplete = command_line("export", "--format", "csv", "--output", str(out))
    assert incomplete.code == 1
    assert "holds 1 rows that belong to none of its waves" in incomplete.err
    cycle.run_sql(incident, "DROP TABLE uuid_pipeline.id_map_document_1 CASCADE")
    dropped = command_line("export", "--format", "csv", "--output", str(out))
    assert dropped.code == 1
    assert "no longer holds the id map of assessment 1" in dropped.err

    assert {path.name: path.read_bytes() for path in out.iterdir()} == earlier


@pytest.mark.begins("migrated")
def test_a_role_that_may_only_read_the_ledger_suffices(
    incident: Engine, incident_url: str, command_line: CommandLine, out: Path, new_role: NewRole
) -> None:
    role = new_role()
    cycle.run_sql(incident, f"GRANT USAGE ON SCHEMA uuid_pipeline TO {role}")
    cycle.run_sql(incident, f"GRANT SELECT ON ALL TABLES IN SCHEMA uuid_pipeline TO {role}")

    auditor = command_line.but(UUID_PIPELINE_DATABASE_URL=as_role(incident_url, role))
    assert auditor("export", "--format", "csv", "--output", str(out)).code == 0
    assert len(from_csv(out / "id_map_chunk.csv")) == 87


def test_what_cannot_be_exported_is_said_in_words(
    incident: Engine, command_line: CommandLine, out: Path, tmp_path: Path
) -> None:
    def said(*options: str) -> Said:
        answer = command_line("export", "--format", "csv", "--output", str(out), *options, "--json")
        assert json.loads(answer.out)["exit_code"] == answer.code
        return answer

    no_ledger = said()
    assert (no_ledger.code, "no ledger" in no_ledger.data["error"]) == (1, True)
    assert cycle.run_sql(incident, "SELECT to_regnamespace('uuid_pipeline')") == [(None,)]
    cycle.run_all(incident, SPEC)
    unknown = said("--execution", "2020-01-01-000000")
    assert (unknown.code, "no execution 2020-01-01-000000" in unknown.data["error"]) == (1, True)
    both = said("--plan", "--execution", "2020-01-01-000000")
    assert (both.code, "either --plan, or --execution" in both.data["error"]) == (2, True)
    cycle.assess_and_plan(incident, SPEC)
    empty = said("--plan")
    assert (empty.code, "Nothing is mapped" in empty.data["error"]) == (1, True)
    assert not [*tmp_path.rglob("*id_map*")]

    out.rmdir()
    out.write_text("a file in the directory's place")
    blocked = said()
    assert blocked.code == 2
    assert "cannot be written" in blocked.data["error"]
    assert "--output" in blocked.data["error"]
    assert command_line("export", "--format", "xlsx", "--output", str(out)).code == 2
