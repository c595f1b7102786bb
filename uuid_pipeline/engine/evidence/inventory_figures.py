"""What an inventory says in tables and plots: users, uploads, statuses, chunks, storage, recency, failures, priority.

Everything is grouped by the server over the ledger's inventory; what comes back is as long at a million documents as
at a thousand. ``None`` stands for what the spec does not describe.
"""

from dataclasses import asdict
from typing import Any, LiteralString

from sqlalchemy import Connection

from uuid_pipeline.engine import duplicates, inventory, ledger, priorities, sql
from uuid_pipeline.engine.evidence import failure_patterns, figures
from uuid_pipeline.engine.store import Store

TOP = 10
CLUSTERS_KEPT = 50
STATUSES_SHOWN = 20

Records = list[dict[str, Any]]

_FROM: LiteralString = " FROM {table} i WHERE i.assessment_no = %(no)s "
_DUE: LiteralString = "count(*) FILTER (WHERE i.id_class <> 'deterministic') AS due"
_WITHOUT: LiteralString = (
    "CASE WHEN count(i.children) > 0 THEN count(*) FILTER (WHERE i.children = 0) END AS without_children"
)

_USERS: LiteralString = (
    "SELECT i.owner, count(*) AS documents, " + _DUE + ", " + _WITHOUT + ", sum(i.children)::bigint AS children, "
    # least() passes NULL over.
    "CASE WHEN count(i.size) > 0 THEN least(sum(i.size), 9e18)::bigint END AS bytes" + _FROM
    + "AND i.owner IS NOT NULL GROUP BY i.owner ORDER BY due DESC, documents DESC, i.owner LIMIT %(limit)s"
)  # fmt: skip
_IMPACT: LiteralString = """
SELECT CASE WHEN u.due >= %(high)s THEN 'high' WHEN u.due > 1 THEN 'several' WHEN u.due = 1 THEN 'one' ELSE 'none' END
           AS impact, count(*) AS users, sum(u.documents)::bigint AS documents
FROM (SELECT count(*) AS documents, count(*) FILTER (WHERE i.id_class <> 'deterministic') AS due
      FROM {table} i WHERE i.assessment_no = %(no)s AND i.owner IS NOT NULL GROUP BY i.owner) u
GROUP BY 1 ORDER BY min(CASE WHEN u.due >= %(high)s THEN 0 WHEN u.due > 1 THEN 1 WHEN u.due = 1 THEN 2 ELSE 3 END)
"""
_STATUSES: LiteralString = (
    "SELECT i.status, count(*) AS documents, " + _DUE + ", " + _WITHOUT + _FROM
    + "GROUP BY i.status ORDER BY documents DESC, i.status NULLS LAST LIMIT %(limit)s"
)  # fmt: skip
_RECENCY: LiteralString = (
    """SELECT CASE WHEN i.created_at IS NULL THEN 5 WHEN i.created_at > now() - interval '7 days' THEN 1
                   WHEN i.created_at > now() - interval '30 days' THEN 2
                   WHEN i.created_at > now() - interval '90 days' THEN 3 ELSE 4 END AS place,
              count(*) AS documents, """ + _DUE + _FROM + "GROUP BY 1 ORDER BY 1"
)  # fmt: skip
_AGES = {1: "last 7 days", 2: "8 to 30 days", 3: "31 to 90 days", 4: "older", 5: "no date"}

