"""Reading what droid and our adapters print; the adapters' transcripts are those of aider and mini-swe-agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent
from bot.results import Transcript, judge
from runners.agents.adapter import KINDS, read_events
from runners.agents.registry import agent

TRANSCRIPTS = Path(__file__).parent.parent / "payloads" / "transcripts"
DONE = 'Done.\n<result>{"status": "done", "title": "Add a note", "summary": "Wrote note.txt"}</result>'
WROTE = f"I write the file.\n\nnote.txt\n```\nhello\n```\n\n{DONE}"


def lines(transcript: str) -> list[str]:
    return (TRANSCRIPTS / f"{transcript}.jsonl").read_text().splitlines()


def events(transcript: str) -> list[AgentEvent]:
    tool = agent(transcript.partition("-")[0])
    return [event for line in lines(transcript) for event in tool.read(line)]


def told(transcript: str) -> list[tuple[str, str, bool]]:
    kinds = ("text", "tool", "tool_result")
    return [(e.kind, e.text, e.ok) for e in events(transcript) if e.kind in kinds]


def test_droid_success() -> None:
    assert told("droid-success") == [
        ("text", "I write the file.", True),
        ("tool", "Create: /workspace/repo/note.txt", True),
        ("tool_result", '{"success":true,"file_path":"/workspace/repo/note.txt"}', True),
        ("text", DONE, True),
    ]
    transcript = Transcript(events("droid-success"))
    assert transcript.session_id == json.loads(lines("droid-success")[0])["session_id"]
    assert transcript.usage == Usage(input_tokens=1500, output_tokens=150, cached_tokens=1000, cost=None)


def test_aider_success() -> None:
    assert told("aider-success") == [("text", WROTE, True), ("tool", "Applied edit to note.txt", True)]
    transcript = Transcript(events("aider-success"))
    assert transcript.session_id == json.loads(lines("aider-success")[0])["session_id"]
    assert transcript.usage == Usage(input_tokens=100, output_tokens=20, cost=None)


def test_mini_success() -> None:
    assert told("mini-success") == [
        ("text", "I write the file.", True),
        ("tool", "bash: echo hello > note.txt; env > ../env.txt; false", True),
        ("tool_result", "", False),
        ("text", DONE, True),
        ("tool", "bash: echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT", True),
    ]
    assert Transcript(events("mini-success")).session_id is None  # there is nothing to go on with


@pytest.mark.parametrize(
    ("transcript", "exit_code", "kind", "words"),
    [
        ("droid-success", 0, None, "is done"),
        ("droid-resume", 0, None, "is done"),
        ("droid-401", 1, FailureKind.auth, "refused the credentials: invalid x-api-key."),
        ("droid-429", 1, FailureKind.quota, "rate limit: Rate limit reached for requests."),
        ("aider-success", 0, None, "is done"),
        ("aider-resume", 0, None, "is done"),
        ("aider-401", 1, FailureKind.auth, "refused the credentials: invalid x-api-key."),
        ("aider-429", 1, FailureKind.quota, "rate limit: Rate limit reached for requests."),
        ("mini-success", 0, None, "is done"),
        ("mini-401", 1, FailureKind.auth, "refused the credentials: invalid x-api-key."),
        ("mini-429", 1, FailureKind.quota, "rate limit: Rate limit reached for requests."),
    ],
)
def test_verdicts(transcript: str, exit_code: int, kind: FailureKind | None, words: str) -> None:
    verdict = judge(Transcript(events(transcript)), exit_code=exit_code, changed=True)
    assert (verdict.ok, verdict.kind) == (kind is None, kind), verdict
    assert words in verdict.message, verdict


@pytest.mark.parametrize("transcript", ["aider-401", "droid-401", "mini-401"])
def test_a_refusal_is_one_whatever_the_exit_code(transcript: str) -> None:
    """aider's own command line ends with 0 after it."""
    verdict = judge(Transcript(events(transcript)), exit_code=0, changed=True)
    assert (verdict.ok, verdict.kind) == (False, FailureKind.auth)


