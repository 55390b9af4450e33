"""Jobs, attempts, turns, threads and hosts in SQL. Every change of state is a compare-and-set."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, and_, exists, func, insert, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.errors import StaleAttempt
from bot.model import (
    FINAL_STATES,
    TRANSITIONS,
    Actor,
    Attempt,
    AttemptState,
    FailureKind,
    Job,
    JobState,
    Phase,
    Repo,
    TargetKind,
    Trigger,
    Usage,
    attempt_id,
)
from bot.schema import answers, attempts, hosts, jobs, threads, turns

ACTIVE = (JobState.queued, JobState.running, JobState.paused)


class Store:
    """All SQL of the product but the inbox's. Methods raise SQLAlchemy's errors when the database fails."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    # --- jobs

    async def add_job(self, job: Job) -> bool:
        """Save a new job. False when it exists already: the same trigger came twice."""
        try:
            async with self._begin() as connection:
                await connection.execute(insert(jobs).values(_job_row(job)))
        except IntegrityError:
            return False
        return True

    async def job(self, job_id: str) -> Job | None:
        """The job, or None."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.id == job_id))).one_or_none()
        return None if row is None else _job(row)

    async def jobs_on(self, repo_id: int, number: int) -> list[Job]:
        """All jobs of one issue or pull request (also those whose pull request it is), newest first."""
        where = and_(jobs.c.repo_id == repo_id, or_(jobs.c.number == number, jobs.c.pull_number == number))
        return await self._jobs(where)

    async def active_jobs(self, *states: JobState) -> list[Job]:
        """Jobs that are not final, or those in ``states``, newest first."""
        return await self._jobs(jobs.c.state.in_([str(state) for state in states or ACTIVE]))

    async def recent_jobs(self, limit: int = 50) -> list[Job]:
        """The newest jobs."""
        return await self._jobs(true(), limit)

    async def queue_position(self, job: Job) -> int:
        """How many queued jobs were accepted before this one."""
        ahead = select(func.count()).where(
            jobs.c.state == str(JobState.queued), jobs.c.created_at < job.created_at
        )
        async with self.engine.connect() as connection:
            return int((await connection.execute(ahead)).scalar_one())

    async def unreported_jobs(self) -> list[Job]:
        """Final jobs whose end GitHub was not told yet."""
        return await self._jobs(
            and_(
                jobs.c.state.in_([str(state) for state in FINAL_STATES]),
                or_(jobs.c.reported.is_(None), jobs.c.reported != jobs.c.state),
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

    async def request_cancel(self, job_id: str, by: str) -> bool:
        """Remember that ``by`` wants the running job to stop. False when it is final already."""
        async with self._begin() as connection:
            done = await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state.in_([str(state) for state in ACTIVE]))
                .values(cancel_requested_by=by)
            )
        return done.rowcount == 1

    # --- attempts

    async def claim(self, job_id: str, host: str) -> tuple[Job, Attempt] | None:
        """Take a queued job for ``host`` with a new fencing number.

        None when it is not queued any more, was asked to stop, or another job of the same issue or pull
        request is running: it stays queued then, and is offered again when that one ends.
        """
        now = datetime.now(UTC)
        mine, other = jobs, jobs.alias()
        busy = exists().where(
            other.c.repo_id == mine.c.repo_id,
            other.c.number == mine.c.number,
            other.c.id != mine.c.id,
            or_(
                other.c.state.in_([str(JobState.running), str(JobState.paused)]),
                # strictly in the order in which people asked
                and_(other.c.state == str(JobState.queued), other.c.created_at < mine.c.created_at),
            ),
        )
        async with self._begin() as connection:
            done = await connection.execute(
                update(mine)
                .where(
                    mine.c.id == job_id,
                    mine.c.state == str(JobState.queued),
                    mine.c.cancel_requested_by.is_(None),
                    ~busy,
                )
                .values(
                    state=str(JobState.running),
                    fence=mine.c.fence + 1,
                    started_at=func.coalesce(mine.c.started_at, now),
                    phase=str(Phase.image),
                )
                .returning(*mine.c)
            )
            row = done.one_or_none()
            if row is None:
                return None
            job = _job(row)
            attempt = await self._add_attempt(connection, job, host, now)
        return job, attempt

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

    async def _add_attempt(self, connection: AsyncConnection, job: Job, host: str, now: datetime) -> Attempt:
        attempt = Attempt(
            id=attempt_id(job.id, job.fence),
            job_id=job.id,
            fence=job.fence,
            host=host,
            state=AttemptState.starting,
            claimed_at=now,
            # counted from the first start: a job's time limit is not renewed by losing a host
            deadline=(job.started_at or now) + timedelta(seconds=job.timeout),
        )
        await connection.execute(insert(attempts).values(dataclasses.asdict(attempt)))
        return attempt

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

    async def host_seen(self, name: str, slots: int, started_at: datetime) -> None:
        """The heartbeat of a worker host."""
        values = {"slots": slots, "started_at": started_at, "seen_at": datetime.now(UTC)}
        async with self._begin() as connection:
            statement = self._insert(hosts).values(name=name, **values)
            await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))

    async def say_once(self, key: str) -> bool:
        """True the first time that ``key`` is asked for: then the thing may be said."""
        return await self._insert_once(answers, {"key": key[:200], "said_at": datetime.now(UTC)})

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
        "config": dict(job.config),
        "blocked": dict(job.blocked),
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
        **{
            name: values[name]
            for name in (
                "id", "number", "agent", "model", "instructions", "title", "body", "timeout", "base", "retry_of",
                "fence", "message", "summary", "branch", "base_sha", "head_sha", "pull_number", "comment_id",
                "check_run_id", "cancel_requested_by", "created_at", "started_at", "finished_at",
                "thread_id", "config", "queue", "priority", "budget", "go_on", "question", "asked_at", "answer",
                "answered_by", "hibernated", "held_back", "blocked",
            )
        },
    )  # fmt: skip


def _attempt(row: Row[Any]) -> Attempt:
    values = {field.name: row._mapping[field.name] for field in dataclasses.fields(Attempt)}
    return Attempt(**values | {"state": AttemptState(values["state"])})
