"""The audit trail in SQL: who did what, on what, why it was allowed or refused. Entries are added and never changed.

Any number of processes append at once: each transaction first takes the row of ``audit_head``, so the chain
(``bot.audit_chain``) never forks. Nothing secret goes in: every text passes the redactor.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Row, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot import __version__
from bot.audit_chain import (
    HEAD_GONE,
    LARGEST,
    MUST,
    AuditKind,
    Entry,
    Link,
    Unreadable,
    Verifier,
    canonical,
)
from bot.config import Settings
from bot.database import redacted_url
from bot.errors import InfrastructureError
from bot.github_auth import InstallationToken, Scope
from bot.model import KEPT, Actor, Job, Repo
from bot.policy import Decision
from bot.profiles import kept
from bot.reasons import Reason, as_data
from bot.redact import Redactor
from bot.schema import audit, audit_head

log = structlog.get_logger(__name__)

#: The actor of what the bot does by itself.
CONDUCTOR = "conductor"
MAX_TEXT = 2000  # characters of one text
MAX_ITEMS = 100  # of one list or object
MAX_DEPTH = 12
MAX_JSON = 32 * 1024  # bytes of a decision, and of the details
PAGE = 500  # entries that are read at once

_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # PostgreSQL takes no NUL; half a surrogate pair is no Unicode


class AuditUnavailable(InfrastructureError):
    """The database does not take the entry, and without it this is not done."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which entries: all that fit everything that is given."""

    since: datetime | None = None
    until: datetime | None = None  # not included
    repo: str | None = None  # owner/name, as it was called then
    number: int | None = None
    kinds: Collection[str] = ()
    actor: str | None = None
    job_id: str | None = None
    delivery_id: str | None = None


