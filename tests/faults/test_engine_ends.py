"""An engine that is killed, restarted or loses power is told apart from an attempt that ends by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.ports import Handle
from runners.docker import DockerRunner
from tests import containers
from tests.faults import parts

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

#: Ends as the shim does at SIGTERM; and as one does that is not asked.
SCRIPTS = ("trap 'exit 143' TERM; while :; do sleep 0.05; done", "exec sleep 600")


# docker-py leaves the socket open on which connect() failed (UnixHTTPConnection.connect): it is warned of later
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_engines_end_is_not_the_attempts(image_files: Sequence[Path], tmp_path: Path) -> None:
    settings = fixed_settings(host_name=f"ends-{tmp_path.name}-{os.getpid()}")
    async with parts.engine(image_files) as engine:
        with engine.client() as client:
            image = next(tag for found in client.images.list() for tag in found.tags if "/shell:" in tag)
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9": engine.kill,
            "restart in order": engine.parts["dockerd"].stop,
            "power cut": engine.lose_power,
        }
        # one worker goes on, the other one is restarted as well
        runner = DockerRunner(settings, engine=engine.url)
        try:
            for name, fault in faults.items():
                handles = [await _start(engine, runner, image, script, tmp_path) for script in SCRIPTS]
                waiters = [asyncio.create_task(runner.wait(handle)) for handle in handles]
                await fault()
                await engine.start()
                ends = await asyncio.gather(*waiters)
                heir = DockerRunner(settings, engine=engine.url)
                ends += await asyncio.gather(*(heir.wait(handle) for handle in handles))
                for handle in handles:
                    await heir.remove(handle)
                await heir.close()
                assert [end.host for end in ends] == [True] * 4, (name, ends)
                assert not any(end.stopped or end.oom for end in ends), (name, ends)
        finally:
            await runner.close()


async def _start(engine: parts.Engine, runner: DockerRunner, image: str, script: str, folder: Path) -> Handle:
    argv = ["sh", "-c", f"touch /workspace/begun; {script}"]
    handle = await runner.start(containers.spec(image, argv, folder))

    async def begun() -> bool:
        with engine.client() as client:
            said = await asyncio.to_thread(containers.file_in, client, handle.ref, "/workspace/begun")
        return said is not None

    await containers.until(begun, "the attempt runs")
    return handle
