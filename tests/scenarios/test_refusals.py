"""Who may make the bot do something: every trigger, by everybody, each cell a test.

A person acts through the sandbox GitHub's pages and API as long as GitHub lets them. What it does not let them do is
delivered all the same, signed, as GitHub would have sent it: rights may be taken away in the second after an act, and
the bot must not rely on GitHub's buttons being hidden. No agent runs here: jobs stay in the queue.

Everybody does a thing in one go, and then each cell looks at what came of it for one of them. What is refused changes
nothing, so that all who are refused may do it in one place; what the bot says there names the delivery it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from bot.approval_store import ApprovalStore
from bot.audit import Audit, Wanted
from bot.audit_chain import Entry
from bot.check_report import check_run
from bot.check_runs import CheckRun, CheckRuns
from bot.github import GitHub
from bot.model import Approval, ApprovalKind, ApprovalState, Job, JobKind, JobState, Repo
from bot.redact import Redactor
from bot.sandbox.human import HumanError
from bot.sandbox.refusals import Refusal
from bot.sandbox.state import User
from tests.scenarios.impersonation import as_somebody_else, deliver, send
from tests.scenarios.world import REPO, World, world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

BOT = "agent-conductor[bot]"
REFUSED = "<!-- agent-conductor:refusal:"
JOB = "<!-- agent-conductor:job:"
COMMAND = "/agent --agent shell do it"
HELPER = {"id": 99, "slug": "helper", "name": "Helper"}
#: In these events GitHub tells when an App has written the words with a person's token, in no others; and of what.
TELLS_THE_APP = {
    ("issue_comment", "created"): "comment",
    ("pull_request_review_comment", "created"): "comment",
    ("issues", "opened"): "issue",
}
CONFIG = """
jobs:
  tidy: {agent: shell, prompt: Tidy up.}
"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Role:
    """Somebody, and what the bot is to answer them: yes, a polite no, or nothing at all."""

    login: str
    answer: str  # "yes", "no" or "silence"
    via_app: bool = False  # an App does it in their name: what it writes, a model may have written


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
    "write, through an App": Role("maria", "yes", via_app=True),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("refusals")) as found:
        await found.stop_worker()
        found.github.rate_limit.limit = 1_000_000  # what all of them do in these minutes, others do in days
        add(found, "mona", "User", "maintain")
        add(found, "ada", "User", "write")
        add(found, "sven", "User", "write")
        found.github.suspend_user("sven")
        add(found, "olga", "User", "none")
        found.github.set_member("acme", "olga")
        for login in (BOT, "helper[bot]", "maria[bot]"):
            add(found, login, "Bot", "admin")  # whatever an owner may have given to it
        for login in ("agent-conductor", "Agent-Conductor-bot"):
            add(found, login, "User", "read")
        await found.github.as_user("octocat").push_commit(REPO, "main", {".github/conductor.yml": CONFIG})
        yield found


def add(box: World, login: str, kind: str, role: str) -> None:
    users = box.github.world.users
    if login not in users:
        users[login] = User(box.github.world.next_id(), login, kind)
    box.github.set_role(REPO, login, role)


@dataclass
class Cell:
    """One issue or pull request on which acts are done."""

    box: World
    number: int
    job: Job | None = None  # that the act is about
    check: int = 0
    suite: int = 0
    about: int = 0  # the comment or review that the act is about
    payload: dict[str, Any] | None = None  # what GitHub sends of the act

    @property
    def repository(self) -> Any:
        return self.box.github.world.repository(*REPO.split("/"))

    async def jobs(self) -> list[Job]:
        """The newest first."""
        return await self.box.store.jobs_on(self.repository.id, self.number)

    async def approvals(self) -> list[Approval]:
        """The newest first."""
        return await approvals(self.box).on(self.repository.id, self.number)

    async def state(self) -> set[tuple[object, ...]]:
        """Everything that an act could change. What a delivery adds begins with its GUID."""
        found: set[tuple[object, ...]] = set()
        for job in await self.jobs():
            found.add((job.trigger.delivery_id, job.id, job.state, job.cancel_requested_by, job.answered_by))
            for event, by, _ in await self.box.store.untold(job.id):
                found.add((event.partition("/")[0], job.id, by))
        return found | {("", one.id, one.state, one.decided_by) for one in await self.approvals()}

    def said(self) -> dict[int, str]:
        """What the bot wrote here, as comments and in the diff."""
        issue = self.repository.issues[self.number]
        found = [*issue.comments.values(), *(issue.pull.comments.values() if issue.pull else ())]
        return {one.id: one.body for one in found if one.login == BOT}


