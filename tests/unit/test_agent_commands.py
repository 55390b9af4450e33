"""How the agents are started."""

from __future__ import annotations

import json
import tomllib

import pytest

from bot.config import fixed_settings
from bot.errors import ConductorError
from bot.ports import Command, Turn
from bot.results import Transcript, judge
from runners.agents.registry import agent, known_agents

SESSION = "7d77d329-4237-4802-8bd8-b91f81b34d07"
TOKEN = "attempt-token"


def turn(*, resume: bool = False, model: str | None = "m1", prompt: str = "```sh\nmake\n```") -> Turn:
    return Turn(number=1, prompt=prompt, model=model, session_id=SESSION, resume=resume, timeout=60)


def command(name: str, gateway: str = "{gateway}", **changes: object) -> Command:
    settings = fixed_settings(kiro_api_key="kiro-key")
    return agent(name, settings).command(turn(**changes), gateway=gateway, token=TOKEN)  # type: ignore[arg-type]


#: Where the gateway's tools are, and which variable holds the token for them.
TOOLS = "{gateway}/mcp"
BEARER = {"Authorization": "Bearer ${AGENT_TOOLS_TOKEN}"}


def test_claude() -> None:
    first = command("claude")
    *argv, option, tools, strict, also, settings, shown = first.argv
    assert argv == [
        *("claude", "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"),
        *("--model", "m1", "--session-id", SESSION),
    ]
    assert (option, strict) == ("--mcp-config", "--strict-mcp-config")
    server = {"type": "http", "url": TOOLS, "headers": BEARER, "alwaysLoad": True}
    assert json.loads(tools) == {"mcpServers": {"bot": server}}
    assert (also, shown) == ("--settings", "--include-hook-events")
    assert json.loads(settings) == {
        "hooks": {
            event: [
                {
                    "hooks": [
                        {
                            "type": "http",
                            "url": "{gateway}/live-words",
                            "headers": BEARER,
                            "allowedEnvVars": ["AGENT_TOOLS_TOKEN"],
                            "timeout": 3,
                        }
                    ]
                }
            ]
            for event in ("PostToolUse", "PostToolUseFailure")
        }
    }
    assert first.stdin == "```sh\nmake\n```"
    assert first.files == {}
    assert first.env == {
        "ANTHROPIC_BASE_URL": "{gateway}/llm/anthropic",
        "ANTHROPIC_API_KEY": TOKEN,
        "AGENT_TOOLS_TOKEN": TOKEN,
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "5",
    }
    assert command("claude", resume=True, model=None).argv[-9:-6] == [
        "--dangerously-skip-permissions",
        "--resume",
        SESSION,
    ]


def test_codex() -> None:
    first = command("codex")
    options = ["--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check"]
    option, tools = first.argv[2:4]
    assert first.argv == ["codex", "exec", option, tools, *options, "-"]
    assert command("codex", resume=True).argv == [
        *("codex", "exec", "resume", option, tools, *options, SESSION, "-")
    ]
    assert (option, tomllib.loads(tools)) == (
        "-c",
        {
            "mcp_servers": {
                "bot": {
                    "url": TOOLS,
                    "bearer_token_env_var": "AGENT_LLM_TOKEN",
                    "default_tools_approval_mode": "approve",
                }
            }
        },
    )
    assert first.stdin == "```sh\nmake\n```"
    config = tomllib.loads(first.files[".codex/config.toml"])
    assert config["model"] == "m1"
    provider = config["model_providers"][config["model_provider"]]
    assert provider["base_url"] == "{gateway}/llm/openai"
    assert provider["wire_api"] == "responses"
    assert first.env == {provider["env_key"]: TOKEN}
    assert config["features"] == {"unbounded_connection_retries": False, "plugins": False}
    assert config["shell_environment_policy"] == {"inherit": "all", "exclude": [provider["env_key"]]}
    assert config["analytics"] == {"enabled": False}
    assert TOKEN not in first.files[".codex/config.toml"]
    assert "model" not in tomllib.loads(command("codex", model=None).files[".codex/config.toml"])


