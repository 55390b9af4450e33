"""Two servers on one PostgreSQL: what each would find free by itself is taken once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.events import Event
from bot.model import Actor, Job, Repo, TargetKind
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from bot.server import everything_that_acts
from handlers.context import Bot
from handlers.labels import label_added
from tests.made_once import app_key
from tests.scenarios.world import settings_for

REPO = "acme/hello"


@dataclass
class Place:
    """One GitHub, and two servers that hear of it."""

    sandbox: Sandbox
    servers: tuple[Bot, Bot]

    async def issue(self) -> int:
        return int((await self.sandbox.as_user("maria").open_issue(REPO, "Do it"))["number"])

    async def labelled(self, server: Bot, number: int, delivery: str) -> None:
        """The label was set, and this server hears of it."""
        maria = self.sandbox.world.users["maria"]
        event = Event(
            delivery_id=delivery,
            name="issues",
            action="labeled",
            repo=self.repo,
            actor=Actor(login="maria", id=maria.id, type="User"),
            number=number,
            target=TargetKind.issue,
            title="Do it",
            body="",
            open=True,
            label="agent",
        )
        await label_added(event, server)

    @property
    def repo(self) -> Repo:
        repository = self.sandbox.world.repository("acme", "hello")
        assert repository is not None
        installation = self.sandbox.installation_id
        return Repo(owner="acme", name="hello", id=repository.id, installation_id=installation)

    async def jobs(self, number: int) -> list[Job]:
        return await self.servers[0].conductor.store.jobs_on(self.repo.id, number)


@contextlib.asynccontextmanager
async def place(folder: Path, redis: str, database: str, **values: object) -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(
            Sandbox.start(private_key=app_key(), state_dir=folder / "github")
        )
        settings = settings_for(sandbox, folder, redis, None, database_url=database, **values)
        bots = [
            await stack.enter_async_context(everything_that_acts(settings, Redactor([]))) for _ in range(2)
        ]
        yield Place(sandbox, (bots[0], bots[1]))


pytestmark = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


async def test_two_labels_at_the_same_time_start_one_job(
    tmp_path: Path, clean_redis: str, database_url: str
) -> None:
    async with place(tmp_path, clean_redis, database_url) as here:
        one, two = here.servers
        number = await here.issue()
        await asyncio.gather(here.labelled(one, number, "first"), here.labelled(two, number, "second"))
        assert len(await here.jobs(number)) == 1


async def test_the_last_place_in_the_line_is_given_once(
    tmp_path: Path, clean_redis: str, database_url: str
) -> None:
    async with place(tmp_path, clean_redis, database_url, limit_queued=1) as here:
        one, two = here.servers
        numbers = [await here.issue(), await here.issue()]
        await asyncio.gather(
            here.labelled(one, numbers[0], "first"), here.labelled(two, numbers[1], "second")
        )
        assert sorted([len(await here.jobs(number)) for number in numbers]) == [0, 1]
