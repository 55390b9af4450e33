"""Check runs against the sandbox GitHub: found again, in batches, never stale, and with buttons that GitHub takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import httpx
import pytest

from bot.annotations import BATCH, MAX_ANNOTATIONS, Annotation, batches, of_job
from bot.check_report import buttons, check_name
from bot.check_runs import CheckRun, CheckRuns
from bot.errors import ConductorError
from bot.github import GitHub
from bot.github_errors import NotFound, Unprocessable
from bot.held_back import HeldBack
from bot.model import JobKind, JobState, Repo
from bot.network import explain
from bot.redact import Redactor
from bot.sandbox.description import github_description
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.transport import ValidatingTransport
from tests.made_once import app_key
from tests.unit.test_golden import job

REPO = "acme/hello"
RUN = CheckRun(name="agent", external_id="j1", title="It works", summary="…", status="in_progress")


class Wire(httpx.AsyncBaseTransport):
    """Remembers what went over it; all of it is held against GitHub's description."""

    def __init__(self) -> None:
        self._plain = httpx.AsyncHTTPTransport()
        self._strict = ValidatingTransport(self._plain, github_description())
        self.strict = True
        self.seen: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "/check-runs" in request.url.path:
            self.seen.append(request.method)
        return await (self._strict if self.strict else self._plain).handle_async_request(request)

    async def aclose(self) -> None:
        await self._strict.aclose()


@dataclass
class Place:
    sandbox: Sandbox
    checks: CheckRuns
    repo: Repo
    sha: str
    wire: Wire

    def runs(self) -> list[dict[str, object]]:
        return self.sandbox.check_runs(REPO)

    async def annotations(self, run: int) -> list[str]:
        found: list[str] = []
        for page in range(1, 10):
            path = f"/repos/{REPO}/check-runs/{run}/annotations?per_page=100&page={page}"
            some = await self.sandbox.as_user("octocat").request("GET", path)
            found += [one["message"] for one in some]
            if len(some) < 100:
                break
        return found


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with Sandbox.start(private_key=app_key()) as sandbox:
        repository = sandbox.world.repository("acme", "hello")
        assert repository is not None
        repo = Repo(owner="acme", name="hello", id=repository.id, installation_id=sandbox.installation_id)
        wire = Wire()
        github = GitHub(
            sandbox.url,
            str(sandbox.app_id),
            sandbox.private_key_path.read_text(),
            transport=wire,
            write_spacing=0,
        )
        async with github:
            sha = (await sandbox.branches(REPO))["main"]
            yield Place(sandbox, CheckRuns(github, Redactor(["hunter22-secret"])), repo, sha, wire)
        # the description forgets that GitHub itself may conclude so
        assert [str(one) for one in sandbox.problems if '"stale" is not one of' not in str(one)] == []


def remarks(count: int) -> tuple[Annotation, ...]:
    return tuple(
        Annotation(path="README.md", start_line=number, message=f"remark {number}")
        for number in range(1, count + 1)
    )


async def test_a_run_is_found_again_by_name_and_id(place: Place) -> None:
    first = await place.checks.put(place.repo, place.sha, RUN)
    done = replace(RUN, conclusion="success", title="Done")
    anew = CheckRuns(place.checks._github, Redactor())  # of another process
    assert await anew.put(place.repo, place.sha, done) == first
    other = await anew.put(place.repo, place.sha, replace(done, external_id="j2"))
    third = await anew.put(place.repo, place.sha, replace(done, name="agent/review"))
    assert len({first, other, third}) == len(place.runs()) == 3
    assert place.runs()[0]["conclusion"] == "success"


async def test_progress_is_one_request_each_time(place: Place) -> None:
    for number in range(5):
        await place.checks.put(place.repo, place.sha, replace(RUN, title=f"step {number}"))
    assert place.wire.seen == ["GET", "POST", "PATCH", "PATCH", "PATCH", "PATCH"]
    (run,) = place.runs()
    assert run["output"]["title"] == "step 4"  # type: ignore[index]


async def test_a_run_that_was_deleted_is_made_anew(place: Place) -> None:
    first = await place.checks.put(place.repo, place.sha, RUN)
    repository = place.sandbox.world.repository("acme", "hello")
    assert repository is not None
    del repository.check_runs[first]
    second = await place.checks.put(place.repo, place.sha, RUN)
    assert second != first
    assert [run["id"] for run in place.runs()] == [second]


async def test_a_stale_run_is_left_and_a_new_one_made(place: Place) -> None:
    """GitHub gives up on what nobody completed for fourteen days, and takes no word about it any more."""
    first = await place.checks.put(place.repo, place.sha, RUN)
    repository = place.sandbox.world.repository("acme", "hello")
    assert repository is not None
    stale = repository.check_runs[first]
    stale.status, stale.conclusion = "completed", "stale"
    later = CheckRuns(place.checks._github, Redactor())  # a fortnight is longer than anything is remembered
    place.wire.strict = False
    second = await later.put(place.repo, place.sha, RUN)
    assert second != first
    assert await later.put(place.repo, place.sha, replace(RUN, conclusion="neutral")) == second
    assert {run["id"]: run["conclusion"] for run in place.runs()} == {first: "stale", second: "neutral"}


