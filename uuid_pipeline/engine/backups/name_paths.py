"""Where functions look for names that they do not qualify: pg_restore empties the search path, and such a function
fails there in CHECKs, generated columns and index expressions, though it works in the store."""

from collections.abc import Sequence

from sqlalchemy import Connection

from uuid_pipeline.engine import sql

# Of compiled languages the body is no SQL; a function with a path of its own finds its names.
_PATHLESS = """
SELECT p.oid::regprocedure::text AS routine FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND l.lanname NOT IN ('c', 'internal')
  AND p.prokind IN ('f', 'p') AND NOT EXISTS (SELECT FROM unnest(p.proconfig) s WHERE s LIKE 'search_path=%%')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
"""


# A transaction of ours may have pinned the path; what the role and the database set is what the session began with.
_RESET = """
SELECT set_config('search_path', reset_val, true) FROM pg_settings WHERE name = 'search_path'
"""


def of_session(connection: Connection) -> tuple[str, ...]:
    """The schemas that this session's names are looked for in by default, in their order."""
    pinned: str = sql.scalar(connection, "SELECT current_setting('search_path')")
    sql.execute(connection, _RESET)
    found: list[str] = sql.scalar(connection, "SELECT current_schemas(false)::text[]")
    sql.execute(connection, "SELECT set_config('search_path', %(pinned)s, true)", {"pinned": pinned})
    return tuple(found)


def give(connection: Connection, path: Sequence[str]) -> int:
    """Let every function of a copy that has no search path of its own look for names in ``path``; gives how many."""
    sql.execute(connection, "SELECT set_config('search_path', 'pg_catalog', true)")
    found = [row.routine for row in sql.rows(connection, _PATHLESS)]
    listed = sql.join(", ", [sql.name(schema) for schema in path])
    for routine in found:
        statement = "ALTER ROUTINE {routine} SET search_path = {path}"
        sql.execute(connection, sql.compose(statement, routine=sql.as_written(routine), path=listed))
    return len(found)


def said(path: Sequence[str]) -> str:
    """What a person who restores the dump must know."""
    shown = ", ".join(sql.shown(sql.name(schema)) for schema in path)
    return (
        f"the search path {shown}, which functions find names by: pg_restore alone fails on them, "
        "docs/backup.md says how to restore with it"
    )
