"""The oracle of merging finds what a merge can get wrong; tried on merges made by hand, without a database."""

from hypothesis import assume, given, settings

from uuid_pipeline_tests.integration.cycle import Row, Rows
from uuid_pipeline_tests.properties import oracle
from uuid_pipeline_tests.properties.stores import RandomStore
from uuid_pipeline_tests.properties.strategies import stores

QUICK = settings(max_examples=30, derandomize=True, database=None, deadline=None)


def as_text(store: RandomStore) -> Rows:
    return {
        table: [{column: None if value is None else str(value) for column, value in row.items()} for row in rows]
        for table, rows in store.rows.items()
    }


def merged(store: RandomStore, before: Rows) -> tuple[Rows, dict[str, list[Row]]]:
    """Of each natural key the first row survives; the rows after, and those archived, with their old ids."""
    new = oracle.targets(store, before)
    left, archived = dict(before), dict[str, list[Row]]()
    for level, target in zip(store.levels, new, strict=True):
        first = {target.get(row[level.key], row[level.key]): row for row in reversed(before[level.table])}
        left[level.table] = [row for row in before[level.table] if row in first.values()]
        archived[level.table] = [row for row in before[level.table] if row not in first.values()]
    return oracle.renamed(store, new, left), archived


@QUICK
@given(store=stores(duplicates=True))
def test_a_merge_that_keeps_the_first_and_archives_the_others_is_right(store: RandomStore) -> None:
    before = as_text(store)
    after, archived = merged(store, before)

    assert oracle.broken_by_merging(store, before, after, archived) == []


@QUICK
@given(store=stores(duplicates=True))
def test_a_merge_that_forgets_to_archive_a_row_is_found(store: RandomStore) -> None:
    before = as_text(store)
    after, archived = merged(store, before)
    table = next((table for table, rows in archived.items() if rows), None)
    assume(table is not None)
    archived[str(table)].pop()

    assert oracle.broken_by_merging(store, before, after, archived) != []


@QUICK
@given(store=stores(duplicates=True))
def test_a_merge_that_leaves_a_reference_at_the_loser_is_found(store: RandomStore) -> None:
    before = as_text(store)
    after, archived = merged(store, before)
    losers = {row[level.key]: number for number, level in enumerate(store.levels) for row in archived[level.table]}
    survivors = {oracle.targets(store, before)[number][loser]: loser for loser, number in losers.items()}
    pointing = [row for r in store.referrers for row in after[r.table] if row["ref%"] in survivors]
    assume(pointing)
    pointing[0]["ref%"] = survivors[str(pointing[0]["ref%"])]

    assert oracle.broken_by_merging(store, before, after, archived) != []
