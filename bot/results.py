"""Judge a turn: what the agent said about its work, against how its process ended.

An exit code of 0 proves nothing: several CLIs end with it after an API error or an interruption. A turn is good
only when the process ended by itself with 0, the agent's final event is good, and its last words hold a
``<result>`` block that says ``done``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bot.model import FailureKind, Result, Usage
from bot.ports import AgentEvent

STATUSES = frozenset({"done", "failed", "blocked", "question"})
MAX_TITLE = 120  # characters
MAX_SUMMARY = 20_000  # characters
MAX_MESSAGE = 500  # characters of the agent's own words in a message of ours

MAX_SAID = 200  # replies, and comments

_SEARCHED = 200_000  # characters at the end of a text that are searched for a block
_CANDIDATES = 50  # opening tags that are tried, from the last one
_OPEN = re.compile(r"<result>\s*(?:```[a-z]*\s*)?", re.IGNORECASE)
_CLOSE = re.compile(r"\s*(?:```\s*)?</result>", re.IGNORECASE)
# strict=False: models like to write a line break into a JSON string
_DECODER = json.JSONDecoder(strict=False)


def parse_result(text: str) -> Result | None:
    """The last well-formed ``<result>{"status": …}</result>`` block of ``text``, or None.

    The JSON may stand in a code fence and may hold keys that we do not know. ``title`` is cut to one line of
    MAX_TITLE characters and ``summary`` to MAX_SUMMARY; a block with another status than ``done``, ``failed``,
    ``blocked`` or ``question`` is not well-formed.
    """
    text = text[-_SEARCHED:]
    for opening in list(_OPEN.finditer(text))[: -_CANDIDATES - 1 : -1]:
        try:
            value, end = _DECODER.raw_decode(text, opening.end())
        except (json.JSONDecodeError, RecursionError):
            continue
        if not isinstance(value, dict) or not _CLOSE.match(text, end):
            continue
        status = value.get("status")
        if isinstance(status, str) and status.strip().lower() in STATUSES:
            return Result(
                status=status.strip().lower(),
                title=_shorten(" ".join(_printable(value.get("title")).split()), MAX_TITLE),
                summary=_shorten(_printable(value.get("summary")).strip(), MAX_SUMMARY),
                replies=_mappings(value.get("replies")),
                comments=_mappings(value.get("comments")),
            )
    return None


def _mappings(value: object) -> tuple[Mapping[str, Any], ...]:
    found = value if isinstance(value, list) else []
    return tuple(one for one in found[:MAX_SAID] if isinstance(one, dict))


class Transcript:
    """What matters of a turn's events for its verdict: give it every event, in order."""

    def __init__(self, events: Iterable[AgentEvent] = ()) -> None:
        self.session_id: str | None = None  # as the agent reports it
        self.text = ""  # what it said last
        self.usage: Usage | None = None  # as the agent tells it; the gateway's count is the one that counts
        self.speaking = False  # the text's next piece may come
        self.final: AgentEvent | None = None
        self.error: AgentEvent | None = None  # the last error or failed call; agents get over most of them
        for event in events:
            self.add(event)

    def add(self, event: AgentEvent) -> None:
        """Take the next event."""
        if event.session_id:
            self.session_id = event.session_id
        if event.usage is not None:
            self.usage = event.usage if self.usage is None else self.usage + event.usage
        if event.kind == "text":
            before = self.text if self.speaking and event.piece else ""
            self.text = (before + event.text)[-_SEARCHED:]
        if event.kind != "log":
            self.speaking = event.kind == "text" and event.piece
        if event.kind == "final":
            self.final = event
        elif event.kind in ("error", "retry"):
            self.error = event

    @property
    def result(self) -> Result | None:
        """The result in the agent's last words, else in its final event."""
        return parse_result(self.text) or (parse_result(self.final.text) if self.final else None)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a turn. ``kind`` is None when it is ``ok`` and when we stopped the agent ourselves."""

    ok: bool
    kind: FailureKind | None
    message: str  # a sentence for the user
    hint: str  # the next step, "" when there is nothing to do
    result: Result | None

    @property
    def asks(self) -> bool:
        """Whether the turn ended in order with a question to a person."""
        return self.kind is FailureKind.agent and self.result is not None and self.result.status == "question"


def asks(question: str) -> Verdict:
    """The verdict about a turn in which the agent asked by a tool."""
    result = Result(status="question", summary=question)
    return Verdict(ok=False, kind=FailureKind.agent, message="", hint="", result=result)


def judge(
    transcript: Transcript,
    *,
    exit_code: int | None,
    signal: int | None = None,
    timed_out: bool = False,
    stopped: bool = False,
    oom: bool = False,
    error: str | None = None,
    changed: bool,
) -> Verdict:
    """Whether a turn succeeded, else why not and what to do next.

    ``exit_code``, ``signal``, ``timed_out``, ``stopped`` and ``error`` (the agent could not be started) are the
    outcome that the shim reports; ``oom`` is the container's; ``changed``: there are commits or changed files.
    """
    result = transcript.result

    def failed(kind: FailureKind | None, message: str, hint: str | None = None) -> Verdict:
        if hint is None:
            hint = HINTS[kind] if kind else ""
        return Verdict(ok=False, kind=kind, message=message, hint=hint, result=result)

    if timed_out:
        return failed(FailureKind.timeout, "The agent used up its time and was ended.")
    if stopped:
        return failed(None, "The agent was stopped.")
    if oom:
        return failed(FailureKind.oom, "The agent's container ran out of memory and was ended.")
    if error:
        return failed(FailureKind.crash, f"The agent could not be started: {_quote(error)}")

    final, trouble = transcript.final, transcript.error
    if final is not None and not final.ok:
        told = _kind(final.failure) or FailureKind.agent
        return failed(told, f"{FAILED[told]}: {_quote(final.text or (trouble.text if trouble else ''))}")
    if signal is None and exit_code is not None and exit_code > 128:
        signal = exit_code - 128  # as a shell tells it, and as programs that handle SIGTERM do
    if signal is not None:
        return failed(FailureKind.crash, f"The agent was ended by signal {signal}.")
    if exit_code is None:
        return failed(FailureKind.crash, "The agent was gone before it finished.")
    if exit_code != 0 or final is None:
        if trouble is not None and (kind := _kind(trouble.failure)):
            return failed(kind, f"{FAILED[kind]}: {_quote(trouble.text)}")
        if exit_code != 0:
            said = f": {_quote(trouble.text)}" if trouble and trouble.text else "."
            return failed(FailureKind.crash, f"The agent ended with exit code {exit_code}{said}")
    if result is None:
        return failed(FailureKind.no_result, NO_RESULT_CHANGED if changed else NO_RESULT)
    if result.status != "done":
        words = result.summary or result.title or "it gave no reason."
        says = {"blocked": "is blocked", "question": "needs an answer"}.get(result.status, "could not do it")
        return failed(FailureKind.agent, f"The agent says that it {says}: {_quote(words)}")
    if final is None:
        # a result without the event that every one of our agents ends with: its output was cut
        return failed(FailureKind.crash, "The agent's output ended before its final event.")
    message = "The agent is done." if changed else "The agent is done; it changed nothing."
    return Verdict(ok=True, kind=None, message=message, hint="", result=result)


NO_RESULT = "The agent ended without saying what it did (no <result> block in its last words)."
NO_RESULT_CHANGED = f"{NO_RESULT} It changed files; nothing of that was published."

#: How the sentence about each kind of failure starts; the agent's or provider's own words follow.
FAILED: dict[FailureKind, str] = {
    FailureKind.quota: "The LLM provider refused: quota or rate limit",
    FailureKind.auth: "The LLM provider refused the credentials",
    FailureKind.configuration: "The server's configuration is incomplete",
    FailureKind.infrastructure: "The LLM provider did not answer properly",
    FailureKind.budget: "The budget is used up",
    FailureKind.agent: "The agent reports a failure",
}

#: The next step for each kind of failure.
HINTS: dict[FailureKind, str] = {
    FailureKind.quota: "Wait for the limit to reset or raise it with the provider, then comment `/agent retry`; "
    "or `/agent retry --agent NAME` for another agent.",
    FailureKind.auth: "The server's operator must check the LLM key and what it may use.",
    FailureKind.configuration: "The server's operator must complete the settings, then comment `/agent retry`.",
    FailureKind.infrastructure: "This is often temporary: comment `/agent retry` in a few minutes.",
    FailureKind.budget: "Ask for less, or comment `/agent retry --budget DOLLARS` with more, if that is allowed. "
    "A day's budget starts anew at midnight UTC.",
    FailureKind.timeout: "Ask for a smaller piece of work, or comment `/agent retry --timeout TIME` with more, if that "
    "is allowed.",
    FailureKind.idle: "Comment `/agent retry`; if it happens again, ask for a smaller piece of work.",
    FailureKind.disk: "Ask for work that needs less space, or the operator may raise the workspace's limit.",
    FailureKind.host: "Nothing was wrong with the task: comment `/agent retry`.",
    FailureKind.oom: "Ask for a smaller piece of work, or the operator may raise the memory limit.",
    FailureKind.crash: "Comment `/agent retry`; if it happens again, the log shows the agent's last lines.",
    FailureKind.no_result: "Comment `/agent retry`, with clearer instructions if it happens again.",
    FailureKind.agent: "Read what it says, change the task or the repository, then comment `/agent retry`.",
}

#: Words in errors of providers and CLIs, and what they mean; the first that fits counts. Words win over the
#: status: Anthropic answers 400 when the credit is used up, OpenAI 429 for that and for a rate limit.
_WORDS: tuple[tuple[FailureKind, re.Pattern[str]], ...] = (
    (FailureKind.configuration, re.compile(r"CONDUCTOR_[A-Z]|missing environment variable", re.IGNORECASE)),
    # ours, of bot.budget: the gateway refused, not the provider
    (FailureKind.budget, re.compile(r"(?i)the budget of \$[\d.,]+ .{1,60} is used up")),
    (
        FailureKind.quota,
        re.compile(
            r"insufficient_quota|credit balance|exceeded your current quota|rate.?limit|too many requests"
            r"|usage limit|billing|quota exceeded|exhausted your .{0,20}quota|resource.{0,12}exhausted",
            re.IGNORECASE,
        ),
    ),
    (
        FailureKind.auth,
        re.compile(
            r"invalid.{0,12}api.?key|incorrect api key|api.?key (?:not valid|expired)|not logged in"
            r"|unauthorized|authentication|permission_error|forbidden",
            re.IGNORECASE,
        ),
    ),
    (
        FailureKind.infrastructure,
        re.compile(
            r"overloaded|internal server error|bad gateway|service unavailable|gateway timeout"
            r"|unable to connect|connection (?:refused|reset|error|closed)|stream disconnected"
            r"|error sending request|high demand",
            re.IGNORECASE,
        ),
    ),
)
_STATUS = re.compile(r"\b(?:status|error|code)\W{0,3}(\d{3})\b", re.IGNORECASE)


def failure_of(text: str, status: int | None = None) -> FailureKind | None:
    """What kind of failure an LLM provider's answer is, by its words and its HTTP ``status``.

    Without ``status`` a number in the text such as "status 401" is used. None: the provider is not to blame.
    """
    for kind, words in _WORDS:
        if words.search(text):
            return kind
    if status is None and (told := _STATUS.search(text)):
        status = int(told.group(1))
    if status in (402, 429):
        return FailureKind.quota
    if status in (401, 403):
        return FailureKind.auth
    if status is not None and 500 <= status <= 599:
        return FailureKind.infrastructure
    return None


def _kind(value: str | None) -> FailureKind | None:
    return next((kind for kind in FAILED if kind.value == value), None)


def _quote(text: str) -> str:
    words = _shorten(" ".join(_printable(text).split()), MAX_MESSAGE) or "it gave no reason."
    return words if words[-1] in ".!?…" else f"{words}."


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


#: Characters that turn the reading direction: they can make a text look like another one.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _printable(value: object) -> str:
    """``value`` when it is text, without control and direction characters (tab and line feed stay)."""
    if not isinstance(value, str):
        return ""
    return "".join(
        char
        for char in value.replace("\r\n", "\n")
        if char in "\t\n" or (unicodedata.category(char) not in ("Cc", "Cs") and char not in _BIDI)
    )
