"""What this report rests on, and what it cannot see."""

from sqlalchemy import Connection

from uuid_pipeline.engine.store import Store
from uuid_pipeline.reports.html.blocks import Cell, Section, Table
from uuid_pipeline.reports.html.subject import Subject

_LIMITS = (
    ("Figures of now", "counted as the report is made; each document's id is recomputed from its own row"),
    ("Figures before", "the inventory of the plan, kept in the ledger"),
    ("Digests", "64-bit row hashes, summed; they find accidents and faults, they are not cryptographic"),
    ("Outside the store", "object storage, caches, bookmarks and other systems that hold ids are not looked at"),
    ("Look-up times", "of one connection from one place, with caches warm: a comparison, no load test"),
)


def section(connection: Connection, store: Store, subject: Subject) -> Section:
    entities: tuple[tuple[Cell, ...], ...] = tuple(
        (e.name, f"{e.table.schema}.{e.table.name}.{e.key}", e.spec.identity, len(e.spec.witnesses))
        for e in store.entities
    )  # fmt: skip
    references: tuple[tuple[Cell, ...], ...] = tuple(
        (r.name, r.entity, r.foreign_key or "declared in the spec") for r in store.references
    )
    return Section(
        "scope", "Scope and limits", f"Ids are uuid5 in the namespace {store.spec.namespace}.",
        (
            Table("Entities", ("Entity", "Key", "Identity", "Witnesses"), entities),
            Table("References", ("Column", "Holds the key of", "By"), references),
            Table("What the figures rest on", ("Figure", "Basis and limit"), _LIMITS),
        ),
        data={"namespace": str(store.spec.namespace), "spec_digest": store.spec.digest},
    )  # fmt: skip
