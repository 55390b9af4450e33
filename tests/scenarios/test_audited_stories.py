"""What whole stories leave in the audit trail: who asked, who was refused, what was given out, what left, its cost."""

from __future__ import annotations

import getpass
import json
import os
import sys
from asyncio import create_subprocess_exec, sleep, timeout
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from bot.audit import Audit, Wanted
from bot.audit_chain import Entry
from bot.model import JobState, Phase
from bot.reasons import from_data, refusals
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)


async def trail(box: World) -> list[Entry]:
    found = [entry async for entry in Audit(box.store.engine, box.redactor).entries(Wanted())]
    assert all(isinstance(entry, Entry) for entry in found)
    return [entry for entry in found if isinstance(entry, Entry) and entry.kind != "process.started"]


async def conductor(box: World, *arguments: str) -> tuple[int, str]:
    """`conductor …` as an operator starts it: exit code and what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    for name in ("github_api_url", "github_app_id", "github_private_key", "redis_url", "data_dir", "runner"):
        value = getattr(box.settings, name)
        shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        environment[f"CONDUCTOR_{name.upper()}"] = str(shown)
    environment["CONDUCTOR_ALLOW_LOCAL_RUNNER"] = "true"
    process = await create_subprocess_exec(
        sys.executable, "-m", "bot", *arguments, env=environment, stdout=PIPE, stderr=PIPE
    )
    async with timeout(60):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def only(entries: list[Entry], kind: str) -> Entry:
    (found,) = [entry for entry in entries if entry.kind == kind]
    return found


async def test_from_the_label_to_the_pull_request(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        issue = await maria.open_issue(REPO, "Say goodbye", "```sh\nprintf 'bye\\n' > bye.txt\n```")
        number = int(issue["number"])
        await maria.add_label(REPO, number, "agent")
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        entries = await trail(box)
        about = [entry for entry in entries if entry.kind != "token.minted"]
        assert [entry.kind for entry in about] == [
            *("job.accepted", "push", "token.revoked", "pull.opened", "job.ended"),
        ]
        for entry in about:
            assert (entry.repo, entry.number, entry.job_id) == (REPO, number, job.id)
            assert entry.delivery_id == job.trigger.delivery_id
        accepted, pushed, revoked, opened, ended = about
        assert revoked.details["permissions"] == {"contents": "write"}
        assert (accepted.actor, accepted.actor_id) == ("maria", job.trigger.actor.id)
        tree = from_data(accepted.decision)
        assert tree.ok
        assert "@maria has" in str(accepted.decision)
        assert "is there money left" in str(accepted.decision)
        assert (pushed.actor, pushed.sha) == ("conductor", job.head_sha)
        assert pushed.details == {"branch": job.branch, "by": "git", "expected": None, "forced": False}
        assert opened.details["pull"] == job.pull_number
        assert (ended.sha, ended.details["state"], ended.details["pull"]) == (
            job.head_sha,
            "succeeded",
            job.pull_number,
        )
        assert ended.details["usage"]["cost"] is not None
        tokens = [entry.details for entry in entries if entry.kind == "token.minted"]
        for one in tokens:
            writes = {name for name, level in one["permissions"].items() if level != "read"}
            # no token may write in more than one repository, or do everything in it
            assert not writes or one["repository_ids"] == [job.repo.id]
            assert not {"contents", "issues"} <= writes
        assert any(one["permissions"].get("contents") == "write" for one in tokens)
        assert {one["installation"] for one in tokens} == {job.repo.installation_id}
        # a token is given out before it is used, and the push comes right before the branch
        kinds = [entry.kind for entry in entries]
        assert kinds.index("token.minted") < kinds.index("push") < kinds.index("pull.opened")
        assert "ghs_" not in str(entries)
        code, said = await conductor(box, "audit", "verify")
        assert (code, f"{len(entries) + 2} entries" in said) == (0, True), (
            said
        )  # and two processes that started


async def test_who_was_refused_and_who_stopped_it(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria, rita = box.github.as_user("maria"), box.github.as_user("rita")
        number = int((await maria.open_issue(REPO, "Work", "```sh\nsleep 300\n```"))["number"])
        await rita.comment(REPO, number, "/agent run do it")
        await box.dealt_with()
        refused = only(await trail(box), "job.refused")
        assert (refused.actor, refused.number, refused.repo) == ("rita", number, REPO)
        assert refused.details == {"event": "issue_comment.created"}
        assert "needs write access" in " ".join(refusals(from_data(refused.decision)))
        # the same tree is shown to whoever was refused, folded and quiet
        (told,) = [one["body"] for one in box.github.comments(REPO, number) if "Sorry @rita" in one["body"]]
        shown = told.partition("<details><summary>Everything that was asked")[2]
        assert "needs write access" in shown
        assert told.count("@rita") == 1  # named once, above
        assert refused.delivery_id in {one.guid for one in box.github.deliveries}

        await maria.add_label(REPO, number, "agent")
        await box.dealt_with()
        await maria.comment(REPO, number, "/agent cancel")
        job = await box.ended(number)
        cancelled = only(await trail(box), "job.cancelled")
        assert (cancelled.actor, cancelled.job_id) == ("maria", job.id)
        assert cancelled.details["event"] == "issue_comment.created"
        ended = only(await trail(box), "job.ended")
        assert (ended.details["state"], ended.details["cancelled_by"]) == ("cancelled", "maria")

        # the operator does it again, in her name, and stops it: both is told apart from what she did
        code, said = await conductor(box, "jobs", "retry", job.id)
        assert code == 0, said
        again = await box.job(number, nth=1)
        assert again.id != job.id
        code, said = await conductor(box, "jobs", "cancel", again.id)
        assert code == 0, said
        await box.ended(number, nth=1)
        operator = f"operator:{getpass.getuser()}"
        entries = await trail(box)
        ordered = only(entries, "operator")
        assert (ordered.actor, ordered.job_id) == (operator, job.id)
        assert ordered.details == {"command": "jobs retry", "in_the_name_of": "maria"}
        accepted = [entry for entry in entries if entry.kind == "job.accepted"]
        assert [entry.actor for entry in accepted] == ["maria", "maria"]
        assert accepted[1].delivery_id == ordered.delivery_id, "what the operator's order caused can be found"
        assert accepted[1].details["retry_of"] == job.id
        assert [entry.actor for entry in entries if entry.kind == "job.cancelled"] == ["maria", operator]


async def test_a_push_that_was_not_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
        number = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
        gate = tmp_path / "gate"
        script = f"```sh\necho two > two.txt\nwhile ! test -e {gate}; do sleep 0.1; done\n```"
        await maria.comment(REPO, number, f"/agent run --agent shell work\n{script}")
        await box.dealt_with()
        async with timeout(60):
            while (await box.job(number)).phase is not Phase.agent:
                await sleep(0.05)
        await maria.push_commit(REPO, "feature", {"other.txt": "three\n"})
        gate.touch()
        job = await box.ended(number)
        assert job.state is JobState.failed
        entries = await trail(box)
        pushed, failed = only(entries, "push"), only(entries, "push.failed")
        assert (pushed.details["expected"], pushed.sha) == (job.base_sha, failed.sha)
        assert failed.details["why"]
        assert only(entries, "job.ended").details["failure"] == "conflict"


async def test_a_review_that_does_not_count(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        issue = int((await maria.open_issue(REPO, "Numbers", "```sh\nseq 3 > numbers.txt\n```"))["number"])
        await maria.comment(REPO, issue, "/agent plan")
        job = await box.ended(issue)
        assert job.state is JobState.succeeded
        await maria.review(REPO, int(job.pull_number or 0), "APPROVE", "My own.")
        await box.dealt_with()
        ignored = only(await trail(box), "review.ignored")
        assert (ignored.actor, ignored.job_id, ignored.sha) == ("maria", job.id, job.marker_sha)
        assert "asked for" in " ".join(ignored.details["why"])


async def test_an_export_of_a_story_can_be_checked_elsewhere(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        rita = box.github.as_user("rita")
        number = int((await rita.open_issue(REPO, "Please", "```sh\ntrue\n```"))["number"])
        await rita.comment(REPO, number, "/agent run do it")
        await box.dealt_with()
        target = tmp_path / "audit.jsonl"
        code, _ = await conductor(box, "audit", "export", "--output", str(target))
        lines: list[dict[str, Any]] = [json.loads(line) for line in target.read_text().splitlines()]
        assert code == 0
        assert "job.refused" in [line["kind"] for line in lines]
        code, said = await conductor(box, "audit", "verify", "--file", str(target))
        assert (code, f"{len(lines)} entries" in said) == (0, True), said
