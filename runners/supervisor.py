"""The attempts of this host: taken, carried out side by side, adopted after a restart, taken over when lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.claims import needs_of
from bot.errors import ConductorError, StaleAttempt
from bot.model import Attempt, AttemptState, FailureKind, Job, JobState
from bot.store import Store

log = structlog.get_logger(__name__)

#: Seconds before an attempt goes on after a fault; about three minutes, for a service that is being restarted.
RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 60.0)
LOOK_INTERVAL = 2.0  # seconds between looks at cancellations
HEARTBEAT = 20.0  # seconds, or a third of the lease if that is less; bot.store.PRESENT is several of them

#: Carries out one attempt, to the very end. Its event is set when the job is to stop. When the task is cancelled,
#: this process ends: everything stays as it is, for the next one to adopt.
Perform = Callable[[Job, Attempt, asyncio.Event], Awaitable[None]]


class Slots:
    """How many attempts may run at once. Counted across threads: RQ waits in one of its own."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    def acquire(self, timeout: float) -> bool:
        """Take a slot, waiting up to ``timeout`` seconds for a free one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._used < self.total, timeout):
                return False
            self._used += 1
            return True

    def occupy(self) -> None:
        """Take a slot even when there is none: what runs already, runs."""
        with self._changed:
            self._used += 1

    def release(self) -> None:
        """Give a slot back."""
        with self._changed:
            self._used -= 1
            self._changed.notify()

    @property
    def free(self) -> int:
        """Free slots now."""
        with self._changed:
            return max(0, self.total - self._used)


class Supervisor:
    """Runs one task for each attempt of this host.

    ``lease`` is how long a host may be silent before others take its attempts over; ``serves`` are the
    capabilities that jobs may ask for; ``frozen`` is how long a paused attempt keeps its container.
    """

    def __init__(
        self,
        *,
        store: Store,
        host: str,
        slots: Slots,
        lease: timedelta,
        perform: Perform,
        serves: Iterable[str] = (),
        frozen: timedelta = timedelta(minutes=10),
    ) -> None:
        self.slots = slots
        self.serves = frozenset(serves)
        self._store = store
        self._host = host
        self._lease = lease
        self._frozen = frozen
        self._claiming = asyncio.Lock()  # a claimed attempt is in SQL before it has its task
        self._perform = perform
        self._started_at = datetime.now(UTC)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._closing = False

    @property
    def running(self) -> tuple[str, ...]:
        """The ids of the attempts under way."""
        return tuple(self._tasks)

    async def take_next(self) -> bool:
        """Claim the best job that may start, and start it.

        The caller holds a slot for it. False: keep the slot, there is nothing to do.
        """
        if self._closing:
            return False
        async with self._claiming:
            claimed = await self._store.claim_next(self._host, self.serves)
            if claimed is None:
                return False
            self._spawn(*claimed)
            return True

    async def adopt(self) -> None:
        """Go on with what the process before us left."""
        await self._tell_that_we_live()
        for attempt in await self._store.attempts_of(self._host):
            if attempt.id not in self._tasks and (job := await self._store.job(attempt.job_id)):
                log.info("adopted", attempt=attempt.id, state=str(attempt.state), **job.log_context())
                self.slots.occupy()
                self._spawn(job, attempt)

    async def run(self) -> None:
        """Keep the heartbeat and look at cancellations and lost hosts; for ever."""
        beat = 0.0
        while True:
            try:
                if beat <= 0:
                    await self._tell_that_we_live()
                    await self._take_over_lost()
                    beat = min(HEARTBEAT, self._lease.total_seconds() / 3)
                await self._pass_on_cancellations()
                await self._look_after_own()
            except (SQLAlchemyError, OSError) as error:
                log.warning("the database does not answer", error=str(error).split("\n")[0])
            beat -= LOOK_INTERVAL
            await asyncio.sleep(LOOK_INTERVAL)

    async def close(self) -> None:
        """End the tasks; their containers go on, and the next process adopts them."""
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _tell_that_we_live(self) -> None:
        await self._store.host_seen(self._host, self.slots.total, self._started_at, self.serves)

    def _spawn(self, job: Job, attempt: Attempt) -> None:
        stop = self._stops[attempt.id] = asyncio.Event()
        if job.cancel_requested_by:
            stop.set()
        self._tasks[attempt.id] = asyncio.create_task(self._guard(job, attempt, stop), name=attempt.id)

    async def _guard(self, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        structlog.contextvars.bind_contextvars(
            correlation=job.trigger.delivery_id, attempt=attempt.id, **job.log_context()
        )
        try:
            await self._persist(job, attempt, stop)
        except asyncio.CancelledError:
            log.info("left for the next process")
            raise
        except Exception:
            log.exception("the attempt broke")
        finally:
            self._tasks.pop(attempt.id, None)
            self._stops.pop(attempt.id, None)
            self.slots.release()

    async def _persist(self, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        """Perform, and go on after a fault of what we depend on; in the end give up and say so."""
        for delay in (*RETRY_DELAYS, None):
            try:
                await self._perform(job, attempt, stop)
            except Exception as error:
                known = isinstance(error, ConductorError | SQLAlchemyError | OSError)
                log.warning("interrupted", error=str(error), again_in=delay, exc_info=not known)
                if delay is None:
                    await self._give_up(job, attempt, error)
                    return
            else:
                return
            await asyncio.sleep(delay)
            # both went on meanwhile: another state, another deadline
            job = await self._store.job(job.id) or job
            attempt = await self._store.attempt(attempt.id) or attempt

    async def _give_up(self, job: Job, attempt: Attempt, error: Exception) -> None:
        words = (
            str(error)
            if isinstance(error, ConductorError)
            else "An internal error; the server's log tells more."
        )
        hint = "Write `/agent retry` when it is mended."
        await self._store.move(
            job.id,
            JobState.failed,
            expected=[JobState.running, JobState.paused],
            fence=attempt.fence,
            failure=str(FailureKind.infrastructure),
            message=f"{words}\n\n{hint}",
        )
        await self._store.set_attempt(attempt, AttemptState.ended)

    async def _pass_on_cancellations(self) -> None:
        """Also to attempts that are void: what they did from now on would cost money and change nothing."""
        mine = dict(self._stops)
        if not mine:
            return
        jobs = await self._store.active_jobs(JobState.running, JobState.paused)
        wanted = {f"{job.id}-{job.fence}" for job in jobs if not job.cancel_requested_by}
        for attempt_id in mine.keys() - wanted:
            mine[attempt_id].set()

    async def _look_after_own(self) -> None:
        """Go on with attempts of this host that nobody works at: answered, cancelled or asked long ago."""
        async with self._claiming:
            for listed in await self._store.attempts_of(self._host):
                if listed.id in self._tasks:
                    continue
                # its task may have ended since the list was made, and the attempt with it
                attempt = await self._store.attempt(listed.id)
                job = await self._store.job(listed.job_id)
                if attempt is None or job is None or attempt.state is AttemptState.ended:
                    continue
                if attempt.state is not AttemptState.paused or self._is_due(job):
                    self.slots.occupy()
                    self._spawn(job, attempt)

    def _is_due(self, job: Job) -> bool:
        """Whether something is to be done with a paused job."""
        if job.state is not JobState.paused or job.hibernated or job.cancel_requested_by:
            return True
        return job.answer is not None or (
            job.asked_at is not None and datetime.now(UTC) - job.asked_at >= self._frozen
        )

    async def _take_over_lost(self) -> None:
        for attempt in await self._store.lost_attempts(self._lease):
            job = await self._store.job(attempt.job_id)
            if attempt.host == self._host or job is None:
                continue
            if job.state is JobState.paused:
                await self._hibernate(job, attempt)
            elif needs_of(job.queue) <= self.serves and self.slots.acquire(0):
                async with self._claiming:
                    taken = None
                    try:
                        taken = await self._store.take_over(job.id, from_fence=attempt.fence, host=self._host)
                    finally:
                        if taken is None:
                            self.slots.release()
                    if taken is not None:
                        log.warning("taken over from a silent host", attempt=attempt.id, host=attempt.host)
                        self._spawn(*taken)

    async def _hibernate(self, job: Job, attempt: Attempt) -> None:
        """A paused job needs its host no more: what it has done is kept, and any host may wake it up."""
        with suppress(StaleAttempt):
            await self._store.note(job.id, fence=attempt.fence, hibernated=True)
            await self._store.set_attempt(attempt, AttemptState.ended)
            log.warning("hibernated, for its host is silent", attempt=attempt.id, host=attempt.host)
