"""The id map's gates: what turns each of them red, and what need not be asked where no two rows share a target id."""

import time
import uuid

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import inventory, ledger_parts
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.proofs import id_map, second_opinion
from uuid_pipeline.spec import Spec, load_spec, parse_spec
from uuid_pipeline_tests.conftest import NewDatabase, opened
from uuid_pipeline_tests.integration import cycle

SPEC = load_spec(None)
ODD = ["plain", "", "back\\slash", "\\N", "tab\tnew\nline\r", "ünïcödé \U0001d4b3", "%s {x} $1 '\""]


def recomputed(engine: Engine, assessed: cycle.Assessed) -> GateResult:
    with engine.begin() as connection:
        return id_map.recomputed_independently(connection, assessed.store, assessed.number)


@pytest.mark.parametrize("entity", ["document", "chunk"])
def test_one_id_of_the_map_that_is_another_is_found_by_name(incident: Engine, entity: str) -> None:
    assessed = cycle.assess(incident, SPEC)
    assert assessed.gates["recomputed_independently"].figures == {"recomputed": 125, "differing": 0, "changed": 0}
    other = str(uuid.uuid4())
    [(old, right)] = cycle.run_sql(
        incident,
        f"""SELECT old_id::text, new_id::text FROM uuid_pipeline.id_map_{entity} m
            WHERE NOT EXISTS (SELECT FROM upload_pipeline.document_chunks c WHERE c.document_id = m.old_id)
            ORDER BY ordinal LIMIT 1""",  # noqa: S608
    )
    change = f"UPDATE uuid_pipeline.id_map_{entity} SET new_id = %(other)s WHERE old_id = %(old)s"  # noqa: S608
    cycle.run_sql(incident, change, other=other, old=old)

    gate = recomputed(incident, assessed)

    assert not gate.passed
    assert gate.finding == f"1 differ: {entity} {old}: map {other}, recomputed {right}"
    assert gate.figures == {"recomputed": 125, "differing": 1, "changed": 0}


CHANGED = """
UPDATE upload_pipeline.documents SET file_sha256 = repeat('0', 64)
WHERE document_id = (SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)
"""


