"""The verdict in words: what refuses, whose rows stand in the way, and so whether the data are at fault. Pure."""

from collections.abc import Mapping, Sequence

from uuid_pipeline.engine.trials.entries import Entry

OWN, TWIN, OTHER_USER, OTHER = "its own old row", "a twin", "another user's row", "another row"
UNIQUE = ("primary key", "unique constraint", "unique index", "exclusion")


def verdict(entity: str, moving: int, exact: bool, entries: Sequence[Entry], alike: int = 0) -> str:
    """One sentence on the unique violations that moving the rows of ``entity`` meets, by whose row refuses them.

    ``alike``: how many of the rows have the natural key of another owner's row, but for the owner.
    """
    unique = [e for e in entries if e.entity == entity and e.kind in UNIQUE and e.outcome == "fails" and e.documents]
    most = {who: max((e.whose or {}).get(who, 0) for e in unique) if unique else 0
            for who in (OWN, TWIN, OTHER_USER, OTHER)}  # fmt: skip
    seen = "" if exact else f" among the {moving} that were looked at"
    clauses = _collisions(entity, most, _names(unique, OWN))
    alone = not (most[TWIN] or most[OTHER_USER] or most[OTHER])
    if most[OWN] and alone:
        clauses.append(f"{_no_duplicates(alike)}{seen}")
    if not clauses and not exact:
        rest = "whether the rest has duplicate content the clusters of the plan tell"
        return f"no unique key refuses any of the {moving} ids to change that were looked at; {rest}"
    if not clauses:
        return f"no unique key refuses any of the {moving} ids to change; {_no_duplicates(alike)}"
    return "; ".join(clauses)


def _no_duplicates(alike: int) -> str:
    if not alike:
        return "there is no duplicate content"
    return f"no owner has duplicate content, and {alike} with the same content as another owner's row stay apart"


def _collisions(entity: str, most: Mapping[str, int], own: str) -> list[str]:
    clauses = []
    if most[OWN]:
        n = most[OWN]
        said = f"these {n} violations of {own} are" if n > 1 else f"the one violation of {own} is"
        clauses.append(f"{said} the copy against its own original")
    if most[TWIN]:
        clauses.append(
            f"{most[TWIN]} {entity} rows collide with a twin of the same natural key, which merging resolves"
        )
    if most[OTHER_USER]:
        clauses.append(f"{most[OTHER_USER]} collide with another user's row, and must not be merged")
    if most[OTHER]:
        clauses.append(f"{most[OTHER]} collide with a row of another natural key, which people must look at")
    return clauses


def _names(entries: Sequence[Entry], who: str) -> str:
    return ", ".join(dict.fromkeys(e.object for e in entries if (e.whose or {}).get(who)))


def summary(entity: str, approach: str, moving: int, failing: int, entries: Sequence[Entry]) -> str:
    """One line on an approach: for how many rows it fails and on what, or what it does besides where it passes."""
    mine = [e for e in entries if (e.entity, e.approach) == (entity, approach)]
    refused = [e for e in mine if e.outcome == "fails" and e.documents != 0]
    beside = [e for e in mine if e.outcome in ("changes", "loses", "leaves behind") and e.documents != 0]
    said = f"fails for {failing} of {moving}" if failing else "fails where said" if refused else f"passes for {moving}"
    on = "; ".join(f"{e.object} ({_extent(e)}{_state(e)})" for e in refused)
    also = "; ".join(f"{_deed(e)} ({_extent(e)})" for e in beside)
    return said + (f" on {on}" if on else "") + (f"; besides: {also}" if also else "")


def _deed(entry: Entry) -> str:
    if entry.kind == "trigger":
        return entry.message or entry.object
    return f"{entry.outcome} {entry.object}"


def _extent(entry: Entry) -> str:
    return "in the sample" if entry.documents is None else f"{entry.documents}"


def _state(entry: Entry) -> str:
    return f", {entry.sqlstate}" if entry.sqlstate else ""
