"""``uuid-pipeline erase``

It runs no Dagster job: what a run is configured with is kept, and here that would be the user's id.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine.privacy import erasing
from uuid_pipeline.engine.privacy.erasing import Erasure
from uuid_pipeline.operations import keeping


def erase(
    user: Annotated[str, typer.Option("--user", help="The owner's id, as the spec's describe.owner column has it.")],
    approve: Annotated[
        str | None, typer.Option("--approve", metavar="DIGEST", help="Erase it: the digest that looking printed.")
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Remove one user's rows from all that we keep: maps, archives, inventories, journal, dumps, reports, runs."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            seen = erasing.look(session.engine, session.store, user)
            files = keeping.reports_that_mention(session.settings.home, seen.ids)
            # Of somebody whom the store does not know a dump tells nothing; a misspelt id would cost every one of them.
            dumps = keeping.dumps(session.settings.home) if seen.found else []
            files += dumps
            runs = keeping.runs_that_mention(session.instance, seen.ids)
            _show(answer, seen, [path.name for path in files], runs)
            if approve is None:
                answer.data["approve_with"] = f"uuid-pipeline erase --user ID --approve {seen.digest}"
                answer.say("", f"Nothing was erased. To erase it, the same with: --approve {seen.digest}")
                return
            erasing.erase(
                session.engine, session.store, user, approve, "erase", lambda _: _forget(session, files, runs)
            )
            answer.data["message"] = "Erased. The application's own rows are the application's to erase."
            answer.say("", answer.data["message"])
            if dumps:
                answer.say("Dumps cannot be edited: they were deleted. To have one again: uuid-pipeline backup")

    answer_with(verb, as_json, spec)


def _forget(session: Session, files: list[Path], runs: list[str]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
    keeping.forget_runs(session.instance, runs)


def _show(answer: Answer, seen: Erasure, files: list[str], runs: list[str]) -> None:
    """Counts and consequences; neither the user nor an id of theirs."""
    found: dict[str, Any] = {
        "documents": seen.documents, "deleted": seen.deleted, "replaced": seen.replaced, "files": len(files),
        "runs": len(runs), "consequences": list(seen.consequences), "digest": seen.digest,
    }  # fmt: skip
    answer.data |= found
    for line in seen.consequences:
        answer.say(f"Lost: {line}")
    answer.say(f"Documents: {seen.documents}")
    answer.pairs([(name, f"{count} rows") for name, count in seen.deleted.items()])
    answer.pairs([(name, f"{count} values replaced") for name, count in seen.replaced.items()])
    answer.pairs([("dumps and reports", f"{len(files)} files"), ("Dagster's runs", f"{len(runs)} with their events")])
