"""What the application has built upon our functions, views and tables: dropping these would fail, or take it along."""

from collections.abc import Sequence

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.errors import RefusedError

# Objects outside our schema that need one inside. Our own triggers stand on the application's tables, and are named
# by their functions; a view depends by its rule, which is described with it. A published table of ours is no loss.
_DEPENDENTS = r"""
WITH ours AS (
    SELECT 'pg_class'::regclass::oid AS class, oid AS object, oid AS relation FROM pg_class
    WHERE relnamespace = to_regnamespace('uuid_pipeline')
    UNION ALL
    SELECT 'pg_proc'::regclass, oid, 0 FROM pg_proc WHERE pronamespace = to_regnamespace('uuid_pipeline')
    UNION ALL
    SELECT 'pg_type'::regclass, oid, 0 FROM pg_type WHERE typnamespace = to_regnamespace('uuid_pipeline')),
theirs AS (
    SELECT DISTINCT d.classid, d.objid, d.objsubid FROM pg_depend d
    JOIN ours o ON o.class = d.refclassid AND o.object = d.refobjid
    LEFT JOIN pg_class r ON o.class = 'pg_class'::regclass AND r.oid = o.object
    WHERE d.deptype IN ('n', 'a') AND (r.oid IS NULL OR r.relkind::text = ANY(%(kinds)s))
      AND NOT EXISTS (SELECT FROM ours own WHERE own.class = d.classid AND own.object = d.objid)
      AND d.classid NOT IN ('pg_publication_rel'::regclass, 'pg_default_acl'::regclass))
SELECT DISTINCT pg_describe_object(t.classid, t.objid, 0) AS named FROM theirs t
LEFT JOIN pg_rewrite w ON t.classid = 'pg_rewrite'::regclass AND w.oid = t.objid
LEFT JOIN pg_trigger g ON t.classid = 'pg_trigger'::regclass AND g.oid = t.objid
LEFT JOIN pg_proc f ON f.oid = g.tgfoid
LEFT JOIN pg_constraint c ON t.classid = 'pg_constraint'::regclass AND c.oid = t.objid
LEFT JOIN pg_attrdef a ON t.classid = 'pg_attrdef'::regclass AND a.oid = t.objid
WHERE NOT EXISTS (SELECT FROM ours o
                  WHERE o.relation = coalesce(w.ev_class, nullif(c.conrelid, 0), a.adrelid, g.tgrelid))
  AND (f.oid IS NULL OR f.pronamespace IS DISTINCT FROM to_regnamespace('uuid_pipeline')
       OR f.proname !~ '^(alias|guard)_on_')
ORDER BY 1
"""


# By the catalog's letters the relations that are dropped: views and sequences with the aliases, with the ledger all.
ALIASES = ("v", "S")
LEDGER = (*ALIASES, "r", "p", "i", "I", "c")


def require_none(connection: Connection, dropped: Sequence[str]) -> None:
    """Raise RefusedError where the application has made something of its own with what is about to be dropped: our
    functions, and relations of these kinds (ALIASES, LEDGER)."""
    found = [row.named for row in sql.rows(connection, _DEPENDENTS, {"kinds": list(dropped)})]
    if found:
        raise RefusedError(
            f"Refused: made with what uuid-pipeline would drop: {'; '.join(found)}. Drop these, or make them anew "
            "without what is in the schema uuid_pipeline; then do this again."
        )
