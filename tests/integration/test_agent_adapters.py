"""The real droid, aider and mini-swe-agent, started as the shim starts them, against the scripted LLM.

As in test_agent_clis.py: plain processes here, locked containers in the scenarios; the exact versions, from npm and
PyPI. Each run of the Python ones costs seconds for their imports alone, so there are few.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bot.model import FailureKind
from bot.ports import Command, Turn
from runners.agents.registry import agent
from runners.shim import pack_session, unpack_session
from tests.cli_world import DONE, KEY, TOKEN, Outcome, World, keep, npm, provided, world
from tests.llm import Script, ScriptedLlm

pytestmark = [pytest.mark.cli, pytest.mark.timeout(900)]  # with all installations

NAMES = ["droid", "aider", "mini"]
MACHINE = {"x86_64": "x64", "aarch64": "arm64"}
PACKAGES = {"aider": ["aider-chat=={}"], "mini": ["mini-swe-agent=={}", "mcp>=2,<3"]}
FIRST_PROMPT = "Write note.txt. End with a result block."
#: What aider would take for its settings, if it read any in the repository.
OWN_SETTINGS = {
    ".aider.conf.yml": "message: other\ndry-run: true\n",
    ".env": "OPENAI_API_BASE=http://127.0.0.1:9\n",
}


def virtual_environment(packages: Sequence[str]) -> Any:
    """How Python packages are installed."""
    script = 'python=$1; folder=$2; shift 2; "$python" -m venv "$folder" && "$folder/bin/pip" install -q "$@"'
    return lambda folder: ("bash", "-c", script, "bash", sys.executable, str(folder), *packages)


def installed(name: str) -> Path:
    """What starts the CLI, installed when it is not yet there."""
    version = agent(name).version
    if name == "droid":
        modules = provided(name, version, npm("droid", version)) / "node_modules"
        return modules / f"@factory/cli-linux-{MACHINE[platform.machine()]}/bin/droid"
    if sys.version_info >= (3, 13):
        pytest.skip(f"{name} {version} does not install on Python {platform.python_version()}")
    packages = [package.format(version) for package in PACKAGES[name]]
    return provided(name, version, virtual_environment(packages)) / "bin" / name


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CLIs under their own names."""
    folder = tmp_path_factory.mktemp("bin")
    for name in NAMES:
        (folder / name).symlink_to(installed(name))
    return folder


