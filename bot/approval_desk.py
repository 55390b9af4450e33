"""Where people's decisions are asked for and come in: the one thing that acts on reviews for approvals.

Whatever an event says, GitHub is asked anew, and once more at the moment of use. Every method may be repeated.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Awaitable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, Protocol

import structlog

from bot.approval_store import ApprovalStore
from bot.approval_writer import ApprovalWriter, mark_of
from bot.approvals import (
    ApprovalPolicy,
    Review,
    ReviewState,
    Subject,
    Tally,
    Verdict,
    policy_for,
    tally,
    told_apart,
    weigh,
)
from bot.askers import askers_of, reviewers_of, with_origins
from bot.errors import ConductorError, GitHubUnavailable
from bot.events import Edit, Event
from bot.github import GitHub
from bot.github_errors import GitHubError
from bot.model import Actor, Approval, ApprovalKind, ApprovalState, Job, JobState, Repo
from bot.policy import Decision
from bot.repo_config import of as config_of
from bot.repo_rules import People
from bot.reviews import Reviewed, ReviewFinder
from bot.standing import at_least, team_name
from bot.store import Store

log = structlog.get_logger(__name__)

#: Of a job whose agent waits, what it asked ends with it. A plan, and what was held back, outlive theirs.
_WAITED_FOR = frozenset({ApprovalKind.network, ApprovalKind.budget, ApprovalKind.path, ApprovalKind.text})
_IN_VAIN = frozenset({JobState.cancelled, JobState.failed, JobState.timed_out, JobState.lost})
#: What the job has to know, and not only people.
_MATTERS = frozenset({ApprovalState.approved, ApprovalState.refused, ApprovalState.expired})
#: Younger than this, whoever made the change is still at telling it.
SETTLING = timedelta(seconds=30)


class ApprovalVoid(ConductorError):
    """What was approved does not hold now: the review is gone or changed, or the branch has moved."""


class Outcome(Protocol):
    """What happens then. Each may be called more than once for the same approval."""

    async def approved(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        """Somebody said yes: start the planned work, or answer the job with ``words``."""

    async def refused(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        """Somebody said no: revise the plan, or answer the job with ``words``."""

    async def lapsed(self, approval: Approval, job: Job, why: str) -> None:
        """There is no yes, and nobody said no.

        Nobody decided in time (``expired``), a yes that was told before does not hold any more (``stale``), or nobody
        can decide any more (``withdrawn``). ``why``: a sentence about that; "" when it is not known any more.
        """


@dataclass(frozen=True, kw_only=True)
class _Count:
    """All that is known about one question at one moment."""

    approval: Approval
    reviewed: Reviewed
    subject: Subject
    policy: ApprovalPolicy
    votes: Tally


class ApprovalDesk:
    """Asks, decides, expires, reminds."""

    def __init__(
        self,
        *,
        github: GitHub,
        store: Store,
        approvals: ApprovalStore,
        reviews: ReviewFinder,
        writer: ApprovalWriter,
        outcome: Outcome | None = None,
    ) -> None:
        """``outcome`` may be left out where only :meth:`ask`, :meth:`use` and :meth:`withdraw` are called."""
        self.approvals = approvals
        self.outcome = outcome
        self._github = github
        self._store = store
        self._reviews = reviews
        self._writer = writer

    # --- asking

    async def ask(
        self,
        job: Job,
        kind: ApprovalKind,
        subject: str,
        *,
        sha: str,
        pull_number: int,
        details: Mapping[str, Any] | None = None,
    ) -> Approval:
        """Ask people about ``subject`` (Markdown), bound to ``sha``, which is the head of the pull request.

        What the job asked before and nobody has decided is withdrawn. The comment and the requests for reviews are
        made good by :meth:`settle` when GitHub does not take them now. Raises AuditUnavailable.
        """
        before = await self.approvals.pending_of(job.id)
        if before is not None and (before.kind, before.sha, before.subject) == (kind, sha, subject):
            return before
        if before is not None:
            await self._end(before, ApprovalState.withdrawn, why="the job asks something else now")
        config = config_of(job)
        now = datetime.now(UTC)
        # the head of somebody else's branch is theirs, whatever is asked about it
        made = {"commit": sha} if sha in (job.marker_sha, job.head_sha) else {}
        approval = Approval(
            id=f"p{secrets.token_hex(6)}",
            kind=kind,
            job_id=job.id,
            repo=job.repo,
            pull_number=pull_number,
            subject=subject,
            details={**(details or {}), **made},
            sha=sha,
            state=ApprovalState.pending,
            asked_at=now,
            expires_at=now + timedelta(seconds=config.approvals.expires),
        )
        if not await self.approvals.ask(approval):
            asked = await self.approvals.pending_of(job.id)
            if asked is None:
                raise ConductorError("Somebody decided at this very moment.", "Ask again.")
            return asked
        log.info("asked for an approval", approval=approval.id, kind=str(kind), **job.log_context())
        await self._tell(approval, job)
        return await self.approvals.approval(approval.id) or approval

    async def withdraw(self, job_id: str) -> None:
        """The job ended: what it waits for need not be decided, and what was approved is not to be used."""
        for approval in await self.approvals.of_job(job_id):
            if approval.state is ApprovalState.pending or _unused(approval):
                await self._end(approval, ApprovalState.withdrawn, why="its job ended")

    # --- deciding

    async def reviewed(self, event: Event) -> bool:
        """A review was submitted, edited or dismissed. Whether it was about a question (and is no mere feedback)."""
        review = event.review
        if review is None:
            return False
        if event.action == "edited" and (review.author is None or review.author.id != event.actor.id):
            await self.approvals.distrust(review.id)
        here = await self.approvals.on(event.repo.id, event.number)
        concerned = False
        for approval in here:
            if approval.state is ApprovalState.pending:
                concerned = await self._consider(_now_called(approval, event.repo), event) or concerned
            elif _unused(approval):
                await self._recheck(_now_called(approval, event.repo), event.delivery_id)
                concerned = concerned or approval.review_id == review.id
        if not concerned and event.action == "submitted":
            late = next((one for one in here if one.sha == review.commit_id), None)
            if late is not None and late.review_id == review.id:
                concerned = True  # the same event again
            elif late is not None and late.state not in (ApprovalState.pending, ApprovalState.stale):
                concerned = await self._too_late(_now_called(late, event.repo), event)
        return concerned

    async def pushed(self, repo: Repo, number: int) -> None:
        """The head of a pull request may have moved: what is asked there is asked anew, about the new head."""
        for approval in await self.approvals.on(repo.id, number):
            if approval.state is ApprovalState.pending:
                head, is_open = await self._reviews.head(repo, number)
                if is_open and head != approval.sha:
                    await self._ask_anew(_now_called(approval, repo), head)
            elif _unused(approval):
                await self._recheck(_now_called(approval, repo))

    async def text_changed(self, event: Event) -> None:
        """Somebody else changed a text of ours where something is asked: it is shown once more as it is.

        Whoever read the other text has not seen what is asked. So reviews from before do not count, and what such a
        review has approved is void, if that was not used yet. Each change brings about one edit of ours, at most.
        """
        edit, me = event.edit, (await self._github.identity()).user_id
        if edit is None or edit.author_id != me or event.actor.id == me:
            return
        for approval in await self.approvals.on(event.repo.id, event.number):
            now_called = _now_called(approval, event.repo)
            if approval.state is ApprovalState.pending:
                await self._show_again(now_called, event, edit)
            elif _unused(approval) and edit.at and approval.decided_at and approval.decided_at >= edit.at:
                why = f"{event.actor.login} changed the text of the question before it was decided."
                await self._end(now_called, ApprovalState.stale, why=why)

    async def _show_again(self, approval: Approval, event: Event, edit: Edit) -> None:
        job = await self._store.job(approval.job_id)
        if job is None:
            return
        log.warning("the text of a question was changed", approval=approval.id, by=event.actor.login)
        mark, known = mark_of(approval), None
        if event.comment is not None and mark in edit.before:
            known = event.comment.id
        why = f"{event.actor.login} changed a text of the bot's here. What is asked is what stands below."
        policy = policy_for(config_of(job), approval.kind, approval.repo.owner)
        try:
            await self._writer.show(approval, job, policy, why=why, known=known)
        except GitHubUnavailable:
            raise
        except GitHubError as error:  # gone, or locked: nobody can decide there either
            log.warning("not shown again", approval=approval.id, error=str(error))
        # until now people could read the other text
        await self.approvals.shown_again(approval, datetime.now(UTC), by=event.actor)

    async def closed(self, repo: Repo, number: int) -> None:
        """A pull request was closed or merged: nothing is asked there any more."""
        for approval in await self.approvals.on(repo.id, number):
            if approval.state is ApprovalState.pending or _unused(approval):
                why = "The pull request was closed."
                ended = await self._end(_now_called(approval, repo), ApprovalState.withdrawn, why=why)
                job = await self._store.job(approval.job_id)
                if ended and self.outcome and job is not None and job.state is JobState.paused:
                    await self.outcome.lapsed(ended, job, why)

    async def decide_as_operator(
        self, approval_id: str, *, yes: bool, reason: str, operator: str
    ) -> Approval:
        """An operator on the host decides in place of a review. Raises ConductorError unless it is pending."""
        approval = await self.approvals.approval(approval_id)
        if approval is None:
            raise ConductorError(
                f"There is no approval {approval_id!r}.", "`conductor approvals` lists what waits."
            )
        if approval.state is not ApprovalState.pending:
            by = f" by {approval.decided_by}" if approval.decided_by else ""
            raise ConductorError(
                f"Approval {approval.id} is not pending: it is {approval.state}{by}.",
                "`conductor approvals` lists what waits.",
            )
        head, is_open = await self._reviews.head(approval.repo, approval.pull_number)
        if not is_open:
            raise ConductorError(
                f"Pull request #{approval.pull_number} is closed.", "Reopen it, then decide again."
            )
        if head != approval.sha:
            await self._ask_anew(approval, head)
            raise ConductorError(
                f"The branch has moved to {head}, so it was asked anew.",
                "Look at that, then decide about the new one: `conductor approvals`.",
            )
        to = ApprovalState.approved if yes else ApprovalState.refused
        decided = await self.approvals.decide(approval, to, by=operator, words=reason)
        if decided is None:
            raise ConductorError(
                "Somebody else decided at this very moment.", "`conductor approvals` shows it."
            )
        await self._settle(decided)
        return decided

    # --- using

    async def use(self, approval_id: str, *, by: str) -> Approval:
        """Check once more, right before the job ``by`` does what was approved, and write down that it does.

        Raises ApprovalVoid when it does not hold (any more), GitHubUnavailable when nobody can tell now, and
        AuditUnavailable. The job that has used it may use it again: the same thing, after a crash, when its own push
        may have moved the branch. For any other one, a retry for example, everything is checked anew; what the job that
        it does once more had put on the branch is no push of somebody's.
        """
        approval = await self.approvals.approval(approval_id)
        if approval is None:
            raise ApprovalVoid(f"There is no approval {approval_id}.", "Write `/agent retry`.")
        if approval.used_at is not None and approval.used_by == by:
            return approval
        if approval.state is not ApprovalState.approved:
            raise ApprovalVoid(f"This was not approved: it is {approval.state}.", "Write `/agent retry`.")
        why, count = await self._why_void(approval, await self._put_there(approval, by))
        if why:
            if approval.used_at is None:  # what was done was approved when it was done, and stays so
                await self._end(approval, ApprovalState.stale, why=why, count=count)
            raise _void(why, approval.kind)
        used = await self.approvals.use(approval, by=by, because=count.votes.decision if count else None)
        if used is None:
            raise _void("Somebody took it back at this very moment.", approval.kind)
        return used

    async def covers(self, approval_id: str, *, by: str, sha: str) -> bool:
        """Whether the job ``by``, which has used it, may begin from the commit ``sha``.

        That is what was approved, or what the job, or one that it does once more, has put on top of it.
        """
        approval = await self.approvals.approval(approval_id)
        return approval is not None and sha in {approval.sha, *await self._put_there(approval, by)}

    # --- housekeeping

    async def settle(self) -> None:
        """Expire, remind, tell what nobody was told. Safe to do from any number of servers."""
        now = datetime.now(UTC)
        for approval in await self.approvals.unsettled(now - SETTLING):
            await self._alone(self._settle(approval), approval)
        for approval in await self.approvals.pending():
            await self._alone(self._look_after(approval, now), approval)

    async def _alone(self, work: Awaitable[None], approval: Approval) -> None:
        """What fails about one approval must not keep the others waiting; without GitHub none of them gets further."""
        try:
            await work
        except GitHubUnavailable:
            raise
        except ConductorError as error:
            log.warning("approval not looked after", approval=approval.id, error=str(error))

    async def _look_after(self, approval: Approval, now: datetime) -> None:
        job = await self._store.job(approval.job_id)
        if job is None or job.state in _IN_VAIN or (job.state.final and approval.kind in _WAITED_FOR):
            await self._end(approval, ApprovalState.withdrawn, why="its job ended")
            return
        remind = config_of(job).approvals.remind
        late = now >= approval.expires_at
        due = remind and approval.reminded_at is None and now >= approval.asked_at + timedelta(seconds=remind)
        if not late and not due:
            return
        try:
            await self._consider(approval, None)  # the event of a review may have been lost
        except GitHubError as error:
            if not late:
                raise
            log.warning("not looked at once more", approval=approval.id, error=str(error))
        now_is = await self.approvals.approval(approval.id)
        if now_is is None or now_is.state is not ApprovalState.pending:
            return
        if late:
            await self._end(approval, ApprovalState.expired, why="nobody decided in time")
            return
        users, _ = await self._whom(approval, job)
        if await self.approvals.remind(approval):
            await self._writer.remind(approval, list(dict.fromkeys([job.trigger.actor.login, *users]))[:10])

    # --- answers to people

    async def explain(self, repo: Repo, number: int) -> str:
        """What to tell somebody who wants to decide by a comment: where to click."""
        pending = await self.approvals.pending_on(repo.id, number)
        pull = None
        for job in await self._store.conversation(repo.id, number):
            waits = await self.approvals.pending_of(job.id)
            if waits is not None and all(waits.id != one.id for one in pending):
                pending.append(waits)
            pull = pull or job.pull_number
        return self._writer.where_to_click(repo, pending, pull)

    # --- inside

    async def _consider(self, approval: Approval, event: Event | None) -> bool:
        """Count all reviews. Whether that, or the event's review by itself, was about the question."""
        job = await self._store.job(approval.job_id)
        if job is None:
            return False
        count = await self._count(approval, job, event)
        if count.reviewed.pull.open and count.reviewed.pull.head_sha != approval.sha:
            await self._ask_anew(approval, count.reviewed.pull.head_sha)
            return False
        review_id = event.review.id if event and event.review else 0
        if count.votes.verdict in (Verdict.approved, Verdict.refused):
            yes = count.votes.verdict is Verdict.approved
            deciding = count.votes.approvals if yes else count.votes.refusals
            chosen = next((one for one in deciding if one.review.id == review_id), deciding[-1]).review
            if chosen.author is None:
                raise ValueError("a review of nobody was counted")
            decided = await self.approvals.decide(
                approval,
                ApprovalState.approved if yes else ApprovalState.refused,
                by=chosen.author,
                because=count.votes.decision,
                # what others wrote into a refusal does not come from the reviewer
                words="" if chosen.altered else chosen.body,
                review_id=chosen.id,
                delivery_id=event.delivery_id if event else None,
            )
            if decided is not None:
                log.info("decided", approval=approval.id, state=str(decided.state), by=decided.decided_by)
                await self._settle(decided)
            return any(one.review.id == review_id for one in deciding)
        if event is not None and event.action == "submitted":
            ignored = next((one for one in count.votes.ignored if one.review.id == review_id), None)
            if ignored is not None:
                await self._explain_no(count, ignored.review, ignored.decision)
                return True
            return any(one.review.id == review_id for one in count.votes.approvals)
        return False

    async def _too_late(self, approval: Approval, event: Event) -> bool:
        """A review of what was decided before: say so. A late request for changes is feedback like any other."""
        job, review_id = await self._store.job(approval.job_id), event.review.id if event.review else 0
        if job is None:
            return False
        count = await self._count(approval, job, event)
        review = next((one for one in count.reviewed.reviews if one.id == review_id), None)
        if review is None or review.author is None or review.state is not ReviewState.approved:
            return False
        person = count.reviewed.people.get(review.author.id)
        if person is not None:
            weighed = weigh(review, person, count.subject, count.reviewed.pull, count.policy)
            await self._explain_no(count, review, weighed.decision, most=1)
        return True

    async def _explain_no(
        self, count: _Count, review: Review, decision: Decision, *, most: int | None = None
    ) -> None:
        """Say why a review does not count. Who may not write hears it once for each state: anybody may review."""
        approval, sentences = count.approval, decision.refusals[:most]
        log.info(
            "review does not count", approval=approval.id, review=review.id, by=review.login, why=sentences
        )
        if review.author is not None:
            await self.approvals.not_counted(approval, review_id=review.id, by=review.author, why=sentences)
        if decision.silent:
            return
        person = count.reviewed.people.get(review.author.id) if review.author else None
        if person is None or not at_least(person.permission, "write"):
            key = f"not-counted:{approval.id}:{review.state}:{review.login}"
            if not await self._store.say_once(key, f"review:{review.id}"):
                return
        try:
            await self._writer.not_counted(approval, review.id, review.login, sentences)
        except GitHubUnavailable:
            raise
        except GitHubError as error:
            log.warning("not told", approval=approval.id, error=str(error))

    async def _recheck(self, approval: Approval, delivery_id: str | None = None) -> None:
        """What was approved and not used yet: does it still hold?"""
        why, count = await self._why_void(approval)
        if why:
            log.info("approval is void", approval=approval.id, why=why, delivery=delivery_id)
            await self._end(approval, ApprovalState.stale, why=why, count=count)

    async def _put_there(self, approval: Approval, by: str) -> frozenset[str]:
        """The commits that jobs put on the branch which went by ``approval`` in vain, and which ``by`` does once more.

        And its own. None where another job has gone by it since.
        """
        job = await self._store.job(by)
        if job is None:
            return frozenset()
        own, *before = await self._store.tries(job)
        in_vain = takewhile(lambda one: one.approval_id == approval.id and one.state in _IN_VAIN, before)
        tries = {one.id: one for one in (own, *in_vain)}
        commits = {sha for one in tries.values() for sha in (one.marker_sha, one.head_sha) if sha}
        return frozenset(commits) if approval.used_by in tries else frozenset()

    async def _why_void(self, approval: Approval, own: Collection[str] = ()) -> tuple[str, _Count | None]:
        """Why what was approved does not hold now; "" when it does. ``own``: heads that are as good as its commit."""
        job = await self._store.job(approval.job_id)
        if job is None:
            return "Its job is gone.", None
        if approval.decided_by_id is None:  # by an operator, who submits no review
            head, is_open = await self._reviews.head(approval.repo, approval.pull_number)
            if not is_open:
                return "The pull request was closed.", None
            same = head == approval.sha or head in own
            return ("" if same else f"The branch has moved to `{head[:12]}`."), None
        # as if nobody had decided yet, and nobody were late: the time to decide was over after that
        asked = dataclasses.replace(approval, state=ApprovalState.pending)
        count = await self._count(asked, job, None, own)
        pull, votes = count.reviewed.pull, count.votes
        chosen = next((one for one in count.reviewed.reviews if one.id == approval.review_id), None)
        if not pull.open:
            return "The pull request was closed.", count
        if pull.head_sha != approval.sha:
            return f"The branch has moved to `{pull.head_sha[:12]}`.", count
        if chosen is None or chosen.state is ReviewState.dismissed:
            return f"The review of {approval.decided_by} was dismissed.", count
        if chosen.body != approval.words:
            return f"The review of {approval.decided_by} was edited after it had decided.", count
        if votes.refusals:
            return f"{votes.refusals[-1].review.login} requested changes.", count
        if votes.verdict is not Verdict.approved:
            sentences = [said for one in votes.ignored for said in one.decision.refusals]
            return " ".join(sentences[:1]) or "An approval is missing.", count
        return "", count

    async def _count(
        self, approval: Approval, job: Job, event: Event | None, own: Collection[str] = ()
    ) -> _Count:
        policy = policy_for(config_of(job), approval.kind, approval.repo.owner)
        here = await self._store.jobs_on(approval.repo.id, approval.pull_number)
        if job.branch:  # what was asked for in a pull request that it had before is in this one, too
            here += await self._store.jobs_on_branch(approval.repo.id, job.branch)
        jobs = await with_origins(self._store, [job, *here])
        made = {sha for one in jobs for sha in (one.head_sha, one.marker_sha) if sha}
        asked = await self.approvals.on(approval.repo.id, approval.pull_number)
        # where a question was put into an empty commit: not where it moved to since
        made |= {str(one.details.get("commit")) for one in asked}
        reviewed = await self._reviews.reviewed(approval.repo, approval.pull_number, policy.rules, ours=made)
        if reviewed.pull.head_sha in own:
            pull = dataclasses.replace(reviewed.pull, head_sha=approval.sha)
            reviewed = dataclasses.replace(reviewed, pull=pull)
        distrusted = await self.approvals.distrusted([one.id for one in reviewed.reviews])
        reviews = tuple(
            dataclasses.replace(one, altered=one.id in distrusted or _differs(one, event))
            for one in reviewed.reviews
        )
        # once it is decided, what that person says later is about something else
        if approval.review_id is None:
            reviews = told_apart(reviews, asked, about=approval)
        reviewed = dataclasses.replace(reviewed, reviews=reviews)
        # who has what was approved done once more asks for nothing new
        askers = askers_of([one for one in jobs if one.approval_id != approval.id])
        askers |= await self.approvals.who_asks_too((one.id for one in jobs), reviewed.people)
        if approval.kind is not ApprovalKind.plan:
            askers |= await self._whose_review(job, reviewed.people)
        subject = Subject(
            sha=approval.sha,
            askers=askers,
            bot_id=(await self._github.identity()).user_id,
            state=approval.state,
            expires_at=approval.expires_at,
            since=await self.approvals.asked_since(approval),
        )
        votes = tally(reviews, reviewed.people, subject, reviewed.pull, policy)
        return _Count(approval=approval, reviewed=reviewed, subject=subject, policy=policy, votes=votes)

    async def _whose_review(self, job: Job, people: Collection[int]) -> frozenset[int]:
        """Whose reviews the job carries out: what its agent wants for that, somebody else must allow.

        A plan they may approve, as the pull request in the end: that they wanted it otherwise is what reviews are for.
        """
        again = await with_origins(self._store, [job])
        return reviewers_of(again) | await self.approvals.who_asks_too(
            (one.id for one in again), people, by_review=True
        )

    async def _ask_anew(self, old: Approval, head: str) -> None:
        """The same question about the new head: nobody has seen that yet."""
        new = dataclasses.replace(
            old,
            id=f"p{secrets.token_hex(6)}",
            sha=head,
            asked_at=datetime.now(UTC),
            reminded_at=None,
            settled_at=None,
        )
        if not await self.approvals.ask_anew(old, new):
            return
        log.info("asked anew", approval=new.id, before=old.id, sha=head)
        stale = await self.approvals.approval(old.id)
        for one in (stale, new):
            if one is not None:
                await self._settle(one)

    async def _end(
        self, approval: Approval, to: ApprovalState, *, why: str, count: _Count | None = None
    ) -> Approval | None:
        because = count.votes.decision if count else None
        ended = await self.approvals.end(approval, to, why=why, because=because)
        if ended is not None:
            await self._settle(ended, why=why)
        return ended

    async def _settle(self, approval: Approval, *, why: str = "") -> None:
        """Tell the job that waits, then people; remember that both were told. What fails is done by :meth:`settle`."""
        job = await self._store.job(approval.job_id)
        if job is None:
            return
        voided = approval.state is ApprovalState.stale and approval.decided_by is not None
        matters = voided or approval.state in _MATTERS
        if matters and self.outcome is None:
            await self._show(approval, job, why=why)
            return  # the rest is a server's
        # what a job asked before is no answer to what it asks now
        if self.outcome is not None and matters and await self._is_newest(approval):
            if approval.state is ApprovalState.approved:
                await self.outcome.approved(approval, job, _by(approval), approval.words)
            elif approval.state is ApprovalState.refused:
                await self.outcome.refused(approval, job, _by(approval), approval.words)
            else:
                await self.outcome.lapsed(approval, job, why)
        await self._tell(approval, job, why=why)

    async def _is_newest(self, approval: Approval) -> bool:
        asked = await self.approvals.of_job(approval.job_id)
        return bool(asked) and asked[0].id == approval.id

    async def _tell(self, approval: Approval, job: Job, *, why: str = "") -> None:
        if not await self._show(approval, job, why=why):
            return
        if approval.state is ApprovalState.pending:
            try:
                users, teams = await self._whom(approval, job)
            except GitHubUnavailable as error:
                log.warning("not requested yet", approval=approval.id, error=str(error))
                return
            await self._writer.request(approval.repo, approval.pull_number, users, teams)
        await self.approvals.settle(approval)

    async def _show(self, approval: Approval, job: Job, *, why: str) -> bool:
        policy = policy_for(config_of(job), approval.kind, approval.repo.owner)
        try:
            await self._writer.show(approval, job, policy, why=why)
            if approval.kind is ApprovalKind.plan and approval.state is not ApprovalState.pending:
                await self._writer.show_plan(job)
        except GitHubUnavailable as error:
            log.warning("not told yet", approval=approval.id, error=str(error))
            return False
        except GitHubError as error:  # the pull request is gone, or locked: it will not be better later
            log.warning("not told", approval=approval.id, error=str(error))
        return True

    async def _whom(self, approval: Approval, job: Job) -> tuple[list[str], list[str]]:
        """Whose reviews to request: users, and slugs of teams of the repository's owner. Never who asked.

        Raises GitHubUnavailable when code owners are wanted and nobody can tell now who they are.
        """
        config = config_of(job)
        # what the agent asks to change, or what was held back, is in no diff yet
        asked = (*approval.details.get("paths", ()), *approval.details.get("files", ()))
        return await named(
            self._reviews,
            (config.approvals.request, config.who.may_approve),
            approval.repo,
            approval.pull_number,
            {job.trigger.actor.login},
            also=asked,
        )


