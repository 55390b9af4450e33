"""A whole product in a box: sandbox GitHub, server, worker, Redis and a scripted LLM, and questions to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

from bot.audit import Audit
from bot.audit_chain import Verifier
from bot.config import Settings, fixed_settings
from bot.database import create_engine
from bot.embedded_redis import EmbeddedRedis
from bot.model import Job
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from bot.schema import deliveries
from bot.schema import jobs as jobs_table
from bot.server import server
from bot.store import Store
from bot.worker import worker
from tests.llm import Script, ScriptedLlm
from tests.made_once import app_key, migrated

REPO = "acme/hello"
LOOK_INTERVAL = 0.05  # seconds

#: Secrets of the server that must be nowhere in a container, an answer or a log.
CANARIES = {
    "webhook": "canary-webhook-secret-4711",
    "anthropic": "sk-ant-canary-4712-abcdefghijklmnop",
    "openai": "sk-canary-4713-abcdefghijklmnopqrst",
    "gemini": "AIza-canary-4714-abcdefghijklmnopqrst",
}


@dataclass
class World:
    """Handles on everything."""

    github: Sandbox
    settings: Settings
    store: Store
    llm: ScriptedLlm | None
    workers: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    redactor: Redactor = field(default_factory=Redactor)

    async def stop_worker(self) -> None:
        """End the worker as SIGTERM does: what runs goes on without it."""
        await self.workers.aclose()

    async def start_worker(self, **changes: Any) -> None:
        """Start a worker, with some settings ``changes``: another ``host_name`` and ``data_dir`` is another host."""
        values = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        settings = fixed_settings(**(values | changes))
        await self.workers.enter_async_context(worker(settings, self.redactor))

    async def job(self, number: int, *, nth: int = 0) -> Job:
        """The issue's job number ``nth``, oldest first, when it is there."""
        return await self._until(lambda jobs: jobs[nth] if len(jobs) > nth else None, number, 30)

    async def ended(self, number: int, *, nth: int = 0, within: float = 120) -> Job:
        """The issue's job when it is final and GitHub was told."""

        def told(jobs: list[Job]) -> Job | None:
            return jobs[nth] if len(jobs) > nth and jobs[nth].state.final else None

        job = await self._until(told, number, within)
        async with asyncio.timeout(60):
            while job.id in {other.id for other in await self.store.unreported_jobs()}:
                await asyncio.sleep(LOOK_INTERVAL)
        return job

    async def given_up(self, number: int) -> Job:
        """The issue's job when housekeeping has ended it and told that, each in a round of its own."""
        async with self.later():
            await self._until(lambda jobs: jobs[0] if jobs and jobs[0].state.final else None, number, 60)
        async with self.later():
            return await self.ended(number)

    @contextlib.asynccontextmanager
    async def later(self) -> AsyncIterator[None]:
        """A minute has passed since any job ended, and another server runs: it begins with a round of housekeeping.

        Else that is up to ten seconds away, and leaves a job's end to others for longer than that.
        """
        ended = select(jobs_table.c.id, jobs_table.c.finished_at).where(jobs_table.c.finished_at.is_not(None))
        async with self.store.engine.begin() as connection:
            for job_id, at in (await connection.execute(ended)).all():
                earlier = update(jobs_table).where(jobs_table.c.id == job_id)
                await connection.execute(earlier.values(finished_at=at - timedelta(minutes=1)))
        async with server(self.settings, self.redactor):
            yield

    async def _until(self, ready: Callable[[list[Job]], Job | None], number: int, seconds: float) -> Job:
        repo_id = self.github.world.repository(*REPO.split("/")).id
        jobs: list[Job] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    jobs = list(reversed(await self.store.jobs_on(repo_id, number)))
                    if (job := ready(jobs)) is not None:
                        return job
                    await asyncio.sleep(LOOK_INTERVAL)
        except TimeoutError:
            shown = [(job.id, str(job.state), job.phase, job.message) for job in jobs]
            raise AssertionError(f"#{number} did not get there; its jobs are {shown}") from None

    async def dealt_with(self) -> None:
        """Return when everything that GitHub delivered so far was dealt with by the handlers."""
        await self.github.deliveries_settled()
        waiting = select(func.count()).where(deliveries.c.state == "received")
        async with asyncio.timeout(60):
            while True:
                async with self.store.engine.connect() as connection:
                    if (await connection.execute(waiting)).scalar_one() == 0:
                        break
                await asyncio.sleep(LOOK_INTERVAL)
        await self.github.deliveries_settled()  # what the answers caused

    def stickies(self, number: int) -> list[str]:
        """Bodies of the bot's comments about jobs."""
        return [
            comment["body"]
            for comment in self.github.comments(REPO, number)
            if "<!-- agent-conductor:job:" in comment["body"]
        ]

    async def new_branches(self) -> list[str]:
        """Branches that the bot made."""
        return [name for name in await self.github.branches(REPO) if name.startswith("agent/")]


