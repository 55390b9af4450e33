"""The real Claude Code and Codex, started as the shim starts them, against the scripted LLM through the proxy.

They run as plain processes here; the scenarios run them in their locked containers. Both come from npm, at the
exact version that the agent names, into a cache below $XDG_CACHE_HOME.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.config import fixed_settings
from bot.model import FailureKind, Usage
from bot.ports import Agent, AgentEvent, Command, Turn
from bot.results import Transcript, Verdict, judge
from runners.agents.registry import agent
from runners.gateway.llm import LlmProxy
from tests.llm import Script, ScriptedLlm

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]  # with both installations

KEY = "sk-real-key-0123456789"
TOKEN = "attempt-token-abcdef"
MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5.5"}
PRICES = {"gpt-5.5": {"input": 2, "output": 10, "cached": 0.5}}
PACKAGES = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex"}
MACHINE = {"x86_64": ("x64", "x86_64"), "aarch64": ("arm64", "aarch64")}
DONE = '<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>'


def installed(name: str) -> Path:
    """The agent's native binary, installed when it is not yet there."""
    tool = agent(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-conductor" / "clis"
    folder = cache / f"{name}-{tool.version}"
    short, long = MACHINE[platform.machine()]
    modules = folder / "node_modules"
    binary = {
        "claude": modules / "@anthropic-ai/claude-code/bin/claude.exe",
        "codex": modules / f"@openai/codex-linux-{short}/vendor/{long}-unknown-linux-musl/bin/codex",
    }[name]
    if not binary.exists():
        if shutil.which("npm") is None:
            pytest.skip(f"{name} {tool.version} is not installed and there is no npm to install it")
        building = cache / f"{name}-{uuid.uuid4().hex}"
        building.mkdir(parents=True)
        wanted = f"{PACKAGES[name]}@{tool.version}"
        argv = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(building), wanted]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=170, check=False)
        assert done.returncode == 0, done.stderr
        if not folder.exists():
            building.rename(folder)
    return binary


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both CLIs under their own names."""
    folder = tmp_path_factory.mktemp("bin")
    for name in PACKAGES:
        (folder / name).symlink_to(installed(name))
    return folder


class Ledger:
    def __init__(self) -> None:
        self.total = Usage()
        self.models: set[str] = set()

    def add_usage(self, model: str, usage: Usage) -> None:
        self.total += usage
        self.models.add(model)


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

    def __init__(self, root: Path, binaries: Path, gateway: str, ledger: Ledger) -> None:
        self.home, self.repo = root / "home", root / "repo"
        self.binaries, self.gateway, self.ledger = binaries, gateway, ledger
        self.tokens_seen: set[str] = set()
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
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            cwd=self.repo,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=16 * 2**20,
        )
        assert process.stdin is not None
        process.stdin.write(command.stdin.encode())
        await process.stdin.drain()
        process.stdin.close()
        return process

    async def finish(self, tool: Agent, process: asyncio.subprocess.Process) -> Outcome:
        stdout, stderr = await process.communicate()
        lines = stdout.decode().splitlines()
        events = [event for line in lines for event in tool.read(line)]
        assert process.returncode is not None
        code = process.returncode
        return Outcome(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            lines=lines,
            stderr=stderr.decode(),
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
        "llm_anthropic_key": KEY,
        "llm_openai_key": KEY,
        "prices": PRICES,
    }
    proxy, ledger = LlmProxy(fixed_settings(**(values | settings))), Ledger()
    seen: set[str] = set()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.add(request.headers.get("x-api-key") or request.headers["Authorization"].removeprefix("Bearer "))
        return await proxy.serve(request, ledger, request.path_qs.removeprefix("/llm/"))

    app = web.Application()
    app.router.add_route("*", "/llm/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        made = World(tmp_path, binaries, f"http://127.0.0.1:{runner.addresses[0][1]}", ledger)
        made.tokens_seen = seen
        yield made
    finally:
        await proxy.close()
        await runner.cleanup()


def turn(name: str, **changes: Any) -> Turn:
    values: dict[str, Any] = {
        "number": 1,
        "prompt": "Write note.txt. End with a result block.",
        "model": MODELS[name],
        "session_id": str(uuid.uuid4()),
        "resume": False,
        "timeout": 60,
    }
    return Turn(**(values | changes))


def writes(name: str, path: Path, text: str) -> dict[str, Any]:
    """A turn of the model that writes a file with the CLI's own tool."""
    if name == "claude":
        call = {"name": "Write", "input": {"file_path": str(path), "content": text}}
    else:
        call = {
            "name": "apply_patch",
            "raw": f"*** Begin Patch\n*** Add File: {path.name}\n+{text.rstrip()}\n*** End Patch",
        }
    return {"text": "I write the file.", "calls": [call], "usage": {"input": 1000, "output": 100}}


