"""Locks of several servers on one PostgreSQL, and of the one server that owns a SQLite file."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.errors import InfrastructureError
from bot.locks import Locks


def servers(engine: AsyncEngine, patience: float = 60.0) -> tuple[Locks, Locks]:
    """Those of two servers, where there may be two."""
    one = Locks(engine, patience=patience)
    return one, Locks(engine, patience=patience) if engine.dialect.name == "postgresql" else one


async def test_one_at_a_time_has_a_lock(engine: AsyncEngine) -> None:
    inside: list[str] = []
    most = 0

    async def work(locks: Locks) -> None:
        nonlocal most
        async with locks.hold("it"):
            inside.append("x")
            most = max(most, len(inside))
            for _ in range(3):
                async with engine.connect() as connection:  # the others run meanwhile
                    await connection.execute(text("SELECT 1"))
            inside.pop()

    await asyncio.gather(*(work(locks) for locks in servers(engine) for _ in range(4)))
    assert most == 1


async def test_locks_of_other_names_are_others(engine: AsyncEngine) -> None:
    one, two = servers(engine)
    async with one.hold("a"), two.hold("b"), one.hold("c"):
        pass


async def test_whatever_ends_the_block_gives_the_lock_back(engine: AsyncEngine) -> None:
    one, two = servers(engine)
    inside = asyncio.Event()

    async def stuck() -> None:
        async with one.hold("it"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ZeroDivisionError):
        async with two.hold("it"):
            raise ZeroDivisionError
    async with one.hold("it"):
        pass


async def test_a_lock_that_is_not_free_is_not_waited_for_if_so_wanted(engine: AsyncEngine) -> None:
    one, two = servers(engine)
    for holder, other in ((one, two), (two, one), (one, one)):
        async with holder.hold_if_free("it") as mine, other.hold_if_free("it") as too:
            assert (mine, too) == (True, False)
            async with other.hold_if_free("another") as apart:
                assert apart
        async with holder.hold("it"), other.hold_if_free("it") as too:
            assert not too
    with pytest.raises(ZeroDivisionError):
        async with one.hold_if_free("it"):
            raise ZeroDivisionError
    async with two.hold_if_free("it") as mine:
        assert mine


several_servers = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@several_servers
async def test_a_lock_that_another_server_keeps_is_not_waited_for_forever(engine: AsyncEngine) -> None:
    one, two = servers(engine, patience=0.05)
    async with one.hold("it"):
        with pytest.raises(InfrastructureError, match="Another server has had the lock 'it'"):
            async with two.hold("it"):
                raise AssertionError("both have it")
    async with two.hold("it"):
        pass


@several_servers
async def test_a_server_that_dies_keeps_no_lock(engine: AsyncEngine) -> None:
    one, two = servers(engine)
    held = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database()"
    )
    async with one.hold("it"):
        async with engine.connect() as connection:
            assert (await connection.execute(text(held))).scalars().all() == [True]
        async with two.hold("it"):
            pass
