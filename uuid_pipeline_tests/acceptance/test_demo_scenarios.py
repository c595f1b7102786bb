"""`demo` with its options: which store it builds, and that a home holds one."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from uuid_pipeline.cli.demo import build, scenario_of
from uuid_pipeline.cli.output import Answer
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.settings import Settings
from uuid_pipeline_tests.acceptance.conftest import CommandLine

pytestmark = pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.PreviewWarning")


@pytest.fixture
def demo_home() -> Iterator[Path]:
    """A home for the demo that its server, which may run as another user, can reach."""
    with tempfile.TemporaryDirectory(prefix="up_", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "home"
        embedded.destroy(Path(directory) / "home")


def documents(home: Path) -> int:
    running = embedded.find(home)
    assert running is not None
    with psycopg.connect(running.url("incident")) as connection:
        [(found,)] = connection.execute("SELECT count(*) FROM upload_pipeline.documents").fetchall()
    return int(found)


def test_a_home_holds_one_scenario_or_size_and_fresh_makes_room_for_another(demo_home: Path) -> None:
    demo = CommandLine({"UUID_PIPELINE_HOME": str(demo_home)})
    # As a demo leaves it that was stopped when its store was built.
    build(Settings(home=demo_home), scenario_of("twins", None), Answer())
    assert documents(demo_home) == 50

    for other in ((), ("--documents", "61")):
        said = demo("demo", *other)
        assert (said.code, said.out) == (2, "")
        for part in ("'twins'", "--fresh", "UUID_PIPELINE_HOME"):
            assert part in said.err
    too_many = demo("demo", "--fresh", "--documents", str(10**12))
    assert too_many.code == 2
    assert "GB free" in too_many.err
    assert documents(demo_home) == 50

    fresh = demo("demo", "--fresh", "--documents", "60", "--json")
    assert (fresh.code, fresh.data["status"]) == (0, "completed")
    assert fresh.data["documents"] == {"before": 60, "now": 60}
    assert documents(demo_home) == 60
    again = demo("demo", "--documents", "61", "--json")
    assert again.code == 2
    assert "'60 documents'" in again.data["error"]


@pytest.mark.parametrize(
    "options", [("--scenario", "none"), ("--documents", "0"), ("--scenario", "twins", "--documents", "5")]
)
def test_options_that_ask_for_no_store_or_for_two_exit_with_2_and_build_nothing(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    said = CommandLine({"UUID_PIPELINE_HOME": str(tmp_path / "home")})("demo", *options)

    assert said.code == 2
    assert not (tmp_path / "home").exists()
