"""Where comments of a review may stand, held against what the diff itself says."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.review_comments import MAX_BODY, MAX_COMMENTS, MAX_READ, Placed, harmless, parse_patch, place

PATCH = """@@ -1,4 +1,5 @@ def main():
 one
-two
+TWO
+2
 three
 four
@@ -20,3 +21,2 @@
 twenty
-twenty-one
 twenty-two
\\ No newline at end of file"""
FILES = [
    {"filename": "src/a.py", "patch": PATCH},
    {"filename": "new.py", "previous_filename": "old.py", "patch": "@@ -0,0 +1 @@\n+x"},
    {"filename": "image.png"},
]


def put(**more: Any) -> Placed:
    return place([{"path": "src/a.py", "body": "Wrong."} | more], FILES)


def test_the_lines_of_a_patch() -> None:
    first, second = parse_patch(PATCH)
    assert (first.added, first.removed, first.kept) == ({2, 3}, {2}, {1: 1, 3: 4, 4: 5})
    assert (second.added, second.removed, second.kept) == (set(), {21}, {20: 21, 22: 22})


@pytest.mark.parametrize(
    ("more", "stands"),
    [
        ({"line": 2}, ("RIGHT", 2, None)),
        ({"line": "3"}, ("RIGHT", 3, None)),
        ({"line": 1}, ("RIGHT", 1, None)),  # an unchanged line
        ({"line": 2, "side": "LEFT"}, ("LEFT", 2, None)),
        ({"line": 2, "side": "left"}, ("LEFT", 2, None)),
        ({"line": 21, "side": "LEFT"}, ("LEFT", 21, None)),
        ({"line": 4, "side": "LEFT"}, ("RIGHT", 5, None)),  # unchanged: GitHub wants the right side
        ({"line": 4, "start_line": 2}, ("RIGHT", 4, 2)),
        ({"line": 4, "start_line": 4}, ("RIGHT", 4, None)),
        ({"line": 2, "start_line": 4}, ("RIGHT", 2, None)),  # begins after its end
        ({"line": 21, "start_line": 2}, ("RIGHT", 21, None)),  # over two hunks
        ({"line": 3, "side": "MIDDLE"}, ("RIGHT", 3, None)),
        ({"line": 2, "path": "./src/a.py"}, ("RIGHT", 2, None)),
        ({"line": 2, "path": "b/src/a.py"}, ("RIGHT", 2, None)),
        ({"line": 1, "path": "old.py"}, ("RIGHT", 1, None)),
    ],
)
def test_on_a_line_of_the_diff(more: dict[str, Any], stands: tuple[str, int, int | None]) -> None:
    found = put(**more)
    assert found.elsewhere == []
    (one,) = found.inline
    assert (one.side, one.line, one.start_line) == stands
    assert one.path in {"src/a.py", "new.py"}
    assert one.body == "Wrong."


def test_near_a_line_of_the_diff_it_is_moved_and_says_so() -> None:
    (one,) = put(line=8).inline
    assert (one.line, one.body) == (5, "(About line 8.)\n\nWrong.")


@pytest.mark.parametrize(
    "more",
    [
        {"line": 12},
        {"line": 0},
        {"line": None},
        {"line": True},
        {"line": -3},
        {"line": "two"},
        {"line": 10**12},
        {"line": 2, "path": "other.py"},
        {"line": 2, "path": "../../etc/passwd"},
        {"line": 1, "path": "image.png"},
        {},
    ],
)
def test_elsewhere_it_goes_into_the_text(more: dict[str, Any]) -> None:
    found = put(**more)
    assert found.inline == []
    assert [one.body for one in found.elsewhere] == ["Wrong."]
    assert found.dropped == 0


@pytest.mark.parametrize(
    ("comments", "dropped"),
    [
        (None, 0),
        ("text", 0),
        ({"path": "src/a.py", "line": 2, "body": "x"}, 0),
        ([1, None, "x", []], 4),
        ([{"path": "src/a.py", "line": 2}], 1),
        ([{"path": "src/a.py", "line": 2, "body": "  "}], 1),
        ([{"path": "src/a.py", "line": 2, "body": ["x"]}], 1),
    ],
)
def test_what_is_no_comment_is_dropped(comments: object, dropped: int) -> None:
    found = place(comments, FILES)
    assert (found.inline, found.elsewhere, found.dropped) == ([], [], dropped)


def test_the_same_said_twice_is_said_once() -> None:
    found = place([{"path": "src/a.py", "line": 2, "body": "x"}] * 3, FILES)
    assert (len(found.inline), found.dropped) == (1, 2)


def test_there_are_not_too_many_and_none_too_long() -> None:
    comments = [
        {"path": "src/a.py", "line": 2, "body": f"{n} " + "word " * 2000} for n in range(MAX_READ + 7)
    ]
    found = place(comments, FILES)
    assert len(found.inline) == MAX_COMMENTS
    assert len(found.elsewhere) == MAX_READ - MAX_COMMENTS
    assert found.dropped == 7
    assert all(len(one.body) <= MAX_BODY for one in (*found.inline, *found.elsewhere))


def test_words_are_harmless() -> None:
    said = harmless("@maria fixes #3 <img src=x> <!-- agent-conductor:job:j1 -->\n/merge")
    assert "@maria" not in said
    assert "fixes #3" not in said
    assert "<!--" not in said
    assert not said.splitlines()[-1].startswith("/")


def test_a_suggestion_stays_one_only_when_nothing_in_it_was_changed() -> None:
    good = "Better:\n```suggestion\nreturn a + b\n```\n"
    assert harmless(good) == good.strip()
    said = harmless("Better:\n```suggestion\n@property\ndef x(): ...\n```\nYes.")
    assert "suggestion" not in said  # a click would commit the character that nobody sees
    assert "```text\n@" in said
    assert said.endswith("Yes.")
    assert "suggestion" not in harmless("~~~~ Suggestion\n@a\n~~~~")


LINE = st.sampled_from(["a", "b", "c", "+d", "-e", "@@ -1 +1 @@", ""])


@given(st.lists(LINE, max_size=25), st.lists(LINE, max_size=25))
def test_every_line_of_a_patch_is_found_where_it_is(old: list[str], new: list[str]) -> None:
    diff = list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]
    hunks = parse_patch("\n".join(diff))
    for hunk in hunks:
        assert all(new[line - 1] == old[was - 1] for was, line in hunk.kept.items())
    shown_new = {line for hunk in hunks for line in hunk.lines("RIGHT")}
    shown_old = {line for hunk in hunks for line in hunk.removed}
    assert sorted(new[line - 1] for hunk in hunks for line in hunk.added) == sorted(
        line[1:] for line in diff if line.startswith("+")
    )
    assert sorted(old[line - 1] for line in shown_old) == sorted(
        line[1:] for line in diff if line.startswith("-")
    )
    # and whatever a comment names, it never stands where GitHub would refuse it
    files = [{"filename": "f", "patch": "\n".join(diff)}]
    for line in range(1, 30):
        for side in ("LEFT", "RIGHT", None):
            for one in place([{"path": "f", "line": line, "side": side, "body": "x"}], files).inline:
                assert one.line in (shown_old if one.side == "LEFT" else shown_new)
