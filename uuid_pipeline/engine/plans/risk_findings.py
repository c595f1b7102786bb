"""What the risks of a plan are made of: figures from plan, inventory and profile, and what was measured at planning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.signals import long_transactions
from uuid_pipeline.engine.signals.sessions import OTHERS_AT_WORK
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.spec import Throttle

OLD_SECONDS = 60.0


@dataclass(frozen=True)
class Unindexed:
    table: str
    columns: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Trigger:
    name: str
    table: str
    does: str


@dataclass(frozen=True)
class Rebuilt:
    index: str
    table: str
    waves: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class Findings:
    """Everything that a risk is judged by. Counts by entity; ``None`` is unknown. Seconds; shares 0 to 1."""

    documents: int
    moves: int
    users: int | None
    changing_users: int | None
    failed: int | None
    with_children: int | None
    quarantined: int
    unindexed: tuple[Unindexed, ...]
    witnesses: int
    tier: str
    tier_reason: str
    fired: tuple[Trigger, ...]
    silenced: tuple[Trigger, ...]
    merges: tuple[tuple[str, int], ...]
    without_counterpart: tuple[tuple[str, int], ...]
    rebuilt: tuple[Rebuilt, ...]
    row_security: tuple[str, ...]
    policies: tuple[tuple[str, str], ...]
    others_at_work: bool
    unreadable: tuple[tuple[str, str], ...]
    throttled: bool
    long_transaction: str | None
    derived: tuple[tuple[str, int, str], ...]
    unsearched: tuple[str, ...]
    kept_ids: tuple[tuple[str, str], ...]
    backup: str
    speed_measured: bool
    sweep_passes: int
    left: int
    covers: str
    stated: tuple[str, ...]


def of(content: Mapping[str, Any], summary: Summary, profile: Mapping[str, Any]) -> Findings:
    """The findings of a plan's content, the inventory's figures and the profile; no look at store or clock."""
    spec = profile.get("spec", {})
    now = content.get("circumstances", {})
    return Findings(
        documents=summary.documents,
        moves=sum(content["moves"].values()),
        users=summary.users,
        changing_users=summary.changing_users,
        failed=summary.failed,
        with_children=summary.with_children,
        quarantined=summary.quarantined,
        unindexed=tuple(
            Unindexed(t["table"], tuple(t["unindexed"]), t["bytes"]) for t in profile["tables"] if t["unindexed"]
        ),
        witnesses=content["witnesses"],
        tier=content["tier"],
        tier_reason=content["tier_reason"],
        fired=_triggers(content["fired_triggers"]),
        silenced=_triggers(content["silenced_triggers"]),
        merges=_counted(content["merges"]),
        without_counterpart=_counted(now.get("without_counterpart", {})),
        rebuilt=tuple(
            Rebuilt(i["index"], i["table"], tuple(i["waves"]), i["rows"]) for i in content.get("rebuilt_indexes", [])
        ),
        row_security=tuple(t["table"] for t in profile["tables"] if t["row_security"]),
        policies=tuple((p["policy"], p["table"]) for p in profile.get("policies_by_id", [])),
        others_at_work=bool(now.get("others_at_work")),
        unreadable=tuple(sorted(content["unreadable_signals"].items())),
        throttled=any(value is not None for name, value in spec.get("throttle", {}).items() if name in _LIMITS),
        long_transaction=now.get("long_transaction"),
        derived=tuple(
            (f"{d['table']}.{d['column']}", d["rows"], d["kind"]) for d in profile.get("search", {}).get("derived", [])
        ),
        unsearched=tuple(
            line for part in ("sampled_only", "not_searched") for line in profile.get("search", {}).get(part, [])
        ),
        kept_ids=tuple((f"{i['table']}.{i['column']}", i["reason"]) for i in spec.get("ignore_references", [])),
        backup=spec.get("backup", "none"),
        speed_measured=measured(content["estimate"]),
        sweep_passes=content["sweep_passes"],
        left=sum(content.get("left", {}).values()),
        covers=content.get("covers", "everything due"),
        stated=tuple(content["risks"]),
    )


def measured(estimate: Mapping[str, Any]) -> bool:
    """Whether an estimate's speed was measured here, as its basis says."""
    basis = str(estimate.get("basis") or ASSUMED)
    return not basis.startswith(ASSUMED)


ASSUMED = "assumed"
_LIMITS = ("replication_lag_seconds", "lock_waits", "long_transaction_seconds", "query_milliseconds")


def _triggers(described: Sequence[Mapping[str, Any]]) -> tuple[Trigger, ...]:
    return tuple(Trigger(t["trigger"], t["table"], t["does"]) for t in described)


def _counted(found: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in found.items() if count))


def circumstances(connection: Connection, store: Store, assessment: int) -> dict[str, Any]:
    """What holds at planning, and may not when the plan is carried out: who is at work, what merges displace."""
    reading = long_transactions.read(connection, Throttle(long_transaction_seconds=OLD_SECONDS))
    children = {
        entity.name: without_counterpart(connection, store, entity, assessment)
        for entity in store.entities
        if entity.parent is not None and entity.spec.merge_as_set
    }
    return {
        "long_transaction": None if reading.state == "normal" else reading.reason,
        "without_counterpart": {name: count for name, count in children.items() if count},
        "others_at_work": bool(sql.scalar(connection, OTHERS_AT_WORK)),
    }


# As a batch decides it: of each set below one document the source with most rows stays whole, the survivor's own when
# even; of the others the rows whose natural key the kept set lacks are archived and have nothing in their place.
_WITHOUT_COUNTERPART = """
WITH clusters AS (
    SELECT m.old_id AS parent, m.new_id AS owner, m.role <> 'merge' AS own FROM {parents} m
    WHERE m.assessment_no = %(no)s AND m.ordinal IN (
        SELECT ordinal FROM {parents} WHERE assessment_no = %(no)s AND role = 'merge')),
rows AS (
    SELECT i.natural_key, i.parent_key AS parent, c.owner, c.own, jsonb_build_array({columns}) AS set_of
    FROM clusters c JOIN {inventory} i ON i.assessment_no = %(no)s AND i.parent_key = c.parent
    JOIN {table} t ON t.{key} = i.key WHERE i.natural_key IS NOT NULL AND i.quarantined IS NULL),
counted AS (
    SELECT r.*, count(*) OVER source AS size, bool_or(own) OVER source AS owners FROM rows r
    WINDOW source AS (PARTITION BY owner, set_of, parent)),
-- Each set is read once: joined with itself, many clusters would be compared row by row.
placed AS (
    SELECT owner, natural_key,
           dense_rank() OVER (PARTITION BY owner, set_of ORDER BY size DESC, owners DESC, parent) AS place FROM counted)
SELECT coalesce(sum(n), 0) FROM (
    SELECT count(*) AS n FROM placed GROUP BY owner, natural_key HAVING bool_and(place > 1)) gone
"""


def without_counterpart(connection: Connection, store: Store, entity: Entity, assessment: int) -> int:
    """Rows of an entity merged as sets that would be archived while nothing takes their place, by today's rows."""
    statement = sql.Text(_WITHOUT_COUNTERPART).format(
        parents=ledger.map_table(store.entity(entity.parent or "")),
        inventory=ledger.inventory_table(entity),
        table=sql.table(entity.table.schema, entity.table.name),
        key=sql.name(entity.key),
        columns=sql.join(", ", [sql.compose("t.{c}", c=sql.name(column)) for column in entity.spec.merge_as_set]),
    )
    return int(sql.scalar(connection, statement, {"no": assessment}))
