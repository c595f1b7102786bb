"""A process killed at any moment leaves a store that the next run finishes, or takes back, exactly."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import load_spec, parse_spec
from uuid_pipeline_tests.faults import scene
from uuid_pipeline_tests.integration import cycle

ROOT = Path(__file__).parents[2]
SEED = 20260101
KILLS = 6


@pytest.fixture
def store(incident_with_buffer: Engine) -> Engine:
    return incident_with_buffer


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """The default spec with batches of one document: as many moments to die as there can be."""
    text = (ROOT / "uuid_pipeline/specs/upload_pipeline.yaml").read_text(encoding="utf-8")
    # A small sample: moments are counted in statements, and those to die at are the ones of waves and batches.
    text = text.replace("  role: authenticated", "  role: authenticated\n  sample: 3")
    path = tmp_path / "spec.yaml"
    path.write_text(text + "\nbatch_rows: 1\n", encoding="utf-8")
    return path


def command(url: str, spec_file: Path, direction: str, moment: str, number: int) -> list[str]:
    module = "uuid_pipeline_tests.faults.runner"
    return [sys.executable, "-m", module, url, str(spec_file), direction, moment, str(number)]


def die(url: str, spec_file: Path, direction: str, moment: str, number: int) -> int:
    """Let a process work and die; returns how many batches it said it had done."""
    done = subprocess.run(
        command(url, spec_file, direction, moment, number), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return len(done.stdout.splitlines())


def moments(direction: str) -> Iterator[tuple[str, int]]:
    """Seeded moments, near and far, before a statement and before a commit."""
    chance = random.Random(f"{SEED} {direction}")
    for number in range(KILLS):
        yield ("statement", chance.randrange(2, 400)) if number % 2 == 0 else ("commit", chance.randrange(1, 30))


@pytest.mark.system
def test_a_migration_killed_at_many_moments_ends_as_if_nothing_had_happened(
    store: Engine, incident_url: str, spec_file: Path
) -> None:
    spec = load_spec(spec_file)
    before = cycle.rows_of(store)
    execution = cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)

    for moment, number in moments("forward"):
        die(incident_url, spec_file, "forward", moment, number)
        scene.wait_until_free(store)
    batches = "SELECT count(*) FROM uuid_pipeline.batches"
    [(committed,)] = cycle.run_sql(store, batches)
    assert 0 < committed < 38

    cycle.migrate_all(store, spec, execution)

    cycle.assert_green(cycle.validate(store))
    assert cycle.rows_of(store) == cycle.expected_rows(before)
    assert cycle.run_sql(store, batches) == [(38,)]


@pytest.mark.system
def test_a_rollback_killed_at_many_moments_ends_with_the_original_rows(
    store: Engine, incident_url: str, spec_file: Path
) -> None:
    spec = load_spec(spec_file)
    rows, objects = cycle.rows_of(store), cycle.catalog_of(store)
    cycle.run_all(store, spec)

    for moment, number in moments("back"):
        die(incident_url, spec_file, "back", moment, number)
        scene.wait_until_free(store)
    back = "SELECT count(*) FROM uuid_pipeline.batches WHERE direction = 'back'"
    [(committed,)] = cycle.run_sql(store, back)
    assert 0 < committed < 38

    cycle.roll_back(store, spec)

    assert cycle.rows_of(store) == rows
    assert cycle.catalog_of(store) == objects
    assert cycle.run_sql(store, back) == [(38,)]


def test_a_migration_killed_halfway_can_be_rolled_back_instead(
    store: Engine, incident_url: str, spec_file: Path
) -> None:
    spec = load_spec(spec_file)
    rows = cycle.rows_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)
    process = subprocess.Popen(
        command(incident_url, spec_file, "forward", "never", 0), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    scene.wait_until_free(store)
    assert cycle.rows_of(store) != rows

    cycle.roll_back(store, spec)

    assert cycle.rows_of(store) == rows


def test_after_any_kill_every_row_is_either_old_or_new_and_no_reference_dangles(
    store: Engine, incident_url: str, spec_file: Path
) -> None:
    spec = load_spec(spec_file)
    before = cycle.rows_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)

    die(incident_url, spec_file, "forward", "statement", 450)

    scene.wait_until_free(store)
    moved = {
        row[0]
        for row in cycle.run_sql(
            store,
            """SELECT m.old_id::text FROM uuid_pipeline.id_map_document m JOIN uuid_pipeline.batches b
               ON m.ordinal BETWEEN b.first_ordinal AND b.last_ordinal""",
        )
    }
    left = {str(row["document_id"]) for row in before["documents"]} - moved
    assert moved
    assert left
    assert cycle.rows_of(store) == cycle.expected_rows(before, left=left)


def test_the_spec_of_these_tests_is_the_default_one_but_for_its_batches(spec_file: Path) -> None:
    default = cycle.spec_with(batch_rows=1)
    assert default.retrieval is not None
    expected = default.model_copy(update={"retrieval": default.retrieval.model_copy(update={"sample": 3})})
    assert parse_spec(spec_file.read_text(), "x") == expected