def runs(name: str, command: str) -> dict[str, Any]:
    """A turn of the model that runs a shell command."""
    if name == "claude":
        return {"calls": [{"name": "Bash", "input": {"command": command, "description": "run"}}]}
    return {"calls": [{"name": "exec_command", "input": {"cmd": command, "login": False}}]}


def keep(name: str, outcome: Outcome, made: World) -> None:
    """With CAPTURE_TRANSCRIPTS set to a folder: write the output there, without this machine's paths."""
    folder = os.environ.get("CAPTURE_TRANSCRIPTS")
    if folder:
        text = "\n".join(outcome.lines) + "\n"
        for path, shown in (
            (made.repo, "/workspace/repo"),
            (made.home, "/home/agent"),
            (made.repo.parent, "/workspace"),
            (re.sub("[^A-Za-z0-9]", "-", str(made.repo)), "-workspace-repo"),  # a folder's name of Claude's
            (made.gateway, "http://127.0.0.1:8080"),
        ):
            text = text.replace(str(path), shown)
        target = Path(folder) / f"{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_two_turns_in_one_session(name: str, tmp_path: Path, binaries: Path) -> None:
    tool = agent(name)
    note = tmp_path / "repo" / "note.txt"
    script = Script.of(
        [
            writes(name, note, "hello\n"),
            {"text": f"Done.\n{DONE}", "usage": {"input": 500, "output": 50, "cached": 1000}},
            {"text": f"Still there.\n{DONE}", "usage": {"input": 200, "output": 10, "cached": 1500}},
        ]
    )
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        first = turn(name)
        outcome = await made.run(tool, first)
        keep(f"{name}-success", outcome, made)
        verdict = outcome.judge()
        assert verdict.ok, (verdict, outcome)
        assert verdict.result is not None
        assert (verdict.result.title, verdict.result.summary) == ("Add a note", "Wrote note.txt")
        assert note.read_text() == "hello\n"
        assert outcome.transcript.session_id
        kinds = {event.kind for event in outcome.events}
        assert {"started", "text", "tool", "tool_result", "final"} <= kinds

        # only what the agent names as its session comes along into the next container
        home = tmp_path / "moved"
        for path in tool.session_paths:
            shutil.copytree(made.home / path, home / path)
        shutil.rmtree(made.home)
        home.rename(made.home)
        again = turn(
            name,
            number=2,
            prompt="Is the note still there?",
            session_id=outcome.transcript.session_id,
            resume=True,
        )
        second = await made.run(tool, again)
        keep(f"{name}-resume", second, made)
        assert second.judge(changed=False).ok, second
        assert second.transcript.session_id == outcome.transcript.session_id

        assert made.tokens_seen == {TOKEN}
        assert TOKEN not in "".join(request.text for request in llm.requests)
        for request in llm.requests:
            sent = request.headers.get("x-api-key") or request.headers["authorization"].removeprefix(
                "Bearer "
            )
            assert sent == KEY
        resumed = json.dumps(llm.requests[-1].body)
        assert "Is the note still there?" in resumed
        assert "End with a result block." in resumed  # the first turn's prompt: the conversation goes on
        price = (3, 15, 0.3) if name == "claude" else (2, 10, 0.5)
        assert made.ledger.models == {MODELS[name]}
    total = made.ledger.total
    assert (total.input_tokens, total.output_tokens, total.cached_tokens) == (1700, 160, 2500)
    assert total.requests == 3
    assert total.cost == pytest.approx((1700 * price[0] + 160 * price[1] + 2500 * price[2]) / 1e6)


