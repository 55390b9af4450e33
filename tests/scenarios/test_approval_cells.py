"""Whose review decides, through the whole program: who wrote it, about which commit, and what became of it.

The rules alone are in tests/unit/test_approval_matrix.py. Here people click, GitHub tells, and what counts is what
comes of it: one decision or none, work that starts once or not at all, and the words for whose review does not decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from bot.model import Job, JobKind, JobState
from bot.sandbox.state import Delivery, Pull, Review
from bot.schema import approvals as approvals_table
from tests.scenarios.impersonation import as_somebody_else, deliver
from tests.scenarios.test_approvals import STEPS, approvals, plan
from tests.scenarios.world import REPO, World, world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

BOT = "agent-conductor[bot]"
EVENTS = {"APPROVE": "APPROVED", "REQUEST_CHANGES": "CHANGES_REQUESTED"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """With people of every role; its worker works."""
    async with world(tmp_path_factory.mktemp("approval-cells")) as found:
        for login, role in {"mona": "maintain", "ada": "write", "carl": "write", "sven": "write"}.items():
            found.github.add_user(login)
            found.github.set_role(REPO, login, role)
        found.github.add_user("olga")
        found.github.set_member("acme", "olga")
        yield found


@dataclass
class Place:
    """A pull request in which a plan waits for a decision."""

    box: World
    number: int

    @property
    def pull(self) -> Pull:
        repository = self.box.github.world.repository(*REPO.split("/"))
        assert repository is not None
        found = repository.issues[self.number].pull
        assert found is not None
        return found

    async def review(self, login: str, event: str = "APPROVE", **more: Any) -> int:
        found = await self.box.github.as_user(login).review(REPO, self.number, event, STEPS, **more)
        return int(found["id"])

    async def reviewed(self, login: str, event: str = "APPROVE", **more: Any) -> None:
        await self.review(login, event, **more)
        await self.box.dealt_with()

    @contextlib.asynccontextmanager
    async def unheard(self) -> AsyncIterator[None]:
        """The bot is told nothing of what happens inside."""
        url, self.box.github.webhook_url = self.box.github.webhook_url, None
        try:
            yield
            await self.box.github.deliveries_settled()
        finally:
            self.box.github.webhook_url = url

    def told(self, review: int | None = None) -> Delivery:
        """The newest webhook about a review here."""
        return next(
            one
            for one in self.box.github.deliveries
            if one.event == "pull_request_review"
            and one.payload["pull_request"]["number"] == self.number
            and review in (None, one.payload["review"]["id"])
        )

    async def tell_again(self, delivery: Delivery) -> None:
        self.box.github.redeliver(delivery)
        await self.box.dealt_with()

    async def jobs(self) -> list[Job]:
        repository = self.box.github.world.repository(*REPO.split("/"))
        assert repository is not None
        return await self.box.store.jobs_on(repository.id, self.number)

    async def decisions(self) -> list[str]:
        """``state by whom`` of all that was asked here, the oldest first."""
        return [
            " ".join(filter(None, (one.state, one.decided_by)))
            for one in reversed(await approvals(self.box))
            if one.pull_number == self.number
        ]

    def said(self) -> list[str]:
        """The bot's answers to reviews, as people see them."""
        bodies = [one["body"].replace("\u200b", "") for one in self.box.github.comments(REPO, self.number)]
        return [body for body in bodies if "your review does not decide this" in body]

    async def numbers(self) -> str | None:
        """What the planned work makes, once it is there."""
        return await self.box.github.file(REPO, self.pull.head_ref, "numbers.txt")

    async def still_asks(self, before: list[str], *, jobs: int = 1) -> None:
        assert (await self.decisions()) == before
        assert len(await self.jobs()) == jobs
        assert await self.numbers() is None

    async def starts_once(self, decisions: list[str]) -> None:
        job = await self.box.ended(self.number, nth=1)
        assert (job.state, job.kind) == (JobState.succeeded, JobKind.task), job.message
        await self.box.dealt_with()
        assert await self.decisions() == decisions
        assert len(await self.jobs()) == 2
        assert await self.numbers() == "1\n2\n3\n4"


@pytest_asyncio.fixture(loop_scope="module")
async def place(box: World) -> Place:
    """One of its own."""
    return Place(box, await plan(box))


