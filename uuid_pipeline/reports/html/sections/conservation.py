"""Each moved table before and after: rows, archived rows, and whether the digests agree, ids read back by the map."""

from sqlalchemy import Connection

from uuid_pipeline.engine import fingerprint, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Badge, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import moment, passed

_NEWEST = """
SELECT compared, made_at FROM uuid_pipeline.comparisons WHERE execution_id = %(execution)s ORDER BY made_at DESC LIMIT 1
"""


def section(connection: Connection, store: Store, subject: Subject) -> Section | None:
    execution = subject.execution
    if execution is None:
        return None
    before = fingerprint.before(connection, execution)
    if not before:
        return None
    newest = sql.rows(connection, _NEWEST, {"execution": execution.execution_id})
    after = {row["table"]: row for row in newest[0].compared} if newest else {}
    rows = list[tuple[Cell, ...]]()
    data = []
    for table, (taken, _) in sorted(before.items()):
        now = after.get(table)
        digest = f"{taken.digest % 2**64:016x}"
        rows.append((
            table, taken.rows, digest, now["rows_now"] if now else "not compared yet",
            now["archived"] if now else "", _verdict(now), _dates(now),
        ))  # fmt: skip
        data.append({"table": table, "rows_before": taken.rows, "digest_before": digest, "after": now})
    lead = "Digests are taken before the first batch and again at validation, with every id read back through the map: "
    lead += "equal means that nothing but ids changed."
    more = f"compared {moment(newest[0].made_at)}" if newest else "the comparison is made by: uuid-pipeline validate"
    columns = ("Table", "Rows before", "Digest before", "Rows after", "Archived", "Rows and columns", "Dates")
    whole = subject.evidence.gate("validation_report", "whole_conservation")
    return Section("conservation", "Nothing lost, nothing else changed", lead,
                   (Table("Fingerprints of the moved tables", columns, tuple(rows), more),),
                   passed(whole.passed if whole else None), {"tables": data})  # fmt: skip


def _verdict(now: dict[str, object] | None) -> Cell:
    if now is None:
        return Badge("open", "Not compared")
    if now["archive_differs"]:
        return Badge("bad", "Archive differs")
    if not now["differs"]:
        return Badge("open", "Rows counted") if now["other_columns"] else Badge("good", "Equal")
    return Badge("open", "Application wrote") if now["application_writes"] else Badge("bad", "Differs")


def _dates(now: dict[str, object] | None) -> Cell:
    if now is None:
        return Badge("open", "Not compared")
    if not now["dates_differ"]:
        return Badge("open", "Not compared") if now["other_columns"] else Badge("good", "Equal")
    return Badge("open", "Application wrote") if now["application_writes"] else Badge("bad", "Differs")
