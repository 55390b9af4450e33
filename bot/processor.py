"""Works stored deliveries off in the background, those about one issue or pull request in the order of their arrival.

Only ids are kept in memory; the bodies stay in the inbox until their turn comes. What a process did not finish
is found again: at its own next start, or by another server when it does not live any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog

from bot.inbox import Delivery, Inbox
from bot.logs import correlated

log = structlog.get_logger(__name__)

Handle = Callable[[Delivery], Awaitable[None]]
#: Which of some servers do not live any more.
Gone = Callable[[Collection[str]], Awaitable[set[str]]]

#: Seconds before a delivery that could not be dealt with is tried again; after the last one it is given up. Together
#: some three hours: a longer outage of GitHub than any that this is meant to outlast quietly.
RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3600.0)
#: Seconds before another try of one whose failure could not be written down: that is the database's, and not its own.
#: No try is counted then, so it is neither given up while the database is away nor put off when it is back.
UNWRITTEN_DELAY = 10.0
AT_ONCE = 16  # deliveries dealt with at the same time
HANDLE_LIMIT = 300.0  # seconds for one try
DRAIN_TIMEOUT = 20.0  # seconds for those in hand when the server stops
KNOWN_LIMIT = 50_000  # ids in memory; the rest waits in the inbox until half of them are gone
SWEEP = 20.0  # seconds between looks for deliveries that nobody works off


async def all_of_them(names: Collection[str]) -> set[str]:
    """For a server that is alone with its database: whoever else left something there is gone."""
    return set(names)


class Processor:
    """Gives each stored delivery to ``handle`` until that returns, or every try has failed."""

    def __init__(
        self,
        inbox: Inbox,
        handle: Handle,
        *,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        unwritten_delay: float = UNWRITTEN_DELAY,
        at_once: int = AT_ONCE,
        known_limit: int = KNOWN_LIMIT,
        handle_limit: float = HANDLE_LIMIT,
        drain_timeout: float = DRAIN_TIMEOUT,
        sweep: float = SWEEP,
        gone: Gone = all_of_them,
    ) -> None:
        """``retry_delays``: one more try than it has seconds; ``gone``: which other servers do not live any more.

        The rest as the constants of this module.
        """
        self._inbox = inbox
        self._handle = handle
        self._delays = tuple(retry_delays)
        self._unwritten_delay = unwritten_delay
        self._at_once = at_once
        self._known_limit = known_limit
        self._handle_limit = handle_limit
        self._drain_timeout = drain_timeout
        self._sweep = sweep
        self._gone = gone
        self._queue: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()  # ids with their subjects
        self._in_turn: dict[str, deque[str]] = {}  # subject in hand -> ids that wait until that is over
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

    def take(self, delivery_id: str, subject: str | None = None) -> None:
        """Deal with a delivery that was just stored, after those about the same ``subject`` that were taken before."""
        if self._stopping or delivery_id in self._known:
            return
        if len(self._known) >= self._known_limit:
            self._behind = True
            return
        self._known.add(delivery_id)
        self._line_up(delivery_id, subject)

    async def close(self) -> None:
        """Finish what is in hand, within a limit; everything else stays in the inbox."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)
        for _ in self._hands:
            self._queue.put_nowait(("", None))  # so that the idle ones look up
        if self._hands:
            _, late = await asyncio.wait(self._hands, timeout=self._drain_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._hands, return_exceptions=True)
            if late:
                log.warning("deliveries left for the next start", count=len(late))

    async def _work(self) -> None:
        while True:
            delivery_id, subject = await self._queue.get()
            if self._stopping:
                return
            try:
                with correlated(delivery_id):
                    await self._deal_with(delivery_id, subject)
            finally:
                self._next_of(subject)

    def _line_up(self, delivery_id: str, subject: str | None) -> None:
        if subject is not None:
            if subject in self._in_turn:
                self._in_turn[subject].append(delivery_id)
                return
            self._in_turn[subject] = deque()
        self._queue.put_nowait((delivery_id, subject))

    def _next_of(self, subject: str | None) -> None:
        """Let the next delivery about ``subject`` have its turn, also after a failure: that comes again later."""
        if subject is None:
            return
        if self._in_turn[subject]:
            self._queue.put_nowait((self._in_turn[subject].popleft(), subject))
        else:
            del self._in_turn[subject]

    async def _deal_with(self, delivery_id: str, subject: str | None) -> None:
        delivery: Delivery | None = None
        try:
            delivery = await self._inbox.get(delivery_id)
            if delivery is not None:  # else another server has dealt with it
                async with asyncio.timeout(self._handle_limit):
                    await self._handle(delivery)
                await self._inbox.done(delivery_id)
        except Exception as error:  # one delivery's failure must not stop the others
            await self._after_failure(delivery_id, subject, delivery, error)
        else:
            self._forget(delivery_id)

    async def _after_failure(
        self, delivery_id: str, subject: str | None, delivery: Delivery | None, error: Exception
    ) -> None:
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
            delay = self._unwritten_delay
        if not self._stopping:
            loop = asyncio.get_running_loop()
            self._timers[delivery_id] = loop.call_later(delay, self._again, delivery_id, subject)

    def _again(self, delivery_id: str, subject: str | None) -> None:
        self._timers.pop(delivery_id, None)
        self._line_up(delivery_id, subject)

    def _forget(self, delivery_id: str) -> None:
        self._known.discard(delivery_id)
        if self._behind and len(self._known) <= self._known_limit // 2:
            self._room.set()

    async def _feed(self) -> None:
        """Find what is stored and not known here: our own at start, what nobody works off always."""
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
        own, self._behind = self._behind, False
        servers = await self._inbox.servers()
        gone = await self._gone(servers - {self._inbox.server})
        live = servers - gone
        but_of = live - {self._inbox.server} if own else live | {self._inbox.server}
        after, found = None, 0
        while page := await self._inbox.pending(after=after, but_of=but_of):
            left = [one for one in page if one.server is None or one.server in gone]
            claimed = await self._inbox.claim(left) if left else set()
            for one in page:
                if one.id in claimed or one.server == self._inbox.server:
                    found += one.id not in self._known
                    self.take(one.id, one.subject)
            if self._behind:
                break
            after = (page[-1].received_at, page[-1].id)
        if found:
            log.info("taking up stored deliveries", count=found, of_other_servers=len(gone))
