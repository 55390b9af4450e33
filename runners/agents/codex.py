"""OpenAI's Codex CLI, headless (``codex exec``; https://developers.openai.com/codex/noninteractive).

CODEX_HOME stays unset: its default ``~/.codex`` is in the attempt's own HOME; sessions and their index lie there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    items,
    json_lines,
    mapping,
    number,
    summarize_call,
    text,
    tools_url,
)

#: The variable with the attempt's token. Not one of OpenAI's names: those would switch the built-in provider on.
TOKEN_VARIABLE = "AGENT_LLM_TOKEN"  # noqa: S105 - a name, no secret

# A provider of our own because the built-in one tries a WebSocket first and ignores OPENAI_BASE_URL. Without
# `unbounded_connection_retries = false` a refused connection is tried for ever, and without `plugins = false` a
# catalogue is fetched from the web. The commands that the agent runs get the variables of the egress proxy and of the
# image's certificate authorities, but not the one with our token.
_CONFIG = """\
{model}model_provider = "conductor"
check_for_update_on_startup = false

[model_providers.conductor]
name = "conductor"
base_url = {base_url}
env_key = "{variable}"
wire_api = "responses"
request_max_retries = 3
stream_max_retries = 2

[analytics]
enabled = false

[features]
unbounded_connection_retries = false
plugins = false

[shell_environment_policy]
inherit = "all"
exclude = ["{variable}"]
"""


def _start(turn: Turn, gateway: str, token: str) -> Command:
    argv = ["codex", "exec"]
    if turn.resume:
        argv.append("resume")
    # an argument counts over the repository's own settings
    argv += ["-c", _tools(gateway)]
    # the container is the sandbox
    argv += ["--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check"]
    if turn.resume:
        argv.append(turn.session_id)
    argv.append("-")
    config = _CONFIG.format(
        model=f"model = {_toml(turn.model)}\n" if turn.model else "",
        base_url=_toml(f"{gateway}/llm/openai"),
        variable=TOKEN_VARIABLE,
    )
    return Command(
        argv=argv, stdin=turn.prompt, env={TOKEN_VARIABLE: token}, files={".codex/config.toml": config}
    )


def _tools(gateway: str) -> str:
    # https://developers.openai.com/codex/mcp
    return (
        f"mcp_servers.{TOOLS_NAME}={{url={_toml(tools_url(gateway))}, "
        f'bearer_token_env_var="{TOKEN_VARIABLE}", default_tools_approval_mode="approve"}}'
    )


def _toml(value: str) -> str:
    """A TOML basic string: JSON's, except that TOML wants DEL escaped (https://toml.io/en/v1.0.0#string)."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    match event.get("type"):
        case "thread.started":
            return [AgentEvent(kind="started", session_id=text(event.get("thread_id")) or None)]
        case "item.started":
            return _item_started(mapping(event.get("item")))
        case "item.completed":
            return _item_completed(mapping(event.get("item")))
        case "turn.completed":
            # the last words came before, as an agent_message
            return [AgentEvent(kind="final", usage=_usage(mapping(event.get("usage"))))]
        case "turn.failed":
            words = _words(mapping(event.get("error")).get("message") or event.get("message"))
            failure = failure_of(words) or FailureKind.agent
            return [AgentEvent(kind="final", text=words, ok=False, failure=failure.value)]
        case "error":
            # only `turn.failed` is fatal: most of these announce a new try
            words = _words(event.get("message"))
            failed = failure_of(words)
            kind = "retry" if words.startswith("Reconnecting") else "error"
            return [AgentEvent(kind=kind, text=words, ok=False, failure=failed.value if failed else None)]
        case kind:
            return [AgentEvent(kind="log", text=text(kind))]


_URL = re.compile(r",? url: https?://\S+?(?=\)|$)")


def _words(message: object) -> str:
    """An error's message without the wrapping: the provider's JSON body, the address inside the container."""
    words = text(message)
    try:
        body = orjson.loads(words)
    except orjson.JSONDecodeError:
        return _URL.sub("", words)
    return text(mapping(mapping(body).get("error")).get("message")) or words


def _item_started(item: Mapping[str, Any]) -> list[AgentEvent]:
    match item.get("type"):
        case "command_execution":
            return [AgentEvent(kind="tool", text=summarize_call("exec_command", item))]
        case "file_change":
            paths = ", ".join(text(change.get("path")) for change in items(item.get("changes")))
            return [AgentEvent(kind="tool", text=f"apply_patch: {paths}")]
        case "mcp_tool_call":
            return [AgentEvent(kind="tool", text=f"{text(item.get('server'))}.{text(item.get('tool'))}")]
        case "web_search":
            return [AgentEvent(kind="tool", text=summarize_call("web_search", item))]
        case kind:
            return [AgentEvent(kind="log", text=text(kind))]


def _item_completed(item: Mapping[str, Any]) -> list[AgentEvent]:
    match item.get("type"):
        case "agent_message":
            return [AgentEvent(kind="text", text=text(item.get("text")))]
        case "command_execution":
            words = text(item.get("aggregated_output"))
            return [AgentEvent(kind="tool_result", text=words, ok=item.get("exit_code") == 0)]
        case "file_change" | "mcp_tool_call":
            ok = item.get("status") == "completed" and not item.get("error")
            return [AgentEvent(kind="tool_result", text=text(item.get("status")), ok=ok)]
        case "error":
            return [AgentEvent(kind="error", text=text(item.get("message")), ok=False)]
        case kind:
            return [AgentEvent(kind="log", text=text(item.get("text")) or text(kind))]


def _usage(usage: Mapping[str, Any]) -> Usage:
    """What the session used: after a resume the numbers include the turns before. Cached are part of input."""
    cached, written = number(usage.get("cached_input_tokens")), number(usage.get("cache_write_input_tokens"))
    return Usage(
        input_tokens=max(0, number(usage.get("input_tokens")) - cached - written),
        output_tokens=number(usage.get("output_tokens")),
        cached_tokens=cached,
        cache_write_tokens=written,
        cost=None,
    )


CODEX = CliAgent(
    name="codex",
    version="0.169.0",
    llm="openai",
    instruction_file="AGENTS.md",
    session_paths=(".codex",),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
