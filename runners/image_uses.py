"""When each image of this host was last used: one empty file for each, whose time says it."""

from __future__ import annotations

import hashlib
from pathlib import Path


class ImageUses:
    """The notes in ``folder``. Any number of processes of this host may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, name: str) -> None:
        """The image ``name`` is used now, or about to be. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file(name).touch()

    def last(self, name: str) -> float | None:
        """When it was last used, in seconds since the epoch; None when that is not known."""
        try:
            return self._file(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def forget(self, name: str) -> None:
        """The image is gone."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]
