"""SQL text: every name and constant is quoted, whatever it holds."""

import pytest

from uuid_pipeline.engine import sql


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("plain", '"plain"'),
        ("select", '"select"'),
        ("Two Words", '"Two Words"'),
        ('a"b', '"a""b"'),
        ("x; DROP TABLE y; --", '"x; DROP TABLE y; --"'),
        ("100%", '"100%%"'),
    ],
)
def test_a_name_is_quoted_and_safe_from_placeholders(name: str, quoted: str) -> None:
    assert sql.name(name).as_string(None) == quoted
    assert sql.table("s", name).as_string(None) == f'"s".{quoted}'


def test_what_is_shown_to_people_can_be_copied() -> None:
    assert sql.shown(sql.table("my schema", "100%")) == '"my schema"."100%"'


@pytest.mark.parametrize(("value", "text"), [("a'b", "'a''b'"), ("100%", "'100%%'"), (7, "7")])
def test_a_constant_is_quoted(value: str | int, text: str) -> None:
    assert sql.literal(value).as_string(None).strip() == text


def test_a_template_takes_its_parts_and_leaves_placeholders() -> None:
    statement = sql.compose("SELECT {c} FROM {t} WHERE x = %(x)s", c=sql.name("c"), t=sql.table("s", "t"))

    assert statement.as_string(None) == 'SELECT "c" FROM "s"."t" WHERE x = %(x)s'
