"""The ledger's tables of one assessment: made empty, filled by who asked, then indexed, analyzed and attached."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.ledger import SCHEMA, require_unapproved
from uuid_pipeline.engine.ledger_rights import keep_ours
from uuid_pipeline.engine.store import Entity


def _part(kind: str, entity: Entity, assessment: int) -> sql.Composable:
    return sql.table(SCHEMA, f"{kind}_{entity.name}_{assessment}")


def fresh_part(connection: Connection, kind: str, entity: Entity, assessment: int) -> sql.Composable:
    """An empty table for one assessment's rows, to be filled and then attached with :func:`attach_part`."""
    require_unapproved(connection, assessment)
    part = _part(kind, entity, assessment)
    parent = sql.table(SCHEMA, f"{kind}_{entity.name}")
    sql.execute(connection, sql.compose("DROP TABLE IF EXISTS {part}", part=part))
    like = sql.compose("CREATE TABLE {part} (LIKE {parent} INCLUDING DEFAULTS)", part=part, parent=parent)
    sql.execute(connection, like)
    number = sql.compose(
        "ALTER TABLE {part} ALTER assessment_no SET DEFAULT {number}", part=part, number=sql.literal(assessment)
    )
    sql.execute(connection, number)
    keep_ours(connection, part)
    return part


def attach_part(connection: Connection, kind: str, entity: Entity, assessment: int, indexes: list[str]) -> None:
    """Index a filled part (after loading: one sort instead of a look-up a row) and make it visible."""
    part = _part(kind, entity, assessment)
    for columns in indexes:
        unique, _, names = columns.rpartition(" ")
        statement = sql.compose(
            "CREATE {unique} INDEX ON {part} ({columns})",
            unique=sql.Text("UNIQUE" if unique else ""),
            part=part,
            columns=sql.join(", ", [sql.name(name) for name in names.split(",")]),
        )
        sql.execute(connection, statement)
    parent = sql.table(SCHEMA, f"{kind}_{entity.name}")
    # Of ids hardly two of which are the same, a third of the usual sample tells the planner as much.
    sql.execute(connection, "SELECT set_config('default_statistics_target', '30', true)")
    sql.execute(connection, sql.compose("ANALYZE {part}", part=part))
    sql.execute(
        connection,
        sql.compose(
            "ALTER TABLE {parent} ATTACH PARTITION {part} FOR VALUES IN ({number})",
            parent=parent,
            part=part,
            number=sql.literal(assessment),
        ),
    )
    _analyze_joined(connection, kind, entity, assessment)


# Whether no two rows of a part share a value, by an index of that one column that the server has found unique.
_UNIQUE = """
SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               WHERE i.indrelid = to_regclass(%(part)s) AND i.indisunique AND i.indnkeyatts = 1
                 AND a.attname = %(column)s)
"""


def prove_unique(connection: Connection, kind: str, entity: Entity, assessment: int, column: str) -> None:
    """Index a filled part by this column if no two rows share a value, else leave it as it is.

    One sort, where each question for shared values would group all rows again.
    """
    body = sql.compose(
        # Refused inside a block, so that it is no error in the server's log.
        "BEGIN CREATE UNIQUE INDEX ON {part} ({column}); EXCEPTION WHEN unique_violation THEN NULL; END",
        part=_part(kind, entity, assessment),
        column=sql.name(column),
    )
    sql.execute(connection, sql.compose("DO {body}", body=sql.literal(sql.shown(body))))


def is_unique(connection: Connection, kind: str, entity: Entity, assessment: int, column: str) -> bool:
    """Whether :func:`prove_unique` has found no two rows of this part with one value; False where nobody asked."""
    part = _part(kind, entity, assessment).as_string(None)
    return bool(sql.scalar(connection, _UNIQUE, {"part": part, "column": column}))


# What statements over a whole kind join by.
_JOINED = {"inventory": ("key", "parent_key", "target_id"), "id_map": ("ordinal", "old_id", "new_id")}


# Never analyzed, a parent counts -1 rows. A small part, as a sweep's, changes nothing that planning asks for.
_WEIGHTY = """
SELECT part.reltuples * 10 >= parent.reltuples FROM pg_class part, pg_class parent
WHERE part.oid = %(part)s::regclass AND parent.oid = %(parent)s::regclass
"""


def _analyze_joined(connection: Connection, kind: str, entity: Entity, assessment: int) -> None:
    """A statement that names the parent is planned by the parent's statistics, not by those of the one part it reads.

    Without any, each join is taken for 150 times what it is, and done by nested loops.
    """
    part, parent = _part(kind, entity, assessment), sql.table(SCHEMA, f"{kind}_{entity.name}")
    if sql.scalar(connection, _WEIGHTY, {"part": part.as_string(None), "parent": parent.as_string(None)}):
        columns = sql.join(", ", [sql.name(column) for column in _JOINED[kind]])
        sql.execute(connection, sql.compose("ANALYZE {parent} ({columns})", parent=parent, columns=columns))
