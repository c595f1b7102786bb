"""One user's traces leave the ledger, all of them and nobody else's; the rest can still be rolled back."""

import json
import re
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import Engine

from uuid_pipeline.engine.privacy import erasing, scrubbing
from uuid_pipeline.engine.privacy.erasing import Erasure
from uuid_pipeline.errors import RefusedError, UsageError
from uuid_pipeline.spec import load_spec
from uuid_pipeline_tests.integration import cycle, shop

SPEC = load_spec(None)


def grep(engine: Engine) -> dict[str, str]:
    """Every row of every table of the ledger as text, by table: what a grep of a dump would see."""
    with cycle.session(engine) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'uuid_pipeline'::regnamespace AND relkind = 'r'"
        ).fetchall()
        statement = sql.SQL("SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {} t")
        return {
            name: str(connection.execute(statement.format(sql.Identifier("uuid_pipeline", name))).fetchall()[0][0])
            for (name,) in tables
        }


def rows(engine: Engine) -> dict[str, int]:
    with cycle.session(engine) as connection:
        statement = sql.SQL("SELECT count(*) FROM {}")
        return {
            name: int(connection.execute(statement.format(sql.Identifier("uuid_pipeline", name))).fetchall()[0][0])
            for name in grep(engine)
        }


def where(engine: Engine, wanted: set[str]) -> set[str]:
    return {name for name, text in grep(engine).items() if any(one in text for one in wanted)}


def ids_of(rows: cycle.Rows, user: str) -> set[str]:
    """The user, their documents and chunks, and the ids that these are to get, by the standard uuid5."""
    new = cycle.targets(rows)
    documents = {str(row["document_id"]) for row in rows["documents"] if row["user_id"] == user}
    chunks = {str(row["chunk_id"]) for row in rows["document_chunks"] if row["document_id"] in documents}
    return {user} | documents | chunks | {new[one] for one in documents | chunks}


def merged_user(engine: Engine) -> str:
    """A user with something in the archives."""
    archives = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'archive_%%_documents_%%'"
    [(name,)] = cycle.run_sql(engine, archives)
    archived = f"SELECT user_id FROM uuid_pipeline.{name} ORDER BY 1 LIMIT 1"  # noqa: S608
    return str(cycle.run_sql(engine, archived)[0][0])


def erase(engine: Engine, user: str) -> Erasure:
    store = cycle.bound_store(engine, SPEC)
    return erasing.erase(engine, store, user, erasing.look(engine, store, user).digest, "erasing run", lambda _: None)


@pytest.mark.begins("migrated")
def test_nothing_of_the_user_is_left_in_any_table_and_everybody_elses_rows_are(
    twins: Engine, before: cycle.Rows
) -> None:
    user = merged_user(twins)
    wanted = ids_of(before, user)
    kinds = {name.split("_")[0] for name in where(twins, wanted)}
    assert {"id", "inventory", "archive", "repointed"} <= kinds
    # What gates say may name a document, and notes of people may name a user.
    hashes = {str(row["file_sha256"]).strip().lower() for row in before["documents"] if row["user_id"] == user}
    finding = f"document {sorted(wanted)[0]}: asked {user}; {user}:{sorted(hashes)[0]} (2 rows)."
    cycle.run_sql(twins, "UPDATE uuid_pipeline.gates SET finding = %(text)s", text=finding)
    figures = json.dumps({user: 1, "n": 2})
    cycle.run_sql(twins, "UPDATE uuid_pipeline.gates SET figures = %(text)s::jsonb WHERE gate_no = 1", text=figures)
    others = {str(row["user_id"]) for row in before["documents"]} - {user}
    kept = {one: where(twins, ids_of(before, one)) for one in others}
    application = cycle.rows_of(twins)

    done = erase(twins, user)

    assert where(twins, wanted | hashes) == set()
    assert cycle.rows_of(twins) == application
    assert done.documents == len({row["document_id"] for row in application["documents"] if row["user_id"] == user})
    assert {one: where(twins, ids_of(before, one)) for one in others} == kept
    assert cycle.run_sql(twins, "SELECT figures->>'n' FROM uuid_pipeline.gates WHERE gate_no = 1") == [("2",)]
    [(actor, detail)] = cycle.run_sql(twins, "SELECT actor, detail FROM uuid_pipeline.audit WHERE action LIKE 'eras%%'")
    assert actor
    assert detail["deleted"] == done.deleted
    assert erase(twins, user).deleted == {}


@pytest.mark.begins("migrated")
def test_looking_changes_nothing_and_counts_what_erasing_then_removes(twins: Engine) -> None:
    user, store = merged_user(twins), cycle.bound_store(twins, SPEC)
    before = grep(twins)

    seen = erasing.look(twins, store, user)

    assert grep(twins) == before
    counted = rows(twins)
    done = erasing.erase(twins, store, user, seen.digest, "erasing run", lambda _: None)
    assert done == seen
    after = rows(twins)
    assert {name: counted[name] - after[name] for name in done.deleted} == done.deleted
    assert any("no longer be rolled back" in line for line in seen.consequences)


@pytest.mark.begins("migrated")
def test_the_others_can_still_be_rolled_back_row_for_row(incident: Engine, before: cycle.Rows) -> None:
    user = str(before["documents"][0]["user_id"])
    theirs = {str(row["document_id"]) for row in before["documents"] if row["user_id"] == user}

    erase(incident, user)
    cycle.roll_back(incident, SPEC)

    # The user's stay under their new ids, everybody else's are under the old ones.
    others = {str(row["document_id"]) for row in before["documents"]} - theirs
    assert cycle.rows_of(incident) == cycle.expected_rows(before, left=others)


