"""The plan: id map, waves and decisions, frozen under a digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import ledger, mapping, signals, sql
from uuid_pipeline.engine.altered import vector_indexes
from uuid_pipeline.engine.altered.vector_indexes import Span
from uuid_pipeline.engine.backups import backup_gate
from uuid_pipeline.engine.batches import sizes
from uuid_pipeline.engine.batches.held import FORWARD
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.inventory import Summary
from uuid_pipeline.engine.plans import approach, risk_findings, risks, speed, written_ids
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import RefusedError

# Where a kind of wave stands in the partition's name; several waves of one kind count on from there.
POSITIONS = {"canary": 10, "recent": 20, "remaining": 30, "sweep": 900}


@dataclass(frozen=True)
class PlannedWave:
    name: str
    kind: str
    first_ordinal: int
    last_ordinal: int
    documents: int


@dataclass(frozen=True)
class Plan:
    assessment_no: int
    plan_id: str
    content: dict[str, Any]

    @property
    def waves(self) -> list[PlannedWave]:
        return [PlannedWave(**wave) for wave in self.content["waves"]]

    @property
    def moves(self) -> dict[str, int]:
        moves: dict[str, int] = self.content["moves"]
        return moves

    @property
    def merges(self) -> dict[str, int]:
        merges: dict[str, int] = self.content["merges"]
        return merges

    @property
    def approve_command(self) -> str:
        """What a person types to approve it, with the snapshot that it may want named."""
        return backup_gate.approve_command(self.plan_id, self.content.get("backup", "none"))

    @property
    def nothing_to_do(self) -> bool:
        return sum(self.moves.values()) + sum(self.merges.values()) == 0


def split_waves(spans: list[tuple[str, int, int]], size: int) -> list[PlannedWave]:
    """Waves from (kind, first ordinal, last ordinal); ``remaining`` is cut into parts of at most ``size`` documents."""
    waves = []
    for kind, first, last in spans:
        step = size if kind == "remaining" else max(last - first + 1, 1)
        starts = range(first, last + 1, step)
        for index, start in enumerate(starts, 1):
            number = f"-{index:03d}" if kind == "remaining" else ""
            name = f"{POSITIONS[kind]:03d}-{kind}{number}"
            end = min(start + step - 1, last)
            waves.append(PlannedWave(name, kind, start, end, end - start + 1))
    return waves


def make(connection: Connection, store: Store, assessment: ledger.Assessment, summary: Summary) -> Plan:
    """Freeze the id map of an assessment into a plan and write it to the ledger.

    Raises RefusedError when it was approved, or moves ids that a column holds which the spec does not know.
    """
    number = assessment.assessment_no
    ledger.require_unapproved(connection, number)
    moves, merges = mapping.moves(connection, store, number), mapping.merges(connection, store, number)
    searched = assessment.profile.get("search")
    # The gate on undeclared references passes while nothing is due.
    if searched and sum(moves.values()) + sum(merges.values()) > 0:
        references.require_known(store, references.from_data(searched))
    spans = split_waves(_spans(connection, store, number), store.spec.waves.remaining)
    waves = [replace(wave, documents=_documents(connection, store, number, wave)) for wave in spans]
    spanned = {wave.name: Span(number, wave.first_ordinal, wave.last_ordinal) for wave in waves}
    vectors = vector_indexes.choose(connection, store, spanned)
    map_rows, ledger_bytes = _map_size(connection, store, number)
    chosen = approach.choose(summary, store.spec.strategy)
    content = {
        "spec_digest": assessment.spec_digest,
        "catalog_digest": assessment.catalog_digest,
        "maps": {entity.name: _map_digest(connection, store, entity.name, number) for entity in store.entities},
        "waves": [asdict(wave) for wave in waves],
        "moves": moves,
        "merges": merges,
        "approach": chosen.shown,
        "covers": chosen.covers,
        "left": _left(connection, store, number),
        "tier": assessment.profile["tier"],
        "tier_reason": assessment.profile["tier_reason"],
        "silenced_triggers": _met(assessment.profile["silenced_triggers"], merges),
        "fired_triggers": _met(assessment.profile["fired_triggers"], merges),
        "witnesses": sum(len(entity.spec.witnesses) for entity in store.entities),
        "batch_rows": store.spec.batch_rows,
        "unreadable_signals": signals.unreadable(connection, store.spec.throttle),
        "sweep_passes": store.spec.sweep.max_passes,
        "rebuilt_indexes": vectors.rebuilt,
        "kept_indexes": vectors.kept,
        "backup": store.spec.backup,
        "risks": [
            *_risks(store, assessment),
            *written_ids.found(connection, store, number),
            *vectors.risks,
        ],
    }
    plan_id = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    # What follows is not of what is approved: the digest is without it. How many rows refer to a document may change.
    content["risks"] += _large_documents(connection, store, number)
    # Estimates follow the machine.
    measured = speed.measured(connection)
    seconds = round(map_rows / measured.ids_a_second + (0 if measured.whole else vectors.seconds), 1)
    content["estimate"] = {"seconds": seconds, "basis": measured.basis, "ledger_bytes": ledger_bytes}
    # So do what was the case when it was made: what a plan was advised by must be readable when the store has moved on.
    content["figures"] = asdict(summary)
    content["circumstances"] = risk_findings.circumstances(connection, store, number)
    findings = risk_findings.of(content, summary, assessment.profile)
    content["risk_register"] = [asdict(risk) for risk in risks.register(findings)]
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.plans (assessment_no, plan_id, content) VALUES (%(no)s, %(id)s, %(content)s::jsonb)
           ON CONFLICT (assessment_no) DO UPDATE SET plan_id = excluded.plan_id, content = excluded.content""",
        {"no": number, "id": plan_id, "content": json.dumps(content)},
    )
    return Plan(number, plan_id, content)


