"""Commands that stand at a place: in the diff of a pull request, and in the text of what is opened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from bot.model import Job, JobKind, JobState, TargetKind
from bot.schema import answers, failing_heads
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

BOT = "agent-conductor[bot]"
#: A real process that keeps what it is told in a file of its change, and answers the thread that it was shown.
KEEPS = r"""
cat > told.txt
thread=$(sed -n 's/^## Thread \([0-9]*\): .*/\1/p' told.txt | head -n 1)
printf '<result>{"status": "done", "title": "Renamed", "summary": "It is so because of that.", '
printf '"replies": [{"thread": %s, "text": "I have renamed it.", "resolved": true}]}</result>\n' "${thread:-0}"
"""
ASKS = """
mkdir -p "$HOME/.asker" && echo "$$" > "$HOME/.asker/session"
echo '<result>{"status": "question", "title": "Colour", "summary": "Red or blue?"}</result>'
"""
ASKER = {"argv": ["bash", "-c", ASKS], "resume": ["bash", "-c", KEEPS], "session_paths": [".asker"]}
SETTINGS: dict[str, Any] = {
    "custom_agents": {
        "keeper": {"argv": ["bash", "-c", KEEPS], "output": "text", "llm": "openai"},
        "asker": {**ASKER, "output": "text", "llm": "openai"},
    },
    "agents": ("shell", "keeper", "asker"),
    "default_agent": "keeper",
}
PATH = "hello/greeting.py"


async def pull_request(box: World) -> int:
    """A pull request of octocat's, which gives a function a bad name."""
    octocat = box.github.as_user("octocat")
    text = await box.github.file(REPO, "main", PATH) or ""
    await octocat.push_commit(REPO, "feature", {PATH: text.replace("def greet(", "def gr33t(")})
    return int((await octocat.open_pull(REPO, "feature", "A feature"))["number"])


async def inline(box: World, login: str, number: int, body: str) -> int:
    """The id of a comment on the line with the name."""
    said = await box.github.as_user(login).comment_on_line(REPO, number, PATH, 6, body)
    return int(said["id"])


async def in_thread(box: World, number: int, thread: int) -> list[str]:
    found = await box.github.as_user("octocat").request("GET", f"/repos/{REPO}/pulls/{number}/comments")
    return [
        one["body"] for one in found if one["user"]["login"] == BOT and one.get("in_reply_to_id") == thread
    ]


def below(box: World, number: int) -> list[str]:
    """The bot's comments in the timeline, but for those that show jobs."""
    found = [one["body"] for one in box.github.comments(REPO, number) if one["user"]["login"] == BOT]
    return [body for body in found if "<!-- agent-conductor:job:" not in body]


async def told(box: World, job: Job) -> str:
    assert job.state is JobState.succeeded, job.message
    return await box.github.file(REPO, job.branch or "", "told.txt") or ""


