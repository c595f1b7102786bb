"""Extensions: which a store has, and which its tables cannot be made without."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from uuid_pipeline.engine import sql


@dataclass(frozen=True)
class Extension:
    """``needed``: a type, function or operator of it is part of a table's definition. Others may be used at run time,
    by a function's body, which no catalog tells."""

    name: str
    schema: str
    version: str
    needed: bool


# From each relation along what it is made of. Deeper rows reach types of types, and functions behind defaults.
MADE_OF = """
WITH RECURSIVE made_of AS (
    SELECT 'pg_class'::regclass::oid AS classid, o AS objid FROM unnest(%(oids)s::oid[]) o
    UNION
    SELECT d.refclassid, d.refobjid FROM made_of m JOIN (
        SELECT classid, objid, refclassid, refobjid FROM pg_depend WHERE deptype IN ('n', 'a', 'i', 'P', 'S')
        UNION ALL
        -- What hangs on a relation belongs to it: defaults, constraints, indexes, triggers, policies.
        SELECT refclassid, refobjid, classid, objid FROM pg_depend
        WHERE deptype IN ('a', 'i') AND refclassid = 'pg_class'::regclass
          AND classid IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_class'::regclass,
                          'pg_trigger'::regclass, 'pg_policy'::regclass)
           OR deptype = 'a' AND refclassid = 'pg_type'::regclass AND classid = 'pg_constraint'::regclass
    ) d ON d.classid = m.classid AND d.objid = m.objid)
"""

_EXTENSIONS = (
    MADE_OF
    + """
SELECT e.extname AS name, n.nspname AS schema, e.extversion AS version,
       EXISTS (SELECT FROM made_of m JOIN pg_depend d ON d.classid = m.classid AND d.objid = m.objid
               WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid) AS needed
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql' ORDER BY 4 DESC, e.oid
"""
)


def of_tables(connection: Connection, oids: Sequence[int]) -> tuple[Extension, ...]:
    """Every extension of the database, those that the tables ``oids`` need first, each after what it builds on."""
    return tuple(Extension(*row) for row in sql.rows(connection, _EXTENSIONS, {"oids": list(oids)}))
