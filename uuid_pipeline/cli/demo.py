"""``uuid-pipeline demo``"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sqlalchemy import Connection, Engine

from uuid_pipeline.cli import notices, report, steps
from uuid_pipeline.cli.output import Answer, JsonOption, answer_with, show_table
from uuid_pipeline.cli.run import run_all
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.demo import incident, server, sized, twins
from uuid_pipeline.engine import ledger, orphans
from uuid_pipeline.engine.backups import backup, backup_gate
from uuid_pipeline.engine.connection import open_store, store_identity
from uuid_pipeline.engine.retrievals import unretrievable
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import bundle_file
from uuid_pipeline.reports.bundle_file import Checked
from uuid_pipeline.settings import Settings, read_settings
from uuid_pipeline.stages.session import DEMO_DATABASE

# So many documents are also rehearsed, certified and bundled within the demo's minute.
WHOLE = 1_000

ScenarioName = Literal["incident", "twins"]

ScenarioOption = Annotated[
    ScenarioName,
    typer.Option(help="incident: 38 documents under random ids. twins: 50, 12 of them uploaded twice, to be merged."),
]
DocumentsOption = Annotated[
    int | None,
    typer.Option("--documents", metavar="N", min=1, help="Instead, a store of the incident's schema with N documents."),
]


@dataclass(frozen=True)
class Scenario:
    """A store that the demo can build; ``name`` is kept in it, so that a later demo knows which it has found."""

    name: str
    shown: str
    documents: int
    build: Callable[[Connection], None]


def demo(
    scenario: ScenarioOption = "incident",
    documents: DocumentsOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw the demo's home away and start over.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the demo's server.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the incident's store, or another, on the embedded server and migrate it, gates and all."""

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
        wanted = scenario_of(scenario, documents)
        if fresh:
            # Before anything is thrown away: the new store may not fit.
            sized.require_room(wanted.documents, server.start(settings.home).data)
            start_over(settings)
        new = build(settings, wanted, answer)
        whole = wanted.documents <= WHOLE
        with open_session() as session:
            if new and whole:
                answer.section("Rehearsal, on a restored copy")
                steps.rehearse(session, answer, None)
            show_run(session, answer)
            show_result(session, answer, whole)
            look_around(answer)

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
    for made in ("dagster", "reports"):
        shutil.rmtree(settings.home / made, ignore_errors=True)


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


def build(settings: Settings, wanted: Scenario, answer: Answer) -> bool:
    """The wanted store, unless an earlier demo built it; whether it is new. Raises UsageError when it built another."""
    embedded = server.start(settings.home)
    server.ensure_database(embedded, DEMO_DATABASE)
    engine = open_store(embedded.url(DEMO_DATABASE))
    try:
        with engine.begin() as connection:
            found = built(connection)
            if found is None:
                sized.require_room(wanted.documents, embedded.data)
                wanted.build(connection)
                # In the transaction that builds it: there is no store that does not say what it is.
                connection.exec_driver_sql(f"COMMENT ON SCHEMA {incident.SCHEMA} IS 'demo: {wanted.name}'")
                answer.say(f"Built {wanted.shown}")
            elif found != wanted.name:
                raise UsageError(
                    f"The home {settings.home} holds the demo's store {found!r}, not {wanted.name!r}. Throw it away "
                    "with --fresh, or set UUID_PIPELINE_HOME to another directory."
                )
            else:
                answer.say("Going on with the store that an earlier demo left (--fresh starts over).")
            return found is None
    finally:
        engine.dispose()


def built(connection: Connection) -> str | None:
    """The name of the scenario that the database holds; None when it holds none."""
    if connection.exec_driver_sql("SELECT to_regclass('upload_pipeline.documents')").scalar() is None:
        return None
    said = connection.exec_driver_sql(
        "SELECT obj_description('upload_pipeline'::regnamespace, 'pg_namespace')"
    ).scalar()
    # The first version built the incident alone, and left no comment.
    return str(said or "demo: incident").removeprefix("demo: ")


def scenario_of(name: ScenarioName, documents: int | None) -> Scenario:
    """What the options ask for. Raises UsageError when they ask for two things at once."""
    if documents is not None:
        if name != "incident":
            raise UsageError("--documents makes a store of its own; leave out --scenario.")
        size = documents * sized.BYTES_A_DOCUMENT / 1e6
        shown = f"a store of the incident's schema with {documents:,} documents, about {size:,.0f} MB on the disk."
        return Scenario(f"{documents} documents", shown, documents, lambda c: sized.build_sized(c, documents))
    if name == "twins":
        shown = "the store with twins: 50 documents of 38 natural keys, 12 of them already under their target id."
        return Scenario("twins", shown, 50, twins.build_twins)
    shown = "the incident's store: 38 documents under random ids."
    return Scenario("incident", shown, 38, incident.build_incident)


