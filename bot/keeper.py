"""Keeps what a thread needs to go on: the agent's session after every turn, unfinished work, words not told yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import structlog

from bot.errors import ConductorError, InfrastructureError
from bot.model import Job, Result
from bot.shelf import Shelf
from runners import work
from runners.gateway.desk import Desk

log = structlog.get_logger(__name__)


class Keeper:
    """Between the desks of attempts and the shelf of their threads."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def bring_session(self, job: Job, desk: Desk) -> bool:
        """Lay the thread's session on the desk; False when its agent has none."""
        if desk.session_tar.exists():
            return True
        return await self._shelf.fetch(job.thread_id, _session(job), desk.session_tar)

    async def keep_session(self, job: Job, desk: Desk) -> None:
        """Keep the session that the turn left. One that cannot be kept costs the next job its memory, no more."""
        if desk.session_tar.exists():
            await self._try_to_keep(job, _session(job), desk.session_tar)

    async def bring_work(
        self, job: Job, desk: Desk, mirror: Path, *, origins: Sequence[str]
    ) -> tuple[str, str] | None:
        """Lay unfinished work on the desk: that of the first of the jobs ``origins`` that left some.

        Returns its base and its head, or None when there is none that fits this repository as it is now.
        """
        for origin in origins:
            if await self._shelf.fetch(job.thread_id, _work(origin), desk.work):
                found = await work.describe(desk.work)
                base = await work.began_at(found, mirror) if found is not None else None
                if found is not None and base is not None:
                    return base, found.head
                log.warning("unfinished work does not fit any more", origin=origin)
                desk.work.unlink(missing_ok=True)
        return None

    async def keep_work(self, job: Job, desk: Desk, *, finished: bool) -> bool:
        """Keep what the attempt has pushed to its quarantine and nobody published; False when there is nothing."""
        if not job.base_sha or not desk.quarantine.exists():
            return False
        bundle = desk.directory / "kept.bundle"
        try:
            if not await work.pack(desk.quarantine, job.base_sha, bundle, finished=finished):
                return False
            return await self._try_to_keep(job, _work(job.id), bundle)
        except InfrastructureError as error:
            log.warning("the work in progress is not kept", error=str(error))
            return False
        finally:
            bundle.unlink(missing_ok=True)

    async def keep_held_back(self, job: Job, desk: Desk) -> bool:
        """Keep the whole of a change of which a part was held back, until a reviewer decides about that part."""
        if not job.base_sha:
            return False
        bundle = desk.directory / "held.bundle"
        try:
            packed = await work.pack(desk.quarantine, job.base_sha, bundle, finished=True)
            return packed and await self._try_to_keep(job, _held_back(job.id), bundle)
        except InfrastructureError as error:
            log.warning("what was held back is not kept", error=str(error))
            return False
        finally:
            bundle.unlink(missing_ok=True)

    async def has_held_back(self, job: Job) -> bool:
        """Whether the whole of the job's change is kept, so that the rest can be pushed when somebody approves it."""
        return await self._shelf.has(job.thread_id, _held_back(job.id))

    async def bring_held_back(self, job: Job, origin: str, repository: Path) -> str | None:
        """Take the whole change of the job ``origin`` into ``repository``; its newest commit, or None: it is gone."""
        bundle = repository.with_name("held.bundle")
        try:
            if not await self._shelf.fetch(job.thread_id, _held_back(origin), bundle):
                return None
            return await work.unpack(bundle, repository)
        finally:
            bundle.unlink(missing_ok=True)

    async def keep_words(self, job: Job, desk: Desk, result: Result) -> None:
        """Keep what the agent says until it is told: this host may be lost right after the push."""
        words = desk.directory / "words.json"
        try:
            words.write_bytes(orjson.dumps(asdict(result)))
            await self._try_to_keep(job, _words(job.id), words)
        except OSError as error:
            log.warning("the agent's words are not kept", error=str(error))
        finally:
            words.unlink(missing_ok=True)

    async def bring_words(self, job: Job, *, scratch: Path) -> Result | None:
        """What :meth:`keep_words` kept; None when that is nothing. ``scratch``: a folder to read it in."""
        with TemporaryDirectory(dir=scratch) as folder:
            words = Path(folder) / "words.json"
            if not await self._shelf.fetch(job.thread_id, _words(job.id), words):
                return None
            return Result(**orjson.loads(words.read_bytes()))

    async def forget_work(self, job: Job) -> None:
        """The job's work is published, and told: nobody goes on from what it was before."""
        for name in (_work(job.id), _words(job.id)):
            await self._shelf.remove(job.thread_id, name)

    async def _try_to_keep(self, job: Job, name: str, source: Path) -> bool:
        try:
            await self._shelf.keep(job.thread_id, name, source)
        except ConductorError as error:
            log.warning("not kept", name=name, error=str(error))
            return False
        return True


def _session(job: Job) -> str:
    return f"{job.agent}.session"


def _held_back(job_id: str) -> str:
    return f"{job_id}.held-back"


def _words(job_id: str) -> str:
    return f"{job_id}.words"


def _work(job_id: str) -> str:
    return f"{job_id}.work"
