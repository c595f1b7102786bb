"""What every verb starts from: the store reached, the spec bound, Dagster's instance opened, in that order."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import dagster as dg
from sqlalchemy import Engine

from uuid_pipeline.cli import interruption
from uuid_pipeline.demo import server
from uuid_pipeline.engine import ledger, sql, traps
from uuid_pipeline.engine.connection import open_store, store_identity
from uuid_pipeline.engine.store import Store
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations.instance import bind_to_store, open_instance, shares_the_stores_database
from uuid_pipeline.operations.runs import Outcome, report_dead_runs, run_job
from uuid_pipeline.settings import Settings, read_settings
from uuid_pipeline.spec import load_spec
from uuid_pipeline.stages.session import DEMO_DATABASE, Binder, bound_store, bound_to_undo

PROGRESS = "uuid_pipeline.progress"
DAGSTER_IN_STORE = (
    "UUID_PIPELINE_DAGSTER_URL names the store's own database: Dagster's tables stand beside the application's, and "
    "drop-ledger leaves them there; give it a database of its own"
)


@dataclass(frozen=True)
class Session:
    """One verb's store and instance."""

    settings: Settings
    engine: Engine
    store: Store
    instance: dg.DagsterInstance

    def run(self, job: str, partition: str | None = None, **ops: dict[str, object]) -> Outcome:
        """Run a job to its end on this session's instance; its error, if any, is in the outcome.

        Raises KeyboardInterrupt when somebody has asked the process to end.
        """
        from uuid_pipeline.definitions import defs

        outcome = run_job(defs, self.instance, job, partition, ops, say=logging.getLogger(PROGRESS).info)
        interruption.raise_if_asked()
        return outcome


def open_session() -> AbstractContextManager[Session]:
    """Open everything a verb needs.

    Raises UsageError (connection, spec, home) or RefusedError (rights, hidden rows) before anything is written.
    """
    settings = read_settings()
    load_spec(settings.spec)
    return _open(settings, bound_store)


@contextmanager
def open_session_to_undo() -> Iterator[Session]:
    """The same with the store as the execution to undo knew it: the spec of now need not fit, nor be there."""
    settings = read_settings()
    with _open(settings, bound_to_undo) as session:
        try:
            load_spec(settings.spec)
        except UsageError as error:
            _warn([f"what this spec alone declares is not rolled back: {error.message.rstrip('.')}"])
        yield session


@contextmanager
def _open(settings: Settings, bound: Binder) -> Iterator[Session]:
    engine = open_configured_store(settings)
    try:
        with engine.begin() as connection:
            store = bound(connection, settings)
            identity = store_identity(connection)
            waiting = sql.rows(connection, traps.NO_STANDBY)
        listen_to_progress()
        # Before the first commit, which would be silent.
        _warn([row.sentence for row in waiting])
        with open_instance(settings) as instance:
            _warn([DAGSTER_IN_STORE] if shares_the_stores_database(settings) else [])
            bind_to_store(instance, settings, identity)
            report_dead_runs(instance)
            with engine.begin() as connection:
                ledger.create(connection, store)
            yield Session(settings, engine, store, instance)
    finally:
        engine.dispose()


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        logging.getLogger(PROGRESS).warning("Warning: %s.", sentence)


def open_configured_store(settings: Settings) -> Engine:
    """The store's engine. Raises UsageError when there is neither a URL nor a demo store."""
    if settings.database_url is not None:
        return open_store(settings.database_url)
    if not settings.home.exists():
        raise UsageError(
            "There is no store: set UUID_PIPELINE_DATABASE_URL to yours, or build the demo's with: uuid-pipeline demo"
        )
    embedded = server.start(settings.home)
    try:
        return open_store(embedded.url(DEMO_DATABASE))
    except UsageError as error:
        raise UsageError(
            f"The home {settings.home} holds no demo store. Set UUID_PIPELINE_DATABASE_URL to your store, "
            "or build the demo's with: uuid-pipeline demo"
        ) from error


def listen_to_progress() -> None:
    """Show what stages report, on stderr."""
    logger = logging.getLogger(PROGRESS)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False
