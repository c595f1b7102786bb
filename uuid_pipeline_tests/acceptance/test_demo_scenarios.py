"""`demo` with its options: which store it builds, and that a home holds one."""

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from uuid_pipeline.cli.demo import build, scenario_of
from uuid_pipeline.cli.output import Answer
from uuid_pipeline.demo import server as embedded
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.settings import Settings
from uuid_pipeline_tests.acceptance.conftest import CommandLine
from uuid_pipeline_tests.integration import cycle

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


@pytest.mark.system
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


Sets = dict[str, dict[tuple[str, str], set[int]]]


def chunk_sets(rows: cycle.Rows, document_of: dict[str, str]) -> Sets:
    """By target id of the document: the ordinals of each chunker and version, of one or of both twins."""
    found: Sets = {}
    for row in rows["document_chunks"]:
        by_version = found.setdefault(document_of[str(row["document_id"])], {})
        version = (str(row["chunker_name"]), str(row["chunker_version"]))
        by_version.setdefault(version, set()).add(int(str(row["chunk_ord"])))
    return found


def largest_sets(rows: cycle.Rows, target: dict[str, str]) -> dict[str, dict[tuple[str, str], int]]:
    """By target id: of each chunker and version the size of the more complete set that any twin has."""
    largest: dict[str, dict[tuple[str, str], int]] = {}
    for document, by_version in chunk_sets(rows, {old: old for old in target}).items():
        sizes = largest.setdefault(target[document], {})
        for version, ordinals in by_version.items():
            sizes[version] = max(sizes.get(version, 0), len(ordinals))
    return largest


@pytest.mark.system
def test_twins_are_merged_into_thirty_eight_and_come_back_row_for_row(demo_home: Path) -> None:
    build(Settings(home=demo_home), scenario_of("twins", None), Answer())
    engine = open_store(embedded.start(demo_home).url("incident"))
    before = cycle.rows_of(engine)
    target = cycle.targets(before)
    demo = CommandLine({"UUID_PIPELINE_HOME": str(demo_home)})

    done = demo("demo", "--scenario", "twins", "--json")
    assert (done.code, done.data.get("error")) == (0, None)
    assert done.data["status"] == "completed"
    assert done.data["documents"] == {"before": 50, "now": 38}

    after = cycle.rows_of(engine)
    documents_before = [str(row["document_id"]) for row in before["documents"]]
    documents_after = [str(row["document_id"]) for row in after["documents"]]
    assert len(documents_before) == 50
    assert sorted(documents_after) == sorted({target[document] for document in documents_before})
    assert len(documents_after) == 38
    # Whole sets, the more complete one of each version, under the ids that a standard uuid5 gives.
    kept = chunk_sets(after, {document: document for document in documents_after})
    assert {d: {v: len(o) for v, o in sets.items()} for d, sets in kept.items()} == largest_sets(before, target)
    assert {str(row["chunk_id"]) for row in after["document_chunks"]} <= set(target.values())
    assert all(target_of_chunk(row) == row["chunk_id"] for row in after["document_chunks"])
    # What hangs on a merged document hangs on its survivor.
    for table, key in (("upload_jobs", "job_id"), ("events", "event_id")):
        moved = {str(row[key]): target[str(row["document_id"])] for row in before[table]}
        assert {str(row[key]): row["document_id"] for row in after[table]} == moved
    assert after["webhook_log"] == before["webhook_log"]
    document_of = {row["chunk_id"]: row["document_id"] for row in after["document_chunks"]}
    assert all(document_of[row["chunk_id"]] == row["document_id"] for row in after["document_vector_buffer"])

    again = demo("demo", "--scenario", "twins", "--json")
    assert (again.code, again.data["nothing_to_do"]) == (0, True)
    undone = demo("rollback", "--all", "--json")
    assert (undone.code, undone.data.get("error")) == (0, None)
    assert cycle.rows_of(engine) == before
    engine.dispose()


def target_of_chunk(row: cycle.Row) -> str:
    parts = (row["document_id"], row["chunker_name"], row["chunker_version"], row["chunk_ord"])
    return str(uuid.uuid5(cycle.NAMESPACE, ":".join(map(str, parts))))
