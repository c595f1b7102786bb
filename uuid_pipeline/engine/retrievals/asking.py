"""Asking as the users do: their role, their policies, in one snapshot that only reads; time bounded."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import savepoints, sql
from uuid_pipeline.engine.retrievals.owners_query import Query
from uuid_pipeline.engine.store import Store

# One query that takes longer than this is not measured; a person would not wait for it either.
QUERY_SECONDS = 5.0
# Neighbours beyond the k-th that are as near as it; of more only those that are nearer are compared.
SHOWN_TIES = 200
TOO_LONG = (sql.QUERY_CANCELED, sql.LOCK_NOT_AVAILABLE)

Neighbour = tuple[str, str | None, float | None]


@dataclass(frozen=True)
class Subject:
    """A document under the id that it has now, its owner, and one of its own vectors with its digest."""

    document: str
    owner: str | None
    digest: str | None
    vector: str | None


@dataclass(frozen=True)
class Answer:
    """What one owner's query gave.

    ``found``: the document is in the exact answer, ties included; None where that was not measured. ``shown``: it is in
    the answer that the user gets, by whatever index. ``cut``: more ties than are kept. ``failure`` is the server's
    word. Milliseconds with the way to the server and back.
    """

    found: bool | None = None
    shown: bool | None = None
    milliseconds: float | None = None
    neighbours: tuple[Neighbour, ...] = ()
    cut: bool = False
    failure: str | None = None
    too_long: bool = False


@dataclass(frozen=True)
class Asker:
    """The role that is asked as, None where it is not switched, and how that is said.

    ``defaults`` are settings as a session of the store has them, where we have pinned others.
    """

    role: str | None
    said: str
    defaults: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """One moment of the store in a transaction that cannot write; another session than the caller's."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        try:
            yield connection
        finally:
            connection.rollback()


_DEFAULTS = "SELECT name, reset_val || coalesce(unit, '') FROM pg_settings WHERE name IN ('jit', 'work_mem')"


def asker(connection: Connection, store: Store) -> Asker:
    """Whether this session may become the spec's role."""
    retrieval = store.spec.retrieval
    defaults = dict(sql.rows(connection, _DEFAULTS))
    if retrieval is None or retrieval.role is None:
        return Asker(None, "without row-level security: the spec names no retrieval.role", defaults)
    try:
        with savepoints.undone(connection):
            _become(connection, retrieval.role)
    except DBAPIError as error:
        return Asker(None, f"without row-level security: {_first_line(error)}", defaults)
    setting = f", {retrieval.as_user} set to the owner" if retrieval.as_user else ""
    return Asker(retrieval.role, f"under row-level security as role {retrieval.role}{setting}", defaults)


def _become(connection: Connection, role: str) -> None:
    sql.execute(connection, sql.compose("SET LOCAL ROLE {role}", role=sql.name(role)))


def ask_all(
    connection: Connection, query: Query, subjects: Sequence[Subject], who: Asker, seconds: float
) -> dict[str, Answer]:
    """Each subject's answer by document; those for which no time was left are not in it."""
    deadline = time.monotonic() + seconds
    answers = {}
    for subject in subjects:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        answers[subject.document] = ask(connection, query, subject, who, min(left, QUERY_SECONDS))
    return answers


def ask(connection: Connection, query: Query, subject: Subject, who: Asker, seconds: float) -> Answer:
    """One owner's query as they would run it; when an approximate index answered it, once more exactly."""
    statement, values = query.statement(), _values(query, subject)
    try:
        with _as_user(connection, query, subject, who, seconds):
            approximate = _uses_vector_index(connection, statement, values)
            began = time.perf_counter()
            rows = sql.rows(connection, statement, values)
            milliseconds = (time.perf_counter() - began) * 1000
    except DBAPIError as error:
        return _failed(error)
    shown = bool(rows and rows[0].found)
    if not approximate:
        return _answer(rows, values, shown, shown, milliseconds)
    try:
        with _as_user(connection, query, subject, who, seconds):
            # Vector indexes know plain index scans only; other indexes are still used, by bitmaps.
            sql.execute(connection, "SELECT set_config('enable_indexscan', 'off', true)")
            exact = sql.rows(connection, statement, values)
    except DBAPIError as error:
        failed = _failed(error)
        return Answer(shown or None, shown, milliseconds, failure=failed.failure, too_long=failed.too_long)
    return _answer(exact, values, bool(exact and exact[0].found), shown, milliseconds)


def _values(query: Query, subject: Subject) -> dict[str, Any]:
    retrieval = query.store.spec.retrieval
    k = retrieval.k if retrieval else 0
    return {
        "vector": subject.vector,
        "document": subject.document,
        "owner": subject.owner,
        "k": k,
        "shown": k + SHOWN_TIES,
        "max_distance": retrieval.max_distance if retrieval else None,
    }


@contextmanager
def _as_user(connection: Connection, query: Query, subject: Subject, who: Asker, seconds: float) -> Iterator[None]:
    retrieval = query.store.spec.retrieval
    with savepoints.undone(connection):
        settings = {"row_security": "on", "statement_timeout": f"{max(1, int(seconds * 1000))}ms", "lock_timeout": "2s"}
        if retrieval is not None and retrieval.as_user is not None and subject.owner is not None:
            settings[retrieval.as_user] = subject.owner
        settings |= who.defaults
        if who.role is not None:
            settings["role"] = who.role
        # One statement, in this order: the role last, since it may not be allowed to set the others.
        calls = [f"set_config(%(s{place})s, %(v{place})s, true)" for place in range(len(settings))]
        names = {f"s{place}": name for place, name in enumerate(settings)}
        values = {f"v{place}": value for place, value in enumerate(settings.values())}
        sql.execute(connection, sql.Text("SELECT " + ", ".join(calls)), {**names, **values})
        yield


def _uses_vector_index(connection: Connection, statement: sql.Composable, values: Mapping[str, Any]) -> bool:
    """Whether the plan orders by an index, which for distances is an approximate one."""
    explained = sql.scalar(connection, sql.compose("EXPLAIN (FORMAT JSON) {query}", query=statement), values)
    plan = json.loads(explained) if isinstance(explained, str) else explained
    return '"Order By"' in json.dumps(plan)


def _answer(rows: Sequence[Any], values: Mapping[str, Any], found: bool, shown: bool, milliseconds: float) -> Answer:
    neighbours = tuple((row.document, row.chunk, _number(row.distance)) for row in rows)
    return Answer(found, shown, milliseconds, neighbours, cut=len(rows) >= values["shown"])


def _number(distance: float) -> float | None:
    """The distance, None where it is none (to a vector of zeros)."""
    return None if math.isnan(distance) else distance


def _failed(error: DBAPIError) -> Answer:
    if error.connection_invalidated:
        raise error
    state = sql.sqlstate(error)
    return Answer(failure=_first_line(error), too_long=state in TOO_LONG)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]
