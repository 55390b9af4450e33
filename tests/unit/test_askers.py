"""Who asked for the work, and therefore cannot approve it."""

from __future__ import annotations

import pytest

from bot.askers import askers_of
from bot.fixer import EVENT as FIX_EVENT
from bot.model import DECIDED, FEEDBACK, Actor, Job, JobState, TargetKind
from handlers.commands import COMMAND_IN_REVIEW
from tests.jobs import asked_job


def job(event: str, who: int) -> Job:
    by = Actor(login=f"u{who}", id=who, type="User")
    return asked_job(f"j{who}", by=by, event=event, target=TargetKind.pull_request, state=JobState.succeeded)


@pytest.mark.parametrize(
    "event",
    [
        "issues.labeled",
        "issue_comment.created",
        "pull_request_review_comment.created",
        "check_run.requested_action",
        "check_run.rerequested",
        FIX_EVENT,
        COMMAND_IN_REVIEW,  # a command is one, wherever it stands
    ],
)
def test_who_commands_asks(event: str) -> None:
    assert askers_of([job(event, 4)]) == {4}


def test_who_reviews_does_not_ask_but_who_did_before_still_did() -> None:
    assert askers_of([job("issues.labeled", 4), job(FEEDBACK, 5)]) == {4}
    assert askers_of([job("issues.labeled", 4), job(FEEDBACK, 5), job("issue_comment.created", 5)]) == {
        4,
        5,
    }


def test_what_was_decided_is_in_the_name_of_who_asked_before() -> None:
    assert askers_of([job("issues.labeled", 4), job(DECIDED, 4)]) == {4}
    # a review was feedback, a plan was made of it, and that was approved: nobody became an asker by that
    assert askers_of([job("issues.labeled", 4), job(FEEDBACK, 5), job(DECIDED, 5)]) == {4}
