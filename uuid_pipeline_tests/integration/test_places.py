"""Rollback where the application has filled a place that no plain key tells to be taken."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle

# Four files that were uploaded, deleted, and uploaded again: the older row of each is one that is deleted.
FILES = """
CREATE SCHEMA shop;
CREATE TABLE shop.files (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), account int NOT NULL, sha text NOT NULL, deleted_at date,
    seats int4range, created_at timestamptz NOT NULL, rank int NOT NULL DEFAULT 5,
    small text GENERATED ALWAYS AS (lower(sha)) STORED
);
CREATE TABLE shop.pages (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
                         file uuid NOT NULL REFERENCES shop.files ON DELETE CASCADE, n int NOT NULL);
INSERT INTO shop.files (account, sha, deleted_at, seats, created_at, rank)
SELECT 1, 'h' || n, v.deleted, CASE WHEN v.deleted IS NULL THEN int4range(10 * n, 10 * n + 5) END, v.made,
       CASE WHEN v.deleted IS NULL THEN 5 ELSE 0 END
FROM generate_series(1, 4) n,
     (VALUES (date '2024-01-01', timestamptz '2023-01-01'), (NULL, '2025-01-01')) v(deleted, made);
INSERT INTO shop.files (account, sha, created_at) SELECT 2, 'o' || n, '2025-01-01' FROM generate_series(1, 3) n;
INSERT INTO shop.pages (file, n) SELECT id, n FROM shop.files, generate_series(1, 2) n;
"""
LIVE = "CREATE UNIQUE INDEX live ON shop.files (account, sha) WHERE deleted_at IS NULL"
PLACES = {
    "part of a table": LIVE,
    "an expression": "CREATE UNIQUE INDEX live ON shop.files (account, lower(sha), coalesce(deleted_at, '-infinity'))",
    "an expression that fails elsewhere": "CREATE UNIQUE INDEX live ON shop.files (sha, (10 / rank)) WHERE rank <> 0",
    "what the server makes": "CREATE UNIQUE INDEX live ON shop.files (small) WHERE deleted_at IS NULL",
    "a key that the server makes": "ALTER TABLE shop.files ADD CONSTRAINT live UNIQUE (small, rank)",
    "a collation": 'CREATE UNIQUE INDEX live ON shop.files (sha COLLATE "C", lower(sha) COLLATE "POSIX", rank)',
    "an exclusion": "ALTER TABLE shop.files ADD CONSTRAINT live EXCLUDE USING gist (seats WITH &&)",
}
AGAIN = "INSERT INTO shop.files (account, sha, seats, created_at) VALUES (1, %(sha)s, '[21,22]', now())"


def shop(batch_rows: int = 5000) -> Spec:
    return parse_spec(
        f"""
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: shop
batch_rows: {batch_rows}
entities:
  file: {{table: files, key: id, identity: "{{account}}:{{sha}}", on_duplicate: merge, survivor: [oldest],
         describe: {{created_at: created_at}}}}
  page: {{table: pages, key: id, parent: file, identity: "{{file}}:{{n}}"}}
