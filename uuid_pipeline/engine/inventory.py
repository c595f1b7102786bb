"""The inventory: every row of every entity with its target id, its id class, and what people ask about it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.connection import copy_text
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.natural_keys import first_invalid, natural_key, part
from uuid_pipeline.engine.priorities import PRIORITY, complete_statuses
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.identity import hasher

_RANDOM = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")
_DESCRIBED = ("owner", "created_at", "status", "size", "title")
# Through Python as text: PostgreSQL's dates reach further than Python's, and may be infinite.
_AS_TEXT: dict[str, LiteralString] = {
    "owner": "t.{column}::text",
    "created_at": "t.{column}::timestamptz::text",
    "status": "t.{column}::text",
    "size": "round(t.{column}::numeric)::bigint",
    "title": "t.{column}::text",
}


@dataclass(frozen=True)
class Summary:
    """Figures of the main entity; ``None`` where the spec does not describe it. Size in bytes, rates 0 to 1."""

    documents: int
    deterministic: int
    random: int
    stray: int
    quarantined: int
    users: int | None
    affected_users: int | None
    high_impact_users: int | None
    bytes: int | None
    recent: int | None
    failed: int | None
    with_children: int | None
    children: int | None
    orphans: int

    @property
    def consistency(self) -> float | None:
        """Share of documents that have chunks; None when there is nothing to have."""
        if self.with_children is None or not self.documents:
            return None
        return self.with_children / self.documents


def id_class(key: str, target: str | None) -> str:
    """``deterministic`` when the id equals its target id, else ``random`` (version 4) or ``stray``."""
    if target is not None and key == target:
        return "deterministic"
    return "random" if key[14:15] == "4" and _RANDOM.fullmatch(key) else "stray"


Restriction = Callable[[Entity], sql.Composable]


def take(
    connection: Connection, store: Store, assessment: int, only: Restriction | None = None
) -> dict[str, dict[str, int]]:
    """Derive every entity's target ids into the ledger, parents first; returns rows counted and derived by entity.

    ``only`` gives for each entity a table with the keys of the rows to look at; without it, all are, and the orphans of
    the whole store are counted too.

    Wants a REPEATABLE READ transaction: counts, parents and children must be of one snapshot. Memory is bounded
    by 10,000 rows.
    """
    # A scan that starts where another one is would make heap order a matter of chance.
    sql.execute(connection, "SELECT set_config('synchronize_seqscans', 'off', true)")
    counts = {}
    for entity in store.entities:
        relation = sql.table(entity.table.schema, entity.table.name)
        counted = sql.scalar(connection, sql.compose("SELECT count(*) FROM {table}", table=relation))
        counts[entity.name] = {
            "counted": int(counted),
            "derived": _derive(connection, store, entity, assessment, only),
        }
    found = {"counts": counts} | ({} if only else {"orphans": orphans(connection, store)})
    sql.execute(
        connection,
        "UPDATE uuid_pipeline.assessments SET profile = profile || %(found)s::jsonb WHERE assessment_no = %(no)s",
        {"found": json.dumps(found), "no": assessment},
    )
    return counts


def _derive(connection: Connection, store: Store, entity: Entity, assessment: int, only: Restriction | None) -> int:
    part_table = ledger.fresh_part(connection, "inventory", entity, assessment)
    copy = sql.compose("COPY {part} FROM STDIN", part=part_table).as_string(None)
    line_of = _line_maker(store, entity, assessment)
    position = 0
    for chunk in sql.stream(connection, _source(store, entity, only), {"assessment": assessment}):
        copy_text(connection, copy, "".join([line_of(position + i, row) for i, row in enumerate(chunk)]))
        position += len(chunk)
    ledger.attach_part(connection, "inventory", entity, assessment, ["UNIQUE key"])
    return position


def _source(store: Store, entity: Entity, only: Restriction | None) -> sql.Composable:
    """Key, parent, natural key, checked parts and description of every row; the main entity also counts children."""
    target = sql.Text("p.target_id") if entity.parent else None
    described = entity.spec.describe.columns()
    valid = [part(entity, field, target) for field in entity.spec.valid]
    columns = [
        sql.compose("t.{key}::text", key=sql.name(entity.key)),
        sql.compose("t.{parent}::text", parent=sql.name(entity.parent_column))
        if entity.parent_column
        else sql.Text("NULL::text"),
        natural_key(entity, target),
        sql.compose("ARRAY[{valid}]::text[]", valid=sql.join(", ", valid)),
        sql.Text("p.key IS NULL AS orphan, p.quarantined IS NOT NULL") if entity.parent else sql.Text("false, false"),
        *[
            sql.compose(_AS_TEXT[purpose], column=sql.name(described[purpose]))
            if purpose in described
            else sql.Text("NULL")
            for purpose in _DESCRIBED
        ],
        _child_count(store, entity),
    ]
    return sql.compose(
        "SELECT {columns} FROM {table} t {parents} {children} {only} {order}",
        only=sql.compose("WHERE t.{key} IN (SELECT key FROM {keys})", key=sql.name(entity.key), keys=only(entity))
        if only
        else sql.Text(""),
        columns=sql.join(", ", columns),
        table=sql.table(entity.table.schema, entity.table.name),
        parents=_join_parent(store, entity),
        children=_join_child_counts(store, entity),
        # Batches in heap order touch each page once (ENGINE.md, section 5); children follow their parents.
        order=sql.Text("ORDER BY t.ctid") if entity.parent is None else sql.Text(""),
    )


def _join_parent(store: Store, entity: Entity) -> sql.Composable:
    if entity.parent is None or entity.parent_column is None:
        return sql.Text("")
    return sql.compose(
        "LEFT JOIN {inventory} p ON p.assessment_no = %(assessment)s AND p.key = t.{parent}",
        inventory=ledger.inventory_table(store.entity(entity.parent)),
        parent=sql.name(entity.parent_column),
    )


def _child_count(store: Store, entity: Entity) -> sql.Composable:
    names = [sql.name(f"count_{child.name}") for child in store.children(entity)]
    counts = [sql.compose("coalesce({name}.n, 0)", name=name) for name in names]
    return sql.join(" + ", counts) if counts else sql.Text("NULL")


def _join_child_counts(store: Store, entity: Entity) -> sql.Composable:
    """Each child table grouped once; a look-up a row would need an index that a store may lack."""
    joins = [
        sql.compose(
            "LEFT JOIN (SELECT {parent} AS parent, count(*) AS n FROM {table} GROUP BY 1) {name} "
            "ON {name}.parent = t.{key}",
            parent=sql.name(child.parent_column or ""),
            table=sql.table(child.table.schema, child.table.name),
            name=sql.name(f"count_{child.name}"),
            key=sql.name(entity.key),
        )
        for child in store.children(entity)
    ]
    return sql.join(" ", joins)


def _line_maker(store: Store, entity: Entity, assessment: int) -> Callable[[int, Any], str]:
    """A function from position and source row to the inventory's row as COPY reads it.

    One string a row: the driver's way of writing values one by one takes longer than all the rest.
    """
    target_of = hasher(store.spec.namespace)

    def fault(row: Any) -> str | None:
        if row[4]:
            return f"its {entity.parent} does not exist"
        if row[5]:
            return f"its {entity.parent} is quarantined"
        if row[2] is None:
            return "a part of the natural key is NULL"
        field = first_invalid(entity, row[3])
        return None if field is None else f"{field} does not match {entity.spec.valid[field]}"

    def line(position: int, row: Any) -> str:
        quarantined = fault(row)
        key, natural_key = row[0], row[2]
        target = None if quarantined else target_of(natural_key)
        owner, created_at, status, size, title, children = row[6:12]
        return _copied([
            str(assessment), str(position), key, row[1], natural_key, target, id_class(key, target), quarantined,
            owner, created_at, status, _text(size), title, _text(children),
        ])  # fmt: skip

    return line


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


_TO_ESCAPE = re.compile(r"[\\\t\n\r]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _copied(fields: list[str | None]) -> str:
    """A row in COPY's own text form; hardly any has something to escape, so that is asked once a row."""
    if _TO_ESCAPE.search("".join(filter(None, fields))):
        fields = [field and field.translate(_ESCAPES) for field in fields]
    return "\t".join(["\\N" if field is None else field for field in fields]) + "\n"


