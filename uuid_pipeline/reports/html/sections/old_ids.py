"""Old ids and the way back: aliases and their use, archives, what stands in the application's schema."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports import state
from uuid_pipeline.reports.html.blocks import Block, Cell, Code, Section, Table
from uuid_pipeline.reports.html.subject import Subject


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    if subject.execution is None:
        return None
    evidence = subject.evidence
    uses: tuple[tuple[Cell, ...], ...] = tuple(
        (use.entity, use.uses, use.last_used if use.last_used else "never") for use in evidence.alias_uses
    )
    archives = state.archives(connection)
    commands: tuple[tuple[Cell, ...], ...] = (
        ("Undo one wave", Code("uuid-pipeline rollback --wave canary")),
        ("Undo everything", Code("uuid-pipeline rollback --all")),
        ("End it: remove the aliases, and with them the way back", Code("uuid-pipeline finalize")),
        ("Remove the ledger after that", Code("uuid-pipeline drop-ledger")),
    )
    blocks: list[Block] = [
        Table("Old ids translated", ("Entity", "Uses", "Last use"), uses, empty="no aliases are installed"),
        Table("Archives", ("Table", "Rows", "Bytes"),
              tuple((a["archive"], a["rows"], a["bytes"]) for a in archives), empty="nothing was archived"),
        Table("Commands", ("To", "Command"), commands),
    ]  # fmt: skip
    tables = ", ".join(evidence.alias_tables)
    lead = f"Writers may go on using old ids: triggers on {tables} translate them." if tables else (
        "No alias triggers are installed."
    )  # fmt: skip
    data = {"uses": {use.entity: use.uses for use in evidence.alias_uses}, "tables": list(evidence.alias_tables),
            "altered": list(evidence.altered)}  # fmt: skip
    return Section("old-ids", "Old ids and the way back", lead, tuple(blocks), data=data)
