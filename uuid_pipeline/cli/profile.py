"""``uuid-pipeline profile``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with, show_table
from uuid_pipeline.cli.session import open_session
from uuid_pipeline.engine import ledger


def profile(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Show what the store is made of: tables, references, triggers, traps."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.assess(session, answer, "profile")
            with session.engine.begin() as connection:
                found = ledger.newest_assessment(connection).profile
        answer.data["profile"] = found
        answer.say("", f"PostgreSQL {found['server_version']}, role {found['role']}, tier {found['tier']}")
        for title in ("tables", "references", "silenced_triggers"):
            answer.say("", *show_table(title.replace("_", " "), found[title]))
        answer.say(*[f"Skipped, optional: {line}" for line in found["skipped"]])

    answer_with(verb, as_json, spec)
