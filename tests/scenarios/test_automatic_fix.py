"""Failed checks in the whole program: they are fixed without being asked, and when that stops people are told why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.model import Job, JobKind, JobState
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

ON = "fix: {automatic: true, attempts: 2, settle: 10s}\n"
#: An agent whose every try writes something else, whatever it is told.
TRIES = """cat > /dev/null
head -c 12 /dev/urandom | od -An -tx1 > tries.txt
echo '<result>{"status": "done", "title": "Try", "summary": "Tried something else."}</result>'
"""
TRIER: dict[str, Any] = {
    "custom_agents": {"trier": {"argv": ["bash", "-c", TRIES], "llm": "own"}},
    "agents": ("shell", "trier"),
}
GAVE_UP = "I do not try to fix them again"


async def made(box: World, *, agent: str = "trier", text: str = "Try something.") -> int:
    """The number of a pull request of the bot's, in a repository that wants failures fixed."""
    maria = box.github.as_user("maria")
    await box.github.as_user("octocat").push_commit(REPO, "main", {".github/conductor.yml": ON})
    issue = int((await maria.open_issue(REPO, "Try", text))["number"])
    await maria.add_label(REPO, issue, f"agent:{agent}")
    job = await box.ended(issue)
    assert job.state is JobState.succeeded, job.message
    assert job.pull_number is not None
    return job.pull_number


def head(box: World, number: int) -> str:
    return next(str(pull["head"]["sha"]) for pull in box.github.pulls(REPO) if pull["number"] == number)


async def fails(box: World, number: int, title: str, *, app: str = "ci") -> None:
    """A check of the head fails; it ended long enough ago, so that no other can still be about to start."""
    ended = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    await box.github.as_app(app).check(
        REPO, head(box, number), "test", "failure", title=title, completed_at=ended
    )
    await box.dealt_with()


async def fixed(box: World, number: int, nth: int) -> Job:
    """The job number ``nth`` of the pull request, which nobody has asked for, when it has pushed."""
    job = await box.ended(number, nth=nth)
    assert (job.kind, job.state) == (JobKind.fix, JobState.succeeded), job.message
    assert job.trigger.actor.login == "maria", "in the name of whoever asked for the work"
    assert job.head_sha == head(box, number) != job.base_sha
    return job


def given_up(box: World, number: int) -> list[str]:
    return [one["body"] for one in box.github.comments(REPO, number) if GAVE_UP in one["body"]]


async def test_after_as_many_tries_as_are_allowed_a_person_has_to_look(tmp_path: Path) -> None:
    async with world(tmp_path, **TRIER) as box:
        number = await made(box)
        await fails(box, number, "assert red == green")
        first = await fixed(box, number, 1)
        assert "assert red == green" in first.instructions
        await fails(box, number, "assert cold == warm")
        await fixed(box, number, 2)
        assert given_up(box, number) == []
        await fails(box, number, "assert up == down")
        (told,) = given_up(box, number)
        assert (
            f"Checks of {head(box, number)} fail. I do not try to fix them again: 2 tries in a row did not help: "
            "a person has to look (`/agent fix` tries once more)." in told
        )
        # another failure of the same commit changes nothing, and is not told again
        await fails(box, number, "assert in == out", app="linter")
        assert given_up(box, number) == [told]
        assert len(await box.store.recent_jobs()) == 3
        # what the sentence names is what helps, and it gives new tries
        await box.github.as_user("maria").comment(REPO, number, "/agent fix")
        asked = await box.ended(number, nth=3)
        assert (asked.kind, asked.state) == (JobKind.fix, JobState.succeeded), asked.message
        assert asked.agent == "trier"  # which worked here, and is not the usual one
        assert "assert up == down" in asked.instructions
        await fails(box, number, "assert left == right")
        await fixed(box, number, 4)
        assert given_up(box, number) == [told]


async def test_a_try_that_helped_nothing_is_the_last_one(tmp_path: Path) -> None:
    async with world(tmp_path, **TRIER) as box:
        number = await made(box)
        await fails(box, number, "assert red == green")
        await fixed(box, number, 1)
        await fails(box, number, "assert red == green")
        (told,) = given_up(box, number)
        assert (
            f"Checks of {head(box, number)} fail. I do not try to fix them again: the same checks fail as before the "
            "last try, for the same reasons: a person has to look." in told
        )
        assert len(await box.store.recent_jobs()) == 2


async def test_where_commands_were_run_a_person_has_to_say_who_fixes_what_fails(tmp_path: Path) -> None:
    """Without a model nobody would understand it; and what a check printed must not become a command."""
    async with world(tmp_path, **TRIER, default_agent="trier") as box:
        number = await made(box, agent="shell", text="```sh\necho 1 > tries.txt\n```")
        await fails(box, number, "```sh\nexit 1\n```")
        (told,) = [one["body"] for one in box.github.comments(REPO, number) if "by myself" in one["body"]]
        assert (
            f"Checks of {head(box, number)} fail. I do not try to fix them by myself: the agent `shell`, which worked "
            "here, runs what it is given and has no model to understand more. Write `/agent fix --agent NAME`"
        ) in told
        assert len(await box.store.recent_jobs()) == 1
        await box.github.as_user("maria").comment(REPO, number, "/agent fix")
        asked = await box.ended(number, nth=1)
        assert (asked.agent, asked.state) == ("trier", JobState.succeeded), asked.message


async def test_whose_work_fails_must_still_be_allowed_to_ask(tmp_path: Path) -> None:
    """Nobody presses anything here, so it is asked once more whether who began it may have work done."""
    async with world(tmp_path, **TRIER) as box:
        number = await made(box)
        box.github.set_role(REPO, "maria", "read")
        await fails(box, number, "assert red == green")
        assert len(await box.store.recent_jobs()) == 1
        (refusal,) = [one["body"] for one in box.github.comments(REPO, number) if "Sorry" in one["body"]]
        assert "@maria" in refusal
        assert "write access" in refusal
        assert given_up(box, number) == []
