"""``uuid-pipeline export``"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.engine import export as exports
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.errors import UsageError
from uuid_pipeline.settings import read_settings
from uuid_pipeline.spec import load_spec


class Form(StrEnum):
    """File formats, by their file name's ending."""

    csv = "csv"
    parquet = "parquet"


def export(
    output: Annotated[Path, typer.Option("--output", help="Directory for the files; made if it is missing.")],
    form: Annotated[Form, typer.Option("--format", help="One file an entity: id_map_ENTITY.csv or .parquet.")],
    execution: Annotated[
        str | None, typer.Option("--execution", help="Its id; default: the newest with rows under new ids.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="The map of the newest plan instead, approved or not.")] = False,
    natural_keys: Annotated[
        bool,
        typer.Option("--natural-keys/--no-natural-keys", help="With what ids are made of; it can be personal."),
    ] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Write the id map to files, for systems outside the store. Reads only."""

    def verb(answer: Answer) -> None:
        if plan and execution is not None:
            raise UsageError("Say what to export: either --plan, or --execution ID.")
        settings = read_settings()
        if "natural_key" in redaction.hidden(load_spec(settings.spec)) and natural_keys:
            raise UsageError(
                "Natural keys are hidden here (privacy.redact, UUID_PIPELINE_REDACT): export without them."
            )
        columns = exports.WITH_NATURAL_KEYS if natural_keys else exports.COLUMNS
        engine = open_configured_store(settings)
        try:
            with exports.reading(engine) as connection:
                subject = _subject(connection, plan, execution)
                files = exports.write(connection, subject, columns, form.value, output)
                others = [] if plan or execution else exports.moved_executions(connection)[1:]
        finally:
            engine.dispose()
        show(answer, subject, files)
        show_others(answer, others)

    answer_with(verb, as_json, spec)


def _subject(connection: Connection, plan: bool, execution: str | None) -> exports.Subject:
    if plan:
        return exports.of_newest_plan(connection)
    if execution is not None:
        return exports.of_execution(connection, execution)
    return exports.of_newest_moved(connection)


def show(answer: Answer, subject: exports.Subject, files: list[exports.File]) -> None:
    """Which files were written, with their digests."""
    answer.data["plan_id"] = subject.plan_id
    answer.data["execution_id"] = subject.execution_id
    answer.data["rows"] = sum(file.rows for file in files)
    answer.data["files"] = [
        {"entity": file.entity, "path": str(file.path), "rows": file.rows, "moved": file.moved, "sha256": file.sha256}
        for file in files
    ]
    whose = f"execution {subject.execution_id}" if subject.execution_id else "not approved"
    answer.say(f"The id map of plan {subject.plan_id} ({whose}):")
    answer.pairs([(str(f.path), f"{f.rows} rows, {f.moved} of them moved, SHA-256 {f.sha256}") for f in files])


def show_others(answer: Answer, others: list[str]) -> None:
    """Which executions have rows under new ids too: whoever drops the ledger needs the maps of all."""
    answer.data["other_executions"] = others
    if others:
        answer.say(
            f"Not in it: the maps of {', '.join(others)}, which moved rows too. Each into a directory of its own: "
            "uuid-pipeline export --execution ID --output DIRECTORY"
        )