class Audit:
    """The tables ``audit`` and ``audit_head``. Reading raises SQLAlchemy's errors when the database fails."""

    def __init__(self, engine: AsyncEngine, redactor: Redactor) -> None:
        self._engine = engine
        self._redactor = redactor

    # --- writing

    async def of_job(self, kind: AuditKind, job: Job, *, sha: str | None = None, **details: Any) -> None:
        """Append what the bot itself does for a job; raises as ``record`` does."""
        await self.record(
            kind,
            actor=CONDUCTOR,
            repo=job.repo,
            number=job.number,
            job_id=job.id,
            delivery_id=job.trigger.delivery_id,
            sha=sha,
            details=details,
        )

    async def record(
        self,
        kind: AuditKind,
        *,
        actor: Actor | str,
        repo: Repo | None = None,
        number: int | None = None,
        job_id: str | None = None,
        delivery_id: str | None = None,
        sha: str | None = None,
        decision: Decision | Reason | None = None,
        details: Mapping[str, Any] | None = None,
        connection: AsyncConnection | None = None,
    ) -> Entry | None:
        """Append an entry; record first, then act.

        ``decision`` is stored with its reasons, ``details`` as JSON: fractions become texts, long texts are cut. With
        ``connection`` it is written in that open transaction: make it the last thing there, for it holds up all other
        writers until the commit. When the database does not take it, kinds in ``MUST`` raise AuditUnavailable; all
        other entries go to the log, and None is returned.
        """
        login, actor_id = (actor.login, actor.id) if isinstance(actor, Actor) else (actor, None)
        root = decision.root if isinstance(decision, Decision) else decision
        draft = Entry(
            seq=0,
            at=moment(datetime.now(UTC)),
            kind=str(kind),
            actor=self._short(login, 120) or "",
            actor_id=actor_id,
            repo_id=repo.id if repo else None,
            repo=self._short(repo.full_name if repo else "", 250) or "",
            number=number,
            job_id=self._short(job_id, 40),
            delivery_id=self._short(delivery_id, 80),
            sha=sha if sha and _SHA.fullmatch(sha) else self._short(sha, 64),
            decision=None if root is None else self._bounded(as_data(root)),
            details=self._bounded(details or {}),
            previous="",
        )
        try:
            if connection is not None and kind in MUST:
                return await self._append(connection, draft)
            if connection is not None:
                async with connection.begin_nested():  # what fails here leaves the transaction as it was
                    return await self._append(connection, draft)
            async with self._engine.begin() as own:
                entry = await self._append(own, draft)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            if kind in MUST:
                raise AuditUnavailable(
                    f"This was not done ({kind}), because it could not be written into the audit trail: {why}",
                    "It is tried again. Look after the database: its disk, its locks, and that it is reached.",
                ) from error
            log.error("not in the audit trail", entry=draft.values(), error=why)
            return None
        # whoever keeps the logs elsewhere can prove with them that the trail was not written anew
        log.info("audit", kind=str(kind), link=str(entry.link))
        return entry

    async def started(self, process: str, settings: Settings) -> None:
        """A process of ours begins, with everything that its operator set; passwords and keys are left out."""
        set_ = settings.model_dump(mode="json", include=settings.model_fields_set)
        for name in ("database_url", "redis_url"):
            if set_.get(name):
                set_[name] = redacted_url(set_[name])
        await self.record(
            AuditKind.process_started,
            actor=operator(),
            details={
                "process": process,
                "version": __version__,
                "host": settings.host_name,
                "settings": dict(sorted(set_.items())),
            },
        )

    async def accepted(self, job: Job, because: Reason | None, connection: AsyncConnection) -> None:
        """A new job, in the transaction that saves it."""
        await self.record(
            AuditKind.job_accepted,
            actor=job.trigger.actor,
            repo=job.repo,
            number=job.number,
            job_id=job.id,
            delivery_id=job.trigger.delivery_id,
            decision=because,
            details={
                "event": job.trigger.event,
                "kind": str(job.kind),
                "agent": job.agent,
                "model": job.model,
                "timeout": job.timeout,
                "budget": job.budget,
                "base": job.base,
                "retry_of": job.retry_of,
                "asked": job.instructions,
                "left_out": list(job.left_out),
                "profile": _profile(job),
                "named": job.named.name if job.named else None,
                **({"asked_in": job.asked_in} if job.asked_in != job.number else {}),
                "config": {key: value for key, value in job.config.items() if key not in KEPT},
            },
            connection=connection,
        )

    async def answered(self, job: Job, actor: Actor | str, event: str, connection: AsyncConnection) -> None:
        """A paused job's question was answered by ``event`` (delivery/ordinal), in the same transaction."""
        await self.record(
            AuditKind.job_answered,
            actor=actor,
            repo=job.repo,
            number=job.number,
            job_id=job.id,
            delivery_id=event.rpartition("/")[0] or event,
            details={"question": job.question, "answer": job.answer},
            connection=connection,
        )

    async def ended(self, job: Job, connection: AsyncConnection) -> None:
        """A job's end and what it cost, in the transaction that writes the end."""
        took = (job.finished_at - job.started_at) if job.finished_at and job.started_at else None
        await self.record(
            AuditKind.job_ended,
            actor=CONDUCTOR,
            repo=job.repo,
            number=job.number,
            job_id=job.id,
            delivery_id=job.trigger.delivery_id,
            sha=job.head_sha,
            details={
                "state": str(job.state),
                "phase": job.phase and str(job.phase),
                "failure": job.failure and str(job.failure),
                "message": job.message,
                "cancelled_by": job.cancel_requested_by,
                "attempts": job.fence,
                "seconds": None if took is None else round(took.total_seconds()),
                "branch": job.branch,
                "pull": job.pull_number,
                "blocked": dict(job.blocked),
                "usage": asdict(job.usage),  # its cost: US dollars; null when a price is not known
            },
            connection=connection,
        )

    async def minted(self, scope: Scope, token: InstallationToken) -> None:
        """GitHub made a token; nobody has it yet. Raises AuditUnavailable."""
        details: dict[str, Any] = {
            "installation": scope.installation,
            "repository_ids": "all" if scope.repository is None else [scope.repository],
            "permissions": dict(token.permissions),
            "until": token.expires_at,
        }
        await self.record(AuditKind.token_minted, actor=CONDUCTOR, details=details)

    async def _append(self, connection: AsyncConnection, draft: Entry) -> Entry:
        # the first statement takes the lock, in both databases: the head is read behind it
        taken = await connection.execute(
            update(audit_head)
            .where(audit_head.c.id == 1)
            .values(seq=audit_head.c.seq + 1)
            .returning(audit_head.c.seq, audit_head.c.hash)
        )
        head = taken.one_or_none()
        if head is None:
            raise SQLAlchemyError("the row of audit_head is gone; `conductor audit verify` tells more")
        entry = replace(draft, seq=head.seq, previous=head.hash)
        entry = replace(entry, hash=entry.digest())
        await connection.execute(insert(audit).values(_row(entry)))
        await connection.execute(update(audit_head).where(audit_head.c.id == 1).values(hash=entry.hash))
        return entry

    def _short(self, text: str | None, limit: int) -> str | None:
        return None if text is None else self._clean(text)[:limit]

    def _clean(self, text: str) -> str:
        return _NO_TEXT.sub("\ufffd", self._redactor.text(text))

    def _bounded(self, value: Any) -> Any:
        plain = self._plain(value, MAX_DEPTH)
        text = canonical(plain)
        if len(text) <= MAX_JSON:
            return plain
        beginning = text[: MAX_JSON // 4].decode(errors="ignore")
        return {"too large": len(text), "beginning": beginning}

    def _plain(self, value: Any, depth: int) -> Any:
        """``value`` as JSON without fractions, redacted and bounded."""
        match value:
            case None | bool():
                return value
            case int() if abs(value) <= LARGEST:
                return value
            case float():
                return format(Decimal(repr(value)), "f")
            case datetime() if value.tzinfo is not None:
                return moment(value)
            case Mapping() if depth:
                items = list(value.items())
                found = {self._text(name): self._plain(one, depth - 1) for name, one in items[:MAX_ITEMS]}
                return found | ({"…": f"{len(items) - MAX_ITEMS} more"} if len(items) > MAX_ITEMS else {})
            case list() | tuple() if depth:
                more = [f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else []
                return [self._plain(one, depth - 1) for one in value[:MAX_ITEMS]] + more
            case set() | frozenset():
                return self._plain(sorted(value, key=str), depth)
        return self._text(value)

    def _text(self, value: object) -> str:
        text = self._clean(str(value))
        return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"

    # --- reading

    async def head(self) -> Link:
        """The newest entry as the writers know it: sequence 0 when there is none yet; ``HEAD_GONE``."""
        query = select(audit_head.c.seq, audit_head.c.hash).where(audit_head.c.id == 1)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        return HEAD_GONE if row is None else Link(seq=row.seq, hash=row.hash)

    async def newest(self, wanted: Wanted, limit: int) -> list[Entry | Unreadable]:
        """The last ``limit`` entries that are wanted, the oldest of them first."""
        query = select(audit).where(*_where(wanted)).order_by(audit.c.seq.desc()).limit(limit)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [_entry(row) for row in reversed(rows)]

    async def entries(self, wanted: Wanted, *, after: int = 0) -> AsyncIterator[Entry | Unreadable]:
        """All entries that are wanted, in order, however many: no more than a page is in memory."""
        while True:
            query = (
                select(audit).where(audit.c.seq > after, *_where(wanted)).order_by(audit.c.seq).limit(PAGE)
            )
            async with self._engine.connect() as connection:
                rows = (await connection.execute(query)).all()
            for row in rows:
                yield _entry(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].seq

    async def verify(self, verifier: Verifier) -> None:
        """Put the whole chain through ``verifier``, up to what is written meanwhile."""
        while True:
            async for entry in self.entries(Wanted(), after=verifier.newest.seq if verifier.newest else 0):
                verifier.take(entry)
            last = verifier.newest.seq if verifier.newest else 0
            # read after the entries: whatever it counts was committed before
            head = await self.head()
            if head.seq <= last or not await self._any(last):
                verifier.finish(head)
                return

    async def _any(self, after: int) -> bool:
        async with self._engine.connect() as connection:
            query = select(audit.c.seq).where(audit.c.seq > after).limit(1)
            return (await connection.execute(query)).first() is not None


def operator() -> str:
    """Who uses this program on this host, as an actor: the operating system's word, not the environment's."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        name = str(os.getuid())
    return f"operator:{name}"


def moment(at: datetime) -> str:
    """A moment as it is written: UTC with microseconds, so that texts sort as moments do."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _profile(job: Job) -> dict[str, Any] | None:
    """Which profile it has: the hash tells which version of the file."""
    profile = kept(job)
    if profile is None:
        return None
    digest = hashlib.sha256(profile.text.encode()).hexdigest()
    return {"name": profile.name, "bundled": profile.bundled, "asked": profile.asked, "sha256": digest}


def _where(wanted: Wanted) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        where.append(audit.c.at >= moment(wanted.since))
    if wanted.until is not None:
        where.append(audit.c.at < moment(wanted.until))
    if wanted.kinds:
        where.append(audit.c.kind.in_(sorted(wanted.kinds)))
    for column, value in (
        (audit.c.repo, wanted.repo),
        (audit.c.number, wanted.number),
        (audit.c.actor, wanted.actor),
        (audit.c.job_id, wanted.job_id),
        (audit.c.delivery_id, wanted.delivery_id),
    ):
        if value is not None:
            where.append(column == value)
    return where


def _row(entry: Entry) -> dict[str, Any]:
    values = entry.values()
    for name in ("decision", "details"):
        if values[name] is not None:
            values[name] = canonical(values[name]).decode()
    return values


def _entry(row: Row[Any]) -> Entry | Unreadable:
    values = dict(row._mapping)
    for name in ("decision", "details"):
        text = values[name]
        if text is None:
            continue
        try:
            values[name] = json.loads(text)
            if canonical(values[name]).decode() != text:
                raise ValueError("it is not as it was written")
        except (ValueError, TypeError, RecursionError) as error:
            return Unreadable(seq=values["seq"], why=f"its {name} cannot be read: {str(error)[:200]}")
    return Entry(**values)
