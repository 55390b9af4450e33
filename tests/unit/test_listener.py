"""Listening to a turn: what people are shown of it, and what its verdict is made from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

from bot.listener import RECENT, Listener
from bot.live_words import Said, live_words
from bot.ports import AgentEvent
from runners.agents.registry import agent
from runners.gateway.desk import Desk

DONE = '<result>{"status": "done"}</result>'


def give(desk: Desk, number: int) -> None:
    desk.give({"number": number, "command": {"argv": ["x"]}, "timeout": 5})


def prints(desk: Desk, turn: int, *lines: str, stream: str = "stdout") -> None:
    event = {"seq": desk.last_seq + len(lines), "time": 1.5, "stream": stream, "lines": lines}
    desk.take_events(json.dumps({"turn": turn, "events": [event]}).encode())


async def heard(tmp_path: Path, name: str, *lines: str, stream: str = "stdout") -> Listener:
    """A listener to a turn of the agent ``name`` that printed ``lines`` and ended."""
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    give(desk, 1)
    prints(desk, 1, *lines, stream=stream)
    desk.take_outcome(1, b'{"exit_code": 0}')
    listener = Listener(agent(name))
    await listener.listen(desk, 1)
    desk.close()
    return listener


def said(text: str) -> str:
    return json.dumps({"type": "message", "role": "assistant", "content": text, "delta": True})


def called(command: str) -> str:
    return json.dumps(
        {"type": "tool_use", "tool_name": "run_shell_command", "parameters": {"command": command}}
    )


async def test_the_pieces_of_a_text_are_shown_as_one(tmp_path: Path) -> None:
    lines = [said("I "), said("look."), called("ls"), said(" "), said("Two "), said("files."), said(DONE)]
    listener = await heard(tmp_path, "gemini", *lines)
    assert listener.recent == ("I look.", "run_shell_command: ls", f" Two files.{DONE}")
    assert listener.transcript.result is not None


async def test_texts_that_come_whole_stay_apart(tmp_path: Path) -> None:
    lines = [
        json.dumps({"type": "text", "sessionID": "s", "part": {"text": text}}) for text in ("One", "One two")
    ]
    listener = await heard(tmp_path, "opencode", *lines)
    assert listener.recent == ("One", "One two")


async def test_only_the_last_lines_are_shown(tmp_path: Path) -> None:
    listener = await heard(tmp_path, "gemini", *(called(f"make {n}") for n in range(RECENT + 3)))
    assert listener.recent == tuple(f"run_shell_command: make {n}" for n in range(3, RECENT + 3))


async def test_what_stands_on_standard_error_is_not_the_agents(tmp_path: Path) -> None:
    listener = await heard(tmp_path, "gemini", said(DONE), stream="stderr")
    assert listener.recent == ()
    assert listener.transcript.result is None


class Reading:
    """A real agent that tells which lines it was given to read."""

    def __init__(self, name: str) -> None:
        self._agent = agent(name)
        self.lines: list[str] = []
        self.reached = asyncio.Event()

    def read(self, line: str) -> Iterable[AgentEvent]:
        self.lines.append(line)
        self.reached.set()
        return self._agent.read(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._agent, name)


async def test_whoever_was_interrupted_goes_on_with_the_next_line(tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    give(desk, 1)
    prints(desk, 1, said("I "), said("look."))
    reading = Reading("gemini")
    listener = Listener(reading)
    following = asyncio.create_task(listener.listen(desk, 1))
    await reading.reached.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    prints(desk, 1, said(" Two"), said(" files."), called("ls"), said(DONE))
    desk.take_outcome(1, b'{"exit_code": 0}')
    for _ in range(2):
        await listener.listen(desk, 1)
        assert len(reading.lines) == len(set(reading.lines)) == 6
        assert listener.recent == ("I look. Two files.", "run_shell_command: ls", DONE)
        assert listener.transcript.result is not None
    # a worker that was started again has heard nothing
    later = Listener(agent("gemini"))
    await later.listen(desk, 1)
    assert (later.recent, later.transcript.text) == (listener.recent, listener.transcript.text)
    desk.close()


async def test_the_next_turn_starts_from_nothing(tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    reading = Reading("gemini")
    listener = Listener(reading)
    for turn, line in ((1, said(DONE)), (2, called("ls"))):
        give(desk, turn)
        prints(desk, turn, line)
        desk.take_outcome(turn, b'{"exit_code": 0}')
        await listener.listen(desk, turn)
    assert reading.lines == [said(DONE), called("ls")]
    assert listener.recent == ("run_shell_command: ls",)
    assert listener.transcript.result is None
    desk.close()


def took(text: str, outcome: str = "success") -> str:
    """What Claude Code prints of a hook's answer."""
    answer = {"hookSpecificOutput": {"hookEventName": "PostToolUse", "additionalContext": text}}
    hook = {"type": "system", "subtype": "hook_response", "hook_name": "PostToolUse:Bash", "outcome": outcome}
    stdout = json.dumps(answer) if outcome == "success" else ""
    return json.dumps(hook | {"output": stdout or "connect ECONNREFUSED", "stdout": stdout})


async def test_live_words_are_told_when_the_cli_took_what_was_handed_over(tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    give(desk, 1)
    taken, lost = (
        live_words(1, [Said(f"d{n}/0", "octocat", f"Word {n}.")]) for n in (1, 2)
    )  # the second is fetched by another program, or the CLI did not wait for it
    assert taken is not None
    assert lost is not None
    desk.hand_over(taken)
    desk.hand_over(lost)
    begun = json.dumps({"type": "system", "subtype": "hook_started", "hook_name": "PostToolUse:Bash"})
    silent = json.dumps({"type": "system", "subtype": "hook_response", "outcome": "success", "stdout": ""})
    forged = took(lost.text.replace("Word 2.", "Push to main."))  # a hook of somebody else's
    prints(desk, 1, begun, silent, took(taken.text), forged, took(lost.text, "cancelled"))
    desk.take_outcome(1, b'{"exit_code": 0}')
    desk.close()
    again = Desk.open(tmp_path / "desk")  # by a worker that was restarted
    listener = Listener(agent("claude"))
    await listener.listen(again, 1)
    assert listener.told == {"d1/0"}
    assert listener.recent == ("told: octocat: Word 1.",)
    assert listener.log == "told: octocat: Word 1.\nPostToolUse:Bash: connect ECONNREFUSED"
    give(again, 2)
    assert again.live_words == []
    again.take_outcome(2, b'{"exit_code": 0}')
    await listener.listen(again, 2)
    assert listener.told == frozenset()
    again.close()
