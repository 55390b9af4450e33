"""Whether people's reviews of a pull request approve something: pure, with the reasons as a tree.

A yes counts from a person who may approve, neither asked nor wrote any of it, and looked at the very commit; a no
counts from anybody who may write, also from who asked. Of each person the last review that decides counts, and one no
outweighs every yes until that person changes it or it is dismissed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from bot.model import Actor, Approval, ApprovalKind, ApprovalState
from bot.policy import Decision
from bot.reasons import Reason, all_of
from bot.repo_config import RepoConfig
from bot.repo_rules import Entitled, People
from bot.standing import Standing, entitled, whom

_FULL_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class ReviewState(enum.StrEnum):
    """States of https://docs.github.com/en/rest/pulls/reviews, in lower case."""

    approved = "approved"
    changes_requested = "changes_requested"
    commented = "commented"
    dismissed = "dismissed"
    pending = "pending"  # not submitted yet


#: The ones that say something about the pull request as a whole. A comment changes nothing that was said before it.
DECIDING = frozenset({ReviewState.approved, ReviewState.changes_requested, ReviewState.dismissed})


@dataclass(frozen=True, kw_only=True)
class Review:
    """A pull request review as it is now."""

    id: int
    author: Actor | None  # None: the account is gone
    state: ReviewState
    commit_id: str  # of the head that the reviewer looked at; "" when GitHub does not know it
    body: str = ""
    submitted_at: datetime | None = None
    altered: bool = False  # its text is not, or may not be, what the reviewer sent
    spent_on: str = ""  # the question that this yes is about: it is none to anything else

    @property
    def login(self) -> str:
        """Who wrote it."""
        return self.author.login if self.author else "ghost"


@dataclass(frozen=True, kw_only=True)
class PullFacts:
    """What was found out about the pull request."""

    number: int
    head_sha: str
    open: bool = True
    #: Accounts that opened it, or wrote, committed or pushed any of it, other than the bot.
    hands: frozenset[int] = frozenset()
    unattributed: tuple[str, ...] = ()  # commits of which nobody knows whose they are


@dataclass(frozen=True, kw_only=True)
class ApprovalPolicy:
    """Who may approve, and how many of them must."""

    rules: tuple[People, ...] = (Entitled(),)  # a person must fit all of them
    required: int = 1
    owner: str = ""  # of the repository: whose teams are meant

    def whom(self) -> str:
        """Who may approve, in words."""
        named = [whom(rule) for rule in self.rules if not rule.anybody]
        wanted = {rule.permission for rule in self.rules if isinstance(rule, Entitled)}
        permission = next((name for name in ("admin", "maintain") if name in wanted), "write")
        people = ", who must also be one of ".join(dict.fromkeys(named))
        return f"{people or 'anybody'}, with {permission} access"