def approvals(box: World) -> ApprovalStore:
    return ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor))


Act = Callable[[Cell, str], Awaitable[object]]
Setting = Callable[[World], Awaitable[Cell]]


@dataclass(frozen=True)
class Trigger:
    """An act, where it is done, and what it does when it may be done."""

    event: str
    action: str
    setting: Setting
    act: Act
    effect: str  # "job": one more of `kind`; "cancelled": the job is; "said": only an answer; "nothing", for nobody; …
    kind: JobKind = JobKind.task
    talk: bool = False  # people say such things to each other as well: nobody is told that it starts nothing
    on_github: bool = False  # GitHub is asked about it, so it has to be there
    many: bool = False  # it may be done again and again in one place
    follows: str = "job"  # a decision: "job", of `kind`; "answer", to the job that asked; "nothing" more
    audited: bool = True  # a no to it is in the audit trail, as a command that was refused

    @property
    def tells_the_app(self) -> str | None:
        """What of the payload says that an App has written it, if anything does."""
        return TELLS_THE_APP.get((self.event, self.action)) if self.effect != "nothing" else None

    def is_done_for(self, who: Role) -> bool:
        """Whether the bot is to do it for them."""
        unwritten = who.via_app and self.tells_the_app is not None
        return who.answer == "yes" and self.effect != "nothing" and not unwritten


# --- where


async def on_issue(box: World) -> Cell:
    opened = await box.github.as_user("octocat").open_issue(REPO, f"Work {next(_numbers)}", "Do it.")
    return Cell(box, int(opened["number"]))


async def on_pull(box: World, login: str = "octocat") -> Cell:
    person, branch = box.github.as_user(login), f"topic-{next(_numbers)}"
    await person.push_commit(REPO, branch, {f"{branch}.txt": "one\ntwo\n"})
    return Cell(box, int((await person.open_pull(REPO, branch, "A change"))["number"]))


def head(cell: Cell) -> str:
    return str(cell.repository.issues[cell.number].pull.head_sha)


async def queued(cell: Cell, command: str = COMMAND, login: str = "octocat") -> Cell:
    await cell.box.github.as_user(login).comment(REPO, cell.number, command)
    await cell.box.dealt_with()
    (cell.job,) = await cell.jobs()
    assert cell.job.state is JobState.queued
    return cell


async def ended(cell: Cell) -> Cell:
    await queued(cell)
    assert cell.job is not None
    cell.job = await cell.box.store.cancel_unowned(cell.job.id)
    return cell


async def running(cell: Cell) -> Cell:
    """With a job of an agent that listens while it works."""
    await queued(cell, "/agent --agent claude do it")
    assert cell.job is not None
    cell.job = await cell.box.store.move(cell.job.id, JobState.running, expected=[JobState.queued])
    return cell


async def checked(cell: Cell) -> Cell:
    """With a check run of the job on the pull request's head, as a worker makes it."""
    box, sha = cell.box, head(cell)
    assert cell.job is not None
    await box.store.note(cell.job.id, base_sha=sha)
    (cell.job,) = await cell.jobs()
    async with GitHub.from_settings(box.settings) as github:
        run = check_run("agent", cell.job, summary="…", details_url=None)
        cell.check = await CheckRuns(github, Redactor()).put(cell.job.repo, sha, run)
    cell.suite = box.github.check_runs(REPO, sha)[0]["check_suite"]["id"]
    return cell


async def on_issue_with_a_job(box: World) -> Cell:
    return await queued(await on_issue(box))


async def on_pull_with_a_job(box: World) -> Cell:
    return await queued(await on_pull(box))


async def on_ended_job(box: World) -> Cell:
    return await ended(await on_pull(box))


async def on_running_job(box: World) -> Cell:
    return await running(await on_pull(box))


