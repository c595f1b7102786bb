"""The report's sections, one file each: what a section has to say of a subject, or None when it has nothing."""

from collections.abc import Callable

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Section
from uuid_pipeline.reports.html.sections import (
    backup,
    conservation,
    constraints,
    duplicates,
    failures,
    gates,
    inventory,
    migration,
    monitoring,
    old_ids,
    open_items,
    plan,
    readiness,
    regeneration,
    retrieval,
    risks,
    scope,
    summary,
)
from uuid_pipeline.reports.html.subject import Subject

Make = Callable[[Connection, Store, Subject], Section | None]

SECTIONS: tuple[Make, ...] = (
    summary.section,
    open_items.section,
    readiness.section,
    retrieval.section,
    regeneration.section,
    migration.section,
    conservation.section,
    gates.section,
    inventory.section,
    failures.section,
    constraints.section,
    duplicates.section,
    plan.section,
    risks.section,
    backup.section,
    old_ids.section,
    monitoring.section,
    scope.section,
)
