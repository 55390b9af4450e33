"""The store on SQLite and on PostgreSQL: the same promises."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bot.errors import StaleAttempt
from bot.ledger import Entry, Ledger
from bot.live_words import Said
from bot.model import (
    Actor,
    Attempt,
    AttemptState,
    FailureKind,
    Job,
    JobState,
    Phase,
    Repo,
    TargetKind,
    Trigger,
    Usage,
)
from bot.store import Store, usage_columns
from bot.terms import Terms

START = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def job(number: int = 1, ordinal: int = 0, **changes: object) -> Job:
    values: dict[str, object] = {
        "id": f"j{number:06}{ordinal:06}",
        "repo": Repo(owner="acme", name="hello", id=10, installation_id=20),
        "number": number,
        "target": TargetKind.issue,
        "trigger": Trigger(
            delivery_id=f"d{number}-{ordinal}",
            event="issue_comment.created",
            actor=Actor(login="maria", id=3, type="User"),
            comment_id=77,
        ),
        "agent": "shell",
        "model": None,
        "instructions": "do it ✅",
        "title": "T",
        "body": "B",
        "timeout": 600,
        "state": JobState.queued,
        "created_at": START + timedelta(seconds=ordinal),
        "thread_id": f"10-{number}",
    }
    return Job(**values | changes)  # type: ignore[arg-type]


async def test_a_job_comes_back_as_it_was_saved(store: Store) -> None:
    saved = job(usage=Usage(input_tokens=5, requests=1, cost=None), base="main", retry_of="jx")
    assert await store.add_job(saved)
    assert await store.job(saved.id) == saved
    assert await store.job("nobody") is None


async def test_the_same_trigger_makes_one_job(store: Store) -> None:
    assert sorted(await asyncio.gather(*(store.add_job(job()) for _ in range(10)))) == [False] * 9 + [True]
    assert len(await store.recent_jobs()) == 1


async def test_one_of_many_hosts_claims_a_job(store: Store) -> None:
    await store.add_job(job())
    claims = await asyncio.gather(*(store.claim_next(f"host{n}") for n in range(8)))
    (claimed,) = [claim for claim in claims if claim]
    found, attempt = claimed
    assert (found.state, found.fence, found.phase) == (JobState.running, 1, Phase.image)
    assert attempt.id == f"{found.id}-1"
    assert attempt.deadline - attempt.claimed_at == timedelta(seconds=600)
    assert [other.id for other in await store.attempts_of(attempt.host)] == [attempt.id]


async def test_one_job_runs_on_an_issue_and_the_others_keep_their_order(store: Store) -> None:
    for ordinal in range(3):
        await store.add_job(job(1, ordinal))
    await store.add_job(job(2))
    assert await store.claim_next("h", only=job(1, 2).id) is None  # somebody asked before
    first = await store.claim_next("h", only=job(1, 0).id)
    assert first is not None
    assert await store.claim_next("h", only=job(1, 1).id) is None  # one is running
    assert await store.claim_next("h", only=job(2).id) is not None  # another issue
    await store.move(first[0].id, JobState.succeeded, expected=[JobState.running], fence=1)
    assert await store.claim_next("h", only=job(1, 2).id) is None
    assert await store.claim_next("h", only=job(1, 1).id) is not None


async def test_a_job_that_was_asked_to_stop_is_not_claimed(store: Store) -> None:
    await store.add_job(job())
    assert await store.request_cancel(job().id, "maria")
    assert await store.claim_next("h", only=job().id) is None


async def test_finals_never_change(store: Store) -> None:
    await store.add_job(job())
    await store.claim_next("h", only=job().id)
    ended = await store.move(
        job().id,
        JobState.failed,
        expected=[JobState.running],
        fence=1,
        failure=str(FailureKind.oom),
        **usage_columns(Usage(output_tokens=9, requests=2, cost=0.5)),
    )
    assert ended is not None
    assert ended.finished_at is not None
    assert ended.usage.output_tokens == 9
    assert await store.move(job().id, JobState.succeeded, expected=[JobState.running]) is None
    assert not await store.request_cancel(job().id, "maria")
    with pytest.raises(ValueError, match="no transition"):
        await store.move(job().id, JobState.running, expected=[JobState.failed])
    with pytest.raises(ValueError, match=r"move\(\)"):
        await store.note(job().id, state="queued")


async def test_the_fence_makes_an_old_attempt_void(store: Store) -> None:
    await store.add_job(job())
    await store.claim_next("one", only=job().id)
    taken = await store.take_over(job().id, from_fence=1, host="two")
    assert taken is not None
    assert taken[0].fence == 2
    assert await store.take_over(job().id, from_fence=1, host="three") is None
    assert await store.attempts_of("one") == []
    with pytest.raises(StaleAttempt):
        await store.check_fence(job().id, 1)
    with pytest.raises(StaleAttempt):
        await store.note(job().id, fence=1, head_sha="a" * 40)
    assert await store.move(job().id, JobState.succeeded, expected=[JobState.running], fence=1) is None
    await store.check_fence(job().id, 2)
    # the time limit counts from the first start
    assert taken[1].deadline == (taken[0].started_at or START) + timedelta(seconds=600)


async def test_a_silent_host_loses_its_attempts_and_a_living_one_does_not(store: Store) -> None:
    await store.host_seen("alive", 2, START)
    await store.host_seen("alive", 3, START)
    for number, host in ((1, "alive"), (2, "silent")):
        await store.add_job(job(number))
        await store.claim_next(host, only=job(number).id)
    assert await store.lost_attempts(timedelta(minutes=1)) == []  # just claimed
    lost = await store.lost_attempts(timedelta(0) - timedelta(seconds=1))
    assert {attempt.host for attempt in lost} == {"alive", "silent"}  # nobody was seen in the future
    await store.host_seen("alive", 3, START)
    assert {a.host for a in await store.lost_attempts(timedelta(microseconds=1))} <= {"silent", "alive"}


async def test_ends_are_told_until_they_were_reported(store: Store) -> None:
    await store.add_job(job())
    assert await store.unreported_jobs() == []
    await store.move(job().id, JobState.cancelled, expected=[JobState.queued])
    assert [found.id for found in await store.unreported_jobs()] == [job().id]
    await store.mark_reported(job().id, JobState.cancelled)
    assert await store.unreported_jobs() == []


async def test_jobs_of_an_issue_and_of_its_pull_request(store: Store) -> None:
    await store.add_job(job(1))
    await store.add_job(job(1, 1))
    await store.note(job(1).id, pull_number=9)
    assert [found.id for found in await store.jobs_on(10, 1)] == [job(1, 1).id, job(1).id]
    assert [found.id for found in await store.jobs_on(10, 9)] == [job(1).id]
    assert (await store.waiting(job(1, 1))).here == 1


async def test_the_conversation_of_an_issue_is_in_its_pull_requests_too(store: Store) -> None:
    await store.add_job(job(1))
    await store.note(job(1).id, pull_number=9)
    for other in (job(9, 1), job(9, 2, repo=replace(job().repo, id=11)), job(2, 3)):
        await store.add_job(other)
    await store.note(job(9, 1).id, pull_number=9)
    assert [found.id for found in await store.conversation(10, 1)] == [job(9, 1).id, job(1).id]
    assert await store.conversation(10, 9) == await store.conversation(10, 1)
    assert [found.id for found in await store.conversation(10, 2)] == [job(2, 3).id]
    assert await store.conversation(10, 3) == []


async def test_a_pull_request_of_ours_goes_on_with_the_conversation_of_its_issue(store: Store) -> None:
    await store.add_job(job(1))
    await store.note(job(1).id, pull_number=9)
    assert await store.thread_of(job(9)) == await store.thread_of(job(1)) == "10-1"
    assert await store.thread_of(job(8)) == "10-8"


async def test_sessions_turns_and_answers(store: Store) -> None:
    await store.add_job(job())
    claimed = await store.claim_next("h", only=job().id)
    assert claimed is not None
    attempt = claimed[1]
    for _ in range(2):  # a repeated step changes nothing
        await store.begin_turn(attempt, 1, "prompt")
    await store.end_turn(attempt, 1, {"exit_code": 0})
    await store.set_attempt(attempt, AttemptState.ended)
    assert await store.attempts_of("h") == []
    assert await store.session("t", "claude") is None
    await store.save_session("t", "claude", "s1")
    await store.save_session("t", "claude", "s2")
    assert await store.session("t", "claude") == "s2"
    assert await store.session("t", "codex") is None
    assert await store.say_once("k", "one")
    assert not await store.say_once("k", "another")
    assert await store.say_once("k", "one"), "it may have died before it said it"
    await store.unsay("k")
    assert await store.say_once("k", "another")


async def paused(store: Store) -> Attempt:
    """A job that asks something, and the attempt that it did that in."""
    await store.add_job(job())
    claimed = await store.claim_next("h", only=job().id)
    assert claimed is not None
    moved = await store.move(
        job().id,
        JobState.paused,
        expected=[JobState.running],
        asked_at=datetime.now(UTC) - timedelta(hours=1),
    )
    assert moved is not None
    return claimed[1]


async def test_an_event_that_answered_is_known_and_one_that_came_too_late_is_not(store: Store) -> None:
    await paused(store)
    assert not await store.answered("d1/0")
    assert await store.answer(job().id, "Blue.", "maria", event="d1/0")
    assert await store.answer(job().id, "Red.", "maria", event="d2/0") is None
    assert await store.answered("d1/0")
    assert not await store.answered("d2/0")
    found = await store.job(job().id)
    assert found is not None
    assert found.answer == "Blue."


async def test_a_question_is_told_until_it_was_told_or_answered(store: Store) -> None:
    await paused(store)
    assert [one.id for one in await store.untold_questions()] == [job().id]
    await store.mark_reported(job().id, JobState.paused)
    assert await store.untold_questions() == []
    await store.move(job().id, JobState.running, expected=[JobState.paused])
    await store.move(job().id, JobState.paused, expected=[JobState.running], reported=None)
    assert [one.id for one in await store.untold_questions()] == [job().id]
    assert await store.answer(job().id, "Blue.", "maria", event="d1/0")
    assert await store.untold_questions() == []


async def test_an_attempt_at_work_hears_what_its_agent_was_not_told(store: Store) -> None:
    assert await store.add_job(job())
    assert await store.add_job(job(number=2, approval_id="a1"))  # carries out an approved plan
    claimed, planned = [one[1] for one in (await store.claim_next("h"), await store.claim_next("h")) if one]
    assert await store.tell(claimed.job_id, "Blue.", "maria", event="d1/0")
    assert await store.tell(claimed.job_id, "No, red.", "octocat", event="d2/0")
    assert await store.tell(planned.job_id, "Delete it.", "octocat", event="d3/0")
    assert await store.live_words(claimed.id) == []  # its container does not run yet
    for attempt in (claimed, planned):
        await store.set_attempt(attempt, AttemptState.running)
    said = [Said("d1/0", "maria", "Blue."), Said("d2/0", "octocat", "No, red.")]
    assert await store.live_words(claimed.id) == said
    for other in (planned.id, f"{claimed.job_id}-0", f"{claimed.job_id}-2", claimed.job_id, "setup-1"):
        assert await store.live_words(other) == []
    await store.told(["d1/0"])
    assert await store.live_words(claimed.id) == await store.untold(claimed.job_id) == said[1:]
    await store.request_cancel(claimed.job_id, "maria")
    assert await store.live_words(claimed.id) == []
    assert await store.untold(claimed.job_id) == said[1:]


async def test_what_was_waited_is_not_counted_twice_when_a_renewal_is_repeated(store: Store) -> None:
    attempt = await paused(store)
    before = await store.job(job().id)
    assert before is not None
    assert before.asked_at is not None
    left = attempt.deadline - before.asked_at
    now = datetime.now(UTC)
    await store.renew(replace(attempt, deadline=now + left), as_of=now)
    renewed, after = await store.attempt(attempt.id), await store.job(job().id)
    assert renewed is not None
    assert after is not None
    assert after.asked_at is not None
    assert renewed.deadline - after.asked_at == left
    assert await store.attempt("nobody-1") is None


async def test_a_job_tells_what_all_its_attempts_have_used_and_how_many_were_interrupted(
    store: Store,
) -> None:
    first = await paused(store)
    await store.begin_turn(first, 1, "prompt")
    await store.end_turn(first, 1, {"exit_code": 0, "stopped": False})
    await store.move(job().id, JobState.running, expected=[JobState.paused])
    assert await store.interruptions(job().id) == 0, "it has asked, and that is no fault of its host"
    ledger = Ledger(store.engine)
    terms = Terms(job_id=job().id, thread_id="t", repo_id=10, actor_id=3)
    one = Usage(input_tokens=1, output_tokens=2, cached_tokens=3, cache_write_tokens=4, requests=1, cost=0.5)

    def entry(attempt: Attempt, usage: Usage) -> Entry:
        return Entry(terms=terms, attempt_id=attempt.id, at=START, model="m", usage=usage)

    await ledger.add([entry(first, one), entry(first, one)])
    assert await store.usage_before(first) == Usage()
    fence = first.fence
    for outcome, known in ((None, 1), ({"stopped": True}, 2)):
        taken = await store.take_over(job().id, from_fence=fence, host="h")
        assert taken is not None
        fence = taken[1].fence
        await store.begin_turn(taken[1], 1, "prompt")
        if outcome is not None:
            await store.end_turn(taken[1], 1, outcome)
        assert await store.interruptions(job().id) == known
        assert await store.usage_before(taken[1]) == one + one
    await ledger.add([entry(first, replace(one, cost=None))])
    assert (await store.usage_before(taken[1])).cost is None
