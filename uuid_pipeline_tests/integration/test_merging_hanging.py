"""Merging beside rows that hang on merged ones by more than an id: by a key of several columns, or by a number."""

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import migration
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.conftest import NewRole, as_role, opened
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.test_merging_odd import CHUNKS, built, owner_in, target

# Of two with one natural key the older one survives, whatever hangs on it.
ENTITIES = """
namespace: a1111111-2222-4333-8444-555555555555
schema: app
backup: none
entities:
  document: {table: documents, key: id, identity: "{owner}:{sha}", describe: {created_at: made}, survivor: [oldest]}
"""
TIERS = pytest.mark.parametrize("tier", ["R", "O"])


def merged_and_back(
    store: Engine, url: str, new_role: NewRole, tier: str, statements: str, *lines: str
) -> tuple[cycle.Rows, cycle.Rows]:
    """Rows before and after; the rollback must give those of before."""
    built(store, statements)
    spec = parse_spec("".join([ENTITIES, *lines]), "app.yaml")
    role, before = owner_in(tier, store, new_role), cycle.rows_of(store, "app")
    with opened(as_role(url, role)) as owner:
        cycle.run_all(owner, spec)
        after = cycle.rows_of(store, "app")
        cycle.roll_back(owner, spec)
    assert cycle.rows_of(store, "app") == before
    return before, after


DOCUMENTS = """
CREATE SCHEMA app;
CREATE TABLE app.documents (id uuid PRIMARY KEY, owner text, sha text, made date DEFAULT '2026-01-01');
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'u', 'k', '2025-01-01'),
                                 ('aaaaaaaa-0000-4000-8000-000000000002', 'u', 'k', '2026-01-01'),
                                 ('aaaaaaaa-0000-4000-8000-000000000003', 'u', 'other', '2026-01-01');
"""
# The second document's set v1 is the larger one, and its chunk 0 is the first's as well; chunk 5 has no counterpart.
SETS = (
    DOCUMENTS
    + """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         UNIQUE (document_id, id), UNIQUE (document_id, ver, ord));
INSERT INTO app.chunks VALUES
    ('cccccccc-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 0),
    ('cccccccc-0000-4000-8000-000000000002', 'aaaaaaaa-0000-4000-8000-000000000001', 'v1', 5),
    ('cccccccc-0000-4000-8000-000000000003', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 0),
    ('cccccccc-0000-4000-8000-000000000004', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 1),
    ('cccccccc-0000-4000-8000-000000000005', 'aaaaaaaa-0000-4000-8000-000000000002', 'v1', 2);
"""
)


