"""What became of a job, in words for people: why it ended as it did, and what they may do now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bot.errors import JobFailed
from bot.model import ApprovalState, FailureKind, Job, JobKind, JobState, Phase
from bot.results import HINTS

#: How "Failed: …" goes on. The job's message has the particulars.
_WHY: Mapping[FailureKind, str] = {
    FailureKind.quota: "the LLM provider takes no more calls for now",
    FailureKind.auth: "the server's credentials were not accepted",
    FailureKind.timeout: "its time was up",
    FailureKind.oom: "its memory was used up",
    FailureKind.crash: "the agent's process ended in the middle of its work",
    FailureKind.no_result: "the agent ended without saying what it did",
    FailureKind.agent: "the agent says that it could not do it",
    FailureKind.refused: "what the agent made may not be published as it is",
    FailureKind.conflict: "somebody else changed the branch meanwhile",
    FailureKind.infrastructure: "something that it needs did not work",
    FailureKind.budget: "the money for it is spent",
    FailureKind.idle: "there was no sign of life from the agent any more",
    FailureKind.disk: "its workspace was full",
    FailureKind.host: "its machine was restarted under it",
    FailureKind.configuration: "a setting is missing or wrong",
}
#: Phases in which no agent has worked yet: there is nothing to go on from.
_BEFORE_WORK = frozenset({Phase.policy, Phase.image, Phase.workspace, Phase.start})
_AGAIN = "Write `/agent retry` to try again, or `/agent` and what should be different."
_GO_ON = (
    "Write `/agent resume` to go on from where it stopped, `/agent retry` to do it afresh, or `/agent` and what "
    "should be different."
)
_STOPS = "`/agent cancel` stops it."
_IN_ITS_ISSUE = "write `/agent` and what is still missing in its issue, or in a new one."
#: What people may do when the pull request is over: nothing starts there as long as it is.
_MERGED = "Write `/agent` and what is still missing in its issue, or in a new one."
_CLOSED = f"Reopen it and write `/agent retry`, or {_IN_ITS_ISSUE}"
_CLOSED_AT_WORK = f"Reopen it and write `/agent resume`, or {_IN_ITS_ISSUE}"
_ASKED_IN = "Write `/agent resume` where the work was asked for: it then goes on in a new branch."
_OVER = (_MERGED, _CLOSED, _CLOSED_AT_WORK, _ASKED_IN)


def over(phase: Phase, *, merged: bool, ours: bool = False) -> JobFailed:
    """The end of a job whose pull request was merged or closed, so that nobody would see what is pushed to its branch.

    ``ours``: the pull request is one that the job has opened itself.
    """
    how = "merged" if merged else "closed"
    advice = _MERGED if merged else _CLOSED if phase in _BEFORE_WORK else _CLOSED_AT_WORK
    return JobFailed(
        phase,
        FailureKind.conflict,
        f"The pull request was {how} meanwhile."
        + ("" if phase in _BEFORE_WORK else " Nothing was pushed; what was done is kept for a while."),
        _ASKED_IN if ours else advice,
    )


class PlanState(NamedTuple):
    """What people made of a plan that they were asked about."""

    state: ApprovalState
    pull: int  # where they were asked
    by: str = ""  # who decided


def became(job: Job, plan: PlanState | None) -> str:
    """What became of the plan that ``job`` made, a few words; "" while it is still to be decided about."""
    if plan is None or job.kind is not JobKind.plan or job.state is not JobState.succeeded:
        return ""
    match plan.state:
        case ApprovalState.approved:
            return f"The plan was approved by {plan.by}"
        case ApprovalState.refused:
            return f"The plan was sent back by {plan.by}"
        case ApprovalState.expired:
            return "Nobody decided about the plan in time"
        case ApprovalState.withdrawn:
            return "The plan was withdrawn"
        case ApprovalState.stale if plan.by:
            return "The plan's approval does not hold any more"
    return ""  # the branch has moved, so it is asked anew


def why(job: Job) -> str:
    """Why it did not succeed, as the rest of a sentence; "" when nothing is known of that, or nothing went wrong."""
    if _unanswered(job):
        return "nobody answered its question"
    if _advice(job):
        return "its pull request is not open any more"
    return _WHY[job.failure] if job.failure is not None else ""


def said(job: Job) -> str:
    """The job's message without the advice at its end that :func:`next_step` gives as well."""
    return job.message.removesuffix(_hint(job)).strip()


