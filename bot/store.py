"""Jobs, attempts, turns, threads and hosts in SQL. Every change of state is a compare-and-set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot import claims
from bot.audit import Audit
from bot.endings import PlanState
from bot.errors import StaleAttempt
from bot.live_words import Said
from bot.locks import Locks
from bot.model import (
    FINAL_STATES,
    TRANSITIONS,
    Actor,
    ApprovalKind,
    ApprovalState,
    Attempt,
    AttemptState,
    FailureKind,
    Job,
    JobKind,
    JobState,
    Phase,
    Repo,
    TargetKind,
    Trigger,
    Usage,
    Waiting,
    attempt_id,
)
from bot.policy import Limits, Load
from bot.reasons import Reason
from bot.schema import answers, approvals, attempts, hosts, jobs, spend, tells, threads, turns

ACTIVE = (JobState.queued, JobState.running, JobState.paused)
#: A host that was seen within this time is there; hosts tell every twenty seconds that they live.
PRESENT = timedelta(seconds=90)
#: Claims that lose a race against a cancellation look again, at most so often.
CLAIM_TRIES = 5
#: Of a PostgreSQL advisory lock: one host claims at a time, so that no two of them reach a limit together.
CLAIM_LOCK = 7265618
OFFERED = 500  # waiting jobs that are offered to the hosts at once

_UNTOLD = (
    select(tells.c.event, tells.c.by, tells.c.words)
    .where(tells.c.told_at.is_(None))
    .order_by(tells.c.at, tells.c.event)
)


class Store:
    """All SQL of the product but the inbox's. Methods raise SQLAlchemy's errors when the database fails."""

    def __init__(
        self, engine: AsyncEngine, limits: Limits | None = None, *, audit: Audit | None = None
    ) -> None:
        """``limits``: on what runs at once, for claims and for telling why a job waits. Default: none.

        ``audit``: gets the beginnings, answers and ends of jobs, each in the transaction that makes it true.
        """
        self.engine = engine
        self.locks = Locks(engine)
        self._audit = audit
        self.limits = limits or Limits()

    # --- jobs

    async def add_job(self, job: Job, *, because: Reason | None = None) -> bool:
        """Save a new job. False when it exists already: the same trigger came twice.

        ``because`` goes to the audit trail; raises AuditUnavailable when that cannot be written.
        """
        try:
            async with self._begin() as connection:
                await connection.execute(insert(jobs).values(_job_row(job)))
                if self._audit is not None:
                    await self._audit.accepted(job, because, connection)
        except IntegrityError:
            return False
        return True

    async def job(self, job_id: str) -> Job | None:
        """The job, or None."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.id == job_id))).one_or_none()
        return None if row is None else _job(row)

    async def tries(self, job: Job) -> list[Job]:
        """``job``, and the jobs that it does once more, the newest first."""
        found = {job.id: job}
        while job.retry_of and job.retry_of not in found:
            before = await self.job(job.retry_of)
            if before is None:
                break
            found[before.id] = job = before
        return list(found.values())

    async def jobs_on(self, repo_id: int, number: int) -> list[Job]:
        """All jobs of one issue or pull request (also those whose pull request it is), newest first."""
        where = and_(jobs.c.repo_id == repo_id, or_(jobs.c.number == number, jobs.c.pull_number == number))
        return await self._jobs(where)

    async def conversation(self, repo_id: int, number: int) -> list[Job]:
        """The jobs of :meth:`jobs_on`, and all in the pull requests that came of this issue, newest first."""
        opened = select(jobs.c.pull_number).where(
            jobs.c.repo_id == repo_id, jobs.c.number == number, jobs.c.pull_number.is_not(None)
        )
        here = or_(jobs.c.number == number, jobs.c.pull_number == number, jobs.c.number.in_(opened))
        return await self._jobs(and_(jobs.c.repo_id == repo_id, here))

    async def jobs_on_branch(self, repo_id: int, branch: str) -> list[Job]:
        """All jobs that worked on a branch of the repository's, in whichever pull request, newest first."""
        return await self._jobs(and_(jobs.c.repo_id == repo_id, jobs.c.branch == branch))

    async def jobs_at(self, repo_id: int, sha: str) -> list[Job]:
        """Jobs whose check run may be on a commit: that they pushed or ask about, or that they began with."""
        began = and_(jobs.c.target == str(TargetKind.pull_request), jobs.c.base_sha == sha)
        own = or_(jobs.c.head_sha == sha, jobs.c.marker_sha == sha)
        return await self._jobs(and_(jobs.c.repo_id == repo_id, or_(own, began)))

    async def active_jobs(self, *states: JobState) -> list[Job]:
        """Jobs that are not final, or those in ``states``, newest first."""
        return await self._jobs(jobs.c.state.in_([str(state) for state in states or ACTIVE]))

    async def recent_jobs(self, limit: int = 50) -> list[Job]:
        """The newest jobs."""
        return await self._jobs(true(), limit)

    async def unreported_jobs(self) -> list[Job]:
        """Final jobs whose end GitHub was not told yet."""
        return await self._jobs(
            and_(
                jobs.c.state.in_([str(state) for state in FINAL_STATES]),
                or_(jobs.c.reported.is_(None), jobs.c.reported != jobs.c.state),
            )
        )

    async def untold_questions(self) -> list[Job]:
        """Paused jobs whose question nobody has answered, and GitHub was not told yet."""
        return await self._jobs(
            and_(jobs.c.state == str(JobState.paused), jobs.c.answer.is_(None), jobs.c.reported.is_(None))
        )

    async def jobs_with_stray_branches(self) -> list[Job]:
        """Jobs that ended, as GitHub was told, between a push to their new branch and its pull request.

        A plan's or a question's push is an empty commit, for a review to be on.
        """
        return await self._jobs(
            and_(
                jobs.c.state.in_([str(state) for state in FINAL_STATES - {JobState.succeeded}]),
                jobs.c.reported == jobs.c.state,
                or_(jobs.c.target == str(TargetKind.issue), jobs.c.fork),
                or_(jobs.c.head_sha.is_not(None), jobs.c.marker_sha.is_not(None)),
                jobs.c.pull_number.is_(None),
            )
        )

    async def jobs_with_idle_drafts(self) -> list[Job]:
        """Jobs that opened a draft of which nothing came, and nothing will: nobody works there, nothing is asked.

        The job ended in vain or without a change; nobody approved its plan, or the patch, in time, or that was taken
        back; or it was done once more, in a pull request of its own.
        """
        other, asked, vain = jobs.alias(), approvals.c, FINAL_STATES - {JobState.succeeded}
        here = and_(asked.repo_id == jobs.c.repo_id, asked.pull_number == jobs.c.pull_number)
        worked = exists().where(
            other.c.repo_id == jobs.c.repo_id,
            other.c.number == jobs.c.pull_number,
            or_(other.c.state.in_([str(state) for state in ACTIVE]), other.c.head_sha.is_not(None)),
        )
        unused = and_(asked.state == str(ApprovalState.approved), asked.used_at.is_(None))
        waits = exists().where(here, or_(asked.state == str(ApprovalState.pending), unused))
        newest = (
            select(asked.state)
            .where(here, asked.kind.in_([str(ApprovalKind.plan), str(ApprovalKind.protected)]))
            .order_by(asked.asked_at.desc())
            .limit(1)
            .correlate(jobs)
            .scalar_subquery()
        )
        again = jobs.alias()
        return await self._jobs(
            and_(
                jobs.c.state.in_([str(state) for state in FINAL_STATES]),
                jobs.c.reported == jobs.c.state,
                or_(jobs.c.target == str(TargetKind.issue), jobs.c.fork),
                jobs.c.marker_sha.is_not(None),
                jobs.c.pull_number.is_not(None),
                jobs.c.head_sha.is_(None),
                ~worked,
                ~waits,
                or_(
                    jobs.c.state.in_([str(state) for state in vain]),
                    and_(jobs.c.kind != str(JobKind.plan), jobs.c.held_back == ""),
                    newest.in_([str(ApprovalState.expired), str(ApprovalState.withdrawn)]),
                    exists().where(again.c.retry_of == jobs.c.id),
                ),
            )
        )

    async def mark_reported(self, job_id: str, state: JobState) -> None:
        """GitHub shows that the job is in ``state``."""
        async with self._begin() as connection:
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(reported=str(state)))

    async def move(
        self,
        job_id: str,
        to: JobState,
        *,
        expected: Iterable[JobState],
        fence: int | None = None,
        **changes: Any,
    ) -> Job | None:
        """Change the state to ``to`` if it is one of ``expected`` now (and the attempt is still the newest).

        Returns the changed job, or None when somebody else was first. Raises ValueError for a move that the
        transition table does not know.
        """
        sources = frozenset(expected)
        for source in sources:
            if to not in TRANSITIONS[source]:
                raise ValueError(f"no transition from {source} to {to}")
        if to in FINAL_STATES:
            changes.setdefault("finished_at", datetime.now(UTC))
        where = [jobs.c.id == job_id, jobs.c.state.in_([str(source) for source in sources])]
        if fence is not None:
            where.append(jobs.c.fence == fence)
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs).where(*where).values(state=str(to), **changes).returning(*jobs.c)
            )
            row = done.one_or_none()
            if row is not None and to in FINAL_STATES and self._audit is not None:
                await self._audit.ended(_job(row), connection)
        return None if row is None else _job(row)

    async def cancel_unowned(self, job_id: str) -> Job | None:
        """Cancel a job that no host works on: queued, or hibernated. None when it is neither."""
        unowned = or_(
            jobs.c.state == str(JobState.queued),
            and_(jobs.c.state == str(JobState.paused), jobs.c.hibernated),
        )
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, unowned)
                .values(state=str(JobState.cancelled), finished_at=datetime.now(UTC))
                .returning(*jobs.c)
            )
            row = done.one_or_none()
            if row is not None and self._audit is not None:
                await self._audit.ended(_job(row), connection)
        return None if row is None else _job(row)

    async def note(self, job_id: str, *, fence: int | None = None, **changes: Any) -> None:
        """Write facts about a job (never its state). With ``fence``: only while that attempt is the newest.

        Raises StaleAttempt when a newer attempt owns the job.
        """
        if "state" in changes:
            raise ValueError("the state changes by move() only")
        where = [jobs.c.id == job_id]
        if fence is not None:
            where.append(jobs.c.fence == fence)
        async with self._begin() as connection:
            done = await connection.execute(update(jobs).where(*where).values(**changes))
        if done.rowcount == 0:
            raise StaleAttempt(f"Attempt {fence} of job {job_id} is not the newest any more.")

    async def check_fence(self, job_id: str, fence: int) -> None:
        """Raise StaleAttempt unless attempt ``fence`` still owns the running job. Asked before each side effect."""
        found = select(jobs.c.id).where(
            jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state.in_([str(state) for state in ACTIVE])
        )
        async with self.engine.connect() as connection:
            if (await connection.execute(found)).one_or_none() is None:
                raise StaleAttempt(f"Attempt {fence} does not own job {job_id} any more.")

    async def answer(
        self, job_id: str, text: str, by: str, *, event: str, actor: Actor | None = None
    ) -> Job | None:
        """Answer what a paused job asks. None when it does not ask (any more), or somebody answered before.

        ``event`` is what brought the answer: :meth:`answered` tells whether it did so already.
        """
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == str(JobState.paused), jobs.c.answer.is_(None))
                .values(answer=text, answered_by=by)
                .returning(*jobs.c)
            )
            row = done.one_or_none()
            if row is not None:
                said = {"key": _answer_key(event), "said_at": datetime.now(UTC)}
                await connection.execute(self._insert(answers).values(said).on_conflict_do_nothing())
                if self._audit is not None:
                    await self._audit.answered(_job(row), actor or by, event, connection)
        return None if row is None else _job(row)

    async def join(
        self, job: Job, instructions: str, left_out: Iterable[str], *, event: str, actor: Actor
    ) -> Job | None:
        """Let a job that waits do more than it was asked for first. None when it does not wait any more.

        ``event`` is what brought the words: the same one adds nothing twice, and gives the job as it is then.
        """
        async with self._begin() as connection:
            said = {"key": _answer_key(event), "said_at": datetime.now(UTC)}
            new = await connection.execute(self._insert(answers).values(said).on_conflict_do_nothing())
            if new.rowcount == 0:
                return job
            done = await connection.execute(
                update(jobs)
                .where(
                    jobs.c.id == job.id,
                    jobs.c.state == str(JobState.queued),
                    jobs.c.instructions == job.instructions,
                )
                .values(instructions=instructions, left_out=[*job.left_out, *left_out])
                .returning(*jobs.c)
            )
            row = done.one_or_none()
            if row is None:
                await connection.execute(delete(answers).where(answers.c.key == said["key"]))
            elif self._audit is not None:
                await self._audit.answered(_job(row), actor, event, connection)
        return None if row is None else _job(row)

    async def tell(self, job_id: str, words: str, by: str, *, event: str) -> bool:
        """Keep ``words`` for the agent of a job. False when this event has said them before."""
        values = {"event": event[:120], "job_id": job_id, "words": words, "by": by, "at": datetime.now(UTC)}
        return await self._insert_once(tells, values)

    async def untold(self, job_id: str) -> list[Said]:
        """What a job's agent was not told yet, oldest first."""
        return await self._said(_UNTOLD.where(tells.c.job_id == job_id))

    async def live_words(self, attempt: str) -> list[Said]:
        """The same while the attempt with this id works on the job; nothing when it does not (any more).

        Nothing either where a person wants the job to stop, or where it carries out an approved plan.
        """
        works = (
            select(jobs.c.id)
            .join(attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.fence == jobs.c.fence))
            .where(
                attempts.c.id == attempt,
                attempts.c.state == str(AttemptState.running),
                jobs.c.state == str(JobState.running),
                jobs.c.cancel_requested_by.is_(None),
                jobs.c.approval_id.is_(None),
            )
        )
        return await self._said(_UNTOLD.where(tells.c.job_id.in_(works)))

    async def _said(self, query: Select[tuple[str, str, str]]) -> list[Said]:
        async with self.engine.connect() as connection:
            return [Said(row.event, row.by, row.words) for row in await connection.execute(query)]

    async def told(self, events: Iterable[str]) -> None:
        """These words have become part of a turn."""
        async with self._begin() as connection:
            await connection.execute(
                update(tells).where(tells.c.event.in_(list(events))).values(told_at=datetime.now(UTC))
            )

    async def review_of(self, job_id: str) -> int | None:
        """The pull request in which a review is to decide what the job waits for; None: it waits for none."""
        pending = approvals.c.state == str(ApprovalState.pending)
        query = select(approvals.c.pull_number).where(approvals.c.job_id == job_id, pending)
        async with self.engine.connect() as connection:
            return (await connection.execute(query.limit(1))).scalar_one_or_none()

    async def plan_of(self, job_id: str) -> PlanState | None:
        """What became of the plan that the job made, as it was asked about last; None: nobody was asked."""
        query = select(approvals.c.state, approvals.c.pull_number, approvals.c.decided_by).where(
            approvals.c.job_id == job_id, approvals.c.kind == str(ApprovalKind.plan)
        )
        newest = query.order_by(approvals.c.asked_at.desc(), approvals.c.id).limit(1)
        async with self.engine.connect() as connection:
            row = (await connection.execute(newest)).one_or_none()
        if row is None:
            return None
        return PlanState(ApprovalState(row.state), row.pull_number, row.decided_by or "")

    async def waits_for_review(self, job_id: str) -> bool:
        """Whether a review is to decide what the job waits for, or has, and the job was not told of that yet."""
        open_ = or_(approvals.c.state == str(ApprovalState.pending), approvals.c.settled_at.is_(None))
        query = select(approvals.c.id).where(approvals.c.job_id == job_id, open_)
        async with self.engine.connect() as connection:
            return (await connection.execute(query.limit(1))).first() is not None

    async def answered(self, event: str) -> bool:
        """Whether ``event`` has answered a question: the same event must not answer the next one, too."""
        query = select(answers.c.key).where(answers.c.key == _answer_key(event))
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).one_or_none() is not None

    async def request_cancel(self, job_id: str, by: str) -> bool:
        """Remember that ``by`` wants the running job to stop. False when it is final already."""
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state.in_([str(state) for state in ACTIVE]))
                .values(cancel_requested_by=by)
            )
        return done.rowcount == 1

    # --- the line: who waits, why, and who is next

    async def claim_next(
        self, host: str, serves: Iterable[str] = (), *, only: str | None = None
    ) -> tuple[Job, Attempt] | None:
        """Take the best waiting job for ``host``, which has the capabilities ``serves``, with a new fencing number.

        None when nothing may start now (``bot.claims`` says what may); it is offered again when that changes.
        ``only``: this job or none. Any number of hosts may ask at once.
        """
        for _ in range(CLAIM_TRIES):
            now = datetime.now(UTC)
            async with self._begin() as connection:
                if connection.dialect.name == "postgresql":
                    await connection.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
                chosen = await self._next(frozenset(serves), now, connection, only)
                # one statement: SQLite has the write lock from its first look to its last
                done = await connection.execute(
                    update(jobs)
                    .where(jobs.c.id == chosen.scalar_subquery(), claims.waiting(jobs))
                    .values(
                        state=str(JobState.running),
                        fence=jobs.c.fence + 1,
                        started_at=func.coalesce(jobs.c.started_at, now),
                        phase=str(Phase.image),
                        hibernated=False,
                        waits="",
                    )
                    .returning(*jobs.c)
                )
                row = done.one_or_none()
                if row is not None:
                    job = _job(row)
                    # it ran before: a human was asked, and that costs no time
                    paused_at = job.asked_at if job.fence > 1 else None
                    return job, await self._add_attempt(connection, job, host, now, paused_at=paused_at)
                if (await connection.execute(chosen)).first() is None:
                    return None
        return None  # housekeeping offers it again

    async def _next(
        self, serves: frozenset[str], now: datetime, connection: AsyncConnection, only: str | None
    ) -> Select[tuple[str]]:
        job = jobs.alias()
        names = (
            await connection.execute(select(jobs.c.queue).where(claims.waiting(jobs)).distinct())
        ).scalars()
        fitting = [name for name in names if claims.needs_of(name) <= serves]
        where = [claims.may_start(job, self.limits, now), job.c.queue.in_(fitting)]
        if only is not None:
            where.append(job.c.id == only)
        return select(job.c.id).where(*where).order_by(*claims.best_first(job, now)).limit(1)

    async def startable(self) -> list[tuple[str, str]]:
        """Id and queue of the jobs that may start now on a host that has what they need, the best first."""
        job, now = jobs.alias(), datetime.now(UTC)
        query = (
            select(job.c.id, job.c.queue)
            .where(claims.may_start(job, self.limits, now))
            .order_by(*claims.best_first(job, now))
            .limit(OFFERED)
        )
        async with self.engine.connect() as connection:
            return [(row.id, row.queue) for row in await connection.execute(query)]

    async def waiting(self, job: Job) -> Waiting:
        """Why a queued job does not run yet."""
        mine, other, now = jobs.alias(), jobs.alias(), datetime.now(UTC)
        bounds = {name: bound for name, bound in claims.limited(self.limits).items() if bound}
        query = select(
            select(func.count()).where(claims.ahead_here(mine, other)).correlate(mine).scalar_subquery(),
            select(func.count()).where(claims.ahead(mine, other, now)).correlate(mine).scalar_subquery(),
            claims.settling(mine, self.limits, now),
            *(claims.running(mine, name) for name in bounds),
        ).where(mine.c.id == job.id)
        present = await self.present()
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return Waiting()
        here, ahead, settling, *counts = row
        reached = [
            (name, count)
            for (name, bound), count in zip(bounds.items(), counts, strict=True)
            if count >= bound
        ]
        limit, running = reached[0] if reached else ("", 0)
        needs = claims.needs_of(job.queue)
        # what no single host has altogether
        unserved = needs - max(present, key=lambda serves: len(needs & serves), default=frozenset())
        return Waiting(
            unserved=tuple(sorted(unserved)),
            no_host=not present,
            here=here,
            limit=limit,
            running=running,
            settling=bool(settling),
            position=ahead + 1,
        )

    async def present(self) -> set[frozenset[str]]:
        """What the worker hosts that are there serve, each combination once."""
        query = select(hosts.c.serves).where(hosts.c.seen_at >= datetime.now(UTC) - PRESENT)
        async with self.engine.connect() as connection:
            return {frozenset(row.serves) for row in await connection.execute(query)}

    async def unserved(self, needs: Iterable[str]) -> tuple[str, ...]:
        """Those of ``needs`` that no host ever had together with the others: nobody will take such a job."""
        wanted = frozenset(needs)
        if not wanted:
            return ()
        async with self.engine.connect() as connection:
            known = [frozenset(row.serves) for row in await connection.execute(select(hosts.c.serves))]
        best = max(known, key=lambda serves: len(wanted & serves), default=frozenset[str]())
        return tuple(sorted(wanted - best))

    async def load(self, repo_id: int, actor_id: int, thread_id: str = "") -> Load:
        """What counts against the limits on asking."""
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        asked = select(func.count()).where(jobs.c.actor_id == actor_id, jobs.c.created_at > hour_ago)
        queued = select(func.count()).where(jobs.c.state == str(JobState.queued), jobs.c.repo_id == repo_id)
        here = select(func.count()).where(jobs.c.repo_id == repo_id, jobs.c.created_at > hour_ago)
        own = here.where(jobs.c.actor_id == actor_id)
        talk = here.where(jobs.c.thread_id == thread_id)
        counts = select(*(count.scalar_subquery() for count in (asked, queued, here, own, talk)))
        async with self.engine.connect() as connection:
            row = (await connection.execute(counts)).one()
        return Load(
            user_hour=row[0],
            queued=row[1],
            repository_hour=row[2],
            user_repository_hour=row[3],
            conversation_hour=row[4],
        )

    # --- attempts

    async def take_over(self, job_id: str, *, from_fence: int, host: str) -> tuple[Job, Attempt] | None:
        """Start a new attempt of a running job whose attempt ``from_fence`` was lost. None: somebody else did."""
        now = datetime.now(UTC)
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == str(JobState.running), jobs.c.fence == from_fence)
                .values(fence=from_fence + 1, phase=str(Phase.image))
                .returning(*jobs.c)
            )
            row = done.one_or_none()
            if row is None:
                return None
            await connection.execute(
                update(attempts)
                .where(attempts.c.id == attempt_id(job_id, from_fence))
                .values(state=str(AttemptState.ended), ended_at=now)
            )
            job = _job(row)
            attempt = await self._add_attempt(connection, job, host, now)
        return job, attempt

    async def _add_attempt(
        self,
        connection: AsyncConnection,
        job: Job,
        host: str,
        now: datetime,
        *,
        paused_at: datetime | None = None,
    ) -> Attempt:
        query = select(attempts.c.deadline).where(attempts.c.id == attempt_id(job.id, job.fence - 1))
        deadline = (await connection.execute(query)).scalar_one_or_none()
        if deadline is None:
            deadline = (job.started_at or now) + timedelta(seconds=job.timeout)
        elif paused_at is not None:
            deadline = now + (deadline - paused_at)  # what was left when the question was asked
        attempt = Attempt(
            id=attempt_id(job.id, job.fence),
            job_id=job.id,
            fence=job.fence,
            host=host,
            state=AttemptState.starting,
            claimed_at=now,
            # of the attempt before, if there was one: a job's time limit is not renewed by losing a host
            deadline=deadline,
        )
        await connection.execute(insert(attempts).values(dataclasses.asdict(attempt)))
        return attempt

    async def attempt(self, attempt_id: str) -> Attempt | None:
        """The attempt as it is now, or None."""
        async with self.engine.connect() as connection:
            found = await connection.execute(select(attempts).where(attempts.c.id == attempt_id))
            row = found.one_or_none()
        return None if row is None else _attempt(row)

    async def attempts_of(self, host: str) -> list[Attempt]:
        """The attempts of ``host`` that have not ended: what a restarted worker adopts."""
        query = select(attempts).where(attempts.c.host == host, attempts.c.state != str(AttemptState.ended))
        async with self.engine.connect() as connection:
            return [_attempt(row) for row in await connection.execute(query)]

    async def set_attempt(self, attempt: Attempt, state: AttemptState) -> None:
        """Move an attempt on."""
        ended = datetime.now(UTC) if state is AttemptState.ended else None
        async with self._begin() as connection:
            await connection.execute(
                update(attempts).where(attempts.c.id == attempt.id).values(state=str(state), ended_at=ended)
            )

    async def renew(self, attempt: Attempt, *, as_of: datetime) -> None:
        """Write the attempt's new deadline, which counts the time until ``as_of`` as waited.

        The job's question is as old as that then, so that nothing is counted twice when this is repeated.
        """
        async with self._begin() as connection:
            await connection.execute(
                update(attempts).where(attempts.c.id == attempt.id).values(deadline=attempt.deadline)
            )
            await connection.execute(
                update(jobs)
                .where(jobs.c.id == attempt.job_id, jobs.c.fence == attempt.fence)
                .values(asked_at=as_of)
            )

    async def lost_attempts(self, silent_for: timedelta) -> list[Attempt]:
        """Attempts that have not ended, of hosts that were not seen for ``silent_for``."""
        limit = datetime.now(UTC) - silent_for
        seen = exists().where(hosts.c.name == attempts.c.host, hosts.c.seen_at >= limit)
        query = select(attempts).where(
            attempts.c.state != str(AttemptState.ended), attempts.c.claimed_at < limit, ~seen
        )
        async with self.engine.connect() as connection:
            return [_attempt(row) for row in await connection.execute(query)]

    # --- turns, threads, hosts, answers

    async def begin_turn(self, attempt: Attempt, number: int, prompt: str) -> None:
        """Record that a turn was given to the agent. Repeats change nothing."""
        await self._insert_once(
            turns,
            {"attempt_id": attempt.id, "number": number, "prompt": prompt, "started_at": datetime.now(UTC)},
        )

    async def end_turn(self, attempt: Attempt, number: int, outcome: Mapping[str, Any]) -> None:
        """Record how a turn ended."""
        async with self._begin() as connection:
            await connection.execute(
                update(turns)
                .where(turns.c.attempt_id == attempt.id, turns.c.number == number)
                .values(finished_at=datetime.now(UTC), outcome=dict(outcome))
            )

    async def interruptions(self, job_id: str) -> int:
        """How many of the job's attempts were ended in the middle of a turn; not those that asked and were answered."""
        query = (
            select(turns.c.attempt_id, turns.c.outcome)
            .join(attempts, attempts.c.id == turns.c.attempt_id)
            .where(attempts.c.job_id == job_id)
            .order_by(attempts.c.fence, turns.c.number)
        )
        async with self.engine.connect() as connection:
            last = {row.attempt_id: row.outcome for row in await connection.execute(query)}
        return sum(outcome is None or bool(outcome.get("stopped")) for outcome in last.values())

    async def usage_before(self, attempt: Attempt) -> Usage:
        """What the job's other attempts have used."""
        total = {name: func.coalesce(func.sum(spend.c[name]), 0) for name in _SPENT}
        priced = func.count(spend.c.cost)
        query = select(
            *(column.label(name) for name, column in total.items()),
            func.count().label("requests"),
            priced.label("priced"),
            func.coalesce(func.sum(spend.c.cost), 0.0).label("cost"),
        ).where(spend.c.job_id == attempt.job_id, spend.c.attempt_id != attempt.id)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).one()
        return Usage(
            **{name: int(row._mapping[name]) for name in _SPENT},
            requests=row.requests,
            cost=float(row.cost) if row.priced == row.requests else None,
        )

    async def session(self, thread_id: str, agent: str) -> str | None:
        """What ``agent`` calls its session of this thread, if there was a turn before."""
        query = select(threads.c.session_id).where(threads.c.id == thread_id, threads.c.agent == agent)
        async with self.engine.connect() as connection:
            found = (await connection.execute(query)).scalar_one_or_none()
        return None if found is None else str(found)

    async def thread_of(self, job: Job) -> str:
        """The conversation a job belongs to: that of its issue; a pull request of ours goes on with its issue's."""
        query = (
            select(jobs.c.number)
            .where(jobs.c.repo_id == job.repo.id, jobs.c.pull_number == job.number)
            .order_by(jobs.c.created_at)
            .limit(1)
        )
        async with self.engine.connect() as connection:
            number = (await connection.execute(query)).scalar_one_or_none()
        return f"{job.repo.id}-{job.number if number is None else number}"

    async def save_session(self, thread_id: str, agent: str, session_id: str) -> None:
        """Remember the session for the thread's next turn."""
        values = {"session_id": session_id, "updated_at": datetime.now(UTC)}
        async with self._begin() as connection:
            statement = self._insert(threads).values(id=thread_id, agent=agent, **values)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["id", "agent"], set_=values)
            )

    async def host_seen(
        self, name: str, slots: int, started_at: datetime, serves: Iterable[str] = ()
    ) -> None:
        """The heartbeat of a worker host, which has the capabilities ``serves``."""
        values = {
            "slots": slots,
            "started_at": started_at,
            "seen_at": datetime.now(UTC),
            "serves": sorted(serves),
        }
        async with self._begin() as connection:
            statement = self._insert(hosts).values(name=name, **values)
            await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))

    async def say_once(self, key: str, by: str) -> bool:
        """Whether ``by`` may say the thing ``key``: whoever asks first, and that one again after a crash."""
        now = datetime.now(UTC)
        mine = hashlib.sha256(f"{by}\0{key}".encode()).hexdigest()
        async with self._begin() as connection:
            first = self._insert(answers).values(key=key[:200], said_at=now).on_conflict_do_nothing()
            if (await connection.execute(first)).rowcount == 1:
                again = self._insert(answers).values(key=mine, said_at=now).on_conflict_do_nothing()
                await connection.execute(again)
                return True
            found = await connection.execute(select(answers.c.key).where(answers.c.key == mine))
            return found.one_or_none() is not None

    async def place(self, key: str, by: str, *, most: int) -> int | None:
        """Which of the first ``most`` things with this ``key`` the one said ``by`` is, from 0; None: a later one."""
        for number in range(most):
            if await self.say_once(f"{key}:{number}", by):
                return number
        return None

    async def unsay(self, key: str) -> None:
        """Saying it did not work: it may be said again."""
        async with self._begin() as connection:
            await connection.execute(answers.delete().where(answers.c.key == key[:200]))

    async def ping(self) -> None:
        """Raise when the database does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(select(1))

    # --- plumbing

    async def _jobs(self, where: ColumnElement[bool], limit: int | None = None) -> list[Job]:
        query = select(jobs).where(where).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        async with self.engine.connect() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def _insert_once(self, table: Table, values: dict[str, Any]) -> bool:
        async with self._begin() as connection:
            done = await connection.execute(self._insert(table).values(values).on_conflict_do_nothing())
        return done.rowcount == 1

    def _insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT: the same words in both dialects, but two classes."""
        if self.engine.dialect.name == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        async with self.engine.begin() as connection:
            yield connection


