"""What the bot missed, found in the sandbox GitHub's log and repositories, with a real inbox and a real Redis."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.catching_up import CURSOR, CatchingUp, Wanted
from bot.cursors import Cursors
from bot.delivery_log import DeliveryLog
from bot.events import parse_event
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_transport import Patience
from bot.inbox import Delivery, Inbox, State
from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger
from bot.redact import Redactor
from bot.report import Reporter
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.schema import deliveries
from bot.slash import parse_commands
from bot.store import Store
from bot.unanswered import Unanswered
from handlers.labels import agent_in

REPO = "acme/hello"
NOBODY = "http://127.0.0.1:9/webhook"
WANTED = {
    "issues": frozenset({"labeled", "closed"}),
    "issue_comment": frozenset({"created"}),
    "pull_request": frozenset({"labeled"}),
    "pull_request_review": frozenset({"submitted"}),
    "pull_request_review_comment": frozenset({"created"}),
}
ONE = re.compile(r"GET /app/hook/deliveries/\d+")


@dataclasses.dataclass
class Clock:
    """The time of day, for the sandbox and for us."""

    now: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now


class Counting(httpx.AsyncHTTPTransport):
    """The real transport, with a list of what was asked, and answers of another shape by path."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.odd: dict[str, Any] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if request.url.path in self.odd:
            return httpx.Response(200, json=self.odd[request.url.path])
        return await super().handle_async_request(request)


@dataclasses.dataclass
class Bot:
    """What of a server catches up."""

    catching_up: CatchingUp
    inbox: Inbox
    transport: Counting
    taken: list[str]

    def asked(self, pattern: re.Pattern[str]) -> list[str]:
        return [line for line in self.transport.asked if pattern.fullmatch(line)]

    async def all(self) -> list[str]:
        """Catch up to the end; ids of what was taken up by now."""
        while await self.catching_up.once():
            pass
        return self.taken


class Town:
    """A sandbox whose App's address refuses, a database, and as many servers as a test wants."""

    def __init__(self, github: Sandbox, engine: AsyncEngine, clock: Clock) -> None:
        self.github = github
        self.engine = engine
        self.clock = clock
        self.store = Store(engine)
        self._stack = contextlib.AsyncExitStack()

    async def bot(self, *, wanted: Wanted = WANTED, **values: Any) -> Bot:
        transport = Counting()
        github = await self._stack.enter_async_context(
            GitHub(
                self.github.url,
                str(self.github.app_id),
                self.github.private_key_path.read_text(),
                transport=transport,
                patience=Patience(tries=2, backoff=0, limit_wait_max=0, limit_wait_unknown=1),
                write_spacing=0,
                clock=lambda: self.clock().timestamp(),
            )
        )
        inbox = Inbox(self.engine)
        self._stack.push_async_callback(inbox.aclose)
        taken: list[str] = []
        catching_up = CatchingUp(
            delivery_log=DeliveryLog(github),
            unanswered=Unanswered(
                github=github,
                facts=FactFinder(github),
                store=self.store,
                inbox=inbox,
                wanted=wanted,
                is_label=lambda name: agent_in(name)[0],
                is_command=lambda text: bool(parse_commands(text)),
            ),
            inbox=inbox,
            cursors=Cursors(self.engine),
            locks=self.store.locks,
            reporter=Reporter(github, self.store, Redactor()),
            wanted=wanted,
            **(
                {
                    "take": lambda delivery_id, _subject: taken.append(delivery_id),
                    "after_failure": 0,
                    "clock": self.clock,
                }
                | values
            ),
        )
        return Bot(catching_up, inbox, transport, taken)

    async def last_looked(self, at: datetime) -> None:
        position = {"newest": at.isoformat(), "looked": at.isoformat()}
        await Cursors(self.engine).set(CURSOR, orjson.dumps(position).decode())

    async def stored(self) -> list[Delivery]:
        async with self.engine.connect() as connection:
            ids = (await connection.execute(select(deliveries.c.id))).scalars().all()
        inbox = Inbox(self.engine)
        await inbox.claim(await inbox.pending())
        found = [await inbox.get(delivery_id) for delivery_id in ids]
        await inbox.aclose()
        return sorted((one for one in found if one), key=lambda one: one.received_at)

    def guids(self, event: str, action: str) -> list[str]:
        """Of the deliveries that GitHub made so far, oldest first."""
        return [
            one.guid for one in reversed(self.github.deliveries) if (one.event, one.action) == (event, action)
        ]

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def town(engine: AsyncEngine, tmp_path: Path) -> AsyncIterator[Town]:
    clock = Clock()
    async with Sandbox.start(state_dir=tmp_path / "github", webhook_url=NOBODY, clock=clock) as github:
        town = Town(github, engine, clock)
        yield town
        await town.aclose()
        await github.deliveries_settled()
        assert [str(problem) for problem in github.problems] == []


