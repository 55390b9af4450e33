"""Who may make the bot do something: every trigger, by everybody, each cell a test.

A person acts through the sandbox GitHub's pages and API as long as GitHub lets them. What it does not let them do is
delivered all the same, signed, as GitHub would have sent it: rights may be taken away in the second after an act, and
the bot must not rely on GitHub's buttons being hidden. No agent runs here: jobs stay in the queue.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from bot.check_report import check_run
from bot.check_runs import CheckRuns
from bot.github import GitHub
from bot.model import Job, JobState
from bot.redact import Redactor
from bot.sandbox.human import HumanError
from bot.sandbox.refusals import Refusal
from bot.sandbox.state import User
from tests.scenarios.impersonation import as_somebody_else, deliver
from tests.scenarios.world import REPO, World, world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

BOT = "agent-conductor[bot]"
REFUSED = "<!-- agent-conductor:refusal:"
COMMAND = "/agent --agent shell do it"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Role:
    """Somebody, and what the bot is to answer them: yes, a polite no, or nothing at all."""

    login: str
    answer: str  # "yes", "no" or "silence"
    via_app: bool = False  # a person's act that another App did for them


ROLES = {
    "none": Role("mallory", "no"),
    "read": Role("rita", "no"),
    "triage": Role("tom", "no"),
    "write": Role("maria", "yes"),
    "maintain": Role("mona", "yes"),
    "admin": Role("octocat", "yes"),
    "org member without write": Role("olga", "no"),
    "suspended": Role("sven", "no"),
    "own bot": Role(BOT, "silence"),
    "other bot": Role("helper[bot]", "silence"),
    "bot with a writer's name": Role("maria[bot]", "silence"),
    "person with our name": Role("agent-conductor", "no"),
    "person with our bot's name": Role("Agent-Conductor-bot", "no"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("refusals")) as found:
        await found.stop_worker()
        add(found, "mona", "User", "maintain")
        add(found, "ada", "User", "write")
        add(found, "sven", "User", "write")
        found.github.world.users["sven"].suspended_at = datetime.now(UTC)
        add(found, "olga", "User", "none")
        found.github.world.users["acme"].members["olga"] = "member"
        for login in (BOT, "helper[bot]", "maria[bot]"):
            add(found, login, "Bot", "admin")  # whatever an owner may have given to it
        for login in ("agent-conductor", "Agent-Conductor-bot"):
            add(found, login, "User", "read")
        yield found


def add(box: World, login: str, kind: str, role: str) -> None:
    users = box.github.world.users
    if login not in users:
        users[login] = User(box.github.world.next_id(), login, kind)
    box.github.set_role(REPO, login, role)


@dataclass
class Cell:
    """One issue or pull request on which one act is done."""

    box: World
    number: int
    job: Job | None = None  # that the act is about
    check: int = 0
    suite: int = 0
    payload: dict[str, Any] | None = None  # what GitHub sends of the act

    async def jobs(self) -> list[Job]:
        repository = self.box.github.world.repository(*REPO.split("/"))
        return await self.box.store.jobs_on(repository.id, self.number)

    def said(self) -> list[str]:
        """What the bot wrote here, as comments and in the diff."""
        issue = self.box.github.world.repository(*REPO.split("/")).issues[self.number]
        found = [*issue.comments.values(), *(issue.pull.comments.values() if issue.pull else ())]
        return [one.body for one in found if one.login == BOT]


Act = Callable[[Cell, str], Awaitable[object]]
Setting = Callable[[World], Awaitable[Cell]]


@dataclass(frozen=True)
class Trigger:
    """An act, where it is done, and what it does when it may be done."""

    event: str
    action: str
    setting: Setting
    act: Act
    effect: str  # "job": one more job; "cancelled": the job is; "said": only an answer
    talk: bool = False  # people say such things to each other as well: nobody is told that it starts nothing


# --- where


async def on_issue(box: World) -> Cell:
    opened = await box.github.as_user("octocat").open_issue(REPO, f"Work {next(_numbers)}", "Do it.")
    return Cell(box, int(opened["number"]))


async def on_pull(box: World) -> Cell:
    octocat, branch = box.github.as_user("octocat"), f"topic-{next(_numbers)}"
    await octocat.push_commit(REPO, branch, {f"{branch}.txt": "one\ntwo\n"})
    return Cell(box, int((await octocat.open_pull(REPO, branch, "A change"))["number"]))


async def queued(cell: Cell) -> Cell:
    await cell.box.github.as_user("octocat").comment(REPO, cell.number, COMMAND)
    await cell.box.dealt_with()
    (cell.job,) = await cell.jobs()
    assert cell.job.state is JobState.queued
    return cell


async def checked(cell: Cell, *, ended: bool) -> Cell:
    """With a check run of the job on the pull request's head, as a worker makes it."""
    box = cell.box
    await queued(cell)
    assert cell.job is not None
    if ended:
        await box.github.as_user("octocat").comment(REPO, cell.number, "/agent cancel")
        await box.dealt_with()
    sha = next(pull["head"]["sha"] for pull in box.github.pulls(REPO) if pull["number"] == cell.number)
    await box.store.note(cell.job.id, base_sha=sha)
    (cell.job,) = await cell.jobs()
    assert cell.job.state.final is ended
    async with GitHub.from_settings(box.settings) as github:
        run = check_run("agent", cell.job, summary="…", details_url=None)
        cell.check = await CheckRuns(github, Redactor()).put(cell.job.repo, sha, run)
    cell.suite = box.github.check_runs(REPO, sha)[0]["check_suite"]["id"]
    return cell


