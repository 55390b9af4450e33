"""The shelf keeps files of threads in both databases: whole, replaced at once, and not for ever."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.schema import shelf as entries
from bot.schema import shelf_pieces
from bot.shelf import PIECE, Shelf, TooLarge


@pytest.fixture
def shelf(engine: AsyncEngine) -> Shelf:
    return Shelf(engine, max_bytes=3 * PIECE)


async def pieces(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(shelf_pieces))).scalar_one())


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_a_file_comes_back_as_it_was(shelf: Shelf, tmp_path: Path, size: int) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    source.write_bytes(os.urandom(size))
    await shelf.keep("1-2", "claude.session", source)
    assert await shelf.fetch("1-2", "claude.session", to)
    assert to.read_bytes() == source.read_bytes()
    assert to.stat().st_mode & 0o777 == 0o600


async def test_what_is_not_there_is_not_invented(shelf: Shelf, tmp_path: Path) -> None:
    assert not await shelf.fetch("1-2", "work", tmp_path / "to")
    assert not (tmp_path / "to").exists()


async def test_a_new_edition_replaces_the_old_one(shelf: Shelf, engine: AsyncEngine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for text in (b"a" * (2 * PIECE), b"new"):
        source.write_bytes(text)
        await shelf.keep("1-2", "work", source)
    await shelf.fetch("1-2", "work", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"new"
    assert await pieces(engine) == 1


async def test_threads_and_names_are_apart(shelf: Shelf, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"mine")
    await shelf.keep("1-2", "work", source)
    assert not await shelf.fetch("1-3", "work", tmp_path / "to")
    assert not await shelf.fetch("1-2", "other", tmp_path / "to")


async def test_a_file_that_is_too_large_is_refused(shelf: Shelf, engine: AsyncEngine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (3 * PIECE + 1))
    with pytest.raises(TooLarge, match="at most"):
        await shelf.keep("1-2", "work", source)
    assert await pieces(engine) == 0


async def test_an_edition_that_lost_a_piece_is_not_taken_for_the_file(
    shelf: Shelf, engine: AsyncEngine, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (2 * PIECE))
    await shelf.keep("1-2", "work", source)
    async with engine.begin() as connection:
        await connection.execute(shelf_pieces.delete().where(shelf_pieces.c.number == 1))
    assert not await shelf.fetch("1-2", "work", tmp_path / "to")
    assert not (tmp_path / "to").exists()


async def test_old_files_and_a_killed_writers_pieces_are_removed(
    shelf: Shelf, engine: AsyncEngine, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for name in ("old", "young"):
        await shelf.keep("1-2", name, source)
    long_ago = datetime.now(UTC) - timedelta(days=40)
    async with engine.begin() as connection:
        await connection.execute(update(entries).where(entries.c.name == "old").values(kept_at=long_ago))
        for edition, when in (("killed", long_ago), ("writing", datetime.now(UTC))):
            await connection.execute(
                insert(shelf_pieces).values(edition=edition, number=0, data=b"", kept_at=when)
            )
    await shelf.expire(timedelta(days=30))
    assert not await shelf.fetch("1-2", "old", tmp_path / "to")
    assert await shelf.fetch("1-2", "young", tmp_path / "to")
    assert await pieces(engine) == 2  # the young one's, and those of a writer that may be at it


async def test_a_removed_file_is_gone(shelf: Shelf, engine: AsyncEngine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    await shelf.keep("1-2", "work", source)
    await shelf.remove("1-2", "work")
    assert not await shelf.fetch("1-2", "work", tmp_path / "to")
    assert await pieces(engine) == 0
