"""What people ask for, from the decision to the queued job. Read this first.

``submit`` turns a request into a job; ``cancel``, ``retry``, ``status`` and ``help`` answer commands. What a
worker host does with a queued job is the story of ``bot.performer``. Every method may be repeated with the
same trigger and then changes nothing more: deliveries are tried again after a crash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Collection, Sequence
from datetime import UTC, datetime

import structlog

from bot.approval_store import ApprovalStore
from bot.approvals import policy_for
from bot.audit import Audit, operator
from bot.audit_chain import AuditKind
from bot.budget import limits_before, next_step, scopes, sentence, used_up
from bot.capabilities import check_capabilities
from bot.claims import queue_name
from bot.config import Settings
from bot.continuation import Continuation, asked_on
from bot.errors import ConductorError, ConfigurationError
from bot.facts import FactFinder
from bot.feedback import with_words
from bot.github_errors import NotFound
from bot.ledger import Ledger, today
from bot.model import (
    KEPT_ASKED_IN,
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    FailureKind,
    Job,
    JobKind,
    JobState,
    Repo,
    Request,
    TargetKind,
    Trigger,
    job_id_for,
)
from bot.named_jobs import CannotStart, listing, request_for, with_needs
from bot.named_jobs import keep as keep_named
from bot.once_more import SAME, Instead, done_by, otherwise
from bot.outsiders import task_text
from bot.planned_work import not_begun, work_by
from bot.policy import (
    PERSON,
    Choice,
    Decision,
    Facts,
    Limits,
    Rules,
    afford,
    authorize,
    choose,
    decide,
    kind_for,
    may_go_on,
    once,
    throttle,
)
from bot.profiles import keep
from bot.reasons import all_of
from bot.render import render, waiting_words
from bot.repo_config import PATH as CONFIG_PATH
from bot.repo_config import RepoConfig, RepoConfigError, dump
from bot.repo_config import of as config_of
from bot.report import Reporter
from bot.scheduling import Scheduler
from bot.services import services_of
from bot.slash import help_table
from bot.store import Store
from bot.terms import Terms

log = structlog.get_logger(__name__)

_OTHERWISE = "nobody has approved that another agent, model or profile is used"


class Conductor:
    """The heart of the server: decides, saves, queues and answers."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        scheduler: Scheduler,
        facts: FactFinder,
        reporter: Reporter,
        ledger: Ledger,
        audit: Audit,
        approvals: ApprovalStore,
        known_agents: tuple[str, ...],
    ) -> None:
        self.store = store
        self.audit = audit
        self._approvals = approvals
        self.reporter = reporter
        self.settings = settings
        self.scheduler = scheduler
        self._facts = facts
        self._ledger = ledger
        self._continuation = Continuation(store=store, facts=facts, approvals=approvals)
        self._limits = Limits.of(settings)
        self.rules = Rules(
            agents=settings.agents,
            known_agents=known_agents,
            max_timeout=settings.job_timeout,
            default_agent=settings.default_agent,
            models=settings.models,
        )

    async def submit(self, request: Request, *, ordinal: int = 0, is_open: bool = True) -> Job | None:
        """Decide about ``request``; when it may be, save the job, answer, and queue it.

        What is asked for in an issue goes on in the open pull request that came of it (see bot.continuation), when it
        may be done in both. Returns the job, or None when it was refused (the asker was told, where they asked).
        """
        job_id = job_id_for(request.trigger.delivery_id, ordinal)
        job = await self.store.job(job_id)  # a repeated trigger: go on where the first time ended
        fresh = False
        if job is None:
            repo, asked_in, trigger = request.repo, request.number, request.trigger
            facts, choice, decision = await self._judge(request, is_open=is_open)
            reasons = [decision.root]
            if decision.allowed:
                if not request.judged:
                    text = task_text(request, facts)
                    left_out = (*request.left_out, *text.left_out)
                    request = request.evolve(title=text.title, body=text.body, left_out=left_out, judged=True)
                there = await self._continuation.of(request)
                if there is not None:
                    judged = await self._judge(there, is_open=True)
                    if judged[0].open:  # else it was closed at this very moment: then it is new work
                        request, (facts, choice, decision) = there, judged
                        reasons.append(decision.root)
            if not decision.allowed:
                await self._refuse(repo, asked_in, trigger, decision)
                return None
            kind = kind_for(facts, request)
            # a plan starts from what is there, and not from work that nobody has approved
            request = dataclasses.replace(request, kind=kind, go_on=request.go_on and kind is request.kind)
            job = _new_job(job_id, request, choice, facts)
            job = job.evolve(thread_id=await self.store.thread_of(job))
            decision = afford(await self._used_up(job, facts))
            if not decision.allowed:
                await self._refuse(repo, asked_in, trigger, decision)
                return None
            reasons.append(decision.root)
            # so that many at once, on this server or another, do not all find the last place free
            async with self.store.locks.hold("admission"):
                decision = once(await self._under_way(job))
                if decision.allowed:
                    decision = await self._throttled(job, facts)
                because = all_of("may be done", [*reasons, decision.root])
                fresh = decision.allowed and await self.store.add_job(job, because=because)
            if not decision.allowed:
                await self._refuse(repo, asked_in, trigger, decision)
                return None
            if not fresh:
                job = await self.store.job(job_id) or job
            else:
                log.info("job accepted", agent=job.agent, by=request.trigger.actor.login, **job.log_context())
        if job.state is JobState.queued:
            await self._continuation.replaced(job)
            # before it is offered to the workers, so that two processes never write the first comment or check run
            await self._best_effort(self.reporter.sticky(job, fresh=fresh), job)
            await self._best_effort(self.reporter.checks_of(await self.store.job(job_id) or job), job)
            await self.scheduler.offer(job)
        # also when it runs already: the process before us may have died in between
        await self._best_effort(self.reporter.acknowledge(job), job)
        if job.asked_in != job.number and job.retry_of is None:
            words = f"This goes on in #{job.number}, on its branch."
            if job.kind is JobKind.plan:
                words = f"This goes on in #{job.number}: it is planned there, and begins when somebody approves that."
            answer = self.reporter.reply(job.repo, job.asked_in, job.trigger, words, ordinal=ordinal)
            await self._best_effort(answer, job)
        return job

    async def _judge(self, request: Request, *, is_open: bool) -> tuple[Facts, Choice, Decision]:
        """Whether ``request`` may be done, by what, and by which facts that was decided."""
        facts = await self._facts.about(request, is_open=is_open)
        facts = _of_named_job(facts, request)
        facts = dataclasses.replace(
            facts,
            unserved=await self.store.unserved(facts.config.needs),
            config_problem=facts.config_problem or self._not_offered(facts.config),
            planned=await self._planned(request.repo, request.number),
            labels=await self._labels(request, facts),
        )
        facts = await self._facts.with_profile(request, facts)
        choice = choose(self.rules, facts.config, request, facts.profile)
        decision = decide(self.rules, facts, agent=choice.agent, timeout=request.timeout, base=request.base)
        return facts, choice, decision

    async def named_job(self, request: Request, name: str, words: str, *, ordinal: int = 0) -> Request | None:
        """What is asked for by `/agent job NAME` and ``words``: ``request`` as that job; "": the jobs are listed.

        Returns None when the asker was told why nothing comes of it.
        """
        if not await self.allowed(request.repo, request.number, request.trigger):
            return None
        if await self.store.job(self.job_id(request.trigger, ordinal)) is not None:
            return request  # a repeated trigger: whatever the definition is by now
        try:
            config = await self._facts.repo_config(request.repo)
            text = listing(config)
            if name:
                return request_for(name, config, request, words)
        except ConductorError as error:
            if not isinstance(error, RepoConfigError | CannotStart):
                raise
            text = str(error)
        await self.reporter.reply(request.repo, request.number, request.trigger, text, ordinal=ordinal)
        return None

    async def cancel(
        self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0, silent: bool = False
    ) -> None:
        """Stop every job of this conversation that is not final, and withdraw what people are asked there.

        That is also what goes on in the pull requests that came of an issue. ``silent``: it need not be meant for us (a
        label, a closed issue), so say nothing when nothing is there, and leave alone what was merged: a merge closes
        the issue, too, and is no wish to stop anything.
        """
        here = await self.store.conversation(repo.id, number)
        asked = [one for job in here if (one := await self._approvals.pending_of(job.id)) is not None]
        jobs = [job for job in here if not job.state.final]
        if silent:
            elsewhere = {job.number for job in jobs} | {one.pull_number for one in asked}
            merged = {pull for pull in elsewhere - {number} if await self._merged(repo, pull)}
            jobs = [job for job in jobs if job.number not in merged]
            asked = [one for one in asked if one.pull_number not in merged]
        if (silent and not jobs and not asked) or not await self.allowed(repo, number, trigger):
            return
        for approval in asked:
            why = f"{trigger.actor.login} cancelled it"
            await self._approvals.end(approval, ApprovalState.withdrawn, why=why)
        for job in jobs:
            await self.stop_job(job, by=trigger.actor.login, trigger=trigger)
        if jobs or silent:
            return  # each job's own comment says that it was cancelled
        text = "Nothing waits or runs here, so there is nothing to cancel."
        if asked:
            text = "What people were asked here is withdrawn: nobody need decide about it any more."
        await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def _merged(self, repo: Repo, number: int) -> bool:
        try:
            return (await self._facts.pull(repo, number)).merged
        except NotFound:  # it is gone, or no pull request
            return False

    async def cancel_job(self, job: Job, trigger: Trigger) -> None:
        """Stop one job; its own comment tells that. Nothing happens when it has ended already."""
        if await self.allowed(job.repo, job.number, trigger):
            await self.stop_job(job, by=trigger.actor.login, trigger=trigger)

    async def stop_job(self, job: Job, *, by: str, trigger: Trigger | None = None) -> bool:
        """Cancel a waiting job now; ask the host of a running one to stop it (hosts look every two seconds).

        False when it had ended before. ``by``: what people are told; ``trigger``: None when the operator does it.
        """
        if not await self.store.request_cancel(job.id, by):
            return False
        await self.audit.record(
            AuditKind.job_cancelled,
            actor=trigger.actor if trigger else operator(),
            repo=job.repo,
            number=job.number,
            job_id=job.id,
            delivery_id=trigger.delivery_id if trigger else None,
            details={
                "event": trigger.event if trigger else "cli.cancel",
                "state": str(job.state),
                **({"why": by} if trigger and by != trigger.actor.login else {}),
            },
        )
        log.info("cancel requested", by=by, **job.log_context())
        moved = await self.store.cancel_unowned(job.id)
        if moved is not None:
            await self._best_effort(self.reporter.finished(moved, also_on=moved.base_sha), moved)
            await self.scheduler.offer_waiting()
        return True

    async def retry(
        self,
        repo: Repo,
        number: int,
        trigger: Trigger,
        *,
        ordinal: int = 0,
        instead: Instead = SAME,
    ) -> Job | None:
        """Do the last job of this issue or pull request once more, as a new job.

        Where that made a plan that was approved, the work by it is meant, also when that was refused then and no job
        has begun it: under the same approval, which is checked before it is used, as ever. ``instead``: what is to be
        otherwise; it is decided about as for any job, and planned anew where another one was approved.
        """
        if not await self.allowed(repo, number, trigger):
            return None
        new_id = job_id_for(trigger.delivery_id, ordinal)
        jobs = [job for job in await asked_on(self.store, repo.id, number) if job.id != new_id]
        if not jobs:
            text = "There is no job here that could be done again. Write `/agent` and what you want done."
            await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
            return None
        last = await self._work_of(jobs[0], but=new_id)
        plan = await self._not_begun(last, but=new_id)
        if plan is not None and not otherwise(last, instead):
            request = work_by(plan, last, by=plan.decided_by or "", words=plan.words).evolve(
                trigger=trigger,
                timeout=instead.timeout,
                budget=last.budget if instead.budget is None else instead.budget,
            )
            return await self.submit(request, ordinal=ordinal)
        return await self.retry_job(
            last,
            trigger,
            number=number,
            ordinal=ordinal,
            allowed=True,
            instead=instead,
            why=_OTHERWISE if plan is not None else "",
        )

    async def retry_job(
        self,
        last: Job,
        trigger: Trigger,
        *,
        number: int | None = None,
        ordinal: int = 0,
        allowed: bool = False,
        go_on: bool = False,
        words: str = "",
        instead: Instead = SAME,
        why: str = "",
    ) -> Job | None:
        """Do one job once more, as a new job.

        ``number``: where to answer; ``allowed``: that was asked already; ``go_on``: from where it stopped, with
        ``words`` to go by; ``instead``: with what it is done now; ``why`` an approved plan is made anew, when that is
        known.

        What an approved plan started goes on under the same approval while that may hold; it is checked again before
        the work starts. Else, and with ``words`` or another agent, model or profile, which nobody has approved, it is
        planned anew; people are told why.
        """
        repo, number = last.repo, number or last.number
        if not allowed and not await self.allowed(repo, number, trigger):
            return None
        new_id = job_id_for(trigger.delivery_id, ordinal)
        if not last.state.final and await self.store.job(new_id) is None:
            text = f"Job `{last.id}` is still {last.state}. `/agent cancel` stops it."
            await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
            return None
        kind, approval_id = last.kind, last.approval_id
        instructions = with_words(last.instructions, words) if words else last.instructions
        if last.kind is JobKind.fix and words:
            kind = JobKind.task  # as with `/agent fix` and words
        if last.kind is JobKind.task and last.approval_id is not None:
            plan = await self._approvals.approval(last.approval_id)
            why = _why_planned_anew(plan, last, await self.store.tries(last), words)
            if why := why or (_OTHERWISE if otherwise(last, instead) else ""):
                kind, approval_id, go_on = JobKind.plan, None, False
                instructions = await self._to_plan_anew(plan, last, words)
        request = done_by(
            Request(
                repo=repo,
                # where the work was asked for: a retry in the pull request goes on with its issue's task
                number=last.number,
                target=last.target,
                trigger=trigger,
                instructions=instructions,
                title=last.title,
                body=last.body,
                # of a pull request it was found out, and not asked for
                base=last.base if last.target is TargetKind.issue else None,
                retry_of=last.id,
                go_on=go_on,
                kind=kind,
                approval_id=approval_id,
                left_out=tuple(last.left_out),
                judged=True,
                asked_in=last.asked_in if last.asked_in != last.number else None,
            ),
            last,
            instead,
        )
        job = await self.submit(request, ordinal=ordinal)
        if why and job is not None and job.kind is JobKind.plan:
            did = "carried out" if last.approval_id is not None else "made"
            text = f"Job `{last.id}` {did} an approved plan. This is planned anew: {why}."
            await self._best_effort(self.reporter.reply(repo, number, trigger, text, ordinal=ordinal), job)
        return job

    async def resume(
        self,
        repo: Repo,
        number: int,
        trigger: Trigger,
        words: str,
        *,
        ordinal: int = 0,
        instead: Instead = SAME,
    ) -> Job | None:
        """Answer the question that a paused job asks; or go on from where the last job stopped, as a new job."""
        if not await self.allowed(repo, number, trigger, more=True):
            return None
        if await self.store.answered(f"{trigger.delivery_id}/{ordinal}"):
            return None  # the same event again; meanwhile the job may ask something else, or have ended
        new_id = job_id_for(trigger.delivery_id, ordinal)
        jobs = [job for job in await asked_on(self.store, repo.id, number) if job.id != new_id]
        last = await self._work_of(jobs[0], but=new_id) if jobs else None
        if await self.store.job(new_id) is None:
            here = await self.store.conversation(repo.id, number)
            if paused := next((job for job in here if job.state is JobState.paused), None):
                if await self._approvals.pending_of(paused.id) is not None:
                    # what was asked of a reviewer only a review decides
                    text = "This waits for a review; a comment decides nothing. `/agent approve` says where to click."
                    await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
                    return None
                if not instead.empty:
                    text = "A paused job keeps its agent and limits. Write `/agent resume` and the answer, no options."
                    await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
                    return None
                return await self._answer(paused, trigger, words, number, ordinal)
            if last is None or last.state is JobState.succeeded:
                text = "Nothing here stopped half way. Write `/agent` and what you want done."
                await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)
                return None
        return last and await self.retry_job(
            last,
            trigger,
            number=number,
            ordinal=ordinal,
            allowed=True,
            go_on=True,
            words=words,
            instead=instead,
        )

    async def _answer(
        self, paused: Job, trigger: Trigger, words: str, number: int, ordinal: int
    ) -> Job | None:
        event = f"{trigger.delivery_id}/{ordinal}"
        # the work goes by these words, as by those of `/agent tell`; first, so that a crash loses nobody
        await self._approvals.asks_too(paused.id, trigger.actor.id)
        answered = await self.answer(paused, words, by=trigger.actor, event=event)
        if answered is None:  # somebody was faster, or it has just been cancelled
            text = f"Job `{paused.id}` does not wait for an answer any more."
            await self.reporter.reply(paused.repo, number, trigger, text, ordinal=ordinal)
            return None
        await self._best_effort(self.reporter.react(answered.repo, number, trigger, "eyes"), answered)
        return answered

    async def answer(self, paused: Job, words: str, *, by: Actor, event: str) -> Job | None:
        """Let a paused job go on with an answer. None when it does not wait for one any more.

        ``event`` is what brought the answer; who may give it was asked before.
        """
        answered = await self.store.answer(paused.id, words, by.login, event=event, actor=by)
        if answered is None:
            return None
        log.info("answered", by=by.login, **answered.log_context())
        await self._best_effort(self.reporter.sticky(answered), answered)
        await self.scheduler.offer_waiting()  # for one that hibernates; the host of another looks itself
        return answered

    async def status(self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0) -> None:
        """Show the jobs of this issue or pull request, and of the pull requests that came of it."""
        if not await self.allowed(repo, number, trigger):
            return
        jobs = (await self.store.conversation(repo.id, number))[:10]
        waits = {
            job.id: waiting_words(job, await self.store.waiting(job))
            for job in jobs
            if job.state is JobState.queued
        }
        pending = await self._pending(repo, number, jobs)
        decided_on = {approval.job_id for approval, _, _ in pending}
        asking = [job for job in jobs if job.state is JobState.paused and job.id not in decided_on]
        asking = [job for job in asking if job.answer is None]
        text = render("comments/status.md.j2", jobs=jobs, waits=waits, pending=pending, asking=asking)
        await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def _pending(self, repo: Repo, number: int, jobs: Sequence[Job]) -> list[tuple[Approval, Job, str]]:
        """What reviewers are asked for these jobs or in this pull request, for which job, and who may approve it."""
        asked = await self._approvals.pending_on(repo.id, number)
        asked += [one for job in jobs if (one := await self._approvals.pending_of(job.id)) is not None]
        found = []
        for approval in {one.id: one for one in asked}.values():
            job = await self.store.job(approval.job_id)
            if job is not None:
                policy = policy_for(config_of(job), approval.kind, repo.owner)
                found.append((approval, job, policy.whom()))
        return found

    async def help(
        self, repo: Repo, number: int, trigger: Trigger, *, problem: str = "", ordinal: int = 0
    ) -> None:
        """List the commands; with ``problem``, say first what was wrong."""
        if not await self.allowed(repo, number, trigger):
            return
        usable = [name for name in self.rules.agents if name in self.rules.known_agents]
        text = render("comments/help.md.j2", problem=problem, table=help_table(), agents=usable)
        await self.reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def _used_up(self, job: Job, facts: Facts) -> str:
        """The sentence about a budget that leaves nothing for ``job``; "" when there is money left."""
        some = limits_before(self.settings, facts.config.budget)
        terms = Terms(thread_id=job.thread_id, repo_id=job.repo.id, actor_id=job.trigger.actor.id)
        spent = await self._ledger.spent(terms, scopes(some))
        limit = used_up(some, spent)
        if limit is None:
            return ""
        return f"{sentence(limit, spent[limit.scope], today())} {next_step(limit)}"

    def _not_offered(self, config: RepoConfig) -> str:
        """What a repository's configuration asks for that this server does not offer; "" when there is nothing."""
        try:
            check_capabilities(config.image.capabilities, self.settings.image_capabilities)
            services_of(config.services, self.settings)
        except ConfigurationError as error:
            return f"`{CONFIG_PATH}`: {error}"
        return ""

    async def _planned(self, repo: Repo, number: int) -> bool:
        """Whether work that an approved plan started was pushed to this pull request."""
        here = await self._approvals.on(repo.id, number)
        used = {one.id for one in here if one.kind is ApprovalKind.plan and one.used_at is not None}
        if not used:
            return False
        jobs = await self.store.jobs_on(repo.id, number)
        return any(job.head_sha and job.approval_id in used for job in jobs)

    async def _labels(self, request: Request, facts: Facts) -> tuple[str, ...]:
        """The labels that count: also those of what a pull request of ours came from, whose work it goes on with."""
        labels = facts.labels
        if request.target is TargetKind.pull_request and facts.config.approvals.plan.labels:
            here = await self.store.jobs_on(request.repo.id, request.number)
            for number in sorted({job.number for job in here} - {request.number}):
                labels += await self._facts.labels(request.repo, number)
        return labels

    async def _work_of(self, last: Job, *, but: str) -> Job:
        """The work by the plan that ``last`` made, unless it is done; ``last`` when it made none that was approved.

        It has its place in the plan's pull request: of the issue the plan is the last job. ``but``: not this job.
        """
        if last.kind is not JobKind.plan:
            return last
        for plan in await self._approvals.of_job(last.id):
            if plan.kind is ApprovalKind.plan and plan.state is ApprovalState.approved:
                here = await self.store.jobs_on(last.repo.id, plan.pull_number)
                work = next((job for job in here if job.approval_id == plan.id and job.id != but), last)
                return last if work.state is JobState.succeeded else work
        return last

    async def _not_begun(self, last: Job, *, but: str) -> Approval | None:
        """The approval of the plan that ``last`` made, when no job but ``but`` has gone by it."""
        if last.kind is not JobKind.plan:
            return None
        asked = await self._approvals.of_job(last.id)
        here = [job for one in asked[:1] for job in await self.store.jobs_on(last.repo.id, one.pull_number)]
        return not_begun(asked, [job for job in here if job.id != but])

    async def _to_plan_anew(self, plan: Approval | None, last: Job, words: str) -> str:
        """The instructions for a new plan in place of ``plan``, which ``last`` carried out."""
        asked = await self.store.job(plan.job_id) if plan is not None else None
        if plan is None or asked is None:
            return with_words(last.instructions, words)
        before = f"This was planned before:\n\n{plan.subject}" if words else ""
        return "\n\n".join(part for part in (asked.instructions, before, words) if part)

    async def _under_way(self, job: Job) -> Job | None:
        """A job that has not ended and does the very same: two people set the label, or one did twice."""
        if job.instructions or job.retry_of:
            return None  # words of one's own are never quite the same; they wait for their turn
        same = ("asked_in", "kind", "agent", "model", "instructions", "profile", "named")
        for other in await self.store.jobs_on(job.repo.id, job.number):
            alike = all(getattr(other, name) == getattr(job, name) for name in same)
            if alike and not other.state.final and not other.cancel_requested_by and other.id != job.id:
                return other
        return None

    async def _throttled(self, job: Job, facts: Facts) -> Decision:
        actor = job.trigger.actor
        limits = self._limits.within(facts.config.limits)
        return throttle(limits, await self.store.load(job.repo.id, actor.id, job.thread_id), actor.login)

    def job_id(self, trigger: Trigger, ordinal: int = 0) -> str:
        """The id of the job that this trigger starts."""
        return job_id_for(trigger.delivery_id, ordinal)

    async def allowed(self, repo: Repo, number: int, trigger: Trigger, *, more: bool = False) -> bool:
        """Whether whoever caused this may command us; if not, they are told.

        ``more``: it lets an agent do more work, as asking for a job does.
        """
        if more:
            decision = may_go_on(await self._facts.asker(repo, trigger.actor))
        else:
            decision = authorize(await self._facts.who(repo, trigger.actor))
        if not decision.allowed:
            await self._refuse(repo, number, trigger, decision)
        return decision.allowed

    async def pass_over(self, repo: Repo, number: int, trigger: Trigger, decision: Decision) -> None:
        """Write down that this is not carried out, and why, and say nothing to anybody."""
        await self._refuse(repo, number, trigger, dataclasses.replace(decision, silent=True, flood=False))

    async def _refuse(self, repo: Repo, number: int, trigger: Trigger, decision: Decision) -> None:
        log.info(
            "refused", repo=repo.full_name, number=number, by=trigger.actor.login, reasons=decision.refusals
        )
        await self.audit.record(
            AuditKind.job_refused,
            actor=trigger.actor,
            repo=repo,
            number=number,
            delivery_id=trigger.delivery_id,
            decision=decision,
            details={"event": trigger.event},
        )
        if decision.flood:
            # told to each person once an hour, wherever they ask: a flood must not be answered by another one
            hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
            once = f"flood:{repo.id}:{trigger.actor.id}:{hour}"
            await self.reporter.refuse(repo, number, trigger, decision.refusals, once=once)
        elif not decision.silent:
            await self.reporter.refuse(
                repo,
                number,
                trigger,
                decision.refusals,
                hourly=not decision.lasting,
                because=decision.root,
            )

    async def _best_effort(self, work: Awaitable[None], job: Job) -> None:
        """Report what can be reported: a GitHub that does not answer must not lose an accepted job."""
        try:
            await work
        except ConductorError as error:
            log.warning("not reported", error=str(error), **job.log_context())


