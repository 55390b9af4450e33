"""The real Gemini CLI, OpenCode and Qwen Code, started as the shim starts them, against the scripted LLM.

As in test_agent_clis.py: plain processes here, locked containers in the scenarios; npm packages of the exact version.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.model import FailureKind, Usage
from bot.ports import Agent, Command
from bot.results import judge
from runners.agents.registry import agent
from runners.shim import pack_session, unpack_session
from tests.cli_world import (
    DONE,
    KEY,
    MODELS,
    TOKEN,
    World,
    keep,
    key_of,
    linked,
    npm,
    out_of_reach,
    provided,
    turn,
    without_a_key,
    without_a_result,
    world,
)
from tests.llm import Script, ScriptedLlm

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]  # with all installations

NAMES = ["gemini", "opencode", "qwen"]
PACKAGES = {"gemini": "@google/gemini-cli", "opencode": "opencode-ai", "qwen": "@qwen-code/qwen-code"}
MACHINE = {"x86_64": "x64-baseline", "aarch64": "arm64"}


def installed(name: str) -> Path:
    """What starts the CLI, installed when it is not yet there."""
    version = agent(name).version
    modules = provided(name, version, npm(PACKAGES[name], version)) / "node_modules"
    return {
        "gemini": modules / ".bin/gemini",
        "opencode": modules / f"opencode-linux-{MACHINE[platform.machine()]}/bin/opencode",
        "qwen": modules / ".bin/qwen",
    }[name]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the CLIs under their own names."""
    return linked(tmp_path_factory.mktemp("bin"), NAMES, installed)


def writes(name: str, path: Path, text: str) -> dict[str, Any]:
    """A turn of the model that writes a file with the CLI's own tool."""
    if name == "opencode":
        call = {"name": "write", "input": {"filePath": str(path), "content": text}}
    else:
        call = {"name": "write_file", "input": {"file_path": str(path), "content": text}}
    return {"text": "I write the file.", "calls": [call], "usage": {"input": 1000, "output": 100}}


def runs(name: str, command: str) -> dict[str, Any]:
    """A turn of the model that runs a shell command."""
    given: dict[str, Any] = {"command": command, "description": "run"}
    if name == "opencode":
        return {"calls": [{"name": "bash", "input": given}]}
    if name == "qwen":
        given["is_background"] = False
    return {"calls": [{"name": "run_shell_command", "input": given}]}


def moved(tool: Agent, made: World, spare: Path) -> None:
    """Only what the agent names as its session comes along into the next container, in the shim's archive."""
    pack_session(made.home, tool.session_paths, spare)
    shutil.rmtree(made.home)
    made.home.mkdir()
    unpack_session(spare, made.home)


@pytest.mark.parametrize("name", NAMES)
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
        outcome = await made.run(tool, turn(name))
        keep(f"{name}-success", outcome, made)
        verdict = outcome.judge()
        assert verdict.ok, (verdict, outcome)
        assert verdict.result is not None
        assert (verdict.result.title, verdict.result.summary) == ("Add a note", "Wrote note.txt")
        assert note.read_text() == "hello\n"
        kinds = {event.kind for event in outcome.events}
        assert {"started", "text", "tool", "tool_result", "final"} <= kinds
        assert outcome.transcript.usage == Usage(
            input_tokens=1500, output_tokens=150, cached_tokens=1000, cost=None
        )
        session = outcome.transcript.session_id
        assert session

        moved(tool, made, tmp_path / "session.tar")
        again = turn(name, number=2, prompt="Is the note still there?", session_id=session, resume=True)
        second = await made.run(tool, again)
        keep(f"{name}-resume", second, made)
        assert second.judge(changed=False).ok, second
        assert second.transcript.session_id == session

        assert made.tokens_seen == {TOKEN}
        # three calls, no more: no titles, no checks, no suggestions
        assert len(llm.requests) == 3
        for request in llm.requests:
            assert TOKEN not in request.text
            assert key_of(request.headers) == KEY
        resumed = json.dumps(llm.requests[-1].body)
        assert "Is the note still there?" in resumed
        assert "End with a result block." in resumed  # the first turn's prompt: the conversation goes on
        assert made.ledger.models == {MODELS[name]}
    total = made.ledger.total
    assert (total.input_tokens, total.output_tokens, total.cached_tokens) == (1700, 160, 2500)
    assert total.requests == 3
    assert total.cost == pytest.approx((1700 * 1 + 160 * 4 + 2500 * 0.25) / 1e6)


