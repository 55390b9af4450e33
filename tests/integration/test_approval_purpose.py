"""A review says yes to one thing: not to what is asked later, nor to what else is asked, nor to the code below it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bot.approval_desk import ApprovalVoid
from bot.events import Event, parse_event
from bot.model import FEEDBACK, ApprovalKind, ApprovalState, JobState, TargetKind
from handlers.reviews import base_changed, router
from tests.integration.test_approval_desk import BRANCH, REPO, Place, empty_commit, world


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with world(tmp_path) as found:
        yield found


async def test_a_yes_to_the_code_is_none_to_what_is_asked_there_later(place: Place) -> None:
    """On somebody's own pull request a question is about the head as it is, which people may have approved before."""
    head = await place.person("carl").push_commit(REPO, "feature", {"b.py": "y = 1\n"})
    number = int((await place.person("carl").open_pull(REPO, "feature", "A feature"))["number"])
    review = await place.person("rita").review(REPO, number, "APPROVE", "Good code.")
    pull = place.sandbox.world.repository("acme", "thing").issues[number].pull
    assert pull is not None
    pull.reviews[review["id"]].submitted_at -= timedelta(minutes=5)  # type: ignore[operator]
    job = dataclasses.replace(
        place.job,
        id="j2",
        number=number,
        target=TargetKind.pull_request,
        branch="feature",
        base_sha=head,
        head_sha=None,
        pull_number=None,
    )
    assert await place.store.add_job(job)
    asked = await place.desk.ask(
        job, ApprovalKind.network, "May I?", sha=head, pull_number=number, details={"host": "example.com"}
    )
    await place.person("tom").review(REPO, number, "COMMENT", "Hm.")
    await place.desk.reviewed(place.event())
    assert (await place.now(asked)).state is ApprovalState.pending
    assert place.told.calls == []
    await place.person("rita").review(REPO, number, "APPROVE", "That host is fine.")
    await place.desk.reviewed(place.event())
    assert place.told.calls == [("approved", asked.id, "rita", "That host is fine.")]


async def test_one_review_answers_one_of_two_questions(place: Place) -> None:
    held = dataclasses.replace(place.job, id="j2", state=JobState.succeeded)
    assert await place.store.add_job(held)
    first = await place.desk.ask(
        held, ApprovalKind.protected, "May the rest be pushed?", sha=place.sha, pull_number=place.number
    )
    second = await place.ask(ApprovalKind.text)
    await place.reviewed("rita", body="Rename it.")
    states = [(await place.now(one)).state for one in (first, second)]
    assert states == [ApprovalState.pending, ApprovalState.approved]
    assert f"answers a question that was asked here (`{second.id}`)" in place.ours()[-1]
    await place.reviewed("rita", body="And push the rest.")
    assert (await place.now(first)).state is ApprovalState.approved
    # what that person says about another question takes nothing back
    assert (await place.desk.use(second.id, by="j1")).used_by == "j1"


async def test_the_answer_to_a_question_is_no_approval_of_the_pull_request(tmp_path: Path) -> None:
    yaml = "approvals:\n  final:\n    required: 1\n  merge: auto\n"
    async with world(tmp_path, yaml=yaml) as place:
        await place.person("maria").ready(REPO, place.number)
        asked = await place.ask(ApprovalKind.text)
        for counted_first in (True, False):  # whichever is looked at first
            await (place.review if counted_first else place.reviewed)("rita", body="Rename it.")
            await place.final.update(place.repo, place.number)
            shown = await place.check()
            assert shown is not None
            assert (shown["conclusion"], shown["output"]["title"]) == (None, "1 approval is missing")
            assert asked.id in shown["output"]["summary"]
        assert (await place.now(asked)).decided_by == "rita"
        await place.reviewed("rita", body="And all of it is good.")
        await place.final.update(place.repo, place.number)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert pull["merged"] is True


async def test_another_base_branch_is_another_change_of_the_same_commits(tmp_path: Path) -> None:
    async with world(tmp_path, yaml="approvals:\n  final:\n    required: 1\n") as place:
        carl = place.person("carl")
        await carl.push_commit(REPO, "below", {"evil.py": "import os\n"})
        await carl.request("PATCH", f"/repos/{REPO}/pulls/{place.number}", {"base": "below"})
        review = await place.review("rita", body="Harmless.")
        await place.final.update(place.repo, place.number)
        shown = await place.check()
        assert shown is not None
        assert shown["conclusion"] == "success"
        pull = place.sandbox.world.repository("acme", "thing").issues[place.number].pull
        assert pull is not None
        pull.reviews[review].submitted_at -= timedelta(seconds=5)  # type: ignore[operator]
        await carl.request("PATCH", f"/repos/{REPO}/pulls/{place.number}", {"base": "main"})
        bot = cast(Any, SimpleNamespace(desk=place.desk, final=place.final))
        await base_changed(place.event("pull_request"), bot)
        shown = await place.check()
        assert shown is not None
        assert (shown["conclusion"], shown["output"]["title"]) == (None, "1 approval is missing")
        assert "got another base branch" in shown["output"]["summary"]
        await carl.request("PATCH", f"/repos/{REPO}/pulls/{place.number}", {"title": "Only words"})
        await place.review("rita", body="As it is now.")
        await base_changed(place.event("pull_request"), bot)
        await place.final.update(place.repo, place.number)
        shown = await place.check()
        assert shown is not None
        assert shown["conclusion"] == "success"


async def test_where_github_does_not_tell_every_push_no_commit_is_believed(place: Place) -> None:
    """Else whoever pushes in somebody's name could approve it in their own."""
    tria = place.sandbox.world.users["tria"]
    who = {"name": tria.login, "email": tria.email}
    carl = place.person("carl")
    tree = (await carl.request("GET", f"/repos/{REPO}/git/commits/{place.sha}"))["tree"]["sha"]
    data = {"message": "m", "tree": tree, "parents": [place.sha], "author": who, "committer": who}
    head = (await carl.request("POST", f"/repos/{REPO}/git/commits", data))["sha"]
    await carl.request("PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", {"sha": head})
    repository = place.sandbox.world.repository("acme", "thing")
    assert repository is not None
    repository.activities.pop()  # it takes a moment, and of more than MAX_PUSHES the last ones are not read
    asked = await place.ask(sha=head)
    for login in ("carl", "rita"):
        await place.reviewed(login)
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "Nobody knows who made" in place.ours()[-1]


async def test_who_tells_a_working_agent_what_to_do_asks_too(tmp_path: Path) -> None:
    async with world(tmp_path, yaml="approvals:\n  final:\n    required: 1\n") as place:
        await place.approvals.asks_too("j1", place.actor("tom").id)
        await place.approvals.asks_too("j11", place.actor("rita").id)
        asked = await place.ask()
        await place.reviewed("tom")
        assert (await place.now(asked)).state is ApprovalState.pending
        assert "You asked for this work" in place.ours()[-1]
        await place.desk.withdraw("j1")
        await place.review("tom")
        await place.final.update(place.repo, place.number)
        shown = await place.check()
        assert shown is not None
        assert shown["conclusion"] is None
        await place.review("rita")
        await place.final.update(place.repo, place.number)
        shown = await place.check()
        assert shown is not None
        assert shown["conclusion"] == "success"


async def test_whose_words_are_done_once_more_asked_for_it(place: Place) -> None:
    """Somebody else who has a job done once more, unasked, makes nobody free to approve their own words."""
    words = dataclasses.replace(
        place.job,
        id="j2",
        number=7,
        branch=None,
        head_sha=None,
        pull_number=None,
        state=JobState.failed,
        trigger=dataclasses.replace(place.job.trigger, delivery_id="d2", actor=place.actor("tom")),
    )
    between, again = (
        dataclasses.replace(
            words,
            id=name,
            retry_of=origin,
            branch=BRANCH,
            pull_number=pull,
            trigger=dataclasses.replace(place.job.trigger, delivery_id=name),
        )
        for name, origin, pull in (("j3", "j2", None), ("j4", "j3", place.number))
    )
    for job in (words, between, again):
        assert await place.store.add_job(job)
    asked = await place.desk.ask(
        again, ApprovalKind.plan, "The plan.", sha=place.sha, pull_number=place.number
    )
    await place.reviewed("tom")
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "You asked for this work" in place.ours()[-1]
    await place.reviewed("rita")
    assert (await place.now(asked)).decided_by == "rita"


