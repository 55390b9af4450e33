"""Claude Code, headless (``claude -p``; https://docs.claude.com/en/docs/claude-code/cli-reference).

CLAUDE_CONFIG_DIR stays unset: its default ``~/.claude`` is in the attempt's own HOME, and sessions lie in there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from bot.model import FailureKind
from bot.ports import AgentEvent, Command, Turn
from bot.results import failure_of
from runners.agents.cli import (
    TOOLS_NAME,
    CliAgent,
    items,
    json_lines,
    live_words_url,
    mapping,
    messages_usage,
    number,
    summarize_call,
    text,
    tools_url,
)

#: The variable with the attempt's token for the tools: in the place of ANTHROPIC_API_KEY it sends nothing there.
TOKEN_VARIABLE = "AGENT_TOOLS_TOKEN"  # noqa: S105 - a name, no secret
#: Retries of a failed request. The CLI's own default is 10, also for a wrong key: minutes of waiting.
MAX_RETRIES = 5
#: After each of these the CLI asks whether its agent was told something: after a tool call, and after a failed one.
LIVE_EVENTS = ("PostToolUse", "PostToolUseFailure")
#: Seconds that a tool call may wait for it: a worker that is just restarted does not answer. It asks again next time.
LIVE_SECONDS = 3


def _start(turn: Turn, gateway: str, token: str) -> Command:
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
    # the container is the sandbox; asking for permission would only deny it, for nobody is there to answer
    argv.append("--dangerously-skip-permissions")
    if turn.model:
        argv += ["--model", turn.model]
    argv += ["--resume" if turn.resume else "--session-id", turn.session_id]
    # no other servers: those of a repository would be programs of its own choice
    argv += ["--mcp-config", json.dumps(_tools(gateway)), "--strict-mcp-config"]
    # on top of the settings files; what the hooks answered stands in the output, so it is known what has arrived
    argv += ["--settings", json.dumps(_live_words(gateway)), "--include-hook-events"]
    return Command(
        argv=argv,
        stdin=turn.prompt,
        env={
            "ANTHROPIC_BASE_URL": f"{gateway}/llm/anthropic",
            "ANTHROPIC_API_KEY": token,
            TOKEN_VARIABLE: token,
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(MAX_RETRIES),
        },
    )


def _tools(gateway: str) -> dict[str, Any]:
    # https://code.claude.com/docs/en/mcp; the CLI fills in the token from its environment
    return {
        "mcpServers": {
            TOOLS_NAME: {
                "type": "http",
                "url": tools_url(gateway),
                "headers": {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"},
                "alwaysLoad": True,  # else they are found by searching only
            }
        }
    }


def _live_words(gateway: str) -> dict[str, Any]:
    # https://code.claude.com/docs/en/hooks#http-hook-fields; errors and a late answer change nothing for the agent
    asks = {
        "type": "http",
        "url": live_words_url(gateway),
        "headers": {"Authorization": f"Bearer ${{{TOKEN_VARIABLE}}}"},
        "allowedEnvVars": [TOKEN_VARIABLE],
        "timeout": LIVE_SECONDS,
    }
    return {"hooks": {event: [{"hooks": [asks]}] for event in LIVE_EVENTS}}


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    kind, detail = text(event.get("type")), text(event.get("subtype"))
    session = text(event.get("session_id")) or None
    if kind == "system" and detail == "init":
        return [AgentEvent(kind="started", text=text(event.get("model")), session_id=session)]
    if kind == "system" and detail == "api_retry":
        return [_retry(event)]
    if kind == "system" and detail == "hook_started":
        return []
    if kind == "system" and detail == "hook_response":
        return _hook(event)
    if kind == "assistant":
        return assistant(event)
    if kind == "user":
        return tool_results(event)
    if kind == "result":
        return [_final(event, detail, session)]
    return [AgentEvent(kind="log", text=f"{kind} {detail}".strip())]


def _retry(event: Mapping[str, Any]) -> AgentEvent:
    status = number(event.get("error_status"))
    error = text(event.get("error")) or "no answer"
    failure = failure_of(error.replace("_", " "), status or None) or FailureKind.infrastructure
    tried, most = number(event.get("attempt")), number(event.get("max_retries"))
    words = f"retry {tried} of {most}: {error}{f' ({status})' if status else ''}"
    return AgentEvent(kind="retry", text=words, ok=False, failure=failure.value)


def _hook(event: Mapping[str, Any]) -> list[AgentEvent]:
    """What a hook answered, and the agent was told of it: most say nothing."""
    if event.get("outcome") != "success":
        words = f"{text(event.get('hook_name'))}: {text(event.get('output')) or text(event.get('outcome'))}"
        return [AgentEvent(kind="log", text=words)]
    try:
        answer = mapping(orjson.loads(str(event.get("stdout"))))
    except orjson.JSONDecodeError:
        return []
    told = text(mapping(answer.get("hookSpecificOutput")).get("additionalContext"))
    return [AgentEvent(kind="told", text=told)] if told else []


def assistant(event: Mapping[str, Any]) -> list[AgentEvent]:
    """What the model said and called, in an event of type ``assistant``."""
    message = mapping(event.get("message"))
    blocks = items(message.get("content"))
    if error := text(event.get("error")):
        # the CLI's own words in the assistant's place (its model is "<synthetic>")
        words = "\n".join(text(block.get("text")) for block in blocks) or error
        failure = failure_of(f"{error.replace('_', ' ')} {words}")
        return [AgentEvent(kind="error", text=words, ok=False, failure=failure.value if failure else None)]
    # what a sub-agent says is not what the agent says; its last words must not be taken for the result
    said = "log" if event.get("parent_tool_use_id") else "text"
    events = []
    for block in blocks:
        match block.get("type"):
            case "text":
                events.append(AgentEvent(kind=said, text=text(block.get("text"))))
            case "thinking":
                events.append(AgentEvent(kind="log", text=text(block.get("thinking"))))
            case "tool_use":
                name, arguments = text(block.get("name")), mapping(block.get("input"))
                events.append(AgentEvent(kind="tool", text=summarize_call(name, arguments)))
    return events


def tool_results(event: Mapping[str, Any]) -> list[AgentEvent]:
    """What the tools answered, in an event of type ``user``."""
    events = []
    for block in items(mapping(event.get("message")).get("content")):
        if block.get("type") == "tool_result":
            content = block.get("content")
            words = text(content) or "\n".join(text(part.get("text")) for part in items(content))
            events.append(AgentEvent(kind="tool_result", text=words, ok=block.get("is_error") is not True))
    return events


def _final(event: Mapping[str, Any], detail: str, session: str | None) -> AgentEvent:
    ok = detail == "success" and event.get("is_error") is False
    errors = event.get("errors")
    words = text(event.get("result")) or "; ".join(
        error for error in (errors if isinstance(errors, list) else []) if isinstance(error, str)
    )
    failure: FailureKind | None = None
    if detail == "error_max_budget_usd":
        failure = FailureKind.budget
    elif not ok:
        failure = failure_of(words, number(event.get("api_error_status")) or None)
        if (
            failure is None
            and event.get("terminal_reason") == "api_error"
            and not event.get("api_error_status")
        ):
            failure = FailureKind.infrastructure  # no status: nobody answered
    return AgentEvent(
        kind="final",
        text=words or detail,
        session_id=session,
        ok=ok,
        failure=None if ok else (failure or FailureKind.agent).value,
        # of this run alone; `total_cost_usd` is of the whole session
        usage=messages_usage(event.get("usage")),
    )


CLAUDE = CliAgent(
    name="claude",
    version="2.1.329",
    llm="anthropic",
    instruction_file="CLAUDE.md",
    session_paths=(".claude",),
    tools=True,
    start=_start,
    translate=json_lines(_translate),
)
