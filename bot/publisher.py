"""From what an agent left in its quarantine to a branch and a pull request: checked, sealed, pushed by the host."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import structlog

from bot import repo_config
from bot.api_commits import ApiCommits
from bot.audit import Audit
from bot.audit_chain import AuditKind
from bot.changes import ChangedFile, ChangeRules, Changes, check_changes, held_back, shown
from bot.config import Settings
from bot.endings import over
from bot.errors import ConductorError, JobFailed
from bot.facts import FactFinder
from bot.github import AppIdentity, GitHub
from bot.github_errors import GitHubError
from bot.held_back import MAX_LISTED as MAX_HELD_LISTED
from bot.held_back import MAX_SHOWN, HeldBack
from bot.lfs_publisher import LfsPublisher
from bot.model import Attempt, FailureKind, Job, Phase, Result
from bot.redact import MASK, Redactor
from bot.render import oneline, quiet_line
from bot.report import Reporter
from bot.store import Store
from runners import quarantine
from runners.gateway.desk import Outcome
from runners.quarantine import Person
from runners.signing import SshSigner

log = structlog.get_logger(__name__)

MAX_LISTED = 10  # violations that a message names
KEPT_DAYS = 30  # a patch that was too long for a comment

#: What the token for a push may do, and nothing else.
PUSH_PERMISSIONS = {"contents": "write"}


class Publisher:
    """Publishes one attempt's commit. Every step may be repeated: after a crash the same commit is made again."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        github: GitHub,
        facts: FactFinder,
        reporter: Reporter,
        redactor: Redactor,
        audit: Audit,
        lfs: LfsPublisher,
    ) -> None:
        self._settings = settings
        self._store = store
        self._github = github
        self._facts = facts
        self._reporter = reporter
        self._redactor = redactor
        self._audit = audit
        self._lfs = lfs
        self._signer: SshSigner | None = None

    async def check(self, job: Job, repository: Path, outcome: Outcome) -> bool:
        """Whether there is a change to publish. Raises JobFailed when it must not be published."""
        if outcome.push_error:
            raise JobFailed(
                Phase.publish,
                FailureKind.refused,
                f"What the agent made could not be taken over: {oneline(outcome.push_error, 300)}",
                "Ask for a smaller change, and keep large or generated files out of the repository.",
            )
        if not outcome.head or not job.base_sha:
            return False
        changes = await quarantine.inspect(repository, job.base_sha, outcome.head)
        if changes.empty:
            return False
        violations = check_changes(changes, self._rules(job))
        if violations:
            listed = "\n".join(f"- {violation.message}" for violation in violations[:MAX_LISTED])
            more = len(violations) - MAX_LISTED
            raise JobFailed(
                Phase.publish,
                FailureKind.refused,
                "Nothing was pushed, because a person must look at this first:\n\n"
                f"{listed}" + (f"\n- … and {more} more" if more > 0 else ""),
                "Say in a new `/agent` command what to leave out, or make that part by hand.",
            )
        await self._search(job, repository, changes)
        await self._lfs.check(job, repository, base_sha=job.base_sha, head=outcome.head)
        return True

    async def publish(
        self,
        job: Job,
        attempt: Attempt,
        repository: Path,
        outcome: Outcome,
        result: Result,
        *,
        granted: Collection[str] = (),
        before: Callable[[Job], Awaitable[None]] | None = None,
    ) -> Job:
        """Make one commit of ours of the agent's tree, push it, open the pull request. Returns the changed job.

        What only people may change is left out and noted in ``held_back``, but for the paths ``granted`` by one; when
        that is all, nothing is pushed. ``before`` is called with the job as it is noted, before anything leaves.
        """
        base = job.base_sha
        if not (base and job.branch and outcome.head):
            raise ValueError("the job was not prepared")
        tree, held = await self._divide(job, repository, base, outcome.head, granted)
        if held is not None:
            job = job.evolve(held_back=held.dump())
            await self._store.note(job.id, fence=attempt.fence, held_back=job.held_back)
            await self._record(AuditKind.held_back, job, files=held.files, count=held.count)
        if before is not None:
            await before(job)
        if held is not None and tree == await quarantine.tree_of(repository, base):
            return job
        await self._store.check_fence(job.id, attempt.fence)
        await self._lfs.publish(job, repository, base_sha=base, tree=tree)
        job = await self._land(
            job, attempt, repository, tree=tree, message=self._message(job, result), column="head_sha"
        )
        return await self.show(job, attempt, title=result.title or job.title)

    async def show(self, job: Job, attempt: Attempt, *, title: str) -> Job:
        """Let people see what was pushed, in a pull request that is no draft. Returns the changed job."""
        if job.own_branch and job.pull_number is None:
            await self._store.check_fence(job.id, attempt.fence)
            number = await self.open_pull(job, title=title)
            job = job.evolve(pull_number=number)
            await self._store.note(job.id, fence=attempt.fence, pull_number=job.pull_number)
        elif job.approval_id or job.marker_sha:
            number = job.pull_number or job.number
            await self._reporter.ready(job, number, title=title, closes=self._settings.close_issues)
        return job

    async def mark(self, job: Job, attempt: Attempt, repository: Path, *, title: str, words: str) -> Job:
        """Put an empty commit on the job's branch, for reviews to be bound to. Returns the changed job."""
        tree = await quarantine.tree_of(repository, _parent(job))
        digest = hashlib.sha256(words.encode()).hexdigest()
        message = self._redactor.text(
            f"{quiet_line(oneline(title, 100))}\n\nNothing is changed here: a review of this commit decides.\n"
            f"For #{job.number}, by {job.agent} (job {job.id}).\nSHA-256 of what is asked: {digest}"
        )
        return await self._land(job, attempt, repository, tree=tree, message=message, column="marker_sha")

    async def describe(self, job: Job, number: int, *, title: str) -> None:
        """Let a draft of ours tell what ``job`` says now. A text that stays as it was is no reason to fail."""
        try:
            await self._reporter.describe(job, number, title=title, closes=self._settings.close_issues)
        except GitHubError as error:
            log.warning("pull request not described", error=str(error), **job.log_context())

    async def release(
        self,
        job: Job,
        attempt: Attempt,
        repository: Path,
        head: str,
        *,
        by: str,
        of: Job | None = None,
    ) -> Job:
        """Push the rest of a change whose commit is ``head``, after ``by`` approved it. Returns the changed job.

        ``of``: the job whose change it is, and whose words the pull request's text are.
        """
        tree = await quarantine.tree_of(repository, head)
        message = self._redactor.text(
            f"{quiet_line(oneline(job.title, 80))}: the protected part\n\n"
            f"Approved by {by}. For #{job.number} (job {job.id})."
        )
        job = await self._land(job, attempt, repository, tree=tree, message=message, column="head_sha")
        await self.show_release(job, of=of)
        return job

    async def show_release(self, job: Job, *, of: Job | None) -> None:
        """Let people see what :meth:`release` pushed."""
        says = of.evolve(held_back="") if of is not None else None
        closes = self._settings.close_issues
        await self._reporter.ready(job, job.number, title=job.title, closes=closes, says=says)

    async def left(self, job: Job, sha: str, *, now: str) -> None:
        """A job's check run on ``sha`` is told no more: its branch is at ``now``."""
        await self._reporter.left(job, sha, now=now)

    async def check_open(self, job: Job, sha: str | None = None) -> None:
        """Make sure that the pull request of the job's branch, if there is one, is open. Raises JobFailed (conflict).

        ``sha``: what is to be pushed; a pull request that was closed after just that was pushed to it is as good.
        """
        number = job.pull_number if job.own_branch else job.number
        if number is None:
            return
        pull = await self._facts.pull(job.repo, number)
        if not pull.open and pull.head_sha != sha:
            raise over(Phase.publish, merged=pull.merged, ours=job.own_branch)

    async def open_pull(self, job: Job, *, title: str, draft: bool = False) -> int:
        """Open the pull request of the job's branch, or find the one that is there. Returns its number."""
        number = await self._reporter.pull_request(
            job, title=title, base=job.base or "", closes=self._settings.close_issues, draft=draft
        )
        await self._record(AuditKind.pull_opened, job, pull=number, base=job.base)
        return number

    async def keep_large_files(self, job: Job, repository: Path) -> None:
        """Keep what of an attempt's LFS objects may be wanted later; its folder goes now."""
        await self._lfs.keep(job, repository)

    # --- what must not leave

    def _rules(self, job: Job) -> ChangeRules:
        return ChangeRules.of(self._settings, protected=repo_config.of(job).protected)

    async def _search(self, job: Job, repository: Path, changes: Changes) -> None:
        """Look for secrets in everything that would leave. Raises JobFailed."""
        if job.own_branch and self._redactor.text(job.branch or "") != job.branch:
            raise _secret("the branch's name", "Take it out of the issue's title")
        for file in changes.files:
            if self._redactor.holds_secret(file.path):
                raise _secret(f"the name of the file `{shown(self._redactor.text(file.path))}`")
        added = quarantine.added_text(repository, changes.base_sha, changes.head_sha)
        async with aclosing(added):
            async for path, text in added:
                # a large text takes a while: the loop has other things to do meanwhile
                if await asyncio.to_thread(self._redactor.holds_secret, text):
                    raise _secret(f"`{shown(path)}`")

    async def _divide(
        self, job: Job, repository: Path, base_sha: str, head: str, granted: Collection[str]
    ) -> tuple[str, HeldBack | None]:
        """The tree that is pushed, and what of the agent's is not in it."""
        whole = await quarantine.tree_of(repository, head)
        changes = await quarantine.inspect(repository, base_sha, head)
        files = [
            file for file in held_back(changes.files, self._rules(job).protected) if file.path not in granted
        ]
        if not files:
            return whole, None
        tree = await quarantine.without(repository, base_sha, head, {file.path for file in files})
        log.info("held back", files=len(files), **job.log_context())
        return tree, await self._patch(job, repository, tree, whole, files)

    async def _patch(
        self, job: Job, repository: Path, tree: str, whole: str, files: Sequence[ChangedFile]
    ) -> HeldBack:
        """What makes the agent's tree of the pushed one, for a person to read and apply."""
        folder = self._settings.data_dir.absolute() / "held-back"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(_remove_old, folder)
        target = folder / f"{job.id}.patch"
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        redacted = self._redactor.stream()
        shown_text, altered, size = "", False, 0

        def write(file: TextIO, text: str) -> None:
            nonlocal shown_text, altered, size
            safe = text.replace("<!-- agent-conductor:", "<!- agent-conductor:")
            altered = altered or safe != text or MASK in text or "\ufffd" in text or "\r" in text
            size += len(safe)
            file.write(safe)
            if size <= MAX_SHOWN:
                shown_text += safe

        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            async with aclosing(quarantine.patch(repository, tree, whole)) as chunks:
                async for chunk in chunks:
                    write(file, redacted.feed(decoder.decode(chunk)))
            write(file, redacted.feed(decoder.decode(b"", final=True)))
            write(file, redacted.flush())
        fits = size <= MAX_SHOWN
        if fits:
            target.unlink()
        return HeldBack(
            files=[shown(self._redactor.text(file.path)) for file in files[:MAX_HELD_LISTED]],
            count=len(files),
            patch=shown_text.rstrip("\n") if fits else "",
            host="" if fits else self._settings.host_name,
            stored="" if fits else f"held-back/{target.name}",
            altered=altered,
            base_sha=job.base_sha or "",
        )

    # --- the two ways out

    async def _land(
        self, job: Job, attempt: Attempt, repository: Path, *, tree: str, message: str, column: str
    ) -> Job:
        """Put one commit of ours of ``tree`` on the branch; its SHA is noted in ``column`` before the branch moves."""
        if self._settings.commit_signing == "api":
            return await self._land_by_api(job, attempt, repository, tree, message, column)
        return await self._land_by_push(job, attempt, repository, tree, message, column)

    async def _land_by_push(
        self, job: Job, attempt: Attempt, repository: Path, tree: str, message: str, column: str
    ) -> Job:
        """Make the commit here, and push exactly that."""
        identity = await self._github.identity()
        bot = Person(name=identity.login, email=identity.email)
        signer = None
        if self._settings.commit_signing == "ssh":
            signer = await self.signer()
        parent = _parent(job)
        sha = await quarantine.seal(
            repository,
            parent,
            parent,
            author=bot,
            committer=Person(name=signer.name, email=signer.email) if signer else bot,
            message=message,
            co_author=self._asker(job, identity),
            moment=job.created_at,
            tree=tree,
            signer=signer,
        )
        # written before the push: after a crash we know which commit to look for
        await self._store.note(job.id, fence=attempt.fence, summary=job.summary, **{column: sha})
        try:
            await self.check_open(job, sha)
            await self._push(job, attempt, repository, sha)
        except JobFailed:
            # refused for good: nobody is to look for that commit
            await self._store.note(job.id, fence=attempt.fence, **{column: getattr(job, column)})
            raise
        return job.evolve(**{column: sha})

    async def _land_by_api(
        self, job: Job, attempt: Attempt, repository: Path, tree: str, message: str, column: str
    ) -> Job:
        """Have GitHub make and sign the commit, then move the branch to it."""
        commits, branch = ApiCommits(self._github), job.branch or ""
        # we may have been here before a crash or an unclear answer; another try would make another commit
        stored = await self._store.job(job.id)
        noted = getattr(stored, column) if stored else None
        identity = await self._github.identity()
        message = quarantine.with_co_author(message, self._asker(job, identity))
        # the one that is noted may also be an earlier one, which this one comes after
        if (
            noted
            and await commits.branch(job.repo, branch) == noted
            and await commits.is_it(job.repo, noted, tree=tree, message=message)
        ):
            return job.evolve(**{column: noted})
        await self._store.check_fence(job.id, attempt.fence)
        sha = await commits.commit(
            job.repo,
            repository,
            base_sha=_parent(job),
            tree=tree,
            message=message,
        )
        await self._store.note(job.id, fence=attempt.fence, summary=job.summary, **{column: sha})
        expected = _expected(job)
        try:
            await self.check_open(job, sha)
            async with self._recorded(job.evolve(**{column: sha}), by="api", expected=expected):
                # as late as possible: a newer attempt makes this one void
                await self._store.check_fence(job.id, attempt.fence)
                await commits.move(job.repo, branch, sha, expected=expected)
        except JobFailed:
            await self._store.note(job.id, fence=attempt.fence, **{column: getattr(job, column)})
            raise
        return job.evolve(**{column: sha})

    async def signer(self) -> SshSigner | None:
        """What signs the commits, made at the first call; None when the settings want no key.

        Raises ConfigurationError: ask once at the start.
        """
        if self._settings.commit_signing == "ssh" and self._signer is None:
            self._signer = await SshSigner.create(self._settings)
        return self._signer

    def _asker(self, job: Job, identity: AppIdentity) -> Person:
        asker = job.trigger.actor
        # https://docs.github.com/en/account-and-profile/reference/email-addresses-reference
        domain = identity.email.rpartition("@")[2]
        return Person(name=asker.login, email=f"{asker.id}+{asker.login}@{domain}")

    async def _push(self, job: Job, attempt: Attempt, repository: Path, sha: str) -> None:
        if not job.branch:
            raise ValueError("the job has no branch")
        token = await self._github.token(
            job.repo.installation_id,
            repository_id=job.repo.id,
            permissions=PUSH_PERMISSIONS,
            fresh=True,
        )
        try:
            expected = _expected(job)
            async with self._recorded(job.evolve(head_sha=sha), by="git", expected=expected):
                # as late as possible: a newer attempt makes this one void
                await self._store.check_fence(job.id, attempt.fence)
                await quarantine.push(
                    repository,
                    url=f"{self._settings.github_url}/{job.repo.full_name}.git",
                    token=token.value,
                    sha=sha,
                    branch=job.branch,
                    expected=expected,
                )
        finally:
            try:
                await self._github.revoke(token)
            except ConductorError as error:
                log.warning("a token was not revoked; it ends by itself within the hour", error=str(error))
            else:
                await self._record(AuditKind.token_revoked, job, permissions=dict(PUSH_PERMISSIONS))

    @asynccontextmanager
    async def _recorded(self, job: Job, *, by: str, expected: str | None) -> AsyncIterator[None]:
        """A push: written down before anything leaves (raises AuditUnavailable), and again when it fails."""
        # the branch moves on from `expected`, or is made: nothing is ever overwritten
        await self._record(AuditKind.push, job, by=by, expected=expected, forced=False)
        try:
            yield
        except ConductorError as error:
            await self._record(AuditKind.push_failed, job, why=error.message)
            raise

    async def _record(self, kind: AuditKind, job: Job, **details: Any) -> None:
        await self._audit.of_job(kind, job, sha=job.head_sha, **{"branch": job.branch} | details)

    def _message(self, job: Job, result: Result) -> str:
        title = quiet_line(oneline(result.title or job.title, 100))
        return self._redactor.text(f"{title}\n\nFor #{job.number}, by {job.agent} (job {job.id}).")


def _parent(job: Job) -> str:
    """What the next commit on the job's branch is put on top of."""
    parent = job.marker_sha or job.base_sha
    if parent is None:
        raise ValueError("the job was not prepared")
    return parent


def _expected(job: Job) -> str | None:
    """Where the job's branch must be for that; None: it is not there yet."""
    return job.marker_sha or (None if job.own_branch else job.base_sha)


def _secret(where: str, todo: str = "Take it out of the task or the repository") -> JobFailed:
    return JobFailed(
        Phase.publish,
        FailureKind.refused,
        f"Nothing was pushed: {where} contains what looks like a secret (key, token or password).",
        f"{todo}, then write `/agent retry`.",
    )


def _remove_old(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86400
    for file in folder.glob("*.patch"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()
