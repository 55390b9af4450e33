"""The desk: what an agent tells and asks, and what people grant it, kept across a crash."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from bot.agent_requests import AgentRequest, ProgressNote, ToDo
from bot.errors import InfrastructureError
from bot.model import ApprovalKind, FailureKind
from bot.terms import Grant, Terms
from runners.gateway.desk import Desk, RequestRefused

TURN: dict[str, Any] = {"number": 1, "command": {"argv": ["x"]}, "timeout": 5}
OUTCOME = b'{"exit_code": 0}'


def make(tmp_path: Path, *, turn: bool = True, **terms: Any) -> Desk:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None, terms=Terms(**terms))
    if turn:
        desk.give(TURN)
    return desk


def again(desk: Desk) -> Desk:
    """What a worker sees that was killed and started again."""
    desk.close()
    return Desk.open(desk.directory)


def ask(turn: int = 1, **changes: Any) -> AgentRequest:
    values = {"at": 1.0, "kind": ApprovalKind.network, "reason": "why", "host": "a.example"}
    return AgentRequest(turn=turn, **(values | changes))


def test_a_request_survives_a_crash(tmp_path: Path) -> None:
    desk = make(tmp_path)
    assert desk.requested is None
    desk.take_request(ask())
    assert desk.requested == ask()
    desk = again(desk)
    assert desk.requested == ask()
    assert stat.S_IMODE((desk.directory / "requests" / "1.json").stat().st_mode) == 0o600
    desk.close()


def test_the_same_request_again_is_the_same(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_request(ask())
    desk.take_request(ask(at=2.0))  # a client that saw no answer
    assert desk.requested == ask()
    desk.close()


@pytest.mark.parametrize(
    "second",
    [
        {"host": "b.example"},
        {"reason": "another"},
        {"kind": None, "host": ""},
        {"kind": ApprovalKind.text, "host": ""},
    ],
)
def test_a_second_request_in_a_turn_is_refused(tmp_path: Path, second: dict[str, Any]) -> None:
    desk = make(tmp_path)
    desk.take_request(ask())
    desk = again(desk)
    with pytest.raises(RequestRefused, match="asked in this turn already"):
        desk.take_request(ask(**second))
    assert desk.requested == ask()
    desk.close()


def test_every_turn_has_a_request_of_its_own(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_request(ask())
    desk.take_outcome(1, OUTCOME)
    assert desk.requested == ask()  # the turn is over, and what was asked in it stands
    desk.give({**TURN, "number": 2})
    assert desk.requested is None
    desk.take_request(ask(2, host="b.example"))
    desk = again(desk)
    assert desk.requested == ask(2, host="b.example")
    desk.close()


def test_nobody_is_asked_while_no_turn_is_under_way(tmp_path: Path) -> None:
    desk = make(tmp_path, turn=False)
    with pytest.raises(RequestRefused):
        desk.take_request(ask(0))
    desk.give(TURN)
    for number in (0, 2):
        with pytest.raises(RequestRefused):
            desk.take_request(ask(number))
    desk.take_outcome(1, OUTCOME)
    with pytest.raises(RequestRefused):
        desk.take_request(ask())
    assert desk.requested is None
    desk.close()
    with pytest.raises(InfrastructureError):
        desk.take_request(ask())


@pytest.mark.parametrize("how", ["halted", "finished"])
def test_an_attempt_that_ends_asks_nobody(tmp_path: Path, how: str) -> None:
    desk = make(tmp_path)
    if how == "halted":
        desk.halt(FailureKind.budget, "used up")
    else:
        desk.finish()
    with pytest.raises(RequestRefused):
        desk.take_request(ask())
    desk.close()


def test_the_newest_progress_counts_and_is_a_sign_of_life(tmp_path: Path) -> None:
    desk = make(tmp_path)
    before = desk.last_sign
    desk.take_progress(ProgressNote(turn=1, at=1.0, text="first"))
    note = ProgressNote(
        turn=1, at=2.0, text="second", todo=(ToDo(text="read", done=True), ToDo(text="write"))
    )
    desk.take_progress(note)
    assert desk.last_sign > before
    assert again(desk).progress == note


def test_a_torn_progress_note_is_none(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_progress(ProgressNote(turn=1, at=1.0, text="first"))
    (desk.directory / "progress.json").write_bytes(b'{"turn": 1, "at"')
    desk = again(desk)
    assert desk.progress is None
    desk.close()


def test_a_grant_changes_the_terms_for_good_and_once(tmp_path: Path) -> None:
    desk = make(tmp_path, allow=("a.example private",), budget_job=2.0)
    desk.grant(Grant(approval="a1", host="docs.example.com"))
    desk.grant(Grant(approval="a2", dollars=1.0))
    desk.grant(Grant(approval="a2", dollars=1.0))
    for found in (desk, again(desk)):
        assert found.terms.allow == ("a.example private", "docs.example.com")
        assert found.terms.budget_job == 3.0
        assert [grant.approval for grant in found.terms.granted] == ["a1", "a2"]
    found.close()


def test_what_the_terms_hold_already_is_not_granted_again(tmp_path: Path) -> None:
    granted = Terms(budget_job=2.0).with_grants([Grant(approval="a1", dollars=1.0)])
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-2", mirror=None, terms=granted)
    desk.grant(Grant(approval="a1", dollars=1.0))
    assert desk.terms.budget_job == 3.0
    desk.close()
