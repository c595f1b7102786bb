"""The constraint analysis: why the usual migrations fail on this store, and whether its data are at fault."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.engine import catalog as catalogs
from uuid_pipeline.engine import sql
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.engine.trials import copying, counting, entries, moving, obstacles, trying
from uuid_pipeline.engine.trials.entries import Entry
from uuid_pipeline.engine.trials.known import KNOWN
from uuid_pipeline.engine.trials.moving import Looked, Sampled
from uuid_pipeline.engine.trials.obstacles import Obstacle
from uuid_pipeline.engine.trials.trying import Tried
from uuid_pipeline.engine.trials.verdict import summary, verdict
from uuid_pipeline.errors import PipelineError
from uuid_pipeline.settings import without_secrets

NOTHING = "nothing would move, so there is nothing to try"
COUNT_TIMEOUT = "3s"
NOT_COUNTED = "not counted: even a few rows took longer than the time allowed, as where a reference has no index"


def analyse(
    engine: Engine, store: Store, workshop: Workshop, earlier: Mapping[str, Any] | None = None, run: str | None = None
) -> dict[str, Any]:
    """Try the known approaches on a copy and count over the store; the result as plain data.

    ``earlier``: an earlier result, whose trials are taken over while catalog, spec and sample are the same. With
    ``run``, the id of the caller's run, they are tried on the store itself instead, in a transaction that is rolled
    back. Where no copy can be made, the result says why and what the catalogs say. Raises RefusedError as
    ``trying.on_store`` does.
    """
    started = time.monotonic()
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        connection.begin(),
        moving.looked_at(connection, store) as all_looked_at,
    ):
        looked = all_looked_at
        movers = [store.entity(name) for name, found in looked.items() if found.moving]
        if not movers:
            return _empty()
        sampled = [row for entity in movers for row in moving.sample(connection, store, entity)]
        known = obstacles.read(connection, store)
        basis = _basis(connection, store, sampled, run is not None)
        taken = earlier if earlier and earlier.get("basis") == basis and earlier.get("tried") else None
        if taken is not None:
            found = [Entry(**one) for one in taken["constraint_analysis"]]
            where, note = taken["where"], taken["note"]
        else:
            tried, note = _try(engine, connection, store, sampled, known, workshop, run)
            found, where = entries.made(store, known, tried, movers), tried.where if tried else None
        sql.execute(connection, f"SET LOCAL statement_timeout = '{COUNT_TIMEOUT}'")
        numbers = _counted(connection, store, known, found)
        if numbers is None:
            looked = moving.fewer(connection, store)
            numbers = _counted(connection, store, known, found)
    counted, totals, alike = numbers or (found, None, 0)
    return {
        "verdict": verdict(store.main.name, *_extent(looked, store.main), counted, alike) if numbers else NOT_COUNTED,
        "approaches": [] if totals is None else _approaches(movers, looked, counted, totals),
        "constraint_analysis": [asdict(entry) for entry in counted],
        "sample": [asdict(row) for row in sampled],
        "looked_at": {name: asdict(found) for name, found in looked.items()},
        "tried": where is not None,
        "where": where,
        "note": note,
        "reused": taken is not None,
        "basis": basis,
        "seconds": round(time.monotonic() - started, 3),
    }


Counted = tuple[list[Entry], dict[tuple[str, str], int], int]


def _counted(connection: Connection, store: Store, known: Sequence[Obstacle], found: Sequence[Entry]) -> Counted | None:
    """As ``entries.counted``, and the main entity's look-alikes; None when the time was not enough."""
    savepoint = connection.begin_nested()
    try:
        counted = *entries.counted(connection, store, known, found), counting.look_alikes(connection, store.main)
    except DBAPIError as error:
        savepoint.rollback()
        if sql.sqlstate(error) != sql.QUERY_CANCELED:
            raise
        return None
    savepoint.commit()
    return counted


def _empty() -> dict[str, Any]:
    return {
        "verdict": NOTHING, "approaches": [], "constraint_analysis": [], "sample": [], "looked_at": {}, "tried": False,
        "where": None, "note": NOTHING, "reused": False, "basis": None, "seconds": 0.0,
    }  # fmt: skip


def _extent(looked: Mapping[str, Looked], entity: Entity) -> tuple[int, bool]:
    return looked[entity.name].moving, looked[entity.name].exact


def _basis(connection: Connection, store: Store, sampled: Sequence[Sampled], on_store: bool) -> str:
    """A digest of all that trials depend on but the rows' other columns."""
    catalog = catalogs.digest(catalogs.snapshot(connection, store.catalog))
    content = [catalog, store.spec.digest, [asdict(row) for row in sampled], on_store]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _try(
    engine: Engine, connection: Connection, store: Store, sampled: Sequence[Sampled], known: Sequence[Obstacle],
    workshop: Workshop, run: str | None,
) -> tuple[Tried | None, str]:  # fmt: skip
    """What was tried, with a note on what could not be; None where nothing could. Only the explicit way may refuse."""
    if run is not None:
        return trying.on_store(engine, store, sampled, known, run), "up to the first refusal of each approach and row"
    try:
        with copying.copied(connection, store, sampled, workshop) as copy:
            tried = trying.on_copy(copy.engine, store, sampled, known, f"a copy of {copy.rows} rows on {copy.where}")
            return tried, _lacks(copy.missing, tried.absent)
    except (PipelineError, DBAPIError, psycopg.Error, OSError) as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        message = without_secrets(said[0] if said else type(error).__name__, _url(engine))
        return None, f"not tried, derived from the catalogs, since no copy could be made: {message}"


def _url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def _lacks(missing: Sequence[str], absent: Sequence[Obstacle]) -> str:
    if not absent:
        return "every constraint, unique index and trigger was there to be met"
    names = ", ".join(f"{o.name} on {o.label}" for o in absent)
    return f"the copy lacks {names} ({'; '.join(missing[:3])}): for these, what the catalogs say"


def _approaches(
    movers: Sequence[Entity], looked: Mapping[str, Looked], found: Sequence[Entry],
    totals: Mapping[tuple[str, str], int],
) -> list[dict[str, Any]]:  # fmt: skip
    return [
        {
            "approach": approach.name,
            "entity": entity.name,
            "does": approach.does,
            "fails_for": totals[entity.name, approach.name],
            "of": looked[entity.name].moving,
            "exact": looked[entity.name].exact,
            "finding": summary(
                entity.name, approach.name, looked[entity.name].moving, totals[entity.name, approach.name], found
            ),
        }
        for entity in movers
        for approach in KNOWN
    ]
