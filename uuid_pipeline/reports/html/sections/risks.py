"""Risks that the plan found, and what the look at the store warned of."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    warnings = sql.scalar(
        connection,
        "SELECT profile->'warnings' FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": subject.plan.assessment_no},
    )
    risks = [str(risk) for risk in subject.plan.content["risks"]]
    rows: list[tuple[Cell, ...]] = [(risk, Badge("open", "Risk")) for risk in risks]
    rows += [(str(line), Badge("plain", "Warning")) for line in warnings or []]
    lead = f"{plural(len(risks), 'risk')} and {plural(len(rows) - len(risks), 'warning')} were found in this store."
    return Section(
        "risks", "Risks and warnings", lead,
        (Table("Found by looking", ("What", "Kind"), tuple(rows), empty="none was found"),),
        data={"risks": risks, "warnings": list(warnings or [])},
    )  # fmt: skip
