"""Reviews that come while nobody can work on them: one turn for all of them, and none for idle talk."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import update

from bot import server
from bot.events import parse_event
from bot.feedback import thread_ids
from bot.model import JobState
from bot.queue import Dispatcher
from bot.scheduling import Scheduler
from bot.schema import jobs
from handlers.table import router
from tests.scenarios.world import REPO, World, world

TASK = "```sh\nprintf 'one\\ntwo\\nthree\\n' > list.txt\n```"


async def pull_request(box: World) -> int:
    """A pull request that the bot made, and no worker any more."""
    maria = box.github.as_user("maria")
    issue = (await maria.open_issue(REPO, "A list", TASK))["number"]
    await maria.add_label(REPO, issue, "agent")
    assert (await box.ended(issue)).state is JobState.succeeded
    await box.dealt_with()
    await box.stop_worker()
    return int(box.github.pulls(REPO)[0]["number"])


async def test_several_reviews_become_one_turn(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await pull_request(box)
        for line, login in ((1, "octocat"), (2, "maria"), (3, "octocat")):
            remark = {"path": "list.txt", "line": line, "body": f"Line {line} is wrong, says {login}."}
            body = f"```sh\necho {line} {login} >> said.txt\n```"
            await box.github.as_user(login).review(REPO, number, "REQUEST_CHANGES", body, comments=[remark])
            await box.dealt_with()
        waiting = await box.job(number, nth=1)
        assert waiting.state is JobState.queued
        assert len(thread_ids(waiting.instructions)) == 3
        seen = [
            content
            for review in box.github.reviews(REPO, number)
            for _, content in box.github.reactions(REPO, number, review_id=review["id"])
        ]
        assert seen == ["eyes"] * 3
        await box.start_worker()
        done = await box.ended(number, nth=1)
        assert (done.id, done.state) == (waiting.id, JobState.succeeded)
        said = await box.github.file(REPO, done.branch or "", "said.txt") or ""
        assert said.split("\n")[:3] == ["1 octocat", "2 maria", "3 octocat"]
        assert len(await box.store.recent_jobs()) == 2


async def test_reviews_that_follow_each_other_become_one_turn_though_a_slot_is_free(tmp_path: Path) -> None:
    async with world(tmp_path, review_settle=60) as box:
        number = await pull_request(box)
        await box.start_worker()
        for login in ("octocat", "maria"):
            body = f"```sh\necho {login} >> said.txt\n```"
            await box.github.as_user(login).review(REPO, number, "REQUEST_CHANGES", body)
            await box.dealt_with()
        waiting = await box.job(number, nth=1)
        assert waiting.state is JobState.queued
        assert waiting.waits == "in a moment; until then other reviews can join it"
        async with box.store.engine.begin() as connection:  # time passes, whatever becomes of the server
            for one in await box.store.recent_jobs():
                then = one.created_at - timedelta(seconds=60)
                await connection.execute(update(jobs).where(jobs.c.id == one.id).values(created_at=then))
        dispatcher = Dispatcher(box.settings.redis_url)
        await Scheduler(box.store, dispatcher).offer_waiting()  # what housekeeping does
        dispatcher.close()
        done = await box.ended(number, nth=1)
        assert done.state is JobState.succeeded
        assert (await box.github.file(REPO, done.branch or "", "said.txt") or "").split() == [
            "octocat",
            "maria",
        ]
        assert len(await box.store.recent_jobs()) == 2


async def test_a_review_that_says_nothing_new_starts_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await pull_request(box)
        octocat = box.github.as_user("octocat")
        await octocat.review(REPO, number, "APPROVE", "Good.")
        await octocat.review(REPO, number, "COMMENT", "By the way, nice weather.")
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1


async def test_the_same_review_again_adds_nothing(tmp_path: Path) -> None:
    """As after a handler that failed: the delivery is dealt with once more, while its job waits and when it ended."""
    async with world(tmp_path) as box:
        number = await pull_request(box)
        for login in ("octocat", "maria"):
            body = f"```sh\necho {login} >> said.txt\n```"
            await box.github.as_user(login).review(REPO, number, "REQUEST_CHANGES", body)
            await box.dealt_with()
        waiting = await box.job(number, nth=1)
        reviews = [one for one in box.github.deliveries if one.event == "pull_request_review"]
        assert len(reviews) == 2
        async with server._organs(box.settings, box.redactor) as organs:
            for one in reviews:
                await router.dispatch(parse_event(one.guid, one.event, one.payload), organs.bot)
            assert (await box.job(number, nth=1)).instructions == waiting.instructions
            await box.start_worker()
            await box.ended(number, nth=1)
            for one in reviews:
                await router.dispatch(parse_event(one.guid, one.event, one.payload), organs.bot)
        assert len(await box.store.recent_jobs()) == 2
        done = await box.ended(number, nth=1)
        assert (await box.github.file(REPO, done.branch or "", "said.txt") or "").split() == [
            "octocat",
            "maria",
        ]
