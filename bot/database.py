"""The database engine: SQLite in WAL mode or PostgreSQL, and the migrations that run at start."""

from __future__ import annotations

import asyncio
from importlib import resources
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from bot.errors import ConfigurationError, InfrastructureError

CONNECT_TIMEOUT = 10  # seconds
COMMAND_TIMEOUT = 30  # seconds for one statement on PostgreSQL
BUSY_TIMEOUT = 30_000  # milliseconds that a SQLite writer waits for another process's transaction


def create_engine(url: str, *, pooled: bool = True) -> AsyncEngine:
    """An engine for ``url``: ``sqlite+aiosqlite:///…`` or ``postgresql+asyncpg://…``.

    ``pooled``: connections are kept for the next use; else each is closed when it is given back.

    SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "DATABASE_URL is not a database URL.", "For example postgresql+asyncpg://user:password@host/name."
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+asyncpg")
    elif parsed.drivername == "sqlite":
        parsed = parsed.set(drivername="sqlite+aiosqlite")
    sqlite = parsed.get_backend_name() == "sqlite"
    arguments: dict[str, Any] = {"timeout": CONNECT_TIMEOUT}
    if not sqlite:
        # a server that went away without a word would be waited for as long as TCP tries, a quarter of an hour
        arguments["command_timeout"] = COMMAND_TIMEOUT
    if sqlite and parsed.database and parsed.database != ":memory:":
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(error) from error
    try:
        if pooled:
            engine = create_async_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
        else:
            engine = create_async_engine(parsed, connect_args=arguments, poolclass=NullPool)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"The database driver of {parsed.drivername!r} is not installed.",
            "For PostgreSQL: pip install 'agent-conductor-app[postgresql]'.",
        ) from error
    if sqlite:
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def upgrade(engine: AsyncEngine) -> None:
    """Bring the schema to the newest revision. Safe to call from several processes at once."""
    try:
        async with asyncio.timeout(120), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # one migrating process at a time; the lock goes with the transaction
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7265617)")
            else:
                # takes the write lock before Alembic looks, so that two processes do not both migrate
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            await connection.run_sync(_upgrade)
    except (DBAPIError, OSError, TimeoutError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> InfrastructureError:
    return InfrastructureError(
        f"The database cannot be used: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
        "Check CONDUCTOR_DATABASE_URL and DATA_DIR, and that the server runs and lets this user in.",
    )


def _upgrade(connection: Connection) -> None:
    config = Config()
    with resources.as_file(resources.files("bot") / "migrations") as folder:
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def redacted_url(url: str) -> str:
    """``url`` without its password, for logs and messages."""
    return make_url(url).render_as_string(hide_password=True)
