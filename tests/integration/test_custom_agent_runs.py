"""Agents of the operator's own, started as the shim starts them: small scripts stand for their CLIs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.config import fixed_settings
from bot.model import FailureKind
from bot.ports import Agent, Turn
from runners.agents.registry import agent
from tests.cli_world import DONE, TOKEN, Outcome, World, world
from tests.llm import Script, ScriptedLlm

#: Asks the model once, by the usual variables, and prints what it says.
ASKS = """python3 - <<'PY'
import json, os, urllib.request
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps({"model": "m1", "messages": [{"role": "user", "content": open(0 + 3).read()}]}).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
PY
"""


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[World]:
    """A home, a repository and a gateway before a model that is always done."""
    (tmp_path / "bin").mkdir()
    script = Script.of([], aside=f"I did it.\n{DONE}")
    async with ScriptedLlm(script) as llm, world(tmp_path, tmp_path / "bin", llm.url) as made:
        yield made


def cli(box: World, script: str, *, reads: bool = False) -> None:
    """Make ``mycli``, a bash script. Unless it ``reads`` its standard input, that is taken first, as every CLI does."""
    file = box.binaries / "mycli"
    file.write_text(f"#!/bin/bash\n{'' if reads else 'cat > /dev/null'}\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def mine(**config: Any) -> Agent:
    return agent("mine", fixed_settings(custom_agents={"mine": {"argv": ["mycli"], **config}}))


def turn(**changes: Any) -> Turn:
    values: dict[str, Any] = {
        "number": 1,
        "prompt": "Look at {gateway} and $HOME.\nThen end.",
        "model": "m1",
        "session_id": str(uuid.uuid4()),
        "resume": False,
        "timeout": 60,
    }
    return Turn(**(values | changes))


async def run(box: World, tool: Agent, given: Turn | None = None) -> Outcome:
    return await box.run(tool, given or turn())


async def test_plain_text_through_the_gateway(box: World) -> None:
    cli(box, f"exec 3<&0; {ASKS}", reads=True)
    outcome = await run(box, mine())
    verdict = outcome.judge()
    assert verdict.ok, (verdict, outcome)
    assert verdict.result is not None
    assert verdict.result.title == "Add a note"
    assert box.tokens_seen == {TOKEN}
    assert [event.kind for event in outcome.events] == ["started", "log", "log", "text", "final"]


async def test_all_lines_are_the_last_words_without_their_colours(box: World) -> None:
    result = '<result>{"status": "done",\\n "title": "T"}</result>'
    cli(box, f"""printf '\\033[1mHello\\033[0m\\r\\n\\033]0;title\\007{result}\\n'""")
    outcome = await run(box, mine())
    assert outcome.judge().ok, outcome
    assert outcome.transcript.text == 'Hello\n<result>{"status": "done",\n "title": "T"}</result>'


@pytest.mark.parametrize(
    ("script", "exit_code", "words"),
    [
        ("echo started; echo 'no such model'; exit 3", 3, "mycli ended with exit code 3: no such model."),
        ("exit 1", 1, "mycli ended with exit code 1: it printed nothing."),
        ("kill -9 $$", 137, "mycli ended with signal 9: it printed nothing."),
    ],
)
async def test_an_exit_code_is_its_last_event(box: World, script: str, exit_code: int, words: str) -> None:
    cli(box, script)
    outcome = await run(box, mine())
    verdict = outcome.judge(changed=False)
    assert (outcome.exit_code, verdict.ok, verdict.kind) == (exit_code, False, FailureKind.agent)
    assert words in verdict.message


async def test_words_of_a_provider_in_plain_text_are_understood(box: World) -> None:
    cli(box, "echo 'Error: 429 rate limit reached'; exit 1")
    assert (await run(box, mine())).judge(changed=False).kind is FailureKind.quota


async def test_a_text_that_looks_like_an_event_is_none(box: World) -> None:
    cli(box, """echo '{"kind": "final", "ok": true}'; exit 1""")
    assert not (await run(box, mine())).judge(changed=False).ok


async def test_done_in_words_alone_is_not_enough(box: World) -> None:
    cli(box, f"echo '{DONE}'; exit 1")
    assert not (await run(box, mine())).judge().ok
    cli(box, "echo 'All is well.'")
    assert (await run(box, mine())).judge().kind is FailureKind.no_result


async def test_a_program_that_is_missing_is_named(box: World) -> None:
    verdict = (await run(box, mine())).judge(changed=False)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.configuration)
    assert "mycli cannot be started: No such file or directory." in verdict.message


@pytest.mark.parametrize("output", ["text", "jsonl"])
async def test_prompt_in_a_file(box: World, output: str) -> None:
    cli(box, 'cat "$2" > told.txt; cat > stdin.txt; echo "$@" > argv.txt', reads=True)
    await run(box, mine(argv=["mycli", "--prompt", "{prompt_file}", "a  b & $HOME"], output=output))
    told = (box.repo / "told.txt").read_text()
    # {gateway} in a file is the shim's to fill in; nothing else of a prompt is touched
    assert told == f"Look at {box.gateway} and $HOME.\nThen end."
    assert (box.repo / "stdin.txt").read_text() == ""
    path = box.home / ".agent-adapter/prompt.md"
    assert (box.repo / "argv.txt").read_text() == f"--prompt {path} a  b & $HOME\n"


async def test_events_of_its_own(box: World) -> None:
    events = [
        {"kind": "started", "session_id": "s-1"},
        {"kind": "text", "text": DONE},
        {"kind": "final", "ok": True, "usage": {"input": 3, "output": 4, "cached": 5, "cache_write": 6}},
    ]
    cli(box, "\n".join(f"echo '{json.dumps(event)}'" for event in events))
    outcome = await run(box, mine(output="jsonl", resume=["mycli", "--again", "{session}"]))
    assert outcome.judge().ok, outcome
    assert outcome.transcript.session_id == "s-1"
    usage = outcome.transcript.usage
    assert usage is not None
    assert [usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.cache_write_tokens] == [
        3,
        4,
        5,
        6,
    ]


async def test_a_session_of_plain_text_goes_on_by_our_id(box: World) -> None:
    cli(box, f"""echo "$@" >> argv.txt; echo '{DONE}'""")
    tool = mine(argv=["mycli", "--new", "{session}"], resume=["mycli", "--again", "{session}"])
    given = turn()
    first = await run(box, tool, given)
    assert first.transcript.session_id == given.session_id
    await run(box, tool, turn(session_id=given.session_id, resume=True))
    told = (box.repo / "argv.txt").read_text().splitlines()
    assert told == [f"--new {given.session_id}", f"--again {given.session_id}"]
    without = await run(box, mine())
    assert without.transcript.session_id is None


async def test_sigterm_ends_the_adapter_and_its_cli(box: World) -> None:
    fifo = box.home / "begun"
    os.mkfifo(fifo)
    cli(box, f"echo > {fifo}; exec tail -f /dev/null")
    tool = mine()
    process = await box.start(box.prepare(tool, turn()))
    with await asyncio.to_thread(fifo.open) as begun:
        begun.read(1)
    os.killpg(process.pid, signal.SIGTERM)  # as the shim does: the whole group
    outcome = await box.finish(tool, process)
    assert outcome.judge().kind is FailureKind.crash
