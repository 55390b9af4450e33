"""What is kept between the jobs of a thread: agents' sessions and work in progress. In SQL, so any host finds it."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.errors import ConductorError, InfrastructureError
from bot.schema import shelf, shelf_pieces

PIECE = 1 << 20  # bytes; each is a transaction of its own, so that others may write in between
STALE = timedelta(hours=1)  # pieces without an entry that are older than this are nobody's


class TooLarge(ConductorError):
    """The file is larger than what is kept."""


class Shelf:
    """Files by thread and name. What is kept again replaces what was there; a reader sees the one or the other."""

    def __init__(self, engine: AsyncEngine, *, max_bytes: int) -> None:
        self._engine = engine
        self._max_bytes = max_bytes

    async def keep(self, thread_id: str, name: str, source: Path) -> None:
        """Keep the file ``source``. Raises TooLarge, and InfrastructureError when it cannot be read."""
        try:
            size = (await asyncio.to_thread(source.stat)).st_size
            if size > self._max_bytes:
                raise TooLarge(
                    f"{name!r} has {size} bytes, and at most {self._max_bytes} are kept.",
                    "Raise SESSION_MAX_BYTES.",
                )
            edition, now, digest = uuid.uuid4().hex, datetime.now(UTC), hashlib.sha256()
            with source.open("rb") as file:
                number = 0
                while data := await asyncio.to_thread(file.read, PIECE):
                    digest.update(data)
                    packed = await asyncio.to_thread(zlib.compress, data, 1)
                    values = {"edition": edition, "number": number, "data": packed, "kept_at": now}
                    async with self._engine.begin() as connection:
                        await connection.execute(insert(shelf_pieces).values(values))
                    number += 1
        except OSError as error:
            raise InfrastructureError(
                f"{source.name} cannot be kept: {error}.", "Check the disk of DATA_DIR."
            ) from error
        mine = (shelf.c.thread_id == thread_id) & (shelf.c.name == name)
        async with self._engine.begin() as connection:
            before = (await connection.execute(select(shelf.c.edition).where(mine))).scalars().all()
            await connection.execute(delete(shelf).where(mine))
            await connection.execute(
                insert(shelf).values(
                    thread_id=thread_id,
                    name=name,
                    edition=edition,
                    size=size,
                    sha256=digest.hexdigest(),
                    kept_at=now,
                )
            )
            if before:
                await connection.execute(delete(shelf_pieces).where(shelf_pieces.c.edition.in_(before)))

    async def fetch(self, thread_id: str, name: str, to: Path) -> bool:
        """Write what is kept to ``to``, whole or not at all; False when nothing is. Raises InfrastructureError."""
        mine = (shelf.c.thread_id == thread_id) & (shelf.c.name == name)
        async with self._engine.connect() as connection:
            entry = (
                await connection.execute(select(shelf.c.edition, shelf.c.sha256).where(mine))
            ).one_or_none()
        if entry is None:
            return False
        partial, digest = to.with_name(f".{to.name}.partial"), hashlib.sha256()
        try:
            with partial.open("wb") as file:
                partial.chmod(0o600)
                number = 0
                while (data := await self._piece(entry.edition, number)) is not None:
                    digest.update(data)
                    await asyncio.to_thread(file.write, data)
                    number += 1
            if digest.hexdigest() != entry.sha256:
                return False  # replaced or removed while it was read: it is not there any more
            partial.replace(to)
        except OSError as error:
            raise InfrastructureError(
                f"{to} cannot be written: {error}.", "Check the disk of DATA_DIR."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return True

    async def has(self, thread_id: str, name: str) -> bool:
        """Whether the file is kept."""
        query = select(shelf.c.edition).where(shelf.c.thread_id == thread_id, shelf.c.name == name)
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).one_or_none() is not None

    async def remove(self, thread_id: str, name: str) -> None:
        """Forget one file; nothing when it is not there."""
        await self._remove((shelf.c.thread_id == thread_id) & (shelf.c.name == name))

    async def expire(self, older_than: timedelta) -> None:
        """Forget what was kept longer ago than ``older_than``, and what a killed writer left."""
        now = datetime.now(UTC)
        await self._remove(shelf.c.kept_at < now - older_than)
        async with self._engine.begin() as connection:
            orphan = shelf_pieces.c.edition.not_in(select(shelf.c.edition))
            await connection.execute(delete(shelf_pieces).where(shelf_pieces.c.kept_at < now - STALE, orphan))

    async def _remove(self, where: ColumnElement[bool]) -> None:
        async with self._engine.begin() as connection:
            gone = (await connection.execute(select(shelf.c.edition).where(where))).scalars().all()
            for edition in gone:
                await connection.execute(delete(shelf).where(shelf.c.edition == edition))
                await connection.execute(delete(shelf_pieces).where(shelf_pieces.c.edition == edition))

    async def _piece(self, edition: str, number: int) -> bytes | None:
        where = (shelf_pieces.c.edition == edition) & (shelf_pieces.c.number == number)
        async with self._engine.connect() as connection:
            data = (await connection.execute(select(shelf_pieces.c.data).where(where))).scalar_one_or_none()
        return None if data is None else await asyncio.to_thread(zlib.decompress, data)
