"""What the tests of the real agent CLIs share: an attempt's home, repository and gateway, without its container."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.config import fixed_settings
from bot.live_words import Said
from bot.model import FailureKind, Usage
from bot.ports import Agent, AgentEvent, Command, Turn
from bot.results import Transcript, Verdict, judge
from bot.terms import Terms
from runners.agents.registry import agent
from runners.gateway.desk import Desk
from runners.gateway.live_words import LiveWordsRoute
from runners.gateway.llm import LlmProxy
from runners.gateway.llm_relay import Patience
from runners.gateway.mcp import McpRoute
from tests.llm import Script, ScriptedLlm

KEY = "sk-real-key-0123456789"
TOKEN = "attempt-token-abcdef"
MODELS = {
    "claude": "claude-sonnet-4-5",
    "codex": "gpt-5.5",
    "gemini": "gemini-2.5-pro",
    "opencode": "glm-4.6",
    "qwen": "qwen3-coder-plus",
}
PRICES = {
    "gpt-5.5": {"input": 2, "output": 10, "cached": 0.5},
    **{MODELS[name]: {"input": 1, "output": 4, "cached": 0.25} for name in ("gemini", "opencode", "qwen")},
}
DONE = '<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>'


def provided(name: str, version: str, install: Callable[[Path], Sequence[str]]) -> Path:
    """The folder with the CLI ``name``, below $XDG_CACHE_HOME; ``install`` tells how it is put into a new one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-conductor" / "clis"
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        building = cache / f"{name}-{uuid.uuid4().hex}"
        building.mkdir(parents=True)
        argv = install(building)
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{name} {version} is not installed and there is no {argv[0]} to install it")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        if not folder.exists():
            building.rename(folder)
    return folder


