"""The sandbox GitHub as a process of its own, and the test's end of the pipe to it.

    python -m tests.faults.github_host FOLDER HOST:PORT

One JSON object a line: ``{"id": 1, "do": "look", "name": "branches", "args": ["acme/hello"]}`` on standard input is
answered by ``{"id": 1, "answer": …}`` or ``{"id": 1, "error": "…"}`` on standard output. It ends with its input. A pipe
and not HTTP, so that a test can ask while the network between the processes is cut.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
from pathlib import Path
from typing import IO, Any

import orjson

from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.state import Delivery
from tests.scenarios.world import CANARIES

ANSWER_TIMEOUT = 180.0  # seconds
LINE_LIMIT = 64 * 2**20  # bytes of one answer


class Host:
    """What the pipe can ask for."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def answer(self, asked: dict[str, Any]) -> Any:
        """Do it: ``as`` a person, ``look`` at the sandbox, or ``own`` for the methods of this class."""
        target: object = self._sandbox
        if asked["do"] == "as":
            target = self._sandbox.as_user(asked["login"])
        elif asked["do"] == "own":
            target = self
        found = getattr(target, asked["name"])(*asked.get("args", ()), **asked.get("options", {}))
        return await found if inspect.isawaitable(found) else found

    def about(self) -> dict[str, Any]:
        """What a server and a worker must be told."""
        return {
            "url": self._sandbox.url,
            "app_id": self._sandbox.app_id,
            "webhook_secret": self._sandbox.webhook_secret,
            "private_key_path": str(self._sandbox.private_key_path),
        }

    def allow_requests(self, limit: int) -> None:
        """How many requests an hour the App may make: many rounds make more than one installation's hour has."""
        self._sandbox.rate_limit.limit = limit

    def deliver_to(self, url: str) -> None:
        """Set the App's webhook URL."""
        self._sandbox.webhook_url = url

    def repository_id(self, repo: str) -> int:
        """Its number."""
        found = self._sandbox.world.repository(*repo.split("/"))
        assert found is not None
        return found.id

    def fault(self, **values: Any) -> None:
        """Plan one (`bot.sandbox.faults.Fault`)."""
        self._sandbox.faults.add(Fault(**values))

    def faults_to_come(self) -> int:
        """How many of the planned ones have not met their request yet."""
        return len(self._sandbox.faults.waiting)

    def redeliver(self) -> list[str]:
        """Send again what the App did not take, as its operator can; returns the GUIDs."""
        newest: dict[str, Delivery] = {}
        for one in self._sandbox.deliveries:  # newest first
            newest.setdefault(one.guid, one)
        lost = [one for one in newest.values() if one.status not in ("pending", "OK")]
        for one in lost:
            self._sandbox.redeliver(one)
        return [one.guid for one in lost]

    def waiting(self) -> list[str]:
        """GUIDs of deliveries that were not taken yet."""
        taken = {one.guid for one in self._sandbox.deliveries if one.status == "OK"}
        return sorted({one.guid for one in self._sandbox.deliveries} - taken)

    def forget(self) -> None:
        """Empty the delivery log: the sandbox writes its whole memory down again and again."""
        self._sandbox.world.deliveries.clear()

    def wrongs(self) -> list[str]:
        """What departed from GitHub's description."""
        return [str(problem) for problem in self._sandbox.problems]

    async def everything(self, repo: str) -> dict[str, Any]:
        """All that is to be seen of a repository."""
        box = self._sandbox
        found = box.world.repository(*repo.split("/"))
        assert found is not None
        pushes = [
            {"ref": one.payload["ref"], "after": one.payload["after"], "by": one.payload["pusher"]["name"]}
            for one in box.deliveries
            if one.event == "push" and not one.redelivery and one.repository_id == found.id
        ]
        return {
            "comments": {number: box.comments(repo, number) for number in found.issues},
            "reactions": {number: box.reactions(repo, number) for number in found.issues},
            "comment reactions": {
                comment: box.reactions(repo, number, comment_id=comment)
                for number, issue in found.issues.items()
                for comment in issue.comments
            },
            "pulls": box.pulls(repo),
            "check runs": box.check_runs(repo),
            "branches": await box.branches(repo),
            "pushes": pushes,
        }


async def serve(folder: Path, listen: str) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    # answers alone go through the pipe: what somebody prints or logs (a client of git that was killed) goes to the log
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Sandbox.start(state_dir=folder, listen=listen, webhook_secret=CANARIES["webhook"]) as sandbox:
        host = Host(sandbox)
        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(_reply(host, orjson.loads(line), answers))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _reply(host: Host, asked: dict[str, Any], answers: IO[bytes]) -> None:
    reply: dict[str, Any] = {"id": asked["id"]}
    try:
        reply["answer"] = await host.answer(asked)
    except Exception as error:  # the test is told, and it judges
        reply["error"] = f"{type(error).__name__}: {error}"
    answers.write(
        orjson.dumps(reply, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    )
    answers.flush()


class RemoteGitHub:
    """The test's end of the pipe."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """``process`` runs this module with pipes as its standard input and output."""
        self._process = process
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())
        self.url = ""
        self.app_id = 0
        self.webhook_secret = ""
        self.private_key_path = Path()

    async def ready(self) -> None:
        """Return when it serves."""
        about = await self.own("about")
        self.url, self.app_id = about["url"], about["app_id"]
        self.webhook_secret, self.private_key_path = about["webhook_secret"], Path(about["private_key_path"])

    async def as_user(self, login: str, name: str, *args: Any, **options: Any) -> Any:
        """Act as a person: a method of `bot.sandbox.human.Human`."""
        return await self._ask({"do": "as", "login": login, "name": name, "args": args, "options": options})

    async def look(self, name: str, *args: Any, **options: Any) -> Any:
        """A method of `bot.sandbox.sandbox.Sandbox`."""
        return await self._ask({"do": "look", "name": name, "args": args, "options": options})

    async def own(self, name: str, *args: Any, **options: Any) -> Any:
        """A method of `Host`."""
        return await self._ask({"do": "own", "name": name, "args": args, "options": options})

    async def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 15)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _ask(self, what: dict[str, Any]) -> Any:
        assert not self._reader.done(), "the sandbox GitHub answers no more; its log may say why"
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps({"id": number, **what}) + b"\n")
        await self._process.stdin.drain()
        try:
            # not wait_for(): before Python 3.12 it loses a cancellation that comes together with the answer
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await future
        finally:
            self._asked.pop(number, None)

    async def _read(self) -> None:
        why = "the sandbox GitHub has ended"
        try:
            await self._answers()
        except ValueError as error:
            why = f"the sandbox GitHub does not answer in its own way: {error}"
        finally:
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(AssertionError(why))

    async def _answers(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            reply = orjson.loads(line)
            future = self._asked.get(reply["id"])
            if future is None or future.done():
                continue
            if "error" in reply:
                future.set_exception(AssertionError(f"the sandbox GitHub says: {reply['error']}"))
            else:
                future.set_result(reply["answer"])


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
