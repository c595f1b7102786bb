"""Tables and lists as the UI's metadata panel can show them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg
import yaml

from uuid_pipeline.reports.tables import markdown, pairs_markdown

# The panel shows Markdown of fewer characters in a narrow cell, and cuts a wide table off at its edge; longer ones open
# in a window of their own.
_IN_THE_CELL = 1000
_FITS_THE_CELL = 66


def table(records: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Records as a table, in the cell where it fits."""
    return _fitted(markdown(records))


def pairs(lines: Sequence[tuple[str, str]]) -> dg.MarkdownMetadataValue:
    """Labels and values, in the cell where they fit."""
    return _fitted(pairs_markdown(lines))


def number(value: float) -> dg.FloatMetadataValue:
    """A number with as many digits as one reads; whole ones as they are."""
    return dg.MetadataValue.float(value if value == round(value) else float(f"{value:.6g}"))


def bullets(lines: Iterable[str]) -> dg.MarkdownMetadataValue:
    """A list, or that there is nothing."""
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in lines) or "_nothing_")


def launchpad(job: str, op: str, config: Mapping[str, str], command: str) -> dg.MarkdownMetadataValue:
    """A link to a job's launchpad with its config filled in, and the command that does the same."""
    filled = quote(yaml.safe_dump({"ops": {op: {"config": dict(config)}}}), safe="")
    place = f"/locations/uuid_pipeline/jobs/{job}/playground/setup?config={filled}"
    return dg.MetadataValue.md(f"[job {job}, filled in]({place}), or `{command}`")


def _fitted(text: str) -> dg.MarkdownMetadataValue:
    wide = any(len(line) > _FITS_THE_CELL for line in text.splitlines())
    return dg.MetadataValue.md(text.ljust(_IN_THE_CELL) if wide else text)