@pytest.mark.parametrize("joined", [False, True])
async def test_what_is_asked_for_the_sake_of_a_review_somebody_else_allows(
    place: Place, joined: bool
) -> None:
    """ "Change the workflow", says a review: its author does not let that through as well, but may approve a plan."""
    author = place.actor("rita" if not joined else "carl")
    trigger = dataclasses.replace(place.job.trigger, delivery_id="d2", actor=author, event=FEEDBACK)
    turn = dataclasses.replace(place.job, id="j2", trigger=trigger)
    assert await place.store.add_job(turn)
    if joined:
        await place.approvals.asks_too("j2", place.actor("rita").id, by_review=True)
    values: dict[str, Any] = {"sha": place.sha, "pull_number": place.number}
    asked = await place.desk.ask(
        turn, ApprovalKind.network, "A host?", details={"host": "a.example"}, **values
    )
    await place.reviewed("rita")
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "You asked for this work" in place.ours()[-1]
    await place.reviewed("tom")
    assert (await place.now(asked)).decided_by == "tom"
    plan = await place.desk.ask(turn, ApprovalKind.plan, "The plan.", **values)
    await place.reviewed("rita")
    assert (await place.now(plan)).decided_by == "rita"


async def test_who_may_not_write_is_told_once_that_their_reviews_do_not_count(place: Place) -> None:
    """Anybody may review what they may read, as often as they like."""
    await place.ask()
    for word in ("One.", "Two.", "Three."):
        await place.reviewed("reader", body=word)
    assert len(place.ours()) == 2
    assert "needs write access" in place.ours()[1]
    assert (await place.kinds()).count("review.ignored") == 3
    for word in ("One.", "Two."):  # who may write may have mended what was wrong, and hears what is wrong now
        await place.reviewed("maria", body=word)
    assert len(place.ours()) == 4


async def test_who_asked_for_the_bot_s_work_cannot_approve_it_in_somebody_else_s_pull_request(
    tmp_path: Path,
) -> None:
    """The bot's is closed, and somebody opens their own from its branch, with a commit on top."""
    async with world(tmp_path, yaml="approvals:\n  final:\n    required: 1\n") as place:
        await place.person("maria").close(REPO, place.number)
        head = await place.push("carl")
        number = int((await place.person("carl").open_pull(REPO, BRANCH, "Mine"))["number"])
        job = dataclasses.replace(
            place.job,
            id="j2",
            number=number,
            target=TargetKind.pull_request,
            trigger=dataclasses.replace(place.job.trigger, delivery_id="d2", actor=place.actor("tom")),
            head_sha=None,
            pull_number=None,
        )
        assert await place.store.add_job(job)
        asked = await place.desk.ask(job, ApprovalKind.text, "May I?", sha=head, pull_number=number)
        await place.person("maria").review(REPO, number, "APPROVE", "As I wanted it.")
        await place.desk.reviewed(place.event())
        assert (await place.now(asked)).state is ApprovalState.pending
        assert "You asked for this work" in place.sandbox.comments(REPO, number)[-1]["body"]
        await place.desk.withdraw("j2")
        assert not await place.final.update(place.repo, number, others=True)
        await place.person("rita").review(REPO, number, "APPROVE", "Fine.")
        assert await place.final.update(place.repo, number, others=True)


async def test_a_co_author_of_what_people_pushed_does_not_approve_it(place: Place) -> None:
    """What the bot's own commit says of whom it was made for is no authorship of theirs."""
    rita, tom = (place.sandbox.world.users[login] for login in ("rita", "tom"))
    client = place.github.installation(place.sandbox.installation_id)
    made = await empty_commit(
        place.github, place.repo.installation_id, place.sha, f"Work\n\nCo-authored-by: Tom <{tom.email}>"
    )
    url = f"/repos/{REPO}/git/refs/heads/{BRANCH}"
    await client.patch(url, data={"sha": made})
    together = f"Better\n\nCo-Authored-By: Rita <{rita.email}>\r\nco-authored-by: Zoe <zoe@example.com>\n"
    together += "Co-authored-by: T <Tria@users.noreply.github.com>\n"
    head = await place.person("carl").push_commit(REPO, BRANCH, {"a.py": "x = 3\n"}, message=together)
    asked = await place.ask(sha=head)
    for login in ("rita", "tria"):
        await place.reviewed(login)
        assert (await place.now(asked)).state is ApprovalState.pending
        assert "wrote or pushed a part of it" in place.ours()[-1]
    await place.reviewed("tom")
    assert (await place.now(asked)).decided_by == "tom"