async def on_paused_job(box: World) -> Cell:
    """Its agent has asked something, and people were told."""
    cell = await running(await on_pull(box))
    assert cell.job is not None
    cell.job = await box.store.move(
        cell.job.id,
        JobState.paused,
        expected=[JobState.running],
        question="In which language?",
        asked_at=datetime.now(UTC),
        reported=str(JobState.paused),
    )
    return cell


async def on_running_check(box: World) -> Cell:
    return await checked(await queued(await on_pull(box)))


async def on_ended_check(box: World) -> Cell:
    return await checked(await ended(await on_pull(box)))


async def on_the_bots_pull(box: World) -> Cell:
    """A pull request that a job of the bot belongs to; its author may not ask for changes of it."""
    cell = await ended(await on_pull(box, "ada"))
    assert cell.job is not None
    await box.store.note(cell.job.id, pull_number=cell.number)
    return cell


async def on_a_plan(box: World) -> Cell:
    """A pull request with a plan that ada has asked for, and that somebody else is to approve."""
    cell = await queued(await on_pull(box, "ada"), "/agent plan --agent shell", "ada")
    assert cell.job is not None
    await box.store.move(cell.job.id, JobState.running, expected=[JobState.queued])
    cell.job = await box.store.move(
        cell.job.id,
        JobState.succeeded,
        expected=[JobState.running],
        pull_number=cell.number,
        reported=str(JobState.succeeded),
    )
    await ask(cell, ApprovalKind.plan, {})
    return cell


def asks(kind: ApprovalKind, **details: Any) -> Setting:
    """A pull request with a question to reviewers: of ada's job, which waits for the answer or has ended."""

    async def setting(box: World) -> Cell:
        waits = kind is not ApprovalKind.protected
        cell = await queued(await on_pull(box, "ada"), "/agent --agent claude do it", "ada")
        assert cell.job is not None
        await box.store.move(cell.job.id, JobState.running, expected=[JobState.queued])
        now, to = datetime.now(UTC), JobState.paused if waits else JobState.succeeded
        said = {"question": "May I?", "asked_at": now} if waits else {}
        cell.job = await box.store.move(
            cell.job.id, to, expected=[JobState.running], pull_number=cell.number, reported=str(to), **said
        )
        await ask(cell, kind, details)
        return cell

    return setting


async def ask(cell: Cell, kind: ApprovalKind, details: dict[str, Any]) -> None:
    """Have the cell's job ask reviewers something; the pull request says so already."""
    assert cell.job is not None
    now = datetime.now(UTC)
    question = Approval(
        id=f"p{next(_numbers):012}",
        kind=kind,
        job_id=cell.job.id,
        repo=cell.job.repo,
        pull_number=cell.number,
        subject="Do it.",
        details=details,
        sha=head(cell),
        state=ApprovalState.pending,
        asked_at=now,
        expires_at=now + timedelta(days=1),
        settled_at=now,
    )
    assert await approvals(cell.box).ask(question)


async def on_failing_pull(box: World) -> Cell:
    cell = await on_pull(box)
    await box.github.as_app("ci").check(REPO, head(cell), "test", "failure", title="assert 1 == 2")
    await box.dealt_with()
    return cell


async def on_a_counted_pull(box: World) -> Cell:
    """With the check run that says whether the reviews of a pull request suffice."""
    cell = await on_pull(box)
    run = CheckRun(
        name="agent/approval",
        external_id=f"approval:{cell.number}",
        title="…",
        summary="…",
        conclusion="neutral",
    )
    async with GitHub.from_settings(box.settings) as github:
        repo = Repo(
            id=cell.repository.id,
            owner="acme",
            name="hello",
            installation_id=box.github.installation_id,
        )
        cell.check = await CheckRuns(github, Redactor()).put(repo, head(cell), run)
    return cell


async def on_a_configuration(box: World) -> Cell:
    """A pull request with a configuration, which the bot has checked."""
    person, branch = box.github.as_user("octocat"), f"topic-{next(_numbers)}"
    await person.push_commit(REPO, branch, {".github/conductor.yml": CONFIG + "labels: []\n"})
    cell = Cell(box, int((await person.open_pull(REPO, branch, "Other settings"))["number"]))
    await box.dealt_with()
    (run,) = (run for run in box.github.check_runs(REPO, head(cell)) if run["name"] == "agent/config")
    cell.check = run["id"]
    return cell