async def test_many_annotations_come_in_batches_and_each_once(place: Place) -> None:
    done = replace(RUN, conclusion="failure", annotations=remarks(2 * BATCH + 7))
    run = await place.checks.put(place.repo, place.sha, done)
    assert place.wire.seen == ["GET", "POST", "PATCH", "PATCH"]
    assert await place.checks.put(place.repo, place.sha, done) == run  # told once more
    assert await place.annotations(run) == [f"remark {number}" for number in range(1, 2 * BATCH + 8)]


async def test_annotations_that_were_cut_off_are_added_later(place: Place) -> None:
    done = replace(RUN, conclusion="failure", annotations=remarks(3 * BATCH))
    run = await place.checks.put(place.repo, place.sha, RUN)
    place.sandbox.faults.add(
        Fault(method="PATCH", path=f"/check-runs/{run}$", delay=0, times=1)
    )  # the first goes through
    place.sandbox.faults.add(Fault(method="PATCH", path=f"/check-runs/{run}$", status=422, times=1))
    with pytest.raises(ConductorError):
        await place.checks.put(place.repo, place.sha, done)
    assert len(await place.annotations(run)) == BATCH
    assert await place.checks.put(place.repo, place.sha, done) == run
    assert await place.annotations(run) == [f"remark {number}" for number in range(1, 3 * BATCH + 1)]


async def test_texts_are_redacted_and_cut(place: Place) -> None:
    run = replace(
        RUN,
        title="hunter22-secret " + "t" * 500,
        summary="hunter22-secret" + "s" * 100_000,
        text="hunter22-secret",
        conclusion="neutral",
        annotations=[
            Annotation(path="a", message="hunter22-secret" + "m" * 100_000, title="hunter22-secret" * 50)
        ],
    )
    await place.checks.put(place.repo, place.sha, run)
    repository = place.sandbox.world.repository("acme", "hello")
    assert repository is not None
    (made,) = repository.check_runs.values()
    assert "hunter22" not in f"{made.title}{made.summary}{made.text}{made.annotations}"
    assert len(made.summary or "") <= 65_535


async def test_a_commit_that_is_not_there_is_an_error(place: Place) -> None:
    with pytest.raises((NotFound, Unprocessable)):
        await place.checks.put(place.repo, "0" * 40, RUN)


@pytest.mark.parametrize("state", list(JobState))
def test_buttons_fit_what_github_takes(state: JobState) -> None:
    """At most three, with at most 20, 40 and 20 characters.

    https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#check-runs-and-requested-actions
    """
    shown = buttons(job(state))
    assert 1 <= len(shown) <= 3
    for button in shown:
        assert 0 < len(button["label"]) <= 20
        assert 0 < len(button["description"]) <= 40
        assert 0 < len(button["identifier"]) <= 20
    assert {button["identifier"] for button in shown} == (
        {"cancel"} if not state.final else {"retry"} if state is JobState.succeeded else {"retry", "resume"}
    )


def test_every_kind_of_job_has_a_name_of_its_own() -> None:
    names = {kind: check_name(kind) for kind in JobKind}
    assert names.pop(JobKind.ask) is None
    assert len(set(names.values())) == len(names)
    assert all(name is not None and name.startswith("agent") for name in names.values())


def test_more_than_anybody_reads_is_not_sent() -> None:
    assert sum(len(group) for group in batches(remarks(2000))) == MAX_ANNOTATIONS
    assert [len(group) for group in batches(remarks(120), told=50)] == [50, 20]


@pytest.mark.parametrize("wrong", [{"level": "error"}, {"start_line": 0}, {"path": ""}, {"message": ""}])
def test_what_github_would_not_take_is_no_annotation(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not an annotation"):
        Annotation(**{"path": "a", "message": "b"} | wrong)  # type: ignore[arg-type]


def test_held_back_files_and_hosts_stand_beside_their_files() -> None:
    held = HeldBack(files=["Makefile", ".github/workflows/ci.yml"], count=2, patch="…").dump()
    blocked = explain(
        {"a.example.com:443": 2, "b.example.com:443": 1, "evil.example:443": 9}, ["*.example.com"]
    )
    found = of_job(job(JobState.succeeded, held_back=held), blocked)
    assert [(one.path, one.level) for one in found] == [
        ("Makefile", "warning"),
        (".github/workflows/ci.yml", "warning"),
        (".github/conductor.yml", "notice"),
        (".github/conductor.yml", "notice"),
    ]
    assert "a.example.com" in found[2].message
    assert not any("evil" in one.message for one in found)
