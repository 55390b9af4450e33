"""Qwen Code, headless (https://qwenlm.github.io/qwen-code-docs/en/users/features/headless/).

It works with any model behind the gateway's OpenAI route. Its events are Claude Code's, but it takes an error of the
provider for words of the model: exit code 0, "success", and a text that begins with ``[API Error:``. It tries 429
and 5xx up to six times more in about 75 seconds, which is not to be set. SIGTERM ends it at once; what the agent's
commands started goes on, and is the shim's to end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.claude import assistant, tool_results
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    json_lines,
    literal_at_signs,
    mapping,
    number,
    text,
    tools_url,
)

#: The variable with the attempt's token for the tools, named in the settings.
TOKEN_VARIABLE = "AGENT_TOOLS_TOKEN"  # noqa: S105 - a name, no secret

_FAILED = "[API Error:"

# https://qwenlm.github.io/qwen-code-docs/en/users/configuration/settings/
_SETTINGS = {
    "$version": 4,  # of the file's layout: any other is rewritten
    # it would reach the gateway itself by the egress proxy, whatever NO_PROXY says; blank: by none
    "proxy": " ",
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    # its own six tries are enough; the SDK would try each of them several times
    "model": {"generationConfig": {"maxRetries": 0}, "skipNextSpeakerCheck": True},
    # calls of the model that nobody asked for
    "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False},
    "ui": {"enableFollowupSuggestions": False},
}


def _start(turn: Turn, gateway: str, token: str) -> Command:
    argv = ["qwen", "--auth-type", "openai", "--output-format", "stream-json"]
    argv += ["--approval-mode", "yolo"]  # the container is the sandbox
    if turn.model:
        argv += ["--model", turn.model]
    argv += ["--resume" if turn.resume else "--session-id", turn.session_id]
    return Command(
        argv=argv,
        stdin=literal_at_signs(turn.prompt),
        env={
            "OPENAI_BASE_URL": f"{gateway}/llm/openai",
            "OPENAI_API_KEY": token,
            TOKEN_VARIABLE: token,
            "QWEN_CODE_NO_RELAUNCH": "true",
            "QWEN_SANDBOX": "false",
        },
        files={".qwen/settings.json": json.dumps(_SETTINGS | _tools(gateway), indent=2)},
    )


def _tools(gateway: str) -> dict[str, Any]:
    # https://qwenlm.github.io/qwen-code-docs/en/users/features/mcp/; the CLI fills in the token from its environment
    server = {
        "httpUrl": tools_url(gateway),
        "headers": {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"},
        "trust": True,
    }
    return {"mcpServers": {TOOLS_NAME: server}}


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    match event.get("type"):
        case "system" if event.get("subtype") == "init":
            session = text(event.get("session_id")) or None
            return [AgentEvent(kind="started", text=text(event.get("model")), session_id=session)]
        case "assistant":
            return [_refused(said) for said in assistant(event)]
        case "user":
            return tool_results(event)
        case "result":
            return [_final(event)]
        case kind:
            return [AgentEvent(kind="log", text=f"{text(kind)} {text(event.get('subtype'))}".strip())]


def _refused(event: AgentEvent) -> AgentEvent:
    """``event``, or what it really is: an error in the model's place."""
    if event.kind != "text" or not event.text.startswith(_FAILED):
        return event
    failure = failure_of(event.text, _status(event.text))
    words = _words(event.text)
    return AgentEvent(kind="error", text=words, ok=False, failure=failure.value if failure else None)


def _final(event: Mapping[str, Any]) -> AgentEvent:
    said = text(event.get("result")) or text(mapping(event.get("error")).get("message"))
    refused = said.startswith(_FAILED)
    ok = event.get("subtype") == "success" and event.get("is_error") is False and not refused
    failure: FailureKind | None = None
    if not ok:
        failure = failure_of(said, _status(said)) or FailureKind.agent
    return AgentEvent(
        kind="final",
        text=_words(said) or text(event.get("subtype")),
        session_id=text(event.get("session_id")) or None,
        ok=ok,
        failure=failure.value if failure else None,
        usage=_usage(mapping(event.get("usage"))),
    )


def _status(said: str) -> int | None:
    """The HTTP status in ``[API Error: 401 …]``."""
    told = said.removeprefix(_FAILED).split(maxsplit=1)
    return int(told[0]) if said.startswith(_FAILED) and told and told[0].isdecimal() else None


def _words(said: str) -> str:
    """The provider's words alone, without the advice on the lines after them."""
    if not said.startswith(_FAILED):
        return said
    return said.removeprefix(_FAILED).partition("]\n")[0].removesuffix("]").strip()


def _usage(usage: Mapping[str, Any]) -> Usage:
    """What the session used: after a resume the numbers include the turns before. Cached are part of input."""
    cached = number(usage.get("cache_read_input_tokens"))
    return Usage(
        input_tokens=max(0, number(usage.get("input_tokens")) - cached),
        output_tokens=number(usage.get("output_tokens")),
        cached_tokens=cached,
        cost=None,
    )


QWEN = CliAgent(
    name="qwen",
    version="0.15.10",
    llm="openai",
    instruction_file="QWEN.md",
    session_paths=(".qwen/projects",),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