def _orphan_count(store: Store, reference: Any) -> sql.Composable:
    entity = store.entity(reference.entity)
    return sql.compose(
        """SELECT count(*) FROM {table} r WHERE r.{column} IS NOT NULL
           AND NOT EXISTS (SELECT FROM {target} t WHERE t.{key} = r.{column})""",
        table=sql.table(reference.table.schema, reference.table.name),
        column=sql.name(reference.column),
        target=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
    )


def orphans(connection: Connection, store: Store) -> dict[str, int]:
    """Rows by reference whose entity row does not exist, now; text, arrays and json may hold ids of other things."""
    counted = [r for r in store.references if r.form == "key" and not r.keeps_orphans]
    return {r.name: int(sql.scalar(connection, _orphan_count(store, r))) for r in counted}


_SUMMARY = """
SELECT count(*) AS documents, count(*) FILTER (WHERE id_class = 'deterministic') AS deterministic,
       count(*) FILTER (WHERE id_class = 'random') AS random, count(*) FILTER (WHERE id_class = 'stray') AS stray,
       count(quarantined) AS quarantined, count(DISTINCT owner) AS users,
       count(DISTINCT owner) FILTER (WHERE id_class <> 'deterministic') AS affected_users,
       (SELECT count(*) FROM (SELECT FROM {table} WHERE assessment_no = %(no)s AND id_class <> 'deterministic'
            GROUP BY owner HAVING count(*) >= %(high)s) u) AS high_impact_users,
       coalesce(sum(size), 0)::bigint AS bytes,
       count(*) FILTER (WHERE created_at > now() - make_interval(days => %(days)s)) AS recent,
       count(*) FILTER (WHERE status = ANY(%(failed)s) OR (status IS NULL AND %(null_failed)s)) AS failed,
       count(*) FILTER (WHERE children > 0) AS with_children, sum(children)::bigint AS children
FROM {table} WHERE assessment_no = %(no)s
"""


