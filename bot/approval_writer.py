"""What people see of approvals: the question, its outcome, reminders, the check run `agent/approval`; and merging.

Every method brings GitHub to a wanted state and may be repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from bot.approvals import ApprovalPolicy, PullFacts, Tally, final
from bot.check_runs import CheckRun, Shown
from bot.errors import GitHubUnavailable
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import GitHubError, Unprocessable
from bot.model import Approval, Job, Repo
from bot.permissions import CHANGE
from bot.render import marker, render
from bot.report import Reporter

log = structlog.get_logger(__name__)

CHECK_NAME = "agent/approval"
#: The conclusion that says nothing about approval; a required check run lets it pass.
NEUTRAL = "neutral"
_OTHER = "Somebody else made this pull request; the branch's other rules decide about it."
MAX_REVIEWERS = 15  # as many as GitHub takes on one pull request
_AUTO_MERGE = """mutation($pull: ID!, $head: GitObjectID!, $method: PullRequestMergeMethod!) {
  enablePullRequestAutoMerge(input: {pullRequestId: $pull, expectedHeadOid: $head, mergeMethod: $method}) {
    pullRequest { id } } }"""
_NO_AUTO_MERGE = """mutation($pull: ID!) {
  disablePullRequestAutoMerge(input: {pullRequestId: $pull}) { pullRequest { id } } }"""
_ENQUEUE = """mutation($pull: ID!, $head: GitObjectID!) {
  enqueuePullRequest(input: {pullRequestId: $pull, expectedHeadOid: $head}) { mergeQueueEntry { id } } }"""
_QUEUE = """query($pull: ID!) {
  node(id: $pull) { ... on PullRequest {
    isMergeQueueEnabled mergeQueueEntry { enqueuer { ... on Bot { databaseId } } } } } }"""
_DEQUEUE = """mutation($pull: ID!) { dequeuePullRequest(input: {id: $pull}) { mergeQueueEntry { id } } }"""


def mark_of(approval: Approval) -> str:
    """The hidden line of the comment that asks."""
    return marker("approval", f"{approval.id}/{approval.sha}")


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The merge queue of a pull request's base branch."""

    enabled: bool
    queued: bool  # it stands there
    by: int | None  # the App's account that has put it there; None: a person has


