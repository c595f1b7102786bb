"""The search for soft references: what holds known ids is found in every form, and what is no reference is not one."""

import json
from collections.abc import Iterator

import pytest
import yaml
from sqlalchemy import Engine

from uuid_pipeline.engine import catalog
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.soft_references.references import Search
from uuid_pipeline.engine.soft_references.sampling import Budget
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.spec import Spec, parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role
from uuid_pipeline_tests.integration import cycle

SPEC = """
namespace: 11111111-2222-3333-4444-555555555555
schema: lib
entities:
  work: {table: works, key: id, identity: "{title}"}
  page: {table: pages, key: code, identity: "{title}"}
"""
SCHEMA = """
CREATE SCHEMA lib;
CREATE TABLE lib.works (id uuid PRIMARY KEY, title text NOT NULL UNIQUE, path text, digest text);
CREATE TABLE lib.pages (code text PRIMARY KEY, title text NOT NULL UNIQUE);
INSERT INTO lib.works (id, title) SELECT md5('work' || n)::uuid, 'w' || n FROM generate_series(1, 20) n;
INSERT INTO lib.pages SELECT 'PAGE-' || lpad(n::text, 5, '0'), 'p' || n FROM generate_series(1, 20) n;
"""


@pytest.fixture
def library(empty_store: Engine) -> Engine:
    """Twenty works with uuid keys and twenty pages with text keys; nothing refers to them yet."""
    cycle.run_sql(empty_store, SCHEMA)
    return empty_store


@pytest.fixture
def poor(library: Engine, empty_url: str, new_role: NewRole) -> Iterator[Engine]:
    """The library for a role that may read works and pages only."""
    role = new_role()
    cycle.run_sql(library, f"GRANT USAGE ON SCHEMA lib TO {role}; GRANT SELECT ON lib.works, lib.pages TO {role}")
    engine = open_store(as_role(empty_url, role))
    yield engine
    engine.dispose()


def spec_of(**parts: object) -> Spec:
    return parse_spec(yaml.safe_dump(yaml.safe_load(SPEC) | parts), "lib.yaml")


def searched(engine: Engine, budget: Budget | None = None, **parts: object) -> tuple[Store, Search]:
    """Search, and give back what a later process would read of it."""
    spec = spec_of(**parts)
    with engine.begin() as connection:
        store = bind(spec, catalog.read_catalog(connection, spec.schema_name))
        found = references.as_data(references.search(connection, store, budget))
    return store, references.from_data(json.loads(json.dumps(found)))


def holders(search: Search) -> dict[tuple[str, str], tuple[str, int, str]]:
    return {(f.name, f.entity): (f.form, f.rows, f.status) for f in search.found}


def derived(search: Search) -> dict[tuple[str, str, str], int]:
    return {(f"{d.table}.{d.column}", d.entity, d.kind): d.rows for d in search.derived}


