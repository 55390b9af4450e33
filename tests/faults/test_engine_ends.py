"""An engine that is killed, restarted or loses power is told apart from an attempt that ends by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.ports import Exit, Handle
from runners.docker import DockerRunner
from tests import containers
from tests.faults import parts

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

#: Ends as the shim does at SIGTERM.
POLITE = "trap 'exit 143' TERM; while :; do sleep 0.05; done"


class Place:
    """A worker host whose engine is the test's own."""

    def __init__(self, engine: parts.Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.settings = fixed_settings(host_name=f"ends-{folder.name}-{os.getpid()}")
        self.runners = [DockerRunner(self.settings, engine=engine.url)]

    @property
    def runner(self) -> DockerRunner:
        return self.runners[-1]

    def restart_worker(self) -> None:
        self.runners.append(DockerRunner(self.settings, engine=self.engine.url))

    async def start(self, script: str) -> Handle:
        argv = ["sh", "-c", f"touch /workspace/begun; {script}"]
        handle = await self.runner.start(containers.spec(containers.BASE_IMAGE, argv, self.folder))

        async def begun() -> bool:
            with self.engine.client() as client:
                return (
                    await asyncio.to_thread(containers.file_in, client, handle.ref, "/workspace/begun")
                    is not None
                )

        await containers.until(begun, "the attempt runs")
        return handle


@pytest.fixture
async def place(image_files: Sequence[Path], tmp_path: Path) -> AsyncIterator[Place]:
    async with parts.engine(image_files[:1]) as engine:
        made = Place(engine, tmp_path)
        try:
            yield made
        finally:
            for runner in made.runners:
                await runner.close()


@pytest.mark.parametrize("worker", ["goes on", "is restarted, too"])
@pytest.mark.parametrize("fault", ["kill -9", "restart", "power cut"])
async def test_the_engines_end_is_not_the_attempts(place: Place, fault: str, worker: str) -> None:
    handles = [await place.start(script) for script in (POLITE, "exec sleep 600")]
    waiters = [asyncio.create_task(place.runner.wait(handle)) for handle in handles]
    if fault == "power cut":
        await place.engine.lose_power()
    elif fault == "kill -9":
        await place.engine.kill()
    else:
        await place.engine.parts["dockerd"].stop()
    if worker == "is restarted, too":
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await place.engine.start()
        place.restart_worker()
        waiters = [asyncio.create_task(place.runner.wait(handle)) for handle in handles]
    else:
        await place.engine.start()
    ends = await asyncio.gather(*waiters)
    assert [end.host for end in ends] == [True, True], ends
    assert not any(end.stopped or end.oom for end in ends)


async def test_a_container_that_somebody_kills_did_not_end_by_itself(place: Place) -> None:
    handles = [await place.start("exec sleep 600") for _ in range(2)]
    waiters = [asyncio.create_task(place.runner.wait(handle)) for handle in handles]
    with place.engine.client() as client:
        await asyncio.to_thread(client.api.kill, handles[0].ref)
        await asyncio.to_thread(client.api.stop, handles[1].ref)
    assert [end.host for end in await asyncio.gather(*waiters)] == [True, True]


@pytest.mark.parametrize("code", [137, 143, 255])
async def test_an_attempt_that_ends_with_such_a_code_itself_did_so(place: Place, code: int) -> None:
    handle = await place.start(f"exit {code}")
    assert await place.runner.wait(handle) == Exit(code=code, signal=code - 128 if code < 192 else None)
    place.restart_worker()
    assert not (await place.runner.wait(handle)).host


async def test_our_own_stop_is_ours(place: Place) -> None:
    handle = await place.start(POLITE)
    await place.runner.stop(handle, 20)
    assert await place.runner.wait(handle) == Exit(code=143, signal=15, stopped=True)
