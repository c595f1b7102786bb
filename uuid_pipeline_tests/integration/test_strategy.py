"""The strategy of a real plan: its figures, the same bytes whoever asks, and what a restricting approach leaves."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import planning
from uuid_pipeline.engine.planning import Plan
from uuid_pipeline.engine.plans import rollback_triggers, strategy
from uuid_pipeline.engine.plans.strategy import Strategy
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.reports.strategy import render_html, render_markdown
from uuid_pipeline.spec import RollbackTriggers, StrategySettings
from uuid_pipeline_tests.integration import cycle

ROOT = Path(__file__).parents[2]
SPEC = cycle.spec_with()
RENDER = """
import sys
from uuid_pipeline.engine import planning
from uuid_pipeline.engine.plans import strategy
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.reports.strategy import render_html, render_markdown
engine = open_store(sys.argv[1])
with engine.begin() as connection:
    found = strategy.of_newest_plan(connection)
sys.stdout.buffer.write((render_markdown(found) + render_html(found)).encode())
"""


def of(store: Engine, plan: Plan) -> Strategy:
    with store.begin() as connection:
        return strategy.of_plan(connection, planning.of_assessment(connection, plan.assessment_no))


@pytest.mark.begins("planned")
def test_the_same_plan_gives_the_same_bytes_in_any_process_at_any_time(incident: Engine, incident_url: str) -> None:
    plan = cycle.newest_plan(incident)
    found = of(incident, plan)
    here = render_markdown(found) + render_html(found)
    assert render_markdown(of(incident, plan)) + render_html(of(incident, plan)) == here

    # Ten days later the store holds no recent document any more; the plan's own figures stay.
    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET created_at = created_at - interval '10 days'")
    environment = os.environ | {"PYTHONHASHSEED": "77", "TZ": "Pacific/Chatham", "LC_ALL": "de_DE.UTF-8"}
    command = [sys.executable, "-c", RENDER, incident_url]
    there = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert there.stdout.decode() == here


def test_it_shows_the_incident(incident: Engine) -> None:
    found = of(incident, cycle.assess_and_plan(incident, SPEC))

    assert (found.approach.shown, found.approach.covers) == ("full migration", "everything due")
    assert [(wave.kind, wave.documents) for wave in found.waves] == [("canary", 5), ("recent", 15), ("remaining", 18)]
    assert dict(found.moves) == {"document": 38, "chunk": 87}
    assert sum(wave.share for wave in found.waves) == pytest.approx(1)
    # 125 ids of 38 documents: 3.3 a document, of which 5,000 rows hold 1,520.
    assert (found.batches.rows, found.batches.rows_a_document, found.batches.documents) == (5000, 3.3, 1520)
    assert found.batches.batches == 3
    rules = {risk.rule for risk in found.risks}
    assert {"without_chunks", "remembered_id", "row_security", "kept_id"} <= rules
    assert "statement_under_way" not in rules
    assert not {"unwitnessed", "merged_rows", "quarantined_row"} & rules
    # The test's spec asks for none.
    assert "no_backup" in rules
    commands = [command for decision in found.decisions for command in (*decision.go, *decision.back)]
    assert f"uuid-pipeline approve {found.plan_id}" in commands
    # It ends the execution, of which nothing else has moved: there is nothing to cancel after it.
    assert ("uuid-pipeline rollback --wave 010-canary",) in [decision.back for decision in found.decisions]
    assert "uuid-pipeline finalize" in commands
    assert [step.name for step in found.timeline][-3:] == ["validation", "quiet hours", "finalize"]
    assert next(step.seconds for step in found.timeline if step.name == "quiet hours") == 24 * 3600


class Tags(HTMLParser):
    """The tags of a page, and whether it asks for anything outside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {"src", "href", "onerror", "onclick"} & {name for name, _ in attrs}


