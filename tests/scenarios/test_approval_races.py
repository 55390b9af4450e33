"""Approvals while a process is away, too late, taken back at the last moment, and by an operator's command."""

from __future__ import annotations

import asyncio
import getpass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bot.model import Approval, FailureKind, Job, JobKind, JobState, Phase
from bot.schema import approvals as approvals_table
from tests.scenarios.processes import processes
from tests.scenarios.test_approvals import STEPS, approvals, plan, planned
from tests.scenarios.test_audited_stories import conductor, only, trail
from tests.scenarios.test_day_without_the_bot import again
from tests.scenarios.test_questions import until
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(300)

# --- an agent that asks for an approval, with the gateway's own tool, and hands in what it was told

_REACH = """
import json, os, pathlib, sys, urllib.error, urllib.request
told = sys.stdin.read()
def reached():
    if "network" not in os.environ["ASKS"]:
        return "no host"
    try:
        return urllib.request.urlopen("http://docs.granted.invalid/", timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
"""
_ASKS = f"""{_REACH}
folder = pathlib.Path(os.environ["HOME"], ".asker")
folder.mkdir(exist_ok=True)
(folder / "session").write_text(str(reached()))
call = {{"name": "request_approval", "arguments": json.loads(os.environ["ASKS"])}}
message = {{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}}
headers = {{"Authorization": "Bearer " + os.environ["TOKEN"], "Content-Type": "application/json"}}
url = os.environ["GATEWAY"] + "/mcp"
request = urllib.request.Request(url, json.dumps(message).encode(), headers)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""
_GOES_ON = f"""{_REACH}
before = pathlib.Path(os.environ["HOME"], ".asker", "session").read_text()
told = told.replace("<", "(")
said = told + " Before: " + before + ". After: " + str(reached()) + "."
pathlib.Path("told.txt").write_text(said)
print("<result>" + json.dumps({{"status": "done", "title": "Done", "summary": said}}) + "</result>")
"""


def asker(asks: str) -> dict[str, Any]:
    """The settings with it. ``asks``: the arguments of its request, as JSON."""
    agent = {
        "argv": ["python3", "-c", _ASKS],
        "resume": ["python3", "-c", _GOES_ON],
        "output": "text",
        "llm": "openai",
        "session_paths": [".asker"],
        "env": {"GATEWAY": "{gateway}", "TOKEN": "{token}", "ASKS": asks},
    }
    return {"custom_agents": {"asker": agent}, "agents": ("shell", "asker")}


FREE = asker('{"kind": "text", "reason": "May I paint it red?"}')
HOST = asker('{"kind": "network", "host": "docs.granted.invalid", "reason": "The manual is there."}')


async def asked(box: World) -> tuple[int, Approval]:
    """The issue on which the agent works, and what it waits for."""
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue(REPO, "Paint", "Paint the button."))["number"])
    await maria.comment(REPO, number, "/agent --agent asker paint it")

    def waits(job: Job) -> bool:
        assert not job.state.final, job.message
        return job.state is JobState.paused

    await until(box, number, waits)
    await box.dealt_with()
    (approval,) = await approvals(box)
    assert approval.state == "pending"
    return number, approval


async def states(box: World) -> list[str]:
    """``state by whom`` of all that was ever asked, the oldest first."""
    return [" ".join(filter(None, (one.state, one.decided_by))) for one in reversed(await approvals(box))]


# --- while the server is away


async def test_a_yes_while_the_server_is_stopped(tmp_path: Path) -> None:
    async with processes(tmp_path) as (box, product):
        number = await plan(box)
        await product.stop("serve")
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        await box.github.deliveries_settled()
        assert await states(box) == ["pending"]
        await again(box, product)
        job = await box.ended(number, nth=1)
        assert job.state is JobState.succeeded, (job.message, product.log("worker")[-3000:])
        assert await states(box) == ["approved octocat"]
        # what another start finds was served
        await product.stop("serve")
        await again(box, product)
        assert [str(one.kind) for one in reversed(await box.store.recent_jobs())] == ["plan", "task"]
        assert await states(box) == ["approved octocat"]
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") == "1\n2\n3\n4"
        found = [str(problem) for problem in box.github.problems]
        assert not found, found


async def test_a_yes_that_was_taken_back_while_the_server_is_stopped(tmp_path: Path) -> None:
    async with processes(tmp_path) as (box, product):
        number = await plan(box)
        await product.stop("serve")
        octocat = box.github.as_user("octocat")
        review = (await octocat.review(REPO, number, "APPROVE", STEPS))["id"]
        await octocat.dismiss_review(REPO, number, review, "Not yet.")
        await box.github.deliveries_settled()
        await again(box, product)
        assert await states(box) == ["pending"]
        assert len(await box.store.recent_jobs()) == 1


# --- at once


@pytest.mark.parametrize("first", ["neither", "yes", "no"])
async def test_a_yes_and_a_no_start_nothing_that_was_planned(first: str, tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        box.github.add_user("mona")
        box.github.set_role(REPO, "mona", "maintain")
        number = await planned(box)
        yes = box.github.as_user("mona").review(REPO, number, "APPROVE", STEPS)
        no = box.github.as_user("octocat").review(REPO, number, "REQUEST_CHANGES", "Not like this.")
        if first == "neither":
            await asyncio.gather(yes, no)
        else:
            for review in (yes, no) if first == "yes" else (no, yes):
                await review
                await box.dealt_with()
        await box.dealt_with()
        # a yes that was heard before the no does not hold any more; one that came after it comes too late
        (decided,) = await states(box)
        assert decided in {"yes": ["stale mona"], "no": ["refused octocat"]}.get(
            first, ["stale mona", "refused octocat"]
        )
        late = [one for one in box.github.comments(REPO, number) if "It was refused before." in one["body"]]
        assert first == "neither" or len(late) == (first == "no")
        await box.start_worker()
        job = await box.ended(number, nth=1)
        if decided == "refused octocat":
            assert job.kind is JobKind.plan
        else:
            assert (job.state, job.phase, job.failure) == (
                JobState.failed,
                Phase.policy,
                FailureKind.refused,
            )
        assert (await states(box))[0] == decided
        branch = box.github.pulls(REPO)[0]["head"]["ref"]
        assert await box.github.file(REPO, branch, "numbers.txt") is None


# --- nobody decides


async def test_a_reminder_and_then_the_answer_is_no(tmp_path: Path) -> None:
    async with world(tmp_path, **FREE) as box:
        number, approval = await asked(box)

        def said(words: str) -> list[str]:
            bodies = [one["body"] for one in box.github.comments(REPO, approval.pull_number)]
            return [body for body in bodies if words in body]

        async def passes(**values: datetime) -> None:
            async with box.store.engine.begin() as connection:
                await connection.execute(update(approvals_table).values(**values))

        await passes(asked_at=datetime.now(UTC) - timedelta(days=1, minutes=1))
        async with asyncio.timeout(60):
            while not said("this still waits for a decision"):
                await asyncio.sleep(0.05)
        assert (await box.job(number)).state is JobState.paused
        await passes(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        assert "Nobody decided about this in time, so the answer is no." in job.summary
        told = await box.github.file(REPO, job.branch or "", "told.txt")
        assert "so the answer is no" in (told or "")
        assert await states(box) == ["expired"]
        (reminder,) = said("this still waits for a decision")
        assert "@maria" in reminder
        assert "*Review changes*" in reminder
        async with asyncio.timeout(60):
            while not said("**Nobody decided in time.**"):
                await asyncio.sleep(0.05)
        # too late
        await box.github.as_user("octocat").review(REPO, approval.pull_number, "APPROVE", "Red it is.")
        await box.dealt_with()
        assert await states(box) == ["expired"]
        assert len(await box.store.recent_jobs()) == 1


# --- what became void while the job that asked was paused


async def approved_and_paused(box: World, number: int, approval: Approval) -> int:
    """Stop the worker and let octocat approve. The review's id."""
    await box.stop_worker()
    octocat = box.github.as_user("octocat")
    review = await octocat.review(REPO, approval.pull_number, "APPROVE", "Go there.")
    await until(box, number, lambda job: job.answer is not None)
    await box.dealt_with()
    assert await states(box) == ["approved octocat"]
    assert (await box.job(number)).state is JobState.paused
    return int(review["id"])