async def labeled(cell: Cell) -> Cell:
    await cell.box.github.as_user("octocat").add_label(REPO, cell.number, "agent:shell")
    await cell.box.dealt_with()
    (cell.job,) = await cell.jobs()
    return cell


async def on_labeled_issue(box: World) -> Cell:
    return await labeled(await on_issue(box))


async def on_labeled_pull(box: World) -> Cell:
    return await labeled(await on_pull(box))


async def on_ritas_comment(box: World) -> Cell:
    cell = await on_issue(box)
    cell.about = int((await box.github.as_user("rita").comment(REPO, cell.number, "Hm."))["id"])
    return cell


async def on_a_review(box: World) -> Cell:
    """With a review that has become a command since."""
    cell, mona = await on_pull(box), box.github.as_user("mona")
    cell.about = int((await mona.review(REPO, cell.number, "REQUEST_CHANGES", "Hm."))["id"])
    await mona.edit_review(REPO, cell.number, cell.about, COMMAND)
    await box.dealt_with()
    assert await cell.jobs() == []
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


def writes_inline(text: str) -> Act:
    def act(cell: Cell, who: str) -> Awaitable[dict[str, Any]]:
        file = f"{cell.repository.issues[cell.number].pull.head_ref}.txt"
        return cell.box.github.as_user(who).comment_on_line(REPO, cell.number, file, 1, text)

    return act


def reviews(text: str, event: str = "COMMENT") -> Act:
    return lambda cell, who: cell.box.github.as_user(who).review(REPO, cell.number, event, text)


async def reviews_lines(cell: Cell, who: str) -> None:
    """With remarks beside the diff, and without a verdict."""
    file = f"{cell.repository.issues[cell.number].pull.head_ref}.txt"
    remarks = [{"path": file, "line": 1, "body": "Say it in Czech, too."}]
    steps = "See there.\n```sh\necho ahoj\n```"
    await cell.box.github.as_user(who).review(REPO, cell.number, "COMMENT", steps, comments=remarks)


async def opens_issue(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).open_issue(REPO, "Work", COMMAND)


async def opens_pull(cell: Cell, who: str) -> None:
    person, branch = cell.box.github.as_user(who), f"topic-{next(_numbers)}"
    await person.push_commit(REPO, branch, {f"{branch}.txt": "one\n"})
    await person.open_pull(REPO, branch, "A change", COMMAND)


async def re_runs(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).rerequest_check(REPO, cell.check)


async def re_runs_all(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).request("POST", f"/repos/{REPO}/check-suites/{cell.suite}/rerequest")


async def closes(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).close(REPO, cell.number)


async def edits(cell: Cell, who: str) -> int:
    """Words of their own become a command."""
    person = cell.box.github.as_user(who)
    number = int((await person.comment(REPO, cell.number, "Hm."))["id"])
    await person.edit_comment(REPO, number, COMMAND)
    return number


async def deletes(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).delete_comment(REPO, await edits(cell, who))


async def edits_ritas(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).edit_comment(REPO, cell.about, f"{COMMAND}, {who}")


async def edits_inline(cell: Cell, who: str) -> str:
    comment: Any = await writes_inline("Hm.")(cell, who)
    url = f"/repos/{REPO}/pulls/comments/{comment['id']}"
    await cell.box.github.as_user(who).request("PATCH", url, {"body": COMMAND})
    return url


async def deletes_inline(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).request("DELETE", await edits_inline(cell, who))


async def edits_review(cell: Cell, who: str) -> None:
    review: Any = await reviews("Hm.")(cell, who)
    await cell.box.github.as_user(who).edit_review(REPO, cell.number, review["id"], COMMAND)


async def dismisses(cell: Cell, who: str) -> None:
    await cell.box.github.as_user(who).dismiss_review(REPO, cell.number, cell.about, COMMAND)


#: Where a command may stand: the event that brings it, and how it gets there. All these are created by one event.
PLACES: dict[str, tuple[str, str, Callable[[str], Act]]] = {
    "comment": ("issue_comment", "created", writes),
    "inline": ("pull_request_review_comment", "created", writes_inline),
    "review": ("pull_request_review", "submitted", reviews),
}

