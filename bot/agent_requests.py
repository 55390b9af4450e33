"""What an agent may ask people for while it works, and which of it a person could grant at all. Pure.

A request is checked before anybody is asked: what the server's operator does not allow no reviewer can give, so the
agent is told at once. The same is checked again when a grant is made of an approval, because settings may have changed.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from bot.budget import dollars
from bot.errors import ConductorError
from bot.model import ApprovalKind
from bot.network import TLS_PORT, RuleError, address_refusal, parse_destination, parse_rule, parsed
from bot.protected import Protection
from bot.terms import Grant, Terms

MAX_REASON = 4000  # characters
MAX_PATHS = 20
MAX_PATH = 500  # characters
MAX_NOTE = 1000  # characters of a progress note
#: Less is not worth a person's time.
LEAST_DOLLARS = 0.01


class NotGrantable(ConductorError):
    """Nobody could grant this, or nobody need to; the message says why, to the agent."""


class Operator(Protocol):
    """What the server's operator allows (``bot.config.Settings``)."""

    @property
    def egress_may_allow(self) -> tuple[str, ...]:
        """Rules of bot.network: where people may let jobs go."""

    @property
    def budget_job(self) -> float:
        """US dollars that one job may cost at most; inf: any."""

    @property
    def protected_paths(self) -> tuple[str, ...]:
        """Patterns of bot.protected."""


class AgentRequest(BaseModel):
    """What the agent asked people for in a turn. Everything in it is the agent's word, checked and bounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: int
    at: float  # seconds since the epoch
    kind: ApprovalKind | None  # None: a free question, which any answer settles
    reason: str  # the question, or what is to be approved and why; Markdown
    host: str = ""  # network: a rule of bot.network for one host
    dollars: float | None = None  # budget: so many more than the job may spend now
    paths: tuple[str, ...] = ()  # path: from the repository's root

    @property
    def details(self) -> dict[str, Any]:
        """For ``Approval.details``: what :func:`grant_of` makes a grant of."""
        match self.kind:
            case ApprovalKind.network:
                return {"host": self.host}
            case ApprovalKind.budget:
                return {"dollars": self.dollars}
            case ApprovalKind.path:
                return {"paths": list(self.paths)}
            case _:
                return {}

    @property
    def subject(self) -> str:
        """What is asked, in Markdown: our own sentence about what a yes would give, then the agent's reason, quoted."""
        quoted = "\n".join(f"> {line}".rstrip() for line in self.reason.splitlines())
        return f"{self._sentence()}\n\n{quoted}" if self.kind is not None else self.reason

    def _sentence(self) -> str:
        match self.kind:
            case ApprovalKind.network:
                return f"The agent asks to connect to `{self.host}`, for the rest of this job."
            case ApprovalKind.budget:
                return f"The agent asks for {dollars(self.dollars or 0)} more for this job."
            case ApprovalKind.path:
                named = ", ".join(f"`{path}`" for path in self.paths)
                return f"The agent asks to change what only people change: {named}."
            case _:
                return "The agent asks for your approval."


class ToDo(BaseModel):
    """One thing on the agent's own list: one line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    done: bool = False


class ProgressNote(BaseModel):
    """What the agent last told about how far it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: int
    at: float  # seconds since the epoch
    text: str = ""
    todo: tuple[ToDo, ...] = ()


# --- what may be asked for -----------------------------------------------------------------------------------


def host_to_ask(text: str, operator: Operator, terms: Terms) -> str:
    """The rule for the one host in ``text`` (``host`` or ``host:port``). Raises NotGrantable."""
    host = _grantable_host(text, operator)
    rule = parse_rule(host)
    if any(known.covers(rule) for known in parsed(terms.allow)):
        raise NotGrantable(
            f"{host} is allowed already: connect through the proxy that the environment names."
        )
    return host


def budget_now(operator: Operator, terms: Terms) -> float:
    """US dollars that the job may spend in all; inf: no limit."""
    return min(operator.budget_job, math.inf if terms.budget_job is None else terms.budget_job)