NOT_ANY_MORE = "But that does not hold any more, so it is not granted:"


async def test_a_yes_that_is_dismissed_while_the_agent_is_paused(tmp_path: Path) -> None:
    async with world(tmp_path, **FREE) as box:
        number, approval = await asked(box)
        review = await approved_and_paused(box, number, approval)
        url, box.github.webhook_url = box.github.webhook_url, None
        await box.github.as_user("octocat").dismiss_review(REPO, approval.pull_number, review, "No.")
        await box.start_worker()
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        told = await box.github.file(REPO, job.branch or "", "told.txt") or ""
        assert "octocat approves this." in told
        assert NOT_ANY_MORE in told
        assert "The review of octocat was dismissed." in told
        assert await states(box) == ["stale octocat"]
        box.github.webhook_url = url


@pytest.mark.docker
@pytest.mark.parametrize("how", ["pushed", "kept"])
async def test_a_host_that_was_granted_to_another_commit_stays_closed(how: str, tmp_path: Path) -> None:
    settings = HOST | {"runner": "docker", "egress_may_allow": ("*.granted.invalid",)}
    async with world(tmp_path, **settings) as box:
        number, approval = await asked(box)
        await approved_and_paused(box, number, approval)
        url, box.github.webhook_url = box.github.webhook_url, None
        if how == "pushed":
            branch = (await box.job(number)).branch or ""
            await box.github.as_user("maria").push_commit(REPO, branch, {"more.txt": "and this"})
        await box.start_worker()
        job = await box.ended(number)
        assert "octocat approves this." in job.summary
        if how == "kept":  # the name leads nowhere: the gateway tried
            assert job.state is JobState.succeeded, job.message
            assert "Before: 403. After: 502." in job.summary
            assert NOT_ANY_MORE not in job.summary
            assert job.blocked == {"docs.granted.invalid:80": 1}
            assert await states(box) == ["approved octocat"]
        else:
            assert NOT_ANY_MORE in job.summary
            assert "The branch has moved to" in job.summary
            assert "Before: 403. After: 403." in job.summary
            assert job.blocked == {"docs.granted.invalid:80": 2}
            assert await states(box) == ["stale octocat"]
            # what maria pushed is not overwritten, either
            assert (job.state, job.failure) == (JobState.failed, FailureKind.conflict)
        box.github.webhook_url = url


