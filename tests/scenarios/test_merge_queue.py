"""A merge queue in the whole program: what people approved is put into it, and its own commit is checked there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.approval_writer import CHECK_NAME
from bot.audit import Audit, Wanted
from bot.audit_chain import Entry
from bot.model import JobState
from bot.sandbox.state import BranchRules, Pull
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)


async def offered(box: World, *required: str) -> int:
    """The bot's pull request into a branch with a queue that wants the check runs ``required``."""
    octocat, maria = box.github.as_user("octocat"), box.github.as_user("maria")
    await octocat.push_commit(REPO, "main", {".github/conductor.yml": "approvals: {merge: queue}\n"})
    repository = box.github.world.repository(*REPO.split("/"))
    assert repository is not None
    repository.allow_auto_merge = False  # as on GitHub, where nobody has switched it on
    repository.branch_rules["main"] = BranchRules(required_checks=list(required), merge_queue=True)
    issue = (await maria.open_issue(REPO, "Numbers", "```sh\nseq 3 > numbers.txt\n```"))["number"]
    await maria.add_label(REPO, issue, "agent")
    assert (await box.ended(issue)).state is JobState.succeeded
    (pull,) = box.github.pulls(REPO)
    await until(lambda: approval(box, pull["head"]["sha"]) == "in_progress")
    return int(pull["number"])


def pull_of(box: World, number: int) -> Pull:
    repository = box.github.world.repository(*REPO.split("/"))
    assert repository is not None
    pull = repository.issues[number].pull
    assert pull is not None
    return pull


def approval(box: World, sha: str) -> str | None:
    """How the check run of the final approval stands on a commit; None when there is none."""
    found = [run for run in box.github.check_runs(REPO, sha) if run["name"] == CHECK_NAME]
    return (found[-1]["conclusion"] or found[-1]["status"]) if found else None


def unmerged(box: World, number: int) -> bool:
    """Whether the check run says on the head that GitHub does not merge what is approved."""
    found = [
        run for run in box.github.check_runs(REPO, pull_of(box, number).head_sha) if run["name"] == CHECK_NAME
    ]
    return bool(found) and found[-1]["output"]["title"] == "Approved by octocat; not merged yet"


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not so():
            await asyncio.sleep(0.05)


async def approved(box: World, number: int, *required: str, by_status: bool = False) -> str:
    """Octocat approves, and the bot queues it: the queue's commit, on which the bot says that it is approved.

    ``required``: check runs that end on the head after that; ``by_status``: commit statuses.
    """
    await box.github.as_user("octocat").review(REPO, number, "APPROVE", "Good.")
    if required:
        await until(lambda: unmerged(box, number))
        assert pull_of(box, number).queued is None, "GitHub takes nothing that is not ready"
        for name in required:
            ci, head = box.github.as_app("ci"), pull_of(box, number).head_sha
            if by_status:
                await ci.status(REPO, head, "success", context=name)
            else:
                await ci.check(REPO, head, name, "success")
    await until(lambda: pull_of(box, number).queued is not None)
    entry = pull_of(box, number).queued
    assert entry is not None
    assert entry.login == "agent-conductor[bot]"
    await until(lambda: approval(box, entry.sha) == "success")
    await box.dealt_with()
    return entry.sha


async def test_what_is_approved_is_merged_as_the_commit_that_the_queue_has_checked(tmp_path: Path) -> None:
    async with world(tmp_path, approvals_required=1) as box:
        number = await offered(box, CHECK_NAME)
        await box.github.as_user("maria").review(REPO, number, "APPROVE", "I like what I asked for.")
        await box.dealt_with()
        assert pull_of(box, number).queued is None
        assert pull_of(box, number).merged_at is None
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", "Good.")
        await until(lambda: pull_of(box, number).merged_at is not None)
        tip = box.github.pulls(REPO)[0]["merge_commit_sha"]
        assert approval(box, tip) == "success", "GitHub asks for it on the queue's commit, not on the head"
        await box.dealt_with()
        assert (await box.github.branches(REPO))["main"] == tip
        assert await box.github.file(REPO, "main", "numbers.txt") == "1\n2\n3"
        entries = [one async for one in Audit(box.store.engine, box.redactor).entries(Wanted())]
        merges = [one for one in entries if isinstance(one, Entry) and one.kind == "merge"]
        assert {(one.actor, one.number, one.details["by"]) for one in merges} == {
            ("conductor", number, "queue")
        }


async def test_what_the_queue_throws_out_waits_for_a_person(tmp_path: Path) -> None:
    async with world(tmp_path, approvals_required=1) as box:
        number = await offered(box, CHECK_NAME, "ci")
        sha = await approved(box, number, "ci")
        assert not unmerged(box, number)
        assert pull_of(box, number).merged_at is None, "another check run is wanted there, too"
        ci = box.github.as_app("ci")
        await ci.check(REPO, sha, "ci", "failure")
        assert pull_of(box, number).queued is None
        await box.dealt_with()
        await ci.check(REPO, pull_of(box, number).head_sha, "slow", "success")
        await box.dealt_with()
        assert pull_of(box, number).queued is None, "the same would fail again"
        assert pull_of(box, number).merged_at is None
        again = await approved(box, number)
        await ci.check(REPO, again, "ci", "success")
        assert pull_of(box, number).merged_at is not None


@pytest.mark.parametrize("how", ["refused", "dismissed"])
async def test_what_is_approved_no_more_leaves_the_queue(how: str, tmp_path: Path) -> None:
    async with world(tmp_path, approvals_required=1) as box:
        number = await offered(box, CHECK_NAME, "ci")
        sha = await approved(box, number, "ci", by_status=True)
        octocat = box.github.as_user("octocat")
        if how == "refused":
            await box.github.as_user("maria").review(REPO, number, "REQUEST_CHANGES", "Wait.")
        else:
            (review,) = box.github.reviews(REPO, number)
            await octocat.dismiss_review(REPO, number, review["id"], "I was wrong.")
        await until(lambda: pull_of(box, number).queued is None)
        await box.github.as_app("ci").check(REPO, sha, "ci", "success")
        await box.dealt_with()
        assert pull_of(box, number).merged_at is None


async def test_what_a_person_has_queued_stays_there(tmp_path: Path) -> None:
    """A branch's own rules let them, whatever the bot counts: it takes back only what it did itself."""
    async with world(tmp_path, approvals_required=1) as box:
        number = await offered(box, "ci")
        await box.github.as_app("ci").check(REPO, pull_of(box, number).head_sha, "ci", "success")
        octocat = box.github.as_user("octocat")
        pull = await octocat.request("GET", f"/repos/{REPO}/pulls/{number}")
        enqueue = (
            "mutation($id: ID!) { enqueuePullRequest(input: {pullRequestId: $id}) { clientMutationId } }"
        )
        await octocat.graphql(enqueue, id=pull["node_id"])
        await box.github.as_user("maria").review(REPO, number, "COMMENT", "Is that all?")
        await box.dealt_with()
        entry = pull_of(box, number).queued
        assert entry is not None
        assert entry.login == "octocat"
