"""Who may start what."""

from __future__ import annotations

import pytest

from bot.model import Actor, Repo, Request, TargetKind, Trigger
from bot.policy import Facts, Limits, Load, Rules, authorize, choose, decide, throttle
from bot.repo_config import RepoConfig, parse

RULES = Rules(
    agents=("claude", "codex"),
    known_agents=("claude", "codex", "shell"),
    max_timeout=3600,
    default_agent="claude",
    models={"claude": "sonnet", "codex": "gpt"},
)
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
        ({"config": parse("limits: {timeout: 10m}")}, {"timeout": 601}, "at most 600"),
        ({"config_problem": "line 3, column 1: no"}, {"agent": "none"}, "line 3, column 1"),
        ({"unserved": ("gpu", "large")}, {}, "No worker host serves `gpu` and `large`"),
    ],
)
def test_each_other_reason_to_refuse(
    changes: dict[str, object], arguments: dict[str, object], says: str
) -> None:
    decision = decide(RULES, facts(**changes), **{"agent": "claude"} | arguments)  # type: ignore[arg-type]
    assert not decision.allowed
    assert [says in sentence for sentence in decision.refusals] == [True]


def request(**changes: object) -> Request:
    values: dict[str, object] = {
        "repo": Repo(owner="acme", name="hello", id=1, installation_id=2),
        "number": 1,
        "target": TargetKind.issue,
        "trigger": Trigger(delivery_id="d", event="issues.labeled", actor=MARIA),
        "instructions": "",
        "title": "",
        "body": "",
    }
    return Request(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "asked", "agent", "model", "timeout"),
    [
        ("", {}, "claude", "sonnet", 3600),
        ("agent: codex", {}, "codex", "gpt", 3600),
        ("agent: codex\nmodel: mini", {}, "codex", "mini", 3600),
        ("model: opus", {}, "claude", "opus", 3600),
        ("agent: codex\nmodel: mini", {"agent": "claude"}, "claude", "sonnet", 3600),
        ("model: opus", {"model": "haiku"}, "claude", "haiku", 3600),
        ("limits: {timeout: 10m}", {}, "claude", "sonnet", 600),
        ("limits: {timeout: 24h}", {}, "claude", "sonnet", 3600),
        ("limits: {timeout: 10m}", {"timeout": 60}, "claude", "sonnet", 60),
        ("limits: {timeout: 10m}", {"timeout": 3000, "retry_of": "j1"}, "claude", "sonnet", 600),
    ],
)
def test_what_is_asked_for_comes_before_the_repository_and_that_before_the_server(
    config: str, asked: dict[str, object], agent: str, model: str, timeout: int
) -> None:
    choice = choose(RULES, parse(config), request(**asked))
    assert (choice.agent, choice.model, choice.timeout) == (agent, model, timeout)


@pytest.mark.parametrize(
    ("limits", "load", "says"),
    [
        (Limits(), Load(user_hour=10**6, queued=10**6), []),
        (Limits(user_hour=3, queued=3), Load(user_hour=2, queued=2), []),
        (Limits(user_hour=3), Load(user_hour=3), ["asked for 3 jobs within an hour"]),
        (Limits(queued=3), Load(queued=4), ["4 jobs of this repository wait already"]),
    ],
)
def test_nobody_may_ask_for_more_than_the_limits(limits: Limits, load: Load, says: list[str]) -> None:
    decision = throttle(limits, load, "maria")
    assert decision.allowed is not bool(says)
    assert decision.flood
    assert [part in sentence for part, sentence in zip(says, decision.refusals, strict=True)] == [True] * len(
        says
    )


def test_a_configuration_that_nobody_wrote_asks_for_nothing() -> None:
    assert facts().config == RepoConfig()
    assert decide(RULES, facts(), agent="claude").allowed


def test_a_stranger_learns_nothing_but_that_access_is_missing() -> None:
    decision = decide(RULES, facts(permission="none", archived=True), agent="skynet")
    assert len(decision.refusals) == 1
    assert "write access" in decision.refusals[0]
