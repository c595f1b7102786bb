"""Documents that a CHECK would refuse once what they refer to is merged, as far as the plan can foresee it."""

from collections.abc import Iterator, Mapping

from sqlalchemy import Connection

from uuid_pipeline.engine import inventory, ledger, sql
from uuid_pipeline.engine.catalog import Table
from uuid_pipeline.engine.mapping import survivor_order
from uuid_pipeline.engine.merges import checks
from uuid_pipeline.engine.natural_keys import cast_type
from uuid_pipeline.engine.priorities import complete_statuses
from uuid_pipeline.engine.store import Entity, Store

SHOWN = 3


def found(connection: Connection, store: Store, assessment: int) -> Iterator[str]:
    """Documents that stay and that a CHECK would refuse once what they refer to is merged; a sentence a CHECK."""
    for root in store.roots:
        references = {
            column: store.entity(name)
            for moved in store.tables
            if moved.table.oid == root.table.oid
            for column, name in moved.columns
            if column != root.key and inventory.may_share_targets(connection, store.entity(name), assessment)
        }
        for check in checks.of_columns(connection, root.table, set(references)):
            statement = _broken_statement(root, references, check)
            values = {"no": assessment, "complete": complete_statuses(store), "most": SHOWN + 1}
            keys = [row.key for row in sql.rows(connection, statement, values)]
            if keys:
                shown = ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
                yield (
                    f"CHECK {check.name} on {root.table.schema}.{root.table.name} ({check.expression}) fails for rows "
                    f"that stay, once what they refer to is merged: {shown}"
                )


def _broken_statement(root: Entity, references: Mapping[str, Entity], check: checks.Check) -> sql.Composable:
    joins, merged, after = [], [], {root.key: _as_column(root.table, root.key, sql.Text("own.target_id"))}
    for index, (column, entity) in enumerate(references.items()):
        name = sql.name(f"r{index}")
        joins.append(
            sql.compose(
                "LEFT JOIN {inventory} {r} ON {r}.assessment_no = %(no)s AND {r}.key::text = t.{c}::text",
                inventory=ledger.inventory_table(entity),
                r=name,
                c=sql.name(column),
            )
        )
        merged.append(
            sql.compose(
                """{r}.target_id IN (SELECT target_id FROM {inventory} WHERE assessment_no = %(no)s
                                     GROUP BY target_id HAVING count(*) > 1)""",
                r=name,
                inventory=ledger.inventory_table(entity),
            )
        )
        target = _as_column(root.table, column, sql.compose("{r}.target_id", r=name))
        after[column] = sql.compose("coalesce({target}, t.{c})", target=target, c=sql.name(column))
    return sql.compose(
        """WITH places AS (
               SELECT i.key, row_number() OVER (PARTITION BY target_id ORDER BY {survivor}, i.key) AS place
               FROM {inventory} i WHERE i.assessment_no = %(no)s AND target_id IS NOT NULL)
           SELECT own.key::text AS key FROM {table} t
           JOIN {inventory} own ON own.assessment_no = %(no)s AND own.key = t.{key}
           JOIN places p ON p.key = own.key AND p.place = 1 {joins}
           WHERE ({merged}) AND {fails} ORDER BY 1 LIMIT %(most)s""",
        survivor=survivor_order(root),
        inventory=ledger.inventory_table(root),
        table=sql.table(root.table.schema, root.table.name),
        key=sql.name(root.key),
        joins=sql.join(" ", joins),
        merged=sql.join(" OR ", merged),
        fails=checks.fails(root.table, check, after),
    )


def _as_column(table: Table, column: str, value: sql.Composable) -> sql.Composable:
    return sql.compose("{v}::{type}", v=value, type=cast_type(table.columns[column].type))
