"""Approvals in SQL. A decision is a compare-and-set, written with its entry in the audit trail or not at all.

Of two decisions at once exactly one is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, and_, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bot.audit import CONDUCTOR, Audit
from bot.audit_chain import AuditKind
from bot.model import Actor, Approval, ApprovalKind, ApprovalState, Repo
from bot.policy import Decision
from bot.schema import answers, approvals

#: Which state may follow which. What was approved may turn out to be void before it is used; after that it stays.
NEXT: Mapping[ApprovalState, frozenset[ApprovalState]] = {
    ApprovalState.pending: frozenset(ApprovalState) - {ApprovalState.pending},
    ApprovalState.approved: frozenset({ApprovalState.stale, ApprovalState.withdrawn}),
}
_KINDS = {
    ApprovalState.approved: AuditKind.approval_granted,
    ApprovalState.refused: AuditKind.approval_refused,
}


class ApprovalStore:
    """The table of approvals. Methods raise SQLAlchemy's errors when the database fails."""

    def __init__(self, engine: AsyncEngine, audit: Audit) -> None:
        self.engine = engine
        self._audit = audit

    # --- changes; each raises AuditUnavailable, and changes nothing, when it cannot be written into the audit trail

    async def ask(self, approval: Approval) -> bool:
        """Save a new one. False when its job waits for a decision already, or this very one is there."""
        async with self.engine.begin() as connection:
            if not await self._insert(connection, approval):
                return False
            await self._audit.record(
                AuditKind.approval_asked, actor=CONDUCTOR, **_about(approval), connection=connection
            )
        return True

    async def decide(
        self,
        approval: Approval,
        to: ApprovalState,
        *,
        by: Actor | str,
        because: Decision | None = None,
        words: str = "",
        review_id: int | None = None,
        delivery_id: str | None = None,
    ) -> Approval | None:
        """A person's decision about what is pending, or approved and not used yet. None when it is so no more.

        ``by`` is an Actor, or the name of an operator. Raises ValueError for a state that nobody decides.
        """
        values = {
            "decided_by": by.login if isinstance(by, Actor) else by,
            "decided_by_id": by.id if isinstance(by, Actor) else None,
            "words": words,
            "review_id": review_id,
        }
        async with self.engine.begin() as connection:
            moved = await self._move(connection, approval, to, **values)
            if moved is not None:
                more = {"review": review_id, "words": words}
                if not isinstance(by, Actor):
                    await self._audit.record(
                        AuditKind.override,
                        actor=by,
                        **_about(moved, decided=str(to), **more),
                        connection=connection,
                    )
                await self._audit.record(
                    _KINDS[to],
                    actor=by,
                    delivery_id=delivery_id,
                    decision=because,
                    **_about(moved, **more),
                    connection=connection,
                )
        return moved

    async def end(
        self, approval: Approval, to: ApprovalState, *, why: str, because: Decision | None = None
    ) -> Approval | None:
        """It is over without a person's decision, or that one is void. None when it is not in that state any more."""
        async with self.engine.begin() as connection:
            moved = await self._move(connection, approval, to)
            if moved is not None:
                await self._audit.record(
                    AuditKind.approval_void,
                    actor=CONDUCTOR,
                    decision=because,
                    **_about(moved, why=why, state=str(to)),
                    connection=connection,
                )
        return moved

    async def not_counted(
        self,
        approval: Approval,
        *,
        review_id: int,
        by: Actor,
        why: Collection[str],
        delivery_id: str | None = None,
    ) -> None:
        """Write down that a review decides nothing, and why. Never raises: that nothing follows needs no entry."""
        await self._audit.record(
            AuditKind.review_ignored,
            actor=by,
            delivery_id=delivery_id,
            **_about(approval, review=review_id, why=list(why)),
        )

    async def ask_anew(self, old: Approval, new: Approval) -> bool:
        """Let ``new`` take the place of ``old``, which is stale. False when ``old`` is not pending any more."""
        async with self.engine.begin() as connection:
            if await self._move(connection, old, ApprovalState.stale) is None:
                return False
            if not await self._insert(connection, new):
                return False
            await self._audit.record(
                AuditKind.approval_void,
                actor=CONDUCTOR,
                **_about(old, why=f"the branch moved to {new.sha}", state=str(ApprovalState.stale)),
                connection=connection,
            )
            await self._audit.record(
                AuditKind.approval_asked, actor=CONDUCTOR, **_about(new), connection=connection
            )
        return True

    async def use(self, approval: Approval, *, by: str, because: Decision | None = None) -> Approval | None:
        """The job ``by`` does now what was approved. None when it is not approved (any more). It may be said twice.

        Another job that was checked again takes the place of the one that has used it before.
        """
        async with self.engine.begin() as connection:
            done = await connection.execute(
                update(approvals)
                .where(
                    approvals.c.id == approval.id,
                    approvals.c.state == str(ApprovalState.approved),
                    or_(approvals.c.used_by.is_(None), approvals.c.used_by != by),
                )
                .values(used_at=datetime.now(UTC), used_by=by)
                .returning(*approvals.c)
            )
            row = done.one_or_none()
            if row is None:
                now = await self._one(connection, approval.id)
                return now if now is not None and now.used_by == by else None
            await self._audit.record(
                AuditKind.approval_used,
                actor=CONDUCTOR,
                decision=because,
                **_about(approval, by=by),
                connection=connection,
            )
        return _approval(row)

    async def remind(self, approval: Approval) -> bool:
        """Take on reminding people of it, once. False when it is decided, or somebody has reminded them."""
        return await self._update(
            and_(approvals.c.id == approval.id, _pending(), approvals.c.reminded_at.is_(None)),
            reminded_at=datetime.now(UTC),
        )

    async def settle(self, approval: Approval) -> bool:
        """Whoever has to know its state does: people by the comment, and the job that waits."""
        where = and_(approvals.c.id == approval.id, approvals.c.state == str(approval.state))
        return await self._update(where, settled_at=datetime.now(UTC))

    async def rebased(self, repo_id: int, number: int, at: datetime) -> None:
        """Remember when a pull request got another base branch, the last time."""
        await self._remember(_rebased(repo_id, number), at)

    async def shown_again(self, approval: Approval, at: datetime, *, by: Actor) -> None:
        """Remember when a question was shown as it is once more, because somebody had changed the text.

        Raises AuditUnavailable, and changes nothing, when it cannot be written into the audit trail.
        """
        why = f"{by.login} changed the text, so it was shown again as it is"
        await self._audit.record(AuditKind.approval_asked, actor=CONDUCTOR, **_about(approval, why=why))
        # GitHub tells no fractions of a second: what was submitted within this one may be from before
        await self._remember(_shown_again(approval), at.replace(microsecond=0) + timedelta(seconds=1))

    async def _remember(self, key: str, at: datetime) -> None:
        """The latest moment for a key."""
        insert = self._new(answers).values(key=key, said_at=at)
        later = {"said_at": at}
        async with self.engine.begin() as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["key"], set_=later, where=answers.c.said_at < at)
            )

    async def asks_too(self, job_id: str, actor_id: int, *, by_review: bool = False) -> None:
        """Remember that a person had a say in what a job does, after somebody else had asked for it.

        ``by_review``: by a review that asked for changes and joined it.
        """
        values = {"key": _asks_too(job_id, actor_id, by_review), "said_at": datetime.now(UTC)}
        async with self.engine.begin() as connection:
            await connection.execute(self._new(answers).values(values).on_conflict_do_nothing())

    async def distrust(self, review_id: int) -> None:
        """Remember that somebody else than its author changed the text of a review."""
        values = {"key": _distrusted(review_id), "said_at": datetime.now(UTC)}
        async with self.engine.begin() as connection:
            await connection.execute(self._new(answers).values(values).on_conflict_do_nothing())

    # --- questions

    async def distrusted(self, review_ids: Collection[int]) -> frozenset[int]:
        """Those of the reviews whose text somebody else changed."""
        keys = {_distrusted(review_id): review_id for review_id in review_ids}
        query = select(answers.c.key).where(answers.c.key.in_(list(keys)))
        async with self.engine.connect() as connection:
            return frozenset(keys[row.key] for row in await connection.execute(query))

    async def rebased_at(self, repo_id: int, number: int) -> datetime | None:
        """When a pull request got another base branch, the last time that we know of."""
        return await self._moment(_rebased(repo_id, number))

    async def asked_since(self, approval: Approval) -> datetime:
        """Since when people can read what is asked: reviews from before are about something else."""
        again = await self._moment(_shown_again(approval))
        return max(approval.asked_at, again) if again else approval.asked_at

    async def _moment(self, key: str) -> datetime | None:
        query = select(answers.c.said_at).where(answers.c.key == key)
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    async def who_asks_too(
        self, job_ids: Iterable[str], actor_ids: Collection[int], *, by_review: bool = False
    ) -> frozenset[int]:
        """Those of the accounts that :meth:`asks_too` was told of, for one of these jobs, in this way."""
        keys = {
            _asks_too(job_id, actor_id, by_review): actor_id for job_id in job_ids for actor_id in actor_ids
        }
        query = select(answers.c.key).where(answers.c.key.in_(list(keys)))
        async with self.engine.connect() as connection:
            return frozenset(keys[row.key] for row in await connection.execute(query))

    async def approval(self, approval_id: str) -> Approval | None:
        """The approval, or None."""
        async with self.engine.connect() as connection:
            return await self._one(connection, approval_id)

    async def pending_of(self, job_id: str) -> Approval | None:
        """What the job waits for, if it does."""
        found = await self._all(and_(approvals.c.job_id == job_id, _pending()))
        return found[0] if found else None

    async def of_job(self, job_id: str) -> list[Approval]:
        """All that the job has ever asked, the newest first."""
        return await self._all(approvals.c.job_id == job_id)

    async def on(self, repo_id: int, pull_number: int) -> list[Approval]:
        """All that was ever asked on a pull request, the newest first."""
        return await self._all(_here(repo_id, pull_number))

    async def at(self, repo_id: int, sha: str) -> list[Approval]:
        """All that was ever asked about a commit, the newest first."""
        return await self._all(and_(approvals.c.repo_id == repo_id, approvals.c.sha == sha))

    async def pending_on(self, repo_id: int, pull_number: int) -> list[Approval]:
        """What is asked on a pull request now, the newest first."""
        return await self._all(and_(_here(repo_id, pull_number), _pending()))

    async def pending(self) -> list[Approval]:
        """All that is asked anywhere, the newest first."""
        return await self._all(_pending())

    async def recent(self, limit: int = 50) -> list[Approval]:
        """The newest, whatever became of them."""
        return await self._all(true(), limit)

    async def unsettled(self, before: datetime) -> list[Approval]:
        """What was asked, decided or ended before that moment, and whoever has to know it may not."""
        since = or_(
            and_(_pending(), approvals.c.asked_at < before),
            and_(~_pending(), approvals.c.decided_at < before),
        )
        return await self._all(and_(approvals.c.settled_at.is_(None), since))

    # --- rows

    async def _insert(self, connection: AsyncConnection, approval: Approval) -> bool:
        # a second one that is pending for the same job is a conflict, too: there is an index for that
        done = await connection.execute(
            self._new(approvals).values(_values(approval)).on_conflict_do_nothing()
        )
        return done.rowcount == 1

    def _new(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT: the same words in both dialects, but two classes."""
        return postgresql.insert(table) if self.engine.dialect.name == "postgresql" else sqlite.insert(table)

    async def _move(
        self, connection: AsyncConnection, approval: Approval, to: ApprovalState, **changes: Any
    ) -> Approval | None:
        """To ``to``, only if it still is in the state, and about the commit, that the caller knows."""
        if to not in NEXT.get(approval.state, frozenset()):
            raise ValueError(f"no way from {approval.state} to {to}")
        done = await connection.execute(
            update(approvals)
            .where(
                approvals.c.id == approval.id,
                approvals.c.state == str(approval.state),
                approvals.c.sha == approval.sha,
                approvals.c.used_at.is_(None),
            )
            .values(state=str(to), decided_at=datetime.now(UTC), settled_at=None, **changes)
            .returning(*approvals.c)
        )
        row = done.one_or_none()
        return None if row is None else _approval(row)

    async def _update(self, where: ColumnElement[bool], **values: Any) -> bool:
        async with self.engine.begin() as connection:
            done = await connection.execute(update(approvals).where(where).values(**values))
        return done.rowcount == 1

    async def _one(self, connection: AsyncConnection, approval_id: str) -> Approval | None:
        row = (await connection.execute(select(approvals).where(approvals.c.id == approval_id))).one_or_none()
        return None if row is None else _approval(row)

    async def _all(self, where: ColumnElement[bool], limit: int | None = None) -> list[Approval]:
        query = select(approvals).where(where).order_by(approvals.c.asked_at.desc(), approvals.c.id)
        async with self.engine.connect() as connection:
            return [_approval(row) for row in await connection.execute(query.limit(limit))]


def _distrusted(review_id: int) -> str:
    return f"altered-review:{review_id}"


def _rebased(repo_id: int, number: int) -> str:
    return f"rebased:{repo_id}-{number}"


def _shown_again(approval: Approval) -> str:
    return f"shown-again:{approval.id}"


def _asks_too(job_id: str, actor_id: int, by_review: bool) -> str:
    return f"{'reviewer' if by_review else 'asker'}:{job_id}:{actor_id}"


def _pending() -> ColumnElement[bool]:
    return approvals.c.state == str(ApprovalState.pending)


def _here(repo_id: int, pull_number: int) -> ColumnElement[bool]:
    return and_(approvals.c.repo_id == repo_id, approvals.c.pull_number == pull_number)


def _about(approval: Approval, **details: Any) -> dict[str, Any]:
    """What every entry of the audit trail says about it."""
    return {
        "repo": approval.repo,
        "number": approval.pull_number,
        "job_id": approval.job_id,
        "sha": approval.sha,
        "details": {
            "approval": approval.id,
            "kind": str(approval.kind),
            **({"asked": dict(approval.details)} if approval.details else {}),
            **{name: value for name, value in details.items() if value not in (None, "")},
        },
    }


def _values(approval: Approval) -> dict[str, Any]:
    repo = approval.repo
    return {
        "id": approval.id,
        "kind": str(approval.kind),
        "job_id": approval.job_id,
        "repo_id": repo.id,
        "repo_owner": repo.owner,
        "repo_name": repo.name,
        "installation_id": repo.installation_id,
        "pull_number": approval.pull_number,
        "subject": approval.subject,
        "details": dict(approval.details),
        "sha": approval.sha,
        "state": str(approval.state),
        "asked_at": approval.asked_at,
        "expires_at": approval.expires_at,
    }


def _approval(row: Row[Any]) -> Approval:
    values = row._mapping
    return Approval(
        kind=ApprovalKind(values["kind"]),
        repo=Repo(
            owner=values["repo_owner"],
            name=values["repo_name"],
            id=values["repo_id"],
            installation_id=values["installation_id"],
        ),
        state=ApprovalState(values["state"]),
        **{
            name: values[name]
            for name in (
                "id", "job_id", "pull_number", "subject", "details", "sha", "asked_at", "expires_at", "reminded_at",
                "decided_at", "decided_by", "decided_by_id", "words", "review_id", "settled_at", "used_at",
                "used_by",
            )
        },
    )  # fmt: skip