async def named(
    reviews: ReviewFinder,
    rules: Iterable[People],
    repo: Repo,
    number: int,
    without: set[str],
    *,
    also: Collection[str] = (),
) -> tuple[list[str], list[str]]:
    """Users and team slugs that the first of the rules names that names anybody, for a review of a pull request.

    ``also``: paths whose code owners are meant, too.

    Raises GitHubUnavailable when code owners are wanted and nobody can tell now who they are.
    """
    rule = next((one for one in rules if not one.anybody), People())
    owners: tuple[str, ...] = ()
    if rule.codeowners:
        try:
            owners = await reviews.code_owners(repo, number, also=also)
        except GitHubUnavailable:
            raise
        except GitHubError as error:  # it would say so again, and others can be asked without them
            log.warning("code owners not requested", repo=repo.full_name, number=number, error=str(error))
    return requested(rule, repo, without, owners)


def requested(
    rule: People, repo: Repo, without: set[str], owners: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Users and team slugs that a rule names, as GitHub takes them for requests of a review.

    ``owners``: code owners as CODEOWNERS names them, for a rule that means those, too.
    """
    left_out = {login.lower() for login in without}
    # the e-mail addresses among the owners only GitHub could match to accounts
    named = [owner.removeprefix("@") for owner in owners if owner.startswith("@")]
    users = {user.lower(): user for user in (*rule.users, *(name for name in named if "/" not in name))}
    teams = (*rule.teams, *(name for name in named if "/" in name))
    names = dict.fromkeys(team_name(team, repo.owner) for team in teams)
    return (
        [user for login, user in users.items() if login not in left_out],
        # teams of another organisation cannot be asked here
        [slug for owner, _, slug in (name.partition("/") for name in names) if owner == repo.owner.lower()],
    )


def _unused(approval: Approval) -> bool:
    return approval.state is ApprovalState.approved and approval.used_at is None


def _differs(review: Review, event: Event | None) -> bool:
    """Whether the text of the event's review was changed since: its own event comes, and says by whom."""
    told = event.review if event else None
    return told is not None and told.id == review.id and told.body != review.body


def _now_called(approval: Approval, repo: Repo) -> Approval:
    """The repository by the name that it has now, and the installation that it belongs to now."""
    return dataclasses.replace(approval, repo=repo)


def _by(approval: Approval) -> Actor:
    """Who decided; an operator has no account."""
    known = approval.decided_by_id is not None
    return Actor(
        login=approval.decided_by or "", id=approval.decided_by_id or 0, type="User" if known else "Operator"
    )


def _void(why: str, kind: ApprovalKind) -> ApprovalVoid:
    hint = "Write `/agent retry` to ask for it again."
    if kind is ApprovalKind.protected:
        hint = "Apply the patch in the pull request by hand, or write `/agent` and what you want done."
    return ApprovalVoid(f"What was approved does not hold any more. {why}", hint)