def test_the_page_is_self_contained_and_names_of_the_store_inject_nothing(incident: Engine) -> None:
    hostile = '"x|y <script>alert(1)</script> [z](javascript:1)"'
    cycle.run_sql(
        incident,
        f"""CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public."<b>log</b>" VALUES (1); RETURN NEW; END $$;
            CREATE TRIGGER {hostile} BEFORE UPDATE ON upload_pipeline.documents FOR EACH ROW
            EXECUTE FUNCTION public.f()""",  # noqa: S608
    )
    found = of(incident, cycle.assess_and_plan(incident, SPEC))
    assert any("alert(1)" in risk.finding for risk in found.risks)

    tags = Tags()
    tags.feed(render_html(found))
    assert not {"script", "b", "a", "img", "link", "iframe"} & set(tags.seen)
    shown = render_markdown(found)
    assert "<script" not in shown
    assert "x\\|y &lt;script&gt;" in shown
    assert "\\[z\\](javascript:1)" in shown


def test_triggers_are_the_specs_numbers_and_a_wave_without_locks_pulls_one(incident: Engine) -> None:
    spec = cycle.spec_with(rollback_triggers=RollbackTriggers(locked_share=0.1, query_times=None, retrieval_drop=0.25))
    found = of(incident, cycle.assess_and_plan(incident, spec))
    assert {trigger.name: trigger.limit for trigger in found.triggers} == {
        "wave_gate_red": 0, "failed_share": 0.05, "locked_share": 0.1, "retrieval_drop": 0.25,
        "application_errors": 0.05,
    }  # fmt: skip
    assert "25 %" in render_markdown(found)

    execution = cycle.approve(incident, spec, found.plan_id)
    canary = cycle.waves_of(incident, execution)[0]
    cycle.migrate(incident, spec, canary)
    cycle.assert_green(cycle.check_wave(incident, spec, canary))

    def pulled() -> dict[str, bool | None]:
        with incident.begin() as connection:
            read = rollback_triggers.readings(connection, execution, spec.rollback_triggers)
        return {reading.name: reading.pulled for reading in read}

    quiet = {
        "wave_gate_red": False, "failed_share": False, "locked_share": False, "retrieval_drop": None,
        "application_errors": None,
    }  # fmt: skip
    assert pulled() == quiet
    # One of the canary's five documents: 20 %.
    cycle.run_sql(
        incident,
        """INSERT INTO uuid_pipeline.unmoved VALUES (%(execution)s, %(wave)s, 'document', 1, 'x', 'locked')""",
        execution=execution.execution_id,
        wave=canary.wave,
    )
    assert pulled() == quiet | {"locked_share": True}


def test_retrieval_and_query_time_are_read_from_what_was_measured_and_unknown_before(incident: Engine) -> None:
    settings = RollbackTriggers(query_times=2, retrieval_drop=0.1)
    execution = cycle.run_all(incident, cycle.spec_with(rollback_triggers=settings))

    def read() -> dict[str, rollback_triggers.Reading]:
        with incident.begin() as connection:
            return {r.name: r for r in rollback_triggers.readings(connection, execution, settings)}

    def set_figures(phase: str, **figures: object) -> None:
        cycle.run_sql(
            incident,
            """UPDATE uuid_pipeline.retrieval_measurements SET figures = figures || %(figures)s::jsonb
               WHERE phase = %(phase)s AND wave IS NULL""",
            phase=phase,
            figures=json.dumps(figures),
        )

    found = read()
    assert (found["retrieval_drop"].figure, found["retrieval_drop"].pulled) == (0, False)
    assert "0 of 38 retrievable before, 29 of 38" in found["retrieval_drop"].reason
    set_figures("before", rate=0.9, found=34, p95_ms=4.0)
    set_figures("after", rate=0.7, found=27, p95_ms=10.0)
    found = read()
    assert found["retrieval_drop"].figure == pytest.approx(0.2)
    assert (found["query_times"].figure, found["query_times"].pulled) == (2.5, True)
    assert found["retrieval_drop"].pulled
    cycle.run_sql(incident, "DELETE FROM uuid_pipeline.retrieval_measurements WHERE phase = 'after'")
    found = read()
    assert [found[name].pulled for name in ("retrieval_drop", "query_times")] == [None, None]


