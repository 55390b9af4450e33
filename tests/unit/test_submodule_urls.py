"""Which repository a submodule's URL means, and which URLs mean none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.submodule_finder import note_for_agents, note_for_people
from bot.submodules import BadSubmodule, Declared, check_place, declared, repository_of
from bot.terms import SubmoduleTerms

HUB = "https://github.com"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("../lib.git", "acme/lib"),
        ("../lib", "acme/lib"),
        ("../../other/lib.git/", "other/lib"),
        ("./../lib.git", "acme/lib"),
        ("https://github.com/acme/lib.git", "acme/lib"),
        ("https://github.com/acme/lib", "acme/lib"),
        ("https://github.com/acme/lib/", "acme/lib"),
        ("https://GitHub.com/acme/lib.github.io.git", "acme/lib.github.io"),
        ("https://somebody@github.com/acme/lib.git", "acme/lib"),
        ("git@github.com:acme/lib.git", "acme/lib"),
        ("github.com:acme/lib.git", "acme/lib"),
        ("ssh://git@github.com/acme/lib.git", "acme/lib"),
        ("ssh://git@github.com:22/acme/lib.git", "acme/lib"),
        ("git://github.com/acme/lib.git", "acme/lib"),
    ],
)
def test_the_ways_to_write_it(url: str, name: str) -> None:
    assert repository_of(url, parent="acme/thing", github_url=HUB) == name


def test_another_github_with_a_port_and_a_path() -> None:
    hub = "http://127.0.0.1:8123/git"
    assert repository_of(f"{hub}/acme/lib.git", parent="a/b", github_url=hub) == "acme/lib"
    for url in (
        "http://127.0.0.1:8124/git/acme/lib.git",
        "http://127.0.0.1/git/a/b",
        "http://127.0.0.1:8123/a/b",
    ):
        with pytest.raises(BadSubmodule):
            repository_of(url, parent="a/b", github_url=hub)


@given(st.text(max_size=60))
def test_no_text_leads_anywhere_else(url: str) -> None:
    try:
        found = repository_of(url, parent="acme/thing", github_url=HUB)
    except BadSubmodule:
        return
    owner, name = found.split("/")
    assert owner
    assert name not in ("", ".", "..")
    assert not owner.startswith("-")


def test_the_last_value_of_a_key_counts_and_halves_do_not() -> None:
    pairs = [
        ("submodule.a.b.path", "x"),
        ("submodule.a.b.url", "../one"),
        ("submodule.a.b.url", "../two"),
        ("submodule.half.path", "y"),
        ("submodule.update", "!touch canary"),
        ("core.fsmonitor", "touch canary"),
    ]
    assert list(declared(pairs)) == [Declared(name="a.b", path="x", url="../two")]


def test_a_plain_place() -> None:
    check_place(Declared(name="libs/one.two", path="libs/one", url="../x"))


def test_the_notes() -> None:
    one = SubmoduleTerms(path="libs/one", name="one", repository="acme/lib", repo_id=1, commit="a" * 40)
    assert note_for_agents([], []) == note_for_people([]) == ""
    told = note_for_agents([one], ["`two`: there is no acme/two"])
    assert "`libs/one`" in told
    assert "`two`: there is no acme/two" in told
    assert "- `two`: there is no acme/two" in note_for_people(["`two`: there is no acme/two"])
