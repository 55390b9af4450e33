"""Approvals on SQLite and on PostgreSQL: one decision each, and never without its entry in the audit trail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.approval_store import ApprovalStore
from bot.audit import Audit, AuditUnavailable, Wanted
from bot.audit_chain import Entry, Verifier
from bot.model import (
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
)
from bot.policy import Decision
from bot.reasons import Reason
from bot.redact import Redactor
from bot.store import Store
from tests.jobs import HELLO, asked_job

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RITA, TOM = Actor(login="rita", id=5, type="User"), Actor(login="tom", id=6, type="User")
YES = Decision(root=Reason(question="is it approved", ok=True, said="yes"))


def approval(number: int = 1, **changes: Any) -> Approval:
    values: dict[str, Any] = {
        "id": f"p{number}",
        "kind": ApprovalKind.network,
        "job_id": f"j{number}",
        "repo": HELLO,
        "pull_number": 7,
        "subject": "May I reach `example.com`?",
        "sha": "a" * 40,
        "state": ApprovalState.pending,
        "asked_at": NOW + timedelta(seconds=number),
        "expires_at": NOW + timedelta(days=3),
        "details": {"host": "example.com", "commit": "a" * 40},
    }
    return Approval(**values | changes)


async def add_jobs(store: Store, *numbers: int) -> None:
    for number in numbers:
        assert await store.add_job(asked_job(f"j{number}", by=TOM, number=number, created_at=NOW))


@pytest.fixture
def audit(engine: AsyncEngine) -> Audit:
    return Audit(engine, Redactor([]))


@pytest.fixture
async def approvals(engine: AsyncEngine, store: Store, audit: Audit) -> ApprovalStore:
    await add_jobs(store, 1, 2, 3)
    return ApprovalStore(engine, audit)


async def kinds(audit: Audit) -> list[str]:
    return [entry.kind async for entry in audit.entries(Wanted()) if hasattr(entry, "kind")]


async def test_it_comes_back_as_it_was_asked(approvals: ApprovalStore, audit: Audit) -> None:
    asked = approval()
    assert await approvals.ask(asked)
    assert await approvals.approval("p1") == asked
    assert await approvals.pending_of("j1") == asked
    assert await approvals.pending_on(10, 7) == [asked]
    assert await approvals.on(10, 8) == await approvals.pending_on(11, 7) == []
    assert await kinds(audit) == ["approval.asked"]


async def test_a_job_asks_one_thing_at_a_time(approvals: ApprovalStore, audit: Audit) -> None:
    assert await approvals.ask(approval())
    assert not await approvals.ask(approval(id="p1b", sha="b" * 40))
    assert not await approvals.ask(approval())
    assert await approvals.ask(approval(2))
    assert [one.id for one in await approvals.pending()] == ["p2", "p1"]
    assert await kinds(audit) == ["approval.asked"] * 2
    assert await approvals.end(approval(), ApprovalState.withdrawn, why="its job ended")
    assert await approvals.ask(approval(id="p1b", sha="b" * 40))


async def test_of_many_decisions_at_once_exactly_one_is_made(approvals: ApprovalStore, audit: Audit) -> None:
    asked = approval()
    await approvals.ask(asked)
    results = await asyncio.gather(
        *(
            approvals.decide(
                asked,
                ApprovalState.approved if number % 2 else ApprovalState.refused,
                by=Actor(login=f"u{number}", id=number, type="User"),
                words=f"words {number}",
                review_id=100 + number,
                because=YES,
                delivery_id=f"d{number}",
            )
            for number in range(1, 9)
        )
    )
    made = [one for one in results if one is not None]
    assert len(made) == 1
    assert await approvals.approval("p1") == made[0]
    assert made[0].words == f"words {made[0].decided_by_id}"
    entries = [entry async for entry in audit.entries(Wanted(kinds={"approval.granted", "approval.refused"}))]
    assert len(entries) == 1
    verifier = Verifier()
    await audit.verify(verifier)
    assert verifier.findings == []


@pytest.mark.parametrize("ended", [state for state in ApprovalState if state not in ("pending", "approved")])
async def test_what_is_over_stays_over(approvals: ApprovalStore, ended: ApprovalState) -> None:
    asked = approval()
    await approvals.ask(asked)
    if ended is ApprovalState.refused:
        over = await approvals.decide(asked, ended, by=RITA)
    else:
        over = await approvals.end(asked, ended, why="so it is")
    assert over is not None
    assert over.state is ended
    # who still believes that it is pending comes too late
    assert await approvals.decide(asked, ApprovalState.approved, by=TOM) is None
    assert await approvals.end(asked, ApprovalState.expired, why="late") is None
    with pytest.raises(ValueError, match="no way"):
        await approvals.decide(over, ApprovalState.approved, by=TOM)
    assert await approvals.approval("p1") == over


async def test_a_decision_about_another_commit_is_none(approvals: ApprovalStore) -> None:
    asked = approval()
    await approvals.ask(asked)
    assert await approvals.decide(replace(asked, sha="b" * 40), ApprovalState.approved, by=RITA) is None


async def test_what_was_approved_is_used_once_and_then_nothing_changes_it(
    approvals: ApprovalStore, audit: Audit
) -> None:
    asked = approval()
    await approvals.ask(asked)
    assert await approvals.use(asked, by="j8") is None
    yes = await approvals.decide(asked, ApprovalState.approved, by=RITA, words="Fine.", review_id=9)
    assert yes is not None
    assert (yes.decided_by, yes.decided_by_id, yes.words, yes.review_id) == ("rita", 5, "Fine.", 9)
    used = await approvals.use(yes, by="j8", because=YES)
    assert used is not None
    assert used.used_at is not None
    assert used.used_by == "j8"
    assert await approvals.use(yes, by="j8") == used  # the same again, after a crash
    assert await approvals.end(yes, ApprovalState.stale, why="dismissed") is None
    assert await kinds(audit) == ["approval.asked", "approval.granted", "approval.used"]


async def test_what_was_approved_may_become_void_before_it_is_used(
    approvals: ApprovalStore, audit: Audit
) -> None:
    asked = approval()
    await approvals.ask(asked)
    yes = await approvals.decide(asked, ApprovalState.approved, by=RITA)
    assert yes is not None
    void = await approvals.end(yes, ApprovalState.stale, why="the review was dismissed")
    assert void is not None
    assert void.decided_by == "rita"
    assert await approvals.use(yes, by="j8") is None
    assert await kinds(audit) == ["approval.asked", "approval.granted", "approval.void"]


async def test_each_job_that_uses_it_is_written_down(approvals: ApprovalStore, audit: Audit) -> None:
    asked = approval()
    await approvals.ask(asked)
    yes = await approvals.decide(asked, ApprovalState.approved, by=RITA)
    assert yes is not None
    used = [await approvals.use(yes, by=job) for job in ("j8", "j9", "j9", "j8")]
    assert [one.used_by for one in used if one is not None] == ["j8", "j9", "j9", "j8"]
    entries = [entry async for entry in audit.entries(Wanted()) if isinstance(entry, Entry)]
    by = [entry.details["by"] for entry in entries if entry.kind == "approval.used"]
    assert by == ["j8", "j9", "j8"]


async def test_asking_anew_takes_the_old_question_s_place(approvals: ApprovalStore, audit: Audit) -> None:
    old = approval()
    await approvals.ask(old)
    new = replace(old, id="p9", sha="b" * 40)
    results = await asyncio.gather(*(approvals.ask_anew(old, replace(new, id=f"p9{n}")) for n in range(4)))
    assert sorted(results) == [False, False, False, True]
    (pending,) = await approvals.pending_on(10, 7)
    assert pending.sha == "b" * 40
    assert [one.state for one in await approvals.of_job("j1")].count(ApprovalState.stale) == 1
    assert await kinds(audit) == ["approval.asked", "approval.void", "approval.asked"]


async def test_an_operator_is_written_down_as_one(approvals: ApprovalStore, audit: Audit) -> None:
    asked = approval()
    await approvals.ask(asked)
    yes = await approvals.decide(asked, ApprovalState.approved, by="operator:root", words="on call")
    assert yes is not None
    assert (yes.decided_by, yes.decided_by_id) == ("operator:root", None)
    entries = [entry async for entry in audit.entries(Wanted(actor="operator:root"))]
    assert [getattr(entry, "kind", "") for entry in entries] == ["override", "approval.granted"]


async def test_people_are_reminded_once_and_told_of_each_state(approvals: ApprovalStore) -> None:
    asked = approval()
    await approvals.ask(asked)
    assert [one.id for one in await approvals.unsettled(NOW + timedelta(hours=1))] == ["p1"]
    assert await approvals.unsettled(NOW) == []  # whoever asked is still at telling it
    assert await approvals.settle(asked)
    assert await approvals.unsettled(NOW + timedelta(hours=1)) == []
    assert await approvals.remind(asked)
    assert not await approvals.remind(asked)
    yes = await approvals.decide(asked, ApprovalState.approved, by=RITA)
    assert yes is not None
    assert not await approvals.settle(asked)  # it is about a state that is over
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert [one.id for one in await approvals.unsettled(later)] == ["p1"]
    assert await approvals.settle(yes)
    assert await approvals.unsettled(later) == []


async def test_reviews_whose_text_others_changed_are_remembered(approvals: ApprovalStore) -> None:
    await approvals.distrust(5)
    await approvals.distrust(5)
    assert await approvals.distrusted([4, 5, 6]) == {5}
    assert await approvals.distrusted([]) == frozenset()


async def test_nothing_is_decided_that_cannot_be_written_down(
    approvals: ApprovalStore, engine: AsyncEngine
) -> None:
    asked = approval()
    await approvals.ask(asked)
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.exec_driver_sql("DROP TRIGGER audit_head_stays ON audit_head")
        else:
            await connection.exec_driver_sql("DROP TRIGGER audit_head_stays")
        await connection.exec_driver_sql("DELETE FROM audit_head")
    with pytest.raises(AuditUnavailable):
        await approvals.decide(asked, ApprovalState.approved, by=RITA)
    with pytest.raises(AuditUnavailable):
        await approvals.ask(approval(2))
    assert await approvals.approval("p1") == asked
    assert await approvals.pending_of("j2") is None


async def test_a_job_waits_for_a_review_until_it_was_told(approvals: ApprovalStore, store: Store) -> None:
    assert not await store.waits_for_review("j1")
    asked = approval()
    await approvals.ask(asked)
    await approvals.settle(asked)
    assert await store.waits_for_review("j1")
    assert not await store.waits_for_review("j2")
    yes = await approvals.decide(asked, ApprovalState.approved, by=RITA)
    assert yes is not None
    assert await store.waits_for_review("j1")
    await approvals.settle(yes)
    assert not await store.waits_for_review("j1")
