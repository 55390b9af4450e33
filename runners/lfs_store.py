"""Git LFS objects on this host's disk: what was fetched from GitHub, and what attempts made.

Every file is named by the SHA-256 of its content and comes into place only after that was checked. Two kinds:

    <data>/lfs/<installation>/<repo id>/<2 digits>/<oid>    a repository's objects, the longest unused ones go
    <attempt>/lfs/<2 digits>/<oid>                          new ones of an attempt; at its end they join the others
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol

from bot.changes import size_text
from bot.errors import ConductorError
from bot.lfs import valid_oid

#: The cache is looked through whenever this part of its limit was added.
SWEEP_EVERY = 20
#: Seconds after which an object that is still coming was left behind by a killed process.
STALE = 86_400.0


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class ObjectRefused(ConductorError):
    """An object is not what it should be, or there is no room for it. Nothing of it was kept."""


class ObjectFolder:
    """A folder of objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, oid: str) -> Path | None:
        """The object's file, which counts as used now; None when it is not here."""
        path = self._path(oid)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def size(self) -> int:
        """Bytes of all objects, those that are just coming included; at least a block for each."""
        total = 0
        for file in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += max(file.lstat().st_size, 4096)
        return total

    async def take(self, oid: str, size: int | None, chunks: AsyncIterator[bytes], *, limit: int) -> Path:
        """Write an object down; the same again changes nothing. ``size`` is checked where it is known.

        Raises ObjectRefused when it is longer than ``limit`` or has another content than its name says.
        """
        target = self._path(oid)
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
        digest, length = hashlib.sha256(), 0
        most = limit if size is None else min(size, limit)
        handle, name = tempfile.mkstemp(prefix="incoming-", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    length += len(chunk)
                    if length > most:
                        raise ObjectRefused(f"The object {oid[:12]} is longer than {size_text(most)}.")
                    await asyncio.to_thread(_write, file, digest, chunk)
            if digest.hexdigest() != oid or (size is not None and length != size):
                raise ObjectRefused(f"The object {oid[:12]} has another content than its name says.")
            Path(name).rename(target)
        finally:
            Path(name).unlink(missing_ok=True)
        return target

    def _path(self, oid: str) -> Path:
        if not valid_oid(oid):
            raise ObjectRefused(f"{oid[:80]!a} is no object's id.")
        return self.folder / oid[:2] / oid


def _write(file: BinaryIO, digest: _Digest, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


class ObjectCache:
    """What was fetched and made for the repositories of this host, below ``root``; at most ``limit`` bytes or so.

    Any number of processes may share it. An object is never shown to another repository than the one it came from.
    """

    def __init__(self, root: Path, *, limit: int) -> None:
        self._root = root.absolute()
        self._limit = limit
        self._since_sweep = limit  # the first one looks

    def folder(self, installation_id: int, repo_id: int) -> ObjectFolder:
        """The objects of one repository."""
        return ObjectFolder(self._root / str(int(installation_id)) / str(int(repo_id)))

    async def adopt(self, folder: ObjectFolder, installation_id: int, repo_id: int) -> None:
        """Take over an attempt's own objects, for the next one that goes on with its work. Raises OSError."""
        target = self.folder(installation_id, repo_id).folder

        def move() -> int:
            size = 0
            for path in folder.folder.glob("??/*"):
                if valid_oid(path.name) and path.parent.name == path.name[:2]:
                    size += path.stat().st_size
                    place = target / path.name[:2]
                    place.mkdir(parents=True, exist_ok=True, mode=0o700)
                    path.rename(place / path.name)
            return size

        if size := await asyncio.to_thread(move):
            await self.grown(size)

    async def grown(self, size: int) -> None:
        """``size`` bytes were added: when that was enough of them, the longest unused objects go."""
        self._since_sweep += size
        if self._since_sweep >= self._limit // SWEEP_EVERY:
            self._since_sweep = 0
            await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        for path in self._root.glob("*/*/incoming-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - STALE:
                    path.unlink()
        files = []
        for path in self._root.glob("*/*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)  # who reads it just now keeps reading
            total -= size


def staged(quarantine: Path) -> ObjectFolder:
    """The new objects of the attempt whose quarantine this is."""
    return ObjectFolder(quarantine.with_name("lfs"))
