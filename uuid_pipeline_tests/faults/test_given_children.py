"""An application that gives chunks to other documents all the time: between any two batches, there and back."""

import random
import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import sync_points
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_migration import ONE_BY_ONE

GIVE = """
UPDATE upload_pipeline.document_chunks SET document_id = %(to)s::uuid, chunk_ord = %(place)s
WHERE chunk_id = %(chunk)s::uuid
"""


class Application:
    """Gives a chunk to another document now and then, each to a place that none ever had."""

    def __init__(self, store: Engine, seed: int) -> None:
        self._store, self._chance, self._place = store, random.Random(seed), 1_000

    def give(self) -> None:
        chunks = cycle.run_sql(self._store, "SELECT chunk_id FROM upload_pipeline.document_chunks ORDER BY text")
        documents = cycle.run_sql(self._store, "SELECT document_id FROM upload_pipeline.documents ORDER BY file_sha256")
        for _ in range(self._chance.randint(0, 2)):
            self._place += 1
            [chunk], [to] = self._chance.choice(chunks), self._chance.choice(documents)
            cycle.run_sql(self._store, GIVE, chunk=str(chunk), to=str(to), place=self._place)


def ids(store: Engine) -> dict[str, str]:
    """The id of each chunk by its text, which nobody changes; every chunk has another."""
    found = cycle.run_sql(store, "SELECT text, chunk_id::text FROM upload_pipeline.document_chunks")
    assert len(dict(found)) == len(found)
    return dict(found)


def targets(store: Engine) -> dict[str, str]:
    """The id that each chunk should have below the document that has it now."""
    found = cycle.run_sql(
        store,
        """SELECT text, concat_ws(':', document_id, chunker_name, chunker_version, chunk_ord)
           FROM upload_pipeline.document_chunks""",
    )
    return {text: str(uuid.uuid5(cycle.NAMESPACE, name)) for text, name in found}


@pytest.mark.parametrize("seed", range(2))
def test_whoever_has_a_chunk_by_then_it_gets_its_id_and_the_old_one_back(incident: Engine, seed: int) -> None:
    cycle.run_sql(incident, "UPDATE upload_pipeline.document_chunks SET text = text || ' ' || chunk_id")
    before, application = ids(incident), Application(incident, seed)
    execution = cycle.approve(incident, ONE_BY_ONE, cycle.assess_and_plan(incident, ONE_BY_ONE).plan_id)

    sync_points.on("committed", application.give)
    cycle.migrate_all(incident, ONE_BY_ONE, execution)
    sync_points.clear()

    cycle.assert_green(cycle.validate(incident))
    cycle.run_all(incident, ONE_BY_ONE)
    assert ids(incident) == targets(incident)
    sync_points.on("committed", application.give)
    cycle.roll_back(incident, ONE_BY_ONE)
    sync_points.clear()
    assert ids(incident) == before
    cycle.run_all(incident, ONE_BY_ONE)
    assert ids(incident) == targets(incident)
