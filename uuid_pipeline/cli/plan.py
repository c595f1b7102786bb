"""``uuid-pipeline plan``"""

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def plan(as_json: JsonOption = False, spec: SpecOption = None) -> None:
    """Assess the store, map its ids and make the plan to approve. Moves nothing."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            made = steps.make_plan(session, answer)
            if not steps.nothing_to_do(session, answer, made):
                steps.wait_for_approval(session, answer, made)
                answer.exit_code = 0

    answer_with(verb, as_json, spec)
