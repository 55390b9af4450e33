"""The names of capabilities: any spelling, one meaning; an unknown one is told with those that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bot.capabilities import CAPABILITIES, Capability, canonical, check_capabilities, known_capabilities
from bot.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        (
            "node22",
            [
                "node22",
                "Node22",
                "nodejs22",
                "NodeJS@22",
                "node-22",
                "node:22",
                "node=22",
                "node 22",
                "node22.x",
            ],
        ),
        ("python3.11", ["python3.11", "Python@3.11", "python-3.11", "py3.11", "PYTHON 3.11"]),
        ("java17", ["java17", "jdk17", "openjdk-17", "Java@17", "java"]),
        ("go1.26", ["go", "golang", "go1.26", "golang-1.26", "go@1.26"]),
        ("node24", ["node", "nodejs", "node24"]),
        ("docker-cli", ["docker-cli", "docker", "docker_cli", "Docker CLI"]),
        ("ripgrep", ["ripgrep", "rg", " RG "]),
        ("rust", ["rust", "cargo", "rustc"]),
        ("python3", ["python3", "python", "pip", "py"]),
        ("sqlite3", ["sqlite3"]),
    ],
)
def test_every_spelling_means_the_same(name: str, spellings: list[str]) -> None:
    assert {canonical(each) for each in spellings} == {name}
    assert check_capabilities(spellings) == {name}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_the_tables_own_names_are_canonical(name: str) -> None:
    assert canonical(name) == name


@given(st.text(max_size=30))
def test_a_canonical_name_stays_as_it_is(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


def test_an_unknown_capability_is_named_with_all_that_are_known() -> None:
    with pytest.raises(ConfigurationError) as told:
        check_capabilities(["jq", "cobol", "Fortran77"], {"terraform": Capability(packages=("terraform",))})
    assert "`Fortran77`, `cobol`" in told.value.message
    assert "`jq`" not in told.value.message
    for name in (*CAPABILITIES, "terraform"):
        assert f"`{name}`" in told.value.hint
    assert "image_capabilities" in told.value.hint


def test_an_image_has_one_version_of_a_tool() -> None:
    with pytest.raises(ConfigurationError, match="`node20` and `node22`"):
        check_capabilities(["node@22", "node20"])
    assert check_capabilities(["node@22", "node22", "python3.11", "python3.12"]) == {
        "node22", "python3.11", "python3.12"
    }  # fmt: skip


def test_the_operators_own_add_to_the_table_and_win() -> None:
    own = Capability(packages=("nodejs",))
    table = known_capabilities({"NodeJS@22": own, "terraform": Capability(run=("true",))})
    assert table["node22"] == own
    assert check_capabilities(["Terraform"], table) == {"terraform"}
    assert set(CAPABILITIES) < set(table)


@pytest.mark.parametrize(
    "wrong",
    [
        {"packages": ["jq; evil"]},
        {"packages": ["--allow-unauthenticated"]},
        {"packages": ["jq\n"]},
        {"packages": ["jq|"]},
        {"packages": ["a$(b)"]},
        {"run": ["one\ntwo"]},
        {"run": [""]},
        {"script": "x"},
    ],
    ids=str,
)
def test_text_that_could_become_an_instruction_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Capability.model_validate(wrong)