_SPENT = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")


def _answer_key(event: str) -> str:
    return f"answer:{event}"[:200]


_USAGE = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cached_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "llm_requests": "requests",
    "cost": "cost",
}


def usage_columns(usage: Usage) -> dict[str, Any]:
    """``usage`` as columns of a job, for :meth:`Store.note` and :meth:`Store.move`."""
    return {column: getattr(usage, name) for column, name in _USAGE.items()}


def _job_row(job: Job) -> dict[str, Any]:
    values = {
        field.name: getattr(job, field.name)
        for field in dataclasses.fields(job)
        if field.name not in ("repo", "trigger", "usage")
    }
    values |= {
        "repo_id": job.repo.id,
        "repo_owner": job.repo.owner,
        "repo_name": job.repo.name,
        "installation_id": job.repo.installation_id,
        "trigger": dataclasses.asdict(job.trigger),
        "actor_id": job.trigger.actor.id,
        "thread_id": job.thread_id or f"{job.repo.id}-{job.number}",
        "config": dict(job.config),
        "blocked": dict(job.blocked),
        "kind": str(job.kind),
        "left_out": list(job.left_out),
        "fork": job.fork,
    }
    return values | usage_columns(job.usage)


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    trigger = dict(values["trigger"])
    return Job(
        repo=Repo(
            owner=values["repo_owner"],
            name=values["repo_name"],
            id=values["repo_id"],
            installation_id=values["installation_id"],
        ),
        trigger=Trigger(**trigger | {"actor": Actor(**trigger["actor"])}),
        usage=Usage(**{name: values[column] for column, name in _USAGE.items()}),
        target=TargetKind(values["target"]),
        state=JobState(values["state"]),
        phase=None if values["phase"] is None else Phase(values["phase"]),
        failure=None if values["failure"] is None else FailureKind(values["failure"]),
        kind=JobKind(values["kind"]),
        left_out=tuple(values["left_out"]),
        fork=values["fork"],
        **{
            name: values[name]
            for name in (
                "id", "number", "agent", "model", "instructions", "title", "body", "timeout", "base", "retry_of",
                "fence", "message", "summary", "branch", "base_sha", "head_sha", "pull_number", "comment_id",
                "check_run_id", "cancel_requested_by", "created_at", "started_at", "finished_at",
                "thread_id", "config", "queue", "priority", "budget", "go_on", "question", "asked_at", "answer",
                "answered_by", "hibernated", "held_back", "blocked", "waits", "recent_log", "marker_sha", "approval_id",
            )
        },
    )  # fmt: skip


def _attempt(row: Row[Any]) -> Attempt:
    values = {field.name: row._mapping[field.name] for field in dataclasses.fields(Attempt)}
    return Attempt(**values | {"state": AttemptState(values["state"])})