# --- an operator


async def test_an_operator_approves_what_is_there_now(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        (asked_first,) = await approvals(box)
        code, said = await conductor(box, "approvals")
        assert code == 0
        assert f"{asked_first.id} plan {REPO}#{number}" in said
        url, box.github.webhook_url = box.github.webhook_url, None
        branch = box.github.pulls(REPO)[0]["head"]["ref"]
        await box.github.as_user("maria").push_commit(REPO, branch, {"more.txt": "more"})
        box.github.webhook_url = url
        code, _ = await conductor(box, "approvals", "approve", asked_first.id)
        assert code != 0
        assert await states(box) == ["stale", "pending"]
        assert len(await box.store.recent_jobs()) == 1
        asked_anew = (await approvals(box))[0]
        code, said = await conductor(box, "approvals", "approve", asked_anew.id, "--reason", STEPS)
        operator = f"operator:{getpass.getuser()}"
        assert (code, said.strip()) == (0, f"{asked_anew.id} is approved by {operator}.")
        code, _ = await conductor(box, "approvals", "approve", asked_anew.id)
        assert code != 0
        await box.start_worker()
        job = await box.ended(number, nth=1)
        assert job.state is JobState.succeeded, job.message
        assert job.trigger.actor.login == "maria"
        assert await box.github.file(REPO, branch, "numbers.txt") == "1\n2\n3\n4"
        assert len(await box.store.recent_jobs()) == 2
        assert await states(box) == ["stale", f"approved {operator}"]
        entries = await trail(box)
        override = only(entries, "override")
        assert (override.actor, override.sha, override.details["words"]) == (operator, asked_anew.sha, STEPS)
        assert [entry.kind for entry in entries if entry.details.get("approval") == asked_anew.id] == [
            "approval.asked",
            "override",
            "approval.granted",
            "approval.used",
        ]
        code, said = await conductor(box, "approvals", "list", "--all")
        assert (code, f"(approved by {operator} and used)" in said) == (0, True), said


async def test_an_operator_denies_and_the_plan_is_made_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        (first,) = await approvals(box)
        code, _ = await conductor(box, "approvals", "deny", first.id)
        assert code != 0  # it wants a reason
        assert await states(box) == ["pending"]
        code, said = await conductor(box, "approvals", "deny", first.id, "--reason", STEPS)
        operator = f"operator:{getpass.getuser()}"
        assert (code, said.strip()) == (0, f"{first.id} is refused by {operator}.")
        await box.start_worker()
        job = await box.ended(number, nth=1)
        assert (job.state, job.kind) == (JobState.succeeded, JobKind.plan), job.message
        assert await states(box) == [f"refused {operator}", "pending"]
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") is None
        assert only(await trail(box), "override").details["words"] == STEPS
        code, said = await conductor(box, "approvals")
        assert (code, len(said.splitlines())) == (0, 1), said
