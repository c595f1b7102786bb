"""The inventory before: id classes, users, uploads, statuses, chunks, storage, priority, in plots and tables."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Block, Comparison, Grid, Section, Table, Text, Tiles
from uuid_pipeline.reports.html.inventory_plots import plots
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import in_unit

LONGEST_TITLE = 120


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    found = _visible(store, subject.evidence.before)
    title = "Inventory before the migration"
    if found is None:
        return Section("inventory", title, "This inventory's figures are no longer in the ledger.", ())
    found = redaction.nested(store.spec, found)
    summary = found["summary"]
    tiles = Tiles(
        (
            Comparison("random", "Random ids", None, summary["random"]),
            Comparison("stray", "Stray ids", None, summary["stray"]),
            Comparison("users", "Users", None, summary["users"]),
            Comparison("recent", "Recent documents", None, summary["recent"],
                       note=f"of the last {store.spec.waves.recent_days} days"),
            Comparison("failed", "Failed in the pipeline", None, summary["failed"]),
            Comparison("bytes", "Storage", None, summary["bytes"], "bytes"),
            Comparison("children", "Chunks", None, summary["children"]),
            Comparison("quarantined", "Quarantined", None, summary["quarantined"]),
        ),
        compared=False,
    )  # fmt: skip
    blocks: list[Block] = [tiles, _classes(store, found)]
    drawn = plots(found)
    if drawn:
        blocks.append(Grid(drawn))
    blocks += _tables(found)
    unknown = [label for part, label in _PARTS.items() if found[part] is None]
    if unknown:
        blocks.append(Text(f"Unknown, since the spec does not describe it: {', '.join(unknown)}."))
    lead = f"{summary['documents']:,} documents, each with its id recomputed; taken when the plan was made."
    return Section("inventory", title, lead, tuple(blocks), data=found)


def _visible(store: Store, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """With owners and titles as marks where they are not to be shown."""
    if found is None:
        return None
    shown = dict(found)
    if found["users"]:
        shown["users"] = found["users"] | {"top": redaction.records(store.spec, found["users"]["top"])}
    shown["priorities"] = found["priorities"] | {"top": redaction.records(store.spec, found["priorities"]["top"])}
    return shown


_PARTS = {"users": "users", "uploads": "upload dates", "statuses": "statuses", "children": "chunk counts",
          "storage": "storage"}  # fmt: skip


def _classes(store: Store, found: dict[str, Any]) -> Table:
    names = ("deterministic", "random", "stray")
    classes = found["id_classes"]
    rows = tuple(
        (e.name, *[classes[e.name].get(name, 0) for name in names]) for e in store.entities if e.name in classes
    )
    return Table("Ids by class: deterministic equals its recomputed target id, random is version 4, stray is the rest",
                 ("Entity", *names), rows)  # fmt: skip


def _tables(found: dict[str, Any]) -> list[Table]:
    tables = []
    if found["users"]:
        tables.append(Table(
            "Users by impact: the most affected first",
            ("User", "Documents", "To move", "Without chunks", "Chunks", "Storage"),
            tuple((_text(u["owner"]), _number(u["documents"]), _number(u["due"]), _number(u["without_children"]),
                   _number(u["children"]), _bytes(u["bytes"])) for u in found["users"]["top"]),
        ))  # fmt: skip
    tables.append(Table(
        "Highest priority: recency + status + chunks",
        ("Document", "Title", "Status", "Recency", "Status's part", "Chunks' part", "Score"),
        tuple((_text(d["id"]), _title(d["title"]), _text(d["status"]), _score(d["recency"]), _score(d["by_status"]),
               _score(d["by_children"]), _score(d["priority"])) for d in found["priorities"]["top"]),
        empty="the store is empty",
    ))  # fmt: skip
    tables.append(Table(
        "Orphans by reference", ("Reference", "Rows without their document or chunk"),
        tuple((name, _number(count)) for name, count in found["orphans"].items()), empty="no reference is known",
    ))  # fmt: skip
    if found["quarantined"]:
        tables.append(Table("Quarantined rows by reason", ("Entity", "Reason", "Rows"),
                            tuple((q["entity"], q["reason"], q["rows"]) for q in found["quarantined"])))  # fmt: skip
    return tables


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _title(value: object) -> str | None:
    text = _text(value)
    return text if text is None or len(text) <= LONGEST_TITLE else f"{text[:LONGEST_TITLE]} …"


def _number(value: object) -> int | None:
    return int(str(value)) if value is not None else None


def _bytes(value: object) -> str:
    return in_unit(float(str(value)) if value is not None else None, "bytes")


def _score(value: object) -> str:
    return f"{float(str(value)):.2f}"
