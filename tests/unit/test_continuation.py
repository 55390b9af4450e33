"""Whether more work on an issue goes on in the pull request that came of it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from bot.continuation import Came, kind_in
from bot.facts import Pull
from bot.model import (
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    Job,
    JobKind,
    JobState,
    NamedJob,
    Repo,
    Request,
    TargetKind,
    Trigger,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPO = Repo(owner="acme", name="hello", id=1, installation_id=2)
TRIGGER = Trigger(delivery_id="d", event="issue_comment.created", actor=Actor(login="m", id=7, type="User"))
BRANCH = "agent/issue-1-numbers-abcdef"
PULL = Pull(
    number=2,
    head_ref=BRANCH,
    head_sha="a" * 40,
    base_ref="main",
    base_sha="b" * 40,
    from_fork=False,
    open=True,
)


def job(kind: JobKind = JobKind.task, state: JobState = JobState.succeeded, **more: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j1",
        "repo": REPO,
        "number": 1,
        "target": TargetKind.issue,
        "trigger": TRIGGER,
        "agent": "shell",
        "model": None,
        "instructions": "",
        "title": "",
        "body": "",
        "timeout": 60,
        "state": state,
        "created_at": NOW,
        "kind": kind,
    }
    return Job(**values | more)


def plan(state: ApprovalState, **more: Any) -> Approval:
    return Approval(
        id="p1",
        kind=ApprovalKind.plan,
        job_id="j1",
        repo=REPO,
        pull_number=2,
        subject="",
        sha="a" * 40,
        state=state,
        asked_at=NOW,
        expires_at=NOW,
        **more,
    )


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "repo": REPO,
        "number": 1,
        "target": TargetKind.issue,
        "trigger": TRIGGER,
        "instructions": "more",
        "title": "",
        "body": "",
    }
    return Request(**values | changes)


PUSHED = job(head_sha="a" * 40)
PLANNED = job(JobKind.plan)
CAME = Came(pull=PULL, branch=BRANCH, branch_there=True, jobs=[PUSHED], plans=[])


def came(*, pull: dict[str, Any] | None = None, **changes: Any) -> Came:
    return dataclasses.replace(CAME, pull=dataclasses.replace(PULL, **pull or {}), **changes)


@pytest.mark.parametrize("base", [None, "main"])
@pytest.mark.parametrize("kind", [JobKind.task, JobKind.plan])
def test_it_goes_on_in_an_open_pull_request_with_work_of_ours(base: str | None, kind: JobKind) -> None:
    assert kind_in(CAME, request(base=base, kind=kind)) is kind


@pytest.mark.parametrize(
    ("there", "base"),
    [
        (came(pull={"open": False}), None),
        (came(pull={"open": False, "merged": True}), None),
        (came(pull={"from_fork": True}), None),
        (came(pull={"head_ref": "main"}), None),  # not the branch that the job pushed to
        (came(pull={"head_ref": "feature"}, branch="feature"), None),  # not one of ours
        (came(branch_there=False), None),
        (CAME, "release/1.x"),
    ],
)
def test_it_is_new_work_elsewhere(there: Came, base: str | None) -> None:
    assert kind_in(there, request(base=base)) is None


@pytest.mark.parametrize(
    ("jobs", "plans", "becomes"),
    [
        # nobody has approved it: nothing starts by itself, also where there is other work
        ([PLANNED], [plan(ApprovalState.pending)], JobKind.plan),
        ([PUSHED], [plan(ApprovalState.pending)], JobKind.plan),
        ([PUSHED], [plan(ApprovalState.refused), plan(ApprovalState.pending)], JobKind.plan),
        # approved, and nobody has begun with it
        ([PLANNED], [plan(ApprovalState.approved)], JobKind.plan),
        # it is being made, or made anew
        ([job(JobKind.plan, JobState.running)], [], JobKind.plan),
        ([job(JobKind.plan, JobState.queued), PLANNED], [plan(ApprovalState.refused)], JobKind.plan),
        # begun, done
        ([job(state=JobState.running), PLANNED], [plan(ApprovalState.approved, used_at=NOW)], JobKind.task),
        ([PUSHED, PLANNED], [plan(ApprovalState.approved, used_at=NOW)], JobKind.task),
        # nothing came of it, and nobody is at it: the draft is closed soon
        ([PLANNED], [plan(ApprovalState.withdrawn)], None),
        ([PLANNED], [plan(ApprovalState.expired)], None),
        ([job(state=JobState.failed)], [], None),
        ([job(JobKind.review, JobState.running)], [], None),
    ],
)
def test_a_draft_without_work(jobs: list[Job], plans: list[Approval], becomes: JobKind | None) -> None:
    assert kind_in(came(jobs=jobs, plans=plans), request()) is becomes


def test_steps_without_a_model_are_not_made_a_plan() -> None:
    there = came(plans=[plan(ApprovalState.pending)])
    assert kind_in(there, request(named=NamedJob(name="n", steps=True))) is None
    assert kind_in(there, request(named=NamedJob(name="n"))) is JobKind.plan
