"""What a section is made of: figures, tables, charts, words. Data only; the templates say how each looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

Tone = Literal["good", "bad", "open", "plain"]
Unit = Literal["count", "share", "bytes"]


@dataclass(frozen=True)
class Badge:
    """A verdict in a word; the tone colours it, the word alone carries the meaning."""

    tone: Tone
    word: str


@dataclass(frozen=True)
class Code:
    """Text to be typed or copied as it stands."""

    code: str


Cell = str | int | float | datetime | Badge | Code | None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Banner:
    """A verdict over everything that follows."""

    kind: ClassVar[str] = "banner"
    badge: Badge
    headline: str
    text: str = ""


@dataclass(frozen=True)
class Comparison:
    """One figure before and now; None is unknown. ``tone`` judges the one of now."""

    name: str
    label: str
    before: float | None
    now: float | None
    unit: Unit = "count"
    tone: Tone = "plain"
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Figures side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Comparison, ...]
    compared: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under a caption; ``more`` says how many were left out."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: str = ""
    empty: str = "nothing to show"


@dataclass(frozen=True)
class Bar:
    """``part`` of ``value`` is drawn apart, where a chart has a label for it."""

    label: str
    value: float
    part: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars in ``rows`` (categories) or ``columns`` (time); the description says in words what they show."""

    kind: ClassVar[str] = "chart"
    title: str
    description: str
    bars: tuple[Bar, ...]
    value_label: str
    part_label: str = ""
    layout: Literal["rows", "columns"] = "rows"


@dataclass(frozen=True)
class Progress:
    """How much of each step is done."""

    kind: ClassVar[str] = "progress"
    caption: str
    steps: tuple[tuple[str, int, int, str], ...]  # name, done, total, note


@dataclass(frozen=True)
class Grid:
    """Charts side by side where there is room."""

    kind: ClassVar[str] = "grid"
    blocks: tuple["Chart | Table", ...]


Block = Text | Banner | Tiles | Table | Chart | Progress | Grid


@dataclass(frozen=True)
class Section:
    """One part of the report. ``data`` are its raw figures, for report.json."""

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
    badge: Badge | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
