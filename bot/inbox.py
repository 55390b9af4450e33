"""The durable inbox: a delivery is on disk before GitHub gets its 202, and stays there until it was worked off.

Puts that come at the same time share a transaction: while one commit runs the next batch gathers, so that the
disk is asked once for many deliveries. A delivery is ``received`` until it is ``done`` or ``failed``; a
redelivery carries the same id (https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks),
is a duplicate of the first two, and takes up a failed one again. A failed one can also be put back as it is stored.

Each delivery belongs to the server that stored it, so that several on one database do not work off the same one.
What nobody works off any more is claimed by another.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from isal import isal_zlib
from sqlalchemy import Connection, Engine, Row, bindparam, delete, event, func, select, update
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.errors import ConfigurationError, InfrastructureError
from bot.schema import deliveries

COMMIT_LIMIT = 8.0  # seconds; GitHub waits for ten
BATCH = 128  # deliveries in one transaction
WAITING_LIMIT = 4096  # deliveries that wait for a commit
WAITING_BYTES = 64 * 2**20  # and what their deflated bodies may take
ACTION_LENGTH = 60  # of the column, which is for people; handlers read the payload
DEFLATE_AT_ONCE = 256 * 1024  # bytes; deflating more would hold up everything else


class State(enum.StrEnum):
    """Where a delivery is."""

    received = "received"  # on disk, not worked off yet
    done = "done"
    failed = "failed"  # given up; a redelivery or put_back() takes it up again


class Stored(enum.StrEnum):
    """What a put did."""

    new = "new"
    duplicate = "duplicate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One webhook delivery as GitHub sent it."""

    id: str  # X-GitHub-Delivery
    event: str  # X-GitHub-Event
    action: str | None
    installation_id: int | None
    received_at: datetime
    body: bytes  # the raw JSON
    tries: int = 0  # that failed so far
    subject: str | None = None  # the issue or pull request that it is about, see subject_of()

    @classmethod
    def of(cls, guid: str, event: str, payload: Mapping[str, Any], body: bytes) -> Delivery:
        """What came just now; ``payload`` is the parsed ``body``."""
        action, installation = payload.get("action"), payload.get("installation")
        number = installation.get("id") if isinstance(installation, dict) else None
        return cls(
            id=guid,
            event=event,
            action=action.replace("\0", "")[:ACTION_LENGTH] if isinstance(action, str) else None,
            installation_id=number if type(number) is int and 0 <= number < 2**63 else None,
            received_at=datetime.now(UTC),
            body=body,
            subject=subject_of(payload),
        )

    def payload(self) -> dict[str, Any]:
        """The parsed body. Raises ValueError when it is not a JSON object."""
        payload = orjson.loads(self.body)
        if not isinstance(payload, dict):
            raise ValueError("the payload is not a JSON object")
        return payload


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A stored delivery that waits to be worked off."""

    id: str
    received_at: datetime
    subject: str | None
    server: str | None  # whose it is


def subject_of(payload: Mapping[str, Any]) -> str | None:
    """``REPOSITORY_ID-NUMBER`` of the issue or pull request that a payload is about; None when it is about none.

    What happened to one thing is worked off in the order in which it happened.
    """
    thing, repository = payload.get("issue") or payload.get("pull_request"), payload.get("repository")
    if not isinstance(thing, dict) or not isinstance(repository, dict):
        return None
    number, repository_id = thing.get("number"), repository.get("id")
    if type(number) is not int or type(repository_id) is not int:
        return None
    subject = f"{repository_id}-{number}"
    return subject if len(subject) <= 60 else None


class InboxFull(InfrastructureError):
    """More deliveries wait for the disk than may: GitHub should try again later."""


class InboxUnavailable(InfrastructureError):
    """The database did not take the delivery."""


@dataclass(slots=True)
class _Put:
    row: dict[str, Any]
    size: int
    stored: asyncio.Future[Stored]


@dataclass(slots=True)
class _Change:
    """A new state of a stored delivery."""

    values: dict[str, Any]
    changed: asyncio.Future[None]


class Inbox:
    """Stores deliveries and what became of them. One per process; :meth:`aclose` it at the end."""

    def __init__(self, engine: AsyncEngine, *, server: str = "") -> None:
        """Use the database of ``engine``, whose schema is up to date.

        ``server`` is the name that this process stores deliveries under, unique among those that live.
        """
        self.server = server or uuid.uuid4().hex
        self._engine = engine
        self._puts: list[_Put] = []
        self._changes: list[_Change] = []
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inbox")
        # SQLite is called directly, in one thread, with one hop for a whole transaction: through the async
        # driver every statement is a hop of its own, and a batch costs twice as much.
        self._sqlite = _sqlite_engine(engine) if engine.dialect.name == "sqlite" else None

    async def put(self, delivery: Delivery) -> Stored:
        """Return when ``delivery`` is on disk, or was before.

        Raises InboxFull when too much waits already, InboxUnavailable when the commit failed.
        """
        if self._closed:
            raise InboxUnavailable("The server is shutting down.")
        if len(delivery.body) < DEFLATE_AT_ONCE:
            # here and not in the writer's thread: so it overlaps with the disk's work on the batch before
            body = isal_zlib.compress(delivery.body, 1)
        else:
            body = await asyncio.to_thread(isal_zlib.compress, delivery.body, 1)
        if len(self._puts) >= WAITING_LIMIT or self._waiting_bytes + len(body) > WAITING_BYTES:
            raise InboxFull("Too many deliveries wait for the database.", "Look at its disk and its load.")
        put = _Put(_row(delivery, body, self.server), len(body), asyncio.get_running_loop().create_future())
        self._puts.append(put)
        self._waiting_bytes += put.size
        self._wake()
        return await put.stored

    async def done(self, delivery_id: str) -> None:
        """It was worked off. Raises InboxUnavailable when that could not be written."""
        await self._change(delivery_id, State.done, error=None)

    async def failed(self, delivery_id: str, error: str) -> None:
        """It was given up. Raises InboxUnavailable when that could not be written."""
        await self._change(delivery_id, State.failed, error=error, tries=1)

    async def tried(self, delivery_id: str, error: str) -> None:
        """A try failed, another one will follow. Raises InboxUnavailable when that could not be written."""
        await self._change(delivery_id, State.received, error=error, tries=1)

    async def get(self, delivery_id: str) -> Delivery | None:
        """The delivery, if it still waits to be worked off, and by this server."""
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            query = select(deliveries).where(
                deliveries.c.id == delivery_id,
                deliveries.c.state == State.received,
                deliveries.c.server == self.server,
            )
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _delivery(row)

    async def pending(
        self,
        *,
        after: tuple[datetime, str] | None = None,
        but_of: Collection[str] = (),
        limit: int = 500,
    ) -> list[Waiting]:
        """Deliveries that wait to be worked off, by whatever server, oldest first.

        ``after``: arrival and id of the last one of the page before this. ``but_of``: servers to leave out.
        """
        where = [deliveries.c.state == State.received]
        if after is not None:
            arrived, seen = after
            where.append(
                (deliveries.c.received_at > arrived)
                | ((deliveries.c.received_at == arrived) & (deliveries.c.id > seen))
            )
        if but_of:
            where.append(deliveries.c.server.is_(None) | deliveries.c.server.not_in(but_of))
        query = (
            select(deliveries.c.id, deliveries.c.received_at, deliveries.c.subject, deliveries.c.server)
            .where(*where)
            .order_by(deliveries.c.received_at, deliveries.c.id)
            .limit(limit)
        )
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            return [
                Waiting(id=row.id, received_at=row.received_at, subject=row.subject, server=row.server)
                for row in await connection.execute(query)
            ]

    async def servers(self) -> set[str]:
        """The servers whose deliveries wait to be worked off."""
        query = (
            select(deliveries.c.server)
            .where(deliveries.c.state == State.received, deliveries.c.server.is_not(None))
            .distinct()
        )
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            return set((await connection.execute(query)).scalars())

    async def claim(self, waiting: Iterable[Waiting]) -> set[str]:
        """Make deliveries of other servers this one's; returns the ids of those that are now.

        Of several servers that claim the same one, one gets it.
        """
        claimed: set[str] = set()
        ids_of: dict[str | None, list[str]] = {}
        for one in waiting:
            ids_of.setdefault(one.server, []).append(one.id)
        whose = deliveries.c.server
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.begin() as connection:
            for server, ids in ids_of.items():
                statement = (
                    update(deliveries)
                    .where(
                        deliveries.c.id.in_(ids),
                        deliveries.c.state == State.received,
                        whose.is_(None) if server is None else whose == server,
                    )
                    .values(server=self.server)
                    .returning(deliveries.c.id)
                )
                claimed.update((await connection.execute(statement)).scalars())
        return claimed

    async def put_back(self, *, came_after: datetime, failed_before: datetime, limit: int) -> list[Waiting]:
        """Let failed deliveries wait again, as this server's; returns those that do, oldest first.

        Those that failed longest ago come first, at most ``limit``. Their tries stay counted, so that each is tried
        once before it is given up again. Of several servers that ask at once, one gets each.
        """
        table = deliveries.c
        these = (
            select(table.id)
            .where(
                table.state == State.failed,
                table.received_at > came_after,
                table.finished_at < failed_before,
            )
            .order_by(table.finished_at, table.id)
            .limit(limit)
        )
        statement = (
            update(deliveries)
            .where(table.id.in_(these), table.state == State.failed)
            .values(state=State.received, server=self.server, finished_at=None)
            .returning(table.id, table.received_at, table.subject)
        )
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.begin() as connection:
            rows = (await connection.execute(statement)).all()
        found = (
            Waiting(id=row.id, received_at=row.received_at, subject=row.subject, server=self.server)
            for row in rows
        )
        return sorted(found, key=lambda one: (one.received_at, one.id))

    async def about(self, subject: str, event: str, *, limit: int = 200) -> list[Delivery]:
        """The newest stored deliveries of ``event`` about ``subject``, whatever became of them."""
        query = (
            select(deliveries)
            .where(deliveries.c.subject == subject, deliveries.c.event == event)
            .order_by(deliveries.c.received_at.desc())
            .limit(limit)
        )
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            return [_delivery(row) for row in await connection.execute(query)]

    async def states(self, ids: Collection[str]) -> dict[str, State]:
        """What became of each delivery that is known, of at most a few hundred."""
        query = select(deliveries.c.id, deliveries.c.state).where(deliveries.c.id.in_(list(ids)))
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            return {row.id: State(row.state) for row in await connection.execute(query)}

    async def state(self, delivery_id: str) -> State | None:
        """What became of a delivery; None when it is unknown or was pruned."""
        async with asyncio.timeout(COMMIT_LIMIT), self._engine.connect() as connection:
            query = select(deliveries.c.state).where(deliveries.c.id == delivery_id)
            state = (await connection.execute(query)).scalar_one_or_none()
        return None if state is None else State(state)

    async def prune(self, before: datetime) -> int:
        """Forget what was worked off or given up before that moment; return how many.

        Keep more than GitHub's time for redeliveries (3 days, 7 on GHES), or one would be taken for new.
        """
        async with self._engine.begin() as connection:
            gone = await connection.execute(
                delete(deliveries).where(
                    deliveries.c.state != State.received, deliveries.c.finished_at < before
                )
            )
        return gone.rowcount

    async def aclose(self) -> None:
        """Write what waits, and let the database go. The engine stays its owner's."""
        self._closed = True
        while self._writer is not None:
            await asyncio.wait([self._writer])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._release)
        self._thread.shutdown()

    def _release(self) -> None:
        if self._sqlite is not None:
            self._sqlite.dispose()

    async def _change(self, delivery_id: str, state: State, *, error: str | None, tries: int = 0) -> None:
        if self._closed:
            raise InboxUnavailable("The server is shutting down.")
        values = {
            "key": delivery_id,
            "to": str(state),
            "why": error and error.replace("\0", ""),  # PostgreSQL's text holds none
            "more": tries,
            "at": None if state is State.received else datetime.now(UTC),
        }
        change = _Change(values, asyncio.get_running_loop().create_future())
        self._changes.append(change)
        self._wake()
        await change.changed

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="inbox writer")

    async def _write(self) -> None:
        """Commit what has gathered until nothing is left."""
        try:
            while self._puts or self._changes:
                await self._gather()
                puts, self._puts = self._puts[:BATCH], self._puts[BATCH:]
                changes, self._changes = self._changes, []
                self._waiting_bytes -= sum(put.size for put in puts)
                try:
                    await self._commit_and_answer(puts, changes)
                except Exception as error:  # whatever it was, those who wait must hear of it
                    _refuse(puts, changes, error)
        finally:
            self._writer = None

    async def _gather(self) -> None:
        """Wait while more comes: as long as each turn of the event loop brings another delivery."""
        seen = 0
        while seen < min(len(self._puts), BATCH):
            seen = len(self._puts)
            await asyncio.sleep(0)

    async def _commit_and_answer(self, puts: Sequence[_Put], changes: Sequence[_Change]) -> None:
        batch = list({put.row["id"]: put.row for put in reversed(puts)}.values())  # the first of equals
        updates = [change.values for change in changes]
        async with asyncio.timeout(COMMIT_LIMIT):
            if self._sqlite is not None:
                fresh = await asyncio.get_running_loop().run_in_executor(
                    self._thread, _commit_sqlite, self._sqlite, batch, updates
                )
            else:
                async with self._engine.begin() as connection:
                    fresh = await connection.run_sync(_commit_postgresql, batch, updates)
        for put in puts:
            first = put.row["id"] in fresh
            fresh.discard(put.row["id"])
            _answer(put.stored, Stored.new if first else Stored.duplicate)
        for change in changes:
            _answer(change.changed, None)


