from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.model import FailureKind, Result
from bot.ports import AgentEvent
from bot.results import (
    HINTS,
    MAX_MESSAGE,
    MAX_SUMMARY,
    MAX_TITLE,
    Transcript,
    failure_of,
    judge,
    parse_result,
)

DONE = '<result>{"status": "done", "title": "T", "summary": "S"}</result>'
RESULT = Result(status="done", title="T", summary="S")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DONE, RESULT),
        (f"I did it.\n\n{DONE}\nBye.", RESULT),
        ('<RESULT>\n{"status": "done", "title": "T", "summary": "S"}\n</Result>', RESULT),
        ('<result>\n```json\n{"status": "done", "title": "T", "summary": "S"}\n```\n</result>', RESULT),
        (f"```\n{DONE}\n```", RESULT),
        ('<result>{"status": " Done ", "more": [1], "title": "T", "summary": "S"}</result>', RESULT),
        ('<result>{"status": "blocked"}</result>', Result(status="blocked")),
        # the last one counts
        ('<result>{"status": "failed"}</result> no: ' + DONE, RESULT),
        # … that is well-formed
        (DONE + ' and <result>{"status": "great"}</result>', RESULT),
        (DONE + " and <result>{broken}</result>", RESULT),
        (DONE + " and <result>", RESULT),
        # the tags within the JSON's own text are text
        (
            '<result>{"status": "done", "summary": "ends with </result> and <result>{}</result>"}</result>',
            Result(status="done", summary="ends with </result> and <result>{}</result>"),
        ),
        # models break lines within strings
        ('<result>{"status": "done", "summary": "a\nb"}</result>', Result(status="done", summary="a\nb")),
        (
            '<result>{"status": "done", "title": "two\\nlines\\t"}</result>',
            Result(status="done", title="two lines"),
        ),
        ('<result>{"status": "done", "title": 7, "summary": ["x"]}</result>', Result(status="done")),
        (
            '<result>{"status": "done", "title": "a\\u0007b\\u202ec"}</result>',
            Result(status="done", title="abc"),
        ),
        ("", None),
        ("done", None),
        ('{"status": "done"}', None),
        ("<result>done</result>", None),
        ('<result>"done"</result>', None),
        ('<result>{"status": "done"}', None),
        ('<result>{"status": ["done"]}</result>', None),
        ('<result>{"title": "T"}</result>', None),
        ("<result>" + "[" * 100_000, None),
    ],
)
def test_parse_result(text: str, expected: Result | None) -> None:
    assert parse_result(text) == expected


def test_long_words_are_cut() -> None:
    block = json.dumps({"status": "done", "title": "t" * 500, "summary": "s" * 50_000})
    result = parse_result(f"<result>{block}</result>")
    assert result is not None
    assert len(result.title) == MAX_TITLE
    assert len(result.summary) == MAX_SUMMARY
    assert result.title.endswith("t…")


def test_block_far_from_the_end_is_not_searched() -> None:
    assert parse_result(DONE + "x" * 300_000) is None


@given(
    st.text()
    | st.lists(st.sampled_from(["<result>", "</result>", "{", "}", '"status":', '"done"', "```", "\n"]))
)
def test_parse_result_never_raises(parts: str | list[str]) -> None:
    result = parse_result("".join(parts))
    assert result is None or result.status in ("done", "failed", "blocked")


def said(text: str) -> AgentEvent:
    return AgentEvent(kind="text", text=text)


FINAL = AgentEvent(kind="final")
RETRY = AgentEvent(kind="retry", text="retry 1: rate limit", ok=False, failure="quota")


def lost(failure: str | None, text: str = "why") -> AgentEvent:
    return AgentEvent(kind="final", ok=False, failure=failure, text=text)


