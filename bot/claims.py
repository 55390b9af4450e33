"""Which waiting job may start, and which of them first: expressions for the store's queries.

A job may start when nothing else of its conversation runs or was asked for before, when no limit on what runs at once
is reached, when the host has what it needs, and, if a review started it, when others had the time to join it. Of those,
in this order: what people wait for before what a schedule started (until that has waited long enough), the answered
before the new, the repository with the fewest running jobs, the one that was served longest ago, and the older request.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, FromClause, UnaryExpression, and_, case, exists, func, or_, select

from bot.model import FEEDBACK, JobState
from bot.policy import PERSON, Limits
from bot.schema import jobs

#: After so long in the line a job counts as one that a person waits for, so that nothing waits for ever.
PATIENCE = timedelta(minutes=30)

_QUEUED, _RUNNING, _PAUSED = str(JobState.queued), str(JobState.running), str(JobState.paused)
#: The jobs that one is compared with. Made once: SQLAlchemy makes each of its columns anew for another alias.
_OTHER = jobs.alias()
#: What a limit counts by -> the column that it is about.
_LIMITED = {"user": "actor_id", "repository": "repo_id", "installation": "installation_id"}


def queue_name(needs: Iterable[str]) -> str:
    """Capabilities as one word: sorted, joined by "+"; empty when nothing special is needed."""
    return "+".join(sorted(set(needs)))


def needs_of(queue: str) -> frozenset[str]:
    """The capabilities in a word that :func:`queue_name` made."""
    return frozenset(queue.split("+")) - {""}


def waiting(job: FromClause) -> ColumnElement[bool]:
    """Queued, or hibernated and answered; and nobody wants it to stop."""
    answered = and_(job.c.state == _PAUSED, job.c.hibernated, job.c.answer.is_not(None))
    return and_(or_(job.c.state == _QUEUED, answered), job.c.cancel_requested_by.is_(None))


def ahead_here(job: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Whether ``other`` is of the same conversation and comes before ``job``."""
    return and_(
        other.c.thread_id == job.c.thread_id,
        other.c.id != job.c.id,
        or_(
            other.c.state.in_([_RUNNING, _PAUSED]),
            # strictly in the order in which people asked
            and_(job.c.state == _QUEUED, other.c.state == _QUEUED, _older(other, job)),
        ),
    )


def ahead(job: FromClause, other: FromClause, now: datetime) -> ColumnElement[bool]:
    """Whether the waiting ``other`` comes before ``job``, when repositories do not count."""
    mine, theirs = _priority(job, now), _priority(other, now)
    return and_(waiting(other), or_(theirs > mine, and_(theirs == mine, _older(other, job))))


def settling(job: FromClause, limits: Limits, now: datetime) -> ColumnElement[bool]:
    """Whether a review started ``job`` so short a time ago that another one may be on its way."""
    started = job.c.trigger["event"].as_string() == FEEDBACK
    return and_(started, job.c.state == _QUEUED, job.c.created_at > now - timedelta(seconds=limits.settle))


def may_start(job: FromClause, limits: Limits, now: datetime) -> ColumnElement[bool]:
    """Whether ``job`` may start on a host that has what it needs."""
    rules = [waiting(job), ~exists().where(ahead_here(job, _OTHER))]
    rules += [~settling(job, limits, now)] if limits.settle else []
    rules += [running(job, name) < bound for name, bound in limited(limits).items() if bound]
    return and_(*rules)


def limited(limits: Limits) -> dict[str, int]:
    """What may run at once, by what it is counted; 0: no limit."""
    return {"user": limits.user, "repository": limits.repository, "installation": limits.installation}


def running(job: FromClause, by: str) -> Any:
    """How many jobs run with the same user, repository or installation as ``job``. Paused ones do not count."""
    column = _LIMITED[by]
    return (
        select(func.count())
        .where(_OTHER.c.state == _RUNNING, _OTHER.c[column] == job.c[column])
        .correlate(job)
        .scalar_subquery()
    )


def best_first(job: FromClause, now: datetime) -> list[ColumnElement[Any] | UnaryExpression[Any]]:
    """The order in which jobs that may start are taken."""
    served = (
        select(func.max(_OTHER.c.started_at))
        .where(_OTHER.c.repo_id == job.c.repo_id)
        .correlate(job)
        .scalar_subquery()
    )
    return [
        _priority(job, now).desc(),
        case((job.c.state == _PAUSED, 0), else_=1),
        running(job, "repository"),
        served.asc().nulls_first(),
        job.c.created_at,
        job.c.id,
    ]


def _older(one: FromClause, than: FromClause) -> ColumnElement[bool]:
    return or_(
        one.c.created_at < than.c.created_at,
        and_(one.c.created_at == than.c.created_at, one.c.id < than.c.id),
    )


def _priority(job: FromClause, now: datetime) -> Any:
    patient = and_(job.c.priority < PERSON, job.c.created_at < now - PATIENCE)
    return case((patient, PERSON), else_=job.c.priority)
