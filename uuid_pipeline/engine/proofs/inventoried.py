"""Gates of the inventory: each row derived or quarantined, none an orphan, none left out."""

from sqlalchemy import Connection

from uuid_pipeline.engine import early, ledger, orphans, sql
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.store import Reference, Store


def natural_keys_valid_or_quarantined(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: every row has a target id, or a reason why it is left alone, never both or neither."""
    bad = quarantined_count = 0
    for entity in store.entities:
        row = sql.rows(
            connection,
            sql.compose(
                """SELECT count(*) FILTER (WHERE (target_id IS NULL) <> (quarantined IS NOT NULL)) AS bad,
                          count(quarantined) AS quarantined FROM {table} WHERE assessment_no = %(no)s""",
                table=ledger.inventory_table(entity),
            ),
            {"no": assessment},
        )[0]
        bad, quarantined_count = bad + row.bad, quarantined_count + row.quarantined
    return GateResult.of(
        "natural_keys_valid_or_quarantined",
        bad == 0,
        f"{quarantined_count} rows are quarantined, by name" if bad == 0 else f"{bad} rows have neither or both",
        "report this as a fault of uuid-pipeline, with the spec",
        figures={"quarantined": quarantined_count},
    )


def no_orphans(connection: Connection, store: Store, assessment: int) -> GateResult:
    """Gate: every reference, declared or by foreign key, points at a row that exists, or that will have this id."""
    found = {name: count for name, count in orphans.count(connection, store).items() if count}
    soon = {
        reference.name: count
        for reference in store.references
        if reference.name in found and early.why_not(connection, reference) is None
        if (count := _early(connection, store, reference, assessment))
    }
    left = {name: count - soon.get(name, 0) for name, count in found.items() if count > soon.get(name, 0)}
    said = "orphans: " + ", ".join(f"{name} {n}" for name, n in left.items()) if left else "0 orphans"
    said += "".join(f"; {n} of {name} hold the target id of a row that has it not yet" for name, n in soon.items())
    return GateResult.of(
        "no_orphans",
        not left,
        said,
        "look at these rows with their owner; delete them or give them their document back, or, where a soft reference "
        "may hold what is no row's key, say there in the spec `orphans: keep`; then plan again",
        figures={"orphans": sum(left.values())},
    )


def _early(connection: Connection, store: Store, reference: Reference, assessment: int) -> int:
    """Rows without an entity row that hold the target id of one."""
    entity = store.entity(reference.entity)
    statement = sql.compose(
        """SELECT count(*) FROM {table} r WHERE NOT EXISTS (SELECT FROM {target} t WHERE t.{key} = r.{column})
           AND EXISTS (SELECT FROM {inventory} i WHERE i.assessment_no = %(no)s AND i.target_id = r.{column})""",
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        inventory=ledger.inventory_table(entity),
    )
    return int(sql.scalar(connection, statement, {"no": assessment}))


def counts_agree(assessment: ledger.Assessment) -> GateResult:
    """Gate: as many rows derived as the table counts, in one snapshot."""
    counts = assessment.profile.get("counts", {})
    wrong = [
        f"{name}: {c['derived']} derived of {c['counted']}"
        for name, c in counts.items()
        if c["derived"] != c["counted"]
    ]
    return GateResult.of(
        "counts_agree",
        bool(counts) and not wrong,
        "; ".join(wrong) or ", ".join(f"{c['counted']} {name} rows" for name, c in counts.items()) or "nothing counted",
        "run the inventory again; if it recurs, the key is not unique or rows are hidden",
    )
