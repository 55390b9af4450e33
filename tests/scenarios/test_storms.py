"""Storms and loops: much happens at once, over and over, or by accounts that answer by themselves.

What each costs is counted in what the bot writes to GitHub. No agent runs, unless a test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from bot.model import JobState
from bot.sandbox.state import User
from bot.schema import audit
from tests.scenarios.impersonation import as_somebody_else, deliver
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(280)

BOT = "agent-conductor[bot]"
ONE_STEP = "```sh\necho 1 > one.txt\n```"


@contextlib.asynccontextmanager
async def queueing(folder: Path, **settings: Any) -> AsyncIterator[World]:
    """A world in which jobs are only queued."""
    async with world(folder, **settings) as box:
        await box.stop_worker()
        yield box


async def issue(box: World, body: str = ONE_STEP) -> int:
    return int((await box.github.as_user("octocat").open_issue(REPO, "Work", body))["number"])


def said(box: World, number: int) -> list[str]:
    return [one["body"] for one in box.github.comments(REPO, number) if one["user"]["login"] == BOT]


def written(box: World, number: int) -> dict[str, Any]:
    """All of the bot's traces, as anybody could see them."""
    github = box.github
    return {
        "comments": {one["number"]: github.comments(REPO, one["number"]) for one in github.issues(REPO)},
        "reactions": github.reactions(REPO, number),
        "checks": github.check_runs(REPO),
        "pulls": [{**one, "mergeable": None, "mergeable_state": None} for one in github.pulls(REPO)],
        "labels": [one["labels"] for one in github.issues(REPO)],
    }


@pytest.mark.parametrize(
    ("login", "text"), [("rita", "/agent do it"), ("rita", "/agent help"), ("mallory", "/agent x")]
)
async def test_two_hundred_comments_of_somebody_who_may_not_are_answered_once(
    login: str, text: str, tmp_path: Path
) -> None:
    async with queueing(tmp_path) as box:
        number = await issue(box)
        person = box.github.as_user(login)
        for _ in range(20):
            await asyncio.gather(*(person.comment(REPO, number, text) for _ in range(10)))
        await box.dealt_with()
        (answer,) = said(box, number)
        assert "write access" in answer
        assert await box.store.recent_jobs() == []
        assert box.github.reactions(REPO, number) == []


async def test_two_hundred_jobs_of_a_writer_are_bounded_and_answered_once(tmp_path: Path) -> None:
    async with queueing(tmp_path, limit_user_hour=5) as box:
        numbers = [await issue(box) for _ in range(4)]
        maria = box.github.as_user("maria")
        for round_ in range(10):
            await asyncio.gather(
                *(
                    maria.comment(REPO, numbers[(round_ + one) % 4], f"/agent do {round_}-{one}")
                    for one in range(20)
                )
            )
        await box.dealt_with()
        assert len(await box.store.recent_jobs(500)) == 5
        told = [text for number in numbers for text in said(box, number)]
        assert len(told) == 5 + 1  # a comment for each job, and one that says why there are no more
        assert len([text for text in told if "no more are taken" in text]) == 1


@pytest.mark.parametrize("text", ["/agent help", "/agent status", "/agent cancel", "/agent --nonsense"])
async def test_two_hundred_questions_of_a_writer_are_answered_a_few_times_and_then_once_more(
    text: str, tmp_path: Path
) -> None:
    async with queueing(tmp_path, limit_answers_hour=3) as box:
        one, other = await issue(box), await issue(box)
        maria = box.github.as_user("maria")
        for _ in range(10):
            await asyncio.gather(*(maria.comment(REPO, number, text) for number in (one, other) * 10))
        await box.dealt_with()
        told = said(box, one) + said(box, other)
        assert len(told) == 3 + 1
        assert len([one for one in told if "stay silent" in one]) == 1
        # work is still taken, and others are still answered
        await maria.comment(REPO, one, "/agent do it")
        await box.github.as_user("octocat").comment(REPO, other, "/agent help")
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1
        assert "Label an issue" in said(box, other)[-1]


