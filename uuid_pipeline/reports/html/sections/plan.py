"""The plan that was, or is to be, approved: approach, tier, triggers, indexes, estimate."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.tables import plan_lines


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    content = subject.plan.content
    rows = tuple(line for line in plan_lines(subject.plan) if line[0] != "Risk")
    lead = f"Approach: {content['approach']}, by the share of ids that are not deterministic."
    return Section(
        "plan", "Plan and strategy", lead, (Table("What the plan says", ("Part", "Decision"), rows),),
        data={"plan_id": subject.plan.plan_id, "approach": content["approach"], "moves": content["moves"],
              "merges": content["merges"], "estimate": content.get("estimate")},
    )  # fmt: skip