class ApprovalWriter:
    """Writes as the App's installation. It never submits a review, of any kind."""

    def __init__(self, github: GitHub, reporter: Reporter, *, github_url: str) -> None:
        """``github_url``: where people look at GitHub."""
        self._github = github
        self._reporter = reporter
        self._github_url = github_url.rstrip("/")

    # --- one question

    async def show(
        self, approval: Approval, job: Job, policy: ApprovalPolicy, *, why: str = "", known: int | None = None
    ) -> None:
        """Write the comment that asks, or edit it to say what became of it.

        ``why``: when it became void, or is shown again; ``known``: the comment's id.
        """
        mark = mark_of(approval)
        body = render(
            "comments/approval.md.j2",
            marker=mark,
            approval=approval,
            agent=job.agent,
            asker=job.trigger.actor.login,
            whom=policy.whom(),
            url=self._url(approval),
            why=why,
        )
        await self._reporter.comment(approval.repo, approval.pull_number, mark, body, known=known)

    async def show_plan(self, job: Job) -> None:
        """Say in the comment of the job that made a plan what became of it: that may be in another place, its issue."""
        await self._reporter.plan_settled(job.id)

    async def remind(self, approval: Approval, names: Sequence[str]) -> None:
        """Remind in a comment of its own, once: edits notify nobody."""
        mark = marker("reminder", f"{approval.id}/{approval.sha}")
        body = render(
            "comments/approval_reminder.md.j2",
            marker=mark,
            approval=approval,
            names=names,
            url=self._url(approval),
        )
        await self._reporter.comment(approval.repo, approval.pull_number, mark, body)

    async def not_counted(
        self, approval: Approval, review_id: int, login: str, sentences: Sequence[str]
    ) -> None:
        """Tell a reviewer, once for each review and question, why it does not decide."""
        mark = marker("not-counted", f"{approval.id}/{review_id}")
        body = render("comments/approval_not_counted.md.j2", marker=mark, login=login, sentences=sentences)
        await self._reporter.comment(approval.repo, approval.pull_number, mark, body)

    def where_to_click(self, repo: Repo, pending: Sequence[Approval], pull: int | None) -> str:
        """The answer to somebody who wants to approve by a comment. ``pull``: the pull request they are on."""
        return render(
            "comments/approval_where.md.j2",
            pending=pending,
            urls={approval.id: self._url(approval) for approval in pending},
            pull=f"{self._github_url}/{repo.full_name}/pull/{pull}" if pull else "",
        )

    async def request(self, repo: Repo, number: int, users: Collection[str], teams: Collection[str]) -> None:
        """Request reviews; of those that GitHub does not take, nobody. Best effort: they are named in the comment, too.

        https://docs.github.com/en/rest/pulls/review-requests#request-reviewers-for-a-pull-request
        """
        reviewers, slugs = list(users)[:MAX_REVIEWERS], list(teams)[:MAX_REVIEWERS]
        if not reviewers and not slugs:
            return
        try:
            try:
                await self._request(repo, number, reviewers, slugs)
            except Unprocessable:
                # one who is no collaborator, or opened it, spoils the request for all
                for user in reviewers:
                    await self._request_one(repo, number, [user], [])
                for slug in slugs:
                    await self._request_one(repo, number, [], [slug])
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("reviewers not requested", repo=repo.full_name, number=number, error=str(error))

    async def _request_one(self, repo: Repo, number: int, users: list[str], slugs: list[str]) -> None:
        try:
            await self._request(repo, number, users, slugs)
        except Unprocessable as error:
            log.info("no such reviewer", repo=repo.full_name, users=users, teams=slugs, error=str(error))

    async def _request(self, repo: Repo, number: int, users: list[str], slugs: list[str]) -> None:
        data: dict[str, list[str]] = {}
        if users:
            data["reviewers"] = users
        if slugs:
            data["team_reviewers"] = slugs
        await self._client(repo).post(
            self._path(repo, "/pulls/{number}/requested_reviewers", number=number), data=data
        )

    # --- a pull request as a whole

    async def check(
        self,
        repo: Repo,
        sha: str,
        pull: PullFacts,
        votes: Tally,
        policy: ApprovalPolicy,
        askers: Sequence[str],
        *,
        queue: bool = False,
        unmerged: Sequence[str] = (),
    ) -> None:
        """Show on ``sha`` whether the pull request is approved, by whom, and who is missing.

        ``queue``: the commit is a merge queue's. ``unmerged``: in GitHub's words, why it does not merge it.
        """
        says = final(votes, pull)
        summary = render(
            "check/approval.md.j2",
            pull=pull,
            votes=votes,
            whom=policy.whom(),
            askers=sorted(set(askers)),
            unmerged=unmerged,
        )
        title = f"{says.title}; not merged yet" if unmerged else says.title
        kind = "queue" if queue else unmerged_kind(unmerged) if unmerged else ""
        await self._put(repo, sha, pull.number, title, summary, says.conclusion, kind=kind)

    async def check_problem(
        self, repo: Repo, sha: str, number: int, problem: str, *, queue: bool = False
    ) -> None:
        """Show that nobody can tell who must approve."""
        title = "The repository's configuration cannot be used"
        kind = "queue" if queue else ""
        await self._put(repo, sha, number, title, problem, "action_required", kind=kind)

    async def check_other(self, repo: Repo, sha: str, number: int) -> None:
        """Show that the rule does not apply, because the pull request is not the bot's."""
        await self._put(repo, sha, number, "Not the bot's: its rule does not apply", _OTHER, NEUTRAL)

    async def shown(self, repo: Repo, sha: str) -> Shown | None:
        """What the check run says on a commit now; None when there is none."""
        return await self._reporter.checks.newest(repo, sha, CHECK_NAME)

    async def _put(
        self,
        repo: Repo,
        sha: str,
        number: int,
        title: str,
        summary: str,
        conclusion: str | None,
        *,
        kind: str = "",
    ) -> None:
        run = CheckRun(
            name=CHECK_NAME,
            external_id=f"approval:{number}{f':{kind}' if kind else ''}",
            title=title,
            summary=summary,
            status="completed" if conclusion else "in_progress",
            conclusion=conclusion,
            alone=True,  # what was said last counts, whichever pull request it was about
        )
        await self._reporter.checks.put(repo, sha, run)

    # --- merging what was approved

    async def merge(self, repo: Repo, number: int, sha: str) -> None:
        """Merge now, if the head still is ``sha``.

        Raises GitHubError: 405 when GitHub's rules do not let it be merged (yet), Conflict when the head is another.
        https://docs.github.com/en/rest/pulls/pulls#merge-a-pull-request
        """
        method = await self._method(repo)
        await self._client(repo).put(
            self._path(repo, "/pulls/{number}/merge", number=number),
            data={"sha": sha, "merge_method": method.lower()},
        )

    async def auto_merge(self, repo: Repo, node_id: str, sha: str) -> None:
        """Let GitHub merge it when all that its rules want is there. Raises Unprocessable when nothing is missing."""
        await self._mutate(repo, _AUTO_MERGE, pull=node_id, head=sha, method=await self._method(repo))

    async def no_auto_merge(self, repo: Repo, node_id: str) -> None:
        """Take that back."""
        await self._mutate(repo, _NO_AUTO_MERGE, pull=node_id)

    async def enqueue(self, repo: Repo, node_id: str, sha: str) -> None:
        """Put it into the merge queue of its base branch."""
        await self._mutate(repo, _ENQUEUE, pull=node_id, head=sha)

    async def queue(self, repo: Repo, node_id: str) -> Queue:
        """Whether there is a merge queue for it, and how it stands there."""
        found = (await self._client(repo).graphql(_QUEUE, pull=node_id)).get("node") or {}
        entry = found.get("mergeQueueEntry")
        return Queue(
            enabled=bool(found.get("isMergeQueueEnabled")),
            queued=entry is not None,
            by=((entry or {}).get("enqueuer") or {}).get("databaseId"),
        )

    async def dequeue(self, repo: Repo, node_id: str, by: int) -> None:
        """Take it out of the merge queue, if it stands there and the account ``by`` has put it there."""
        if (await self.queue(repo, node_id)).by == by:
            await self._mutate(repo, _DEQUEUE, pull=node_id)

    async def _method(self, repo: Repo) -> str:
        """The first way of merging that the repository allows."""
        found: Mapping[str, Any] = await self._client(repo).getitem(self._path(repo, ""))
        for name, method in (
            ("allow_merge_commit", "MERGE"),
            ("allow_squash_merge", "SQUASH"),
            ("allow_rebase_merge", "REBASE"),
        ):
            if found.get(name, name == "allow_merge_commit"):
                return method
        return "MERGE"

    async def _mutate(self, repo: Repo, query: str, **variables: str) -> None:
        await self._client(repo).graphql(query, **variables)

    def _url(self, approval: Approval) -> str:
        return f"{self._github_url}/{approval.repo.full_name}/pull/{approval.pull_number}"

    def _client(self, repo: Repo) -> GitHubClient:
        return self._github.repository(repo, CHANGE)

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)


def unmerged_kind(reasons: Sequence[str]) -> str:
    """The part of a check run's external id that tells: approved, and not merged for exactly these reasons."""
    return f"unmerged:{hashlib.sha256(chr(0).join(reasons).encode()).hexdigest()[:8]}"
