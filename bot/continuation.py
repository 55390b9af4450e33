"""Where work that is asked for in an issue goes on: in the open pull request that came of it, if there is one.

Else it starts from the base branch, with a pull request of its own. :func:`kind_in` decides; the rest looks things up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.approval_store import ApprovalStore
from bot.branches import PREFIX
from bot.facts import FactFinder, Pull
from bot.fixer import as_before, worker_of
from bot.github_errors import NotFound
from bot.model import Approval, ApprovalKind, ApprovalState, Job, JobKind, Repo, Request, TargetKind
from bot.store import Store

#: So many pull requests of one issue are looked at, the newest ones.
MAX_PULLS = 10


@dataclass(frozen=True, kw_only=True)
class Came:
    """A pull request that came of an issue, as it is now."""

    pull: Pull
    branch: str  # of ours, that the job which opened it pushes to
    branch_there: bool
    jobs: Sequence[Job]  # there, the newest first
    plans: Sequence[Approval]  # that were asked there


def kind_in(came: Came, request: Request) -> JobKind | None:
    """What ``request``, made in the issue, becomes in the pull request that came of it; None: it does not go on there.

    A draft whose plan nobody has approved, or nobody has begun with, holds no work to go on with: what is asked
    meanwhile is planned, too. One of which nothing came is left alone.
    """
    pull = came.pull
    ours = not pull.from_fork and pull.head_ref == came.branch and came.branch.startswith(f"{PREFIX}/")
    if not (pull.open and ours and came.branch_there) or request.base not in (None, pull.base_ref):
        return None
    active = [job for job in came.jobs if not job.state.final]
    if any(waits(plan) for plan in came.plans) or any(job.kind is JobKind.plan for job in active):
        # steps without a model have no plan to make
        return None if request.named is not None and request.named.steps else JobKind.plan
    pushed = [job for job in came.jobs if job.head_sha]
    return request.kind if any(not job.kind.reads_only for job in (*active, *pushed)) else None


def waits(plan: Approval) -> bool:
    """Whether a plan is not decided about, or approved and not begun with."""
    return plan.state is ApprovalState.pending or (
        plan.state is ApprovalState.approved and plan.used_at is None
    )


async def asked_on(store: Store, repo_id: int, number: int) -> list[Job]:
    """The jobs of an issue or pull request as :meth:`Store.jobs_on`, and those asked for here that go on elsewhere."""
    jobs = await store.conversation(repo_id, number)
    return [job for job in jobs if number in (job.number, job.pull_number, job.asked_in)]


class Continuation:
    """Looks for the pull request in which the work on an issue goes on."""

    def __init__(self, *, store: Store, facts: FactFinder, approvals: ApprovalStore) -> None:
        self._store = store
        self._facts = facts
        self._approvals = approvals

    async def of(self, request: Request) -> Request | None:
        """What ``request`` is in the pull request where it goes on; None: it is new work, or no work on an issue.

        Whoever worked there last goes on, unless somebody else is named. Raises GitHubError or GitHubUnavailable when
        GitHub does not say how a pull request is: to open a second one by mistake is worse than to ask again later.
        """
        works = request.kind in (JobKind.task, JobKind.plan)
        if request.target is not TargetKind.issue or not works or request.retry_of or request.approval_id:
            return None
        opened = [
            job for job in await self._store.jobs_on(request.repo.id, request.number) if job.pull_number
        ]
        for job in [job for job in opened if job.number == request.number][:MAX_PULLS]:
            came = await self._came(job)
            kind = kind_in(came, request) if came is not None else None
            if came is not None and kind is not None:
                return _in(came, request, kind)
        return None

    async def replaced(self, job: Job) -> None:
        """A plan that nobody has decided about makes way for the one that ``job`` makes, which has more in it."""
        if job.kind is not JobKind.plan or job.asked_in == job.number:
            return
        why = f"{job.trigger.actor.login} asked for more, so it is planned anew"
        for plan in await self._approvals.pending_on(job.repo.id, job.number):
            if plan.kind is ApprovalKind.plan and plan.job_id != job.id:
                await self._approvals.end(plan, ApprovalState.withdrawn, why=why)

    async def _came(self, job: Job) -> Came | None:
        """The pull request that ``job`` opened; None: it is gone."""
        if not job.pull_number or not job.branch:
            return None
        try:
            pull = await self._facts.pull(job.repo, job.pull_number)
        except NotFound:
            return None
        # GitHub closes a pull request whose branch is removed, a moment later
        there = pull.open and await self._branch_there(job.repo, job.branch)
        asked = await self._approvals.on(job.repo.id, pull.number)
        return Came(
            pull=pull,
            branch=job.branch,
            branch_there=there,
            jobs=await self._store.jobs_on(job.repo.id, pull.number),
            plans=[one for one in asked if one.kind is ApprovalKind.plan],
        )

    async def _branch_there(self, repo: Repo, branch: str) -> bool:
        return await self._facts.branch_sha(repo, branch) is not None


def _in(came: Came, request: Request, kind: JobKind) -> Request:
    # steps of a named job have no agent that could go on
    worked = [job for job in came.jobs if job.named is None or not job.named.steps]
    last = worker_of(worked) or next((job for job in worked if job.kind is JobKind.plan), None)
    request = request.evolve(
        number=came.pull.number,
        target=TargetKind.pull_request,
        base=None,
        kind=kind,
        asked_in=request.number,
    )
    return request if last is None else as_before(request, last)
