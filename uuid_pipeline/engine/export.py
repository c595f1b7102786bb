"""The id map for systems outside the store: a file an entity, CSV or Parquet, all of them written or none."""

import csv
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import fingerprint, ledger, planning, sql
from uuid_pipeline.errors import PipelineError, RefusedError, UsageError

# Natural keys can be personal (who holds which file): they leave the store only when asked for.
COLUMNS = ("entity", "old_id", "new_id", "role", "wave", "moved")
WITH_NATURAL_KEYS = ("entity", "old_id", "new_id", "role", "natural_key", "wave", "moved")
ROWS_A_GROUP = 50_000

Records = list[Sequence[Any]]


@dataclass(frozen=True)
class Share:
    """The rows of one wave: a range of ordinals of one assessment's id map."""

    wave: str
    assessment_no: int
    first_ordinal: int
    last_ordinal: int


@dataclass(frozen=True)
class Subject:
    """What is exported; ``execution_id`` is None for a plan that was not approved."""

    plan_id: str
    execution_id: str | None
    entities: tuple[str, ...]
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class File:
    """A written file; ``moved`` counts the rows that the store now holds under their new id."""

    entity: str
    path: Path
    rows: int
    moved: int
    sha256: str


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One moment of the store for all files, in a transaction that cannot write."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


def of_execution(connection: Connection, execution_id: str) -> Subject:
    """The map of one execution. Raises RefusedError when the ledger knows none of that id."""
    _require_ledger(connection)
    return _subject(connection, ledger.execution(connection, execution_id))


def moved_executions(connection: Connection) -> list[str]:
    """Executions with rows under new ids, the newest first: each has a map of its own."""
    _require_ledger(connection)
    found = sql.rows(
        connection,
        """SELECT e.execution_id FROM uuid_pipeline.executions e WHERE e.status <> 'rolled_back'
             AND EXISTS (SELECT FROM uuid_pipeline.batches b WHERE b.execution_id = e.execution_id)
           ORDER BY e.approved_at DESC, e.execution_id DESC""",
    )
    return [row.execution_id for row in found]


def of_newest_moved(connection: Connection) -> Subject:
    """The map of the newest execution with rows under new ids. Raises RefusedError when there is none."""
    found = moved_executions(connection)
    if not found:
        raise RefusedError(
            "Nothing is mapped: no row of this store was moved to a new id, or all of them are back, or the maps were "
            "removed since (drop-ledger, retention). "
            "For the map as planned: uuid-pipeline export --plan. For one rolled back: --execution ID (see status)."
        )
    return _subject(connection, ledger.execution(connection, found[0]))


def of_newest_plan(connection: Connection) -> Subject:
    """The map of the newest plan, approved or not. Raises RefusedError when there is none."""
    _require_ledger(connection)
    plan = planning.newest(connection)
    if plan is None:
        raise RefusedError("There is no plan yet. Run: uuid-pipeline plan")
    for execution in ledger.executions(connection):
        if execution.assessment_no == plan.assessment_no:
            return _subject(connection, execution)
    shares = [Share(w.name, plan.assessment_no, w.first_ordinal, w.last_ordinal) for w in plan.waves]
    return Subject(plan.plan_id, None, tuple(plan.content["maps"]), tuple(shares))


def _require_ledger(connection: Connection) -> None:
    if not ledger.exists(connection):
        raise RefusedError("This store has no ledger: nothing was ever assessed. Run: uuid-pipeline plan")
    ledger.require_version(connection)


def _subject(connection: Connection, execution: ledger.Execution) -> Subject:
    plan = planning.of_assessment(connection, execution.assessment_no)
    shares = [
        Share(wave.wave, wave.assessment_no, wave.first_ordinal, wave.last_ordinal)
        for wave in ledger.waves(connection, execution.execution_id)
        # A sweep that has not looked yet has no map of its own.
        if wave.kind != "sweep" or wave.assessment_no != execution.assessment_no
    ]
    return Subject(plan.plan_id, execution.execution_id, tuple(plan.content["maps"]), tuple(shares))


def write(connection: Connection, subject: Subject, columns: Sequence[str], form: str, output: Path) -> list[File]:
    """Write ``id_map_<entity>.<form>`` for each entity, replacing earlier ones once all are on disk.

    ``connection`` is one of :func:`reading`. Raises RefusedError when the map is empty or was dropped, UsageError when
    ``output`` cannot be written.
    """
    token = uuid.uuid4().hex
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = [_write_one(connection, subject, columns, form, output, token, entity) for entity in subject.entities]
        if not any(file.rows for file in files):
            raise RefusedError(f"Nothing is mapped: plan {subject.plan_id} has no row to move. Nothing was written.")
        for file in files:
            _staged(file.path, token).replace(file.path)
        _sync(output)
    except OSError as error:
        raise UsageError(
            f"The export cannot be written to {output}: {error.strerror or error}. Give another place with --output."
        ) from error
    finally:
        for leftover in output.glob(f".*.{token}"):
            leftover.unlink()
    return files


