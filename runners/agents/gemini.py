"""Google's Gemini CLI, headless (https://geminicli.com/docs/cli/headless/).

Its retries tell nothing on standard output, and its exit code is the HTTP status modulo 256: only the last event
counts. SIGTERM during a command of the agent's is answered by an end with code 0 and no last event; what the
command started goes on, and is the shim's to end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    json_lines,
    literal_at_signs,
    mapping,
    number,
    summarize_call,
    text,
    tools_url,
)

#: The variable with the attempt's token for the tools, named in the settings.
TOKEN_VARIABLE = "AGENT_TOOLS_TOKEN"  # noqa: S105 - a name, no secret
#: Tries of one request. The CLI's own default is 10, which is minutes of waiting; 3 are 15 seconds or so.
MAX_ATTEMPTS = 3

# https://geminicli.com/docs/reference/configuration/. A repository's own `.gemini/settings.json` counts over this
# file: what must not be overruled is an option or a variable.
_SETTINGS = {
    "general": {
        "enableAutoUpdate": False,
        "enableAutoUpdateNotification": False,
        "maxAttempts": MAX_ATTEMPTS,
        "sessionRetention": {"enabled": False},  # how long a session is kept is the shelf's business
    },
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "context": {"fileName": ["GEMINI.md", "AGENTS.md"]},
    "tools": {"shell": {"enableInteractiveShell": False}},
}


#: What Node.js says of an answer that was cut off or never came.
_NO_ANSWER = ("terminated", "fetch failed", "other side closed", "socket hang up")


def _start(turn: Turn, gateway: str, token: str) -> Command:
    argv = ["gemini", "--output-format", "stream-json"]
    # the container is the sandbox; an untrusted folder is refused without a request
    argv += ["--approval-mode", "yolo", "--skip-trust"]
    if turn.model:
        argv += ["--model", turn.model]
    argv += ["--resume" if turn.resume else "--session-id", turn.session_id]
    return Command(
        argv=argv,
        stdin=literal_at_signs(turn.prompt),
        env={
            "GOOGLE_GEMINI_BASE_URL": f"{gateway}/llm/gemini",
            "GEMINI_API_KEY": token,
            TOKEN_VARIABLE: token,
            "GEMINI_CLI_NO_RELAUNCH": "true",  # else a parent process swallows SIGTERM
            "GEMINI_SANDBOX": "false",
            "GEMINI_TELEMETRY_ENABLED": "false",
        },
        files={".gemini/settings.json": json.dumps(_SETTINGS | _tools(gateway), indent=2)},
    )


def _tools(gateway: str) -> dict[str, Any]:
    # https://geminicli.com/docs/tools/mcp-server/; the CLI fills in the token from its environment
    server = {
        "httpUrl": tools_url(gateway),
        "headers": {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"},
        "trust": True,
    }
    return {"mcpServers": {TOOLS_NAME: server}}


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    match event.get("type"):
        case "init":
            session = text(event.get("session_id")) or None
            return [AgentEvent(kind="started", text=text(event.get("model")), session_id=session)]
        case "message" if event.get("role") == "assistant":
            words, piece = text(event.get("content")), event.get("delta") is True
            return [AgentEvent(kind="text", text=words, piece=piece)]
        case "tool_use":
            name, arguments = text(event.get("tool_name")), mapping(event.get("parameters"))
            return [AgentEvent(kind="tool", text=summarize_call(name, arguments))]
        case "tool_result":
            words = text(event.get("output")) or text(mapping(event.get("error")).get("message"))
            return [AgentEvent(kind="tool_result", text=words, ok=event.get("status") == "success")]
        case "error":
            return [_trouble("error", text(event.get("message")))]
        case "result":
            return [_final(event)]
        case kind:  # the prompt comes back as a message: not worth a second copy
            return [AgentEvent(kind="log", text=f"{text(kind)} {text(event.get('role'))}".strip())]


def _final(event: Mapping[str, Any]) -> AgentEvent:
    usage = _usage(mapping(event.get("stats")))
    if event.get("status") == "success":
        return AgentEvent(kind="final", usage=usage)  # what it said came before
    message = text(mapping(event.get("error")).get("message")) or "it gave no reason"
    return _trouble("final", message, usage)


def _trouble(kind: str, message: str, usage: Usage | None = None) -> AgentEvent:
    """An error in the words of the provider: ``[API Error: …]`` holds them, mostly as Google's JSON."""
    words, status = message.removeprefix("[API Error: "), None
    try:
        error = mapping(mapping(orjson.loads(words.removesuffix("]"))).get("error"))
    except orjson.JSONDecodeError:
        # the CLI's own hints, about commands that nobody can type here, stand on a line of their own
        words = words.partition("]\n")[0].removesuffix("]") if words != message else words
    else:
        words, status = text(error.get("message")) or words, number(error.get("code")) or None
    failure = failure_of(words, status)
    if failure is None and words in _NO_ANSWER:
        failure = FailureKind.infrastructure
    if kind == "final":
        failure = failure or FailureKind.agent
    return AgentEvent(
        kind=kind, text=words, ok=False, failure=failure.value if failure else None, usage=usage
    )


def _usage(stats: Mapping[str, Any]) -> Usage:
    """What this run used; ``input_tokens`` would include the cached ones."""
    return Usage(
        input_tokens=number(stats.get("input")),
        output_tokens=number(stats.get("output_tokens")),
        cached_tokens=number(stats.get("cached")),
        cost=None,
    )


GEMINI = CliAgent(
    name="gemini",
    version="0.61.0",
    llm="gemini",
    instruction_file="GEMINI.md",
    # the conversations, and which of their folders belongs to which repository
    session_paths=(".gemini/tmp", ".gemini/projects.json"),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
