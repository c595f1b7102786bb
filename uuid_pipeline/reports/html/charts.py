"""Bar charts as SVG: geometry here, marks in the template; in the page they take its colours, else bring their own."""

import base64
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from uuid_pipeline.reports.html import wording
from uuid_pipeline.reports.html.blocks import Bar, Chart

WIDTH = 480
ROW, LABELS, VALUES = 26, 170, 62
HEIGHT, BASE, TOP = 230, 196, 26
LABELLED_COLUMNS = 16
LABEL_CHARACTERS = 24


@dataclass(frozen=True)
class Mark:
    """One bar in user units: its box, that of its part, and its two texts with their places."""

    x: float
    y: float
    width: float
    height: float
    part_width: float
    part_height: float
    label: str
    value: str
    shows_label: bool
    shows_value: bool


@dataclass(frozen=True)
class Drawing:
    """A chart's marks in a box of ``width`` by ``height``."""

    chart: Chart
    width: int
    height: int
    marks: tuple[Mark, ...]


def draw(chart: Chart) -> Drawing:
    """Lay a chart out; bars of nothing have no width."""
    most = max((bar.value for bar in chart.bars), default=0) or 1
    if chart.layout == "rows":
        marks = [_row(bar, index, most) for index, bar in enumerate(chart.bars)]
        return Drawing(chart, WIDTH, ROW * len(marks) + 8, tuple(marks))
    return Drawing(chart, WIDTH, HEIGHT, tuple(_column(chart, index, most) for index in range(len(chart.bars))))


def _row(bar: Bar, index: int, most: float) -> Mark:
    width = (WIDTH - LABELS - VALUES) * bar.value / most
    label = wording.clean(bar.label)
    short = label if len(label) <= LABEL_CHARACTERS else f"{label[:LABEL_CHARACTERS]}…"
    return Mark(
        LABELS, ROW * index + 8, round(width, 2), ROW - 8, round(width * _share(bar), 2), ROW - 8,
        short, wording.shown(bar.value), True, True,
    )  # fmt: skip


def _column(chart: Chart, index: int, most: float) -> Mark:
    bar, count = chart.bars[index], len(chart.bars)
    step = WIDTH / count
    height = (BASE - TOP) * bar.value / most
    every = max(1, -(-count // 8))  # at most eight labels below the axis
    return Mark(
        round(step * index + step * 0.12, 2), round(BASE - height, 2), round(step * 0.76, 2), round(height, 2),
        round(step * 0.76, 2), round(height * _share(bar), 2), wording.clean(bar.label), wording.shown(bar.value),
        index % every == 0, count <= LABELLED_COLUMNS and bar.value > 0,
    )  # fmt: skip


def _share(bar: Bar) -> float:
    return 0 if bar.part is None or not bar.value else bar.part / bar.value


@cache
def environment() -> Environment:
    """The templates' environment: everything is escaped, and a missing value is an error."""
    made = Environment(
        loader=PackageLoader("uuid_pipeline.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=wording.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": wording.shown,
        "breakable": wording.breakable,
        "before": wording.before_of,
        "now": wording.now_of,
        "moment": wording.moment,
    }
    made.globals["draw"] = draw
    made.tests |= {"unbroken": wording.is_unbroken, "document_id": wording.is_id}
    return made


def data_uri(chart: Chart) -> str:
    """The chart as an image for pages that are not ours, with colours that stand on white and on black."""
    values: dict[str, Any] = {"drawing": draw(chart), "identity": "chart", "alone": True}
    svg = environment().get_template("bars.svg.j2").render(values)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def markdown_image(chart: Chart) -> str:
    """The chart in markdown, with its title."""
    legend = f" (hatched: {chart.part_label})" if chart.part_label else ""
    return f"**{chart.title}**{legend}\n\n![{chart.title}]({data_uri(chart)})"
