"""The table of attacks in docs/security.md is held against the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \| (.+) \|$", re.M)
LINK = re.compile(r"\[(\w+)\]\(([^)]+)\)")
#: Who may ask, and who may approve, is tried out in the whole program: the file -> the rows that are about that.
WHO = {
    "test_refusals": {2, 3, 4, 26},
    "test_approvals": {5, 7},
    "test_approval_cells": {5, 7},
    "test_storms": {3, 29},
}
ATTACKS = sorted((ROOT / "tests" / "security").glob("test_*.py"))


def rows() -> dict[int, tuple[str, list[Path]]]:
    """Number -> what stands against it, and the files of its tests."""
    found = ROW.findall(PAGE.read_text().partition("## 33 attacks")[2])
    assert [int(number) for number, *_ in found] == list(range(1, 34)), "each attack once, in order"
    table = {}
    for number, _, control, tests in found:
        links = LINK.findall(tests)
        for name, target in links:
            assert Path(target).stem == name, f"{number}: {name} leads to {target}"
        table[int(number)] = (control, [(PAGE.parent / target).resolve() for _, target in links])
    return table


def classes_of(path: Path) -> set[int]:
    """The attacks that a file says it tries: ``test_19_33_…``, or "Attack classes 19 and 33" in its docstring."""
    tree = ast.parse(path.read_text())
    said = re.search(
        r"[Aa]ttack class(?:es)? ((?:\d+(?: \([^)]*\))?(?:, | and )?)+)", ast.get_docstring(tree) or ""
    )
    numbers = re.findall(r"\d+", said[1]) if said else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = re.match(r"test_((?:\d\d_)+)", node.name)
            numbers += named[1].split("_")[:-1] if named else []
    return {int(number) for number in numbers}


def test_every_attack_has_a_test_that_exists_or_says_why_there_is_none() -> None:
    for number, (control, tests) in rows().items():
        assert [path for path in tests if not path.is_file()] == [], number
        assert tests or re.search(r"^not covered: \w+", control), f"{number} names no test and no reason"
        for path in tests:
            assert "def test_" in path.read_text(), (number, path)


def test_every_file_of_attacks_is_in_the_table() -> None:
    assert ATTACKS
    named = {path for _, tests in rows().values() for path in tests}
    assert [path.name for path in ATTACKS if path not in named] == []


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_a_file_stands_in_the_row_of_each_attack_that_it_tries(path: Path) -> None:
    table = rows()
    assert [number for number in classes_of(path) if path not in table[number][1]] == []


@pytest.mark.parametrize("name", WHO)
def test_the_rows_about_who_may_ask_and_approve_name_the_scenarios_of_that(name: str) -> None:
    table = rows()
    path = ROOT / "tests" / "scenarios" / f"{name}.py"
    assert {number for number in WHO[name] if path not in table[number][1]} == set()


def test_no_test_is_named_twice_in_a_row() -> None:
    for number, (_, tests) in rows().items():
        assert len(tests) == len(set(tests)), number


@pytest.mark.parametrize("section", ["What was done can be proved", "Outsiders", "Forks"])
def test_what_a_section_promises_is_tried_by_a_test(section: str) -> None:
    """These stand before the table, and name tests of their own."""
    text = PAGE.read_text()
    assert f"\n## {section}\n" in text
    own = LINK.findall(text.partition(f"\n## {section}\n")[2].partition("\n## ")[0])
    tests = [target for name, target in own if name.startswith("test_")]
    assert tests, section
    assert [target for target in tests if not (PAGE.parent / target).resolve().is_file()] == []
