"""What is approved and GitHub does not merge yet: it is said, and tried again when its checks have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.sandbox.faults import Fault
from bot.sandbox.state import BranchRules, Pull, Repository
from tests.integration.test_approval_desk import BRANCH, FINAL, REPO, Place, others, world

AUTO = FINAL.replace("approvals: {", "approvals: {merge: auto, ")
QUEUE = FINAL.replace("approvals: {", "approvals: {merge: queue, ")


def repository(place: Place) -> Repository:
    found = place.sandbox.world.repository("acme", "thing")
    assert found is not None
    return found


def pull_of(place: Place) -> Pull:
    pull = repository(place).issues[place.number].pull
    assert pull is not None
    return pull


async def waiting(place: Place, *, queue: bool = False, auto_merge: bool = False) -> None:
    """Rita has approved, the repository wants it merged, and the required check `tests` has not ended."""
    repository(place).allow_auto_merge = auto_merge
    repository(place).branch_rules["main"] = BranchRules(required_checks=["tests"], merge_queue=queue)
    await place.person("maria").ready(REPO, place.number)
    await place.review("rita")
    assert await place.final.update(place.repo, place.number)
    assert pull_of(place).merged_at is None


async def said(place: Place) -> tuple[str, str, str]:
    """The check run's conclusion, title and summary."""
    check = await place.check()
    assert check is not None
    return check["conclusion"], check["output"]["title"], check["output"]["summary"]


async def ended(place: Place, *branches: str) -> None:
    """The bot hears that checks of its commit have ended."""
    await place.final.checks_ended(place.repo, place.sha, branches)


async def test_it_is_said_and_merged_when_its_checks_have_ended(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=AUTO) as place:
        await waiting(place)
        conclusion, title, summary = await said(place)
        assert (conclusion, title) == ("success", "Approved by rita; not merged yet")
        assert '- Required status check "tests" is expected.' in summary
        assert "Auto merge is not allowed for this repository" in summary
        tests = place.sandbox.as_app("ci")
        run = await tests.check(REPO, place.sha, "tests", "failure")
        await ended(place, BRANCH)
        assert 'Required status check "tests" is failing.' in (await said(place))[2]
        # the same again is not written again: each time that it is GitHub may tell us
        place.sandbox.faults.add(Fault(method="POST|PATCH", path="/check-runs", status=403, times=None))
        await ended(place, BRANCH)
        place.sandbox.faults.clear()
        await tests.finish_check(REPO, run["id"], "success")
        other = (await place.sandbox.branches(REPO))["main"]
        await place.final.checks_ended(place.repo, other, [BRANCH])
        assert pull_of(place).merged_at is None
        await ended(place)  # the commit is known by the job that pushed it
        assert pull_of(place).merged_at is not None
        conclusion, title, summary = await said(place)
        assert (conclusion, title) == ("success", "Approved by rita")
        assert "Not merged" not in summary
        await ended(place, BRANCH)
        assert await place.kinds() == ["merge"] * 4, "each time that it was tried, and not once more"


async def test_what_does_not_hold_any_more_is_not_merged(tmp_path: Path) -> None:
    """Nobody has heard of it yet: all that an approval needs is asked once more."""
    async with world(tmp_path, yaml=AUTO) as place:
        await waiting(place)
        await place.sandbox.as_app("ci").check(REPO, place.sha, "tests", "success")
        maria = place.person("maria")
        await maria.push_commit(REPO, "main", {".github/conductor.yml": FINAL})
        await ended(place, BRANCH)
        assert (await said(place))[0] == "success"
        await maria.push_commit(REPO, "main", {".github/conductor.yml": AUTO})
        repository(place).collaborators["rita"] = "read"
        await ended(place, BRANCH)
        assert (await said(place))[1] == "1 approval is missing"
        assert pull_of(place).merged_at is None
        repository(place).collaborators["rita"] = "write"
        await place.final.update(place.repo, place.number, others=True)
        assert pull_of(place).merged_at is not None, "nothing else was in the way"


async def test_what_was_pushed_since_is_not_merged(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=AUTO) as place:
        await waiting(place)
        head = await place.push("carl")
        for sha in (place.sha, head):
            await place.sandbox.as_app("ci").check(REPO, sha, "tests", "success")
            await place.final.checks_ended(place.repo, sha, [BRANCH])
        assert pull_of(place).merged_at is None
        assert pull_of(place).auto_merge is None


async def test_somebody_else_s_is_never_merged(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=AUTO) as place:
        pull = await others(place, "agent/mine")
        await place.final.update(place.repo, pull["number"], others=True)
        await place.person("rita").review(REPO, pull["number"], "APPROVE", "Fine.")
        for _ in range(2):  # the second time its check run says that it is approved
            await place.final.update(place.repo, pull["number"])
            await place.final.checks_ended(place.repo, pull["head"]["sha"], ["agent/mine"])
        found = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{pull['number']}")
        assert (found["merged"], found["auto_merge"]) == (False, None)


@pytest.mark.parametrize("auto_merge", [False, True])
async def test_the_queue_takes_it_when_its_checks_have_ended(tmp_path: Path, auto_merge: bool) -> None:
    async with world(tmp_path, yaml=QUEUE) as place:
        await waiting(place, queue=True, auto_merge=auto_merge)
        assert pull_of(place).queued is None
        assert (pull_of(place).auto_merge is not None) is auto_merge  # then GitHub puts it there by itself
        await place.sandbox.as_app("ci").check(REPO, place.sha, "tests", "success")
        await ended(place, BRANCH)
        assert pull_of(place).queued is not None
        await place.final.update(place.repo, place.number)  # it stands there: that is no refusal
        assert (await said(place))[1] == "Approved by rita"
        assert await place.kinds() == ["merge"] * (1 if auto_merge else 2)


async def test_where_there_is_no_queue_nothing_is_merged_past_it(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=QUEUE) as place:
        await waiting(place, auto_merge=True)
        assert pull_of(place).auto_merge is None
        assert "The merge queue is not enabled for this branch." in (await said(place))[2]