@pytest.fixture
async def elsewhere() -> AsyncIterator[dict[str, Any]]:
    """A proxy for everything that is not the gateway: it refuses, and keeps what was asked for in ``asked``."""
    asked: list[str] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    yield {"asked": asked, "env": {**dict.fromkeys(names, address), "NO_PROXY": "127.0.0.1"}}
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def refusing(status: int, message: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A provider that refuses every call; the paths that were called."""
    called: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        called.append(request.path)
        await request.read()
        body = {"error": {"message": message, "type": "refused", "code": "refused"}}
        return web.json_response(body, status=status, headers={"retry-after": "0"})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", refuse)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", called
    finally:
        await runner.cleanup()


def turn(**changes: Any) -> Turn:
    values: dict[str, Any] = {
        "number": 1,
        "prompt": FIRST_PROMPT,
        "model": "m1",
        "session_id": str(uuid.uuid4()),
        "resume": False,
        "timeout": 60,
    }
    return Turn(**(values | changes))


def repository(made: World) -> None:
    subprocess.run(["git", "init", "-q", str(made.repo)], check=True)
    for name, text in OWN_SETTINGS.items():
        (made.repo / name).write_text(text)
    (made.repo / ".git/info/exclude").write_text("".join(f"/{name}\n" for name in OWN_SETTINGS))


def changed(made: World) -> list[str]:
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    done = subprocess.run(status, cwd=made.repo, capture_output=True, text=True, check=True)
    return sorted(line[3:] for line in done.stdout.splitlines())


async def run(made: World, name: str, given: Turn, env: dict[str, str]) -> Outcome:
    tool = agent(name)
    command = made.prepare(tool, given)
    return await made.finish(tool, await made.start(replace(command, env={**command.env, **env})))


async def test_droid_goes_on_in_its_session(
    tmp_path: Path, binaries: Path, elsewhere: dict[str, Any]
) -> None:
    note = tmp_path / "repo" / "note.txt"
    script = Script.of(
        [
            {
                "text": "I write the file.",
                "calls": [{"name": "Create", "input": {"file_path": str(note), "content": "hello\n"}}],
                "usage": {"input": 1000, "output": 100},
            },
            {"text": f"Done.\n{DONE}", "usage": {"input": 500, "output": 50, "cached": 1000}},
            {"text": f"Still there.\n{DONE}", "usage": {"input": 200, "output": 10, "cached": 1500}},
        ]
    )
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        repository(made)
        first = await run(made, "droid", turn(), elsewhere["env"])
        keep("droid-success", first, made)
        second = await goes_on(made, "droid", first, elsewhere["env"])
        keep("droid-resume", second, made)
        proves_two_turns(made, llm, first, second)
    assert (made.ledger.total.requests, made.ledger.total.input_tokens) == (3, 1700)
    assert {"started", "text", "tool", "tool_result", "final"} <= {event.kind for event in first.events}
    assert elsewhere["asked"] == []


async def test_aider_goes_on_in_its_session(
    tmp_path: Path, binaries: Path, elsewhere: dict[str, Any]
) -> None:
    edit = f"I write the file.\n\nnote.txt\n```\nhello\n```\n\nDone.\n{DONE}"
    # its requests have no tools, so every answer is the script's "aside"
    async with ScriptedLlm(Script.of([], aside=edit)) as llm, world(tmp_path, binaries, llm.url) as made:
        repository(made)
        first = await run(made, "aider", turn(), elsewhere["env"])
        keep("aider-success", first, made)
    still = f"Still there.\n{DONE}"
    async with ScriptedLlm(Script.of([], aside=still)) as llm, world(tmp_path, binaries, llm.url) as made:
        second = await goes_on(made, "aider", first, elsewhere["env"])
        keep("aider-resume", second, made)
        proves_two_turns(made, llm, first, second)
        # the file of the first turn is in the chat of the second
        assert "note.txt\\n```\\nhello" in json.dumps(llm.requests[-1].body)
    assert {"started", "text", "tool", "final"} <= {event.kind for event in first.events}
    assert first.transcript.usage is not None
    assert first.transcript.usage.output_tokens > 0
    assert elsewhere["asked"] == []


async def goes_on(made: World, name: str, first: Outcome, env: dict[str, str]) -> Outcome:
    """A second turn in a fresh home, with only what the agent names as its session in it."""
    verdict = first.judge()
    assert verdict.ok, (verdict, first)
    assert verdict.result is not None
    assert (verdict.result.title, verdict.result.summary) == ("Add a note", "Wrote note.txt")
    assert (made.repo / "note.txt").read_text() == "hello\n"
    assert changed(made) == ["note.txt"]
    archive = made.home.parent / "session.tar"
    assert pack_session(made.home, agent(name).session_paths, archive) > 0
    shutil.rmtree(made.home)
    made.home.mkdir()
    unpack_session(archive, made.home)
    again = turn(
        number=2, prompt="Is the note still there?", session_id=first.transcript.session_id, resume=True
    )
    return await run(made, name, again, env)


def proves_two_turns(made: World, llm: ScriptedLlm, first: Outcome, second: Outcome) -> None:
    assert second.judge(changed=False).ok, second
    assert second.transcript.session_id == first.transcript.session_id
    assert changed(made) == ["note.txt"]
    resumed = json.dumps(llm.requests[-1].body)
    assert "Is the note still there?" in resumed
    assert FIRST_PROMPT in resumed
    assert made.tokens_seen == {TOKEN}
    assert TOKEN not in "".join(request.text for request in llm.requests)
    assert {request.headers["authorization"] for request in llm.requests} == {f"Bearer {KEY}"}


async def test_mini_submits_its_work(tmp_path: Path, binaries: Path, elsewhere: dict[str, Any]) -> None:
    def bash(command: str) -> list[dict[str, Any]]:
        return [{"name": "bash", "input": {"command": command}}]

    script = Script.of(
        [
            {"text": "I write the file.", "calls": bash("echo hello > note.txt; env > ../env.txt; false")},
            {"text": "An answer without a command."},
            {"text": f"Done.\n{DONE}", "calls": bash("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")},
        ]
    )
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        repository(made)
        outcome = await run(made, "mini", turn(), elsewhere["env"])
        keep("mini-success", outcome, made)
        verdict = outcome.judge()
        assert verdict.ok, (verdict, outcome)
        assert verdict.result is not None
        assert verdict.result.title == "Add a note"
        assert changed(made) == ["note.txt"]
        assert len(llm.requests) == 3
        assert FIRST_PROMPT in llm.requests[0].text
        assert made.tokens_seen == {TOKEN}
    assert TOKEN not in (tmp_path / "env.txt").read_text()  # its commands do not see it
    told = [(event.kind, event.ok) for event in outcome.events]
    assert told == [
        ("started", True), ("text", True), ("tool", True), ("tool_result", False), ("error", False),
        ("text", True), ("tool", True), ("final", True),
    ]  # fmt: skip
    assert elsewhere["asked"] == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_refused_key_is_a_failure(
    name: str, tmp_path: Path, binaries: Path, elsewhere: dict[str, Any]
) -> None:
    async with refusing(401, "invalid x-api-key") as (url, called), world(tmp_path, binaries, url) as made:
        repository(made)
        outcome = await run(made, name, turn(), elsewhere["env"])
        keep(f"{name}-401", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.auth), (verdict, outcome)
    assert verdict.message == "The LLM provider refused the credentials: invalid x-api-key."
    assert called == ["/v1/chat/completions"]
    assert elsewhere["asked"] == []


@pytest.mark.parametrize("name", ["aider", "mini"])
async def test_a_rate_limit_is_told_as_one(name: str, tmp_path: Path, binaries: Path) -> None:
    """droid's 429 is in the captured transcripts: its own tries take a minute and a half."""
    message = "Rate limit reached for requests"
    tool = agent(name)
    async with refusing(429, message) as (url, called), world(tmp_path, binaries, url) as made:
        repository(made)
        command = sooner(made.prepare(tool, turn()), made.home / ".agent-adapter/turn.json")
        outcome = await made.finish(tool, await made.start(command))
        keep(f"{name}-429", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.quota), (verdict, outcome)
    assert message in verdict.message
    assert len(called) >= 2
    retries = [event for event in outcome.events if event.kind == "retry"]
    assert [(event.ok, event.failure) for event in retries] == [(False, "quota")]


def sooner(command: Command, settings: Path) -> Command:
    """With one more try instead of several, and soon."""
    values = json.loads(settings.read_text())
    if "longest_wait" in values:
        settings.write_text(json.dumps(values | {"longest_wait": 0.3}))
    return replace(command, env={**command.env, "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "2"})


async def test_a_cli_that_is_not_installed_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    async with world(tmp_path, empty, "http://127.0.0.1:9") as made:
        command = made.prepare(agent("aider"), turn())
        (empty / "bash").symlink_to(str(shutil.which("bash")))
        process = await made.start(replace(command, env={**command.env, "PATH": str(empty)}))
        outcome = await made.finish(agent("aider"), process)
    assert outcome.exit_code == 127
    assert outcome.stderr == "aider is not installed here\n"
