"""``uuid-pipeline notices``"""

import json
from enum import StrEnum
from typing import Annotated

import typer

from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import Session, open_session
from uuid_pipeline.engine.plans import notice_facts
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations.notices import channels_of
from uuid_pipeline.reports import notices as rendered


class KindOption(StrEnum):
    """Which of a migration's moments."""

    before = "before"
    during = "during"
    after = "after"
    rollback = "rollback"


def notices(
    kind: Annotated[KindOption | None, typer.Option("--kind", help="Default: what fits the state now.")] = None,
    send: Annotated[bool, typer.Option("--send", help="Send by Apprise; without it they are only rendered.")] = False,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="support or stakeholders; default: those that the spec's notices.send names."),
    ] = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Render notices for users, support and stakeholders for review; send them only when asked."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            audiences = _audiences(session, send, to or [])
            write(session, answer, kind.value if kind else None, audiences)

    answer_with(verb, as_json, spec)


def _audiences(session: Session, send: bool, to: list[str]) -> list[str]:
    """Whom to send to; nothing is rendered for a request that could not be carried out."""
    if to and not send:
        raise UsageError("--to says whom to send to: add --send, or leave it out to render only.")
    chosen = list(dict.fromkeys(to)) or (list(session.store.spec.notices.send) if send else [])
    if send and not chosen:
        raise UsageError("Say whom to send to: --to support, --to stakeholders, or notices.send in the spec.")
    for audience in chosen:
        channels_of(session.store, audience)
    return chosen


def write(session: Session, answer: Answer, kind: str | None, audiences: list[str]) -> None:
    """Run the job, and show what it wrote and sent."""
    with session.engine.begin() as connection:
        chosen = next((known for known in notice_facts.KINDS if known == kind), None)
        facts = notice_facts.gather(connection, chosen or notice_facts.kind_now(connection))
    config: dict[str, object] = {"kind": facts.kind, "send_to": audiences}
    manifest = rendered.place(session.settings.home, facts) / rendered.MANIFEST
    manifest.unlink(missing_ok=True)  # what an earlier call wrote is no answer to this one
    outcome = session.run("notices", write_notices=config)
    if manifest.exists():
        answer.data |= json.loads(manifest.read_text(encoding="utf-8"))
        show(answer)
    answer.data["sent_to"] = audiences if outcome.error is None else []
    if outcome.error is not None:
        raise outcome.error
    if audiences:
        answer.say(f"Sent to: {', '.join(audiences)}")


def show(answer: Answer) -> None:
    """The files to review, and whom they are about."""
    data = answer.data
    users = "the spec names no owner" if data["users"] is None else f"{data['users']} users"
    answer.say(f"Notices {data['kind']} of plan {data['plan_id']} ({data['status']}; {users}):")
    answer.pairs([(audience, paths[0]) for audience, paths in data["files"].items()])
    if data["users"] is not None:
        answer.say("users.jsonl is for your mailer: their addresses are not known here.")
    if not data["timely"]:
        answer.say("These are for review: they are not true in the state that the execution is in.")
