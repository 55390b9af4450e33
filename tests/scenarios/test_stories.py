"""Stories as data: what people do, and what must be so afterwards. One YAML file each, in ``stories/``.

Keys: ``story`` (a sentence), ``runner`` (local or docker), ``settings``, ``llm`` (a script), ``needs`` (a program:
skipped without it), ``when`` (acts in order) and ``then`` (what is expected). An act is ``{as: WHO, VERB: WHAT}``
or ``{wait: …}``; `Teller.act` lists them.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import Job, JobState, Phase
from bot.sandbox.actions import Job as ActionsJob
from tests.llm import Script
from tests.scenarios.world import REPO, World, world

STORIES = sorted((Path(__file__).parent / "stories").glob("*.yml"))
KNOWN = {"story", "runner", "settings", "llm", "needs", "when", "then"}
KNOWN_THEN = {
    "job", "jobs", "fence", "phase", "failure", "message", "branches", "files", "no files", "pulls", "pull", "comments",
    "comment", "no comment", "check", "checks", "reactions", "tokens", "cost", "llm requests",
    "llm saw", "llm never saw", "large files", "threads", "resolved", "review", "approvals", "pull comment", "merged",
    "into",
}  # fmt: skip


def parameters() -> list[Any]:
    found = []
    for path in STORIES:
        story = yaml.safe_load(path.read_text())
        assert set(story) <= KNOWN, f"{path.name}: unknown {set(story) - KNOWN}"
        assert set(story["then"]) <= KNOWN_THEN, f"{path.name}: unknown {set(story['then']) - KNOWN_THEN}"
        marks = [pytest.mark.docker] if story.get("runner") == "docker" else []
        if story.get("llm"):
            marks.append(pytest.mark.cli)
        if (program := story.get("needs")) and shutil.which(program) is None:
            marks.append(pytest.mark.skip(reason=f"no {program}; tests/provision.sh provides it"))
        found.append(pytest.param(story, marks=[*marks, pytest.mark.timeout(400)], id=path.stem))
    return found


@pytest.mark.parametrize("story", parameters())
async def test_story(story: dict[str, Any], tmp_path: Path) -> None:
    script = Script.from_data(story["llm"]) if story.get("llm") else None
    settings = {"runner": story.get("runner", "local"), **story.get("settings", {})}
    async with world(tmp_path, script=script, **settings) as box:
        teller = Teller(box)
        for act in story["when"]:
            await teller.act(dict(act))
        await teller.check(story["then"])


class Teller:
    """Plays the acts and remembers which issue or pull request they are about."""

    def __init__(self, box: World) -> None:
        self.box = box
        self.number = 0
        self.jobs = 0

    async def act(self, act: dict[str, Any]) -> None:
        github = self.box.github
        if "wait" in act:
            await self._wait(act["wait"], act.get("job", self.jobs - 1))
            return
        if "sees" in act:  # anybody, in some comment, sooner or later
            await self._until_told(act["sees"])
            return
        if "sees check" in act:  # anybody, on the pull request's head
            await self._until_checked(act["sees check"])
            return
        if "model goes on" in act:  # with the turn that waits for this
            assert self.box.llm is not None
            self.box.llm.open(act["model goes on"])
            return
        if "model is asked" in act:  # so many times in all
            assert self.box.llm is not None
            await self.box.llm.came(act["model is asked"])
            return
        who = act.pop("as")
        person = github.as_user(who)
        ((verb, what),) = act.items()
        if verb == "opens":
            self.number = (await person.open_issue(REPO, what["title"], what.get("body", "")))["number"]
        elif verb == "labels":
            self.jobs += 1
            await person.add_label(REPO, self.number, what)
        elif verb == "unlabels":
            await person.remove_label(REPO, self.number, what)
        elif verb == "writes":
            self.jobs += 1
            await person.comment(REPO, self.number, what)
        elif verb == "writes on pull":  # on the first pull request
            self.jobs += 1
            await person.comment(REPO, self.box.github.pulls(REPO)[0]["number"], what)
        elif verb in ("reviews", "talks"):  # the first pull request; `talks`: nothing comes of it
            self.jobs += verb == "reviews"
            about = github.pulls(REPO)[0]
            await person.review(
                REPO, about["number"], what.get("event", "REQUEST_CHANGES"), what.get("body", ""),
                comments=what.get("comments", ()),
            )  # fmt: skip
        elif verb == "fails checks":  # of GitHub Actions, on the first pull request: name -> log
            jobs = {name: ActionsJob("failure", log) for name, log in what.items()}
            await github.actions().run(REPO, github.pulls(REPO)[0]["head"]["sha"], jobs, login=person.login)
        elif verb == "remarks":  # a comment that starts nothing
            await person.comment(REPO, self.number, what)
        elif verb == "closes":
            await person.close(REPO, self.number)
        elif verb == "merges":  # the first pull request
            await person.merge(REPO, github.pulls(REPO)[0]["number"])
        elif verb == "presses":  # a button of the newest check run
            self.jobs += what == "retry"
            await person.click_check_button(REPO, await self._check_with(what), what)
        elif verb == "re-runs":
            self.jobs += 1
            await person.rerequest_check(REPO, github.check_runs(REPO)[-1]["id"])
        elif verb == "pushes":
            await person.push_commit(REPO, what["branch"], what["files"])
        elif verb == "pushes on pull":  # to the branch of the first pull request
            await person.push_commit(REPO, github.pulls(REPO)[0]["head"]["ref"], what)
        elif verb == "pushes large":  # by Git LFS
            pointers = {
                path: github.add_large_file(REPO, text.encode()) for path, text in what["files"].items()
            }
            await person.push_commit(REPO, what["branch"], pointers)
        elif verb == "makes repository":
            await github.create_repo(
                what["name"],
                files=what["files"],
                private=what.get("private", False),
                collaborators=what.get("roles", {}),
            )
        elif verb == "makes team":  # with a role in the repository, if any
            role = {REPO: what["role"]} if "role" in what else {}
            github.add_team(REPO.partition("/")[0], what["name"], what["members"], repositories=role)
        elif verb == "pushes submodules":
            await person.push_submodules(what.get("in", REPO), what["branch"], what["paths"])
        elif verb == "pushes to":
            await person.push_commit(what["name"], what["branch"], what["files"])
        elif verb == "opens pull":
            await person.push_commit(REPO, what["branch"], what["files"])
            pull = await person.open_pull(REPO, what["branch"], what["title"])
            self.number = pull["number"]
        elif verb == "opens pull from fork":
            await person.fork(REPO)
            fork = f"{who}/{REPO.partition('/')[2]}"
            await person.push_commit(fork, what["branch"], what["files"])
            pull = await person.open_pull(REPO, f"{who}:{what['branch']}", what["title"])
            self.number = pull["number"]
        else:
            raise ValueError(f"nobody knows how to do {verb!r}")

    async def _wait(self, what: str, nth: int) -> None:
        if what == "ended":
            await self.box.ended(self.number, nth=nth)
        elif what == "pull job ended":
            await self.box.ended(self.box.github.pulls(REPO)[0]["number"], nth=nth)
        elif what == "running":
            async with asyncio.timeout(120):
                while (await self.box.job(self.number, nth=nth)).state is not JobState.running:
                    await asyncio.sleep(0.05)
        elif what == "agent works":
            async with asyncio.timeout(120):
                while (await self.box.job(self.number, nth=nth)).phase is not Phase.agent:
                    await asyncio.sleep(0.05)
        elif what == "an hour passes":  # for every token that GitHub gave out so far
            for token in self.box.github.world.tokens.values():
                token.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        elif what == "asked":
            await self._until_paused(nth, hibernated=False)
        elif what == "hibernated":
            await self._until_paused(nth, hibernated=True)
            async with asyncio.timeout(60):
                while await self.box.store.attempts_of(self.box.settings.host_name):
                    await asyncio.sleep(0.05)
        elif what == "settled":
            await self.box.dealt_with()
        else:
            raise ValueError(what)

    async def _until_told(self, text: str) -> None:
        async with asyncio.timeout(60):
            while text not in self._told():
                await asyncio.sleep(0.05)

    async def _until_checked(self, wanted: dict[str, str]) -> None:
        async with asyncio.timeout(60):
            while not wanted.items() <= self._checks().items():
                await asyncio.sleep(0.05)

    def _checks(self) -> dict[str, str]:
        """The check runs on the head of the pull request (of an issue: the first one): name -> how it is, or ended."""
        pulls = self.box.github.pulls(REPO)
        sha = next((pull for pull in pulls if pull["number"] == self.number), pulls[0])["head"]["sha"]
        return {
            run["name"]: run["conclusion"] or run["status"] for run in self.box.github.check_runs(REPO, sha)
        }

    async def _check_with(self, button: str) -> int:
        """The newest check run, when it has the button."""
        repository = self.box.github.world.repository(*REPO.split("/"))
        async with asyncio.timeout(60):
            while True:
                for run in reversed(list(repository.check_runs.values())):
                    if button in {one["identifier"] for one in run.actions}:
                        return int(run.id)
                await asyncio.sleep(0.05)

    def _told(self) -> str:
        return "\n\n".join(comment["body"] for comment in self.box.github.comments(REPO, self.number))

    async def _until_paused(self, nth: int, *, hibernated: bool) -> None:
        async with asyncio.timeout(120):
            while True:
                job = await self.box.job(self.number, nth=nth)
                assert not job.state.final, (job.state, job.message)
                if job.state is JobState.paused and job.hibernated is hibernated:
                    return
                await asyncio.sleep(0.05)

    async def check(self, then: dict[str, Any]) -> None:
        box, github = self.box, self.box.github
        all_jobs = await box.store.recent_jobs()
        if "jobs" in then:
            assert len(all_jobs) == then["jobs"]
        job: Job | None = all_jobs[0] if all_jobs else None
        if "job" in then:
            assert job is not None
            assert str(job.state) == then["job"], (job.phase, job.failure, job.message)
            assert (job.phase and str(job.phase)) == then.get("phase", job.phase and str(job.phase))
            assert (job.failure and str(job.failure)) == then.get("failure")
            for part in _list(then.get("message")):
                assert part in job.message
            if "tokens" in then:
                usage = job.usage
                assert [usage.input_tokens, usage.output_tokens, usage.cached_tokens] == then["tokens"]
            if "cost" in then:
                assert job.usage.cost == pytest.approx(then["cost"], abs=1e-9)
            if "llm requests" in then:
                assert job.usage.requests == then["llm requests"]
        if "fence" in then:
            assert job is not None
            assert job.fence == then["fence"]
        if "llm never saw" in then:
            assert box.llm is not None
            said = "".join(request.text for request in box.llm.requests)
            assert not [part for part in _list(then["llm never saw"]) if part in said]
        if "llm saw" in then:
            assert box.llm is not None
            last = box.llm.requests[-1].text
            assert all(part in last for part in _list(then["llm saw"]))
        if "branches" in then:
            assert len(await box.new_branches()) == then["branches"]
        branch = job.branch if job else None
        for path, part in then.get("files", {}).items():
            assert part in (await github.file(REPO, branch or "", path) or "")
        for path in then.get("no files", []):
            assert await github.file(REPO, branch or "", path) is None
        for path, part in then.get("large files", {}).items():
            pointer = await github.file(REPO, branch or "", path) or ""
            assert part.encode() in (github.large_file(REPO, f"{pointer}\n") or b"")
        if "pulls" in then:
            assert len(github.pulls(REPO)) == then["pulls"]
        if "pull" in then:
            (pull,) = github.pulls(REPO)
            for part in _list(then["pull"]):
                assert part in f"{pull['title']}\n{pull['body']}"
        if "into" in then:  # the branch that the pull request is for
            assert [pull["base"]["ref"] for pull in github.pulls(REPO)] == [then["into"]]
        if "comments" in then:
            assert len(github.comments(REPO, self.number)) == then["comments"]
        told = self._told()
        for part in _list(then.get("comment")):
            assert part in told
        for part in _list(then.get("no comment")):
            assert part not in told
        if then.keys() & {"threads", "resolved", "review"}:
            (pull,) = github.pulls(REPO)
            found = github.world.repository(*REPO.split("/")).issues[pull["number"]].pull
            talk = "\n\n".join(one.body for one in found.comments.values() if one.login.endswith("[bot]"))
            for part in _list(then.get("threads")):
                assert part in talk
            assert len(found.resolved_threads) == then.get("resolved", len(found.resolved_threads))
            said = [one for one in found.reviews.values() if one.login.endswith("[bot]") and one.body]
            assert not said or [one.state for one in said] == ["COMMENTED"]
            for part in _list(then.get("review")):
                assert part in said[0].body
        if "check" in then:
            runs = {run["head_sha"]: run["conclusion"] or run["status"] for run in github.check_runs(REPO)}
            if then["check"] is None:
                assert runs == {}
            else:
                assert job is not None
                sha = job.head_sha or job.base_sha or ""
                assert runs.get(sha) == then["check"]
                each = {(run["head_sha"], run["external_id"]) for run in github.check_runs(REPO)}
                assert len(github.check_runs(REPO)) == len(each), "one check run for each job and commit"
        if "checks" in then:
            assert self._checks() == then["checks"]
        if "approvals" in then:  # "kind state by whom", the oldest first
            found = await ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor)).recent()
            assert [
                " ".join(filter(None, (one.kind, one.state, one.decided_by))) for one in reversed(found)
            ] == then["approvals"]
        if "pull comment" in then:  # on the first pull request, whatever the story is about
            first = "\n\n".join(one["body"] for one in github.comments(REPO, github.pulls(REPO)[0]["number"]))
            for part in _list(then["pull comment"]):
                assert part in first
        if "merged" in then:
            (issue,) = (one for one in github.world.repository(*REPO.split("/")).issues.values() if one.pull)
            assert (issue.pull.merged_at is not None) == then["merged"]
        if "reactions" in then:
            found = [content for _, content in github.reactions(REPO, self.number)]
            assert sorted(found) == sorted(then["reactions"])


def _list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