def _answer(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(puts: Sequence[_Put], changes: Sequence[_Change], error: Exception) -> None:
    first_line = next(iter(str(error).splitlines()), "")
    futures: list[asyncio.Future[Any]] = [put.stored for put in puts]
    futures += [change.changed for change in changes]
    for future in futures:
        if not future.done():
            refusal = InboxUnavailable(
                f"The database did not take the delivery: {type(error).__name__}: {first_line}",
                "Check that CONDUCTOR_DATABASE_URL is reachable and its disk has room; GitHub can redeliver.",
            )
            refusal.__cause__ = error
            future.set_exception(refusal)
            future.exception()  # whoever asked may be gone; that is no news


# --- one transaction, on a plain connection

#: One parameter, whatever the size of the batch: an expanding IN would be rendered anew every time.
_KNOWN = select(deliveries.c.id).where(
    deliveries.c.id.in_(select(func.json_each(bindparam("ids")).table_valued("value").c.value)),
    deliveries.c.state != State.failed,
)
_CHANGE = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("key"))
    .values(
        state=bindparam("to"),
        error=bindparam("why"),
        finished_at=bindparam("at"),
        tries=deliveries.c.tries + bindparam("more"),
    )
)


def _upsert(insert: Any) -> Any:
    """Insert, and make a failed delivery a received one again; leave all others alone."""
    statement = insert(deliveries)
    taken_up = {
        name: statement.excluded[name] for name in ("received_at", "body", "state", "tries", "server")
    }
    return statement.on_conflict_do_update(
        index_elements=[deliveries.c.id],
        set_={**taken_up, "error": None, "finished_at": None},
        where=deliveries.c.state == State.failed,
    )


