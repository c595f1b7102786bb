"""The backup that was restored and compared, and the rehearsal on its copy."""

from sqlalchemy import Connection

from uuid_pipeline.engine.evidence.kept_evidence import Record
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Block, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import in_unit


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    kept, rehearsed = subject.evidence.kept.backup, subject.evidence.kept.rehearsal
    if kept is None and rehearsed is None:
        return None
    blocks: list[Block] = []
    if kept is not None:
        blocks += [Table("Backup", ("Part", "Value"), _backup(kept)), _tables(kept)]
    if rehearsed is not None:
        blocks.append(Table("Rehearsal on a restored copy", ("Part", "Value"), _rehearsal(rehearsed)))
    whole = kept is not None and (kept["mode"] == "attested" or bool(kept["equal"]))
    lead = "A dump counts once it was restored elsewhere and its fingerprints were those of the store."
    return Section(
        "backup", "Backup and rehearsal", lead, tuple(blocks),
        Badge("good", "Restored and equal" if kept and kept["mode"] == "dump" else "Attested") if whole
        else Badge("bad", "No good backup"),
        {"backup": kept, "rehearsal": rehearsed},
    )  # fmt: skip


def _backup(kept: Record) -> tuple[tuple[Cell, ...], ...]:
    of_what = "the one that this execution was approved with" if kept["used"] else "the newest in the ledger"
    rows: list[tuple[Cell, ...]] = [("Which", of_what), ("Name", kept["name"]), ("Taken", kept["taken_at"])]
    if kept["mode"] == "attested":
        return (*rows, ("By", "a provider's snapshot, attested by a person; nobody looked into it"))
    return (
        *rows, ("Size", in_unit(kept["bytes"], "bytes")), ("SHA-256", kept["sha256"]),
        ("Restored on", kept["restored_on"]), ("Dump took", f"{kept['dump_seconds']:.1f} s"),
        ("Restore took", f"{kept['restore_seconds']:.1f} s"),
        ("Compared", Badge("good", "Equal") if kept["equal"] else Badge("bad", "Not equal")),
        ("Differences", "; ".join(map(str, kept["differences"])) or "none"),
    )  # fmt: skip


def _tables(kept: Record) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (table.get("table") or table.get("name"), int(table["rows"])) for table in kept["tables"]
    )
    return Table("Tables in it", ("Table", "Rows"), rows, empty="not known of an attested snapshot")


def _result(found: Record) -> Badge:
    if not found["passed"]:
        return Badge("bad", "Not passed")
    return Badge("good", "Passed") if found["documents"] else Badge("open", "Passed, with nothing to move")


def _rehearsal(found: Record) -> tuple[tuple[Cell, ...], ...]:
    extent = "all documents" if found["users"] is None else f"the documents of {found['users']} users"
    return (
        ("Result", _result(found)),
        ("Extent", f"{extent}: {found['documents']:,} documents, {found['ids']:,} ids"),
        ("Forward", f"{found['seconds']:.1f} s"), ("Rollback", f"{found['rollback_seconds']:.1f} s"),
        ("On", found["rehearsed_on"]), ("When", found["rehearsed_at"]),
        ("Differences", "; ".join(map(str, found["differences"])) or "none"),
    )  # fmt: skip
