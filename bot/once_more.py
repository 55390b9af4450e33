"""What people want otherwise when a job is done once more: who does it, for how long, for how much. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bot.model import Job, Request
from bot.profiles import NONE, asked_for
from bot.repo_config import STEPS_AGENT


@dataclass(frozen=True, kw_only=True)
class Instead:
    """The options of `/agent retry` and `/agent resume`; None: as it was."""

    agent: str | None = None
    model: str | None = None
    profile: str | None = None
    timeout: int | None = None  # seconds
    budget: float | None = None  # US dollars

    @property
    def empty(self) -> bool:
        """Whether all is to be as it was."""
        return self == Instead()


#: All as it was.
SAME = Instead()


def otherwise(last: Job, instead: Instead) -> bool:
    """Whether somebody or something else would do the work of ``last``, or go by other instructions.

    Nobody has approved that: the same words are other work to an agent that runs them, and a profile is more words.
    """
    profile = instead.profile
    return (
        instead.agent not in (None, last.agent)
        or instead.model not in (None, last.model)
        or (profile is not None and profile.lower() != (last.profile or NONE).lower())
    )


def done_by(request: Request, last: Job, instead: Instead) -> Request:
    """``request``, which does ``last`` once more, with whom and with what it is done now.

    A model goes with its agent only: another agent has the model that it usually has here. A profile that is named
    now may name its agent; without one, who did it goes on.
    """
    agent = instead.agent or (None if instead.profile is not None else last.agent)
    same = instead.agent in (None, last.agent)
    named = last.named
    if named is not None and named.steps and (instead.agent or last.agent) != STEPS_AGENT:
        named = replace(named, steps=False)  # its scripts are words to an agent that has a model
    return request.evolve(
        agent=agent,
        model=instead.model or (last.model if same and agent is not None else None),
        usual_agent=last.agent if same else None,
        usual_model=last.model if same else None,
        profile=instead.profile if instead.profile is not None else asked_for(last),
        named=named,
        timeout=instead.timeout,
        usual_timeout=last.timeout,
        budget=last.budget if instead.budget is None else instead.budget,
    )
