"""Other stores than the demo's, through the command line: plain owners, bad rows, duplicates, hidden references."""

import csv
import json
import re
import uuid
from collections import Counter
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine, CommandLineFor
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]

SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"


def owned_by(url: str, role: str) -> None:
    """Give the incident's tables to a role that may make a schema and nothing else of the kind."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'upload_pipeline'").fetchall()
        for (table,) in tables:
            to_role = sql.SQL("ALTER TABLE upload_pipeline.{} OWNER TO {}").format(
                sql.Identifier(table), sql.Identifier(role)
            )
            connection.execute(to_role)
        grants = "GRANT USAGE ON SCHEMA upload_pipeline TO {role}; GRANT CREATE ON DATABASE {database} TO {role}"
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL(grants).format(role=sql.Identifier(role), database=database))


def test_an_owner_who_may_not_silence_triggers_moves_all_and_every_updated_at_stays(
    command_line_for: CommandLineFor, incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    role = new_role()
    owned_by(incident_url, role)
    before, catalog = cycle.rows_of(incident), cycle.catalog_of(incident)
    command_line = command_line_for(as_role(incident_url, role))

    done = command_line("run", "--approve", "--json")
    assert (done.code, done.data.get("error")) == (0, None)
    plan = done.data["plan"]
    assert plan["tier"] == "O"
    assert {(t["trigger"], t["table"], t["does"]) for t in plan["silenced_triggers"]} == {
        ("touch_updated_at", table, "sets updated_at of the row itself")
        for table in ("documents", "upload_jobs", "document_chunks")
    }
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert cycle.catalog_of(incident) == catalog
    assert command_line("status", "--json").data["altered"] == []
    # The application's own writes fire the trigger as ever.
    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET filename = filename")
    untouched = "SELECT count(*) FROM upload_pipeline.documents WHERE updated_at < now() - interval '5 min'"
    assert cycle.run_sql(incident, untouched) == [(0,)]

    assert command_line("rollback", "--all").code == 0
    assert cycle.rows_of(incident)["document_chunks"] == before["document_chunks"]
    assert cycle.catalog_of(incident) == catalog


def test_rows_whose_natural_key_cannot_be_read_are_named_counted_and_left_and_the_rest_moves(
    command_line: CommandLine, incident: Engine
) -> None:
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ALTER file_sha256 DROP NOT NULL")
    spoilt = cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents d SET file_sha256 = v.value FROM (
               SELECT document_id, (ARRAY[NULL, '', '   ', 'not a hash', left(file_sha256, 63)])[n] AS value
               FROM (SELECT *, row_number() OVER (ORDER BY document_id) AS n FROM upload_pipeline.documents) r
               WHERE n <= 5) v WHERE v.document_id = d.document_id RETURNING d.document_id::text""",
    )
    left = {key for (key,) in spoilt}
    before = cycle.rows_of(incident)

    looked = command_line("inventory", "--json")
    assert (looked.code, looked.data["inventory"]["quarantined"]) == (0, 5)
    named = {row["id"]: row["reason"] for row in looked.data["quarantined"] if row["entity"] == "document"}
    assert set(named) == left
    aside = Counter(row["entity"] for row in looked.data["quarantined"])
    assert looked.data["quarantined_found"] == aside
    pattern = "^[0-9a-f]{64}$"
    assert Counter(named.values()) == {
        "a part of the natural key is NULL or blank": 1, f"file_sha256 does not match {pattern}": 4
    }  # fmt: skip
    shown = command_line("inventory").out
    assert all(key in shown for key in left)
    done = command_line("run", "--approve", "--json")
    assert (done.code, done.data["status"]) == (0, "completed")
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left)

    again = command_line("run", "--json")
    assert (again.code, again.data["nothing_to_do"]) == (0, True)
    assert "33 of 38" in again.data["message"]
    assert "5 rows are quarantined" in again.data["message"]


