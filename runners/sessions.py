"""The sessions of this host's threads: what an agent needs to go on, kept between jobs."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

from bot.errors import InfrastructureError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")


class SessionShelf:
    """One archive for each thread and agent below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def take_down(self, thread_id: str, agent: str, to: Path) -> bool:
        """Copy the thread's session to ``to`` unless it is there already. False: there is none."""
        source = self._path(thread_id, agent)
        if to.exists():
            return True
        if not source.exists():
            return False
        await asyncio.to_thread(_copy, source, to)
        return True

    async def put_back(self, thread_id: str, agent: str, source: Path) -> None:
        """Keep ``source`` as the thread's session, if there is one."""
        if source.exists():
            await asyncio.to_thread(_copy, source, self._path(thread_id, agent))

    def _path(self, thread_id: str, agent: str) -> Path:
        for part in (thread_id, agent):
            if not _NAME.fullmatch(part) or part in (".", ".."):
                raise ValueError(f"{part!r} names no session")
        return self.root / thread_id / f"{agent}.tar"


def _copy(source: Path, to: Path) -> None:
    """Whole or not at all."""
    partial = to.with_name(f".{to.name}.partial")
    try:
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(source, partial)
        partial.chmod(0o600)
        partial.replace(to)
    except OSError as error:
        raise InfrastructureError(
            f"A session cannot be kept: {error}.", "Check the disk space and owner of DATA_DIR."
        ) from error