def policy_for(config: RepoConfig, kind: ApprovalKind | None, owner: str) -> ApprovalPolicy:
    """Who decides about a question of ``kind``; None: about a pull request as a whole.

    Raises nothing: ``config`` is what counts, the operator's settings already merged into it.
    """
    who = config.who
    if kind is None:
        final_rule = config.approvals.final
        return ApprovalPolicy(rules=(who.may_approve, final_rule), required=final_rule.required, owner=owner)
    rules = (who.may_approve, who.may_spend) if kind is ApprovalKind.budget else (who.may_approve,)
    return ApprovalPolicy(rules=rules, owner=owner)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be approved."""

    sha: str  # the commit that an approving review must be on, in full
    askers: frozenset[int]  # who asked for the work
    bot_id: int  # the App's own account
    state: ApprovalState = ApprovalState.pending
    expires_at: datetime | None = None
    since: datetime | None = None  # a yes from before that is none: it was about something else
    #: A no stays across pushes, as it does on GitHub's own page: for the pull request as a whole, not for a question.
    sticky: bool = False


class Verdict(enum.StrEnum):
    """What a review, or all of them together, mean."""

    approved = "approved"
    refused = "refused"
    ignored = "ignored"  # this review changes nothing
    waiting = "waiting"  # all of them together are not enough yet


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """One review, what it means, and why."""

    review: Review
    verdict: Verdict
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class Tally:
    """All reviews together, of each person the last one that decides."""

    verdict: Verdict
    approvals: tuple[Weighed, ...] = ()
    refusals: tuple[Weighed, ...] = ()
    ignored: tuple[Weighed, ...] = ()
    missing: int = 0  # approvals that are wanted besides

    @property
    def decision(self) -> Decision:
        """The tree behind the verdict."""
        parts = [weighed.decision.root for weighed in (*self.refusals, *self.approvals, *self.ignored)]
        enough = Reason(
            question="are there enough approvals",
            ok=not self.missing,
            said=f"{_count(self.missing)} missing.",
        )
        nobody = Reason(
            question="has nobody requested changes",
            ok=not self.refusals,
            said=f"{', '.join(f'@{one.review.login}' for one in self.refusals)} requested changes."
            if self.refusals
            else "Nobody has.",
        )
        ok = self.verdict is Verdict.approved
        root = Reason(
            question="is it approved", ok=ok, said=str(self.verdict), because=(enough, nobody, *parts)
        )
        return Decision(root=root)


def weigh(
    review: Review, person: Standing, subject: Subject, pull: PullFacts, policy: ApprovalPolicy
) -> Weighed:
    """What one review means by itself. ``person``: what its author is here."""
    no = review.state is ReviewState.changes_requested
    reasons = [
        _is_person(review, subject),
        _decides(review),
        _is_asked(subject),
        _in_time(review, subject),
        Reason(
            question="is the pull request open",
            ok=pull.open,
            said="The pull request is open."
            if pull.open
            else "The pull request is closed. Reopen it, then submit the review again.",
        ),
    ]
    if not (no and subject.sticky):
        reasons += _on_the_commit(review, subject, pull)
    if no:
        reasons.append(_one(entitled(Entitled(), person, policy.owner)))
    else:
        # a no counts whatever became of its text: else whoever can edit that could take it back
        reasons += [_unaltered(review), _after_asking(review, subject), _about_this(review)]
        reasons += _may_approve(review, person, subject, pull, policy)
    root = all_of(f"does review {review.id} of @{review.login} count", reasons)
    verdict = (Verdict.refused if no else Verdict.approved) if root.ok else Verdict.ignored
    # nobody is told that bots do not count, that a comment is none, and that somebody has said so before
    silent = not root.ok and (not reasons[0].ok or not reasons[1].ok or _said_again(review, subject))
    return Weighed(review=review, verdict=verdict, decision=Decision(root=root, silent=silent))


def tally(
    reviews: Iterable[Review],
    people: Mapping[int, Standing],
    subject: Subject,
    pull: PullFacts,
    policy: ApprovalPolicy,
) -> Tally:
    """What all reviews mean together. ``people``: by the ids of the reviews' authors; who lacks is unknown."""
    weighed = []
    for review in latest(reviews):
        unknown = Standing(login=review.login, permission=None, suspended=None)
        person = people.get(review.author.id, unknown) if review.author else unknown
        weighed.append(weigh(review, person, subject, pull, policy))
    found = {
        verdict: tuple(one for one in weighed if one.verdict is verdict)
        for verdict in (Verdict.approved, Verdict.refused, Verdict.ignored)
    }
    missing = max(0, policy.required - len(found[Verdict.approved]))
    verdict = Verdict.waiting if missing else Verdict.approved
    if found[Verdict.refused]:
        verdict = Verdict.refused
    return Tally(
        verdict=verdict,
        approvals=found[Verdict.approved],
        refusals=found[Verdict.refused],
        ignored=found[Verdict.ignored],
        missing=missing,
    )


def latest(reviews: Iterable[Review]) -> list[Review]:
    """Each person's last review that decides, oldest first. One that was dismissed takes back what came before it."""
    ordered = sorted(
        (review for review in reviews if review.state in DECIDING),
        key=lambda review: (review.submitted_at.timestamp() if review.submitted_at else 0.0, review.id),
    )
    last = {review.author.id: review.id for review in ordered if review.author}
    return [review for review in ordered if review.author and last[review.author.id] == review.id]