def test_ids_are_found_as_uuid_text_array_and_at_each_json_path_and_counted_by_rows(library: Engine) -> None:
    cycle.run_sql(
        library,
        """
        CREATE DOMAIN lib.work_ref AS uuid;
        CREATE TABLE lib."odd: names" (a uuid, "b,c" text, d varchar(40), e uuid[], f text[], g jsonb, h json,
            i lib.work_ref, j char(36), m jsonb, n int, k uuid GENERATED ALWAYS AS (a) STORED);
        INSERT INTO lib."odd: names"
        SELECT w.id, w.id::text, p.code, ARRAY[w.id, gen_random_uuid(), w.id], ARRAY['x', p.code],
               jsonb_build_object('a', jsonb_build_object('b', jsonb_build_array(
                   jsonb_build_object('id', w.id), jsonb_build_object('id', w.id), 5, NULL, jsonb_build_array())),
                   'other', gen_random_uuid(), 'page', p.code),
               json_build_array(json_build_object('w', w.id)), w.id, w.id::text, jsonb_build_object('x.y', w.id), n
        FROM generate_series(1, 15) n JOIN lib.works w ON w.title = 'w' || n JOIN lib.pages p ON p.title = 'p' || n;
        INSERT INTO lib."odd: names" (n, g, h, "b,c")
        VALUES (1, 'null', 'null', ''), (2, '3', '"text"', 'zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz');
        """,
    )

    store, found = searched(library)

    table = "odd: names"
    assert holders(found) == {
        (f"{table}.a", "work"): ("key", 15, "undeclared"),
        (f"{table}.b,c", "work"): ("text", 15, "undeclared"),
        (f"{table}.d", "page"): ("key", 15, "undeclared"),
        (f"{table}.e", "work"): ("array", 15, "undeclared"),
        (f"{table}.f", "page"): ("array", 15, "undeclared"),
        (f"{table}.g.a.b.*.id", "work"): ("json", 15, "undeclared"),
        (f"{table}.g.page", "page"): ("json", 15, "undeclared"),
        (f"{table}.h.*.w", "work"): ("json", 15, "undeclared"),
        (f"{table}.i", "work"): ("text", 15, "undeclared"),
        (f"{table}.j", "work"): ("text", 15, "undeclared"),
        (f"{table}.m.x.y", "work"): ("json", 15, "undeclared"),
    }
    gate = references.references_known(store, found)
    assert not gate.passed
    assert f"{table}.g.a.b.*.id holds 15 work ids" in gate.finding

    # The remedy's own lines, put into the spec, turn it green.
    declare, leave = gate.remedy.split("under ignore_references:")
    lines = {part: [line for line in text.splitlines() if line.startswith("  - ")] for part, text in
             (("declare", declare), ("leave", leave))}  # fmt: skip
    wanted = yaml.safe_load("\n".join(lines["declare"]))
    assert {"table": table, "column": "g", "entity": "work", "path": "a.b.*.id"} in wanted
    assert len(wanted) == 8
    for name in ("i", "j", "m.x.y"):
        assert f"{table}.{name} cannot be declared: " in gate.remedy
    kept = [entry for entry in yaml.safe_load("\n".join(lines["leave"])) if entry["column"] in "ijm"]
    green = references.references_known(*searched(library, soft_references=wanted, ignore_references=kept))
    assert green.passed, green.finding
    assert f"{table}.m.x.y ({references.WHY})" in green.finding


def test_where_every_key_is_a_uuid_no_form_of_an_id_in_a_text_is_passed_over(library: Engine) -> None:
    cycle.run_sql(
        library,
        """
        CREATE TABLE lib.letters (n int PRIMARY KEY, ref uuid, plain text, short char(40), many text[], doc json);
        INSERT INTO lib.letters
        SELECT n, CASE WHEN n = 1 THEN w.id ELSE gen_random_uuid() END,
            CASE n WHEN 2 THEN w.id::text WHEN 3 THEN 'ü' || w.id || '-' || w.id
                   WHEN 4 THEN repeat('a-', 400) || upper(w.id::text) WHEN 5 THEN replace(w.id::text, '-', '_')
                   WHEN 6 THEN 'zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz' WHEN 7 THEN NULL
                   WHEN 8 THEN gen_random_uuid()::text ELSE 'no id' END,
            CASE n WHEN 9 THEN w.id::text END,
            CASE n WHEN 10 THEN ARRAY[NULL, 'x', w.id::text] WHEN 11 THEN ARRAY[[w.id::text], ['in ' || w.id]]
                   WHEN 12 THEN '{}'::text[] END,
            CASE n WHEN 13 THEN json_build_object('a', w.id) WHEN 14 THEN json_build_object(w.id::text, 1)
                   WHEN 15 THEN json_build_object('a', 'no id') END
        FROM generate_series(1, 20) n JOIN lib.works w ON w.title = 'w' || n;
        """,
    )
    works = {"work": yaml.safe_load(SPEC)["entities"]["work"]}

    _, found = searched(library, entities=works)

    assert {f.name: f.rows for f in found.found} == {
        "letters.ref": 1, "letters.plain": 1, "letters.short": 1, "letters.many": 2, "letters.doc.a": 1,
    }  # fmt: skip
    assert derived(found) == {
        ("letters.plain", "work", "contains the id"): 2,
        ("letters.many", "work", "contains the id"): 1,
        ("letters.doc", "work", "contains the id"): 1,
    }
    _, exactly = searched(library, Budget(small_bytes=0, sample_rows=1), entities=works)
    assert (exactly.found, exactly.derived) == (found.found, found.derived)
    assert all(f.exact for f in exactly.found)


