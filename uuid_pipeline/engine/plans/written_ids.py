"""Ids written into the catalog: a policy, a CHECK, a default or the like that names a row by its id, which changes.

No batch rewrites such a text, which is the application's to change. The plan says where one stands.
"""

import re

from sqlalchemy import Connection

from uuid_pipeline.engine import ledger, sql
from uuid_pipeline.engine.store import Entity, Store

# What the server has of each as text, with every constant quoted. Where it stands, then the text.
_TEXTS = """
WITH rel AS (SELECT c.oid, c.relkind,
                    CASE WHEN n.nspname <> %(schema)s THEN quote_ident(n.nspname) || '.' ELSE '' END
                    || quote_ident(c.relname) AS name
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname NOT IN ('information_schema', 'uuid_pipeline') AND n.nspname !~ '^pg_')
SELECT format('the default of %%s.%%I', rel.name, a.attname) AS place, pg_get_expr(d.adbin, d.adrelid) AS text
FROM rel JOIN pg_attrdef d ON d.adrelid = rel.oid JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum = d.adnum
UNION ALL
SELECT format('policy %%I on %%s', p.polname, rel.name),
       concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM rel JOIN pg_policy p ON p.polrelid = rel.oid
UNION ALL
SELECT format('CHECK %%I on %%s', k.conname, rel.name), pg_get_constraintdef(k.oid)
FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid WHERE k.contype = 'c'
UNION ALL
SELECT format('index %%I on %%s', x.relname, rel.name), pg_get_indexdef(i.indexrelid)
FROM rel JOIN pg_index i ON i.indrelid = rel.oid JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indpred IS NOT NULL OR i.indexprs IS NOT NULL
UNION ALL
SELECT format('trigger %%I on %%s', g.tgname, rel.name), pg_get_triggerdef(g.oid)
FROM rel JOIN pg_trigger g ON g.tgrelid = rel.oid
WHERE (g.tgqual IS NOT NULL OR g.tgnargs > 0) AND NOT g.tgisinternal
UNION ALL
SELECT format('view %%s', rel.name), pg_get_viewdef(rel.oid) FROM rel WHERE rel.relkind IN ('v', 'm')
UNION ALL
SELECT format('CHECK %%I of domain %%s', k.conname, k.contypid::regtype), pg_get_constraintdef(k.oid)
FROM pg_constraint k WHERE k.contypid <> 0 AND k.contype = 'c'
UNION ALL
SELECT format('the default of domain %%s', y.oid::regtype), quote_literal(y.typdefault)
FROM pg_type y WHERE y.typtype = 'd' AND y.typdefault IS NOT NULL
ORDER BY 1
"""
_CONSTANT = re.compile(r"'((?:[^']|'')*)'")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


def found(connection: Connection, store: Store, assessment: int) -> list[str]:
    """A sentence for each place of the store, in any schema, that names the id of a row which is to get another one."""
    texts = sql.rows(connection, _TEXTS, {"schema": store.spec.schema_name})
    said = []
    for entity in store.entities:
        named = {row.place: _ids_in(row.text or "", entity) for row in texts}
        moving = _moving(connection, entity, assessment, sorted({one for several in named.values() for one in several}))
        for place, several in named.items():
            said += [
                f"{place} names the {entity.name} {one}, whose id changes: it names nobody then; change its text "
                "once the run is completed (before, the plan would go stale), and back after a rollback"
                for one in several
                if one in moving
            ]
    return said


def _ids_in(text: str, entity: Entity) -> list[str]:
    """What may be ids of the entity among a text's constants, each once; one constant may be an array of several."""
    constants = [constant.replace("''", "'") for constant in _CONSTANT.findall(text)]
    if entity.key_type == "uuid":
        return list(dict.fromkeys(one.lower() for constant in constants for one in _UUID.findall(constant)))
    return list(dict.fromkeys(constants))


def _moving(connection: Connection, entity: Entity, assessment: int, ids: list[str]) -> set[str]:
    """Those of these that are ids of rows which the id map gives others."""
    statement = sql.compose(
        """SELECT m.old_id::text AS id FROM {map} m WHERE m.assessment_no = %(no)s AND m.old_id <> m.new_id
           AND m.old_id = ANY(%(ids)s::{type}[])""",
        map=ledger.map_table(entity),
        type=sql.as_written(entity.key_type),
    )
    return {row.id for row in sql.rows(connection, statement, {"no": assessment, "ids": ids})}