def test_model_cannot_write_codex_settings() -> None:
    odd = 'm"\nsandbox_mode = "x\\\x7f\x01'
    config = tomllib.loads(command("codex", model=odd).files[".codex/config.toml"])
    assert config["model"] == odd
    assert "sandbox_mode" not in config


@pytest.mark.parametrize("name", known_agents())
def test_token_and_prompt_are_never_arguments(name: str) -> None:
    prompt = "secret words\n```sh\nmake everything\n```"
    made = command(name, prompt=prompt)
    assert not any(TOKEN in argument or "make everything" in argument for argument in made.argv)


@pytest.mark.parametrize(
    ("name", "file"), [("gemini", ".gemini/settings.json"), ("qwen", ".qwen/settings.json")]
)
@pytest.mark.parametrize("resume", [False, True])
def test_gemini_and_qwen_have_the_tools(name: str, file: str, resume: bool) -> None:
    made = command(name, resume=resume)
    settings = json.loads(made.files[file])
    assert settings["mcpServers"] == {"bot": {"httpUrl": TOOLS, "headers": BEARER, "trust": True}}
    assert settings["telemetry"] == {"enabled": False}  # and the other settings are still there
    assert made.env["AGENT_TOOLS_TOKEN"] == TOKEN


@pytest.mark.parametrize("resume", [False, True])
def test_opencode_and_droid_have_the_tools(resume: bool) -> None:
    opencode, droid = (command(name, resume=resume) for name in ("opencode", "droid"))
    server = json.loads(opencode.env["OPENCODE_CONFIG_CONTENT"])["mcp"]["bot"]
    assert (server["type"], server["url"], server["oauth"]) == ("remote", TOOLS, False)
    assert server["headers"] == {"Authorization": "Bearer {env:AGENT_LLM_TOKEN}"}
    server = json.loads(droid.files[".factory/mcp.json"])["mcpServers"]["bot"]
    assert (server["type"], server["url"]) == ("http", TOOLS)
    assert server["headers"] == {"Authorization": "Bearer ${AGENT_LLM_TOKEN}"}
    assert opencode.env["AGENT_LLM_TOKEN"] == droid.env["AGENT_LLM_TOKEN"] == TOKEN


def test_who_has_the_tools() -> None:
    settings = fixed_settings(custom_agents={"mine": {"argv": ["mycli"]}})
    have = {name for name in known_agents(settings) if agent(name, settings).tools}
    assert have == {"claude", "codex", "gemini", "opencode", "qwen", "droid"}
    for name in known_agents():
        made = command(name)
        assert ("{gateway}/mcp" in str(made)) == (name in have)
        assert not any(TOKEN in text for text in made.files.values())


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_gateway_is_put_in_when_it_is_known(name: str) -> None:
    made = command(name, gateway="http://127.0.0.1:8080")
    assert "http://127.0.0.1:8080/llm/" in str((made.env, made.files))
    assert "{gateway}" not in str(made)


def test_shell_without_steps_says_what_to_do() -> None:
    with pytest.raises(ConductorError, match="Put the commands into a ```sh block"):
        command("shell", prompt="please do something")


def test_shell_reads_its_own_lines_and_the_steps() -> None:
    shell = agent("shell")
    [heading] = shell.read("""Step 1 of 1: echo '<result>{"status": "done"}</result>'""")
    assert heading.kind == "tool"  # what a step will do is not yet done
    assert [event.kind for event in shell.read("compiling…\n")] == ["log"]
    [own] = shell.read('<result>{"status": "done", "title": "Mine"}</result>')
    assert own.kind == "text"
    [ours] = shell.read('<result>{"by": "steps", "status": "done", "title": "Run 1 step"}</result>')
    assert ours.kind == "final"
    verdict = judge(Transcript([own, ours]), exit_code=0, changed=True)
    assert verdict.result is not None
    assert verdict.result.title == "Mine"
