"""What became of a job, in words for people: why it ended as it did, and what they may do now."""

from __future__ import annotations

from collections.abc import Mapping

from bot.model import FailureKind, Job, JobKind, JobState, Phase
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


def why(job: Job) -> str:
    """Why it did not succeed, as the rest of a sentence; "" when nothing is known of that, or nothing went wrong."""
    if _unanswered(job):
        return "nobody answered its question"
    return _WHY[job.failure] if job.failure is not None else ""


def said(job: Job) -> str:
    """The job's message without the advice at its end that :func:`next_step` gives as well."""
    return job.message.removesuffix(_hint(job)).strip()


def next_step(job: Job, *, review: int | None = None) -> str:
    """What the reader may do now; "" when there is nothing, or when it was said with the question.

    ``review``: the pull request in which a review must decide before a paused job goes on.
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
            return _after_success(job)
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


def _hint(job: Job) -> str:
    return HINTS.get(job.failure, "") if job.failure is not None else ""


def _after_success(job: Job) -> str:
    match job.kind:
        case JobKind.plan if job.pull_number:
            return (
                f"Review pull request #{job.pull_number}: approve it to start the work, or request changes to have the "
                "plan revised."
            )
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
