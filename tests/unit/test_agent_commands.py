"""How the agents are started."""

from __future__ import annotations

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


def test_claude() -> None:
    first = command("claude")
    assert first.argv == [
        *("claude", "-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"),
        *("--model", "m1", "--session-id", SESSION),
    ]
    assert first.stdin == "```sh\nmake\n```"
    assert first.files == {}
    assert first.env == {
        "ANTHROPIC_BASE_URL": "{gateway}/llm/anthropic",
        "ANTHROPIC_API_KEY": TOKEN,
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "5",
    }
    assert command("claude", resume=True, model=None).argv[-3:] == [
        "--dangerously-skip-permissions",
        "--resume",
        SESSION,
    ]


def test_codex() -> None:
    first = command("codex")
    options = ["--json", "--dangerously-bypass-approvals-and-sandbox", "--skip-git-repo-check"]
    assert first.argv == ["codex", "exec", *options, "-"]
    assert command("codex", resume=True).argv == ["codex", "exec", "resume", *options, SESSION, "-"]
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
