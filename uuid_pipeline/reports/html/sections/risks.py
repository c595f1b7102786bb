"""Risks that the plan found, and what the look at the store warned of."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table, Tone
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural

_TONES: dict[str, Tone] = {"low": "plain", "medium": "open", "high": "bad"}


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    warnings = sql.scalar(
        connection,
        "SELECT profile->'warnings' FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": subject.plan.assessment_no},
    )
    register = subject.plan.content.get("risk_register")
    risks = [str(risk) for risk in subject.plan.content["risks"]]
    blocks: list[Block] = [_register(register) if register else _found(risks)]
    lines: tuple[tuple[Cell, ...], ...] = tuple((str(line),) for line in warnings or [])
    blocks.append(Table("Warnings of the first look", ("Warning",), lines, empty="none"))
    count = len(register or risks)
    lead = f"{plural(count, 'risk')} and {plural(len(lines), 'warning')} were found in this store."
    data = {"risks": register or risks, "warnings": list(warnings or [])}
    return Section("risks", "Risks and warnings", lead, tuple(blocks), data=data)


def _found(risks: list[str]) -> Table:
    return Table("Risks of the plan", ("Risk",), tuple((risk,) for risk in risks), empty="none was found")


def _register(register: list[dict[str, Any]]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (risk["finding"], Badge(_TONES[risk["probability"]], risk["probability"]),
         Badge(_TONES[risk["impact"]], risk["impact"]), risk["mitigation"], risk["contingency"])
        for risk in register
    )  # fmt: skip
    return Table("Risk register", ("Risk", "Probability", "Impact", "Mitigation", "If it happens"), rows)
