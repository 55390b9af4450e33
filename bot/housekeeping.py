"""What is looked after while nothing happens: jobs that Redis forgot, ends that were not told, hosts that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.errors import ConductorError, GitHubUnavailable
from bot.github_errors import Forbidden, NotFound
from bot.model import FailureKind, Job, JobState
from bot.render import duration, waiting_words
from bot.report import Reporter
from bot.scheduling import Scheduler
from bot.store import Store

log = structlog.get_logger(__name__)

INTERVAL = 10.0  # seconds
#: Younger than this, whoever made the change is still at it; we would only get in the way.
SETTLED = timedelta(seconds=15)
#: A running job this long past its deadline, on a host that is silent, is lost.
ABANDONED = timedelta(minutes=15)
#: A question that is younger is being asked by the host that has it.
ASKING = timedelta(minutes=1)
#: A draft of a job that ended later may still be looked at, or its job be done once more.
IDLE = timedelta(minutes=2)
#: Comments of waiting jobs that are corrected in one round: GitHub counts each edit as content creation.
CORRECTED = 10


class Housekeeping:
    """Repairs by repetition: everything it does is safe to do twice, from any number of servers."""

    def __init__(
        self,
        *,
        store: Store,
        scheduler: Scheduler,
        reporter: Reporter,
        prune: Callable[[], Awaitable[object]],
        patience: timedelta,
        also: Sequence[Callable[[], Awaitable[object]]] = (),
    ) -> None:
        """``prune`` forgets what is old; ``patience`` is how long a question may stay without an answer.

        ``also`` are parts of others: methods that may be repeated.
        """
        self._store = store
        self._scheduler = scheduler
        self._reporter = reporter
        self._prune = prune
        self._patience = patience
        self._also = also

    async def run(self) -> None:
        """Go round for ever."""
        while True:
            await self.once()
            await asyncio.sleep(INTERVAL)

    async def once(self) -> None:
        """One round. A part that fails is logged and does not keep the others from being done."""
        for part in (
            self._offer,
            self._end_abandoned,
            self._end_unanswered,
            self._tell_ends,
            self._tell_questions,
            self._tell_waiting,
            self._remove_branches,
            self._close_drafts,
            self._prune,
            *self._also,
        ):
            try:
                # one server at a time: not for correctness, but to ask GitHub only once
                async with self._store.locks.hold_if_free(f"housekeeping:{part.__qualname__}") as mine:
                    if mine:
                        await part()
            except (ConductorError, SQLAlchemyError, OSError) as error:
                log.warning("housekeeping", part=part.__qualname__, error=str(error).split("\n")[0])

    async def _offer(self) -> None:
        for job in await self._store.active_jobs(JobState.queued, JobState.paused):
            if job.cancel_requested_by:
                await self._store.cancel_unowned(job.id)
        await self._scheduler.offer_waiting()

    async def _end_abandoned(self) -> None:
        silent = {attempt.job_id: attempt for attempt in await self._store.lost_attempts(ABANDONED)}
        for job in await self._store.active_jobs(JobState.running):
            attempt = silent.get(job.id)
            if attempt is not None and datetime.now(UTC) - attempt.deadline > ABANDONED:
                await self._store.move(
                    job.id,
                    JobState.lost,
                    expected=[JobState.running],
                    fence=attempt.fence,
                    failure=str(FailureKind.infrastructure),
                    message=f"The worker host {attempt.host} went silent and no other one took over.\n\n"
                    "Write `/agent retry` when a worker runs again.",
                )

    async def _end_unanswered(self) -> None:
        for job in await self._store.active_jobs(JobState.paused):
            # one with a container is hibernated by its host long before
            if not job.hibernated or job.answer is not None or job.asked_at is None:
                continue
            if datetime.now(UTC) - job.asked_at > self._patience:
                if await self._store.waits_for_review(job.id):
                    continue  # what reviewers are asked has its own time: `approvals.expires`
                await self._store.move(
                    job.id,
                    JobState.timed_out,
                    expected=[JobState.paused],
                    fence=job.fence,
                    failure=str(FailureKind.timeout),
                    message=f"Nobody answered the agent's question within {duration(self._patience.total_seconds())}.",
                )

    async def _tell_ends(self) -> None:
        for job in await self._store.unreported_jobs():
            if _settled(job):
                try:
                    await self._reporter.finished(job, also_on=job.base_sha)
                except GitHubUnavailable:
                    raise
                except (NotFound, Forbidden) as error:
                    if isinstance(error, Forbidden) and "archived" not in str(error).lower():
                        log.warning("end not told", error=str(error), **job.log_context())
                        continue
                    # the issue, the repository or the App is gone: nobody can be told
                    log.info("nobody to tell", error=str(error), **job.log_context())
                    await self._store.mark_reported(job.id, job.state)
                except ConductorError as error:  # about this one only: a suspended App, a locked issue
                    log.warning("end not told", error=str(error), **job.log_context())

    async def _tell_questions(self) -> None:
        """Ask what a host could not: GitHub did not answer it, or it died just then."""
        for job in await self._store.untold_questions():
            if job.asked_at is not None and datetime.now(UTC) - job.asked_at > ASKING:
                try:
                    await self._reporter.sticky(job)
                    await self._reporter.ask(job)
                except GitHubUnavailable:
                    raise
                except ConductorError as error:  # about this one only: the others must not wait for it
                    log.warning("not asked", error=str(error), **job.log_context())

    async def _remove_branches(self) -> None:
        for job in await self._store.jobs_with_stray_branches():
            if _settled(job):
                try:
                    await self._reporter.remove_branch(job)
                except GitHubUnavailable:
                    raise
                except ConductorError as error:
                    # about this one only: a protected branch, an archived repository
                    log.warning("branch not removed", error=str(error), **job.log_context())

    async def _close_drafts(self) -> None:
        for job in await self._store.jobs_with_idle_drafts():
            if job.finished_at is None or datetime.now(UTC) - job.finished_at > IDLE:
                try:
                    await self._reporter.close_draft(job)
                except GitHubUnavailable:
                    raise
                except ConductorError as error:  # about this one only
                    log.warning("draft not closed", error=str(error), **job.log_context())

    async def _tell_waiting(self) -> None:
        """Correct what comments say about why a job waits. The jobs before it end, limits are reached."""
        corrected = 0
        for job in reversed(await self._store.active_jobs(JobState.queued)):
            settled = datetime.now(UTC) - job.created_at > SETTLED
            if settled and waiting_words(job, await self._store.waiting(job)) != job.waits:
                await self._reporter.sticky(job)
                corrected += 1
                if corrected == CORRECTED:
                    return


def _settled(job: Job) -> bool:
    return job.finished_at is None or datetime.now(UTC) - job.finished_at > SETTLED
