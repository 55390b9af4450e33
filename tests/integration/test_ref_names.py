"""Our idea of a well-formed ref against git's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from git_host import run_git
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.branches import branch_for, valid_ref

PIECES = st.sampled_from(
    [*"ab-_.~^:?*[\\ @{}/\x7f\n\x01", "..", "@{", ".lock", "//", "/.", "ü", "refs/", "lock", "@"]
)


def git_accepts(ref: str) -> bool:
    try:
        run_git(Path("/"), "check-ref-format", ref)
    except AssertionError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6).map("".join))
@example("@")
@example("a.lock/b")
@example("a/")
@example(".a")
@example("a.")
def test_git_agrees(name: str):
    assert valid_ref(f"refs/heads/{name}") == git_accepts(f"refs/heads/{name}")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**9), st.text(max_size=80), st.text(max_size=20))
def test_git_accepts_our_branches(number: int, title: str, job_id: str):
    assert git_accepts(f"refs/heads/{branch_for(number, title, job_id)}")


@pytest.mark.parametrize("name", ["main", "refs/heads/x\0y"])
def test_what_git_never_sees(name: str):
    assert not valid_ref(name)
