"""The first specification that init drafts: it fits the store, decides what it can, and says what a person must."""

import hashlib
import uuid

import pytest
import yaml
from sqlalchemy import Engine

from uuid_pipeline.engine import catalog
from uuid_pipeline.engine.drafts import drafting, spec_text, table_choices
from uuid_pipeline.engine.drafts.drafting import Draft
from uuid_pipeline.engine.store import Store, bind
from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import parse_spec
from uuid_pipeline_tests.integration import cycle

NAMESPACE = uuid.UUID("11111111-2222-3333-4444-555555555555")

# Nothing of the incident: text keys, three levels, a reference to itself, ids inside JSON, names that YAML trips over.
LEDGER = """
CREATE SCHEMA "Ledger";
CREATE TABLE "Ledger".users (handle text PRIMARY KEY);
CREATE TABLE "Ledger".binders (
    binder text PRIMARY KEY, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    owner text NOT NULL REFERENCES "Ledger".users, slug text NOT NULL,
    above text REFERENCES "Ledger".binders, made date,
    UNIQUE (owner, slug), UNIQUE (above, slug));
CREATE TABLE "Ledger"."null" (
    sheet varchar(64) PRIMARY KEY,
    binder text NOT NULL REFERENCES "Ledger".binders, "no 1" int NOT NULL,
    UNIQUE (binder, "no 1"));
CREATE TABLE "Ledger".cells (
    cell text PRIMARY KEY,
    sheet varchar(64) NOT NULL REFERENCES "Ledger"."null", place text NOT NULL,
    UNIQUE (place, sheet));
CREATE TABLE "Ledger".stamps (stamp text PRIMARY KEY, cell text REFERENCES "Ledger".cells);
CREATE TABLE "Ledger".marks (mark int PRIMARY KEY, stamp text REFERENCES "Ledger".stamps);
CREATE TABLE "Ledger".trail (n int PRIMARY KEY, what jsonb);
INSERT INTO "Ledger".users SELECT 'user-' || n FROM generate_series(1, 3) n;
INSERT INTO "Ledger".binders (binder, owner, slug)
    SELECT 'BINDER-' || n, 'user-' || mod(n, 3) + 1, 'slug ' || n FROM generate_series(1, 12) n;
INSERT INTO "Ledger"."null" SELECT 'SHEET-' || n, 'BINDER-' || mod(n, 12) + 1, n FROM generate_series(1, 24) n;
INSERT INTO "Ledger".cells SELECT 'CELL-' || n, 'SHEET-' || mod(n, 24) + 1, 'at ' || n FROM generate_series(1, 48) n;
INSERT INTO "Ledger".trail SELECT n, jsonb_build_object('seen', jsonb_build_array(jsonb_build_object(
    'sheet', 'SHEET-' || n, 'by', 'user-1'))) FROM generate_series(1, 12) n;
"""


def drafted(engine: Engine, *tables: str, schema: str | None = None) -> tuple[Draft, str]:
    with engine.begin() as connection:
        made = drafting.draft(connection, table_choices.choose_schema(connection, schema), tables, NAMESPACE)
    return made, spec_text.render(made, namespace_given=False)


def loaded(engine: Engine, text: str) -> Store:
    spec = parse_spec(text, "drafted")
    with engine.begin() as connection:
        return bind(spec, catalog.read_catalog(connection, spec.schema_name))


def test_a_column_that_an_identity_cannot_spell_is_in_none(empty_store: Engine) -> None:
    """Braces in a name read as a letter of the identity: rows of two tenants would be one."""
    cycle.run_sql(
        empty_store,
        """CREATE TABLE tenants (document uuid PRIMARY KEY, "{tenant}" int NOT NULL, sha text NOT NULL,
                               UNIQUE ("{tenant}", sha));
           INSERT INTO tenants
           SELECT gen_random_uuid(), n, s FROM generate_series(1, 3) n, (VALUES ('a'), ('b')) v(s)""",
    )

    _, text = drafted(empty_store, "tenants")

    assert "{sha}" not in text
    assert "tenant}:" not in text


