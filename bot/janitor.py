"""What nobody owns any more on this host: containers, volumes and folders of attempts that are over; old images."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection
from itertools import count
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.errors import ConductorError
from bot.ports import Handle, Runner
from bot.store import Store
from runners.mirrors import Mirrors
from runners.provision import Images

log = structlog.get_logger(__name__)

INTERVAL = 60.0  # seconds
IMAGES_EVERY = 15  # rounds: images are unused for days
GRACE = 5.0  # seconds for a stray container to end


class Janitor:
    """Removes by label and by name whatever a kill, a fault or a lost race left behind.

    ``owned`` tells the ids of the attempts that this process carries out now; the containers with which ``images``
    are made belong to nobody's attempt and are spared as well.
    """

    def __init__(
        self,
        *,
        store: Store,
        host: str,
        runner: Runner,
        images: Images,
        mirrors: Mirrors,
        folder: Path,
        owned: Callable[[], Collection[str]],
    ) -> None:
        self._images = images
        self._store = store
        self._host = host
        self._runner = runner
        self._mirrors = mirrors
        self._folder = folder
        self._owned = owned

    async def run(self) -> None:
        """Go round for ever."""
        for number in count():
            for part in (self.once, *((self._images.collect,) if number % IMAGES_EVERY == 0 else ())):
                try:
                    await part()
                except (ConductorError, SQLAlchemyError, OSError) as error:
                    log.warning("the janitor was interrupted", error=str(error).split("\n")[0])
            await asyncio.sleep(INTERVAL)

    async def once(self) -> list[str]:
        """One round; returns the ids of the attempts whose traces were removed.

        One that cannot be removed is left for the next round and keeps no other one.
        """
        # what lies there is listed before who lives is asked: an attempt that starts in between is spared
        handles = {handle.attempt_id: handle for handle in await self._runner.list()}
        folders = {path.name: path for path in await asyncio.to_thread(self._folders)}
        borrowers = await asyncio.to_thread(self._mirrors.borrowers)
        alive = {attempt.id for attempt in await self._store.attempts_of(self._host)} | set(self._owned())
        alive |= set(self._images.running)
        removed = []
        for attempt_id in sorted((set(handles) | set(folders) | borrowers) - alive):
            log.warning("removing what an attempt left behind", attempt=attempt_id)
            try:
                await self._remove(attempt_id, handles.get(attempt_id), folders.get(attempt_id))
            except (ConductorError, OSError) as error:
                log.warning("not removed", attempt=attempt_id, error=str(error).split("\n")[0])
            else:
                removed.append(attempt_id)
        return removed

    async def _remove(self, attempt_id: str, handle: Handle | None, folder: Path | None) -> None:
        if handle is not None:
            await self._runner.stop(handle, GRACE)
            await self._runner.remove(handle)
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(self._mirrors.release, attempt_id)

    def _folders(self) -> list[Path]:
        return [path for path in self._folder.glob("*") if path.is_dir() and not path.is_symlink()]
