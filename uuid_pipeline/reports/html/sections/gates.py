"""Every gate with its finding: of the plan, of the waves, of the whole store."""

from sqlalchemy import Connection

from uuid_pipeline.engine import gates, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import passed

# A gate of the waves is said once, with how many waves passed it, and what it found in one: one that did not pass it,
# else the one with most documents, since a sweep that found nothing shows nothing.
_WAVES = """
WITH newest AS (SELECT DISTINCT ON (g.wave, g.gate) g.wave, g.gate, g.passed, g.finding, g.remedy
                FROM uuid_pipeline.gates g WHERE g.execution_id = %(execution)s AND g.wave IS NOT NULL
                ORDER BY g.wave, g.gate, g.gate_no DESC)
SELECT gate, count(*) AS waves, count(*) FILTER (WHERE passed) AS passed,
       (array_agg(replace(wave, %(execution)s || '-', '') || ': ' || finding
                  ORDER BY passed, w.documents DESC, wave))[1] AS finding
FROM newest JOIN uuid_pipeline.waves w USING (wave) GROUP BY gate ORDER BY gate
"""


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    found = subject.evidence.whole
    blocks: list[Block] = []
    names = {
        "Gates of the plan": gates.PLANNING_STAGES,
        "Gates of the whole store": (gates.VALIDATION_STAGE,) if subject.execution else (),
    }
    data = []
    for caption, stages in names.items():
        rows = list[tuple[Cell, ...]]()
        for stage in stages:
            for gate in gates.GATES[stage]:
                result = found.get((stage, gate))
                finding = result.finding if result else "not evaluated in this attempt"
                if result and result.remedy:
                    finding += f". Remedy: {result.remedy}"
                rows.append((gate, passed(result.passed if result else None), stage, finding))
                data.append({"stage": stage, "gate": gate, "passed": result.passed if result else None})
        if rows:
            blocks.append(Table(caption, ("Gate", "Result", "Stage", "Finding"), tuple(rows)))
    if subject.execution is not None:
        blocks.insert(1, _of_waves(connection, subject.execution.execution_id))
    missing = subject.evidence.open_gates
    lead = "A gate is enforced by the engine: without it, in this very attempt, the next stage writes nothing."
    badge = Badge("good", "All passed") if not missing else Badge("open", f"{len(missing)} open")
    if any(" did not pass in " in line for line in missing):
        badge = Badge("bad", f"{len(missing)} open")
    return Section("gates", "Gates and their findings", lead, tuple(blocks), badge,
                   {"gates": data, "open": list(missing)})  # fmt: skip


def _of_waves(connection: Connection, execution: str) -> Table:
    rows = tuple(
        (row.gate, passed(row.passed == row.waves), f"{row.passed} of {row.waves} waves", row.finding)
        for row in sql.rows(connection, _WAVES, {"execution": execution})
    )
    return Table("Gates of the waves", ("Gate", "Result", "Passed in", "Finding, of one wave"), rows,
                 empty="no wave has ended yet")  # fmt: skip
