"""Jinja2 for what people read: one environment a format, in which every value is escaped whatever a template does.

Names, titles and reasons come from the store and its users; a template's own text is ours, or the team's.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    FileSystemLoader,
    PackageLoader,
    PrefixLoader,
    StrictUndefined,
    TemplateError,
)
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from uuid_pipeline.engine.plans.rollback_triggers import shown as limit_shown
from uuid_pipeline.errors import UsageError

Format = Literal["md", "html", "txt"]
ENDING = ".j2"
NOTICES = "notices"

# What begins something in Markdown wherever it stands, and what does at the beginning of a line alone.
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$<>&])")
_LEADING = re.compile(r"^(?=[-+=])|^(\d+)(?=[.)](?:\s|$))")
# Controls, line and paragraph separators, and marks that turn the direction of what follows them.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
# A name without a scheme becomes a link too, in Markdown and in mail programs.
_LINK = re.compile(r"(?i)(:)(?=//)|(?<=\bwww)(\.)|(@)")


def one_line(value: object) -> str:
    """A value as one line of plain text: nothing in it ends a line, a header or a cell."""
    return _UNSEEN.sub(" ", str(value)).strip()


def markdown(value: object) -> str:
    """A value that Markdown shows as it is written: no markup, no HTML, no link, one line."""
    if isinstance(value, Markup):
        return str(value)
    text = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[1], f"\\{found[1]}"), one_line(value))
    text = _LEADING.sub(lambda found: f"{found[1]}\\" if found[1] else "\\", text)
    return _LINK.sub(lambda found: f"&#{ord(found[0])};", text)


_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def code(value: object) -> Markup:
    """A value as a code span of Markdown, also in the cell of a table."""
    return Markup("`" + one_line(value).replace("`", "'").replace("|", "\\|") + "`")


def seconds(value: float | None) -> str:
    """A duration as people say it: of seconds, minutes, hours or days the first that gives a small number."""
    if value is None:
        return "not known"
    if value < 1:
        return "under 1 s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 86_400:.3g} days"


def count(value: int | None) -> str:
    """A number with its thousands apart; None is not known."""
    return "unknown" if value is None else f"{value:,}"


def counts(found: Sequence[tuple[str, int]]) -> str:
    """Figures by name in one line."""
    return ", ".join(f"{number:,} {name}" for name, number in found) or "none"


def of(value: int | None, noun: str) -> str:
    """``1 document``, ``2 documents``."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def either(value: int | None, one: str, many: str) -> str:
    return one if value == 1 else many


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def environment(form: Format, directory: Path | None = None) -> ImmutableSandboxedEnvironment:
    """The environment of a format; files of ``directory`` come before our notices of the same name."""
    return _environment(form, directory)


@cache
def _environment(form: Format, directory: Path | None) -> ImmutableSandboxedEnvironment:
    ours: BaseLoader = PackageLoader("uuid_pipeline.reports", "templates")
    loader = ChoiceLoader([PrefixLoader({NOTICES: FileSystemLoader(directory)}), ours]) if directory else ours
    made = ImmutableSandboxedEnvironment(
        loader=loader,
        autoescape=form == "html",
        finalize={"md": markdown, "html": None, "txt": _plain}[form],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    spans = {"md": code, "html": _html_code, "txt": one_line}
    made.filters |= {
        "counts": counts, "of": of, "either": either,
        "code": spans[form], "seconds": seconds, "count": count, "percent": percent, "limit": limit_shown,
    }  # fmt: skip
    return made


def _plain(value: object) -> str:
    return str(value) if isinstance(value, Markup) else one_line(value)


def _html_code(value: object) -> Markup:
    return Markup("<code>") + escape(one_line(value)) + Markup("</code>")


def render(form: Format, name: str, directory: Path | None = None, **values: Any) -> str:
    """Render a template by its name without the ending.

    Raises UsageError, naming template and line, when a team's own template is at fault.
    """
    try:
        return environment(form, directory).get_template(f"{name}{ENDING}").render(**values)
    except TemplateSyntaxError as error:
        where = f"{error.filename or error.name}, line {error.lineno}"
        raise UsageError(f"The template {where} is not valid: {error.message}.") from error
    except (TemplateError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"The template {name}{ENDING} cannot be rendered: {error}.") from error


def exists(form: Format, name: str, directory: Path | None = None) -> bool:
    """Whether there is a template of that name; one that does not parse is there."""
    try:
        environment(form, directory).get_template(f"{name}{ENDING}")
    except TemplateNotFound:
        return False
    except TemplateSyntaxError:
        return True
    return True
