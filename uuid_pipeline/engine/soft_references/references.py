"""The references that no catalog knows: columns that hold known ids, what each is taken for, and the gate on them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import yaml
from sqlalchemy import Connection

from uuid_pipeline.engine.catalog import Table, why_not_plain
from uuid_pipeline.engine.gates import GateResult
from uuid_pipeline.engine.soft_references import due, reference_search
from uuid_pipeline.engine.soft_references.derived_values import DerivedValue
from uuid_pipeline.engine.soft_references.held_ids import HOLDS, Hit
from uuid_pipeline.engine.soft_references.id_candidates import ID_STEP
from uuid_pipeline.engine.soft_references.reference_search import Looked, Path, Values
from uuid_pipeline.engine.soft_references.sampling import Budget
from uuid_pipeline.engine.store import Entity, Form, Store
from uuid_pipeline.errors import RefusedError
from uuid_pipeline.spec import IgnoredReference

Status = Literal["declared", "ignored", "undeclared", "unlikely"]

# A column of few short values, most of which are no keys (a status, a kind), meets a text key by accident.
FEW, SHORT = 10, 12
SHOWN = 8
WHY = "why it may keep the ids as they are"


@dataclass(frozen=True)
class FoundReference:
    """A column that holds ids of an entity; ``path`` leads to them in json, ``*`` for every element of an array.

    ``rows`` were counted in a sample unless ``exact``. ``share``: of the rows looked at that have a value, those whose
    value is an id; for text keys only. ``obstacle``: why the spec cannot declare it. ``reason``: why it is ignored.
    """

    schema: str
    table: str
    column: str
    entity: str
    form: Form
    path: tuple[str, ...]
    rows: int
    exact: bool
    status: Status
    share: float | None = None
    obstacle: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return ".".join([self.table, self.column, *self.path])

    def __str__(self) -> str:
        counted = f"{self.rows}" if self.exact else f"at least {self.rows}"
        share = "" if self.share is None else f" ({100 * self.share:.1f} % of its values in the rows looked at)"
        return f"{self.name} holds {counted} {self.entity} ids{share}"


@dataclass(frozen=True)
class Search:
    """What the search found, what it left out, and what it cost."""

    found: tuple[FoundReference, ...]
    derived: tuple[DerivedValue, ...]
    sampled_only: tuple[str, ...]
    not_searched: tuple[str, ...]
    notes: tuple[str, ...]
    columns: int
    rows: int
    bytes: int
    seconds: float

    def of(self, status: Status) -> list[FoundReference]:
        return [reference for reference in self.found if reference.status == status]


def search(connection: Connection, store: Store, budget: Budget | None = None) -> Search:
    """Search every readable table of the schema, and those elsewhere that refer to it, for ids of the entities.

    Reads only, in savepoints that are undone. What could not be read, or only in part, is in the result by name.
    """
    started = time.monotonic()
    run = reference_search.run(connection, store, budget or Budget())
    found = [_reference(store, looked, hit) for looked in run.looked for hit in looked.hits if hit.kind == HOLDS]
    return Search(
        found=tuple(sorted(found, key=lambda f: (f.status != "undeclared", f.schema, f.name, f.entity))),
        derived=tuple(_derived(looked, hit) for looked in run.looked for hit in looked.hits if hit.kind != HOLDS),
        sampled_only=tuple(line for looked in run.looked for line in looked.sampled_only()),
        not_searched=run.not_searched,
        notes=(*run.notes, *_declared_in_vain(store, run.looked, found)),
        columns=sum(len(looked.target.columns) for looked in run.looked),
        rows=run.rows,
        bytes=run.bytes,
        seconds=round(time.monotonic() - started, 3),
    )


def _derived(looked: Looked, hit: Hit) -> DerivedValue:
    of = None if looked.exact else looked.target.extent.rows
    return DerivedValue(looked.target.table.name, hit.column, hit.entity, hit.kind, hit.rows, of)


def _reference(store: Store, looked: Looked, hit: Hit) -> FoundReference:
    table, entity = looked.target.table, store.entity(hit.entity)
    form = _form(table.columns[hit.column].type, entity)
    path = tuple("*" if step is None else step for step in hit.path)
    ignored = _ignored(store, table, hit.column)
    values = looked.values.get((hit.column, hit.entity, hit.path))
    status: Status = "undeclared"
    if (table.oid, hit.column, hit.entity, path) in _declared(store):
        status = "declared"
    elif ignored is not None:
        status = "ignored"
    elif values is not None and _by_accident(values, hit):
        status = "unlikely"
    return FoundReference(
        schema=table.schema, table=table.name, column=hit.column, entity=hit.entity, form=form or "text", path=path,
        rows=hit.rows, exact=looked.exact, status=status, share=values.share if values else None,
        obstacle=_obstacle(store, table, hit, form), reason=ignored.reason if ignored else None,
    )  # fmt: skip


def _declared(store: Store) -> set[tuple[int, str, str, tuple[str, ...]]]:
    return {(r.table.oid, r.column, r.entity, r.path) for r in store.references if r.foreign_key is None}


def _ignored(store: Store, table: Table, column: str) -> IgnoredReference | None:
    # A table elsewhere is meant by its bare name where the spec's own schema has none of that name.
    if table.schema != store.catalog.schema and store.catalog.table(table.name) is not None:
        return None
    return next((i for i in store.spec.ignore_references if (i.table, i.column) == (table.name, column)), None)


def _by_accident(values: Values, hit: Hit) -> bool:
    variety = values.variety
    return variety.distinct <= FEW and variety.longest <= SHORT and 2 * hit.ids < variety.distinct


def _form(column_type: str, entity: Entity) -> Form | None:
    """How a soft reference of this type would hold the key; None for a type that the spec cannot declare."""
    kind = column_type.split("(", maxsplit=1)[0]
    if kind in ("json", "jsonb"):
        return "json"
    if column_type.endswith("[]"):
        return "array" if kind.removesuffix("[]") in ("uuid", "text", "character varying") else None
    if kind == "uuid":
        return "key" if entity.key_type == "uuid" else None
    if kind in ("text", "character varying"):
        return "key" if entity.key_type == "text" else "text"
    return None


def _obstacle(store: Store, table: Table, hit: Hit, form: Form | None) -> str | None:
    """Why the spec cannot declare what was found."""
    if table.schema != store.catalog.schema:
        return f"it is in schema {table.schema}, and a spec names tables of one schema; a foreign key (NOT VALID) does"
    plain = why_not_plain(table)
    if plain is not None:
        return f"its table {plain}"
    if form is None:
        return f"a column of type {table.columns[hit.column].type} cannot be declared"
    return _obstacle_in_path(hit.path) if form == "json" else None


def _obstacle_in_path(path: Path) -> str | None:
    if not path:
        return "the JSON is the id itself, and a path names something in it"
    if ID_STEP in path:
        return f"a name on the way to it is itself an id (shown as {ID_STEP})"
    if any(step is not None and (not step or "." in step or step == "*") for step in path):
        return "a name on the way to it is empty, or holds a dot, or is *, which a path cannot say"
    return None


def _declared_in_vain(store: Store, looked: Sequence[Looked], found: Sequence[FoundReference]) -> list[str]:
    places = {(f.schema, f.name, f.entity) for f in found}
    searched = {one.target.table.oid for one in looked if one.exact}
    return [
        f"declared, but no {r.entity} id was found there: {r.name}"
        for r in store.references
        if r.foreign_key is None and r.table.oid in searched and (r.table.schema, r.name, r.entity) not in places
    ]


def as_data(search: Search) -> dict[str, Any]:
    """The search as plain data, for the ledger and for people."""
    return asdict(search)


def from_data(data: Mapping[str, Any]) -> Search:
    """A search read back from :func:`as_data`, also through JSON."""
    found = [FoundReference(**{**one, "path": tuple(one["path"])}) for one in data["found"]]
    parts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    parts |= {"found": tuple(found), "derived": tuple(DerivedValue(**one) for one in data["derived"])}
    return Search(**parts)


def yaml_line(values: Mapping[str, str]) -> str:
    """One mapping on one line, as it stands in a spec's list; names are quoted where YAML needs it."""
    text = yaml.safe_dump(dict(values), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return f"  - {text.strip()}"


def declaration(found: FoundReference) -> str:
    """The line that declares it under soft_references."""
    path = {"path": ".".join(found.path)} if found.form == "json" else {}
    return yaml_line({"table": found.table, "column": found.column, "entity": found.entity, **path})


def exception(store: Store, found: FoundReference) -> str:
    """The line that leaves it alone, under ignore_references, its reason still to be written."""
    line = yaml_line({"table": found.table, "column": found.column, "reason": WHY})
    # The spec's own schema lacks a table of another one, which only an optional line may name.
    return line if found.schema == store.catalog.schema else f"{line[:-1]}, optional: true}}"


def references_known(store: Store, searched: Search) -> GateResult:
    """Gate: every column found to hold an entity's ids is a foreign key, declared, or ignored with a reason."""
    undeclared = searched.of("undeclared")
    listed = "; ".join(f"{r.name} -> {r.entity}" for r in store.references)
    if undeclared:
        finding = f"undeclared references: {_some(map(str, undeclared))}"
    else:
        finding = "; ".join([f"{len(store.references)} references: {listed}", *_said(searched)])
    return GateResult.of(
        "references_known",
        not undeclared,
        finding,
        _remedy(store, undeclared),
        figures={
            "references": len(store.references),
            "undeclared": len(undeclared),
            "ignored": len(searched.of("ignored")),
            "derived": len(searched.derived),
            "sampled_only": len(searched.sampled_only),
            "not_searched": len(searched.not_searched),
            "skipped": len(store.skipped),
            "searched_columns": searched.columns,
            "searched_rows": searched.rows,
            "searched_bytes": searched.bytes,
            "search_seconds": searched.seconds,
        },
    )


def known_or_nothing_due(connection: Connection, store: Store, searched: Search) -> GateResult:
    """Gate: as :func:`references_known`, but where no row of the store is due, no id will change that anything holds.

    So a store that was migrated stays green when triggers of its own have written its new ids down since.
    """
    gate = references_known(store, searched)
    if gate.passed or due.anything_due(connection, store):
        return gate
    said = f"nothing is due, so no id will change; before anything is, declare or ignore: {gate.finding}"
    return GateResult.of(gate.gate, True, said, "", gate.figures)


def require_known(store: Store, searched: Search) -> None:
    """Raise RefusedError when ids are about to change that an undeclared column holds."""
    gate = references_known(store, searched)
    if not gate.passed:
        raise RefusedError(
            f"Rows became due while this plan was made, and {gate.finding}. {gate.remedy[0].upper()}{gate.remedy[1:]}; "
            "then plan again."
        )


def _said(searched: Search) -> list[str]:
    ignored = [f"{f.name} ({f.reason})" for f in searched.of("ignored")]
    parts = [
        ("ignored on purpose", ignored),
        ("no reference by its values", [str(f) for f in searched.of("unlikely")]),
        ("derived from ids and left as they are", [str(d) for d in searched.derived]),
        ("sampled only", searched.sampled_only),
        ("not searched", searched.not_searched),
    ]
    return [f"{label}: {_some(lines)}" for label, lines in parts if lines]


def _some(lines: Iterable[str]) -> str:
    listed = list(lines)
    more = [f"and {len(listed) - SHOWN} more (in the profile)"] if len(listed) > SHOWN else []
    return "; ".join([*listed[:SHOWN], *more])


def _remedy(store: Store, undeclared: Sequence[FoundReference]) -> str:
    declarable = dict.fromkeys(declaration(f) for f in undeclared if f.obstacle is None)
    lines = ["add to the spec, under soft_references, so that they move:", *declarable] if declarable else []
    lines.append("or, to leave them alone:" if lines else "they cannot be declared; to leave them alone:")
    lines.append("under ignore_references:")
    lines += dict.fromkeys(exception(store, f) for f in undeclared)
    return "\n".join([*lines, *[f"{f.name} cannot be declared: {f.obstacle}" for f in undeclared if f.obstacle]])
