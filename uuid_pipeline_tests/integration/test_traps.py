"""Traps in the catalogs: what is handled comes out exact, what is not is refused with the reason."""

import re
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from uuid_pipeline.demo import server as embedded
from uuid_pipeline.demo.server import EmbeddedServer
from uuid_pipeline.engine import profile, traps
from uuid_pipeline.engine.altered import triggers
from uuid_pipeline.engine.connection import open_store
from uuid_pipeline.engine.plans import written_ids
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import SoftReference, Spec, parse_spec
from uuid_pipeline_tests.integration import cycle
from uuid_pipeline_tests.integration.cycle import Rows

SPEC = parse_spec(
    """
    namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
    schema: zoo
    entities:
      doc: {table: docs, key: id, identity: "{code}"}
      chunk: {table: chunks, key: id, parent: doc, identity: "{doc}:{n}"}
      label: {table: labels, key: id, identity: "{name}"}
    ignore_references:
      - {table: docs, column: id_text, reason: computed by the server}
    batch_rows: 20
    """,
    "test",
)

# A key of each kind to docs and chunks: every action, deferrable or not, composite, to itself, in a cycle, of text.
ZOO = """
CREATE SCHEMA zoo;
CREATE TABLE zoo.docs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL UNIQUE, owner int NOT NULL,
    parent uuid REFERENCES zoo.docs ON UPDATE CASCADE, latest uuid,
    updated_at timestamptz NOT NULL DEFAULT '2020-01-01',
    id_text text GENERATED ALWAYS AS ('/' || id::text) STORED, number int GENERATED ALWAYS AS IDENTITY,
    UNIQUE (id, owner), CHECK (id <> parent));
CREATE TABLE zoo.chunks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), doc uuid NOT NULL REFERENCES zoo.docs ON UPDATE RESTRICT,
    n int NOT NULL, EXCLUDE USING btree (doc WITH =, n WITH =));
ALTER TABLE zoo.docs ADD FOREIGN KEY (latest) REFERENCES zoo.chunks DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE zoo.labels (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE zoo.r_no_action (doc uuid REFERENCES zoo.docs);
CREATE TABLE zoo.r_restrict (doc uuid REFERENCES zoo.docs ON UPDATE RESTRICT ON DELETE RESTRICT);
CREATE TABLE zoo.r_cascade (doc uuid REFERENCES zoo.docs ON UPDATE CASCADE ON DELETE CASCADE);
CREATE TABLE zoo.r_set_null (doc uuid REFERENCES zoo.docs ON UPDATE SET NULL ON DELETE SET NULL);
CREATE TABLE zoo.r_set_default (doc uuid REFERENCES zoo.docs ON UPDATE SET DEFAULT);
CREATE TABLE zoo.r_deferrable (doc uuid REFERENCES zoo.docs DEFERRABLE);
CREATE TABLE zoo.r_deferred (doc uuid REFERENCES zoo.docs ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE zoo.r_not_valid (doc uuid);
ALTER TABLE zoo.r_not_valid ADD FOREIGN KEY (doc) REFERENCES zoo.docs ON UPDATE CASCADE NOT VALID;
CREATE TABLE zoo.r_full (doc uuid, owner int, FOREIGN KEY (doc, owner) REFERENCES zoo.docs (id, owner) MATCH FULL);
CREATE TABLE zoo.r_pair (doc uuid, owner int, UNIQUE (doc, owner),
    FOREIGN KEY (doc, owner) REFERENCES zoo.docs (id, owner) ON UPDATE CASCADE);
CREATE TABLE zoo.r_second_hand (doc uuid, owner int, chunk uuid REFERENCES zoo.chunks ON UPDATE SET NULL,
    FOREIGN KEY (doc, owner) REFERENCES zoo.r_pair (doc, owner) ON UPDATE RESTRICT);
CREATE TABLE zoo.r_label (label varchar(40) REFERENCES zoo.labels ON UPDATE CASCADE);

INSERT INTO zoo.docs (code, owner) SELECT 'doc ' || i, mod(i, 3) FROM generate_series(1, 9) i;
UPDATE zoo.docs d SET parent = (SELECT id FROM zoo.docs p WHERE p.number = mod(d.number, 9) + 1);
INSERT INTO zoo.chunks (doc, n) SELECT id, n FROM zoo.docs, generate_series(1, 3) n;
UPDATE zoo.docs d SET latest = (SELECT c.id FROM zoo.chunks c WHERE c.doc = d.parent AND n = 3);
INSERT INTO zoo.labels SELECT gen_random_uuid()::text, 'label ' || i FROM generate_series(1, 5) i;
INSERT INTO zoo.r_no_action SELECT id FROM zoo.docs;
INSERT INTO zoo.r_restrict SELECT id FROM zoo.docs;
INSERT INTO zoo.r_cascade SELECT id FROM zoo.docs;
INSERT INTO zoo.r_set_null SELECT id FROM zoo.docs;
INSERT INTO zoo.r_set_default SELECT id FROM zoo.docs;
INSERT INTO zoo.r_deferrable SELECT id FROM zoo.docs UNION ALL SELECT NULL;
INSERT INTO zoo.r_deferred SELECT id FROM zoo.docs;
INSERT INTO zoo.r_not_valid SELECT id FROM zoo.docs;
INSERT INTO zoo.r_full SELECT id, owner FROM zoo.docs UNION ALL SELECT NULL, NULL;
INSERT INTO zoo.r_pair SELECT id, owner FROM zoo.docs;
INSERT INTO zoo.r_second_hand SELECT p.doc, p.owner, (SELECT id FROM zoo.chunks c WHERE c.doc = p.doc AND n = 1)
    FROM zoo.r_pair p;
INSERT INTO zoo.r_label SELECT id FROM zoo.labels;
"""
TRIGGERS = """
CREATE TABLE zoo.log (deed text);
CREATE FUNCTION zoo.touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.updated_at := now(); RETURN NEW; END$$;
CREATE FUNCTION zoo.note() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO zoo.log VALUES (TG_NAME); RETURN NULL; END$$;
CREATE TRIGGER touch BEFORE UPDATE ON zoo.docs FOR EACH ROW EXECUTE FUNCTION zoo.touch();
CREATE TRIGGER note AFTER UPDATE ON zoo.r_no_action FOR EACH ROW EXECUTE FUNCTION zoo.note();
CREATE TRIGGER audit AFTER UPDATE ON zoo.r_cascade FOR EACH ROW EXECUTE FUNCTION zoo.note();
CREATE TRIGGER vigil BEFORE UPDATE ON zoo.docs FOR EACH ROW EXECUTE FUNCTION zoo.touch();
ALTER TABLE zoo.docs ENABLE ALWAYS TRIGGER vigil;
"""


