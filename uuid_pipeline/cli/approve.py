"""``uuid-pipeline approve``"""

from typing import Annotated

import typer

from uuid_pipeline.cli import steps
from uuid_pipeline.cli.output import Answer, AttestedAtOption, AttestOption, JsonOption, SpecOption, answer_with
from uuid_pipeline.cli.session import open_session


def approve(
    plan_id: Annotated[str, typer.Argument(help="The id that `plan` printed.")],
    attest: AttestOption = None,
    attested_at: AttestedAtOption = None,
    as_json: JsonOption = False,
    spec: SpecOption = None,
) -> None:
    """Approve a plan by its id; moves nothing yet."""

    def verb(answer: Answer) -> None:
        with open_session() as session:
            steps.approve(session, answer, plan_id, (attest, attested_at))
            answer.say("Next: uuid-pipeline run")

    answer_with(verb, as_json, spec)
