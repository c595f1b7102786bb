"""What is still open, who must act, and the command to give."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Cell, Code, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    rows = list[tuple[Cell, ...]]()
    data = []
    for criterion in subject.readiness.open:
        action = criterion.action
        if action is None:
            continue
        tone = Badge("bad", "Blocks") if criterion.binds and criterion.verdict == "not ready" else Badge("open", "Open")
        command = Code(action.command) if action.command else "no command of ours"
        rows.append((criterion.title, tone, action.who, action.what, command))
        data.append({"criterion": criterion.name, "who": action.who, "what": action.what, "command": action.command})
    blocking = sum(row[1] == Badge("bad", "Blocks") for row in rows)
    lead = "Nothing is left to do."
    if rows:
        lead = f"{plural(len(rows), 'item')}, {blocking or 'none'} of them in the way of production."
    table = Table("Open items", ("About", "State", "Who must act", "What", "Command"), tuple(rows), empty="none")
    return Section("open", "What is still open", lead, (table,), data={"items": data})