def test_duplicates_that_the_spec_lets_block_end_the_plan_with_1_and_name_both_rows(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    [pair] = cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents d SET user_id = o.user_id, file_sha256 = o.file_sha256
           FROM (SELECT * FROM upload_pipeline.documents ORDER BY document_id LIMIT 1) o
           WHERE d.document_id = (SELECT max(document_id::text)::uuid FROM upload_pipeline.documents)
           RETURNING d.document_id::text, o.document_id::text""",
    )
    before = cycle.rows_of(incident)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.read_text(encoding="utf-8").replace("on_duplicate: merge", "on_duplicate: block"))
    refused = command_line("run", "--approve", "--spec", str(spec), "--json")
    assert refused.code == 1
    assert "duplicate_clusters.each_cluster_decided" in refused.data["error"]
    assert all(key in refused.data["error"] for key in pair)
    assert cycle.rows_of(incident) == before

    merging = command_line("plan", "--json").data["plan"]
    assert merging["merges"]["document"] == 1
    [cluster] = [cluster for cluster in merging["clusters"] if cluster["entity"] == "document"]
    assert (cluster["kind"], set(cluster["ids"])) == ("race", set(pair))
    assert cluster["survivor"] == cluster["ids"][0]


HIDDEN = """
CREATE TABLE upload_pipeline.trail (trail_id int PRIMARY KEY, body jsonb NOT NULL);
CREATE TABLE upload_pipeline.mail (mail_id int PRIMARY KEY, about text);
CREATE TABLE upload_pipeline.folder (folder_id int PRIMARY KEY, holds uuid[]);
INSERT INTO upload_pipeline.trail
    SELECT row_number() OVER (), jsonb_build_object('kept', 1.50, 'seen', jsonb_build_array(
               jsonb_build_object('document', document_id), jsonb_build_object('document', NULL)))
    FROM upload_pipeline.documents;
INSERT INTO upload_pipeline.mail SELECT row_number() OVER (), chunk_id FROM upload_pipeline.document_chunks;
INSERT INTO upload_pipeline.mail VALUES (1000, 'no id'), (1001, NULL);
INSERT INTO upload_pipeline.folder SELECT 1, array_agg(document_id ORDER BY document_id)
    FROM upload_pipeline.documents;
INSERT INTO upload_pipeline.folder VALUES (2, ARRAY['3b1f8a52-0000-4000-8000-000000000000']::uuid[]), (3, NULL);
"""


def rewritten(before: cycle.Rows) -> cycle.Rows:
    """What every row must be after the migration, those of the hidden references included."""
    new = cycle.targets(before)
    after = cycle.expected_rows(before)
    pattern = re.compile("|".join(new))
    for table, column in (("trail", "body"), ("mail", "about"), ("folder", "holds")):
        after[table] = cycle.ordered(
            [
                row | {column: row[column] and pattern.sub(lambda found: new[found[0]], str(row[column]))}
                for row in before[table]
            ]
        )
    return after


def test_ids_without_a_foreign_key_stop_the_plan_with_the_lines_to_declare_them_and_then_move_with_the_rest(
    command_line: CommandLine, incident: Engine, tmp_path: Path
) -> None:
    cycle.run_sql(incident, HIDDEN)
    before = cycle.rows_of(incident)
    red = command_line("run", "--approve", "--json")
    assert red.code == 1
    assert "store_profile.references_known" in red.data["error"]
    assert cycle.rows_of(incident) == before
    declarations = red.data["error"].split("so that they move:")[1].split("or, to leave them alone:")[0].strip("\n")
    assert yaml.safe_load(declarations) == [
        {"table": "folder", "column": "holds", "entity": "document"},
        {"table": "mail", "column": "about", "entity": "chunk"},
        {"table": "trail", "column": "body", "entity": "document", "path": "seen.*.document"},
    ]

    spec = tmp_path / "spec.yaml"
    text = SPEC.read_text(encoding="utf-8")
    spec.write_text(text.replace("soft_references:\n", f"soft_references:\n{declarations}\n"), encoding="utf-8")
    declared = command_line.but(UUID_PIPELINE_SPEC=str(spec))
    done = declared("run", "--approve", "--json")
    assert (done.code, done.data.get("error")) == (0, None)
    assert cycle.rows_of(incident) == rewritten(before)

    exported = declared("export", "--output", str(tmp_path / "out"), "--format", "csv", "--json")
    assert exported.code == 0
    written: dict[str, str] = {}
    for file in exported.data["files"]:
        with Path(file["path"]).open(newline="", encoding="utf-8") as lines:
            written |= {row["old_id"]: row["new_id"] for row in csv.DictReader(lines) if row["moved"] == "true"}
    assert written == cycle.targets(before)

    assert declared("rollback", "--all").code == 0
    assert cycle.rows_of(incident) == before


def test_status_counts_what_merges_archived_and_says_when_an_old_id_was_last_used(
    command_line: CommandLine, incident: Engine
) -> None:
    cycle.run_sql(incident, "DROP INDEX upload_pipeline.uq_user_filehash")
    [(user, file_hash)] = cycle.run_sql(
        incident, "SELECT user_id, file_sha256 FROM upload_pipeline.documents ORDER BY document_id LIMIT 1"
    )
    target = uuid.uuid5(cycle.NAMESPACE, f"{user}:{file_hash}")
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           VALUES (%(id)s, %(user)s, 'again', 'text/plain', 1, upper(%(hash)s), 'again')""",
        id=target, user=user, hash=file_hash,
    )  # fmt: skip
    [(old,)] = cycle.run_sql(
        incident,
        "SELECT document_id::text FROM upload_pipeline.documents WHERE file_sha256 = %(hash)s", hash=file_hash,
    )  # fmt: skip
    assert command_line("run", "--approve").code == 0
    state = command_line("status", "--json").data
    assert state["merged"]["archived"] == {"upload_pipeline.documents": 1}
    assert [one["rows"] for one in state["archives"]] == [1]
    assert sum(wave["merged"] for wave in state["waves"]) == 1
    assert sum(wave["moved"] for wave in state["waves"]) == 38
    assert state["alias_uses"] == [
        {"entity": "chunk", "uses": 0, "last_used": None}, {"entity": "document", "uses": 0, "last_used": None}
    ]  # fmt: skip
    assert "finalize" in state["next"]

    cycle.run_sql(
        incident, "INSERT INTO upload_pipeline.upload_jobs (job_id, document_id, state) VALUES "
        "(gen_random_uuid(), %(old)s, 'queued')", old=old,
    )  # fmt: skip
    used = command_line("status", "--json").data["alias_uses"][1]
    assert (used["entity"], used["uses"] > 0, used["last_used"] is not None) == ("document", True, True)
    in_use = command_line("finalize", "--json")
    assert in_use.code == 1
    assert "old ids are still in use" in in_use.data["error"]

    assert command_line("rollback", "--all").code == 0
    undone = command_line("status", "--json").data
    assert undone["merged"]["archived"] == {}
    assert [one["rows"] for one in undone["archives"]] == [0]
    assert json.dumps(undone["waves"]).count("rolled_back") == 3
