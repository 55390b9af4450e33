"""RQ as the dispatcher: a Redis job wakes the worker host that has a free slot.

SQL is the truth: it says which job a woken host takes. Whatever Redis forgets is offered again from there, and a
wake-up too many finds nothing to do.

There is one queue for each combination of capabilities that hosts have, because RQ takes from a single queue alone
with BLMOVE, which loses nothing when the worker is killed; so a wake-up is put into every queue whose hosts will do.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from bot.errors import ConfigurationError, InfrastructureError

QUEUE_PREFIX = "conductor"
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


def queue_for(serves: Iterable[str]) -> str:
    """The RQ queue of the hosts that have exactly the capabilities ``serves``."""
    return ":".join([QUEUE_PREFIX, *sorted(serves)])


class Dispatcher:
    """Wakes worker hosts."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)

    async def offer(self, job_ids: Sequence[str], serves: Iterable[str] = ()) -> None:
        """Wake hosts that have exactly the capabilities ``serves``: one for each job, in this order.

        Offering a job again while its wake-up waits changes nothing. Raises InfrastructureError when Redis does not
        take it; the jobs are safe in SQL all the same, and housekeeping offers them again.
        """
        if job_ids:
            try:
                await asyncio.to_thread(self._offer, job_ids, queue_for(serves))
            except RedisError as error:
                raise _unreachable(error) from error

    def _offer(self, job_ids: Sequence[str], name: str) -> None:
        queue = Queue(name, connection=self._redis, serializer=JSONSerializer)
        # RQ's own `unique` asks for the job's hash, which a killed worker leaves behind: ask the list itself
        waiting = {tick.rpartition("-")[0] for tick in queue.job_ids}
        queue.enqueue_many(
            [
                Queue.prepare_data(
                    ENTRY,
                    (job_id,),
                    # never the same twice: RQ forgets a job by its id after it ran, maybe while it waits again
                    job_id=f"{job_id}-{uuid.uuid4().hex[:12]}",
                    result_ttl=0,
                    failure_ttl=60,
                    timeout=60,
                )
                for job_id in job_ids
                if job_id not in waiting
            ]
        )

    async def waiting(self, serves: Iterable[str] = ()) -> int:
        """How many wake-ups wait for hosts that have exactly the capabilities ``serves``."""
        queue = Queue(queue_for(serves), connection=self._redis, serializer=JSONSerializer)
        try:
            return int(await asyncio.to_thread(lambda: queue.count))
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
