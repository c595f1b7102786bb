"""The disk full at every named point: the run stops with the server's error, and the next one finishes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.demo import installation
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.faults import scene
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem"),
]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A filesystem of 200 MB, of the user that servers run as."""
    account = installation.server_account()
    place = Path(f"/tmp/up_disk_{os.getpid()}")
    place.mkdir()
    options = f"size=200m,uid={account.uid},gid={account.gid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


@pytest.fixture
def store(server: EmbeddedServer, small_disk: Path) -> Iterator[Engine]:
    """The store, with all its files on the small disk."""
    directory = small_disk / "tablespace"
    directory.mkdir()
    os.chown(directory, small_disk.stat().st_uid, small_disk.stat().st_gid)
    maintain(server, "CREATE TABLESPACE small LOCATION {}", sql.Literal(str(directory)))
    maintain(server, "CREATE DATABASE on_small_disk TEMPLATE template0 TABLESPACE small")
    engine = open_store(server.url("on_small_disk"))
    scene.build(engine)
    yield engine
    engine.dispose()
    maintain(server, "DROP DATABASE on_small_disk WITH (FORCE)")
    maintain(server, "DROP TABLESPACE small")


def maintain(server: EmbeddedServer, statement: str, *values: sql.Literal) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*values))


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as filler:
        block = b"\0" * 65536
        try:
            while True:
                filler.write(block)
                filler.flush()
        except OSError:
            pass


def test_a_disk_that_is_full_at_any_point_stops_the_run_and_once_there_is_room_the_next_finishes(
    store: Engine, small_disk: Path, tmp_path: Path
) -> None:
    scene.write_spec(tmp_path / "spec.yaml")
    spec = load_spec(tmp_path / "spec.yaml")
    before, objects = cycle.rows_of(store), cycle.catalog_of(store)
    cycle.approve(store, spec, cycle.assess_and_plan(store, spec).plan_id)

    def struck(work: str) -> list[str]:
        """Where the full disk stopped the run; after some points there may be little enough left to write."""
        stopped, said = [], []
        for point in scene.POINTS[work]:
            sync_points.on(point, lambda: fill(small_disk))
            try:
                scene.WORK[work](store, spec)
            except DBAPIError as error:
                said.append(str(error.orig))
                stopped.append(point)
            finally:
                sync_points.clear()
                # A server without any room lets nobody in, so this comes before the look.
                (small_disk / "filler").unlink(missing_ok=True)
                assert scene.moved_and_broken(store, before)[1] == []
        assert all("No space left on device" in message for message in said), said
        return stopped

    # A batch that holds its rows has much to write yet; elsewhere the pages at hand may just do.
    assert {"held"} <= set(struck("forward"))
    scene.forward(store, spec)
    cycle.assert_green(cycle.validate(store, spec))
    assert scene.moved_and_broken(store, before) == (38, [])
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []

    assert {"held"} <= set(struck("back"))
    scene.back(store, spec)
    assert cycle.rows_of(store) == before
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []
