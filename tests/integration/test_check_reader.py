"""Checks of a commit as they are read from a sandbox GitHub: whose they are, what failed, and the logs of Actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bot import check_reader
from bot.check_reader import CheckReader
from bot.errors import GitHubUnavailable
from bot.failed_checks import Checks, instructions
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import Repo
from bot.redact import Redactor
from bot.sandbox.actions import Job
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from tests.made_once import app_key

REPO = "acme/thing"
SECRET = "hunter2-hunter2"
LOG = f"\x1b[31mRun pytest\x1b[0m\nE   assert 1 == 2\ntoken {SECRET}\n##[error]Process completed with exit code 1.\n"
NOTE = {
    "path": "a.py",
    "start_line": 3,
    "end_line": 3,
    "annotation_level": "failure",
    "message": "boom",
    "title": "E1",
}


@dataclass
class Place:
    sandbox: Sandbox
    github: GitHub
    repo: Repo
    sha: str

    async def read(
        self, *, details: bool = True, transport: httpx.AsyncBaseTransport | None = None
    ) -> Checks:
        reader = CheckReader(self.github, Redactor([SECRET]), transport=transport)
        return await reader.read(self.repo, self.sha, details=details)

    async def failing_job(self, log: str = LOG) -> int:
        run = await self.sandbox.actions().run(REPO, self.sha, {"test": Job("failure", log, [NOTE])})
        return next(iter(run.jobs))


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[Place]:
    async with Sandbox.start(private_key=app_key(), state_dir=tmp_path / "github") as sandbox:
        await sandbox.create_repo(REPO, collaborators={"octocat": "admin"})
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        patience = Patience(tries=2, backoff=0.01)
        async with GitHub(sandbox.url, str(sandbox.app_id), key, patience=patience) as github:
            sha = (await sandbox.branches(REPO))["main"]
            yield Place(sandbox=sandbox, github=github, repo=repo, sha=sha)
        assert [str(problem) for problem in sandbox.problems] == []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with world(tmp_path) as found:
        yield found


async def test_nothing_there(place: Place) -> None:
    assert await place.read() == Checks(sha=place.sha, failed=[], pending=[], unread=[])


async def test_a_failed_job_with_its_log_and_remarks(place: Place) -> None:
    await place.failing_job()
    found = await place.read()
    (check,) = found.failed
    assert (check.name, check.conclusion, check.by, check.unread) == ("test", "failure", "GitHub Actions", "")
    assert "E   assert 1 == 2" in check.log
    assert "Run pytest" in check.log
    assert "\x1b" not in check.log
    assert SECRET not in check.log
    (note,) = check.annotations
    assert (note.path, note.start_line, note.title, note.message) == ("a.py", 3, "E1", "boom")
    assert found.quiet is not None
    assert "assert 1 == 2" in instructions(found)


async def test_our_own_check_runs_do_not_count(place: Place) -> None:
    client = place.github.installation(place.sandbox.installation_id)
    for name in ("agent", "agent/fix", "agent/approval", "test"):
        values = {"name": name, "head_sha": place.sha, "conclusion": "failure"}
        await client.post("/repos/acme/thing/check-runs", data=values)
    found = await place.read()
    assert (found.failed, found.pending, found.passed, found.quiet) == ([], [], 0, None)


async def test_what_counts_as_failed_and_what_is_still_running(place: Place) -> None:
    app = place.sandbox.as_app("ci")
    for conclusion in (
        "failure",
        "timed_out",
        "success",
        "neutral",
        "skipped",
        "cancelled",
        "action_required",
    ):
        await app.check(REPO, place.sha, conclusion, conclusion, title="T", summary=f"S {SECRET}")
    await app.check(REPO, place.sha, "slow", None)
    await app.status(
        REPO,
        place.sha,
        "error",
        context="old ci",
        description=f"D {SECRET}",
        target_url=f"https://ci.example/1?{SECRET}",
    )
    await app.check(REPO, place.sha, f"named {SECRET}", "failure")
    await app.status(REPO, place.sha, "pending", context="old slow")
    await app.status(REPO, place.sha, "failure", context="mended")
    await app.status(REPO, place.sha, "success", context="mended")
    found = await place.read()
    assert [one.name for one in found.failed[:2]] == ["failure", "timed_out"]
    assert found.failed[3].name == "old ci"
    assert SECRET not in str(found)
    assert found.pending == ["slow", "old slow"]
    assert found.passed == 6
    assert "https://ci.example/1" in found.failed[3].unread


async def test_of_a_check_that_ran_twice_the_newest_counts(place: Place) -> None:
    app = place.sandbox.as_app("ci")
    await app.check(REPO, place.sha, "test", "failure")
    await app.check(REPO, place.sha, "test", "success")
    assert (await place.read()).failed == []


async def test_without_details_no_log_is_fetched(place: Place) -> None:
    await place.failing_job()
    place.sandbox.faults.add(Fault(path="/actions/", status=500, times=None))
    (check,) = (await place.read(details=False)).failed
    assert (check.log, list(check.annotations), check.unread) == ("", [], "")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            Fault(path="/actions/", status=403, message="Resource not accessible by integration", times=None),
            "lacks the permission `actions: read`",
        ),
        (Fault(path="/actions/", status=404, message="Not Found", times=None), "is not there any more"),
        (Fault(path="/actions/", status=410, message="Gone", times=None), "is not there any more"),
        (Fault(path="/actions/", status=500, times=None), "GitHub did not answer as it should"),
        (Fault(path="/annotations", status=500, times=None), "remarks about lines could not be read"),
    ],
)
async def test_what_cannot_be_read_is_said_and_stops_nothing(place: Place, fault: Fault, says: str) -> None:
    await place.failing_job()
    place.sandbox.faults.add(fault)
    found = await place.read()
    assert says in found.failed[0].unread
    assert says in instructions(found)


async def test_statuses_that_cannot_be_read(place: Place) -> None:
    await place.failing_job()
    place.sandbox.faults.add(
        Fault(path=r"/status$", status=403, message="Resource not accessible by integration", times=None)
    )
    found = await place.read()
    assert len(found.failed) == 1
    assert found.unread == [
        "The commit statuses could not be read: the App lacks the permission `statuses: read`."
    ]


async def test_without_the_list_there_is_no_answer(place: Place) -> None:
    place.sandbox.faults.add(Fault(path="/check-runs", status=500, times=None))
    with pytest.raises(GitHubUnavailable):
        await place.read()


class Storage(httpx.AsyncBaseTransport):
    """Where logs are kept, as the test wants it."""

    def __init__(self, response: httpx.Response | Exception | None):
        self.response = response
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.response is None:
            await asyncio.Event().wait()
        if isinstance(self.response, Exception):
            raise self.response
        assert self.response is not None
        return self.response


async def test_our_token_stays_here(place: Place) -> None:
    await place.failing_job()
    storage = Storage(httpx.Response(200, text=LOG))
    await place.read(transport=storage)
    (request,) = storage.requests
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers
    assert request.url.host == "localhost"  # not the API's


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(403, text="expired"),
        httpx.Response(302, headers={"location": "http://127.0.0.1:1/elsewhere"}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
async def test_a_storage_that_does_not_give_it(place: Place, response: httpx.Response | Exception) -> None:
    await place.failing_job()
    storage = Storage(response)
    (check,) = (await place.read(transport=storage)).failed
    assert (check.log, check.unread) == ("", "Its log could not be fetched from where GitHub keeps it.")
    assert len(storage.requests) == 1


async def test_a_very_long_log_is_cut_at_a_line_and_no_half_secret_is_left(place: Place) -> None:
    filler = "".join(f"line {n}\n" for n in range(check_reader.KEPT_LOG // 5))
    await place.failing_job()
    (check,) = (await place.read(transport=Storage(httpx.Response(200, text=filler + LOG)))).failed
    assert "assert 1 == 2" in check.log
    assert len(check.log) <= 16_000
    assert SECRET not in check.log
    assert check.log.split("\n")[1].startswith("line ")
