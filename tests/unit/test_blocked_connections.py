"""What people are told about connections that were refused, and what they can do about each."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bot.model import JobState
from bot.network import (
    MALFORMED,
    NOT_PUBLIC,
    OVER_LIMIT,
    Blocked,
    Destination,
    blocked_entry,
    explain,
    matching,
    parse_rule,
    shown,
)
from bot.repo_config import parse
from tests.unit.test_render import job, sticky, summary


def test_what_the_repository_may_allow_comes_with_its_line() -> None:
    blocked = {"files.example.com:443": 1, "files.example.com:80": 2, "git.example.com:8443": 5}
    assert explain(blocked, ["*.example.com", "*.example.com:8443"]) == [
        Blocked(where="git.example.com:8443", times=5, line="git.example.com:8443"),
        Blocked(where="files.example.com:80", times=2, line="files.example.com"),
        Blocked(where="files.example.com:443", times=1, line="files.example.com"),
    ]


@pytest.mark.parametrize(
    ("port", "tunnel", "line"),
    [
        (443, True, "example.com"),
        (80, False, "example.com"),
        (443, False, "example.com:443"),
        (80, True, "example.com:80"),
        (8443, True, "example.com:8443"),
        (8443, False, "example.com:8443"),
    ],
)
def test_the_line_allows_the_way_that_was_tried(port: int, tunnel: bool, line: str) -> None:
    wanted = Destination("example.com", port)
    [told] = explain({blocked_entry(wanted, tunnel=tunnel): 1}, ["*.com:*"])
    assert (told.where, told.line) == (str(wanted), line)
    assert matching([parse_rule(line)], wanted, tunnel=tunnel)
    [told] = explain({blocked_entry(wanted, tunnel=tunnel): 1}, [])
    assert (told.line, told.why) == (None, "the server's operator does not allow it")


@pytest.mark.parametrize(
    ("where", "may", "why"),
    [
        ("example.com:443", [], "the server's operator does not allow it"),
        ("example.com:443", ["*.example.com", "example.org", "example.com:8443"], "does not allow"),
        ("example.com:22", ["*"], "does not allow"),
        ("127.0.0.1:8080", ["*"], "does not allow"),
        ("[::1]:443", ["*", "*:*"], "does not allow"),
        (f"example.com:443 ({NOT_PUBLIC})", ["*"], NOT_PUBLIC),
        (f"example.com:443 ({OVER_LIMIT})", ["*"], OVER_LIMIT),
        (f"0x7f.1:443 ({MALFORMED})", ["*"], MALFORMED),
        ("0x7f.1:443", ["*"], MALFORMED),
        ("nonsense", ["*"], MALFORMED),
    ],
)
def test_what_the_repository_cannot_allow_says_why(where: str, may: list[str], why: str) -> None:
    [told] = explain({where: 1}, may)
    assert told.line is None
    assert why in told.why


def test_the_comment_lists_them_with_lines_that_can_be_copied() -> None:
    told = explain(
        {
            "files.example.com:443": 3,
            "files.example.com:80": 1,
            "[2001:db8::1]:443": 1,
            "evil.example:443": 1,
        },
        ["*.example.com", "2001:db8::1:443", "[2001:db8::1]:443"],
    )
    text = sticky(job(state=JobState.succeeded), blocked=told)
    assert "what this job may not reach (6 attempts)" in text
    assert "- `files.example.com:443`, 3 times\n" in text
    assert "- `evil.example:443`: the server's operator does not allow it\n" in text
    block = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert block is not None
    assert parse(block[1]).network.allow == ("files.example.com", "[2001:db8::1]:443")
    assert text.index("</details>") < text.index("**Next:**") < text.index("<sub>")


def test_one_that_nobody_here_can_allow_has_no_lines_to_copy() -> None:
    text = sticky(job(state=JobState.failed), blocked=explain({"evil.example:443": 1}, []))
    assert "(1 attempt)" in text
    assert "```" not in text
    assert "add to" not in text


def test_the_check_run_lists_them_too() -> None:
    text = summary(job(), next_step="", blocked=explain({"files.example.com:443": 1}, ["*"]))
    assert "    - files.example.com\n```" in text
    assert "</details>\n\n| | |\n|---|---|\n" in text


def test_nothing_is_said_when_nothing_was_refused() -> None:
    assert "not reach" not in sticky(job(state=JobState.succeeded))


def test_many_are_counted_and_not_listed() -> None:
    told = explain({f"h{number}.example:443": 1 for number in range(100)}, ["*"])
    text = sticky(job(state=JobState.succeeded), blocked=told)
    assert text.count("\n- `") == 20
    assert "- and 80 more" in text
    block = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert block is not None
    assert len(yaml.safe_load(block[1])["network"]["allow"]) == 20


@given(st.text())
def test_a_strangers_destination_cannot_break_out_of_the_comment(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9.:_\[\]*?-]{1,120}", shown(text))
    told = explain({f"{shown(text)} ({MALFORMED})": 1}, ["*"])
    assert told[0].why == MALFORMED
    assert told[0].line is None