@pytest.mark.begins("planned")
def test_a_plan_with_an_attested_backup_is_approved_by_the_command_that_names_the_snapshot(incident: Engine) -> None:
    made = cycle.newest_plan(incident)
    plan = replace(made, content=made.content | {"backup": "attested"})

    with incident.begin() as connection:
        found = strategy.of_plan(connection, plan)

    command = f"uuid-pipeline approve {plan.plan_id} --attest NAME --attested-at TIME"
    assert plan.approve_command == found.approve == command
    assert command in found.decisions[0].go
    assert command in render_markdown(found)


@pytest.mark.begins("planned")
def test_chunks_that_nothing_replaces_are_foretold_as_the_merge_then_archives_them(twins: Engine) -> None:
    plan = cycle.newest_plan(twins)
    foretold = plan.content["circumstances"]["without_counterpart"]
    cycle.run_all(twins, SPEC)

    (archive,) = [
        name for name in cycle.rows_of(twins, "uuid_pipeline") if "archive_upload_pipeline_document_chunks" in name
    ]
    # By the archive itself: what is no longer there, and no row of its place's natural key is either.
    lost = cycle.run_sql(
        twins,
        f"""SELECT count(*) FROM uuid_pipeline.{archive} a
            JOIN uuid_pipeline.id_map_document_{plan.assessment_no} m ON m.old_id = a.document_id
            WHERE NOT EXISTS (
                SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id = m.new_id
                AND (c.chunker_name, c.chunker_version, c.chunk_ord)
                    = (a.chunker_name, a.chunker_version, a.chunk_ord))""",  # noqa: S608
    )
    assert foretold == {"chunk": lost[0][0]}
    assert lost[0][0] > 0
    assert "archived_without_counterpart" in {risk["rule"] for risk in plan.content["risk_register"]}


def restricted(approach: str) -> StrategySettings:
    return StrategySettings.model_validate({"approach": approach})


def test_hybrid_by_the_spec_moves_the_first_waves_and_a_later_plan_the_rest(incident: Engine) -> None:
    before = cycle.rows_of(incident)
    hybrid = cycle.spec_with(strategy=restricted("hybrid"))
    plan = cycle.assess_and_plan(incident, hybrid)
    assert (plan.content["covers"], plan.content["left"]) == ("the first waves", {"document": 18})
    assert [(wave.kind, wave.documents) for wave in plan.waves] == [("canary", 5), ("recent", 15)]
    assert plan.moves["document"] == 20
    assert of(incident, plan).left == (("document", 18),)

    execution = cycle.approve(incident, hybrid, plan.plan_id)
    cycle.migrate_all(incident, hybrid, execution)
    cycle.assert_green(cycle.validate(incident))
    new = cycle.targets(before)
    held = {row["document_id"] for row in cycle.rows_of(incident)["documents"]}
    left = {old for old in (str(row["document_id"]) for row in before["documents"]) if old in held}
    assert len(left) == 18
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left)

    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)
    assert len(set(new.values())) == len(new)


@pytest.mark.parametrize("approach", ["forward-only", "regenerate"])
def test_an_approach_that_moves_nothing_leaves_nothing_to_approve(incident: Engine, approach: str) -> None:
    before = cycle.rows_of(incident)
    spec = cycle.spec_with(strategy=restricted(approach))
    plan = cycle.assess_and_plan(incident, spec)

    assert plan.nothing_to_do
    assert plan.content["left"] == {"document": 38}
    found = of(incident, plan)
    assert found.nothing_to_do
    assert "left_behind" in {risk.rule for risk in found.risks}
    assert "This plan has no waves" in render_markdown(found)
    with pytest.raises(RefusedError, match="moves nothing"):
        cycle.approve(incident, spec, plan.plan_id)
    assert cycle.rows_of(incident) == before


