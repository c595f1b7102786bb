"""The ledger: our schema in the store, its parts typed by entity, and what it says of plans and executions."""

import getpass
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.ledger_rights import is_owner, keep_ours, require_room, require_unpublished, revoke_unasked
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import RefusedError

SCHEMA = "uuid_pipeline"
VERSION = 9

# The legal moves of an execution. A status not named as a key is final.
#   approved            a plan was approved; nothing has moved
#   running             a wave has begun
#   completed           every planned id accounted for, every gate green
#   cancelled           stopped by a person between two batches; what it moved can still be rolled back
#   superseded          stale, a newer plan was approved instead; what it moved can still be rolled back
#   rolling_back        a rollback has begun and must finish
#   partly_rolled_back  some waves are back under their old ids
#   rolled_back         all of them are
#   finalized           the aliases are gone, and with them the way back
TRANSITIONS: dict[str, frozenset[str]] = {
    "approved": frozenset({"running", "superseded", "cancelled", "rolling_back"}),
    "running": frozenset({"completed", "superseded", "cancelled", "rolling_back"}),
    "completed": frozenset({"rolling_back", "finalized"}),
    "cancelled": frozenset({"rolling_back", "finalized"}),
    "superseded": frozenset({"rolling_back", "finalized"}),
    "rolling_back": frozenset({"rolled_back", "partly_rolled_back"}),
    "rolled_back": frozenset({"finalized"}),
    "partly_rolled_back": frozenset({"rolling_back", "finalized"}),
}


@dataclass(frozen=True)
class Execution:
    execution_id: str
    assessment_no: int
    plan_id: str
    status: str
    approved_by: str
    approved_at: datetime
    expires_at: datetime
    expired: bool


@dataclass(frozen=True)
class Wave:
    execution_id: str
    position: int
    wave: str
    kind: str
    first_ordinal: int
    last_ordinal: int
    documents: int
    status: str
    assessment_no: int

    def is_called(self, name: str) -> bool:
        """Whether a person may mean this wave by the name: the whole of it, its end (`sweep-1`), or its kind."""
        return name in (self.wave, self.kind) or (self.kind in name and self.wave.endswith(f"-{name}"))


@dataclass(frozen=True)
class Assessment:
    assessment_no: int
    spec_digest: str
    catalog_digest: str
    profile: dict[str, Any]


def exists(connection: Connection) -> bool:
    """Whether this store has a ledger."""
    return is_table(connection, sql.table(SCHEMA, "ledger"))


def is_table(connection: Connection, name: sql.Composable) -> bool:
    """Whether a table or view of this name is there."""
    return bool(sql.scalar(connection, "SELECT to_regclass(%(name)s) IS NOT NULL", {"name": sql.shown(name)}))


def create(connection: Connection, store: Store) -> None:
    """Make what is missing of the ledger, as its owner.

    Raises RefusedError when another version made it, when its schema is somebody else's, or when subscribers would get
    its tables who know nothing of them.
    """
    # Two first runs at once would collide on CREATE SCHEMA; this lock ends with the transaction.
    sql.execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('uuid_pipeline.ledger', 0))")
    ddl = resources.files("uuid_pipeline.engine").joinpath("ledger.sql").read_text()
    if not exists(connection):
        require_room(connection)
        require_unpublished(connection, store)
        connection.exec_driver_sql(ddl)
        revoke_unasked(connection, None)
    require_version(connection)
    if is_owner(connection):
        for entity in store.entities:
            _create_typed(connection, store, entity)


def require_version(connection: Connection) -> None:
    """Raise RefusedError when another version of this program made the ledger."""
    version = sql.scalar(connection, "SELECT version FROM uuid_pipeline.ledger")
    if version != VERSION:
        newer = version is not None and version > VERSION
        raise RefusedError(
            f"The ledger in this store has version {version}; this program writes {VERSION}. "
            + ("Upgrade it." if newer else "Finish with the version that made it, drop the ledger, and plan anew.")
        )