#: What it says, where, what comes of it, and the kind of the job that does.
COMMANDS: dict[str, tuple[str, Setting, str, JobKind]] = {
    "run": (COMMAND, on_pull, "job", JobKind.task),
    "plan": ("/agent plan --agent shell do it", on_pull, "job", JobKind.plan),
    "review": ("/agent review --agent claude Is it right?", on_pull, "job", JobKind.review),
    "ask": ("/agent ask --agent claude Why two?", on_pull, "job", JobKind.ask),
    "fix": ("/agent fix --agent claude", on_failing_pull, "job", JobKind.fix),
    "job": ("/agent job tidy", on_pull, "job", JobKind.task),
    "retry": ("/agent retry", on_ended_job, "job", JobKind.task),
    "resume": ("/agent resume", on_ended_job, "job", JobKind.task),
    "resume, as an answer": ("/agent resume In Czech.", on_paused_job, "answered", JobKind.task),
    "tell": ("/agent tell Mind the tests.", on_running_job, "told", JobKind.task),
    "cancel": ("/agent cancel", on_pull_with_a_job, "cancelled", JobKind.task),
    "status": ("/agent status", on_pull, "said", JobKind.task),
    "logs": ("/agent logs", on_pull, "said", JobKind.task),
    "approve": ("/agent approve", on_a_plan, "said", JobKind.task),
    "help": ("/agent help", on_pull, "said", JobKind.task),
    "unknown": ("/agent --nonsense x", on_pull, "said", JobKind.task),
}
#: Those that one may write as often as one likes where they are.
MANY = ("run", "plan", "review", "ask", "fix", "job", "tell", "status", "logs", "approve", "help", "unknown")

#: Tried in the diff and in reviews, too: one for each way in which a command is carried out.
ELSEWHERE = ("run", "fix", "resume, as an answer", "tell", "cancel", "approve")

