"""Stories that run side by side while parts are killed: what a person does, and what must be so at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bot.model import FailureKind, Job, JobState, Phase
from bot.store import Store
from tests.faults.github_host import RemoteGitHub
from tests.faults.parts import LOOK, Timeline

BOT = "agent-conductor[bot]"
MARKER = "<!-- agent-conductor:job:"
STEPS = 5  # of a story: see `Story.step`

#: How many of each kind in twenty.
MIX = {"label": 6, "comment": 4, "pull": 2, "failing": 2, "no change": 2, "cancel": 3, "refused": 1}


@dataclass
class Story:
    """One issue or pull request, and what somebody wants there."""

    kind: str
    title: str
    work: float  # seconds that the agent takes
    begins: float  # seconds after the round's begin
    number: int = 0
    branch: str = ""  # of a pull request that is there before
    comment: int | None = None  # the one that asks
    jobs: list[Job] = field(default_factory=list)
    cancel_at: int = 2  # the step at which its cancellation is asked for
    cancelled: bool = False

    @property
    def file(self) -> str:
        """What its agent writes."""
        return f"{self.title.replace(' ', '-')}.txt"

    @property
    def steps(self) -> str:
        """The agent's task."""
        lines = {
            "failing": "exit 3",
            "no change": "true",
            "cancel": "sleep 120",
        }.get(self.kind, f"echo {self.title} > {self.file}")
        return f"```sh\nsleep {self.work:.2f}\n{lines}\n```"

    @property
    def job(self) -> Job | None:
        """Its job, when there is one."""
        return self.jobs[0] if self.jobs else None

    @property
    def step(self) -> int:
        """How far it is: 0 nothing, 1 queued, 2 prepared, 3 the agent works, 4 published, 5 over."""
        if self.job is None:
            return 0
        if self.job.state is JobState.queued:
            return 1
        if self.job.state.final:
            return 5
        return {Phase.agent: 3, Phase.publish: 4}.get(self.job.phase or Phase.image, 2)

    def __str__(self) -> str:
        told = [
            f"{job.id} {job.state} {job.phase or ''} {job.failure or ''} fence {job.fence}: {job.message[:160]!r}"
            for job in self.jobs
        ]
        return f"#{self.number} {self.title} ({self.kind}): {'; '.join(told) or 'no job'}"


def twenty(rng: random.Random, spread: float) -> list[Story]:
    """The mix, in an order and at moments of the seed's."""
    kinds = [kind for kind, count in MIX.items() for _ in range(count)]
    rng.shuffle(kinds)
    return [
        Story(
            kind=kind,
            title=f"Story {number} of {kind}",
            work=rng.uniform(1, 8),
            begins=rng.uniform(0, spread),
            cancel_at=rng.choice([1, 2, 3]),
        )
        for number, kind in enumerate(kinds, 1)
    ]


class Teller:
    """Plays one story as the people on GitHub would."""

    def __init__(self, github: RemoteGitHub, repo: str, timeline: Timeline) -> None:
        self._github = github
        self._repo = repo
        self._timeline = timeline

    async def prepare(self, story: Story) -> None:
        """What is there before the round."""
        if story.kind == "pull":
            story.branch = f"feature-{story.title.split()[1]}"
            files = {"README.md": f"{story.title}\n"}
            await self._github.as_user("maria", "push_commit", self._repo, story.branch, files)
            made = await self._github.as_user("maria", "open_pull", self._repo, story.branch, story.title)
        else:
            body = story.steps if story.kind not in ("comment", "refused") else "See below."
            made = await self._github.as_user("maria", "open_issue", self._repo, story.title, body)
        story.number = made["number"]

    async def begin(self, story: Story) -> None:
        """Ask for the work, when its time has come; then for its end, when it is such a story."""
        await asyncio.sleep(story.begins)
        if story.kind in ("comment", "refused", "pull"):
            who = "rita" if story.kind == "refused" else "maria"
            text = f"/agent run\n{story.steps}"
            made = await self._github.as_user(who, "comment", self._repo, story.number, text)
            story.comment = made["id"]
        else:
            await self._github.as_user("maria", "add_label", self._repo, story.number, "agent")
        if story.kind == "cancel":
            while story.step < story.cancel_at:
                await asyncio.sleep(LOOK)
            self._timeline.note(f"#{story.number} is to be cancelled at step {story.step}")
            await self._github.as_user("maria", "comment", self._repo, story.number, "/agent cancel")
            story.cancelled = True


