"""What people ask for, from the decision to the queued job. Read this first.

``submit`` turns a request into a job; ``cancel``, ``retry``, ``status`` and ``help`` answer commands. What a
worker host does with a queued job is the story of ``bot.performer``. Every method may be repeated with the
same trigger and then changes nothing more: deliveries are tried again after a crash.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime

import structlog

from bot.config import Settings
from bot.errors import ConductorError, InfrastructureError
from bot.facts import FactFinder
from bot.model import Job, JobState, Repo, Request, Trigger, job_id_for
from bot.policy import Decision, Rules, authorize, decide
from bot.queue import Dispatcher
from bot.render import render
from bot.report import Reporter
from bot.slash import help_table
from bot.store import Store

log = structlog.get_logger(__name__)


class Conductor:
    """The heart of the server: decides, saves, queues and answers."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        dispatcher: Dispatcher,
        facts: FactFinder,
        reporter: Reporter,
        known_agents: tuple[str, ...],
    ) -> None:
        self.store = store
        self.reporter = reporter
        self.settings = settings
        self._dispatcher = dispatcher
        self._facts = facts
        self.rules = Rules(
            agents=settings.agents, known_agents=known_agents, max_timeout=settings.job_timeout
        )

    async def submit(self, request: Request, *, ordinal: int = 0, is_open: bool = True) -> Job | None:
        """Decide about ``request``; when it may be, save the job, answer, and queue it.

        Returns the job, or None when it was refused (the asker was told).
        """
        agent = request.agent or self.settings.default_agent
        job_id = job_id_for(request.trigger.delivery_id, ordinal)
        job = await self.store.job(job_id)  # a repeated trigger: go on where the first time ended
        fresh = False
        if job is None:
            facts = await self._facts.about(request, is_open=is_open)
            decision = decide(self.rules, facts, agent=agent, timeout=request.timeout, base=request.base)
            if not decision.allowed:
                await self._refuse(request.repo, request.number, request.trigger, decision)
                return None
            job = _new_job(job_id, request, agent, self.settings)
            fresh = await self.store.add_job(job)
            if not fresh:
                job = await self.store.job(job_id) or job
            else:
                log.info("job accepted", agent=agent, by=request.trigger.actor.login, **job.log_context())
        if job.state is JobState.queued:
            # before it is offered to the workers, so that two processes never write the first comment
            await self._best_effort(self.reporter.sticky(job, fresh=fresh), job)
            await self.offer(job)
            await self._best_effort(self.reporter.acknowledge(job), job)
        return job

    async def offer(self, job: Job) -> None:
        """Put a queued job in front of the workers. When Redis is away it waits: housekeeping offers it again."""
        try:
            await self._dispatcher.enqueue(job.id)
        except InfrastructureError as error:
            log.warning("not enqueued yet", error=str(error), **job.log_context())

    async def cancel(
        self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0, silent: bool = False
    ) -> None:
        """Stop every job of this issue or pull request that is not final."""
        if not await self._allowed(repo, number, trigger):
            return
        jobs = [job for job in await self.store.jobs_on(repo.id, number) if not job.state.final]
        for job in jobs:
            await self.stop_job(job, by=trigger.actor.login)
        if jobs or silent:
            return  # each job's own comment says that it was cancelled
        await self.reporter.reply(
            repo,
            number,
            trigger,
            "Nothing waits or runs here, so there is nothing to cancel.",
            ordinal=ordinal,
        )

    async def stop_job(self, job: Job, *, by: str) -> None:
        """Cancel a queued job now; ask the host of a running one to stop it (hosts look every two seconds)."""
        if not await self.store.request_cancel(job.id, by):
            return
        log.info("cancel requested", by=by, **job.log_context())
        moved = await self.store.move(job.id, JobState.cancelled, expected=[JobState.queued])
        if moved is not None:
            await self._best_effort(self.reporter.finished(moved), moved)
            await self.offer_next(moved)

    async def retry(self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0) -> Job | None:
        """Do the last job of this issue or pull request once more, as a new job."""
        if not await self._allowed(repo, number, trigger):
            return None
        new_id = job_id_for(trigger.delivery_id, ordinal)
        jobs = [job for job in await self.store.jobs_on(repo.id, number) if job.id != new_id]
        if not jobs:
            text = "There is no job here that could be done again. Write `/agent` and what you want done."
            await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
            return None
        last = jobs[0]
        if not last.state.final and await self.store.job(new_id) is None:
            text = f"Job `{last.id}` is still {last.state}. `/agent cancel` stops it."
            await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
            return None
        return await self.submit(
            Request(
                repo=repo,
                # where the work was asked for: a retry in the pull request goes on with its issue's task
                number=last.number,
                target=last.target,
                trigger=trigger,
                instructions=last.instructions,
                title=last.title,
                body=last.body,
                agent=last.agent,
                model=last.model,
                timeout=last.timeout,
                base=last.base,
                retry_of=last.id,
            ),
            ordinal=ordinal,
        )

    async def status(self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0) -> None:
        """Show the jobs of this issue or pull request."""
        if not await self._allowed(repo, number, trigger):
            return
        jobs = (await self.store.jobs_on(repo.id, number))[:10]
        text = render("comments/status.md.j2", jobs=jobs)
        await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def help(
        self, repo: Repo, number: int, trigger: Trigger, *, problem: str = "", ordinal: int = 0
    ) -> None:
        """List the commands; with ``problem``, say first what was wrong."""
        if not await self._allowed(repo, number, trigger):
            return
        usable = [name for name in self.rules.agents if name in self.rules.known_agents]
        text = render("comments/help.md.j2", problem=problem, table=help_table(), agents=usable)
        await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def offer_next(self, ended: Job) -> None:
        """A job ended: offer those that waited for it (one at a time runs on an issue or pull request)."""
        waiting = await self.store.jobs_on(ended.repo.id, ended.number)
        for job in reversed(waiting):
            if job.state is JobState.queued:
                await self.offer(job)
                return

    async def _allowed(self, repo: Repo, number: int, trigger: Trigger) -> bool:
        decision = authorize(await self._facts.who(repo, trigger.actor))
        if not decision.allowed:
            await self._refuse(repo, number, trigger, decision)
        return decision.allowed

    async def _refuse(self, repo: Repo, number: int, trigger: Trigger, decision: Decision) -> None:
        log.info(
            "refused", repo=repo.full_name, number=number, by=trigger.actor.login, reasons=decision.refusals
        )
        if not decision.silent:
            await self.reporter.refuse(repo, number, trigger, decision.refusals)

    async def _best_effort(self, work: Awaitable[None], job: Job) -> None:
        """Report what can be reported: a GitHub that does not answer must not lose an accepted job."""
        try:
            await work
        except ConductorError as error:
            log.warning("not reported", error=str(error), **job.log_context())


def _new_job(job_id: str, request: Request, agent: str, settings: Settings) -> Job:
    return Job(
        id=job_id,
        repo=request.repo,
        number=request.number,
        target=request.target,
        trigger=request.trigger,
        agent=agent,
        model=request.model or settings.models.get(agent),
        instructions=request.instructions,
        title=request.title,
        body=request.body,
        timeout=request.timeout or settings.job_timeout,
        base=request.base,
        retry_of=request.retry_of,
        state=JobState.queued,
        created_at=datetime.now(UTC),
    )