@contextlib.asynccontextmanager
async def listening(status: int) -> AsyncIterator[tuple[str, list[str]]]:
    """An address that answers ``status``, and the ids of the deliveries that came."""
    got: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        got.append(request.headers["X-GitHub-Delivery"])
        return web.Response(status=status)

    application = web.Application()
    application.router.add_post("/webhook", receive)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/webhook", got
    await runner.cleanup()


async def labelled_issue(town: Town, *, by: str = "maria", opened_by: str = "maria") -> int:
    number = (await town.github.as_user(opened_by).open_issue(REPO, "Hello", "Say hello"))["number"]
    await town.github.as_user(by).add_label(REPO, number, "agent")
    await town.github.deliveries_settled()
    return int(number)


# --- the log


async def test_what_nobody_received_is_taken_up_oldest_first_and_nothing_else_is_read(town: Town) -> None:
    number = await labelled_issue(town)
    maria = town.github.as_user("maria")
    await maria.comment(REPO, number, "/agent status")
    await maria.remove_label(REPO, number, "agent")
    await town.github.deliveries_settled()
    bot = await town.bot()
    wanted = town.guids("issues", "labeled") + town.guids("issue_comment", "created")
    assert await bot.all() == wanted
    # opened, label.created and unlabeled are nobody's business here
    assert len(bot.asked(ONE)) == 2
    assert len(town.github.deliveries) > 2
    first, second = await town.stored()
    assert (first.event, first.action, first.installation_id) == (
        "issues",
        "labeled",
        town.github.installation_id,
    )
    assert first.subject == second.subject == f"{town.github.world.repository('acme', 'hello').id}-{number}"
    sent = next(one for one in town.github.deliveries if one.guid == first.id)
    assert first.payload() == orjson.loads(orjson.dumps(sent.payload))


async def test_beginning_again_changes_nothing(town: Town) -> None:
    await labelled_issue(town)
    bot = await town.bot()
    assert len(await bot.all()) == 1
    again = await town.bot()
    assert await again.all() == []
    assert len(again.asked(re.compile("GET /app/hook/deliveries"))) == 1
    assert again.asked(ONE) == []
    assert await bot.all() == bot.taken[:1]  # and it is not yet time for another look
    assert len(bot.asked(re.compile("GET /app/hook/deliveries"))) == 1


@pytest.mark.parametrize(("status", "missed"), [(202, False), (200, True), (503, True), (401, True)])
async def test_only_our_own_receipt_counts(town: Town, status: int, missed: bool) -> None:
    """202 is what our server says. A proxy in its place may say that all is well."""
    async with listening(status) as (url, got):
        town.github.webhook_url = url
        await labelled_issue(town)
    bot = await town.bot()
    guids = town.guids("issues", "labeled")
    assert guids[0] in got
    assert await bot.all() == (guids if missed else [])


async def test_what_was_received_at_the_second_attempt_was_received(town: Town) -> None:
    await labelled_issue(town)
    missed = next(one for one in town.github.deliveries if one.action == "labeled")
    async with listening(202) as (url, _):
        town.github.webhook_url = url
        town.github.redeliver(missed)
        await town.github.deliveries_settled()
    assert await (await town.bot()).all() == []


@pytest.mark.parametrize("state", list(State))
async def test_what_the_inbox_knows_is_not_read(town: Town, state: State) -> None:
    """Its answer may have been lost on the way, and it failed or still waits."""
    await labelled_issue(town)
    bot = await town.bot()
    (guid,) = town.guids("issues", "labeled")
    await bot.inbox.put(Delivery.of(guid, "issues", {"action": "labeled"}, b'{"action":"labeled"}'))
    if state is State.done:
        await bot.inbox.done(guid)
    elif state is State.failed:
        await bot.inbox.failed(guid, "no")
    assert await bot.all() == []
    assert bot.asked(ONE) == []
    assert await bot.inbox.state(guid) is state