@TIERS
def test_a_document_whose_cover_has_no_counterpart_stays_and_loses_its_cover(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    cover = """
ALTER TABLE app.documents ADD cover uuid;
UPDATE app.documents SET cover = 'cccccccc-0000-4000-8000-000000000002' WHERE right(id::text, 1) = '1';
ALTER TABLE app.documents ADD FOREIGN KEY (id, cover) REFERENCES app.chunks (document_id, id)"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + cover, CHUNKS)

    assert {(row["sha"], row["cover"]) for row in after["documents"]} == {("k", None), ("other", None)}
    assert {row["ord"] for row in after["chunks"]} == {"0", "1", "2"}


@TIERS
def test_a_chunk_of_a_set_that_stays_only_loses_its_parent_that_goes(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    above = """
ALTER TABLE app.chunks ADD above uuid, ADD FOREIGN KEY (document_id, above) REFERENCES app.chunks (document_id, id);
INSERT INTO app.chunks SELECT ('cccccccc-0000-4000-8000-00000000001' || n)::uuid,
    'aaaaaaaa-0000-4000-8000-000000000001', 'v2', n, 'cccccccc-0000-4000-8000-000000000002'
    FROM generate_series(1, 2) n"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + above, CHUNKS)

    assert {(row["ord"], row["above"]) for row in after["chunks"] if row["ver"] == "v2"} == {("1", None), ("2", None)}


@TIERS
def test_a_row_that_names_a_place_is_left_where_it_was_by_a_rollback_though_others_came_to_name_it_too(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    """The survivor's own note names (survivor, v1, 0) throughout: its text does not change, what it means does."""
    notes = """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid, ver text, ord int,
                        FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord));
INSERT INTO app.notes SELECT 1, document_id, ver, ord FROM app.chunks WHERE right(id::text, 1) = '1';
INSERT INTO app.notes SELECT 2, document_id, ver, ord FROM app.chunks WHERE right(id::text, 1) = '3'"""

    _, after = merged_and_back(empty_store, empty_url, new_role, tier, SETS + notes, CHUNKS)

    assert len(after["notes"]) == 2


COVERS = """
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000004', 'u', 'k', '2026-01-02');
CREATE TABLE app.covers (document_id uuid PRIMARY KEY REFERENCES app.documents, n int UNIQUE,
                         next int REFERENCES app.covers (n));
INSERT INTO app.covers VALUES ('aaaaaaaa-0000-4000-8000-000000000002', 2, 4),
                              ('aaaaaaaa-0000-4000-8000-000000000004', 4, 2)"""


@TIERS
def test_a_row_whose_own_key_was_turned_is_found_again_to_get_back_what_it_was_emptied_of(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    """Of the covers of two losers one stays, as the survivor's, and loses what it says of the other, which goes."""
    _, after = merged_and_back(empty_store, empty_url, new_role, tier, DOCUMENTS + COVERS)

    assert [row["next"] for row in after["covers"]] == [None]


PARTS = """
ALTER TABLE app.documents ADD num int UNIQUE, ADD part_of int REFERENCES app.documents (num) ON DELETE CASCADE;
UPDATE app.documents SET num = right(id::text, 1)::int;
UPDATE app.documents SET part_of = 2 WHERE num = 3"""


def test_a_document_that_would_go_along_with_another_one_that_is_merged_turns_the_plan_red(empty_store: Engine) -> None:
    built(empty_store, DOCUMENTS + PARTS)
    spec = parse_spec(ENTITIES, "app.yaml")

    gate = cycle.assess(empty_store, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]

    assert not gate.passed
    assert "aaaaaaaa-0000-4000-8000-000000000003" in gate.finding
    assert "documents_part_of_fkey" in gate.finding


def test_documents_that_would_be_twins_once_what_they_refer_to_is_merged_turn_the_plan_red(empty_store: Engine) -> None:
    """Each of two replaces another row of one cluster, and no two may replace the same."""
    replaces = """
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000004', 'u', 'fourth', '2026-01-02');
ALTER TABLE app.documents ADD replaces uuid UNIQUE REFERENCES app.documents;
UPDATE app.documents d SET replaces = o.id FROM app.documents o
WHERE (d.sha, right(o.id::text, 1)) IN (('other', '1'), ('fourth', '2'))"""
    built(empty_store, DOCUMENTS + replaces)
    spec = parse_spec(ENTITIES, "app.yaml")

    gate = cycle.assess(empty_store, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]

    assert not gate.passed
    assert gate.finding.startswith(
        "rows of app.documents that stay would be twins in (replaces), which is unique, once what they refer to is "
        "merged: aaaaaaaa-0000-4000-8000-000000000003, aaaaaaaa-0000-4000-8000-000000000004"
    )


def test_a_cluster_that_would_take_one_along_that_came_since_the_plan_is_left_alone_and_the_rest_goes_on(
    empty_store: Engine,
) -> None:
    more = "\nINSERT INTO app.documents SELECT gen_random_uuid(), 'u', 'x' || n FROM generate_series(1, 9) n"
    built(empty_store, DOCUMENTS + PARTS.replace("num = 3", "num = 7") + ";" + more)
    spec = parse_spec(ENTITIES + "batch_rows: 4\n", "app.yaml")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    cycle.run_sql(empty_store, "UPDATE app.documents SET part_of = 2 WHERE num = 3")
    before = cycle.rows_of(empty_store, "app")
    notes: list[str] = []

    for wave in cycle.waves_of(empty_store, execution):
        store = cycle.bound_store(empty_store, spec)
        migration.run_wave(empty_store, store, wave.wave, cycle.RUN, lambda at: notes.append(at.note))
        cycle.assert_green(cycle.check_wave(empty_store, spec, wave))
    cycle.finish(empty_store, spec, execution)

    after = cycle.rows_of(empty_store, "app")["documents"]
    assert len(after) == len(before["documents"])
    assert {row["sha"] for row in after if str(row["id"])[14] == "4"} == {"k"}
    # That document has moved by then.
    other = target("u:other")
    assert sum(f"document {other} of app.documents is to be merged into no other" in note for note in notes) == 1
    # What the next plan is told beforehand, and does once it can.
    red = cycle.assess(empty_store, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]
    assert not red.passed
    cycle.run_sql(empty_store, "UPDATE app.documents SET part_of = NULL WHERE sha = 'other'")
    cycle.run_all(empty_store, spec)
    assert len(cycle.rows_of(empty_store, "app")["documents"]) == len(before["documents"]) - 1


def test_where_what_goes_along_is_merged_itself_nothing_is_in_the_way(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    _, after = merged_and_back(
        empty_store, empty_url, new_role, "R", DOCUMENTS + PARTS.replace("part_of = 2 WHERE num = 3", "part_of = num")
    )

    assert len(after["documents"]) == 2


# Events hang on a job by its number; the jobs of two documents that become one meet in a unique key.
EVENTS = (
    DOCUMENTS  # noqa: S608
    + """
CREATE TABLE app.jobs (n int PRIMARY KEY, document_id uuid NOT NULL UNIQUE REFERENCES app.documents);
CREATE TABLE app.events (e int PRIMARY KEY, job int REFERENCES app.jobs, updated date DEFAULT '2020-01-01');
INSERT INTO app.jobs SELECT right(id::text, 1)::int, id FROM app.documents;
INSERT INTO app.events SELECT n, n FROM app.jobs;
CREATE FUNCTION app.deny() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'events are for ever'; END$$;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.updated := now(); RETURN NEW; END$$;
"""
)
DENY = "CREATE TRIGGER deny BEFORE DELETE ON app.events FOR EACH ROW EXECUTE FUNCTION app.deny();"
TOUCH = "CREATE TRIGGER touch BEFORE UPDATE OF job ON app.events FOR EACH ROW EXECUTE FUNCTION app.touch();"
MADE = """
SELECT tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'app.events'::regclass AND NOT tgisinternal
"""
ALWAYS = "ALTER TABLE app.events ENABLE ALWAYS TRIGGER "


@TIERS
@pytest.mark.parametrize("mark", ["", ALWAYS], ids=["", "always"])
@pytest.mark.parametrize("job", ["archived", "emptied"])
def test_triggers_of_a_table_without_ids_are_kept_out_of_what_merging_does_there(
    empty_store: Engine, empty_url: str, new_role: NewRole, job: str, mark: str, tier: str
) -> None:
    name = "deny" if job == "archived" else "touch"
    change = f"ALTER TABLE app.events ALTER job SET NOT NULL;\n{DENY}" if job == "archived" else TOUCH
    built(empty_store, f"{EVENTS}{change}\n{mark + name if mark else 'SELECT'}")
    made = cycle.run_sql(empty_store, MADE)

    before, after = merged_and_back(empty_store, empty_url, new_role, tier, "SELECT")

    assert len(after["events"]) == len(before["events"]) - (job == "archived")
    assert {row["updated"] for row in after["events"]} == {"2020-01-01"}
    assert cycle.run_sql(empty_store, MADE) == made


def test_one_that_is_to_fire_fires(empty_store: Engine, empty_url: str, new_role: NewRole) -> None:
    built(empty_store, EVENTS + TOUCH)
    role = owner_in("O", empty_store, new_role)
    spec = parse_spec(ENTITIES + "triggers: {touch: fire}\n", "app.yaml")
    with opened(as_role(empty_url, role)) as owner:
        cycle.run_all(owner, spec)
        emptied = {row["updated"] for row in cycle.rows_of(empty_store, "app")["events"] if row["job"] is None}
        assert len(emptied - {"2020-01-01"}) == 1


def test_one_that_nobody_can_keep_out_turns_the_plan_red_where_something_merges(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    constraint = TOUCH.replace("TRIGGER touch BEFORE", "CONSTRAINT TRIGGER touch AFTER")
    built(empty_store, EVENTS + constraint)
    role = owner_in("O", empty_store, new_role)
    spec = parse_spec(ENTITIES, "app.yaml")
    with opened(as_role(empty_url, role)) as owner:
        red = cycle.assess(owner, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]
        assert not red.passed
        assert "constraint trigger touch on app.events cannot be kept out in tier O" in red.finding
        cycle.run_sql(empty_store, "UPDATE app.documents SET sha = right(id::text, 1)")
        cycle.run_all(owner, spec)


def test_rights_to_keep_them_out_are_asked_for_only_where_something_merges(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    built(empty_store, EVENTS + TOUCH)
    role = owner_in("O", empty_store, new_role)
    cycle.run_sql(empty_store, "ALTER TABLE app.events OWNER TO postgres")
    cycle.run_sql(empty_store, f'GRANT SELECT, UPDATE ON app.events TO "{role}"')
    spec = parse_spec(ENTITIES, "app.yaml")
    with opened(as_role(empty_url, role)) as owner:
        red = cycle.assess(owner, spec, skip=["conflicts_resolvable"]).gates["conflicts_resolvable"]
        assert not red.passed
        assert "TRIGGER on table app.events is missing: GRANT TRIGGER" in red.finding
        assert ";;" not in red.finding
        cycle.run_sql(empty_store, "UPDATE app.documents SET sha = right(id::text, 1)")
        cycle.run_all(owner, spec)


# Lines b and c would become one below chunk 1, and that goes along with another one, by its number.
LINES = """
INSERT INTO app.documents VALUES ('aaaaaaaa-0000-4000-8000-000000000004', 'u', 'k', '2026-01-02');
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         num int UNIQUE, next int REFERENCES app.chunks (num) ON DELETE CASCADE);
CREATE TABLE app.lines (id uuid PRIMARY KEY, chunk_id uuid NOT NULL REFERENCES app.chunks, n int);
CREATE TABLE app.history (n int PRIMARY KEY, lines uuid[], line text);
INSERT INTO app.chunks VALUES
    ('cccccccc-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001', 'v', 0, 1, NULL),
    ('cccccccc-0000-4000-8000-000000000002', 'aaaaaaaa-0000-4000-8000-000000000001', 'v', 1, 2, 3),
    ('cccccccc-0000-4000-8000-000000000003', 'aaaaaaaa-0000-4000-8000-000000000002', 'v', 1, 3, NULL),
    ('cccccccc-0000-4000-8000-000000000004', 'aaaaaaaa-0000-4000-8000-000000000004', 'v', 1, 4, NULL);
INSERT INTO app.lines SELECT md5('line ' || n)::uuid, ('cccccccc-0000-4000-8000-00000000000' || n)::uuid, 0
    FROM generate_series(3, 4) n;
INSERT INTO app.history SELECT row_number() OVER (), ARRAY[a.id, b.id], a.id FROM app.lines a, app.lines b;
"""
KEPT = """
  chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{ver}:{ord}", merge_as_set: [ver]}
  line: {table: lines, key: id, parent: chunk, identity: "{chunk_id}:{n}"}
soft_references:
  - {table: history, column: lines, entity: line, orphans: keep}
  - {table: history, column: line, entity: line, orphans: keep}
"""


@TIERS
def test_ids_of_rows_that_go_with_nothing_in_their_place_stay_as_they_are_written_where_they_may(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    before, after = merged_and_back(empty_store, empty_url, new_role, tier, DOCUMENTS + LINES, KEPT)

    assert after["lines"] == []
    assert after["history"] == before["history"]


PAGES = """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ord int, page int,
                         UNIQUE (document_id, page));
CREATE TABLE app.history (n int PRIMARY KEY, chunks uuid[]);
INSERT INTO app.chunks SELECT md5(id::text)::uuid, id, right(id::text, 1)::int, 1 FROM app.documents;
INSERT INTO app.history SELECT ord, ARRAY[id] FROM app.chunks
"""
HELD = """
  chunk: {table: chunks, key: id, parent: document, identity: "{document_id}:{ord}"}
soft_references:
  - {table: history, column: chunks, entity: chunk}
"""


def test_a_cluster_of_which_an_id_would_be_left_behind_in_an_array_is_left_alone(empty_store: Engine) -> None:
    """The chunks of two documents have one page, which is unique below one: the loser's goes with no counterpart."""
    built(empty_store, DOCUMENTS + PAGES)
    before = cycle.rows_of(empty_store, "app")
    spec = parse_spec(ENTITIES + HELD, "app.yaml")

    cycle.run_all(empty_store, spec)

    after = cycle.rows_of(empty_store, "app")
    assert {row["id"] for row in after["documents"]} == {
        *(row["id"] for row in before["documents"] if row["sha"] == "k"),
        target("u:other"),
    }
    assert len(after["chunks"]) == 3
    cycle.roll_back(empty_store, spec)
    assert cycle.rows_of(empty_store, "app") == before


@pytest.mark.parametrize("which", ["1", "2"], ids=["the survivor", "the loser"])
def test_what_the_application_wrote_into_a_row_before_it_was_merged_is_its_own_change(
    empty_store: Engine, which: str
) -> None:
    built(empty_store, DOCUMENTS + "ALTER TABLE app.documents ADD flag bool")
    spec = parse_spec(ENTITIES + "waves: {canary: 1, recent: 1, remaining: 9}\n", "app.yaml")
    execution = cycle.approve(empty_store, spec, cycle.assess_and_plan(empty_store, spec).plan_id)
    canary, *others = [wave for wave in cycle.all_waves_of(empty_store, execution) if wave.kind != "sweep"]
    cycle.migrate(empty_store, spec, canary)
    cycle.assert_green(cycle.check_wave(empty_store, spec, canary))
    flag = "UPDATE app.documents SET flag = true WHERE right(id::text, 2) = %(which)s AND sha = 'k' RETURNING id"
    assert len(cycle.run_sql(empty_store, flag, which=f"0{which}")) == 1

    for wave in others:
        cycle.migrate(empty_store, spec, wave)
        cycle.assert_green(cycle.check_wave(empty_store, spec, wave))

    whole = cycle.validate(empty_store)
    cycle.assert_green(whole)
    [conservation] = [gate.finding for gate in whole if gate.gate == "whole_conservation"]
    assert "The application wrote to app.documents" in conservation


# A chunk of another document names one that goes, by its number, and would go with it.
NUMBERED = """
CREATE TABLE app.chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES app.documents, ver text, ord int,
                         num int UNIQUE, next int REFERENCES app.chunks (num) ON DELETE CASCADE);
INSERT INTO app.chunks SELECT md5('chunk' || n)::uuid, ('aaaaaaaa-0000-4000-8000-00000000000' || least(n, 3))::uuid,
    'v', n / 4, n, CASE n WHEN 3 THEN 2 END FROM generate_series(1, 4) n
"""


@TIERS
def test_a_cluster_that_would_take_a_chunk_of_another_document_along_is_left_alone(
    empty_store: Engine, empty_url: str, new_role: NewRole, tier: str
) -> None:
    before, after = merged_and_back(empty_store, empty_url, new_role, tier, DOCUMENTS + NUMBERED, CHUNKS)

    assert len(after["chunks"]) == 4
    assert {row["id"] for row in after["documents"]} == {
        *(row["id"] for row in before["documents"] if row["sha"] == "k"),
        target("u:other"),
    }


def test_triggers_of_a_table_that_hangs_on_rows_without_a_counterpart_are_kept_out_too(
    empty_store: Engine, empty_url: str, new_role: NewRole
) -> None:
    """Notes name a chunk by several columns, none of them unique; what hangs on a note goes with it."""
    hanging = """
CREATE TABLE app.notes (n int PRIMARY KEY, document_id uuid NOT NULL, ver text NOT NULL, ord int NOT NULL,
                        FOREIGN KEY (document_id, ver, ord) REFERENCES app.chunks (document_id, ver, ord));
CREATE TABLE app.events (e int PRIMARY KEY, note int NOT NULL REFERENCES app.notes);
INSERT INTO app.notes SELECT row_number() OVER (ORDER BY id), document_id, ver, ord FROM app.chunks;
INSERT INTO app.events SELECT n, n FROM app.notes;
CREATE FUNCTION app.deny() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'events are for ever'; END$$;
"""

    _, after = merged_and_back(empty_store, empty_url, new_role, "O", SETS + hanging + DENY, CHUNKS)

    # The note of the survivor's chunk 5 has no counterpart.
    assert len(after["events"]) == 4