async def test_a_label_that_is_set_and_taken_away_fifty_times(tmp_path: Path) -> None:
    async with queueing(tmp_path, limit_conversation_hour=4) as box:
        number = await issue(box)
        maria = box.github.as_user("maria")
        for _ in range(50):
            await maria.add_label(REPO, number, "agent")
            await maria.remove_label(REPO, number, "agent")
        await box.dealt_with()
        jobs = await box.store.recent_jobs(100)
        assert len(jobs) <= 4
        assert {job.state for job in jobs} <= {JobState.cancelled, JobState.queued}
        told = said(box, number)
        loops = [text for text in told if "looks like a loop" in text]
        already = [text for text in told if "is at it already" in text]
        assert len(told) - len(already) == len(jobs) + len(loops)
        assert len(loops) <= 1
        assert len(already) <= len(jobs)
        # a burst that ended with the label taken away leaves nothing that runs
        await maria.comment(REPO, number, "/agent cancel")
        await box.dealt_with()
        assert not [job for job in await box.store.recent_jobs(100) if not job.state.final]


async def test_fifty_labels_that_are_not_ours_cost_nothing(tmp_path: Path) -> None:
    async with queueing(tmp_path) as box:
        number = await issue(box)
        maria = box.github.as_user("maria")
        before = written(box, number)["comments"]
        for one in range(50):
            await maria.add_label(REPO, number, f"agents-{one}")
            await maria.remove_label(REPO, number, f"agents-{one}")
        await box.dealt_with()
        assert written(box, number)["comments"] == before
        assert await box.store.recent_jobs() == []


async def test_a_day_of_events_delivered_again_changes_nothing(tmp_path: Path) -> None:
    """With agents: labels, commands, answers, a refusal, a retry, a cancellation, a re-run, and all of it once more."""
    async with world(tmp_path) as box:
        github, maria = box.github, box.github.as_user("maria")
        number = await issue(box)
        await maria.add_label(REPO, number, "agent")
        done = await box.ended(number)
        assert done.state is JobState.succeeded
        other = await issue(box, "```sh\nexit 1\n```")
        await maria.add_label(REPO, other, "agent:shell")
        await box.ended(other)
        for text in ("/agent status", "/agent help", "/agent cancel", "/agent --nonsense"):
            await maria.comment(REPO, other, text)
        await github.as_user("rita").comment(REPO, other, "/agent do it")
        await maria.comment(REPO, other, "/agent retry")
        await box.ended(other, nth=1)
        await maria.remove_label(REPO, other, "agent:shell")
        run = next(one for one in github.check_runs(REPO) if one["external_id"] == done.id)
        await maria.rerequest_check(REPO, run["id"])
        await box.ended(number, nth=1)
        await box.dealt_with()
        async with asyncio.timeout(60):
            while await box.store.unreported_jobs():
                await asyncio.sleep(0.05)
        await box.dealt_with()
        before, jobs = written(box, number), await box.store.recent_jobs(100)
        entries = await audited(box)
        sent = len(github.deliveries)
        for delivery in list(github.deliveries):
            if not delivery.redelivery:
                github.redeliver(delivery)
        await box.dealt_with()
        assert len(github.deliveries) == 2 * sent
        assert {one.status_code for one in github.deliveries} == {202}
        assert written(box, number) == before
        assert await box.store.recent_jobs(100) == jobs
        assert await audited(box) == entries


async def audited(box: World) -> int:
    async with box.store.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(audit))).scalar_one())