async def test_what_was_given_up_is_tried_again_after_an_hour_until_it_is_as_old_as_the_log(
    town: Town,
) -> None:
    """Also by a server that was started since, and by none while GitHub is away."""
    start = town.clock.now
    bot = await town.bot()
    await bot.inbox.put(Delivery.of("given-up", "issues", {"action": "labeled"}, b'{"action":"labeled"}'))
    for hours, away, taken in (
        (0.9, False, 0),
        (1.1, True, 0),
        (1.2, False, 1),
        (71, False, 1),
        (73, False, 0),
    ):
        await bot.inbox.failed("given-up", "GitHub is away")
        town.clock.now = start + timedelta(hours=hours)
        bot = await town.bot()
        if away:
            town.github.faults.add(Fault(method="GET", path="/app/hook/deliveries", status=503, times=2))
        assert await bot.all() == ["given-up"] * taken
        assert (await bot.inbox.get("given-up") is not None) is bool(taken)


@pytest.mark.parametrize("fault", [Fault(status=404, times=None), Fault(status=500, times=None)])
async def test_what_cannot_be_read_is_asked_for_again(town: Town, fault: Fault) -> None:
    await labelled_issue(town)
    (guid,) = town.guids("issues", "labeled")
    bot = await town.bot()
    town.github.faults.add(dataclasses.replace(fault, method="GET", path=r"/app/hook/deliveries/\d+"))
    async with listening(202) as (url, got):
        town.github.webhook_url = url
        assert await bot.all() == []
        await town.github.deliveries_settled()
    assert got == [guid]  # under its own id, so that it counts once
    assert len(bot.asked(re.compile(r"POST /app/hook/deliveries/\d+/attempts"))) == 1


async def test_a_log_without_payloads_is_asked_for_them(town: Town) -> None:
    await labelled_issue(town)
    (guid,) = town.guids("issues", "labeled")
    bot = await town.bot()
    town.github.faults.add(Fault(method="POST", path="/attempts", status=404))
    town.github.faults.add(Fault(method="GET", path=r"/app/hook/deliveries/\d+", status=404))
    assert await bot.all() == []  # it is lost, said so in the log, and does not hold up the rest
    assert await Cursors(town.engine).get(CURSOR) is not None
    assert await bot.inbox.state(guid) is None


@pytest.mark.parametrize("what", ["app", "installation", "delivery", "event", "action"])
async def test_what_is_not_ours_is_refused(town: Town, what: str) -> None:
    await labelled_issue(town)
    await labelled_issue(town)
    odd, good = (one for one in reversed(town.github.deliveries) if one.action == "labeled")
    match what:
        case "app":
            odd.request_headers["X-GitHub-Hook-Installation-Target-ID"] = "4711"
        case "installation":
            odd.payload = odd.payload | {"installation": {"id": 4711, "node_id": "x"}}
        case "delivery":
            odd.request_headers["X-GitHub-Delivery"] = good.guid
        case "event":
            odd.request_headers["X-GitHub-Event"] = "issue_comment"
        case _:
            odd.payload = odd.payload | {"action": "unlabeled"}
    bot = await town.bot()
    assert await bot.all() == [good.guid]
    assert await bot.inbox.state(odd.guid) is None


async def test_only_what_is_newer_than_the_last_look_is_read(town: Town) -> None:
    start = town.clock.now
    await labelled_issue(town)
    town.clock.now = start + timedelta(hours=2)
    await labelled_issue(town)
    old, new = town.guids("issues", "labeled")
    await town.last_looked(start + timedelta(hours=1))
    assert await (await town.bot()).all() == [new]
    await town.last_looked(start + timedelta(minutes=5))  # what was under way then is looked at again
    assert await (await town.bot()).all() == [old]


async def test_a_github_that_dies_on_the_way_costs_nothing(town: Town) -> None:
    for _ in range(4):
        await labelled_issue(town)
    guids = town.guids("issues", "labeled")
    bot = await town.bot(round_seconds=0)
    while len(bot.taken) < 2:
        await bot.catching_up.once()
    town.github.faults.add(Fault(drop="before", times=None))
    assert not await bot.catching_up.once()
    assert await Cursors(town.engine).get(CURSOR) is None
    town.github.faults.clear()
    assert await bot.all() == guids  # each once, in their order
    assert len(bot.asked(ONE)) <= 6


