"""The chain of the audit trail: what is written is found whole, and whatever is done to it is found out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.audit_chain import (
    GENESIS,
    HEAD_GONE,
    LARGEST,
    MUST,
    AuditKind,
    Entry,
    Finding,
    FindingKind,
    Link,
    Unreadable,
    Verifier,
    canonical,
    verify,
)

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)


def chain(details: Sequence[Any]) -> list[Entry]:
    entries: list[Entry] = []
    for number, one in enumerate(details, start=1):
        entry = Entry(
            seq=number,
            at=f"2026-11-21T10:00:{number % 60:02}.000000Z",
            kind="push",
            actor="alice",
            details=one,
            previous=entries[-1].hash if entries else GENESIS,
        )
        entries.append(dataclasses.replace(entry, hash=entry.digest()))
    return entries


def chained_anew(entries: Sequence[Entry]) -> list[Entry]:
    """What a forger does who can compute hashes."""
    before, made = GENESIS, []
    for number, entry in enumerate(entries, start=1):
        forged = dataclasses.replace(entry, seq=number, previous=before)
        made.append(dataclasses.replace(forged, hash=forged.digest()))
        before = made[-1].hash
    return made


def found(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    return [(str(finding.kind), finding.seq) for finding in findings]


FIVE = chain([{"n": number} for number in range(5)])
HEAD = FIVE[-1].link


@given(st.lists(OBJECTS, max_size=8))
def test_a_true_chain_has_nothing_to_find(details: list[Any]) -> None:
    entries = chain(details)
    head = entries[-1].link if entries else Link(seq=0, hash=GENESIS)
    assert verify(entries, head=head, anchors=[entry.link for entry in entries]) == []


@given(st.lists(OBJECTS, min_size=1, max_size=6), st.data())
def test_no_field_of_any_entry_can_be_changed(details: list[Any], data: st.DataObject) -> None:
    entries = chain(details)
    at = data.draw(st.integers(0, len(entries) - 1))
    name = data.draw(
        st.sampled_from([field.name for field in dataclasses.fields(Entry) if field.name != "seq"])
    )
    new = data.draw(JSON.filter(lambda value: value != getattr(entries[at], name)))
    head = entries[-1].link
    entries[at] = dataclasses.replace(entries[at], **{name: new})
    if canonical(new) == canonical(getattr(chain(details)[at], name)):
        return  # 1 and True are equal to Python alone
    findings = verify(entries, head=head)
    assert at + 1 in {finding.seq for finding in findings}
    assert FindingKind.changed in {finding.kind for finding in findings}


@given(st.integers(1, 5), st.integers(1, 5))
def test_every_gap_is_found_with_its_size(first: int, last: int) -> None:
    kept = [entry for entry in FIVE if not first <= entry.seq <= last]
    findings = verify(kept, head=HEAD)
    if first > last:
        assert findings == []
        return
    kind = FindingKind.cut if last == 5 else FindingKind.missing
    assert (kind, first) in [(finding.kind, finding.seq) for finding in findings]
    assert len(findings) == 1


@given(st.permutations(range(5)))
def test_every_other_order_is_found(order: list[int]) -> None:
    findings = verify([FIVE[place] for place in order])
    assert bool(findings) == (order != sorted(order))


def test_what_is_said_about_each_attack() -> None:
    changed = dataclasses.replace(FIVE[2], actor="mallory")
    rewritten = dataclasses.replace(changed, hash=changed.digest())
    forged = chained_anew([*FIVE[:2], changed, *FIVE[3:]])
    renumbered = [dataclasses.replace(entry, seq=entry.seq - 1) for entry in FIVE[3:]]
    hash_alone = dataclasses.replace(FIVE[2], hash="f" * 64)
    cases: list[tuple[Sequence[Entry | Unreadable], list[tuple[str, int]]]] = [
        ([*FIVE[:2], changed, *FIVE[3:]], [("changed", 3)]),
        ([*FIVE[:2], hash_alone, *FIVE[3:]], [("changed", 3)]),
        ([*FIVE[:2], rewritten, *FIVE[3:]], [("replaced", 3)]),
        ([*FIVE[:4], dataclasses.replace(FIVE[4], previous="0" * 64)], [("changed", 5), ("replaced", 4)]),
        ([*FIVE[:2], *FIVE[3:]], [("missing", 3)]),
        (FIVE[1:], [("missing", 1)]),
        ([*FIVE[:2], *renumbered], [("changed", 3), ("replaced", 2), ("changed", 4), ("cut", 5)]),
        ([*FIVE[:2], FIVE[3], FIVE[2], FIVE[4]], [("missing", 3), ("inserted", 3)]),
        ([*FIVE, FIVE[4]], [("inserted", 5)]),
        (FIVE[:4], [("cut", 5)]),
        ([], [("cut", 1)]),
        (chained_anew([*FIVE, FIVE[0]]), [("inserted", 6)]),
        ([*FIVE[:2], Unreadable(seq=3, why="it is no JSON"), *FIVE[3:]], [("changed", 3)]),
        (forged, [("replaced", 5)]),
        (chained_anew(FIVE[1:]), [("cut", 5)]),
    ]
    for entries, wanted in cases:
        assert found(verify(entries, head=HEAD)) == wanted


def test_a_chain_that_was_written_anew_needs_a_link_that_was_noted() -> None:
    forged = chained_anew([dataclasses.replace(FIVE[0], actor="mallory"), *FIVE[1:]])
    # the limit of any chain: whoever owns the database can write the head, too
    assert verify(forged, head=forged[-1].link) == []
    findings = verify(forged, head=forged[-1].link, anchors=[FIVE[3].link])
    assert found(findings) == [("anchor", 4)]
    assert FIVE[3].hash in findings[0].said


def test_a_cut_end_needs_a_link_that_was_noted_too() -> None:
    cut = FIVE[:3]
    assert verify(cut, head=cut[-1].link) == []
    assert found(verify(cut, head=cut[-1].link, anchors=[FIVE[4].link])) == [("cut", 5)]
    assert found(verify([*FIVE[:1], *FIVE[2:]], anchors=[FIVE[1].link])) == [("missing", 2), ("missing", 2)]
    assert found(verify([Unreadable(seq=1, why="x")], anchors=[FIVE[0].link])) == [
        ("changed", 1),
        ("anchor", 1),
    ]


def test_a_database_that_lost_its_head_is_told() -> None:
    assert found(verify(FIVE, head=HEAD_GONE)) == [("cut", 6)]
    assert found(verify([], head=HEAD_GONE)) == [("cut", 1)]


def test_an_entry_that_begins_elsewhere_is_told() -> None:
    first = dataclasses.replace(FIVE[0], previous="a" * 64)
    assert found(verify([dataclasses.replace(first, hash=first.digest())])) == [("replaced", 1)]


def test_findings_are_bounded_and_counted() -> None:
    verifier = Verifier(max_findings=3)
    for entry in FIVE:
        verifier.take(dataclasses.replace(entry, actor="mallory"))
    verifier.finish()
    assert (len(verifier.findings), verifier.found, verifier.count) == (3, 5, 5)


def test_a_stranger_can_check_it_with_two_functions_of_the_standard_library() -> None:
    """As docs/operations.md shows it."""
    before = "0" * 64
    for line in [canonical(dataclasses.asdict(entry)).decode() for entry in FIVE]:
        fields = json.loads(line)
        named = fields.pop("hash")
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert fields["previous"] == before
        assert hashlib.sha256(text.encode()).hexdigest() == named
        before = named


@given(JSON)
def test_canonical_json_is_the_same_for_whoever_reads_it(value: Any) -> None:
    text = canonical(value)
    assert canonical(json.loads(text)) == text


@given(st.dictionaries(TEXT, st.integers(0, 9), min_size=2, max_size=6))
def test_the_order_of_names_does_not_matter(value: dict[str, int]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


def test_names_are_sorted_as_the_standard_says() -> None:
    # the example of https://www.rfc-editor.org/rfc/rfc8785#section-3.2.3
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    wanted = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(names)))) == wanted


@pytest.mark.parametrize(
    "value", [1.5, float("nan"), LARGEST + 1, "\ud800", {1: 2}, {"\udfff": 1}, b"x", {1, 2}]
)
def test_what_has_no_single_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"number|type|text"):
        canonical({"x": [value]})


def test_a_link_is_read_as_it_is_written() -> None:
    assert Link.parse(str(HEAD)) == HEAD
    assert Link.parse(f" {str(HEAD).upper()} ") == HEAD


@pytest.mark.parametrize(
    "text", ["", "5", f"0:{'a' * 64}", f"5:{'a' * 63}", f"-1:{'a' * 64}", f"5:{'g' * 64}"]
)
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SEQ:HASH"):
        Link.parse(text)


def test_what_gives_power_is_never_done_unrecorded() -> None:
    """A decision of ours: whoever changes it changes this line, too."""
    assert {str(kind) for kind in AuditKind} - {str(kind) for kind in MUST} == {
        "job.refused",
        "job.cancelled",
        "job.ended",
        "approval.refused",
        "approval.void",
        "agent.refused",
        "review.ignored",
        "branch.removed",
        "pull.closed",
        "token.revoked",
        "push.failed",
        "pull.opened",
        "held_back",
        "process.started",
        "installation",
    }


def test_the_manual_tells_of_every_kind_what_happens_when_it_cannot_be_written() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    before, after = (
        set(re.findall(r"`([a-z_.]+)`", line.split(" | ")[0]))
        for line in text.splitlines()
        if line.startswith(("| `job.accepted`", "| `job.refused`"))
    )
    assert before == {str(kind) for kind in MUST}
    assert after == {str(kind) for kind in AuditKind} - before
