"""``uuid-pipeline init``"""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, answer_with
from uuid_pipeline.cli.session import open_configured_store
from uuid_pipeline.engine.drafts import drafting, spec_text, table_choices
from uuid_pipeline.engine.drafts.drafting import Draft
from uuid_pipeline.errors import UsageError
from uuid_pipeline.settings import read_settings

DEFAULT_OUTPUT = Path("uuid_pipeline.yaml")


def init(
    schema: Annotated[
        str | None, typer.Option("--schema", help="The schema; default: the only one, or public.")
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", help="A table whose ids are to be derived (again for more); default: by foreign keys."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="The file to write.")] = DEFAULT_OUTPUT,
    namespace: Annotated[str | None, typer.Option("--namespace", help="The application's namespace UUID.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a first specification from the store's catalogs, to be gone through by a person. Reads only."""

    def verb(answer: Answer) -> None:
        place = output.expanduser().absolute()
        _require_writable(place, force)
        chosen = _namespace(namespace)
        engine = open_configured_store(read_settings())
        try:
            with engine.begin() as connection:
                made = drafting.draft(
                    connection, table_choices.choose_schema(connection, schema), table or [], chosen or uuid.uuid4()
                )
        finally:
            engine.dispose()
        _write(place, spec_text.render(made, chosen is not None), force)
        _report(answer, made, output, place, chosen is not None)

    answer_with(verb, as_json, None)


def _namespace(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if text is not None else None
    except ValueError as error:
        raise UsageError(f"--namespace {text!r} is no UUID.") from error


def _require_writable(place: Path, force: bool) -> None:
    """Raise UsageError for a file that is there or cannot be written, before the store is even asked."""
    if place.is_dir():
        raise UsageError(f"{place} is a directory. Give a file with --output.")
    if place.exists() and not force:
        raise UsageError(f"{place} is there already, and stays as it is. Give another --output, or --force.")
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise UsageError(f"{place.parent} is no directory that you may write to. Give another --output.")


def _write(place: Path, text: str, force: bool) -> None:
    """Write beside the place and then put it there: never half a file, nor over one that came meanwhile."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=place.parent, delete=False) as file:
            file.write(text)
        written = Path(file.name)
        try:
            written.chmod(0o644)
            if force:
                written.replace(place)
            else:
                place.hardlink_to(written)
        finally:
            written.unlink(missing_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{place} came to be meanwhile, and stays as it is. Give another --output.") from error
    except OSError as error:
        raise UsageError(f"{place} cannot be written: {error.strerror}. Give another --output.") from error


def _report(answer: Answer, made: Draft, output: Path, place: Path, namespace_given: bool) -> None:
    answer.data |= {
        "output": str(place),
        "schema": made.store.catalog.schema,
        "namespace": str(made.namespace),
        "entities": [
            {"entity": e.name, "table": e.table.name, "key": e.key, "parent": e.spec.parent,
             "identity": e.spec.identity if e.choice else None}
            for e in made.entities
        ],
        "soft_references": [str(found) for found in made.soft],
        "derived_values": [str(found) for found in made.search.derived],
        "sampled_only": list(made.search.sampled_only),
        "todo": made.todo,
    }  # fmt: skip
    answer.say(f"Wrote {output}: schema {made.store.catalog.schema}")
    answer.pairs(
        [(e.name, f"{e.table.name}: {e.spec.identity if e.choice else spec_text.TODO}") for e in made.entities]
    )
    answer.say(*[f"  soft reference: {found}" for found in made.soft])
    if made.todo:
        answer.say(f"To be written before it loads: the identity of {', '.join(made.todo)}.")
    if not namespace_given:
        answer.say("The namespace in it is random: put the application's own in its place.")
    answer.say(f"Go through it, then: uuid-pipeline plan --spec {output}")
