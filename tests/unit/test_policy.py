"""Who may start what."""

from __future__ import annotations

import pytest

from bot.model import Actor, JobKind, Repo, Request, TargetKind, Trigger
from bot.policy import (
    Facts,
    Limits,
    Load,
    Rules,
    authorize,
    choose,
    decide,
    kind_for,
    may_go_on,
    plan_first,
    throttle,
)
from bot.repo_config import RepoConfig, parse

RULES = Rules(
    agents=("claude", "codex"),
    known_agents=("claude", "codex", "shell"),
    max_timeout=3600,
    default_agent="claude",
    models={"claude": "sonnet", "codex": "gpt"},
)
MARIA = Actor(login="maria", id=7, type="User")
FEEDBACK = Trigger(delivery_id="d", event="pull_request_review.submitted", actor=MARIA)


def facts(**changes: object) -> Facts:
    return Facts(**{"actor": MARIA, "permission": "write", "app_user_id": 99} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("permission", ["write", "maintain", "admin"])
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
        (
            {"target": TargetKind.pull_request, "from_fork": True, "config": parse("forks: never")},
            {},
            "`forks: never`",
        ),
        ({"target": TargetKind.pull_request, "from_fork": True, "fork_moved": True}, {}, "was pushed to"),
        ({"target": TargetKind.pull_request}, {"base": "main"}, "--base"),
        ({}, {"agent": "shell"}, "not offered"),  # known, but not allowed here
        ({}, {"agent": "skynet"}, "there are `claude`, `codex`"),
        ({}, {"timeout": 3601}, "at most 3600"),
        ({"config": parse("limits: {timeout: 10m}")}, {"timeout": 601}, "at most 600"),
        ({"config_problem": "line 3, column 1: no"}, {"agent": "none"}, "line 3, column 1"),
        ({"unserved": ("gpu", "large")}, {}, "No worker host serves `gpu` and `large`"),
        ({"config": parse("who: {may_ask: {users: [joe]}}")}, {}, "Only `joe` may do that"),
        ({"config": parse("who: {may_ask: {teams: [core]}}")}, {}, "Only the team `core` may do that"),
        (
            {
                "config": parse("who: {may_ask: {teams: [core]}}"),
                "unknown_teams": frozenset({"acme/core"}),
                "account": "acme",
            },
            {},
            "could not find out",
        ),
        ({"config": parse("who: {may_ask: {codeowners: true}}")}, {}, "Only the code owners"),
        ({"config": parse("who: {may_ask: {codeowners: true}}"), "code_owner": None}, {}, "try again later"),
        ({"config": parse("who: {may_ask: {permission: maintain}}")}, {}, "needs maintain access"),
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
        ("limits: {timeout: 10m}", {"usual_timeout": 3000, "retry_of": "j1"}, "claude", "sonnet", 600),
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
        (Limits(repository_hour=3), Load(repository_hour=3), ["3 jobs of this repository were asked for"]),
        (Limits(repository_hour=3), Load(repository_hour=2), []),
        (Limits(conversation_hour=3), Load(conversation_hour=2), []),
        (
            Limits(conversation_hour=3),
            Load(conversation_hour=3),
            ["3 jobs were asked for here within an hour"],
        ),
        (Limits(), Load(conversation_hour=99), []),
        (
            Limits(user_repository_hour=3),
            Load(user_repository_hour=3),
            ["asked for 3 jobs of this repository"],
        ),
        (Limits(user_repository_hour=3), Load(user_repository_hour=2, user_hour=9), []),
    ],
)
def test_nobody_may_ask_for_more_than_the_limits(limits: Limits, load: Load, says: list[str]) -> None:
    decision = throttle(limits, load, "maria")
    assert decision.allowed is not bool(says)
    assert decision.flood
    assert [part in sentence for part, sentence in zip(says, decision.refusals, strict=True)] == [True] * len(
        says
    )


def test_a_forks_pull_request_may_be_worked_on() -> None:
    assert decide(RULES, facts(target=TargetKind.pull_request, from_fork=True), agent="claude").allowed


