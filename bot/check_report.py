"""What a job's check run shows: its name, state, title and buttons.

https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks
"""

from __future__ import annotations

from collections.abc import Sequence

from bot.agent_requests import ToDo
from bot.annotations import Annotation
from bot.check_runs import CheckRun
from bot.endings import why
from bot.model import Job, JobKind, JobState
from bot.render import how_far

#: One name for each kind of job, so that a review does not hide what became of the work. Answers need none.
_CHECK_NAMES = {
    JobKind.task: "agent",
    JobKind.fix: "agent/fix",
    JobKind.plan: "agent/plan",
    JobKind.review: "agent/review",
    JobKind.release: "agent/release",
}
#: At most 20, 40 and 20 characters; a press comes back as `check_run.requested_action` with the identifier.
#: https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#check-runs-and-requested-actions
CANCEL_BUTTON = {"label": "Cancel", "description": "Stop this job", "identifier": "cancel"}
RETRY_BUTTON = {"label": "Retry", "description": "Do this job once more, afresh", "identifier": "retry"}
RESUME_BUTTON = {"label": "Resume", "description": "Go on from where it stopped", "identifier": "resume"}
#: Conclusions of https://docs.github.com/en/rest/checks/runs#create-a-check-run
_CONCLUSIONS = {
    JobState.succeeded: "success",
    JobState.failed: "failure",
    JobState.cancelled: "cancelled",
    JobState.timed_out: "timed_out",
    JobState.lost: "failure",
}


def check_run(
    name: str,
    job: Job,
    *,
    summary: str,
    details_url: str | None,
    todo: Sequence[ToDo] = (),
    became: str = "",
    annotations: Sequence[Annotation] = (),
) -> CheckRun:
    """The check run ``name`` of a job as it is now; ``annotations`` are for its end only.

    ``became``: what became of the plan that it made (:func:`bot.endings.became`).
    """
    final = job.state.final
    return CheckRun(
        name=name,
        external_id=job.id,
        title=became or _title(job, todo),
        summary=summary,
        status="queued" if job.state is JobState.queued else "in_progress",
        conclusion=_conclusion(job) if final else None,
        details_url=details_url,
        actions=buttons(job),
        annotations=annotations if final else (),
        started_at=job.started_at,
        completed_at=job.finished_at,
    )


def _done(job: Job) -> str:
    match job.kind:
        case JobKind.plan:
            return "The plan is ready"
        case JobKind.review:
            return f"Reviewed by {job.agent}"
        case JobKind.ask:
            return f"Answered by {job.agent}"
    if job.held_back:
        return (
            f"Done by {job.agent}; a part waits for a person"
            if job.head_sha
            else "A patch waits for a person"
        )
    return f"Done by {job.agent}" if job.head_sha else "Finished without a change"


def check_name(kind: JobKind) -> str | None:
    """The name of the check runs of jobs of this kind; None: they have none."""
    return _CHECK_NAMES.get(kind)


def buttons(job: Job) -> list[dict[str, str]]:
    """What may be pressed in the job's check run."""
    if not job.state.final:
        return [CANCEL_BUTTON]
    return [RETRY_BUTTON] if job.state is JobState.succeeded else [RETRY_BUTTON, RESUME_BUTTON]


def _conclusion(job: Job) -> str:
    if job.state is not JobState.succeeded or job.kind.reads_only:
        return _CONCLUSIONS[job.state]
    if job.held_back:
        # a person has to look at the patch: the change is not all there without it
        return "neutral" if job.head_sha else "action_required"
    return "success" if job.head_sha else "neutral"


def _title(job: Job, todo: Sequence[ToDo]) -> str:
    match job.state:
        case JobState.queued:
            return f"Waiting for a free slot for {job.agent}"
        case JobState.running:
            if job.kind is JobKind.release:
                return "Pushing what a reviewer approved"
            return f"{job.agent} is working on it" + (f": {how_far(todo)}" if todo else "")
        case JobState.paused:
            return "A person was asked"
        case JobState.succeeded:
            return _done(job)
        case JobState.cancelled:
            return f"Cancelled by {job.cancel_requested_by}" if job.cancel_requested_by else "Cancelled"
        case JobState.timed_out:
            return f"Out of time: {why(job)}" if job.failure else "Out of time"
        case JobState.lost:
            return "The worker host went away"
        case JobState.failed:
            return f"Failed: {why(job)}" if job.failure else "Failed"
