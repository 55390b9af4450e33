"""Where a comment may stand in a diff, and where its line is after the file has changed.

https://docs.github.com/en/rest/pulls/comments#create-a-review-comment-for-a-pull-request
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bot.sandbox.git import GitRepository

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True)
class Row:
    """One line of a file's patch.

    Attributes:
        position: counted down from the first hunk's head, which is 0; later heads count, too.
        hunk: number of the hunk.
        left: line number in the old file; None for an added line.
        right: line number in the new file; None for a removed line.
        text: the line with its sign.
    """

    position: int
    hunk: int
    left: int | None
    right: int | None
    text: str

    def line(self, side: str) -> int | None:
        """The line number on one side, LEFT or RIGHT."""
        return self.left if side == "LEFT" else self.right


def rows(patch: str) -> list[Row]:
    """The lines of a file's patch (the part from the first ``@@`` on)."""
    return list(_rows(patch))


def _rows(patch: str) -> Iterator[Row]:
    hunk = left = right = 0
    for position, text in enumerate(patch.split("\n")):
        if found := _HUNK.match(text):
            hunk, left, right = hunk + 1, int(found[1]), int(found[3])
            continue
        match text[:1]:
            case "-":
                yield Row(position, hunk, left, None, text)
                left += 1
            case "+":
                yield Row(position, hunk, None, right, text)
                right += 1
            case " " | "":
                yield Row(position, hunk, left, right, text)
                left, right = left + 1, right + 1


def row_at(patch: str, line: int, side: str) -> Row | None:
    """The row that shows this line; None when the line is not part of the diff."""
    return next((one for one in _rows(patch) if one.line(side) == line), None)


def row_of_position(patch: str, position: int) -> Row | None:
    """The row at a position, as older clients count."""
    return next((one for one in _rows(patch) if one.position == position), None)


def hunk_until(patch: str, row: Row) -> str:
    """The hunk's head and its lines up to the one that is commented on, as ``diff_hunk`` shows them."""
    lines = patch.split("\n")
    start = max(index for index in range(row.position + 1) if _HUNK.match(lines[index]))
    return "\n".join(lines[start : row.position + 1])


async def line_after(git: GitRepository, path: str, line: int, old: str, new: str) -> int | None:
    """Where a line of ``path`` at commit ``old`` is at commit ``new``; None when it was changed or removed."""
    text = await git.text("diff", "--unified=0", "--no-renames", old, new, "--", path)
    shift = 0
    for row in text.splitlines():
        if not (found := _HUNK.match(row)):
            continue
        start, removed = int(found[1]), int(found[2] or 1)
        added = int(found[4] or 1)
        if removed and start <= line < start + removed:
            return None
        # an insertion after line N says "-N,0"
        if line >= start + removed if removed else line > start:
            shift += added - removed
    return line + shift
