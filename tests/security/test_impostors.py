"""Attack classes 2, 3, 4, 6 and 29 on the whole program: who is not who they seem, and who asks without end."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bot.model import JobState
from bot.sandbox.faults import Fault
from bot.sandbox.state import User
from bot.schema import jobs
from tests.scenarios.impersonation import deliver
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

COMMAND = "/agent run --agent shell do it\n```sh\ntrue\n```"
LONG = "```sh\nsleep 300\n```"
REFUSED = "<!-- agent-conductor:refusal:"


async def issue(box: World, body: str = LONG) -> int:
    return int((await box.github.as_user("maria").open_issue(REPO, "Work", body))["number"])


async def running(box: World) -> int:
    """An issue on which an agent works."""
    number = await issue(box)
    await box.github.as_user("maria").add_label(REPO, number, "agent")
    async with asyncio.timeout(60):
        while (await box.job(number)).state is not JobState.running:
            await asyncio.sleep(0.05)
    return number


def account(box: World, login: str, kind: str, role: str) -> None:
    world_ = box.github.world
    world_.users[login] = User(world_.next_id(), login, kind)
    box.github.set_role(REPO, login, role)


def last(box: World, name: str, action: str) -> dict[str, Any]:
    """What GitHub sent of the newest such event that a person caused; a copy."""
    found = (
        one.payload
        for one in box.github.deliveries
        if (one.event, one.action) == (name, action) and one.payload["sender"]["type"] == "User"
    )
    return copy.deepcopy(next(found))


@pytest.mark.parametrize("login", ["helper[bot]", "agent-conductor[bot]"])
async def test_03_a_bot_starts_and_stops_nothing_whatever_its_rights(login: str, tmp_path: Path) -> None:
    """Anybody can make an App, and the owner of a repository may have given one every right; ours is one, too."""
    async with world(tmp_path) as box:
        number = await running(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, "a comment like any other")
        await maria.add_label(REPO, number, "other")
        await maria.remove_label(REPO, number, "other")
        other = await issue(box)
        await maria.close(REPO, other)
        await box.dealt_with()
        if login == "helper[bot]":
            account(box, login, "Bot", "admin")
        box.github.set_role(REPO, login, "admin")
        bot = {"login": login, "id": box.github.world.users[login].id, "type": "Bot"}
        said, jobs = len(box.github.comments(REPO, number)), len(await box.store.recent_jobs())
        assert jobs == 1
        for text in (
            COMMAND,
            "/agent cancel",
            "/agent retry",
            "/agent resume Yes.",
            "/agent status",
            "/agent x",
        ):
            event = last(box, "issue_comment", "created")
            event["sender"].update(bot)
            event["comment"]["user"].update(bot)
            event["comment"]["body"] = text
            await deliver(box, "issue_comment", event)
        for action, label in (("labeled", "agent"), ("labeled", "agent:shell"), ("unlabeled", "agent")):
            event = last(box, "issues", action)
            event["sender"].update(bot)
            event["label"]["name"] = label
            await deliver(box, "issues", event)
        event = last(box, "issues", "closed")
        event["issue"]["number"] = number
        event["sender"].update(bot)
        await deliver(box, "issues", event)
        assert len(await box.store.recent_jobs()) == 1
        job = await box.job(number)
        assert (job.state, job.cancel_requested_by) == (JobState.running, None)
        # no word to a bot: two that answer each other would never end
        assert len(box.github.comments(REPO, number)) == said
        event["sender"].update(type="User", login="maria", id=box.github.world.users["maria"].id)
        await deliver(box, "issues", event)  # the same from a person
        assert (await box.ended(number)).state is JobState.cancelled


@pytest.mark.parametrize("login", ["agent-conductor", "Agent-Conductor-bot", "github-actions", "maria-"])
async def test_03_a_name_that_looks_like_ours_or_a_writers_is_worth_nothing(
    login: str, tmp_path: Path
) -> None:
    async with world(tmp_path) as box:
        account(box, login, "User", "read")
        number = await issue(box)
        await box.github.as_user(login).comment(REPO, number, COMMAND)
        await box.dealt_with()
        assert await box.store.recent_jobs() == []
        (_, answer) = box.github.comments(REPO, number)
        assert "needs write access" in answer["body"]


async def test_03_a_strangers_comment_with_our_marker_is_never_taken_for_ours(tmp_path: Path) -> None:
    """The markers are hidden, not secret: whoever copies one must neither silence us nor have their text replaced."""
    async with world(tmp_path) as box:
        number = await issue(box, "```sh\necho 1 > one.txt\n```")
        maria, mallory = box.github.as_user("maria"), box.github.as_user("mallory")
        await maria.add_label(REPO, number, "agent")
        job = await box.ended(number)
        marked = f"<!-- agent-conductor:job:{job.id} -->\nAll is well."
        forged = (await mallory.comment(REPO, number, marked))["id"]
        (ours,) = (one for one in box.github.comments(REPO, number) if one["id"] != forged)
        await box.github.as_user("octocat").delete_comment(REPO, ours["id"])
        # as after a crash before ours was remembered: it is looked for by its marker
        async with box.store.engine.begin() as connection:
            await connection.execute(update(jobs).values(comment_id=None, reported=None))
        async with asyncio.timeout(60):
            while await box.store.unreported_jobs():
                await asyncio.sleep(0.05)
        bodies = {one["id"]: one["body"] for one in box.github.comments(REPO, number)}
        assert len(bodies) == 2
        assert bodies[forged] == marked
        assert ["✅ **Done**" in body for body in bodies.values()] == [False, True]


#: What is changed in a delivery of Maria's command that would start a job as it is.
Change = Callable[[dict[str, Any], dict[str, Any]], None]
FALSE: dict[str, Change] = {
    "written through another App in her name": lambda event, app: event["comment"].update(
        performed_via_github_app=app
    ),
    "the sender is a bot": lambda event, _: event["sender"].update(type="Bot"),
    "the sender is an organization": lambda event, _: event["sender"].update(type="Organization"),
    "somebody else's comment": lambda event, _: event["comment"]["user"].update(id=event["sender"]["id"] + 1),
    "an edit": lambda event, _: event.update(action="edited", changes={"body": {"from": "hello"}}),
    "a deletion": lambda event, _: event.update(action="deleted"),
    "a member who may not write": lambda event, _: (
        event["sender"].update(login="rita"),
        event["comment"].update(author_association="OWNER"),
    ),
    "nobody": lambda event, _: event["sender"].update(login="nobody-here"),
    "a name that resolves to another account": lambda event, _: event["sender"].update(login="renamed"),
    "a login that is a path": lambda event, _: event["sender"].update(login="maria/permission?x="),
    "the command quoted": lambda event, _: event["comment"].update(body="> /agent run --agent shell x"),
    "the command in code": lambda event, _: event["comment"].update(
        body="```\n/agent run --agent shell x\n```"
    ),
    "the command hidden": lambda event, _: event["comment"].update(
        body="<!--\n/agent run --agent shell x\n-->"
    ),
}


async def test_02_03_04_06_only_a_persons_own_new_comment_with_a_right_of_now_counts(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await issue(box)
        await box.github.as_user("maria").comment(REPO, number, "a comment like any other")
        await box.dealt_with()
        payload = last(box, "issue_comment", "created")
        payload["comment"]["body"] = COMMAND
        app = {"id": 99, "slug": "helper", "name": "Helper"}
        box.github.world.users["renamed"] = box.github.world.users["maria"]
        started = []
        for name, change in FALSE.items():
            event = copy.deepcopy(payload)
            change(event, app)
            await deliver(box, "issue_comment", event)
            if await box.store.recent_jobs():
                started.append(name)
                break
        assert started == []
        await deliver(box, "issue_comment", payload)  # as it is, it starts a job
        assert len(await box.store.recent_jobs()) == 1


async def test_02_a_right_that_was_taken_away_counts_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await running(box)
        box.github.set_role(REPO, "maria", "read")
        maria = box.github.as_user("maria")
        for text in ("/agent cancel", COMMAND, "/agent retry", "/agent resume Go on."):
            await maria.comment(REPO, number, text)
        await box.dealt_with()
        job = await box.job(number)
        assert (job.state, job.cancel_requested_by) == (JobState.running, None)
        assert len(await box.store.recent_jobs()) == 1


async def test_02_when_github_does_not_tell_the_rights_the_answer_is_no(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await issue(box)
        box.github.faults.add(Fault(path="/collaborators/maria/permission", status=403, times=None))
        await box.github.as_user("maria").comment(REPO, number, COMMAND)
        await box.dealt_with()
        assert await box.store.recent_jobs() == []
        assert (
            "could not find out whether you have write access"
            in box.github.comments(REPO, number)[-1]["body"]
        )


async def storm(box: World, login: str, numbers: list[int], times: int) -> None:
    person = box.github.as_user(login)
    for number in numbers:
        for nth in range(times):
            await person.comment(REPO, number, f"/agent run --agent shell nr {nth}\n```sh\ntrue\n```")
    await box.dealt_with()


def refusals(box: World, number: int, login: str) -> int:
    found = [one["body"] for one in box.github.comments(REPO, number) if REFUSED in one["body"]]
    return sum(f"@{login}" in body for body in found)


async def test_29_a_storm_of_comments_is_answered_once(tmp_path: Path) -> None:
    async with world(tmp_path, limit_user_hour=3, slots=1) as box:
        first, second = await issue(box), await issue(box)
        await storm(box, "rita", [first], 50)  # may not command at all
        await storm(box, "maria", [first, second], 25)
        jobs = await box.store.recent_jobs()
        assert len(jobs) == 3
        assert {job.trigger.actor.login for job in jobs} == {"maria"}
        assert refusals(box, first, "rita") == 1
        assert refusals(box, first, "maria") + refusals(box, second, "maria") == 1
        # the storm is hers alone
        await storm(box, "octocat", [second], 1)
        assert len(await box.store.recent_jobs()) == 4


async def test_29_a_full_line_takes_no_more_and_says_so_once_to_each(tmp_path: Path) -> None:
    async with world(tmp_path, limit_queued=4, slots=1) as box:
        number = await running(box)
        await asyncio.gather(*(storm(box, login, [number], 10) for login in ("maria", "octocat")))
        assert len(await box.store.recent_jobs()) == 1 + 4
        assert refusals(box, number, "maria") == 1
        assert refusals(box, number, "octocat") == 1


async def test_29_of_many_commands_in_one_comment_five_are_looked_at(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        number = await running(box)
        many = "\n\n".join(f"/agent run --agent shell nr {nth}" for nth in range(50))
        await box.github.as_user("maria").comment(REPO, number, many)
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1 + 5