def show_run(session: Session, answer: Answer) -> None:
    """The whole pipeline, with the store before and after."""
    count_before, before = count(session.engine), sample(session.engine)
    run_all(session, answer, approve=True)
    count_after, after = count(session.engine), sample(session.engine, list(before))
    compared = [
        {"file": row["filename"], "id before": row["ids"], "id now": after[key]["ids"], "chunks": after[key]["chunks"]}
        for key, row in before.items()
    ]
    answer.data["sample"] = compared
    answer.data["documents"] = {"before": count_before, "now": count_after}
    answer.section(f"The store, before and after ({len(compared)} of {count_after} files)")
    answer.say(*show_table("", compared))
    with session.engine.begin() as connection:
        left = orphans.count(connection, session.store)
        done = [e for e in ledger.executions(connection) if e.status == "completed"]
        kept = backup.newest(connection, "dump")
    answer.say(f"Documents before: {count_before}, now: {count_after}.")
    answer.say(f"Orphans now: {sum(left.values())}. Executions completed: {len(done)}.")
    if kept is not None:
        answer.say(f"Kept: {backup_gate.described(kept)}.")


def show_result(session: Session, answer: Answer, whole: bool) -> None:
    """What people get to read of it: documents to be processed again, notices, the report and, where ``whole``, the
    evidence for it, checked."""
    with session.engine.begin() as connection:
        found = unretrievable.listed(connection, session.store, limit=0)
    answer.data["regeneration"] = {"waiting": found.waiting, "queued": found.queued, "reasons": found.by_reason}
    answer.section("For people")
    why = ", ".join(f"{count} {unretrievable.WORDS[reason]}" for reason, count in found.by_reason.items())
    total = found.waiting + found.queued
    answer.say(f"To be processed again: {total} documents, whatever their ids ({why or 'none'}).")
    told = Answer()
    notices.write(session, told, None, [])
    answer.data["notices"] = told.data
    answer.lines += told.lines
    report.write(session, answer, bundle=report.place(session).parent if whole else None)
    if whole:
        show_evidence(answer, bundle_file.check(Path(answer.data["report"]["bundle"]["path"])))


def show_evidence(answer: Answer, checked: Checked) -> None:
    """Whether the bundle is as it was written, and what its certificate says of the ids."""
    entities = checked.read("certificate.json")["entities"].values()
    rows, agreeing = (sum(entity[name] for entity in entities) for name in ("rows", "agreeing"))
    answer.data["evidence"] = {"intact": not checked.problems, "rows": rows, "agreeing": agreeing}
    answer.pairs([
        ("Bundle", "; ".join(checked.problems) or f"{len(checked.files)} files, intact to the byte"),
        ("Certificate", f"{agreeing} of {rows} ids as two implementations that share no code make them"),
    ])  # fmt: skip


def look_around(answer: Answer) -> None:
    """The commands to go on with."""
    answer.section("Look around")
    answer.pairs(
        [
            ("Dagster UI", "uuid-pipeline ui     (http://127.0.0.1:3000)"),
            ("State", "uuid-pipeline status"),
            ("Process again", "uuid-pipeline regenerate"),
            ("Health", "uuid-pipeline health"),
            ("Undo it all", "uuid-pipeline rollback --all"),
            ("Stop the server", "uuid-pipeline demo --stop"),
        ]
    )


# Files that are there twice first.
_SAMPLE = """
SELECT natural_key, min(filename) AS filename, string_agg(document_id::text, E'\n' ORDER BY created_at) AS ids,
       (SELECT count(*) FROM upload_pipeline.document_chunks c WHERE c.document_id = ANY(array_agg(d.document_id)))
           AS chunks
FROM (SELECT *, user_id || ':' || lower(btrim(file_sha256)) AS natural_key FROM upload_pipeline.documents) AS d
WHERE %(keys)s::text[] IS NULL OR natural_key = ANY(%(keys)s)
GROUP BY natural_key ORDER BY count(*) DESC, 2, 1 LIMIT 5
"""


def sample(engine: Engine, keys: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Five files of the demo by natural key, or those with the given keys: their ids and chunks."""
    with engine.begin() as connection:
        found = connection.exec_driver_sql(_SAMPLE, {"keys": keys})
        return {row.natural_key: dict(row._mapping) for row in found}


def count(engine: Engine) -> int:
    """How many documents the demo's store holds."""
    with engine.begin() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM upload_pipeline.documents").scalar_one())