@pytest.mark.begins("migrated")
def test_advice_to_look_forward_only_still_moves_every_document_that_is_due(
    incident: Engine, before: cycle.Rows
) -> None:
    done = cycle.rows_of(incident)
    # 30 % of the documents get random ids again: the advice is forward-only, and the plan covers them all the same.
    wrong = [str(row["document_id"]) for row in done["documents"]][:11]
    with cycle.session(incident) as connection:
        for table in ("documents", "document_chunks", "upload_jobs", "events"):
            connection.execute(f"ALTER TABLE upload_pipeline.{table} DISABLE TRIGGER ALL")
        for old in wrong:
            (new,) = connection.execute("SELECT gen_random_uuid()").fetchone() or ("",)
            for table in ("documents", "document_chunks", "upload_jobs", "events"):
                connection.execute(
                    f"UPDATE upload_pipeline.{table} SET document_id = %s WHERE document_id = %s",  # noqa: S608
                    [new, old],
                )
        for table in ("documents", "document_chunks", "upload_jobs", "events"):
            connection.execute(f"ALTER TABLE upload_pipeline.{table} ENABLE TRIGGER ALL")

    plan = cycle.assess_and_plan(incident, SPEC)
    assert (plan.content["approach"], plan.content["covers"]) == ("forward-only", "everything due")
    assert plan.moves["document"] == 11
    cycle.run_all(incident, SPEC)
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def test_the_gate_on_waves_counts_what_an_approach_leaves(incident: Engine) -> None:
    spec = cycle.spec_with(strategy=restricted("hybrid"))
    plan = cycle.assess_and_plan(incident, spec)
    with incident.begin() as connection:
        store = cycle.bound(connection, spec)
        assert planning.waves_cover_each_document_once(connection, store, plan).passed
        # Somebody takes a document out of the map: it is not among those that were left on purpose.
        connection.exec_driver_sql(f"DELETE FROM uuid_pipeline.id_map_document_{plan.assessment_no} WHERE ordinal = 3")  # noqa: S608
        red = planning.waves_cover_each_document_once(connection, store, plan)
    assert not red.passed
    assert red.finding == "1 documents are in no wave or two"


@pytest.mark.begins("planned")
def test_a_plan_of_an_earlier_version_is_said_to_be_one(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)
    content = {name: value for name, value in plan.content.items() if name != "figures"}
    with incident.begin() as connection, pytest.raises(RefusedError, match="made by an earlier version"):
        strategy.of_plan(connection, replace(plan, content=json.loads(json.dumps(content))))


def test_nothing_planned_yet_is_refused_with_the_command(incident: Engine) -> None:
    cycle.assess(incident, SPEC)
    with incident.begin() as connection, pytest.raises(RefusedError, match="uuid-pipeline plan"):
        strategy.of_newest_plan(connection)


def test_policies_that_look_rows_up_by_ids_that_change_and_who_is_at_work_are_told(
    incident: Engine, incident_url: str
) -> None:
    def of_rule(rule: str) -> list[str]:
        plan = cycle.assess_and_plan(incident, SPEC)
        return [risk["finding"] for risk in plan.content["risk_register"] if risk["rule"] == rule]

    # The incident's own are for reading, which waits for nobody.
    assert of_rule("policy_by_id") == []
    cycle.run_sql(
        incident,
        """CREATE POLICY by_day ON upload_pipeline.events USING (ts > now() - interval '1 year');
           CREATE POLICY by_owner ON upload_pipeline.documents USING (user_id IS NOT NULL);
           CREATE POLICY by_document ON upload_pipeline.events USING (EXISTS (
               SELECT FROM upload_pipeline.documents d WHERE d.document_id = events.document_id))""",
    )
    [finding] = of_rule("policy_by_id")
    assert "by_document on upload_pipeline.events" in finding
    assert not {"by_day", "by_owner"} & set(finding.replace("(", " ").replace(",", " ").split())
    assert of_rule("statement_under_way") == []
    with psycopg.connect(incident_url) as application:
        application.execute("SELECT 1")
        assert len(of_rule("statement_under_way")) == 1