# --- whose review decides nothing: all of them about one plan


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unmoved(box: World) -> Place:
    """For reviews that decide nothing: nothing comes of them, so one place is enough for all. carl pushed to it."""
    found = Place(box, await plan(box))
    await box.github.as_user("carl").push_commit(REPO, found.pull.head_ref, {"carl.txt": "carl was here"})
    await box.dealt_with()
    await found.reviewed("rita", "COMMENT")
    await found.still_asks(ASKED_ANEW)
    assert found.said() == []
    return found


ASKED_ANEW = ["stale", "pending"]
#: Who, and what they are told; "": nothing.
NOBODYS_YES = {
    "mallory": "write access",  # may only look, as everybody may
    "rita": "write access",  # read
    "tom": "write access",  # triage
    "olga": "write access",  # a member of the organisation
    "sven": "account is suspended",  # since the review
    "helper[bot]": "",  # another App
    BOT: "",
    "maria": "You asked for this work, so somebody else has to approve it.",
    "carl": "wrote or pushed a part of it, so somebody else has to approve it.",
}
#: Those who may write may say no all the same: see below.
REFUSED = [
    (login, event)
    for login in NOBODYS_YES
    for event in EVENTS
    if event == "APPROVE" or login not in ("maria", "carl")
]


async def let_review(place: Place, login: str, event: str) -> None:
    box = place.box
    if login == "helper[bot]":
        await box.github.as_app("helper").review(REPO, place.number, event, STEPS)
        await box.dealt_with()
    elif login == "sven":
        box.github.suspend_user(login, suspended=False)
        async with place.unheard():
            review = await place.review(login, event)
        box.github.suspend_user(login)
        await place.tell_again(place.told(review))
    elif login == BOT:  # GitHub lists it, and tells of it
        world = box.github.world
        review = Review(
            world.next_id(), BOT, STEPS, EVENTS[event], place.pull.head_sha, datetime.now(UTC).replace(microsecond=0)
        )  # fmt: skip
        place.pull.reviews[review.id] = review
        payload = as_somebody_else(copy.deepcopy(place.told().payload), BOT, box)
        payload["review"] |= {
            "id": review.id,
            "body": review.body,
            "state": review.state.lower(),
            "commit_id": review.commit_id,
        }
        await deliver(box, "pull_request_review", payload)
    else:
        await place.reviewed(login, event)


@pytest.mark.parametrize(("login", "event"), REFUSED)
async def test_nothing_comes_of(unmoved: Place, login: str, event: str) -> None:
    before, words = len(unmoved.said()), NOBODYS_YES[login]
    await let_review(unmoved, login, event)
    await unmoved.still_asks(ASKED_ANEW)
    news = unmoved.said()[before:]
    if words:
        (answer,) = news
        assert f"@{login}, " in answer
        assert words in answer
    else:
        assert news == []


async def test_a_comment_is_told_where_to_click(unmoved: Place) -> None:
    box, octocat = unmoved.box, unmoved.box.github.as_user("octocat")
    before = len(box.github.comments(REPO, unmoved.number))
    for words in ("/agent approve", "/agent deny", "LGTM, approved!"):
        await octocat.comment(REPO, unmoved.number, words)
    await octocat.react(REPO, unmoved.number, "+1")
    await octocat.add_label(REPO, unmoved.number, "approved")
    await unmoved.reviewed("octocat", "COMMENT")
    await unmoved.still_asks(ASKED_ANEW)
    comments = box.github.comments(REPO, unmoved.number)[before:]
    answers = [one["body"] for one in comments if one["user"]["login"] == BOT]
    assert len(answers) == 2  # to the two commands
    for answer in answers:
        assert f"/{REPO}/pull/{unmoved.number}/files" in answer
        assert "**Files changed** → **Review changes** → **Approve**" in answer


# --- whose review decides


@pytest.mark.parametrize("login", ["ada", "mona", "octocat"])  # write, maintain, admin
async def test_a_yes_starts_the_work_once(place: Place, login: str) -> None:
    await place.reviewed(login)
    await place.starts_once([f"approved {login}"])
    assert place.said() == []


