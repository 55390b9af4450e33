"""Who may start what."""

from __future__ import annotations

import pytest

from bot.model import Actor, TargetKind
from bot.policy import Facts, Rules, authorize, decide

RULES = Rules(agents=("claude", "codex"), known_agents=("claude", "codex", "shell"), max_timeout=3600)
MARIA = Actor(login="maria", id=7, type="User")


def facts(**changes: object) -> Facts:
    return Facts(**{"actor": MARIA, "permission": "write", "app_user_id": 99} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("permission", ["write", "admin"])
def test_who_may_write_may_start(permission: str) -> None:
    assert decide(RULES, facts(permission=permission), agent="claude").allowed


@pytest.mark.parametrize("permission", ["read", "none", "triage", "", None])
def test_who_may_not_write_may_not_start(permission: str | None) -> None:
    decision = decide(RULES, facts(permission=permission), agent="claude")
    assert not decision.allowed
    assert not decision.silent
    assert len(decision.refusals) == 1


@pytest.mark.parametrize(
    "actor",
    [
        Actor(login="agent-conductor[bot]", id=99, type="Bot"),
        Actor(login="other[bot]", id=5, type="Bot"),
        Actor(login="acme", id=6, type="Organization"),
        Actor(login="maria", id=99, type="User"),  # ourselves under another name
    ],
)
def test_bots_are_refused_without_a_word_whatever_they_may(actor: Actor) -> None:
    decision = authorize(facts(actor=actor, permission="admin"))
    assert not decision.allowed
    assert decision.silent


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        ({"archived": True}, {}, "archived"),
        ({"open": False}, {}, "closed"),
        ({"target": TargetKind.pull_request, "from_fork": True}, {}, "fork"),
        ({"target": TargetKind.pull_request}, {"base": "main"}, "--base"),
        ({}, {"agent": "shell"}, "not offered"),  # known, but not allowed here
        ({}, {"agent": "skynet"}, "there are `claude`, `codex`"),
        ({}, {"timeout": 3601}, "at most 3600"),
    ],
)
def test_each_other_reason_to_refuse(
    changes: dict[str, object], arguments: dict[str, object], says: str
) -> None:
    decision = decide(RULES, facts(**changes), **{"agent": "claude"} | arguments)  # type: ignore[arg-type]
    assert not decision.allowed
    assert [says in sentence for sentence in decision.refusals] == [True]


def test_a_stranger_learns_nothing_but_that_access_is_missing() -> None:
    decision = decide(RULES, facts(permission="none", archived=True), agent="skynet")
    assert len(decision.refusals) == 1
    assert "write access" in decision.refusals[0]
