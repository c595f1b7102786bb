"""The protocol as it is and as it must not be, and the company in which each is tried."""

from collections.abc import Callable
from functools import cache

from uuid_pipeline_tests.model.application import SCRIPTS, Application, with_alias_trigger
from uuid_pipeline_tests.model.batch import BACK_PROTOCOL, FORWARD_PROTOCOL, LANE_PROTOCOL, Migration
from uuid_pipeline_tests.model.search import Role, Searched, all_moved, before_all, in_lanes, search

Protocol = tuple[str, ...]
KILLS = 1


def without(*steps: str) -> Protocol:
    """The forward protocol with steps left out."""
    return tuple(step for step in FORWARD_PROTOCOL if step not in steps)


_MOVED = FORWARD_PROTOCOL.index("journal")
_LOCKED = FORWARD_PROTOCOL.index("lock the documents")

# What is left out or put elsewhere -> (the protocol, what the application does meanwhile, what must come of it).
BROKEN: dict[str, tuple[Protocol, str, str]] = {
    "documents are not locked": (
        without("lock the documents"),
        "inserts a chunk",
        "the new chunk is an orphan: there is no document d1",
    ),
    "chunks are not locked": (
        without("lock the chunks"),
        "inserts a buffer row",
        "the new buffer is an orphan: there is no chunk c1",
    ),
    "locking and moving are one statement, with one snapshot": (
        without(*[step for step in FORWARD_PROTOCOL if step.startswith("lock the") and step != "lock the lease"]),
        "inserts a chunk",
        "the new chunk is an orphan: there is no document d1",
    ),
    "the epoch is not compared": (
        without("check the epoch"),
        "inserts a chunk",
        "the journal has batch 1 twice forward",
    ),
    "the lease is looked at, not locked": (
        without("lock the lease"),
        "inserts a chunk",
        "the journal has batch 1 twice forward",
    ),
    "the journal is written after the batch, in a transaction of its own": (
        (*FORWARD_PROTOCOL[:_MOVED], "commit so far", *FORWARD_PROTOCOL[_MOVED:]),
        "inserts a chunk",
        "document 1 is journaled as deleted, and is there",
    ),
    "the journal is written before the batch, in a transaction of its own": (
        (*FORWARD_PROTOCOL[:_LOCKED], "journal", "commit so far", *without("journal")[_LOCKED:]),
        "inserts a chunk",
        "the journal has batch 1 twice forward",
    ),
}


def forward_twice(protocol: Protocol) -> tuple[Migration, Migration]:
    """A process, and one that takes over: since the first was killed, or since it seems to be."""
    return Migration("P1", "forward", protocol), Migration("P2", "forward", protocol)


def turned_round() -> tuple[Migration, Migration]:
    """A process going forward, and one that takes over to roll back what the first did."""
    return Migration("P1", "forward", FORWARD_PROTOCOL), Migration("P2", "back", BACK_PROTOCOL)


def back_twice() -> tuple[Migration, Migration]:
    """A rollback, and a process that takes it over."""
    return Migration("P1", "back", BACK_PROTOCOL), Migration("P2", "back", BACK_PROTOCOL)


@cache
def forward(script: str, protocol: Protocol = FORWARD_PROTOCOL) -> Searched:
    """Two processes going forward beside the application and its alias trigger."""
    return _search(forward_twice(protocol), with_alias_trigger(SCRIPTS[script]))


def forward_beside_two(first: str, second: str) -> Searched:
    """Two processes going forward beside two transactions of the application at once."""
    return _search(
        forward_twice(FORWARD_PROTOCOL), *[with_alias_trigger(SCRIPTS[script]) for script in (first, second)]
    )


@cache
def in_two_lanes(script: str, protocol: Protocol = LANE_PROTOCOL) -> Searched:
    """Two lanes of a process, and one that takes over, beside the application and its alias trigger."""
    return _in_lanes(Migration("P2", "forward", FORWARD_PROTOCOL), script, protocol)


@cache
def in_two_lanes_and_back(script: str) -> Searched:
    """As :func:`in_two_lanes`, and who takes over rolls back."""
    return _in_lanes(Migration("P2", "back", BACK_PROTOCOL), script, LANE_PROTOCOL)


def _in_lanes(next_one: Migration, script: str, protocol: Protocol) -> Searched:
    roles: list[Role] = [
        Migration("Lane 1", "forward", protocol),
        Migration("Lane 2", "forward", protocol),
        next_one,
        Application("The application", with_alias_trigger(SCRIPTS[script])),
    ]
    # A process that is killed takes both of its lanes with it, each wherever it is.
    return search(roles, in_lanes(roles, 2 * KILLS))


@cache
def round_about(script: str, trigger: Callable[[Protocol], Protocol] = with_alias_trigger) -> Searched:
    """Forward, then back, beside the application and a trigger."""
    return _search(turned_round(), trigger(SCRIPTS[script]))


@cache
def back(script: str) -> Searched:
    """Two processes rolling back beside the application, which holds new ids, and its alias trigger."""
    roles: list[Role] = [*back_twice(), Application("The application", with_alias_trigger(SCRIPTS[script]))]
    return search(roles, all_moved(roles, KILLS))


def without_trigger(script: str) -> Searched:
    """Two processes going forward beside an application without any trigger."""
    return _search(forward_twice(FORWARD_PROTOCOL), SCRIPTS[script])


def _search(migrations: tuple[Migration, ...], *scripts: Protocol) -> Searched:
    names = ("The application", "The application's other session")
    roles: list[Role] = [*migrations, *map(Application, names, scripts)]
    return search(roles, before_all(roles, KILLS))
