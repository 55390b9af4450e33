"""Who may do what: a pure function of facts. Its answer is a tree of reasons that everything else renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.model import Actor, TargetKind

#: Permission levels of https://docs.github.com/en/rest/collaborators/collaborators that may start work.
#: The API reports "maintain" as "write" and "triage" as "read" in `permission`.
MAY_WRITE = frozenset({"write", "admin"})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found out about a request before it is decided. ``permission`` None: could not be found out."""

    actor: Actor
    permission: str | None
    app_user_id: int | None = None
    archived: bool = False
    target: TargetKind = TargetKind.issue
    open: bool = True
    from_fork: bool = False


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the server allows."""

    agents: tuple[str, ...]
    known_agents: tuple[str, ...]
    max_timeout: int  # seconds


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One question that was asked, how it was answered, and the questions behind it."""

    question: str
    ok: bool
    said: str  # a sentence for the asker
    because: Sequence[Reason] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Yes or no, with the whole tree. ``silent``: a no that nobody is told about (bots, ourselves)."""

    root: Reason
    silent: bool = False

    @property
    def allowed(self) -> bool:
        """Whether it may be done."""
        return self.root.ok

    @property
    def refusals(self) -> list[str]:
        """The sentences of every no."""
        return [reason.said for reason in self.root.because if not reason.ok]


def authorize(facts: Facts) -> Decision:
    """May this actor command the bot on this repository? Every trigger asks this; deny when in doubt."""
    if facts.actor.is_bot or facts.actor.id == facts.app_user_id:
        reason = Reason(
            question="is the asker a person", ok=False, said="Bots cannot start or stop work here."
        )
        return Decision(root=_all("may command", [reason]), silent=True)
    if facts.permission is None:
        said = "I could not find out whether you have write access, so I did nothing. Please try again later."
    elif facts.permission in MAY_WRITE:
        said = f"@{facts.actor.login} has {facts.permission} access."
    else:
        said = (
            f"Starting or stopping work needs write access to this repository; you have {facts.permission}."
        )
    reason = Reason(question="may the asker write", ok=facts.permission in MAY_WRITE, said=said)
    return Decision(root=_all("may command", [reason]))


def decide(
    rules: Rules, facts: Facts, *, agent: str, timeout: int | None = None, base: str | None = None
) -> Decision:
    """May this job be started?"""
    access = authorize(facts)
    if not access.allowed:
        return access
    usable = [name for name in rules.agents if name in rules.known_agents]
    names = ", ".join(f"`{name}`" for name in usable)
    wrong_base = bool(base) and facts.target is TargetKind.pull_request
    reasons = [
        *access.root.because,
        Reason(
            question="is the agent offered",
            ok=agent in usable,
            said=f"The agent `{agent}` is not offered here; there are {names}.",
        ),
        Reason(
            question="is the repository alive",
            ok=not facts.archived,
            said="This repository is archived: nothing can be pushed to it.",
        ),
        Reason(
            question="is it open",
            ok=facts.open,
            said="This is closed. Reopen it first, then ask again.",
        ),
        Reason(
            question="is the branch here",
            ok=not facts.from_fork,
            said="This pull request comes from a fork, and I have no write access to its branch. "
            "Open an issue for the change instead.",
        ),
        Reason(
            question="is the base fitting",
            ok=not wrong_base,
            said="`--base` is for issues; work on a pull request starts from its own branch.",
        ),
        Reason(
            question="is the time limit allowed",
            ok=timeout is None or timeout <= rules.max_timeout,
            said=f"The time limit here is at most {rules.max_timeout} seconds.",
        ),
    ]
    return Decision(root=_all("may start", reasons))


def _all(question: str, reasons: list[Reason]) -> Reason:
    ok = all(reason.ok for reason in reasons)
    return Reason(question=question, ok=ok, said="yes" if ok else "no", because=tuple(reasons))
