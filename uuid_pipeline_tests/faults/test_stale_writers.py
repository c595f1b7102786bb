"""Writers that hold ids of before go on through a migration, its rollback and another one, in both tiers."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.faults import writers as application
from uuid_pipeline_tests.faults.deeds import DEEDS
from uuid_pipeline_tests.faults.writers import Writer, working
from uuid_pipeline_tests.integration import cycle

# A few documents a batch: many batches, and several documents to wait for in each.
SPEC = cycle.spec_with(batch_rows=30)
WRITERS = 3
DELETED = 4


@pytest.fixture
def store(incident_with_buffer: Engine) -> Engine:
    return incident_with_buffer


@pytest.fixture
def application_url(store: Engine, incident_url: str, new_role: NewRole) -> str:
    """The store as the application has it: rows of its tables, no right on anything of ours."""
    role = new_role("BYPASSRLS")
    cycle.run_sql(store, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    cycle.run_sql(store, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA upload_pipeline TO {role}")
    return as_role(incident_url, role)


@pytest.fixture
def owner(store: Engine, incident_url: str, new_role: NewRole) -> Iterator[Engine]:
    """The store for a plain owner of its tables, who may not silence triggers."""
    role = new_role()
    cycle.run_sql(store, f"GRANT CREATE ON DATABASE {store.url.database} TO {role}")
    cycle.run_sql(store, f"GRANT USAGE ON SCHEMA upload_pipeline TO {role}")
    for table in cycle.rows_of(store):
        cycle.run_sql(store, f"ALTER TABLE upload_pipeline.{table} OWNER TO {role}")
    engine = open_store(as_role(incident_url, role))
    yield engine
    engine.dispose()


def test_writers_by_stale_ids_notice_nothing_in_tier_r(store: Engine, application_url: str) -> None:
    notice_nothing("R", store, store, application_url)


@pytest.mark.system
def test_writers_by_stale_ids_notice_nothing_in_tier_o(store: Engine, owner: Engine, application_url: str) -> None:
    notice_nothing("O", owner, store, application_url)


def notice_nothing(tier: str, engine: Engine, store: Engine, url: str) -> None:
    """Forward, back, and forward again by ``engine``; everything is compared as the superuser sees it."""
    with engine.begin() as connection:
        assert triggers.choose(connection, cycle.bound(connection, SPEC)).name == tier
    objects, before = cycle.catalog_of(store), cycle.rows_of(store)
    first = new_writers(url, before)
    moved = forward_under(first, engine, store, f"{tier} forward")
    application.expect(moved, before, first)
    expect_target_ids(moved, before)

    second = new_writers(url, moved)
    with working(second):
        cycle.roll_back(engine, SPEC)
    back = cycle.rows_of(store)
    report(f"{tier} back", second)
    expect_no_error(second)
    application.expect(back, moved, second)
    expect_old_ids(back, before)

    again = forward_under(second, engine, store, f"{tier} again")
    application.expect(again, moved, second)
    expect_target_ids(again, before)
    assert cycle.catalog_of(store) == objects
    # Stale ids of both entities came while their rows had others.
    for entity in ("document", "chunk"):
        [(used,)] = cycle.run_sql(store, f"SELECT last_value FROM uuid_pipeline.alias_uses_{entity}")  # noqa: S608
        assert used > 10


def forward_under(writers: Sequence[Writer], engine: Engine, store: Engine, phase: str) -> cycle.Rows:
    """All of a migration while these write; the rows after it."""
    with working(writers):
        cycle.run_all(engine, SPEC)
    rows = cycle.rows_of(store)
    report(phase, writers)
    expect_every_deed(writers)
    expect_no_error(writers)
    return rows


def new_writers(url: str, rows: cycle.Rows) -> list[Writer]:
    return [Writer(url, known, n, DEEDS) for n, known in enumerate(application.learn(rows, WRITERS, DELETED))]


def total(counted: Iterable[Counter[str]]) -> Counter[str]:
    return +sum(counted, Counter[str]())


def report(phase: str, writers: Sequence[Writer]) -> None:
    """For people who read what a failed run printed."""
    sys.stdout.write(f"{phase}: {total(w.done for w in writers)}, retried {total(w.retried for w in writers)}\n")


def expect_no_error(writers: Sequence[Writer]) -> None:
    assert [error for writer in writers for error in writer.errors] == []


def expect_every_deed(writers: Sequence[Writer]) -> None:
    """Each kind of work was done while ids changed: otherwise this says nothing."""
    assert total(writer.done for writer in writers).keys() == {deed.__name__ for deed in DEEDS}


def expect_target_ids(rows: cycle.Rows, before: cycle.Rows) -> None:
    """Every row that was planned has its target id; one that came later has it, or the id that it came with."""
    planned = application.by_natural_key(before).keys()
    targets = cycle.targets(rows)
    for (table, name), key in ids_by_natural_key(rows).items():
        if (table, name) in planned:
            assert key == targets[key], (table, name)


def expect_old_ids(rows: cycle.Rows, before: cycle.Rows) -> None:
    old = ids_by_natural_key(before)
    now = ids_by_natural_key(rows)
    assert {key: now[key] for key in old if key in now} == {key: old[key] for key in old if key in now}


def ids_by_natural_key(rows: cycle.Rows) -> dict[application.Key, str]:
    """The id of every document and chunk, by a name without ids."""
    documents, chunks = application.names(rows)
    return {("documents", name): key for key, name in documents.items()} | {
        ("document_chunks", name): key for key, name in chunks.items()
    }
