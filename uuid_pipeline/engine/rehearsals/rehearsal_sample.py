"""A copy cut down to some users' documents, with all that hangs on these and all that they refer to."""

from sqlalchemy import Connection

from uuid_pipeline.engine import sql
from uuid_pipeline.engine.store import Entity, Store
from uuid_pipeline.errors import RefusedError

MAX_ROUNDS = 50


def owner_column(store: Store) -> str:
    """The column that says whose a document is. Raises RefusedError when the spec names none."""
    owner = store.main.spec.describe.owner
    if owner is None:
        raise RefusedError(
            f"A sample by users needs to know whose a {store.main.name} is: name its column as describe.owner in the "
            "spec, or rehearse on all documents."
        )
    return owner


def cut(connection: Connection, store: Store, users: int) -> int:
    """Keep the documents of so many users (most documents first) in a copy of ``store`` that has no constraints yet.

    Rows that refer to what goes, go; rows that what stays refers to, stay. Gives how many documents stay.
    """
    _keep_users(connection, store, users)
    for _ in range(MAX_ROUNDS):
        if not sum([_keep_below(connection, store), _keep_referred(connection, store)]):
            break
    for entity in store.entities:
        _delete_entity(connection, entity)
    for moved in store.tables:
        if moved.entity is None:
            _delete_referring(connection, store, moved.table.schema, moved.table.name, moved.columns)
    return int(sql.scalar(connection, sql.compose("SELECT count(*) FROM {kept}", kept=_kept(store.main))))


def _kept(entity: Entity) -> sql.Composable:
    return sql.table("pg_temp", f"kept_{entity.name}")


def _gone(entity: Entity) -> sql.Composable:
    return sql.table("pg_temp", f"gone_{entity.name}")


def _own(entity: Entity) -> sql.Composable:
    return sql.table(entity.table.schema, entity.table.name)


def _keep_users(connection: Connection, store: Store, users: int) -> None:
    for entity in store.entities:
        statement = sql.compose(
            "CREATE TEMP TABLE {kept} (key text PRIMARY KEY) ON COMMIT DROP", kept=sql.name(f"kept_{entity.name}")
        )
        sql.execute(connection, statement)
    main = store.main
    statement = sql.compose(
        """INSERT INTO {kept} SELECT d.{key}::text FROM {table} d
           WHERE d.{owner} IN (SELECT {owner} FROM {table} GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT %(users)s)""",
        kept=_kept(main),
        key=sql.name(main.key),
        table=_own(main),
        owner=sql.name(owner_column(store)),
    )
    sql.execute(connection, statement, {"users": users})
    # Further roots have no owner that we know of: they stay whole, and are cut by nothing.
    for root in store.roots[1:]:
        statement = sql.compose(
            "INSERT INTO {kept} SELECT {key}::text FROM {table}",
            kept=_kept(root), key=sql.name(root.key), table=_own(root),
        )  # fmt: skip
        sql.execute(connection, statement)


def _keep_below(connection: Connection, store: Store) -> int:
    """Rows of entities whose parent stays; returns how many are new."""
    added = 0
    for entity in store.entities:
        if entity.parent is None or entity.parent_column is None:
            continue
        statement = sql.compose(
            """INSERT INTO {kept} SELECT c.{key}::text FROM {table} c JOIN {parents} p ON p.key = c.{parent}::text
               ON CONFLICT DO NOTHING""",
            kept=_kept(entity),
            key=sql.name(entity.key),
            table=_own(entity),
            parents=_kept(store.entity(entity.parent)),
            parent=sql.name(entity.parent_column),
        )
        added += sql.execute(connection, statement).rowcount
    return added


def _keep_referred(connection: Connection, store: Store) -> int:
    """Rows of entities that a row which stays refers to, as a document to the one that it replaces."""
    added = 0
    for moved in store.tables:
        if moved.entity is None:
            continue
        for column, target in moved.columns:
            if column == moved.entity.key:
                continue
            entity = store.entity(target)
            statement = sql.compose(
                """INSERT INTO {kept} SELECT DISTINCT e.{entity_key}::text FROM {table} t
                   JOIN {own} o ON o.key = t.{key}::text JOIN {target} e ON e.{entity_key}::text = t.{column}::text
                   ON CONFLICT DO NOTHING""",
                kept=_kept(entity),
                entity_key=sql.name(entity.key),
                table=_own(moved.entity),
                own=_kept(moved.entity),
                key=sql.name(moved.entity.key),
                target=_own(entity),
                column=sql.name(column),
            )
            added += sql.execute(connection, statement).rowcount
    return added


def _delete_entity(connection: Connection, entity: Entity) -> None:
    statement = sql.compose(
        """CREATE TEMP TABLE {gone} ON COMMIT DROP AS
           SELECT {key}::text AS key FROM {table} WHERE {key}::text NOT IN (SELECT key FROM {kept})""",
        gone=sql.name(f"gone_{entity.name}"),
        key=sql.name(entity.key),
        table=_own(entity),
        kept=_kept(entity),
    )
    sql.execute(connection, statement)
    statement = sql.compose(
        "DELETE FROM {table} t USING {gone} g WHERE t.{key}::text = g.key",
        table=_own(entity), gone=_gone(entity), key=sql.name(entity.key),
    )  # fmt: skip
    sql.execute(connection, statement)


def _delete_referring(
    connection: Connection, store: Store, schema: str, table: str, columns: tuple[tuple[str, str], ...]
) -> None:
    for column, entity in columns:
        statement = sql.compose(
            "DELETE FROM {table} t USING {gone} g WHERE t.{column}::text = g.key",
            table=sql.table(schema, table), gone=_gone(store.entity(entity)), column=sql.name(column),
        )  # fmt: skip
        sql.execute(connection, statement)
