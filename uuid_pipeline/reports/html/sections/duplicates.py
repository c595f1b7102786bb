"""Clusters of rows with one natural key: which row stayed and by which rule, what it took in; and look-alikes."""

from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.evidence import look_alikes
from uuid_pipeline.engine.evidence.look_alikes import LookAlikes
from uuid_pipeline.engine.privacy import redaction
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports import state
from uuid_pipeline.reports.html.blocks import Block, Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural
from uuid_pipeline.reports.tables import UNKNOWN, counts

SHOWN = 20

_CLUSTERS = """
SELECT m.natural_key, m.new_id::text AS target, count(*) AS members,
       min(m.old_id::text) FILTER (WHERE m.role <> 'merge') AS survivor,
       array_to_string((array_agg(m.old_id::text ORDER BY m.old_id) FILTER (WHERE m.role = 'merge'))[1:5], ', ')
           AS merged,
       count(*) OVER () AS clusters
FROM {map} m WHERE m.assessment_no = %(no)s GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 3 DESC, 1 LIMIT %(limit)s
"""


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    number = subject.plan.assessment_no
    blocks: list[Block] = []
    data = {}
    decided = {c["survivor"]: c for c in (subject.evidence.before or {}).get("clusters") or ()}
    for root in store.roots:
        statement = sql.compose(_CLUSTERS, map=ledger.map_table(root))
        found = sql.rows(connection, statement, {"no": number, "limit": SHOWN})
        data[root.name] = found[0].clusters if found else 0
        if not found:
            continue
        rows = tuple(_cluster(store, row, decided.get(row.survivor)) for row in found)
        more = f"the first {SHOWN} of {found[0].clusters}" if found[0].clusters > SHOWN else ""
        blocks.append(
            Table(
                f"Clusters of {root.name}",
                ("Natural key", "Kind", "Rows", "Survivor", "By rule", "Merged into it", "Foreseen"), rows, more,
            )
        )  # fmt: skip
    rules = tuple((entity.name, entity.spec.on_duplicate, ", ".join(entity.spec.survivor)) for entity in store.roots)
    blocks.append(
        Table("Rules of the spec", ("Entity", "Duplicates", "Survivor: the first rule that tells them apart"), rules)
    )
    merged = state.merged(connection)["archived"]
    if merged:
        blocks.append(
            Table("Archived by merging, to be brought back by a rollback", ("Table", "Rows"), tuple(merged.items()))
        )
    alike = look_alikes.find(connection, store)
    blocks.append(_look_alikes(alike))
    count = sum(data.values())
    lead = f"{plural(count, 'cluster')} of rows that share a natural key." if count else (
        "No two documents share a natural key: there is no duplicate content."
    )  # fmt: skip
    return Section("duplicates", "Duplicates", lead, tuple(blocks), None,
                   {"clusters": data, "archived": merged, "decided": list(decided.values()),
                    "look_alikes": {kind.kind: kind.unknown or kind.groups for kind in alike}})  # fmt: skip


def _cluster(store: Store, row: Any, decided: dict[str, Any] | None) -> tuple[Cell, ...]:
    natural_key = redaction.shown(store.spec, "natural_key", row.natural_key)
    if decided is None:
        return natural_key, UNKNOWN, row.members, row.survivor, UNKNOWN, row.merged, UNKNOWN
    parts = {"archives": decided.get("archives"), "turns": decided.get("turns")}
    foreseen = "; ".join(f"{verb} {counts(of)}" for verb, of in parts.items() if of)
    rule = decided["survivor_rule"]
    return natural_key, decided["kind"], row.members, row.survivor, rule, row.merged, foreseen or UNKNOWN


def _look_alikes(found: list[LookAlikes]) -> Table:
    rows = list[tuple[Cell, ...]]()
    for kind in found:
        if kind.unknown or not kind.groups:
            rows.append((kind.kind, UNKNOWN if kind.unknown else 0, kind.unknown or "none"))
        rows += [(kind.kind, group["rows"], ", ".join(group["ids"])) for group in kind.shown]
    left_out = sum(kind.groups - len(kind.shown) for kind in found)
    return Table(
        "Look-alikes: the same to a person, different to the rule; information only, nothing merges them",
        ("Kind", "Documents", "Ids"), tuple(rows), f"{left_out:,} groups more" if left_out else "",
    )  # fmt: skip