async def on_issue_with_a_job(box: World) -> Cell:
    return await queued(await on_issue(box))


async def on_pull_with_a_job(box: World) -> Cell:
    return await queued(await on_pull(box))


async def on_running_check(box: World) -> Cell:
    return await checked(await on_pull(box), ended=False)


async def on_ended_check(box: World) -> Cell:
    return await checked(await on_pull(box), ended=True)


async def on_the_bots_pull(box: World) -> Cell:
    """A pull request that a job of the bot belongs to; its author may not ask for changes of it."""
    ada, branch = box.github.as_user("ada"), f"topic-{next(_numbers)}"
    await ada.push_commit(REPO, branch, {f"{branch}.txt": "one\ntwo\n"})
    cell = Cell(box, int((await ada.open_pull(REPO, branch, "A change"))["number"]))
    await queued(cell)
    assert cell.job is not None
    await box.github.as_user("octocat").comment(REPO, cell.number, "/agent cancel")
    await box.dealt_with()
    await box.store.note(cell.job.id, pull_number=cell.number)
    return cell


async def on_labeled_issue(box: World) -> Cell:
    cell = await on_issue(box)
    await box.github.as_user("octocat").add_label(REPO, cell.number, "agent:shell")
    await box.dealt_with()
    (cell.job,) = await cell.jobs()
    return cell


# --- what


def labels(label: str) -> Act:
    return lambda cell, who: cell.box.github.as_user(who).add_label(REPO, cell.number, label)


def writes(text: str) -> Act:
    return lambda cell, who: cell.box.github.as_user(who).comment(REPO, cell.number, text)


def presses(button: str) -> Act:
    return lambda cell, who: cell.box.github.as_user(who).click_check_button(REPO, cell.check, button)


async def unlabels(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).remove_label(REPO, cell.number, "agent:shell")


async def writes_inline(cell: Cell, who: str) -> None:
    pull = next(one for one in cell.box.github.pulls(REPO) if one["number"] == cell.number)
    path = f"{pull['head']['ref']}.txt"
    await cell.box.github.as_user(who).comment_on_line(REPO, cell.number, path, 1, COMMAND)


async def reviews(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).review(REPO, cell.number, "COMMENT", COMMAND)


async def asks_for_changes(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).review(REPO, cell.number, "REQUEST_CHANGES", "Say it in Czech, too.")


async def re_runs(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).rerequest_check(REPO, cell.check)