def settings_for(
    github: Sandbox, folder: Path, redis_url: str, llm: ScriptedLlm | None, **values: Any
) -> Settings:
    """What a server and a worker of this world are told."""
    bundle = os.environ.get("SSL_CERT_FILE")
    return fixed_settings(
        **{
            "mode": "dev",
            "github_api_url": github.url,
            "github_app_id": str(github.app_id),
            "github_private_key": str(github.private_key_path),
            "webhook_secret": github.webhook_secret,
            "listen": "127.0.0.1:0",
            "data_dir": folder / "data",
            "redis_url": redis_url,
            "host_name": f"test-{os.getpid()}-{folder.name[-20:]}",
            "runner": "local",
            "allow_local_runner": True,
            "default_agent": "shell",
            "job_timeout": 300,
            "slots": 4,
            "review_settle": 0,
            # stories about limits set their own
            **dict.fromkeys(
                (
                    *("limit_repository", "limit_user", "limit_user_hour", "limit_queued"),
                    *("limit_conversation_hour", "limit_answers_hour"),
                ),
                0,
            ),
            "image_ca_bundle": bundle or None,
            "models": {"claude": "claude-sonnet-4-5", "codex": "gpt-5.5"},
            "prices": {"gpt-5.5": {"input": 2.0, "output": 8.0, "cached": 0.2}},
            "llm_anthropic_key": CANARIES["anthropic"],
            "llm_openai_key": CANARIES["openai"],
            "llm_gemini_key": CANARIES["gemini"],
            **(_providers(llm.url) if llm else {}),
        }
        | values
    )


def _providers(url: str) -> dict[str, str]:
    return {"llm_anthropic_url": url, "llm_openai_url": f"{url}/v1", "llm_gemini_url": url}


@contextlib.asynccontextmanager
async def world(folder: Path, *, script: Script | None = None, **values: Any) -> AsyncIterator[World]:
    """Everything in this process. At the end the sandbox must have found nothing wrong with any request."""
    async with contextlib.AsyncExitStack() as stack:
        github = await stack.enter_async_context(
            Sandbox.start(
                state_dir=folder / "github", webhook_secret=CANARIES["webhook"], private_key=app_key()
            )
        )
        redis = await stack.enter_async_context(EmbeddedRedis(folder / "redis"))
        llm = await stack.enter_async_context(ScriptedLlm(script)) if script else None
        settings = settings_for(github, folder, redis.url, llm, **values)
        redactor = Redactor(settings.secrets())
        if not settings.database_url:
            migrated(settings.data_dir / "conductor.db")
        address = await stack.enter_async_context(server(settings, redactor))
        workers = await stack.enter_async_context(contextlib.AsyncExitStack())
        await workers.enter_async_context(worker(settings, redactor))
        github.webhook_url = f"{address}/webhook"
        engine = create_engine(settings.sql_url)
        stack.push_async_callback(engine.dispose)
        box = World(
            github=github,
            settings=settings,
            store=Store(engine),
            llm=llm,
            workers=workers,
            redactor=redactor,
        )
        yield box
        await github.deliveries_settled()
        found = [str(problem) for problem in github.problems]
        assert not found, found
        verifier = Verifier()
        await Audit(engine, redactor).verify(verifier)
        assert not verifier.findings, verifier.findings
        await box.stop_worker()
