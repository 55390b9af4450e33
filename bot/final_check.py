"""The last word on a pull request: the check run `agent/approval` on its head, and merging what people approved.

There is no record of it: it is counted anew from GitHub's reviews whenever something happens there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from bot.approval_desk import named
from bot.approval_store import ApprovalStore
from bot.approval_writer import CHECK_NAME, NEUTRAL, ApprovalWriter, unmerged_kind
from bot.approvals import ApprovalPolicy, Subject, Tally, Verdict, policy_for, tally, told_apart
from bot.askers import askers_of, with_origins
from bot.audit import CONDUCTOR, Audit
from bot.audit_chain import AuditKind
from bot.branches import PREFIX
from bot.check_runs import Shown
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_errors import GitHubError
from bot.model import Job, Repo
from bot.repo_config import PATH, RepoConfig, RepoConfigError
from bot.reviews import Head, Reviewed, ReviewFinder
from bot.store import Store

log = structlog.get_logger(__name__)

#: Pull requests that are looked at when a configuration has come; others are when something happens there.
MAX_LOOKED_AT = 30
#: Pull requests of one commit that are looked at when its checks are to be run again.
MAX_AT = 10

_EXTERNAL_ID = re.compile(r"approval:(\d{1,9})(?::(queue|unmerged:[0-9a-f]{8}))?")


def number_in(name: str, external_id: str) -> int | None:
    """The number of the pull request that a check run of this kind is about; None for any other check run."""
    found = _EXTERNAL_ID.fullmatch(external_id) if name == CHECK_NAME else None
    return int(found[1]) if found else None


def is_queue(external_id: str) -> bool:
    """Whether a check run of this kind stands on a merge queue's commit."""
    return _kind(external_id) == "queue"


def is_unmerged(external_id: str) -> bool:
    """Whether a check run of this kind says that GitHub does not merge what is approved."""
    return _kind(external_id).startswith("unmerged")


