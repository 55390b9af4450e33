"""The life of the App's installations: what follows when it is installed, suspended, removed, or let into repositories.

Events tell of it, and now and then GitHub's list of installations is read, for what was missed.
https://docs.github.com/en/webhooks/webhook-events-and-payloads#installation
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from bot.approval_store import ApprovalStore
from bot.audit import CONDUCTOR
from bot.audit_chain import AuditKind
from bot.conductor import Conductor
from bot.errors import ConductorError, GitHubUnavailable
from bot.github import GitHub, path
from bot.github_errors import NotFound
from bot.installation_store import Installation, InstallationStore
from bot.model import Actor, ApprovalState, Repo, Trigger
from bot.permissions import CHANGE, READ, SPEAK
from bot.repository_setup import RepositorySetup
from bot.setup_backlog import SetupBacklog

log = structlog.get_logger(__name__)

#: What the App asks for, as in app.yml (a test holds them together). "metadata" comes with all others; "merge_queues"
#: is for an event that no token is needed for.
NEEDED: Mapping[str, str] = {**READ, **SPEAK, **CHANGE, "merge_queues": "read"}
#: What only organizations have and can grant.
_OF_ORGANIZATIONS = frozenset({"members"})
#: Repositories that are set up when they all come at once; creating things is what GitHub limits most. Others follow.
MAX_SET_UP = 30
#: Seconds between two looks at GitHub's list.
INTERVAL = 3600.0

_LEVELS = {"": 0, "read": 1, "write": 2, "admin": 3}


class Installs:
    """Acts on what happens to installations. Every method may be repeated with the same trigger."""

    def __init__(
        self,
        *,
        conductor: Conductor,
        approvals: ApprovalStore,
        github: GitHub,
        states: InstallationStore,
        setup: RepositorySetup,
        backlog: SetupBacklog,
        create_labels: bool,
        welcome_issue: bool,
        at_once: int = MAX_SET_UP,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conductor = conductor
        self._approvals = approvals
        self._github = github
        self._states = states
        self._setup = setup
        self._backlog = backlog
        self._create_labels = create_labels
        self._welcome_issue = welcome_issue
        self._at_once = at_once
        self._monotonic = monotonic
        self._looked_at: float | None = None

    async def installed(self, installation: Installation, repos: Sequence[Repo], trigger: Trigger) -> None:
        """The App came to an account: its repositories get their labels."""
        await self._states.put(installation)
        await self._note("created", installation, trigger, repositories=len(repos))
        _say_missing(installation)
        await self._set_up(repos, trigger)

    async def removed(self, installation: Installation, trigger: Trigger) -> None:
        """The App was removed from an account: nothing waits or runs for it any more."""
        await self._states.put(dataclasses.replace(installation, removed=True))
        await self._note("deleted", installation, trigger)
        self._github.forget(installation.id)
        await self._stop(installation.id, None, trigger, "who removed the App")
        await self._states.tell_nobody(installation.id)

    async def suspended(self, installation: Installation, trigger: Trigger) -> None:
        """The App may do nothing on an account for now: what waits or runs there is stopped, and told afterwards."""
        await self._states.put(dataclasses.replace(installation, suspended=True))
        await self._note("suspend", installation, trigger)
        self._github.forget(installation.id)
        await self._stop(installation.id, None, trigger, "who suspended the App")

    async def unsuspended(self, installation: Installation, trigger: Trigger) -> None:
        """The App may work again. Jobs that were stopped stay so: people ask again for what they still want."""
        await self._states.put(dataclasses.replace(installation, suspended=False))
        await self._note("unsuspend", installation, trigger)
        self._github.forget(installation.id)

    async def permissions_accepted(self, installation: Installation, trigger: Trigger) -> None:
        """The account granted what the App asks for by now: tokens that are out do not have it, so they are dropped."""
        await self._states.put(installation)
        await self._note(
            "new_permissions_accepted", installation, trigger, permissions=dict(installation.permissions)
        )
        self._github.forget(installation.id)
        _say_missing(installation)

    async def repositories_added(
        self, installation: Installation, repos: Sequence[Repo], trigger: Trigger
    ) -> None:
        """The App was let into repositories."""
        await self._states.put(installation)
        await self._note("added", installation, trigger, added=_names(repos))
        for repo in repos:  # one that was here before, under another installation perhaps
            await self._came(repo, trigger)
        await self._set_up(repos, trigger)

    async def repositories_removed(
        self, installation: Installation, repos: Sequence[Repo], trigger: Trigger
    ) -> None:
        """The App was shut out of repositories: what waits or runs there is stopped."""
        await self._states.put(installation)
        await self._note("removed", installation, trigger, removed=_names(repos))
        self._github.forget(installation.id)
        ids = [repo.id for repo in repos]
        await self._stop(installation.id, ids, trigger, "who took the App out of this repository")
        await self._states.tell_nobody(installation.id, ids)

    async def moved(self, repo: Repo, former: str, trigger: Trigger) -> None:
        """A repository has another name or owner: what we write from now on goes there.

        Its id is the same, so threads, limits and the ledger need nothing.
        """
        changed = await self._came(repo, trigger)
        log.info("repository moved", repo=repo.full_name, former=former, jobs=changed)
        await self._conductor.audit.record(
            AuditKind.installation,
            actor=trigger.actor,
            repo=repo,
            delivery_id=trigger.delivery_id,
            details={"event": trigger.event, "former": former},
        )

    async def closed_down(self, repo: Repo, trigger: Trigger, why: str) -> None:
        """A repository was archived or deleted: what waits or runs there is stopped, and nobody can be told there.

        ``why``: what is said of who did it, for the audit trail.
        """
        await self._conductor.audit.record(
            AuditKind.installation,
            actor=trigger.actor,
            repo=repo,
            delivery_id=trigger.delivery_id,
            details={"event": trigger.event},
        )
        await self._stop(repo.installation_id, [repo.id], trigger, why)
        await self._states.tell_nobody(repo.installation_id, [repo.id])

    async def issue_gone(self, repo: Repo, number: int, trigger: Trigger, why: str) -> None:
        """An issue was deleted, or transferred to another repository: what waits or runs for it is stopped."""
        by = _by(trigger, why)
        for job in await self._conductor.store.jobs_on(repo.id, number):
            if job.number != number:
                continue
            asked = await self._approvals.pending_of(job.id)
            if asked is not None:
                await self._approvals.end(asked, ApprovalState.withdrawn, why=by)
            if not job.state.final:
                await self._conductor.stop_job(job, by=by, trigger=trigger)

    async def _came(self, repo: Repo, trigger: Trigger) -> int:
        """Let the jobs of a repository have its new name and installation; how many did not yet.

        What waits or runs under another installation is stopped first: the account that let it in has the repository no
        more, and its tokens are worth nothing here. Its own event may come later, and finds nothing then.
        """
        for former in await self._states.elsewhere(repo):
            await self._stop(former, [repo.id], trigger, "who moved this repository to another account")
        return await self._states.moved(repo)

    async def look(self) -> None:
        """Read GitHub's list of installations, once an hour, and catch up with what no event told.

        Raises GitHubError or GitHubUnavailable when GitHub does not answer.
        """
        now = self._monotonic()
        if self._looked_at is not None and now - self._looked_at < INTERVAL:
            return
        present: set[int] = set()
        async for found in self._github.app_client.getiter("/app/installations"):
            account = found.get("account") or {}
            installation = Installation(
                id=int(found["id"]),
                account=str(account.get("login") or account.get("slug") or ""),
                account_type=str(account.get("type") or found.get("target_type") or ""),
                suspended=bool(found.get("suspended_at")),
                permissions=found.get("permissions") or {},
            )
            present.add(installation.id)
            known = await self._states.get(installation.id)
            if known == installation:
                continue
            if installation.suspended and not (known and known.suspended):
                await self._gone(installation, "suspend", "the App is suspended")
            elif known is None or known.permissions != installation.permissions:
                _say_missing(installation)
            await self._states.put(installation)  # last: what a crash cut off is done again
        for known in await self._states.all():
            if known.id in present or known.removed or await self._is_there(known.id):
                continue
            await self._gone(known, "deleted", "the App was removed")
            await self._states.tell_nobody(known.id)
            await self._states.put(dataclasses.replace(known, removed=True))
        self._looked_at = now  # only now: what failed is done again in the next round

    async def forget_removed(self) -> None:
        """Take the ends of jobs as told that ran when the App was removed: nobody can be told any more."""
        for known in await self._states.all():
            if known.removed and (count := await self._states.tell_nobody(known.id)):
                log.info("nobody to tell", installation=known.id, account=known.account, jobs=count)

    async def _is_there(self, installation_id: int) -> bool:
        """Whether an installation that was not in the list has come since the list was read."""
        try:
            await self._github.app_client.getitem(path("/app/installations/{id}", id=installation_id))
        except NotFound:
            return False
        return True

    async def _gone(self, installation: Installation, event: str, why: str) -> None:
        """What an event would have told, had it come."""
        # its id is the same each time, so that nothing is done twice
        trigger = Trigger(
            delivery_id=f"look-{event}-{installation.id}",
            event=f"installation.{event}",
            actor=Actor(login=CONDUCTOR, id=0, type="Bot"),
        )
        await self._note(event, installation, trigger)
        self._github.forget(installation.id)
        await self._stop(installation.id, None, trigger, why)

    async def _stop(
        self, installation_id: int, repo_ids: Collection[int] | None, trigger: Trigger, why: str
    ) -> None:
        by = _by(trigger, why)
        for asked in await self._approvals.pending():
            here = repo_ids is None or asked.repo.id in repo_ids
            if here and asked.repo.installation_id == installation_id:
                await self._approvals.end(asked, ApprovalState.withdrawn, why=by)
        for job_id in await self._states.open_jobs(installation_id, repo_ids):
            job = await self._conductor.store.job(job_id)
            if job is not None:
                await self._conductor.stop_job(job, by=by, trigger=trigger)

    async def _set_up(self, repos: Sequence[Repo], trigger: Trigger) -> None:
        if not (self._create_labels or self._welcome_issue):
            return
        if later := repos[self._at_once :]:
            log.info("repositories are set up later", count=len(later))
            await self._backlog.add(later, trigger.delivery_id)
        for repo in repos[: self._at_once]:
            try:
                await self._set_up_one(repo, trigger.delivery_id)
            except ConductorError as error:  # labels are a convenience: everything works without
                log.warning("repository not set up", repo=repo.full_name, error=str(error))

    async def set_up_next(self) -> None:
        """Set up one of the repositories that wait for it; for as long as GitHub does not answer it waits on."""
        found = await self._backlog.first()
        if found is None:
            return
        repo, delivery_id = found
        try:
            await self._set_up_one(repo, delivery_id)
        except GitHubUnavailable:
            await self._backlog.done(repo, again=True)
            raise
        except ConductorError as error:  # gone, suspended, moved
            log.warning("repository not set up", repo=repo.full_name, error=str(error))
        await self._backlog.done(repo)

    async def _set_up_one(self, repo: Repo, delivery_id: str) -> None:
        if self._create_labels:
            await self._setup.labels(repo)
        if self._welcome_issue:
            await self._setup.welcome(repo, delivery_id)

    async def _note(
        self, event: str, installation: Installation, trigger: Trigger, **details: object
    ) -> None:
        log.info(
            "installation",
            change=event,
            installation=installation.id,
            account=installation.account,
            by=trigger.actor.login,
            **details,
        )
        await self._conductor.audit.record(
            AuditKind.installation,
            actor=trigger.actor,
            delivery_id=trigger.delivery_id,
            details={
                "event": trigger.event,
                "change": event,
                "installation": installation.id,
                "account": installation.account,
                **details,
            },
        )


def missing_permissions(installation: Installation) -> dict[str, str]:
    """What the App asks for and an account has not granted: it has to accept what came later."""
    granted = installation.permissions
    organization = installation.account_type == "Organization"
    return {
        name: level
        for name, level in NEEDED.items()
        if _LEVELS.get(granted.get(name, ""), 0) < _LEVELS[level]
        and (organization or name not in _OF_ORGANIZATIONS)
    }


def _say_missing(installation: Installation) -> None:
    if missing := missing_permissions(installation):
        log.warning(
            "the App lacks permissions",
            account=installation.account,
            missing=", ".join(f"{name}: {level}" for name, level in sorted(missing.items())),
            hint="Ask for them in the App's settings, and accept them where it is installed.",
        )


def _by(trigger: Trigger, why: str) -> str:
    return f"{trigger.actor.login}, {why}"[:120]


def _names(repos: Sequence[Repo]) -> list[str]:
    return [repo.full_name for repo in repos[:100]]
