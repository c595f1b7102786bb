"""Triggers of the application: what they do, and the tier that keeps them out."""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.shop import (
    ALWAYS,
    IN_BATCH,
    OUTSIDE,
    PLAIN,
    build,
    fired_by,
    guard,
    put_back,
    tier_of,
    wishing,
)

REPLICA = "ALTER TABLE shop.things ENABLE REPLICA TRIGGER plain;"
CONSTRAINT = "CREATE CONSTRAINT TRIGGER plain AFTER UPDATE ON shop.things FOR EACH ROW EXECUTE FUNCTION shop.note();"
OTHER = "CREATE TRIGGER other BEFORE UPDATE ON shop.parts FOR EACH ROW EXECUTE FUNCTION shop.note();"


@pytest.fixture(scope="module")
def common_shop(server: EmbeddedServer) -> Iterator[Engine]:
    name = f"t_{uuid.uuid4().hex}"
    embedded.ensure_database(server, name)
    engine = open_store(server.url(name))
    yield build(engine)
    engine.dispose()


@pytest.fixture
def bare_shop(common_shop: Engine) -> Iterator[Engine]:
    """A store for tests that only make triggers; it has none before, and none after."""
    yield common_shop
    for name, table in cycle.run_sql(
        common_shop, "SELECT quote_ident(tgname), tgrelid::regclass FROM pg_trigger WHERE NOT tgisinternal"
    ):
        cycle.run_sql(common_shop, f"DROP TRIGGER {name} ON {table}")
    put_back(common_shop)


@pytest.mark.parametrize(
    ("made", "wishes", "tier", "guarded", "fired"),
    [
        ("", {}, "R", [], []),
        (PLAIN, {}, "R", [], []),
        (PLAIN, {"plain": "silence"}, "R", [], []),
        (PLAIN + OTHER, {"plain": "fire"}, "O", ["other"], ["plain"]),
        (PLAIN + ALWAYS + OTHER, {}, "R", ["plain"], []),
        (PLAIN + ALWAYS + OTHER, {"plain": "fire"}, "R", [], ["plain"]),
        (PLAIN + REPLICA + OTHER, {}, "O", ["other"], []),
        (PLAIN + REPLICA + OTHER, {"plain": "fire"}, "R", [], ["plain"]),
        (CONSTRAINT, {}, "R", [], []),
        (CONSTRAINT + OTHER, {"plain": "fire"}, "O", ["other"], ["plain"]),
        ("CREATE TRIGGER plain AFTER TRUNCATE ON shop.things EXECUTE FUNCTION shop.note()", {}, "R", [], []),
    ],
)
def test_the_tier_follows_from_what_is_to_fire(
    bare_shop: Engine, made: str, wishes: dict[str, Any], tier: str, guarded: list[str], fired: list[str]
) -> None:
    cycle.run_sql(bare_shop, made or OUTSIDE)

    found = tier_of(bare_shop, wishing(**wishes))

    assert (found.name, [t.name for t in found.guarded], [t.name for t in found.fired]) == (tier, guarded, fired)
    assert (found.refusals, found.missing) == ((), ())
    guard(bare_shop, found)
    # By hand what a batch does: only what is to fire does.
    role = "SET LOCAL session_replication_role = replica; " if tier == "R" else ""
    assert fired_by(bare_shop, role + IN_BATCH) == set(fired)


@pytest.mark.parametrize(
    ("made", "wishes", "why"),
    [
        (
            CONSTRAINT + OTHER,
            {"other": "fire"},
            r"constraint trigger plain on shop\.things .* `triggers: {plain: fire}`",
        ),
        (CONSTRAINT + ALWAYS, {}, r"constraint trigger plain .* tier R.*ENABLE TRIGGER instead of ALWAYS"),
        (PLAIN + REPLICA + OTHER, {"plain": "fire", "other": "fire"}, "plain .* does not fire in tier O"),
        (PLAIN, {"plane": "fire"}, "name plane, which no table that moves has"),
    ],
)
def test_what_cannot_be_as_the_spec_says_is_refused_with_the_way_out(
    bare_shop: Engine, made: str, wishes: dict[str, Any], why: str
) -> None:
    cycle.run_sql(bare_shop, made)

    (refusal,) = tier_of(bare_shop, wishing(**wishes)).refusals

    assert re.search(why, refusal)


@pytest.mark.parametrize(
    ("source", "does"),
    [
        ("BEGIN NEW.updated_at := now(); RETURN NEW; END", ["sets updated_at of the row itself"]),
        ("BEGIN IF NEW.a = OLD.a THEN NEW.b = 1; END IF; RETURN NEW; END", ["sets b of the row itself"]),
        (
            "BEGIN -- DELETE FROM nothing\n INSERT INTO audit.log VALUES (OLD.id); UPDATE ONLY totals t SET n = 1; END",
            ["writes to audit.log, totals (audit or outbox?)"],
        ),
        ("BEGIN PERFORM pg_notify('x', NEW.id::text); RETURN NULL; END", ["notifies listeners"]),
        ("BEGIN RAISE NOTICE 'x'; RAISE EXCEPTION 'keys never change'; END", ["raises errors"]),
        ("BEGIN EXECUTE format('DELETE FROM %I', TG_ARGV[0]); END", ["runs SQL that it builds itself"]),
        ("BEGIN SELECT 1 FROM t FOR UPDATE; RETURN NEW; END", ["writes nothing that its source shows"]),
    ],
)
def test_what_a_trigger_does_is_read_off_its_source(source: str, does: list[str]) -> None:
    assert triggers.deeds("plpgsql", source) == does