def npm(package: str, version: str) -> Callable[[Path], Sequence[str]]:
    """How a package is installed with npm."""
    wanted = f"{package}@{version}"
    return lambda folder: ("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), wanted)


def linked(folder: Path, names: Iterable[str], installed: Callable[[str], Path]) -> Path:
    """``folder``, with the CLIs under their own names."""
    for name in names:
        (folder / name).symlink_to(installed(name))
    return folder


def turn(name: str, **changes: Any) -> Turn:
    """The first turn of a session."""
    values: dict[str, Any] = {
        "number": 1,
        "prompt": "Write note.txt. End with a result block.",
        "model": MODELS[name],
        "session_id": str(uuid.uuid4()),
        "resume": False,
        "timeout": 60,
    }
    return Turn(**(values | changes))


def key_of(headers: Mapping[str, str]) -> str:
    """What a request names as its key, in the way of its provider."""
    sent = headers.get("x-goog-api-key") or headers.get("x-api-key")
    return sent or headers["authorization"].removeprefix("Bearer ")


class Ledger:
    """A desk that keeps what was counted."""

    attempt_id = "attempt-1"
    terms = Terms()

    def __init__(self) -> None:
        self.total = Usage()
        self.models: set[str] = set()

    def calling(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add_usage(self, model: str, usage: Usage) -> None:
        self.total += usage
        self.models.add(model)

    def halt(self, kind: FailureKind, message: str) -> None:
        raise AssertionError(f"{kind}: {message}")


@dataclass
class Outcome:
    exit_code: int | None
    signal: int | None
    lines: list[str]
    stderr: str
    events: list[AgentEvent]
    transcript: Transcript

    def judge(self, *, changed: bool = True) -> Verdict:
        return judge(self.transcript, exit_code=self.exit_code, signal=self.signal, changed=changed)


class World:
    """What an attempt's container has: a home, a repository, and the gateway."""

    def __init__(self, root: Path, binaries: Path, gateway: str, ledger: Ledger, desk: Desk) -> None:
        self.root, self.home, self.repo = root, root / "home", root / "repo"
        self.binaries, self.gateway, self.ledger, self.desk = binaries, gateway, ledger, desk
        self.tokens_seen: set[str] = set()
        self.told: list[Said] = []  # what people say to the agent
        for folder in (self.home, self.repo):
            folder.mkdir(exist_ok=True)

    def prepare(self, tool: Agent, turn: Turn) -> Command:
        """What the shim does with a command before it starts it."""
        command = tool.command(turn, gateway="{gateway}", token=TOKEN)

        def filled(text: str) -> str:
            return text.replace("{gateway}", self.gateway)

        for path, text in command.files.items():
            target = self.home / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(text))
        return Command(
            argv=[filled(argument) for argument in command.argv],
            stdin=command.stdin,
            env={name: filled(value) for name, value in command.env.items()},
        )

    async def start(self, command: Command) -> asyncio.subprocess.Process:
        env = {
            "PATH": f"{self.binaries}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            **command.env,
            # as the image's unprivileged user these run without; some test machines only have root
            **({"IS_SANDBOX": "1"} if os.geteuid() == 0 else {}),
        }
        # files for its words: Node drops at its exit what a full pipe did not take (the shim's pipes are wider)
        with (self.root / "stdout").open("wb") as stdout, (self.root / "stderr").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=self.repo,
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(command.stdin.encode())
        await process.stdin.drain()
        process.stdin.close()
        return process

    async def finish(self, tool: Agent, process: asyncio.subprocess.Process) -> Outcome:
        await process.wait()
        lines = (self.root / "stdout").read_text().splitlines()
        events = [event for line in lines for event in tool.read(line)]
        assert process.returncode is not None
        code = process.returncode
        return Outcome(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            lines=lines,
            stderr=(self.root / "stderr").read_text(),
            events=events,
            transcript=Transcript(events),
        )

    async def run(self, tool: Agent, turn: Turn, **env: str) -> Outcome:
        command = self.prepare(tool, turn)
        command = Command(argv=command.argv, stdin=command.stdin, env={**command.env, **env})
        return await self.finish(tool, await self.start(command))


@asynccontextmanager
async def world(tmp_path: Path, binaries: Path, upstream: str, **settings: Any) -> AsyncIterator[World]:
    values = {
        "llm_anthropic_url": upstream,
        "llm_openai_url": f"{upstream}/v1",
        "llm_gemini_url": upstream,
        "llm_anthropic_key": KEY,
        "llm_openai_key": KEY,
        "llm_gemini_key": KEY,
        "prices": PRICES,
    }
    set_ = fixed_settings(**(values | settings))
    proxy, tools = LlmProxy(set_, patience=Patience(pauses=(0.05, 0.1))), McpRoute(set_)
    ledger = Ledger()
    desk = Desk.create(tmp_path / "desk", attempt_id=ledger.attempt_id, mirror=None)
    desk.give({"number": 1})
    seen: set[str] = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.add(key_of(request.headers))
        return await proxy.serve(request, ledger, request.path_qs.removeprefix("/llm/"))

    async def call(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)  # as the gateway does
        seen.add(TOKEN)
        return await tools.serve(request, desk, "")

    async def waiting(_attempt: str) -> list[Said]:
        return made.told

    async def hear(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)
        return await words.serve(request, desk, "")

    words = LiveWordsRoute(waiting)
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/mcp", call)
    app.router.add_post("/live-words", hear)
    app.router.add_route("*", "/llm/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        made = World(tmp_path, binaries, f"http://127.0.0.1:{runner.addresses[0][1]}", ledger, desk)
        made.tokens_seen = seen
        yield made
    finally:
        await proxy.close()
        await runner.cleanup()
        desk.close()


async def out_of_reach(name: str, tmp_path: Path, binaries: Path, **env: str) -> None:
    """A turn of the CLI whose provider does not listen ends as a fault of what is around it."""
    async with ScriptedLlm(Script.of([])) as llm:
        url = llm.url  # nobody listens there any more below
    async with world(tmp_path, binaries, url) as made:
        outcome = await made.run(agent(name), turn(name), **env)
        keep(f"{name}-unreachable", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.infrastructure), (verdict, outcome)
    assert "cannot be reached" in verdict.message


async def without_a_key(name: str, provider: str, tmp_path: Path, binaries: Path, **env: str) -> None:
    """Where the server has no key, nobody asks the provider, and the setting is named."""
    keys = {"llm_anthropic_key": "", "llm_openai_key": "", "llm_gemini_key": ""}
    async with ScriptedLlm(Script.of([])) as llm, world(tmp_path, binaries, llm.url, **keys) as made:
        outcome = await made.run(agent(name), turn(name), **env)
        keep(f"{name}-no-key", outcome, made)
        assert llm.requests == []
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.configuration), (verdict, outcome)
    assert f"CONDUCTOR_LLM_{provider}_KEY" in verdict.message


async def without_a_result(name: str, tmp_path: Path, binaries: Path) -> None:
    """An agent that ends well and says no result has failed."""
    script = Script.of([{"text": "I looked around and that is all."}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-no-result", outcome, made)
    verdict = outcome.judge(changed=False)
    assert outcome.exit_code == 0
    assert (verdict.ok, verdict.kind) == (False, FailureKind.no_result)


def keep(name: str, outcome: Outcome, made: World) -> None:
    """With CAPTURE_TRANSCRIPTS set to a folder: write the output there, without this machine's paths."""
    folder = os.environ.get("CAPTURE_TRANSCRIPTS")
    if folder:
        text = "\n".join(outcome.lines) + "\n"
        for path, shown in (
            (made.repo, "/workspace/repo"),
            (made.home, "/home/agent"),
            (made.repo.parent, "/workspace"),
            (str(made.repo).lstrip("/"), "workspace/repo"),  # OpenCode's way to write it
            (re.sub("[^A-Za-z0-9]", "-", str(made.repo)), "-workspace-repo"),  # a folder's name of Claude's
            (made.gateway, "http://127.0.0.1:8080"),
        ):
            text = text.replace(str(path), shown)
        target = Path(folder) / f"{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
