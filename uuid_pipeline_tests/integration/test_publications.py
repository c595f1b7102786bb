"""Publications: whoever subscribes gets each moved row; what publishes every table publishes the ledger's, too."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo.server import EmbeddedServer, ensure_database
from uuid_pipeline.engine import ledger
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.conftest import opened, server_of_our_own
from uuid_pipeline_tests.integration import cycle, shop

SPEC = load_spec(None)
# The server warns that nothing is published before wal_level allows it; what it refuses is refused all the same.
PUBLISHED = "CREATE PUBLICATION everything FOR ALL TABLES"


def test_a_publication_of_all_tables_keeps_nothing_of_a_migration_or_its_rollback_from_being_done(
    twins: Engine,
) -> None:
    """The server refuses to change rows of a published table by which a subscriber could not find them."""
    before = cycle.rows_of(twins)
    cycle.run_sql(twins, PUBLISHED)

    cycle.run_all(twins, SPEC)
    cycle.roll_back(twins, SPEC)

    assert cycle.rows_of(twins) == before
    assert tables_without_identity(twins) == []


def tables_without_identity(store: Engine) -> list[tuple[str, ...]]:
    """Tables of the ledger whose changed rows no subscriber could find. Of a partitioned one its parts are asked."""
    return cycle.run_sql(
        store,
        """SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'uuid_pipeline'::regnamespace AND c.relkind = 'r'
           AND c.relreplident <> 'f'
           AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)""",
    )


@pytest.fixture
def logical_server() -> Iterator[EmbeddedServer]:
    with server_of_our_own(wal_level="logical") as started:
        yield started


@pytest.mark.system
def test_the_ledger_is_not_made_where_a_subscriber_may_get_it_who_knows_nothing_of_it(
    logical_server: EmbeddedServer, tmp_path: Path
) -> None:
    ensure_database(logical_server, "shop")
    ensure_database(logical_server, "other")
    with opened(logical_server.url("shop")) as store:
        shop.build(store)
        cycle.run_sql(store, PUBLISHED)
        assert ledger_made(store, shop.SPEC) is None

        cycle.run_sql(store, "DROP SCHEMA uuid_pipeline CASCADE")
        with psycopg.connect(logical_server.url("other"), autocommit=True) as elsewhere:
            elsewhere.execute("SELECT pg_create_logical_replication_slot('of_another_database', 'pgoutput')")
        assert ledger_made(store, shop.SPEC) is None

        cycle.run_sql(store, "DROP SCHEMA uuid_pipeline CASCADE")
        cycle.run_sql(store, "SELECT pg_create_logical_replication_slot('streaming', 'pgoutput')")
        said = ledger_made(store, shop.SPEC)
        assert said is not None
        assert "Publication everything is FOR ALL TABLES" in said
        assert "pg_replication_slots: streaming)" in said
        assert cycle.run_sql(store, "SELECT to_regnamespace('uuid_pipeline')") == [(None,)]

        allowed = shop.SPEC.model_copy(update={"ledger_in_publications": ["everything"]})
        assert ledger_made(store, allowed) is None

        # Each plan makes tables of ours: what streams them may have come since the ledger did.
        answer = CommandLine(
            {
                "UUID_PIPELINE_DATABASE_URL": logical_server.url("shop"),
                "UUID_PIPELINE_DAGSTER_URL": logical_server.url("other"),
                "UUID_PIPELINE_HOME": str(tmp_path / "home"),
                "UUID_PIPELINE_SPEC": str(spec_file(tmp_path)),
            }
        ).process("profile", "--json")
        assert (answer.code, "ledger_in_publications: [everything]" in answer.data["error"]) == (1, True)

        cycle.run_sql(store, "DROP SCHEMA uuid_pipeline CASCADE")
        cycle.run_sql(store, "DROP PUBLICATION everything")
        cycle.run_sql(store, "CREATE PUBLICATION everything FOR TABLES IN SCHEMA shop")
        assert ledger_made(store, shop.SPEC) is None


def spec_file(directory: Path) -> Path:
    path = directory / "shop.yaml"
    path.write_text(shop.SPEC_TEXT)
    return path


def ledger_made(store: Engine, spec: Spec) -> str | None:
    """Make the ledger; what was said where it was refused."""
    try:
        with store.begin() as connection:
            ledger.create(connection, cycle.bound(connection, spec))
    except RefusedError as error:
        return error.message
    return None
