"""What the risks of a plan are made of: figures from plan, inventory and profile, and what was measured at planning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.merges import counterparts
from uuid_pipeline.engine.signals import long_transactions
from uuid_pipeline.engine.signals.sessions import OTHERS_AT_WORK
from uuid_pipeline.engine.store import Store
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
        entity.name: counterparts.lost(connection, store, entity, assessment)
        for entity in counterparts.merged_as_sets(store)
    }
    return {
        "long_transaction": None if reading.state == "normal" else reading.reason,
        "without_counterpart": {name: count for name, count in children.items() if count},
        "others_at_work": bool(sql.scalar(connection, OTHERS_AT_WORK)),
    }