def line(**values: Any) -> str:
    return json.dumps(values)


@pytest.mark.parametrize(
    ("message", "words", "kind"),
    [
        # as litellm 1.79 words what OpenAI's and Anthropic's servers and our gateway answer
        (
            "litellm.InternalServerError: InternalServerError: OpenAIException - The server had an error",
            "The server had an error",
            "infrastructure",
        ),
        (
            (
                'litellm.BadRequestError: AnthropicException - {"type":"error","error":'
                '{"type":"invalid_request_error","message":"Your credit balance is too low"}}'
            ),
            "Your credit balance is too low",
            "quota",
        ),
        (
            (
                "litellm.AuthenticationError: AuthenticationError: OpenAIException - This server has no OpenAI key: "
                "its operator must set CONDUCTOR_LLM_OPENAI_KEY."
            ),
            "This server has no OpenAI key: its operator must set CONDUCTOR_LLM_OPENAI_KEY.",
            "configuration",
        ),
        (
            "litellm.Timeout: APITimeoutError - Request timed out.",
            "APITimeoutError - Request timed out.",
            "infrastructure",
        ),
        ("litellm.BadRequestError: OpenAIException - no such model", "no such model", "agent"),
        ("It gave up.", "It gave up.", "agent"),
    ],
)
def test_words_of_a_provider_come_out_of_their_wrapping(message: str, words: str, kind: str) -> None:
    [event] = read_events(line(kind="final", ok=False, text=message))
    assert (event.text, event.failure) == (words, kind)


def test_an_adapters_own_word_on_a_failure_counts_when_the_text_says_nothing() -> None:
    [event] = read_events(line(kind="final", ok=False, text="no credits", failure="quota"))
    assert event.failure == "quota"
    [odd] = read_events(line(kind="final", ok=False, text="x", failure="nonsense"))
    assert odd.failure == "agent"


def test_a_failed_tool_is_no_failure_of_the_provider() -> None:
    [event] = read_events(line(kind="tool_result", ok=False, text="429 Too Many Requests"))
    assert (event.ok, event.failure) == (False, None)


def test_a_final_event_that_does_not_say_ok_is_none() -> None:
    for value in ("yes", 1, None):
        [event] = read_events(line(kind="final", ok=value))
        assert event.ok is False


def test_an_error_of_droids_own_is_not_yet_the_end() -> None:
    read = agent("droid").read
    provider, own = (
        read(line(type="error", source="agent_loop", message='401 {"error":{"message":"no"}}')),
        read(line(type="error", source="cli", message="Exec failed")),
    )
    assert [(e.kind, e.text, e.failure) for e in provider] == [("final", "no", "auth")]
    assert [(e.kind, e.text, e.failure) for e in own] == [("error", "Exec failed", None)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    kind=st.sampled_from(sorted(KINDS)) | JSON,
    fields=st.dictionaries(st.sampled_from(["text", "ok", "session_id", "failure", "usage"]), JSON),
)
def test_odd_events_never_raise(kind: object, fields: dict[str, Any]) -> None:
    for event in read_events(json.dumps({"kind": kind, **fields})):
        assert event.kind in KINDS
        assert isinstance(event.text, str)


@given(
    kind=st.sampled_from(["system", "message", "tool_call", "tool_result", "completion", "error"]),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "subtype",
                "role",
                "text",
                "toolName",
                "parameters",
                "value",
                "finalText",
                "usage",
                "message",
                "source",
            ]
        ),
        JSON,
    ),
)
def test_odd_events_of_droid_never_raise(kind: str, fields: dict[str, Any]) -> None:
    for event in agent("droid").read(json.dumps({"type": kind, **fields})):
        assert event.kind in KINDS
        assert isinstance(event.text, str)
