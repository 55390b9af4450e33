"""Budgets: which limits hold for a call, which of them is used up, and the sentence that says so."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bot.config import Settings
from bot.repo_config import BudgetConfig
from bot.terms import Terms
from bot.usage import BYTES_PER_TOKEN, MILLION, Price

#: What a call that sets no limit of its own is expected to write at most, in tokens.
USUAL_OUTPUT = 8192


class Scope(enum.StrEnum):
    """Whose money it is. From the narrowest to the widest: the first that is used up is the one to tell."""

    job = "job"
    thread = "thread"
    user_day = "user_day"
    repository_day = "repository_day"
    day = "day"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much may be spent in a scope, in US dollars."""

    scope: Scope
    dollars: float


def limits(settings: Settings, terms: Terms) -> list[Limit]:
    """The limits that hold for an attempt: the server's, lowered by what its repository and its asker want."""
    return _finite(
        {
            Scope.job: _lower(settings.budget_job, terms.budget_job),
            Scope.thread: _lower(settings.budget_thread, terms.budget_thread),
            Scope.user_day: settings.budget_user_day,
            Scope.repository_day: _lower(settings.budget_repository_day, terms.budget_repository_day),
            Scope.day: settings.budget_day,
        }
    )


def limits_before(settings: Settings, repository: BudgetConfig) -> list[Limit]:
    """The limits that can be used up before a new job has begun."""
    return _finite(
        {
            Scope.thread: _lower(settings.budget_thread, repository.thread),
            Scope.user_day: settings.budget_user_day,
            Scope.repository_day: _lower(settings.budget_repository_day, repository.day),
            Scope.day: settings.budget_day,
        }
    )


def used_up(some: Iterable[Limit], spent: Mapping[Scope, float]) -> Limit | None:
    """The first limit that is reached; a scope that is not in ``spent`` has spent nothing."""
    return next((limit for limit in some if spent.get(limit.scope, 0.0) >= limit.dollars), None)


def sentence(limit: Limit, spent: float, day: str) -> str:
    """What a person is told about a budget that is used up; ``day`` is the UTC day that it was asked on."""
    whose = {
        Scope.job: "for this job",
        Scope.thread: "for this issue and its pull request",
        Scope.user_day: f"that you have for {day} (UTC)",
        Scope.repository_day: f"that this repository has for {day} (UTC)",
        Scope.day: f"that this server has for {day} (UTC)",
    }[limit.scope]
    return f"The budget of {dollars(limit.dollars)} {whose} is used up ({dollars(spent)} spent)."


def next_step(limit: Limit) -> str:
    """What a person may do about it."""
    match limit.scope:
        case Scope.job:
            return (
                "Ask for less, or for more money with `--budget` as far as the server's operator allows it."
            )
        case Scope.thread:
            return "Go on in a new issue, or ask the server's operator for a higher `budget_thread`."
        case _:
            return "A new day begins at midnight UTC; the server's operator can raise the budget."


def dollars(amount: float) -> str:
    """``$12.50``, and small amounts with as many digits as they need: ``$0.013``."""
    if amount >= 1:
        return f"${amount:,.2f}"
    whole, _, part = f"{amount:.4f}".rstrip("0").partition(".")
    return f"${whole}.{part:0<2}"


def most(price: Price | None, *, request_bytes: int, max_output: int | None) -> float:
    """What a call may cost at most, in US dollars, as far as its request tells; 0 without a price."""
    if price is None:
        return 0.0
    tokens = request_bytes / BYTES_PER_TOKEN
    price = price.for_prompt(math.ceil(tokens))
    sent = price.input if price.cache_write is None else max(price.input, price.cache_write)
    output = USUAL_OUTPUT if max_output is None else max_output
    return (tokens * sent + output * price.output) / MILLION


def _lower(server: float, wanted: float | None) -> float:
    return server if wanted is None else min(server, wanted)


def _finite(amounts: Mapping[Scope, float]) -> list[Limit]:
    return [Limit(scope=scope, dollars=amount) for scope, amount in amounts.items() if not math.isinf(amount)]


def scopes(some: Sequence[Limit]) -> frozenset[Scope]:
    """The scopes whose sums must be known."""
    return frozenset(limit.scope for limit in some)
