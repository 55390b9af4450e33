"""The audit trail on SQLite and on PostgreSQL: written by many at once, changed by nobody, and when it fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pwd
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.audit import CONDUCTOR, MAX_JSON, Audit, AuditUnavailable, Wanted, moment, operator
from bot.audit_chain import GENESIS, AuditKind, Entry, Link, Unreadable, Verifier
from bot.config import fixed_settings
from bot.database import create_engine
from bot.model import Actor, Job, JobState, Repo
from bot.policy import Decision
from bot.profiles import Profile, keep
from bot.reasons import Reason, all_of, as_data
from bot.redact import MASK, Redactor
from bot.schema import audit_head, jobs
from bot.store import Store
from tests.jobs import asked_job

SECRET = "hunter2-hunter2-hunter2"
ALICE = Actor(login="alice", id=3, type="User")
WIDGETS = Repo(owner="acme", name="widgets", id=10, installation_id=20)
NO = Decision(
    root=all_of("may start", [Reason(question="may the asker write", ok=False, said="You have read access.")])
)


@pytest.fixture
def trail(engine: AsyncEngine) -> Audit:
    return Audit(engine, Redactor([SECRET]))


async def findings(trail: Audit, *anchors: Link) -> Sequence[tuple[str, int]]:
    verifier = Verifier(anchors)
    await trail.verify(verifier)
    return [(str(finding.kind), finding.seq) for finding in verifier.findings]


async def entries(trail: Audit, wanted: Wanted | None = None) -> list[Entry]:
    return [entry async for entry in trail.entries(wanted or Wanted()) if isinstance(entry, Entry)]


async def fill(trail: Audit, count: int = 5) -> None:
    for number in range(count):
        await trail.record(AuditKind.push, actor=CONDUCTOR, details={"n": number})


async def as_owner(engine: AsyncEngine, *statements: str) -> None:
    """What somebody does who owns the tables: takes the triggers away, then changes what they guarded."""
    drop = (
        ["DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete", "DROP TRIGGER audit_no_replace",
         "DROP TRIGGER audit_head_stays", "DROP TRIGGER audit_head_rises"]
        if engine.dialect.name == "sqlite"
        else ["ALTER TABLE audit DISABLE TRIGGER ALL", "ALTER TABLE audit_head DISABLE TRIGGER ALL"]
    )  # fmt: skip
    async with engine.begin() as connection:
        for statement in (*drop, *statements):
            await connection.execute(text(statement))


# --- what is written


async def test_an_entry_says_who_did_what_on_what_and_why(trail: Audit) -> None:
    before = moment(datetime.now(UTC))
    written = await trail.record(
        AuditKind.job_refused,
        actor=ALICE,
        repo=WIDGETS,
        number=7,
        job_id="j1",
        delivery_id="d1",
        sha="a" * 40,
        decision=NO,
        details={"event": "issues.labeled"},
    )
    (entry,) = await entries(trail)
    assert entry == written
    assert before <= entry.at <= moment(datetime.now(UTC))
    assert (entry.seq, entry.kind, entry.actor, entry.actor_id) == (1, "job.refused", "alice", 3)
    assert (entry.repo_id, entry.repo, entry.number) == (10, "acme/widgets", 7)
    assert (entry.job_id, entry.delivery_id, entry.sha) == ("j1", "d1", "a" * 40)
    assert entry.decision == as_data(NO.root)
    assert (entry.details, entry.previous, entry.hash) == (
        {"event": "issues.labeled"},
        GENESIS,
        entry.digest(),
    )
    assert await trail.head() == entry.link


async def test_nothing_secret_goes_in_wherever_it_stands(trail: Audit) -> None:
    token = "ghs_" + "a1B2" * 9
    await trail.record(
        AuditKind.override,
        actor=f"operator:{SECRET}",
        repo=Repo(owner=SECRET, name="r", id=1, installation_id=2),
        job_id=SECRET,
        delivery_id=token,
        sha=SECRET,
        decision=Reason(question=SECRET, ok=True, said=f"because of {token}"),
        details={SECRET: {"deep": [{"er": f"x {token} y"}]}, "value": {SECRET}},
    )
    (entry,) = await entries(trail)
    assert SECRET not in str(entry)
    assert token not in str(entry)
    assert str(entry).count(MASK) == 10


async def test_what_json_or_the_database_cannot_hold_is_written_in_words(trail: Audit) -> None:
    await trail.record(
        AuditKind.job_ended,
        actor="x" * 300,
        sha="no sha at all",
        details={
            "cost": 1e-7,
            "price": 12.5,
            "infinite": float("inf"),
            "huge": 2**60,
            "nul": "a\0b\ud800c",
            "at": datetime(2026, 11, 21, tzinfo=UTC),
            "kind": AuditKind.push,
            "long": "y" * 5000,
            "many": list(range(200)),
            "names": {f"k{number:03}": 1 for number in range(150)},
            7: None,
            "yes": True,
        },
    )
    (entry,) = await entries(trail)
    told = entry.details
    assert (told["cost"], told["price"], told["infinite"]) == ("0.0000001", "12.5", "Infinity")
    assert (told["huge"], told["nul"], told["kind"]) == (str(2**60), "a\ufffdb\ufffdc", "push")
    assert (told["at"], told["7"], told["yes"]) == ("2026-11-21T00:00:00.000000Z", None, True)
    assert told["long"].endswith("… (5000 characters)")
    assert (len(told["many"]), told["many"][-1]) == (101, "… 100 more")
    assert (len(told["names"]), told["names"]["…"]) == (101, "50 more")
    assert (len(entry.actor), entry.sha) == (120, "no sha at all")
    assert await findings(trail) == []


async def test_one_entry_cannot_fill_the_database(trail: Audit) -> None:
    await trail.record(AuditKind.push, actor="a", details={str(n): "z" * 1900 for n in range(90)})
    nested: dict[str, Any] = {}
    for _ in range(50):
        nested = {"x": nested}
    await trail.record(AuditKind.push, actor="a", details=nested)
    first, second = await entries(trail)
    assert first.details["too large"] > MAX_JSON
    assert len(str(first.details)) < MAX_JSON
    assert len(json.dumps(second.details)) < 1000
    assert await findings(trail) == []


def test_the_operator_is_who_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert operator() == f"operator:{pwd.getpwuid(os.getuid()).pw_name}"


async def test_who_starts_a_process_is_written_down_with_the_settings(trail: Audit, tmp_path: Path) -> None:
    settings = fixed_settings(
        data_dir=tmp_path,
        job_timeout=60,
        webhook_secret="canary-of-the-webhook",
        redis_url="redis://:canary-of-redis@localhost:6379/0",
        database_url="postgresql+asyncpg://conductor:canary-of-sql@localhost/conductor",
        providers={"own": {"kind": "openai", "url": "https://llm.test/v1", "keys": ["canary-of-the-llm"]}},
    )
    await trail.started("server", settings)
    (entry,) = await entries(trail)
    assert (entry.kind, entry.actor, entry.details["process"]) == ("process.started", operator(), "server")
    told = entry.details["settings"]
    assert (told["job_timeout"], told["redis_url"][-17:]) == (60, "@localhost:6379/0")
    assert "limit_user" not in told, "only what was set"
    assert "canary" not in str(entry)


# --- many at once


async def test_eight_writers_make_one_chain(database_url: str, engine: AsyncEngine, trail: Audit) -> None:
    engines = [create_engine(database_url) for _ in range(8)]

    async def write(number: int, own: AsyncEngine) -> None:
        writer = Audit(own, Redactor())
        for count in range(15):
            await writer.record(AuditKind.push, actor=f"writer-{number}", details={"count": count})

    try:
        async with asyncio.TaskGroup() as group:
            for number, own in enumerate(engines):
                group.create_task(write(number, own))
    finally:
        for own in engines:
            await own.dispose()
    written = await entries(trail)
    assert [entry.seq for entry in written] == list(range(1, 8 * 15 + 1))
    for number in range(8):
        mine = [entry.details["count"] for entry in written if entry.actor == f"writer-{number}"]
        assert mine == list(range(15)), "each writer's entries are there, once, in order"
    assert await findings(trail) == []


async def test_checking_while_others_write_finds_nothing(database_url: str, trail: Audit) -> None:
    own = create_engine(database_url)
    writing = asyncio.create_task(fill(Audit(own, Redactor()), 40))
    try:
        while not writing.done():
            assert await findings(trail) == []
        await writing
    finally:
        await own.dispose()
    assert len(await entries(trail)) == 40


# --- one transaction with what it tells


async def test_an_entry_goes_with_its_transaction(engine: AsyncEngine, trail: Audit) -> None:
    await fill(trail, 1)
    async with engine.connect() as connection, connection.begin() as transaction:
        assert await trail.record(AuditKind.override, actor="a", connection=connection)
        await transaction.rollback()
    async with engine.begin() as connection:
        await trail.record(AuditKind.merge, actor="a", connection=connection)
    assert [entry.kind for entry in await entries(trail)] == ["push", "merge"]
    assert await findings(trail) == []


def job(number: int = 1, **values: Any) -> Job:
    defaults: dict[str, Any] = {
        "repo": WIDGETS,
        "number": number,
        "agent": "claude",
        "instructions": f"fix it with {SECRET}",
        "title": "t",
        "body": "b",
    }
    return asked_job(f"j{number}", by=ALICE, **(defaults | values))


async def test_a_job_s_life_is_in_the_trail(engine: AsyncEngine, trail: Audit) -> None:
    store = Store(engine, audit=trail)
    yes = all_of(
        "may be done", [Reason(question="may the asker write", ok=True, said="@alice has write access.")]
    )
    profile = keep(Profile(name="reviewer", text="Look closely.", bundled=True))
    assert await store.add_job(job(config={"agent": "claude", **profile}), because=yes)
    assert not await store.add_job(job(), because=yes), "the same trigger again: no second entry"
    claimed = await store.claim_next("host-a")
    assert claimed is not None
    await store.move("j1", JobState.paused, expected=[JobState.running], fence=1, question="Which?")
    await store.answer("j1", "This one.", "alice", event="d9/0", actor=ALICE)
    assert await store.answer("j1", "No, that one.", "bob", event="d10/0") is None
    end: dict[str, Any] = {"message": f"no {SECRET}", "cost": 0.125, "head_sha": "b" * 40}
    await store.move("j1", JobState.failed, expected=[JobState.paused], fence=1, **end)
    assert await store.move("j1", JobState.lost, expected=[JobState.running], fence=1) is None
    accepted, answered, ended = await entries(trail)
    assert (accepted.kind, accepted.actor_id, accepted.delivery_id) == ("job.accepted", 3, "d-j1")
    assert accepted.decision == as_data(yes)
    assert accepted.details["asked"] == f"fix it with {MASK}"
    assert accepted.details["config"] == {"agent": "claude"}
    assert accepted.details["profile"] == {
        "name": "reviewer", "bundled": True, "asked": False,
        "sha256": hashlib.sha256(b"Look closely.").hexdigest(),
    }  # fmt: skip
    assert (answered.kind, answered.actor_id, answered.delivery_id) == ("job.answered", 3, "d9")
    assert answered.details == {"question": "Which?", "answer": "This one."}
    assert (ended.kind, ended.actor, ended.sha) == ("job.ended", CONDUCTOR, "b" * 40)
    assert (ended.details["state"], ended.details["usage"]["cost"]) == ("failed", "0.125")
    assert ended.details["message"] == f"no {MASK}"
    assert await findings(trail) == []


async def test_a_job_that_nobody_began_ends_in_the_trail_too(engine: AsyncEngine, trail: Audit) -> None:
    store = Store(engine, audit=trail)
    await store.add_job(job())
    await store.request_cancel("j1", "bob")
    await store.cancel_unowned("j1")
    ended = (await entries(trail))[-1]
    assert (ended.details["state"], ended.details["cancelled_by"]) == ("cancelled", "bob")
    assert float(ended.details["usage"]["cost"]) == 0


# --- when it cannot be written


async def break_it(engine: AsyncEngine) -> None:
    """The way in which a trail breaks that the database still answers for."""
    await as_owner(engine, "DELETE FROM audit_head")


async def test_what_must_be_written_is_not_done_without(engine: AsyncEngine, trail: Audit) -> None:
    await break_it(engine)
    with pytest.raises(AuditUnavailable, match=r"not done \(push\).*audit_head is gone") as told:
        await trail.record(AuditKind.push, actor=CONDUCTOR)
    assert "database" in told.value.hint
    store = Store(engine, audit=trail)
    with pytest.raises(AuditUnavailable):
        await store.add_job(job())
    assert await store.job("j1") is None, "nothing was accepted that is not in the trail"


async def test_what_need_not_goes_on_and_the_log_has_it(
    engine: AsyncEngine, trail: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(engine, audit=trail)
    await store.add_job(job())
    await break_it(engine)
    assert await trail.record(AuditKind.job_refused, actor=ALICE, details={"key": SECRET}) is None
    assert await store.cancel_unowned("j1") is not None, "a job ends all the same"
    async with engine.connect() as connection:
        assert (await connection.execute(select(jobs.c.state))).scalar_one() == "cancelled"
    told = capsys.readouterr().out
    assert told.count("not in the audit trail") == 2
    assert "job.refused" in told
    assert "job.ended" in told
    assert SECRET not in told


async def test_a_database_that_is_gone(tmp_path: Any) -> None:
    nowhere = Audit(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"), Redactor())
    with pytest.raises(AuditUnavailable, match="no such table"):
        await nowhere.record(AuditKind.token_minted, actor=CONDUCTOR)
    assert await nowhere.record(AuditKind.job_cancelled, actor=ALICE) is None
    await nowhere._engine.dispose()


# --- nobody changes it


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'mallory' WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
        "INSERT INTO audit SELECT * FROM audit WHERE seq = 3 ON CONFLICT (seq) DO UPDATE SET actor = 'mallory'",
        "TRUNCATE audit",
        "TRUNCATE audit_head",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET seq = 2",
        "UPDATE audit_head SET id = 2",
    ],
)
async def test_the_database_refuses_to_change_it(engine: AsyncEngine, trail: Audit, statement: str) -> None:
    await fill(trail)
    with pytest.raises(DBAPIError):
        async with engine.begin() as connection:
            await connection.execute(text(statement))
    assert len(await entries(trail)) == 5
    assert await findings(trail) == []


COPY = """
INSERT INTO audit SELECT 6, at, kind, actor, actor_id, repo_id, repo, number, job_id, delivery_id, sha,
decision, details, previous, hash FROM audit WHERE seq = 1
"""


@pytest.mark.parametrize(
    ("statements", "wanted"),
    [
        (["UPDATE audit SET actor = 'mallory' WHERE seq = 3"], [("changed", 3)]),
        (["UPDATE audit SET at = '2020' WHERE seq = 3"], [("changed", 3)]),
        (["UPDATE audit SET details = '{}' WHERE seq = 3"], [("changed", 3)]),
        (["UPDATE audit SET details = '{\"n\": 2}' WHERE seq = 3"], [("changed", 3)]),
        (["UPDATE audit SET details = 'no json' WHERE seq = 3"], [("changed", 3)]),
        (["UPDATE audit SET decision = 'null' WHERE seq = 3"], []),  # the same as none
        (["DELETE FROM audit WHERE seq = 3"], [("missing", 3)]),
        (["DELETE FROM audit WHERE seq < 3"], [("missing", 1)]),
        (["DELETE FROM audit WHERE seq > 3"], [("cut", 4)]),
        (["DELETE FROM audit"], [("cut", 1)]),
        (["DELETE FROM audit_head"], [("cut", 6)]),
        # two entries change their places
        (
            [
                "UPDATE audit SET seq = 99 WHERE seq = 2",
                "UPDATE audit SET seq = 2 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 99",
            ],
            [("changed", 2), ("replaced", 1), ("changed", 3), ("replaced", 2), ("replaced", 3)],
        ),
        # a copy at the end
        (
            [COPY],
            [("changed", 6), ("replaced", 5), ("inserted", 6)],
        ),
    ],
)
async def test_an_owner_who_changes_it_is_found_out(
    engine: AsyncEngine, trail: Audit, statements: list[str], wanted: list[tuple[str, int]]
) -> None:
    await fill(trail)
    await as_owner(engine, *statements)
    assert await findings(trail) == wanted


async def test_an_owner_who_cuts_end_and_head_is_found_out_by_a_link_that_was_noted(
    engine: AsyncEngine, trail: Audit
) -> None:
    await fill(trail)
    noted = await trail.head()
    third = (await entries(trail))[2]
    await as_owner(
        engine, "DELETE FROM audit WHERE seq > 3", f"UPDATE audit_head SET seq = 3, hash = '{third.hash}'"
    )
    assert await findings(trail) == [], "the limit that the manual tells"
    assert await findings(trail, noted) == [("cut", 5)]
    await fill(trail, 4)  # and the chain went on since
    assert await findings(trail, noted) == [("anchor", 5)]


async def test_unreadable_rows_hide_no_others(engine: AsyncEngine, trail: Audit) -> None:
    await fill(trail)
    await as_owner(engine, "UPDATE audit SET decision = '{' WHERE seq = 2", "DELETE FROM audit WHERE seq = 4")
    assert await findings(trail) == [("changed", 2), ("missing", 4)]
    found = await trail.newest(Wanted(), 10)
    assert [type(entry) for entry in found] == [Entry, Unreadable, Entry, Entry]


# --- reading


@pytest.fixture
async def varied(trail: Audit) -> Audit:
    other = Repo(owner="acme", name="gadgets", id=11, installation_id=20)
    await trail.record(AuditKind.job_refused, actor=ALICE, repo=WIDGETS, number=1, delivery_id="d1")
    await trail.record(AuditKind.job_refused, actor="bob", repo=WIDGETS, number=2, job_id="j2")
    await trail.record(AuditKind.push, actor=CONDUCTOR, repo=other, number=1, job_id="j2")
    await trail.record(AuditKind.merge, actor=ALICE, repo=other, number=1, job_id="j3")
    return trail


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [1, 2, 3, 4]),
        (Wanted(repo="acme/widgets"), [1, 2]),
        (Wanted(repo="acme/gadgets", number=1), [3, 4]),
        (Wanted(kinds=["push", "merge"]), [3, 4]),
        (Wanted(actor="alice"), [1, 4]),
        (Wanted(actor="alice", kinds=["merge"]), [4]),
        (Wanted(job_id="j2"), [2, 3]),
        (Wanted(delivery_id="d1"), [1]),
        (Wanted(since=datetime.now(UTC) + timedelta(days=1)), []),
        (Wanted(until=datetime(2020, 1, 1, tzinfo=UTC)), []),
        (Wanted(since=datetime(2020, 1, 1, tzinfo=UTC)), [1, 2, 3, 4]),
    ],
)
async def test_only_what_is_wanted(varied: Audit, wanted: Wanted, found: list[int]) -> None:
    assert [entry.seq for entry in await entries(varied, wanted)] == found
    assert [entry.seq for entry in await varied.newest(wanted, 2)] == found[-2:]


async def test_more_than_a_page(engine: AsyncEngine, trail: Audit) -> None:
    async with engine.begin() as connection:
        for number in range(1203):
            await trail.record(AuditKind.push, actor=CONDUCTOR, details={"n": number}, connection=connection)
    assert [entry.details["n"] for entry in await entries(trail)] == list(range(1203))
    verifier = Verifier()
    await trail.verify(verifier)
    assert (verifier.count, list(verifier.findings)) == (1203, [])
    async with engine.connect() as connection:
        head = (await connection.execute(select(audit_head.c.seq))).scalar_one()
    assert head == 1203


async def test_moments_sort_as_texts(trail: Audit) -> None:
    early = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert moment(early) == "2026-01-02T03:04:05.000006Z"
    assert moment(early) < moment(early + timedelta(microseconds=1)) < moment(early + timedelta(hours=10))