def _create_typed(connection: Connection, store: Store, entity: Entity) -> None:
    """The id map and inventory of one entity, partitioned by assessment so that an old one is dropped at once."""
    id_map, inventory = map_table(entity), inventory_table(entity)
    new = [table for table in (id_map, inventory) if not is_table(connection, table)]
    key_type = _typed(entity)
    parent_type = _typed(store.entity(entity.parent)) if entity.parent else sql.Text("text")
    sql.execute(
        connection,
        sql.compose(
            """CREATE TABLE IF NOT EXISTS {table} (
                   assessment_no integer NOT NULL, ordinal bigint NOT NULL, wave text NOT NULL, role text NOT NULL,
                   natural_key text NOT NULL, old_id {type} NOT NULL, new_id {type} NOT NULL,
                   arrived boolean NOT NULL DEFAULT false, early boolean NOT NULL DEFAULT false
               ) PARTITION BY LIST (assessment_no)""",
            table=id_map,
            type=key_type,
        ),
    )
    sql.execute(
        connection,
        sql.compose(
            """CREATE TABLE IF NOT EXISTS {table} (
                   assessment_no integer NOT NULL, position bigint NOT NULL, key {type} NOT NULL,
                   parent_key {parent_type}, natural_key text, target_id {type}, id_class text NOT NULL,
                   quarantined text, owner text, created_at timestamptz, status text, size bigint, title text,
                   children bigint
               ) PARTITION BY LIST (assessment_no)""",
            table=inventory,
            type=key_type,
            parent_type=parent_type,
        ),
    )
    for table in new:
        keep_ours(connection, table)
    for table in (id_map, inventory):
        actual = sql.scalar(
            connection,
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %(table)s::regclass "
            "AND attname IN ('old_id', 'key') LIMIT 1",
            {"table": table.as_string(None)},
        )
        if actual != entity.key_type:
            raise RefusedError(
                f"The ledger holds {entity.name} ids as {actual}, but {entity.table.name}.{entity.key} is "
                f"{entity.key_type}. Name the entity otherwise in the spec."
            )


def _typed(entity: Entity) -> sql.Composable:
    return sql.Text("uuid" if entity.key_type == "uuid" else "text")


def map_table(entity: Entity) -> sql.Composable:
    return sql.table(SCHEMA, f"id_map_{entity.name}")


def inventory_table(entity: Entity) -> sql.Composable:
    return sql.table(SCHEMA, f"inventory_{entity.name}")


def require_unapproved(connection: Connection, assessment: int) -> None:
    """Raise RefusedError when an execution hangs on this assessment: its map is what a rollback needs."""
    # Keeps an approval from coming between this look and the write: it writes this row, and in REPEATABLE READ one
    # that committed since the snapshot ends the statement. The lease's row is the writer's, who waits for nobody.
    found = "SELECT FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s FOR UPDATE"
    again = "To look again, begin with the first stage: uuid-pipeline plan (in the UI: the job plan)."
    try:
        sql.execute(connection, found, {"no": assessment})
    except DBAPIError as error:
        if sql.sqlstate(error) != "40001":
            raise
        raise RefusedError(f"Assessment {assessment} was approved while this stage began. {again}") from error
    held = sql.scalar(
        connection,
        "SELECT execution_id FROM uuid_pipeline.executions WHERE assessment_no = %(no)s",
        {"no": assessment},
    )
    if held is not None:
        raise RefusedError(
            f"Assessment {assessment} was approved as execution {held}, whose id map must stay as it is. {again}"
        )


def keep_unchanged(connection: Connection, plan_id: str) -> None:
    """Keep the stages of a plan's assessments from writing its map and plan anew until this transaction ends."""
    sql.execute(
        connection,
        """UPDATE uuid_pipeline.assessments SET kind = kind
           WHERE assessment_no IN (SELECT assessment_no FROM uuid_pipeline.plans WHERE plan_id = %(id)s)""",
        {"id": plan_id},
    )


def begin_assessment(
    connection: Connection, run_id: str, spec_digest: str, catalog_digest: str, profile: dict[str, Any]
) -> int:
    """A new assessment; parts of earlier ones that no execution holds on to are dropped."""
    number = sql.scalar(
        connection,
        """INSERT INTO uuid_pipeline.assessments (run_id, spec_digest, catalog_digest, profile)
           VALUES (%(run_id)s, %(spec)s, %(catalog)s, %(profile)s::jsonb) RETURNING assessment_no""",
        {"run_id": run_id, "spec": spec_digest, "catalog": catalog_digest, "profile": json.dumps(profile)},
    )
    _drop_old_parts(connection)
    return int(number)


def _drop_old_parts(connection: Connection) -> None:
    """Keep the newest plan's and every execution's id maps; keep the newest three inventories (runs may overlap).

    The inventory of an open execution stays too: its sweep asks what the plan had seen.
    """
    old = sql.rows(
        connection,
        r"""SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            CROSS JOIN LATERAL (SELECT substring(c.relname FROM '_(\d+)$')::integer AS no,
                                       c.relname LIKE 'id\_map\_%%' AS is_map) p
            WHERE n.nspname = 'uuid_pipeline' AND c.relkind = 'r' AND c.relname ~ '^(id_map|inventory)_.*_\d+$'
              AND p.no < (SELECT max(assessment_no) - 3 FROM uuid_pipeline.assessments)
              AND NOT (p.is_map AND (p.no IN (SELECT assessment_no FROM uuid_pipeline.executions)
                                     OR p.no IN (SELECT assessment_no FROM uuid_pipeline.waves
                                                 WHERE assessment_no IS NOT NULL)
                                     OR p.no = (SELECT max(assessment_no) FROM uuid_pipeline.plans)))
              AND p.no NOT IN (SELECT unnest(ARRAY[e.assessment_no, w.assessment_no]) FROM uuid_pipeline.executions e
                               JOIN uuid_pipeline.waves w USING (execution_id)
                               WHERE e.status IN ('approved', 'running') AND w.assessment_no IS NOT NULL
                               UNION SELECT assessment_no FROM uuid_pipeline.executions
                               WHERE status IN ('approved', 'running'))""",
    )
    for row in old:
        sql.execute(connection, sql.compose("DROP TABLE {part}", part=sql.table(SCHEMA, row.relname)))


