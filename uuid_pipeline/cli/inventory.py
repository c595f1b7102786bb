"""``uuid-pipeline inventory``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session
from uuid_pipeline.cli.shown import show_inventory


def inventory(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Count documents by id class, users, size, failures and orphans."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            outcome = session.run("inventory")
            if any(check.asset == "document_inventory" for check in outcome.checks):
                show_inventory(session, answer, outcome)
            answer.section("Gates")
            steps.gates_of(answer, outcome)
            empty = steps.said_empty(session, answer)
            if empty is not None:
                answer.data["message"] = empty
                answer.say("", empty)

    answer_with(verb, as_json, spec)
