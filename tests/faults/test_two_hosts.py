"""Two worker hosts, each with an engine and a network of its own; one is cut off, loses its work, and comes back.

Both hosts reach Redis, PostgreSQL and GitHub over links that the test takes down. Three jobs run on the first host when
its link goes: one whose agent works, one whose push is on its way and arrives late, and one whose push has arrived but
whose answer has not. The second host takes all three over; what the first one does later must change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bot.config import Settings
from bot.database import create_engine
from bot.model import Job, JobState, Phase
from bot.store import Store
from tests.faults import parts
from tests.faults.gate import GATE, let_go_on
from tests.faults.github_host import RemoteGitHub
from tests.faults.network import HUB_ADDRESS, Network, network
from tests.faults.parts import LOOK, Engine, Part, Postgres, Timeline, engine
from tests.faults.plant import leaks, nothing_left
from tests.faults.stories import Story, look, wrongs
from tests.scenarios.world import settings_for

GITHUB, SERVER, REDIS, SQL = 8080, 8000, 6379, 5432  # ports, in a network where nobody else is
AGENT_TIMEOUT = 90.0  # seconds until agents work
TAKEN_TIMEOUT = 150.0  # seconds until the other host has taken over and is done
PUSH_HELD = 20.0  # seconds that GitHub takes for the first answer to the push that is late
PUSH_SLOW = 4.0  # and for the one whose answer is never seen


@dataclass
class Host:
    """A worker host."""

    settings: Settings
    engine: Engine
    worker: Part

    def pushes_of(self, repo: str) -> list[int]:
        """The processes of its worker that push to ``repo``."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    if f"/{repo}.git".encode() in words and _descends(int(entry.name), self.worker.pid):
                        found.append(int(entry.name))
        return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


@dataclass
class Site:
    """The hub and two hosts."""

    net: Network
    github: RemoteGitHub
    store: Store
    server: Part
    first: Host
    second: Host
    stories: dict[str, Story] = field(default_factory=dict)

    async def asked(self, name: str) -> None:
        """A story in a repository of its own."""
        repo = f"acme/{name}"
        await self.github.look("create_repo", repo, collaborators={"maria": "write"})
        made = await self.github.as_user("maria", "open_issue", repo, f"Make {name}", GATE)
        story = self.stories[name] = Story(kind="label", title=name, work=0, begins=0, number=made["number"])
        await self.github.as_user("maria", "add_label", repo, story.number, "agent")

    async def jobs(self) -> dict[str, Job]:
        """The newest state of each story's job."""
        for name, story in self.stories.items():
            repo_id = await self.github.own("repository_id", f"acme/{name}")
            await look(self.store, repo_id, [story])
        return {name: story.job for name, story in self.stories.items() if story.job}

    async def told(self) -> bool:
        """Whether GitHub knows every end."""
        return not await self.store.unreported_jobs()


@contextlib.asynccontextmanager
async def site(folder: Path, image_files: list[Path]) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        net = stack.enter_context(network(2))
        engines = [await stack.enter_async_context(engine(image_files)) for _ in range(2)]
        database = Postgres(folder, listen=(HUB_ADDRESS, SQL), within=net.hub)
        stack.push_async_callback(database.stop)
        await database.start()
        github = await stack.enter_async_context(
            parts.github(folder, f"{HUB_ADDRESS}:{GITHUB}", within=net.hub)
        )
        sql = create_engine(database.local_url)
        stack.push_async_callback(sql.dispose)

        def settings(name: str) -> Settings:
            home = folder / name
            home.mkdir()
            return settings_for(
                github,  # type: ignore[arg-type]
                home,
                f"redis://{HUB_ADDRESS}:{REDIS}/0",
                None,
                listen=f"{HUB_ADDRESS}:{SERVER}",
                database_url=database.url,
                runner="docker",
                host_name=f"faults-{os.getpid()}-{name}",
                memory="256m",
                slots=4,
                lease_seconds=10,
            )

        redis = parts.redis_part(folder, listen=(HUB_ADDRESS, REDIS), within=net.hub)
        server = parts.product_part("serve", folder, settings("hub"), name="server", within=net.hub)
        hosts = []
        for name, within, own in zip(("first", "second"), net.hosts, engines, strict=True):
            told = settings(name)
            worker = parts.product_part("worker", folder, told, name=name, engine=own, within=within)
            hosts.append(Host(settings=told, engine=own, worker=worker))
            stack.push_async_callback(worker.stop)
        for part in (redis, server):
            stack.push_async_callback(part.stop)
            await part.start()
        await hosts[0].worker.start()
        await github.own("deliver_to", f"http://{HUB_ADDRESS}:{SERVER}/webhook")
        yield Site(net=net, github=github, store=Store(sql), server=server, first=hosts[0], second=hosts[1])