@pytest.mark.begins("migrated")
def test_a_user_who_is_nobody_removes_nothing(incident: Engine) -> None:
    found = erasing.look(incident, cycle.bound_store(incident, SPEC), str(uuid.uuid4()))
    assert (found.documents, found.deleted, found.replaced, found.consequences) == (0, {}, {}, ())


def test_it_is_refused_while_an_execution_is_open_or_when_it_is_not_what_was_approved(incident: Engine) -> None:
    user = str(cycle.rows_of(incident)["documents"][0]["user_id"])
    execution = cycle.approve(incident, SPEC, cycle.assess_and_plan(incident, SPEC).plan_id)
    store = cycle.bound_store(incident, SPEC)
    with pytest.raises(RefusedError, match=f"execution {execution.execution_id} is approved"):
        erasing.look(incident, store, user)
    cycle.migrate_all(incident, SPEC, execution)
    cycle.assert_green(cycle.validate(incident))
    before = grep(incident)

    with pytest.raises(RefusedError, match="not what was approved"):
        erasing.erase(incident, store, user, "0" * 16, "erasing run", lambda _: None)

    unmoved = {name: text for name, text in before.items() if name != "lease"}
    assert {name: text for name, text in grep(incident).items() if name != "lease"} == unmoved


@pytest.mark.begins("planned")
def test_a_plan_that_waits_for_approval_must_be_made_again_and_is_not_approved(incident: Engine) -> None:
    plan = cycle.newest_plan(incident)
    user = str(cycle.rows_of(incident)["documents"][0]["user_id"])

    done = erase(incident, user)

    assert done.consequences == (
        f"plan {plan.plan_id}, which waits for approval, must be made again: uuid-pipeline plan",
    )
    with pytest.raises(RefusedError, match=f"Plan {plan.plan_id} is stale: a user was erased since"):
        cycle.approve(incident, SPEC, plan.plan_id)
    cycle.run_all(incident, SPEC)


@pytest.mark.begins("migrated")
def test_a_plan_that_has_none_of_the_users_documents_may_be_approved(incident: Engine) -> None:
    users = [str(row["user_id"]) for row in cycle.rows_of(incident)["documents"]]
    gone, stays = users[0], next(user for user in users if user != users[0])
    cycle.run_sql(
        incident,
        """INSERT INTO upload_pipeline.documents
               (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
           SELECT gen_random_uuid(), user_id, 'new', mime, bytes_len, repeat('b', 64), 'new'
           FROM upload_pipeline.documents WHERE user_id = %(stays)s LIMIT 1""",
        stays=stays,
    )
    plan = cycle.assess_and_plan(incident, SPEC)

    done = erase(incident, gone)

    assert not any(plan.plan_id in one for one in done.consequences)
    assert cycle.approve(incident, SPEC, plan.plan_id).status == "approved"


def test_a_spec_without_an_owner_cannot_tell_whose_documents_are_whose(empty_store: Engine) -> None:
    shop.build(empty_store)
    with pytest.raises(UsageError, match=r"describe\.owner"):
        erasing.look(empty_store, cycle.bound_store(empty_store, shop.SPEC), "ann")


def test_short_ids_are_not_searched_for_in_sentences() -> None:
    ids: Any = frozenset({"7", "ann.smith@example.org", "30fcb08c-cac3-58fd-b162-52e5a9478104"})
    text = "7 rows of 30fcb08c-cac3-58fd-b162-52e5a9478104.title by ann.smith@example.org."
    assert scrubbing.scrubbed(text, scrubbing.wanted(ids)) == "7 rows of [erased].title by [erased]."


@given(
    st.lists(st.text("ab:-1. ", min_size=1, max_size=14), max_size=12),
    st.lists(st.integers(0, 11), max_size=6),
    st.text("ab:-1. ", max_size=6),
)
def test_every_id_of_many_is_found_wherever_it_stands_in_a_text(ids: list[str], chosen: list[int], glue: str) -> None:
    text = glue.join(ids[number % len(ids)] for number in chosen) if ids else glue

    found = scrubbing.scrubbed(text, scrubbing.wanted(frozenset(ids)))

    # One after the other, the longest first: what is no word by itself anywhere, words where they stand alone.
    expected = text
    phrases = {one for one in ids if len(one) >= 8 and not re.fullmatch(r"[\w@.+-]*\w", one)}
    for one in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        expected = expected.replace(one, "[erased]")
    words = {one for one in ids if len(one) >= 8}
    assert found == re.sub(r"[\w@.+-]*\w", lambda word: "[erased]" if word[0] in words else word[0], expected)


def test_many_ids_take_no_longer_by_text_than_few() -> None:
    texts = [f"natural key {n}:{n:064d} of {uuid.UUID(int=n)}, and more of the like" for n in range(300)]

    def seconds(ids: int) -> float:
        sought = scrubbing.wanted(frozenset(f"{n}:{n:064d}" for n in range(ids)))
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            assert all("[erased]" in scrubbing.scrubbed(text, sought) for text in texts)
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds(30_000) < 5 * seconds(300)


@pytest.mark.begins("migrated")
def test_a_list_of_figures_loses_the_users_record_and_keeps_the_others(incident: Engine) -> None:
    user = str(cycle.rows_of(incident)["documents"][0]["user_id"])
    figures = {"top": [{"owner": user, "title": "My own diary.pdf"}, {"owner": "another", "title": "b.pdf"}]}
    cycle.run_sql(
        incident,
        "UPDATE uuid_pipeline.gates SET figures = %(text)s::jsonb WHERE gate_no = 1",
        text=json.dumps(figures),
    )

    erase(incident, user)

    [(left,)] = cycle.run_sql(incident, "SELECT figures FROM uuid_pipeline.gates WHERE gate_no = 1")
    assert left == {"top": [{"owner": "another", "title": "b.pdf"}]}
