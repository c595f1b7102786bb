"""Dagster's own instance: on the embedded server, or where UUID_PIPELINE_DAGSTER_URL says; bound to one store."""

import json
import os
from importlib import resources
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from uuid_pipeline.demo import server
from uuid_pipeline.engine.connection import require_one_at_sign
from uuid_pipeline.errors import UsageError
from uuid_pipeline.operations import tables
from uuid_pipeline.settings import Settings, without_secrets

STORAGE_VARIABLE = "UUID_PIPELINE_DAGSTER_STORAGE"
DAGSTER_DATABASE = "dagster"
_BINDING = "uuid_pipeline/store"


def dagster_home(settings: Settings) -> Path:
    return settings.home / "dagster"


def dagster_url(settings: Settings) -> URL:
    """The instance's database with the driver that dagster-postgres needs; starts the embedded server when it is there.

    A bare ``postgresql://`` would be read as psycopg 3 by SQLAlchemy 2.1, and the first event write would fail
    (ENGINE.md, section 11).
    """
    if settings.dagster_url is None:
        embedded = server.start(settings.home)
        server.ensure_database(embedded, DAGSTER_DATABASE)
        text = embedded.url(DAGSTER_DATABASE)
    else:
        text = settings.dagster_url
        require_one_at_sign(text, "UUID_PIPELINE_DAGSTER_URL")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError("UUID_PIPELINE_DAGSTER_URL is not a database URL (postgresql://…).") from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UsageError(f"UUID_PIPELINE_DAGSTER_URL names {url.get_backend_name()!r}; it must be PostgreSQL.")
    return url.set(drivername="postgresql+psycopg2")


def shares_the_stores_database(settings: Settings) -> bool:
    """Whether both URLs lead to one database, as far as they say so: Dagster's tables then stand beside the store's."""
    if settings.dagster_url is None or settings.database_url is None:
        return False
    places = [make_url(text) for text in (settings.dagster_url, settings.database_url)]
    one, other = ((url.host or url.query.get("host"), url.port or 5432, url.database) for url in places)
    return one == other


def prepare(settings: Settings) -> None:
    """Write Dagster's home and set the environment that this process and its children find the instance by."""
    url = dagster_url(settings)
    if settings.dagster_url is not None:
        _require_reachable(url, settings.dagster_url)
    home = dagster_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        ours = resources.files("uuid_pipeline.operations").joinpath(name).read_text()
        # A full disk must not empty a file that is there already and right.
        if not (home / name).is_file() or (home / name).read_text() != ours:
            (home / name).write_text(ours)
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    os.environ["UUID_PIPELINE_HOME"] = str(settings.home)
    os.environ[STORAGE_VARIABLE] = url.render_as_string(hide_password=False)


def _require_reachable(url: URL, text: str) -> None:
    engine = sa.create_engine(url, connect_args={"connect_timeout": 10})
    try:
        engine.connect().close()
    except DBAPIError as error:
        first_line = str(error.orig).strip().splitlines()[0]
        said = without_secrets(f"Dagster's database cannot be reached: {first_line}", text).rstrip(".")
        raise UsageError(
            f"{said}. Check UUID_PIPELINE_DAGSTER_URL. Where the database is lost, an empty one does: what counts is "
            "in the store's ledger."
        ) from error
    finally:
        engine.dispose()


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of this home, with connections kept open: else each event that is written makes its own."""
    prepare(settings)
    with tables.whole(os.environ[STORAGE_VARIABLE]):
        instance = dg.DagsterInstance.get()
        if instance.run_storage.get_cursor_values({_BINDING}).get(_BINDING) is None:
            tables.finish(instance)
    # Not for the webserver alone. Connections are soon renewed, so one that was cut while idle is hardly met.
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=30, max_overflow=20)
    return instance


def _which(bound: str, identity: str) -> str:
    """The store that a home is bound to, as told from this one."""
    (cluster, _, name), (own_cluster, _, own_name) = bound.rsplit("/", 2), identity.rsplit("/", 2)
    if name != own_name:
        return f"database {name}"
    return (
        f"database {name} as it was before it was made anew"
        if cluster == own_cluster
        else f"a database {name} of another server"
    )


def bind_to_store(instance: dg.DagsterInstance, settings: Settings, identity: str) -> None:
    """Keep home and Dagster's database to one store: the history of two would pass for one.

    Raises UsageError when either belongs to another store.
    """
    record = settings.home / "store.json"
    in_home = json.loads(record.read_text())["store"] if record.exists() else None
    in_dagster = instance.run_storage.get_cursor_values({_BINDING}).get(_BINDING)
    for place, bound in ((f"The home {settings.home}", in_home), ("Dagster's database", in_dagster)):
        if bound not in (None, identity):
            raise UsageError(
                f"{place} belongs to another store ({_which(bound, identity)}). "
                "Set UUID_PIPELINE_HOME to a directory for this store"
                + (" and UUID_PIPELINE_DAGSTER_URL to a database for it." if settings.dagster_url else ".")
            )
    if in_dagster is None:
        instance.run_storage.set_cursor_values({_BINDING: identity})
    if in_home is None:
        record.write_text(json.dumps({"store": identity}))
