"""Migration failure rate: of the documents that the newest execution's waves took on, those that did not move."""

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.health.figure import Figure, nothing, share
from uuid_pipeline.engine.health.look import Look

NAME = "migration_failure"

# A wave with a red gate has failed whole. What the application deleted is no failure.
_FAILED = """
WITH newest AS (
    SELECT execution_id FROM uuid_pipeline.executions e
    WHERE EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.execution_id = e.execution_id)
    ORDER BY approved_at DESC, execution_id DESC LIMIT 1),
begun AS (
    SELECT w.wave, w.documents, EXISTS (
        SELECT FROM (SELECT DISTINCT ON (g.gate) g.passed FROM uuid_pipeline.gates g
                     WHERE g.execution_id = w.execution_id AND g.wave = w.wave ORDER BY g.gate, g.gate_no DESC) g
        WHERE NOT g.passed) AS red,
        (SELECT count(*) FROM uuid_pipeline.unmoved u
         WHERE u.wave = w.wave AND u.entity = ANY(%(roots)s) AND u.reason <> 'gone') AS unmoved
    FROM uuid_pipeline.waves w JOIN newest USING (execution_id)
    WHERE EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.wave = w.wave) OR w.status = 'moved')
SELECT (SELECT execution_id FROM newest) AS execution, coalesce(sum(documents), 0)::bigint AS documents,
       coalesce(sum(CASE WHEN red THEN documents ELSE least(unmoved, documents) END), 0)::bigint AS failed
FROM begun
"""


def measure(look: Look) -> list[Figure]:
    """From the journal, the rows set aside and the gates in the ledger."""
    roots = [root.name for root in look.store.roots]
    row = sql.rows(look.connection, _FAILED, {"roots": roots})[0]
    if row.execution is None:
        return [nothing(NAME, "share", "nothing was migrated yet")]
    what = f"documents of execution {row.execution} did not move, or their wave has a red gate"
    return [share(NAME, int(row.failed), int(row.documents), what)]
