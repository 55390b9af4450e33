"""The RQ side of a worker host: is woken through Redis when a slot is free, and lets the supervisor take a job.

The RQ worker runs in a thread of its own and never runs an agent: a job of its own is over as soon as the attempt was
claimed. It does not fork and handles no signals.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty

from bot.queue import ENTRY, connect, queue_for
from runners.supervisor import Slots, Supervisor

log = structlog.get_logger(__name__)

WORKER_TTL = 60  # seconds without a heartbeat after which RQ forgets a worker
LOOK_INTERVAL = 1  # seconds between looks at a request to stop; RQ wants whole ones
JOIN_TIMEOUT = 10.0  # seconds
CLAIM_TIMEOUT = 50.0  # seconds; less than the RQ job's own limit
RECONNECT_DELAYS = (0.5, 1.0, 2.0, 5.0)  # seconds, the last one again and again

_bound = threading.local()


def take(job_id: str) -> bool:
    """What RQ calls (``bot.queue.ENTRY``): take a job, for the host whose thread this is.

    That is the best one that may start, and not always the one whose offer woke us.
    """
    host: QueueThread | None = getattr(_bound, "host", None)
    if host is None:
        raise RuntimeError("conductor jobs are taken by `conductor worker`, not by `rq worker`")
    return host.wake(str(job_id))


class Tick(RQJob):
    """An RQ job that can be nothing but a wake-up.

    An RQ job says itself, in Redis, which function is imported and called, and which others and which URLs when it has
    ended. Whoever can write to Redis would so choose what runs on this host.
    """

    @property
    def func(self) -> Callable[[str], bool]:
        """`take`. Raises ValueError for a job that wants anything else."""
        if self.func_name != ENTRY:
            log.warning("a job in Redis is not ours", job=self.id)
            raise ValueError(f"only {ENTRY} is called here")
        return take

    def restore(self, raw_data: Any) -> None:
        """Read what Redis has, without what RQ would call at its end."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []


class SlotWorker(SimpleWorker):
    """An RQ worker that asks Redis for work only while it holds a free slot."""

    job_class = Tick
    death_penalty_class = TimerDeathPenalty  # SIGALRM works in the main thread only
    slots: Slots
    taken: bool

    def _install_signal_handlers(self) -> None:
        """Signals belong to the process, not to this thread."""

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[RQJob, Queue] | None:
        """Wait for a slot first: what this host cannot start stays in Redis, for another one."""
        del max_idle_time
        while not self._stop_requested:
            if not self.slots.acquire(LOOK_INTERVAL):
                self.heartbeat()
                continue
            result = None
            try:
                # RQ itself looks for a request to stop between jobs only: come back soon
                result = super().dequeue_job_and_maintain_ttl(timeout, LOOK_INTERVAL)
            finally:
                if result is None:
                    self.slots.release()
            if result is not None:
                return result
        return None

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        """Run `take`; the slot goes with the attempt, or back."""
        self.taken = False
        try:
            super().execute_job(job, queue)
        finally:
            if not self.taken:
                self.slots.release()

    def request_shutdown(self) -> None:
        """Stop after the current round."""
        self._stop_requested = True


class QueueThread:
    """Keeps an RQ worker going in a thread, also across outages of Redis."""

    def __init__(self, url: str, supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
        self._url = url
        self._supervisor = supervisor
        self._loop = loop
        self._stopping = threading.Event()
        self._worker: SlotWorker | None = None
        self._thread = threading.Thread(target=self._run, name="rq", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    async def stop(self) -> None:
        """Take no more work; returns when the thread has ended (some seconds)."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.request_shutdown()
        await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT)

    def wake(self, job_id: str) -> bool:
        """Called in the thread: let the supervisor take a job on its loop."""
        log.debug("woken", by=job_id)
        future = asyncio.run_coroutine_threadsafe(self._supervisor.take_next(), self._loop)
        taken = future.result(CLAIM_TIMEOUT)
        if self._worker is not None:
            self._worker.taken = taken
        return taken

    def _run(self) -> None:
        _bound.host = self
        failures = 0
        while not self._stopping.is_set():
            connection = connect(self._url, blocking_for=LOOK_INTERVAL)
            try:
                self._worker = self._new_worker(connection)
                self._worker.slots = self._supervisor.slots
                if self._stopping.is_set():
                    return
                self._worker.work(logging_level="WARNING")
                failures = 0
            except RedisError as error:
                delay = RECONNECT_DELAYS[min(failures, len(RECONNECT_DELAYS) - 1)]
                log.warning("Redis does not answer", error=str(error), again_in=delay)
                failures += 1
                self._stopping.wait(delay)
            finally:
                connection.close()

    def _new_worker(self, connection: Any) -> SlotWorker:
        queue = Queue(
            queue_for(self._supervisor.serves),
            connection=connection,
            serializer=JSONSerializer,
            job_class=Tick,
        )
        # one queue: only then RQ moves ids atomically (BLMOVE) instead of popping them
        return SlotWorker(
            [queue],
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL,
            log_job_description=False,
        )
