"""``uuid-pipeline init`` as a user meets it: a file to go through, which then plans; nothing lost on bad input."""

import uuid
from pathlib import Path

import psycopg
import pytest
import yaml
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine, CommandLineFor
from uuid_pipeline_tests.integration import cycle

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


def test_the_incidents_spec_with_namespace_and_history_put_right_plans_the_ids_of_the_rule(
    command_line: CommandLine, incident: Engine, incident_url: str, tmp_path: Path
) -> None:
    before, catalog = cycle.rows_of(incident), cycle.catalog_of(incident)
    path = tmp_path / "new.yaml"

    said = command_line("init", "--output", str(path), "--json")

    assert (said.code, said.data["schema"], said.data["todo"]) == (0, "upload_pipeline", [])
    # How many there are follows the day that the incident was built on.
    [(events, jobs, paths)] = cycle.run_sql(
        incident,
        """SELECT (SELECT count(*) FROM upload_pipeline.events WHERE payload ? 'document_id'),
                  (SELECT count(*) FROM upload_pipeline.upload_jobs WHERE progress ? 'document_id'),
                  (SELECT count(*) FROM upload_pipeline.documents
                   WHERE strpos(parsed_path, document_id::text) > 0)""",
    )
    assert said.data["soft_references"] == [
        f"events.payload.document_id holds {events} document ids",
        f"upload_jobs.progress.document_id holds {jobs} document ids",
    ]
    assert (cycle.rows_of(incident), cycle.catalog_of(incident)) == (before, catalog)
    with psycopg.connect(incident_url) as connection:
        assert connection.execute("SELECT to_regnamespace('uuid_pipeline')").fetchone() == (None,)
    text = path.read_text()
    assert f"documents.parsed_path: {paths} rows, contains the id (document)" in text
    assert "retrieval: {vector: embedding, distance: cosine, chunk_table: document_chunks}" in text
    written = yaml.safe_load(text)
    assert written["namespace"] == said.data["namespace"]
    assert uuid.UUID(written["namespace"]).version == 4
    assert written["entities"]["document"]["describe"] == {
        "owner": "user_id", "created_at": "created_at", "status": "processing_status", "size": "bytes_len",
        "title": "filename",
    }  # fmt: skip

    # What a person changes: the application's namespace, its normalising, and history that stays history.
    written["namespace"] = str(cycle.NAMESPACE)
    written["entities"]["document"]["normalize"] = {"file_sha256": ["strip", "lower"]}
    written["ignore_references"] = [
        {"table": found["table"], "column": found["column"], "reason": "it is history"}
        for found in written["soft_references"]
    ]
    written["soft_references"] = []
    path.write_text(yaml.safe_dump(written))
    planned = command_line("plan", "--spec", str(path), "--json")

    assert planned.code == 0, planned.err
    with psycopg.connect(incident_url) as connection:
        made = connection.execute(
            "SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document "
            "UNION ALL SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_document_chunk"
        ).fetchall()
    assert dict(made) == cycle.targets(before)


def test_an_existing_file_is_left_alone_and_what_is_wrong_is_said_without_a_traceback(
    command_line: CommandLine, incident_url: str, tmp_path: Path
) -> None:
    path, fresh = tmp_path / "mine.yaml", str(tmp_path / "fresh.yaml")
    path.write_text("mine\n")
    wrong = [
        (["--output", str(path)], f"{path} is there already, and stays as it is"),
        (["--output", str(tmp_path), "--force"], "is a directory"),
        (["--output", str(tmp_path / "no" / "such.yaml")], "is no directory that you may write to"),
        (["--output", fresh, "--namespace", "abc"], "--namespace 'abc' is no UUID"),
        (["--output", fresh, "--schema", "upload"], "Schema upload holds no table; schemas that do: upload_pipeline"),
        (["--output", fresh, "--table", "document"], "has no table document; the nearest it has is documents"),
        (["--output", str(path), "--force", "--table", "nothing_like_it"], "has no table nothing_like_it"),
    ]
    for arguments, message in wrong:
        said = command_line("init", *arguments)
        assert (said.code, message in said.err, "Traceback" in said.err) == (2, True, False), said.err
    unreachable = command_line.but(UUID_PIPELINE_DATABASE_URL=incident_url.replace("/t_", "/no_"))
    said = unreachable("init", "--output", fresh, "--json")
    assert (said.code, said.data["exit_code"]) == (2, 2)
    assert "cannot be reached" in said.data["error"]
    assert sorted(tmp_path.glob("*.yaml")) == [path]
    assert path.read_text() == "mine\n"

    assert command_line("init", "--output", str(path), "--force", "--table", "documents").code == 0
    assert yaml.safe_load(path.read_text())["entities"].keys() == {"document", "document_chunk"}
    assert [found.name for found in tmp_path.iterdir() if found.is_file()] == ["mine.yaml"]


def test_without_a_home_or_a_url_there_is_no_store_to_write_a_spec_from(
    command_line_for: CommandLineFor, incident_url: str, tmp_path: Path
) -> None:
    said = command_line_for(incident_url).but(UUID_PIPELINE_DATABASE_URL="")("init", "--output", str(tmp_path / "a"))

    assert said.code == 2
    assert "There is no store: set UUID_PIPELINE_DATABASE_URL" in said.err
    assert not (tmp_path / "a").exists()