@pytest.mark.parametrize("suspended", [True, None])
def test_a_suspended_account_may_nothing_whatever_its_rights(suspended: bool | None) -> None:
    decision = authorize(facts(permission="admin", suspended=suspended))
    assert not decision.allowed
    assert len(decision.refusals) == 1
    assert ("suspended" in decision.refusals[0]) is (suspended is True)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("who: {may_ask: {users: [Maria]}}", {}),
        ("who: {may_ask: {teams: [core]}}", {"teams": frozenset({"acme/core"}), "account": "acme"}),
        ("who: {may_ask: {codeowners: true}}", {"code_owner": True}),
        ("who: {may_ask: {permission: maintain}}", {"permission": "maintain"}),
        ("who: {may_approve: {users: [joe]}}", {}),  # that is another question
    ],
)
def test_who_is_named_may_start(config: str, changes: dict[str, object]) -> None:
    assert decide(RULES, facts(config=parse(config), **changes), agent="claude").allowed


@pytest.mark.parametrize(
    ("config", "changes", "kind", "needed"),
    [
        ("", {}, JobKind.task, False),
        ("approvals: {plan: always}", {}, JobKind.task, True),
        ("approvals: {plan: always}", {}, JobKind.ask, False),
        ("approvals: {plan: always}", {}, JobKind.plan, False),
        ("approvals: {plan: {labels: [Risky]}}", {"labels": ("agent", "risky")}, JobKind.task, True),
        ("approvals: {plan: {labels: [risky]}}", {"labels": ("agent",)}, JobKind.task, False),
        ("approvals: {plan: {paths: ['db/**']}}", {"paths": ("a", "DB/x.sql")}, JobKind.task, True),
        ("approvals: {plan: {paths: ['db/**']}}", {"paths": ("a",)}, JobKind.task, False),
        ("approvals: {plan: {paths: ['db/**']}}", {"paths_complete": False}, JobKind.task, True),
    ],
)
def test_when_a_plan_comes_first(
    config: str, changes: dict[str, object], kind: JobKind, needed: bool
) -> None:
    assert plan_first(facts(config=parse(config), **changes), kind).ok is needed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"permission": "read"}, "write access"),
        ({"suspended": True}, "suspended"),
        ({"config": parse("who: {may_ask: {users: [joe]}}")}, "Only `joe` may do that"),
        ({"config_problem": "line 3, column 1: no"}, "line 3, column 1"),
        ({}, None),
    ],
)
def test_who_may_let_an_agent_go_on(changes: dict[str, object], says: str | None) -> None:
    decision = may_go_on(facts(**changes))
    assert decision.allowed is (says is None)
    assert says is None or [says in sentence for sentence in decision.refusals] == [True]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, JobKind.plan),
        ({"kind": JobKind.review}, JobKind.review),
        ({"approval_id": "a1"}, JobKind.task),
        ({"trigger": FEEDBACK}, JobKind.plan),
        ({"kind": JobKind.fix}, JobKind.fix),
        ({"retry_of": "j1"}, JobKind.plan),
    ],
)
def test_a_task_that_needs_a_plan_is_a_plan_first(changes: dict[str, object], kind: JobKind) -> None:
    always = facts(config=parse("approvals: {plan: always}"))
    assert kind_for(always, request(**changes)) is kind
    assert kind_for(facts(), request(**changes)) is (JobKind.task if kind is JobKind.plan else kind)


def test_only_feedback_follows_up_what_an_approved_plan_made() -> None:
    always = facts(config=parse("approvals: {plan: always}"), planned=True)
    assert kind_for(always, request(trigger=FEEDBACK)) is JobKind.task
    command = Trigger(delivery_id="d", event="pull_request_review_command.submitted", actor=MARIA)
    for changes in ({}, {"trigger": command}):
        assert kind_for(always, request(**changes)) is JobKind.plan


def test_the_lower_limit_counts() -> None:
    own = parse("limits: {user_hour: 2, repository_hour: 9}").limits
    assert Limits(repository_hour=5).within(own).repository_hour == 5
    assert Limits(repository_hour=50).within(own).repository_hour == 9
    assert Limits().within(own).repository_hour == 9
    assert Limits(user_hour=7).within(own).user_hour == 7, (
        "the server's counts everywhere, the other one here"
    )
    assert Limits(user_hour=7).within(own).user_repository_hour == 2
    assert Limits(repository_hour=5).within(parse("").limits) == Limits(repository_hour=5)


def test_a_configuration_that_nobody_wrote_asks_for_nothing() -> None:
    assert facts().config == RepoConfig()
    assert decide(RULES, facts(), agent="claude").allowed


def test_a_stranger_learns_nothing_but_that_access_is_missing() -> None:
    decision = decide(RULES, facts(permission="none", archived=True), agent="skynet")
    assert len(decision.refusals) == 1
    assert "write access" in decision.refusals[0]
