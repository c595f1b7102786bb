"""What is seen of sampled documents at one moment: where their row is, their chunks, and their owner's own query."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import ledger, savepoints, sql
from uuid_pipeline.engine.batches import application
from uuid_pipeline.engine.installed import resolving
from uuid_pipeline.engine.retrievals import asking, owners_query
from uuid_pipeline.engine.retrievals.asking import Answer, Asker, Subject
from uuid_pipeline.engine.retrievals.owners_query import Query, Way
from uuid_pipeline.engine.store import Store

# Without a `retrieval` in the spec only rows are looked up: as many documents as the spec's default would take.
SAMPLE = 200
SECONDS = 20.0
_HASH = "hashtextextended({key}::text, 0)"


@dataclass(frozen=True)
class Sampled:
    """A document of the sample: the id before the execution, its target id, and its place in the plan."""

    document: str
    target: str
    ordinal: int | None


@dataclass(frozen=True)
class Sight:
    """One document as it is: ``now`` is its id (None: no row), ``vector`` whether it has one (None: unknown).

    ``at_target`` and ``target_chunks`` are of whatever row has its target id: before a merge that may be a twin's.
    ``asked`` is None where the owner's query was not put: no vector, no `retrieval` in the spec, or no time left.
    """

    sampled: Sampled
    now: str | None
    owner: str | None
    chunks: int | None
    digest: str | None
    vector: bool | None
    asked: Answer | None
    at_target: bool
    target_chunks: int | None

    @property
    def by_target(self) -> bool:
        """Whether the look-up by target id, as workers do it, finds the row and something below it."""
        return self.at_target and self.target_chunks != 0


@dataclass(frozen=True)
class Seen:
    """All sights of one moment; ``query`` is a sentence where there is none to ask, ``owners`` what owners had then.

    ``owners``: owner -> (rows with a vector, rows written since the execution began).
    """

    sights: tuple[Sight, ...]
    query: Query | str
    who: Asker | None
    owners: Mapping[str | None, tuple[int, int]]


def sample(connection: Connection, store: Store, execution: ledger.Execution, size: int) -> list[Sampled]:
    """At most ``size`` documents of the plan's inventory, in turn one of each wave and of what stays, by a hash."""
    strata = [
        _rows(connection, _of_span(store), {**_span(wave), "limit": size})
        for wave in ledger.waves(connection, execution.execution_id)
        if wave.kind != "sweep"
    ]
    strata.append(_rows(connection, _staying(store), {"no": execution.assessment_no, "limit": size}))
    in_turn = (one for turn in zip_longest(*strata) for one in turn if one is not None)
    return list(islice(in_turn, size))


def arrivals(connection: Connection, store: Store, wave: ledger.Wave, size: int) -> list[Sampled]:
    """At most ``size`` documents that a sweep took."""
    return _rows(connection, _of_span(store), {**_span(wave), "limit": size})


def _span(wave: ledger.Wave) -> dict[str, Any]:
    return {"no": wave.assessment_no, "first": wave.first_ordinal, "last": wave.last_ordinal}


def _rows(connection: Connection, statement: sql.Composable, values: Mapping[str, Any]) -> list[Sampled]:
    return [Sampled(*row) for row in sql.rows(connection, statement, values)]


def _of_span(store: Store) -> sql.Composable:
    return sql.compose(
        """SELECT old_id::text, new_id::text, ordinal FROM {map}
           WHERE assessment_no = %(no)s AND ordinal BETWEEN %(first)s AND %(last)s ORDER BY {hash} LIMIT %(limit)s""",
        map=ledger.map_table(store.main),
        hash=sql.Text(_HASH.format(key="old_id")),
    )


def _staying(store: Store) -> sql.Composable:
    """Documents that are right as they are; those that a restricting approach leaves as they are have no target yet."""
    return sql.compose(
        """SELECT i.key::text, i.target_id::text, NULL::bigint FROM {inventory} i
           WHERE i.assessment_no = %(no)s AND i.quarantined IS NULL AND i.id_class = 'deterministic'
             AND NOT EXISTS (SELECT FROM {map} m WHERE m.assessment_no = %(no)s AND m.old_id = i.key)
           ORDER BY {hash} LIMIT %(limit)s""",
        inventory=ledger.inventory_table(store.main),
        map=ledger.map_table(store.main),
        hash=sql.Text(_HASH.format(key="i.key")),
    )


def look(
    view: Connection,
    store: Store,
    sampled: Sequence[Sampled],
    since: Mapping[str, Any] | None = None,
    digests: Collection[str] = (),
    seconds: float | None = None,
) -> Seen:
    """Look at these documents now, and put each owner's query.

    ``view`` is a snapshot of :func:`asking.snapshot`. ``since`` (an execution and its first snapshot) makes
    the owners' rows be counted that were written since; ``digests`` are of the vectors asked with before.
    """
    ids = {one for each in sampled for one in (each.document, each.target)}
    rows = _documents(view, store, ids)
    left = _given_to_another(view, store, since["execution"], [each.document for each in sampled]) if since else set()
    chunks = _chunks(view, store, ids)
    query = owners_query.of_store(view, store)
    if isinstance(query, str):
        return Seen(tuple(_sight(each, left, rows, chunks, {}, {}) for each in sampled), query, None, {})
    retrieval = store.spec.retrieval
    allowed = seconds or (retrieval.seconds if retrieval else SECONDS)
    vectors = _bounded(view, query.own_vectors(), {"ids": sorted(ids), "digests": list(digests)}, allowed)
    if vectors is None:
        who = asking.asker(view, store)
        return Seen(tuple(_sight(each, left, rows, chunks, None, {}) for each in sampled), query, who, {})
    subjects = {v.document: Subject(v.document, rows.get(v.document), v.digest, v.vector) for v in vectors}
    who = asking.asker(view, store)
    answers = asking.ask_all(view, query, list(subjects.values()), who, allowed)
    owners = _owners(view, query, {rows[document] for document in subjects if document in rows}, since)
    return Seen(tuple(_sight(each, left, rows, chunks, subjects, answers) for each in sampled), query, who, owners)