def test_a_child_whose_reference_no_identity_can_name_is_left_out_for_that_reason(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE TABLE public.docs (id uuid PRIMARY KEY, name text NOT NULL UNIQUE);
           CREATE TABLE public.parts (id uuid PRIMARY KEY, "doc:id" uuid NOT NULL REFERENCES docs, nr int NOT NULL,
                                      UNIQUE ("doc:id", nr));
           CREATE TABLE public.seals (part uuid NOT NULL REFERENCES parts)""",
    )

    _, text = drafted(empty_store)

    assert "parts: no unique key of it fits: (doc:id, nr) doc:id cannot be named in an identity: no column" in text


def test_a_content_hash_of_bytes_is_an_identity(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE TABLE public.files (id uuid PRIMARY KEY, owner int NOT NULL, sha256 bytea NOT NULL,
                                      UNIQUE (owner, sha256));
           INSERT INTO files
           SELECT gen_random_uuid(), mod(n, 3), sha256(n::text::bytea) FROM generate_series(1, 9) n""",
    )
    _, text = drafted(empty_store)
    spec = parse_spec(text, "drafted").model_copy(update={"backup": "none"})
    assert spec.entities["file"].identity == "{owner}:{sha256}"

    cycle.run_all(empty_store, spec)

    found = {(row["owner"], row["id"]) for row in cycle.rows_of(empty_store, "public")["files"]}
    assert found == {
        (str(n % 3), str(uuid.uuid5(spec.namespace, f"{n % 3}:\\x{hashlib.sha256(str(n).encode()).hexdigest()}")))
        for n in range(1, 10)
    }


def test_a_schema_of_another_shape_is_drafted_down_to_its_third_level_with_its_json_reference(
    empty_store: Engine,
) -> None:
    cycle.run_sql(empty_store, LEDGER)

    _, text = drafted(empty_store)

    store = loaded(empty_store, text)
    assert {e.name: (e.table.name, e.key, e.spec.identity, e.parent) for e in store.entities} == {
        "binder": ("binders", "binder", "{owner}:{slug}", None),
        "null": ("null", "sheet", "{binder}:{no 1}", "binder"),
        "cell": ("cells", "cell", "{place}:{sheet}", "null"),
    }
    assert [(r.name, r.entity, r.form) for r in store.references if r.foreign_key is None] == [
        ("trail.what.seen.*.sheet", "null", "json")
    ]
    assert ("binders", "above") in {(r.table.name, r.column) for r in store.references}


def test_what_was_not_chosen_and_what_a_person_must_know_stands_beside_it(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, LEDGER)
    cycle.run_sql(
        empty_store,
        'CREATE FUNCTION "Ledger".note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;'
        'CREATE TRIGGER noted AFTER UPDATE ON "Ledger".binders FOR EACH ROW EXECUTE FUNCTION "Ledger".note()',
    )

    _, text = drafted(empty_store)

    said = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    for wanted in (
        "THIS ONE IS RANDOM",
        "from the columns (owner, slug): unique, 12 distinct in 12 rows looked at",
        "another choice: (seq): unique, 12 distinct in 12 rows looked at; seq is made by the database",
        "another choice: (above, slug): unique, 0 distinct in 12 rows looked at, 12 with a NULL in it; above refers to",
        "users: people or tenants: ask for it with --table",
        "stamps: nothing but its primary key is unique",
        "Ledger.cells.sheet -> null (cells_sheet_fkey)",
        "noted on binders (enabled): CREATE TRIGGER noted AFTER UPDATE",
    ):
        assert [line for line in said if wanted in line], wanted


def test_of_many_tables_the_most_referred_to_are_proposed_and_the_others_named(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, "CREATE SCHEMA many")
    for n in range(25):
        cycle.run_sql(empty_store, f"CREATE TABLE many.t{n:02} (id uuid PRIMARY KEY, name text UNIQUE)")
        for referrer in range(2 if n >= 5 else 1):
            cycle.run_sql(empty_store, f"CREATE TABLE many.r{n:02}_{referrer} (n int, t uuid REFERENCES many.t{n:02})")

    made, text = drafted(empty_store)

    assert {entity.table.name for entity in made.entities} == {f"t{n:02}" for n in range(5, 25)}
    assert "t00, t01, t02, t03, t04: others are referred to by more tables: ask for these with --table" in text
    made, text = drafted(empty_store, "t00")
    assert [entity.table.name for entity in made.entities] == ["t00"]
    assert "more tables" not in text


def test_tables_asked_for_come_with_what_their_identity_hangs_on_and_no_others(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, LEDGER)

    _, text = drafted(empty_store, "null")

    store = loaded(empty_store, text)
    assert {e.name: e.parent for e in store.entities} == {"null": None, "cell": "null"}


