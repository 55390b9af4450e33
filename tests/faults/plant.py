"""The whole product with every part a process that can be killed, and what must be so after a round of faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from bot.config import Settings
from bot.database import create_engine
from bot.model import AttemptState
from bot.store import Store
from runners.mirrors import Mirrors
from tests.faults import parts
from tests.faults.github_host import RemoteGitHub
from tests.faults.parts import LOOK, Engine, Part, Postgres, SqliteFile, Timeline
from tests.faults.stories import STEPS, Story, Teller, look, twenty, unanswered, unfinished, wrongs
from tests.scenarios.processes import free_port
from tests.scenarios.world import CANARIES, settings_for

ROUND_TIMEOUT = 240.0  # seconds for twenty stories and all faults
CLEAN_TIMEOUT = 150.0  # seconds until nothing is left over: the janitor goes round every minute
SOON = 5.0  # seconds until attempts that are over have cleaned up after themselves
SPREAD = 6.0  # seconds over which the people of a round come
LONGEST_OUTAGE = 2.0  # seconds that a killed part stays away
FAULTS = (
    "server",
    "worker",
    "frozen worker",
    "redis",
    "emptied redis",
    "engine",
    "database",
    "reboot of two",
)

#: Shapes of secrets that must be in no log: installation tokens, private keys, JSON web tokens.
SECRETS = re.compile(r"gh[pousr]_[A-Za-z0-9]{10}|BEGIN [A-Z ]*PRIVATE KEY|eyJ[\w-]{8,}\.eyJ")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong in a round."""

    kind: str
    point: float  # of the round's progress, 0 to 1, at which it happens
    moment: float  # seconds after that
    outage: float  # seconds that the part stays away
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}{f' ({self.detail})' if self.detail else ''} for {self.outage:.1f} s"


def plan(rng: random.Random, database_faults: Sequence[str]) -> list[Fault]:
    """Every fault once, in an order and at points of the seed's."""
    kinds = list(FAULTS)
    rng.shuffle(kinds)
    points = sorted(rng.uniform(0.02, 0.85) for _ in kinds)
    return [
        Fault(
            kind=kind,
            point=point,
            moment=rng.uniform(0, 0.7),
            outage=rng.uniform(0, LONGEST_OUTAGE),
            detail={
                "database": rng.choice(list(database_faults)),
                "engine": rng.choice(["dockerd", "dockerd and containerd"]),
                "reboot of two": rng.choice(["redis and worker", "server and worker", "redis and server"]),
            }.get(kind, ""),
        )
        for kind, point in zip(kinds, points, strict=True)
    ]