TRIGGERS = {
    "label on issue": Trigger("issues", "labeled", on_issue, labels("agent:shell"), "job"),
    "label on pull request": Trigger("pull_request", "labeled", on_pull, labels("agent:shell"), "job"),
    "label taken away": Trigger("issues", "unlabeled", on_labeled_issue, unlabels, "cancelled"),
    "label of a pull request taken away": Trigger(
        "pull_request", "unlabeled", on_labeled_pull, unlabels, "cancelled"
    ),
    "command on issue": Trigger("issue_comment", "created", on_issue, writes(COMMAND), "job", many=True),
    "cancel on issue": Trigger(
        "issue_comment", "created", on_issue_with_a_job, writes("/agent cancel"), "cancelled"
    ),
    **{
        f"{command} by {place}": Trigger(
            event, action, setting, act(text), effect, kind=kind, many=command in MANY
        )
        for command, (text, setting, effect, kind) in COMMANDS.items()
        for place, (event, action, act) in PLACES.items()
        if place == "comment" or command in ELSEWHERE
    },
    "issue opened with a command": Trigger("issues", "opened", on_issue, opens_issue, "job", many=True),
    "pull request opened with a command": Trigger(
        "pull_request", "opened", on_issue, opens_pull, "job", many=True
    ),
    "review that asks for changes": Trigger(
        "pull_request_review",
        "submitted",
        on_the_bots_pull,
        reviews("Say it in Czech, too.\n```sh\necho ahoj\n```", "REQUEST_CHANGES"),
        "job",
        talk=True,
        on_github=True,
    ),
    "review that remarks on lines": Trigger(
        "pull_request_review",
        "submitted",
        on_the_bots_pull,
        reviews_lines,
        "job",
        talk=True,
        on_github=True,
        audited=False,  # each reply in a thread is such a review
    ),
    **{
        name: Trigger(
            "pull_request_review",
            "submitted",
            setting,
            reviews("Mind the tests.", event),
            "approved" if event == "APPROVE" else "refused",
            kind=JobKind.release,
            on_github=True,
            follows=follows,
        )
        for name, setting, event, follows in (
            (
                "review that grants a host",
                asks(ApprovalKind.network, host="docs.example.com"),
                "APPROVE",
                "answer",
            ),
            ("review that denies money", asks(ApprovalKind.budget, dollars=1.0), "REQUEST_CHANGES", "answer"),
            ("review that grants money", asks(ApprovalKind.budget, dollars=1.0), "APPROVE", "answer"),
            ("review that releases", asks(ApprovalKind.protected, paths=["Makefile"]), "APPROVE", "job"),
        )
    },
    "review that approves a plan": Trigger(
        "pull_request_review",
        "submitted",
        on_a_plan,
        reviews("Go ahead.", "APPROVE"),
        "approved",
        on_github=True,
    ),
    "review that refuses a plan": Trigger(
        "pull_request_review",
        "submitted",
        on_a_plan,
        reviews("Smaller steps.", "REQUEST_CHANGES"),
        "refused",
        kind=JobKind.plan,
        on_github=True,
    ),
    "button cancel": Trigger(
        "check_run", "requested_action", on_running_check, presses("cancel"), "cancelled"
    ),
    "button retry": Trigger("check_run", "requested_action", on_ended_check, presses("retry"), "job"),
    "button resume": Trigger("check_run", "requested_action", on_ended_check, presses("resume"), "job"),
    "re-run": Trigger("check_run", "rerequested", on_ended_check, re_runs, "job"),
    "re-run all": Trigger("check_suite", "rerequested", on_ended_check, re_runs_all, "job"),
    # these decide nothing, so whoever GitHub lets may have them counted and checked again
    "re-run of the approval": Trigger("check_run", "rerequested", on_a_counted_pull, re_runs, "nothing"),
    "re-run of the configuration's check": Trigger(
        "check_run", "rerequested", on_a_configuration, re_runs, "nothing"
    ),
    "closing an issue": Trigger("issues", "closed", on_issue_with_a_job, closes, "cancelled"),
    "closing a pull request": Trigger("pull_request", "closed", on_pull_with_a_job, closes, "cancelled"),
    # commands that nobody has written anew: of whoever's words, they start nothing for anybody
    "comment edited": Trigger("issue_comment", "edited", on_issue, edits, "nothing"),
    "somebody else's comment edited": Trigger(
        "issue_comment", "edited", on_ritas_comment, edits_ritas, "nothing"
    ),
    "comment deleted": Trigger("issue_comment", "deleted", on_issue, deletes, "nothing"),
    "inline comment edited": Trigger(
        "pull_request_review_comment", "edited", on_pull, edits_inline, "nothing"
    ),
    "inline comment deleted": Trigger(
        "pull_request_review_comment", "deleted", on_pull, deletes_inline, "nothing"
    ),
    # a submitted review cannot be deleted, only dismissed:
    # https://docs.github.com/en/rest/pulls/reviews#delete-a-pending-review-for-a-pull-request
    "review edited": Trigger("pull_request_review", "edited", on_pull, edits_review, "nothing"),
    "review dismissed": Trigger("pull_request_review", "dismissed", on_a_review, dismisses, "nothing"),
}


# --- everybody does it


@dataclass
class Deed:
    """A trigger's act by one role: how the bot was told of it, and what it was like there before and after."""

    cell: Cell
    alone: bool  # nobody else did anything there
    guid: str
    payload: dict[str, Any]
    before: set[tuple[object, ...]]
    after: set[tuple[object, ...]] = field(default_factory=set)
    news: list[str] = field(default_factory=list)  # what the bot said there meanwhile

    def answers(self, login: str) -> list[str]:
        """What it said to the one who did this."""
        start = f"@{login}, your review does not decide this"
        return [one for one in self.news if self.alone or self.guid in one or start in one]


async def unheard(cell: Cell, trigger: Trigger, login: str) -> dict[str, Any]:
    """Somebody who still may does it; returns what GitHub sends of that, which the bot does not get, now or later."""
    github = cell.box.github
    user = github.world.users[login]
    mark = github.world.next_id()
    url, github.webhook_url = github.webhook_url, None
    suspended, user.suspended_at = user.suspended_at, None
    try:
        await trigger.act(cell, login)
    finally:
        github.webhook_url, user.suspended_at = url, suspended
    unsent = [one for one in github.deliveries if one.id > mark and not one.url]
    found = next(
        one
        for one in unsent
        if (one.event, one.action) == (trigger.event, trigger.action)
        and one.payload["sender"]["login"] == login
    )
    gone = {one.id for one in unsent}
    github.world.deliveries[:] = [one for one in github.deliveries if one.id not in gone]
    return copy.deepcopy(dict(found.payload))