@pytest.mark.parametrize(
    ("columns", "identity"),
    [
        ("ADD owner_id uuid, ADD content_sha256 text", "{owner_id}:{content_sha256}"),
        ("ADD body text, ADD seq serial UNIQUE", None),
    ],
)
def test_without_a_unique_key_a_content_hash_is_proposed_with_a_warning_or_the_spec_refuses_to_load(
    empty_store: Engine, columns: str, identity: str | None
) -> None:
    cycle.run_sql(
        empty_store,
        "CREATE TABLE public.files (id uuid PRIMARY KEY);"
        "CREATE TABLE public.uses (file uuid REFERENCES public.files, also uuid);"
        "INSERT INTO public.files (id) SELECT gen_random_uuid() FROM generate_series(1, 5);"
        "INSERT INTO public.uses SELECT id, id FROM public.files",
    )
    cycle.run_sql(empty_store, f"ALTER TABLE public.files {columns}")

    made, text = drafted(empty_store)

    if identity is None:
        assert made.todo == ["file"]
        with pytest.raises(UsageError, match=r"line \d+: entities\.file\.identity: identity 'TODO: the columns"):
            parse_spec(text, "drafted")
        text = text.replace(f'"{spec_text.TODO}"', '"{body}"')
    else:
        assert "NO INDEX makes this unique" in text
        assert "5 with a NULL in it" in text
    store = loaded(empty_store, text)
    assert store.main.spec.identity == (identity or "{body}")
    assert [r.name for r in store.references if r.foreign_key is None] == ["uses.also"]


def test_an_index_that_is_unique_among_some_rows_or_by_small_letters_is_proposed_with_what_it_leaves_open(
    empty_store: Engine,
) -> None:
    cycle.run_sql(
        empty_store,
        'CREATE TABLE public.files (id uuid PRIMARY KEY, owner_id int, body_hash text, "Slug" text, deleted_at date);'
        'CREATE UNIQUE INDEX ON public.files (owner_id, "Slug") WHERE deleted_at IS NULL;'
        "CREATE UNIQUE INDEX ON public.files (owner_id, lower(body_hash));"
        "CREATE UNIQUE INDEX ON public.files (md5(body_hash));"
        "CREATE TABLE public.uses (file uuid REFERENCES public.files)",
    )

    made, text = drafted(empty_store)

    assert made.entities[0].spec.identity == "{owner_id}:{body_hash}"
    assert "# from the columns (owner_id, body_hash): unique by lower(body_hash)" in text
    assert "# normalize: {body_hash: [lower]}" in text
    assert "# another choice: (owner_id, Slug): unique among the rows WHERE (deleted_at IS NULL)" in text
    assert "NO INDEX" not in text

    cycle.run_sql(empty_store, "ALTER TABLE public.files DROP body_hash")
    made, text = drafted(empty_store)

    assert made.entities[0].spec.identity == "{owner_id}:{Slug}"
    assert "waits until on_duplicate is written out" in text


def test_a_join_table_with_a_polymorphic_column_in_its_unique_key_keeps_its_ids(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        "CREATE TABLE public.blobs (id uuid PRIMARY KEY, key text NOT NULL UNIQUE);"
        "CREATE TABLE public.posts (id uuid PRIMARY KEY, slug text NOT NULL UNIQUE);"
        "CREATE TABLE public.replies (id uuid PRIMARY KEY, post_id uuid NOT NULL REFERENCES public.posts);"
        "CREATE TABLE public.attachments (id uuid PRIMARY KEY, record_type text NOT NULL, record_id uuid NOT NULL,"
        " blob_id uuid NOT NULL REFERENCES public.blobs, UNIQUE (record_type, record_id, blob_id));"
        "INSERT INTO public.blobs SELECT gen_random_uuid(), 'k' || n FROM generate_series(1, 9) n;"
        "INSERT INTO public.posts SELECT gen_random_uuid(), 's' || n FROM generate_series(1, 9) n;"
        "INSERT INTO public.attachments SELECT gen_random_uuid(), 'Post', p.id, b.id"
        " FROM public.posts p JOIN public.blobs b ON right(p.slug, 1) = right(b.key, 1)",
    )

    made, text = drafted(empty_store)

    assert {entity.name for entity in made.entities} == {"blob", "post"}
    assert "attachments: its unique key holds ids of post in record_id, which change" in text
    assert [f.column for f in made.soft] == ["record_id"]
    loaded(empty_store, text)


