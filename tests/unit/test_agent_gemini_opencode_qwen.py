"""Gemini CLI, OpenCode and Qwen Code: how they are started, and what their captured output means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bot.errors import ConfigurationError
from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command, Turn
from bot.results import Transcript, judge
from runners.agents.cli import literal_at_signs
from runners.agents.registry import agent

TRANSCRIPTS = Path(__file__).parent.parent / "payloads" / "transcripts"
SESSION = "7d77d329-4237-4802-8bd8-b91f81b34d07"
DONE = '<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>'


def raw(transcript: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRANSCRIPTS / f"{transcript}.jsonl").read_text().splitlines()]


def events(transcript: str) -> list[AgentEvent]:
    tool = agent(transcript.partition("-")[0])
    lines = (TRANSCRIPTS / f"{transcript}.jsonl").read_text().splitlines()
    return [event for line in lines for event in tool.read(line)]


def command(name: str, *, resume: bool = False, model: str | None = "m1", prompt: str = "Work.") -> Command:
    turn = Turn(number=1, prompt=prompt, model=model, session_id=SESSION, resume=resume, timeout=60)
    return agent(name).command(turn, gateway="{gateway}", token="attempt-token")


# --- how they are started -----------------------------------------------------------------------


def test_gemini_is_started_headless_and_tamed() -> None:
    made = command("gemini")
    options = ["--output-format", "stream-json", "--approval-mode", "yolo", "--skip-trust"]
    assert made.argv == ["gemini", *options, "--model", "m1", "--session-id", SESSION]
    assert command("gemini", resume=True, model=None).argv == ["gemini", *options, "--resume", SESSION]
    assert made.stdin == "Work."
    assert made.env == {
        "GOOGLE_GEMINI_BASE_URL": "{gateway}/llm/gemini",
        "GEMINI_API_KEY": "attempt-token",
        "GEMINI_CLI_NO_RELAUNCH": "true",
        "GEMINI_SANDBOX": "false",
        "GEMINI_TELEMETRY_ENABLED": "false",
        "AGENT_TOOLS_TOKEN": "attempt-token",
    }
    settings = json.loads(made.files[".gemini/settings.json"])
    assert settings["general"]["maxAttempts"] == 3
    assert settings["general"]["enableAutoUpdate"] is False
    assert settings["privacy"] == {"usageStatisticsEnabled": False}
    assert settings["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert "attempt-token" not in str(made.files)


def test_qwen_is_started_headless_and_tamed() -> None:
    made = command("qwen")
    options = ["--auth-type", "openai", "--output-format", "stream-json", "--approval-mode", "yolo"]
    assert made.argv == ["qwen", *options, "--model", "m1", "--session-id", SESSION]
    assert command("qwen", resume=True, model=None).argv == ["qwen", *options, "--resume", SESSION]
    assert made.env == {
        "OPENAI_BASE_URL": "{gateway}/llm/openai",
        "OPENAI_API_KEY": "attempt-token",
        "QWEN_CODE_NO_RELAUNCH": "true",
        "QWEN_SANDBOX": "false",
        "AGENT_TOOLS_TOKEN": "attempt-token",
    }
    settings = json.loads(made.files[".qwen/settings.json"])
    assert settings["model"]["generationConfig"] == {"maxRetries": 0}
    assert settings["telemetry"] == {"enabled": False}
    assert not any(settings["memory"].values())


def test_opencode_is_started_headless_and_tamed() -> None:
    made = command("opencode")
    options = ["--format", "json", "--auto", "--title", "work", "--model", "conductor/m1"]
    assert made.argv == ["opencode", "run", *options]
    assert command("opencode", resume=True).argv == ["opencode", "run", *options, "--session", SESSION]
    assert made.stdin == "Work."
    assert made.env["AGENT_LLM_TOKEN"] == "attempt-token"
    config = json.loads(made.env["OPENCODE_CONFIG_CONTENT"])
    assert (config["autoupdate"], config["share"], config["snapshot"]) == (False, "disabled", False)
    assert config["enabled_providers"] == ["conductor"]
    assert config["model"] == config["small_model"] == "conductor/m1"
    assert "attempt-token" not in made.env["OPENCODE_CONFIG_CONTENT"]
    assert {name for name in made.env if name.startswith("OPENCODE_DISABLE_")} == {
        "OPENCODE_DISABLE_AUTOUPDATE",
        "OPENCODE_DISABLE_MODELS_FETCH",
        "OPENCODE_DISABLE_LSP_DOWNLOAD",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS",
    }


@pytest.mark.parametrize(
    ("model", "package", "url", "name"),
    [
        ("glm-4.6", "@ai-sdk/openai-compatible", "{gateway}/llm/openai", "glm-4.6"),
        ("gpt-oss-120b", "@ai-sdk/openai-compatible", "{gateway}/llm/openai", "gpt-oss-120b"),
        ("o3mini-local", "@ai-sdk/openai-compatible", "{gateway}/llm/openai", "o3mini-local"),
        ("z-ai/glm-4.6", "@ai-sdk/openai-compatible", "{gateway}/llm/openai", "z-ai/glm-4.6"),
        ("gpt-5-codex", "@ai-sdk/openai", "{gateway}/llm/openai", "gpt-5-codex"),
        ("openai/gpt-5.5", "@ai-sdk/openai", "{gateway}/llm/openai", "gpt-5.5"),
        ("o4-mini", "@ai-sdk/openai", "{gateway}/llm/openai", "o4-mini"),
        ("claude-opus-4-5", "@ai-sdk/anthropic", "{gateway}/llm/anthropic/v1", "claude-opus-4-5"),
    ],
)
def test_opencode_speaks_the_language_of_the_model(model: str, package: str, url: str, name: str) -> None:
    config = json.loads(command("opencode", model=model).env["OPENCODE_CONFIG_CONTENT"])
    provider = config["provider"]["conductor"]
    assert provider["npm"] == package
    assert provider["options"]["baseURL"] == url
    assert list(provider["models"]) == [name]
    assert config["model"] == f"conductor/{name}"


def test_opencode_without_a_model_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="opencode"):
        command("opencode", model=None)


def test_at_signs_are_no_files() -> None:
    assert literal_at_signs("no such sign") == "no such sign"
    told = literal_at_signs("@maria: see a@b.example, \\@x and `@pytest.fixture`")
    assert told.endswith("\\@maria: see a\\@b.example, \\@x and `\\@pytest.fixture`")
    assert told.startswith("(Read `\\@` as an at sign.)\n")
    for name in ("gemini", "qwen"):
        assert command(name, prompt="ask @maria").stdin.endswith("ask \\@maria")
    assert command("opencode", prompt="ask @maria").stdin == "ask @maria"


# --- what their output means --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [
        ("gemini", "write_file: /workspace/repo/note.txt", ""),
        ("opencode", "write: /workspace/repo/note.txt", "Wrote file successfully."),
        (
            "qwen",
            "write_file: /workspace/repo/note.txt",
            "Successfully created and wrote to new file: /workspace/repo/note.txt.",
        ),
    ],
)
def test_success(name: str, call: str, answer: str) -> None:
    found = events(f"{name}-success")
    told = [(event.kind, event.text) for event in found if event.kind in ("tool", "tool_result")]
    assert told == [("tool", call), ("tool_result", answer)]
    spoken = Transcript()
    said = []
    for event in found:
        spoken.add(event)
        if event.kind == "text":
            said.append(spoken.text)
    # the pieces of what Gemini says are one text until it calls a tool
    assert said[-1] == f"Done.\n{DONE}"
    assert "I write the file." in said
    assert spoken.usage == Usage(input_tokens=1500, output_tokens=150, cached_tokens=1000, cost=None)
    assert judge(spoken, exit_code=0, changed=True).ok
    first = raw(f"{name}-success")[0]
    assert spoken.session_id == (first.get("session_id") or first.get("sessionID"))


def test_usage_after_a_resume() -> None:
    """Gemini and OpenCode tell what the run used, Qwen what the whole session did."""
    run = Usage(input_tokens=200, output_tokens=10, cached_tokens=1500, cost=None)
    assert Transcript(events("gemini-resume")).usage == run
    assert Transcript(events("opencode-resume")).usage == run
    assert Transcript(events("qwen-resume")).usage == Usage(
        input_tokens=1700, output_tokens=160, cached_tokens=2500, cost=None
    )


@pytest.mark.parametrize(
    ("transcript", "exit_code", "kind", "words"),
    [
        ("gemini-success", 0, None, "is done"),
        ("gemini-resume", 0, None, "is done"),
        ("gemini-401", 145, FailureKind.auth, "Incorrect API key provided: sk-x."),
        ("gemini-400", 144, FailureKind.auth, "API key not valid."),
        ("gemini-429", 173, FailureKind.quota, "rate limit: You exceeded your current quota."),
        ("gemini-daily", 173, FailureKind.quota, "You have exhausted your daily quota on this model."),
        ("gemini-credit", 146, FailureKind.quota, "Insufficient credits."),
        ("gemini-500", 244, FailureKind.infrastructure, "Internal server error."),
        ("gemini-503", 247, FailureKind.infrastructure, "The model is overloaded."),
        ("gemini-unreachable", 246, FailureKind.infrastructure, "cannot be reached: Connection refused."),
        ("gemini-cut", 1, FailureKind.infrastructure, "terminated."),
        ("gemini-max-turns", 53, FailureKind.agent, "Reached max session turns"),
        ("gemini-no-result", 0, FailureKind.no_result, "without saying"),
        ("opencode-success", 0, None, "is done"),
        ("opencode-resume", 0, None, "is done"),
        ("opencode-cut", 0, None, "is done"),
        ("opencode-401", 1, FailureKind.auth, "Incorrect API key provided: sk-x."),
        ("opencode-429", 1, FailureKind.quota, "You exceeded your current quota."),
        ("opencode-credit", 1, FailureKind.quota, "Insufficient credits."),
        ("opencode-500", 1, FailureKind.infrastructure, "Internal server error."),
        ("opencode-unreachable", 1, FailureKind.infrastructure, "cannot be reached: Connection refused."),
        ("opencode-no-result", 0, FailureKind.no_result, "without saying"),
        ("qwen-success", 0, None, "is done"),
        ("qwen-resume", 0, None, "is done"),
        # it ends these with 0 and says "success"
        ("qwen-401", 0, FailureKind.auth, "credentials: 401 Incorrect API key provided: sk-x."),
        ("qwen-429", 0, FailureKind.quota, "rate limit: 429 You exceeded your current quota."),
        ("qwen-credit", 0, FailureKind.quota, "402 Insufficient credits."),
        ("qwen-500", 0, FailureKind.infrastructure, "500 Internal server error."),
        ("qwen-cut", 0, FailureKind.no_result, "without saying"),
        ("qwen-no-result", 0, FailureKind.no_result, "without saying"),
    ],
)
def test_verdicts(transcript: str, exit_code: int, kind: FailureKind | None, words: str) -> None:
    verdict = judge(Transcript(events(transcript)), exit_code=exit_code, changed=True)
    assert (verdict.ok, verdict.kind) == (kind is None, kind), verdict
    assert words in verdict.message, verdict


@pytest.mark.parametrize("name", ["gemini", "opencode", "qwen"])
def test_failing_command(name: str) -> None:
    call, answer = [event for event in events(f"{name}-command") if event.kind in ("tool", "tool_result")]
    assert call.text.endswith(": echo it is broken; exit 3")
    assert "it is broken" in answer.text


def line(**values: Any) -> str:
    return json.dumps(values)


def test_a_text_after_a_tool_is_a_new_one() -> None:
    gemini = agent("gemini")
    lines = [
        line(type="message", role="assistant", content="I wri", delta=True),
        line(type="message", role="assistant", content="te.", delta=True),
        line(type="tool_use", tool_name="write_file", parameters={}),
        line(type="message", role="assistant", content="It is ", delta=True),
        line(type="message", role="assistant", content="there.", delta=True),
    ]
    transcript = Transcript()
    said = []
    for text in lines:
        for event in gemini.read(text):
            transcript.add(event)
        said.append(transcript.text)
    assert said == ["I wri", "I write.", "I write.", "It is ", "It is there."]


def test_the_prompt_is_not_what_gemini_says() -> None:
    [event] = agent("gemini").read(line(type="message", role="user", content=DONE))
    assert event == AgentEvent(kind="log", text="message user")


def test_gemini_tells_of_a_loop_and_of_a_failed_tool() -> None:
    gemini = agent("gemini")
    [loop] = gemini.read(line(type="error", severity="warning", message="Loop detected"))
    assert (loop.kind, loop.text, loop.ok, loop.failure) == ("error", "Loop detected", False, None)
    [failed] = gemini.read(line(type="tool_result", status="error", error={"message": "no such file"}))
    assert (failed.kind, failed.text, failed.ok) == ("tool_result", "no such file", False)


@pytest.mark.parametrize(
    ("reason", "kind", "ok"),
    [("stop", "final", True), ("length", "final", False), ("content-filter", "final", False),
     ("tool-calls", "log", True), ("unknown", "log", True)],
)  # fmt: skip
def test_why_an_answer_of_opencode_ended(reason: str, kind: str, ok: bool) -> None:
    tokens = {"input": 3, "output": 2, "reasoning": 5, "cache": {"read": 7, "write": 1}}
    [event] = agent("opencode").read(line(type="step_finish", part={"reason": reason, "tokens": tokens}))
    assert (event.kind, event.ok) == (kind, ok)
    assert event.usage == Usage(
        input_tokens=3, output_tokens=7, cached_tokens=7, cache_write_tokens=1, cost=None
    )


def test_opencode_tells_a_call_of_no_tool_as_failed() -> None:
    state = {"status": "completed", "input": {"tool": "wrote"}, "output": "unavailable tool 'wrote'"}
    call, answer = agent("opencode").read(line(type="tool_use", part={"tool": "invalid", "state": state}))
    assert (call.kind, answer.kind, answer.ok) == ("tool", "tool_result", False)


def test_qwens_words_about_an_error_are_its_own() -> None:
    """A model that writes about such an error somewhere in its text reports no error."""
    message = {"content": [{"type": "text", "text": f"I handle [API Error: 401 x] now. {DONE}"}]}
    [said] = agent("qwen").read(line(type="assistant", message=message, parent_tool_use_id=None))
    assert said.kind == "text"
    refused = {"content": [{"type": "text", "text": "[API Error: 403 Not allowed]"}]}
    [error] = agent("qwen").read(line(type="assistant", message=refused, parent_tool_use_id=None))
    assert (error.kind, error.text, error.failure) == ("error", "403 Not allowed", "auth")


def test_qwen_error_result() -> None:
    [event] = agent("qwen").read(
        line(type="result", subtype="error_during_execution", is_error=True, error={"message": "no /help"})
    )
    assert (event.ok, event.failure, event.text) == (False, "agent", "no /help")


@pytest.mark.parametrize("name", ["gemini", "opencode", "qwen"])
@pytest.mark.parametrize("text", ["Warning: something", "[1]", "7", "{broken", '"x"'])
def test_lines_that_are_no_event_are_logged(name: str, text: str) -> None:
    assert agent(name).read(text) == [AgentEvent(kind="log", text=text)]


@pytest.mark.parametrize("name", ["gemini", "opencode", "qwen"])
@pytest.mark.parametrize("kind", ["init", "message", "tool_use", "tool_result", "error", "result", "text",
                                  "step_start", "step_finish", "assistant", "user", "system", "x", None])  # fmt: skip
@pytest.mark.parametrize(
    "odd", [None, 7, "x", [1], [{"type": "text"}], {"data": 7, "content": "x", "state": []}]
)
def test_odd_events_never_raise(name: str, kind: str | None, odd: Any) -> None:
    fields = ("message", "part", "error", "stats", "result", "session_id", "content", "usage", "parameters")
    for event in agent(name).read(line(type=kind, role="assistant", **dict.fromkeys(fields, odd))):
        assert isinstance(event.text, str)
