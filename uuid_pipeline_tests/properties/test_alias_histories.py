"""Ids over several executions, their rollbacks, a guard, and ids that are used again: each leads to its own row."""

import pytest
from hypothesis import given
from sqlalchemy import Connection, Engine

from uuid_pipeline.engine import lease as leases
from uuid_pipeline.engine import ledger
from uuid_pipeline.engine.installed import aliases, guard
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.properties.histories import MAPS, History, Wave, histories
from uuid_pipeline_tests.properties.test_random_stores import in_one_database

SPEC = parse_spec(
    """
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: life
backup: none
entities:
  doc: {table: docs, key: id, identity: "{key}"}
""",
    "life",
)
STORE = "CREATE SCHEMA life; CREATE TABLE life.docs (id text PRIMARY KEY, key text, nr int)"
LEDGER = """
INSERT INTO uuid_pipeline.assessments (assessment_no, run_id, spec_digest, catalog_digest, profile)
    OVERRIDING SYSTEM VALUE VALUES ({no}, '', '', '', '{{}}');
INSERT INTO uuid_pipeline.plans VALUES ({no}, '', '{{}}');
CREATE TABLE uuid_pipeline.id_map_doc_{no} PARTITION OF uuid_pipeline.id_map_doc FOR VALUES IN ({no})
"""
FORGET = """
TRUNCATE life.docs, uuid_pipeline.id_map_doc, uuid_pipeline.guarded_doc, uuid_pipeline.unmoved, uuid_pipeline.executions
CASCADE
"""
MAPPED = """
INSERT INTO uuid_pipeline.id_map_doc (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
VALUES (%s, %s, '', %s, '', %s, %s)
"""
GUARDED = """
INSERT INTO uuid_pipeline.guarded_doc (assessment_no, ordinal, wave, role, natural_key, old_id, new_id)
VALUES (%s, 1, '', 'move', '', %s, %s)
"""
FOUND = """
SELECT a.id, r.nr, h.nr, v.nr FROM unnest(%(ids)s::text[]) a (id)
LEFT JOIN life.docs r ON r.id = uuid_pipeline.resolve_doc(a.id)
LEFT JOIN life.docs h ON h.id = uuid_pipeline.held_doc(a.id)
LEFT JOIN (SELECT alias, nr FROM uuid_pipeline.alias_doc JOIN life.docs ON id = current) v ON v.alias = a.id
"""


@pytest.fixture
def life(empty_store: Engine) -> Engine:
    """A table without rows, with MAPS empty id maps that resolve, and a guard's."""
    cycle.run_sql(empty_store, STORE)
    store = cycle.bound_store(empty_store, SPEC)
    with empty_store.begin() as connection:
        ledger.create(connection, store)
        for number in range(1, MAPS + 1):
            connection.exec_driver_sql(LEDGER.format(no=number))
    guard.install(empty_store, store, "rewrite", [], cycle.RUN)
    with leases.held(empty_store, cycle.RUN) as (_, lease):
        aliases.install(empty_store, lease, store, range(MAPS + 1))
    cycle.run_sql(empty_store, "SET jit = off")
    return empty_store


@in_one_database(60)
@given(history=histories())
def test_an_id_leads_to_its_own_row_or_to_none_where_it_was_more_than_ones(life: Engine, history: History) -> None:
    stale = sorted(history.had.keys() - set(history.ids.values()))
    with life.begin() as connection:
        write(connection, history)
    with life.begin() as connection:
        connection.exec_driver_sql("SET jit = off")
        found = {row[0]: set(row[1:]) for row in connection.exec_driver_sql(FOUND, {"ids": stale})}

    for id in stale:
        owners = history.owners(id)
        assert len(found[id]) == 1, f"{id}: function, trigger and view differ, {found[id]}"
        assert found[id] <= owners, f"{id} of {history.had[id]} leads to {found[id]}, not {owners}"


def write(connection: Connection, history: History) -> None:
    """The rows that there are, and the ledger as the engine has left it."""
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    connection.exec_driver_sql(FORGET)
    for row, id in history.ids.items():
        connection.exec_driver_sql("INSERT INTO life.docs VALUES (%s, %s, %s)", (id, history.keys[row], row))
    for number, lines in history.maps.items():
        for line in lines:
            connection.exec_driver_sql(MAPPED, (number, line.ordinal, line.role, line.old, line.new))
    for given_id, (after, target) in history.guarded.items():
        connection.exec_driver_sql(GUARDED, (after, given_id, target))
    for execution, waves in enumerate(history.executions):
        connection.exec_driver_sql(
            """INSERT INTO uuid_pipeline.executions
                   (execution_id, assessment_no, plan_id, status, approved_by, expires_at)
               VALUES (%s, %s, '', 'completed', '', now())""",
            (str(execution), waves[0].number),
        )
        for position, wave in enumerate(waves):
            write_wave(connection, str(execution), position, wave)


def write_wave(connection: Connection, execution: str, position: int, wave: Wave) -> None:
    name = f"{execution}-{position}"
    connection.exec_driver_sql(
        """INSERT INTO uuid_pipeline.waves (execution_id, position, wave, kind, first_ordinal, last_ordinal, documents,
               assessment_no, status) VALUES (%s, %s, %s, '', %s, %s, 0, %s, %s)""",
        (execution, position, name, wave.first, wave.last, wave.number, wave.status),
    )
    for number, direction in wave.batches:
        connection.exec_driver_sql(
            """INSERT INTO uuid_pipeline.batches (batch_no, execution_id, wave, direction, first_ordinal, last_ordinal,
                   moved, fingerprints, lease_epoch, milliseconds)
               OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s, %s, '{}', '{}', 0, 0)""",
            (number, execution, name, direction, wave.first, wave.last),
        )
    for ordinal, id in [(ordinal, id) for ordinal, ids in wave.unmoved.items() for id in ids]:
        connection.exec_driver_sql(
            """INSERT INTO uuid_pipeline.unmoved (execution_id, wave, entity, ordinal, old_id, reason)
               VALUES (%s, %s, 'doc', %s, %s, 'taken')""",
            (execution, name, ordinal, id),
        )
