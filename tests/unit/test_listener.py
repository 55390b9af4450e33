"""Listening to a turn: what people are shown of it, and what its verdict is made from."""

from __future__ import annotations

import json
from pathlib import Path

from bot.listener import RECENT, Listener
from runners.agents.registry import agent
from runners.gateway.desk import Desk

DONE = '<result>{"status": "done"}</result>'


async def heard(tmp_path: Path, name: str, *lines: str, stream: str = "stdout") -> Listener:
    """A listener to a turn of the agent ``name`` that printed ``lines`` and ended."""
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    desk.give({"number": 1, "command": {"argv": ["x"]}, "timeout": 5})
    events = [{"seq": n, "time": 1.5, "stream": stream, "lines": [line]} for n, line in enumerate(lines, 1)]
    desk.take_events(json.dumps({"turn": 1, "events": events}).encode())
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