@dataclass
class Plant:
    """Everything that runs."""

    folder: Path
    settings: Settings
    github: RemoteGitHub
    engine: Engine
    database: SqliteFile | Postgres
    store: Store
    redis: Part
    server: Part
    worker: Part
    timeline: Timeline = field(default_factory=Timeline)
    open: list[str] = field(default_factory=list)  # what a round waits for
    away: set[str] = field(default_factory=set)  # parts that a fault has ended just now

    # --- faults

    async def strike(self, fault: Fault) -> None:
        """Let it happen, and mend it."""
        self.timeline.note(f"FAULT {fault}")
        if fault.kind == "frozen worker":
            self.worker.freeze()
            await asyncio.sleep(fault.outage)  # the fault itself, as below
            self.worker.thaw()
        elif fault.kind == "database":
            await self.database.break_off(fault.detail, fault.outage)
        elif fault.kind == "engine":
            await self.engine.kill(with_containerd=fault.detail != "dockerd")
            await asyncio.sleep(fault.outage)
            await self.engine.start()
        else:
            await self._kill_and_start(fault)
        self.timeline.note(f"mended: {fault.kind}")

    async def _kill_and_start(self, fault: Fault) -> None:
        struck = {
            "server": [self.server],
            "worker": [self.worker],
            "redis": [self.redis],
            "emptied redis": [self.redis],
        }.get(fault.kind) or [part for part in self._all() if part.name in fault.detail.split(" and ")]
        self.away |= {part.name for part in struck}
        for part in struck:
            await part.kill()
        if fault.kind == "emptied redis":
            parts.forget_redis_data(self.folder)
        await asyncio.sleep(fault.outage)
        for part in self._all():  # in the order in which they need each other
            if part in struck:
                await part.start()
        self.away -= {part.name for part in struck}

    def _all(self) -> tuple[Part, ...]:
        return self.redis, self.server, self.worker

    def fell(self) -> list[str]:
        """Parts that ended although nobody killed them."""
        return [part.name for part in self._all() if not part.runs and part.name not in self.away]

    # --- a round

    async def round(self, seed: int) -> None:
        """Twenty stories and every fault; AssertionError tells what is wrong, when what happened, and the seed."""
        rng = random.Random(seed)
        self.timeline = Timeline()
        repo = f"acme/round-{seed}"
        stories = twenty(rng, SPREAD)
        faults = plan(rng, self.database.faults)
        try:
            await self._play(repo, stories, faults)
        except (AssertionError, TimeoutError, SQLAlchemyError, OSError) as error:
            raise AssertionError(self._told(seed, stories, error)) from error

    async def _play(self, repo: str, stories: list[Story], faults: list[Fault]) -> None:
        people = {"maria": "write", "rita": "read"}
        await self.github.look("create_repo", repo, collaborators=people)
        repo_id = await self.github.own("repository_id", repo)
        teller = Teller(self.github, repo, self.timeline)
        for story in stories:
            await teller.prepare(story)
        self.timeline.note("the stories begin")
        tasks = [
            asyncio.create_task(self._watch(repo_id, stories), name="watch"),
            asyncio.create_task(self._redeliver(), name="redeliver"),
        ]
        work = [asyncio.create_task(teller.begin(story)) for story in stories]
        work.append(asyncio.create_task(self._strike_all(faults, stories), name="faults"))
        try:
            async with asyncio.timeout(ROUND_TIMEOUT):
                await self._first_failure(work, tasks)
                self.timeline.note("everybody has asked, every fault is mended")
                await self._over(repo_id, repo, stories)
        finally:
            for task in (*tasks, *work):
                task.cancel()
            await asyncio.gather(*tasks, *work, return_exceptions=True)
        self.timeline.note("every story is over")
        await look(self.store, repo_id, stories)
        seen = await self.github.own("everything", repo)
        found = [wrong for story in stories for wrong in wrongs(story, seen)]
        expected = {story.job.branch for story in stories if story.job and story.job.head_sha}
        strange = {name for name in seen["branches"] if name.startswith("agent/") and name not in expected}
        found += [f"branch {name} belongs to no story" for name in sorted(strange)]
        found += await self.github.own("wrongs")
        found += [f"{name} logged {secret!r}" for name, secret in leaks(self.server, self.worker)]
        assert not found, "\n".join(found)
        await self._nothing_left()
        await self.github.own("forget")

    async def _first_failure(
        self, work: Sequence[asyncio.Task[None]], tasks: Sequence[asyncio.Task[None]]
    ) -> None:
        """Return when ``work`` is done; raise as soon as anything fails."""
        waiting = set(work)
        while waiting:
            done, _ = await asyncio.wait({*waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            waiting -= done

    async def _strike_all(self, faults: Sequence[Fault], stories: Sequence[Story]) -> None:
        for fault in faults:
            while sum(story.step for story in stories) / (STEPS * len(stories)) < fault.point:
                if all(story.step == STEPS or story.kind == "refused" for story in stories):
                    break
                await asyncio.sleep(LOOK)
            await asyncio.sleep(fault.moment)
            await self.strike(fault)

    async def _watch(self, repo_id: int, stories: Sequence[Story]) -> None:
        """Keep the stories' jobs up to date; a part that ends by itself is a failure."""
        while True:
            with contextlib.suppress(SQLAlchemyError, OSError, TimeoutError):  # the database is a victim, too
                await look(self.store, repo_id, stories)
            fell = self.fell()
            assert not fell, f"ended although nobody killed it: {fell}"
            await asyncio.sleep(LOOK)

    async def _redeliver(self) -> None:
        """What GitHub could not deliver is delivered again, as the delivery log offers it."""
        while True:
            again = await self.github.own("redeliver")
            if again:
                self.timeline.note(f"{len(again)} deliveries are sent again")
            await asyncio.sleep(1)

    async def _over(self, repo_id: int, repo: str, stories: Sequence[Story]) -> None:
        """Return when all stories are over and GitHub shows it."""
        while open_ := await self._open(repo_id, repo, stories):
            self.open = open_
            assert not self.fell(), f"ended although nobody killed it: {self.fell()}"
            await asyncio.sleep(LOOK * 4)
        self.open = []

    async def _open(self, repo_id: int, repo: str, stories: Sequence[Story]) -> list[str]:
        """What is not over yet, and why."""
        try:
            unreported = await look(self.store, repo_id, stories)
        except (SQLAlchemyError, OSError) as error:
            return [f"the database: {error}"]
        if told := [f"{story.title}: {why}" for story in stories if (why := unfinished(story, unreported))]:
            return told
        if waiting := await self.github.own("waiting"):
            return [f"delivery {guid}" for guid in waiting]
        seen = await self.github.own("everything", repo)
        return [f"{story.title}: {why}" for story in stories if (why := unanswered(story, seen))]

    # --- afterwards

    async def _nothing_left(self) -> None:
        left = await still_left(self.engine, self.settings, self.store, SOON)
        if left:
            # the janitor's: it goes round every minute, and when the worker starts
            self.timeline.note(f"left to the janitor: {left}")
            await self.worker.stop()
            await self.worker.start()
        await nothing_left(self.engine, self.settings, self.store)
        self.timeline.note("nothing is left over")

    def _told(self, seed: int, stories: Sequence[Story], error: BaseException) -> str:
        about = [f"{part.name}'s log ends:\n{part.log()[-6000:]}" for part in (self.server, self.worker)]
        return "\n\n".join(
            [
                f"CONDUCTOR_FAULTS_SEED={seed} repeats this round.",
                f"{type(error).__name__}: {error}",
                f"Not over: {self.open or 'nothing'}",
                f"Timeline:\n{self.timeline}",
                "Stories:\n" + "\n".join(map(str, stories)),
                *about,
            ]
        )


def leaks(*logged: Part) -> list[tuple[str, str]]:
    """Secrets in logs: whose, and which."""
    found = []
    for part in logged:
        text = part.log()
        found += [(part.name, value) for value in CANARIES.values() if value in text]
        found += [(part.name, match.group()) for match in SECRETS.finditer(text)]
    return found


async def nothing_left(engine: Engine, settings: Settings, store: Store) -> None:
    """Return when no container, volume, folder, socket, quarantine or borrower is left on a worker host."""
    left = await still_left(engine, settings, store, CLEAN_TIMEOUT)
    assert not left, f"left over: {left}"


async def still_left(engine: Engine, settings: Settings, store: Store, seconds: float) -> list[str]:
    """What is left when so much time has passed; nothing as soon as there is nothing."""
    left: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while left := await _left(engine, settings, store):
                await asyncio.sleep(LOOK * 4)
    return left


async def _left(engine: Engine, settings: Settings, store: Store) -> list[str]:
    found = await asyncio.to_thread(engine.left_of, settings.host_name)
    found += [f"folder {path}" for path in (settings.data_dir / "attempts").glob("*")]
    found += [f"borrower {name}" for name in Mirrors(settings.data_dir / "mirrors").borrowers()]
    attempts = await store.attempts_of(settings.host_name)
    return found + [f"attempt {one.id}" for one in attempts if one.state is not AttemptState.ended]


@contextlib.asynccontextmanager
async def plant(
    folder: Path, engine: Engine, database: SqliteFile | Postgres, **values: Any
) -> AsyncIterator[Plant]:
    """Everything on one host, started; ended at the end, the worker first."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(database.stop)
        await database.start()
        github = await stack.enter_async_context(parts.github(folder, "127.0.0.1:0"))
        listen = f"127.0.0.1:{free_port()}"
        settings = settings_for(
            github,  # type: ignore[arg-type]
            folder,
            f"unix://{folder / 'redis.sock'}",
            None,
            **(
                {
                    "listen": listen,
                    "runner": "docker",
                    "slots": 20,
                    "memory": "256m",
                    "lease_seconds": 10,
                    "database_url": database.url,
                }
                | values
            ),
        )
        sql = create_engine(getattr(database, "local_url", database.url))
        stack.push_async_callback(sql.dispose)
        made = Plant(
            folder=folder,
            settings=settings,
            github=github,
            engine=engine,
            database=database,
            store=Store(sql),
            redis=parts.redis_part(folder),
            server=parts.product_part("serve", folder, settings, name="server"),
            worker=parts.product_part("worker", folder, settings, engine=engine),
        )
        for part in (made.redis, made.server, made.worker):
            stack.push_async_callback(part.stop)
            await part.start()
        await github.own("deliver_to", f"http://{listen}/webhook")
        await github.own("allow_requests", 10**9)
        yield made
