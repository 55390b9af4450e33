"""Adapters: how a CLI without machine-readable output is run by a small program of ours, and how that is read.

An adapter (``runners/agents/adapters/*.py``) prints one JSON object a line, an event in the words of
`bot.ports.AgentEvent`::

    {"kind": "started", "session_id": "…"}      kinds: started text tool tool_result retry error log final
    {"kind": "text", "text": "I did it. <result>{…}</result>"}
    {"kind": "final", "ok": true, "usage": {"input": 100, "output": 20, "cached": 0, "cache_write": 0}}
    {"kind": "final", "ok": false, "text": "why", "failure": "auth"}

An agent of the operator's own may print the same (`output = "jsonl"`).
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from bot.model import FailureKind, Usage
from bot.ports import AgentEvent, Command
from bot.results import failure_of
from runners.agents.cli import json_lines, mapping, number, text

#: Below HOME: where adapters are put. Not what a session keeps.
FOLDER = ".agent-adapter"
ADAPTERS = Path(__file__).parent / "adapters"
KINDS = frozenset({"started", "text", "tool", "tool_result", "retry", "error", "log", "final"})


def in_own_python(cli: str, adapter: str, *, stdin: str, env: Mapping[str, str]) -> Command:
    """Run ``adapter`` with the interpreter that ``cli``, a Python program, is installed for.

    Console scripts stand beside their interpreter in every virtual environment, also where pipx or the image linked
    them to another place. ``-I`` keeps the repository's modules and the environment out of the import path.
    """
    script = (
        f"cli=$(command -v {shlex.quote(cli)}) || {{ echo '{cli} is not installed here' >&2; exit 127; }}; "
        f'exec "$(dirname "$(readlink -f "$cli")")/python" -I "$HOME/{FOLDER}/{adapter}.py"'
    )
    return Command(argv=["bash", "-c", script], stdin=stdin, env=env, files=_files(adapter))


def around_text(
    argv: Sequence[str], *, session_id: str | None = None, stdin: str, env: Mapping[str, str]
) -> Command:
    """Run ``argv``, whose output is plain text, below the adapter that makes events of it.

    ``session_id`` is told as the session's when the CLI can go on with it.
    """
    adapter = f'exec python3 -I "$HOME/{FOLDER}/text.py" "$@"'
    session = ["--session", session_id] if session_id else []
    return Command(
        argv=["bash", "-c", adapter, "bash", *session, "--", *argv],
        stdin=stdin,
        env=env,
        files=_files("text"),
    )


def _files(adapter: str) -> dict[str, str]:
    return {f"{FOLDER}/{adapter}.py": (ADAPTERS / f"{adapter}.py").read_text("utf-8")}


def _translate(event: Mapping[str, Any]) -> list[AgentEvent]:
    kind = text(event.get("kind"))
    if kind not in KINDS:
        return [AgentEvent(kind="log", text=text(event.get("text")) or kind)]
    words, failure = text(event.get("text")), None
    ok = event.get("ok", kind not in ("error", "retry")) is True
    if not ok:
        if kind in ("error", "retry", "final"):
            words, failure = _words_and_failure(words, text(event.get("failure")))
        if kind == "final":
            failure = failure or FailureKind.agent
    return [
        AgentEvent(
            kind=kind,
            text=words,
            session_id=text(event.get("session_id")) or None,
            ok=ok,
            failure=failure.value if failure else None,
            usage=_usage(event.get("usage")),
        )
    ]


#: How litellm, which several Python agents use, words an error: its class, sometimes twice, the provider, the answer.
_LITELLM = re.compile(r"litellm\.(?P<name>\w+): (?:\w+: )?(?:\w+Exception - )?(?P<words>.*)", re.DOTALL)
#: What its classes mean (https://docs.litellm.ai/docs/exception_mapping); the provider's own words say more.
_LITELLM_CLASSES = {
    "AuthenticationError": FailureKind.auth,
    "PermissionDeniedError": FailureKind.auth,
    "RateLimitError": FailureKind.quota,
    "APIConnectionError": FailureKind.infrastructure,
    "APIError": FailureKind.infrastructure,
    "BadGatewayError": FailureKind.infrastructure,
    "InternalServerError": FailureKind.infrastructure,
    "ServiceUnavailableError": FailureKind.infrastructure,
    "Timeout": FailureKind.infrastructure,
}


def _words_and_failure(words: str, told: str) -> tuple[str, FailureKind | None]:
    """A failure's words without their wrapping, and its kind; ``told`` is what the adapter takes it for."""
    kind = FailureKind(told) if told in FailureKind.__members__ else None
    if found := _LITELLM.match(words):
        kind = _LITELLM_CLASSES.get(found["name"], kind)
        words = found["words"]
        with contextlib.suppress(orjson.JSONDecodeError):
            words = text(mapping(mapping(orjson.loads(words)).get("error")).get("message")) or words
    return words, failure_of(words) or kind


def _usage(value: object) -> Usage | None:
    usage = mapping(value)
    if not usage:
        return None
    return Usage(
        input_tokens=number(usage.get("input")),
        output_tokens=number(usage.get("output")),
        cached_tokens=number(usage.get("cached")),
        cache_write_tokens=number(usage.get("cache_write")),
        cost=None,
    )


#: Reads what an adapter prints.
read_events = json_lines(_translate)
