"""Random schemas with random rows: migrated as the oracle says, and rolled back to the byte."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import Engine

from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.properties import oracle
from uuid_pipeline_tests.properties.stores import SCHEMA, RandomStore, build
from uuid_pipeline_tests.properties.strategies import stores

# The same examples in every run of the suite, shown as they failed. For a hunt: PROPERTY_EXAMPLES=1000, which takes new
# ones each time and makes one that failed as small as it can.
_HUNT = os.environ.get("PROPERTY_EXAMPLES")


def in_one_database(examples: int) -> settings:
    """An example begins with what the one before left, and drops it: a database a test is enough."""
    return settings(
        max_examples=int(_HUNT or examples),
        derandomize=_HUNT is None,
        database=None,
        phases=tuple(Phase) if _HUNT else (Phase.explicit, Phase.generate),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# A few in every run; many, which take minutes, in the system tests.
SOME, ALL = in_one_database(5), in_one_database(25)


def built(engine: Engine, store: RandomStore) -> cycle.Rows:
    """The store's rows, in a database that holds nothing else, for sessions that have seen no other store."""
    engine.dispose()
    with cycle.session(engine) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS uuid_pipeline, "{SCHEMA}" CASCADE')
        build(connection, store)
    return cycle.rows_of(engine, SCHEMA)


def archived(engine: Engine, before: cycle.Rows) -> dict[str, list[cycle.Row]]:
    """What the ledger's archives hold, by the table that it came from."""
    found: dict[str, list[cycle.Row]] = {}
    for name, rows in cycle.rows_of(engine, "uuid_pipeline").items():
        for table in before:
            if name.startswith(f"archive_{SCHEMA}_{table}"[:47] + "_"):
                found[table] = [{c: v for c, v in row.items() if not c.startswith("uuid_pipeline_")} for row in rows]
    return found


@SOME
@given(store=stores(duplicates=True))
def test_a_random_store_with_duplicates_is_merged_so_that_nothing_is_lost_and_rolled_back_to_the_byte(
    empty_store: Engine, store: RandomStore
) -> None:
    merge_and_roll_back(empty_store, store)


@pytest.mark.system
@ALL
@given(store=stores(duplicates=True))
def test_many_random_stores_with_duplicates_are_merged_and_rolled_back(empty_store: Engine, store: RandomStore) -> None:
    merge_and_roll_back(empty_store, store)


def merge_and_roll_back(empty_store: Engine, store: RandomStore) -> None:
    """Nothing is lost on the way there, and back it is the same to the byte."""
    before = built(empty_store, store)
    spec = store.spec()

    plan = cycle.assess_and_plan(empty_store, spec)
    if plan.nothing_to_do:
        assert oracle.broken_by_merging(store, before, before, {}) == []
        return
    execution = cycle.approve(empty_store, spec, plan.plan_id)
    cycle.migrate_all(empty_store, spec, execution)
    after = cycle.rows_of(empty_store, SCHEMA)
    assert oracle.broken_by_merging(store, before, after, archived(empty_store, before)) == []
    cycle.assert_green(cycle.validate(empty_store))

    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, SCHEMA) == before


@SOME
@given(store=stores())
def test_a_random_store_is_migrated_as_the_oracle_says_and_rolled_back_to_the_byte(
    empty_store: Engine, store: RandomStore
) -> None:
    migrate_and_roll_back(empty_store, store)


@pytest.mark.system
@ALL
@given(store=stores())
def test_many_random_stores_are_migrated_as_the_oracle_says_and_rolled_back(
    empty_store: Engine, store: RandomStore
) -> None:
    migrate_and_roll_back(empty_store, store)


def migrate_and_roll_back(empty_store: Engine, store: RandomStore) -> None:
    """As the oracle says on the way there, and back it is the same to the byte."""
    before = built(empty_store, store)
    expected = oracle.expected_rows(store, before)
    objects = cycle.catalog_of(empty_store, SCHEMA)
    spec = store.spec()

    plan = cycle.assess_and_plan(empty_store, spec)
    assert plan.nothing_to_do == (expected == before)
    if plan.nothing_to_do:
        return
    execution = cycle.approve(empty_store, spec, plan.plan_id)
    cycle.migrate_all(empty_store, spec, execution)
    cycle.assert_green(cycle.validate(empty_store))
    assert cycle.rows_of(empty_store, SCHEMA) == expected

    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, SCHEMA) == before
    assert cycle.catalog_of(empty_store, SCHEMA) == objects
