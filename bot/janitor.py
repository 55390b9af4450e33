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
from bot.ports import Runner
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
            try:
                await self.once()
                if number % IMAGES_EVERY == 0:
                    await self._images.collect()
            except (ConductorError, SQLAlchemyError, OSError) as error:
                log.warning("the janitor was interrupted", error=str(error).split("\n")[0])
            await asyncio.sleep(INTERVAL)

    async def once(self) -> list[str]:
        """One round; returns the ids of the attempts whose traces were removed."""
        # what lies there is listed before who lives is asked: an attempt that starts in between is spared
        handles = {handle.attempt_id: handle for handle in await self._runner.list()}
        folders = {path.name: path for path in await asyncio.to_thread(self._folders)}
        borrowers = await asyncio.to_thread(self._mirrors.borrowers)
        alive = {attempt.id for attempt in await self._store.attempts_of(self._host)} | set(self._owned())
        alive |= set(self._images.running)
        stray = sorted((set(handles) | set(folders) | borrowers) - alive)
        for attempt_id in stray:
            log.warning("removing what an attempt left behind", attempt=attempt_id)
            if attempt_id in handles:
                await self._runner.stop(handles[attempt_id], GRACE)
                await self._runner.remove(handles[attempt_id])
            if attempt_id in folders:
                await asyncio.to_thread(shutil.rmtree, folders[attempt_id], ignore_errors=True)
            await asyncio.to_thread(self._mirrors.release, attempt_id)
        return stray

    def _folders(self) -> list[Path]:
        return [path for path in self._folder.glob("*") if path.is_dir() and not path.is_symlink()]
