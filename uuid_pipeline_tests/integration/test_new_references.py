"""A foreign key that the application makes while a run writes: its rows are never left dangling."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import ledger, sync_points
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

SPEC = cycle.spec_with(batch_rows=1, lanes=1)
# For each document the id that it has now, and will not have in a moment.
MADE = """
CREATE TABLE upload_pipeline.ratings (rating_id int PRIMARY KEY, document_id uuid NOT NULL
    CONSTRAINT rated REFERENCES upload_pipeline.documents);
INSERT INTO upload_pipeline.ratings
SELECT row_number() OVER (ORDER BY document_id), document_id FROM upload_pipeline.documents;
"""
DANGLING = """
SELECT count(*) FROM upload_pipeline.ratings r
WHERE NOT EXISTS (SELECT FROM upload_pipeline.documents d WHERE d.document_id = r.document_id)
"""


def make_after(engine: Engine, commits: int) -> None:
    """Once so many batches have committed, the application makes its table."""
    left = [commits]

    def come() -> None:
        left[0] -= 1
        if left[0] == 0:
            cycle.run_sql(engine, MADE)

    sync_points.on("committed", come)


def stop(deed: Callable[[], object], remedy: str) -> None:
    with pytest.raises(RefusedError, match=rf"rated of upload_pipeline\.ratings.*{remedy}"):
        deed()
    sync_points.clear()


def rated(engine: Engine) -> dict[str | None, str | None]:
    """Rating -> natural key of the document that it is of."""
    rows = cycle.rows_of(engine)
    key = {row["document_id"]: f"{row['user_id']}:{row['file_sha256']}" for row in rows["documents"]}
    return {row["rating_id"]: key[row["document_id"]] for row in rows["ratings"]}


def goes_on_after_a_new_plan(engine: Engine, store: Engine) -> None:
    before = cycle.rows_of(store)
    execution = approved(engine)
    make_after(store, 2)

    stop(lambda: cycle.migrate_all(engine, SPEC, execution), "plan again")

    assert cycle.run_sql(store, "SELECT count(*) FROM uuid_pipeline.batches") == [(2,)]
    assert cycle.run_sql(store, DANGLING) == [(0,)]
    of_document = rated(store)
    cycle.run_all(engine, SPEC)
    after = cycle.rows_of(store)
    assert rated(store) == of_document
    del after["ratings"]
    assert after == cycle.expected_rows(before)


def test_forward_the_run_stops_before_a_row_dangles_and_a_new_plan_takes_all_along(incident: Engine) -> None:
    goes_on_after_a_new_plan(incident, incident)


def test_where_foreign_keys_are_checked_the_run_stops_with_the_same_words(
    incident: Engine, incident_url: str, new_role: NewRole
) -> None:
    role = new_role("BYPASSRLS")
    cycle.make_owner(incident, role)
    with opened(as_role(incident_url, role)) as owner:
        cycle.run_sql(incident, f'ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO "{role}"')
        goes_on_after_a_new_plan(owner, incident)
    assert cycle.run_sql(incident, "SELECT DISTINCT content->>'tier' FROM uuid_pipeline.plans") == [("O",)]


@pytest.mark.begins("migrated")
def test_a_rollback_stops_and_takes_the_new_rows_along_when_it_is_given_again(
    incident: Engine, untouched: Engine
) -> None:
    make_after(incident, 2)

    stop(lambda: cycle.roll_back(incident, small(incident)), "same command again")

    assert cycle.run_sql(incident, DANGLING) == [(0,)]
    of_document = rated(incident)
    cycle.roll_back(incident, SPEC)
    assert rated(incident) == of_document
    after = cycle.rows_of(incident)
    del after["ratings"]
    assert after == cycle.rows_of(untouched)


def small(engine: Engine) -> Spec:
    """Batches of one document: the rollback follows the spec that its plan was made with."""
    cycle.run_sql(
        engine,
        "UPDATE uuid_pipeline.assessments SET profile = jsonb_set(profile, '{spec,batch_rows}', '1')",
    )
    return SPEC


def test_a_key_that_refers_to_nothing_that_moves_stops_nothing(incident: Engine) -> None:
    before = cycle.rows_of(incident)
    pairs = "upload_pipeline.pairs"

    def come() -> None:
        cycle.run_sql(incident, f"CREATE TABLE IF NOT EXISTS {pairs} (a int PRIMARY KEY, b int REFERENCES {pairs})")

    sync_points.on("held", come)

    cycle.migrate(incident, SPEC, cycle.waves_of(incident, approved(incident))[0])

    assert cycle.run_sql(incident, "SELECT count(*) FROM uuid_pipeline.batches") == [(5,)]
    sync_points.clear()
    cycle.run_sql(incident, f"DROP TABLE {pairs}")
    cycle.finish(incident, SPEC, cycle.newest_execution(incident))
    assert cycle.rows_of(incident) == cycle.expected_rows(before)


def approved(engine: Engine) -> ledger.Execution:
    return cycle.approve(engine, SPEC, cycle.assess_and_plan(engine, SPEC).plan_id)
