"""``uuid-pipeline guard``"""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, confirm, show_table
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine.installed import guard as guards
from uuid_pipeline.reports.health import guard_records

app = typer.Typer(
    name="guard",
    help="A trigger that keeps new ids out which their natural key does not give.",
    no_args_is_help=True,
)


class Mode(StrEnum):
    """What happens to a row that is caught."""

    warn = "warn"
    rewrite = "rewrite"
    reject = "reject"


@app.command()
def install(
    mode: Annotated[
        Mode, typer.Option(help="warn: let it in and say so. rewrite: store it under its target id. reject: refuse it.")
    ] = Mode.warn,
    entity: Annotated[
        list[str] | None, typer.Option("--entity", metavar="NAME", help="Only this entity; repeatable. Default: all.")
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Install the guard, or change its mode."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            outcome = session.run("guard_install", install_guard={"mode": mode.value, "entities": entity or []})
            if outcome.error is not None:
                raise outcome.error
            _show(session, answer)

    answer_with(verb, as_json, spec)


@app.command()
def report(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Show what the guard has caught, with the newest samples."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            _show(session, answer)

    answer_with(verb, as_json, spec)


@app.command()
def remove(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Remove the guard without a trace; what it counted stays in the ledger."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            with session.engine.begin() as connection:
                lost = guards.consequences(connection)
            answer.data["consequences"] = lost
            if lost:
                confirm("Removing the guard:", lost, yes)
            answer.say(*[f"  {line}" for line in lost])
            outcome = session.run("guard_remove")
            if outcome.error is not None:
                raise outcome.error
            _show(session, answer)

    answer_with(verb, as_json, spec)


def _show(session: Session, answer: Answer) -> None:
    with session.engine.begin() as connection:
        found = guards.report(connection, session.store)
        samples = guards.samples(connection)
    answer.data["guards"] = [asdict(one) for one in found]
    answer.data["samples"] = samples
    if not found:
        answer.say("No guard is installed. To install one: uuid-pipeline guard install")
        return
    answer.say(*show_table("Guard", guard_records(found)))
    if samples:
        shown = [
            {**sample, "at": f"{sample['at']:%Y-%m-%d %H:%M:%S} UTC", "given_id": str(sample["given_id"])}
            for sample in samples
        ]
        answer.say(*show_table("Newest samples", shown))
