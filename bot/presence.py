"""Which servers live: each shows a sign of life in Redis, so that the others know whose work to take over."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress

import structlog
from redis.exceptions import RedisError

from bot.queue import connect

log = structlog.get_logger(__name__)

BEAT = 5.0  # seconds between signs of life
#: Seconds without one until a server is taken for gone. Redis may also just have lost what it knew.
SILENCE = 20


def server_name(host: str, listen: str) -> str:
    """The name of a new server process: ``HOST|ADDRESS|RANDOM``; the address is left out when any will do."""
    _, _, port = listen.rpartition(":")
    return f"{host[:80]}|{'' if port == '0' else listen[:60]}|{uuid.uuid4().hex[:12]}"


class Presence:
    """One server's sign of life, and its look at those of others."""

    def __init__(self, redis_url: str, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``name`` as by :func:`server_name`; ``clock`` counts how long others are silent."""
        self.name = name
        self._redis = connect(redis_url)
        self._clock = clock
        self._silent_since: dict[str, float] = {}

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show that this server lives while the block runs."""
        await self._beat()
        beating = asyncio.create_task(self._go_on(), name="sign of life")
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            with suppress(RedisError):  # it ends by itself
                await asyncio.to_thread(self._redis.delete, _key(self.name))
            self._redis.close()

    async def gone(self, names: Collection[str]) -> set[str]:
        """Those of the servers ``names`` that do not live any more.

        One that had our own address is gone, because we listen there. Any other must have been silent for
        :data:`SILENCE` while we looked. Nobody is gone while Redis does not answer.
        """
        others = [name for name in names if name != self.name]
        gone = {name for name in others if self._is_predecessor(name)}
        asked = [name for name in others if name not in gone]
        if not asked:
            return gone
        try:
            signs = await asyncio.to_thread(self._redis.mget, [_key(name) for name in asked])
        except RedisError as error:
            log.warning("which servers live is unknown", error=str(error))
            return gone
        now = self._clock()
        for name, sign in zip(asked, signs, strict=True):
            if sign is not None:
                self._silent_since.pop(name, None)
            elif now - self._silent_since.setdefault(name, now) >= SILENCE:
                gone.add(name)
        return gone

    def _is_predecessor(self, name: str) -> bool:
        mine, _, _ = self.name.rpartition("|")
        theirs, _, _ = name.rpartition("|")
        return theirs == mine and not mine.endswith("|")

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            await self._beat()

    async def _beat(self) -> None:
        try:
            await asyncio.to_thread(self._redis.set, _key(self.name), 1, ex=SILENCE)
        except RedisError as error:  # then nobody else can see it either; the next one may get through
            log.warning("no sign of life given", error=str(error))


def _key(name: str) -> str:
    return f"conductor:server:{name}"