def test_a_declared_json_reference_leaves_another_path_of_its_column_undeclared(library: Engine) -> None:
    cycle.run_sql(
        library,
        "CREATE TABLE lib.notes AS SELECT jsonb_build_object('a', id, 'b', id) AS doc FROM lib.works",
    )
    declared = [
        {"table": "notes", "column": "doc", "entity": "work", "path": "a"},
        {"table": "notes", "column": "doc", "entity": "work", "path": "c"},
    ]

    store, found = searched(library, soft_references=declared)

    assert {f.name: f.status for f in found.found} == {"notes.doc.a": "declared", "notes.doc.b": "undeclared"}
    assert references.references_known(store, found).finding == "undeclared references: notes.doc.b holds 20 work ids"
    assert "declared, but no work id was found there: notes.doc.c" in found.notes


def test_text_keys_that_two_entities_share_are_taken_for_what_the_spec_declares(library: Engine) -> None:
    cycle.run_sql(
        library,
        """
        CREATE TABLE lib.leaves (code text PRIMARY KEY, title text NOT NULL UNIQUE);
        INSERT INTO lib.leaves SELECT code, title FROM lib.pages;
        INSERT INTO lib.leaves VALUES ('LEAF-THAT-IS-NO-PAGE', 'a leaf that is no page');
        CREATE TABLE lib.notes (n int PRIMARY KEY, page text, seen jsonb);
        INSERT INTO lib.notes SELECT n, code, jsonb_build_object('page', code)
        FROM lib.pages, regexp_replace(code, '\\D', '', 'g') r, LATERAL (SELECT r::int) c(n) WHERE n <= 5;
        """,
    )
    entities = yaml.safe_load(SPEC)["entities"] | {"leaf": {"table": "leaves", "key": "code", "identity": "{title}"}}
    declared = [
        {"table": "notes", "column": "page", "entity": "page"},
        {"table": "notes", "column": "seen", "entity": "page", "path": "page"},
    ]
    with_leaves = {"entities": entities, "soft_references": declared}

    _, plain = searched(library, entities=entities)
    assert {f.status for f in plain.found if f.table == "notes"} == {"undeclared"}
    assert ("notes.page", "leaf") in holders(plain)
    store, search = searched(library, **with_leaves)
    assert holders(search) == {
        ("notes.page", "page"): ("key", 5, "declared"),
        ("notes.seen.page", "page"): ("json", 5, "declared"),
    }
    assert references.references_known(store, search).passed

    cycle.run_sql(library, "UPDATE lib.notes SET page = 'LEAF-THAT-IS-NO-PAGE' WHERE n = 5")
    store, search = searched(library, **with_leaves)
    assert holders(search)[("notes.page", "leaf")] == ("key", 1, "undeclared")
    assert not references.references_known(store, search).passed


