"""The draft as the text of a specification, with what a person needs to decide beside each line."""

import json
import re
from collections.abc import Iterable

import yaml

from uuid_pipeline.engine.drafts.drafting import Draft, ProposedEntity
from uuid_pipeline.engine.soft_references import references
from uuid_pipeline.engine.store import bind
from uuid_pipeline.spec import parse_spec

TODO = "TODO: the columns that make a row what it is"
_HEAD = """\
# A first specification, written by `uuid-pipeline init` from the catalogs. Go through it line by line: what the
# application makes its ids of is known to nobody but the application. Then: uuid-pipeline plan --spec THIS_FILE
"""
_NAMESPACE = """\
# The UUID in which the application makes its ids: uuid5(namespace, filled identity). THIS ONE IS RANDOM. Put the
# application's own in its place, or its ids and these will never meet.
"""
_NAMESPACE_GIVEN = "# The UUID in which ids are made: uuid5(namespace, filled identity).\n"


def render(made: Draft, namespace_given: bool) -> str:
    """The text. It loads and binds, unless an entity's identity is still to be written: then it says so, loudly."""
    text = "\n".join(
        [
            _HEAD,
            (_NAMESPACE_GIVEN if namespace_given else _NAMESPACE) + f"namespace: {made.namespace}",
            f"schema: {scalar(made.store.catalog.schema)}",
            "",
            "entities:",
            *[line for entity in made.entities for line in _entity(entity)],
            *_left(made),
            *_soft_references(made),
            *_ignored(made),
            *_listed("Values made from an id: counted, reported, never rewritten.", map(str, made.search.derived)),
            *_listed("Columns of which only a part was read.", made.search.sampled_only),
            *_listed("Not searched for ids.", made.search.not_searched),
            *_listed("Foreign keys are read from the catalogs, never listed in a spec. Those of now:", _keys(made)),
            *_triggers(made),
            *_rest(made),
            "",
        ]
    )
    if not made.todo:
        bind(parse_spec(text, "the new spec"), made.store.catalog)
    return text


