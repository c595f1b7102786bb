"""``uuid-pipeline report``"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine.evidence import readiness
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.reports.html import report as reports


def report(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where; default: below the home.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="PATH", help="Write the evidence too: into a directory, or to a name.zip."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Write the report: one HTML file with figures, verdicts and what is still open. Changes no row of the store."""

    def verb(answer: Answer) -> None:
        if bundle is not None and str(bundle).startswith("-"):
            raise UsageError(f"--bundle wants a path, and {bundle} is an option. For a path that begins so: ./{bundle}")
        with open_session() as session:
            page = write(session, answer, out, bundle)
        if open_it:
            typer.launch(page.as_uri())

    answer_with(verb, as_json, spec)


def write(session: Session, answer: Answer, out: Path | None = None, bundle: Path | None = None) -> Path:
    """Run the job ``report`` and say where the page is and what it says."""
    page = (out or place(session)).absolute()
    wanted = str(bundle.absolute()) if bundle else ""
    outcome = session.run("report", completion_report={"out": str(page), "bundle": wanted})
    if outcome.error is not None:
        raise outcome.error
    figures: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    opened = figures["sections"]["open"]["figures"]["items"]
    answer.data["report"] = {
        "path": str(page), "figures": str(page.with_suffix(".json")), "verdict": figures["verdict"],
        "sections": list(figures["sections"]), "open": opened,
        "bundle": figures["bundle"],
    }  # fmt: skip
    answer.say("", f"Report: {page}")
    answer.pairs([("Production", figures["verdict"]), ("Still open", f"{len(opened)} items, in the report")])
    if figures["bundle"]:
        answer.pairs([("Evidence", figures["bundle"]["path"]), ("Digest", figures["bundle"]["digest"])])
        answer.say("  Note the digest elsewhere; check the file with: uuid-pipeline verify-bundle PATH --digest DIGEST")
    return page


def place(session: Session) -> Path:
    """Where the report of this store's newest execution or plan goes. Raises RefusedError when there is none."""
    with session.engine.begin() as connection:
        found = readiness.subject(connection)
    if found is None:
        raise RefusedError("There is nothing to report yet: no plan was made. Run: uuid-pipeline plan")
    plan, execution = found
    return reports.default_path(session.settings.home, execution.execution_id if execution else plan.plan_id)
