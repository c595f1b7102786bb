"""The plots of an inventory, for the page and for the UI alike."""

from typing import Any

from uuid_pipeline.reports.html.blocks import Bar, Chart

TO_MOVE = "to be moved"
AS_IT_IS = "as it should be"


def plots(found: dict[str, Any]) -> tuple[Chart, ...]:
    """A chart for each part that the spec describes."""
    charts = [
        _uploads(found["uploads"]),
        _chart(
            "Users by documents to be moved", found["users"] and found["users"]["impact"], "label", "users", "users"
        ),
        _due_chart("Documents by age", found["recency"], "age"),
        _due_chart("Documents by status", found["statuses"], "status", "no status"),
        _due_chart("Documents by number of chunks", found["children"], "band"),
        _due_chart("Documents by size", (found["storage"] or {}).get("bands"), "band"),
        _priorities(found["priorities"]["bands"]),
    ]
    return tuple(chart for chart in charts if chart is not None and chart.bars)


def _said(bars: tuple[Bar, ...], unit: str) -> str:
    shown = "; ".join(f"{bar.label[:60]}: {bar.value:,}" for bar in bars[:20])
    return f"{unit.capitalize()} by bar. {shown}" + (f"; and {len(bars) - 20} more" if len(bars) > 20 else "")


def _chart(title: str, rows: list[dict[str, Any]] | None, label: str, value: str, unit: str) -> Chart | None:
    if rows is None:
        return None
    bars = tuple(Bar(str(row[label]), row[value]) for row in rows)
    return Chart(title, _said(bars, unit), bars, unit)


def _due_chart(title: str, rows: list[dict[str, Any]] | None, label: str, missing: str = "") -> Chart | None:
    if rows is None:
        return None
    # Figures that an earlier version kept say of some bands only how many documents there are.
    told = all("due" in row for row in rows)
    bars = tuple(
        Bar(missing if row[label] is None else str(row[label]), row["documents"], row.get("due")) for row in rows
    )
    return Chart(title, _said(bars, "documents"), bars, AS_IT_IS, TO_MOVE if told else "")


def _uploads(uploads: dict[str, Any] | None) -> Chart | None:
    if uploads is None:
        return None
    rows = uploads["bars"]
    if not rows:
        return None
    # Months and days alone where the title says the rest.
    short = 5 if uploads["unit"] in ("day", "week") else 0
    bars = tuple(Bar(row["at"][short:], row["documents"], row["due"]) for row in rows)
    undated = f" {uploads['undated']:,} documents have no date." if uploads["undated"] else ""
    title = f"Uploads by {uploads['unit']}, {rows[0]['at']} to {rows[-1]['at']}"
    return Chart(title, _said(bars, "documents") + "." + undated, bars, AS_IT_IS, TO_MOVE, "columns")


def _priorities(bands: list[dict[str, Any]]) -> Chart:
    bars = tuple(Bar(f"{row['from']:.1f} to {row['to']:.1f}", row["documents"], row["due"]) for row in bands[::-1])
    return Chart("Documents by priority score", _said(bars, "documents"), bars, AS_IT_IS, TO_MOVE)