def dollars_to_ask(amount: float, operator: Operator, terms: Terms) -> float:
    """``amount`` in whole cents. Raises NotGrantable."""
    wanted = round(amount, 2) if math.isfinite(amount) else 0.0
    if wanted < LEAST_DOLLARS:
        raise NotGrantable(f"dollars is how many US dollars more are needed, at least {LEAST_DOLLARS}.")
    now = budget_now(operator, terms)
    if math.isinf(now):
        raise NotGrantable("This job has no budget that could be used up: go on without asking.")
    left = operator.budget_job - now
    if left < LEAST_DOLLARS:
        raise NotGrantable(
            f"People cannot raise this job's budget of {dollars(now)}: the server's operator allows no more for a job."
        )
    if wanted > left:
        raise NotGrantable(
            f"People can raise this job's budget by {dollars(left)} at most: the server's operator allows "
            f"{dollars(operator.budget_job)} for a job."
        )
    return wanted


def paths_to_ask(paths: Sequence[str], operator: Operator, terms: Terms) -> tuple[str, ...]:
    """``paths`` without doubles. Raises NotGrantable for one that is no plain path, or that is not protected."""
    if not 1 <= len(paths) <= MAX_PATHS:
        raise NotGrantable(f"paths are 1 to {MAX_PATHS} files, each from the repository's root.")
    protection = Protection((*operator.protected_paths, *terms.protected))
    for path in paths:
        _check_path(path)
        if not protection.covers(path):
            raise NotGrantable(f"{path!r} is not protected: change it without asking.")
        if path in terms.granted_paths:
            raise NotGrantable(f"{path!r} was approved already: change it without asking.")
    return tuple(dict.fromkeys(paths))


def grant_of(
    approval: str, kind: ApprovalKind, details: Mapping[str, Any], operator: Operator
) -> Grant | None:
    """What the approval with the id ``approval`` gives a job; None when its kind changes no terms.

    Raises NotGrantable when the operator does not allow it (any more), or ``details`` are not those of a request.
    """
    try:
        match kind:
            case ApprovalKind.network:
                return Grant(approval=approval, host=_grantable_host(details["host"], operator))
            case ApprovalKind.budget:
                return Grant(approval=approval, dollars=details["dollars"])
            case ApprovalKind.path:
                for path in details["paths"]:
                    _check_path(path)
                return Grant(approval=approval, paths=tuple(details["paths"]))
            case _:
                return None
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise NotGrantable(f"The approval {approval} does not say what it grants: {error}") from error


def _grantable_host(text: str, operator: Operator) -> str:
    """The rule of ``text``, when people may allow it. Raises NotGrantable."""
    text = text.strip()
    if "/" in text:
        raise NotGrantable(
            f"host is one host, such as example.com or example.com:8443, no URL: {text[:100]!r}."
        )
    try:
        rule = parse_rule(text)
    except RuleError as error:
        raise NotGrantable(f"host is one host, such as example.com or example.com:8443. {error}.") from error
    if rule.below or rule.any_port or rule.host == "*":
        raise NotGrantable("Ask for one host (example.com or example.com:8443), not for a pattern.")
    address = parse_destination(str(rule), TLS_PORT).address
    if address is not None and (refusal := address_refusal(address)) is not None:
        raise NotGrantable(f"Nobody can allow {rule}: {refusal}.")
    if not any(parse_rule(pattern).covers(rule) for pattern in operator.egress_may_allow):
        raise NotGrantable(
            f"People cannot allow {rule}: the server's operator does not let jobs go there. Do without it."
        )
    return str(rule)


def _check_path(path: str) -> None:
    """Raise NotGrantable unless ``path`` is a file's path as git has it."""
    plain = (
        len(path) <= MAX_PATH
        and not any(part in ("", ".", "..") for part in path.split("/"))
        and not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in path)
        and not any(character in "\\`*?[" for character in path)
    )
    if not plain:
        raise NotGrantable(
            f"{path[:100]!r} is no plain path: write files from the repository's root, such as "
            ".github/workflows/test.yml, without patterns."
        )
