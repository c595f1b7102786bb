"""The inventory: every row of every entity with its target id, its id class, and what people ask about it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import derivation, ledger, ledger_parts, orphans, quarantine, sql
from uuid_pipeline.engine.connection import copy_in
from uuid_pipeline.engine.natural_keys import natural_key, part
from uuid_pipeline.engine.priorities import PRIORITY, complete_statuses
from uuid_pipeline.engine.store import Entity, Store

# As text where Python is to look at them. In binary they are passed on: PostgreSQL's dates reach further than Python's,
# and may be infinite.
_SENT: dict[str, LiteralString] = {
    "owner": "textsend(t.{column}::text)",
    "created_at": "timestamptz_send(t.{column}::timestamptz)",
    "status": "textsend(t.{column}::text)",
    # What no file is as large as (or NaN, an infinity) is unknown.
    "size": "int8send(CASE WHEN abs(t.{column}::numeric) < 9e18 THEN round(t.{column}::numeric)::bigint END)",
    "title": "textsend(t.{column}::text)",
}

# The lock that inventories share while they read.
UNDER_WAY: LiteralString = "hashtextextended('uuid_pipeline.inventory', 0)"


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
    changing_users: int | None
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


Restriction = Callable[[Entity], sql.Composable]


def take(
    connection: Connection, store: Store, assessment: int, only: Restriction | None = None
) -> dict[str, dict[str, int]]:
    """Derive every entity's target ids into the ledger, parents first; returns rows counted and derived by entity.

    ``only`` gives for each entity a table with the keys of the rows to look at; without it, all are, and the orphans of
    the whole store are counted too, and documents below which ids change places are quarantined.

    Wants a REPEATABLE READ transaction: counts, parents and children must be of one snapshot. Memory is bounded
    by sql.ROWS_AT_ONCE rows.
    """
    # Nobody is erased from the ledger while rows are read as they were before.
    sql.execute(connection, f"SELECT pg_advisory_xact_lock_shared({UNDER_WAY})")
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
    if only is None:
        quarantine.changing_places(connection, store, assessment)
    snapshot = sql.scalar(connection, "SELECT pg_current_snapshot()::text")
    found = {"counts": counts, "snapshot": snapshot} | ({} if only else {"orphans": orphans.count(connection, store)})
    sql.execute(
        connection,
        "UPDATE uuid_pipeline.assessments SET profile = profile || %(found)s::jsonb WHERE assessment_no = %(no)s",
        {"found": json.dumps(found), "no": assessment},
    )
    return counts


def _derive(connection: Connection, store: Store, entity: Entity, assessment: int, only: Restriction | None) -> int:
    part_table = ledger_parts.fresh_part(connection, "inventory", entity, assessment)
    kept = _kept(store, entity)
    copy = sql.compose(
        "COPY {part} ({columns}) FROM STDIN WITH (FORMAT binary)",
        part=part_table,
        columns=sql.join(", ", [sql.name(column) for column in (*derivation.DERIVED, *kept)]),
    ).as_string(None)
    rows_of = derivation.row_maker(store, entity, len(kept))
    position = 0
    for rows in sql.stream(connection, _source(store, entity, only), {"assessment": assessment}, binary=True):
        copy_in(connection, copy, rows_of(position, rows))
        position += len(rows)
    ledger_parts.prove_unique(connection, "inventory", entity, assessment, "target_id")
    ledger_parts.attach_part(connection, "inventory", entity, assessment, ["UNIQUE key"])
    return position


def may_share_targets(connection: Connection, entity: Entity, assessment: int) -> bool:
    """Whether rows of this entity may have one target id, as those of a cluster do; hardly any store has such."""
    return not ledger_parts.is_unique(connection, "inventory", entity, assessment, "target_id")


def _source(store: Store, entity: Entity, only: Restriction | None) -> sql.Composable:
    """Of every row what :func:`derivation.row_maker` wants."""
    target = sql.Text("p.target_id") if entity.parent else None
    columns = [
        _key_sent(entity, entity.key),
        sql.compose("textsend({natural_key})", natural_key=natural_key(entity, target)),
        _fault_of_parent(entity),
        *_kept(store, entity).values(),
        *[part(entity, field, target) for field in entity.spec.valid],
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


def _key_sent(entity: Entity, column: str) -> sql.Composable:
    """A column of the row ``t`` that holds this entity's keys, as the ledger's type for them is sent."""
    if entity.key_type == "uuid":
        return sql.compose("uuid_send(t.{column}::uuid)", column=sql.name(column))
    return sql.compose("textsend(t.{column}::text)", column=sql.name(column))


def _kept(store: Store, entity: Entity) -> dict[str, sql.Composable]:
    """The inventory's columns that hold what the store says; those that this entity has not stay NULL."""
    kept: dict[str, sql.Composable] = {}
    if entity.parent and entity.parent_column:
        kept["parent_key"] = _key_sent(store.entity(entity.parent), entity.parent_column)
    described = entity.spec.describe.columns()
    for purpose, sent in _SENT.items():
        if purpose in described:
            kept[purpose] = sql.compose(sent, column=sql.name(described[purpose]))
    counts = [
        sql.compose("coalesce({name}.n, 0)", name=sql.name(f"count_{child.name}")) for child in store.children(entity)
    ]
    if counts:
        kept["children"] = sql.compose("int8send({counts})", counts=sql.join(" + ", counts))
    return kept


