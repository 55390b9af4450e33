"""Factory's droid, headless (``droid exec``; https://docs.factory.ai/cli/droid-exec/overview).

With a model of one's own it needs neither an account nor Factory's servers. What it would ask and tell them goes to the
gateway, which answers 404: without any answer, as in its "airgap" mode, it refuses to resume a session. A refused call
is made five times within a minute and a half, a failed one more often; neither is to be set. SIGTERM ends the command
that it runs and not itself: the shim's SIGKILL does.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from bot.model import FailureKind
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    json_lines,
    mapping,
    messages_usage,
    summarize_call,
    text,
    tools_url,
)
from runners.agents.models import model_of

#: The variable with the attempt's token, named in the settings.
TOKEN_VARIABLE = "AGENT_LLM_TOKEN"  # noqa: S105 - a name, no secret
MODEL_ID = "custom:conductor-0"
#: Of one answer; the CLI wants a number.
MAX_OUTPUT_TOKENS = 32_000

#: The names of the wires in its settings (https://docs.factory.ai/cli/byok/overview).
_API = {"messages": "anthropic", "responses": "openai", "chat": "generic-chat-completion-api"}


def _start(turn: Turn, gateway: str, token: str) -> Command:
    model = model_of(turn, "droid")
    settings = {
        "customModels": [
            {
                "id": MODEL_ID,
                "index": 0,
                "model": model.name,
                "displayName": model.name,
                "provider": _API[model.api],
                "baseUrl": model.base_url(gateway),
                "apiKey": f"${{{TOKEN_VARIABLE}}}",
                "maxOutputTokens": MAX_OUTPUT_TOKENS,
            }
        ],
        "cloudSessionSync": False,
    }
    # the container is the sandbox
    argv = ["droid", "exec", "-o", "stream-json", "--skip-permissions-unsafe", "-m", MODEL_ID]
    if turn.resume:
        argv += ["-s", turn.session_id]
    return Command(
        argv=argv,
        stdin=turn.prompt,
        env={
            TOKEN_VARIABLE: token,
            "CI": "1",
            "FACTORY_API_BASE_URL": gateway,
            "FACTORY_API_KEY": token,
            "FACTORY_TELEMETRY_INGEST_BASE_URL": gateway,
            "OTEL_SDK_DISABLED": "true",
            "OTEL_PRODUCT_ENDPOINT": gateway,
            "OTEL_CUSTOMER_ENDPOINT": gateway,
            "FACTORY_DISABLE_KEYRING": "true",
            "FACTORY_DROID_AUTO_UPDATE_ENABLED": "0",
        },
        files={
            ".factory/settings.json": json.dumps(settings),
            ".factory/mcp.json": json.dumps(_tools(gateway)),
        },
    )


def _tools(gateway: str) -> dict[str, Any]:
    # https://docs.factory.ai/cli/configuration/mcp; the CLI fills in the token from its environment
    server = {
        "type": "http",
        "url": tools_url(gateway),
        "headers": {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"},
        "disabled": False,
    }
    return {"mcpServers": {TOOLS_NAME: server}}


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    session = text(event.get("session_id")) or None
    match event.get("type"):
        case "system":
            if event.get("subtype") == "init":
                return [AgentEvent(kind="started", text=text(event.get("model")), session_id=session)]
            return [AgentEvent(kind="log", text=f"system {text(event.get('subtype'))}".strip())]
        case "message":
            kind = "text" if event.get("role") == "assistant" else "log"
            return [AgentEvent(kind=kind, text=text(event.get("text")))]
        case "tool_call":
            call = summarize_call(text(event.get("toolName")), mapping(event.get("parameters")))
            return [AgentEvent(kind="tool", text=call)]
        case "tool_result":
            ok = event.get("isError") is not True
            return [AgentEvent(kind="tool_result", text=text(event.get("value")), ok=ok)]
        case "completion":
            words = text(event.get("finalText"))
            return [
                # after a resume it counts the turns before as well
                AgentEvent(
                    kind="final", text=words, session_id=session, usage=messages_usage(event.get("usage"))
                )
            ]
        case "error":
            return [_error(event, session)]
        case kind:
            return [AgentEvent(kind="log", text=text(kind))]


_STATUS = re.compile(r"(\d{3}) ")


def _error(event: Mapping[str, Any], session: str | None) -> AgentEvent:
    """The agent loop's error is the end of the run: failed calls that are tried again are not told."""
    words, status = text(event.get("message")), None
    if told := _STATUS.match(words):
        status, words = int(told[1]), words[told.end() :]
        with contextlib.suppress(orjson.JSONDecodeError):
            words = text(mapping(mapping(orjson.loads(words)).get("error")).get("message")) or words
    failure = failure_of(words, status)
    if event.get("source") == "agent_loop":
        failure = failure or FailureKind.agent
        return AgentEvent(kind="final", text=words, session_id=session, ok=False, failure=failure.value)
    return AgentEvent(kind="error", text=words, ok=False, failure=failure.value if failure else None)


DROID = CliAgent(
    name="droid",
    version="0.215.0",
    llm="openai",
    instruction_file="AGENTS.md",
    session_paths=(".factory/sessions",),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
