"""The last word on a pull request: the check run `agent/approval` on its head, and merging what people approved.

There is no record of it: it is counted anew from GitHub's reviews whenever something happens there.
"""

from __future__ import annotations

import re

import structlog

from bot.approval_desk import askers_of, requested
from bot.approval_store import ApprovalStore
from bot.approval_writer import CHECK_NAME, ApprovalWriter
from bot.approvals import ApprovalPolicy, Subject, Tally, Verdict, policy_for, tally
from bot.audit import CONDUCTOR, Audit
from bot.audit_chain import AuditKind
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_errors import GitHubError, Unprocessable
from bot.model import Job, Repo
from bot.repo_config import RepoConfig, RepoConfigError
from bot.reviews import Reviewed, ReviewFinder
from bot.store import Store

log = structlog.get_logger(__name__)


def number_in(name: str, external_id: str) -> int | None:
    """The number of the pull request that a check run of this kind is about; None for any other check run."""
    found = re.fullmatch(r"approval:(\d{1,9})", external_id) if name == CHECK_NAME else None
    return int(found[1]) if found else None


class FinalCheck:
    """Counts the reviews of the pull requests that the bot made, and shows who is missing."""

    def __init__(
        self,
        *,
        github: GitHub,
        store: Store,
        approvals: ApprovalStore,
        facts: FactFinder,
        reviews: ReviewFinder,
        writer: ApprovalWriter,
        audit: Audit,
    ) -> None:
        self._github = github
        self._store = store
        self._approvals = approvals
        self._facts = facts
        self._reviews = reviews
        self._writer = writer
        self._audit = audit

    async def update(
        self, repo: Repo, number: int, *, request: bool = False, queued_sha: str | None = None
    ) -> bool:
        """Bring `agent/approval` up to date; ``request``: and request the reviews that are wanted.

        ``queued_sha``: show it on that commit of a merge queue as well, which GitHub made of the approved one.
        Nothing happens on pull requests of others, and where no approval is wanted. Whether it is approved.
        """
        jobs = await self._store.jobs_on(repo.id, number)
        # an issue's own number is no pull request; a job may work on a pull request that somebody else made
        if not any(job.pull_number == number and job.branch for job in jobs):
            return False
        try:
            config = await self._facts.repo_config(repo)
        except RepoConfigError as error:
            head, is_open = await self._reviews.head(repo, number)
            if is_open:
                await self._writer.check_problem(repo, head, number, str(error))
            return False
        policy = policy_for(config, None, repo.owner)
        if not policy.required:
            return False
        made = {job.head_sha for job in jobs if job.head_sha}
        made |= {str(one.details.get("commit")) for one in await self._approvals.on(repo.id, number)}
        reviewed = await self._reviews.reviewed(repo, number, policy.rules, ours=made)
        me = (await self._github.identity()).user_id
        if reviewed.author_id != me:
            return False
        votes = await self._votes(reviewed, jobs, policy, me)
        askers = [job.trigger.actor.login for job in jobs if job.trigger.actor.id in askers_of([job])]
        for sha in filter(None, (reviewed.pull.head_sha, queued_sha)):
            await self._writer.check(repo, sha, reviewed.pull, votes, policy, askers)
        if request and votes.verdict is Verdict.waiting and not reviewed.draft:
            users, teams = requested(config.approvals.final, repo, set(askers))
            await self._writer.request(repo, number, users, teams)
        await self._merge(repo, reviewed, votes, config)
        return votes.verdict is Verdict.approved

    async def _votes(self, reviewed: Reviewed, jobs: list[Job], policy: ApprovalPolicy, me: int) -> Tally:
        subject = Subject(sha=reviewed.pull.head_sha, askers=askers_of(jobs), bot_id=me, sticky=True)
        return tally(reviewed.reviews, reviewed.people, subject, reviewed.pull, policy)

    async def _merge(self, repo: Repo, reviewed: Reviewed, votes: Tally, config: RepoConfig) -> None:
        """What the repository wants done with an approved pull request; taken back when it is approved no more."""
        pull, wanted = reviewed.pull, config.approvals.merge
        me = (await self._github.identity()).user_id
        try:
            if votes.verdict is not Verdict.approved:
                if reviewed.auto_merge_by == me:
                    await self._writer.no_auto_merge(repo, reviewed.node_id)
                if wanted == "queue" and pull.open:
                    await self._writer.dequeue(repo, reviewed.node_id, me)
                return
            if wanted == "none" or reviewed.draft or not pull.open or reviewed.auto_merge_by is not None:
                return
            # the base and the queue are GitHub's; that it is this commit, and no other, is ours to say
            await self._audit.record(
                AuditKind.merge,
                actor=CONDUCTOR,
                repo=repo,
                number=pull.number,
                sha=pull.head_sha,
                decision=votes.decision,
                details={"by": wanted, "into": reviewed.base_ref},
            )
            if wanted == "queue":
                await self._writer.enqueue(repo, reviewed.node_id, pull.head_sha)
                return
            try:
                await self._writer.auto_merge(repo, reviewed.node_id, pull.head_sha)
            except (
                Unprocessable
            ):  # nothing is missing, so that there is nothing to wait for; or it is not switched on
                await self._writer.merge(repo, pull.number, pull.head_sha)
        except GitHubError as error:
            log.warning("not merged", repo=repo.full_name, number=pull.number, error=str(error))
