"""Where the comments of an agent's review may stand: GitHub takes only lines that the diff shows.

A comment on another line is moved to the nearest shown one if that is near, else into the review's own text: one that
stands nowhere would have GitHub refuse the whole review (422).
https://docs.github.com/en/rest/pulls/reviews#create-a-review-for-a-pull-request
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bot.render import clip, fence, quiet

Side = Literal["LEFT", "RIGHT"]

MAX_COMMENTS = 50  # in the diff; what is more goes into the review's text
MAX_READ = 200  # of what an agent says; the rest is dropped
MAX_BODY = 4_000  # characters of one comment
NEAR = 3  # lines that a comment may be moved by

_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")
_SUGGESTION = re.compile(
    r"^(?P<indent>[ ]{0,3})(?P<fence>`{3,}|~{3,})[ \t]*suggestion\b[^\n]*\n(?P<code>.*?)^[ ]{0,3}(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)


@dataclass
class Hunk:
    """The lines that one hunk shows, by their numbers. An unchanged line has two, and is commented on the right."""

    added: set[int] = field(default_factory=set)  # numbers in the new file
    removed: set[int] = field(default_factory=set)  # numbers in the old file
    kept: dict[int, int] = field(default_factory=dict)  # old number -> new number

    def lines(self, side: Side) -> set[int]:
        """The lines that may be commented on a side."""
        return self.removed if side == "LEFT" else self.added | set(self.kept.values())


@dataclass(frozen=True, kw_only=True)
class InlineComment:
    """A comment on the diff as GitHub takes it."""

    path: str
    body: str
    line: int
    side: Side = "RIGHT"
    start_line: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in ``comments`` of a new review."""
        start = {"start_line": self.start_line, "start_side": self.side} if self.start_line else {}
        return {"path": self.path, "body": self.body, "line": self.line, "side": self.side} | start


@dataclass(frozen=True, kw_only=True)
class OtherComment:
    """A comment that can stand in the review's text only. ``line`` 0: the agent named none."""

    path: str  # as the agent wrote it; not a file of ours
    line: int
    body: str


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An agent's comments, sorted by where they can stand."""

    inline: Sequence[InlineComment] = ()
    elsewhere: Sequence[OtherComment] = ()
    dropped: int = 0  # malformed, empty, said twice, or too many


def parse_patch(patch: str) -> list[Hunk]:
    """The hunks of a file's ``patch`` (unified diff without file headers). One that is cut off is read so far."""
    hunks: list[Hunk] = []
    old = new = 0
    for line in patch.split("\n"):
        if match := _HUNK.match(line):
            hunks.append(Hunk())
            old, new = int(match[1]), int(match[2])
        elif not hunks or line.startswith("\\"):  # "\ No newline at end of file" is no line
            continue
        elif line.startswith("+"):
            hunks[-1].added.add(new)
            new += 1
        elif line.startswith("-"):
            hunks[-1].removed.add(old)
            old += 1
        elif line.startswith(" "):
            hunks[-1].kept[old] = new
            old, new = old + 1, new + 1
    return hunks


def place(comments: object, files: Sequence[Mapping[str, Any]]) -> Placed:
    """Sort an agent's ``comments`` (from its result, unchecked) by where they can stand.

    ``files`` is what GitHub says of the pull request's files: ``filename``, ``previous_filename`` and ``patch`` (absent
    of binary and very large ones). https://docs.github.com/en/rest/pulls/pulls#list-pull-requests-files
    """
    said = list(comments) if isinstance(comments, Sequence) and not isinstance(comments, str | bytes) else []
    dropped = max(0, len(said) - MAX_READ)
    diffs = {str(file["filename"]): parse_patch(str(file.get("patch") or "")) for file in files}
    names = {
        str(file["previous_filename"]): str(file["filename"]) for file in files if "previous_filename" in file
    }
    inline: list[InlineComment] = []
    elsewhere: list[OtherComment] = []
    seen: set[tuple[str, int, str]] = set()
    for item in said[:MAX_READ]:
        body = item.get("body") if isinstance(item, Mapping) else None
        path = item.get("path") if isinstance(item, Mapping) else None
        text = clip(harmless(body), MAX_BODY) if isinstance(body, str) else ""
        name = _file(path, diffs, names) if isinstance(path, str) else None
        line = _line(item.get("line")) if isinstance(item, Mapping) else 0
        key = (name or str(path), line, text)
        if not text or key in seen:
            dropped += 1
            continue
        seen.add(key)
        put = _put(item, name, line, text, diffs[name]) if name is not None else None
        if put is not None and len(inline) < MAX_COMMENTS:
            inline.append(put)
        else:
            elsewhere.append(
                OtherComment(path=name or (path if isinstance(path, str) else ""), line=line, body=text)
            )
    return Placed(inline=inline, elsewhere=elsewhere, dropped=dropped)


def harmless(body: str) -> str:
    """The words of a comment, quietened. A suggestion that this would change becomes plain code.

    One click commits a suggestion as it stands, and what makes text harmless are characters that nobody sees.
    """

    def plain(match: re.Match[str]) -> str:
        code = match["code"]
        if quiet(code) == code:
            return match[0]
        mark = fence(code)
        return f"{mark}text\n{code}{mark}"

    return quiet(_SUGGESTION.sub(plain, body.replace("\r\n", "\n"))).strip()


def _file(path: str, diffs: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """The changed file that an agent means: also as `./x`, `a/x` and `b/x`, and by its old name."""
    path = path.strip().removeprefix("./")
    for name in (path, path.partition("/")[2] if path.startswith(("a/", "b/")) else path):
        if name in diffs:
            return name
        if name in names:
            return names[name]
    return None


def _put(
    item: Mapping[str, Any], path: str, line: int, body: str, hunks: Sequence[Hunk]
) -> InlineComment | None:
    """The comment where GitHub takes it; None when no shown line is near."""
    wanted: Side | None = {"LEFT": "LEFT", "RIGHT": "RIGHT"}.get(str(item.get("side")).upper())  # type: ignore[assignment]
    if not line:
        return None
    if wanted == "LEFT":
        for hunk in hunks:  # an unchanged line is commented by its new number
            if line in hunk.kept:
                return _put({"side": "RIGHT"}, path, hunk.kept[line], body, hunks)
    sides: tuple[Side, ...] = (wanted,) if wanted else ("RIGHT", "LEFT")
    for side in sides:
        for hunk in hunks:
            if line in hunk.lines(side):
                start = _line(item.get("start_line"))
                whole = 0 < start < line and all(one in hunk.lines(side) for one in (start, line))
                return InlineComment(
                    path=path, body=body, line=line, side=side, start_line=start if whole else None
                )
    side = sides[0]
    near = [(abs(one - line), one) for hunk in hunks for one in hunk.lines(side) if abs(one - line) <= NEAR]
    if not near:
        return None
    return InlineComment(path=path, body=f"(About line {line}.)\n\n{body}", line=min(near)[1], side=side)


def _line(value: object) -> int:
    if isinstance(value, bool):
        return 0
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        value = int(value)
    return value if isinstance(value, int) and 0 < value < 10**9 else 0
