"""Attack class 22: whoever can write to Redis makes the worker host run nothing but wake-ups, and reads nothing there.

The whole program runs; the attacker has a connection of their own to its Redis.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq.serializers import JSONSerializer, PickleSerializer

from bot.model import JobState
from bot.queue import ENTRY
from tests.scenarios.world import CANARIES, REPO, World, world

pytestmark = pytest.mark.timeout(120)

CALLED: list[str] = []


def callback(*_: Any) -> None:
    """What the attacker wants to have called by its name, in a module that can be imported."""
    CALLED.append("callback")


class Opened:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.system, (self.command,)


async def one_job(box: World, body: str = "```sh\necho 1 > one.txt\n```") -> int:
    """An ordinary job, from its label to its end: so the worker has gone past what stood in the queue before it."""
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue(REPO, "Work", body))["number"])
    await maria.add_label(REPO, number, "agent")
    assert (await box.ended(number)).state is JobState.succeeded
    return number


async def test_22_a_job_that_names_another_function_is_not_run(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    async with world(tmp_path) as box:
        with redis.Redis.from_url(box.settings.redis_url) as attacker:
            queue = Queue("conductor", connection=attacker, serializer=JSONSerializer)
            queue.enqueue("os.system", f"touch {owned}")
            queue.enqueue("subprocess.run", ["touch", str(owned)])
            queue.enqueue("pathlib.Path.touch", str(owned))
            # a method of what was deserialized, and our own name as one
            bound = queue.enqueue("os.system", "true")
            data = JSONSerializer.dumps(["format", "{0.__class__}", [], {}])
            attacker.hset(bound.key, "data", data)
            method = queue.enqueue("os.system", "true")
            attacker.hset(method.key, "data", JSONSerializer.dumps([ENTRY, "x", [f"touch {owned}"], {}]))
            await one_job(box)
            async with asyncio.timeout(20):
                while queue.count:
                    await asyncio.sleep(0.02)
    assert not owned.exists()


async def test_22_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    bomb = pickle.dumps(Opened(f"touch {owned}"))
    pickle.loads(bomb)  # it works where it is loaded
    assert owned.exists()
    owned.unlink()
    async with world(tmp_path) as box:
        with redis.Redis.from_url(box.settings.redis_url) as attacker:
            queue = Queue("conductor", connection=attacker, serializer=PickleSerializer)
            queue.enqueue("os.system", Opened(f"touch {owned}"))
            for field in ("data", "meta", "result"):
                planted = Queue("conductor", connection=attacker, serializer=JSONSerializer).enqueue(
                    "os.system"
                )
                attacker.hset(planted.key, field, bomb)
            await one_job(box)
            async with asyncio.timeout(20):
                while queue.count:
                    await asyncio.sleep(0.02)
    assert not owned.exists()


async def test_22_no_callback_or_url_of_a_job_is_called(tmp_path: Path) -> None:
    """RQ calls functions and URLs that stand in Redis also when it merely tidies up after a lost worker."""
    CALLED.clear()
    connected = asyncio.Event()

    async def listener(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        writer.close()

    trap = await asyncio.start_server(listener, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    name = f"{__name__}.callback"
    async with trap, world(tmp_path) as box:
        await box.stop_worker()
        with redis.Redis.from_url(box.settings.redis_url) as attacker:
            queue = Queue("conductor", connection=attacker, serializer=JSONSerializer)
            hooks = {kind: Callback(name) for kind in ("on_success", "on_failure", "on_stopped")}
            urls = json.dumps(
                [
                    {
                        "url": f"http://127.0.0.1:{port}/",
                        "job_status": status,
                        "method": "POST",
                        "headers": {},
                    }
                    for status in ("finished", "failed")
                ]
            )
            planted = [queue.enqueue(function, "j1", **hooks) for function in (ENTRY, "os.getcwd")]
            abandoned = queue.create_job("os.getcwd", **hooks)
            abandoned.save()
            attacker.zadd(f"rq:wip:{queue.name}", {f"{abandoned.id}:x": int(time.time()) - 60})
            for job in (*planted, abandoned):
                attacker.hset(job.key, "webhooks", urls)
            await box.start_worker()
            await one_job(box)
            async with asyncio.timeout(20):
                while queue.count or attacker.zcard(f"rq:wip:{queue.name}"):
                    await asyncio.sleep(0.02)
    assert CALLED == []
    assert not connected.is_set()


async def test_22_what_stands_in_redis_is_ids_and_no_text_of_people_or_secrets(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        await box.stop_worker()  # so that the wake-up stays
        maria = box.github.as_user("maria")
        body = "```sh\necho a-secret-plan\n```"
        number = int((await maria.open_issue(REPO, "A very private title", body))["number"])
        await maria.add_label(REPO, number, "agent")
        await box.dealt_with()
        job = await box.job(number)
        with redis.Redis.from_url(box.settings.redis_url) as attacker:
            (tick,) = (key for key in attacker.scan_iter("rq:job:*") if job.id.encode() in key)
            stored = {
                name.decode(): value
                for name, value in attacker.hgetall(tick).items()  # type: ignore[union-attr]
            }
            queue = Queue("conductor", connection=attacker, serializer=JSONSerializer)
            (found,) = queue.jobs
            assert [found.func_name, found.instance, list(found.args), found.kwargs] == [
                ENTRY,
                None,
                [job.id],
                {},
            ]
            everything = b"".join(attacker.dump(key) or b"" for key in attacker.scan_iter("*"))
            readable = b"".join(stored.values()) + found.data + everything
        for text in (
            b"private title",
            b"secret-plan",
            b"maria",
            b"acme",
            *map(str.encode, CANARIES.values()),
        ):
            assert text not in readable
        assert not re.search(rb"ghs_|BEGIN [A-Z ]*PRIVATE KEY", readable)
        assert await asyncio.to_thread(
            _drop_everything, box.settings.redis_url
        )  # and losing it loses no work
        await box.start_worker()
        assert (await box.ended(number)).state is JobState.succeeded


def _drop_everything(url: str) -> bool:
    with redis.Redis.from_url(url) as attacker:
        return bool(attacker.flushall())
