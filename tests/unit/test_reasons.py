"""Trees of reasons, as people and the audit get them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from bot.reasons import MAX_LINES, Reason, all_of, any_of, as_data, as_markdown, from_data, refusals


def no(said: str) -> Reason:
    return Reason(question="is it", ok=False, said=said)


def yes(said: str) -> Reason:
    return Reason(question="was it", ok=True, said=said)


def test_all_and_any_keep_every_branch() -> None:
    both = [yes("good"), no("bad")]
    assert not all_of("may it", both).ok
    assert any_of("may it", both).ok
    assert all_of("may it", both).because == tuple(both)
    assert all_of("may it", []).ok
    assert not any_of("may it", []).ok, "nobody said yes"
    assert refusals(all_of("may it", [*both, no("worse")])) == ["bad", "worse"]


def test_the_tree_as_a_list_for_people() -> None:
    tree = all_of("may it start", [yes("fine"), any_of("who", [no("not\nhere"), no("nor there")])])
    assert as_markdown(tree).splitlines() == [
        "- ❌ may it start",
        "  - ✅ was it: fine",
        "  - ❌ who",
        "    - ❌ is it: not here",
        "    - ❌ is it: nor there",
    ]


def test_a_long_tree_is_cut_and_that_is_said() -> None:
    lines = as_markdown(all_of("q", [no(str(number)) for number in range(500)])).splitlines()
    assert len(lines) == MAX_LINES
    assert lines[-1] == f"- … and {501 - MAX_LINES + 1} more"


TREES = st.recursive(
    st.builds(Reason, question=st.text(), ok=st.booleans(), said=st.text()),
    lambda below: st.builds(
        Reason,
        question=st.text(),
        ok=st.booleans(),
        said=st.text(),
        because=st.lists(below, max_size=3).map(tuple),
    ),
    max_leaves=10,
)


@given(TREES)
def test_json_and_back(tree: Reason) -> None:
    assert from_data(json.loads(json.dumps(as_data(tree)))) == tree
    assert all(line.lstrip().startswith("- ") for line in as_markdown(tree).split("\n"))
