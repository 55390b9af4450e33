"""What is otherwise when a job is done once more, and what an approval of it does not cover."""

from __future__ import annotations

import pytest

from bot.model import KEPT_JOB, KEPT_PROFILE, Request
from bot.once_more import SAME, Instead, done_by, otherwise
from tests.jobs import asked_job

CONFIG = {KEPT_PROFILE: {"name": "careful", "text": "Take care.", "asked": True}}
LAST = asked_job(agent="claude", model="opus", timeout=600, budget=2.0, config=CONFIG)


def again(instead: Instead, **changes: object) -> Request:
    last = LAST.evolve(**changes)
    bare = Request(
        repo=last.repo, number=1, target=last.target, trigger=last.trigger, instructions="", title="", body=""
    )
    return done_by(bare, last, instead)


def test_nothing_said_is_as_it_was() -> None:
    request = again(SAME)
    assert (request.agent, request.model, request.profile) == ("claude", "opus", "careful")
    assert (request.timeout, request.usual_timeout, request.budget) == (None, 600, 2.0)


def test_a_model_goes_with_its_agent_only() -> None:
    other = again(Instead(agent="codex"))
    assert (other.agent, other.model, other.usual_agent, other.usual_model) == ("codex", None, None, None)
    assert again(Instead(agent="claude")).model == "opus"
    assert again(Instead(agent="codex", model="gpt-5")).model == "gpt-5"
    assert again(Instead(model="haiku")).agent == "claude"


def test_a_profile_may_name_its_agent_and_else_who_did_it_goes_on() -> None:
    request = again(Instead(profile="reviewer"))
    assert (request.agent, request.usual_agent, request.usual_model) == (None, "claude", "opus")
    assert request.profile == "reviewer"


def test_steps_are_words_to_an_agent_with_a_model() -> None:
    steps = {"agent": "shell", "config": {KEPT_JOB: {"name": "x", "needs": ["gpu"], "steps": True}}}
    same, other = again(SAME, **steps).named, again(Instead(agent="claude"), **steps).named
    assert same is not None
    assert same.steps
    assert other is not None
    assert (other.steps, other.needs) == (False, ("gpu",))


@pytest.mark.parametrize(
    ("instead", "other"),
    [
        (SAME, False),
        (Instead(timeout=7200, budget=5.0), False),
        (Instead(agent="claude", model="opus", profile="Careful"), False),
        (Instead(agent="shell"), True),
        (Instead(model="haiku"), True),
        (Instead(profile="none"), True),
        (Instead(profile="reviewer"), True),
    ],
)
def test_what_nobody_has_approved(instead: Instead, other: bool) -> None:
    assert otherwise(LAST, instead) is other
    assert not otherwise(LAST.evolve(config={}), Instead(profile="none"))