async def test_a_surprise_does_not_end_it(town: Town) -> None:
    await labelled_issue(town)
    bot = await town.bot()
    async with town.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE cursors RENAME TO gone")
    assert not await bot.catching_up.once()
    async with town.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE gone RENAME TO cursors")
    await Cursors(town.engine).set(CURSOR, "no position at all")
    assert await bot.all() == town.guids("issues", "labeled")


async def test_a_bug_does_not_end_it(town: Town) -> None:
    await labelled_issue(town)
    await labelled_issue(town)
    guids = town.guids("issues", "labeled")
    taken: list[str] = []

    def stumbles(delivery_id: str, _subject: str | None) -> None:
        taken.append(delivery_id)
        if len(taken) == 1:
            raise RuntimeError("a bug")

    bot = await town.bot(take=stumbles)
    assert not await bot.catching_up.once()
    await bot.all()
    assert taken == guids
    assert await Cursors(town.engine).get(CURSOR) is not None


@pytest.mark.parametrize("entry", [{}, {"id": "x"}, 7, {"guid": "../x", "id": 1, "event": "issues"}])
async def test_an_entry_that_makes_no_sense_is_left_out(town: Town, entry: Any) -> None:
    bot = await town.bot()
    odd = {"delivered_at": "2026-11-21T00:00:00Z", "action": "labeled"}
    bot.transport.odd["/app/hook/deliveries"] = [odd | entry if isinstance(entry, dict) else entry]
    assert await bot.all() == []
    assert bot.asked(ONE) == []


async def test_more_than_is_taken_up_at_once_follows(town: Town) -> None:
    for _ in range(5):
        await labelled_issue(town)
    guids = town.guids("issues", "labeled")
    bot = await town.bot(at_once=2)
    assert await bot.all() == guids[:2]
    assert await Cursors(town.engine).get(CURSOR) is None  # so that the next reading goes on
    assert await bot.all() == guids[:4]
    assert await bot.all() == guids
    assert await Cursors(town.engine).get(CURSOR) is not None


async def test_a_clock_that_is_wrong_hides_nothing(town: Town) -> None:
    """The position is by GitHub's clock: a server that is an hour ahead must not skip an hour."""
    fast = lambda: town.clock() + timedelta(hours=1)  # noqa: E731
    await labelled_issue(town)
    assert len(await (await town.bot(clock=fast)).all()) == 1
    town.clock.now += timedelta(minutes=20)
    await labelled_issue(town)
    assert await (await town.bot(clock=fast)).all() == town.guids("issues", "labeled")[1:]


async def test_a_rate_limit_is_waited_for(town: Town) -> None:
    await labelled_issue(town)
    bot = await town.bot()
    town.github.rate_limit.limit = 0
    assert not await bot.catching_up.once()
    town.github.rate_limit.limit = 5000
    before = len(bot.transport.asked)
    assert not await bot.catching_up.once()  # the hour is not over
    assert len(bot.transport.asked) == before
    assert bot.taken == []


async def test_two_servers_that_take_turns_take_up_each_once(town: Town) -> None:
    for _ in range(5):
        await labelled_issue(town)
    guids = town.guids("issues", "labeled")
    bots = [await town.bot(round_seconds=0) for _ in range(2)]
    going = True
    while going:
        going = any([await bot.catching_up.once() for bot in bots])
    assert sorted(bots[0].taken + bots[1].taken) == sorted(guids)
    assert [one.id for one in await town.stored()] == guids


async def test_while_another_server_is_at_it_nothing_is_done(town: Town) -> None:
    await labelled_issue(town)
    bot = await town.bot()
    async with town.store.locks.hold("catching-up"):
        assert not await bot.catching_up.once()
        assert bot.transport.asked == []
    assert len(await bot.all()) == 1


async def test_a_long_log_is_read_over_many_pages(town: Town) -> None:
    number = await labelled_issue(town)
    template = town.github.deliveries[0]
    unwanted = [
        dataclasses.replace(
            template, id=town.github.world.next_id(), guid=f"u{index}", event="push", action=None
        )
        for index in range(350)
    ]
    town.github.world.deliveries[:0] = reversed(unwanted)
    bot = await town.bot()
    assert await bot.all() == town.guids("issues", "labeled")
    assert len(bot.asked(re.compile("GET /app/hook/deliveries"))) == 4
    assert number


# --- beyond the log


@pytest.fixture
async def gap(town: Town) -> Town:
    """The bot was last seen six days ago; what happens now is five days old when it comes back."""
    now = town.clock.now
    town.github.world.installations[town.github.installation_id].created_at = now - timedelta(days=90)
    await town.last_looked(now - timedelta(days=6))
    town.clock.now = now - timedelta(days=5)
    return town


