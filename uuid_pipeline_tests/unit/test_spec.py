"""The specification: what it must hold, and that every fault is said with its line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from uuid_pipeline.errors import UsageError
from uuid_pipeline.spec import load_spec, parse_spec

SMALL = """\
namespace: 6c8a1e6e-1f0b-4aa8-9f0a-1a7c2e6f2b42
schema: s
entities:
  a:
    table: as
    key: id
    identity: "{name}"
"""


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as fault:
        parse_spec(text, "my.yaml")
    assert fault.value.exit_code == 2
    assert "my.yaml" in fault.value.message
    return fault.value.message


def with_entity(line: str) -> str:
    return SMALL + f"    {line}\n"


def test_the_default_spec_is_the_incidents_schema() -> None:
    spec = load_spec(None)

    assert spec.schema_name == "upload_pipeline"
    assert {name: (e.table, e.key, e.parent) for name, e in spec.entities.items()} == {
        "document": ("documents", "document_id", None),
        "chunk": ("document_chunks", "chunk_id", "document"),
    }
    assert (spec.waves.canary, spec.waves.recent) == (5, 15)


def test_namespace_schema_table_key_and_identity_suffice() -> None:
    spec = parse_spec(SMALL, "my.yaml")

    assert spec.entities["a"].describe.columns() == {}
    assert spec.entities["a"].witnesses == []
    assert spec.soft_references == []
    assert spec.retrieval is None


@pytest.mark.parametrize("missing", ["namespace", "schema", "table", "key", "identity"])
def test_each_of_these_is_required(missing: str) -> None:
    text = "".join(line for line in SMALL.splitlines(keepends=True) if not line.strip().startswith(f"{missing}:"))

    message = refusal(text)

    assert missing in message
    assert "Field required" in message


def test_a_fault_of_yaml_is_said_with_line_and_column() -> None:
    assert "not valid YAML at line 3, column" in refusal("namespace: x\nschema: s\nentities: a: b\n")


def test_a_tab_for_indentation_is_said_with_its_line() -> None:
    assert "line 4" in refusal(SMALL.replace("  a:\n", "\ta:\n"))


def test_a_key_given_twice_is_refused_with_the_second_ones_line() -> None:
    message = refusal(SMALL + "schema: other\n")

    assert "found the key 'schema' twice" in message
    assert "line 8" in message


def test_a_key_given_twice_deep_inside_is_refused_too() -> None:
    message = refusal(with_entity("key: other"))

    assert "found the key 'key' twice" in message
    assert "line 8" in message


def test_an_unknown_field_is_refused_with_its_line() -> None:
    message = refusal(with_entity("on_duplicates: merge"))

    assert "line 8: entities.a.on_duplicates" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "7", "null"])
def test_a_file_that_holds_no_mapping_is_refused(text: str) -> None:
    assert "holds no mapping" in refusal(text)


def test_every_fault_is_said_at_once() -> None:
    message = refusal(SMALL.replace("6c8a1e6e", "zzz").replace('"{name}"', '"name"') + "batch_rows: 0\nbackup: tape\n")

    lines = sorted(line.split(":")[0].strip() for line in message.splitlines()[1:])
    assert lines == ["line 1", "line 7", "line 8", "line 9"]


@pytest.mark.parametrize("identity", ["name", "{}", "{name!r}", "{name.x}", "{ name}", "{name:>3}", "{name"])
def test_an_identity_must_be_made_of_plain_fields(identity: str) -> None:
    assert "line 7: entities.a.identity" in refusal(SMALL.replace("{name}", identity))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("normalize: {nam: [lower]}", "normalize names nam"),
        ("normalize: {name: [upper]}", "'strip' or 'lower'"),
        ("valid: {nam: x}", "valid names nam"),
        ('valid: {name: "("}', "no regular expression"),
        ("witnesses: [{name: x}]", "must give exactly name, id"),
        ("witnesses: [{name: x, id: y, more: z}]", "must give exactly name, id"),
        ("parent: b", "its parent 'b' is no entity"),
        ("parent: a", "the parents form a circle: a -> a"),
        ("on_duplicate: drop", "'merge' or 'block'"),
    ],
)
def test_a_fault_inside_an_entity_is_named(line: str, fault: str) -> None:
    assert fault in refusal(with_entity(line))


def test_an_identity_may_not_use_the_key_that_it_replaces() -> None:
    assert "uses the key that it is to replace, id" in refusal(SMALL.replace("{name}", "{name}:{id}"))


def test_a_circle_of_parents_is_refused_with_its_path() -> None:
    text = SMALL + '    parent: b\n  b: {table: bs, key: id, identity: "{x}", parent: c}\n'
    text += '  c: {table: cs, key: id, identity: "{x}", parent: a}\n'

    assert "circle: a -> b -> c -> a" in refusal(text)


def test_two_entities_of_one_table_are_refused() -> None:
    assert "same table" in refusal(SMALL + '  b: {table: as, key: other, identity: "{x}"}\n')


@pytest.mark.parametrize("name", ["A", "1a", "a-b", "a b", "a;drop", "a_1", "x" * 41])
def test_an_entitys_name_is_small_letters_digits_and_underscores(name: str) -> None:
    assert "use lower-case letters" in refusal(SMALL.replace("  a:\n", f'  "{name}":\n'))


def test_a_soft_reference_must_name_an_entity() -> None:
    text = SMALL + "soft_references: [{table: t, column: c, entity: b}]\n"

    assert "soft reference t.c: no entity 'b'" in refusal(text)


def test_witness_values_may_be_written_as_numbers() -> None:
    spec = parse_spec(with_entity("witnesses: [{name: 7, id: 30fcb08c-cac3-58fd-b162-52e5a9478104}]"), "my.yaml")

    assert spec.entities["a"].witnesses[0]["name"] == "7"


def test_the_digest_is_the_same_for_a_reformatted_file_and_another_for_another_meaning() -> None:
    spec = load_spec(None)
    path = Path(__file__).parents[2] / "uuid_pipeline/specs/upload_pipeline.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content = {key: content[key] for key in reversed(list(content))}

    reformatted = parse_spec(yaml.safe_dump(content, sort_keys=False, default_flow_style=True, width=40), "x")
    content["entities"]["chunk"]["identity"] += "!"
    content["entities"]["chunk"]["witnesses"] = []

    assert reformatted.digest == spec.digest
    assert parse_spec(yaml.safe_dump(content), "x").digest != spec.digest


def test_what_is_given_as_its_default_means_the_same_as_nothing() -> None:
    assert parse_spec(SMALL + "batch_rows: 5000\ntriggers: {}\n", "x").digest == parse_spec(SMALL, "x").digest


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_spec(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match=r"bytes\.yaml is not UTF-8 text \(byte 3\)"):
        load_spec(tmp_path / "bytes.yaml")


def test_what_is_nested_without_end_is_no_specification() -> None:
    assert "nested too deeply" in refusal("a: " + "[" * 100_000)


@pytest.mark.parametrize(
    "line",
    ["approval_hours: 9999999999", "backup_max_age_hours: 1.0e+14", "waves: {recent_days: 9999999999}",
     "aliases: {quiet_hours: .inf}", "health: {full_scan_hours: 1.0e+9}", "retention: {maps_days: 99999999}"],
)  # fmt: skip
def test_a_time_beyond_a_hundred_years_is_refused_where_it_stands(line: str) -> None:
    message = refusal(f"{SMALL}{line}\n")
    assert "line 8" in message
    assert "less than or equal to" in message


@pytest.mark.parametrize(
    "owner",
    ["team:data", "data@example.org", "o.brien+x@mail.example.co", "pat.o'brien@example.org", "a@b.c",
     "data@xn--bcher-kva.xn--p1ai", "data@example", "team:", "two words@example.org"],
)  # fmt: skip
def test_an_owner_is_what_dagster_takes_for_one(owner: str) -> None:
    import dagster as dg

    def fits(make: Callable[[], object]) -> bool:
        try:
            make()
        except (UsageError, dg.DagsterInvalidDefinitionError):
            return False
        return True

    text = SMALL + yaml.safe_dump({"owners": [owner]})
    assert fits(lambda: parse_spec(text, "given")) is fits(lambda: dg.AssetSpec("asset", owners=[owner]))
