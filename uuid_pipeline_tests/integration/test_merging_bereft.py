"""A rollback of merges after the application deleted what archived rows refer to: they stay, with what needs them."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_hanging import DOCUMENTS, ENTITIES, TIERS
from uuid_pipeline_tests.integration.test_merging_odd import built, owner_in

# Of two clusters the younger documents go; the zone of the first one's loser shows a file.
ZONES = (
    DOCUMENTS
    + """
CREATE TABLE app.files (n int PRIMARY KEY);
CREATE TABLE app.zones (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ord int,
                        file int REFERENCES app.files ON DELETE SET NULL);
ALTER TABLE app.documents ADD cover uuid REFERENCES app.zones;
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000004', 'u', 'other', '2026-02-01');
INSERT INTO app.files VALUES (1);
INSERT INTO app.zones VALUES ('cccccccc-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 0, NULL),
                             ('cccccccc-0000-4000-8000-000000000002', 'aaaaaaaa-0000-4000-8000-000000000002', 0, 1)
"""
)
ZONE = '  zone: {table: zones, key: id, parent: document, identity: "{document_id}:{ord}"}\n'
COVERED = (
    "UPDATE app.documents SET cover = 'cccccccc-0000-4000-8000-000000000002' WHERE right(id::text, 1) = ANY(%(n)s)"
)


@TIERS
@pytest.mark.parametrize("covered", [["2"], ["4"], ["2", "4"], []], ids=["its own", "another's", "both", "nobody's"])
def test_documents_whose_cover_cannot_come_back_stay_archived_and_nothing_dangles(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str, covered: list[str]
) -> None:
    built(empty_store, ZONES)
    cycle.run_sql(empty_store, COVERED, n=covered)
    spec = parse_spec(ENTITIES + ZONE, "app.yaml")
    role, before = owner_in(tier, empty_store, new_role), cycle.rows_of(empty_store, "app")

    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec)
        cycle.run_sql(empty_store, "DELETE FROM app.files")
        cycle.roll_back(owner, spec)

    after = cycle.rows_of(empty_store, "app")
    assert after["documents"] == [row for row in before["documents"] if str(row["id"])[-1] not in covered]
    assert after["zones"] == [{**row, "file": None} for row in before["zones"] if str(row["id"])[-1] == "1"]