def scalar(text: str) -> str:
    """A string as YAML writes it on one line."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).strip().removesuffix("...").strip()


def comment(text: str) -> str:
    """One line of comment, whatever the text holds."""
    return f"# {' '.join(text.split())}"


def _entity(entity: ProposedEntity) -> list[str]:
    identity = json.dumps(entity.spec.identity if entity.choice else TODO, ensure_ascii=False)
    lines = [
        f"  {scalar(entity.name)}:",
        f"    {comment('referred to by ' + (', '.join(entity.referred_by) or 'no foreign key'))}",
        f"    table: {scalar(entity.table.name)}",
        f"    key: {scalar(entity.key)}",
    ]
    if entity.spec.parent:
        lines.append(f"    parent: {scalar(entity.spec.parent)}")
    lines += [f"    {line}" for line in _about_identity(entity)]
    lines.append(f"    identity: {identity}")
    lines += [f"    {line}" for line in _suggested_rules(entity)]
    if entity.describe:
        described = ", ".join(f"{purpose}: {scalar(column)}" for purpose, column in entity.describe.items())
        lines.append(f"    describe: {{{described}}}   # columns for people; found by name and type")
    lines += [f"    {line}" for line in _duplicates(entity)]
    fields = ", ".join(f"{column}: …" for column in entity.spec.template.fields) if entity.choice else "each column: …"
    lines.append("    # witnesses:   # natural keys with the id that the application itself made of them; worth a lot")
    lines.append(f"    #   - {{{fields}, id: …}}")
    return [*lines, ""]


def _about_identity(entity: ProposedEntity) -> list[str]:
    lines = []
    if entity.choice is None:
        lines.append(
            "# No unique key over all rows that an identity could be made of, and no content hash, says what makes a"
        )
        lines.append("# row what it is.")
        lines.append('# Write the template that the application fills, such as "{owner_id}:{content_hash}".')
    else:
        lines.append(comment(f"from the columns {entity.choice}"))
        if entity.choice.among:
            lines.append(
                "# Rows outside of that condition may agree in it with others, and would become one with them:"
            )
            lines.append("# the plan says where, and waits until on_duplicate is written out below.")
        elif not entity.choice.unique and not entity.choice.folded:
            lines.append("# NO INDEX makes this unique: rows that agree in it become one. Make sure that they are one.")
        if entity.spec.parent:
            lines.append(comment(f"in it, the column that refers to the {entity.spec.parent} stands for its new id"))
    lines += [comment(f"another choice: {other}") for other in entity.others]
    return lines


def _suggested_rules(entity: ProposedEntity) -> list[str]:
    """What an index or a content hash suggests; only the application knows whether it folds case first."""
    if entity.choice is None:
        return []
    lines = [
        f"# normalize: {{{scalar(column)}: [lower]}}   # if the application makes its ids of small letters, too"
        for column in entity.choice.folded
    ]
    for column, length in (entity.choice.hex_length or {}).items():
        lines.append(f"# normalize: {{{scalar(column)}: [strip, lower]}}   # if the application does so too")
        lines.append(f'# valid: {{{scalar(column)}: "^[0-9a-f]{{{length}}}$"}}   # others are quarantined')
    return lines


def _duplicates(entity: ProposedEntity) -> list[str]:
    lines = ["# on_duplicate: merge   # or block: rows with one natural key are merged, and archived"]
    fields = entity.spec.template.fields
    if entity.choice and entity.spec.parent and len(fields) > 2:
        columns = ", ".join(map(scalar, fields[1:-1]))
        lines.append(f"# merge_as_set: [{columns}]   # rows alike in these are kept whole, or archived whole")
    return lines


def _left(made: Draft) -> list[str]:
    return _listed(
        "Tables that others refer to, whose ids stay as they are.", [f"{t.table}: {t.why}" for t in made.left]
    )


def _soft_references(made: Draft) -> list[str]:
    lines = [
        "# References without a foreign key, found by searching for known ids. A declared one moves with its entity.",
        "# History that is to stay as it was written belongs under ignore_references: {table, column, reason}.",
    ]
    if not made.soft:
        return [*lines, "soft_references: []", ""]
    lines.append("soft_references:")
    for one in made.soft:
        lines += [f"  {comment(str(one))}", references.declaration(one)]
    return [*lines, ""]


def _ignored(made: Draft) -> list[str]:
    stuck = made.undeclared
    if not stuck:
        return ["ignore_references: []", ""]
    lines = [
        "# These hold ids too, and are not declared above. The gate references_known stays red until each is declared,",
        "# ignored on purpose with a reason, or given a foreign key:",
    ]
    for one in stuck:
        why = one.obstacle or "an identity above is made of it"
        lines += [comment(f"{one}: {why}"), f"#{references.exception(made.store, one)}"]
    return [*lines, "ignore_references: []", ""]


def _keys(made: Draft) -> Iterable[str]:
    for one in made.store.references:
        if one.foreign_key is not None:
            yield f"{one.table.schema}.{one.table.name}.{one.column} -> {one.entity} ({one.foreign_key})"


def _triggers(made: Draft) -> list[str]:
    moved = {(m.table.schema, m.table.name) for m in made.store.tables}
    moved |= {(f.schema, f.table) for f in made.soft}
    found = [t for t in made.store.catalog.triggers if (t.table_schema, t.table) in moved]
    lines = [f"{t.name} on {t.table} ({_enabled(t.enabled)}): {t.definition}" for t in found]
    listed = _listed("Triggers of the tables that are written to. Their rows change in nothing but ids:", lines)
    return [*listed[:-1], "triggers: {}   # name: fire | silence, where the plan's own proposal is not wanted", ""]


def _enabled(state: str) -> str:
    return {"O": "enabled", "D": "disabled", "R": "in replica role only", "A": "always"}.get(state, state)


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    listed = [f"#   {' '.join(line.split())}" for line in lines]
    return [f"# {title}", *listed, ""] if listed else []


def _rest(made: Draft) -> list[str]:
    lines = [
        "# backup: dump   # dump | attested | none",
        "# backup_max_age_hours: 24",
        "# rehearsal: {required: false, users: null}",
    ]
    if made.statuses:
        seen = ", ".join("null" if status is None else scalar(status) for status in made.statuses)
        lines.append(f"# statuses: {{complete: [], failed: []}}   # seen: {' '.join(seen.split())}")
    for entity in made.entities:
        for column in entity.table.columns.values():
            if re.match(r"(.+\.)?(vector|halfvec)\(", column.type):
                indexed = made.distances.get((entity.table.oid, column.name))
                why = "that of its index" if indexed else "as the application asks: cosine, l2 or inner_product"
                distance, table = indexed or "cosine", scalar(entity.table.name)
                line = f"{{vector: {scalar(column.name)}, distance: {distance}, chunk_table: {table}}}"
                lines.append(f"# retrieval: {line}   # {why}")
    return [*lines, "# docs/specification.md has every field."]
