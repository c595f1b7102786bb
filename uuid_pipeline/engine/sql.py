"""SQL text: identifiers quoted by the driver, values always bound."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, ParamSpec, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

ROWS_AT_ONCE = 5_000
QUERY_CANCELED = "57014"  # by a time limit, or by a person
LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"
_streams = itertools.count()

Found = TypeVar("Found")
Given = ParamSpec("Given")
Composable = sql.Composable
Text = sql.SQL


def compose(template: LiteralString, **parts: Composable) -> sql.Composed:
    """A statement from a template with ``{parts}``; values stay ``%(placeholders)s``."""
    return sql.SQL(template).format(**parts)


def name(identifier: str) -> Composable:
    """A quoted name."""
    return sql.Identifier(_escaped(identifier))


def table(schema: str, relation: str) -> Composable:
    """A qualified, quoted table name."""
    return sql.Identifier(_escaped(schema), _escaped(relation))


def _escaped(text: str) -> str:
    # The driver reads % in a statement as the start of a placeholder, also inside quotes.
    return text.replace("%", "%%")


def shown(part: Composable) -> str:
    """A part as people are to copy it, not as the driver reads it."""
    return part.as_string(None).replace("%%", "%")


def as_written(text: str) -> Composable:
    """A piece of SQL as the server (an expression, a type, a quoted name) or the spec has written it."""
    return sql.SQL(_escaped(text))


def join(separator: LiteralString, parts: Sequence[Composable]) -> sql.Composed:
    """The parts, separated."""
    return sql.SQL(separator).join(parts)


def literal(value: str | int) -> Composable:
    """A constant of the statement's own text (a label, a version), never a user's value."""
    return sql.Literal(_escaped(value) if isinstance(value, str) else value)


def composed_once(statement: Callable[Given, Composable]) -> Callable[Given, Composable]:
    """Keep the text of a statement that follows from hashable arguments alone: batches ask for the same ones."""

    @functools.lru_cache(maxsize=64)
    def kept(*given: Given.args, **named: Given.kwargs) -> Composable:
        return sql.SQL(statement(*given, **named).as_string(None))

    return functools.wraps(statement)(kept)  # type: ignore[return-value]


def bound(value: str) -> Composable:
    """A placeholder for the bound value of that name, where the name itself is composed."""
    return sql.Placeholder(value)


def execute(
    connection: Connection, statement: Composable | LiteralString, values: Mapping[str, Any] | None = None
) -> CursorResult[Any]:
    """Run one statement with bound values."""
    text = statement if isinstance(statement, str) else statement.as_string(None)
    return connection.exec_driver_sql(text, dict(values or {}))


def rows(
    connection: Connection, statement: Composable | LiteralString, values: Mapping[str, Any] | None = None
) -> list[Any]:
    """All rows of a small result."""
    return list(execute(connection, statement, values).all())


def scalar(
    connection: Connection, statement: Composable | LiteralString, values: Mapping[str, Any] | None = None
) -> Any:
    """The first column of the first row, or None."""
    return execute(connection, statement, values).scalar()


def stream(
    connection: Connection, statement: Composable, values: Mapping[str, Any], *, binary: bool = False
) -> Iterator[list[Any]]:
    """Rows through a server-side cursor, ROWS_AT_ONCE at a time: memory stays the same at any size.

    ``binary``: values come as the server sends them in binary, a ``bytea`` as its own bytes and not as hex digits.

    The driver's own cursor: SQLAlchemy's rows cost more than what is done with them. Wants an open transaction.
    Raises DBAPIError as :func:`execute` does.
    """
    driver: Any = connection.connection.driver_connection
    text = statement.as_string(None)
    with driver.cursor(name=f"stream_{next(_streams)}", binary=binary) as cursor:
        _as_elsewhere(connection, text, lambda: cursor.execute(text, dict(values)))
        while found := _as_elsewhere(connection, text, lambda: cursor.fetchmany(ROWS_AT_ONCE)):
            yield found


@contextmanager
def by_the_driver(connection: Connection) -> Iterator[Any]:
    """The driver's own connection, for what SQLAlchemy has no call for.

    A request to end in the middle gives the connection up, as one does in SQLAlchemy's own calls: the statement may be
    under way still, and undoing it would fail in the request's place.
    """
    driver: Any = connection.connection.driver_connection
    try:
        yield driver
    except Exception:
        raise
    except BaseException:
        connection.invalidate()
        raise


def _as_elsewhere(connection: Connection, text: str, work: Callable[[], Found]) -> Found:
    """The driver's errors as those that SQLAlchemy makes of them: whoever catches one catches the other."""
    driver: Any = connection.connection.driver_connection
    try:
        with by_the_driver(connection):
            return work()
    except psycopg.Error as error:
        raised: Exception = DBAPIError.instance(text, {}, error, psycopg.Error, connection_invalidated=driver.closed)
        raise raised from error


def sqlstate(error: DBAPIError) -> str | None:
    """The server's code for the error; None when it is not the server's."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state
