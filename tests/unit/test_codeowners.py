"""CODEOWNERS as GitHub reads it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.codeowners import Owners

#: In the manner of the examples of GitHub's page about code owners.
EXAMPLE = """
# a comment
*       @global-owner1 @global-owner2

*.js    @js-owner #an inline comment
*.go    docs@example.com
*.txt @octo-org/octocats
/build/logs/ @doctocat
docs/*  docs@example.com
apps/ @octocat
/docs/ @doctocat
/scripts/ @doctocat @octocat
**/logs @octocat
/apps/ @octocat
/apps/github
"""


@pytest.mark.parametrize(
    ("path", "owners"),
    [
        ("README.md", ("@global-owner1", "@global-owner2")),
        ("a/b/c", ("@global-owner1", "@global-owner2")),
        ("src/x.js", ("@js-owner",)),
        ("x.jsx", ("@global-owner1", "@global-owner2")),
        ("cmd/main.go", ("docs@example.com",)),
        ("notes.txt", ("@octo-org/octocats",)),
        ("build/logs", ("@octocat",)),  # the file: **/logs comes later
        ("build/logs/deep/er", ("@octocat",)),
        ("docs/getting-started.md", ("@doctocat",)),  # /docs/ comes after docs/*
        ("sub/apps/x", ("@octocat",)),
        ("scripts/run", ("@doctocat", "@octocat")),
        ("deeply/nested/logs/a", ("@octocat",)),
        ("apps/x", ("@octocat",)),
        ("apps/github", ()),  # a later line without owners takes them away
        ("apps/github/x/y", ()),
        ("apps/githubber", ("@octocat",)),
    ],
)
def test_the_last_line_that_matches_counts_alone(path: str, owners: tuple[str, ...]) -> None:
    assert Owners(EXAMPLE).of(path) == owners


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("docs/*", "docs/getting-started.md", True),
        ("docs/*", "docs/build-app/troubleshooting.md", False),
        ("docs/*.md", "docs/a/b.md", False),
        ("/docs/**", "docs/a/b", True),
        ("/docs/**", "docs", False),
        ("docs/**/x", "docs/x", True),
        ("docs/**/x", "docs/a/b/x/y", True),
        ("/build/logs/", "a/build/logs/x", False),
        ("apps/", "apps", False),  # a slash at the end: what is in the folder
        ("apps", "apps", True),
        ("apps", "sub/apps/x", True),
        ("src/*/t.py", "src/a/t.py", True),
        ("src/*/t.py", "src/a/b/t.py", False),
        ("?.py", "a.py", True),
        ("?.py", "ab.py", False),
        ("README.md", "readme.md", False),  # case matters
        (r"a\ b", "a b", True),
        (r"\*", "*", True),
        (r"\*", "x", False),
        ("**", "a/b", True),
        ("a.b", "axb", False),
    ],
)
def test_a_pattern(pattern: str, path: str, matches: bool) -> None:
    assert Owners(f"{pattern} @x").of(path) == (("@x",) if matches else ())


@pytest.mark.parametrize(
    "line",
    [
        "!a @x",
        "[ab] @x",
        r"\#a @x",
        "a x",
        "a @",
        "a @x/y/z",
        "# a @x",
        "",
        "   ",
        "/ @x",
        "a @x b",
        "a @x,@y",
    ],
)
def test_a_line_that_cannot_be_read_counts_as_none(line: str) -> None:
    owners = Owners(f"* @before\n{line}\n")
    assert owners.of("a") == ("@before",)
    assert owners.of("#a") == ("@before",)
    assert owners.everybody() == ("@before",)


def test_owners_of_several_paths_are_told_once() -> None:
    owners = Owners("a @one @two\nb @two @three\nc\n")
    assert owners.of_any(["a", "b", "c", "d"]) == ("@one", "@two", "@three")
    assert owners.everybody() == ("@one", "@two", "@three")
    assert Owners("").of_any(["a"]) == ()


NAME = st.text("ab.-_ ", min_size=1, max_size=5).filter(str.strip)


@given(st.lists(NAME, min_size=1, max_size=5))
def test_a_path_written_as_it_is_matches_itself_and_what_is_in_it(names: list[str]) -> None:
    path = "/".join(names)
    pattern = "/" + path.replace(" ", r"\ ")
    owners = Owners(f"{pattern} @x")
    assert owners.of(path) == ("@x",)
    assert owners.of(f"{path}/more") == ("@x",)
    assert owners.of(f"other/{path}") == ()
    assert Owners(f"{pattern}/* @x").of(f"{path}/one/two") == ()
    assert Owners(f"{pattern}/ @x").of(path) == ()


@given(st.text(max_size=300), st.text("ab/.*", max_size=60))
def test_nothing_breaks_it(text: str, path: str) -> None:
    owners = Owners(text)
    assert set(owners.of(path)) <= set(owners.everybody())


def test_a_pattern_full_of_stars_is_no_trap() -> None:
    """An expression that tries everything would take longer than the world has been there."""
    star = "*a" * 30
    owners = Owners(f"{'**/*a*/' * 30}{star}b @x")
    before = time.process_time()
    assert owners.of("/".join(["a" * 200] * 30)) == ()
    assert time.process_time() - before < 60
