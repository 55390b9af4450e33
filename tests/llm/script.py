"""Scripts: what a scripted model answers, turn by turn.

::

    follow: requests            # or: conversation (see below)
    aside: "ok"                 # answer to requests without tools (titles, summaries); uses up no turn
    at_end: "Nothing to do."    # answer when the turns are used up
    turns:
      - text: "I write the file."                  # said before the calls
        calls:
          - {name: Write, input: {file_path: "${WORK}/a.txt", content: "hi"}}
          - {name: apply_patch, raw: "*** Begin Patch\\n…"}         # OpenAI's free-form tools
        usage: {input: 100, output: 20, cached: 0, cache_write: 0}
      - error: {status: 429, message: "slow down", type: rate_limit_error, headers: {retry-after: "1"}}
        times: 3                # so many requests; "always": every one from here on
      - {drop: true}            # cut the connection in the middle of the answer
      - {hang: true}            # begin the answer and never end it
      - {wait: gate}            # answer after the test (or POST /control/open/gate) opened that gate
      - {delay: 0.5, text: "…"} # seconds before the first byte
      - {when: "regular expression", text: "…"}    # skipped unless the request's JSON matches
    lanes:                      # scripts of their own for requests below /lane/<name>/…
      second: [{text: "…"}]

``follow: requests`` gives out the turns in order, one for each request. ``follow: conversation`` picks the turn by
how often the model has spoken in the conversation that the request holds: the same request gets the same answer
however often it is sent, so a story survives killed and repeated agents. ``${NAME}`` in any text is replaced by the
variable of that name; an unknown one is an error. ``${find:REGEX}`` in a turn's text is replaced by the first group
of the expression's last match in the request: numbers that nobody knows before, such as a thread's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

KNOWN = frozenset({"text", "calls", "usage", "error", "times", "drop", "hang", "wait", "delay", "when"})
KNOWN_TOP = frozenset({"follow", "aside", "at_end", "turns", "lanes"})


@dataclass(frozen=True)
class Turn:
    """One answer."""

    text: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    usage: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    times: int | None = 1  # None: always
    drop: bool = False
    hang: bool = False
    wait: str = ""
    delay: float = 0.0
    when: str = ""

    @property
    def tokens(self) -> dict[str, int]:
        return {"input": 100, "output": 20, "cached": 0, "cache_write": 0} | self.usage

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Turn:
        unknown = set(raw) - KNOWN
        if unknown:
            raise ValueError(f"unknown keys in a turn: {sorted(unknown)}; known: {sorted(KNOWN)}")
        values = dict(raw)
        values["calls"] = tuple(raw.get("calls") or ())
        if values.get("times") == "always":
            values["times"] = None
        return cls(**values)


@dataclass(frozen=True)
class Script:
    """All answers of a server."""

    turns: tuple[Turn, ...] = ()
    lanes: dict[str, tuple[Turn, ...]] = field(default_factory=dict)
    follow: str = "requests"
    aside: str = "ok"
    at_end: str = "Nothing more to do."

    @classmethod
    def of(cls, turns: list[dict[str, Any]], **others: Any) -> Script:
        return cls.from_data({"turns": turns, **others})

    @classmethod
    def load(cls, path: Path, variables: dict[str, str] | None = None) -> Script:
        return cls.from_data(yaml.safe_load(path.read_text()), variables)

    @classmethod
    def from_data(cls, data: dict[str, Any], variables: dict[str, str] | None = None) -> Script:
        unknown = set(data) - KNOWN_TOP
        if unknown:
            raise ValueError(f"unknown keys in a script: {sorted(unknown)}; known: {sorted(KNOWN_TOP)}")
        data = _fill(data, variables or {})
        follow = data.get("follow", "requests")
        if follow not in ("requests", "conversation"):
            raise ValueError("follow is `requests` or `conversation`")
        return cls(
            turns=tuple(Turn.of(raw) for raw in data.get("turns") or ()),
            lanes={
                name: tuple(Turn.of(raw) for raw in turns)
                for name, turns in (data.get("lanes") or {}).items()
            },
            follow=follow,
            aside=data.get("aside", "ok"),
            at_end=data.get("at_end", "Nothing more to do."),
        )


class Player:
    """Plays a script: keeps each lane's place in it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._place: dict[str, tuple[int, int]] = {}  # lane -> index of the turn, how often it was given out

    def rewind(self) -> None:
        self._place.clear()

    def answer(self, lane: str, request: dict[str, Any]) -> Turn:
        """The turn for ``request``, the JSON body of a call in any of the wire formats."""
        if not _has_tools(request):
            return Turn(text=self.script.aside)
        turns = self.script.lanes.get(lane, self.script.turns)
        text = json.dumps(request)
        if self.script.follow == "conversation":
            index = spoken(request)
            return _found(turns[index], text) if index < len(turns) else Turn(text=self.script.at_end)
        index, given = self._place.get(lane, (0, 0))
        while index < len(turns):
            turn = turns[index]
            fits = not turn.when or re.search(turn.when, text)
            if fits and (turn.times is None or given < turn.times):
                self._place[lane] = (index, given + 1)
                return _found(turn, text)
            index, given = index + 1, 0
        self._place[lane] = (index, 0)
        return Turn(text=self.script.at_end)


def _found(turn: Turn, request: str) -> Turn:
    """The turn with what its text looks for in the request."""

    def last(match: re.Match[str]) -> str:
        found = re.findall(match[1], request)
        return str(found[-1]) if found else "nothing"

    return replace(turn, text=re.sub(r"\$\{find:(.+?)\}", last, turn.text))


def _has_tools(request: dict[str, Any]) -> bool:
    # Codex offers newer models their tools in an input item instead of the top-level list
    items = request.get("input")
    return bool(request.get("tools")) or (
        isinstance(items, list) and any(item.get("type") == "additional_tools" for item in items)
    )


def spoken(request: dict[str, Any]) -> int:
    """How often the model has spoken in the conversation that ``request`` holds (runs of its messages)."""
    count, speaking = 0, False
    for item in request.get("messages") or request.get("input") or request.get("contents") or []:
        ours = item.get("role") in ("assistant", "model") or item.get("type") in (
            "function_call",
            "custom_tool_call",
            "reasoning",
        )
        count += ours and not speaking
        speaking = ours
    return count


def _fill(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{([A-Z_]+)\}", lambda found: variables[found[1]], value)
    if isinstance(value, list):
        return [_fill(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, variables) for key, item in value.items()}
    return value