def spec_letting_fire(*names: str) -> Spec:
    return SPEC.model_copy(update={"triggers": dict.fromkeys(names, "fire")})


@pytest.fixture
def zoo(empty_store: Engine) -> Engine:
    cycle.run_sql(empty_store, ZOO)
    cycle.run_sql(empty_store, TRIGGERS)
    return empty_store


def moved(before: Rows) -> Rows:
    """Every table after the migration: ids made from raw columns by the standard uuid5, put wherever an old one was."""
    new = {row["id"]: str(uuid.uuid5(SPEC.namespace, str(row["code"]))) for row in before["docs"]}
    chunks = {row["id"]: f"{new[row['doc']]}:{row['n']}" for row in before["chunks"]}
    labels = {row["id"]: str(row["name"]) for row in before["labels"]}
    new |= {old: str(uuid.uuid5(SPEC.namespace, text)) for old, text in (chunks | labels).items()}
    new |= {f"/{old}": f"/{target}" for old, target in new.items()}
    return {
        table: cycle.ordered([{column: new.get(value, value) for column, value in row.items()} for row in rows])
        for table, rows in before.items()
        if table != "log"
    }


def tables(engine: Engine) -> Rows:
    return {table: rows for table, rows in cycle.rows_of(engine, "zoo").items() if table != "log"}


