"""One attempt at a job on a worker host, from the claimed row to the last comment.

The story: tell that it runs, provide the image, fetch the mirror, open the desk, start the container; then turn after
turn: give it, wait for its end, judge it; then check and publish, tell the end, clean up. An agent that asks a person
gets its container frozen and, after a while, removed; the answer is its next turn. A worker that is killed at any
point finds the attempt in SQL, its desk on disk and its container by label, and goes on from there.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import structlog

from bot import repo_config
from bot.audit import CONDUCTOR, Audit
from bot.audit_chain import AuditKind
from bot.branches import branch_for
from bot.config import Settings
from bot.conversation import Conversation
from bot.endings import over
from bot.errors import ConductorError, InfrastructureError, JobFailed, StaleAttempt
from bot.facts import FactFinder
from bot.forks import check_fork
from bot.github import GitHub
from bot.held_back import HeldBack
from bot.images import ImageNeeds
from bot.keeper import Keeper
from bot.limits import limits_for
from bot.listener import RECENT, Listener
from bot.model import (
    TRANSITIONS,
    ApprovalKind,
    Attempt,
    AttemptState,
    FailureKind,
    Job,
    JobKind,
    JobState,
    Phase,
    Result,
    TargetKind,
    Usage,
)
from bot.network import proxy_environment, rules_for
from bot.ports import Agent, ContainerSpec, Exit, Handle, Runner, Turn
from bot.progress import Progress, look_while
from bot.prompts import answer_prompt, bare_prompt, go_on_prompt, task_prompt, told_prompt
from bot.proposals import Proposals
from bot.publisher import Publisher
from bot.redact import Redactor
from bot.render import code, duration
from bot.report import Reporter, shown_on
from bot.results import HINTS, Verdict, asks, judge
from bot.scales import Scales
from bot.scheduling import Scheduler
from bot.services import services_of
from bot.store import Store, usage_columns
from bot.submodule_finder import Found, SubmoduleFinder, note_for_agents, note_for_people
from bot.terms import Terms
from bot.watch import GRACE, Cause, Ending, TurnWatch
from runners import quarantine, work
from runners.agents.registry import agent as agent_named
from runners.gateway.desk import Desk
from runners.gateway.server import Gateway
from runners.images import ImageBuildFailed
from runners.mirrors import Mirrors
from runners.presets import PresetSource
from runners.provision import Images

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

PROGRESS_INTERVAL = 10.0  # seconds between two edits of the comment; GitHub counts each as content creation
CHECKPOINT_INTERVAL = 60.0  # seconds between two looks for a checkpoint to keep
EXIT_WAIT = 10.0  # seconds for a container to end that was told that there are no more turns
MAX_QUESTION = 8000  # characters
MAX_TURNS = 50  # of one attempt: words for a working agent start no more than that
MAX_ORIGINS = 20  # jobs that are asked for unfinished work
READ_PERMISSIONS = {"contents": "read"}

#: What is asked about a pull request may be answered also when that is closed.
_MAY_READ_ON = frozenset({JobKind.ask, JobKind.review})

#: Configuration of agent CLIs that a pull request must not bring along: it is taken from the base branch.
AGENT_FILES = (
    ".claude", "**/.claude/**", ".mcp.json", ".claude.json", "**/CLAUDE.md", "**/CLAUDE.local.md", "**/AGENTS.md",
    "**/AGENTS.override.md", ".agents", "**/.agents/**", ".agent", "**/GEMINI.md", ".gemini", "**/QWEN.md", ".qwen",
    "opencode.json", "opencode.jsonc", ".opencode", "**/CONTEXT.md", ".codex", ".factory", ".aider*", "CONVENTIONS.md",
    ".kiro", ".amazonq", ".cursor", ".cursorrules", ".gitmodules", ".husky", ".ripgreprc",
)  # fmt: skip


def agent_files(agent: Agent) -> list[str]:
    """Those that a pull request must not bring along for ``agent``: pathspecs, as in git's ``:(top,glob)``."""
    own = [f"**/{PurePosixPath(agent.instruction_file)}"] if agent.instruction_file else []
    return [*AGENT_FILES, *(pattern for pattern in own if pattern not in AGENT_FILES)]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Everything a worker host works with."""

    settings: Settings
    store: Store
    github: GitHub
    scheduler: Scheduler
    facts: FactFinder
    reporter: Reporter
    publisher: Publisher
    audit: Audit
    redactor: Redactor
    runner: Runner
    images: Images
    gateway: Gateway
    mirrors: Mirrors
    submodules: SubmoduleFinder
    keeper: Keeper
    conversation: Conversation
    proposals: Proposals
    scales: Scales
    presets: PresetSource | None  # None: attempts have this machine's own network, and need no proxy


class Performer:
    """Carries out attempts (a ``runners.supervisor.Perform``)."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def __call__(self, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        """Do it. Raises InfrastructureError when it may go on later from where it is; call it again then.

        Returns early, with the attempt ``paused``, when a person was asked: call it again when there is an answer,
        a cancellation, or when it was asked long ago. When this task is cancelled everything stays as it is: the next
        process goes on.
        """
        story = _Attempt(self._workshop, job, attempt, stop)
        try:
            await self._tell(story)
            if not story.parked:
                # while the gateway still listens to it: its shim ends when its last report was taken
                await story.put_container_away()
        except StaleAttempt as error:
            log.warning("a newer attempt owns the job", error=str(error))
        finally:
            await story.leave()
        if not story.parked:
            await story.clean_up()

    async def _tell(self, story: _Attempt) -> None:
        try:
            await story.tell()
        except _Stopped:
            await story.end(JobState.cancelled)
        except (StaleAttempt, InfrastructureError):
            raise
        except JobFailed as error:
            await story.fail(error.phase, error.kind, error)
        except ConductorError as error:
            # GitHub or the configuration says no, and would say so again
            await story.fail(story.phase, FailureKind.configuration, error)


class _Stopped(Exception):
    """A person wants the job to stop while it is made ready."""


class _Attempt:
    """The state of one attempt while it is carried out."""

    def __init__(self, host: Workshop, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        self.host = host
        self.job = job
        self.attempt = attempt
        self.stop = stop
        self.parked = False  # a person was asked: everything stays where it is
        self.phase = job.phase or Phase.image
        self.config = repo_config.of(job)
        self.limits = limits_for(host.settings, self.config.limits)
        self.agent: Agent = agent_named(job.agent, host.settings)
        self.directory = host.settings.data_dir.absolute() / "attempts" / attempt.id
        self.desk: Desk | None = None
        self.listener = Listener(self.agent)
        self.progress = Progress()
        self.image: asyncio.Task[str] | None = None
        self.container: Handle | None = None  # None: this process did not start or find it yet
        self.removed = False  # the container is, and no other follows
        self.preparing: deque[str] = deque(maxlen=RECENT)
        self.shown_at = time.monotonic()

    # --- the story

    async def tell(self) -> None:
        host = self.host
        if self.job.state.final:  # killed after the end was written, before the traces were removed
            await self._say_the_end()
            return
        if self.job.kind is JobKind.release:
            await self._release()
            return
        if await self._published_before():
            await self._tell_the_rest()
            return
        if self.job.state is JobState.paused:
            if not await self._wake_up():
                return
        elif self.attempt.state is AttemptState.starting:
            job = self.job
            self.progress.tell("started", lambda: host.reporter.started(job))
        desk = await self._unless_stopped(self._prepare())
        while True:
            ending = await self._turn(desk)
            verdict = await self._judge(desk, ending)
            if verdict is None:
                return  # another attempt goes on, or the end was told
            if self.listener.told:
                await host.store.told(self.listener.told)
            if not verdict.asks:
                if await self._tell_more(desk):
                    continue
                await self._publish(desk, verdict)
                return
            await self._ask(desk, verdict)
            if not await self._wake_up():
                return

    async def _turn(self, desk: Desk) -> Ending:
        """The turn that is under way, or the next one, to its end. What it leaves for later is kept."""
        outcome = desk.outcome_now(desk.turns_given)
        if outcome is not None and not outcome.stopped:
            ending = Ending(cause=Cause.outcome, outcome=outcome)
        else:
            ending = await self._run_turn(desk)
        await self.record_refused(desk)
        usage = await self._usage(desk)
        await self.host.store.note(
            self.job.id, fence=self.attempt.fence, blocked=dict(desk.blocked), **usage_columns(usage)
        )
        self.job = self.job.evolve(usage=usage, blocked=desk.blocked)
        if ending.outcome is not None:
            await self.host.store.end_turn(self.attempt, desk.turns_given, ending.outcome.model_dump())
            await self.listener.listen(desk, desk.turns_given)
        await self._keep_log()
        if session_id := self.listener.transcript.session_id:
            await self.host.store.save_session(self.job.thread_id, self.job.agent, session_id)
        await self.host.keeper.keep_session(self.job, desk)
        return ending

    async def record_refused(self, desk: Desk) -> None:
        """Write into the audit trail what the agent asked for in vain, since the last time."""
        for tool, why in desk.take_refused():
            await self.host.audit.record(
                AuditKind.agent_refused,
                actor=CONDUCTOR,
                repo=self.job.repo,
                number=self.job.number,
                job_id=self.job.id,
                delivery_id=self.job.trigger.delivery_id,
                details={"agent": self.job.agent, "tool": tool, "why": why},
            )

    async def _usage(self, desk: Desk) -> Usage:
        """What the whole job has used: this attempt, and those before."""
        return await self.host.store.usage_before(self.attempt) + desk.usage()

    async def _judge(self, desk: Desk, ending: Ending) -> Verdict | None:
        """What became of the turn. None: another attempt goes on with the job, or its end was told.

        Raises JobFailed.
        """
        if self.stop.is_set():
            await self.end(JobState.cancelled)
            return None
        if halt := desk.halted:
            raise JobFailed(Phase.agent, halt.kind, halt.message, HINTS.get(halt.kind, ""))
        if ending.cause in _LIMITS:
            await self._end_over_limit(ending.cause)
            return None
        outcome = ending.outcome
        if (outcome is None or outcome.stopped) and ending.exit is not None and ending.exit.host:
            await self._go_on_after_the_host()
            return None
        if outcome is None:
            raise _container_died(ending.exit)
        if (asked := desk.requested) is not None and not (outcome.timed_out or outcome.stopped):
            # whatever it said at the end of that turn: it waits for a person now
            return asks(asked.reason)
        verdict = judge(
            self.listener.transcript,
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            timed_out=outcome.timed_out,
            stopped=outcome.stopped,
            oom=await self._ran_out_of_memory(desk, ending),
            error=outcome.error,
            changed=outcome.head is not None and outcome.head != self.job.base_sha,
        )
        if verdict.kind is FailureKind.timeout:
            words = ConductorError(verdict.message, verdict.hint)
            await self.end(JobState.timed_out, Phase.agent, FailureKind.timeout, words)
            return None
        if verdict.asks and self.agent.session_paths:
            return verdict
        if not verdict.ok or verdict.result is None:
            raise JobFailed(Phase.agent, verdict.kind or FailureKind.crash, verdict.message, verdict.hint)
        return verdict

    async def _publish(self, desk: Desk, verdict: Verdict) -> None:
        outcome = desk.outcome_now(desk.turns_given)
        if outcome is None or verdict.result is None:
            raise ValueError("nothing to publish")
        desk.finish()
        await self._remove_container()
        await self._enter(Phase.publish)
        await self.host.store.set_attempt(self.attempt, AttemptState.publishing)
        host, result = self.host, verdict.result
        reads_only = self.job.kind.reads_only
        changed = not reads_only and await host.publisher.check(self.job, desk.quarantine, outcome)
        summary = result.summary or result.title
        missing = note_for_people(desk.terms.missing)
        self.job = self.job.evolve(summary=f"{summary}\n\n{missing}".strip() if missing else summary)
        if changed:
            self.job = await host.publisher.publish(
                self.job,
                self.attempt,
                desk.quarantine,
                outcome,
                result,
                granted=desk.terms.granted_paths,
                before=lambda job: self._keep_the_rest(job, desk, result),
            )
        await self._conclude(desk.quarantine, result, changed=changed)

    async def _keep_the_rest(self, job: Job, desk: Desk, result: Result) -> None:
        """Before the push: keep what is told and asked after it, so that another host can when this one is lost."""
        await self.host.keeper.keep_words(job, desk, result)
        if job.held_back:
            await self.host.keeper.keep_held_back(job, desk)

    async def _conclude(self, repository: Path, result: Result, *, changed: bool) -> None:
        """Ask and tell what comes after a push, where there was one; then end the job. May be repeated."""
        if changed:
            await self._offer_held_back(repository)
        troubles = await self._say(repository, result)
        if troubles:
            self.job = self.job.evolve(summary="\n\n".join([self.job.summary, *troubles]))
        await self.host.keeper.forget_work(self.job)
        await self.end(JobState.succeeded)

    async def _say(self, repository: Path, result: Result) -> Sequence[str]:
        """Put what the agent says where it belongs. Returns a sentence for each thing that did not work."""
        host, job = self.host, self.job.evolve(summary=self.host.redactor.text(self.job.summary))
        match job.kind:
            case JobKind.ask:
                await host.conversation.answer(job)
            case JobKind.review if job.base_sha:
                return await host.conversation.post_review(job, result.comments, sha=job.base_sha)
            case JobKind.plan:
                title = f"Plan: {result.title or job.title}"
                self.job = await host.proposals.propose(
                    job, self.attempt, repository, ApprovalKind.plan, job.summary, title=title
                )
            case _:
                return await host.conversation.reply(job, result.replies)
        return ()

    async def _offer_held_back(self, repository: Path) -> None:
        """Ask reviewers whether the protected part of the change may be pushed, too."""
        host, held = self.host, HeldBack.load(self.job.held_back)
        if held is None or not await host.keeper.has_held_back(self.job):
            return
        listed = "\n".join(f"- {code(file)}" for file in held.files)
        more = held.count - len(held.files)
        subject = f"May the protected part of this change be pushed, too?\n\n{listed}" + (
            f"\n- … and {more} more" if more > 0 else ""
        )
        self.job = await host.proposals.propose(
            self.job,
            self.attempt,
            repository,
            ApprovalKind.protected,
            subject,
            title=f"Asks: {self.job.title}",
            details={"files": list(held.files), "count": held.count},
            at=self.job.head_sha,
        )

    async def _release(self) -> None:
        """Push what was held back, as it was then; without an agent."""
        host, job = self.host, self.job
        if job.head_sha and await host.facts.branch_sha(job.repo, job.branch or "") == job.head_sha:
            # killed after the push
            await host.publisher.show_release(job, of=await host.proposals.asked_by(job))
            await self.end(JobState.succeeded)
            return
        await self._enter(Phase.workspace)
        approval = await host.proposals.check(job)
        if approval is None:
            raise JobFailed(Phase.policy, FailureKind.refused, "Nobody has approved this.", "")
        mirror = await self._fetch()
        if self.job.base_sha != approval.sha:
            raise quarantine.conflict(self.job.branch or "", "somebody has pushed since it was approved")
        repository = self.directory / "quarantine.git"
        await quarantine.create(repository, mirror, max_input_bytes=host.settings.max_push_bytes)
        head = await host.keeper.bring_held_back(job, approval.job_id, repository)
        if head is None:
            raise JobFailed(
                Phase.workspace,
                FailureKind.infrastructure,
                "What was held back is not kept any more.",
                "Apply the patch in the pull request by hand.",
            )
        await self._enter(Phase.publish)
        await self._set_attempt(AttemptState.publishing)
        self.job = await host.publisher.release(
            self.job,
            self.attempt,
            repository,
            head,
            by=approval.decided_by or "a reviewer",
            of=await host.proposals.asked_by(job),
        )
        await self.end(JobState.succeeded)

    async def _published_before(self) -> bool:
        """Whether a lost host's attempt got as far as the push: then only the rest is to be done."""
        job, host = self.job, self.host
        if not (job.head_sha and job.branch) or self.directory.exists():
            return False
        return await host.facts.branch_sha(job.repo, job.branch) == job.head_sha

    async def _tell_the_rest(self) -> None:
        """What the lost host had still to do. The agent's words were kept before the push."""
        host = self.host
        await self._enter(Phase.publish)
        result = await host.keeper.bring_words(self.job, scratch=host.settings.data_dir)
        result = result or Result(status="done")
        self.job = await host.publisher.show(self.job, self.attempt, title=result.title or self.job.title)
        await self._conclude(self.directory / "quarantine.git", result, changed=True)

    # --- before a turn

    async def _prepare(self) -> Desk:
        """Image, mirror and desk; whatever an earlier process did already is found, not done again."""
        host = self.host
        if self.desk is not None:
            return self.desk
        if (self.directory / "attempt.json").exists() and self.job.base_sha and self.job.branch:
            desk = Desk.open(self.directory)
            if desk.turns_given:
                self.desk = desk
                await host.gateway.open(desk)
                return desk
            desk.close()  # nobody knows how far that one came: all of it may be done once more
        await host.proposals.check(self.job)
        await self._enter(Phase.workspace)
        needs = ImageNeeds(capabilities=self._capabilities)
        # neither needs the other
        making = self.image = asyncio.create_task(
            host.images.ensure(self.agent, needs, log=self._tell_line), name=f"image {self.agent.name}"
        )
        mirror = await self._fetch()
        if not await host.proposals.covers(self.job):
            raise quarantine.conflict(self.job.branch or "", "somebody has pushed since it was approved")
        submodules = await self._submodules(mirror)
        terms = self._terms(await self._rules(await self._made(making)), submodules)
        granted, _ = await host.proposals.grants(self.job)
        terms = terms.with_grants(granted)
        desk = self.desk = Desk.create(self.directory, attempt_id=self.attempt.id, mirror=mirror, terms=terms)
        await quarantine.create(desk.quarantine, mirror, max_input_bytes=host.settings.max_push_bytes)
        await host.keeper.bring_session(self.job, desk)
        await self._take_up_work(desk, mirror)
        await host.gateway.open(desk)
        return desk

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What ``work`` answers. A first clone, an image, services take minutes: who cancels waits for none of them.

        Raises _Stopped; others that wait for the same image still get it.
        """
        doing, stopping = asyncio.create_task(work), asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise _Stopped
            return doing.result()
        finally:
            for task in (doing, stopping):
                task.cancel()
            await asyncio.gather(doing, stopping, return_exceptions=True)

    async def _rules(self, image: str) -> tuple[str, ...]:
        """Where the job may go: what the image's package managers need, and what its repository may add."""
        if self.host.presets is None:
            return ()
        rules = rules_for(self.host.settings, self.config.network, await self.host.presets.of(image))
        for entry in (*rules.refused, *rules.unknown_presets):
            self._tell_line(
                f"`network` in `{repo_config.PATH}`: {entry} is not allowed by the server's operator"
            )
        return rules.allow

    def _terms(self, allow: tuple[str, ...], submodules: Found) -> Terms:
        job = self.job
        return Terms(
            agent=job.agent,
            allow=allow,
            job_id=job.id,
            thread_id=job.thread_id,
            repo_id=job.repo.id,
            actor_id=job.trigger.actor.id,
            budget_job=_lowest(job.budget, self.config.budget.job),
            budget_thread=self.config.budget.thread,
            budget_repository_day=self.config.budget.day,
            protected=self.config.protected,
            model=job.model,
            lfs=self.config.checkout.lfs,
            repository=job.repo.full_name,
            installation_id=job.repo.installation_id,
            submodules=tuple(submodules.submodules),
            missing=tuple(submodules.missing),
        )

    @property
    def _capabilities(self) -> tuple[str, ...]:
        """What the image must hold besides the agent."""
        asked = self.config.image.capabilities
        return (*asked, "git-lfs") if self.config.checkout.lfs else asked

    async def _submodules(self, mirror: Path) -> Found:
        """What there is of the repository's submodules, when it wants them."""
        job = self.job
        if not self.config.checkout.submodules or not job.base_sha:
            return Found()
        declared_at = job.base_sha
        if job.target is TargetKind.pull_request:
            declared_at = await self.host.mirrors.resolve(mirror, f"refs/heads/{job.base}")
        found = await self.host.submodules.find(
            job, mirror, attempt=self.attempt.id, declared_at=declared_at, tree=job.base_sha
        )
        for sentence in found.missing:
            self._tell_line(f"submodule {sentence}")
        return found

    async def _fetch(self) -> Path:
        host, repo = self.host, self.job.repo
        pull = None
        if self.job.target is TargetKind.pull_request:
            pull = await host.facts.pull(repo, self.job.number)
            branch, base = pull.head_ref, pull.base_ref
            if pull.from_fork is not self.job.fork:
                raise JobFailed(
                    Phase.workspace,
                    FailureKind.conflict,
                    "Where the pull request's branch is has changed since this was asked for.",
                    "Ask again.",
                )
            if not pull.open and self.job.kind not in _MAY_READ_ON:
                raise over(Phase.workspace, merged=pull.merged)
        else:
            base = self.job.base or await host.facts.default_branch(repo)
        if self.job.own_branch:
            branch = self.job.branch or branch_for(
                self.job.number,
                host.redactor.text(self.job.title),
                self.job.id,
                kind="pull" if self.job.fork else "issue",
            )
        start = f"refs/heads/{branch if pull else base}"
        # the branch of one that is closed may be gone, and then GitHub still has what it was
        by_number = self.job.fork or (pull is not None and not pull.open)
        if by_number:
            start = f"refs/pull/{self.job.number}/head"
        token = await host.github.token(
            repo.installation_id, repository_id=repo.id, permissions=READ_PERMISSIONS
        )
        mirror = await host.mirrors.fetch(
            repo,
            url=f"{host.settings.github_url}/{repo.full_name}.git",
            token=token.value,
            borrower=self.attempt.id,
            refs=[start] if by_number else (),
        )
        base_sha = await host.mirrors.resolve(mirror, start)
        if self.job.fork:
            await check_fork(self.job, host.settings, mirror, base=base, head=base_sha)
        if pull is not None and self.job.base_sha and self.job.base_sha != base_sha:
            # pushed to while it waited: its check run was put on the head of then
            await host.reporter.left(self.job, self.job.base_sha, now=base_sha)
        await self._note(branch=branch, base=base, base_sha=base_sha)
        return mirror

    async def _take_up_work(self, desk: Desk, mirror: Path) -> None:
        """Lay what an earlier try left on the desk. An agent without a model starts its steps afresh."""
        job = self.job
        if self.agent.llm is None or not (job.go_on or self.attempt.fence > 1):
            return
        found = await self.host.keeper.bring_work(job, desk, mirror, origins=await self._origins())
        if found is None or found[0] == job.base_sha:
            return
        if job.target is TargetKind.issue:
            await self._note(base_sha=found[0])  # goes on from where that one began
        else:
            desk.work.unlink(missing_ok=True)  # the branch has moved since

    async def _origins(self) -> list[str]:
        """The jobs whose work this one goes on with, the nearest first: one of them may have ended before it began."""
        job: Job | None = self.job
        origins: list[str] = []
        while job is not None and len(origins) < MAX_ORIGINS:
            origins.append(job.id)
            job = await self.host.store.job(job.retry_of) if job.go_on and job.retry_of else None
        return origins

    # --- a turn

    async def _run_turn(self, desk: Desk) -> Ending:
        """Start (or find) the container, give the turn unless it was given, wait for its end."""
        host = self.host
        found = await self._find_container()
        if found is None and self.attempt.state is not AttemptState.starting and desk.turns_given:
            log.warning("the container is gone")
            return Ending(cause=Cause.container, exit=Exit(code=None, host=True))
        if found is None or self.attempt.state is AttemptState.starting:
            await self._enter(Phase.image)
            image = await self._unless_stopped(self._image(desk))
            await self._enter(Phase.start)
            await host.store.check_fence(self.job.id, self.attempt.fence)
            if found is None or not found.running:
                if found is not None:
                    await host.runner.remove(found)
                # an engine that was killed while it started a container may know nothing of its processes
                desk.renew_token()
            # services may have to be pulled, and take their time to be ready; what is left is found by its label
            found = await self._unless_stopped(host.runner.start(self._spec(desk, image)))
        else:
            await host.runner.unpause(found)  # it was frozen, if we were killed while it was woken up
        self.container = found
        await self._set_attempt(AttemptState.running)
        if not desk.turns_given:
            await self._give(desk, 1)
        await self._enter(Phase.agent)
        watch = TurnWatch(
            host.runner,
            desk,
            found,
            turn=desk.turns_given,
            deadline=self.attempt.deadline,
            idle=self.limits.idle,
            workspace=self.limits.workspace,
            weigh=host.scales.weigh,
        )
        following = asyncio.create_task(self._follow(desk))
        try:
            return await watch.wait(self.stop)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _find_container(self) -> Handle | None:
        for handle in await self.host.runner.list():
            if handle.attempt_id == self.attempt.id:
                return handle
        return None

    async def _image(self, desk: Desk) -> str:
        """The image of this job: with what its repository needs, and with its set-up steps done."""
        host, asked = self.host, self.config.image
        if self.image is not None and not asked.setup:
            return await self._made(self.image)  # provided while the mirror was fetched
        needs = ImageNeeds(capabilities=self._capabilities)
        if asked.setup and desk.mirror is not None:
            default = await host.facts.default_branch(self.job.repo)
            needs = ImageNeeds(
                capabilities=self._capabilities,
                setup=asked.setup,
                repository=self.job.repo.id,
                mirror=desk.mirror,
                # never the pull request's: what it proposes must not reach later jobs
                revision=await host.mirrors.resolve(desk.mirror, f"refs/heads/{default}"),
                terms=desk.terms,
            )
        return await self._made(host.images.ensure(self.agent, needs, log=self._tell_line))

    async def _made(self, making: Awaitable[str]) -> str:
        try:
            return await making
        except ImageBuildFailed as error:
            raise JobFailed(
                Phase.image, FailureKind.infrastructure, f"{error.message}\n\n{error.tail}", error.hint
            ) from error

    def _tell_line(self, line: str) -> None:
        """A line about what is being made ready; shown now and then."""
        self.preparing.append(line)
        if time.monotonic() - self.shown_at > PROGRESS_INTERVAL:
            self.shown_at = time.monotonic()
            self._show(tuple(self.preparing))

    async def _tell_more(self, desk: Desk) -> bool:
        """Give the agent what people have said since it began, as one more turn. False when there is nothing."""
        if not self.agent.session_paths or desk.turns_given >= MAX_TURNS:
            return False
        said = await self.host.store.untold(self.job.id)
        if not said:
            return False
        await self._give(desk, desk.turns_given + 1, told_prompt([(by, words) for _, by, words in said]))
        await self.host.store.told(event for event, _, _ in said)
        log.info("told more", turn=desk.turns_given)
        return True

    async def _give(self, desk: Desk, number: int, prompt: str = "") -> None:
        """Give the next turn; ``prompt``: by default what the job's kind and state want."""
        host, job = self.host, self.job
        # a container that had a turn has its session itself, also one that is too large to be kept
        has_session = number > 1 or desk.session_tar.exists()
        session = await host.store.session(job.thread_id, job.agent) if has_session else None
        bundle = await work.describe(desk.work)
        prompt = prompt or self._prompt(resumes=session is not None, work=bundle is not None)
        if number == 1 and self.agent.llm is not None:
            note = note_for_agents(desk.terms.submodules, desk.terms.missing)
            prompt = f"{prompt}\n\n{note}" if note else prompt
        seconds = max(1, round((self.attempt.deadline - datetime.now(UTC)).total_seconds()))
        turn = Turn(
            number=number,
            prompt=prompt,
            model=job.model,
            session_id=session or str(uuid.uuid5(uuid.NAMESPACE_URL, self.attempt.id)),
            resume=session is not None,
            timeout=seconds,
        )
        try:
            command = self.agent.command(turn, gateway="{gateway}", token=desk.token)
        except ConductorError as error:
            raise JobFailed(Phase.start, FailureKind.configuration, error.message, error.hint) from error
        proxy = proxy_environment(desk.token) if host.presets else {}
        identity = await host.github.identity()
        on_pull = job.target is TargetKind.pull_request
        desk.give(
            {
                "number": number,
                "command": asdict(command) | {"env": proxy | dict(command.env)},
                "timeout": seconds,
                "checkout": {
                    "base_sha": job.base_sha,
                    "branch": "work",
                    "restore": agent_files(self.agent) if on_pull else [],
                    **({"restore_from": await self._base_of_pull(desk)} if on_pull else {}),
                    **({"work": bundle.head} if bundle else {}),
                    "lfs": desk.terms.lfs,
                    "submodules": [one.model_dump() for one in desk.terms.submodules],
                },
                "session_paths": list(self.agent.session_paths),
                "commit": {
                    "name": identity.login,
                    "email": identity.email,
                    "message": f"Work on #{job.number}",
                },
            }
        )
        await host.store.begin_turn(self.attempt, number, prompt)

    def _prompt(self, *, resumes: bool, work: bool) -> str:
        job, may_ask = self.job, bool(self.agent.session_paths)
        tools = may_ask and self.agent.tools
        if self.agent.llm is None:
            return bare_prompt(job)
        answered = job.answer is not None
        if answered and resumes:
            return answer_prompt(job)
        goes_on = job.go_on or work
        task = (
            go_on_prompt(job, work=work, may_ask=may_ask, tools=tools)
            if goes_on
            else task_prompt(job, may_ask=may_ask, tools=tools)
        )
        return f"{task}\n\n{answer_prompt(job)}" if answered else task

    async def _base_of_pull(self, desk: Desk) -> str:
        if desk.mirror is None:
            raise InfrastructureError("The attempt has no mirror.", "Write `/agent retry`.")
        return await self.host.mirrors.resolve(desk.mirror, f"refs/heads/{self.job.base}")

    async def _follow(self, desk: Desk) -> None:
        """Read the agent's events as they come; now and then show the last of them and keep its checkpoint."""
        shown: object = ((), None)
        kept, looked = None, time.monotonic()

        async def look() -> None:
            nonlocal shown, kept, looked
            told = (self.listener.recent, desk.progress)
            if told != shown:
                await self._keep_log()  # first: it fails where a newer attempt owns the job, and its comment
                self._show(self.listener.recent)
                shown = told
            if time.monotonic() - looked > CHECKPOINT_INTERVAL:
                looked = time.monotonic()
                newest = await quarantine.head(desk.quarantine, quarantine.CHECKPOINT)
                if newest != kept and await self.host.keeper.keep_work(self.job, desk, finished=False):
                    kept = newest

        listening = asyncio.create_task(self.listener.listen(desk, desk.turns_given))
        try:
            await look_while(listening, look, every=PROGRESS_INTERVAL)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def _spec(self, desk: Desk, image: str) -> ContainerSpec:
        return ContainerSpec(
            attempt_id=self.attempt.id,
            image=image,
            argv=self.host.images.shim_argv,
            env={"CONDUCTOR_TOKEN": desk.token},
            socket_dir=desk.socket_dir,
            mirror=desk.mirror,
            limits=self.limits.container,
            services=services_of(self.config.services, self.host.settings),
            labels={"agent-conductor.correlation": self.job.trigger.delivery_id},
        )

    async def _ran_out_of_memory(self, desk: Desk, ending: Ending) -> bool:
        """Whether the kernel ended the agent: only the container as a whole can tell, when it has ended."""
        outcome = ending.outcome
        if outcome is None or (
            outcome.signal != signal.SIGKILL and outcome.exit_code != 128 + signal.SIGKILL
        ):
            return False
        if ending.exit is not None:
            return ending.exit.oom
        desk.finish()
        if (container := await self._find_container()) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_WAIT):
                    return (await self.host.runner.wait(container)).oom
        return False

    async def _end_over_limit(self, cause: Cause) -> None:
        state, kind, words = _LIMITS[cause]
        message = words.format(
            idle=duration(self.limits.idle or 0), workspace=f"{self.limits.workspace / 2**30:.3g} GiB"
        )
        await self.end(state, Phase.agent, kind, ConductorError(message, HINTS.get(kind, "")))

    async def _go_on_after_the_host(self) -> None:
        """The engine took the container down: nothing was wrong with the work, so a new attempt goes on with it."""
        desk, store = self.desk, self.host.store
        interrupted = await store.interruptions(self.job.id)
        if interrupted > self.host.settings.restarts:
            raise JobFailed(
                Phase.agent,
                FailureKind.host,
                "The worker host or its container engine was restarted while the agent worked, "
                f"{interrupted} times in all.",
                HINTS[FailureKind.host],
            )
        if desk is not None:
            finished = desk.outcome_now(desk.turns_given) is not None  # its shim was left the time for it
            await self.host.keeper.keep_work(self.job, desk, finished=finished)
        taken = await store.take_over(self.job.id, from_fence=self.attempt.fence, host=self.attempt.host)
        if taken is None:
            raise StaleAttempt(f"Job {self.job.id} was taken by another host.")
        self.job = taken[0]
        log.warning("the host took the container down; a new attempt goes on", attempt=taken[1].id)

    # --- a question

    async def _ask(self, desk: Desk, verdict: Verdict) -> None:
        """Ask a person, and wait without working: what was done so far is kept."""
        host, request = self.host, desk.requested
        words = verdict.result.summary or verdict.result.title if verdict.result else ""
        await host.keeper.keep_work(self.job, desk, finished=True)
        if request is not None and request.kind is not None:
            words = request.subject
            self.job = await host.proposals.propose(
                self.job,
                self.attempt,
                desk.quarantine,
                request.kind,
                host.redactor.text(request.subject),
                title=f"Asks: {self.job.title}",
                details=request.details,
            )
        # until the next turn makes one, what was handed in is the newest there is
        await quarantine.forget_checkpoint(desk.quarantine)
        moved = await host.store.move(
            self.job.id,
            JobState.paused,
            expected=[JobState.running],
            fence=self.attempt.fence,
            question=host.redactor.text(words)[:MAX_QUESTION],
            asked_at=datetime.now(UTC),
            answer=None,
            answered_by=None,
            hibernated=False,
            reported=None,
        )
        if moved is None:
            raise StaleAttempt(f"Job {self.job.id} was ended by somebody else.")
        self.job = moved
        log.info("a person is asked", question=moved.question[:200])
        await self._set_attempt(AttemptState.paused)
        self._show()
        self._show_check()
        await self.progress.close()
        # what fails here, or was never begun, is told later: housekeeping looks for questions nobody heard of
        if request is None or request.kind is None:
            await self._report(host.reporter.ask(moved))
        else:  # the approval has a comment of its own
            await host.store.mark_reported(moved.id, moved.state)
        await host.scheduler.offer_waiting()

    async def _wake_up(self) -> bool:
        """Whether the paused job goes on now. If not, it was ended, stays as it is (``parked``), or sleeps deeper."""
        host = self.host
        self.job = job = await host.store.job(self.job.id) or self.job
        if job.state is not JobState.paused or job.hibernated or job.fence != self.attempt.fence:
            return False  # nobody needs this container any more
        if job.cancel_requested_by:
            await self.end(JobState.cancelled)
            return False
        await self._set_attempt(AttemptState.paused)
        if not (self.directory / "attempt.json").exists():
            # its container cannot be spoken to any more; what was kept is enough for a new attempt
            log.warning("the folder of the attempt is gone", folder=str(self.directory))
            await self._hibernate(job)
            return False
        if job.answer is None:
            await self._sleep(job)
            return False
        desk = await self._prepare()
        await self._take_grants(desk)
        if desk.outcome_now(desk.turns_given) is not None:
            await self._renew_deadline(job)
            await self._give(desk, desk.turns_given + 1)
        moved = await host.store.move(
            job.id, JobState.running, expected=[JobState.paused], fence=self.attempt.fence
        )
        if moved is None:
            raise StaleAttempt(f"Job {job.id} was ended by somebody else.")
        self.job = moved
        await self._set_attempt(AttemptState.running)
        log.info("answered", by=job.answered_by)
        return True

    async def _take_grants(self, desk: Desk) -> None:
        """Let the gateway enforce what reviewers granted; the agent is told what does not hold any more."""
        granted, void = await self.host.proposals.grants(self.job)
        for grant in granted:
            desk.grant(grant)
        if void:
            words = [self.job.answer or "", "But that does not hold any more, so it is not granted:", *void]
            self.job = self.job.evolve(answer="\n\n".join(words).strip())

    async def _sleep(self, job: Job) -> None:
        """Freeze the container; after a while remove it: then any host may go on."""
        host = self.host
        asked = job.asked_at or datetime.now(UTC)
        if datetime.now(UTC) - asked >= timedelta(seconds=host.settings.hibernate_after):
            desk = await self._prepare()
            desk.finish()
            await self._hibernate(job)
            return
        if (container := await self._find_container()) is not None:
            await host.runner.pause(container)
        self.parked = True

    async def _hibernate(self, job: Job) -> None:
        # said before the container goes: whoever finds a hibernated job's container removes it
        await self.host.store.note(job.id, fence=self.attempt.fence, hibernated=True)
        log.info("hibernated")

    async def _renew_deadline(self, job: Job) -> None:
        """Waiting for a person costs no time."""
        now = datetime.now(UTC)
        left = self.attempt.deadline - (job.asked_at or now)
        self.attempt = replace(self.attempt, deadline=now + left)
        await self.host.store.renew(self.attempt, as_of=now)

    # --- the end

    async def end(
        self,
        state: JobState,
        phase: Phase | None = None,
        kind: FailureKind | None = None,
        error: ConductorError | None = None,
    ) -> None:
        """Write the end, then tell it. Only the newest attempt may; a later report repeats nothing."""
        store, desk = self.host.store, self.desk
        words = f"{error.message}\n\n{error.hint}".strip() if error else ""
        message = self.host.redactor.text(words)
        if desk is not None:
            desk.finish()
            self.job = self.job.evolve(usage=await self._usage(desk))
            if state is not JobState.succeeded:
                finished = desk.outcome_now(desk.turns_given) is not None
                await self.host.keeper.keep_work(self.job, desk, finished=finished)
        moved = await store.move(
            self.job.id,
            state,
            expected=[
                source for source in (JobState.running, JobState.paused) if state in TRANSITIONS[source]
            ],
            fence=self.attempt.fence,
            phase=phase and str(phase),
            failure=kind and str(kind),
            message=message,
            summary=self.host.redactor.text(self.job.summary),
            **usage_columns(self.job.usage),
        )
        if moved is None:
            raise StaleAttempt(f"Job {self.job.id} was ended by somebody else.")
        log.info("job ended", state=str(state), phase=phase, failure=kind, message=message[:300])
        self.job = moved
        if state is not JobState.succeeded:  # else a plan or what was held back may wait for a review
            await self._report(self.host.proposals.withdraw(moved))
        await self._say_the_end()

    async def fail(self, phase: Phase, kind: FailureKind, error: ConductorError) -> None:
        """End it as failed; or as cancelled when somebody wanted that already, and this may well come of it.

        A suspended App, or one that was removed, is refused everything before this host hears of it.
        """
        now = await self.host.store.job(self.job.id)
        if now is not None and now.cancel_requested_by and not now.state.final:
            log.info("failed while it was being cancelled", error=str(error))
            await self.end(JobState.cancelled)
        else:
            await self.end(JobState.failed, phase, kind, error)

    async def _say_the_end(self) -> None:
        await self.progress.close("sticky", "check")
        # what fails here is told later: housekeeping looks for ends that were not reported
        await self._report(self.host.reporter.finished(self.job, also_on=self.job.base_sha))

    async def put_container_away(self, grace: float = GRACE) -> None:
        """Remove the container; what cannot be removed now is the janitor's."""
        await self._report(self._remove_container(grace))

    async def leave(self) -> None:
        """Close what this process holds open; nothing is removed."""
        await self.progress.close("sticky", "check", "started")
        if self.image is not None:
            self.image.cancel()
            await asyncio.gather(self.image, return_exceptions=True)
        if self.desk is not None:
            await self.host.gateway.close(self.attempt.id)
            self.desk.close()

    async def clean_up(self) -> None:
        """Remove what the attempt left on this host, then let the next jobs go."""
        host = self.host
        await self.put_container_away(grace=1.0)  # nobody takes the shim's report any more
        host.mirrors.release(self.attempt.id)
        await host.publisher.keep_large_files(self.job, self.directory / "quarantine.git")
        await asyncio.to_thread(_remove_tree, self.directory)
        await host.store.set_attempt(self.attempt, AttemptState.ended)
        await host.scheduler.offer_waiting()

    async def _remove_container(self, grace: float = GRACE) -> None:
        if self.removed:
            return
        runner = self.host.runner
        found = self.container or await self._find_container()
        if found is not None:
            await runner.stop(found, grace)
            await runner.remove(found)
        self.removed = True

    async def _set_attempt(self, state: AttemptState) -> None:
        await self.host.store.set_attempt(self.attempt, state)
        self.attempt = replace(self.attempt, state=state)

    async def _note(self, **changes: Any) -> None:
        """Write facts about the job, while this attempt owns it."""
        await self.host.store.note(self.job.id, fence=self.attempt.fence, **changes)
        self.job = self.job.evolve(**changes)

    async def _enter(self, phase: Phase) -> None:
        self.phase = phase
        await self._note(phase=phase)
        self.job = self.job.evolve(state=JobState.running)
        log.info("phase", phase=str(phase))
        if phase in (Phase.image, Phase.agent, Phase.publish):
            self._show()
        if phase is Phase.agent:
            self._show_check()

    def _show_check(self) -> None:
        job = self.job
        if shown_on(job):
            self.progress.tell("check", lambda: self.host.reporter.checks_of(job))

    def _show(self, lines: Sequence[str] = ()) -> None:
        job = self.job
        note = self.desk.progress if self.desk is not None else None
        said = (*lines, note.text) if note is not None and note.text else lines
        todo = note.todo if note is not None else ()
        self.progress.tell("sticky", lambda: self.host.reporter.progress(job, lines=said, todo=todo))

    async def _keep_log(self) -> None:
        """For `/agent logs`, which is answered by a process that has no containers."""
        await self.host.store.note(
            self.job.id, fence=self.attempt.fence, recent_log=self.host.redactor.text(self.listener.log)
        )

    async def _report(self, work: Awaitable[Any]) -> None:
        """Tell people what can be told now: GitHub's troubles must not end a job."""
        try:
            await work
        except ConductorError as error:
            log.warning("not reported", error=str(error))