def test_a_table_whose_key_is_text_of_another_kind_is_named_with_the_reason(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        "CREATE TABLE public.files (id uuid PRIMARY KEY, path text NOT NULL UNIQUE);"
        "CREATE TABLE public.letters (id char(36) PRIMARY KEY, path text NOT NULL UNIQUE);"
        "CREATE TABLE public.numbers (id int PRIMARY KEY, path text NOT NULL UNIQUE);"
        "CREATE TABLE public.uses (file uuid REFERENCES public.files, letter char(36) REFERENCES public.letters,"
        " number int REFERENCES public.numbers)",
    )

    _, text = drafted(empty_store)

    assert "letters: its key is character(36); an id can be derived into uuid, text, varchar" in text
    assert "numbers" not in text


def test_a_table_whose_key_is_of_several_columns_is_named_with_what_a_spec_may_have_instead(
    empty_store: Engine,
) -> None:
    cycle.run_sql(
        empty_store,
        """CREATE TABLE docs (id uuid PRIMARY KEY, name text UNIQUE);
           CREATE TABLE sets (id text, project text, PRIMARY KEY (id, project));
           CREATE TABLE items (n int PRIMARY KEY, doc uuid REFERENCES docs, id text, project text,
                               FOREIGN KEY (id, project) REFERENCES sets);
           CREATE TABLE links (doc uuid REFERENCES docs, n int, PRIMARY KEY (doc, n))""",
    )

    _, text = drafted(empty_store)

    assert "#   sets: its key (id, project) is of several columns; `key` may be one that has a unique index" in text
    assert "#   links:" not in text


def test_a_unique_id_without_nulls_stands_for_a_primary_key_that_a_table_lacks(empty_store: Engine) -> None:
    """Else its rows would keep their ids, and nobody would be told."""
    cycle.run_sql(
        empty_store,
        """CREATE TABLE docs (id uuid PRIMARY KEY, name text NOT NULL UNIQUE);
           CREATE TABLE pieces (id uuid NOT NULL UNIQUE, doc uuid NOT NULL REFERENCES docs, ord int NOT NULL,
                                UNIQUE (doc, ord));
           CREATE TABLE slips (id uuid UNIQUE, doc uuid REFERENCES docs);
           CREATE TABLE uses (piece uuid REFERENCES pieces (id), slip uuid REFERENCES slips (id))""",
    )

    made, text = drafted(empty_store)

    [piece] = [entity for entity in made.entities if entity.table.name == "pieces"]
    assert (piece.spec.key, piece.spec.identity, piece.others) == ("id", "{doc}:{ord}", ())
    assert "#   slips: it has no primary key; `key` may be a column without NULLs that has a unique index" in text


def test_the_distance_of_a_vector_column_is_that_of_its_index_where_it_has_one(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        "CREATE EXTENSION IF NOT EXISTS vector;"
        "CREATE TABLE public.files (id uuid PRIMARY KEY, path text NOT NULL UNIQUE, near vector(3), far halfvec(3));"
        "CREATE INDEX ON public.files USING hnsw (near vector_ip_ops)",
    )

    _, text = drafted(empty_store)

    assert "retrieval: {vector: near, distance: inner_product, chunk_table: files}   # that of its index" in text
    assert "retrieval: {vector: far, distance: cosine, chunk_table: files}   # as the application asks" in text


def test_ids_that_no_spec_can_declare_are_written_down_as_comments(empty_store: Engine) -> None:
    cycle.run_sql(empty_store, LEDGER)
    cycle.run_sql(
        empty_store,
        'CREATE TABLE "Ledger".odd AS SELECT jsonb_build_object(\'a.b\', binder) AS doc FROM "Ledger".binders',
    )

    _, text = drafted(empty_store)

    loaded(empty_store, text)
    line = next(line for line in text.splitlines() if line.startswith("#  - {table: odd"))
    assert yaml.safe_load(line.lstrip("#"))[0]["column"] == "doc"


