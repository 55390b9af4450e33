"""Works stored deliveries off in the background, oldest first as far as possible.

Only ids are kept in memory; the bodies stay in the inbox until their turn comes. What a process did not finish
is found again: at its own next start, or by another server that finds it lying there for too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from bot.inbox import Delivery, Inbox
from bot.logs import correlated

log = structlog.get_logger(__name__)

Handle = Callable[[Delivery], Awaitable[None]]

#: Seconds before a delivery that could not be dealt with is tried again; after the last one it is given up. Together
#: some three hours: a longer outage of GitHub than any that this is meant to outlast quietly.
RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3600.0)
AT_ONCE = 16  # deliveries dealt with at the same time
HANDLE_LIMIT = 300.0  # seconds for one try
DRAIN_TIMEOUT = 20.0  # seconds for those in hand when the server stops
KNOWN_LIMIT = 50_000  # ids in memory; the rest waits in the inbox until half of them are gone
SWEEP = 60.0  # seconds between looks for abandoned deliveries
#: A delivery this old was left by a server that is gone: longer than all tries take together.
ABANDONED = timedelta(minutes=30)


class Processor:
    """Gives each stored delivery to ``handle`` until that returns, or every try has failed."""

    def __init__(
        self,
        inbox: Inbox,
        handle: Handle,
        *,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        at_once: int = AT_ONCE,
        known_limit: int = KNOWN_LIMIT,
        handle_limit: float = HANDLE_LIMIT,
        drain_timeout: float = DRAIN_TIMEOUT,
        sweep: float = SWEEP,
        abandoned: timedelta = ABANDONED,
    ) -> None:
        """``retry_delays``: one more try than it has seconds; the rest as the constants of this module."""
        self._inbox = inbox
        self._handle = handle
        self._delays = tuple(retry_delays)
        self._at_once = at_once
        self._known_limit = known_limit
        self._handle_limit = handle_limit
        self._drain_timeout = drain_timeout
        self._sweep = sweep
        self._abandoned = abandoned
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._known: set[str] = set()  # queued, in hand, or waiting for the next try
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._behind = True  # the inbox may hold deliveries that are not known here
        self._room = asyncio.Event()
        self._stopping = False
        self._hands: list[asyncio.Task[None]] = []
        self._feeder: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with what a process before this one stored and did not finish."""
        self._hands = [
            asyncio.create_task(self._work(), name=f"deliveries {number}") for number in range(self._at_once)
        ]
        self._feeder = asyncio.create_task(self._feed(), name="inbox feeder")

    def take(self, delivery_id: str) -> None:
        """Deal with a delivery that was just stored."""
        if self._stopping or delivery_id in self._known:
            return
        if len(self._known) >= self._known_limit:
            self._behind = True
            return
        self._known.add(delivery_id)
        self._queue.put_nowait(delivery_id)

    async def close(self) -> None:
        """Finish what is in hand, within a limit; everything else stays in the inbox."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)
        for _ in self._hands:
            self._queue.put_nowait("")  # so that the idle ones look up
        if self._hands:
            _, late = await asyncio.wait(self._hands, timeout=self._drain_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._hands, return_exceptions=True)
            if late:
                log.warning("deliveries left for the next start", count=len(late))

    async def _work(self) -> None:
        while True:
            delivery_id = await self._queue.get()
            if self._stopping:
                return
            with correlated(delivery_id):
                await self._deal_with(delivery_id)

    async def _deal_with(self, delivery_id: str) -> None:
        delivery: Delivery | None = None
        try:
            delivery = await self._inbox.get(delivery_id)
            if delivery is not None:  # else another server has dealt with it
                async with asyncio.timeout(self._handle_limit):
                    await self._handle(delivery)
                await self._inbox.done(delivery_id)
        except Exception as error:  # one delivery's failure must not stop the others
            await self._after_failure(delivery_id, delivery, error)
        else:
            self._forget(delivery_id)

    async def _after_failure(self, delivery_id: str, delivery: Delivery | None, error: Exception) -> None:
        # when the inbox itself does not answer, no try is counted
        tries = 0 if delivery is None else delivery.tries + 1
        final = tries > len(self._delays)
        delay = self._delays[max(tries, 1) - 1] if self._delays and not final else 0.0
        tell = log.error if final else log.warning
        tell(
            "delivery given up" if final else "delivery failed, will be tried again",
            event_name=delivery and delivery.event,
            tries=tries,
            again_in=None if final else delay,
            exc_info=error,
        )
        words = f"{type(error).__name__}: {error}"[:2000]
        try:
            if final:
                await self._inbox.failed(delivery_id, words)
                self._forget(delivery_id)
                return
            if delivery is not None:
                await self._inbox.tried(delivery_id, words)
        except Exception:
            log.error("the failure of a delivery could not be written down", exc_info=True)
            delay = max(self._delays, default=1.0)
        if not self._stopping:
            self._timers[delivery_id] = asyncio.get_running_loop().call_later(delay, self._again, delivery_id)

    def _again(self, delivery_id: str) -> None:
        self._timers.pop(delivery_id, None)
        self._queue.put_nowait(delivery_id)

    def _forget(self, delivery_id: str) -> None:
        self._known.discard(delivery_id)
        if self._behind and len(self._known) <= self._known_limit // 2:
            self._room.set()

    async def _feed(self) -> None:
        """Find what is stored and not known here: all of it at start, abandoned deliveries later."""
        while True:
            self._room.clear()
            try:
                await self._load()
            except Exception:  # tried again with the next look
                self._behind = True
                log.error("the inbox could not be read", exc_info=True)
            try:
                async with asyncio.timeout(self._sweep):
                    await self._room.wait()
            except TimeoutError:
                pass

    async def _load(self) -> None:
        everything, self._behind = self._behind, False
        before = None if everything else datetime.now(UTC) - self._abandoned
        after, found = None, 0
        while page := await self._inbox.pending(after=after, before=before):
            for _, delivery_id in page:
                found += delivery_id not in self._known
                self.take(delivery_id)
            if self._behind:
                break
            after = page[-1]
        if found:
            log.info("taking up stored deliveries", count=found)
