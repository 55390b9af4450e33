"""The real CLIs call the gateway's tools (MCP): each with the configuration that its agent gives it on every turn."""

from __future__ import annotations

import json
import platform
import uuid
from pathlib import Path
from typing import Any

import pytest

from bot.agent_requests import ToDo
from bot.model import ApprovalKind
from bot.network import proxy_environment
from bot.ports import Turn
from runners.agents.registry import agent
from tests.cli_world import DONE, KEY, TOKEN, npm, provided, world
from tests.integration.test_agents_behind_proxy import refusing
from tests.llm import Script, ScriptedLlm

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]  # with the installation

MODELS = {
    "claude": "claude-sonnet-4-5",
    "codex": "gpt-5.5",
    "gemini": "gemini-2.5-pro",
    "opencode": "glm-4.6",
    "qwen": "qwen3-coder-plus",
    "droid": "claude-sonnet-4-5",
}
PACKAGES = {
    "claude": "@anthropic-ai/claude-code",
    "codex": "@openai/codex",
    "gemini": "@google/gemini-cli",
    "opencode": "opencode-ai",
    "qwen": "@qwen-code/qwen-code",
    "droid": "droid",
}
SHORT, LONG = {"x86_64": ("x64", "x86_64"), "aarch64": ("arm64", "aarch64")}[platform.machine()]
PROGRAMS = {
    "claude": "@anthropic-ai/claude-code/bin/claude.exe",
    "codex": f"@openai/codex-linux-{SHORT}/vendor/{LONG}-unknown-linux-musl/bin/codex",
    "gemini": ".bin/gemini",
    "opencode": f"opencode-linux-{SHORT}{'-baseline' if SHORT == 'x64' else ''}/bin/opencode",
    "qwen": ".bin/qwen",
    "droid": ".bin/droid",
}
#: What each CLI calls a tool of ours towards its model.
CALLS: dict[str, dict[str, Any]] = {
    "claude": {"name": "mcp__bot__{}"},
    "codex": {"name": "{}", "namespace": "mcp__bot"},
    "gemini": {"name": "mcp_bot_{}"},
    "opencode": {"name": "bot_{}"},
    "qwen": {"name": "mcp__bot__{}"},
    "droid": {"name": "bot___{}"},
}


#: Keeps tools back until its model looks for them.
SEARCHES = {"droid": [{"calls": [{"name": "ToolSearch", "input": {"query": "request_approval"}}]}]}
#: Says what the server is for, and the tools when its model looks for them.
WORDS = {"codex": "Ask them with `ask` or `request_approval`"}


def binaries(folder: Path, name: str) -> Path:
    modules = provided(name, agent(name).version, npm(PACKAGES[name], agent(name).version)) / "node_modules"
    folder.mkdir()
    (folder / name).symlink_to(modules / PROGRAMS[name])
    return folder


def calls(name: str, tool: str, **arguments: Any) -> dict[str, Any]:
    """A turn of the model that calls a tool of ours."""
    call = {key: value.format(tool) for key, value in CALLS[name].items()}
    return {"calls": [{**call, "input": arguments}]}


def turn(name: str) -> Turn:
    return Turn(
        number=1,
        prompt="Tell how far you are, then ask for the host. End with a result block.",
        model=MODELS[name],
        session_id=str(uuid.uuid4()),
        resume=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", list(MODELS))
async def test_tells_its_progress_and_asks_for_a_host(name: str, tmp_path: Path) -> None:
    script = Script.of(
        [
            *SEARCHES.get(name, []),
            calls(name, "progress", text="Reading", todo=[{"text": "read", "done": True}, {"text": "write"}]),
            calls(name, "request_approval", kind="network", host="https://x.example/", reason="why"),
            calls(name, "request_approval", kind="network", host="docs.example.com", reason="The manual."),
            {"text": f"I asked.\n{DONE}"},
        ]
    )
    settings = {"egress_may_allow": ("*.example.com",), "llm_gemini_key": KEY}
    async with (
        refusing() as (port, asked),
        ScriptedLlm(script) as llm,
        world(
            tmp_path, binaries(tmp_path / "bin", name), llm.url, llm_gemini_url=llm.url, **settings
        ) as made,
    ):
        # as in its container: beside a proxy that is for everything but the gateway
        outcome = await made.run(agent(name), turn(name), **proxy_environment("t0ken", str(port)))
        assert outcome.judge(changed=False).ok, outcome
        note, request = made.desk.progress, made.desk.requested
        assert note is not None, [request.body for request in llm.requests]
        assert (note.text, note.todo) == ("Reading", (ToDo(text="read", done=True), ToDo(text="write")))
        assert request is not None
        assert (request.kind, request.host) == (ApprovalKind.network, "docs.example.com")
        assert made.tokens_seen == {TOKEN}
        assert not any("/mcp" in one or "127.0.0.1" in one for one in asked)
        texts = [json.dumps(one.body) for one in llm.requests]
    # the model is told of the tools before it calls one, and of what each said
    told, refused, people = texts[-3:]
    assert WORDS.get(name, "Ask people for something that you may not do by yourself") in texts[-4]
    assert "Told." in told
    assert "no URL" in refused
    assert "end your turn now" in people
