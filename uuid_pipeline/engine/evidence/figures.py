"""Figures kept in the ledger as they were when they were taken, by assessment or by execution."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

Kind = Literal["inventory", "lookups"]


@dataclass(frozen=True)
class Taken:
    """Figures with the moment of their measurement."""

    figures: dict[str, Any]
    taken_at: datetime


def record(
    connection: Connection,
    kind: Kind,
    figures: Mapping[str, Any],
    *,
    assessment: int | None = None,
    execution: str | None = None,
) -> None:
    """Keep figures of an assessment or of an execution; the newest of a kind count."""
    sql.execute(
        connection,
        """INSERT INTO uuid_pipeline.figures (assessment_no, execution_id, kind, figures)
           VALUES (%(assessment)s, %(execution)s, %(kind)s, %(figures)s::jsonb)""",
        {"assessment": assessment, "execution": execution, "kind": kind, "figures": json.dumps(figures, default=str)},
    )


def latest(
    connection: Connection, kind: Kind, *, assessment: int | None = None, execution: str | None = None
) -> Taken | None:
    """The newest figures of a kind, None when none were taken."""
    found = sql.rows(
        connection,
        """SELECT figures, taken_at FROM uuid_pipeline.figures
           WHERE kind = %(kind)s AND assessment_no IS NOT DISTINCT FROM %(assessment)s
             AND execution_id IS NOT DISTINCT FROM %(execution)s ORDER BY figures_no DESC LIMIT 1""",
        {"kind": kind, "assessment": assessment, "execution": execution},
    )
    return Taken(*found[0]) if found else None