def told_apart(
    reviews: Iterable[Review], questions: Iterable[Approval], *, about: Approval | None = None
) -> tuple[Review, ...]:
    """``reviews`` with what each is a yes to, when that is not ``about``; None: the pull request as a whole.

    ``questions``: all that was ever asked there. Whoever answers one of them says nothing about the others by that, nor
    about the change below the commit that was made for it.
    """
    others = [one for one in questions if about is None or one.id != about.id]
    found = []
    for review in reviews:
        on = [
            one.id for one in others if one.review_id == review.id or (about is None and _meant(review, one))
        ]
        found.append(replace(review, spent_on=on[0] if on else ""))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Final:
    """What the check run `agent/approval` says. ``conclusion`` None: people have not decided yet."""

    conclusion: str | None
    title: str


def final(votes: Tally, pull: PullFacts) -> Final:
    """The check run for what the reviews of a whole pull request say.

    Conclusions: https://docs.github.com/en/rest/checks/runs#create-a-check-run; both "in progress" and "action
    required" keep a protected branch from being merged.
    """
    if votes.verdict is Verdict.approved:
        names = ", ".join(one.review.login for one in votes.approvals)
        return Final(conclusion="success", title=f"Approved by {names}")
    if votes.verdict is Verdict.refused:
        names = ", ".join(one.review.login for one in votes.refusals)
        return Final(conclusion="action_required", title=f"Changes requested by {names}")
    if not pull.open:
        # not "neutral": that is as good as a success, and another pull request may have the same head
        return Final(conclusion="cancelled", title="Closed before it was approved")
    return Final(conclusion=None, title=f"{_count(votes.missing)} missing")


# --- questions about the review


def _is_person(review: Review, subject: Subject) -> Reason:
    author = review.author
    ok = author is not None and not author.is_bot and author.id != subject.bot_id
    return Reason(question="is the reviewer a person", ok=ok, said="Only people approve or refuse.")


def _decides(review: Review) -> Reason:
    said = {
        ReviewState.commented: "A review that only comments decides nothing.",
        ReviewState.dismissed: "The review was dismissed.",
        ReviewState.pending: "The review was not submitted yet.",
    }.get(review.state, "It does.")
    ok = review.state in (ReviewState.approved, ReviewState.changes_requested)
    return Reason(question="does the review decide", ok=ok, said=said)


def _is_asked(subject: Subject) -> Reason:
    said = {
        ApprovalState.pending: "It is.",
        ApprovalState.approved: "It was approved before. `/agent cancel` stops the work.",
        ApprovalState.refused: "It was refused before. Write `/agent` and what should be done.",
        ApprovalState.expired: "Nobody had decided in time, so it is not asked any more. `/agent retry` starts again.",
        ApprovalState.withdrawn: "The job that asked has ended. `/agent retry` starts again.",
        ApprovalState.stale: "The branch has moved since; the newest comment says what is asked now.",
    }[subject.state]
    return Reason(question="is it still asked", ok=subject.state is ApprovalState.pending, said=said)


def _in_time(review: Review, subject: Subject) -> Reason:
    late = bool(subject.expires_at and review.submitted_at and review.submitted_at > subject.expires_at)
    said = (
        "The review came after the time to decide was over. `/agent retry` starts again."
        if late
        else "It was."
    )
    return Reason(question="was it submitted in time", ok=not late, said=said)


def _unaltered(review: Review) -> Reason:
    said = "It is."
    if review.altered:
        said = (
            "The review's text was changed after it was submitted, and not for certain by its author. "
            "Submit the review again."
        )
    return Reason(question="is its text what the reviewer sent", ok=not review.altered, said=said)