async def payload_of(cell: Cell, trigger: Trigger) -> dict[str, Any]:
    """What GitHub sends when somebody does it who may: the owner, if nobody has."""
    if cell.payload is None:
        assert not trigger.on_github, "it would be the owner's, and count"
        cell.payload = await unheard(cell, trigger, "octocat")
    return copy.deepcopy(cell.payload)


async def do(cell: Cell, trigger: Trigger, who: Role) -> tuple[str, dict[str, Any]]:
    """Let somebody do it, by themselves if GitHub lets them; returns the GUID of its delivery, and that."""
    box = cell.box
    if (who.via_app and trigger.effect != "nothing") or (trigger.on_github and who.login == "sven"):
        payload = await unheard(cell, trigger, who.login)
        if who.via_app and trigger.tells_the_app:
            payload[trigger.tells_the_app]["performed_via_github_app"] = HELPER
        return await send(box, trigger.event, payload), payload
    mark = box.github.world.next_id()
    with contextlib.suppress(HumanError, Refusal):  # GitHub does not let them
        await trigger.act(cell, who.login)
    for one in box.github.deliveries:
        whose = one.payload["sender"]["login"]
        if (one.event, one.action, whose) == (trigger.event, trigger.action, who.login) and one.id > mark:
            payload = dict(one.payload)
            cell.payload = cell.payload or copy.deepcopy(payload)
            return one.guid, payload
    payload = as_somebody_else(await payload_of(cell, trigger), who.login, box)
    return await send(box, trigger.event, payload), payload


async def everybody(box: World, trigger: Trigger) -> dict[str, Deed]:
    """Let all roles do it. Who changes something has a place of their own, on GitHub or by what the bot does then."""
    own = [role for role, who in ROLES.items() if trigger.is_done_for(who)]
    if trigger.event in ("issues", "pull_request"):
        own.append("triage")  # whom GitHub lets set labels and close issues, and that is done once
    if trigger.many:
        own = []
    shared, *cells = await asyncio.gather(*(trigger.setting(box) for _ in range(1 + len(own))))
    places = dict(zip(own, cells, strict=True))
    before = {cell.number: (await cell.state(), cell.said()) for cell in (shared, *cells)}
    deeds = {}
    # who may comes first: once it is done, it is delivered of the others
    for role in sorted(ROLES, key=lambda role: ROLES[role].answer != "yes"):
        cell = places.get(role, shared)
        guid, payload = await do(cell, trigger, ROLES[role])
        if (
            trigger.action == "opened"
        ):  # a new place, or the first one of these where GitHub lets them open none
            cell = Cell(box, int((payload.get("issue") or payload["pull_request"])["number"]))
            before[cell.number] = (set(), {})
        deeds[role] = Deed(cell, role in places, guid, payload, before[cell.number][0])
    await box.dealt_with()
    after = {
        cell.number: (await cell.state(), cell.said()) for cell in (deed.cell for deed in deeds.values())
    }
    for deed in deeds.values():
        deed.after, said = after[deed.cell.number]
        known = before[deed.cell.number][1]
        # a job's own comment is no answer to anybody
        deed.news = [body for number, body in said.items() if number not in known and JOB not in body]
    return deeds


_deeds: dict[str, dict[str, Deed]] = {}


async def deeds_of(box: World, name: str) -> dict[str, Deed]:
    if name not in _deeds:
        _deeds[name] = await everybody(box, TRIGGERS[name])
    return _deeds[name]


# --- and what comes of it


