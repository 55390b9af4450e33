"""Publishes the large files of a change: what its LFS pointers name goes to GitHub before the commit does."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

from bot import repo_config
from bot.audit import Audit
from bot.audit_chain import AuditKind
from bot.changes import shown, size_text
from bot.errors import ConductorError, GitHubUnavailable, JobFailed
from bot.github import GitHub
from bot.lfs import MAX_POINTER, Pointer, parse_pointer
from bot.model import FailureKind, Job, Phase
from bot.redact import Redactor
from runners import quarantine
from runners.lfs_remote import LfsError, LfsRemote
from runners.lfs_store import ObjectCache, staged

log = structlog.get_logger(__name__)

#: Bytes of a new object that is searched for secrets; larger ones are media, models and archives.
MAX_SEARCHED = 2**20


class LfsPublisher:
    """Checks and brings the LFS objects of changes, where a repository's configuration has LFS on."""

    def __init__(
        self, *, github: GitHub, remote: LfsRemote, cache: ObjectCache, redactor: Redactor, audit: Audit
    ) -> None:
        self._audit = audit
        self._github = github
        self._cache = cache
        self._remote = remote
        self._redactor = redactor

    async def check(self, job: Job, repository: Path, *, base_sha: str, head: str) -> None:
        """Raise JobFailed when a pointer in the change has no content anywhere, or one with a secret in it."""
        if not _on(job):
            return
        pointers = await self._pointers(repository, base_sha, head)
        elsewhere = {}
        for pointer, path in pointers.items():
            found = self._file(job, repository, pointer.oid)
            if found is None:
                elsewhere[pointer] = path
                continue
            size = found.stat().st_size
            if size != pointer.size:
                raise _refused(
                    f"The Git LFS pointer {shown(path)} says {size_text(pointer.size)}, and its content has "
                    f"{size_text(size)}.",
                    "Let git-lfs write the pointer: `git add` of the file itself.",
                )
            if size <= MAX_SEARCHED and await asyncio.to_thread(self._holds_secret, found):
                raise _refused(
                    f"Nothing was pushed: the large file `{shown(path)}` contains what looks like a secret (key, "
                    "token or password).",
                    "Take it out of the task or the repository, then write `/agent retry`.",
                )
        if elsewhere:
            await self._check_elsewhere(job, elsewhere)

    async def publish(self, job: Job, repository: Path, *, base_sha: str, tree: str) -> None:
        """Bring the new objects that the change from ``base_sha`` to ``tree`` refers to; safe to repeat.

        Raises JobFailed when GitHub does not take them, GitHubUnavailable when it does not answer, AuditUnavailable.
        """
        if not _on(job):
            return
        pointers = await self._pointers(repository, base_sha, tree)
        new = [pointer for pointer in pointers if self._file(job, repository, pointer.oid)]
        if not new:
            return
        token = await self._github.token(
            job.repo.installation_id,
            repository_id=job.repo.id,
            permissions={"contents": "write"},
            fresh=True,
        )
        try:
            await self._audit.of_job(AuditKind.lfs_upload, job, objects=[pointer.oid for pointer in new])
            wanted = await self._remote.batch("upload", job.repo.full_name, new, token=token.value)
            for pointer in new:
                answered, path = wanted.get(pointer.oid), self._file(job, repository, pointer.oid)
                if answered is None or path is None:
                    raise LfsError("GitHub's answer about LFS objects leaves one out.")
                if answered.error is not None:
                    said = " ".join(answered.error.message.split())[:300]
                    raise LfsError(
                        f"GitHub does not take the large file {shown(pointers[pointer])}: {said}",
                        status=answered.error.code,
                    )
                await self._remote.upload(answered, path)
        except LfsError as error:
            raise _meaning(error) from error
        finally:
            try:
                await self._github.revoke(token)
            except ConductorError as error:
                log.warning("a token was not revoked; it ends by itself within the hour", error=str(error))
            else:
                await self._audit.of_job(AuditKind.token_revoked, job, permissions={"contents": "write"})
        log.info("large files published", count=len(new), **job.log_context())

    async def keep(self, job: Job, repository: Path) -> None:
        """Keep the attempt's new objects on this host, for a job that goes on with its work; safe to repeat."""
        if not _on(job):
            return
        try:
            await self._cache.adopt(staged(repository), job.repo.installation_id, job.repo.id)
        except OSError as error:
            log.warning("large files were not kept", error=str(error), **job.log_context())

    def _file(self, job: Job, repository: Path, oid: str) -> Path | None:
        """The object, when this attempt brought it or this host has it from before."""
        cached = self._cache.folder(job.repo.installation_id, job.repo.id)
        return staged(repository).find(oid) or cached.find(oid)

    async def _pointers(self, repository: Path, old: str, new: str) -> Mapping[Pointer, str]:
        """The pointers that a change adds, with one path of each."""
        entries = {
            entry.oid: entry.path
            for entry in await quarantine.difference(repository, old, new)
            if stat.S_ISREG(entry.mode) and 0 < entry.size <= MAX_POINTER
        }
        contents = await quarantine.small_blobs(repository, list(entries))
        found = {oid: parse_pointer(content) for oid, content in contents.items()}
        return {pointer: entries[oid] for oid, pointer in found.items() if pointer is not None}

    async def _check_elsewhere(self, job: Job, pointers: Mapping[Pointer, str]) -> None:
        token = await self._github.token(
            job.repo.installation_id, repository_id=job.repo.id, permissions={"contents": "read"}
        )
        try:
            known = await self._remote.batch(
                "download", job.repo.full_name, list(pointers), token=token.value
            )
        except LfsError as error:
            raise _meaning(error) from error
        for pointer, path in pointers.items():
            answered = known.get(pointer.oid)
            if answered is None or answered.action("download") is None:
                raise _refused(
                    f"{shown(path)} is a Git LFS pointer whose content ({pointer.oid[:12]}…) neither GitHub nor the "
                    "agent's container has.",
                    "Ask for the file itself, not for its pointer; `git lfs` must be used as the repository does.",
                )

    def _holds_secret(self, path: Path) -> bool:
        return self._redactor.holds_secret(path.read_bytes().decode("utf-8", "replace"))


def _on(job: Job) -> bool:
    return repo_config.of(job).checkout.lfs


def _refused(message: str, hint: str) -> JobFailed:
    return JobFailed(Phase.publish, FailureKind.refused, message, hint)


def _meaning(error: LfsError) -> ConductorError:
    if error.passing:
        return GitHubUnavailable(error.message, error.hint)
    return _refused(error.message, error.hint or "Correct what GitHub names, then write `/agent retry`.")
