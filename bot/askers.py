"""Whose wishes a pull request carries out: they do not approve it, nor what its agent wants for them."""

from __future__ import annotations

from collections.abc import Collection

from bot.model import DECIDED, FEEDBACK, Job
from bot.store import Store


def askers_of(jobs: Collection[Job]) -> frozenset[int]:
    """Who asked for the work of ``jobs``: not those whose review was feedback on it, nor for whom that was decided."""
    return frozenset(job.trigger.actor.id for job in jobs if job.trigger.event not in (FEEDBACK, DECIDED))


def reviewers_of(jobs: Collection[Job]) -> frozenset[int]:
    """Whose reviews began ``jobs``."""
    return frozenset(job.trigger.actor.id for job in jobs if job.trigger.event == FEEDBACK)


async def with_origins(store: Store, jobs: Collection[Job]) -> list[Job]:
    """``jobs``, and those that they do once more: their words are those of who asked first."""
    known: dict[str, Job] = {}
    for job in jobs:
        known |= {one.id: one for one in await store.tries(job)}
    return list(known.values())
