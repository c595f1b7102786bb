"""Strategy and notices as a user of the command line meets them."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests import receivers
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.integration import cycle

pytestmark = [pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"), pytest.mark.system]

SPEC = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
SECRET = "pl4nted-s3cret"


def test_plan_writes_the_strategy_and_says_where_and_notices_follow_it(command_line: CommandLine) -> None:
    early = command_line("notices", "--json")
    assert (early.code, "uuid-pipeline plan" in early.data["error"]) == (1, True)

    planned = command_line("plan", "--json")
    assert planned.code == 0
    plan = planned.data["plan"]
    assert all(isinstance(risk, str) for risk in plan["risks"])
    assert {"rule", "finding", "probability", "impact", "mitigation", "contingency"} == set(plan["risk_register"][0])
    assert "derived_value" in {risk["rule"] for risk in plan["risk_register"]}
    strategy = planned.data["strategy"]
    assert (strategy["approach"], strategy["covers"]) == ("full migration", "everything due")
    page, text = Path(strategy["html"]), Path(strategy["markdown"])
    assert page.parent == Path(command_line.environment["UUID_PIPELINE_HOME"]) / "reports" / planned.data["plan_id"]
    assert "<h2>Approach: full migration</h2>" in page.read_text()
    assert text.read_text().startswith("# Migration strategy")

    before = command_line("notices", "--json")
    assert (before.code, before.data["kind"], before.data["users"]) == (0, "before", 27)
    assert before.data["sent_to"] == []
    for paths in before.data["files"].values():
        assert all(Path(path).exists() for path in paths)


@pytest.mark.begins("planned")
def test_notices_leave_only_when_asked_and_a_failing_channel_is_told_without_its_secrets(
    command_line: CommandLine,
) -> None:
    with receivers.webhook() as hook, receivers.webhook(500) as broken:
        good = f"json://robot:{SECRET}@127.0.0.1:{hook.port}/a"
        bad = f"json://robot:{SECRET}@127.0.0.1:{broken.port}/b"
        rendered = command_line.but(UUID_PIPELINE_NOTIFY_URLS=good)("notices")
        assert (rendered.code, hook.bodies) == (0, [])
        assert "users.jsonl is for your mailer" in rendered.out

        sent = command_line.but(UUID_PIPELINE_NOTIFY_URLS=good)("notices", "--send", "--to", "support", "--json")
        assert (sent.code, sent.data["sent_to"]) == (0, ["support"])
        assert hook.bodies[0]["title"] == sent.data["subjects"]["support"]

        failed = command_line.but(UUID_PIPELINE_NOTIFY_URLS=f"{good} {bad}")("notices", "--send", "--to", "support")
        assert failed.code == 1
        assert "support: channel 2 (json): " in failed.err
        assert len(hook.bodies) == 2
    untimely = command_line.but(UUID_PIPELINE_NOTIFY_URLS=good)(
        "notices", "--kind", "after", "--send", "--to", "support"
    )
    assert (untimely.code, "Nothing was approved" in untimely.err) == (1, True)
    for arguments, wanted in (
        (("--to", "support"), "add --send"),
        (("--send",), "Say whom to send to"),
        (("--send", "--to", "users"), "not to users"),
        (("--send", "--to", "support"), "UUID_PIPELINE_NOTIFY_URLS names no channel"),
    ):
        refused = command_line("notices", *arguments)
        assert (refused.code, wanted in refused.err) == (2, True), refused.err
    for said in (sent, failed, untimely):
        assert SECRET not in said.out + said.err


@pytest.mark.parametrize(
    ("approach", "next_step"), [("forward-only", "nothing: the spec"), ("regenerate", "uuid-pipeline regenerate: the")]
)
def test_an_approach_that_moves_nothing_ends_green_and_says_what_it_left(
    command_line: CommandLine, incident: Engine, tmp_path: Path, approach: str, next_step: str
) -> None:
    before = cycle.rows_of(incident)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.read_text() + f"\nstrategy: {{approach: {approach}}}\n")

    done = command_line("run", "--approve", "--json", "--spec", str(spec))

    assert (done.code, done.data["nothing_to_do"], done.data["strategy"]["covers"]) == (0, True, "nothing")
    assert f"approach {approach}, by which 38 documents that are due keep their ids" in done.data["message"]
    assert ("uuid-pipeline regenerate" in done.data["message"]) == (approach == "regenerate")
    assert command_line("status", "--json", "--spec", str(spec)).data["next"].startswith(next_step)
    assert cycle.rows_of(incident) == before
