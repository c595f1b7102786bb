"""What the ledger says of a store now: waves and what waits, merged rows, archives, aliases, what is altered."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.installed import resolving

Records = list[dict[str, Any]]


def _records(connection: Connection, statement: Any, values: dict[str, Any] | None = None) -> Records:
    return [dict(row._mapping) for row in sql.rows(connection, statement, values)]


def desired(connection: Connection) -> dict[str, str]:
    """What people want of each execution: ``run``, ``pause`` or ``cancel``."""
    found = sql.rows(connection, "SELECT execution_id, desired FROM uuid_pipeline.executions")
    return {row.execution_id: row.desired for row in found}


# Which entity is a document and which table holds it stands in the spec that the execution was planned with. What a
# rollback took back is subtracted: the journal keeps both ways.
_WAVES = """
WITH roots AS (
    SELECT e.execution_id, r.key AS entity, concat_ws('.', a.profile->'spec'->>'schema', r.value->>'table') AS label
    FROM uuid_pipeline.executions e JOIN uuid_pipeline.assessments a USING (assessment_no)
    CROSS JOIN LATERAL jsonb_each(a.profile->'spec'->'entities') r WHERE r.value->>'parent' IS NULL),
done AS (
    SELECT b.wave,
           sum(CASE b.direction WHEN 'forward' THEN 1 ELSE -1 END
               * coalesce((b.moved->'entities'->>r.entity)::bigint, 0)) AS moved,
           sum(coalesce((b.moved->'merged'->'archived'->>r.label)::bigint, 0)
               - coalesce((b.moved->'restored'->>r.label)::bigint, 0)) AS merged
    FROM uuid_pipeline.batches b JOIN roots r USING (execution_id) GROUP BY b.wave)
SELECT w.wave, w.kind, w.documents, w.status, greatest(coalesce(d.moved, 0), 0)::bigint AS moved,
       greatest(coalesce(d.merged, 0), 0)::bigint AS merged,
       coalesce((SELECT jsonb_object_agg(u.reason, u.n) FROM (
                     SELECT reason, count(*) AS n FROM uuid_pipeline.unmoved WHERE wave = w.wave GROUP BY reason) u),
                '{}') AS aside
FROM uuid_pipeline.waves w LEFT JOIN done d USING (wave)
WHERE w.execution_id = ANY(%(executions)s)
ORDER BY array_position(%(executions)s, w.execution_id), w.position
"""


def waves(connection: Connection, executions: Sequence[str]) -> Records:
    """Each wave of these executions: documents planned, moved and merged, and those set aside by reason."""
    return _records(connection, _WAVES, {"executions": list(executions)})


_ARCHIVED = """
SELECT t.key AS "table", sum(CASE t.way WHEN 'archived' THEN t.value::bigint ELSE -t.value::bigint END)::bigint AS rows
FROM uuid_pipeline.batches b CROSS JOIN LATERAL (
    SELECT 'archived' AS way, key, value FROM jsonb_each_text(b.moved->'merged'->'archived')
    UNION ALL SELECT 'restored', key, value FROM jsonb_each_text(b.moved->'restored')) t
GROUP BY t.key HAVING sum(CASE t.way WHEN 'archived' THEN t.value::bigint ELSE -t.value::bigint END) > 0 ORDER BY 1
"""
_REPOINTED = """
SELECT table_name AS "table", count(*) AS rows FROM uuid_pipeline.repointed WHERE foreign_key IS NULL
GROUP BY table_name ORDER BY table_name
"""
_EMPTIED = """
SELECT table_name AS "table", count(*) AS rows FROM uuid_pipeline.repointed WHERE foreign_key IS NOT NULL
GROUP BY table_name ORDER BY table_name
"""


def merged(connection: Connection) -> dict[str, dict[str, int]]:
    """By table: rows archived by merges and not restored, turned to a survivor, emptied of what is archived."""
    return {
        name: {row["table"]: int(row["rows"]) for row in _records(connection, statement)}
        for name, statement in (("archived", _ARCHIVED), ("repointed", _REPOINTED), ("emptied", _EMPTIED))
    }


_ARCHIVES = """
SELECT c.relname AS archive, (SELECT min(w.execution_id) FROM uuid_pipeline.waves w
                              JOIN uuid_pipeline.executions e USING (execution_id)
                              WHERE substring(c.relname FROM '_([0-9]+)$')::int IN (w.assessment_no, e.assessment_no))
       AS execution_id, pg_total_relation_size(c.oid) AS bytes
FROM pg_class c WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^archive_'
ORDER BY 1
"""


def archives(connection: Connection) -> Records:
    """Each archive table with the rows that it holds now."""
    found = _records(connection, _ARCHIVES)
    for one in found:
        counted = sql.compose("SELECT count(*) FROM {archive}", archive=sql.table(ledger.SCHEMA, one["archive"]))
        one["rows"] = int(sql.scalar(connection, counted))
    return found


# A sequence that was never used has no last value.
_USES = """
SELECT substr(u.sequencename, length(%(uses)s) + 1) AS entity, coalesce(u.last_value, 0) AS uses,
       to_timestamp(l.last_value) AS last_used
FROM pg_sequences u LEFT JOIN pg_sequences l ON l.schemaname = u.schemaname
     AND l.sequencename = %(last)s || substr(u.sequencename, length(%(uses)s) + 1)
WHERE u.schemaname = 'uuid_pipeline' AND starts_with(u.sequencename, %(uses)s) ORDER BY 1
"""


def alias_uses(connection: Connection) -> Records:
    """How often a stale id was translated, by entity, and when last; nothing once the aliases are removed."""
    return _records(connection, _USES, {"uses": resolving.USES, "last": resolving.LAST_USE})


def altered(connection: Connection) -> Records:
    """What of the application's schema is not yet as it was."""
    statement = "SELECT kind, object, altered_at FROM uuid_pipeline.altered ORDER BY kind, object"
    return _records(connection, statement)


def waits(connection: Connection) -> Records:
    """Waits that have not ended: of a wave that waits now, or of a process that died while it waited."""
    statement = "SELECT wave, cause, reason, began_at FROM uuid_pipeline.waits WHERE ended_at IS NULL ORDER BY wait_no"
    return _records(connection, statement)


def moved_since(connection: Connection, assessment: int) -> bool:
    """Whether an execution was approved, or rows were moved or went back, after this plan was made."""
    return bool(
        sql.scalar(
            connection,
            """SELECT EXISTS (SELECT FROM uuid_pipeline.executions e WHERE e.assessment_no = p.assessment_no)
                   OR EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.committed_at > p.created_at)
               FROM uuid_pipeline.plans p WHERE p.assessment_no = %(no)s""",
            {"no": assessment},
        )
    )
