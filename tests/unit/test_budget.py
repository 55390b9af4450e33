"""Which budget holds, when it is used up, and what people are told."""

from __future__ import annotations

import math

import pytest

from bot.budget import Limit, Scope, dollars, limits, limits_before, most, next_step, sentence, used_up
from bot.config import FlatPrice, Price, fixed_settings
from bot.policy import afford
from bot.repo_config import BudgetConfig
from bot.results import failure_of
from bot.slash import parse_commands, parse_dollars
from bot.terms import Terms


def of(scope: Scope, amount: float) -> Limit:
    return Limit(scope=scope, dollars=amount)


def test_without_settings_nothing_is_limited() -> None:
    assert limits(fixed_settings(), Terms()) == []
    assert limits_before(fixed_settings(), BudgetConfig()) == []


def test_repository_and_asker_can_only_lower_what_the_server_allows() -> None:
    settings = fixed_settings(budget_job=2, budget_thread=10, budget_repository_day=50)
    wishes = Terms(budget_job=5, budget_thread=1, budget_repository_day=50)
    assert limits(settings, wishes) == [
        of(Scope.job, 2),
        of(Scope.thread, 1),
        of(Scope.repository_day, 50),
    ]


def test_the_asker_may_set_a_budget_where_the_server_has_none() -> None:
    assert limits(fixed_settings(), Terms(budget_job=0.5)) == [of(Scope.job, 0.5)]


def test_what_is_asked_before_a_job_leaves_the_job_itself_out() -> None:
    settings = fixed_settings(budget_job=1, budget_user_day=3, budget_day=9)
    assert limits_before(settings, BudgetConfig(thread=2)) == [
        of(Scope.thread, 2),
        of(Scope.user_day, 3),
        of(Scope.day, 9),
    ]


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        ({}, None),
        ({Scope.job: 0.99, Scope.day: 4.99}, None),
        ({Scope.job: 1.0}, Scope.job),
        ({Scope.job: 0.1, Scope.day: 7}, Scope.day),
        ({Scope.job: 2, Scope.day: 7}, Scope.job),
    ],
)
def test_the_narrowest_budget_that_is_used_up_is_told(
    spent: dict[Scope, float], expected: Scope | None
) -> None:
    found = used_up([of(Scope.job, 1), of(Scope.day, 5)], spent)
    assert (found and found.scope) == expected


def test_a_budget_of_nothing_is_used_up_at_once() -> None:
    assert used_up([of(Scope.day, 0)], {}) == of(Scope.day, 0)


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0.01, "$0.01"),
        (0.013, "$0.013"),
        (0.5, "$0.50"),
        (0, "$0.00"),
        (12.5, "$12.50"),
        (1234, "$1,234.00"),
        (0.99999, "$1.00"),
    ],
)
def test_amounts_have_the_digits_that_they_need(amount: float, shown: str) -> None:
    assert dollars(amount) == shown


@pytest.mark.parametrize("scope", list(Scope))
def test_every_scope_has_a_sentence_a_next_step_and_its_own_kind(scope: Scope) -> None:
    limit = of(scope, 0.01)
    text = sentence(limit, 0.013, "2026-11-21")
    assert text.startswith("The budget of $0.01 ")
    assert text.endswith(" is used up ($0.013 spent).")
    assert ("2026-11-21" in text) == scope.endswith("day")
    assert next_step(limit).endswith(".")
    # when it comes back from a CLI as an error of "the provider" it is still no quota of the provider's
    assert failure_of(f"API Error: 402 {text}", 402) == "budget"


def test_the_sentence_about_a_job() -> None:
    expected = "The budget of $0.01 for this job is used up ($0.013 spent)."
    assert sentence(of(Scope.job, 0.01), 0.013, "2026-11-21") == expected


def test_what_a_call_may_cost_at_most() -> None:
    price = Price(input=1, output=10, cache_write=2)
    assert most(price, request_bytes=4_000_000, max_output=1_000_000) == pytest.approx(12)
    assert most(price, request_bytes=0, max_output=None) > 0
    longer = Price(input=3, output=9, beyond={900_000: FlatPrice(input=6, output=10)})
    assert most(longer, request_bytes=4_000_000, max_output=1_000_000) == pytest.approx(16)
    assert most(longer, request_bytes=3_600_000, max_output=1_000_000) == pytest.approx(11.7)
    assert most(None, request_bytes=4_000_000, max_output=1) == 0


def test_a_person_without_money_is_told_why() -> None:
    assert afford("").allowed
    decision = afford("The budget … is used up.")
    assert not decision.allowed
    assert decision.refusals == ["The budget … is used up."]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2.50", 2.5), ("$10", 10.0), (".5", 0.5), ("0.0001", 0.0001), ("999999", 999999.0)],
)
def test_dollars_that_are_understood(text: str, amount: float) -> None:
    assert parse_dollars(text) == amount
    (command,) = parse_commands(f"/agent --budget {text} do it")
    assert (command.budget, command.problem) == (amount, "")


@pytest.mark.parametrize(
    "text", ["0", "-1", "1e9", "inf", "nan", "2,50", "1.23456", "10€", "$", ".", "1000000"]
)
def test_dollars_that_are_not(text: str) -> None:
    assert parse_dollars(text) is None
    (command,) = parse_commands(f"/agent --budget {text} do it")
    assert "--budget" in command.problem


@pytest.mark.parametrize("command", ["retry", "resume"])
def test_what_is_done_once_more_may_cost_more(command: str) -> None:
    (found,) = parse_commands(f"/agent {command} --budget 5")
    assert (found.name, found.budget) == (command, 5.0)


def test_no_limit_is_written_as_inf() -> None:
    assert math.isinf(fixed_settings().budget_job)
    assert limits(fixed_settings(budget_day=math.inf), Terms()) == []
