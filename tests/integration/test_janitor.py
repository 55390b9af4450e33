"""The janitor removes what nobody owns, and only that."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bot.config import fixed_settings
from bot.errors import InfrastructureError
from bot.janitor import Janitor
from bot.ports import ContainerSpec, Handle, Limits
from bot.store import Store
from runners.local import LocalRunner
from runners.mirrors import Mirrors
from runners.provision import OwnPrograms
from tests.jobs import asked_job

LIMITS = Limits(memory=2**30, cpus=1, pids=64, tmp=2**20, file=2**20)


class Unkillable(LocalRunner):
    """One of its attempts hangs in the kernel, as with a broken disk."""

    async def stop(self, handle: Handle, grace: float) -> None:
        """As always, but for that one."""
        if handle.attempt_id == "ja-hangs-1":
            raise InfrastructureError("It did not die of SIGKILL.", "Restart the engine.")
        await super().stop(handle, grace)


@dataclass
class Host:
    """A worker host with its attempts, and the janitor that looks after it."""

    folder: Path
    runner: LocalRunner
    janitor: Janitor

    async def start(self, attempt_id: str) -> None:
        """An attempt that sleeps."""
        folder = self.folder / "attempts" / attempt_id / "run"
        folder.mkdir(parents=True)
        await self.runner.start(
            ContainerSpec(
                attempt_id=attempt_id,
                image="",
                argv=[sys.executable, "-c", "import time; time.sleep(600)"],
                env={},
                socket_dir=folder,
                mirror=None,
                limits=LIMITS,
            )
        )


@asynccontextmanager
async def host(store: Store, folder: Path, kind: type[LocalRunner] = LocalRunner) -> AsyncIterator[Host]:
    """The host ``h``. At the end its attempts are gone."""
    settings = fixed_settings(data_dir=folder, allow_local_runner=True, runner="local", host_name="h")
    runner = kind(settings)
    janitor = Janitor(
        store=store,
        host="h",
        runner=runner,
        images=OwnPrograms(),
        mirrors=Mirrors(folder / "mirrors"),
        folder=folder / "attempts",
        owned=list,
    )
    try:
        yield Host(folder, runner, janitor)
    finally:
        for handle in await runner.list():
            await runner.remove(handle)
        await runner.close()


async def test_one_that_cannot_be_removed_keeps_no_other_one(store: Store, tmp_path: Path) -> None:
    async with host(store, tmp_path, Unkillable) as here:
        for attempt_id in ("ja-hangs-1", "jstray-1"):
            await here.start(attempt_id)
        assert await here.janitor.once() == ["jstray-1"]
        assert (tmp_path / "attempts" / "ja-hangs-1").exists(), "the next round tries again"
        assert await here.janitor.once() == []


async def test_a_stray_attempt_is_removed_and_a_living_one_is_not(store: Store, tmp_path: Path) -> None:
    async with host(store, tmp_path) as here:
        await store.add_job(asked_job("jalive", timeout=600))
        claimed = await store.claim_next("h")
        assert claimed is not None
        for attempt_id in (claimed[1].id, "jstray-1"):
            await here.start(attempt_id)
        assert await here.janitor.once() == ["jstray-1"]
        assert [handle.attempt_id for handle in await here.runner.list()] == [claimed[1].id]
        assert not (tmp_path / "attempts" / "jstray-1").exists()
        assert await here.janitor.once() == []
        for handle in await here.runner.list():
            await here.runner.stop(handle, 1)