# The unit keeps a plot at some sixty bars; dates that are infinite or missing are counted beside it.
_SPAN: LiteralString = """
SELECT CASE WHEN s.span <= interval '45 days' THEN 'day' WHEN s.span <= interval '300 days' THEN 'week'
            WHEN s.span <= interval '1800 days' THEN 'month' WHEN s.span <= interval '21000 days' THEN 'year'
            ELSE 'century' END AS unit, s.undated
FROM (SELECT least(max(i.created_at) FILTER (WHERE isfinite(i.created_at)), '9999-12-31')
             - greatest(min(i.created_at) FILTER (WHERE isfinite(i.created_at)), '0001-01-01') AS span,
             count(*) FILTER (WHERE isfinite(i.created_at) IS NOT TRUE) AS undated
      FROM {table} i WHERE i.assessment_no = %(no)s) s
"""
_UPLOADS: LiteralString = """
WITH held AS (
    SELECT date_trunc(%(unit)s, i.created_at AT TIME ZONE 'UTC') AS at, count(*) AS documents,
           count(*) FILTER (WHERE i.id_class <> 'deterministic') AS due
    FROM {table} i WHERE i.assessment_no = %(no)s AND isfinite(i.created_at) GROUP BY 1),
span AS (SELECT min(at) AS first, max(at) AS last FROM held),
steps AS (SELECT generate_series(first, last, ('1 ' || %(unit)s)::interval) AS at FROM span
          WHERE %(unit)s <> 'century' UNION SELECT at FROM held)
SELECT to_char(s.at, %(shape)s) AS at, coalesce(h.documents, 0) AS documents,
       coalesce(h.due, 0) AS due
FROM steps s LEFT JOIN held h USING (at) ORDER BY s.at DESC LIMIT 80
"""
_SHAPES = {"day": "YYYY-MM-DD", "week": "YYYY-MM-DD", "month": "YYYY-MM", "year": "YYYY", "century": "YYYY BC"}

_CHILDREN: LiteralString = (
    """SELECT CASE WHEN i.children = 0 THEN 0 WHEN i.children <= 3 THEN 1 WHEN i.children <= 10 THEN 2
                   WHEN i.children <= 30 THEN 3 WHEN i.children <= 100 THEN 4 ELSE 5 END AS place,
              count(*) AS documents, sum(i.children)::bigint AS children, """ + _DUE + _FROM + "GROUP BY 1 ORDER BY 1"
)  # fmt: skip
_CHILD_BANDS = ("none", "1 to 3", "4 to 10", "11 to 30", "31 to 100", "more than 100")
_SIZES: LiteralString = (
    """SELECT CASE WHEN i.size IS NULL THEN 6 WHEN i.size < 1e4 THEN 0 WHEN i.size < 1e5 THEN 1 WHEN i.size < 1e6 THEN 2
                   WHEN i.size < 1e7 THEN 3 WHEN i.size < 1e8 THEN 4 ELSE 5 END AS place,
              count(*) AS documents, least(coalesce(sum(i.size), 0), 9e18)::bigint AS bytes, """
    + _DUE + _FROM + "GROUP BY 1 ORDER BY 1"
)  # fmt: skip
_SIZE_BANDS = (
    "under 10 kB", "10 to 100 kB", "100 kB to 1 MB", "1 to 10 MB", "10 to 100 MB", "100 MB and more", "no size",
)  # fmt: skip
_STORAGE: LiteralString = (
    """SELECT least(coalesce(sum(i.size), 0), 9e18)::bigint AS bytes, coalesce(max(i.size), 0)::bigint AS largest,
              coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY i.size), 0)::bigint AS median""" + _FROM
)  # fmt: skip
_QUARANTINED: LiteralString = (
    "SELECT i.quarantined AS reason, count(*) AS rows" + _FROM
    + "AND i.quarantined IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT %(limit)s"
)  # fmt: skip


def take(connection: Connection, store: Store, assessment: ledger.Assessment) -> dict[str, Any]:
    """Every figure of an inventory, ready to be kept as JSON; sizes in bytes, shares 0 to 1."""
    number = assessment.assessment_no
    known = store.main.spec.describe
    summary = inventory.summarize(connection, store, assessment)
    has_children = bool(store.children(store.main))
    return {
        "summary": {**asdict(summary), "consistency": summary.consistency},
        "id_classes": inventory.id_classes(connection, store, number),
        "orphans": dict(assessment.profile.get("orphans", {})),
        "patterns": [
            failure_patterns.as_record(pattern) for pattern in failure_patterns.find(connection, store, number)
        ],
        "clusters": _clusters(connection, store, number),
        "quarantined": _quarantined(connection, store, number),
        "priorities": {
            "bands": priorities.bands(connection, store, number),
            "top": priorities.top(connection, store, number, TOP),
        },
        "users": _users(connection, store, number) if known.owner else None,
        "uploads": _uploads(connection, store, number) if known.created_at else None,
        "recency": _recency(connection, store, number) if known.created_at else None,
        "statuses": _grouped(connection, store, number, _STATUSES, limit=STATUSES_SHOWN) if known.status else None,
        "children": _banded(connection, store, number, _CHILDREN, _CHILD_BANDS) if has_children else None,
        "storage": _storage(connection, store, number) if known.size else None,
    }