def _fault_of_parent(entity: Entity) -> sql.Composable:
    if entity.parent is None:
        return sql.Text("NULL")
    return sql.compose(
        "CASE WHEN p.key IS NULL THEN {gone} WHEN p.quarantined IS NOT NULL THEN {quarantined} END",
        gone=sql.literal(f"its {entity.parent} does not exist"),
        quarantined=sql.literal(f"its {entity.parent} is quarantined"),
    )


def _join_parent(store: Store, entity: Entity) -> sql.Composable:
    if entity.parent is None or entity.parent_column is None:
        return sql.Text("")
    return sql.compose(
        "LEFT JOIN {inventory} p ON p.assessment_no = %(assessment)s AND p.key = t.{parent}",
        inventory=ledger.inventory_table(store.entity(entity.parent)),
        parent=sql.name(entity.parent_column),
    )


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


_SUMMARY = """
SELECT count(*) AS documents, count(*) FILTER (WHERE id_class = 'deterministic') AS deterministic,
       count(*) FILTER (WHERE id_class = 'random') AS random, count(*) FILTER (WHERE id_class = 'stray') AS stray,
       count(quarantined) AS quarantined, count(DISTINCT owner) AS users,
       count(DISTINCT owner) FILTER (WHERE id_class <> 'deterministic') AS affected_users,
       count(DISTINCT owner) FILTER (WHERE id_class <> 'deterministic' AND quarantined IS NULL) AS changing_users,
       (SELECT count(*) FROM (SELECT FROM {table} WHERE assessment_no = %(no)s AND id_class <> 'deterministic'
            GROUP BY owner HAVING count(*) >= %(high)s) u) AS high_impact_users,
       least(coalesce(sum(size), 0), 9e18)::bigint AS bytes,
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
        changing_users=row.changing_users if known.owner else None,
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


def quarantined_counts(connection: Connection, store: Store, assessment: int) -> dict[str, int]:
    """Quarantined rows by entity; entities without any are left out."""
    found = {
        entity.name: int(
            sql.scalar(
                connection,
                sql.compose(
                    "SELECT count(quarantined) FROM {table} WHERE assessment_no = %(no)s",
                    table=ledger.inventory_table(entity),
                ),
                {"no": assessment},
            )
        )
        for entity in store.entities
    }
    return {name: count for name, count in found.items() if count}


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