def test_a_row_that_the_application_changed_since_the_inventory_is_counted_and_no_difference(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    cycle.run_sql(incident, CHANGED)

    gate = recomputed(incident, assessed)

    assert gate.passed
    assert gate.finding.startswith("124 ids recomputed, all equal; 1 rows were changed since the inventory")
    assert gate.figures == {"recomputed": 125, "differing": 0, "changed": 1}


def test_a_row_changed_before_the_inventory_explains_no_difference(incident: Engine) -> None:
    cycle.run_sql(incident, CHANGED)
    assessed = cycle.assess(incident, SPEC)
    spoiled = """UPDATE uuid_pipeline.id_map_document SET new_id = gen_random_uuid()
                 WHERE old_id = (SELECT min(document_id::text)::uuid FROM upload_pipeline.documents)"""
    cycle.run_sql(incident, spoiled)

    gate = recomputed(incident, assessed)

    assert not gate.passed
    assert gate.figures["differing"] >= 1
    assert gate.figures["changed"] == 0


def test_a_twin_that_the_application_changed_since_the_inventory_is_no_second_natural_key(twins: Engine) -> None:
    assessed = cycle.assess(twins, SPEC)
    one_of_two = """UPDATE upload_pipeline.documents SET file_sha256 = repeat('0', 64) WHERE document_id = (
                        SELECT m.old_id FROM uuid_pipeline.id_map_document m WHERE m.role = 'merge' LIMIT 1)"""
    cycle.run_sql(twins, one_of_two)

    with twins.begin() as connection:
        gate = id_map.one_target_per_natural_key(connection, assessed.store, assessed.number)

    assert gate.passed, gate.finding


def test_a_second_implementation_that_disagrees_is_told_with_five_examples(
    incident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assessed = cycle.assess(incident, SPEC)
    real = second_opinion.sha1
    monkeypatch.setattr(second_opinion, "sha1", lambda messages: real([message + b"!" for message in messages]))

    gate = recomputed(incident, assessed)

    assert not gate.passed
    assert gate.finding.startswith("125 differ: ")
    assert gate.finding.count("recomputed") == 5


def shared(engine: Engine, assessed: cycle.Assessed) -> dict[str, bool]:
    with engine.begin() as connection:
        return {
            entity.name: inventory.may_share_targets(connection, entity, assessed.number)
            for entity in assessed.store.entities
        }


def test_that_no_two_rows_share_a_target_id_is_the_servers_own_finding(incident: Engine) -> None:
    assert shared(incident, cycle.assess(incident, SPEC)) == {"document": False, "chunk": False}


def test_clusters_are_asked_for_where_rows_share_a_target_id(twins: Engine) -> None:
    assessed = cycle.assess(twins, SPEC)

    assert shared(twins, assessed)["document"]
    shows = "SELECT count(*) FROM uuid_pipeline.id_map_document WHERE role = 'merge'"
    assert cycle.run_sql(twins, shows)[0][0] > 0


def test_an_assessment_of_which_nobody_asked_may_share_target_ids(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)
    with incident.begin() as connection:
        assert not ledger_parts.is_unique(connection, "inventory", assessed.store.main, assessed.number, "natural_key")
        assert inventory.may_share_targets(connection, assessed.store.main, assessed.number + 1)


TEXT_KEYS = parse_spec(
    """
namespace: 11111111-2222-3333-4444-555555555555
schema: s
entities:
  thing:
    table: things
    key: id
    identity: "{name}"
    describe: {owner: owner, created_at: made, status: state, size: weight, title: title}
  part: {table: parts, key: id, parent: thing, identity: "{thing}/{n}"}
""",
    "text.yaml",
)


@pytest.fixture
def things(empty_store: Engine) -> Engine:
    """Keys of text, and values that text formats have to escape."""
    ddl = """CREATE SCHEMA s;
        CREATE TABLE s.things (id text PRIMARY KEY, name text, owner text, made date, state varchar(9),
                               weight numeric, title text);
        CREATE TABLE s.parts (id text PRIMARY KEY, thing text NOT NULL REFERENCES s.things, n int)"""
    for statement in ddl.split(";"):
        cycle.run_sql(empty_store, statement)
    for number, text in enumerate(ODD):
        cycle.run_sql(
            empty_store,
            """INSERT INTO s.things VALUES (%(id)s, %(name)s, %(text)s, %(made)s, %(state)s, %(weight)s, %(text)s)""",
            id=f"{number}\\{text}", name=f"{number} {text}", text=text,
            made=["infinity", "0044-03-15 BC", None][number % 3],
            state=[None, "", "up"][number % 3], weight=[None, 7.5, -3][number % 3],
        )  # fmt: skip
        part = "INSERT INTO s.parts VALUES (%(id)s, %(thing)s, 1)"
        cycle.run_sql(empty_store, part, id=f"p\t{number}", thing=f"{number}\\{text}")
    return empty_store


def test_whatever_a_row_holds_is_in_the_inventory_as_it_stands(things: Engine) -> None:
    cycle.assess(things, TEXT_KEYS)

    kept = cycle.run_sql(
        things,
        """SELECT i.key, i.natural_key, i.owner, i.created_at::text, i.status, i.size, i.title, i.children
           FROM uuid_pipeline.inventory_thing i ORDER BY position""",
    )
    stands = """SELECT id, name, owner, (made::timestamptz)::text, state, round(weight)::bigint, title, 1
                FROM s.things ORDER BY ctid"""
    assert kept == cycle.run_sql(things, stands)
    expected = {name: str(uuid.uuid5(TEXT_KEYS.namespace, name)) for name in (row[1] for row in kept)}
    found = cycle.run_sql(things, "SELECT natural_key, target_id FROM uuid_pipeline.inventory_thing")
    assert dict(found) == expected
    parts = cycle.run_sql(
        things,
        """SELECT p.target_id, t.natural_key FROM uuid_pipeline.inventory_part p
           JOIN uuid_pipeline.inventory_thing t ON t.key = p.parent_key""",
    )
    assert sorted(row[0] for row in parts) == sorted(
        str(uuid.uuid5(TEXT_KEYS.namespace, f"{expected[name]}/1")) for _, name in parts
    )
    assert len(parts) == len(ODD)


def test_a_key_of_text_that_is_anothers_target_id_is_a_collision(things: Engine) -> None:
    assert cycle.assess(things, TEXT_KEYS).gates["no_collision"].passed
    target = str(uuid.uuid5(TEXT_KEYS.namespace, f"0 {ODD[0]}"))
    cycle.run_sql(things, "INSERT INTO s.things (id, name) VALUES (%(id)s, 'another')", id=target)

    gate = cycle.assess(things, TEXT_KEYS).gates["no_collision"]

    assert not gate.passed
    assert f"-> {target}, held by a row that is to become " in gate.finding


PAIRED = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: s
    entities:
      pair: {table: pairs, key: id, identity: "{a}{b}"}
    """,
    "test",
)


def test_of_more_collisions_and_shared_target_ids_than_are_named_all_are_counted(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA s;
           CREATE TABLE s.pairs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), a text, b text);
           INSERT INTO s.pairs (a, b) SELECT 'x' || n, 'y' FROM generate_series(10, 22) n;""",
    )
    for row in range(10, 22):
        target = str(uuid.uuid5(PAIRED.namespace, f"x{row}y"))
        cycle.run_sql(empty_store, "INSERT INTO s.pairs VALUES (%(id)s, 'z', %(row)s)", id=target, row=str(row))
    taken = cycle.assess(empty_store, PAIRED).gates["no_collision"]
    cycle.run_sql(empty_store, "DELETE FROM s.pairs WHERE a = 'z'")
    # Without a separator these read the same: x10 and y, x1 and 0y.
    cycle.run_sql(
        empty_store, "INSERT INTO s.pairs (a, b) SELECT 'x' || n / 10, n %% 10 || 'y' FROM generate_series(10, 22) n"
    )
    shared = cycle.assess(empty_store, PAIRED).gates["one_target_per_natural_key"]

    assert (taken.passed, taken.figures) == (False, {"collisions": 12})
    assert (taken.finding.count("held by a row"), taken.finding.endswith("; and 2 more")) == (10, True)
    assert not shared.passed
    assert (shared.finding.count("pair "), shared.finding.endswith("; and 3 more")) == (10, True)


def chain(depth: int) -> tuple[str, Spec]:
    """Entities one below the other, and a store of them with a row on each level under ids that are right but the
    last one's."""
    tables = ["CREATE SCHEMA s; CREATE TABLE s.t0 (id uuid PRIMARY KEY, name text)"]
    spec = ["namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42", "schema: s", "entities:"]
    spec.append("  e0: {table: t0, key: id, identity: '{name}'}")
    at = uuid.uuid5(PAIRED.namespace, "top")
    rows = [f"INSERT INTO s.t0 VALUES ('{at}', 'top')"]  # noqa: S608
    for level in range(1, depth):
        tables.append(f"CREATE TABLE s.t{level} (id uuid PRIMARY KEY, p uuid REFERENCES s.t{level - 1}, name text)")
        spec.append(f"  e{level}: {{table: t{level}, key: id, parent: e{level - 1}, identity: '{{p}}:{{name}}'}}")
        above, at = at, uuid.uuid4() if level == depth - 1 else uuid.uuid5(PAIRED.namespace, f"{at}:x")
        rows.append(f"INSERT INTO s.t{level} VALUES ('{at}', '{above}', 'x')")  # noqa: S608
    return ";".join([*tables, *rows]), parse_spec("\n".join(spec), "test")


def test_a_row_moves_though_all_above_it_is_right_however_deep_it_lies_and_depth_costs_no_more_than_itself(
    new_database: NewDatabase,
) -> None:
    seconds = {}
    for depth in (7, 14):
        store, spec = chain(depth)
        with opened(new_database(None)) as engine:
            cycle.run_sql(engine, store)
            began = time.monotonic()
            assessed = cycle.assess(engine, spec)
            seconds[depth] = time.monotonic() - began
            found = cycle.run_sql(engine, "SELECT role, old_id::text FROM uuid_pipeline.id_map_e0")
            cycle.run_sql(engine, "DROP SCHEMA uuid_pipeline CASCADE")
            cycle.run_all(engine, spec)
            [(last, above)] = cycle.run_sql(engine, f"SELECT id::text, p::text FROM s.t{depth - 1}")  # noqa: S608
        assert [role for role, _ in found] == ["keep"]
        assert assessed.gates["recomputed_independently"].figures["recomputed"] == depth
        assert last == str(uuid.uuid5(PAIRED.namespace, f"{above}:x"))
    assert seconds[14] < 5 * seconds[7]
