"""What comes from the store is shown as it is written: no markup of it survives, in any form."""

from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from uuid_pipeline.errors import UsageError
from uuid_pipeline.reports import templating

HOSTILE = (
    "<script>alert(1)</script>", "[click](javascript:alert(1))", "![x](http://evil.example/p.png)", "**bold** _it_",
    "a | b | c", "`code`", "# heading", "1. list", "- list", "a\n\n# b", "<a href=//e.vil>x</a>", "&lt;b&gt;",
    "http://evil.example/", "\\", "\\`", "~~gone~~", "{{ 7 * 7 }}", "{% include 'x' %}", "\u202eexe.fdp", "$x$",
)  # fmt: skip


def parsed(text: str) -> list[Token]:
    """As a careless reader's Markdown would have it: raw HTML on, tables on."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def inline(text: str) -> list[tuple[str, str]]:
    """(type, content) of what stands inside the blocks; adjoining texts joined."""
    found: list[tuple[str, str]] = []
    for token in parsed(text):
        for child in token.children or []:
            kind = "text" if child.type in ("text", "text_special") else child.type
            if found and found[-1][0] == kind == "text":
                found[-1] = (kind, found[-1][1] + child.content)
            else:
                found.append((kind, child.content))
    return found


@pytest.mark.parametrize("value", HOSTILE)
def test_markdown_shows_hostile_text_as_text(value: str) -> None:
    for line in (f"- {templating.markdown(value)}", f"| {templating.markdown(value)} | x |\n|---|---|"):
        kinds = {kind for kind, _ in inline(line)}
        assert kinds == {"text"}, (line, inline(line))
    table = parsed(f"| {templating.markdown(value)} | x |\n|---|---|\n")
    assert sum(token.type == "th_open" for token in table) == 2


@given(st.text(max_size=60))
def test_any_text_comes_back_from_a_list_as_one_line_of_it(value: str) -> None:
    shown = inline(f"- x {templating.markdown(value)} x")

    assert [kind for kind, _ in shown] == ["text"]
    assert unescape(shown[0][1]).split() == unescape(f"x {templating.one_line(value)} x").split()


@given(st.text(max_size=60))
def test_any_text_stays_inside_its_code_span_and_its_cell(value: str) -> None:
    tokens = parsed(f"| {templating.code('x' + value)} | y |\n|---|---|\n")

    assert sum(token.type == "th_open" for token in tokens) == 2
    cell = next(token for token in tokens if token.type == "inline")
    assert [child.type for child in cell.children or []] == ["code_inline"]


def test_html_and_text_escape_what_a_template_forgets_to(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("<p>{{ value }}</p>")
    html = templating.render("html", "notices/a", tmp_path, value='<b>"x"</b>')
    assert html == "<p>&lt;b&gt;&#34;x&#34;&lt;/b&gt;</p>"
    assert templating.render("txt", "notices/a", tmp_path, value="x\r\nBcc: y") == "<p>x Bcc: y</p>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nothing }}", "cannot be rendered: 'nothing' is undefined"),
        ("{% if %}", "a.j2, line 1 is not valid"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
        ("{{ value / 0 }}", "cannot be rendered: division by zero"),
    ],
)
def test_a_faulty_template_of_the_team_is_a_message(tmp_path: Path, template: str, message: str) -> None:
    (tmp_path / "a.j2").write_text(template)
    with pytest.raises(UsageError, match=message):
        templating.render("md", "notices/a", tmp_path, value=1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "not known"), (0.0, "under 1 s"), (59.4, "59.4 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"),
     (86_400, "24 h"), (172_800, "2 days")],
)  # fmt: skip
def test_durations_are_said_in_the_unit_that_gives_a_small_number(value: float | None, shown: str) -> None:
    assert templating.seconds(value) == shown