""",
        "shop.yaml",
    )


def rows_of(store: Engine) -> cycle.Rows:
    return cycle.rows_of(store, "shop")


@pytest.mark.parametrize(("place", "batch_rows"), [*((place, 5000) for place in PLACES), ("part of a table", 1)])
def test_a_cluster_whose_place_another_row_has_by_now_stays_archived_and_the_rest_comes_back(
    empty_store: Engine, place: str, batch_rows: int
) -> None:
    spec = shop(batch_rows)
    cycle.run_sql(empty_store, FILES)
    cycle.run_sql(empty_store, PLACES[place])
    before = rows_of(empty_store)
    cycle.run_all(empty_store, spec)
    # No row that lives has it, since the survivor is the one that was deleted.
    cycle.run_sql(empty_store, AGAIN, sha="h2")

    cycle.undo(empty_store)

    after = rows_of(empty_store)
    assert [row["sha"] for row in after["files"] if row not in before["files"]] == ["h2"]
    [lost] = [row for row in before["files"] if row not in after["files"]]
    assert (lost["sha"], lost["deleted_at"]) == ("h2", None)
    pages = [row for row in before["pages"] if row["file"] != lost["id"]]
    assert cycle.ordered([row for row in after["pages"] if row["id"] in {p["id"] for p in pages}]) == pages
    cycle.run_all(empty_store, spec)


DEFERRED = """
ALTER TABLE shop.pages ADD seats int4range, ADD EXCLUDE USING gist (seats WITH &&) DEFERRABLE INITIALLY DEFERRED
"""


def test_rows_come_back_below_documents_where_a_constraint_is_checked_late(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, FILES)
    cycle.run_sql(empty_store, DEFERRED)
    before = rows_of(empty_store)
    cycle.run_all(empty_store, shop())

    cycle.undo(empty_store)

    assert rows_of(empty_store) == before


CHAIN = """
ALTER TABLE shop.files ADD replaces uuid REFERENCES shop.files;
UPDATE shop.files f SET replaces = n.id FROM shop.files n
WHERE f.deleted_at IS NULL AND n.deleted_at IS NULL AND n.sha = 'h' || (right(f.sha, 1)::int + 1) AND f.sha LIKE 'h_'
"""


@pytest.fixture(params=["R", "O"])
def chained(request: pytest.FixtureRequest, empty_url: str, new_role: NewRole) -> Iterator[Engine]:
    """Files of which each live one replaces the next, in both tiers: as a superuser, and as their plain owner."""
    role = new_role()
    with opened(empty_url) as superuser:
        for statement in (FILES, CHAIN.replace("%", "%%"), LIVE):
            cycle.run_sql(superuser, statement)
        cycle.run_sql(
            superuser,
            f"""GRANT CREATE ON DATABASE {superuser.url.database} TO {role}; ALTER SCHEMA shop OWNER TO {role};
                ALTER TABLE shop.files OWNER TO {role}; ALTER TABLE shop.pages OWNER TO {role}""",
        )
    with opened(as_role(empty_url, role) if request.param == "O" else empty_url) as engine:
        yield engine


@pytest.mark.parametrize(("taken", "stay"), [(2, "12"), (4, "1234")])
def test_what_refers_to_a_row_that_stays_archived_stays_too(
    request: pytest.FixtureRequest, chained: Engine, taken: int, stay: str
) -> None:
    before = rows_of(chained)
    cycle.run_all(chained, shop())
    assert cycle.newest_plan(chained).content["tier"] == request.node.callspec.params["chained"]
    again = "INSERT INTO shop.files (account, sha, created_at) VALUES (1, %(sha)s, now())"
    cycle.run_sql(chained, again, sha=f"h{taken}")

    cycle.undo(chained)

    after = {row["id"] for row in rows_of(chained)["files"]}
    assert {row["sha"] for row in before["files"] if row["id"] not in after} == {f"h{n}" for n in stay}
    dangling = """SELECT count(*) FROM shop.files f
                  WHERE replaces IS NOT NULL AND NOT EXISTS (SELECT FROM shop.files t WHERE t.id = f.replaces)"""
    assert cycle.run_sql(chained, dangling) == [(0,)]


def test_an_index_that_is_younger_than_the_merge_stops_the_rollback_until_it_is_dropped(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, FILES)
    before = rows_of(empty_store)
    cycle.run_all(empty_store, shop())
    cycle.run_sql(empty_store, AGAIN, sha="h2")
    cycle.run_sql(empty_store, LIVE)

    with pytest.raises(IntegrityError, match='"live"'):
        cycle.undo(empty_store)

    cycle.run_sql(empty_store, "DROP INDEX shop.live")
    cycle.undo(empty_store)
    after = rows_of(empty_store)
    assert all(row in after[table] for table, rows in before.items() for row in rows)
