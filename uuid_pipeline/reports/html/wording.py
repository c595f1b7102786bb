"""Figures as people read them; control characters out, since a file name may hold anything."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from uuid_pipeline.engine.evidence.readiness import Verdict
from uuid_pipeline.reports.html.blocks import Badge, Code, Comparison, Unit
from uuid_pipeline.reports.tables import UNKNOWN

# Also the marks that turn the direction of what follows: isolated in its cell, a title still could.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
LONGEST = 2_000
UNBROKEN = 40

READY: dict[Verdict, Badge] = {
    "ready": Badge("good", "Ready"),
    "not ready": Badge("bad", "Not ready"),
    "not measured": Badge("open", "Not measured"),
}


def shown(value: object) -> str:
    """Any cell as text: unknown for None, thousands separated, times in UTC, at most LONGEST characters."""
    for kind, say in _SAID.items():
        if isinstance(value, kind):
            return say(value)
    return UNKNOWN if value is None else clean(str(value))


def clean(text: str) -> str:
    """Printable, and at most LONGEST characters."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def printable(value: object) -> object:
    """What a template is about to print, without control characters; what is markup already stays."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
    return value


def breakable(text: str) -> Markup:
    """Escaped, with a place to break a line after each underscore, dot and slash of a long name."""
    return Markup(re.sub(r"(?<=[A-Za-z])([_./])(?=[A-Za-z])", r"\1<wbr>", str(escape(text))))


def is_id(value: object) -> bool:
    """Whether a cell is a UUID and nothing else: it stays in one line."""
    return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value))


def is_unbroken(value: object) -> bool:
    """Whether a cell holds a word so long that it must break anywhere."""
    return isinstance(value, str) and any(len(word) > UNBROKEN for word in re.split(r"[\s_./]", value))


def moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


# bool before int, of which it is a kind.
_SAID: dict[type, Callable[[Any], str]] = {
    Badge: lambda badge: badge.word,
    Code: lambda code: clean(code.code),
    bool: lambda flag: "yes" if flag else "no",
    int: lambda count: f"{count:,}",
    float: lambda figure: f"{figure:,.2f}",
    datetime: moment,
}


def in_unit(value: float | None, unit: Unit) -> str:
    if value is None:
        return UNKNOWN
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return f"{value / 1e6:,.2f} MB"
    return f"{int(value):,}"


def before_of(tile: Comparison) -> str:
    return in_unit(tile.before, tile.unit)


def now_of(tile: Comparison) -> str:
    return in_unit(tile.now, tile.unit)


def passed(result: bool | None) -> Badge:
    """The badge of a gate."""
    if result is None:
        return Badge("open", "Not evaluated")
    return Badge("good", "Passed") if result else Badge("bad", "Not passed")


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