def _kind(external_id: str) -> str:
    found = _EXTERNAL_ID.fullmatch(external_id)
    return (found[2] if found else None) or ""


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """The reviews of one pull request, counted."""

    reviewed: Reviewed
    votes: Tally
    policy: ApprovalPolicy
    askers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What there is to say about one pull request that the rule applies to."""

    number: int
    sha: str  # its head
    by_bot: bool
    counted: _Counted | None = None  # None: nobody can tell who must approve
    problem: str = ""

    @property
    def rank(self) -> int:
        """The lower, the worse: of several on one commit the worst is shown."""
        if self.counted is None:
            return 0
        return (Verdict.refused, Verdict.waiting, Verdict.approved).index(self.counted.votes.verdict)


class FinalCheck:
    """Counts the reviews of the pull requests that the bot made, and shows who is missing.

    Who makes `agent/approval` a required check run makes it one of everybody's pull requests. So it says on those of
    others that its rule does not apply. Check runs belong to commits, and anybody can open a pull request of any
    commit: where the head is the bot's in any way the reviews are counted, as for the bot's own.
    """

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

    async def update(self, repo: Repo, number: int, *, request: bool = False, others: bool = False) -> bool:
        """Bring `agent/approval` up to date; ``request``: and request the reviews that are wanted.

        ``others``: also where it only says that the rule does not apply. Nothing happens where no approval is
        wanted. Whether all that the head of the pull request stands for is approved.
        """
        config = await self._config(repo)
        return config is not None and await self._update(repo, number, config, request=request, others=others)

    async def _update(
        self,
        repo: Repo,
        number: int,
        config: RepoConfig | RepoConfigError,
        *,
        request: bool = False,
        others: bool = False,
    ) -> bool:
        said = await self._look(repo, number, config, others=others) or []
        for one in said:
            await self._follow(repo, one, config, request=request and one.number == number)
        return bool(said) and all(_approved(one) for one in said)

    async def checks_ended(self, repo: Repo, sha: str, branches: Sequence[str]) -> None:
        """Merge what is approved and GitHub would not merge before, because checks of it had not ended.

        ``branches``: those that the event names. Everything is counted anew. Of a commit that is none of the bot's
        pull requests' nothing is asked of GitHub, and of most others no more than what the check run says there.
        """
        if not any(branch.startswith(f"{PREFIX}/") for branch in branches) and not await self._made(
            repo, sha
        ):
            return
        shown = await self._writer.shown(repo, sha)
        if shown is None or shown.conclusion != "success" or is_queue(shown.external_id):
            return
        number, told = number_in(CHECK_NAME, shown.external_id), is_unmerged(shown.external_id)
        config = await self._config(repo)
        if number is None or not isinstance(config, RepoConfig) or config.approvals.merge == "none":
            return
        if config.approvals.merge == "queue" and not told:
            return  # it stands there; or it was thrown out, and the same would fail again
        head = await self._reviews.stands(repo, number)
        me = (await self._github.identity()).user_id
        if (head.sha, head.open, head.author_id, head.auto_merge) != (sha, True, me, False):
            return
        if not await self._known(repo, number):
            return
        said = await self._say(repo, head, config)
        if said.sha != sha:
            return  # its own event comes
        if _approved(said) and said.counted is not None:
            if await self._merge(repo, said.counted, config) and told:
                await self._show_now(repo, said)
            return
        await self._show_now(repo, said)
        await self._follow(repo, said, config)

    async def pulls_at(self, repo: Repo, sha: str) -> list[int]:
        """The open pull requests whose head a commit is; a few, if there are many."""
        found = [one.number for one in await self._reviews.pulls_with(repo, sha) if one.sha == sha]
        return sorted(found)[:MAX_AT]

    async def configured(self, repo: Repo, number: int) -> None:
        """A pull request was merged: if it brought a configuration that wants approvals, look at the open ones.

        As a required check `agent/approval` would be missing there, and nothing need happen there that brings it.
        """
        config = await self._config(repo)
        if config is None or PATH not in (await self._facts.changed_paths(repo, number))[0]:
            return
        for one in await self._reviews.open_pulls(repo, MAX_LOOKED_AT):
            try:
                await self._update(repo, one, config, others=True)
            except GitHubError as error:  # it may be gone; the others are none the worse for that
                log.warning("not looked at", repo=repo.full_name, number=one, error=str(error))

    async def rebased(self, repo: Repo, number: int, at: datetime) -> None:
        """A pull request got another base branch: its change is another one, and others may own it there.

        Its head stays, and so would what was said of it.
        """
        await self._approvals.rebased(repo.id, number, at)
        await self.update(repo, number, others=True)

    async def queued(self, repo: Repo, number: int, sha: str) -> None:
        """Show it on a merge queue's commit ``sha``, which GitHub made of ``number`` and what stands before it."""
        config = await self._config(repo)
        if config is None:
            return
        said: dict[int, _Said] = {}
        certain = True
        for one in await self._reviews.queued_with(repo, number, sha):
            found = await self._look(repo, one, config)
            certain = certain and found is not None
            said |= {each.number: each for each in found or ()}
        worst = min(said.values(), key=lambda each: each.rank, default=None)
        if worst is not None and (certain or not _approved(worst)):
            await self._show(repo, sha, worst, queue=True)
        elif certain:
            await self._writer.check_other(repo, sha, number)
        for each in said.values():
            if not _approved(each):  # what is approved stands there already
                await self._follow(repo, each, config)

    # --- looking

    async def _config(self, repo: Repo) -> RepoConfig | RepoConfigError | None:
        """What counts in the repository; None when no approval is wanted there."""
        try:
            config = await self._facts.repo_config(repo)
        except RepoConfigError as error:
            return error
        return config if policy_for(config, None, repo.owner).required else None

    async def _look(
        self, repo: Repo, number: int, config: RepoConfig | RepoConfigError, *, others: bool = False
    ) -> list[_Said] | None:
        """Show on the head of a pull request what there is to say about it, and return that.

        An empty list: the rule does not apply to it. None: nobody can tell, so that nothing is said.
        """
        head = await self._reviews.stands(repo, number)
        me = (await self._github.identity()).user_id
        if head.author_id == me:
            if not await self._known(repo, number) or not (head.open or isinstance(config, RepoConfig)):
                return None
            said = await self._say(repo, head, config)
            await self._show_now(repo, said)
            return [said]
        if not head.open:
            return []
        # in one piece: else a head that becomes the bot's at this very moment is said not to be
        async with self._lock(repo):
            shown = await self._writer.shown(repo, head.sha)
            heads = await self._meant(repo, head, shown, me)
            if heads == [] and others and not (shown and shown.conclusion == NEUTRAL):
                await self._writer.check_other(repo, head.sha, number)
            if not heads:
                return None if heads is None else []
            all_said = [await self._say(repo, one, config, at=head.sha) for one in heads]
            worst = min(all_said, key=lambda one: one.rank)
            await self._show(repo, worst.sha, worst)
            return all_said

    async def _meant(self, repo: Repo, head: Head, shown: Shown | None, me: int) -> list[Head] | None:
        """The pull requests whose reviews count for the head of somebody else's: this one, or the bot's with that head.

        ``shown``: what the check run says there already.

        An empty list: the rule does not apply. None: what the check run says of that commit is about one of the bot's.
        """
        made = await self._made(repo, head.sha)
        numbers = {job.pull_number for job in made}
        asked = await self._approvals.at(repo.id, head.sha)
        numbers |= {one.pull_number for one in asked}
        bots = [one for one in await self._reviews.pulls_with(repo, head.sha) if one.author_id == me]
        numbers |= {one.number for one in bots}
        about = None
        if shown and shown.conclusion != NEUTRAL:
            about = number_in(CHECK_NAME, shown.external_id)
            if about is None or is_queue(shown.external_id):
                return None
            numbers.add(about)
        numbers -= {None, head.number}
        branch = not head.from_fork and head.ref.startswith(f"{PREFIX}/")
        if not (numbers or made or asked or branch):
            return []
        found = [await self._reviews.stands(repo, number) for number in sorted(filter(None, numbers))]
        same = [one for one in found if one.open and one.sha == head.sha]
        if same:
            # else a pull request into a branch with other code owners could approve the bot's
            known = [one.author_id != me or await self._known(repo, one.number) for one in same]
            return same if all(known) else None
        waits = shown is not None and shown.conclusion != "success"
        if waits and any(one.open and one.number == about for one in found):
            return None  # the other one may come back to this commit, and people have not approved it there
        return [head]

    async def _known(self, repo: Repo, number: int) -> bool:
        """Whether it is known who asked for a pull request of the bot's: else who asked could approve it."""
        jobs = await self._store.jobs_on(repo.id, number)
        return any(job.pull_number == number and job.branch for job in jobs)

    async def _made(self, repo: Repo, sha: str) -> list[Job]:
        """The jobs that pushed a commit."""
        return [job for job in await self._store.jobs_at(repo.id, sha) if job.head_sha == sha]

    async def _say(
        self, repo: Repo, head: Head, config: RepoConfig | RepoConfigError, *, at: str | None = None
    ) -> _Said:
        """Count the reviews of a pull request. ``at``: a commit whose jobs have a part in it, too."""
        by_bot = head.author_id == (await self._github.identity()).user_id
        if isinstance(config, RepoConfigError):
            return _Said(number=head.number, sha=head.sha, by_bot=by_bot, problem=str(config))
        policy = policy_for(config, None, repo.owner)
        jobs = await self._store.jobs_on(repo.id, head.number)
        if not head.from_fork:
            # the branch may have had another pull request before: what was asked for there is in this one, too
            jobs = [*jobs, *await self._store.jobs_on_branch(repo.id, head.ref)]
        if at:
            jobs = [*jobs, *await self._made(repo, at)]
        jobs = await with_origins(self._store, jobs)
        made = {job.head_sha for job in jobs if job.head_sha}
        asked = await self._approvals.on(repo.id, head.number)
        made |= {str(one.details.get("commit")) for one in asked}
        reviewed = await self._reviews.reviewed(repo, head.number, policy.rules, ours=made)
        reviewed = dataclasses.replace(reviewed, reviews=told_apart(reviewed.reviews, asked))
        since = await self._approvals.rebased_at(repo.id, head.number)
        votes = await self._votes(reviewed, jobs, policy, since)
        askers = [job.trigger.actor.login for job in jobs if job.trigger.actor.id in askers_of([job])]
        return _Said(
            number=head.number,
            sha=reviewed.pull.head_sha,
            by_bot=by_bot,
            counted=_Counted(reviewed=reviewed, votes=votes, policy=policy, askers=tuple(askers)),
        )

    async def _votes(
        self, reviewed: Reviewed, jobs: list[Job], policy: ApprovalPolicy, since: datetime | None
    ) -> Tally:
        me = (await self._github.identity()).user_id
        told = await self._approvals.who_asks_too((job.id for job in jobs), reviewed.people)
        askers = askers_of(jobs) | told
        subject = Subject(sha=reviewed.pull.head_sha, askers=askers, bot_id=me, since=since, sticky=True)
        return tally(reviewed.reviews, reviewed.people, subject, reviewed.pull, policy)

    # --- showing

    def _lock(self, repo: Repo) -> AbstractAsyncContextManager[None]:
        return self._store.locks.hold(f"final-check:{repo.id}")

    async def _show_now(self, repo: Repo, said: _Said, *, unmerged: Sequence[str] = ()) -> None:
        async with self._lock(repo):
            await self._show(repo, said.sha, said, unmerged=unmerged)

    async def _show(
        self, repo: Repo, sha: str, said: _Said, *, queue: bool = False, unmerged: Sequence[str] = ()
    ) -> None:
        counted = said.counted
        if counted is None:
            await self._writer.check_problem(repo, sha, said.number, said.problem, queue=queue)
            return
        pull, votes = counted.reviewed.pull, counted.votes
        await self._writer.check(
            repo, sha, pull, votes, counted.policy, counted.askers, queue=queue, unmerged=unmerged
        )

    async def _follow(
        self, repo: Repo, said: _Said, config: RepoConfig | RepoConfigError, *, request: bool = False
    ) -> None:
        """What else is done about a pull request of the bot's; others are theirs to merge."""
        counted = said.counted
        if counted is None or isinstance(config, RepoConfigError) or not said.by_bot:
            return
        if request and counted.votes.verdict is Verdict.waiting and not counted.reviewed.draft:
            rules = (config.approvals.final, config.approvals.request, config.who.may_approve)
            users, teams = await named(self._reviews, rules, repo, said.number, set(counted.askers))
            await self._writer.request(repo, said.number, users, teams)
        await self._merge(repo, counted, config)

    async def _merge(self, repo: Repo, counted: _Counted, config: RepoConfig) -> bool:
        """What the repository wants done with an approved pull request; taken back when it is approved no more.

        Whether GitHub does it. If not, the check run says why.
        """
        reviewed, pull, wanted = counted.reviewed, counted.reviewed.pull, config.approvals.merge
        if counted.votes.verdict is not Verdict.approved:
            try:
                await self._take_back(repo, reviewed, wanted)
            except GitHubError as error:
                log.warning("merge not taken back", repo=repo.full_name, number=pull.number, error=str(error))
            return False
        if wanted == "none" or reviewed.draft or not pull.open or reviewed.auto_merge_by is not None:
            return False
        try:
            # an event of the check run that was just written comes at once, and must not do it, too
            async with self._store.locks.hold(f"final-merge:{repo.id}:{pull.number}"):
                refusals = await self._try(repo, counted, wanted)
                if refusals:
                    said = [str(one) for one in refusals]
                    log.warning("not merged", repo=repo.full_name, number=pull.number, errors=said)
                    await self._tell(
                        repo, pull.number, pull.head_sha, config, [one.reason for one in refusals]
                    )
                return refusals == []
        except GitHubError as error:
            log.warning("not merged", repo=repo.full_name, number=pull.number, error=str(error))
            return False

    async def _take_back(self, repo: Repo, reviewed: Reviewed, wanted: str) -> None:
        me = (await self._github.identity()).user_id
        if reviewed.auto_merge_by == me:
            await self._writer.no_auto_merge(repo, reviewed.node_id)
        if wanted == "queue" and reviewed.pull.open:
            await self._writer.dequeue(repo, reviewed.node_id, me)

    async def _try(self, repo: Repo, counted: _Counted, wanted: str) -> list[GitHubError] | None:
        """Have GitHub merge a commit, one way or the other. Its refusals; None when there is nothing to be done now."""
        node_id, pull = counted.reviewed.node_id, counted.reviewed.pull
        head = await self._reviews.stands(repo, pull.number)
        if not head.open or head.auto_merge or head.sha != pull.head_sha:
            return None
        auto_merge = partial(self._writer.auto_merge, repo, node_id, pull.head_sha)
        # auto-merge is refused where nothing is missing, so that there is nothing to wait for, or it is not switched on
        ways = [auto_merge, partial(self._writer.merge, repo, pull.number, pull.head_sha)]
        if wanted == "queue":
            queue = await self._writer.queue(repo, node_id)
            if queue.queued:
                return None
            # GitHub takes nothing into the queue that is not ready, and puts it there by itself when it is
            ways = [
                partial(self._writer.enqueue, repo, node_id, pull.head_sha),
                *([auto_merge] * queue.enabled),
            ]
        # the base and the queue are GitHub's; that it is this commit, and no other, is ours to say
        await self._audit.record(
            AuditKind.merge,
            actor=CONDUCTOR,
            repo=repo,
            number=pull.number,
            sha=pull.head_sha,
            decision=counted.votes.decision,
            details={"by": wanted, "into": counted.reviewed.base_ref},
        )
        refusals: list[GitHubError] = []
        for way in ways:
            try:
                await way()
            except GitHubError as error:
                refusals.append(error)
            else:
                return []
        return refusals

    async def _tell(self, repo: Repo, number: int, sha: str, config: RepoConfig, why: Sequence[str]) -> None:
        """Say in the check run why GitHub does not merge what is approved, if that is so still."""
        shown = await self._writer.shown(repo, sha)
        if shown is not None and shown.external_id == f"approval:{number}:{unmerged_kind(why)}":
            return  # nothing new; each time that it is written GitHub may tell us
        head = await self._reviews.stands(repo, number)
        if not head.open or head.sha != sha:
            return  # somebody has merged it, or pushed
        said = await self._say(repo, head, config)
        if said.sha == sha and _approved(said):
            await self._show_now(repo, said, unmerged=why)


def _approved(said: _Said) -> bool:
    return said.counted is not None and said.counted.votes.verdict is Verdict.approved