def test_a_schema_is_chosen_when_there_is_one_or_public_and_asked_for_when_there_are_several(
    empty_store: Engine,
) -> None:
    with pytest.raises(UsageError, match="The store has no table"):
        drafted(empty_store)
    cycle.run_sql(empty_store, "CREATE SCHEMA one; CREATE TABLE one.docs (id uuid PRIMARY KEY, name text UNIQUE)")
    cycle.run_sql(empty_store, "CREATE SCHEMA uuid_pipeline; CREATE TABLE uuid_pipeline.gates (n int)")
    assert drafted(empty_store)[0].store.catalog.schema == "one"
    cycle.run_sql(empty_store, "CREATE SCHEMA two; CREATE TABLE two.docs (id int PRIMARY KEY)")
    with pytest.raises(UsageError, match="Several schemas hold tables: one, two"):
        drafted(empty_store)
    with pytest.raises(UsageError, match="No table of schema two has a primary key of one column of type uuid, text"):
        drafted(empty_store, schema="two")
    with pytest.raises(UsageError, match=r"No draft can be made of table docs: its primary key .* by hand"):
        drafted(empty_store, "docs", schema="two")
    with pytest.raises(UsageError, match="has no table doc; the nearest it has is docs"):
        drafted(empty_store, "doc", schema="one")
    cycle.run_sql(empty_store, "CREATE TABLE public.docs (id uuid PRIMARY KEY, name text UNIQUE)")
    assert drafted(empty_store)[0].store.catalog.schema == "public"


def test_in_a_store_without_any_foreign_key_children_are_found_by_the_ids_that_they_hold(empty_store: Engine) -> None:
    cycle.run_sql(
        empty_store,
        """
        CREATE TABLE audit (id uuid PRIMARY KEY, body json);
        CREATE TABLE files (id uuid PRIMARY KEY, name text NOT NULL UNIQUE);
        CREATE TABLE parts (id uuid PRIMARY KEY, file uuid NOT NULL, n int NOT NULL, as_text text, UNIQUE (file, n));
        CREATE TABLE words (id uuid PRIMARY KEY, part uuid NOT NULL, n int NOT NULL, UNIQUE (part, n));
        CREATE TABLE labels (id uuid PRIMARY KEY, file text NOT NULL UNIQUE);
        INSERT INTO files SELECT md5('f' || n)::uuid, 'f' || n FROM generate_series(1, 4) n;
        INSERT INTO parts SELECT md5('p' || n)::uuid, md5('f' || n)::uuid, n, md5('f' || n)::uuid
        FROM generate_series(1, 4) n;
        INSERT INTO words SELECT md5('w' || n)::uuid, md5('p' || n)::uuid, n FROM generate_series(1, 4) n;
        INSERT INTO labels SELECT md5('l' || n)::uuid, md5('f' || n)::uuid FROM generate_series(1, 4) n;
        INSERT INTO audit SELECT md5('a' || n)::uuid, json_build_object('word', md5('w' || n)::uuid)
        FROM generate_series(1, 4) n;
        """,
    )

    _, text = drafted(empty_store)

    store = loaded(empty_store, text)
    assert {e.name: (e.spec.identity, e.parent, e.parent_column) for e in store.entities} == {
        "file": ("{name}", None, None),
        "part": ("{file}:{n}", "file", "file"),
        "word": ("{part}:{n}", "part", "part"),
    }
    assert {(r.name, r.entity, r.form) for r in store.references} == {
        ("parts.file", "file", "key"),
        ("parts.as_text", "file", "text"),
        ("labels.file", "file", "text"),
        ("words.part", "part", "key"),
        ("audit.body.word", "word", "json"),
    }


def test_without_foreign_keys_documents_come_before_their_parts_and_a_hash_that_many_share_is_no_identity(
    empty_store: Engine,
) -> None:
    cycle.run_sql(
        empty_store,
        """
        CREATE TABLE documents (id uuid PRIMARY KEY, tenant_id uuid, name text);
        CREATE TABLE document_segments (id uuid PRIMARY KEY, tenant_id uuid, document_id uuid, index_node_hash text);
        INSERT INTO documents SELECT md5('d' || n)::uuid, md5('t')::uuid, 'd' || n FROM generate_series(1, 6) n;
        INSERT INTO document_segments SELECT md5(id::text || n)::uuid, tenant_id, id, md5('common' || n)
        FROM documents, generate_series(1, 3) n;
        """,
    )

    made, text = drafted(empty_store)
    assert (made.todo, [e.table.name for e in made.entities]) == (["document"], ["documents"])
    assert "document_segments, column: document_id, entity: document" in text

    made, text = drafted(empty_store, "document_segments")
    assert made.todo == ["document_segment"]
    assert "most rows agree in it with others" in text
