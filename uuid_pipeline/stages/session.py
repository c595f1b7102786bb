"""What every stage needs: the store, the spec bound to it, and engine errors shown as people can read them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import dagster as dg
from pydantic import PrivateAttr
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.demo import installation, server
from uuid_pipeline.engine import catalog, declared_since, earlier_store, ledger, profile, rollback, validation
from uuid_pipeline.engine.backups.workshop import Workshop
from uuid_pipeline.engine.connection import DATABASE_ERRORS, explained, open_store
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import PipelineError, RefusedError, UsageError
from uuid_pipeline.settings import Settings, read_settings, without_secrets
from uuid_pipeline.spec import Spec, load_spec

DEMO_DATABASE = "incident"
Binder = Callable[[Connection, Settings], Store]


class StoreResource(dg.ConfigurableResource[None]):
    """The store that UUID_PIPELINE_DATABASE_URL names (unset: the embedded demo server), never in run config."""

    # Every stage and check opens the store. With connections of its own, which know no table yet, each would have the
    # server read its catalogs anew: on a small store that was much of a run.
    _in_run: bool = PrivateAttr(default=False)
    _kept: Engine | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """From here to the end of the run, which has this resource for itself, one engine serves all its steps."""
        self._in_run = True

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        if self._kept is not None:
            self._kept.dispose()
        self._in_run, self._kept = False, None

    def open(self) -> AbstractContextManager[tuple[Engine, Store]]:
        """An engine and the bound store; errors of ours become a Dagster Failure with their message alone."""
        return self._open(bound_store)

    def open_to_undo(self) -> AbstractContextManager[tuple[Engine, Store]]:
        """The same with the store as the execution knew it that is to be undone."""
        return self._open(bound_to_undo)

    def open_to_validate(self) -> AbstractContextManager[tuple[Engine, Store]]:
        """The same with the store as the execution knew it that is validated, whatever the spec says since."""
        return self._open(bound_to_validate)

    @contextmanager
    def _open(self, bound: Binder) -> Iterator[tuple[Engine, Store]]:
        settings = read_settings()
        try:
            engine = self._opened(settings)
            try:
                with engine.begin() as connection:
                    store = bound(connection, settings)
                    ledger.create(connection, store)
                yield engine, store
            finally:
                if engine is not self._kept:
                    engine.dispose()
        except PipelineError as error:
            raise failure(error) from error
        except DATABASE_ERRORS as error:
            told = explained(error)
            told.message = without_secrets(told.message, settings.database_url, settings.direct_url)
            raise failure(told) from error

    def _opened(self, settings: Settings) -> Engine:
        """The run's engine while the store answers; else a new one. Raises UsageError when it cannot be reached."""
        if self._kept is not None and not _answers(self._kept):
            self._kept.dispose()
            self._kept = None
        engine = self._kept or open_store(store_url(settings))
        if self._in_run:
            self._kept = engine
        return engine


def _answers(engine: Engine) -> bool:
    try:
        engine.connect().close()
    except DBAPIError:
        return False
    return True


@contextmanager
def open_workshop() -> Iterator[Workshop]:
    """Where backups are made: the home's directory, the wheel's programs, and the embedded server for copies.

    A server that is started for a copy alone is stopped at the end, unless somebody else has come to use it.
    """
    settings = read_settings()
    started = False

    def fallback() -> str:
        nonlocal started
        started = server.find(settings.home) is None
        return server.start(settings.home).url("postgres")

    try:
        yield Workshop(
            settings.home / "backups", tuple(installation.client_directories()), fallback, settings.direct_url
        )
    finally:
        if started and not server.in_use(settings.home):
            server.stop(settings.home)


def store_url(settings: Settings) -> str:
    """The store's URL; the embedded server is started when it is the store."""
    return settings.database_url or server.start(settings.home).url(DEMO_DATABASE)


def bound_store(connection: Connection, settings: Settings) -> Store:
    """The spec bound to the store, once the role is known to see and to be allowed enough."""
    spec = load_spec(settings.spec)
    store = bind(spec, catalog.read_catalog(connection, spec.schema_name))
    profile.require_access(connection, store)
    return store


def bound_to_undo(connection: Connection, settings: Settings) -> Store:
    """The store as the newest execution with rows under new ids knew it, if there is one, with what was declared since,
    in the spec of now too."""
    assessment = rollback.newest_to_undo(connection)
    if assessment is None:
        return bound_store(connection, settings)
    store = declared_since.store_to_undo(connection, assessment, _readable_spec(settings))
    profile.require_access(connection, store)
    return store


def _readable_spec(settings: Settings) -> Spec | None:
    """The spec of now; None where it cannot be read, which keeps no rollback from going on."""
    try:
        return load_spec(settings.spec)
    except UsageError:
        return None


def bound_to_validate(connection: Connection, settings: Settings) -> Store:
    """The store as the execution that is validated knew it; by the spec of now where there is none."""
    try:
        assessment = validation.subject(connection).assessment_no if ledger.exists(connection) else None
    except RefusedError:
        assessment = None  # said by what then asks for the subject itself
    if assessment is None:
        return bound_store(connection, settings)
    store = earlier_store.store_of(connection, assessment)
    profile.require_access(connection, store)
    return store


def failure(error: PipelineError) -> dg.Failure:
    return dg.Failure(description=error.message, metadata={"exit_code": error.exit_code}, allow_retries=False)