@pytest.mark.parametrize(("spec", "name", "fired"), [(SPEC, "R", 0), (spec_letting_fire("note"), "O", 18)])
def test_every_kind_of_foreign_key_moves_in_both_tiers_and_back_again(
    zoo: Engine, spec: Spec, name: str, fired: int
) -> None:
    with zoo.begin() as connection:
        assert triggers.choose(connection, cycle.bound(connection, spec)).name == name
    before, schema = tables(zoo), cycle.catalog_of(zoo, "zoo")

    cycle.run_all(zoo, spec)

    assert tables(zoo) == moved(before)
    cycle.roll_back(zoo, spec)
    assert tables(zoo) == before

    assert cycle.run_sql(zoo, "SELECT deed, count(*) FROM zoo.log GROUP BY 1") == ([("note", fired)] if fired else [])
    assert cycle.catalog_of(zoo, "zoo") == schema


@pytest.fixture(scope="module")
def zoo_to_look_at(server: EmbeddedServer) -> Iterator[Engine]:
    """One zoo for all tests that take back what they change."""
    name = f"t_{uuid.uuid4().hex}"
    embedded.ensure_database(server, name)
    engine = open_store(server.url(name))
    cycle.run_sql(engine, ZOO)
    cycle.run_sql(engine, TRIGGERS)
    yield engine
    engine.dispose()


def found_after(engine: Engine, change: str, spec: Spec = SPEC) -> tuple[list[str], list[str]]:
    """(refusals, warnings) of the store with a change that is then taken back."""
    with engine.connect() as connection:
        for statement in change.split(";\n"):
            connection.exec_driver_sql(statement)
        store = cycle.bound(connection, spec)
        found = traps.unsupported(connection, store), traps.warnings(connection, store)
        connection.rollback()
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "CREATE TABLE zoo.p (doc uuid REFERENCES zoo.docs, day date) PARTITION BY RANGE (day)",
            r"zoo\.p is partitioned: .* \(ctid\), which is unique in one partition only",
        ),
        ("CREATE TABLE zoo.h () INHERITS (zoo.docs)", r"zoo\.docs takes part in table inheritance"),
        ("CREATE RULE r AS ON UPDATE TO zoo.r_pair DO INSTEAD NOTHING", r"zoo\.r_pair has rewrite rules"),
        (
            "CREATE DOMAIN zoo.doc_id AS uuid;\nCREATE TABLE zoo.d (doc zoo.doc_id REFERENCES zoo.docs)",
            r"zoo\.d\.doc is zoo\.doc_id; a reference must be uuid or text",
        ),
        (
            "CREATE TABLE zoo.g (raw uuid, doc uuid GENERATED ALWAYS AS (raw) STORED REFERENCES zoo.docs)",
            r"zoo\.g\.doc is generated",
        ),
        (
            "ALTER TABLE zoo.docs ADD UNIQUE (id_text);\nCREATE TABLE zoo.k (path text REFERENCES zoo.docs (id_text))",
            r"foreign key k_path_fkey of zoo\.k takes part in the generated column zoo\.docs\.id_text",
        ),
        (
            "CREATE TABLE zoo.o (id uuid PRIMARY KEY);\nINSERT INTO zoo.o SELECT id FROM zoo.docs;\n"
            "ALTER TABLE zoo.r_cascade ADD FOREIGN KEY (doc) REFERENCES zoo.o",
            r"r_cascade\.doc moves as doc, but its foreign key \S+ refers to zoo\.o\.id, which does not",
        ),
        (
            "CREATE TABLE zoo.short (label varchar(35) REFERENCES zoo.labels)",
            r"zoo\.short\.label is character varying\(35\): a target id takes 36 characters; .* "
            r'ALTER TABLE "zoo"\."short" ALTER "label" TYPE varchar\(36\);',
        ),
        (
            "CREATE PUBLICATION p FOR TABLE zoo.r_cascade",
            r"every UPDATE of zoo\.r_cascade fails: .* does not have a replica identity",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE zoo.docs WHERE (owner > 1)",
            r"every UPDATE of zoo\.docs fails: .* WHERE expression is not part of the replica identity",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE zoo.docs (code)",
            r"every UPDATE of zoo\.docs fails: .* does not cover the replica identity",
        ),
        (
            "ALTER TABLE zoo.docs ADD CONSTRAINT random CHECK (id::text ~ '^.{14}4')",
            r"CHECK random on zoo\.docs does not hold when ids are UUIDs of version 5: ",
        ),
        (
            "ALTER TABLE zoo.r_label ADD COLUMN copy text;\nUPDATE zoo.r_label SET copy = label;\n"
            "ALTER TABLE zoo.r_label ADD CONSTRAINT same CHECK (copy LIKE label || '%%')",
            r"CHECK same on zoo\.r_label does not hold",
        ),
        (
            "ALTER TABLE zoo.chunks ADD CONSTRAINT few CHECK (n < 3) NOT VALID",
            r"CHECK few on zoo\.chunks is NOT VALID and rows violate it",
        ),
        (
            "DROP TRIGGER vigil ON zoo.docs;\nCREATE CONSTRAINT TRIGGER vigil AFTER UPDATE ON zoo.docs "
            "FOR EACH ROW EXECUTE FUNCTION zoo.note();\nALTER TABLE zoo.docs ENABLE ALWAYS TRIGGER vigil",
            r"constraint trigger vigil on zoo\.docs cannot be kept out in tier R",
        ),
        (
            "CREATE FUNCTION zoo.ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''ask us''; END';\n"
            "CREATE EVENT TRIGGER calm ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION zoo.ddl()",
            r"an event trigger \(calm\) refuses what waves need, .*: ask us .*; disable it",
        ),
    ],
)
def test_a_trap_is_refused_with_its_reason(zoo_to_look_at: Engine, change: str, reason: str) -> None:
    assert found_after(zoo_to_look_at, "SELECT")[0] == []

    ((refusal, *more), _) = found_after(zoo_to_look_at, change)

    assert re.search(reason, refusal)
    assert more == []