def back(town: Town) -> None:
    town.clock.now = town.clock.now + timedelta(days=5)


async def a_pull(town: Town) -> int:
    maria = town.github.as_user("maria")
    await maria.push_commit(REPO, "feature", {"new.txt": "one\ntwo\n"})
    return int((await maria.open_pull(REPO, "feature", "A change"))["number"])


async def test_labels_commands_and_reviews_of_a_longer_gap_are_found(gap: Town) -> None:
    number = await labelled_issue(gap)
    pull = await a_pull(gap)
    maria, octocat = gap.github.as_user("maria"), gap.github.as_user("octocat")
    gap.clock.now += timedelta(minutes=1)
    await maria.add_label(REPO, pull, "agent:claude")
    gap.clock.now += timedelta(minutes=1)
    comment = await maria.comment(REPO, number, "/agent status")
    gap.clock.now += timedelta(minutes=1)
    review = await octocat.review(
        REPO,
        pull,
        "REQUEST_CHANGES",
        "No",
        comments=[{"path": "new.txt", "line": 1, "body": "/agent fix this"}],
    )
    await maria.comment(REPO, number, "just talking")
    gap.clock.now -= timedelta(minutes=3)
    back(gap)
    bot = await gap.bot()
    taken = await bot.all()
    stored = {one.id: one for one in await gap.stored()}
    assert list(stored) == taken
    kinds = [(stored[key].event, stored[key].action) for key in taken]
    assert kinds == [
        ("issues", "labeled"),
        ("pull_request", "labeled"),
        ("issue_comment", "created"),
        ("pull_request_review_comment", "created"),
        ("pull_request_review", "submitted"),
    ]
    payloads = [stored[key].payload() for key in taken]
    assert payloads[0]["label"]["name"] == "agent"
    assert payloads[0]["sender"]["login"] == "maria"
    assert payloads[1]["pull_request"]["head"]["ref"] == "feature"
    assert payloads[2]["comment"]["id"] == comment["id"]
    assert payloads[2]["issue"]["number"] == number
    assert payloads[4]["review"]["id"] == review["id"]
    assert payloads[4]["review"]["state"] == "changes_requested"
    # the shape of GitHub's own webhooks
    for key in taken:
        payload = stored[key].payload()
        ours = gap.github._github.description.check_webhook(stored[key].event, payload)
        assert not [problem for problem in ours if "required" not in problem.message], (key, ours)
    again = await gap.bot()
    assert await again.all() == []


async def test_a_command_in_what_was_opened_in_a_longer_gap_is_found(gap: Town) -> None:
    opened = frozenset({"opened"})
    wanted = WANTED | {"issues": WANTED["issues"] | opened, "pull_request": WANTED["pull_request"] | opened}
    maria = gap.github.as_user("maria")
    issue = await maria.open_issue(REPO, "Hello", "/agent say hello")
    await maria.push_commit(REPO, "feature", {"new.txt": "one\n"})
    gap.clock.now += timedelta(minutes=1)
    pull = await maria.open_pull(REPO, "feature", "A change", "/agent ask is it good?")
    await maria.open_issue(REPO, "Other", "just words")
    gap.clock.now -= timedelta(minutes=1)
    back(gap)
    taken = await (await gap.bot(wanted=wanted)).all()
    stored = {one.id: one for one in await gap.stored()}
    assert [(stored[key].event, stored[key].action) for key in taken] == [
        ("issues", "opened"),
        ("pull_request", "opened"),
    ]
    for key, number in zip(taken, (issue["number"], pull["number"]), strict=True):
        payload = stored[key].payload()
        found = gap.github._github.description.check_webhook(stored[key].event, payload)
        assert not [problem for problem in found if "required" not in problem.message], (key, found)
        event = parse_event(key, stored[key].event, payload)
        assert event.number == number
        assert event.opened_by is not None
        assert event.opened_by.login == "maria"
    await gap.last_looked(gap.clock.now - timedelta(days=6))
    assert await (await gap.bot(wanted=wanted)).all() == []  # nor once more


async def test_a_delivery_without_an_action_is_taken_up(town: Town) -> None:
    maria = town.github.as_user("maria")
    sha = await maria.push_commit(REPO, "feature", {"new.txt": "one\n"})
    await town.github.as_app("ci").status(REPO, sha, "failure")
    await town.github.deliveries_settled()
    bot = await town.bot(wanted={"status": frozenset({""})})
    (taken,) = await bot.all()
    (stored,) = await town.stored()
    assert (stored.id, stored.event, stored.action) == (taken, "status", None)