#: Causes that are limits -> how the job ends, and the sentence for it.
_LIMITS: Mapping[Cause, tuple[JobState, FailureKind, str]] = {
    Cause.deadline: (JobState.timed_out, FailureKind.timeout, "The agent used up its time and was ended."),
    Cause.idle: (
        JobState.timed_out,
        FailureKind.idle,
        "The agent showed no sign of life for {idle} and was ended.",
    ),
    Cause.silent: (
        JobState.failed,
        FailureKind.crash,
        "Nothing in the agent's container answered any more, so it was ended.",
    ),
    Cause.disk: (
        JobState.failed,
        FailureKind.disk,
        "The agent's workspace grew larger than {workspace}, so it was ended.",
    ),
}


def _container_died(exit_: Exit | None) -> JobFailed:
    if exit_ is not None and exit_.oom:
        message = "The agent used up its memory and was ended by the kernel."
        return JobFailed(Phase.agent, FailureKind.oom, message, HINTS[FailureKind.oom])
    code = f" (exit code {exit_.code})" if exit_ is not None and exit_.code is not None else ""
    message = f"The agent's container ended by itself{code}."
    return JobFailed(Phase.agent, FailureKind.crash, message, HINTS[FailureKind.crash])


def _lowest(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _remove_tree(directory: Path) -> None:
    """Nothing in it was written by a container, except what the gateway took in: no links are followed."""
    shutil.rmtree(directory, ignore_errors=True)