def summarize(connection: Connection, store: Store, assessment: ledger.Assessment) -> Summary:
    """The figures of the main entity, from the ledger's inventory."""
    failed = store.spec.statuses.failed
    statement = sql.Text(_SUMMARY).format(table=ledger.inventory_table(store.main))
    row = sql.rows(
        connection,
        statement,
        {
            "no": assessment.assessment_no,
            "high": store.spec.high_impact_documents,
            "days": store.spec.waves.recent_days,
            "failed": [status for status in failed if status is not None],
            "null_failed": None in failed,
        },
    )[0]
    known = store.main.spec.describe
    has_children = bool(store.children(store.main))
    return Summary(
        documents=row.documents, deterministic=row.deterministic, random=row.random, stray=row.stray,
        quarantined=row.quarantined,
        users=row.users if known.owner else None,
        affected_users=row.affected_users if known.owner else None,
        high_impact_users=row.high_impact_users if known.owner else None,
        bytes=row.bytes if known.size else None,
        recent=row.recent if known.created_at else None,
        failed=row.failed if known.status and failed else None,
        with_children=row.with_children if has_children else None,
        children=row.children if has_children else None,
        orphans=sum(assessment.profile.get("orphans", {}).values()),
    )  # fmt: skip


def id_classes(connection: Connection, store: Store, assessment: int) -> dict[str, dict[str, int]]:
    """Rows by entity and id class."""
    return {
        entity.name: {
            row.id_class: row.n
            for row in sql.rows(
                connection,
                sql.compose(
                    "SELECT id_class, count(*) AS n FROM {table} WHERE assessment_no = %(no)s GROUP BY 1 ORDER BY 1",
                    table=ledger.inventory_table(entity),
                ),
                {"no": assessment},
            )
        }
        for entity in store.entities
    }


def quarantined(connection: Connection, store: Store, assessment: int, limit: int = 100) -> list[dict[str, Any]]:
    """Quarantined rows with their reason, at most ``limit`` an entity."""
    return [
        {"entity": entity.name, "id": str(row.key), "reason": row.quarantined}
        for entity in store.entities
        for row in sql.rows(
            connection,
            sql.compose(
                """SELECT key, quarantined FROM {table} WHERE assessment_no = %(no)s AND quarantined IS NOT NULL
                   ORDER BY position LIMIT %(limit)s""",
                table=ledger.inventory_table(entity),
            ),
            {"no": assessment, "limit": limit},
        )
    ]


def documents(connection: Connection, store: Store, assessment: int, limit: int) -> list[dict[str, Any]]:
    """The main entity's rows, highest priority first."""
    statement = sql.compose(
        """SELECT key::text AS id, target_id::text AS target_id, id_class, round({priority}, 2)::float AS priority,
                  owner, created_at::text AS created_at, status, size, children, title
           FROM {table} i WHERE assessment_no = %(no)s ORDER BY {priority} DESC, position LIMIT %(limit)s""",
        table=ledger.inventory_table(store.main),
        priority=sql.Text(PRIORITY),
    )
    complete = complete_statuses(store)
    found = sql.rows(connection, statement, {"no": assessment, "limit": limit, "complete": complete})
    return [dict(row._mapping) for row in found]


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


def no_orphans(connection: Connection, store: Store) -> GateResult:
    """Gate: every reference, declared or by foreign key, points at a row that exists."""
    found = {name: count for name, count in orphans(connection, store).items() if count}
    return GateResult.of(
        "no_orphans",
        not found,
        "0 orphans" if not found else "orphans: " + ", ".join(f"{name} {n}" for name, n in found.items()),
        "look at these rows with their owner; delete them or give them their document back, or, where a soft reference "
        "may hold what is no row's key, say there in the spec `orphans: keep`; then plan again",
        figures={"orphans": sum(found.values())},
    )


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