_UPSERT_SQLITE = _upsert(sqlite.insert)
_UPSERT_POSTGRESQL = _upsert(postgresql.insert).returning(deliveries.c.id)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        event=row.event,
        action=row.action,
        installation_id=row.installation_id,
        received_at=row.received_at,
        body=isal_zlib.decompress(row.body),
        tries=row.tries,
        subject=row.subject,
    )


def _row(delivery: Delivery, body: bytes, server: str) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation_id,
        "received_at": delivery.received_at,
        "body": body,
        "state": str(State.received),
        "tries": 0,
        "server": server,
        "subject": delivery.subject,
    }


def _commit_sqlite(engine: Engine, rows: list[dict[str, Any]], updates: list[dict[str, Any]]) -> set[str]:
    with engine.connect() as connection:
        # the write lock first: what is read below is still true when it is written
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        fresh = {row["id"] for row in rows}
        if rows:
            # asked before, because RETURNING for many rows costs SQLAlchemy three times as much
            fresh -= set(connection.execute(_KNOWN, {"ids": orjson.dumps(list(fresh)).decode()}).scalars())
            connection.execute(_UPSERT_SQLITE, rows)
        if updates:
            connection.execute(_CHANGE, updates)
        connection.commit()
    return fresh


def _commit_postgresql(
    connection: Connection, rows: list[dict[str, Any]], updates: list[dict[str, Any]]
) -> set[str]:
    fresh = set(connection.execute(_UPSERT_POSTGRESQL, rows).scalars()) if rows else set()
    if updates:
        connection.execute(_CHANGE, updates)
    return fresh


def _sqlite_engine(engine: AsyncEngine) -> Engine:
    if engine.url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "The inbox needs a database file: memory is not durable.",
            "Set CONDUCTOR_DATABASE_URL or DATA_DIR.",
        )
    url = engine.url.set(drivername="sqlite+pysqlite")
    own = create_sync_engine(url, connect_args={"timeout": COMMIT_LIMIT - 2, "check_same_thread": False})
    event.listen(own, "connect", _prepare_sqlite)
    return own


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # the database file is in WAL mode already; without FULL a commit could be lost with the power
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
