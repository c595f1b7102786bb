"""``uuid-pipeline regenerate``"""

from dataclasses import asdict
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.retrievals import unretrievable
from uuid_pipeline.engine.retrievals.unretrievable import Listed
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import unretrievable as shown

SHOWN = 50


def regenerate(
    queue: Annotated[bool, typer.Option("--queue", help="Queue the listed documents; wants --approve.")] = False,
    approve: Annotated[str | None, typer.Option("--approve", metavar="LIST_ID", help="The list's id.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what was queued and nobody has begun.")] = False,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """List what no re-keying can make retrievable, and why; queue it for the application's workers, or take it back."""

    def verb(answer: Answer) -> None:
        if undo and (queue or approve is not None):
            raise UsageError("Say one thing at a time: --queue --approve LIST_ID, or --undo.")
        if queue != (approve is not None):
            raise UsageError("To queue a list: uuid-pipeline regenerate --queue --approve LIST_ID. To see it: neither.")
        with open_session() as session:
            if approve is not None:
                _queue(session, answer, approve)
            elif undo:
                _undo(session, answer)
            else:
                _finish(session, "unretrievable")
            _show(session, answer)

    answer_with(verb, as_json, spec)


def _finish(session: Session, job: str, **ops: dict[str, object]) -> None:
    outcome = session.run(job, None, **ops)
    if outcome.error is not None:
        raise outcome.error


def _open_requests(session: Session) -> int:
    with session.engine.begin() as connection:
        count = "SELECT count(*) FROM uuid_pipeline.regenerations WHERE undone_at IS NULL"
        return int(sql.scalar(connection, count))


def _queue(session: Session, answer: Answer, list_id: str) -> None:
    before = _open_requests(session)
    _finish(session, "regenerate", queue_documents={"list_id": list_id})
    queued = _open_requests(session) - before
    answer.data["queued_now"] = queued
    answer.data["message"] = f"Queued {queued} documents. To take it back: uuid-pipeline regenerate --undo"
    answer.say(answer.data["message"])


def _undo(session: Session, answer: Answer) -> None:
    before = _open_requests(session)
    _finish(session, "undo_regeneration")
    left = _open_requests(session)
    answer.data |= {"undone_now": before - left, "left": left}
    said = f"Undone for {before - left} documents."
    if left:
        said += f" {left} stay queued: their undo found nothing to take back (a worker has them), or they have none."
    answer.data["message"] = said
    answer.say(said)


def _show(session: Session, answer: Answer) -> None:
    snapshot = session.engine.connect().execution_options(isolation_level="REPEATABLE READ")
    with snapshot as connection, connection.begin():
        found = unretrievable.listed(connection, session.store)
    listed = redaction.records(session.store.spec, [asdict(document) for document in found.documents])
    answer.data |= {
        "list_id": found.list_id, "waiting": found.waiting, "queued": found.queued, "reasons": found.by_reason,
        "unknown": list(found.unknown), "documents": listed,
    }  # fmt: skip
    total = found.waiting + found.queued
    answer.section(f"{total} documents that no re-keying can make retrievable")
    if total:
        answer.say(*show_table("", shown.reasons(found)))
        more = f" (the first {SHOWN})" if total > SHOWN else ""
        documents = redaction.records(session.store.spec, shown.records(found)[:SHOWN])
        answer.say("", *show_table(f"documents{more}", documents))
    answer.say(*[f"Unknown: {line}" for line in found.unknown])
    _say_next(session, answer, found)


def _say_next(session: Session, answer: Answer, found: Listed) -> None:
    answer.say("", f"{found.waiting} wait to be queued, {found.queued} are queued.")
    if found.waiting and session.store.spec.regeneration.statement is None:
        answer.say("The spec has no regeneration statement, so they can be listed only: docs/regeneration.md")
    elif found.waiting:
        answer.data["approve_with"] = f"uuid-pipeline regenerate --queue --approve {found.list_id}"
        answer.say(f"To queue them: {answer.data['approve_with']}")
