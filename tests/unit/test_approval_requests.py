"""Whose reviews are requested, and what an agent is told when nobody decided."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bot.approval_desk import requested
from bot.dialogue import no_decision
from bot.model import Approval, ApprovalKind, ApprovalState, Repo
from bot.repo_rules import People

REPO = Repo(owner="Acme", name="hello", id=1, installation_id=2)


def test_code_owners_join_those_who_are_named() -> None:
    rule = People(users=("rita",), teams=("core",), codeowners=True)
    owners = ("@Rita", "@tom", "@acme/Core", "@acme/docs", "@other/team", "joe@example.com", "@maria")
    users, teams = requested(rule, REPO, {"Maria"}, owners)
    assert [user.lower() for user in users] == ["rita", "tom"]
    assert teams == ["core", "docs"]


def test_who_asked_is_not_requested_and_nobody_where_nobody_is_named() -> None:
    assert requested(People(users=("maria",)), REPO, {"MARIA"}) == ([], [])
    assert requested(People(), REPO, set()) == ([], [])


@pytest.mark.parametrize(
    ("state", "by", "why", "says"),
    [
        (
            ApprovalState.expired,
            None,
            "nobody decided in time",
            "Nobody decided about this in time, so the answer is no.",
        ),
        (
            ApprovalState.stale,
            5,
            "The branch has moved.",
            "@rita approved this, but that does not hold any more. The branch has moved. So the answer is no.",
        ),
        (
            ApprovalState.stale,
            None,
            "",
            "This was approved, but that does not hold any more. So the answer is no.",
        ),
        (
            ApprovalState.withdrawn,
            None,
            "The pull request was closed.",
            "The pull request was closed. Nobody can decide about it now, so the answer is no.",
        ),
    ],
)
def test_the_agent_hears_why_there_is_no_yes(
    state: ApprovalState, by: int | None, why: str, says: str
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    approval = Approval(
        id="p1",
        kind=ApprovalKind.network,
        job_id="j1",
        repo=REPO,
        pull_number=7,
        subject="May I?",
        sha="a" * 40,
        state=state,
        asked_at=now,
        expires_at=now,
        decided_by="rita" if by else "operator:root",
        decided_by_id=by,
    )
    assert no_decision(approval, why) == says
