"""What people say to a job that is there: reviews, words for an agent that works, decisions about what it asked.

Every method may be repeated with the same event and then changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from bot.approval_store import ApprovalStore
from bot.audit_chain import AuditKind
from bot.check_reader import CheckReader
from bot.conductor import Conductor
from bot.conversation import Conversation
from bot.errors import ConductorError
from bot.events import Comment, Event, SubmittedReview
from bot.facts import FactFinder
from bot.failed_checks import instructions as about_checks
from bot.feedback import Asked, Feedback, instructions, merge, own_words
from bot.fixer import as_before, worker_of
from bot.model import (
    FEEDBACK,
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    Job,
    JobKind,
    JobState,
    Repo,
    Request,
    TargetKind,
    Trigger,
)
from bot.named_jobs import goes_on
from bot.planned_work import after, work_by
from bot.policy import authorize
from bot.profiles import asked_for
from bot.prompts import visible
from bot.render import render
from bot.repo_config import RepoConfigError
from bot.repo_config import of as config_of
from bot.steps import steps_of

log = structlog.get_logger(__name__)

#: States of a review as its event tells them, that may ask for something to be done.
ASKS_FOR_CHANGES = "changes_requested"
SPEAKS = frozenset({ASKS_FOR_CHANGES, "commented"})
#: ... and the one whose remarks wait for the next turn: work of their own would void what it approves.
APPROVES = "approved"
#: So many of these are read for one turn, the newest ones.
MAX_APPROVING = 5


class Dialogue:
    """Turns words into the next turn of a job, or into the next job of its conversation."""

    def __init__(
        self,
        *,
        conductor: Conductor,
        facts: FactFinder,
        conversation: Conversation,
        checks: CheckReader,
        approvals: ApprovalStore,
        listens: Callable[[str], bool],
        unable: Callable[[str], str],
    ) -> None:
        """``listens``: whether an agent (by its name) can go on in its session, so that it may be told more.

        ``unable``: why it cannot be told what is wrong, a part of a sentence; "" when it can.
        """
        self._conductor = conductor
        self._store = conductor.store
        self._reporter = conductor.reporter
        self._facts = facts
        self._conversation = conversation
        self._checks = checks
        self._approvals = approvals
        self._listens = listens
        self._unable = unable

    # --- reviews

    async def reviewed(self, event: Event, review: SubmittedReview) -> Job | None:
        """Take a review of a pull request of ours as what to do next, when it asks for something.

        One turn for each review; those that come while a job of that kind still waits join it. A review by somebody
        who may not command us is talk, and nothing is said about it; one that asks for changes is in the audit trail.
        What one that approves says about lines of the diff starts nothing: it is told with the next turn.
        """
        repo, number = event.repo, event.number
        state = review.state.lower()
        if state not in (*SPEAKS, APPROVES) or review.author is None or review.author.id != event.actor.id:
            return None
        jobs = await self._store.jobs_on(repo.id, number)
        ours = [job for job in jobs if job.pull_number == number]
        if not ours:
            return None
        trigger = Trigger(
            delivery_id=event.delivery_id,
            event=FEEDBACK,
            actor=event.actor,
            comment_id=review.id,
            comment_kind="review_body",
        )
        may = authorize(await self._facts.who(repo, event.actor))
        if not may.allowed:
            if state == ASKS_FOR_CHANGES:  # every answer in a thread is a review that speaks
                await self._conductor.pass_over(repo, number, trigger, may)
            return None
        if await self._store.answered(event.delivery_id):
            return None  # the same event again: it joined a job, which may work by now
        said = await self._conversation.feedback(
            repo, number, review.id, body=review.body, author=review.author
        )
        if said is None or said.empty:
            return None
        if state != ASKS_FOR_CHANGES and not said.threads:
            return None  # talk about it, and no request
        if state == APPROVES:
            asked = instructions([said])
            return await self._join(jobs, event, asked.text, asked.left_out)
        asked = instructions([*await self._approving(repo, number, jobs), said])
        # the same event again must not join the job that it has made
        if await self._store.job(self._conductor.job_id(trigger, 0)) is None:
            joined = await self._join(jobs, event, asked.text, asked.left_out)
            if joined is not None:
                await self._approvals.asks_too(joined.id, event.actor.id, by_review=True)
                await self._reporter.react(repo, number, trigger, "eyes")
                return joined
        last = worker_of(jobs) or ours[0]
        request = await self._for(
            last,
            Request(
                repo=repo,
                number=number,
                target=TargetKind.pull_request,
                trigger=trigger,
                instructions=asked.text,
                title=event.title,
                body=event.body,
                agent=last.agent,
                model=last.model,
                profile=asked_for(last),
                named=goes_on(last.named),
                left_out=asked.left_out,
            ),
        )
        if request is None:
            return None
        return await self._conductor.submit(request, is_open=event.open)

    async def _for(self, last: Job, request: Request) -> Request | None:
        """``request`` for the agent of ``last``, or the repository's usual one where that cannot follow a review.

        None when neither can: people are told, once in a pull request. Steps in the review are for whoever runs steps.
        """
        why = self._unable(last.agent)
        if not why:
            return request
        try:
            usual = (await self._facts.repo_config(request.repo)).agent or self._conductor.rules.default_agent
        except RepoConfigError:
            return request  # it is refused for that
        if not self._unable(usual):
            return request.evolve(agent=usual, model=None, profile=None)
        if steps_of(visible(request.instructions)):
            return request
        trigger = Trigger(
            delivery_id=f"review-{request.repo.id}-{request.number}-unable",
            event=FEEDBACK,
            actor=request.trigger.actor,
        )
        text = f"I cannot do what reviews ask for here: {why}. Write `/agent --agent NAME` and what is to be done."
        await self._reporter.reply(request.repo, request.number, trigger, text)
        return None

    async def _approving(self, repo: Repo, number: int, jobs: list[Job]) -> list[Feedback]:
        """What reviews that approve say about lines of the diff, and no turn has been told yet."""
        since = max(job.started_at or job.created_at for job in jobs)
        found = []
        for review_id, author, body in await self._conversation.approving(repo, number, since=since):
            if authorize(await self._facts.who(repo, author)).allowed:
                said = await self._conversation.feedback(repo, number, review_id, body=body, author=author)
                if said is not None and said.threads:
                    found.append(said)
        return found[-MAX_APPROVING:]

    async def _join(self, jobs: list[Job], event: Event, text: str, left_out: tuple[str, ...]) -> Job | None:
        """Add a review to a job that still waits and that another review started."""
        for job in jobs:
            if job.state is not JobState.queued or job.trigger.event != FEEDBACK:
                continue
            try:
                merged = merge(job.instructions, text)
            except ValueError:
                continue
            joined = await self._store.join(job, merged, left_out, event=event.delivery_id, actor=event.actor)
            if joined is not None:
                log.info("a review joins a job that waits", **joined.log_context())
                try:
                    await self._reporter.sticky(joined)  # what is left out of this review, too
                except ConductorError as error:
                    log.warning("not reported", error=str(error), **joined.log_context())
                return joined
        return None

    # --- words for a job

    async def in_place(
        self, repo: Repo, number: int, comment: Comment, words: str, *, replies: bool = False
    ) -> Asked:
        """What an inline comment asks for, with the place in the diff; of who may not command us, the words alone."""
        if not authorize(await self._facts.who(repo, comment.author)).allowed:
            return Asked(text=words)  # it is refused in any case: no more questions for a stranger
        return await self._conversation.in_place(repo, number, comment, words, replies=replies)

    async def tell(self, repo: Repo, number: int, trigger: Trigger, words: str, *, ordinal: int = 0) -> None:
        """Give ``words`` to the agent that works here, or is about to: it reads them as soon as it can.

        Nothing is added to what a plan was approved for, or to what needs none as long as nobody adds to it.
        """
        if not await self._conductor.allowed(repo, number, trigger, more=True):
            return
        event = f"{trigger.delivery_id}/{ordinal}"
        jobs = await self._store.conversation(repo.id, number)
        job = _in_state(jobs, JobState.running)
        if job is None and _in_state(jobs, JobState.paused) is not None:
            text = "The agent here has asked something and waits. `/agent resume` and your words answer it."
        elif (job := job or _in_state(jobs, JobState.queued)) is None:
            text = "No agent works here. Write `/agent` and what you want done."
        elif (text := _takes_no_more(job)) or not self._listens(job.agent):
            text = text or (
                f"The agent `{job.agent}` cannot be told more while it works. `/agent cancel` stops it; or write "
                "`/agent` and what you want when it is done."
            )
        else:
            await self._approvals.asks_too(job.id, trigger.actor.id)
            await self._conductor.audit.record(
                AuditKind.job_told,
                actor=trigger.actor,
                repo=repo,
                number=number,
                job_id=job.id,
                delivery_id=trigger.delivery_id,
                details={"words": words},
            )
            await self._store.tell(job.id, words, trigger.actor.login, event=event)
            await self._reporter.react(repo, number, trigger, "eyes")
            return
        await self._reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def logs(self, repo: Repo, number: int, trigger: Trigger, *, ordinal: int = 0) -> None:
        """Show the last lines of the newest job's log."""
        if not await self._conductor.allowed(repo, number, trigger):
            return
        jobs = await self._store.conversation(repo.id, number)
        text = render("comments/logs.md.j2", job=jobs[0] if jobs else None)
        await self._reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def say(self, repo: Repo, number: int, trigger: Trigger, text: str, *, ordinal: int = 0) -> None:
        """Answer with ``text``, unless whoever wrote may not command us: then that is what they are told."""
        if await self._conductor.allowed(repo, number, trigger):
            await self._reporter.reply(repo, number, trigger, text, ordinal=ordinal)

    async def fix(self, request: Request, *, ordinal: int = 0, is_open: bool = True) -> Job | None:
        """Start a job that makes the failed checks of a pull request pass; its agent is given what they said.

        With words of the asker's it is an ordinary task, also where no check failed; without any they are told so.
        The agent that worked there goes on with its model, unless they, or the job's profile, name another one.
        """
        repo, number, trigger = request.repo, request.number, request.trigger
        if not await self._conductor.allowed(repo, number, trigger):
            return None
        if await self._store.job(self._conductor.job_id(trigger, ordinal)) is None:
            found = None
            if request.target is TargetKind.pull_request:
                request = await self._as_before(request)
                pull = await self._facts.pull(repo, number)
                found = await self._checks.read(repo, pull.head_sha)
            if found is not None and found.failed:
                words = [own_words(request.instructions), about_checks(found)]
                # with words of one's own it may be about anything: work like any other, that may need a plan
                kind = JobKind.task if request.instructions else request.kind
                text = "\n\n".join(part for part in words if part)
                request = request.evolve(kind=kind, instructions=text)
            elif request.instructions:
                request = request.evolve(kind=JobKind.task)
            else:
                text = "No check has failed here, so there is nothing to fix."
                if found is not None and found.pending:
                    count = len(found.pending)
                    still = "1 check still runs" if count == 1 else f"{count} checks still run"
                    text = f"No check has failed here yet; {still}. Write `/agent fix` again when one has failed."
                if found is None:
                    text = "An issue has no checks. Write `/agent fix` in the pull request, or say what is broken."
                await self._reporter.reply(repo, number, trigger, text, ordinal=ordinal)
                return None
        return await self._conductor.submit(request, ordinal=ordinal, is_open=is_open)

    async def _as_before(self, request: Request) -> Request:
        """With the agent and model that worked here last, for when nobody names an agent, if that one can do it."""
        worker = worker_of(await self._store.jobs_on(request.repo.id, request.number))
        return request if worker is None or self._unable(worker.agent) else as_before(request, worker)

    # --- decisions (bot.approval_desk.Outcome)

    async def approved(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        """Start the planned work, or tell the paused job that it may."""
        if approval.kind is ApprovalKind.plan:
            await self._conductor.submit(work_by(approval, job, by=by.login, words=words))
        elif approval.kind is ApprovalKind.protected:
            await self._conductor.submit(after(approval, job, JobKind.release, ""))
        else:
            await self._answer(approval, job, by, f"@{by.login} approves this.", words)

    async def refused(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        """Have the plan revised, or tell the paused job that it may not."""
        if approval.kind is ApprovalKind.protected:
            return  # it stays held back
        if approval.kind is not ApprovalKind.plan:
            await self._answer(approval, job, by, f"@{by.login} refuses this.", words)
            return
        said = None
        if approval.review_id is not None:
            said = await self._conversation.feedback(
                approval.repo, approval.pull_number, approval.review_id, body=words, author=by
            )
        text = instructions([said]).text if said is not None and not said.empty else words
        await self._conductor.submit(
            after(
                approval, job, JobKind.plan, text or "The reviewer wants another plan, and does not say why."
            )
        )

    async def lapsed(self, approval: Approval, job: Job, why: str) -> None:
        """Tell the paused job why there is no yes. What no job waits for stays what it is."""
        if approval.kind not in (ApprovalKind.plan, ApprovalKind.protected):
            nobody = Actor(login="Nobody", id=0, type="Bot")
            await self._answer(approval, job, nobody, no_decision(approval, why), "")

    async def _answer(self, approval: Approval, job: Job, by: Actor, text: str, words: str) -> None:
        said = "\n\n".join(part for part in (text, words.strip()) if part)
        await self._conductor.answer(job, said, by=by, event=f"approval:{approval.id}")


def _in_state(jobs: Sequence[Job], state: JobState) -> Job | None:
    """The newest of ``jobs`` that is in ``state``."""
    return next((job for job in jobs if job.state is state), None)


def _takes_no_more(job: Job) -> str:
    """Why nobody may add to what a job was started for, and what to do instead; "" when people may."""
    if job.approval_id is not None:
        does = "works" if job.state is JobState.running else "waits"
        return (
            f"What {does} here carries out an approved plan, and nobody has approved more. `/agent cancel` stops it; "
            "`/agent resume` and your words then have it planned anew."
        )
    rule = config_of(job).approvals.plan
    if job.kind is JobKind.fix and (rule.always or rule.labels or rule.paths):
        return (
            "What is done here makes checks pass, which needs no approved plan; more than that may need one. Write "
            "`/agent fix` and your words."
        )
    return ""


def no_decision(approval: Approval, why: str) -> str:
    """What the agent is told when there is no yes and nobody said no. ``why``: a sentence, "" when it is not known."""
    if approval.state is ApprovalState.expired:
        return "Nobody decided about this in time, so the answer is no."
    if approval.state is ApprovalState.stale:
        yes = f"@{approval.decided_by} approved this" if approval.decided_by_id else "This was approved"
        parts = [f"{yes}, but that does not hold any more.", why, "So the answer is no."]
    else:
        parts = [
            why or "This is not asked any more.",
            "Nobody can decide about it now, so the answer is no.",
        ]
    return " ".join(part for part in parts if part)
