"""From what an agent left in its quarantine to a branch and a pull request: checked, sealed, pushed by the host."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import structlog

from bot.changes import ChangeRules, check_changes
from bot.config import Settings
from bot.errors import ConductorError, JobFailed
from bot.github import GitHub
from bot.model import Attempt, FailureKind, Job, Phase, Result, TargetKind
from bot.redact import Redactor
from bot.render import oneline
from bot.report import Reporter
from bot.store import Store
from runners import quarantine
from runners.gateway.desk import Outcome
from runners.quarantine import Person

log = structlog.get_logger(__name__)

MAX_LISTED = 10  # violations that a message names

#: What the token for a push may do, and nothing else.
PUSH_PERMISSIONS = {"contents": "write"}


class Publisher:
    """Publishes one attempt's commit. Every step may be repeated: after a crash the same commit is made again."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        github: GitHub,
        reporter: Reporter,
        redactor: Redactor,
    ) -> None:
        self._settings = settings
        self._store = store
        self._github = github
        self._reporter = reporter
        self._redactor = redactor
        self._rules = ChangeRules.of(settings)

    async def check(self, job: Job, repository: Path, outcome: Outcome) -> bool:
        """Whether there is a change to publish. Raises JobFailed when it must not be published."""
        if outcome.push_error:
            raise JobFailed(
                Phase.publish,
                FailureKind.refused,
                f"What the agent made could not be taken over: {oneline(outcome.push_error, 300)}",
                "Ask for a smaller change, and keep large or generated files out of the repository.",
            )
        if not outcome.head or not job.base_sha:
            return False
        changes = await quarantine.inspect(repository, job.base_sha, outcome.head)
        if changes.empty:
            return False
        violations = check_changes(changes, self._rules)
        if violations:
            listed = "\n".join(f"- {violation.message}" for violation in violations[:MAX_LISTED])
            more = len(violations) - MAX_LISTED
            raise JobFailed(
                Phase.publish,
                FailureKind.refused,
                "Nothing was pushed, because a person must look at this first:\n\n"
                f"{listed}" + (f"\n- … and {more} more" if more > 0 else ""),
                "Say in a new `/agent` command what to leave out, or make that part by hand.",
            )
        async with aclosing(quarantine.added_text(repository, job.base_sha, outcome.head)) as added:
            async for path, text in added:
                if self._redactor.text(text) != text:
                    raise JobFailed(
                        Phase.publish,
                        FailureKind.refused,
                        f"Nothing was pushed: `{path}` contains what looks like a secret "
                        "(key, token or password).",
                        "Take it out of the task or the repository, then write `/agent retry`.",
                    )
        return True

    async def publish(
        self, job: Job, attempt: Attempt, repository: Path, outcome: Outcome, result: Result
    ) -> Job:
        """Seal the agent's tree as one commit of ours, push it, open the pull request. Returns the changed job."""
        if not (job.base_sha and job.branch and outcome.head):
            raise ValueError("the job was not prepared")
        identity = await self._github.identity()
        bot = Person(name=identity.login, email=identity.email)
        asker = job.trigger.actor
        sha = await quarantine.seal(
            repository,
            job.base_sha,
            outcome.head,
            author=bot,
            committer=bot,
            message=self._message(job, result),
            # https://docs.github.com/en/account-and-profile/reference/email-addresses-reference
            co_author=Person(name=asker.login, email=f"{asker.id}+{asker.login}@users.noreply.github.com"),
            moment=job.created_at,
        )
        # written before the push: after a crash we know which commit to look for
        await self._store.note(job.id, fence=attempt.fence, head_sha=sha, summary=job.summary)
        job = job.evolve(head_sha=sha)
        try:
            await self._push(job, attempt, repository, sha)
        except JobFailed:
            # refused for good: nobody is to look for that commit
            await self._store.note(job.id, fence=attempt.fence, head_sha=None)
            raise
        if job.target is TargetKind.issue:
            await self._store.check_fence(job.id, attempt.fence)
            number = await self._reporter.pull_request(
                job, title=result.title or job.title, base=job.base or ""
            )
            await self._store.note(job.id, fence=attempt.fence, pull_number=number)
            job = job.evolve(pull_number=number)
        return job

    async def _push(self, job: Job, attempt: Attempt, repository: Path, sha: str) -> None:
        if not job.branch:
            raise ValueError("the job has no branch")
        token = await self._github.token(
            job.repo.installation_id,
            repository_id=job.repo.id,
            permissions=PUSH_PERMISSIONS,
            fresh=True,
        )
        try:
            # as late as possible: a newer attempt makes this one void
            await self._store.check_fence(job.id, attempt.fence)
            await quarantine.push(
                repository,
                url=f"{self._settings.github_url}/{job.repo.full_name}.git",
                token=token.value,
                sha=sha,
                branch=job.branch,
                expected=job.base_sha if job.target is TargetKind.pull_request else None,
            )
        finally:
            try:
                await self._github.revoke(token)
            except ConductorError as error:
                log.warning("a token was not revoked; it ends by itself within the hour", error=str(error))

    def _message(self, job: Job, result: Result) -> str:
        title = oneline(result.title or job.title, 100)
        return self._redactor.text(f"{title}\n\nFor #{job.number}, by {job.agent} (job {job.id}).")
