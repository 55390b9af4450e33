"""Agents of the operator's own: what may be configured, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bot.config import fixed_settings, load_settings
from bot.errors import ConfigurationError
from bot.images import ImageSpec, dockerfile, image_tag
from bot.ports import Agent, Command, Installation, Turn
from runners.agents.registry import AGENTS, agent, known_agents

TOKEN = "attempt-token"
SESSION = "7d77d329-4237-4802-8bd8-b91f81b34d07"


def made(**config: Any) -> Agent:
    return agent("mine", fixed_settings(custom_agents={"mine": {"argv": ["mycli"], **config}}))


def command(tool: Agent, *, model: str | None = "m1", resume: bool = False) -> Command:
    turn = Turn(number=1, prompt="do {model} it", model=model, session_id=SESSION, resume=resume, timeout=60)
    return tool.command(turn, gateway="{gateway}", token=TOKEN)


def test_it_is_known_beside_the_built_in_ones() -> None:
    settings = fixed_settings(custom_agents={"mine": {"argv": ["mycli"]}})
    assert known_agents(settings) == (*AGENTS, "mine")
    assert known_agents() == tuple(AGENTS)
    assert agent("mine", settings).name == "mine"
    assert agent("claude", settings) is agent("claude")
    with pytest.raises(ConfigurationError, match=r"no agent named 'mine'"):
        agent("mine")


def test_a_built_in_name_cannot_be_taken() -> None:
    settings = fixed_settings(custom_agents={"codex": {"argv": ["mycli"]}})
    with pytest.raises(ConfigurationError, match="'codex' in custom_agents has the name of a built-in one"):
        known_agents(settings)


def test_placeholders_are_filled_and_the_prompt_is_standard_input() -> None:
    tool = made(
        argv=["mycli", "--model={model}", "--session", "{session}", '{"a": {}}'],
        output="jsonl",
        env={"MY_URL": "{gateway}/llm/openai", "MY_KEY": "Bearer {token}"},
    )
    first = command(tool, model="{session}")
    # what a value holds is not looked at again
    assert first.argv == ["mycli", "--model={session}", "--session", SESSION, '{"a": {}}']
    assert first.stdin == "do {model} it"
    assert first.env == {
        "OPENAI_BASE_URL": "{gateway}/llm/openai",
        "OPENAI_API_BASE": "{gateway}/llm/openai",
        "OPENAI_API_KEY": TOKEN,
        "MY_URL": "{gateway}/llm/openai",
        "MY_KEY": f"Bearer {TOKEN}",
    }
    assert first.files == {}


def test_prompt_in_a_file() -> None:
    first = command(made(argv=["mycli", "-f", "{prompt_file}"], output="jsonl"))
    assert first.stdin == ""
    assert first.files == {".agent-adapter/prompt.md": "do {model} it"}
    assert first.argv[-3:] == ["mycli", "-f", "{prompt_file}"]  # bash knows where HOME is
    assert "do {model} it" not in str(first.argv)


@pytest.mark.parametrize(
    ("llm", "names"),
    [
        ("anthropic", {"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"}),
        ("openai", {"OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_KEY"}),
        ("gemini", {"GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"}),
        ("own", set()),
        ("none", set()),
    ],
)
def test_the_usual_variables_of_its_provider_are_set(llm: str, names: set[str]) -> None:
    tool = made(llm=llm, output="jsonl")
    assert set(command(tool).env) == names
    assert tool.llm == (None if llm == "none" else llm)


def test_resume_is_a_command_of_its_own() -> None:
    config = {"output": "jsonl", "session_paths": [".mycli"]}
    tool = made(resume=["mycli", "--continue", "{session}"], **config)
    assert command(tool).argv == ["mycli"]
    assert command(tool, resume=True).argv == ["mycli", "--continue", SESSION]
    assert tool.session_paths == (".mycli",)
    without = made(**config)
    assert command(without, resume=True).argv == ["mycli"]
    assert without.session_paths == ()


def test_a_model_that_it_needs_and_nobody_names() -> None:
    with pytest.raises(ConfigurationError, match="The agent mine needs to be told its model"):
        command(made(argv=["mycli", "{model}"], output="jsonl"), model=None)
    assert command(made(output="jsonl"), model=None).argv == ["mycli"]


def test_formats_are_read_as_those_of_the_agents_they_are_named_after() -> None:
    claude = json.dumps({"type": "result", "subtype": "success", "is_error": False, "result": "done"})
    assert made(output="claude-stream-json").read(claude) == agent("claude").read(claude)
    codex = json.dumps({"type": "item.completed", "item": {"type": "agent_message", "text": "hi"}})
    assert made(output="codex-json").read(codex) == agent("codex").read(codex)
    [ours] = made(output="jsonl").read(json.dumps({"kind": "final", "ok": True}))
    assert (ours.kind, ours.ok) == ("final", True)


def test_secrets_are_read_from_the_worker_and_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_KEY", "very-secret")  # the environment is the input here
    config = {"argv": ["mycli"], "llm": "own", "secret_env": {"KEY": "env:MY_SERVICE_KEY", "OTHER": "plain"}}
    settings = fixed_settings(custom_agents={"mine": config})
    env = command(agent("mine", settings)).env
    assert (env["KEY"], env["OTHER"]) == ("very-secret", "plain")
    assert {"very-secret", "plain"} <= set(settings.secrets())
    assert "plain" not in repr(settings)
    monkeypatch.delenv("MY_SERVICE_KEY")
    with pytest.raises(ConfigurationError, match="The variable MY_SERVICE_KEY"):
        command(agent("mine", settings))
    assert "very-secret" not in settings.secrets()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"argv": []}, "at least 1 item"),
        (
            {"argv": ["mycli", "{promt_file}"]},
            "{promt_file} is no placeholder; there are {prompt_file}, {model}",
        ),
        ({"argv": ["mycli", "--key={token}"]}, "{token} cannot be an argument"),
        ({"argv": ["{model}"]}, "the first argument is the program"),
        ({"argv": ["mycli", "a\0b"]}, "NUL"),
        ({"env": {"A": "{prompt_file}"}}, "{prompt_file} can only be an argument"),
        ({"env": {"A-B": "x"}}, "String should match pattern"),
        ({"output": "html"}, "Input should be 'text'"),
        ({"llm": "bedrock"}, "Input should be 'anthropic'"),
        ({"session_paths": ["../.ssh"]}, "'../.ssh' is not a path below the home folder"),
        ({"session_paths": ["/etc"]}, "not a path below the home folder"),
        ({"session_paths": [".conductor/x"]}, "not a path below the home folder"),
        ({"instruction_file": "../x.md"}, "not a path in the repository"),
        ({"version": "1; rm"}, "String should match pattern"),
        ({"agrv": ["x"]}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in ({"argv": ["mycli"]} | config).items())
    if "env" in config:
        ((name, value),) = config["env"].items()
        text = f'argv = ["mycli"]\nenv = {{ "{name}" = "{value}" }}\n'
    file = tmp_path / "conductor.toml"
    file.write_text(f"[custom_agents.mine]\n{text}")
    with pytest.raises(ConfigurationError) as error:
        load_settings(file)
    assert words in str(error.value)
    assert "custom_agents" in str(error.value)


def test_a_name_must_fit_into_an_image() -> None:
    for name in ("My", "-x", "a b", "a\nRUN x"):
        with pytest.raises(ValueError, match="custom_agents"):
            fixed_settings(custom_agents={name: {"argv": ["x"]}})


def spec(installation: Installation) -> ImageSpec:
    return ImageSpec(
        agent="mine",
        installation=installation,
        base="debian:bookworm-slim",
        base_digest="sha256:1",
        shim="a" * 64,
    )


def test_install_commands_run_in_a_stage_that_is_thrown_away() -> None:
    odd = 'echo "$AGENT" \\\nRUN evil # {{ spec }} ]'
    text = dockerfile(spec(Installation(program="mycli", commands=(odd,))))
    own, _, final = text.partition("FROM system\n")
    # one JSON string: no character of it is anything to the Dockerfile's own parser
    assert f"\nRUN {json.dumps(['/bin/bash', '-euc', odd])}\n" in own
    assert "RUN evil" not in [line.strip() for line in text.splitlines()]
    assert "COPY --from=own --chown=0:0 /opt/agents/mine /opt/agents/mine\n" in final
    assert "if ! command -v mycli >/dev/null" in final


def test_without_commands_the_base_image_has_the_program() -> None:
    text = dockerfile(spec(Installation(program="mycli")))
    assert "AS own" not in text
    assert "--from=own" not in text
    assert "Put it into base_image" in text


def test_another_command_is_another_image() -> None:
    one, other = (Installation(program="mycli", commands=(step,)) for step in ("true", "false"))
    assert image_tag(spec(one)) != image_tag(spec(other))


@pytest.mark.parametrize("program", ["my cli", "x;evil", "$(x)", "-v", ""])
def test_a_program_that_could_become_a_command_is_refused(program: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid program name"):
        spec(Installation(program=program))


def test_q_needs_its_key_and_says_so() -> None:
    with pytest.raises(ConfigurationError, match="The agent q has no key") as error:
        command(agent("q", fixed_settings()))
    assert "CONDUCTOR_KIRO_API_KEY; the agent can read it" in error.value.hint


def test_q_as_its_documentation_says() -> None:
    settings = fixed_settings(kiro_api_key="kiro-secret", kiro_install=["true"])
    tool = agent("q", settings)
    kiro = ["kiro-cli", "chat", "--no-interactive", "--trust-all-tools", "--wrap", "never", "--model", "m1"]
    assert command(tool).argv[-len(kiro) :] == kiro
    assert command(tool, resume=True).argv[-1] == "--resume"
    assert command(tool).stdin == "do {model} it"
    assert command(tool).env["KIRO_API_KEY"] == "kiro-secret"
    assert TOKEN not in str(command(tool))  # there is nothing that it could use it for
    assert "kiro-secret" in settings.secrets()
    assert tool.installation == Installation(program="kiro-cli", commands=("true",))
