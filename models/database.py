"""PostgreSQL connections: an engine per process, transactions, and foreign errors translated. No queries."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import orjson
import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from models import failpoints
from models.breaker import Phase
from models.database_hosts import has_several_hosts, hosts_of, server_of
from models.database_watch import CONNECT_SECONDS, DatabaseWatch, Line
from models.errors import Conflict, Contention, DatabaseUnavailable
from models.failpoints import Step
from models.metrics import DATABASE_SECONDS
from models.tables import SCHEMA

_CONTENTION = frozenset({"40001", "40P01", "55P03", "57014", "25P03", "25P04"})
"""Serialization failure, deadlock, lock not available, and the time-outs that keep lanes from being held."""

_READ_ONLY = "25006"
"""The server takes no writes, as a standby before its promotion."""

LAST_ADMIN = "WB001"
"""Raised by the database's own rule that an admin is left."""


class Database:
    """The one way to PostgreSQL. Opens nothing until first used; make one per process, after the fork.

    While PostgreSQL is away whoever comes is told at once: see :mod:`models.database_watch`.

    Args:
        url: ``postgresql+psycopg://…``.
        application_name: Shown in ``pg_stat_activity``.
        pool_size: Connections kept open at most.
        statement_timeout: No statement may run longer.
        lock_timeout: No statement may wait longer for a lock.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "waybill",
        pool_size: int = 5,
        statement_timeout: timedelta = timedelta(seconds=30),
        lock_timeout: timedelta = timedelta(seconds=2),
    ) -> None:
        options = {
            "search_path": f"{SCHEMA},public",
            "timezone": "UTC",
            "statement_timeout": int(statement_timeout.total_seconds() * 1000),
            "lock_timeout": int(lock_timeout.total_seconds() * 1000),
            "idle_in_transaction_session_timeout": 60_000,
        }
        self.url = url
        engine_url, hosts = _for_engine(url)
        self._connect_arguments: dict[str, Any] = hosts | {
            "application_name": application_name,
            "connect_timeout": CONNECT_SECONDS,
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
        }
        self._engine: Engine = create_engine(
            engine_url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            json_deserializer=orjson.loads,
            connect_args=self._connect_arguments,
        )
        self._watch = DatabaseWatch(self._probe)
        event.listen(self._engine, "before_cursor_execute", _begin_timing)
        event.listen(self._engine, "after_cursor_execute", self._end_statement)
        event.listen(self._engine, "do_connect", self._connect)
        event.listen(self._engine, "connect", self._note_line)
        event.listen(self._engine, "checkin", _note_time)
        event.listen(self._engine, "handle_error", _leave_standby)
        event.listen(self._engine, "checkout", self._note_use)
        event.listen(self._engine, "checkout", self._ping_if_doubted)
        for ending in ("close", "close_detached", "detach"):
            event.listen(self._engine, ending, self._forget_line)

    @contextmanager
    def transaction(self, step: Step | None = None) -> Iterator[Connection]:
        """One READ COMMITTED transaction: committed on leaving, rolled back on any error.

        Args:
            step: What its commit is, as failpoints name it; None: it has none, as what only reads.

        Raises:
            DatabaseUnavailable: PostgreSQL cannot be reached, or the connection was lost. After a
                loss during COMMIT the outcome is unknown: look the ids up.
            Contention: Deadlock, lock or statement time-out.
        """
        self._watch.admit()
        with translated_errors(), self._engine.begin() as connection:
            yield connection
            if failpoints.IS_COMPILED_IN and not _is_at_stake(connection):
                step = None
            failpoints.before(step)
        failpoints.after(step)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection for single reads, each its own transaction (autocommit).

        Raises:
            DatabaseUnavailable: PostgreSQL cannot be reached, or the connection was lost.
        """
        self._watch.admit()
        with translated_errors(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def listen(self, channel: str) -> "Any":
        """A raw psycopg connection that listens on ``channel``; the caller closes it."""
        self._watch.admit()
        with translated_errors():
            pooled = self._engine.raw_connection()
            raw: Any = pooled.driver_connection
            try:
                raw.autocommit = True
                raw.execute(f"LISTEN {channel}")
            except psycopg.Error:
                pooled.invalidate()
                raise
            pooled.detach()
            return raw

    @property
    def phase(self) -> Phase:
        """Of this process's breaker: anything but closed while PostgreSQL is away."""
        return self._watch.phase

    @property
    def away_seconds(self) -> float | None:
        """Since when PostgreSQL takes no connections of this process; None where it does."""
        return self._watch.away_seconds

    @property
    def pool_use(self) -> tuple[int, int]:
        """Connections in use now, and how many the pool may hold."""
        pool = self._engine.pool
        return pool.checkedout(), pool.size()  # type: ignore[attr-defined]

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, for migrations and metrics."""
        return self._engine

    def close(self) -> None:
        """Close every pooled connection."""
        self._watch.close()
        self._engine.dispose()

    # ---- told to the watch ---------------------------------------------------------------

    def _connect(self, dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        self._watch.admit_new()
        began = time.monotonic()
        try:
            connection = dialect.connect(*arguments, **parameters)
        except psycopg.OperationalError as error:
            self._watch.refused(error, began)
            raise
        self._watch.opened(connection)
        return connection

    def _probe(self) -> str:
        arguments, parameters = self._engine.dialect.create_connect_args(self._engine.url)
        with psycopg.connect(*arguments, **{**parameters, **self._connect_arguments}) as connection:
            return server_of(connection)

    def _note_line(self, connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["line"] = self._watch.line_of(connection)

    def _note_use(self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        line: Line | None = record.info.get("line")
        if line is not None:
            self._watch.used(line)

    def _ping_if_doubted(self, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        """Ask a connection that has rested, also over an outage, whether it still lives.

        Where it does not, the pool replaces it, and the others when they are next used: they rest on the
        same server. SQLAlchemy's own ``pool_pre_ping`` asks at every use: a round trip more for each
        transaction, a sixth of the edge's throughput.
        """
        rested_since = record.info.get("rested_since", math.inf)
        if rested_since > max(time.monotonic() - _TRUSTED_SECONDS, self._watch.last_away):
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.rollback()
        except psycopg.Error as error:
            raise exc.InvalidatePoolError("the connection was lost while it rested") from error

    def _forget_line(self, connection: Any, _record: Any = None) -> None:
        self._watch.closed(connection)

    def _end_statement(
        self, _connection: Any, _cursor: Any, _statement: Any, _values: Any, context: Any, _many: Any
    ) -> None:
        DATABASE_SECONDS.observe(time.perf_counter() - context.began)
        self._watch.heard()


def _begin_timing(
    _connection: Any, _cursor: Any, _statement: Any, _values: Any, context: Any, _many: Any
) -> None:
    context.began = time.perf_counter()


def _note_time(connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["rested_since"] = time.monotonic()
    line: Line | None = record.info.get("line")
    if line is not None:
        line.used_since = None


_TRUSTED_SECONDS = 1.0


def _is_at_stake(connection: Connection) -> bool:
    """Whether the transaction has written anything: without, a crash at its commit would show nothing."""
    found = connection.execute(text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"))
    return bool(found.scalar_one())


def _for_engine(url: str) -> tuple[str, dict[str, Any]]:
    """The URL as SQLAlchemy takes it, and what goes to libpq past it: it reads no list of hosts."""
    return ("postgresql+psycopg://", hosts_of(url)) if has_several_hosts(url) else (url, {})


def _leave_standby(context: ExceptionContext) -> None:
    """Take a server that only reads, as a standby before its promotion does, for a lost connection."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn lost connections and contention into our own transient errors; let the rest pass."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnavailable("no database connection became free in time") from error
    except exc.DBAPIError as error:
        state = sqlstate(error)
        if state in _CONTENTION:
            raise Contention(f"database contention ({state})") from error
        if state == LAST_ADMIN:
            raise Conflict("The last admin cannot be deleted, disabled or given another role") from error
        if error.connection_invalidated or is_connection_loss(state, error):
            raise DatabaseUnavailable("the database is not reachable") from error
        raise


def array(values: Iterable[object]) -> str:
    """An array literal of ids or numbers, for ``CAST(:name AS uuid[])``.

    One string costs the driver a fraction of adapting each element of a list.
    """
    return "{" + ",".join(map(str, values)) + "}"


def sqlstate(error: exc.DBAPIError) -> str | None:
    """The five-character SQLSTATE of a database error; None where the connection never answered."""
    return getattr(error.orig, "sqlstate", None)


def is_transient(error: exc.DBAPIError) -> bool:
    """Whether it is contention or the loss of a connection: the same may succeed another time."""
    state = sqlstate(error)
    return state in _CONTENTION or error.connection_invalidated or is_connection_loss(state, error)


def is_connection_loss(state: str | None, error: exc.DBAPIError) -> bool:
    """Whether the server went away, is starting, stopping, full, or never answered."""
    if state is None:
        return isinstance(error, exc.OperationalError | exc.InterfaceError)
    return state.startswith(("08", "57P", "53"))
