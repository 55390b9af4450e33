"""Reading what the CLIs print: captured transcripts, and odd lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import ConfigurationError
from bot.model import FailureKind, Usage
from bot.ports import AgentEvent
from bot.results import Transcript, judge
from runners.agents.cli import MAX_TEXT
from runners.agents.registry import agent, known_agents

TRANSCRIPTS = Path(__file__).parent.parent / "payloads" / "transcripts"
KINDS = {"started", "text", "tool", "tool_result", "retry", "final", "error", "log"}


def events(transcript: str) -> list[AgentEvent]:
    tool = agent(transcript.partition("-")[0])
    lines = (TRANSCRIPTS / f"{transcript}.jsonl").read_text().splitlines()
    return [event for line in lines for event in tool.read(line)]


def told(transcript: str, *kinds: str) -> list[tuple[str, str, bool]]:
    return [(e.kind, e.text, e.ok) for e in events(transcript) if e.kind in kinds]


CREATED = (
    "File created successfully at: /workspace/repo/note.txt "
    "(file state is current in your context — no need to Read it back)"
)


def raw(transcript: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRANSCRIPTS / f"{transcript}.jsonl").read_text().splitlines()]


def test_claude_success() -> None:
    assert told("claude-success", "text", "tool", "tool_result") == [
        ("text", "I write the file.", True),
        ("tool", "Write: /workspace/repo/note.txt", True),
        (
            "tool_result",
            CREATED,
            True,
        ),
        (
            "text",
            'Done.\n<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>',
            True,
        ),
    ]
    transcript = Transcript(events("claude-success"))
    assert transcript.session_id == raw("claude-success")[0]["session_id"]
    # of this run: one API answer makes several lines with the same usage, which must not add up
    assert transcript.usage == Usage(input_tokens=1500, output_tokens=150, cached_tokens=1000, cost=None)


def test_codex_success() -> None:
    assert told("codex-success", "text", "tool", "tool_result") == [
        ("text", "I write the file.", True),
        ("tool", "apply_patch: /workspace/repo/note.txt", True),
        ("tool_result", "completed", True),
        (
            "text",
            'Done.\n<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>',
            True,
        ),
    ]
    transcript = Transcript(events("codex-success"))
    assert transcript.session_id == raw("codex-success")[0]["thread_id"]
    assert transcript.usage == Usage(input_tokens=1500, output_tokens=150, cached_tokens=1000, cost=None)


def test_usage_after_a_resume() -> None:
    """Claude tells what the run used, Codex what the whole session did."""
    claude, codex = Transcript(events("claude-resume")), Transcript(events("codex-resume"))
    assert claude.usage == Usage(input_tokens=200, output_tokens=10, cached_tokens=1500, cost=None)
    assert codex.usage == Usage(input_tokens=1700, output_tokens=160, cached_tokens=2500, cost=None)


@pytest.mark.parametrize(
    ("transcript", "exit_code", "kind", "words"),
    [
        ("claude-success", 0, None, "is done"),
        ("claude-resume", 0, None, "is done"),
        ("claude-cut", 0, None, "is done"),
        ("claude-401", 1, FailureKind.auth, "Invalid API key"),
        ("claude-429", 1, FailureKind.quota, "rate limit"),
        ("claude-500", 1, FailureKind.infrastructure, "Internal server error"),
        ("claude-credit", 1, FailureKind.quota, "Credit balance is too low"),
        ("claude-unreachable", 1, FailureKind.infrastructure, "cannot be reached: Connection refused."),
        ("claude-no-key", 1, FailureKind.configuration, "CONDUCTOR_LLM_ANTHROPIC_KEY"),
        ("claude-max-turns", 1, FailureKind.agent, "maximum number of turns (2)"),
        ("claude-no-result", 0, FailureKind.no_result, "without saying"),
        ("claude-sigterm", 143, FailureKind.crash, "signal 15"),
        ("claude-unknown-session", 1, FailureKind.agent, "No conversation found"),
        ("codex-success", 0, None, "is done"),
        ("codex-resume", 0, None, "is done"),
        ("codex-cut", 0, None, "is done"),
        ("codex-401", 1, FailureKind.auth, "401 Unauthorized: invalid x-api-key."),
        ("codex-429", 1, FailureKind.quota, "429 Too Many Requests"),
        ("codex-500", 1, FailureKind.infrastructure, "experiencing high demand"),
        ("codex-credit", 1, FailureKind.quota, "rate limit: Your credit balance is too low."),
        ("codex-unreachable", 1, FailureKind.infrastructure, "cannot be reached: Connection refused."),
        ("codex-no-key", 1, FailureKind.configuration, "CONDUCTOR_LLM_OPENAI_KEY"),
        ("codex-no-result", 0, FailureKind.no_result, "without saying"),
        ("codex-sigterm", 143, FailureKind.crash, "signal 15"),
    ],
)
def test_verdicts(transcript: str, exit_code: int, kind: FailureKind | None, words: str) -> None:
    verdict = judge(Transcript(events(transcript)), exit_code=exit_code, changed=True)
    assert (verdict.ok, verdict.kind) == (kind is None, kind), verdict
    assert words in verdict.message, verdict


def test_every_transcript_is_read() -> None:
    names = sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl"))
    assert len(names) >= 24
    for name in names:
        assert {event.kind for event in events(name)} <= KINDS
        assert events(name)


def line(**values: Any) -> str:
    return json.dumps(values)


def test_claude_retry_says_why() -> None:
    [retry] = [event for event in events("claude-429") if event.kind == "retry"]
    assert (retry.ok, retry.failure) == (False, "quota")
    assert retry.text == "retry 1 of 1: rate_limit (429)"


def test_words_of_a_subagent_are_not_the_agents() -> None:
    message = {"content": [{"type": "text", "text": '<result>{"status": "done"}</result>'}]}
    own = agent("claude").read(line(type="assistant", message=message, parent_tool_use_id=None))
    other = agent("claude").read(line(type="assistant", message=message, parent_tool_use_id="toolu_1"))
    assert ([e.kind for e in own], [e.kind for e in other]) == (["text"], ["log"])


def test_claude_budget() -> None:
    [event] = agent("claude").read(
        line(type="result", subtype="error_max_budget_usd", is_error=True, errors=["x"])
    )
    assert (event.ok, event.failure) == (False, "budget")


def test_claude_error_with_exit_code_zero_is_no_success() -> None:
    """SIGINT: exit code 0 and a result that says error."""
    [event] = agent("claude").read(line(type="result", subtype="error_during_execution", is_error=True))
    assert not judge(Transcript([event]), exit_code=0, changed=True).ok


def test_codex_failed_command() -> None:
    item = {"type": "command_execution", "command": "make", "aggregated_output": "no rule", "exit_code": 2}
    [started] = agent("codex").read(line(type="item.started", item=item))
    [completed] = agent("codex").read(line(type="item.completed", item=item))
    assert (started.kind, started.text) == ("tool", "exec_command: make")
    assert (completed.kind, completed.text, completed.ok) == ("tool_result", "no rule", False)


@pytest.mark.parametrize("name", ["claude", "codex"])
@pytest.mark.parametrize("text", ["Warning: something", "[1]", "7", "{broken", '"x"'])
def test_lines_that_are_no_event_are_logged(name: str, text: str) -> None:
    assert agent(name).read(text) == [AgentEvent(kind="log", text=text)]


@pytest.mark.parametrize("name", known_agents())
def test_long_lines_are_cut_in_the_middle(name: str) -> None:
    [event] = agent(name).read("a" * MAX_TEXT + "the end")
    assert len(event.text) <= MAX_TEXT + 10
    assert event.text.startswith("aaa")
    assert event.text.endswith("the end")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "subtype",
    "message",
    "error",
    "result",
    "usage",
    "item",
    "content",
    "session_id",
    "errors",
    "parent_tool_use_id",
]
TYPES = [
    "system",
    "assistant",
    "user",
    "result",
    "item.started",
    "item.completed",
    "turn.failed",
    "turn.completed",
    "error",
    "thread.started",
]
ITEM = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["agent_message", "command_execution", "file_change", "mcp_tool_call", "error"]
        )
    },
    optional={"text": JSON, "changes": JSON, "command": JSON, "status": JSON, "error": JSON, "message": JSON},
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking"])},
    optional={"text": JSON, "input": JSON, "content": JSON, "name": JSON},
)
MESSAGE = st.fixed_dictionaries({"content": st.lists(BLOCK, max_size=2) | JSON})


@given(
    kind=st.sampled_from(TYPES),
    subtype=st.sampled_from(["init", "api_retry", "success", "x"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON | ITEM | MESSAGE),
)
def test_odd_events_never_raise(kind: str, subtype: str, fields: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, "subtype": subtype, **fields})
    for name in known_agents():
        for event in agent(name).read(text):
            assert event.kind in KINDS
            assert isinstance(event.text, str)


@given(st.text())
def test_odd_lines_never_raise(text: str) -> None:
    for name in known_agents():
        assert all(event.kind in KINDS for event in agent(name).read(text))


def test_unknown_agent_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'cloude'.*claude, codex, .*shell"):
        agent("cloude")
    assert [agent(name).name for name in known_agents()] == list(known_agents())