async def re_runs_all(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).request("POST", f"/repos/{REPO}/check-suites/{cell.suite}/rerequest")


async def closes(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).close(REPO, cell.number)


TRIGGERS = {
    "label on issue": Trigger("issues", "labeled", on_issue, labels("agent:shell"), "job"),
    "label on pull request": Trigger("pull_request", "labeled", on_pull, labels("agent:shell"), "job"),
    "label taken away": Trigger("issues", "unlabeled", on_labeled_issue, unlabels, "cancelled"),
    "command on issue": Trigger("issue_comment", "created", on_issue, writes(COMMAND), "job"),
    "command on pull request": Trigger("issue_comment", "created", on_pull, writes(COMMAND), "job"),
    "inline command": Trigger("pull_request_review_comment", "created", on_pull, writes_inline, "job"),
    "command in a review": Trigger("pull_request_review", "submitted", on_pull, reviews, "job"),
    "review that asks for changes": Trigger(
        "pull_request_review", "submitted", on_the_bots_pull, asks_for_changes, "job", talk=True
    ),
    "cancel by command": Trigger(
        "issue_comment", "created", on_issue_with_a_job, writes("/agent cancel"), "cancelled"
    ),
    "retry by command": Trigger("issue_comment", "created", on_ended_check, writes("/agent retry"), "job"),
    "resume by command": Trigger("issue_comment", "created", on_ended_check, writes("/agent resume"), "job"),
    "status": Trigger("issue_comment", "created", on_issue, writes("/agent status"), "said"),
    "help": Trigger("issue_comment", "created", on_issue, writes("/agent help"), "said"),
    "an unknown command": Trigger(
        "issue_comment", "created", on_issue, writes("/agent --nonsense x"), "said"
    ),
    "button cancel": Trigger(
        "check_run", "requested_action", on_running_check, presses("cancel"), "cancelled"
    ),
    "button retry": Trigger("check_run", "requested_action", on_ended_check, presses("retry"), "job"),
    "button resume": Trigger("check_run", "requested_action", on_ended_check, presses("resume"), "job"),
    "re-run": Trigger("check_run", "rerequested", on_ended_check, re_runs, "job"),
    "re-run all": Trigger("check_suite", "rerequested", on_ended_check, re_runs_all, "job"),
    "closing an issue": Trigger("issues", "closed", on_issue_with_a_job, closes, "cancelled"),
    "closing a pull request": Trigger("pull_request", "closed", on_pull_with_a_job, closes, "cancelled"),
}


async def payload_of(cell: Cell, trigger: Trigger) -> dict[str, Any]:
    """What GitHub sends when the owner does it; the bot gets nothing of that."""
    if cell.payload is not None:
        return copy.deepcopy(cell.payload)
    github = cell.box.github
    url, github.webhook_url = github.webhook_url, None
    try:
        await trigger.act(cell, "octocat")
        await github.deliveries_settled()
    finally:
        github.webhook_url = url
    found = (one for one in github.deliveries if (one.event, one.action) == (trigger.event, trigger.action))
    cell.payload = next(found).payload
    return copy.deepcopy(cell.payload)


async def do(cell: Cell, trigger: Trigger, login: str) -> None:
    """Let somebody do it, by themselves if GitHub lets them."""
    box = cell.box
    try:
        await trigger.act(cell, login)
    except (HumanError, Refusal):  # GitHub does not let them
        payload = await payload_of(cell, trigger)
        await deliver(box, trigger.event, as_somebody_else(payload, login, box))
    await box.dealt_with()


async def effect(cell: Cell, trigger: Trigger, before: list[Job]) -> bool:
    jobs = await cell.jobs()
    if trigger.effect == "job":
        return len(jobs) == len(before) + 1
    if trigger.effect == "cancelled":
        return [job.state for job in jobs] == [JobState.cancelled]
    return False


#: Where refused acts are done, by the name of their trigger: nothing comes of them, so one place is enough for many.
_unchanged: dict[str, Cell] = {}


