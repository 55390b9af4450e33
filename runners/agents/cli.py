"""What all agents have in common: an agent is a value of one class, made of two functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bot.model import Usage
from bot.ports import AgentEvent, Command, Installation, Turn

#: Longest text of one event, in characters. The whole line is kept in the attempt's log anyway.
MAX_TEXT = 50_000


@dataclass(frozen=True, kw_only=True)
class CliAgent:
    """A coding-agent CLI (``bot.ports.Agent``) as a value.

    ``start`` gets the turn, the gateway's base URL and the attempt's token; ``translate`` one line of output.
    """

    name: str
    version: str
    llm: str | None
    instruction_file: str | None
    session_paths: Sequence[str]
    start: Callable[[Turn, str, str], Command]
    translate: Callable[[str], list[AgentEvent]]
    tools: bool = False
    installation: Installation | None = None

    def command(self, turn: Turn, *, gateway: str, token: str) -> Command:
        """How to run ``turn``; a placeholder such as ``{gateway}`` is passed through as it is."""
        return self.start(turn, gateway, token)

    def read(self, line: str) -> list[AgentEvent]:
        """Translate one line of its standard output."""
        return self.translate(line)


def json_lines(
    translate: Callable[[Mapping[str, Any]], list[AgentEvent]],
) -> Callable[[str], list[AgentEvent]]:
    """A translator of lines from one of JSON objects; a line that is none becomes a "log" event."""

    def read(line: str) -> list[AgentEvent]:
        line = line.strip()
        if not line:
            return []
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            return [log(line)]
        return translate(value) if isinstance(value, dict) else [log(line)]

    return read


def log(text: str) -> AgentEvent:
    """A line that says nothing about the work."""
    return AgentEvent(kind="log", text=cut(text))


# An agent's output is another program's and may change: these take any value and give what can be used of it.


def mapping(value: object) -> Mapping[str, Any]:
    """``value`` when it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Mapping[str, Any]]:
    """The JSON objects in the list ``value``."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """``value`` when it is text, cut to MAX_TEXT; else ""."""
    return cut(value) if isinstance(value, str) else ""


def cut(value: str) -> str:
    """``value`` with its middle left out when it is longer than MAX_TEXT: results stand at the end."""
    if len(value) <= MAX_TEXT:
        return value
    return f"{value[:1000]}\n[…]\n{value[-(MAX_TEXT - 1005) :]}"


def number(value: object) -> int:
    """``value`` when it is a count, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def literal_at_signs(prompt: str) -> str:
    """``prompt`` for a CLI that puts the file in where ``@path`` stands: people mention others and write decorators.

    A backslash keeps it from that, and stays; so the model is told what it means.
    """
    if "@" not in prompt:
        return prompt
    return "(Read `\\@` as an at sign.)\n\n" + re.sub(r"(?<!\\)@", r"\\@", prompt)


def messages_usage(value: object) -> Usage:
    """Tokens in the words of Anthropic's Messages API, which several CLIs use for their own reports; no cost."""
    usage = mapping(value)
    return Usage(
        input_tokens=number(usage.get("input_tokens")),
        output_tokens=number(usage.get("output_tokens")),
        cached_tokens=number(usage.get("cache_read_input_tokens")),
        cache_write_tokens=number(usage.get("cache_creation_input_tokens")),
        cost=None,
    )


#: By which name agents know the server of the gateway's tools, and where it is.
TOOLS_NAME = "bot"


def tools_url(gateway: str) -> str:
    """Where the gateway serves its tools (MCP over HTTP), seen from the container."""
    return f"{gateway}/mcp"


def live_words_url(gateway: str) -> str:
    """Where a CLI asks between two tool calls what its agent has been told meanwhile, seen from the container."""
    return f"{gateway}/live-words"


def summarize_call(name: str, arguments: Mapping[str, Any]) -> str:
    """One line that tells a tool call: its name and its most telling argument."""
    for key in ("command", "file_path", "path", "pattern", "query", "url", "description", "prompt"):
        if value := text(arguments.get(key)):
            first, *more = value.strip().splitlines() or [""]
            return f"{name}: {first[:200]}{' …' if more or len(first) > 200 else ''}"
    return name