def newest_assessment(connection: Connection) -> Assessment:
    """Raises RefusedError when there is none."""
    return assessment_of_run(connection, "")


def assessment_of_run(connection: Connection, run_id: str) -> Assessment:
    """The assessment that a run's stages attach to: the one that it began itself, else the newest.

    Two runs may plan side by side; neither shall take up what the other has half done. Raises RefusedError when there
    is none.
    """
    found = sql.rows(
        connection,
        """SELECT assessment_no, spec_digest, catalog_digest, profile FROM uuid_pipeline.assessments
           WHERE kind = 'plan' ORDER BY run_id = %(run)s DESC, assessment_no DESC LIMIT 1""",
        {"run": run_id},
    )
    if not found:
        raise RefusedError("Nothing has been assessed yet. Run: uuid-pipeline plan")
    return Assessment(*found[0])


def earlier_of(connection: Connection, part: str) -> Any:
    """A part of the newest assessment's profile, as it was written; None when there is none."""
    return sql.scalar(
        connection,
        """SELECT profile -> %(part)s FROM uuid_pipeline.assessments WHERE kind = 'plan'
           ORDER BY assessment_no DESC LIMIT 1""",
        {"part": part},
    )


_EXECUTION = """
SELECT execution_id, assessment_no, plan_id, status, approved_by, approved_at, expires_at,
       status = 'approved' AND expires_at < now() AS expired
FROM uuid_pipeline.executions
"""


def execution(connection: Connection, execution_id: str) -> Execution:
    """One execution. Raises RefusedError when the ledger has none of that id."""
    found = sql.rows(connection, _EXECUTION + " WHERE execution_id = %(id)s", {"id": execution_id})
    if not found:
        raise RefusedError(f"The ledger knows no execution {execution_id}. See: uuid-pipeline status")
    return Execution(*found[0])


def first_snapshot(connection: Connection, execution_id: str) -> str | None:
    """The snapshot that the state before was taken in, as PostgreSQL writes it; None before the first wave."""
    found: str | None = sql.scalar(
        connection,
        "SELECT snapshot_before FROM uuid_pipeline.executions WHERE execution_id = %(id)s",
        {"id": execution_id},
    )
    return found


def inventory_snapshot(connection: Connection, assessment: int) -> str | None:
    """The snapshot that an assessment's inventory was taken in; None where an earlier version took it."""
    found: str | None = sql.scalar(
        connection,
        "SELECT profile->>'snapshot' FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s",
        {"no": assessment},
    )
    return found


def executions(connection: Connection) -> list[Execution]:
    """All executions, newest first."""
    return [
        Execution(*row) for row in sql.rows(connection, _EXECUTION + " ORDER BY approved_at DESC, execution_id DESC")
    ]


def unfinished(connection: Connection) -> Execution | None:
    """The one execution that is approved or running, if any."""
    open_ones = " WHERE status IN ('approved', 'running')"
    found = sql.rows(connection, _EXECUTION + open_ones)
    return Execution(*found[0]) if found else None


def rolling_back(connection: Connection) -> list[Execution]:
    """Executions whose rollback began and has not ended."""
    return [Execution(*row) for row in sql.rows(connection, _EXECUTION + " WHERE status = 'rolling_back'")]


WAVE = """
SELECT w.execution_id, w.position, w.wave, w.kind, w.first_ordinal, w.last_ordinal, w.documents, w.status,
       coalesce(w.assessment_no, e.assessment_no) AS assessment_no
FROM uuid_pipeline.waves w JOIN uuid_pipeline.executions e USING (execution_id)
"""


def waves(connection: Connection, execution_id: str) -> list[Wave]:
    """The waves of an execution, in their order."""
    return [
        Wave(*row)
        for row in sql.rows(
            connection,
            WAVE + " WHERE w.execution_id = %(id)s ORDER BY w.position",
            {"id": execution_id},
        )
    ]


