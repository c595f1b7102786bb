"""Clusters: rows with one natural key are shown with their survivor, and block where the spec says so."""

import uuid
from collections import Counter

import pytest
from sqlalchemy import Engine

from uuid_pipeline.engine import duplicates
from uuid_pipeline.engine.evidence import look_alikes
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.proofs import id_map
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import Spec, load_spec, parse_spec
from uuid_pipeline_tests.integration import cycle, shop

SPEC = load_spec(None)
UPLOAD = """
INSERT INTO upload_pipeline.documents (document_id, user_id, filename, mime, bytes_len, file_sha256, raw_path)
VALUES (%(id)s, %(user)s, 'again.pdf', 'application/pdf', 1, %(sha)s, 'storage://again')
"""


def upload_again(engine: Engine, document_id: str | None) -> tuple[str, str, str]:
    """A document and a second one of the same user and content in capitals; their ids and the natural key."""
    [(first, user, sha)] = cycle.run_sql(
        engine, "SELECT document_id::text, user_id::text, file_sha256 FROM upload_pipeline.documents LIMIT 1"
    )
    second = document_id or str(uuid.uuid5(cycle.NAMESPACE, f"{user}:{sha}"))
    cycle.run_sql(engine, UPLOAD, id=second, user=user, sha=sha.upper())
    return first, second, f"{user}:{sha}"


def shown(engine: Engine, assessed: cycle.Assessed) -> list[dict[str, object]]:
    with engine.begin() as connection:
        return duplicates.clusters(connection, assessed.store, assessed.number)


def test_there_are_none_in_the_incident(incident: Engine) -> None:
    assessed = cycle.assess(incident, SPEC)

    assert shown(incident, assessed) == []
    cycle.assert_green(assessed.gates.values())


@pytest.mark.parametrize(
    ("owned", "said"),
    [
        ([], "the spec names no owner, so this is not known"),
        (["second"], "no cluster spans two owners; of first the spec names no owner, so this is not known"),
        (["first", "second"], "no cluster spans two owners"),
    ],
)
def test_of_which_documents_nobody_can_know_the_owner_is_said(empty_store: Engine, owned: list[str], said: str) -> None:
    cycle.run_sql(empty_store, "CREATE TABLE public.first (id uuid PRIMARY KEY, name text, who int)")
    cycle.run_sql(empty_store, "CREATE TABLE public.second (LIKE public.first INCLUDING ALL)")
    describe = {name: ", describe: {owner: who}" if name in owned else "" for name in ("first", "second")}
    lines = [f'  {n}: {{table: {n}, key: id, identity: "{{name}}"{more}}}' for n, more in describe.items()]
    head = "namespace: 11111111-2222-3333-4444-555555555555\nschema: public\nentities:"
    spec = parse_spec("\n".join([head, *lines, ""]), "two.yaml")

    assert cycle.assess(empty_store, spec).gates["never_across_users"].finding == said


def test_a_re_upload_under_the_right_id_is_a_twin_and_the_older_more_complete_one_survives(incident: Engine) -> None:
    first, second, key = upload_again(incident, None)

    assessed = cycle.assess(incident, SPEC)

    assert shown(incident, assessed) == [
        {
            "entity": "document",
            "kind": "re-upload twin",
            "natural_key": key,
            "rows": 2,
            "owners": 1,
            "survivor": first,
            "survivor_rule": "complete",
            "ids": [first, second],
        }
    ]


@pytest.mark.parametrize("second", [None, str(uuid.uuid4())], ids=["a twin", "two random ids"])
def test_a_cluster_blocks_approval_where_the_spec_says_block_and_no_row_moves(
    incident: Engine, second: str | None
) -> None:
    _, _, key = upload_again(incident, second)
    before = cycle.rows_of(incident)
    document = SPEC.entities["document"].model_copy(update={"on_duplicate": "block"})
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document})
    assessed = cycle.assess(incident, spec)
    plan = cycle.plan(incident, assessed)

    with pytest.raises(RefusedError, match=f"each_cluster_decided did not pass.*{key}"):
        cycle.approve(incident, spec, plan.plan_id)

    assert {name for name, gate in assessed.gates.items() if not gate.passed} == {"each_cluster_decided"}
    assert cycle.rows_of(incident) == before