def next_step(job: Job, *, review: int | None = None, plan: PlanState | None = None) -> str:
    """What the reader may do now; "" when there is nothing, or when it was said with the question.

    ``review``: the pull request in which a review must decide before a paused job goes on. ``plan``: what became of
    the plan that the job made.
    """
    match job.state:
        case JobState.queued | JobState.running:
            return _STOPS
        case JobState.paused if review is not None:
            return (
                f"Review pull request #{review}: approve it, or request changes to say no. A comment decides nothing; "
                f"{_STOPS}"
            )
        case JobState.paused:
            return "" if job.answer is not None else f"Write `/agent resume` and your answer; {_STOPS}"
        case JobState.succeeded:
            return _after_success(job) if plan is None else _after_plan(job, plan)
    if advice := _advice(job):
        return advice
    hint = _hint(job)
    if _unanswered(job) or ("\n\n" in job.message and not job.message.endswith(hint)):
        hint = ""  # the message ends with advice of its own, about this very case
    worked = job.phase not in _BEFORE_WORK
    if not hint:
        return _GO_ON if worked else _AGAIN
    if "/agent retry" not in hint:
        hint += " Then write `/agent retry`."
    return f"{hint} `/agent resume` goes on from where it stopped." if worked else hint


def _unanswered(job: Job) -> bool:
    return job.state is JobState.timed_out and bool(job.question) and job.answer is None


def _advice(job: Job) -> str:
    """What :func:`over` has said; "" when it did not."""
    if job.failure is not FailureKind.conflict:
        return ""
    return next((advice for advice in _OVER if job.message.endswith(advice)), "")


def _hint(job: Job) -> str:
    return _advice(job) or (HINTS.get(job.failure, "") if job.failure is not None else "")


def _after_plan(job: Job, plan: PlanState) -> str:
    # true also when the work, or the new plan, has ended: nobody writes this anew then
    there = "in this pull request" if plan.pull == job.number else f"in pull request #{plan.pull}"
    match plan.state:
        case ApprovalState.approved:
            return f"Look {there} for the work by this plan."
        case ApprovalState.refused:
            return f"Review the new plan {there}, when it is there."
        case ApprovalState.withdrawn:
            return f"Write `/agent` and what should be done, unless that goes on {there} already."
        case ApprovalState.stale | ApprovalState.pending if not plan.by:
            return (
                f"Review pull request #{plan.pull}: approve it to start the work, or request changes to have the plan "
                "revised."
            )
    return "Write `/agent retry` to have it planned anew, or `/agent` and what should be done."


def _after_success(job: Job) -> str:
    match job.kind:
        case JobKind.plan:
            return "Write `/agent` and what should be done."
        case JobKind.review:
            return "Write `/agent` and what should be changed."
        case JobKind.ask:
            return "Write `/agent ask` for more, or `/agent` and what should be done."
    if job.head_sha:
        wanted = [f"review pull request #{job.pull_number}"] if job.pull_number else []
        wanted += ["read the patch of what was held back"] if job.held_back else []
        sentence = " and ".join(wanted)
        return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""
    if job.held_back and job.pull_number:
        return f"Read the patch in pull request #{job.pull_number}: approve it to have it pushed as it is, or close it."
    if job.held_back:
        return "Read the patch; apply it, or leave it."
    return "Write `/agent` and what should be different."