def edits(place: Place, by: str) -> Event:
    """The newest change of a comment's text by a "User" or a "Bot"."""
    for one in place.sandbox.deliveries:
        told = (one.event, one.payload.get("action"), one.payload["sender"]["type"])
        if told == ("issue_comment", "edited", by):
            return parse_event(one.guid, one.event, one.payload)
    raise AssertionError("nothing was edited")


async def test_a_question_that_somebody_edits_is_shown_as_it_is_once(place: Place) -> None:
    """Whoever may write can edit the bot's comments, and reviewers would approve what is not asked."""
    asked = await place.ask(ApprovalKind.network, details={"host": "evil.example"})
    question = place.sandbox.comments(REPO, place.number)[0]
    url = f"/repos/{REPO}/issues/comments/{question['id']}"
    carl = place.person("carl")
    # the second time without the hidden line by which it is found, then the pull request's text
    for body in (question["body"].replace("change `a.py`", "buy cake"), "Cake?", None):
        if body is not None:
            await carl.request("PATCH", url, {"body": body})
        else:
            await carl.request("PATCH", f"/repos/{REPO}/pulls/{place.number}", {"body": "It is about cake."})
        event = edits(place, "User") if body is not None else place.event("pull_request")
        review = await place.review("rita", body="I like cake.")
        await router.dispatch(event, cast(Any, SimpleNamespace(desk=place.desk, final=place.final)))
        await place.desk.reviewed(place.event())
        assert (await place.now(asked)).state is ApprovalState.pending
        assert "submitted before this was asked" in place.ours()[-1]
        assert [one for one in place.ours() if "has to decide" in one] == [place.ours()[0]]
        assert "change `a.py`" in place.ours()[0]
        assert "carl changed a text of the bot's here." in place.ours()[0]
    told = await place.kinds()
    await place.desk.text_changed(edits(place, "Bot"))  # our own edit is no reason for another one
    theirs = await carl.comment(REPO, place.number, "My words.")
    await carl.request("PATCH", f"/repos/{REPO}/issues/comments/{theirs['id']}", {"body": "My own words."})
    await place.desk.text_changed(edits(place, "User"))
    assert await place.kinds() == told
    pull = place.sandbox.world.repository("acme", "thing").issues[place.number].pull
    assert pull is not None
    pull.reviews[review].submitted_at = datetime.now(UTC) + timedelta(minutes=1)
    await place.desk.reviewed(place.event())
    assert (await place.now(asked)).decided_by == "rita"


async def test_what_was_approved_after_somebody_had_changed_the_question_is_void(place: Place) -> None:
    asked = await place.ask(ApprovalKind.network, details={"host": "evil.example"})
    question = place.sandbox.comments(REPO, place.number)[0]
    url = f"/repos/{REPO}/issues/comments/{question['id']}"
    await place.person("carl").request("PATCH", url, {"body": "Cake?"})
    edited = edits(place, "User")
    await place.reviewed("rita", body="I like cake.")  # its event was the faster one
    assert (await place.now(asked)).state is ApprovalState.approved
    await place.desk.text_changed(edited)
    assert (await place.now(asked)).state is ApprovalState.stale
    assert place.told.calls[-1][:3] == ("lapsed", asked.id, "stale")
    with pytest.raises(ApprovalVoid):
        await place.desk.use(asked.id, by="j1")
    # who changes the text of what was approved before takes nothing back
    again = await place.ask(ApprovalKind.text)
    await place.reviewed("tom")
    await place.person("carl").request("PATCH", url, {"body": "Cake!"})
    edited = edits(place, "User")
    assert edited.edit is not None
    late = dataclasses.replace(edited.edit, at=datetime.now(UTC) + timedelta(seconds=1))
    await place.desk.text_changed(dataclasses.replace(edited, edit=late))
    assert (await place.now(again)).state is ApprovalState.approved
