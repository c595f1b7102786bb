"""Documents that re-keying cannot mend, for people."""

from typing import Any

from uuid_pipeline.engine.retrievals.unretrievable import WORDS, Listed
from uuid_pipeline.reports.tables import UNKNOWN


def records(found: Listed) -> list[dict[str, Any]]:
    """A line a document: id now, owner, why, and since when it is queued."""
    return [
        {
            "id": d.id,
            "owner": d.owner or UNKNOWN,
            "title": d.title,
            "status": d.status,
            "why": "; ".join(WORDS[reason] for reason in d.reasons),
            "queued": d.queued_at,
        }
        for d in found.documents
    ]


def reasons(found: Listed) -> list[dict[str, Any]]:
    """How many documents have each reason; one may have several."""
    return [{"why": WORDS[name], "documents": n} for name, n in found.by_reason.items()]
