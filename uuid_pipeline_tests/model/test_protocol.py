"""No order of steps, kills and take-overs loses or orphans a row; with a step left out, the search finds how."""

from collections.abc import Callable

import pytest

from uuid_pipeline_tests.model import cases
from uuid_pipeline_tests.model.application import SCRIPTS, with_hasty_trigger, with_trigger_on_references
from uuid_pipeline_tests.model.batch import LANE_PROTOCOL
from uuid_pipeline_tests.model.search import Searched

DELETE = "deletes a document"


@pytest.mark.parametrize(
    ("company", "least", "ends"),
    [
        (cases.forward, 12_000, {("done", "done", "done"), ("killed", "done", "done"), ("fenced off", "done", "done")}),
        (
            cases.round_about,
            9_000,
            {("done", "done", "done"), ("killed", "done", "done"), ("stopped", "done", "done")},
        ),
        (cases.back, 12_000, {("done", "done", "done"), ("killed", "done", "done"), ("fenced off", "done", "done")}),
        (
            cases.in_two_lanes,
            12_000,
            {
                ("done", "done", "done", "done"),
                ("killed", "done", "done", "done"),
                ("killed", "killed", "done", "done"),
                ("done", "fenced off", "done", "done"),
            },
        ),
        (
            cases.in_two_lanes_and_back,
            12_000,
            {
                ("done", "done", "done", "done"),
                ("killed", "done", "done", "done"),
                ("fenced off", "done", "done", "done"),
            },
        ),
    ],
    ids=[
        "forward, and taken over",
        "forward, and rolled back",
        "back, and taken over",
        "in two lanes, and taken over",
        "in two lanes, and rolled back",
    ],
)
def test_no_interleaving_loses_or_orphans_a_row_and_behind_the_trigger_the_application_gets_no_error(
    company: Callable[[str], Searched], least: int, ends: set[tuple[str, ...]]
) -> None:
    searched = {script: company(script) for script in SCRIPTS}

    for script, result in searched.items():
        assert result.story is None, f"while the application {script}:\n{result.story}"
        errors = {} if script == DELETE else result.errors  # of those below
        assert {name: str(story) for name, story in errors.items()} == {}
    # That nothing bad was found means something only where a lot was looked at, good ends among it.
    states = sum(result.states for result in searched.values())
    assert states > least
    assert ends <= searched["inserts a chunk"].ends


def test_nor_does_any_with_two_transactions_of_the_application_at_once() -> None:
    result = cases.forward_beside_two("inserts a chunk", "inserts a buffer row")

    assert result.story is None, f"\n{result.story}"
    assert result.errors == {}
    assert result.states > 5_000


@pytest.mark.parametrize("what", cases.BROKEN)
def test_the_search_finds_what_is_wrong_with_a_protocol_in_which(what: str) -> None:
    protocol, script, expected = cases.BROKEN[what]

    story = cases.forward(script, protocol).story

    assert story is not None
    assert story.wrong == expected, f"\n{story}"


def test_it_finds_what_is_wrong_with_lanes_that_look_at_the_lease_and_do_not_lock_it() -> None:
    protocol = tuple(step for step in LANE_PROTOCOL if step != "share the lease")

    story = cases.in_two_lanes("inserts a chunk", protocol).story

    assert story is not None
    assert story.wrong == "the journal has batch 1 twice forward", f"\n{story}"


def test_the_story_of_the_missing_lock_is_told_in_words() -> None:
    protocol, script, _ = cases.BROKEN["chunks are not locked"]

    told = str(cases.forward(script, protocol).story)

    assert [line[5:] for line in told.splitlines()[-11:]] == [
        "P1 takes a snapshot to move document 1, chunk 1, buffer 1",
        "The application finds chunk c1 in its snapshot",
        "The application locks chunk 1 FOR KEY SHARE",
        "The application inserts a buffer row of chunk c1",
        "The application finds chunk c1 in its snapshot",
        "The application locks chunk 1 FOR KEY SHARE",
        "The application commits",
        "P1 locks chunk 1 FOR UPDATE",
        "P1 writes batch 1 to the journal",
        "P1 commits batch 1",
        "Then the new buffer is an orphan: there is no chunk c1.",
    ]


@pytest.mark.parametrize("script", ["inserts a chunk", "inserts a buffer row", "upserts a chunk"])
def test_without_the_alias_trigger_the_application_gets_an_error_and_loses_nothing(script: str) -> None:
    result = cases.without_trigger(script)

    assert result.story is None, f"\n{result.story}"
    assert list(result.errors) == ["a foreign key error"]


def test_a_trigger_that_does_not_look_back_errs_when_a_rollback_overtakes_it() -> None:
    result = cases.round_about("inserts a chunk", with_hasty_trigger)

    assert result.story is None, f"\n{result.story}"
    assert list(result.errors) == ["a foreign key error"]


def test_a_trigger_that_leaves_the_rows_own_id_makes_an_upsert_err_and_loses_nothing() -> None:
    result = cases.round_about("upserts a chunk", with_trigger_on_references)

    assert result.story is None, f"\n{result.story}"
    assert "a unique key error" in result.errors


def test_a_delete_of_several_statements_that_straddles_two_moves_errs_and_loses_nothing() -> None:
    """No trigger can help it: a DELETE by an id that a row no longer has finds no row."""
    assert cases.forward(DELETE).errors == {}

    result = cases.round_about(DELETE)

    assert result.story is None, f"\n{result.story}"
    assert list(result.errors) == ["a foreign key error"]


def test_the_triggers_lock_can_deadlock_an_upsert_with_a_delete_from_the_children_up() -> None:
    """The price of the probe: without the trigger an upsert that meets its row locks no document."""
    story = cases.forward_beside_two("upserts a chunk", "deletes a document").story

    assert story is not None
    assert story.wrong == "The application waits for ever"