async def test_more_than_is_taken_up_at_once_follows_from_repositories_too(gap: Town) -> None:
    for _ in range(3):
        await labelled_issue(gap)
        gap.clock.now += timedelta(minutes=1)
    gap.clock.now -= timedelta(minutes=3)
    back(gap)
    bot = await gap.bot(at_once=2)
    assert len(await bot.all()) == 2
    assert len(await (await gap.bot(at_once=2)).all()) == 1
    assert await (await gap.bot(at_once=2)).all() == []


async def test_it_is_found_once_although_the_position_was_lost(gap: Town) -> None:
    number = await labelled_issue(gap)
    await gap.github.as_user("maria").comment(REPO, number, "/agent status")
    back(gap)
    assert len(await (await gap.bot()).all()) == 2
    await gap.last_looked(gap.clock.now - timedelta(days=6))
    assert await (await gap.bot()).all() == []


async def test_what_the_log_holds_is_not_searched_for(gap: Town) -> None:
    await labelled_issue(gap)
    gap.clock.now += timedelta(days=3)
    await labelled_issue(gap)
    gap.clock.now -= timedelta(days=3)
    back(gap)
    first, second = await (await gap.bot()).all()
    assert first.startswith("gap-label-")
    assert second == gap.guids("issues", "labeled")[1]


async def test_the_older_comes_first_also_across_the_two_ways(gap: Town) -> None:
    number = await labelled_issue(gap)
    gap.clock.now += timedelta(days=3)
    await gap.github.as_user("maria").comment(REPO, number, "/agent cancel")
    await gap.github.deliveries_settled()
    gap.clock.now -= timedelta(days=3)
    back(gap)
    label, cancel = await (await gap.bot()).all()
    assert label.startswith("gap-label-")
    assert cancel in gap.guids("issue_comment", "created")


async def test_a_quiet_week_with_the_bot_there_is_no_gap(gap: Town) -> None:
    await labelled_issue(gap)
    back(gap)
    await gap.last_looked(gap.clock.now - timedelta(minutes=5))
    bot = await gap.bot()
    assert await bot.all() == []
    assert bot.asked(re.compile("GET /app/installations")) == []


async def a_job(town: Town, number: int, trigger: Trigger) -> None:
    repository = town.github.world.repository("acme", "hello")
    assert repository is not None
    job = Job(
        id="j-known",
        repo=Repo(owner="acme", name="hello", id=repository.id, installation_id=town.github.installation_id),
        number=number,
        target=TargetKind.issue,
        trigger=trigger,
        agent="shell",
        model=None,
        instructions="",
        title="",
        body="",
        timeout=60,
        base=None,
        retry_of=None,
        state=JobState.queued,
        created_at=town.clock.now,
    )
    assert await town.store.add_job(job)


@pytest.mark.parametrize("by", ["label", "comment"])
async def test_what_has_a_job_is_not_found(gap: Town, by: str) -> None:
    maria = gap.github.as_user("maria")
    number = (await maria.open_issue(REPO, "Hello"))["number"]
    actor = Actor(login="maria", id=gap.github.world.users["maria"].id, type="User")
    if by == "label":
        await maria.add_label(REPO, number, "agent")
        await a_job(gap, number, Trigger(delivery_id="d1", event="issues.labeled", actor=actor))
    else:
        comment = (await maria.comment(REPO, number, "/agent go"))["id"]
        trigger = Trigger(delivery_id="d1", event="issue_comment.created", actor=actor, comment_id=comment)
        await a_job(gap, number, trigger)
    back(gap)
    assert await (await gap.bot()).all() == []


async def test_what_a_delivery_told_of_is_not_found(gap: Town) -> None:
    number = await labelled_issue(gap)
    await gap.github.as_user("maria").comment(REPO, number, "/agent status")
    await gap.github.deliveries_settled()
    bot = await gap.bot()
    for one in gap.github.deliveries:
        if one.action in ("labeled", "created") and one.event in ("issues", "issue_comment"):
            body = orjson.dumps(one.payload)
            await bot.inbox.put(Delivery.of(one.guid, one.event, orjson.loads(body), body))
    back(gap)
    assert await bot.all() == []


