"""Work that is done once for all who want it: in this process by sharing a task, between processes by a lock file."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

#: Told each line of what the work prints, in the event loop.
LineCallback = Callable[[str], None]

_LOCK_POLL = 0.2  # seconds; flock cannot be awaited

_log = structlog.get_logger(__name__)


class _Build:
    """One piece of work under way: a task shared by all who wait for it, and those who listen."""

    task: asyncio.Task[str]

    def __init__(self) -> None:
        self.listeners: list[LineCallback] = []

    def tell(self, line: str) -> None:
        for listener in tuple(self.listeners):
            listener(line)


class Builds:
    """The builds under way in this process. ``locks`` is a folder that all processes of this host share."""

    def __init__(self, locks: Path | None) -> None:
        self._locks = locks
        self._builds: dict[str, _Build] = {}

    async def once(
        self, name: str, work: Callable[[LineCallback], Awaitable[str]], on_line: LineCallback | None
    ) -> str:
        """What ``work`` answers; it runs once for all who ask for ``name`` meanwhile.

        One that is cancelled does not end it for the others. ``on_line`` is told what it prints from now on. The
        work must look first whether another process has done it already. Raises what the work raises.
        """
        build = self._builds.get(name)
        if build is None:
            build = self._builds[name] = _Build()
            build.task = asyncio.create_task(self._run(name, work, build.tell), name=f"build {name}")
            build.task.add_done_callback(lambda task: self._ended(name, task))
        if on_line is not None:
            build.listeners.append(on_line)
        try:
            return await asyncio.shield(build.task)
        finally:
            if on_line is not None:
                build.listeners.remove(on_line)

    async def close(self) -> None:
        """Break off what is under way. Those who wait for it are cancelled."""
        tasks = [build.task for build in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, name: str, work: Callable[[LineCallback], Awaitable[str]], tell: LineCallback
    ) -> str:
        async with self._locked(name, tell):
            return await work(tell)

    def _ended(self, name: str, task: asyncio.Task[str]) -> None:
        del self._builds[name]
        # taken here as well, for nobody may be waiting any more
        if not task.cancelled() and (error := task.exception()):
            _log.warning("image_failed", image=name, error=str(error))

    @asynccontextmanager
    async def _locked(self, name: str, tell: LineCallback) -> AsyncIterator[None]:
        if self._locks is None:
            yield
            return
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._locks / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            waiting = False
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        tell("Another worker process of this host builds the same image: waiting for it.")
                    waiting = True
                    # bounded by the time limits of the other's build; the lock goes with its process
                    await asyncio.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(handle)