def test_a_cluster_that_was_removed_blocks_no_more(incident: Engine) -> None:
    _, second, _ = upload_again(incident, str(uuid.uuid4()))
    cycle.assess(incident, SPEC)

    cycle.run_sql(incident, "DELETE FROM upload_pipeline.documents WHERE document_id = %(id)s", id=second)

    cycle.run_all(incident, SPEC)


@pytest.fixture
def by_content() -> Spec:
    """The default spec with an identity that does not name the owner."""
    identity = SPEC.entities["document"].model_copy(update={"identity": "{file_sha256}", "witnesses": []})
    return cycle.spec_with(entities={**SPEC.entities, "document": identity})


def test_an_identity_without_the_owner_that_joins_two_users_is_refused(incident: Engine, by_content: Spec) -> None:
    [(sha,)] = cycle.run_sql(incident, "SELECT file_sha256 FROM upload_pipeline.documents LIMIT 1")
    cycle.run_sql(incident, UPLOAD, id=str(uuid.uuid4()), user=str(uuid.uuid4()), sha=sha)

    gate = cycle.assess(incident, by_content).gates["never_across_users"]

    assert not gate.passed
    assert "owner" in gate.remedy


def test_a_row_of_nobody_is_not_merged_with_somebodys(incident: Engine, by_content: Spec) -> None:
    cycle.run_sql(incident, "ALTER TABLE upload_pipeline.documents ALTER user_id DROP NOT NULL")
    [(sha,)] = cycle.run_sql(incident, "SELECT file_sha256 FROM upload_pipeline.documents LIMIT 1")
    cycle.run_sql(incident, UPLOAD, id=str(uuid.uuid4()), user=None, sha=sha)

    assert not cycle.assess(incident, by_content).gates["never_across_users"].passed

    cycle.run_sql(incident, "UPDATE upload_pipeline.documents SET user_id = NULL WHERE file_sha256 = %(s)s", s=sha)
    assert cycle.assess(incident, by_content).gates["never_across_users"].passed