def _staged(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.{token}")


def _sync(path: Path) -> None:
    """Have a file on disk, or a directory with its renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_one(
    connection: Connection,
    subject: Subject,
    columns: Sequence[str],
    form: str,
    output: Path,
    token: str,
    entity: str,
) -> File:
    path = output / f"id_map_{entity}.{form}"
    staged = _staged(path, token)
    counts = {"rows": 0, "moved": 0}

    def counted() -> Iterator[Records]:
        for records in _records(connection, subject, columns, entity):
            counts["rows"] += len(records)
            counts["moved"] += sum(record[-1] for record in records)
            yield records

    _FORMS[form](staged, subject, columns, counted())
    _require_all(connection, subject, entity)
    _sync(staged)
    with staged.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(entity, path, counts["rows"], counts["moved"], digest)


# A sweep keeps what waves before it have moved or kept.
_ONLY_HERE = """
(m.role <> 'keep'
 OR NOT EXISTS (SELECT FROM {map} o WHERE o.assessment_no = ANY(%(earlier)s) AND o.old_id = m.old_id)
    AND NOT EXISTS (SELECT FROM {map} o WHERE o.assessment_no = ANY(%(earlier)s) AND o.new_id = m.old_id))
"""


def _records(connection: Connection, subject: Subject, columns: Sequence[str], entity: str) -> Iterator[Records]:
    """The map's rows in the order of the migration, in bounded memory; each old id once."""
    expressions: dict[str, sql.Composable] = {
        "entity": sql.literal(entity),
        "old_id": sql.Text("m.old_id::text"),
        "new_id": sql.Text("m.new_id::text"),
        "role": sql.Text("m.role"),
        "natural_key": sql.Text("m.natural_key"),
        "wave": sql.Text("%(wave)s::text"),
        "moved": sql.compose("m.old_id <> m.new_id AND {now}", now=sql.Text(fingerprint.MOVED_ORDINALS)),
    }
    statement = sql.compose(
        """SELECT {columns} FROM {map} m
           WHERE m.assessment_no = %(no)s AND m.ordinal BETWEEN %(first)s AND %(last)s AND {only_here}
           ORDER BY m.ordinal, m.old_id""",
        columns=sql.join(", ", [expressions[column] for column in columns]),
        map=_map(entity),
        only_here=sql.Text(_ONLY_HERE).format(map=_map(entity)),
    )
    numbers = {share.assessment_no for share in subject.shares}
    for share in subject.shares:
        values = {
            "no": share.assessment_no,
            "earlier": [number for number in numbers if number < share.assessment_no],
            "first": share.first_ordinal,
            "last": share.last_ordinal,
            "wave": share.wave,
            "execution": subject.execution_id,
        }
        yield from sql.stream(connection, statement, values)


def _map(entity: str) -> sql.Composable:
    return sql.table(ledger.SCHEMA, f"id_map_{entity}")


def _require_all(connection: Connection, subject: Subject, entity: str) -> None:
    """Every row of the map is some wave's: a map without its table, or rows of no wave, must not pass for all."""
    numbers = sorted({share.assessment_no for share in subject.shares})
    for number in numbers:
        part = {"part": f"{ledger.SCHEMA}.id_map_{entity}_{number}"}
        if sql.scalar(connection, "SELECT to_regclass(%(part)s) IS NULL", part):
            raise RefusedError(f"The ledger no longer holds the id map of assessment {number} ({part['part']}).")
    counted = sql.compose(
        """SELECT count(*) FROM {map} m WHERE m.assessment_no = ANY(%(numbers)s) AND NOT EXISTS (
               SELECT FROM unnest(%(of)s::bigint[], %(first)s::bigint[], %(last)s::bigint[]) s(no, first, last)
               WHERE m.assessment_no = s.no AND m.ordinal BETWEEN s.first AND s.last)""",
        map=_map(entity),
    )
    shares = {
        "of": [share.assessment_no for share in subject.shares],
        "first": [share.first_ordinal for share in subject.shares],
        "last": [share.last_ordinal for share in subject.shares],
    }
    missed = sql.scalar(connection, counted, {"numbers": numbers, **shares})
    if missed:
        raise PipelineError(
            f"The id map of {entity} holds {missed} rows that belong to none of its waves. "
            "Nothing was replaced; report a fault of uuid-pipeline."
        )


def _write_csv(path: Path, _: Subject, columns: Sequence[str], groups: Iterator[Records]) -> None:
    """RFC 4180, UTF-8, with a header; ``moved``, the last column, as true or false."""
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for records in groups:
            writer.writerows([(*record[:-1], "true" if record[-1] else "false") for record in records])


def _write_parquet(path: Path, subject: Subject, columns: Sequence[str], groups: Iterator[Records]) -> None:
    """Row groups of about ROWS_A_GROUP; ids all differ, so that a dictionary of them would only cost."""
    # Not at the top: it is large, and this form alone needs it.
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    schema = pa.schema(
        [pa.field(column, pa.bool_() if column == "moved" else pa.string(), nullable=False) for column in columns],
        metadata={"plan_id": subject.plan_id, "execution_id": subject.execution_id or ""},
    )
    repeated = ["entity", "role", "wave"]
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated) as writer:
        for records in _grouped(groups):
            arrays = [
                pa.array(values, field.type) for values, field in zip(zip(*records, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _grouped(groups: Iterator[Records]) -> Iterator[Records]:
    pending: Records = []
    for records in groups:
        pending += records
        if len(pending) >= ROWS_A_GROUP:
            yield pending
            pending = []
    if pending:
        yield pending


_FORMS: dict[str, Callable[[Path, Subject, Sequence[str], Iterator[Records]], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
}
