"""Clusters of rows with one natural key: which row stayed, and what was merged into it, from the approved id map."""

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, redaction, sql
from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports import state
from uuid_pipeline.reports.html.blocks import Block, Section, Table
from uuid_pipeline.reports.html.subject import Subject
from uuid_pipeline.reports.html.wording import plural

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
    for root in store.roots:
        statement = sql.compose(_CLUSTERS, map=ledger.map_table(root))
        found = sql.rows(connection, statement, {"no": number, "limit": SHOWN})
        data[root.name] = found[0].clusters if found else 0
        if not found:
            continue
        rows = tuple(
            (redaction.shown(store.spec, "natural_key", row.natural_key), row.members, row.survivor, row.merged)
            for row in found
        )
        more = f"the first {SHOWN} of {found[0].clusters}" if found[0].clusters > SHOWN else ""
        blocks.append(
            Table(f"Clusters of {root.name}", ("Natural key", "Rows", "Survivor", "Merged into it"), rows, more)
        )
    rules = tuple((entity.name, entity.spec.on_duplicate, ", ".join(entity.spec.survivor)) for entity in store.roots)
    blocks.append(
        Table("Rules of the spec", ("Entity", "Duplicates", "Survivor: the first rule that tells them apart"), rules)
    )
    merged = state.merged(connection)["archived"]
    if merged:
        blocks.append(
            Table("Archived by merging, to be brought back by a rollback", ("Table", "Rows"), tuple(merged.items()))
        )
    count = sum(data.values())
    lead = f"{plural(count, 'cluster')} of rows that share a natural key." if count else (
        "No two documents share a natural key: there is no duplicate content."
    )  # fmt: skip
    return Section("duplicates", "Duplicates", lead, tuple(blocks), data={"clusters": data, "archived": merged})