@pytest.mark.parametrize("role", list(ROLES))
@pytest.mark.parametrize("name", list(TRIGGERS))
async def test_cell(box: World, name: str, role: str) -> None:
    trigger, who = TRIGGERS[name], ROLES[role]
    if who.answer == "yes":
        await check_done(await trigger.setting(box), trigger, who)
        return
    if (
        role == "triage"
    ):  # GitHub lets them set labels and close issues themselves, and that cannot be done twice
        await check_refused(await trigger.setting(box), trigger, who)
        return
    if name not in _unchanged:
        _unchanged[name] = await trigger.setting(box)
    await check_refused(_unchanged[name], trigger, who)


async def check_done(cell: Cell, trigger: Trigger, who: Role) -> None:
    before, said = await cell.jobs(), len(cell.said())
    await do(cell, trigger, who.login)
    news = cell.said()[said:]
    assert not any(REFUSED in one for one in news)
    if trigger.effect == "said":
        assert len(news) == 1
        assert await cell.jobs() == before
    else:
        assert await effect(cell, trigger, before)


async def check_refused(cell: Cell, trigger: Trigger, who: Role) -> None:
    before, said = await cell.jobs(), len(cell.said())
    await do(cell, trigger, who.login)
    news = cell.said()[said:]
    assert [(job.id, job.state) for job in await cell.jobs()] == [(job.id, job.state) for job in before]
    assert not any(job.cancel_requested_by == who.login for job in await cell.jobs())
    if who.answer == "silence" or trigger.talk:
        assert news == []
        return
    (answer,) = news
    assert answer.startswith(REFUSED)
    assert f"@{who.login}" in answer
    assert ("suspended" if who.login == "sven" else "write access") in answer


@pytest.mark.parametrize("name", [name for name, trigger in TRIGGERS.items() if not trigger.talk])
async def test_a_refusal_is_said_once(box: World, name: str) -> None:
    """The same person, the same thing, again and again, in other deliveries."""
    trigger = TRIGGERS[name]
    cell = await trigger.setting(box)
    before, said = await cell.jobs(), len(cell.said())
    payload = as_somebody_else(await payload_of(cell, trigger), "rita", box)
    for _ in range(4):
        await deliver(box, trigger.event, payload)
    assert [(job.id, job.state) for job in await cell.jobs()] == [(job.id, job.state) for job in before]
    assert len(cell.said()) == said + 1


@pytest.mark.parametrize("text", [COMMAND, "/agent cancel", "/agent help", "/agent status"])
@pytest.mark.parametrize("inline", [False, True], ids=["comment", "inline comment"])
async def test_what_an_app_writes_for_a_writer_is_not_the_writers_word(
    box: World, text: str, inline: bool
) -> None:
    """An App with a person's token writes as that person; a model's output must not become a command in this way."""
    trigger = TRIGGERS["inline command" if inline else "command on pull request"]
    cell = await on_pull_with_a_job(box)
    before, said = await cell.jobs(), len(cell.said())
    payload = as_somebody_else(await payload_of(cell, trigger), "maria", box)
    payload["comment"]["body"] = text
    payload["comment"]["performed_via_github_app"] = {"id": 99, "slug": "helper", "name": "Helper"}
    await deliver(box, trigger.event, payload)
    assert await cell.jobs() == before
    assert len(cell.said()) == said


@pytest.mark.parametrize("login", [BOT, "renamed-bot", "Octocat"])
async def test_our_own_account_triggers_nothing_under_any_login(box: World, login: str) -> None:
    """The account is known by its id: a renamed App keeps that, and events may show the old name or the new one."""
    cell = await on_issue(box)
    for name in ("command on issue", "label on issue"):
        trigger = TRIGGERS[name]
        payload = as_somebody_else(await payload_of(cell, trigger), BOT, box)
        for user in (payload["sender"], payload.get("comment", {}).get("user", {})):
            user.update(login=login, type="User")
        await deliver(box, trigger.event, payload)
    assert await cell.jobs() == []
    assert cell.said() == []