def test_values_derived_from_an_id_are_counted_by_kind_and_never_turn_the_gate_red(library: Engine) -> None:
    cycle.run_sql(
        library,
        """
        UPDATE lib.works SET path = 's3://b/' || id || '.pdf' WHERE title < 'w13';
        UPDATE lib.works SET path = 's3://b/' || left(md5(id::text), 8) WHERE title >= 'w13' AND title < 'w17';
        UPDATE lib.works SET path = 'urn:' || replace(id::text, '-', '') WHERE title >= 'w17';
        UPDATE lib.works SET digest = md5(id::text) WHERE title < 'w13';
        UPDATE lib.works SET digest = encode(sha256(id::text::bytea), 'hex') WHERE title >= 'w13' AND title < 'w17';
        CREATE TABLE lib.mail (subject text, doc jsonb);
        INSERT INTO lib.mail SELECT repeat('long - ', 100) || 'Re: ' || upper(id::text) || repeat(' text', 50),
            jsonb_build_object(id::text, 'by its name') FROM lib.works;
        CREATE TABLE lib.copies (page text REFERENCES lib.pages, label text);
        INSERT INTO lib.copies SELECT code, 'copy of ' || code FROM lib.pages;
        """,
    )
    kinds = cycle.run_sql(
        library,
        "SELECT count(*) FILTER (WHERE title < 'w13'), count(*) FILTER (WHERE title >= 'w13' AND title < 'w17'), "
        "count(*) FILTER (WHERE title >= 'w17') FROM lib.works",
    )[0]

    store, found = searched(library)

    assert found.found == ()
    assert derived(found) == {
        ("works.path", "work", "contains the id"): kinds[0],
        ("works.path", "work", "first 8 of md5 of the id"): kinds[1],
        ("works.path", "work", "the id without dashes"): kinds[2],
        ("works.digest", "work", "md5 of the id"): kinds[0],
        ("works.digest", "work", "sha256 of the id"): kinds[1],
        ("mail.subject", "work", "contains the id"): 20,
        ("mail.doc", "work", "contains the id"): 20,
        ("copies.label", "page", "contains the id"): 20,
    }
    assert references.references_known(store, found).passed


def test_a_text_key_met_by_accident_is_no_reference_but_is_said_with_its_share(library: Engine) -> None:
    cycle.run_sql(
        library,
        """
        INSERT INTO lib.pages VALUES ('cover', 'short'), ('complete', 'a word');
        CREATE TABLE lib.jobs AS SELECT 'cover' AS kind,
            (ARRAY['complete', 'failed', 'queued', 'waiting'])[mod(n, 4) + 1] AS state,
            CASE WHEN mod(n, 2) = 0 THEN 'PAGE-' || lpad((mod(n, 20) + 1)::text, 5, '0')
                 ELSE 'something else ' || n END AS ref
        FROM generate_series(1, 100) n;
        """,
    )

    store, found = searched(library)

    assert {f.name: (f.status, f.share) for f in found.found} == {
        "jobs.state": ("unlikely", 0.25),
        "jobs.ref": ("undeclared", 0.5),
    }
    finding = references.references_known(store, found).finding
    assert finding == "undeclared references: jobs.ref holds 50 page ids (50.0 % of its values in the rows looked at)"


HISTORY = """
CREATE TABLE lib.history (n int, ref text, doc jsonb, holder uuid) WITH (fillfactor = 20);
INSERT INTO lib.history SELECT n, 'x', '{}', gen_random_uuid() FROM generate_series(1, 30000) n;
UPDATE lib.history SET ref = (SELECT id::text FROM lib.works WHERE title = 'w7') WHERE n = 11111;
ANALYZE lib.history;
"""
SMALL = Budget(small_bytes=100_000, sample_rows=1_000)


def test_what_a_sample_cannot_see_is_found_exactly_and_what_was_only_sampled_is_said(library: Engine) -> None:
    cycle.run_sql(library, HISTORY)

    store, exactly = searched(library, SMALL)
    assert holders(exactly) == {("history.ref", "work"): ("text", 1, "undeclared")}
    assert exactly.found[0].exact
    assert exactly.sampled_only == ()
    assert exactly.rows >= 30_000

    store, only = searched(library, Budget(small_bytes=100_000, sample_rows=1_000, exact_rows=29_999))
    assert only.found == ()
    assert [line.split(":")[0] for line in only.sampled_only] == ["history.ref", "history.doc", "history.holder"]
    sampled = int(only.sampled_only[0].split("sampled ")[1].split(" of 30,000 rows")[0].replace(",", ""))
    assert 300 <= sampled <= 1_000
    gate = references.references_known(store, only)
    assert gate.passed
    assert f"history.ref: sampled {sampled:,} of 30,000 rows" in gate.finding
    assert only.rows < 2_000


def test_a_hit_in_a_table_that_is_over_the_budget_stays_red_with_the_sample_s_count(library: Engine) -> None:
    cycle.run_sql(library, HISTORY)
    cycle.run_sql(library, "UPDATE lib.history SET holder = (SELECT id FROM lib.works LIMIT 1)")

    store, found = searched(library, Budget(small_bytes=100_000, sample_rows=1_000, exact_bytes=1))

    (held,) = found.found
    assert (held.name, held.exact, 100 <= held.rows <= 1_000) == ("history.holder", False, True)
    gate = references.references_known(store, found)
    assert gate.finding == f"undeclared references: history.holder holds at least {held.rows} work ids"


