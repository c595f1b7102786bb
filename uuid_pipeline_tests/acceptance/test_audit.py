"""Constraint analysis and regeneration as the command line shows them."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning"),
]

VERDICT = "these 38 violations of uq_user_filehash are the copy against its own original; there is no duplicate content"


def test_the_verbs_say_why_the_usual_migrations_fail_on_the_store_itself_too(
    command_line: CommandLine, incident: Engine
) -> None:
    rows, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    on_copy, on_store = command_line("profile", "--json"), command_line("profile", "--try-on-store", "--json")
    assert [said.data["verdict"] for said in (on_copy, on_store)] == [VERDICT, VERDICT]
    fails = {
        (e["approach"], e["object"], e["sqlstate"], e["documents"])
        for e in on_store.data["constraint_analysis"]
        if e["outcome"] == "fails" and e["basis"] == "tried" and e["entity"] == "document"
    }
    assert ("insert copy, then delete", "uq_user_filehash", "23505", 38) in fails
    assert (cycle.rows_of(incident), cycle.catalog_of(incident)) == (rows, objects)

    plan = command_line("plan")
    assert VERDICT in plan.out
    assert "document, insert copy, then delete  fails for 38 of 38 on uq_user_filehash" in plan.out


def test_regenerate_lists_queues_the_approved_list_and_takes_it_back(
    command_line: CommandLine, incident: Engine
) -> None:
    assert command_line("run", "--approve").code == 0
    before = cycle.rows_of(incident)
    listed = command_line("regenerate", "--json")
    assert (listed.code, listed.data["waiting"], len(listed.data["documents"])) == (0, 9, 9)
    ids = {row["document_id"] for row in before["documents"]}
    assert all(d["id"] in ids and d["target_id"] == d["id"] and d["owner"] for d in listed.data["documents"])
    assert listed.data["approve_with"] == f"uuid-pipeline regenerate --queue --approve {listed.data['list_id']}"

    assert command_line("regenerate", "--queue").code == 2
    assert command_line("regenerate", "--queue", "--approve", "1" * 16, "--json").code == 1
    assert cycle.rows_of(incident) == before
    done = command_line("regenerate", "--queue", "--approve", listed.data["list_id"], "--json")
    assert (done.code, done.data["queued_now"], done.data["waiting"], done.data["queued"]) == (0, 9, 0, 9)
    taken = command_line("regenerate", "--undo", "--json")
    assert (taken.code, taken.data["undone_now"], taken.data["left"]) == (0, 9, 0)
    assert cycle.rows_of(incident) == before
