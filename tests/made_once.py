"""What takes long to make and is the same for every test: made once in each process, and then copied."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bot.database import create_engine, upgrade
from bot.sandbox.seed import new_private_key


@functools.cache
def app_key() -> str:
    """The App's private key, as PEM. A new one takes up to a quarter of a second."""
    return new_private_key()


def migrate(url: str) -> None:
    """Run the product's migrations on the database at ``url``, also where an event loop runs already."""

    async def run() -> None:
        engine = create_engine(url)
        await upgrade(engine)
        await engine.dispose()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.db"
        migrate(_sqlite(path))
        assert [found.name for found in Path(folder).iterdir()] == [path.name], "all of it is in one file"
        return path.read_bytes()


def migrated(path: Path) -> str:
    """Put an empty SQLite database with the newest schema at ``path``, where there is none; returns its URL."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_migrated())
    return _sqlite(path)


def _sqlite(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"