def _after_asking(review: Review, subject: Subject) -> Reason:
    early = bool(subject.since and review.submitted_at and _before(review.submitted_at, subject.since))
    said = (
        "The review was submitted before this was asked. Look at what is asked now, and submit the review again."
        if not subject.sticky
        else "The review was submitted before the pull request got another base branch, about another change. "
        "Look at what it changes now, and submit the review again."
    )
    return Reason(
        question="was it submitted after this was asked", ok=not early, said=said if early else "It was."
    )


def _meant(review: Review, question: Approval) -> bool:
    """Whether a review of the commit came while ``question`` was asked about that."""
    at = review.submitted_at
    if at is None or review.commit_id != question.sha or _before(at, question.asked_at):
        return False
    return question.decided_at is None or _before(at, question.decided_at)


def _before(submitted: datetime, since: datetime) -> bool:
    """Whether a review came before something; in the same second it did not: GitHub tells no fractions."""
    return submitted < since.replace(microsecond=0)


def _about_this(review: Review) -> Reason:
    said = "It is."
    if review.spent_on:
        said = (
            f"The review answers a question that was asked here (`{review.spent_on}`), and this is another matter. "
            "Submit another review for it."
        )
    return Reason(question="is it about this and nothing else", ok=not review.spent_on, said=said)


def _on_the_commit(review: Review, subject: Subject, pull: PullFacts) -> list[Reason]:
    # anything but the whole of a SHA could be another commit's, too
    same = bool(_FULL_SHA.fullmatch(review.commit_id)) and review.commit_id == subject.sha
    return [
        Reason(
            question="is the review on the commit that is asked about",
            ok=same,
            said=f"It is on {_short(review.commit_id)}."
            if same
            else f"The review is on {_short(review.commit_id)}, and {_short(subject.sha)} is asked about. "
            "Reload the page, look at the newest commit, and submit the review again.",
        ),
        Reason(
            question="is that commit the head of the pull request",
            ok=pull.head_sha == subject.sha,
            said=f"The head is {_short(pull.head_sha)}."
            if pull.head_sha == subject.sha
            else f"The branch has moved to {_short(pull.head_sha)}. Look at that, and submit the review again.",
        ),
    ]


def _said_again(review: Review, subject: Subject) -> bool:
    return (review.state, subject.state) in (
        (ReviewState.approved, ApprovalState.approved),
        (ReviewState.changes_requested, ApprovalState.refused),
    )


# --- questions about the reviewer


def _may_approve(
    review: Review, person: Standing, subject: Subject, pull: PullFacts, policy: ApprovalPolicy
) -> list[Reason]:
    author_id = review.author.id if review.author else 0
    asked, made = author_id in subject.askers, author_id in pull.hands
    commits = " and ".join(_short(sha) for sha in pull.unattributed[:3])
    return [
        Reason(
            question="is the reviewer somebody else than who asked",
            ok=not asked,
            said="You asked for this work, so somebody else has to approve it. You may request changes."
            if asked
            else f"@{review.login} did not ask.",
        ),
        Reason(
            question="is the reviewer somebody else than who made it",
            ok=not made,
            said="You opened this pull request, or wrote or pushed a part of it, so somebody else has to approve it."
            if made
            else f"@{review.login} made nothing of it.",
        ),
        Reason(
            question="is it known who made it",
            ok=not pull.unattributed,
            said=f"Nobody knows who made {commits}, so nobody can approve it. Have it pushed again by somebody whose "
            "e-mail address GitHub knows, or take it out."
            if pull.unattributed
            else "It is.",
        ),
        *(_one(entitled(rule, person, policy.owner)) for rule in policy.rules),
    ]


def _one(reason: Reason) -> Reason:
    """The same with what is wrong as its sentence: people are told only the sentences of the first level."""
    wrong = [below.said for below in reason.because if not below.ok]
    return Reason(
        question=reason.question, ok=reason.ok, said=" ".join(wrong) or reason.said, because=reason.because
    )


def _count(number: int) -> str:
    return f"{number} approval{'s are' if number != 1 else ' is'}"


def _short(sha: str) -> str:
    return f"`{sha[:12]}`" if sha else "no commit"