def wave(connection: Connection, name: str) -> Wave:
    """One wave by its full name. Raises RefusedError when the ledger has none."""
    owner = sql.scalar(connection, "SELECT execution_id FROM uuid_pipeline.waves WHERE wave = %(wave)s", {"wave": name})
    if owner is None:
        raise RefusedError(
            f"The ledger knows no wave {name}: no execution with it was approved. Run: uuid-pipeline plan"
        )
    return next(wave for wave in waves(connection, owner) if wave.wave == name)


def standing(status: str, waves: Sequence[Wave]) -> str:
    """An execution's status; of a finalized one what it was before, by its waves: finalizing moves no row."""
    if status != "finalized":
        return status
    if any(wave.status == "planned" for wave in waves):
        return "cancelled"
    if not any(wave.status == "rolled_back" for wave in waves):
        return "completed"
    left = any(wave.status == "moved" and wave.documents for wave in waves)
    return "partly_rolled_back" if left else "rolled_back"


def change_status(connection: Connection, execution_id: str, status: str) -> None:
    """Move an execution along TRANSITIONS. Raises RefusedError for any other move."""
    sources = [source for source, targets in TRANSITIONS.items() if status in targets]
    changed = sql.execute(
        connection,
        """UPDATE uuid_pipeline.executions SET status = %(status)s,
               finished_at = CASE WHEN %(final)s THEN clock_timestamp() ELSE finished_at END
           WHERE execution_id = %(id)s AND status = ANY(%(sources)s)""",
        {
            "id": execution_id,
            "status": status,
            "sources": sources,
            "final": status not in ("running", "rolling_back"),
        },
    ).rowcount
    if changed != 1:
        now = execution(connection, execution_id).status
        raise RefusedError(f"Execution {execution_id} is {now}; it cannot become {status}.")
    audit(connection, status, {"execution": execution_id})


def assessments_in_force(connection: Connection) -> list[int]:
    """Whose id maps still resolve old ids: those of every execution that is not finalized, with the sweeps that moved.

    0 is among them while a guard stands that rewrote ids: they resolve through a map of its own.
    """
    return [
        int(row.no)
        for row in sql.rows(
            connection,
            """SELECT DISTINCT unnest(ARRAY[e.assessment_no, CASE WHEN w.documents > 0 THEN w.assessment_no END]) AS no
               FROM uuid_pipeline.executions e
               JOIN uuid_pipeline.waves w USING (execution_id) WHERE e.status <> 'finalized'
               UNION SELECT 0 FROM uuid_pipeline.guards WHERE removed_at IS NULL AND rewrites ORDER BY 1""",
        )
        if row.no is not None
    ]


def assessments_since(connection: Connection, execution_id: str) -> list[int]:
    """Whose maps have moved rows since this execution was approved: its own, and those of later ones."""
    found = sql.rows(
        connection,
        """SELECT DISTINCT coalesce(w.assessment_no, e.assessment_no) AS no
           FROM uuid_pipeline.executions o
           JOIN uuid_pipeline.executions e ON (e.approved_at, e.execution_id) >= (o.approved_at, o.execution_id)
           JOIN uuid_pipeline.waves w ON w.execution_id = e.execution_id
           WHERE o.execution_id = %(id)s AND (e.execution_id = o.execution_id OR e.status <> 'rolled_back')
           ORDER BY 1""",
        {"id": execution_id},
    )
    return [int(row.no) for row in found]


def set_wave_status(connection: Connection, wave_name: str, status: str) -> None:
    sql.execute(
        connection,
        "UPDATE uuid_pipeline.waves SET status = %(status)s WHERE wave = %(wave)s",
        {"status": status, "wave": wave_name},
    )


# Of the deeds in the audit the one that others ask for.
ERASED_A_USER = "erased a user"


def erased_since(connection: Connection, moment: datetime, tables: str) -> str | None:
    """The day on which a user was last erased since a moment, with rows of ``tables`` (a regular expression over names
    of the ledger's); None when nobody was."""
    day = sql.scalar(
        connection,
        """SELECT max(at)::date::text FROM uuid_pipeline.audit
           WHERE action = %(deed)s AND at > %(moment)s
             AND EXISTS (SELECT FROM jsonb_object_keys(detail->'deleted') k WHERE k ~ %(tables)s)""",
        {"deed": ERASED_A_USER, "moment": moment, "tables": tables},
    )
    return None if day is None else str(day)


def audit(connection: Connection, action: str, detail: dict[str, Any]) -> None:
    """Who did what, when; written in the transaction of the deed."""
    sql.execute(
        connection,
        "INSERT INTO uuid_pipeline.audit (actor, action, detail) VALUES (%(actor)s, %(action)s, %(detail)s::jsonb)",
        {"actor": actor(), "action": action, "detail": json.dumps(detail)},
    )


def actor() -> str:
    """The person behind this process: OS user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
