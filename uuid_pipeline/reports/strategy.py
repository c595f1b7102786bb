"""The strategy as Markdown and as one self-contained page; the same bytes for the same strategy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uuid_pipeline.engine.plans.strategy import Strategy
from uuid_pipeline.reports import files, templating
from uuid_pipeline.reports.tables import inventory_lines, megabytes


@dataclass(frozen=True)
class Files:
    markdown: Path
    html: Path


def paths(home: Path, plan_id: str) -> Files:
    """Where the plan job writes a plan's strategy."""
    place = home / "reports" / plan_id
    return Files(place / "strategy.md", place / "strategy.html")


def write(home: Path, strategy: Strategy) -> Files:
    """Write both forms below the home."""
    files.directory(home, strategy.plan_id)
    found = paths(home, strategy.plan_id)
    files.write(found.markdown, render_markdown(strategy))
    files.write(found.html, render_html(strategy))
    return found


def render_markdown(strategy: Strategy) -> str:
    return templating.render("md", "strategy.md", **_values(strategy))


def render_html(strategy: Strategy) -> str:
    return templating.render("html", "strategy.html", **_values(strategy))


def _values(strategy: Strategy) -> dict[str, Any]:
    return {
        "s": strategy,
        "figures": inventory_lines(strategy.summary),
        "megabytes": megabytes(strategy.estimate.ledger_bytes),
    }
