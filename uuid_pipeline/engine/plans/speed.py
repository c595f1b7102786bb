"""How fast ids are changed here: measured by a rehearsal or an earlier execution, else assumed."""

from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

# ENGINE.md, section 1: 2.2 M rows in 20 to 37 s there; said to be an assumption wherever shown.
ASSUMED_IDS_A_SECOND = 20_000


@dataclass(frozen=True)
class Speed:
    """Ids changed a second, with all the rows that refer to them. ``basis`` says in words where it is from.

    ``whole``: measured with everything that a wave does, such as building indexes again.
    """

    ids_a_second: float
    basis: str
    whole: bool


_REHEARSAL = """
SELECT rehearsal_no, ids, seconds, rehearsed_at, rehearsed_on FROM uuid_pipeline.rehearsals
WHERE passed AND ids > 0 AND seconds > 0 ORDER BY rehearsal_no DESC LIMIT 1
"""

_JOURNAL = """
SELECT b.execution_id, sum(b.milliseconds) / 1000 AS seconds,
       sum((SELECT sum(n::bigint) FROM jsonb_each_text(b.moved->'entities') AS e(entity, n)))::bigint AS ids
FROM uuid_pipeline.batches b WHERE b.direction = 'forward'
GROUP BY b.execution_id HAVING sum(b.milliseconds) > 0 ORDER BY max(b.committed_at) DESC LIMIT 1
"""


def measured(connection: Connection) -> Speed:
    """The newest speed measured here: a rehearsal's, else that of an execution's journal, else an assumption."""
    for row in sql.rows(connection, _REHEARSAL):
        said = f"rehearsal {row.rehearsal_no} of {row.rehearsed_at:%Y-%m-%d}: {row.ids} ids in {row.seconds:.1f} s on "
        return Speed(row.ids / row.seconds, said + row.rehearsed_on, whole=True)
    for row in sql.rows(connection, _JOURNAL):
        if row.ids:
            said = f"execution {row.execution_id} here: {row.ids} ids in batches of {row.seconds:.1f} s together"
            return Speed(row.ids / float(row.seconds), said, whole=False)
    return Speed(ASSUMED_IDS_A_SECOND, "assumed: a speed measured elsewhere; a rehearsal measures it here", whole=False)


def ids_of(connection: Connection, execution: str) -> int:
    """How many ids an execution's journal changed."""
    found = sql.scalar(
        connection,
        """SELECT sum(n::bigint) FROM uuid_pipeline.batches b
           CROSS JOIN LATERAL jsonb_each_text(b.moved->'entities') AS e(entity, n)
           WHERE b.direction = 'forward' AND b.execution_id = %(execution)s""",
        {"execution": execution},
    )
    return int(found or 0)
