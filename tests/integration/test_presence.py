"""Which servers live, as several see it in one Redis."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import redis

from bot.presence import SILENCE, Presence, server_name


@dataclass
class Clock:
    """Seconds, as the test wants them."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def names_of(*listens: str, host: str = "h1") -> list[str]:
    return [server_name(host, listen) for listen in listens]


async def test_one_that_lives_is_not_gone_and_one_that_left_is_after_a_while(clean_redis: str) -> None:
    mine, theirs = names_of("0.0.0.0:8001", "0.0.0.0:8002")
    clock = Clock()
    me, other = Presence(clean_redis, mine, clock=clock), Presence(clean_redis, theirs)
    async with me.shown():
        async with other.shown():
            clock.now += 10 * SILENCE
            assert await me.gone({theirs}) == set()
        assert await me.gone({theirs, mine}) == set()  # Redis may only just have forgotten it
        clock.now += SILENCE - 1
        assert await me.gone({theirs}) == set()
        clock.now += 1
        assert await me.gone({theirs, mine}) == {theirs}


async def test_a_sign_of_life_in_between_counts(clean_redis: str) -> None:
    mine, theirs = names_of("0.0.0.0:8001", "0.0.0.0:8002")
    clock = Clock()
    me = Presence(clean_redis, mine, clock=clock)
    async with me.shown():
        assert await me.gone({theirs}) == set()
        clock.now += SILENCE - 1
        async with Presence(clean_redis, theirs).shown():
            assert await me.gone({theirs}) == set()
        clock.now += SILENCE - 1
        assert await me.gone({theirs}) == set()


async def test_who_had_our_address_before_us_is_gone_at_once(clean_redis: str) -> None:
    before, mine, elsewhere = server_name("h1", "0.0.0.0:80"), *names_of("0.0.0.0:80", "0.0.0.0:81")
    other_host = server_name("h2", "0.0.0.0:80")
    with redis.Redis.from_url(clean_redis) as client:
        client.set(f"conductor:server:{before}", 1)  # it was killed a moment ago
    me = Presence(clean_redis, mine)
    async with me.shown():
        assert await me.gone({before, elsewhere, other_host}) == {before}


async def test_servers_on_any_free_port_are_told_apart(clean_redis: str) -> None:
    mine, theirs = names_of("127.0.0.1:0", "127.0.0.1:0")
    me = Presence(clean_redis, mine)
    async with me.shown():
        assert await me.gone({theirs}) == set()


async def test_nobody_is_gone_while_redis_does_not_answer(tmp_path: object) -> None:
    clock = Clock()
    me = Presence(f"unix://{tmp_path}/nobody.sock", server_name("h1", "0.0.0.0:80"), clock=clock)
    async with me.shown():  # and it is no reason not to start
        for _ in range(2):
            assert await me.gone({"h2|0.0.0.0:80|x"}) == set()
            clock.now += 10 * SILENCE


@pytest.mark.parametrize("host", ["h", "x" * 300])
def test_a_name_fits_into_the_column(host: str) -> None:
    assert len(server_name(host, "[" + "a:" * 100 + "]:80")) <= 160