@pytest.mark.parametrize(
    ("events", "outcome", "kind", "words"),
    [
        # the process's end counts for more than the agent's words
        ([said(DONE), FINAL], {"exit_code": 143, "timed_out": True}, FailureKind.timeout, "used up its time"),
        ([said(DONE), FINAL], {"exit_code": 0, "stopped": True}, None, "was stopped"),
        ([said(DONE), FINAL], {"exit_code": 137, "oom": True}, FailureKind.oom, "out of memory"),
        (
            [],
            {"exit_code": None, "error": "no such file"},
            FailureKind.crash,
            "not be started: no such file.",
        ),
        ([said(DONE), FINAL], {"exit_code": None, "signal": 9}, FailureKind.crash, "signal 9"),
        ([said(DONE), FINAL], {"exit_code": 143}, FailureKind.crash, "signal 15"),
        ([said(DONE), FINAL], {"exit_code": None}, FailureKind.crash, "gone before it finished"),
        ([said(DONE), FINAL], {"exit_code": 1}, FailureKind.crash, "exit code 1."),
        # the final event
        ([said(DONE), lost("quota")], {"exit_code": 1}, FailureKind.quota, "quota or rate limit: why."),
        ([said(DONE), lost("auth")], {"exit_code": 0}, FailureKind.auth, "refused the credentials: why."),
        (
            [lost("infrastructure")],
            {"exit_code": 1},
            FailureKind.infrastructure,
            "did not answer properly: why.",
        ),
        ([lost("configuration")], {"exit_code": 1}, FailureKind.configuration, "incomplete: why."),
        ([lost("budget")], {"exit_code": 1}, FailureKind.budget, "used up: why."),
        ([lost(None)], {"exit_code": 0}, FailureKind.agent, "reports a failure: why."),
        ([lost("nonsense", "")], {"exit_code": 0}, FailureKind.agent, "it gave no reason."),
        ([lost("quota")], {"exit_code": None, "signal": 15}, FailureKind.quota, "why."),
        # no final event: the last trouble explains a bad end, and no good one
        ([RETRY], {"exit_code": 1}, FailureKind.quota, "rate limit"),
        ([RETRY], {"exit_code": 0}, FailureKind.quota, "rate limit"),
        ([], {"exit_code": 2}, FailureKind.crash, "exit code 2."),
        ([AgentEvent(kind="error", text="odd")], {"exit_code": 2}, FailureKind.crash, "exit code 2: odd."),
        ([said(DONE)], {"exit_code": 0}, FailureKind.crash, "before its final event"),
        # exit code 0 is no success
        ([], {"exit_code": 0}, FailureKind.no_result, "without saying what it did"),
        ([said("All done!"), FINAL], {"exit_code": 0}, FailureKind.no_result, "without saying what it did"),
        ([RETRY, said("ok"), FINAL], {"exit_code": 0}, FailureKind.no_result, "without saying"),
        # an early result is not the last word
        ([said(DONE), said("Wait."), FINAL], {"exit_code": 0}, FailureKind.no_result, "without saying"),
        # the result
        (
            [said('<result>{"status": "failed", "summary": "tests fail"}</result>'), FINAL],
            {"exit_code": 0},
            FailureKind.agent,
            "could not do it: tests fail.",
        ),
        (
            [said('<result>{"status": "blocked", "title": "which API?"}</result>'), FINAL],
            {"exit_code": 0},
            FailureKind.agent,
            "is blocked: which API?",
        ),
        (
            [said('<result>{"status": "failed"}</result>'), FINAL],
            {"exit_code": 0},
            FailureKind.agent,
            "no reason.",
        ),
    ],
)
def test_failures(
    events: list[AgentEvent], outcome: dict[str, object], kind: FailureKind | None, words: str
) -> None:
    verdict = judge(Transcript(events), changed=True, **outcome)  # type: ignore[arg-type]
    assert not verdict.ok
    assert verdict.kind is kind
    assert words in verdict.message
    assert bool(verdict.hint) == (kind is not None)


def test_success() -> None:
    events = [AgentEvent(kind="started", session_id="s1"), RETRY, said("thinking"), said(DONE), FINAL]
    verdict = judge(Transcript(events), exit_code=0, changed=True)
    assert (verdict.ok, verdict.kind, verdict.result, verdict.hint) == (True, None, RESULT, "")
    assert Transcript(events).session_id == "s1"


def test_success_without_a_change_says_so() -> None:
    verdict = judge(Transcript([said(DONE), FINAL]), exit_code=0, changed=False)
    assert verdict.ok
    assert "changed nothing" in verdict.message


def test_result_in_the_final_event() -> None:
    verdict = judge(Transcript([AgentEvent(kind="final", text=DONE)]), exit_code=0, changed=True)
    assert (verdict.ok, verdict.result) == (True, RESULT)


def test_missing_result_says_that_changes_were_not_published() -> None:
    verdict = judge(Transcript([FINAL]), exit_code=0, changed=True)
    assert "nothing of that was published" in verdict.message
    assert "published" not in judge(Transcript([FINAL]), exit_code=0, changed=False).message


def test_words_of_the_agent_are_one_bounded_line() -> None:
    verdict = judge(Transcript([lost("agent", "a\n\n@b\x1b[31m " * 1000)]), exit_code=1, changed=False)
    assert "\n" not in verdict.message
    assert "\x1b" not in verdict.message
    assert len(verdict.message) < MAX_MESSAGE + 60


@pytest.mark.parametrize(
    ("text", "status", "kind"),
    [
        ("invalid x-api-key", 401, FailureKind.auth),
        ("Incorrect API key provided: sk-***", None, FailureKind.auth),
        ("Not logged in · Please run /login", None, FailureKind.auth),
        ("no", 403, FailureKind.auth),
        ("slow", 429, FailureKind.quota),
        ("pay", 402, FailureKind.quota),
        ("You exceeded your current quota, please check your plan", 429, FailureKind.quota),
        ("insufficient_quota", None, FailureKind.quota),
        ("Your credit balance is too low", 400, FailureKind.quota),
        ("exceeded retry limit, last status: 429 Too Many Requests", None, FailureKind.quota),
        ("Overloaded", 529, FailureKind.infrastructure),
        ("oops", 503, FailureKind.infrastructure),
        ("unexpected status 502 Bad Gateway: x", None, FailureKind.infrastructure),
        ("unexpected status 418: x", None, None),
        ("stream disconnected before completion", None, FailureKind.infrastructure),
        ("unexpected status 401 Unauthorized: set CONDUCTOR_LLM_OPENAI_KEY", None, FailureKind.configuration),
        ("Missing environment variable: `X`", None, FailureKind.configuration),
        ("prompt is too long", 400, None),
        ("model not found", 404, None),
        ("I failed at line 429", None, None),
    ],
)
def test_failure_of(text: str, status: int | None, kind: FailureKind | None) -> None:
    assert failure_of(text, status) is kind


def test_every_kind_that_is_judged_has_a_next_step() -> None:
    elsewhere = {FailureKind.refused, FailureKind.conflict}  # found by the checks of what was pushed
    assert set(HINTS) == set(FailureKind) - elsewhere