@pytest.mark.parametrize("role", list(ROLES))
@pytest.mark.parametrize("name", list(TRIGGERS))
async def test_cell(box: World, name: str, role: str) -> None:
    trigger, who = TRIGGERS[name], ROLES[role]
    deeds = await deeds_of(box, name)
    deed = deeds[role]
    if trigger.is_done_for(who):
        await check_done(deed, trigger, who)
        return
    assert deed.before <= deed.after
    done_for = {one.guid for role, one in deeds.items() if trigger.is_done_for(ROLES[role])}
    assert {entry for entry in deed.after - deed.before if entry[0] not in done_for} == set()
    decided = trigger.effect in ("approved", "refused", "nothing")  # reviews have entries of their own
    noted = trigger.audited and not decided
    assert await audited(deed, "job.refused") == [who.login] * noted
    answers = deed.answers(who.login)
    if who.answer != "no" or trigger.effect == "nothing" or trigger.talk:
        assert answers == []
        return
    (answer,) = answers
    assert trigger.effect in ("approved", "refused") or answer.startswith(REFUSED)
    assert f"@{who.login}" in answer
    assert ("suspended" if who.login == "sven" else "write access") in answer


async def audited(deed: Deed, kind: str) -> list[str]:
    """Whose entries of this kind are in the audit trail because of this delivery."""
    trail = Audit(deed.cell.box.store.engine, deed.cell.box.redactor)
    entries = await trail.newest(Wanted(kinds=[kind], delivery_id=deed.guid), 9)
    return [one.actor for one in entries if isinstance(one, Entry)]


async def check_done(deed: Deed, trigger: Trigger, who: Role) -> None:
    answers, jobs = deed.answers(who.login), await deed.cell.jobs()
    assert not any(REFUSED in one for one in answers)
    new = [job for job in jobs if job.trigger.delivery_id == deed.guid]
    if trigger.effect == "said":
        assert len(answers) == 1
    elif trigger.effect == "job":
        assert [(job.state, job.kind) for job in new] == [(JobState.queued, trigger.kind)]
        assert new[0].trigger.actor.login == who.login
        return
    elif trigger.effect == "cancelled":
        (old,) = jobs
        assert (old.state, old.cancel_requested_by) == (JobState.cancelled, who.login)
    elif trigger.effect == "answered":
        (old,) = jobs
        assert old.answered_by == who.login
        assert "In Czech." in (old.answer or "")
    elif trigger.effect == "told":
        (old,) = jobs
        assert (deed.guid, old.id, who.login) in deed.after
        wanted = Wanted(kinds=["job.told"], delivery_id=deed.guid)
        (entry,) = await Audit(deed.cell.box.store.engine, deed.cell.box.redactor).newest(wanted, 2)
        assert isinstance(entry, Entry)
        assert (entry.actor, entry.job_id) == (who.login, old.id)
        assert entry.details["words"].startswith("Mind the tests.")
    else:
        (asked,) = await deed.cell.approvals()
        assert (str(asked.state), asked.decided_by) == (trigger.effect, who.login)
        wanted = [(JobState.queued, trigger.kind)] if trigger.follows == "job" else []
        assert [(job.state, job.kind) for job in jobs[:-1]] == wanted
        answer = (
            f"@{who.login} {trigger.effect.removesuffix('d')}s this." if trigger.follows == "answer" else None
        )
        assert (jobs[-1].answer or "").partition("\n")[0] == (answer or "")
    assert new == []


@pytest.mark.parametrize("name", list(TRIGGERS))
async def test_nothing_is_said_to_nobody(box: World, name: str) -> None:
    deeds = [(role, deed) for role, deed in (await deeds_of(box, name)).items() if not deed.alone]
    news = {deed.cell.number: deed.news for _, deed in deeds}
    answers = [one for role, deed in deeds for one in deed.answers(ROLES[role].login)]
    assert sorted(answers) == sorted(itertools.chain(*news.values()))


@pytest.mark.parametrize("name", [name for name, one in TRIGGERS.items() if one.effect != "nothing"])
async def test_a_refusal_is_said_once(box: World, name: str) -> None:
    """The same person, the same thing, again and again, in other deliveries."""
    deed = (await deeds_of(box, name))["read"]
    said, before = set(deed.cell.said()), await deed.cell.state()
    await asyncio.gather(*(send(box, TRIGGERS[name].event, deed.payload) for _ in range(2)))
    await box.dealt_with()
    assert await deed.cell.state() == before
    assert set(deed.cell.said()) == said


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
    assert cell.said() == {}
