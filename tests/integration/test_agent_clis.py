"""The real Claude Code and Codex, started as the shim starts them, against the scripted LLM through the proxy.

They run as plain processes here; the scenarios run them in their locked containers. Both come from npm, at the
exact version that the agent names, into a cache below $XDG_CACHE_HOME.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.live_words import Said
from bot.model import FailureKind, Usage
from bot.ports import Command
from bot.results import judge
from runners.agents.registry import agent
from tests.cli_world import (
    DONE,
    KEY,
    MODELS,
    TOKEN,
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

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]  # with both installations

PACKAGES = {"claude": "@anthropic-ai/claude-code", "codex": "@openai/codex"}
MACHINE = {"x86_64": ("x64", "x86_64"), "aarch64": ("arm64", "aarch64")}


def installed(name: str) -> Path:
    """The agent's native binary, installed when it is not yet there."""
    version = agent(name).version
    short, long = MACHINE[platform.machine()]
    modules = provided(name, version, npm(PACKAGES[name], version)) / "node_modules"
    return {
        "claude": modules / "@anthropic-ai/claude-code/bin/claude.exe",
        "codex": modules / f"@openai/codex-linux-{short}/vendor/{long}-unknown-linux-musl/bin/codex",
    }[name]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both CLIs under their own names."""
    return linked(tmp_path_factory.mktemp("bin"), PACKAGES, installed)


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
            assert key_of(request.headers) == KEY
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
    await out_of_reach(name, tmp_path, binaries, CLAUDE_CODE_MAX_RETRIES="1")


@pytest.mark.parametrize(("name", "provider"), [("claude", "ANTHROPIC"), ("codex", "OPENAI")])
async def test_server_without_a_key(name: str, provider: str, tmp_path: Path, binaries: Path) -> None:
    await without_a_key(name, provider, tmp_path, binaries, CLAUDE_CODE_MAX_RETRIES="0")


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_end_without_a_result(name: str, tmp_path: Path, binaries: Path) -> None:
    await without_a_result(name, tmp_path, binaries)


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


async def test_claude_is_told_between_two_tool_calls(tmp_path: Path, binaries: Path) -> None:
    begun, told = tmp_path / "begun", tmp_path / "told"
    for fifo in (begun, told):
        os.mkfifo(fifo)
    script = Script.of(
        [
            runs("claude", f"echo > {begun}; cat {told}"),
            runs("claude", f"echo > {begun}; cat {told}; exit 3"),  # a call that fails has a hook of its own
            runs("claude", "echo the last"),
            {"text": DONE},
        ]
    )
    said = [
        Said("d1/0", "octocat", "Keep the old format."),
        Said("d2/0", "maria", "é🚀" * 3000 + " And hurry."),
    ]
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        process = await made.start(made.prepare(agent("claude"), turn("claude")))
        for one in said:  # while a tool runs
            with await asyncio.to_thread(begun.open) as opened:
                opened.read(1)
            made.told.append(one)
            await asyncio.to_thread(told.write_text, "go on")
        outcome = await made.finish(agent("claude"), process)
        assert outcome.judge(changed=False).ok, outcome
        handed_over = made.desk.live_words
        # the CLI says which it took, word for word
        assert [event.text for event in outcome.events if event.kind == "told"] == [
            words.text for words in handed_over
        ]
        assert [words.said for words in handed_over] == [(said[0],), (said[1],)]
        seen = [json.dumps(request.body["messages"], ensure_ascii=False) for request in llm.requests]
    for place, one in enumerate(said):
        assert [text.count(one.words) for text in seen] == [0] * (place + 1) + [1] * (3 - place)
    assert "people who may command you said more" in seen[1]


async def test_codex_keeps_the_token_from_its_commands(tmp_path: Path, binaries: Path) -> None:
    seen = tmp_path / "repo" / "env.txt"
    script = Script.of([runs("codex", "env > env.txt"), {"text": DONE}])
    async with ScriptedLlm(script) as llm, world(tmp_path, binaries, llm.url) as made:
        outcome = await made.run(agent("codex"), turn("codex"))
    assert outcome.judge().ok, outcome
    assert "HOME=" in seen.read_text()
    assert TOKEN not in seen.read_text()