def test_the_time_of_a_search_is_bounded_and_nothing_waits_for_a_lock(library: Engine) -> None:
    cycle.run_sql(library, HISTORY)
    spec = spec_of()
    store = cycle.bound_store(library, spec)
    with library.begin() as connection, library.begin() as other:
        other.exec_driver_sql("LOCK TABLE lib.history")
        found = references.search(connection, store, SMALL)
    assert found.not_searched == ("lib.history: canceling statement due to lock timeout",)

    _, late = searched(library, Budget(seconds=0))
    assert late.columns == 0
    assert "history.doc: the search's 0 seconds were used up" in late.not_searched


def test_json_that_jsonb_cannot_hold_is_read_all_the_same_or_named(library: Engine) -> None:
    cycle.run_sql(library, "CREATE TABLE lib.raw (doc json); CREATE TABLE lib.worse (doc json)")
    work = str(cycle.run_sql(library, "SELECT id FROM lib.works WHERE title = 'w1'")[0][0])
    # A NUL, an escaped backslash before what looks like an escape, a lone surrogate, a name given twice.
    text = r'{"nul": "a\u0000b", "win": "c:\\u0000", "half": "\ud800", "w": 1, "w": "WORK"}'.replace("WORK", work)
    cycle.run_sql(library, "INSERT INTO lib.raw VALUES (%(text)s::json)", text=text)
    cycle.run_sql(library, "INSERT INTO lib.worse VALUES (%(text)s::json)", text='{"n": 1e999999}')

    _, found = searched(library)

    assert holders(found) == {("raw.doc.w", "work"): ("json", 1, "undeclared")}
    assert r"raw.doc: read with its \u escapes blanked" in found.notes
    assert found.not_searched == ("worse.doc: its JSON is none that jsonb can hold",)


def test_what_cannot_be_read_or_is_no_table_is_named_and_the_rest_is_searched(library: Engine, poor: Engine) -> None:
    cycle.run_sql(
        library,
        """
        CREATE TABLE lib.secret AS SELECT id FROM lib.works;
        CREATE TABLE lib.hidden AS SELECT id FROM lib.works;
        ALTER TABLE lib.hidden ENABLE ROW LEVEL SECURITY;
        CREATE VIEW lib.shown AS SELECT id FROM lib.works;
        CREATE MATERIALIZED VIEW lib.kept AS SELECT id FROM lib.works;
        CREATE TABLE lib.parts (n int, ref uuid) PARTITION BY RANGE (n);
        CREATE TABLE lib.parts_1 PARTITION OF lib.parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE lib.parts_2 PARTITION OF lib.parts FOR VALUES FROM (10) TO (100);
        INSERT INTO lib.parts SELECT n, id FROM generate_series(1, 20) n JOIN lib.works ON title = 'w' || n;
        GRANT SELECT ON lib.hidden, lib.parts TO PUBLIC;
        """,
    )

    _, found = searched(poor)

    assert holders(found) == {("parts.ref", "work"): ("key", 20, "undeclared")}
    assert set(found.not_searched) == {
        "lib.secret: this role may not SELECT from it",
        "lib.hidden: row-level security hides rows from this role",
        "lib.shown: a view is not searched",
        "lib.kept: a materialized view is not searched",
    }
    assert "2 partitions are searched with their parents" in found.notes


def test_a_table_of_another_schema_that_refers_here_is_searched_and_can_only_be_ignored(library: Engine) -> None:
    cycle.run_sql(
        library,
        "CREATE SCHEMA shop; CREATE TABLE shop.sales (work uuid REFERENCES lib.works, also uuid);"
        "INSERT INTO shop.sales SELECT id, id FROM lib.works",
    )

    store, found = searched(library)

    gate = references.references_known(store, found)
    assert gate.finding == "undeclared references: sales.also holds 20 work ids"
    assert "sales.also cannot be declared: it is in schema shop" in gate.remedy
    line = yaml.safe_load(gate.remedy.split("ignore_references:\n")[1].splitlines()[0])
    assert references.references_known(*searched(library, ignore_references=line)).passed


