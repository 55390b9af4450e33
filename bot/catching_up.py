"""Serves what the bot missed while it was away: at start and every few minutes.

GitHub's log of deliveries (:mod:`bot.delivery_log`) tells what was sent and never taken; what is older than the log
is found in the repositories (:mod:`bot.unanswered`). Both are put into the inbox under ids that do not change, so
that each is served once, however often this begins anew, and the oldest come first. What was taken and could not be
dealt with (:mod:`bot.processor` gave it up) waits in the inbox: it is tried again now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import orjson
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from bot.cursors import Cursors
from bot.delivery_log import Attempt, DeliveryLog, ForeignDelivery
from bot.errors import ConductorError
from bot.github_errors import RateLimited
from bot.inbox import Delivery, Inbox, Stored
from bot.locks import Locks
from bot.report import Reporter
from bot.unanswered import Found, Unanswered, Window

log = structlog.get_logger(__name__)

CURSOR = "delivery-log"
EVERY = timedelta(minutes=5)  # between two readings of the log
PAUSE = 5.0  # seconds between two looks at whether it is time
ROUND = 5.0  # seconds of work before another server may go on
AFTER_FAILURE = 60.0  # seconds
#: The log is read from a little before where the last reading began: deliveries come late and clocks differ.
OVERLAP = timedelta(minutes=10)
#: What happened so shortly before the log's beginning is in the log: its delivery takes a moment.
DELIVERED_WITHIN = timedelta(minutes=1)
#: What GitHub promises to keep: https://docs.github.com/en/webhooks/using-webhooks/handling-failed-webhook-deliveries
LOG_KEPT = timedelta(days=3)
#: A server reads the log that often for as long as it lives; much later than the last time it was not there.
STOPPED_WITHIN = timedelta(hours=1)
#: What is older is not served any more: by now nobody waits for it.
OLDEST = timedelta(days=30)
#: Entries of the log that one reading goes through, and deliveries that it takes up.
ATTEMPTS = 50_000
TAKEN = 2_000
KNOWN_AT_ONCE = 200
#: What was given up is tried once more when that is so long ago, until it is as old as what GitHub's log holds ...
GIVEN_UP_FOR = timedelta(hours=1)
#: ... and so many of them with one reading, so that what can never be dealt with does not crowd out the rest.
PUT_BACK = 200

Wanted = Mapping[str, frozenset[str]]


class _Position(BaseModel):
    """How far the log was read."""

    newest: datetime | None  # attempt that it held, by GitHub's clock
    looked: datetime  # by ours


class CatchingUp:
    """Reads the log, one server at a time. Everything it does is safe to do twice."""

    def __init__(
        self,
        *,
        delivery_log: DeliveryLog,
        unanswered: Unanswered,
        inbox: Inbox,
        cursors: Cursors,
        locks: Locks,
        reporter: Reporter,
        wanted: Wanted,
        take: Callable[[str, str | None], None],
        at_once: int = TAKEN,
        round_seconds: float = ROUND,
        after_failure: float = AFTER_FAILURE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``wanted``: actions of events that somebody handles; ``take`` works off what was stored.

        ``clock`` tells the time of day; the rest as the constants of this module.
        """
        self._log = delivery_log
        self._unanswered = unanswered
        self._inbox = inbox
        self._cursors = cursors
        self._locks = locks
        self._reporter = reporter
        self._wanted = wanted
        self._take = take
        self._at_once = at_once
        self._round = round_seconds
        self._after_failure = after_failure
        self._clock = clock
        self._started = False
        self._reading: AsyncGenerator[None, None] | None = None  # goes on where the round before ended
        self._more = False  # the search left something for the next reading
        self._not_before = 0.0

    async def run(self) -> None:
        """Look for ever."""
        try:
            while True:
                await self.once()
                await asyncio.sleep(PAUSE if self._reading is None else 0.1)
        finally:
            await self._drop()

    async def once(self) -> bool:
        """One round of it. False when there is nothing left to do for now, or somebody else is at it."""
        if time.monotonic() < self._not_before:
            return False
        try:
            # one server at a time: not for correctness, but to ask GitHub only once
            async with self._locks.hold_if_free("catching-up") as mine:
                if not mine:
                    await self._drop()
                    return False
                return await self._go_on()
        except (ConductorError, SQLAlchemyError, OSError) as error:
            wait = self._after_failure
            if isinstance(error, RateLimited):
                wait = max(wait, (error.until - datetime.now(UTC)).total_seconds())
            log.warning(
                "catching up failed, will be tried again", error=str(error).split("\n")[0], again_in=wait
            )
            await self._fail(wait)
        except Exception:  # a surprise in somebody's data must not be the end of it
            log.exception("catching up failed, will be tried again", again_in=self._after_failure)
            await self._fail(self._after_failure)
        return False

    async def _fail(self, wait: float) -> None:
        self._not_before = time.monotonic() + wait
        await self._drop()

    async def _go_on(self) -> bool:
        if self._reading is None:
            if not await self._is_time():
                return False
            self._reading = self._read()
        until = time.monotonic() + self._round
        async for _ in self._reading:
            if time.monotonic() >= until:
                return True
        self._reading = None
        self._started = True
        return False

    async def _is_time(self) -> bool:
        position = await self._cursors.get(CURSOR)
        return not self._started or position is None or self._clock() - position[1] >= EVERY

    async def _drop(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            await reading.aclose()

    async def _read(self) -> AsyncGenerator[None, None]:
        """All of it, in small steps; what a step stored stays, whatever becomes of the next."""
        began = self._clock()
        last = await self._last()
        floor = last.newest - OVERLAP if last and last.newest else None
        newest = last.newest if last else None
        missed: dict[str, Attempt] = {}
        received: set[str] = set()
        oldest, reached, seen = began, False, 0
        async with aclosing(self._log.attempts()) as attempts:
            async for attempt in attempts:
                if floor is not None and attempt.delivered_at < floor:
                    reached = True
                    break
                oldest = min(oldest, attempt.delivered_at)
                newest = max(newest or attempt.delivered_at, attempt.delivered_at)
                self._note(attempt, missed, received)
                seen += 1
                if seen == ATTEMPTS:
                    log.warning("the delivery log was not read to its end", entries=seen)
                    reached = True
                    break
                if seen % 100 == 0:
                    yield
        await self._put_back(began)  # now that GitHub answers
        if not reached and (last is None or began - last.looked > LOG_KEPT):
            # what the log still holds comes with its own ids
            until = min(oldest, began - LOG_KEPT) - DELIVERED_WITHIN
            window = Window(
                since=began - OLDEST if last is None else max(last.looked - OVERLAP, began - OLDEST),
                until=until,
                there_until=until if last is None else last.looked + STOPPED_WITHIN,
            )
            async with aclosing(self._search(window)) as steps:
                async for _ in steps:
                    yield
            if self._more:
                return  # the next reading goes on, because this one leaves no trace
        todo = await self._unknown(sorted(missed.values(), key=lambda one: (one.delivered_at, one.id)))
        if todo:
            log.info("deliveries were missed", count=len(todo), oldest=todo[0].delivered_at.isoformat())
        for attempt in todo[: self._at_once]:
            await self._take_up(attempt)
            yield
        if len(todo) > self._at_once:
            left = len(todo) - self._at_once
            log.warning("more deliveries were missed than are taken up at once", left=left)
            return
        await self._cursors.set(CURSOR, _Position(newest=newest, looked=began).model_dump_json())

    async def _put_back(self, now: datetime) -> None:
        """Try again what was given up: GitHub was away for longer than a delivery is tried, or we had a fault."""
        found = await self._inbox.put_back(
            came_after=now - LOG_KEPT, failed_before=now - GIVEN_UP_FOR, limit=PUT_BACK
        )
        for one in found:
            log.info("a delivery that was given up is tried again", delivery=one.id)
            self._take(one.id, one.subject)

    async def _last(self) -> _Position | None:
        found = await self._cursors.get(CURSOR)
        try:
            return None if found is None else _Position.model_validate_json(found[0])
        except ValidationError:
            log.error(
                "the position in the delivery log makes no sense; it is read anew", value=found and found[0]
            )
            return None

    def _note(self, attempt: Attempt, missed: dict[str, Attempt], received: set[str]) -> None:
        if attempt.received:
            received.add(attempt.guid)
            missed.pop(attempt.guid, None)
        elif attempt.guid not in received and (attempt.action or "") in self._wanted.get(attempt.event, ()):
            missed[attempt.guid] = (
                attempt  # in the end the first attempt: its time says what came before what
            )

    async def _unknown(self, attempts: list[Attempt]) -> list[Attempt]:
        """Those of which the inbox knows nothing: their answer was lost, or they came while the log was read."""
        unknown = []
        for start in range(0, len(attempts), KNOWN_AT_ONCE):
            some = attempts[start : start + KNOWN_AT_ONCE]
            known = await self._inbox.states([one.guid for one in some])
            unknown += [one for one in some if one.guid not in known]
        return unknown

    async def _take_up(self, attempt: Attempt) -> None:
        try:
            payload = await self._log.read(attempt)
        except ForeignDelivery as error:
            log.error("a missed delivery was left out", delivery=attempt.guid, reason=str(error))
            return
        if payload is None:
            return  # GitHub was asked to send it again
        if payload.get("action", "") not in self._wanted.get(attempt.event, ()):
            log.error("a missed delivery was left out", delivery=attempt.guid, reason="it is another action")
            return
        await self._store(Delivery.of(attempt.guid, attempt.event, payload, orjson.dumps(payload)))

    async def _search(self, window: Window) -> AsyncGenerator[None, None]:
        self._more = False
        if window.since >= window.until:
            return
        log.info(
            "searching for what was missed", since=window.since.isoformat(), until=window.until.isoformat()
        )
        taken = 0
        async with aclosing(self._unanswered.search(window)) as repositories:
            async for found in repositories:
                yield
                for one in found:
                    if taken == self._at_once:
                        log.warning("more was missed than is taken up at once", limit=taken)
                        self._more = True
                        return
                    await self._serve(one)
                    taken += 1
                    yield
        log.info("searched for what was missed", found=taken)

    async def _serve(self, found: Found) -> None:
        if found.doubt:
            await self._reporter.refuse(found.repo, found.number, found.trigger, [found.doubt])
        else:
            await self._store(Delivery.of(found.id, found.event, found.payload, orjson.dumps(found.payload)))

    async def _store(self, delivery: Delivery) -> None:
        if await self._inbox.put(delivery) is Stored.new:
            log.info("a missed delivery was taken up", delivery=delivery.id, event_name=delivery.event)
            self._take(delivery.id, delivery.subject)
