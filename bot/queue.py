"""RQ as the dispatcher: a Redis job carries one id, as JSON, to the worker that has a free slot.

SQL is the truth. Whatever Redis forgets is enqueued again from there, so an id may come twice: claiming it is
a compare-and-set, and the second one is told no.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from bot.errors import ConfigurationError, InfrastructureError

QUEUE_NAME = "conductor"
#: What RQ imports and calls on the worker host, with the job's id.
ENTRY = "runners.worker.take"
REDIS_TIMEOUT = 5  # seconds for one command


def connect(url: str, *, blocking_for: float = 0) -> Redis:
    """A Redis client with time limits and a few retries. ``blocking_for``: how long its commands may block."""
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=REDIS_TIMEOUT,
            socket_timeout=REDIS_TIMEOUT + blocking_for,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), 3),
            health_check_interval=15,
        )
    except ValueError as error:
        raise ConfigurationError(
            "REDIS_URL is not a Redis URL.", "For example redis://host:6379/0."
        ) from error


class Dispatcher:
    """Puts job ids where the worker hosts find them."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._queue = Queue(QUEUE_NAME, connection=self._redis, serializer=JSONSerializer)

    async def enqueue(self, job_id: str) -> None:
        """Offer a queued job to the worker hosts. Offering it again while it waits changes nothing.

        Raises InfrastructureError when Redis does not take it; the job is safe in SQL all the same, and
        housekeeping offers it again.
        """
        try:
            await asyncio.to_thread(self._enqueue, job_id)
        except RedisError as error:
            raise _unreachable(error) from error

    def _enqueue(self, job_id: str) -> None:
        # RQ's own `unique` asks for the job's hash, which a killed worker leaves behind: ask the list itself
        if self._redis.lpos(self._queue.key, job_id) is None:
            self._queue.enqueue(ENTRY, job_id, job_id=job_id, result_ttl=0, failure_ttl=60, job_timeout=60)

    @asynccontextmanager
    async def lock(self, name: str, seconds: int) -> AsyncIterator[bool]:
        """Hold the lock ``name`` while the block runs, at most ``seconds``; False when another holds it.

        Raises InfrastructureError when Redis does not answer.
        """
        lock = self._redis.lock(f"conductor:lock:{name}", timeout=seconds, thread_local=False)
        try:
            mine = await asyncio.to_thread(lock.acquire, blocking=False)
        except RedisError as error:
            raise _unreachable(error) from error
        try:
            yield mine
        finally:
            if mine:
                with suppress(RedisError):  # it ends by itself
                    await asyncio.to_thread(lock.release)

    async def waiting(self) -> int:
        """How many ids wait in Redis."""
        try:
            return int(await asyncio.to_thread(lambda: self._queue.count))
        except RedisError as error:
            raise _unreachable(error) from error

    async def ping(self) -> None:
        """Raise InfrastructureError when Redis does not answer."""
        try:
            await asyncio.to_thread(self._redis.ping)
        except RedisError as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _unreachable(error: RedisError) -> InfrastructureError:
    return InfrastructureError(
        f"Redis does not answer: {error}.", "Check CONDUCTOR_REDIS_URL, and that the Redis server runs."
    )