def test_a_schema_to_which_no_foreign_key_leads_is_named_as_not_searched(library: Engine) -> None:
    cycle.run_sql(
        library,
        """CREATE SCHEMA attic; CREATE TABLE attic.lists (work uuid, n int) PARTITION BY LIST (n);
           CREATE TABLE attic.first PARTITION OF attic.lists FOR VALUES IN (1); CREATE TABLE attic.other (n int);
           CREATE SCHEMA bare; CREATE VIEW bare.seen AS SELECT * FROM lib.works""",
    )

    _, search = searched(library)

    named = [line for line in search.not_searched if line.startswith("schema ")]
    assert named == ["schema attic: 2 tables that have no foreign key to those of the spec's schema"]


@pytest.mark.parametrize(
    ("made", "obstacle"),
    [
        ("CREATE TABLE lib.log (what uuid, n int) PARTITION BY LIST (n); "
         "CREATE TABLE lib.log_1 PARTITION OF lib.log FOR VALUES IN (1)", "its table is partitioned"),
        ("CREATE TABLE lib.log (what uuid, n int); CREATE TABLE lib.more () INHERITS (lib.log)", "table inheritance"),
        ("CREATE TABLE lib.log (what uuid, n int); CREATE RULE quiet AS ON UPDATE TO lib.log DO INSTEAD NOTHING",
         "rewrite rules"),
    ],
    ids=["partitioned", "inheriting", "with a rule"],
)  # fmt: skip
def test_what_no_batch_could_move_is_to_be_ignored_and_not_to_be_declared(
    library: Engine, made: str, obstacle: str
) -> None:
    cycle.run_sql(library, made)
    cycle.run_sql(library, "INSERT INTO lib.log (what, n) SELECT id, 1 FROM lib.works")

    store, search = searched(library)
    gate = references.references_known(store, search)

    assert not gate.passed
    assert "  - {table: log, column: what, reason:" in gate.remedy
    assert "  - {table: log, column: what, entity: work}" not in gate.remedy
    assert obstacle in gate.remedy
    ignored = [{"table": "log", "column": "what", "reason": "history"}]
    store, search = searched(library, ignore_references=ignored)
    assert references.references_known(store, search).passed


def test_the_search_changes_nothing_and_leaves_the_transaction_s_settings_as_they_were(incident: Engine) -> None:
    rows, objects = cycle.rows_of(incident), cycle.catalog_of(incident)
    ask = "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'enable_hashjoin')"
    with incident.begin() as connection:
        store = cycle.bound(connection, cycle.spec_with())
        before = connection.exec_driver_sql(ask).all()
        found = references.search(connection, store)
        assert connection.exec_driver_sql(ask).all() == before

    assert (cycle.rows_of(incident), cycle.catalog_of(incident)) == (rows, objects)
    assert references.references_known(store, found).passed


def test_in_the_incident_history_is_ignored_with_its_reason_and_paths_are_derived(incident: Engine) -> None:
    with incident.begin() as connection:
        store = cycle.bound(connection, cycle.spec_with())
        found = references.search(connection, store)
    before = cycle.rows_of(incident)
    ids = {str(row["document_id"]) for row in before["documents"]}
    in_json = {
        (table, column): sum(
            json.loads(str(row[column])).get("document_id") in ids for row in before[table] if row[column]
        )
        for table, column in (("events", "payload"), ("upload_jobs", "progress"))
    }

    assert {(f.table, f.column): f.rows for f in found.found} == in_json
    assert {(f.status, f.reason) for f in found.found} == {("ignored", "history, as it was written")}
    paths = [str(row["parsed_path"]) for row in before["documents"] if row["parsed_path"]]
    by_id = sum(any(one in path for one in ids) for path in paths)
    assert derived(found) == {
        ("documents.parsed_path", "document", "contains the id"): by_id,
        ("documents.parsed_path", "document", "first 8 of md5 of the id"): len(paths) - by_id,
    }
