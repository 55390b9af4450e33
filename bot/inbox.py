"""The inbox: what GitHub delivered, on disk before it is answered, until it was dealt with.

Deliveries that arrive together are written in one transaction (group commit): one ``fsync`` serves them all.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.errors import InfrastructureError
from bot.schema import deliveries

log = structlog.get_logger(__name__)

MAX_BATCH = 200  # deliveries in one transaction
MAX_WAITING = 2000  # deliveries that may wait for a transaction; more are turned away


class State(enum.StrEnum):
    """Where a delivery is."""

    received = "received"
    done = "done"
    failed = "failed"


class Stored(enum.Enum):
    """What became of a delivery that was put in."""

    new = "new"
    duplicate = "duplicate"


class InboxFull(InfrastructureError):
    """More deliveries wait than the database writes; GitHub is told to come again."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One webhook delivery. ``body`` is the raw JSON, deflated (zlib)."""

    id: str
    event: str
    action: str | None
    installation_id: int | None
    body: bytes
    received_at: datetime
    tries: int = 0


class Inbox:
    """The table of deliveries. Open it with ``async with``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: list[tuple[Delivery, asyncio.Future[Stored]]] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(deliveries)
        # a delivery that failed before comes back as new: a redelivery is the way to try it again
        self._insert = insert.on_conflict_do_update(
            index_elements=["id"],
            set_={"state": str(State.received), "error": None, "tries": 0},
            where=deliveries.c.state == str(State.failed),
        ).returning(deliveries.c.id)

    async def put(self, delivery: Delivery) -> Stored:
        """Write it down; returns when it is on disk.

        Raises InboxFull, or InfrastructureError when the database refuses: then nothing was kept.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise InboxFull("Too many deliveries wait to be written.", "They can be redelivered.")
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="inbox")
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append((delivery, future))
        self._wake.set()
        return await future

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not self._waiting:
                self._wake.clear()
            try:
                new = await self._commit([delivery for delivery, _ in batch])
            except (SQLAlchemyError, OSError) as error:
                log.error("deliveries not stored", count=len(batch), error=str(error).split("\n")[0])
                for _, future in batch:
                    if not future.done():
                        future.set_exception(
                            InfrastructureError("The delivery could not be stored.", "Redeliver it later.")
                        )
                continue
            for delivery, future in batch:
                if not future.done():
                    # the first of two equal ids in one batch is the new one
                    future.set_result(Stored.new if delivery.id in new else Stored.duplicate)
                new.discard(delivery.id)

    async def _commit(self, batch: list[Delivery]) -> set[str]:
        unique = {delivery.id: delivery for delivery in reversed(batch)}
        rows = [
            {
                "id": delivery.id,
                "event": delivery.event,
                "action": delivery.action,
                "installation_id": delivery.installation_id,
                "received_at": delivery.received_at,
                "body": delivery.body,
                "state": str(State.received),
                "tries": 0,
            }
            for delivery in unique.values()
        ]
        async with self._engine.begin() as connection:
            return set((await connection.execute(self._insert, rows)).scalars())

    async def pending(self) -> list[Delivery]:
        """What was received and not dealt with, oldest first: to be replayed at start."""
        query = (
            select(deliveries)
            .where(deliveries.c.state == str(State.received))
            .order_by(deliveries.c.received_at, deliveries.c.id)
        )
        async with self._engine.connect() as connection:
            return [
                Delivery(
                    id=row.id,
                    event=row.event,
                    action=row.action,
                    installation_id=row.installation_id,
                    body=row.body,
                    received_at=row.received_at,
                    tries=row.tries,
                )
                for row in await connection.execute(query)
            ]

    async def done(self, delivery_id: str) -> None:
        """It was dealt with."""
        await self._set(delivery_id, State.done, None)

    async def failed(self, delivery_id: str, error: str) -> None:
        """It cannot be dealt with; only a redelivery tries it again."""
        await self._set(delivery_id, State.failed, error[:2000])

    async def tried(self, delivery_id: str, error: str) -> None:
        """One try failed; it stays received."""
        statement = (
            update(deliveries)
            .where(deliveries.c.id == bindparam("b_id"))
            .values(tries=deliveries.c.tries + 1, error=bindparam("b_error"))
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement, {"b_id": delivery_id, "b_error": error[:2000]})

    async def _set(self, delivery_id: str, state: State, error: str | None) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(
                update(deliveries)
                .where(deliveries.c.id == delivery_id)
                .values(state=str(state), error=error, finished_at=datetime.now(UTC))
            )

    async def prune(self, before: datetime) -> int:
        """Forget what was dealt with before ``before``; returns how many."""
        async with self._engine.begin() as connection:
            done = await connection.execute(
                delete(deliveries).where(
                    deliveries.c.state != str(State.received), deliveries.c.received_at < before
                )
            )
        return done.rowcount

    async def aclose(self) -> None:
        """Stop writing; what waits is refused."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(InfrastructureError("The server is stopping.", "Redeliver it later."))
        self._waiting.clear()