def test_a_soft_reference_without_room_for_a_target_id_is_refused(zoo_to_look_at: Engine) -> None:
    soft = [{"table": "mail", "column": column, "entity": "label"} for column in ("about", "others", "wide")]
    spec = SPEC.model_copy(update={"soft_references": [SoftReference.model_validate(one) for one in soft]})
    table = "CREATE TABLE zoo.mail (about varchar(20), others varchar(20)[], wide varchar(36))"

    refusals, _ = found_after(zoo_to_look_at, table, spec)

    assert [refusal.split(":")[0] for refusal in refusals] == [
        "zoo.mail.about is character varying(20)", "zoo.mail.others is character varying(20)[]"
    ]  # fmt: skip
    assert refusals[1].endswith('ALTER TABLE "zoo"."mail" ALTER "others" TYPE varchar(36)[];')


# The embedded server has no ICU to make one with.
FOLDING = """CREATE COLLATION zoo.folding (locale = 'C');
{change};
UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'folding'"""


def test_a_key_or_reference_whose_collation_folds_is_refused(zoo_to_look_at: Engine) -> None:
    table = "CREATE TABLE zoo.folded (label text COLLATE zoo.folding REFERENCES zoo.labels)"
    (refusal,), _ = found_after(zoo_to_look_at, FOLDING.format(change=table))
    assert refusal.startswith("zoo.folded.label has a collation that takes different texts for equal")

    key = "ALTER TABLE zoo.labels ALTER id TYPE text COLLATE zoo.folding"
    with pytest.raises(UsageError, match=r"the key labels\.id has a collation"):
        found_after(zoo_to_look_at, FOLDING.format(change=key))