def test_a_cluster_of_which_the_application_counts_some_rows_only_waits_for_the_spec_to_say(
    empty_store: Engine,
) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA shop;
           CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text, size text, status text);
           CREATE UNIQUE INDEX counted ON shop.things (code) WHERE status NOT LIKE '%%gone';
           INSERT INTO shop.things (code, status)
           VALUES ('a', 'there'), ('a', 'is gone'), ('b', 'gone'), ('b', 'gone'), ('c', 'there')""",
    )
    text = shop.SPEC_TEXT.partition("soft_references")[0]
    silent = parse_spec(text, "test")
    spoken = parse_spec(text.replace('identity: "{code}"', 'identity: "{code}", on_duplicate: merge'), "test")

    red = cycle.assess(empty_store, silent).gates["each_cluster_decided"]

    assert not red.passed
    assert red.finding.startswith("1 clusters of thing hold rows on both sides of the unique index shop.counted (WHERE")
    assert cycle.assess(empty_store, spoken).gates["each_cluster_decided"].passed
    cycle.run_sql(empty_store, "UPDATE shop.things SET code = 'd' WHERE status = 'is gone'")
    assert cycle.assess(empty_store, silent).gates["each_cluster_decided"].passed


def test_of_more_clusters_than_are_listed_every_one_is_counted_and_looked_at(
    empty_store: Engine,
) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA shop;
           CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text, owner int);
           INSERT INTO shop.things (code, owner) SELECT 'c' || n / 2, 1 FROM generate_series(0, 2399) n;""",
    )
    text = shop.SPEC_TEXT.replace('identity: "{code}"', 'identity: "{code}", describe: {owner: owner}')
    spec = parse_spec(text.partition("soft_references")[0], "test")
    within = cycle.assess(empty_store, spec).gates
    # Of all target ids the last in order, so the last to be listed.
    cycle.run_sql(
        empty_store,
        """UPDATE shop.things SET owner = 2 WHERE id = (SELECT key FROM uuid_pipeline.inventory_thing
           WHERE assessment_no = 1 ORDER BY target_id DESC LIMIT 1)""",
    )

    across = cycle.assess(empty_store, spec).gates["never_across_users"]

    assert within["never_across_users"].passed
    assert within["each_cluster_decided"].figures == {"clusters": 1200}
    assert (across.passed, across.figures) == (False, {"clusters": 1})


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("EXCLUDE USING btree (thing_id WITH =, n WITH =)", "the exclusion constraint shop.held_x holds an id"),
        ("EXCLUDE USING btree (n WITH =, lower(thing_id::text) WITH =)", "shop.held_x holds an id"),
        ("EXCLUDE USING btree (part WITH =)", None),
        ("UNIQUE (thing_id, n)", None),
        ("UNIQUE (code, n)", "the unique index shop.held_x is over a column that is generated from an id"),
        ("EXCLUDE USING btree (code WITH =)", "the exclusion constraint shop.held_x holds an id"),
        ("UNIQUE (other)", None),
    ],
)
def test_what_merging_would_meet_in_an_exclusion_constraint_is_a_red_gate(
    empty_store: Engine, constraint: str, said: str | None
) -> None:
    cycle.run_sql(empty_store, shop.STORE)
    cycle.run_sql(
        empty_store,
        """ALTER TABLE shop.parts ADD code text GENERATED ALWAYS AS (thing_id::text) STORED,
                                  ADD other int GENERATED ALWAYS AS (n + 1) STORED""",
    )
    cycle.run_sql(empty_store, f"ALTER TABLE shop.parts ADD CONSTRAINT held_x {constraint}")
    assert cycle.assess(empty_store, shop.SPEC).gates["conflicts_resolvable"].passed
    cycle.run_sql(empty_store, "UPDATE shop.things SET code = 'same'")

    gate = cycle.assess(empty_store, shop.SPEC).gates["conflicts_resolvable"]

    assert gate.passed == (said is None)
    assert (said or "") in gate.finding


def test_children_of_different_documents_that_share_a_natural_key_are_a_red_gate(incident: Engine) -> None:
    loose = SPEC.entities["chunk"].model_copy(
        update={"identity": "{chunker_name}:{chunker_version}:{chunk_ord}", "witnesses": []}
    )
    spec = cycle.spec_with(entities={**SPEC.entities, "chunk": loose})

    gate = cycle.assess(incident, spec).gates["conflicts_resolvable"]

    assert not gate.passed
    assert "natural keys of chunk are shared by rows of different documents" in gate.finding
    assert "put {document_id} into the identity of chunk" in gate.finding


