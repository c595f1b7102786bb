"""The first command of a home, killed while Dagster makes its tables: the next one works."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata

from uuid_pipeline.operations.instance import open_instance
from uuid_pipeline.settings import read_settings
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.conftest import NewDatabase

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


@pytest.fixture
def fresh(command_line: CommandLine, new_database: NewDatabase) -> CommandLine:
    """The command line of a home that no command was given in yet."""
    return CommandLine({**command_line.environment, "UUID_PIPELINE_DAGSTER_URL": new_database(None)})


@pytest.fixture
def dagster(fresh: CommandLine) -> Iterator[sa.Connection]:
    url = sa.make_url(fresh.environment["UUID_PIPELINE_DAGSTER_URL"]).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize(
    "made",
    [
        ["snapshots", "runs"],
        [table.name for table in RunStorageSqlMetadata.sorted_tables],
        ["event_logs", "asset_keys"],
    ],
    ids=["the first two tables", "one storage's", "some of another's"],
)
def test_some_of_dagsters_tables_are_not_taken_for_all(
    fresh: CommandLine, dagster: sa.Connection, made: list[str]
) -> None:
    for metadata in (RunStorageSqlMetadata, SqlEventLogStorageMetadata):
        metadata.create_all(dagster, tables=[t for t in metadata.sorted_tables if t.name in made])

    for _ in range(2):
        said = fresh("inventory", "--json")
        assert said.code == 0, said.err

    assert dagster.execute(sa.text("SELECT count(*) FROM runs")).scalar_one() == 2


def test_tables_that_lack_dagsters_notes_of_their_form_get_them(
    fresh: CommandLine, dagster: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.apply(monkeypatch)
    with open_instance(read_settings()):
        notes = dagster.execute(sa.text("SELECT name FROM secondary_indexes ORDER BY 1")).scalars().all()
    assert notes
    dagster.execute(sa.text("DELETE FROM secondary_indexes"))

    with open_instance(read_settings()):
        pass

    assert dagster.execute(sa.text("SELECT name FROM secondary_indexes ORDER BY 1")).scalars().all() == notes


def test_tables_of_an_instance_that_was_used_are_left_as_they_are(
    fresh: CommandLine, dagster: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older Dagster leaves them, which lacks what a newer one has."""
    assert fresh("inventory").code == 0
    runs = dagster.execute(sa.text("SELECT run_id FROM runs")).scalars().all()
    dagster.execute(sa.text("DROP TABLE asset_check_executions"))
    fresh.apply(monkeypatch)

    with open_instance(read_settings()):
        pass

    assert dagster.execute(sa.text("SELECT run_id FROM runs")).scalars().all() == runs