@pytest.mark.parametrize("kind", ["STORED", pytest.param("VIRTUAL", id="virtual, since 18")])
def test_an_identity_computed_from_the_id_that_it_determines_is_refused(zoo_to_look_at: Engine, kind: str) -> None:
    column = f"ALTER TABLE zoo.docs ADD made text GENERATED ALWAYS AS (parent::text || code) {kind}"
    fine = f"ALTER TABLE zoo.docs ADD made text GENERATED ALWAYS AS (upper(code)) {kind}"
    doc = SPEC.entities["doc"].model_copy(update={"identity": "{made}"})
    spec = SPEC.model_copy(update={"entities": {**SPEC.entities, "doc": doc}})

    (refusal,), _ = found_after(zoo_to_look_at, column, spec)

    assert refusal.startswith("the identity of doc uses docs.made, which the server computes from parent: ")
    assert found_after(zoo_to_look_at, fine, spec)[0] == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE zoo.docs ADD CHECK (id IS DISTINCT FROM latest), ADD CHECK (length(id::text) = 36)",
        "ALTER TABLE zoo.r_full ADD COLUMN again uuid REFERENCES zoo.docs, ADD CHECK (again = doc)",
        "ALTER TABLE zoo.chunks ADD CHECK (n < 4) NOT VALID",
        "ALTER TABLE zoo.docs DISABLE TRIGGER touch",
        "CREATE UNIQUE INDEX ON zoo.docs (id) WHERE owner = 1",
    ],
)
def test_what_only_looks_like_a_trap_is_passed_in_silence(zoo_to_look_at: Engine, change: str) -> None:
    assert found_after(zoo_to_look_at, change) == ([], [])


@pytest.mark.parametrize(
    ("change", "spec", "sentence"),
    [
        (
            "CREATE VIEW zoo.v AS SELECT * FROM zoo.docs;\nCREATE MATERIALIZED VIEW zoo.m AS SELECT id FROM zoo.v",
            SPEC,
            r"materialized view zoo\.m shows the old ids until: REFRESH MATERIALIZED VIEW zoo\.m;",
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'zoo.docs_code_key'::regclass",
            SPEC,
            r"unique index zoo\.docs_code_key of zoo\.docs is invalid: it does not prove its rows unique",
        ),
        (
            "CREATE UNIQUE INDEX short ON zoo.docs (left(id::text, 8))",
            SPEC,
            r"unique index zoo\.short of zoo\.docs is over an expression",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE zoo.docs WHERE (id IS NOT NULL)",
            SPEC,
            r"zoo\.docs is published by p: .* UPDATE, or as INSERT or DELETE where the filter \(\(id IS NOT NULL\)\)",
        ),
        (
            "CREATE FUNCTION zoo.ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';\n"
            "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION zoo.ddl()",
            SPEC,
            r"event trigger watch runs zoo\.ddl at the statements that make our schema and triggers",
        ),
        (
            "SELECT",
            spec_letting_fire("note"),
            r"foreign key \S+ of r_not_valid is NOT VALID: in tier O a moved row that violates it stops its batch",
        ),
        (
            "ALTER TABLE zoo.r_not_valid VALIDATE CONSTRAINT r_not_valid_doc_fkey",
            spec_letting_fire("touch"),
            r"trigger touch on zoo\.docs fires and sets updated_at of the row itself: a batch .* is rolled back",
        ),
        (
            "CREATE TRIGGER orphan BEFORE UPDATE ON zoo.docs FOR EACH ROW "
            "WHEN (current_setting('uuid_pipeline.batch', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION zoo.note()",
            SPEC,
            r"trigger orphan on zoo\.docs holds our condition .* and the ledger knows nothing of it",
        ),
    ],
)
def test_what_is_handled_and_worth_saying_is_said(
    zoo_to_look_at: Engine, change: str, spec: Spec, sentence: str
) -> None:
    refusals, (warning,) = found_after(zoo_to_look_at, change, spec)

    assert refusals == []
    assert re.search(sentence, warning)


def test_a_transaction_that_will_hold_its_locks_is_named(
    zoo_to_look_at: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traps, "OLD_TRANSACTION_SECONDS", 0)
    with cycle.session(zoo_to_look_at) as other:
        other.execute("UPDATE zoo.docs SET code = code")

        (_, (warning,)) = found_after(zoo_to_look_at, "SELECT")

        assert warning.startswith(f"pid {other.info.backend_pid} (postgres) has had a transaction open for ")
        other.rollback()


