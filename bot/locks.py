"""Locks by name: what is looked at and then acted on is one task's at a time, on all servers of a database."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.database import create_engine
from bot.errors import InfrastructureError

log = structlog.get_logger(__name__)

PATIENCE = 120.0  # seconds that a lock of another server is waited for
_FIRST_LOOK, _LOOKS = 0.01, 0.25  # seconds between two looks at it: the first ones, and later


class Locks:
    """Locks of the servers on one PostgreSQL. One server owns a SQLite file: there they are the process's.

    In PostgreSQL they are advisory locks of a session, so that the locks of a server that dies are free
    (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS). The sessions are none of the
    engine's pool: who holds a lock needs others to do the work, and must not wait for those who wait for the lock.
    """

    def __init__(self, engine: AsyncEngine, *, patience: float = PATIENCE) -> None:
        """``patience``: seconds that a lock of another server is waited for."""
        self._patience = patience
        self._here: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        shared = engine.dialect.name == "postgresql"
        url = engine.url.render_as_string(hide_password=False)
        self._sessions = create_engine(url, pooled=False) if shared else None

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Have the lock ``name`` for the length of the block. It may not be entered again inside.

        Raises InfrastructureError when another server keeps it for too long, and SQLAlchemy's errors.
        """
        async with self._here.setdefault(name, asyncio.Lock()):
            if self._sessions is None:
                yield
                return
            async with _session(self._sessions) as session:
                await self._take(session, name)
                try:
                    yield
                finally:
                    await _give_back(session, name)

    @asynccontextmanager
    async def hold_if_free(self, name: str) -> AsyncIterator[bool]:
        """Have the lock ``name`` for the length of the block; False when somebody else has it, who is not waited for.

        Raises SQLAlchemy's errors.
        """
        here = self._here.setdefault(name, asyncio.Lock())
        if here.locked():
            yield False
            return
        async with here:
            if self._sessions is None:
                yield True
                return
            async with _session(self._sessions) as session:
                mine = await _taken(session, name)
                try:
                    yield mine
                finally:
                    if mine:
                        await _give_back(session, name)

    async def _take(self, session: AsyncConnection, name: str) -> None:
        give_up, pause = time.monotonic() + self._patience, _FIRST_LOOK
        # asked again and again: a statement that waits would run into the time limit of statements
        while not await _taken(session, name):
            if time.monotonic() >= give_up:
                raise InfrastructureError(
                    f"Another server has had the lock {name!r} for {self._patience:.0f} s.",
                    "It is tried again. If that does not help, restart the server whose log has stopped.",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOKS)


@asynccontextmanager
async def _session(sessions: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with sessions.connect() as session:
        # without a transaction, which would keep PostgreSQL from cleaning up as long as it is open
        yield await session.execution_options(isolation_level="AUTOCOMMIT")


async def _taken(session: AsyncConnection, name: str) -> bool:
    """Take the lock if it is free; whether it was."""
    return bool((await session.execute(select(func.pg_try_advisory_lock(_key(name))))).scalar_one())


async def _give_back(session: AsyncConnection, name: str) -> None:
    """The end of the session gives it back, too, but PostgreSQL may hear of that later."""
    try:
        await session.execute(select(func.pg_advisory_unlock(_key(name))))
    except (DBAPIError, OSError) as error:
        log.warning("the session of a lock broke off", lock=name, error=str(error).split("\n")[0])


def _key(name: str) -> int:
    """The 64 bits that stand for a name: nobody else's locks in this database are likely to have them."""
    digest = hashlib.sha256(f"conductor:{name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
