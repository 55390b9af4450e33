"""A running sandbox GitHub, and callers of its REST API whose every answer is looked at."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from bot.sandbox.description import GitHubDescription, github_description
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.seed import new_private_key

REPO = "/repos/acme/hello"


@dataclasses.dataclass
class Clock:
    """The time, as the test wants it."""

    now: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class Caller:
    """Calls the sandbox with one credential and remembers the last answer's headers."""

    def __init__(self, session: aiohttp.ClientSession, credential: str):
        self._session = session
        self._credential = credential
        self.headers: Any = {}
        self.links: dict[str, str] = {}

    async def __call__(
        self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str
    ) -> Any:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers.setdefault("Authorization", f"Bearer {self._credential}")
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == status, f"{method} {path}: {answer.status} {text}"
            self.headers = answer.headers
            self.links = {name: str(link["url"].relative()) for name, link in answer.links.items()}
            return await answer.json() if answer.content_type == "application/json" else text

    async def get(self, path: str, **options: Any) -> Any:
        return await self("GET", path, **options)

    async def post(self, path: str, body: Any = None, *, status: int = 201, **options: Any) -> Any:
        return await self("POST", path, body, status=status, **options)

    async def patch(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self("PATCH", path, body, **options)

    async def put(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self("PUT", path, body, **options)

    async def delete(self, path: str, body: Any = None, *, status: int = 204, **options: Any) -> Any:
        return await self("DELETE", path, body, status=status, **options)


class Receiver:
    """A webhook endpoint that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200

    async def receive(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status, text="thanks")


class GitClient:
    """The real git command, in a work tree of the test's own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@example.com",
        }

    async def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Run git; returns what it prints, stderr included."""
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=self.folder,
            env=self._env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode != 0) == fails, output.decode()
        return output.decode().strip()

    async def commit(self, **files: str) -> str:
        """Write files (``__`` in a name is a slash, ``_dot_`` a dot) and commit them."""
        for name, text in files.items():
            path = self.folder / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        await self("add", "--all")
        await self("commit", "--quiet", "--message", "Work")
        return await self("rev-parse", "HEAD")


@pytest.fixture(scope="session")
def description() -> GitHubDescription:
    return github_description()


@pytest.fixture(scope="session")
def private_key() -> str:
    return new_private_key()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def github(private_key, clock):
    async with Sandbox.start(clock=clock, private_key=private_key) as github:
        yield github
        await github.deliveries_settled()
        assert [str(problem) for problem in github.problems] == []


@pytest.fixture
async def session(github):
    jar = aiohttp.CookieJar(unsafe=True)  # else it keeps no cookie of an IP address
    async with aiohttp.ClientSession(github.url, headers={"User-Agent": "tests"}, cookie_jar=jar) as session:
        yield session


@pytest.fixture
def sign(github, clock):
    """Make a JSON web token of the App."""

    def sign(**claims: Any) -> str:
        now = int(clock.now.timestamp())
        payload = {"iat": now - 60, "exp": now + 540, "iss": str(github.app_id)} | claims
        return jwt.encode(payload, github.private_key_path.read_text(), algorithm="RS256")

    return sign


@pytest.fixture
def app(session, sign) -> Caller:
    return Caller(session, sign())


@pytest.fixture
def mint(app, github):
    """Make an installation token."""

    async def mint(**body: Any) -> str:
        path = f"/app/installations/{github.installation_id}/access_tokens"
        return (await app.post(path, body or None))["token"]

    return mint


@pytest.fixture
async def bot(session, mint) -> Caller:
    """The App's bot, with all that the installation grants."""
    return Caller(session, await mint())


@pytest.fixture
def caller(session):
    return lambda credential: Caller(session, credential)


@pytest.fixture
def person(session):
    return lambda login: Caller(session, f"{login}-token")


@pytest.fixture
async def receiver(github):
    """An endpoint that gets the sandbox's webhooks."""
    receiver = Receiver()
    application = web.Application(client_max_size=26 * 2**20)
    application.router.add_post("/webhook", receiver.receive)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    github.webhook_url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhook"
    yield receiver
    await github.deliveries_settled()
    await runner.cleanup()


@pytest.fixture
def events(github):
    """What the App was told, oldest first: ``event`` or ``event.action``."""

    async def events() -> list[str]:
        await github.deliveries_settled()
        return [f"{one.event}.{one.action}".removesuffix(".None") for one in reversed(github.deliveries)]

    return events


@pytest.fixture
async def git(tmp_path, github):
    """A clone of acme/hello by the bot's user maria."""
    folder = tmp_path / "work"
    folder.mkdir()
    git = GitClient(folder)
    url = github.git_url("acme/hello").replace("//", "//maria:maria-token@")
    await git("clone", "--quiet", url, ".")
    return git


@pytest.fixture
async def pull(github) -> int:
    """A pull request of maria's from branch ``feature``."""
    maria = github.as_user("maria")
    await maria.push_commit("acme/hello", "feature", {"NEWS.md": "one\ntwo\n"}, message="Add news")
    return (await maria.open_pull("acme/hello", "feature", "News", "Read all about it"))["number"]


def problems_of(github: Sandbox, side: str) -> list[str]:
    """Take the recorded problems of one side out of the list, so that the rest must still be empty."""
    found = [str(one.problem) for one in github.problems if one.side == side]
    github.problems[:] = [one for one in github.problems if one.side != side]
    return found


@pytest.fixture
def client_problems(github):
    return lambda: problems_of(github, "client")


@pytest.fixture
async def until():
    """Wait for a condition, looking often."""

    async def until(condition: Any) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            await asyncio.sleep(0.005)

    return until
