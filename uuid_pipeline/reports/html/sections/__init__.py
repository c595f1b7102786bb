"""The report's sections, one file each: what a section has to say of a subject, or None when it has nothing."""

from collections.abc import Callable

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Section
from uuid_pipeline.reports.html.sections import (
    conservation,
    duplicates,
    failures,
    gates,
    inventory,
    migration,
    old_ids,
    open_items,
    plan,
    readiness,
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
    migration.section,
    conservation.section,
    gates.section,
    inventory.section,
    failures.section,
    duplicates.section,
    plan.section,
    risks.section,
    old_ids.section,
    scope.section,
)
