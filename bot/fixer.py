"""Fixes failed checks of the bot's own pull requests without being asked, where the repository wants that.

An event says when a suite of checks has ended; SQL remembers which commits are to be looked at, so that a server that
dies, or a check that never ends, changes nothing about it. What decides is :func:`bot.failed_checks.should_fix`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from bot.check_reader import CheckReader
from bot.errors import GitHubUnavailable
from bot.facts import FactFinder
from bot.failed_checks import Checks, FixDecision, FixFacts, FixRules, fingerprint, instructions, should_fix
from bot.failing_heads import FailingHead, FailingHeads
from bot.github import GitHub
from bot.github_errors import GitHubError, NotFound
from bot.model import Job, JobKind, Repo, Request, TargetKind, Trigger, job_id_for
from bot.named_jobs import goes_on
from bot.profiles import asked_for
from bot.repo_config import RepoConfigError
from bot.store import Store

log = structlog.get_logger(__name__)

#: The trigger of jobs that nobody asked for.
EVENT = "check_suite.completed"
#: No failure is looked at for longer than this: then a person has to ask.
FORGET = timedelta(days=1)
#: After trouble with GitHub, and while another job is at it.
_LATER = timedelta(minutes=1)
#: A person is told about these in the pull request, unless one of those is a reason, too.
_TOLD = frozenset({"attempts", "progress"})
_SILENT = frozenset({"wanted", "open", "head", "own commit", "failure"})


class Fixer:
    """Looks at commits of ours on which checks have ended. Everything may be repeated, by any server."""

    def __init__(
        self,
        *,
        github: GitHub,
        store: Store,
        heads: FailingHeads,
        facts: FactFinder,
        checks: CheckReader,
        submit: Callable[[Request], Awaitable[Job | None]],
        tell: Callable[[Repo, int, Trigger, str], Awaitable[None]],
        unable: Callable[[str], str],
    ) -> None:
        """``submit`` decides about a request and queues it, ``tell`` writes a comment once for a trigger.

        ``unable``: why an agent (by its name) cannot be told what is wrong, a part of a sentence; "" when it can.
        """
        self._github = github
        self._store = store
        self._heads = heads
        self._facts = facts
        self._checks = checks
        self._submit = submit
        self._tell = tell
        self._unable = unable

    async def completed(self, repo: Repo, sha: str, *, app_id: int | None = None) -> None:
        """All check runs of the App ``app_id`` on a commit have ended, well or not; None: a commit status has.

        Most commits are not ours: for those one question to SQL is all that happens.
        """
        ours = await self._ours(repo, sha)
        if not ours or app_id == (await self._github.identity()).id:
            return
        for number in sorted({_pull_of(job) for job in ours}):
            head = await self._heads.see(repo.id, number, sha)
            if head.look_at is not None:
                await self._look(head)

    async def sweep(self) -> None:
        """Look at the commits whose time has come: for housekeeping."""
        for head in await self._heads.due():
            await self._look(head)

    async def _ours(self, repo: Repo, sha: str) -> list[Job]:
        """The jobs that pushed a commit into a pull request, newest first."""
        return [
            job
            for job in await self._store.jobs_at(repo.id, sha)
            if job.head_sha == sha and (job.pull_number or job.target is TargetKind.pull_request)
        ]

    async def _look(self, head: FailingHead) -> None:
        jobs = await self._store.jobs_on(head.repo_id, head.number)
        pushed = next((job for job in jobs if job.head_sha == head.sha), None)
        if pushed is not None and pushed.number != head.number:
            # those of the issue that it came from belong to the same conversation
            others = await self._store.jobs_on(head.repo_id, pushed.number)
            both = {job.id: job for job in (*jobs, *others)}
            jobs = sorted(both.values(), key=lambda job: job.created_at, reverse=True)
        if pushed is None or datetime.now(UTC) - head.seen_at > FORGET:
            await self._heads.close(head, "nothing of ours any more, or too old")
            return
        repo = pushed.repo
        try:
            await self._decide(head, jobs, pushed)
        except NotFound as error:
            await self._heads.close(head, str(error))
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("checks not looked at", repo=repo.full_name, sha=head.sha, error=str(error))
            await self._heads.later(head, datetime.now(UTC) + _LATER)

    async def _decide(self, head: FailingHead, jobs: list[Job], pushed: Job) -> None:
        repo = pushed.repo
        if head.job_id is not None and await self._store.job(head.job_id) is not None:
            await self._heads.close(head, "a job is at it, or was")
            return
        try:
            fix = (await self._facts.repo_config(repo)).fix
        except RepoConfigError as error:
            await self._heads.close(head, f"the repository's configuration cannot be used: {error}")
            return
        rules = FixRules(automatic=fix.automatic, attempts=fix.attempts, settle=fix.settle)
        if not rules.automatic:
            await self._heads.close(head, "`fix: automatic` is off")
            return
        if any(not job.state.final for job in jobs):
            # a paused one may stay for days: GitHub is not asked before it has ended
            await self._heads.later(head, datetime.now(UTC) + _LATER)
            return
        # logs are fetched only when nothing else is in the way
        decision, checks = await self._judge(head, jobs, rules, details=False)
        if decision.allowed:
            decision, checks = await self._judge(head, jobs, rules, details=True)
        log.info(
            "failed checks",
            number=head.number,
            repo=repo.full_name,
            sha=head.sha,
            allowed=decision.allowed,
            again=decision.again,
            reasons=[one.said for one in decision.root.because if not one.ok],
        )
        worker = worker_of([job for job in jobs if head.number in (job.number, job.pull_number)]) or pushed
        if decision.allowed and (why := self._unable(worker.agent)):
            await self._leave(head, pushed, why)
        elif decision.allowed:
            await self._fix(head, pushed, worker, checks)
        elif decision.again is not None:
            await self._heads.later(head, datetime.now(UTC) + timedelta(seconds=decision.again))
        else:
            await self._give_up(head, pushed, decision)

    async def _judge(
        self, head: FailingHead, jobs: Sequence[Job], rules: FixRules, *, details: bool
    ) -> tuple[FixDecision, Checks]:
        repo = jobs[0].repo
        pull = await self._facts.pull(repo, head.number)
        checks = await self._checks.read(repo, head.sha, details=details)
        asked = max((job.created_at for job in jobs if job.trigger.event != EVENT), default=None)
        tried = dict(await self._heads.tried(head.repo_id, head.number, asked))
        tried.pop(head.sha, None)
        changing = [job for job in jobs if not job.kind.reads_only]
        facts = FixFacts(
            open=pull.open,
            head=pull.head_sha,
            ours=next((job.head_sha for job in changing if job.head_sha), None),
            checks=checks,
            waited=(datetime.now(UTC) - head.seen_at).total_seconds(),
            attempts=len(tried),
            before=frozenset(tried.values()),
            busy=any(not job.state.final for job in jobs),
            last=str(changing[0].state) if changing else "",
        )
        return should_fix(rules, facts), checks

    async def _fix(self, head: FailingHead, pushed: Job, worker: Job, checks: Checks) -> None:
        """Start a job in the name of whoever asked for the work whose checks fail: they must still be allowed to.

        ``worker``: the job whose agent goes on.
        """
        trigger = _trigger(head, pushed)
        job_id = job_id_for(trigger.delivery_id)
        if head.job_id is None and not await self._heads.begin(head, job_id, fingerprint(checks)):
            return  # another server is at it
        request = Request(
            repo=pushed.repo,
            number=head.number,
            target=TargetKind.pull_request,
            trigger=trigger,
            instructions=instructions(checks),
            title=pushed.title,
            body=pushed.body,
            kind=JobKind.fix,
            left_out=(*pushed.left_out, *checks.unread),
            judged=True,
        )
        job = await self._submit(as_before(request, worker))
        await self._heads.close(head, "a job is at it" if job is not None else "the job was refused")

    async def _leave(self, head: FailingHead, pushed: Job, why: str) -> None:
        """Say, once in a pull request, why the agent that worked there is not asked."""
        delivery = f"fix-{head.repo_id}-{head.number}-unable"
        trigger = Trigger(delivery_id=delivery, event=EVENT, actor=pushed.trigger.actor)
        text = (
            f"Checks of {head.sha} fail. I do not try to fix them by myself: {why}. Write `/agent fix --agent NAME` to "
            "have another agent do it."
        )
        await self._tell(pushed.repo, head.number, trigger, text)
        await self._heads.close(head, why)

    async def _give_up(self, head: FailingHead, pushed: Job, decision: FixDecision) -> None:
        no = [one for one in decision.root.because if not one.ok]
        if {one.question for one in no} & _TOLD and not {one.question for one in no} & _SILENT:
            why = "; ".join(one.said for one in no if one.question in _TOLD)
            text = f"Checks of {head.sha} fail. I do not try to fix them again: {why}."
            await self._tell(pushed.repo, head.number, _trigger(head, pushed), text)
        await self._heads.close(head, "; ".join(one.said for one in no))


def worker_of(jobs: Sequence[Job]) -> Job | None:
    """The newest of ``jobs`` (they are in that order) whose agent could change code; None: there is none."""
    return next((job for job in jobs if not job.kind.reads_only and job.kind is not JobKind.release), None)


def as_before(request: Request, worker: Job) -> Request:
    """``request`` with the agent and model of ``worker``, unless it, or the profile that it has here, names others.

    Where somebody named a profile for ``worker`` it goes on with that, and with the agent that was taken then.
    """
    request = request.evolve(
        usual_agent=worker.agent, usual_model=worker.model, named=request.named or goes_on(worker.named)
    )
    profile = asked_for(worker)
    if profile is None or request.profile is not None:
        return request
    if request.agent in (None, worker.agent):
        request = request.evolve(agent=worker.agent, model=request.model or worker.model)
    return request.evolve(profile=profile)


def _trigger(head: FailingHead, pushed: Job) -> Trigger:
    """Always the same for a commit, so that it is fixed, and spoken about, once."""
    delivery = f"fix-{head.repo_id}-{head.number}-{head.sha}"
    return Trigger(delivery_id=delivery[:80], event=EVENT, actor=pushed.trigger.actor)


def _pull_of(job: Job) -> int:
    return job.pull_number or job.number