def unfinished(story: Story, unreported: set[str]) -> str:
    """Why the story is not over, by what SQL says; empty when it is."""
    if story.kind == "refused":
        return ""  # the comment is looked for at the end
    if story.job is None:
        return "no job"
    if not story.job.state.final:
        return f"{story.job.state} in phase {story.job.phase}"
    if story.job.id in unreported:
        return "its end was not told"
    if story.kind == "cancel" and not story.cancelled:
        return "not cancelled yet"
    return ""


def unanswered(story: Story, seen: Mapping[str, Any]) -> str:
    """What GitHub does not show yet; empty when all is there."""
    if story.kind == "refused":
        refusals = [one for one in seen["comments"][str(story.number)] if one["user"]["login"] == BOT]
        return "" if refusals else "no refusal"
    return "" if _eyes(story, seen) else "no reaction"


def _eyes(story: Story, seen: Mapping[str, Any]) -> bool:
    found = (
        seen["reactions"][str(story.number)]
        if story.comment is None
        else seen["comment reactions"][str(story.comment)]
    )
    return [BOT, "eyes"] in found


def wrongs(story: Story, seen: Mapping[str, Any]) -> list[str]:
    """What is not as it must be, now that all is over."""
    found: list[str] = []

    def must(holds: bool, what: str) -> None:
        if not holds:
            found.append(f"#{story.number} {story.title}: {what}")

    ours = [one["body"] for one in seen["comments"][str(story.number)] if one["user"]["login"] == BOT]
    if story.kind == "refused":
        must(story.jobs == [], "a job for somebody without write access")
        must(len(ours) == 1, f"{len(ours)} answers to a refused request")
        return found
    must(len(story.jobs) == 1, f"{len(story.jobs)} jobs for one trigger")
    job = story.job
    if job is None:
        return found
    stickies = [body for body in ours if f"{MARKER}{job.id} -->" in body]
    must(len(stickies) == 1, f"{len(stickies)} comments about its job")
    must(_eyes(story, seen), "no 👀")
    replies = 1 if story.kind == "cancel" else 0  # "nothing to cancel", when it was over already
    must(len(ours) <= 1 + replies, f"{len(ours)} comments of the bot: {ours}")

    wanted, sign = {
        "failing": (JobState.failed, "❌"),
        "no change": (JobState.succeeded, "☑️"),
        "cancel": (JobState.cancelled, "🛑"),
    }.get(story.kind, (JobState.succeeded, "✅"))
    must(job.state is wanted, f"it is {job.state} ({job.failure}): {job.message!r}")
    if story.kind == "failing":
        must(job.failure is FailureKind.agent, f"it failed as {job.failure}: {job.message!r}")
    must(all(sign in body for body in stickies), f"the comment does not show {sign}: {stickies}")

    made = job.state is JobState.succeeded and story.kind in ("label", "comment", "pull")
    branch = job.branch if story.kind == "pull" or made else None
    pushes = [push for push in seen["pushes"] if push["ref"] == f"refs/heads/{branch}" and push["by"] == BOT]
    must(len(pushes) == (1 if made else 0), f"{len(pushes)} pushes to {branch}")
    pulls = [one for one in seen["pulls"] if one["head"]["ref"] == branch]
    must(len(pulls) == (1 if branch else 0), f"{len(pulls)} pull requests of {branch}")
    if made:
        must(seen["branches"].get(branch) == job.head_sha, f"{branch} is not at the published commit")
        runs = [
            run["conclusion"]
            for run in seen["check runs"]
            if (run["external_id"], run["head_sha"]) == (job.id, job.head_sha)
        ]
        must(runs == ["success"], f"its check runs are {runs}")
    for run in seen["check runs"]:
        if run["external_id"] == job.id:
            must(run["status"] == "completed", f"its check run on {run['head_sha'][:7]} is {run['status']}")
    pairs = [(run["external_id"], run["head_sha"]) for run in seen["check runs"]]
    must(len(pairs) == len(set(pairs)), "two check runs for one job and commit")
    return found


async def look(store: Store, repo_id: int, stories: Sequence[Story]) -> set[str]:
    """Read every story's jobs; returns the ids of those whose end was not told."""
    async with asyncio.timeout(20):
        jobs = await store.recent_jobs(200)
        unreported = {job.id for job in await store.unreported_jobs()}
    for story in stories:
        story.jobs = [job for job in jobs if (job.repo.id, job.number) == (repo_id, story.number)]
    return unreported
