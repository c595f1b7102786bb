"""The evidence of an execution: what was planned, approved, moved and proven, in one file that shows any change."""

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.connection import store_identity
from uuid_pipeline.engine.evidence import certificate
from uuid_pipeline.engine.retrievals import retrieval
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports.bundle_file import MANIFEST, Checked, bundle, canonical, check

# Names of the files whose content the ledger must still give, always or until the next batch.
LASTING = ("plan.json", "spec.json", "gates.json", "journal.json", "fingerprints.json")
UNTIL_NEXT_BATCH = ("maps.json", "set_aside.json")
_LIBRARIES = ("uuid-pipeline", "dagster", "numpy", "psycopg", "SQLAlchemy")


def write_bundle(connection: Connection, store: Store, execution: ledger.Execution, place: Path) -> Path:
    """Write the bundle to ``place`` if that is a name ending in .zip, else as ``evidence-EXECUTION.zip`` below it.

    Directories are made, the ledger's audit keeps the digest; a determinism certificate is made where the ledger has
    none since the last batch. Raises UsageError when the file cannot be written.
    """
    files = {name: canonical(content) for name, content in contents(connection, store, execution).items()}
    data, digest = bundle(execution.execution_id, files)
    ledger.audit(connection, "bundled", {"execution": execution.execution_id, "digest": digest})
    path = bundle_path(execution.execution_id, place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
            temporary.write(data)
        Path(temporary.name).chmod(0o644)
        return Path(temporary.name).replace(path)
    except OSError as error:
        raise UsageError(f"The bundle cannot be written to {path}: {error.strerror}. Name another place.") from error


def bundle_path(execution_id: str, place: Path) -> Path:
    """The file that a bundle is written to, for a place that a person named."""
    return place if place.suffix == ".zip" else place / f"evidence-{execution_id}.zip"


def contents(connection: Connection, store: Store, execution: ledger.Execution) -> dict[str, Any]:
    """Every file's content by name, the manifest left out."""
    made = certificate.newest(connection, execution.execution_id)
    if made is None:
        made = certificate.make(connection, store, execution)
        certificate.record(connection, made)
    return {
        **of_ledger(connection, execution.execution_id, _last(connection)),
        "execution.json": _execution(execution),
        "comparison.json": _rows(connection, _COMPARISON, {"id": execution.execution_id}),
        "certificate.json": made,
        "retrieval.json": retrieval.summary(connection, execution.execution_id),
        "versions.json": _versions(connection),
    }


def differences(connection: Connection, checked: Checked) -> list[str]:
    """What the ledger of this store says otherwise than a bundle, in sentences."""
    if checked.read("versions.json")["store"] != store_identity(connection):
        return ["this is another store than the one that the bundle is of"]
    execution_id = checked.read("execution.json")["execution_id"]
    if not ledger.exists(connection) or execution_id not in {e.execution_id for e in ledger.executions(connection)}:
        return [f"the store's ledger knows no execution {execution_id}"]
    last = {name: int(value) for name, value in checked.read("journal.json")["last"].items()}
    now = of_ledger(connection, execution_id, last)
    later = sql.scalar(
        connection,
        "SELECT EXISTS (SELECT FROM uuid_pipeline.batches WHERE execution_id = %(id)s AND batch_no > %(batch)s)",
        {"id": execution_id, **last},
    )
    # A rollback, or a wave that came after, may take rows into the map or out of it.
    names = LASTING if later else LASTING + UNTIL_NEXT_BATCH
    found = [f"{name} is not what the ledger says" for name in names if canonical(now[name]) != checked.files[name]]
    if not _written(connection, execution_id, checked.digest):
        found.append("the ledger's audit has no bundle of this digest")
    return found


def _written(connection: Connection, execution_id: str, digest: str) -> bool:
    statement = """SELECT EXISTS (SELECT FROM uuid_pipeline.audit WHERE action = 'bundled'
                   AND detail @> jsonb_build_object('execution', %(id)s::text, 'digest', %(digest)s::text))"""
    return bool(sql.scalar(connection, statement, {"id": execution_id, "digest": digest}))


def of_ledger(connection: Connection, execution_id: str, last: Mapping[str, int]) -> dict[str, Any]:
    """The files that come from the ledger alone, of the time when its last rows were ``last``."""
    execution = ledger.execution(connection, execution_id)
    values = {"id": execution_id, "no": execution.assessment_no, "with_keys": list(_WITH_KEYS), **last}
    plan = _rows(connection, _PLAN, values)[0]
    return {
        "plan.json": plan,
        "spec.json": sql.scalar(connection, _SPEC, values),
        "gates.json": _rows(connection, _GATES, values),
        "journal.json": {
            "last": dict(last),
            "waves": _rows(connection, _JOURNAL, values),
            "audit": _rows(connection, _AUDIT, values),
        },
        "set_aside.json": _rows(connection, _ASIDE, values),
        "fingerprints.json": _rows(connection, _FINGERPRINTS, values),
        "maps.json": _maps(connection, execution, plan["content"]["maps"]),
    }


_LAST = """
SELECT coalesce((SELECT max(gate_no) FROM uuid_pipeline.gates), 0) AS gate,
       coalesce((SELECT max(batch_no) FROM uuid_pipeline.batches), 0) AS batch,
       coalesce((SELECT max(audit_no) FROM uuid_pipeline.audit), 0) AS audit
"""
_PLAN = "SELECT plan_id, assessment_no, content, created_at::text FROM uuid_pipeline.plans WHERE assessment_no = %(no)s"
_SPEC = "SELECT profile->'spec' FROM uuid_pipeline.assessments WHERE assessment_no = %(no)s"
# Findings that show whose rows are one by their natural keys, which stay in the store.
_WITH_KEYS = ("each_cluster_decided", "never_across_users", "conflicts_resolvable", "one_target_per_natural_key")
_GATES = """
SELECT stage, gate, wave, passed, CASE WHEN gate = ANY(%(with_keys)s) THEN 'left out: it may name natural keys'
       ELSE finding END AS finding, remedy, figures, run_id, evaluated_at::text FROM uuid_pipeline.gates
WHERE execution_id = %(id)s AND gate_no <= %(gate)s ORDER BY gate_no
"""
# Of each wave, each way: sums by table as text, since a digest is longer than JSON's numbers are in most readers.
_JOURNAL = """
WITH mine AS (SELECT * FROM uuid_pipeline.batches WHERE execution_id = %(id)s AND batch_no <= %(batch)s),
parts AS (
    SELECT wave, direction, part.key AS part, counted.key AS name, sum(counted.value::numeric)::text AS n
    FROM mine CROSS JOIN LATERAL (VALUES ('entities', moved->'entities'), ('tables', moved->'tables'),
        ('touched', moved->'touched'), ('archived', moved->'merged'->'archived'), ('restored', moved->'restored'),
        ('deleted', moved->'deleted')) part (key, value)
    CROSS JOIN LATERAL jsonb_each_text(coalesce(part.value, '{}')) counted GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT wave, direction, 'digests', f.key, sum((f.value->>1)::numeric)::text
    FROM mine CROSS JOIN LATERAL jsonb_each(fingerprints) f GROUP BY 1, 2, 3, 4),
named AS (SELECT wave, direction, part, jsonb_object_agg(name, n) AS counts FROM parts GROUP BY 1, 2, 3)
SELECT m.wave, m.direction, count(*) AS batches, min(m.first_ordinal) AS first_ordinal,
       max(m.last_ordinal) AS last_ordinal, min(m.committed_at)::text AS first_committed,
       max(m.committed_at)::text AS last_committed, min(m.lease_epoch) AS first_epoch,
       max(m.lease_epoch) AS last_epoch,
       (SELECT jsonb_object_agg(part, counts) FROM named n
        WHERE (n.wave, n.direction) = (m.wave, m.direction)) AS counts
FROM mine m GROUP BY m.wave, m.direction ORDER BY min(m.batch_no)
"""
# As the last validation found it; comparing anew would read every moved table.
_COMPARISON = """
SELECT run_id, compared, made_at::text FROM uuid_pipeline.comparisons WHERE execution_id = %(id)s
ORDER BY made_at DESC LIMIT 1
"""
_ASIDE = """
SELECT wave, entity, reason, count(*) AS rows FROM uuid_pipeline.unmoved WHERE execution_id = %(id)s
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
_AUDIT = """
SELECT audit_no, at::text, actor, action, detail FROM uuid_pipeline.audit
WHERE audit_no <= %(audit)s AND (detail->>'execution' = %(id)s OR starts_with(detail->>'wave', %(id)s))
ORDER BY audit_no
"""
_FINGERPRINTS = """
SELECT table_name, rows, row_digest::text, timestamp_digest::text, taken_at::text FROM uuid_pipeline.fingerprints
WHERE execution_id = %(id)s ORDER BY table_name
"""


def _rows(connection: Connection, statement: Any, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in sql.rows(connection, statement, values)]


def _last(connection: Connection) -> dict[str, int]:
    return {name: int(value) for name, value in _rows(connection, _LAST, {})[0].items()}


def _execution(execution: ledger.Execution) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id,
        "plan_id": execution.plan_id,
        "status": execution.status,
        "approved_by": execution.approved_by,
        "approved_at": execution.approved_at.isoformat(),
        "expires_at": execution.expires_at.isoformat(),
    }


def _maps(connection: Connection, execution: ledger.Execution, approved: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each id map of the execution, its sweeps' too: rows and SHA-256 over ordinal, wave, role, old id and new id."""
    numbers = {execution.assessment_no, *[w.assessment_no for w in ledger.waves(connection, execution.execution_id)]}
    found = []
    for name, approved_digest in sorted(approved.items()):
        for number in sorted(numbers):
            part = f"id_map_{name}_{number}"
            there = "SELECT to_regclass(%(part)s) IS NOT NULL"
            if sql.scalar(connection, there, {"part": f"{ledger.SCHEMA}.{part}"}):
                digest, rows = _map_digest(connection, part)
                planned = approved_digest if number == execution.assessment_no else None
                found.append(
                    {"entity": name, "assessment_no": number, "rows": rows, "sha256": digest, "as_approved": planned}
                )
    return found


def _map_digest(connection: Connection, part: str) -> tuple[str, int]:
    digest, rows = hashlib.sha256(), 0
    statement = sql.compose(
        """SELECT concat_ws(',', ordinal, wave, role, old_id, new_id) FROM {part}
           ORDER BY ordinal, old_id::text COLLATE "C" """,
        part=sql.table(ledger.SCHEMA, part),
    )
    for chunk in sql.stream(connection, statement, {}):
        rows += len(chunk)
        digest.update("".join(f"{row[0]}\n" for row in chunk).encode())
    return digest.hexdigest(), rows


def _versions(connection: Connection) -> dict[str, Any]:
    extensions = _rows(connection, "SELECT extname, extversion FROM pg_extension ORDER BY 1", {})
    return {
        "store": store_identity(connection),
        "ledger": ledger.VERSION,
        "postgresql": str(sql.scalar(connection, "SELECT version()")),
        "extensions": {row["extname"]: row["extversion"] for row in extensions},
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def digest_of(path: Path) -> str:
    """The digest over all files of a bundle that was just written."""
    return str(json.loads(check(path).files[MANIFEST])["digest"])
