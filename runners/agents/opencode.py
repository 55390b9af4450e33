"""OpenCode, headless (``opencode run``; https://opencode.ai/docs/cli/).

It chooses its session's id itself and keeps its sessions in an SQLite database. It tries a failed request five
times more, which is not to be set. SIGTERM during a command of the agent's does not end it: the shim's SIGKILL does,
and the session can be gone on with after that, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    json_lines,
    mapping,
    number,
    summarize_call,
    text,
    tools_url,
)
from runners.agents.models import Model, model_of

#: The provider's id in OpenCode's configuration, and the variable with the attempt's token.
PROVIDER = "conductor"
TOKEN_VARIABLE = "AGENT_LLM_TOKEN"  # noqa: S105 - a name, no secret

#: What is assumed of a model, for its own list of models is not fetched: when to compact the conversation, and the
#: longest answer to ask for. In tokens; modest enough for the models that agents are used with.
CONTEXT, OUTPUT = 128_000, 32_000

#: What speaks each API; they come with the binary (https://opencode.ai/docs/providers/#custom-provider).
PACKAGES = {
    "messages": "@ai-sdk/anthropic",
    "responses": "@ai-sdk/openai",
    "chat": "@ai-sdk/openai-compatible",
}


def _start(turn: Turn, gateway: str, token: str) -> Command:
    model = model_of(turn, "opencode")
    chosen = f"{PROVIDER}/{model.name}"
    # a title of ours saves a request that would make one up; --auto: the container is the sandbox
    argv = ["opencode", "run", "--format", "json", "--auto", "--title", "work", "--model", chosen]
    if turn.resume:
        argv += ["--session", turn.session_id]
    return Command(
        argv=argv,
        stdin=turn.prompt,
        env={
            TOKEN_VARIABLE: token,
            # counts over the repository's own opencode.json
            "OPENCODE_CONFIG_CONTENT": json.dumps(_config(model, gateway)),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        },
    )


def _config(model: Model, gateway: str) -> dict[str, Any]:
    # https://opencode.ai/docs/config/
    base = model.base_url(gateway) + ("/v1" if model.api == "messages" else "")
    return {
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,  # git is there, and they would fill the session
        "model": f"{PROVIDER}/{model.name}",
        "small_model": f"{PROVIDER}/{model.name}",
        "enabled_providers": [PROVIDER],
        # https://opencode.ai/docs/mcp-servers/
        "mcp": {
            TOOLS_NAME: {
                "type": "remote",
                "url": tools_url(gateway),
                "headers": {"Authorization": f"Bearer {{env:{TOKEN_VARIABLE}}}"},
                "oauth": False,
                "enabled": True,
            }
        },
        "provider": {
            PROVIDER: {
                "npm": PACKAGES[model.api],
                "name": PROVIDER,
                "options": {"baseURL": base, "apiKey": f"{{env:{TOKEN_VARIABLE}}}"},
                "models": {model.name: {"name": model.name, "limit": {"context": CONTEXT, "output": OUTPUT}}},
            }
        },
    }


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    part = mapping(event.get("part"))
    session = text(event.get("sessionID")) or None
    match event.get("type"):
        case "step_start":
            return [AgentEvent(kind="started", session_id=session)]
        case "text":
            return [AgentEvent(kind="text", text=text(part.get("text")))]
        case "tool_use":
            return _tool(text(part.get("tool")), mapping(part.get("state")))
        case "step_finish":
            return [_step(text(part.get("reason")), _usage(mapping(part.get("tokens"))))]
        case "error":
            return [_error(mapping(event.get("error")), session)]
        case kind:
            return [AgentEvent(kind="log", text=text(part.get("text")) or text(kind))]


def _tool(name: str, state: Mapping[str, Any]) -> list[AgentEvent]:
    """A call comes when it is over, with its result."""
    arguments = mapping(state.get("input"))
    # its file tools spell it their own way
    shown = {**arguments, "file_path": arguments.get("filePath")} if "filePath" in arguments else arguments
    words = text(state.get("output")) or text(state.get("error"))
    return [
        AgentEvent(kind="tool", text=summarize_call(name, shown)),
        AgentEvent(
            kind="tool_result", text=words, ok=state.get("status") == "completed" and name != "invalid"
        ),
    ]


def _step(reason: str, usage: Usage) -> AgentEvent:
    """The end of an answer of the model's, and with any reason but a tool call the end of the turn."""
    if reason in ("tool-calls", "unknown", ""):
        return AgentEvent(kind="log", text=f"step_finish {reason}".strip(), usage=usage)
    if reason in ("length", "content-filter", "error"):
        words = f"the model's answer ended early ({reason})"
        return AgentEvent(kind="final", text=words, ok=False, failure=FailureKind.agent.value, usage=usage)
    return AgentEvent(kind="final", usage=usage)  # what it said came before


def _error(error: Mapping[str, Any], session: str | None) -> AgentEvent:
    """It gave up; its exit code will be 1."""
    data = mapping(error.get("data"))
    words = text(data.get("message")) or text(error.get("name")) or "it gave no reason"
    failure = failure_of(words, number(data.get("statusCode")) or None) or FailureKind.agent
    return AgentEvent(kind="error", text=words, session_id=session, ok=False, failure=failure.value)


def _usage(tokens: Mapping[str, Any]) -> Usage:
    """What one answer used: ``input`` is without the cached, and reasoning is counted beside the output."""
    cache = mapping(tokens.get("cache"))
    return Usage(
        input_tokens=number(tokens.get("input")),
        output_tokens=number(tokens.get("output")) + number(tokens.get("reasoning")),
        cached_tokens=number(cache.get("read")),
        cache_write_tokens=number(cache.get("write")),
        cost=None,
    )


OPENCODE = CliAgent(
    name="opencode",
    version="1.18.33",
    llm="openai",
    instruction_file="AGENTS.md",
    # the database; after SIGKILL its last pages are still in the write-ahead log
    session_paths=(
        ".local/share/opencode/opencode.db",
        ".local/share/opencode/opencode.db-wal",
        ".local/share/opencode/opencode.db-shm",
    ),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