@pytest.mark.docker
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(0)  # every wait has a limit of its own
async def test_a_host_that_is_cut_off_and_comes_back_changes_nothing(
    tmp_path: Path, image_files: list[Path]
) -> None:
    timeline = Timeline()
    async with site(tmp_path, image_files) as place:
        try:
            await _story(place, timeline)
            print(timeline)
        except (AssertionError, TimeoutError) as error:
            logs = [f"{part.name}:\n{part.log()[-7000:]}" for part in _logged(place)]
            stories = "\n".join(map(str, place.stories.values()))
            raise AssertionError("\n\n".join([repr(error), str(timeline), stories, *logs])) from error


def _logged(place: Site) -> tuple[Part, ...]:
    return place.server, place.first.worker, place.second.worker


async def _story(place: Site, timeline: Timeline) -> None:
    github, first, second = place.github, place.first, place.second
    names = ("works", "late", "unseen")
    for name in names:
        await place.asked(name)
    async with asyncio.timeout(AGENT_TIMEOUT):
        while [job.phase for job in (await place.jobs()).values()] != [Phase.agent] * 3:
            await asyncio.sleep(LOOK)
    assert {job.fence for job in (await place.jobs()).values()} == {1}
    timeline.note("three agents work on the first host")
    await second.worker.start()

    await github.own("fault", path=r"^/acme/late\.git/info/refs$", delay=PUSH_HELD)
    await github.own("fault", method="POST", path=r"^/acme/unseen\.git/git-receive-pack$", delay=PUSH_SLOW)
    jobs = await place.jobs()
    for name in ("late", "unseen"):
        assert await asyncio.to_thread(let_go_on, first.engine, f"{jobs[name].id}-1")
    async with asyncio.timeout(AGENT_TIMEOUT):
        while await github.own("faults_to_come"):
            await asyncio.sleep(LOOK / 5)
    place.net.cut(place.net.hosts[0])
    pushing = first.pushes_of("acme/late")
    for pid in pushing:
        os.kill(pid, signal.SIGSTOP)
    timeline.note("its link is down, two pushes under way")
    assert pushing, "nothing pushes"
    assert await asyncio.to_thread(let_go_on, first.engine, f"{jobs['works'].id}-1")

    async with asyncio.timeout(TAKEN_TIMEOUT):
        while not all(job.state.final for job in (await place.jobs()).values()) or not await place.told():
            for name in ("works", "late"):
                await asyncio.to_thread(let_go_on, second.engine, f"{jobs[name].id}-2")
            await asyncio.sleep(LOOK * 4)
    timeline.note("the second host has done everything")
    before = await _seen(place)

    for pid in pushing:
        with contextlib.suppress(ProcessLookupError):  # its own time limit may be over
            os.kill(pid, signal.SIGCONT)
    place.net.mend(place.net.hosts[0])
    timeline.note("the link is up again")
    await nothing_left(first.engine, first.settings, place.store)
    await nothing_left(second.engine, second.settings, place.store)
    timeline.note("nothing is left on either host")

    jobs = await place.jobs()
    assert {name: (job.state, job.fence) for name, job in jobs.items()} == dict.fromkeys(
        names, (JobState.succeeded, 2)
    )
    after = await _seen(place)
    found = [wrong for name in names for wrong in wrongs(place.stories[name], after[name])]
    assert not found, "\n".join(found)
    for name in names:
        assert after[name]["pushes"] == before[name]["pushes"], name
        assert after[name]["comments"] == before[name]["comments"], name
        assert after[name]["check runs"] == before[name]["check runs"], name
    assert not leaks(*_logged(place))
    assert not await github.own("wrongs")
    # it noticed by itself that its time is over
    assert first.worker.log().count("a newer attempt owns the job") == len(names)


async def _seen(place: Site) -> dict[str, dict[str, list[object]]]:
    return {name: await place.github.own("everything", f"acme/{name}") for name in place.stories}