async def test_two_people_who_set_the_label_at_once_get_one_job(tmp_path: Path) -> None:
    async with queueing(tmp_path) as box:
        number = await issue(box)
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        await asyncio.gather(
            maria.add_label(REPO, number, "agent"), octocat.add_label(REPO, number, "agent:shell")
        )
        await box.dealt_with()
        (job,) = await box.store.recent_jobs()
        asker = job.trigger.actor.login
        other = "maria" if asker == "octocat" else "octocat"
        (refusal,) = (text for text in said(box, number) if "is at it already" in text)
        assert f"@{other}" in refusal
        assert f"Job `{job.id}`" in refusal
        assert len(said(box, number)) == 2


async def test_two_people_who_ask_for_different_things_at_once_wait_for_each_other(tmp_path: Path) -> None:
    async with queueing(tmp_path) as box:
        number = await issue(box)
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        await asyncio.gather(
            maria.comment(REPO, number, "/agent do this"), octocat.comment(REPO, number, "/agent do that")
        )
        await box.dealt_with()
        assert {job.instructions for job in await box.store.recent_jobs()} == {"do this", "do that"}
        assert len(said(box, number)) == 2
        assert len([text for text in said(box, number) if "after 1 other job here" in text]) == 1
        (thread,) = {job.thread_id for job in await box.store.recent_jobs()}
        assert thread


async def test_a_program_that_answers_us_with_commands_is_stopped(tmp_path: Path) -> None:
    """It has a person's account and write access, and asks for a retry as soon as it hears from us. Agents run."""
    async with world(tmp_path, limit_conversation_hour=3) as box:
        github = box.github
        world_ = github.world
        world_.users["robot"] = User(world_.next_id(), "robot", "User")
        github.set_role(REPO, "robot", "write")
        robot, number = github.as_user("robot"), await issue(box, "```sh\nexit 1\n```")
        await robot.add_label(REPO, number, "agent:shell")
        answered = 0
        async with asyncio.timeout(120):
            while not any("looks like a loop" in text for text in said(box, number)):
                await box.dealt_with()
                ended = [text for text in said(box, number) if "❌" in text]
                if len(ended) > answered:
                    answered = len(ended)
                    await robot.comment(REPO, number, "/agent retry")
                await asyncio.sleep(0.05)
        for _ in range(10):
            await robot.comment(REPO, number, "/agent retry")
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 3
        assert len(said(box, number)) == 3 + 1


async def test_two_bots_never_get_a_word_from_us(tmp_path: Path) -> None:
    """Whatever another bot writes, also when it quotes us or has every right, is not answered: a loop cannot begin."""
    async with queueing(tmp_path) as box:
        github = box.github
        world_ = github.world
        for login in ("helper[bot]", BOT):
            world_.users.setdefault(login, User(world_.next_id(), login, "Bot"))
            github.set_role(REPO, login, "admin")
        number = await issue(box)
        await github.as_user("maria").comment(REPO, number, "/agent help")
        await box.dealt_with()
        (help_,) = said(box, number)
        comments = len(github.comments(REPO, number))
        await github.as_user("maria").add_label(REPO, number, "other")
        await box.dealt_with()
        sent = {
            one.action: one.payload for one in github.deliveries if one.payload["sender"]["login"] == "maria"
        }
        comment, label = sent["created"], sent["labeled"]
        for login in ("helper[bot]", BOT):
            for text in (
                "/agent do it",
                "/agent status",
                help_,
                f"> {help_}\n/agent retry",
                "@agent-conductor hi",
            ):
                payload = as_somebody_else(copy.deepcopy(comment), login, box)
                payload["comment"].update(body=text, performed_via_github_app=None)
                await deliver(box, "issue_comment", payload)
            payload = as_somebody_else(copy.deepcopy(label), login, box)
            payload["label"]["name"] = "agent"
            await deliver(box, "issues", payload)
        assert len(github.comments(REPO, number)) == comments
        assert await box.store.recent_jobs() == []
        label["label"]["name"] = "agent"
        await deliver(box, "issues", label)  # the same from a person
        assert len(await box.store.recent_jobs()) == 1