async def test_a_command_in_the_diff_is_about_its_line_and_is_answered_in_its_thread(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        number = await pull_request(box)
        thread = await inline(box, "maria", number, "/agent rename this")
        prompt = await told(box, await box.ended(number))
        assert "rename this" in prompt
        assert f"## Thread {thread}: `{PATH}`, line 6" in prompt
        assert "+def gr33t(" in prompt
        (answer,) = await in_thread(box, number, thread)
        assert answer.startswith("I have renamed it.")
        assert below(box, number) == []


async def test_a_command_in_a_reply_brings_what_was_said_before(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        number = await pull_request(box)
        thread = await inline(box, "octocat", number, "I would call it `greet`, as before.")
        other = await inline(box, "octocat", number, "Another thread.")
        await box.github.as_user("maria").reply(REPO, number, thread, "/agent do as octocat says")
        prompt = await told(box, await box.ended(number))
        assert "do as octocat says" in prompt
        assert f"## Thread {thread}: " in prompt
        assert "octocat:" in prompt
        assert "I would call it `greet`, as before." in prompt
        assert "Another thread." not in prompt
        (answer,) = await in_thread(box, number, thread)
        assert answer.startswith("I have renamed it.")
        assert await in_thread(box, number, other) == []


async def test_a_question_a_refusal_and_a_reply_stay_in_the_thread(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        number = await pull_request(box)
        question = await inline(box, "maria", number, "/agent ask why is it so?")
        job = await box.ended(number)
        assert (job.kind, job.state) == (JobKind.ask, JobState.succeeded)
        (answer,) = await in_thread(box, number, question)
        assert "It is so because of that." in answer
        assert "+def" not in answer, "the place is what everybody sees there"
        helped = await inline(box, "maria", number, "/agent help")
        refused = await inline(box, "maria", number, "/agent --agent nobody do it")
        stranger = await inline(box, "rita", number, "/agent do it")
        await box.dealt_with()
        for thread, words in (
            (helped, "Label an issue"),
            (refused, "not offered"),
            (stranger, "write access"),
        ):
            (answer,) = await in_thread(box, number, thread)
            assert words in answer
        assert below(box, number) == []
        assert len(await box.store.recent_jobs()) == 1


async def test_an_agents_question_is_asked_and_answered_in_the_thread(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        number = await pull_request(box)
        maria = box.github.as_user("maria")
        thread = await inline(box, "maria", number, "/agent --agent asker paint this")
        async with asyncio.timeout(60):
            while not await in_thread(box, number, thread):
                await asyncio.sleep(0.05)
        (question,) = await in_thread(box, number, thread)
        assert "Red or blue?" in question
        await maria.reply(REPO, number, thread, "/agent resume --timeout 30m red")
        await box.dealt_with()
        _, answer = await in_thread(box, number, thread)
        assert "A paused job keeps its agent and limits." in answer
        assert (await box.job(number)).state is JobState.paused
        await maria.reply(REPO, number, thread, "/agent resume red, as everywhere")
        prompt = await told(box, await box.ended(number))
        assert "red, as everywhere" in prompt
        assert below(box, number) == []


async def test_where_the_thread_is_gone_the_answer_is_given_below(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        await box.stop_worker()
        number = await pull_request(box)
        thread = await inline(box, "maria", number, "/agent ask why is it so?")
        await box.dealt_with()
        await box.github.as_user("maria").request("DELETE", f"/repos/{REPO}/pulls/comments/{thread}")
        await box.start_worker()
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        (answer,) = below(box, number)
        assert "It is so because of that." in answer


async def test_a_command_in_a_new_issue_or_pull_request_is_carried_out(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria = box.github.as_user("maria")
        issue = int((await maria.open_issue(REPO, "Name", "It is wrong.\n\n/agent rename it"))["number"])
        job = await box.ended(issue)
        assert (job.trigger.event, job.target) == ("issues.opened", TargetKind.issue)
        assert "# Your task\n\nrename it\n" in await told(box, job)
        await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
        opened = await maria.open_pull(REPO, "feature", "A feature", "/agent ask is it good?")
        job = await box.ended(int(opened["number"]))
        assert (job.trigger.event, job.kind) == ("pull_request.opened", JobKind.ask)
        # the pull request that the bot opened for the issue started nothing
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 2


async def test_what_a_new_issue_says_is_not_asked_for_by_who_may_not_nor_twice_nor_later(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        await box.stop_worker()
        rita, maria = box.github.as_user("rita"), box.github.as_user("maria")
        refused = int((await rita.open_issue(REPO, "Mine", "/agent do it"))["number"])
        both = int((await maria.open_issue(REPO, "Both", "/agent do it", labels=["agent"]))["number"])
        later = int((await maria.open_issue(REPO, "Later", "Some words."))["number"])
        await maria.edit_issue(REPO, later, body="/agent do it")
        quoted = int((await maria.open_issue(REPO, "Quoted", "> /agent do it\n\nwas said."))["number"])
        await box.github.as_app("helper").comment(REPO, later, "/agent do it")
        await box.dealt_with()
        (answer,) = below(box, refused)
        assert "write access" in answer
        (job,) = await box.store.recent_jobs()
        assert (job.number, job.trigger.event) == (both, "issues.labeled")
        assert below(box, later) == below(box, quoted) == []


async def test_a_retry_takes_more_time_and_money_as_far_as_a_new_job_may(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS, job_timeout=600) as box:
        await box.stop_worker()
        maria = box.github.as_user("maria")
        issue = int((await maria.open_issue(REPO, "Work", "Do it."))["number"])
        await maria.comment(REPO, issue, "/agent --timeout 60s do it")
        await maria.comment(REPO, issue, "/agent cancel")
        await maria.comment(REPO, issue, "/agent retry --timeout 2h")
        await box.dealt_with()
        (answer,) = below(box, issue)
        assert "The time limit here is at most 600 seconds." in answer
        for words, timeout, budget in (
            ("retry --timeout 5m --budget 3", 300, 3.0),
            ("retry", 300, 3.0),
            ("resume --timeout 6m", 360, 3.0),
        ):
            await maria.comment(REPO, issue, f"/agent {words}")
            await box.dealt_with()
            job = (await box.store.recent_jobs())[0]
            assert (job.state, job.timeout, job.budget) == (JobState.queued, timeout, budget)
            await maria.comment(REPO, issue, "/agent cancel")
            await box.dealt_with()


async def test_status_says_what_waits_for_whom(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria = box.github.as_user("maria")
        issue = int((await maria.open_issue(REPO, "Work", "Do it."))["number"])
        await maria.comment(REPO, issue, "/agent plan")
        job = await box.ended(issue)
        await box.dealt_with()
        (pull,) = box.github.pulls(REPO)
        await box.github.as_user("octocat").comment(REPO, issue, "/agent status")
        await box.dealt_with()
        shown = below(box, issue)[-1]
        wanted = (
            f"Job `{job.id}`: the plan waits for a review of #{pull['number']} by anybody, with write access"
        )
        assert wanted in shown
        assert "not by maria, who asked" in shown
        # the plan's own pull request says the same, and nothing once it is decided
        await box.github.as_user("octocat").comment(REPO, pull["number"], "/agent status")
        await box.dealt_with()
        assert wanted in below(box, pull["number"])[-1]
        await box.stop_worker()
        await box.github.as_user("octocat").review(REPO, pull["number"], "APPROVE")
        await box.dealt_with()
        await box.github.as_user("octocat").comment(REPO, issue, "/agent status")
        await box.dealt_with()
        assert "waits for a review" not in below(box, issue)[-1]


async def an_hour_passes(box: World) -> None:
    """As if everything that was said, and has an hour in its key, had been said in another one."""
    async with box.store.engine.begin() as connection:
        for key in (await connection.execute(select(answers.c.key))).scalars().all():
            before, _, hour = key.rpartition(":")
            if len(hour) == 13 and hour[10] == "T":
                moved = update(answers).where(answers.c.key == key).values(key=f"{before}:2020-01-01T00")
                await connection.execute(moved)


async def test_who_may_ask_is_refused_again_in_another_hour(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria, rita = box.github.as_user("maria"), box.github.as_user("rita")
        issue = int((await maria.open_issue(REPO, "Work", "Do it."))["number"])

        async def ask() -> None:
            for person in (maria, rita):
                await person.comment(REPO, issue, "/agent --agent nobody do it")
                await box.dealt_with()

        await ask()
        first = below(box, issue)
        assert ["not offered" in body for body in first] == [True, False]
        await ask()  # with no time in between
        assert len(below(box, issue)) in (2, 3), "a new hour may have begun just now"
        before = len(below(box, issue))
        await an_hour_passes(box)
        await ask()
        again = below(box, issue)[before:]
        assert ["not offered" in body for body in again] == [True], "who may not ask at all is told once"


async def test_a_commit_status_that_failed_is_looked_at(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria = box.github.as_user("maria")
        config = {".github/conductor.yml": "fix: {automatic: true, settle: 1h}\n"}
        await box.github.as_user("octocat").push_commit(REPO, "main", config)
        issue = int((await maria.open_issue(REPO, "Work", "Do it."))["number"])
        await maria.comment(REPO, issue, "/agent do it")
        job = await box.ended(issue)
        assert job.head_sha is not None
        ci = box.github.as_app("ci")
        for state, looked_at in (("pending", []), ("failure", [job.pull_number])):
            await ci.status(REPO, job.head_sha, state, context="jenkins")
            await box.dealt_with()
            query = select(failing_heads.c.number).where(failing_heads.c.look_at.is_not(None))
            async with box.store.engine.connect() as connection:
                assert list((await connection.execute(query)).scalars()) == looked_at
