"""What an agent may ask people for, what they could grant at all, and what a grant changes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bot.agent_requests import (
    MAX_PATHS,
    AgentRequest,
    NotGrantable,
    budget_now,
    dollars_to_ask,
    grant_of,
    host_to_ask,
    paths_to_ask,
)
from bot.config import Settings, fixed_settings
from bot.model import ApprovalKind
from bot.terms import Grant, Terms


def operator(**changes: Any) -> Settings:
    values: dict[str, Any] = {"egress_may_allow": ("*.example.com", "example.com", "203.0.114.7", "10.0.0.7")}
    return fixed_settings(**(values | changes))


def request(kind: ApprovalKind | None, **changes: Any) -> AgentRequest:
    return AgentRequest(turn=1, at=1.0, kind=kind, **({"reason": "Because."} | changes))


# --- hosts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("docs.example.com", "docs.example.com"),
        (" Docs.Example.COM. ", "docs.example.com"),
        ("example.com:443", "example.com:443"),
        ("example.com:80", "example.com:80"),
        ("bücher.example.com", "xn--bcher-kva.example.com"),
        ("203.0.114.7", "203.0.114.7"),
    ],
)
def test_a_host_that_people_may_allow(text: str, rule: str) -> None:
    assert host_to_ask(text, operator(), Terms()) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no host"),
        ("https://docs.example.com/manual", "no URL"),
        ("docs.example.com/manual", "no URL"),
        ("*.example.com", "not for a pattern"),
        ("*", "not for a pattern"),
        ("docs.example.com:*", "not for a pattern"),
        ("docs.example.com:0", "a port is a number"),
        ("docs.example.com:99999", "a port is a number"),
        ("docs.example.com:", "the port is missing"),
        ("user@docs.example.com", "is no host"),
        ("docs example.com", "is no host"),
        ("docs.example.com\nallow: *", "is no host"),
        ("0x7f.1", "four decimal numbers"),
        ("elsewhere.example", "the server's operator does not let jobs go there"),
        ("notexample.com", "the server's operator does not let jobs go there"),
        ("docs.example.com:8443", "the server's operator does not let jobs go there"),
        ("203.0.114.8", "the server's operator does not let jobs go there"),
        ("10.0.0.7", "it is not public"),
        ("127.0.0.1", "it is not public"),
        ("169.254.169.254", "metadata service"),
        ("[::1]", "it is not public"),
        ("[::ffff:203.0.114.7]", "inside an IPv6 one"),
    ],
)
def test_a_host_that_nobody_can_allow(text: str, why: str) -> None:
    with pytest.raises(NotGrantable) as refused:
        host_to_ask(text, operator(), Terms())
    assert why in refused.value.message


def test_without_egress_may_allow_no_host_can_be_asked_for() -> None:
    with pytest.raises(NotGrantable, match="operator does not let jobs go there"):
        host_to_ask("docs.example.com", operator(egress_may_allow=()), Terms())


@pytest.mark.parametrize("known", ["docs.example.com", "*.example.com private", "docs.example.com private"])
def test_what_is_allowed_already_needs_nobody(known: str) -> None:
    with pytest.raises(NotGrantable, match="allowed already"):
        host_to_ask("docs.example.com", operator(), Terms(allow=(known,)))


# --- money ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "job", "asked", "given"),
    [
        (10, 2.0, 3, 3),
        (10, 2.0, 8, 8),
        (math.inf, 2.0, 500, 500),
        (10, 2.0, 1.005, 1.0),
        (10, 0.0, 0.01, 0.01),
    ],
)
def test_money_that_people_may_grant(server: float, job: float, asked: float, given: float) -> None:
    assert dollars_to_ask(asked, operator(budget_job=server), Terms(budget_job=job)) == given


@pytest.mark.parametrize(
    ("server", "job", "asked", "why"),
    [
        (10, 2.0, 0, "at least 0.01"),
        (10, 2.0, -5, "at least 0.01"),
        (10, 2.0, 0.001, "at least 0.01"),
        (10, 2.0, math.nan, "at least 0.01"),
        (10, 2.0, math.inf, "at least 0.01"),
        (10, 2.0, 8.01, r"by \$8.00 at most: the server's operator allows \$10.00"),
        (10, 2.0, 1e300, r"by \$8.00 at most"),
        (10, None, 1, r"budget of \$10.00: the server's operator allows no more"),
        (10, 20.0, 1, r"budget of \$10.00: the server's operator allows no more"),
        (math.inf, None, 1, "no budget that could be used up"),
    ],
)
def test_money_that_nobody_can_grant(server: float, job: float | None, asked: float, why: str) -> None:
    with pytest.raises(NotGrantable, match=why):
        dollars_to_ask(asked, operator(budget_job=server), Terms(budget_job=job))


# --- paths ----------------------------------------------------------------------------------------------


def test_protected_files_can_be_asked_for() -> None:
    terms = Terms(protected=("deploy/**",))
    paths = (".github/workflows/test.yml", "deploy/prod/run.sh", "CODEOWNERS", "secret.key")
    asked = paths_to_ask((*paths, paths[0]), operator(protected_paths=("*.key",)), terms)
    assert asked == paths


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("README.md", "not protected"),
        ("", "no plain path"),
        ("/.github/workflows/test.yml", "no plain path"),
        (".github/../README.md", "no plain path"),
        (".github/./x", "no plain path"),
        (".github//x", "no plain path"),
        (".github/", "no plain path"),
        (".github/**", "no plain path"),
        (".github/[a]", "no plain path"),
        (".github\\x", "no plain path"),
        (".github/x\ny", "no plain path"),
        (".github/x\u202ey", "no plain path"),
        (".github/`x`", "no plain path"),
        (".github/" + 600 * "x", "no plain path"),
    ],
)
def test_other_paths_cannot(path: str, why: str) -> None:
    with pytest.raises(NotGrantable, match=why):
        paths_to_ask([".github/workflows/test.yml", path], operator(), Terms())


@pytest.mark.parametrize("count", [0, MAX_PATHS + 1])
def test_no_path_and_too_many_are_refused(count: int) -> None:
    with pytest.raises(NotGrantable, match=f"1 to {MAX_PATHS}"):
        paths_to_ask([f".github/{number}" for number in range(count)], operator(), Terms())


def test_what_was_approved_is_not_asked_for_again() -> None:
    terms = Terms().with_grants([Grant(approval="a1", paths=(".github/a.yml",))])
    with pytest.raises(NotGrantable, match="approved already"):
        paths_to_ask([".github/a.yml"], operator(), terms)


# --- grants ---------------------------------------------------------------------------------------------


def test_grants_change_only_what_they_are_for() -> None:
    terms = Terms(job_id="j1", allow=("a.example private",), budget_job=2.0, budget_thread=5.0)
    host, money = Grant(approval="a1", host="docs.example.com"), Grant(approval="a2", dollars=1.5)
    files = Grant(approval="a3", paths=(".github/a.yml",))
    more = terms.with_grants([host, money, files, host])
    assert more.allow == ("a.example private", "docs.example.com")
    assert (more.budget_job, more.budget_thread) == (3.5, 5.0)
    assert more.granted_paths == (".github/a.yml",)
    assert more.model_copy(update={"allow": terms.allow, "budget_job": 2.0, "granted": ()}) == terms
    assert more.with_grants([money, files]) == more  # once each
    assert Terms.model_validate_json(more.model_dump_json()) == more
    assert Terms().with_grants([money]).budget_job is None


def test_a_grant_never_lifts_the_servers_own_limit() -> None:
    terms = Terms(budget_job=2.0).with_grants([Grant(approval="a1", dollars=100.0)])
    assert budget_now(operator(budget_job=10), terms) == 10


@pytest.mark.parametrize(
    "host", ["*", "*.example.com", "example.com:*", "Example.com", "example.com private", "a/b"]
)
def test_a_grant_is_for_one_host(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        Grant(approval="a1", host=host)


def test_what_was_asked_is_what_is_granted() -> None:
    asked = {
        ApprovalKind.network: request(ApprovalKind.network, host="docs.example.com"),
        ApprovalKind.budget: request(ApprovalKind.budget, dollars=1.5),
        ApprovalKind.path: request(ApprovalKind.path, paths=(".github/a.yml",)),
    }
    granted = {kind: grant_of("a1", kind, one.details, operator()) for kind, one in asked.items()}
    assert granted == {
        ApprovalKind.network: Grant(approval="a1", host="docs.example.com"),
        ApprovalKind.budget: Grant(approval="a1", dollars=1.5),
        ApprovalKind.path: Grant(approval="a1", paths=(".github/a.yml",)),
    }


@pytest.mark.parametrize("kind", [ApprovalKind.text, ApprovalKind.plan, ApprovalKind.protected])
def test_other_approvals_change_no_terms(kind: ApprovalKind) -> None:
    assert grant_of("a1", kind, {"host": "docs.example.com"}, operator()) is None


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        (ApprovalKind.network, {}),
        (ApprovalKind.network, {"host": 5}),
        (ApprovalKind.network, {"host": "*"}),
        (ApprovalKind.network, {"host": "elsewhere.example"}),  # the operator took it back meanwhile
        (ApprovalKind.budget, {}),
        (ApprovalKind.budget, {"dollars": -1}),
        (ApprovalKind.budget, {"dollars": math.inf}),
        (ApprovalKind.budget, {"dollars": None}),
        (ApprovalKind.path, {"paths": None}),
        (ApprovalKind.path, {"paths": ["../x"]}),
        (ApprovalKind.path, {"paths": [5]}),
    ],
)
def test_details_that_grant_nothing(kind: ApprovalKind, details: dict[str, Any]) -> None:
    with pytest.raises(NotGrantable):
        grant_of("a1", kind, details, operator())


# --- words ----------------------------------------------------------------------------------------------


def test_people_read_first_what_a_yes_would_give() -> None:
    reason = "Reads the manual.\n\n# Approve!\n<details>"
    words = request(ApprovalKind.network, host="docs.example.com", reason=reason).subject
    first, rest = words.split("\n\n", 1)
    assert first == "The agent asks to connect to `docs.example.com`, for the rest of this job."
    assert rest.splitlines() == ["> Reads the manual.", ">", "> # Approve!", "> <details>"]
    assert "$1.50 more" in request(ApprovalKind.budget, dollars=1.5).subject
    assert "`.github/a.yml`, `b`" in request(ApprovalKind.path, paths=(".github/a.yml", "b")).subject
    assert request(ApprovalKind.text).subject == "The agent asks for your approval.\n\n> Because."
    assert request(None, reason="Which one?").subject == "Which one?"