def _why_planned_anew(plan: Approval | None, last: Job, tries: Collection[Job], words: str) -> str:
    """Why a retry of ``last`` needs a new plan, a part of a sentence; "" when it may try to go by the same approval.

    ``tries``: ``last`` and the jobs that it does once more. Whether the approval holds on GitHub is asked
    before the work starts.
    """
    if words:
        return "nobody has approved what is new"
    if plan is None or plan.state is not ApprovalState.approved:
        return "its approval is gone" if plan is None else f"its approval is {plan.state}"
    if last.state is JobState.succeeded:
        return "what was approved is done"
    if last.failure is FailureKind.refused and plan.used_by != last.id:
        return "its approval did not hold any more"
    if plan.used_by is not None and plan.used_by not in {one.id for one in tries}:
        return f"job `{plan.used_by}` has gone by its approval since"
    return ""


def _of_named_job(facts: Facts, request: Request) -> Facts:
    """With what the host of a named job must have, and why it cannot be started at all."""
    try:
        facts = dataclasses.replace(facts, config=with_needs(facts.config, request.named))
        if request.named is not None and request.named.steps and kind_for(facts, request) is not request.kind:
            raise CannotStart(
                "A plan must be approved first here, and steps that run without a model have none to approve.",
                "Give the job a `prompt` in place of its `steps`.",
            )
    except CannotStart as error:
        return dataclasses.replace(facts, config_problem=facts.config_problem or str(error))
    return facts


def _new_job(job_id: str, request: Request, choice: Choice, facts: Facts) -> Job:
    return Job(
        id=job_id,
        repo=request.repo,
        number=request.number,
        target=request.target,
        trigger=request.trigger,
        agent=choice.agent,
        model=choice.model,
        instructions=request.instructions,
        title=request.title,
        body=request.body,
        timeout=choice.timeout,
        base=request.base,
        retry_of=request.retry_of,
        state=JobState.queued,
        created_at=datetime.now(UTC),
        config={
            **dump(facts.config),
            **(keep(facts.profile) if facts.profile is not None else {}),
            **(keep_named(request.named) if request.named is not None else {}),
            **({KEPT_ASKED_IN: request.asked_in} if request.asked_in is not None else {}),
        },
        queue=queue_name(facts.config.needs),
        priority=PERSON,
        budget=request.budget,
        go_on=request.go_on,
        kind=request.kind,
        left_out=request.left_out,
        fork=facts.from_fork,
        base_sha=facts.head_sha,
        approval_id=request.approval_id,
    )