def test_the_profile_tells_of_tier_triggers_and_traps(zoo_to_look_at: Engine) -> None:
    with zoo_to_look_at.begin() as connection:
        found = profile.describe(connection, cycle.bound(connection, spec_letting_fire("note", "vigil")))

    assert (found["tier"], found["tier_reason"]) == (
        "O",
        "the spec lets trigger note on zoo.r_no_action fire, which tier R would silence",
    )
    assert [(t["trigger"], t["does"], t["proposal"], t["spec"]) for t in found["silenced_triggers"]] == [
        ("touch", "sets updated_at of the row itself", "silence", None),
        ("audit", "writes to zoo.log (audit or outbox?)", "silence", None),
    ]
    assert [(t["trigger"], t["table"], t["events"]) for t in found["fired_triggers"]] == [
        ("vigil", "docs", "BEFORE UPDATE for each row"),
        ("note", "r_no_action", "AFTER UPDATE for each row"),
    ]
    assert (found["unsupported"], len(found["warnings"])) == ([], 2)


NAMED_IN = {
    "policy p on documents": "CREATE POLICY p ON upload_pipeline.documents USING (document_id <> '{id}')",
    "CHECK c on upload_jobs":
        "ALTER TABLE upload_pipeline.upload_jobs ADD CONSTRAINT c CHECK (document_id <> '{id}') NOT VALID",
    "the default of events.document_id": "ALTER TABLE upload_pipeline.events ALTER document_id SET DEFAULT '{id}'",
    "index i on events":
        "CREATE INDEX i ON upload_pipeline.events (event_id) WHERE document_id = '{id}'",
    "trigger t on events": """CREATE TRIGGER t BEFORE INSERT ON upload_pipeline.events FOR EACH ROW
        WHEN (NEW.document_id = '{id}') EXECUTE FUNCTION suppress_redundant_updates_trigger()""",
    "view v": "CREATE VIEW upload_pipeline.v AS SELECT * FROM upload_pipeline.documents WHERE document_id = '{id}'",
    "trigger u on elsewhere.notes": """CREATE TRIGGER u BEFORE INSERT ON elsewhere.notes FOR EACH ROW
        EXECUTE FUNCTION suppress_redundant_updates_trigger('{id}')""",
    "the default of elsewhere.notes.about": "ALTER TABLE elsewhere.notes ALTER about SET DEFAULT '{id}'",
    "CHECK not_it of domain elsewhere.other":
        "CREATE DOMAIN elsewhere.other AS uuid CONSTRAINT not_it CHECK (VALUE <> '{id}')",
    "the default of domain elsewhere.usual": "CREATE DOMAIN elsewhere.usual AS uuid DEFAULT '{id}'",
    "view several": """CREATE VIEW upload_pipeline.several AS SELECT * FROM upload_pipeline.documents
        WHERE document_id = ANY ('{{{id},6f0c2b1e-0000-4000-8000-000000000000}}')""",
}  # fmt: skip


@pytest.mark.parametrize("place", NAMED_IN)
def test_where_the_catalog_names_an_id_that_changes_the_plan_says_so(incident: Engine, place: str) -> None:
    documents = "SELECT document_id::text FROM upload_pipeline.documents ORDER BY 1"
    [(moves,), *_] = cycle.run_sql(incident, documents)
    cycle.run_sql(incident, "CREATE SCHEMA elsewhere")
    cycle.run_sql(incident, "CREATE TABLE elsewhere.notes (about uuid)")
    cycle.run_sql(incident, NAMED_IN[place].format(id=moves))
    # One that nobody has.
    cycle.run_sql(incident, f"CREATE VIEW upload_pipeline.w AS SELECT '{uuid.uuid4()}'::uuid AS id")

    assessed = cycle.assess(incident, cycle.spec_with())
    with incident.begin() as connection:
        said = written_ids.found(connection, assessed.store, assessed.number)

    assert [one.split(",")[0] for one in said] == [f"{place} names the document {moves}"]
