"""What tables are made of, by name and kind: the same for a copy as for its original, whatever server holds it."""

from collections.abc import Sequence

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

# Names and kinds, not the definitions' text, which each version of the server writes in its own way. NOT NULL is a
# property of the column in every version, a constraint only since 18. Triggers of ours need the ledger, no part of a
# copy; foreign keys to tables that are not in it are left out of both sides.
_DEFINITIONS = """
WITH rel AS (SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relrowsecurity, c.relforcerowsecurity
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE (n.nspname || '.' || c.relname) = ANY(%(tables)s))
SELECT concat_ws(' ', 'column', name || '.' || attname, format_type(atttypid, atttypmod),
                 CASE WHEN attnotnull THEN 'not null' END, nullif(attidentity, ''), nullif(attgenerated, ''))
FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT concat_ws(' ', 'default of', name || '.' || attname) FROM rel JOIN pg_attrdef d ON d.adrelid = rel.oid
JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum = d.adnum
UNION ALL
SELECT concat_ws(' ', 'constraint', conname, 'on', name, contype, CASE WHEN NOT convalidated THEN 'not valid' END)
FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid AND contype NOT IN ('n', 't')
LEFT JOIN pg_class f ON f.oid = k.confrelid LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace
WHERE k.contype <> 'f' OR (fn.nspname || '.' || f.relname) = ANY(%(held)s)
UNION ALL
SELECT concat_ws(' ', 'index', x.relname, 'on', name, CASE WHEN indisunique THEN 'unique' END)
FROM rel JOIN pg_index i ON i.indrelid = rel.oid AND i.indisvalid JOIN pg_class x ON x.oid = i.indexrelid
UNION ALL
SELECT concat_ws(' ', 'trigger', tgname, 'on', name, tgenabled) FROM rel
JOIN pg_trigger t ON t.tgrelid = rel.oid AND NOT tgisinternal
JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace IS DISTINCT FROM to_regnamespace('uuid_pipeline')
UNION ALL
SELECT concat_ws(' ', 'policy', polname, 'on', name, polcmd) FROM rel JOIN pg_policy p ON p.polrelid = rel.oid
UNION ALL
SELECT concat_ws(' ', 'row security of', name, CASE WHEN relforcerowsecurity THEN 'forced' END)
FROM rel WHERE relrowsecurity ORDER BY 1
"""


def of_tables(connection: Connection, tables: Sequence[str], held: Sequence[str]) -> frozenset[str]:
    """Each part of ``tables`` ("schema.table") in a line; ``held``: every table that the copy is to have."""
    values = {"tables": list(tables), "held": list(held)}
    return frozenset(row[0] for row in sql.rows(connection, _DEFINITIONS, values))


def differences(before: frozenset[str], after: frozenset[str]) -> list[str]:
    """What one side lacks, one sentence each."""
    return [f"{part} is missing" for part in sorted(before - after)] + [
        f"{part} is new" for part in sorted(after - before)
    ]