def _spans(connection: Connection, store: Store, number: int) -> list[tuple[str, int, int]]:
    """(kind, first ordinal, last ordinal), one of each kind; rows of further roots come last, as `remaining`."""
    spans: dict[str, tuple[str, int, int]] = {}
    for root in store.roots:
        statement = sql.compose(
            """SELECT wave, min(ordinal) AS first, max(ordinal) AS last FROM {map}
               WHERE assessment_no = %(no)s GROUP BY wave ORDER BY 2""",
            map=ledger.map_table(root),
        )
        for row in sql.rows(connection, statement, {"no": number}):
            kind = row.wave if root == store.main else "remaining"
            _, first, _ = spans.get(kind, (kind, row.first, row.last))
            spans[kind] = (kind, first, row.last)
    return list(spans.values())


def _left(connection: Connection, store: Store, number: int) -> dict[str, int]:
    """Documents by entity that are due and that the approach leaves to a later plan, where there are any."""
    found = {}
    for root in store.roots:
        statement = sql.compose(
            """SELECT count(*) FROM {inventory} i WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL
                   AND i.id_class <> 'deterministic'
                   AND NOT EXISTS (SELECT FROM {map} m WHERE m.assessment_no = i.assessment_no AND m.old_id = i.key)""",
            inventory=ledger.inventory_table(root),
            map=ledger.map_table(root),
        )
        found[root.name] = int(sql.scalar(connection, statement, {"no": number}))
    return {name: count for name, count in found.items() if count}


def _documents(connection: Connection, store: Store, number: int, wave: PlannedWave) -> int:
    """Documents between two ordinals; the rows of a cluster share one ordinal."""
    return sum(
        int(
            sql.scalar(
                connection,
                sql.compose(
                    """SELECT count(*) FROM {map}
                       WHERE assessment_no = %(no)s AND ordinal BETWEEN %(first)s AND %(last)s""",
                    map=ledger.map_table(root),
                ),
                {"no": number, "first": wave.first_ordinal, "last": wave.last_ordinal},
            )
        )
        for root in store.roots
    )


def _met(described: list[dict[str, Any]], merges: Mapping[str, int]) -> list[dict[str, Any]]:
    """The triggers that this plan's batches meet: those of tables without ids only where something merges."""
    return [trigger for trigger in described if any(merges.values()) or not trigger["only_merging"]]


