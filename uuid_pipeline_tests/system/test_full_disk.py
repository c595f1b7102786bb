"""The disk full at every named point: the run stops with the server's error, and the next one finishes."""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import sync_points
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.conftest import fill
from uuid_pipeline_tests.faults import scene
from uuid_pipeline_tests.integration import cycle

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small filesystem"),
]


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


def use_up_free_pages(store: Engine) -> None:
    """What earlier runs left in half-filled pages would do for the next: every table is as small as it can be."""
    with cycle.session(store) as connection:
        connection.autocommit = True
        connection.execute("VACUUM (FULL)")


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
            use_up_free_pages(store)
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
            moved, wrong = scene.moved_and_broken(store, before)
            assert wrong == [], point
            if point not in stopped:
                # A run that says nothing has done it all, and put back what it had altered.
                assert (moved, scene.altered(store)) == ({"forward": 38, "back": 0}[work], []), point
        assert all("No space left on device" in message for message in said), said
        return stopped

    # Whatever the point, sweeps or batches come after it, and all of them write; after the last look, which comes when
    # all is moved, the end of the execution may fit into pages at hand.
    assert set(scene.POINTS["forward"]) - {"looked"} <= set(struck("forward"))
    scene.forward(store, spec)
    cycle.assert_green(cycle.validate(store))
    assert scene.moved_and_broken(store, before) == (38, [])
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []

    # Triggers are put back in pages at hand; everything before must be written first.
    assert set(scene.POINTS["back"]) - {"putting back", "put back"} <= set(struck("back"))
    scene.back(store, spec)
    assert cycle.rows_of(store) == before
    assert cycle.catalog_of(store) == objects
    assert scene.altered(store) == []
