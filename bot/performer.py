"""One attempt at a job on a worker host, from the claimed row to the last comment.

The story: tell that it runs, provide the image, fetch the mirror, open the desk, start the container, give the turn,
wait for its outcome, judge it, check and publish, tell the end, clean up. A worker that is killed at any point finds
the attempt in SQL, its desk on disk and its container by label, and goes on from there.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from bot.branches import branch_for
from bot.config import Settings
from bot.errors import ConductorError, InfrastructureError, JobFailed, StaleAttempt
from bot.facts import FactFinder
from bot.github import GitHub
from bot.model import (
    Attempt,
    AttemptState,
    FailureKind,
    Job,
    JobState,
    Phase,
    TargetKind,
    Usage,
)
from bot.ports import Agent, ContainerSpec, Handle, Limits, Runner, Turn
from bot.progress import Progress
from bot.prompts import task_prompt, visible
from bot.publisher import Publisher
from bot.queue import Dispatcher
from bot.redact import Redactor
from bot.report import Reporter
from bot.results import Transcript, Verdict, judge
from bot.store import Store, usage_columns
from bot.usage import price
from runners import quarantine
from runners.agents.registry import agent as agent_named
from runners.gateway.desk import Desk, Outcome
from runners.gateway.server import Gateway
from runners.images import ImageBuildFailed
from runners.mirrors import Mirrors
from runners.provision import Images
from runners.sessions import SessionShelf

log = structlog.get_logger(__name__)

GRACE = 30.0  # seconds for the shim to end the agent, checkpoint and report
OVERTIME = 60.0  # seconds after the deadline before the container is stopped from outside
OUTCOME_WAIT = 5.0  # seconds for a posted outcome to arrive after the container has ended
PROGRESS_INTERVAL = 10.0  # seconds between two edits of the comment; GitHub counts each as content creation
PROGRESS_LINES = 6
READ_PERMISSIONS = {"contents": "read"}
TURN = 1

#: Configuration of agent CLIs that a pull request must not bring along: it is taken from the base branch.
AGENT_FILES = (
    ".claude", "**/.claude/**", ".mcp.json", ".claude.json", "**/CLAUDE.md", "**/CLAUDE.local.md", "**/AGENTS.md",
    "**/AGENTS.override.md", "**/GEMINI.md", ".gemini", "**/QWEN.md", ".qwen", "opencode.json", "opencode.jsonc",
    ".opencode", ".codex", ".cursor", ".gitmodules", ".husky", ".ripgreprc",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Everything a worker host works with."""

    settings: Settings
    store: Store
    github: GitHub
    dispatcher: Dispatcher
    facts: FactFinder
    reporter: Reporter
    publisher: Publisher
    redactor: Redactor
    runner: Runner
    images: Images
    gateway: Gateway
    mirrors: Mirrors
    sessions: SessionShelf