@pytest.mark.parametrize("login", ["ada", "maria", "carl"])  # maria asked; carl pushed
async def test_a_no_has_the_plan_made_anew(place: Place, login: str) -> None:
    before = []
    if login == "carl":
        await place.box.github.as_user(login).push_commit(REPO, place.pull.head_ref, {"carl.txt": "…"})
        await place.box.dealt_with()
        before = ["stale"]
    await place.reviewed(login, "REQUEST_CHANGES")
    job = await place.box.ended(place.number, nth=1)
    assert (job.state, job.kind) == (JobState.succeeded, JobKind.plan), job.message
    await place.still_asks([*before, f"refused {login}", "pending"], jobs=2)
    assert place.said() == []


# --- what became of the review: first it decides nothing, then one that counts


async def test_of_an_older_commit(place: Place) -> None:
    older = place.pull.head_sha
    await place.box.github.as_user("carl").push_commit(REPO, place.pull.head_ref, {"carl.txt": "…"})
    await place.box.dealt_with()
    await place.reviewed("mona", commit_id=older)
    await place.still_asks(["stale", "pending"])
    (answer,) = place.said()
    assert "@mona, " in answer
    assert "Reload the page, look at the newest commit, and submit the review again." in answer
    await place.reviewed("mona")
    await place.starts_once(["stale", "approved mona"])


async def test_edited_by_its_author(place: Place) -> None:
    async with place.unheard():
        mona = place.box.github.as_user("mona")
        review = (
            await mona.review(REPO, place.number, "APPROVE", "```sh\necho mistaken > numbers.txt\n```")
        )["id"]
    submitted = place.told(review)
    await mona.edit_review(REPO, place.number, review, STEPS)
    await place.box.dealt_with()
    await place.tell_again(submitted)
    await place.starts_once(["approved mona"])


async def test_edited_by_somebody_else(place: Place) -> None:
    """Who may edit others' words on GitHub must not be able to approve in their name."""
    async with place.unheard():
        review = await place.review("mona")
    submitted = place.told(review)
    evil = "```sh\necho evil > numbers.txt\n```"
    place.pull.reviews[review].body = evil
    edited = copy.deepcopy(submitted.payload)
    octocat = {"login": "octocat", "id": place.box.github.world.users["octocat"].id}
    edited |= {"action": "edited", "changes": {"body": {"from": STEPS}}}
    edited["review"]["body"] = evil
    edited["sender"].update(octocat)
    await deliver(place.box, "pull_request_review", edited)
    await place.still_asks(["pending"])
    await place.tell_again(submitted)
    await place.still_asks(["pending"])
    (answer,) = place.said()
    assert "changed after it was submitted" in answer
    assert "Submit the review again." in answer
    await place.reviewed("mona")
    await place.starts_once(["approved mona"])


async def test_dismissed_and_then_approved_again(place: Place) -> None:
    async with place.unheard():
        review = await place.review("mona")
    submitted = place.told(review)
    await place.box.github.as_user("octocat").dismiss_review(REPO, place.number, review, "Not yet.")
    await place.box.dealt_with()
    await place.still_asks(["pending"])
    await place.tell_again(submitted)
    await place.still_asks(["pending"])
    await place.reviewed("mona")
    await place.starts_once(["approved mona"])


async def test_when_the_time_is_over(place: Place) -> None:
    async with place.box.store.engine.begin() as connection:
        await connection.execute(
            update(approvals_table)
            .where(approvals_table.c.pull_number == place.number)
            .values(expires_at=datetime.now(UTC) - timedelta(minutes=1))
        )
    await place.reviewed("mona")
    async with asyncio.timeout(60):
        while await place.decisions() != ["expired"]:
            await asyncio.sleep(0.05)
    await place.reviewed("octocat")
    await place.still_asks(["expired"])
    # what mona is told depends on who was first: she, or the server that looks at the time
    for login, said in zip(("mona", "octocat"), place.said(), strict=True):
        assert f"@{login}, " in said
        assert "`/agent retry` starts again" in said
    shown = [one["body"] for one in place.box.github.comments(REPO, place.number)]
    assert any("**Nobody decided in time.**" in one for one in shown)


async def test_a_second_yes_after_the_decision(place: Place) -> None:
    await place.reviewed("mona")
    await place.reviewed("octocat")
    await place.starts_once(["approved mona"])
    await place.reviewed("ada")
    await place.starts_once(["approved mona"])
    assert place.said() == []