async def test_the_same_label_set_again_is_found(gap: Town) -> None:
    number = await labelled_issue(gap)
    bot = await gap.bot()
    labelled = next(one for one in gap.github.deliveries if one.action == "labeled")
    body = orjson.dumps(labelled.payload)
    await bot.inbox.put(Delivery.of(labelled.guid, "issues", orjson.loads(body), body))
    maria = gap.github.as_user("maria")
    await maria.remove_label(REPO, number, "agent")
    gap.clock.now += timedelta(hours=1)
    await maria.add_label(REPO, number, "agent")
    gap.clock.now -= timedelta(hours=1)
    back(gap)
    assert len(await bot.all()) == 1


async def our_comment(town: Town, number: int, body: str = "Working on it.") -> str:
    """The bot says something; returns the path of its comment."""
    client = (await town.bot()).catching_up._reporter._github.installation(town.github.installation_id)
    made = await client.post(f"/repos/{REPO}/issues/{number}/comments", data={"body": body})
    return f"/repos/{REPO}/issues/comments/{made['id']}"


@pytest.mark.parametrize("answer", ["none", "before", "after", "edited after"])
@pytest.mark.parametrize("memory", ["none", "just before", "hours before"])
async def test_our_own_comments_say_what_was_served_when_we_may_have_been_there(
    gap: Town, answer: str, memory: str
) -> None:
    """A command that a server carried out whose database is lost, or whose deliveries were pruned since."""
    maria = gap.github.as_user("maria")
    start = gap.clock.now
    number = (await maria.open_issue(REPO, "Hello"))["number"]
    path = "" if answer in ("none", "after") else await our_comment(gap, number)
    gap.clock.now += timedelta(minutes=1)
    await maria.comment(REPO, number, "/agent resume yes, go on")
    asked = gap.clock.now
    gap.clock.now += timedelta(minutes=1)
    if answer == "after":
        await our_comment(gap, number)
    elif answer == "edited after":
        client = (await gap.bot()).catching_up._reporter._github.installation(gap.github.installation_id)
        await client.patch(path, data={"body": "Done."})
    gap.clock.now = start
    back(gap)
    if memory == "none":
        async with gap.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM cursors")
    else:
        await gap.last_looked(asked - timedelta(minutes=5 if memory == "just before" else 300))
    served = answer in ("after", "edited after") and memory != "hours before"
    found = [one for one in await (await gap.bot()).all() if one.startswith("gap-")]
    assert len(found) == (0 if served else 1)


async def test_what_is_older_than_the_installation_was_not_meant_for_us(gap: Town) -> None:
    await labelled_issue(gap)
    installed = gap.clock.now + timedelta(hours=1)
    gap.github.world.installations[gap.github.installation_id].created_at = installed
    back(gap)
    assert await (await gap.bot()).all() == []


async def test_what_is_older_than_a_month_is_left(gap: Town) -> None:
    gap.clock.now -= timedelta(days=35)
    await labelled_issue(gap)
    gap.clock.now += timedelta(days=35)
    back(gap)
    await gap.last_looked(gap.clock.now - timedelta(days=60))
    assert await (await gap.bot()).all() == []


async def test_a_suspended_installation_is_not_searched(gap: Town) -> None:
    await labelled_issue(gap)
    gap.github.world.installations[gap.github.installation_id].suspended_at = gap.clock.now
    back(gap)
    await gap.bot()
    bot = await gap.bot()
    assert await bot.all() == []
    assert await Cursors(gap.engine).get(CURSOR) is not None


async def test_bots_and_closed_issues_start_nothing(gap: Town) -> None:
    bot = await gap.bot()
    number = await labelled_issue(gap)
    await gap.github.as_user("maria").close(REPO, number)
    other = (await gap.github.as_user("maria").open_issue(REPO, "Other"))["number"]
    client = bot.catching_up._reporter._github.installation(gap.github.installation_id)
    await client.post(f"/repos/{REPO}/issues/{other}/comments", data={"body": "/agent go"})
    back(gap)
    assert await bot.all() == []


async def test_a_comment_that_was_edited_is_answered_and_not_carried_out(gap: Town) -> None:
    maria = gap.github.as_user("maria")
    number = (await maria.open_issue(REPO, "Hello"))["number"]
    comment = await maria.comment(REPO, number, "/agent say hello")
    gap.clock.now += timedelta(minutes=1)
    await maria.edit_comment(REPO, comment["id"], "/agent delete everything")
    gap.clock.now -= timedelta(minutes=1)
    back(gap)
    for _ in range(2):
        taken = await (await gap.bot()).all()
        assert [one for one in taken if one.startswith("gap-")] == []
        await gap.last_looked(gap.clock.now - timedelta(days=6))
    (answer,) = [one for one in gap.github.comments(REPO, number) if one["user"]["type"] == "Bot"]
    assert "edited since" in answer["body"]
    assert "@maria" in answer["body"]