def _map_digest(connection: Connection, store: Store, name: str, number: int) -> str:
    statement = sql.compose(
        """SELECT concat_ws(':', count(*), sum(hash_record_extended(r, 0)), sum(hash_record_extended(r, 1)))
           FROM {map} m CROSS JOIN LATERAL (SELECT ROW(m.ordinal, m.wave, m.role, m.natural_key,
                                                                  m.old_id, m.new_id) AS r) keyed
           WHERE assessment_no = %(no)s""",
        map=ledger.map_table(store.entity(name)),
    )
    return str(sql.scalar(connection, statement, {"no": number}))


def _map_size(connection: Connection, store: Store, number: int) -> tuple[int, int]:
    rows = size = 0
    for entity in store.entities:
        found = sql.rows(
            connection,
            "SELECT c.reltuples::bigint AS rows, pg_total_relation_size(c.oid) AS bytes FROM pg_class c "
            "WHERE c.oid = to_regclass(%(part)s)",
            {"part": f"uuid_pipeline.id_map_{entity.name}_{number}"},
        )
        rows, size = rows + max(found[0].rows, 0), size + found[0].bytes
    return rows, size


def _risks(store: Store, assessment: ledger.Assessment) -> list[str]:
    risks = [
        f"{table['table']}: no index on {', '.join(table['unindexed'])}; every batch scans the table"
        for table in assessment.profile["tables"]
        if table["unindexed"]
    ]
    if not any(entity.spec.witnesses for entity in store.entities):
        risks.append("the rule is not witnessed: no id that the application made itself confirms it")
    return [*risks, *backup_gate.risks(store)]


def _large_documents(connection: Connection, store: Store, number: int) -> list[str]:
    """A document moves whole, its cluster with it, in one transaction, however many rows there are below it."""
    rows = [*sizes.mapped_rows(store, number, "true"), *sizes.referring_rows(store, number, FORWARD, "true")]
    keys = [
        sql.compose(
            "SELECT ordinal, old_id::text AS key, {name} AS entity FROM {map} "
            "WHERE assessment_no = %(no)s AND role <> 'merge'",
            map=ledger.map_table(root),
            name=sql.literal(root.name),
        )
        for root in store.roots
    ]
    found = sql.rows(
        connection,
        sql.compose(
            """WITH large AS (
                   SELECT ordinal, count(*) AS n, count(*) OVER () AS documents FROM ({rows}) r
                   GROUP BY ordinal HAVING count(*) > %(batch_rows)s ORDER BY n DESC, ordinal LIMIT 3)
               SELECT k.entity, k.key, large.n, large.documents FROM large JOIN ({keys}) k USING (ordinal)
               ORDER BY n DESC, ordinal""",
            rows=sql.join(" UNION ALL ", rows),
            keys=sql.join(" UNION ALL ", keys),
        ),
        {"no": number, "batch_rows": store.spec.batch_rows},
    )
    if not found:
        return []
    more = found[0].documents - len(found)
    named = ", ".join(f"{row.entity} {row.key} ({row.n} rows)" for row in found) + (f" and {more} more" if more else "")
    return [
        f"larger than a batch ({store.spec.batch_rows} rows) by itself: {named}; each moves in one transaction, and "
        "writers who meet it wait for that long"
    ]


def newest(connection: Connection) -> Plan | None:
    """The plan made last, if any."""
    found = sql.rows(
        connection,
        "SELECT assessment_no, plan_id, content FROM uuid_pipeline.plans ORDER BY assessment_no DESC LIMIT 1",
    )
    return Plan(*found[0]) if found else None


def of_assessment(connection: Connection, assessment: int) -> Plan:
    """The plan of an assessment. Raises RefusedError when it has none."""
    found = sql.rows(
        connection,
        "SELECT assessment_no, plan_id, content FROM uuid_pipeline.plans WHERE assessment_no = %(no)s",
        {"no": assessment},
    )
    if not found:
        raise RefusedError(f"Assessment {assessment} has no plan. Run: uuid-pipeline plan")
    return Plan(*found[0])


def require_map_as_approved(connection: Connection, store: Store, plan: Plan) -> None:
    """Raise RefusedError when the id map is not the one whose digest the plan was approved with."""
    for name, digest in plan.content["maps"].items():
        if _map_digest(connection, store, name, plan.assessment_no) != digest:
            raise RefusedError(
                f"The id map of {name} is not the one that plan {plan.plan_id} was made with: somebody changed the "
                "ledger. Run: uuid-pipeline plan, and approve the new plan."
            )