def _clusters(connection: Connection, store: Store, number: int) -> Records:
    """The first clusters of documents: which row stays by which rule, and what merging archives, as foreseen now.

    After the merge nobody could tell any more. Without natural keys, which are in the id map.
    """
    roots = {root.name for root in store.roots}
    found = [c for c in duplicates.clusters(connection, store, number, CLUSTERS_KEPT) if c["entity"] in roots]
    seen = duplicates.with_consequences(connection, store, number, found)
    return [{name: value for name, value in cluster.items() if name != "natural_key"} for cluster in seen]


def of(connection: Connection, store: Store, assessment: ledger.Assessment) -> dict[str, Any] | None:
    """The figures kept when the inventory was taken; else taken now; None when the inventory was dropped since."""
    kept = figures.latest(connection, "inventory", assessment=assessment.assessment_no)
    if kept is not None:
        return kept.figures
    part = f"uuid_pipeline.inventory_{store.main.name}_{assessment.assessment_no}"
    if sql.scalar(connection, "SELECT to_regclass(%(part)s)", {"part": part}) is None:
        return None
    return take(connection, store, assessment)


def _grouped(connection: Connection, store: Store, number: int, statement: LiteralString, **values: Any) -> Records:
    composed = sql.compose(statement, table=ledger.inventory_table(store.main))
    return [dict(row._mapping) for row in sql.rows(connection, composed, {"no": number, **values})]


def _banded(
    connection: Connection, store: Store, number: int, statement: LiteralString, labels: tuple[str, ...]
) -> Records:
    """Counts in fixed bands, in their order; a band that holds nothing is left out."""
    return [{"band": labels[row.pop("place")], **row} for row in _grouped(connection, store, number, statement)]


def _users(connection: Connection, store: Store, number: int) -> dict[str, Any]:
    high = store.spec.high_impact_documents
    several = f"2 to {high - 1}" if high > 3 else "2"
    labels = {"high": f"{high} or more: high", "several": several, "one": "1", "none": "none"}
    impact = _grouped(connection, store, number, _IMPACT, high=high)
    return {
        "impact": [{**row, "label": labels[row["impact"]]} for row in impact],
        "top": _grouped(connection, store, number, _USERS, limit=TOP),
    }


def _uploads(connection: Connection, store: Store, number: int) -> dict[str, Any]:
    [span] = _grouped(connection, store, number, _SPAN)
    unit = span["unit"]
    newest_first = _grouped(connection, store, number, _UPLOADS, unit=unit, shape=_SHAPES[unit])
    return {"unit": unit, "undated": span["undated"], "bars": newest_first[::-1]}


def _recency(connection: Connection, store: Store, number: int) -> Records:
    return [{"age": _AGES[row.pop("place")], **row} for row in _grouped(connection, store, number, _RECENCY)]


def _storage(connection: Connection, store: Store, number: int) -> dict[str, Any]:
    [totals] = _grouped(connection, store, number, _STORAGE)
    return {**totals, "bands": _banded(connection, store, number, _SIZES, _SIZE_BANDS)}


def _quarantined(connection: Connection, store: Store, number: int) -> Records:
    return [
        {"entity": entity.name, **dict(row._mapping)}
        for entity in store.entities
        for row in sql.rows(
            connection,
            sql.compose(_QUARANTINED, table=ledger.inventory_table(entity)),
            {"no": number, "limit": TOP},
        )
    ]
