"""The janitor removes what nobody owns, and only that."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from bot.config import fixed_settings
from bot.errors import InfrastructureError
from bot.janitor import Janitor
from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger
from bot.ports import ContainerSpec, Handle, Limits
from bot.store import Store
from runners.local import LocalRunner
from runners.mirrors import Mirrors
from runners.provision import OwnPrograms

LIMITS = Limits(memory=2**30, cpus=1, pids=64, tmp=2**20, file=2**20)


class Unkillable(LocalRunner):
    """One of its attempts hangs in the kernel, as with a broken disk."""

    async def stop(self, handle: Handle, grace: float) -> None:
        """As always, but for that one."""
        if handle.attempt_id == "ja-hangs-1":
            raise InfrastructureError("It did not die of SIGKILL.", "Restart the engine.")
        await super().stop(handle, grace)


async def test_one_that_cannot_be_removed_keeps_no_other_one(store: Store, tmp_path: Path) -> None:
    settings = fixed_settings(data_dir=tmp_path, allow_local_runner=True, runner="local", host_name="h")
    runner = Unkillable(settings)
    for attempt_id in ("ja-hangs-1", "jstray-1"):
        folder = tmp_path / "attempts" / attempt_id / "run"
        folder.mkdir(parents=True)
        spec = ContainerSpec(
            attempt_id=attempt_id,
            image="",
            argv=[sys.executable, "-c", "import time; time.sleep(600)"],
            env={},
            socket_dir=folder,
            mirror=None,
            limits=LIMITS,
        )
        await runner.start(spec)
    try:
        janitor = Janitor(
            store=store,
            host="h",
            runner=runner,
            images=OwnPrograms(),
            mirrors=Mirrors(tmp_path / "mirrors"),
            folder=tmp_path / "attempts",
            owned=list,
        )
        assert await janitor.once() == ["jstray-1"]
        assert (tmp_path / "attempts" / "ja-hangs-1").exists(), "the next round tries again"
        assert await janitor.once() == []
    finally:
        for handle in await runner.list():
            await runner.remove(handle)
        await runner.close()


async def test_a_stray_attempt_is_removed_and_a_living_one_is_not(store: Store, tmp_path: Path) -> None:
    settings = fixed_settings(data_dir=tmp_path, allow_local_runner=True, runner="local", host_name="h")
    runner = LocalRunner(settings)
    try:
        await store.add_job(
            Job(
                id="jalive",
                repo=Repo(owner="acme", name="hello", id=10, installation_id=20),
                number=1,
                target=TargetKind.issue,
                trigger=Trigger(
                    delivery_id="d", event="issues.labeled", actor=Actor(login="maria", id=3, type="User")
                ),
                agent="shell",
                model=None,
                instructions="",
                title="",
                body="",
                timeout=600,
                state=JobState.queued,
                created_at=datetime.now(UTC),
            )
        )
        claimed = await store.claim_next("h")
        assert claimed is not None
        for attempt_id in (claimed[1].id, "jstray-1"):
            folder = tmp_path / "attempts" / attempt_id / "run"
            folder.mkdir(parents=True)
            await runner.start(
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
        janitor = Janitor(
            store=store,
            host="h",
            runner=runner,
            images=OwnPrograms(),
            mirrors=Mirrors(tmp_path / "mirrors"),
            folder=tmp_path / "attempts",
            owned=list,
        )
        assert await janitor.once() == ["jstray-1"]
        assert [handle.attempt_id for handle in await runner.list()] == [claimed[1].id]
        assert not (tmp_path / "attempts" / "jstray-1").exists()
        assert await janitor.once() == []
    finally:
        for handle in await runner.list():
            await runner.stop(handle, 1)
            await runner.remove(handle)
        await runner.close()
        await asyncio.sleep(0)
