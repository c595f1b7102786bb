"""``uuid-pipeline demo``"""

import json
import shutil
from typing import Annotated, Any

import typer
from sqlalchemy import Connection, Engine

from uuid_pipeline.cli.output import Answer, JsonOption, answer_with, show_table
from uuid_pipeline.cli.run import run_all
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.demo import incident, server
from uuid_pipeline.engine import inventory, ledger
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations.instance import store_identity
from uuid_pipeline.settings import Settings, read_settings
from uuid_pipeline.stages.session import DEMO_DATABASE


def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw the demo's home away and start over.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the demo's server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the incident's store on the embedded server and migrate it, gates and all."""

    def verb(answer: Answer) -> None:
        settings = read_settings()
        if settings.database_url is not None or settings.dagster_url is not None:
            raise UsageError(
                "The demo runs on its own embedded server only, but UUID_PIPELINE_DATABASE_URL or "
                "UUID_PIPELINE_DAGSTER_URL is set. Unset it for the demo; for your store use: uuid-pipeline run"
            )
        if settings.spec is not None:
            raise UsageError("The demo has its own specification; unset UUID_PIPELINE_SPEC.")
        if stop:
            answer.say("Stopped." if server.stop(settings.home) else "The demo's server was not running.")
            return
        if fresh:
            start_over(settings)
        build(settings, answer)
        with open_session() as session:
            show_run(session, answer)

    answer_with(verb, as_json, None)


def start_over(settings: Settings) -> None:
    """Drop the demo's databases and records, in a home that is the demo's. Raises UsageError in any other."""
    if not settings.home.exists():
        return
    found = server.start(settings.home)
    record = settings.home / "store.json"
    if record.exists() and json.loads(record.read_text())["store"] != demo_identity(found):
        raise UsageError(f"The home {settings.home} belongs to a store of yours. Set UUID_PIPELINE_HOME for the demo.")
    drop_databases(found)
    record.unlink(missing_ok=True)
    shutil.rmtree(settings.home / "dagster", ignore_errors=True)


def demo_identity(found: server.EmbeddedServer) -> str | None:
    """The identity of the demo's store on this server; None when there is none."""
    try:
        engine = open_store(found.url(DEMO_DATABASE))
    except UsageError:
        return None
    try:
        with engine.begin() as connection:
            return store_identity(connection)
    finally:
        engine.dispose()


def drop_databases(found: server.EmbeddedServer) -> None:
    """Both databases of the embedded server; sessions on them are ended."""
    engine = open_store(found.url("postgres"))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for name in (DEMO_DATABASE, "dagster"):
                connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        engine.dispose()


def build(settings: Settings, answer: Answer) -> None:
    """The incident's store, unless an earlier demo built it."""
    embedded = server.start(settings.home)
    server.ensure_database(embedded, DEMO_DATABASE)
    engine = open_store(embedded.url(DEMO_DATABASE))
    try:
        with engine.begin() as connection:
            there = connection.exec_driver_sql("SELECT to_regclass('upload_pipeline.documents')").scalar()
            if there is None:
                incident.build_incident(connection)
                answer.say("Built the incident's store: 38 documents under random ids.")
            else:
                answer.say("Going on with the store that an earlier demo left (--fresh starts over).")
    finally:
        engine.dispose()


def show_run(session: Session, answer: Answer) -> None:
    """The whole pipeline, with the store before and after."""
    before = sample(session.engine)
    run_all(session, answer, approve=True)
    after = sample(session.engine)
    compared = [
        {"file": row["filename"], "id before": row["document_id"], "id now": after[key]["document_id"],
         "chunks": after[key]["chunks"]}
        for key, row in before.items()
    ]  # fmt: skip
    answer.data["sample"] = compared
    answer.section("The store, before and after (5 documents)")
    answer.say(*show_table("", compared[:5]))
    with session.engine.begin() as connection:
        left = inventory.orphans(connection, session.store)
        done = [e for e in ledger.executions(connection) if e.status == "completed"]
    answer.say(f"Orphans now: {sum(left.values())}. Executions completed: {len(done)}.")
    answer.section("Look around")
    answer.pairs(
        [
            ("Dagster UI", "uuid-pipeline ui     (http://127.0.0.1:3000)"),
            ("State", "uuid-pipeline status"),
            ("Undo it all", "uuid-pipeline rollback --all"),
            ("Stop the server", "uuid-pipeline demo --stop"),
        ]
    )


_SAMPLE = """
SELECT d.user_id::text || d.file_sha256 AS natural_key, d.filename, d.document_id::text AS document_id,
       (SELECT count(*) FROM upload_pipeline.document_chunks c WHERE c.document_id = d.document_id) AS chunks
FROM upload_pipeline.documents d ORDER BY d.filename, 1
"""


def sample(engine: Engine) -> dict[str, dict[str, Any]]:
    """Every demo document by its natural key."""
    with engine.begin() as connection:
        return _rows(connection)


def _rows(connection: Connection) -> dict[str, dict[str, Any]]:
    return {row.natural_key: dict(row._mapping) for row in connection.exec_driver_sql(_SAMPLE)}