def test_two_natural_keys_that_make_one_text_are_a_red_gate(incident: Engine) -> None:
    glued = SPEC.entities["chunk"].model_copy(
        update={"identity": "{document_id}{chunker_name}{chunker_version}{chunk_ord}", "witnesses": []}
    )
    spec = cycle.spec_with(entities={**SPEC.entities, "chunk": glued})
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.document_chunks c SET chunker_version = v, chunk_ord = o
           FROM (VALUES (0, '1', 11), (1, '11', 1)) AS n(was, v, o)
           WHERE chunk_ord = was AND document_id = (SELECT document_id FROM upload_pipeline.document_chunks LIMIT 1)""",
    )

    gates = cycle.assess(incident, spec).gates

    assert not gates["one_target_per_natural_key"].passed


def test_a_target_id_that_another_row_holds_is_a_collision(incident: Engine) -> None:
    rows = cycle.run_sql(
        incident, "SELECT document_id::text, user_id::text, file_sha256 FROM upload_pipeline.documents LIMIT 1"
    )
    target = str(uuid.uuid5(cycle.NAMESPACE, f"{rows[0][1]}:{rows[0][2]}"))
    cycle.run_sql(incident, UPLOAD, id=target, user=str(uuid.uuid4()), sha="b" * 64)

    gate = cycle.assess(incident, SPEC).gates["no_collision"]

    assert not gate.passed
    assert f"document {rows[0][0]} -> {target}, held by a row that is to become " in gate.finding


def test_a_target_id_that_came_since_the_inventory_refuses_no_plan(incident: Engine) -> None:
    [(user, sha)] = cycle.run_sql(
        incident, "SELECT user_id::text, file_sha256 FROM upload_pipeline.documents ORDER BY 1, 2 LIMIT 1"
    )
    target = str(uuid.uuid5(cycle.NAMESPACE, f"{user}:{sha}"))
    assessed = cycle.assess(incident, SPEC)
    cycle.run_sql(incident, UPLOAD, id=target, user=str(uuid.uuid4()), sha="b" * 64)

    with incident.begin() as connection:
        gate = id_map.no_collision(connection, assessed.store, assessed.number)

    cycle.assert_green([gate])
    execution = cycle.approve(incident, SPEC, cycle.plan(incident, assessed).plan_id)
    cycle.migrate_all(incident, SPEC, execution)
    counted = "SELECT count(*) FROM uuid_pipeline.unmoved WHERE reason = 'taken'"
    assert cycle.run_sql(incident, counted) == [(1,)]


def test_a_witness_is_read_as_the_columns_would_read_it(incident: Engine) -> None:
    document = SPEC.entities["document"]
    capitals = {
        field: value.upper() if field != "file_sha256" else value for field, value in document.witnesses[0].items()
    }
    unreadable = {**document.witnesses[0], "user_id": "nobody"}

    def judged(*witnesses: dict[str, str]) -> GateResult:
        described = document.model_copy(update={"witnesses": list(witnesses)})
        spec = cycle.spec_with(entities={**SPEC.entities, "document": described})
        with incident.begin() as connection:
            return id_map.witnesses_agree(connection, cycle.bound(connection, spec))

    assert capitals["user_id"] != document.witnesses[0]["user_id"]
    assert judged(capitals).passed
    gate = judged(unreadable, document.witnesses[0])
    assert not gate.passed
    assert 'invalid input syntax for type uuid: "nobody"' in gate.finding


def test_a_wrong_witness_is_a_red_gate_with_both_ids(incident: Engine) -> None:
    document = SPEC.entities["document"]
    wrong = {**document.witnesses[0], "id": str(uuid.UUID(int=0))}
    spec = cycle.spec_with(entities={**SPEC.entities, "document": document.model_copy(update={"witnesses": [wrong]})})

    gate = cycle.assess(incident, spec).gates["witnesses_agree"]

    assert not gate.passed
    assert document.witnesses[0]["id"] in gate.finding
    assert wrong["id"] in gate.finding


def one_by_one() -> Spec:
    """The default spec, but for chunks that are merged one by one."""
    entities = {**SPEC.entities, "chunk": SPEC.entities["chunk"].model_copy(update={"merge_as_set": []})}
    return cycle.spec_with(entities=entities)


@pytest.mark.parametrize("spec", [SPEC, one_by_one()], ids=["whole sets", "one by one"])
def test_what_merging_will_archive_is_foreseen_as_it_then_happens(twins: Engine, spec: Spec) -> None:
    assessed = cycle.assess(twins, spec)
    with twins.begin() as connection:
        found = duplicates.clusters(connection, assessed.store, assessed.number)
        found = duplicates.with_consequences(connection, assessed.store, assessed.number, found)
    foreseen: Counter[str] = Counter()
    turned: Counter[str] = Counter()
    for cluster in found:
        foreseen.update(cluster.get("archives", {}))
        turned.update(cluster.get("turns", {}))
    before = cycle.rows_of(twins)
    losers = {key for c in found if c["entity"] == "document" for key in c["ids"][1:]}
    assert turned["upload_pipeline.upload_jobs"] == sum(j["document_id"] in losers for j in before["upload_jobs"]) == 12

    cycle.run_all(twins, spec)

    after = cycle.rows_of(twins)
    for table in ("documents", "document_chunks"):
        assert foreseen[f"upload_pipeline.{table}"] == len(before[table]) - len(after[table]) > 0


def test_each_survivor_is_named_with_the_rule_that_chose_it(twins: Engine) -> None:
    rows = cycle.rows_of(twins)
    documents = {d["document_id"]: d for d in rows["documents"]}
    chunks = Counter(c["document_id"] for c in rows["document_chunks"])
    assessed = cycle.assess(twins, cycle.spec_with())
    with twins.begin() as connection:
        found = [c for c in duplicates.clusters(connection, assessed.store, assessed.number) if c["rows"] > 1]
    rules = Counter[str]()
    for cluster in (c for c in found if c["entity"] == "document"):
        stays, goes = cluster["ids"]
        complete = [documents[i]["processing_status"] == "complete" for i in (stays, goes)]
        if complete == [True, False]:
            expected = "complete"
        elif chunks[stays] > chunks[goes]:
            expected = "children"
        else:
            assert str(documents[stays]["created_at"]) < str(documents[goes]["created_at"])
            expected = "oldest"
        assert cluster["survivor_rule"] == expected
        rules[expected] += 1
    assert len(rules) == 3


def test_look_alikes_are_found_across_owners_and_by_text_and_change_nothing(incident: Engine) -> None:
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.documents SET file_sha256 = first.file_sha256
           FROM (SELECT user_id, file_sha256 FROM upload_pipeline.documents ORDER BY document_id LIMIT 1) first
           WHERE document_id = (SELECT max(document_id::text)::uuid FROM upload_pipeline.documents
                                WHERE user_id <> first.user_id)""",
    )
    by_content: dict[str, list[str]] = {}
    for row in cycle.rows_of(incident)["documents"]:
        by_content.setdefault(str(row["file_sha256"]), []).append(str(row["document_id"]))
    alike = next(ids for ids in by_content.values() if len(ids) == 2)
    held = sorted({str(c["document_id"]) for c in cycle.rows_of(incident)["document_chunks"]})[:2]
    cycle.run_sql(
        incident,
        """UPDATE upload_pipeline.document_chunks c SET chunk_sha = o.chunk_sha FROM upload_pipeline.document_chunks o
           WHERE c.document_id = %(a)s AND o.document_id = %(b)s AND c.chunk_ord = o.chunk_ord""",
        a=held[0], b=held[1],
    )  # fmt: skip
    with incident.begin() as connection:
        across, texts = look_alikes.find(connection, cycle.bound(connection, cycle.spec_with()))
    assert (across.groups, across.rows, [sorted(g["ids"]) for g in across.shown]) == (1, 2, [sorted(alike)])
    assert across.shown[0]["owners"] == 2
    assert held in [sorted(g["ids"]) for g in texts.shown]


def test_natural_keys_that_lack_a_part_are_not_alike(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE SCHEMA shop;
           CREATE TABLE shop.things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text, owner int);
           INSERT INTO shop.things (code, owner) VALUES (NULL, 1), (NULL, 2), ('same', 3), ('same', 4), ('own', 5)""",
    )
    text = shop.SPEC_TEXT.replace('identity: "{code}"', 'identity: "{owner}:{code}", describe: {owner: owner}')
    with empty_store.begin() as connection:
        spec = parse_spec(text.partition("soft_references")[0], "test")
        [across, _] = look_alikes.find(connection, cycle.bound(connection, spec))

    assert (across.groups, across.rows) == (1, 2)


def test_without_owner_or_content_nobody_can_look_for_look_alikes(empty_store: Engine) -> None:
    store = shop.build(empty_store)
    with store.begin() as connection:
        found = look_alikes.find(connection, cycle.bound(connection, shop.SPEC))
    assert [kind.unknown for kind in found] == [
        "the spec names no owner", "the spec names no content of what is below documents",
    ]  # fmt: skip
