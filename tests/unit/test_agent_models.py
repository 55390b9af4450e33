"""Which provider a model belongs to, and how the agents that know several are started."""

from __future__ import annotations

import json

import pytest

from bot.errors import ConfigurationError
from bot.ports import Command, Turn
from runners.agents.models import model_of
from runners.agents.registry import agent

TOKEN = "attempt-token"
SESSION = "7d77d329-4237-4802-8bd8-b91f81b34d07"


def turn(model: str | None, *, resume: bool = False) -> Turn:
    return Turn(number=1, prompt="do it", model=model, session_id=SESSION, resume=resume, timeout=60)


def command(name: str, model: str | None, *, resume: bool = False) -> Command:
    return agent(name).command(turn(model, resume=resume), gateway="{gateway}", token=TOKEN)


@pytest.mark.parametrize(
    ("model", "provider", "name", "api"),
    [
        ("claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5", "messages"),
        ("anthropic/other", "anthropic", "other", "messages"),
        ("gpt-5-codex", "openai", "gpt-5-codex", "responses"),
        ("o3", "openai", "o3", "responses"),
        ("openai/claude-like", "openai", "claude-like", "chat"),
        ("gpt-4.1", "openai", "gpt-4.1", "chat"),
        ("qwen/qwen3-coder", "openai", "qwen/qwen3-coder", "chat"),
        ("openai/", "openai", "openai/", "chat"),
    ],
)
def test_provider_of_a_model(model: str, provider: str, name: str, api: str) -> None:
    found = model_of(turn(model), "x")
    assert (found.provider, found.name, found.api) == (provider, name, api)
    assert found.base_url("{gateway}") == f"{{gateway}}/llm/{provider}"


@pytest.mark.parametrize("name", ["droid", "aider", "mini"])
def test_a_missing_model_is_told_with_the_next_step(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"The agent {name} needs to be told its model") as error:
        command(name, None)
    assert f"models = {{ {name} = … }}" in error.value.hint


@pytest.mark.parametrize(
    ("model", "provider", "base"),
    [
        ("claude-sonnet-4-5", "anthropic", "{gateway}/llm/anthropic"),
        ("gpt-5-codex", "openai", "{gateway}/llm/openai"),
        ("m1", "generic-chat-completion-api", "{gateway}/llm/openai"),
    ],
)
def test_droid(model: str, provider: str, base: str) -> None:
    made = command("droid", model)
    options = ["-o", "stream-json", "--skip-permissions-unsafe", "-m", "custom:conductor-0"]
    assert made.argv == ["droid", "exec", *options]
    assert command("droid", model, resume=True).argv == ["droid", "exec", *options, "-s", SESSION]
    assert made.stdin == "do it"
    settings = next(found for text in made.files.values() if "customModels" in (found := json.loads(text)))
    [custom] = settings["customModels"]
    assert (custom["model"], custom["provider"], custom["baseUrl"]) == (model, provider, base)
    assert settings["cloudSessionSync"] is False
    variable = custom["apiKey"].removeprefix("${").removesuffix("}")
    assert made.env[variable] == TOKEN
    assert not any(TOKEN in text for text in made.files.values())
    assert {made.env["FACTORY_API_BASE_URL"], made.env["FACTORY_TELEMETRY_INGEST_BASE_URL"]} == {"{gateway}"}
    assert made.env["FACTORY_DROID_AUTO_UPDATE_ENABLED"] == "0"


@pytest.mark.parametrize("name", ["aider", "mini"])
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "m1"])
def test_adapters_get_the_turn_in_a_file_and_the_token_in_a_variable(name: str, model: str) -> None:
    made = command(name, model)
    assert made.stdin == "do it"
    given = json.loads(made.files[".agent-adapter/turn.json"])
    provider = "anthropic" if model.startswith("claude") else "openai"
    assert given["model"] == f"{provider}/{model}"
    assert given["base_url"] == f"{{gateway}}/llm/{provider}"
    assert made.env["AGENT_LLM_TOKEN"] == TOKEN
    assert TOKEN not in "".join(made.files.values())
    assert f".agent-adapter/{name}.py" in made.files
    compile(made.files[f".agent-adapter/{name}.py"], name, "exec")
    # isolated: neither the repository nor the environment adds to what is imported
    assert f'/python" -I "$HOME/.agent-adapter/{name}.py"' in made.argv[-1]


def test_aider_goes_on_by_its_own_files() -> None:
    given = json.loads(command("aider", "m1", resume=True).files[".agent-adapter/turn.json"])
    assert (given["resume"], given["session_id"]) == (True, SESSION)
    assert agent("aider").session_paths == (given["session_folder"],)
    assert agent("mini").session_paths == ()