#: What the providers say; the names are those of the transcripts.
REFUSALS = {
    "401": ({"status": 401, "message": "Incorrect API key provided: sk-x."}, FailureKind.auth),
    "credit": ({"status": 402, "message": "Insufficient credits"}, FailureKind.quota),
    "429": (
        {"status": 429, "message": "You exceeded your current quota", "headers": {"retry-after": "1"}},
        FailureKind.quota,
    ),
    "500": (
        {"status": 500, "message": "Internal server error", "headers": {"retry-after": "1"}},
        FailureKind.infrastructure,
    ),
}
GOOGLE = {
    "400": (
        {"status": 400, "message": "API key not valid. Please pass a valid API key."},
        FailureKind.auth,
    ),
    "daily": (
        {
            "status": 429,
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
                }
            ],
        },
        FailureKind.quota,
    ),
    "503": ({"status": 503, "message": "The model is overloaded."}, FailureKind.infrastructure),
}
#: These are tried again for more than a minute, with no way to ask for less: their captured transcripts are judged in
#: the unit tests instead.
TOO_SLOW = [("qwen", "429"), ("qwen", "500")]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in NAMES
        for case in [*REFUSALS, *(GOOGLE if name == "gemini" else ())]
        if (name, case) not in TOO_SLOW
    ],
)
async def test_refusals_of_the_provider(name: str, case: str, tmp_path: Path, binaries: Path) -> None:
    error, kind = (REFUSALS | GOOGLE)[case]
    script = Script.of([{"error": error, "times": "always"}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-{case}", outcome, made)
        assert len(llm.requests) <= 12  # of the CLI, and of the gateway before it
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, kind), (verdict, outcome)
    assert error["message"].rstrip(".") in verdict.message or case == "daily"
    assert KEY not in "\n".join(outcome.lines)
    assert made.ledger.total == Usage()


@pytest.mark.parametrize("name", ["gemini"])  # OpenCode goes on trying for more than a minute
async def test_provider_out_of_reach(name: str, tmp_path: Path, binaries: Path) -> None:
    await out_of_reach(name, tmp_path, binaries)


@pytest.mark.parametrize(
    ("name", "provider"), [("gemini", "GEMINI"), ("opencode", "OPENAI"), ("qwen", "OPENAI")]
)
async def test_server_without_a_key(name: str, provider: str, tmp_path: Path, binaries: Path) -> None:
    await without_a_key(name, provider, tmp_path, binaries)


@pytest.mark.parametrize("name", NAMES)
async def test_end_without_a_result(name: str, tmp_path: Path, binaries: Path) -> None:
    await without_a_result(name, tmp_path, binaries)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("opencode", None), ("gemini", FailureKind.infrastructure), ("qwen", FailureKind.no_result)],
)
async def test_cut_stream(name: str, kind: FailureKind | None, tmp_path: Path, binaries: Path) -> None:
    """OpenCode tries again, Gemini gives up, Qwen takes the first half for all of it: never a success."""
    script = Script.of([{"drop": True, "text": "lost"}, {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-cut", outcome, made)
    verdict = outcome.judge(changed=False)
    assert (verdict.ok, verdict.kind) == (kind is None, kind), (verdict, outcome)


@pytest.mark.parametrize(
    ("name", "how"),
    [("gemini", signal.SIGTERM), ("qwen", signal.SIGTERM), *((name, signal.SIGKILL) for name in NAMES)],
)
async def test_end_by_a_signal_and_the_session_goes_on(
    name: str, how: signal.Signals, tmp_path: Path, binaries: Path
) -> None:
    tool = agent(name)
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    # its own process group may be another one: the shim finds all of them, here the pipe tells when it is gone
    script = Script.of([runs(name, f"echo > {fifo}; exec tail -f /dev/null --pid=$PPID"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        process = await made.start(made.prepare(tool, first := turn(name)))
        # opens once the agent's command opened the other end
        with await asyncio.to_thread(fifo.open) as begun:
            begun.read(1)
        os.killpg(process.pid, how)
        outcome = await made.finish(tool, process)
        verdict = outcome.judge()
        assert not verdict.ok, (verdict, outcome)
        stopped = judge(outcome.transcript, exit_code=outcome.exit_code, stopped=True, changed=False)
        assert (stopped.ok, stopped.kind) == (False, None)
        session = outcome.transcript.session_id or first.session_id
        moved(tool, made, tmp_path / "session.tar")
        again = turn(name, number=2, prompt="Go on.", session_id=session, resume=True)
        second = await made.run(tool, again)
        assert second.judge(changed=False).ok, second
        assert first.prompt in json.dumps(llm.requests[-1].body)


@pytest.mark.parametrize("name", NAMES)
async def test_unknown_session(name: str, tmp_path: Path, binaries: Path) -> None:
    unknown = "ses_e030a370effeffAECcq0DI8QYB" if name == "opencode" else str(uuid.uuid4())
    async with ScriptedLlm(Script.of([])) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name, resume=True, session_id=unknown))
        assert llm.requests == []
    assert not outcome.judge(changed=False).ok
    assert outcome.exit_code != 0


@pytest.mark.parametrize("name", NAMES)
async def test_large_prompt_with_what_looks_like_commands(name: str, tmp_path: Path, binaries: Path) -> None:
    # more than one argument of a program may hold; and a file that nobody asked to put in
    prompt = "Read this carefully. " * 15_000 + "\n@note.txt @pytest.fixture a@b.example\n/help\nThat is all."
    async with ScriptedLlm(Script.of([{"text": DONE}])) as llm, world(tmp_path, binaries, llm.url) as made:
        (made.repo / "note.txt").write_text("not asked for")
        outcome = await made.run(agent(name), turn(name, prompt=prompt))
        assert outcome.judge(changed=False).ok, outcome
        sent = json.dumps(llm.requests[0].body).replace("\\\\@", "@")
        assert json.dumps(prompt)[1:-1] in sent
        assert "not asked for" not in sent


@pytest.mark.parametrize("name", NAMES)
async def test_instructions_of_the_repository_are_read(name: str, tmp_path: Path, binaries: Path) -> None:
    async with ScriptedLlm(Script.of([{"text": DONE}])) as llm, world(tmp_path, binaries, llm.url) as made:
        (made.repo / "AGENTS.md").write_text("Indent with xyzzy.\n")
        outcome = await made.run(agent(name), turn(name))
        assert outcome.judge(changed=False).ok, outcome
        assert "Indent with xyzzy." in llm.requests[0].text


@pytest.mark.parametrize("name", NAMES)
async def test_failing_command(name: str, tmp_path: Path, binaries: Path) -> None:
    script = Script.of([runs(name, "echo it is broken; exit 3"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent(name), turn(name))
        keep(f"{name}-command", outcome, made)
    assert outcome.judge(changed=False).ok, outcome
    told = [(event.kind, event.text) for event in outcome.events if event.kind in ("tool", "tool_result")]
    assert "echo it is broken; exit 3" in told[0][1]
    assert "it is broken" in told[1][1]


@pytest.mark.parametrize(
    ("model", "protocol"),
    [("glm-4.6", "chat"), ("gpt-5.5", "responses"), ("claude-sonnet-4-5", "messages")],
)
async def test_opencode_speaks_what_the_models_server_understands(
    model: str, protocol: str, tmp_path: Path, binaries: Path
) -> None:
    script = Script.of([runs("opencode", "echo hello > note.txt"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent("opencode"), turn("opencode", model=model))
        assert outcome.judge().ok, outcome
        assert (made.repo / "note.txt").read_text() == "hello\n"
        assert [request.protocol for request in llm.requests] == [protocol, protocol]
        assert {request.body["model"] for request in llm.requests} == {model}
        assert made.tokens_seen == {TOKEN}
        assert {key_of(request.headers) for request in llm.requests} == {KEY}


async def test_opencode_obeys_no_permissions_of_the_repository(tmp_path: Path, binaries: Path) -> None:
    # asking would end the turn, for nobody answers
    script = Script.of([runs("opencode", "echo hello > note.txt"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        (made.repo / "opencode.json").write_text('{"permission": {"bash": "ask"}, "model": "other/x"}')
        outcome = await made.run(agent("opencode"), turn("opencode"))
        assert outcome.judge().ok, outcome
        assert (made.repo / "note.txt").read_text() == "hello\n"


async def test_gemini_out_of_turns(tmp_path: Path, binaries: Path) -> None:
    tool = agent("gemini")
    script = Script.of([{**runs("gemini", "true"), "times": "always"}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        command = made.prepare(tool, turn("gemini"))
        settings = made.home / ".gemini" / "settings.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "model": {"maxSessionTurns": 2}}))
        started = Command(argv=command.argv, stdin=command.stdin, env=command.env)
        outcome = await made.finish(tool, await made.start(started))
        keep("gemini-max-turns", outcome, made)
    verdict = outcome.judge()
    assert (verdict.ok, verdict.kind) == (False, FailureKind.agent), outcome
    assert "max session turns" in verdict.message.lower()