def waves_cover_each_document_once(connection: Connection, store: Store, plan: Plan) -> GateResult:
    """Gate: every mapped root row lies in exactly one wave, and the inventory has no due row that the map lacks.

    But those that the approach leaves on purpose: as many as the plan says, and none while it covers everything.
    """
    waves = sql.literal(json.dumps([asdict(wave) for wave in plan.waves]))
    wrong = missing = 0
    for root in store.roots:
        counted = sql.rows(
            connection,
            sql.compose(
                """SELECT count(*) FILTER (WHERE m.old_id IS NULL) AS missing,
                          count(*) FILTER (WHERE m.old_id IS NOT NULL AND w.waves <> 1) AS wrong
                   FROM {inventory} i LEFT JOIN {map} m ON m.assessment_no = i.assessment_no AND m.old_id = i.key
                   CROSS JOIN LATERAL (
                       SELECT count(*) AS waves FROM jsonb_to_recordset({waves}::jsonb)
                           AS w(first_ordinal bigint, last_ordinal bigint)
                       WHERE m.ordinal BETWEEN w.first_ordinal AND w.last_ordinal) w
                   WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL
                     AND (i.id_class <> 'deterministic' OR m.old_id IS NOT NULL)""",
                inventory=ledger.inventory_table(root),
                map=ledger.map_table(root),
                waves=waves,
            ),
            {"no": plan.assessment_no},
        )[0]
        wrong, missing = wrong + counted.wrong, missing + counted.missing
    left = 0 if approach.covers(store.spec.strategy) == "everything due" else sum(plan.content["left"].values())
    wrong += abs(missing - left)
    documents = sum(wave.documents for wave in plan.waves)
    said = f"{len(plan.waves)} waves cover {documents} documents"
    said += f"; {left} are left to a later plan, as the approach ({plan.content['approach']}) says" if left else ""
    return GateResult.of(
        "waves_cover_each_document_once",
        wrong == 0,
        said if not wrong else f"{wrong} documents are in no wave or two",
        "plan again; if it recurs, report a fault of uuid-pipeline",
        figures={"waves": len(plan.waves), "documents": documents, "left": left},
    )


def stale_reason(connection: Connection, store: Store, plan: Plan) -> str | None:
    """Why a plan no longer fits: spec, catalog, ids or the map changed since; None when it still does."""
    if plan.content["spec_digest"] != store.spec.digest:
        return "the spec changed since"
    # Read anew: a table made since the store was bound may refer to what is about to move.
    now = catalogs.read_catalog(connection, store.spec.schema_name)
    if plan.content["catalog_digest"] != catalogs.digest(catalogs.snapshot(connection, now)):
        return "the store's tables, constraints, indexes, triggers, policies or grants changed since"
    if is_overtaken(connection, plan):
        return "rows were moved or rolled back by another execution since"
    begun = sql.scalar(
        connection,
        "SELECT started_at FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": plan.assessment_no},
    )
    if ledger.erased_since(connection, begun, f"^id_map_.*_{plan.assessment_no}$") is not None:
        return "a user was erased since, and with their documents a part of the id map"
    return None


def is_overtaken(connection: Connection, plan: Plan) -> bool:
    """Whether rows were moved, or rolled back, by another execution since the plan was made."""
    return bool(sql.scalar(connection, _MOVED_SINCE, {"no": plan.assessment_no}))


# What a plan took for deterministic may have its old id again, and the other way round.
_MOVED_SINCE = """
SELECT EXISTS (SELECT FROM uuid_pipeline.batches b JOIN uuid_pipeline.executions e USING (execution_id)
               JOIN uuid_pipeline.assessments a ON a.assessment_no = %(no)s
               WHERE e.assessment_no <> a.assessment_no AND b.committed_at > a.started_at)
"""


def require_fresh(connection: Connection, store: Store, plan: Plan) -> None:
    """Raise RefusedError when a plan is stale."""
    reason = stale_reason(connection, store, plan)
    if reason:
        raise RefusedError(
            f"Plan {plan.plan_id} is stale: {reason}. Run: uuid-pipeline plan, and approve the new plan."
        )
