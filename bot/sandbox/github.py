"""The sandbox's heart: the world, the clock, the repositories on disk, and the one way to raise a webhook."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bot.sandbox.completion import Completer
from bot.sandbox.description import GitHubDescription, Problem
from bot.sandbox.faults import Faults
from bot.sandbox.git import GitRepository, Identity
from bot.sandbox.present import Presenter
from bot.sandbox.ratelimit import RateLimit
from bot.sandbox.state import Delivery, Repository, User, World
from bot.sandbox.webhooks import KEPT, WebhookSender, new_guid, wants

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time of day."""
    return datetime.now(UTC)


@dataclasses.dataclass(frozen=True)
class RecordedProblem:
    """Something that departed from GitHub's description.

    Attributes:
        side: ``client`` when a request was wrong, ``sandbox`` when our own answer or webhook was.
        where: the request line, or the event.
        problem: what is wrong.
    """

    side: Literal["client", "sandbox"]
    where: str
    problem: Problem

    def __str__(self) -> str:
        return f"{self.side}: {self.where}: {self.problem}"


class GitHub:
    """What all handlers work on.

    Args:
        world: what is remembered.
        git_root: folder of the bare repositories.
        base_url: where the sandbox listens, without a slash at the end.
        description: GitHub's description.
        clock: tells the time, with a time zone; tests turn it.
    """

    def __init__(
        self,
        world: World,
        *,
        git_root: Path,
        base_url: str,
        description: GitHubDescription,
        clock: Clock = utc_now,
    ):
        self.world = world
        self.git_root = git_root
        self.base_url = base_url
        self.description = description
        self.completer = Completer(description, f"{base_url}/")
        self.present = Presenter(world, base_url)
        self.clock = clock
        self.faults = Faults()
        self.rate_limit = RateLimit()
        self.problems: list[RecordedProblem] = []
        self.webhooks = WebhookSender(hook_id=world.app.id + 1, app_id=world.app.id)
        self.log_links: dict[str, tuple[int, int, datetime]] = {}
        """Signature of a log's address to repository, job and end."""
        self._repositories: dict[int, GitRepository] = {}

    def now(self) -> datetime:
        """The time by the sandbox's clock."""
        return self.clock()

    def record(self, side: Literal["client", "sandbox"], where: str, problems: Iterable[Problem]) -> None:
        """Write problems down for the tests and for ``GET /_sandbox/problems``."""
        self.problems += [RecordedProblem(side, where, problem) for problem in problems]

    # ---- accounts and repositories

    def add_user(self, login: str, type: str = "User") -> User:  # noqa: A002 - GitHub's word
        """Open an account.

        Raises:
            ValueError: the login is taken.
        """
        if self.world.user(login) is not None:
            raise ValueError(f"there is an account {login} already")
        user = User(self.world.next_id(), login, type)
        self.world.users[login] = user
        return user

    def identity(self, login: str) -> Identity:
        """How commits name this account, now."""
        return Identity(login, self.world.users[login].email, self.now())

    def git(self, repository: Repository) -> GitRepository:
        """The repository's git data."""
        if repository.id not in self._repositories:
            path = self.git_root / repository.owner / f"{repository.name}.git"
            self._repositories[repository.id] = GitRepository(path)
        return self._repositories[repository.id]

    async def create_repository(
        self,
        full_name: str,
        *,
        files: Mapping[str, str | bytes | None] | None = None,
        private: bool = False,
        description: str | None = None,
        collaborators: Mapping[str, str] | None = None,
        author: str | None = None,
    ) -> Repository:
        """Make a repository; with ``files`` it gets a first commit on ``main``.

        Raises:
            ValueError: the owner does not exist or the name is taken.
        """
        owner, _, name = full_name.partition("/")
        if owner not in self.world.users or not name:
            raise ValueError(f"{full_name}: there is no account {owner or '(none)'}")
        if self.world.repository(owner, name) is not None:
            raise ValueError(f"there is a repository {full_name} already")
        repository = Repository(
            id=self.world.next_id(),
            owner=owner,
            name=name,
            created_at=self.now(),
            pushed_at=self.now(),
            private=private,
            description=description,
            collaborators=dict(collaborators or {}),
        )
        git = self.git(repository)
        await git.create(repository.default_branch)
        if files:
            sha = await git.write_files(None, files, "Initial commit", self.identity(author or owner))
            await git.update_ref(f"refs/heads/{repository.default_branch}", sha)
        self.world.repositories[repository.id] = repository
        return repository

    async def move(self, repository: Repository, owner: str, name: str) -> None:
        """Let a repository lie under another name; who pushes meanwhile is waited for."""
        git = self.git(repository)
        async with git.lock:
            path = self.git_root / owner / f"{name}.git"
            path.parent.mkdir(parents=True, exist_ok=True)
            git.path.rename(path)
            git.path = path
            repository.owner, repository.name = owner, name

    # ---- webhooks

    def tell_app(self, event: str, payload: dict[str, Any], installation_id: int) -> None:
        """Tell the App something that it did not have to subscribe to."""
        self._deliver(event, payload, None, installation_id)

    def emit(self, event: str, repository: Repository, sender: str, payload: Mapping[str, Any]) -> None:
        """Tell the App about something, if it is installed here and wants to know."""
        installation = self.world.installation_for(repository)
        if installation is None or not wants(installation, event, payload.get("action")):
            return
        full = {
            **payload,
            "repository": self.present.repository(repository),
            "sender": self.present.user(sender),
            "installation": {"id": installation.id, "node_id": f"MDIzOkludGVn{installation.id}"},
        }
        if self.world.users[repository.owner].type == "Organization":
            full["organization"] = self.present.organization(repository.owner)
        self._deliver(event, full, repository.id, installation.id)

    def ping(self) -> None:
        """Tell the App that its webhook is set up."""
        hook = {
            "type": "App",
            "id": self.world.app.id + 1,
            "name": "web",
            "active": True,
            "app_id": self.world.app.id,
            "events": list(self.world.app.events),
            "config": {"content_type": "json", "insecure_ssl": "0", "url": self.world.app.webhook_url or ""},
        }
        zen = "Keep it logically awesome."
        self._deliver("ping", {"zen": zen, "hook_id": hook["id"], "hook": hook}, None, None)

    def redeliver(self, delivery: Delivery) -> Delivery:
        """Send a delivery once more under the same GUID."""
        again = dataclasses.replace(
            delivery,
            id=self.world.next_id(),
            delivered_at=self.now(),
            redelivery=True,
            status="pending",
            status_code=0,
            duration=0.0,
            response_headers={},
            response_body="",
        )
        self._log_and_send(again)
        return again

    def _deliver(
        self, event: str, payload: dict[str, Any], repository_id: int | None, installation_id: int | None
    ) -> None:
        payload = self.completer.complete_webhook(event, payload)
        where = f"webhook {event}.{payload.get('action', '')}".rstrip(".")
        self.record("sandbox", where, self.description.check_webhook(event, payload))
        self._log_and_send(
            Delivery(
                id=self.world.next_id(),
                guid=new_guid(),
                event=event,
                action=payload.get("action"),
                delivered_at=self.now(),
                payload=payload,
                repository_id=repository_id,
                installation_id=installation_id,
            )
        )

    def _log_and_send(self, delivery: Delivery) -> None:
        self.world.deliveries.insert(0, delivery)
        del self.world.deliveries[KEPT:]
        self.webhooks.send(delivery, self.world.app.webhook_secret, self.world.app.webhook_url)