async def test_a_review_is_heard_and_the_commands_in_it_are_not(gap: Town) -> None:
    """Nothing tells whether a review was edited since, and by whom; on the bot's own, too."""
    bot = await gap.bot()
    await gap.github.as_user("maria").push_commit(REPO, "ours", {"new.txt": "one\n"})
    client = bot.catching_up._reporter._github.installation(gap.github.installation_id)
    data = {"title": "Ours", "head": "ours", "base": "main", "body": ""}
    number = int((await client.post(f"/repos/{REPO}/pulls", data=data))["number"])
    octocat = gap.github.as_user("octocat")
    plain = await octocat.review(REPO, number, "APPROVE", "Good.")
    gap.clock.now += timedelta(minutes=1)
    await octocat.review(REPO, number, "COMMENT", "/agent delete everything")
    gap.clock.now -= timedelta(minutes=1)
    back(gap)
    assert await bot.all() == [f"gap-review-{plain['id']}"]
    (answer,) = [one for one in gap.github.comments(REPO, number) if one["user"]["type"] == "Bot"]
    assert "the review may have been edited since" in answer["body"]


async def test_a_strangers_description_is_not_trusted_after_the_time(gap: Town) -> None:
    """Somebody without write access could have changed it between the label and our reading."""
    number = await labelled_issue(gap, opened_by="rita")
    back(gap)
    assert await (await gap.bot()).all() == []
    (answer,) = [one for one in gap.github.comments(REPO, number) if one["user"]["type"] == "Bot"]
    assert "set it again" in answer["body"]


async def test_a_strangers_command_goes_the_way_of_all_commands(gap: Town) -> None:
    maria, rita = gap.github.as_user("maria"), gap.github.as_user("rita")
    number = (await maria.open_issue(REPO, "Hello"))["number"]
    comment = await rita.comment(REPO, number, "/agent say hello")
    await rita.edit_comment(REPO, comment["id"], "/agent say hello!")
    back(gap)
    # the handlers refuse it, in their own words
    assert await (await gap.bot()).all() == [f"gap-comment-{comment['id']}"]
    assert [one for one in gap.github.comments(REPO, number) if one["user"]["type"] == "Bot"] == []


async def test_a_repository_that_cannot_be_read_does_not_stop_the_others(gap: Town) -> None:
    await gap.github.create_repo("acme/second", collaborators={"maria": "write"})
    maria = gap.github.as_user("maria")
    number = (await maria.open_issue("acme/second", "Hello"))["number"]
    await maria.add_label("acme/second", number, "agent")
    await labelled_issue(gap)
    back(gap)
    gap.github.faults.add(Fault(path="/repos/acme/hello/issues", status=403, times=None))
    bot = await gap.bot()
    (taken,) = await bot.all()
    (stored,) = await gap.stored()
    assert stored.id == taken
    assert stored.payload()["repository"]["full_name"] == "acme/second"
    assert await Cursors(gap.engine).get(CURSOR) is not None


async def test_a_repository_of_another_shape_does_not_stop_the_others(gap: Town) -> None:
    await gap.github.create_repo("acme/second", collaborators={"maria": "write"})
    maria = gap.github.as_user("maria")
    number = (await maria.open_issue("acme/second", "Hello"))["number"]
    await maria.add_label("acme/second", number, "agent")
    back(gap)
    bot = await gap.bot()
    bot.transport.odd[f"/repos/{REPO}/issues"] = [{"what": "is this"}]
    assert len(await bot.all()) == 1
    assert (await gap.stored())[0].payload()["repository"]["full_name"] == "acme/second"


# --- the position


async def test_positions_are_kept(engine: AsyncEngine) -> None:
    cursors = Cursors(engine)
    assert await cursors.get("x") is None
    await cursors.set("x", "1")
    await cursors.set("y", "2")
    await cursors.set("x", "3")
    position = await cursors.get("x")
    assert position is not None
    assert position[0] == "3"
    assert datetime.now(UTC) - position[1] < timedelta(minutes=1)