@pytest.mark.parametrize("name", ["claude", "codex"])
@pytest.mark.parametrize(
    ("case", "error", "kind"),
    [
        ("401", {"status": 401, "message": "invalid x-api-key"}, FailureKind.auth),
        (
            "429",
            {"status": 429, "message": "Number of requests has exceeded your rate limit"},
            FailureKind.quota,
        ),
        ("500", {"status": 500, "message": "Internal server error"}, FailureKind.infrastructure),
        (
            "credit",
            {"status": 400, "type": "invalid_request_error", "message": "Your credit balance is too low"},
            FailureKind.quota,
        ),
    ],
)
async def test_refusals_of_the_provider(
    name: str, case: str, error: dict[str, Any], kind: FailureKind, tmp_path: Path, binaries: Path
) -> None:
    # a provider that says when to come back is asked again sooner than one that does not
    error = {**error, "headers": {"retry-after": "0"}}
    script = Script.of([{"error": error, "times": "always"}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name), CLAUDE_CODE_MAX_RETRIES="1")
        keep(f"{name}-{case}", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, kind), (verdict, outcome)
    assert KEY not in "\n".join(outcome.lines)
    assert made.ledger.total == Usage()


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_provider_out_of_reach(name: str, tmp_path: Path, binaries: Path) -> None:
    async with ScriptedLlm(Script.of([])) as llm:
        url = llm.url  # nobody listens there any more below
    async with world(tmp_path, binaries, url) as made:
        outcome = await made.run(agent(name), turn(name), CLAUDE_CODE_MAX_RETRIES="1")
        keep(f"{name}-unreachable", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.infrastructure), (verdict, outcome)
    assert "cannot be reached" in verdict.message


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_server_without_a_key(name: str, tmp_path: Path, binaries: Path) -> None:
    async with (
        ScriptedLlm(Script.of([])) as llm,
        world(tmp_path, binaries, llm.url, llm_anthropic_key="", llm_openai_key="") as made,
    ):
        outcome = await made.run(agent(name), turn(name), CLAUDE_CODE_MAX_RETRIES="0")
        keep(f"{name}-no-key", outcome, made)
        assert llm.requests == []
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.configuration), (verdict, outcome)
    assert f"CONDUCTOR_LLM_{'ANTHROPIC' if name == 'claude' else 'OPENAI'}_KEY" in verdict.message


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_end_without_a_result(name: str, tmp_path: Path, binaries: Path) -> None:
    script = Script.of([{"text": "I looked around and that is all."}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-no-result", outcome, made)
    verdict = outcome.judge(changed=False)
    assert outcome.exit_code == 0
    assert (verdict.ok, verdict.kind) == (False, FailureKind.no_result)


async def test_claude_out_of_turns(tmp_path: Path, binaries: Path) -> None:
    script = Script.of([{**runs("claude", "true"), "times": "always"}])
    tool = agent("claude")
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        command = made.prepare(tool, turn("claude"))
        command = Command(argv=[*command.argv, "--max-turns", "2"], stdin=command.stdin, env=command.env)
        outcome = await made.finish(tool, await made.start(command))
        keep("claude-max-turns", outcome, made)
    verdict = outcome.judge()
    assert (verdict.ok, verdict.kind) == (False, FailureKind.agent)
    assert "maximum number of turns" in verdict.message


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_cut_stream_is_tried_again(name: str, tmp_path: Path, binaries: Path) -> None:
    script = Script.of([{"drop": True, "text": "lost"}, {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-cut", outcome, made)
    assert outcome.judge(changed=False).ok, outcome


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_sigterm_ends_it_and_the_session_goes_on(name: str, tmp_path: Path, binaries: Path) -> None:
    tool = agent(name)
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    script = Script.of([runs(name, f"echo > {fifo}; tail -f /dev/null"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        process = await made.start(made.prepare(tool, first := turn(name)))
        # opens once the agent's command opened the other end
        with await asyncio.to_thread(fifo.open) as begun:
            begun.read(1)
        process.send_signal(signal.SIGTERM)
        outcome = await made.finish(tool, process)
        keep(f"{name}-sigterm", outcome, made)
        verdict = outcome.judge()
        assert (verdict.ok, verdict.kind) == (False, FailureKind.crash), (verdict, outcome)
        assert "signal 15" in verdict.message
        stopped = judge(outcome.transcript, exit_code=outcome.exit_code, stopped=True, changed=False)
        assert (stopped.ok, stopped.kind) == (False, None)
        session = outcome.transcript.session_id
        assert session
        again = turn(name, number=2, prompt="Go on.", session_id=session, resume=True)
        second = await made.run(tool, again)
        assert second.judge(changed=False).ok, second
        assert first.prompt in json.dumps(llm.requests[-1].body)


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_unknown_session(name: str, tmp_path: Path, binaries: Path) -> None:
    async with ScriptedLlm(Script.of([])) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name, resume=True))
        keep(f"{name}-unknown-session", outcome, made)
        assert llm.requests == []
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, outcome.exit_code) == (False, 1)


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_large_prompt(name: str, tmp_path: Path, binaries: Path) -> None:
    prompt = "Read this carefully. " * 15_000  # more than one argument of a program may hold
    async with ScriptedLlm(Script.of([{"text": DONE}])) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name, prompt=prompt))
        assert outcome.judge(changed=False).ok, outcome
        assert prompt.strip() in llm.requests[0].text


async def test_codex_keeps_the_token_from_its_commands(tmp_path: Path, binaries: Path) -> None:
    seen = tmp_path / "repo" / "env.txt"
    script = Script.of([runs("codex", "env > env.txt"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent("codex"), turn("codex"))
    assert outcome.judge().ok, outcome
    assert "HOME=" in seen.read_text()
    assert TOKEN not in seen.read_text()