class Performer:
    """Carries out attempts (a ``runners.supervisor.Perform``)."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def __call__(self, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        """Do it. Raises InfrastructureError when it may go on later from where it is; call it again then.

        When this task is cancelled everything stays as it is: the next process goes on.
        """
        story = _Attempt(self._workshop, job, attempt, stop)
        try:
            await self._tell(story)
        except StaleAttempt as error:
            log.warning("a newer attempt owns the job", error=str(error))
        finally:
            await story.leave()
        await story.clean_up()

    async def _tell(self, story: _Attempt) -> None:
        try:
            await story.tell()
        except (StaleAttempt, InfrastructureError):
            raise
        except JobFailed as error:
            await story.end(JobState.failed, error.phase, error.kind, error)
        except ConductorError as error:
            # GitHub or the configuration says no, and would say so again
            await story.end(JobState.failed, story.phase, FailureKind.configuration, error)


class _Attempt:
    """The state of one attempt while it is carried out."""

    def __init__(self, host: Workshop, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        self.host = host
        self.job = job
        self.attempt = attempt
        self.stop = stop
        self.phase = job.phase or Phase.image
        self.agent: Agent = agent_named(job.agent)
        self.directory = host.settings.data_dir.absolute() / "attempts" / attempt.id
        self.desk: Desk | None = None
        self.transcript = Transcript()
        self.recent: list[str] = []
        self.progress = Progress()
        self.image: asyncio.Task[str] | None = None

    # --- the story

    async def tell(self) -> None:
        host, store = self.host, self.host.store
        if self.job.state.final:  # killed after the end was written, before the traces were removed
            await self._say_the_end()
            return
        if await self._published_before():
            await self.end(JobState.succeeded)
            return
        if self.attempt.state is AttemptState.starting:
            job = self.job
            self.progress.tell("started", lambda: host.reporter.started(job))
        desk = await self._prepare()
        outcome = desk.outcome_now(TURN)
        if outcome is None:
            outcome = await self._run_turn(desk)
        if outcome is None:
            return  # ended from outside: told already
        desk.finish()
        await self._remove_container()
        await self._keep_session(desk)
        usage = self._usage(desk)
        await store.note(self.job.id, fence=self.attempt.fence, **usage_columns(usage))
        self.job = self.job.evolve(usage=usage)
        await store.end_turn(self.attempt, TURN, outcome.model_dump())
        if self.stop.is_set():
            await self.end(JobState.cancelled)
            return
        await self._enter(Phase.publish)
        await store.set_attempt(self.attempt, AttemptState.publishing)
        await self._listen(desk)
        await self._judge_and_publish(desk, outcome)

    async def _judge_and_publish(self, desk: Desk, outcome: Outcome) -> None:
        publisher = self.host.publisher
        # what the agent says comes first: a failed turn's leftovers are not worth a look
        verdict = judge(
            self.transcript,
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            timed_out=outcome.timed_out,
            stopped=outcome.stopped,
            error=outcome.error,
            changed=outcome.head is not None and outcome.head != self.job.base_sha,
        )
        if verdict.kind is FailureKind.timeout:
            await self.end(JobState.timed_out, Phase.agent, FailureKind.timeout, _words(verdict))
            return
        if not verdict.ok or verdict.result is None:
            raise JobFailed(Phase.agent, verdict.kind or FailureKind.crash, verdict.message, verdict.hint)
        changed = await publisher.check(self.job, desk.quarantine, outcome)
        summary = verdict.result.summary or verdict.result.title
        self.job = self.job.evolve(summary=summary)
        if changed:
            self.job = await publisher.publish(
                self.job, self.attempt, desk.quarantine, outcome, verdict.result
            )
        await self.end(JobState.succeeded)

    async def _published_before(self) -> bool:
        """Whether a lost host's attempt got as far as the push: then only the rest is to be done."""
        job, host = self.job, self.host
        if not (job.head_sha and job.branch) or self.directory.exists():
            return False
        if await host.facts.branch_sha(job.repo, job.branch) != job.head_sha:
            return False
        if job.target is TargetKind.issue:
            number = await host.reporter.pull_request(job, title=job.title, base=job.base or "")
            await host.store.note(job.id, fence=self.attempt.fence, pull_number=number)
            self.job = job.evolve(pull_number=number)
        return True

    # --- before the turn

    async def _prepare(self) -> Desk:
        """Image, mirror and desk; whatever an earlier process did already is found, not done again."""
        host = self.host
        if (self.directory / "attempt.json").exists() and self.job.base_sha and self.job.branch:
            desk = self.desk = Desk.open(self.directory)
            await host.gateway.open(desk)
            return desk
        await self._enter(Phase.workspace)
        # neither needs the other
        self.image = asyncio.create_task(host.images.ensure(self.agent), name=f"image {self.agent.name}")
        mirror = await self._fetch()
        desk = self.desk = Desk.create(self.directory, attempt_id=self.attempt.id, mirror=mirror)
        await quarantine.create(desk.quarantine, mirror, max_input_bytes=host.settings.max_push_bytes)
        thread = await host.store.thread_of(self.job)
        await host.sessions.take_down(thread, self.job.agent, desk.session_tar)
        await host.gateway.open(desk)
        return desk

    async def _fetch(self) -> Path:
        host, repo = self.host, self.job.repo
        pull = None
        if self.job.target is TargetKind.pull_request:
            pull = await host.facts.pull(repo, self.job.number)
            branch, base = pull.head_ref, pull.base_ref
        else:
            branch = self.job.branch or branch_for(self.job.number, self.job.title, self.job.id)
            base = self.job.base or await host.facts.default_branch(repo)
        token = await host.github.token(
            repo.installation_id, repository_id=repo.id, permissions=READ_PERMISSIONS
        )
        mirror = await host.mirrors.fetch(
            repo,
            url=f"{host.settings.github_url}/{repo.full_name}.git",
            token=token.value,
            borrower=self.attempt.id,
        )
        start = branch if pull else base
        base_sha = await host.mirrors.resolve(mirror, f"refs/heads/{start}")
        await host.store.note(
            self.job.id, fence=self.attempt.fence, branch=branch, base=base, base_sha=base_sha
        )
        self.job = self.job.evolve(branch=branch, base=base, base_sha=base_sha)
        return mirror

    # --- the turn

    async def _run_turn(self, desk: Desk) -> Outcome | None:
        """Start (or find) the container, give the turn, wait. None: the job was ended from outside."""
        host = self.host
        found = None
        if self.attempt.state is not AttemptState.starting:
            handles = {handle.attempt_id: handle for handle in await host.runner.list()}
            found = handles.get(self.attempt.id)
        if found is None:
            await self._enter(Phase.image)
            try:
                image = await (self.image or host.images.ensure(self.agent))
            except ImageBuildFailed as error:
                raise JobFailed(
                    Phase.image, FailureKind.infrastructure, f"{error.message}\n\n{error.tail}", error.hint
                ) from error
            await self._enter(Phase.start)
            await host.store.check_fence(self.job.id, self.attempt.fence)
            found = await host.runner.start(self._spec(desk, image))
        await host.store.set_attempt(self.attempt, AttemptState.running)
        if desk.turns_given < TURN:
            await self._give(desk)
        await self._enter(Phase.agent)
        return await self._wait(desk, found)

    async def _give(self, desk: Desk) -> None:
        host, job = self.host, self.job
        thread = await host.store.thread_of(job)
        resume = await host.store.session(thread, job.agent) if desk.session_tar.exists() else None
        prompt = task_prompt(job)
        if self.agent.llm is None:
            # without a model there is nobody to instruct: the agent gets what people wrote, and only that
            prompt = visible(job.instructions) or visible(job.body)
        seconds = max(1, round((self.attempt.deadline - datetime.now(UTC)).total_seconds()))
        turn = Turn(
            number=TURN,
            prompt=prompt,
            model=job.model,
            session_id=resume or str(uuid.uuid5(uuid.NAMESPACE_URL, self.attempt.id)),
            resume=resume is not None,
            timeout=seconds,
        )
        try:
            command = self.agent.command(turn, gateway="{gateway}", token=desk.token)
        except ConductorError as error:
            raise JobFailed(Phase.start, FailureKind.configuration, error.message, error.hint) from error
        identity = await host.github.identity()
        on_pull = job.target is TargetKind.pull_request
        desk.give(
            {
                "number": TURN,
                "command": asdict(command),
                "timeout": seconds,
                "checkout": {
                    "base_sha": job.base_sha,
                    "branch": "work",
                    "restore": list(AGENT_FILES) if on_pull else [],
                    **({"restore_from": await self._base_of_pull(desk)} if on_pull else {}),
                },
                "session_paths": list(self.agent.session_paths),
                "commit": {
                    "name": identity.login,
                    "email": identity.email,
                    "message": f"Work on #{job.number}",
                },
            }
        )
        await host.store.begin_turn(self.attempt, TURN, prompt)

    async def _base_of_pull(self, desk: Desk) -> str:
        if desk.mirror is None:
            raise InfrastructureError("The attempt has no mirror.", "Write `/agent retry`.")
        return await self.host.mirrors.resolve(desk.mirror, f"refs/heads/{self.job.base}")

    async def _wait(self, desk: Desk, handle: Handle) -> Outcome | None:
        """The first of: the outcome, the container's end, a cancellation, the deadline."""
        host = self.host
        overtime = (self.attempt.deadline - datetime.now(UTC)).total_seconds() + OVERTIME
        outcome = asyncio.create_task(desk.outcome(TURN))
        ended = asyncio.create_task(host.runner.wait(handle))
        stopped = asyncio.create_task(self.stop.wait())
        progress = asyncio.create_task(self._follow(desk))
        tasks = (outcome, ended, stopped, progress)
        try:
            await asyncio.wait(
                (outcome, ended, stopped), timeout=overtime, return_when=asyncio.FIRST_COMPLETED
            )
            if outcome.done():
                return outcome.result()
            if not ended.done():
                await host.runner.stop(handle, GRACE)
            # the shim reports before it ends; what it sent may still be on its way
            await asyncio.wait((outcome,), timeout=OUTCOME_WAIT)
            if outcome.done():
                return outcome.result()
            if stopped.done():
                await self.end(JobState.cancelled)
            elif ended.done():
                exit_ = ended.result()
                kind = FailureKind.oom if exit_.oom else FailureKind.crash
                message = (
                    "The agent used up its memory and was ended by the kernel."
                    if exit_.oom
                    else f"The agent's container ended by itself (exit code {exit_.code})."
                )
                raise JobFailed(
                    Phase.agent, kind, message, "Write `/agent retry`; if it happens again, ask the operator."
                )
            else:
                await self.end(JobState.timed_out, Phase.agent, FailureKind.timeout)
            return None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, desk: Desk) -> None:
        """Read the agent's events as they come, and show the last of them now and then."""
        shown: list[str] = []
        listening = asyncio.create_task(self._listen(desk))
        try:
            while True:
                await asyncio.wait((listening,), timeout=PROGRESS_INTERVAL)
                if self.recent != shown and not listening.done():
                    shown = list(self.recent)
                    self._show(shown)
                if listening.done():
                    return
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, desk: Desk) -> None:
        """Take in the turn's whole output, from its first line; ends with the turn."""
        transcript, recent = Transcript(), list[str]()
        self.transcript = transcript
        async for event in desk.events(turn=TURN):
            if event.turn != TURN or event.stream != "stdout":
                continue
            for said in self.agent.read(event.line):
                goes_on = transcript.speaking and said.piece
                transcript.add(said)
                words = transcript.text if said.kind == "text" else said.text
                if said.kind in ("text", "tool") and words.strip():
                    if goes_on and recent and transcript.text.startswith(recent[-1]):
                        recent.pop()
                    recent.append(words)
                    del recent[:-PROGRESS_LINES]
                    self.recent = recent
        if transcript.session_id:
            thread = await self.host.store.thread_of(self.job)
            await self.host.store.save_session(thread, self.job.agent, transcript.session_id)

    def _spec(self, desk: Desk, image: str) -> ContainerSpec:
        settings = self.host.settings
        return ContainerSpec(
            attempt_id=self.attempt.id,
            image=image,
            argv=self.host.images.shim_argv,
            env={"CONDUCTOR_TOKEN": desk.token},
            socket_dir=desk.socket_dir,
            mirror=desk.mirror,
            limits=Limits(
                memory=size(settings.memory),
                cpus=settings.cpus,
                pids=settings.pids,
                tmp=size(settings.tmp_size),
                file=size(settings.file_size),
            ),
            labels={"agent-conductor.correlation": self.job.trigger.delivery_id},
        )

    # --- the end

    async def end(
        self,
        state: JobState,
        phase: Phase | None = None,
        kind: FailureKind | None = None,
        error: ConductorError | None = None,
    ) -> None:
        """Write the end, then tell it. Only the newest attempt may; a later report repeats nothing."""
        store = self.host.store
        words = f"{error.message}\n\n{error.hint}".strip() if error else ""
        message = self.host.redactor.text(words)
        if self.desk is not None:
            self.job = self.job.evolve(usage=self._usage(self.desk))
        moved = await store.move(
            self.job.id,
            state,
            expected=[JobState.running],
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
        await self._say_the_end()

    async def _say_the_end(self) -> None:
        await self.progress.close("sticky", "check")
        # what fails here is told later: housekeeping looks for ends that were not reported
        await self._report(self.host.reporter.finished(self.job, also_on=self.job.base_sha))

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
        """Remove what the attempt left on this host, then let the next job of the same issue go."""
        host = self.host
        await self._report(self._remove_container())
        host.mirrors.release(self.attempt.id)
        await asyncio.to_thread(_remove_tree, self.directory)
        await host.store.set_attempt(self.attempt, AttemptState.ended)
        for job in reversed(await host.store.jobs_on(self.job.repo.id, self.job.number)):
            if job.state is JobState.queued:
                await self._report(host.dispatcher.enqueue(job.id))
                return

    async def _remove_container(self) -> None:
        for found in await self.host.runner.list():
            if found.attempt_id == self.attempt.id:
                await self.host.runner.stop(found, GRACE)
                await self.host.runner.remove(found)

    async def _keep_session(self, desk: Desk) -> None:
        try:
            thread = await self.host.store.thread_of(self.job)
            await self.host.sessions.put_back(thread, self.job.agent, desk.session_tar)
        except InfrastructureError as error:
            log.warning("the session is not kept", error=str(error))

    def _usage(self, desk: Desk) -> Usage:
        total = Usage()
        for used in desk.usage_by_model():
            total += price(used.usage, used.model, self.host.settings.price_of)
        return total

    async def _enter(self, phase: Phase) -> None:
        self.phase = phase
        await self.host.store.note(self.job.id, fence=self.attempt.fence, phase=str(phase))
        self.job = self.job.evolve(phase=phase, state=JobState.running)
        log.info("phase", phase=str(phase))
        if phase in (Phase.image, Phase.agent, Phase.publish):
            self._show()
        job = self.job
        if phase is Phase.agent and job.target is TargetKind.pull_request and (sha := job.base_sha):
            self.progress.tell("check", lambda: self.host.reporter.check(job, sha))

    def _show(self, lines: Sequence[str] = ()) -> None:
        job = self.job
        self.progress.tell("sticky", lambda: self.host.reporter.sticky(job, progress=lines))

    async def _report(self, work: Awaitable[Any]) -> None:
        """Tell people what can be told now: GitHub's troubles must not end a job."""
        try:
            await work
        except ConductorError as error:
            log.warning("not reported", error=str(error))


def size(text: str) -> int:
    """Bytes of ``4g``, ``512m`` or ``64k``."""
    match = re.fullmatch(r"(\d+)([kmg])", text)
    if not match:
        raise ValueError(f"{text!r} is no size")
    return int(match[1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[match[2]]


def _words(verdict: Verdict) -> ConductorError:
    return ConductorError(verdict.message, verdict.hint)


def _remove_tree(directory: Path) -> None:
    """Nothing in it was written by a container, except what the gateway took in: no links are followed."""
    shutil.rmtree(directory, ignore_errors=True)