def _sight(
    each: Sampled,
    left: Collection[str],
    rows: Mapping[str, str | None],
    chunks: Mapping[str, int] | None,
    subjects: Mapping[str, Subject] | None,
    answers: Mapping[str, Answer],
) -> Sight:
    now = next(
        (one for one in (each.document, each.target) if one in rows and (one == each.target or one not in left)), None
    )
    if now is None:
        return Sight(each, None, None, None, None, False, None, False, None)
    counted, below = (None if chunks is None else chunks.get(one, 0) for one in (now, each.target))
    target = (each.target in rows, below)
    if subjects is None:
        return Sight(each, now, rows[now], counted, None, False if counted == 0 else None, None, *target)
    subject = subjects.get(now)
    digest = subject.digest if subject else None
    return Sight(each, now, rows[now], counted, digest, subject is not None, answers.get(now), *target)


def _given_to_another(view: Connection, store: Store, execution_id: str, documents: Sequence[str]) -> set[str]:
    """Those of these old ids which a batch of this execution or a later one has given to another row."""
    statement = sql.compose(
        """SELECT m.new_id::text AS id FROM {map} m WHERE m.new_id = ANY(%(ids)s::{type}[]) AND m.new_id <> m.old_id
           AND m.role = 'move' AND m.assessment_no = ANY(%(maps)s) AND {done}""",
        map=ledger.map_table(store.main),
        type=sql.Text(store.main.key_type),
        done=sql.compose(resolving.IS_IN_FORCE, number=sql.Text("m.assessment_no"), ordinal=sql.Text("m.ordinal")),
    )
    values = {"ids": list(documents), "maps": ledger.assessments_since(view, execution_id)}
    return {row.id for row in sql.rows(view, statement, values)}


def _documents(view: Connection, store: Store, ids: Collection[str]) -> dict[str, str | None]:
    """Owner by id of the rows that there are; None where the spec names no owner."""
    owner = store.main.spec.describe.owner
    statement = sql.compose(
        "SELECT d.{key}::text AS id, {owner} AS owner FROM {table} d WHERE d.{key} = ANY(%(ids)s::{type}[])",
        key=sql.name(store.main.key),
        owner=sql.compose("d.{owner}::text", owner=sql.name(owner)) if owner else sql.Text("NULL::text"),
        table=sql.table(store.main.table.schema, store.main.table.name),
        type=sql.Text(store.main.key_type),
    )
    return {row.id: row.owner for row in sql.rows(view, statement, {"ids": sorted(ids)})}


def _chunks(view: Connection, store: Store, ids: Collection[str]) -> dict[str, int] | None:
    """Rows below each document; None where the spec knows of none."""
    ways = owners_query.ways_to_children(store)
    if not ways:
        return None
    found: dict[str, int] = {}
    for way in ways:
        for row in sql.rows(view, _counted(store, way), {"ids": sorted(ids)}):
            found[row.document] = found.get(row.document, 0) + int(row.n)
    return found


def _counted(store: Store, way: Way) -> sql.Composable:
    return sql.compose(
        """SELECT d.{key}::text AS document, count(*) AS n FROM {source}
           WHERE d.{key} = ANY(%(ids)s::{type}[]) GROUP BY 1""",
        key=sql.name(store.main.key),
        source=way.source,
        type=sql.Text(store.main.key_type),
    )


def _owners(
    view: Connection,
    query: Query,
    owners: Collection[str | None],
    since: Mapping[str, Any] | None,
) -> dict[str | None, tuple[int, int]]:
    """Rows with a vector and rows written since, by owner; empty where that took too long."""
    written: sql.Composable = sql.Text("false")
    if since is not None:
        # age() counts from this transaction's own id, once it has one.
        sql.execute(view, "SELECT pg_current_xact_id()")
        written = sql.join(
            " OR ", [sql.compose("({w})", w=application.written_since(alias)) for alias in query.way.aliases]
        )
    statement = query.owners_rows(written)
    bound = {**(since or {}), "owners": sorted(owner for owner in owners if owner is not None)}
    rows = _bounded(view, statement, bound, asking.QUERY_SECONDS)
    return {} if rows is None else {row.owner: (int(row.rows), int(row.written)) for row in rows}


def _bounded(
    view: Connection, statement: sql.Composable, values: Mapping[str, Any], seconds: float
) -> list[Any] | None:
    """Rows, or None when the server stopped at the time given."""
    timeout = {"ms": f"{max(1, int(seconds * 1000))}ms"}
    try:
        with savepoints.undone(view):
            sql.execute(view, "SELECT set_config('statement_timeout', %(ms)s, true)", timeout)
            return sql.rows(view, statement, values)
    except DBAPIError as error:
        if sql.sqlstate(error) not in asking.TOO_LONG:
            raise
        return None
