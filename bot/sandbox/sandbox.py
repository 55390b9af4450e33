"""A running sandbox GitHub, as tests and the demo hold it in their hands."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from aiohttp import web

from bot.lfs import parse_pointer
from bot.sandbox.actions import SLUG
from bot.sandbox.api import Api
from bot.sandbox.auth import user_token
from bot.sandbox.description import github_description
from bot.sandbox.faults import Faults
from bot.sandbox.git import GitError
from bot.sandbox.github import Clock, GitHub, RecordedProblem, utc_now
from bot.sandbox.graphql_api import GraphQLApi
from bot.sandbox.human import Human
from bot.sandbox.lfs import LfsServer
from bot.sandbox.otherapps import PERMISSIONS, Actions, OtherApp, new_app
from bot.sandbox.present import Json
from bot.sandbox.ratelimit import RateLimit
from bot.sandbox.seed import APP_PERMISSIONS, add_repository, new_private_key, new_world
from bot.sandbox.server import HANDLERS, Server
from bot.sandbox.signatures import verification
from bot.sandbox.state import Delivery, Repository, Team, World, load_world, save_world

_SAVE_AFTER = 0.5
"""Seconds after a change until the world is written down."""


class Sandbox:
    """A sandbox GitHub that listens. Make one with ``Sandbox.start``.

    Attributes:
        url: base URL of REST, git and pages alike, without a slash at the end.
        private_key_path: file with the App's key.
    """

    def __init__(self, github: GitHub, api: Api, private_key_path: Path, lfs: LfsServer):
        self._github = github
        self._api = api
        self._lfs = lfs
        self.url = github.base_url
        self.private_key_path = private_key_path

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        *,
        listen: str = "127.0.0.1:0",
        state_dir: Path | None = None,
        webhook_url: str | None = None,
        app_permissions: Mapping[str, str] = APP_PERMISSIONS,
        webhook_secret: str | None = None,
        private_key: str | None = None,
        clock: Clock = utc_now,
        seed: Callable[[GitHub], Awaitable[None]] = add_repository,
    ) -> AsyncIterator[Sandbox]:
        """Run a sandbox until the block ends.

        Args:
            listen: ``host:port``; port 0 takes a free one.
            state_dir: folder that keeps the world over restarts; None for a temporary one. What is remembered there
                wins over ``app_permissions``, ``webhook_secret`` and ``private_key``.
            webhook_url: where deliveries go; may be set later.
            app_permissions: what the App and its installation are granted.
            webhook_secret: the App's webhook secret; None makes one.
            private_key: the App's key as PEM; None makes one, which takes a tenth of a second.
            clock: tells the time.
            seed: fills a new world.

        Raises:
            OSError: the address is taken.
        """
        async with contextlib.AsyncExitStack() as stack:
            if state_dir is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-github-"))
                home = Path(folder)
            else:
                home = state_dir
                home.mkdir(parents=True, exist_ok=True)
            snapshot = home / "world.json"
            fresh = not snapshot.exists()
            if fresh:
                world = new_world(
                    clock(),
                    permissions=app_permissions,
                    private_key=private_key or new_private_key(),
                    webhook_secret=webhook_secret or secrets.token_hex(20),
                )
            else:
                world = load_world(snapshot)
            if webhook_url is not None:
                world.app.webhook_url = webhook_url
            key_path = home / "app.private-key.pem"
            key_path.touch(mode=0o600)
            key_path.write_text(world.app.private_key)

            listener = _listener(listen)
            stack.callback(listener.close)
            github = GitHub(
                world,
                git_root=home / "git",
                base_url=_base_url(listener),
                description=github_description(),
                clock=clock,
            )
            keeper = _Keeper(world, snapshot)
            stack.push_async_callback(keeper.close)
            if fresh:
                await seed(github)
                keeper.changed()
            api = Api(github, HANDLERS, GraphQLApi(github).handle, keeper.changed)
            stack.push_async_callback(github.webhooks.close)
            server = Server(github, api, keeper.changed)
            application = server.application()
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=2)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener).start()
            yield cls(github, api, key_path, server.lfs)

    # ---- who and where

    @property
    def app_id(self) -> int:
        """The App's id, which its JSON web tokens name as their issuer."""
        return self._github.world.app.id

    @property
    def app_slug(self) -> str:
        """The App's short name; its bot's login is this with ``[bot]``."""
        return self._github.world.app.slug

    @property
    def installation_id(self) -> int:
        """The App's installation on the first account."""
        return next(iter(self._github.world.installations))

    @property
    def webhook_secret(self) -> str:
        """What deliveries are signed with."""
        return self._github.world.app.webhook_secret

    @property
    def webhook_url(self) -> str | None:
        """Where deliveries go; may be set at any time."""
        return self._github.world.app.webhook_url

    @webhook_url.setter
    def webhook_url(self, url: str | None) -> None:
        self._github.world.app.webhook_url = url

    @property
    def world(self) -> World:
        """Everything that is remembered, to look at or to change before a test."""
        return self._github.world

    @property
    def faults(self) -> Faults:
        """What shall go wrong."""
        return self._github.faults

    @property
    def rate_limit(self) -> RateLimit:
        """The primary rate limit."""
        return self._github.rate_limit

    @property
    def problems(self) -> list[RecordedProblem]:
        """What departed from GitHub's description so far; ``side`` says whose fault it is."""
        return self._github.problems

    @property
    def deliveries(self) -> list[Delivery]:
        """The webhook deliveries, newest first."""
        return self._github.world.deliveries

    def git_url(self, repo: str) -> str:
        """Where to clone ``owner/name`` from."""
        return f"{self.url}/{repo}.git"

    def user_token(self, login: str) -> str:
        """A person's token, for REST and for git."""
        return user_token(login)

    # ---- acting

    def as_user(self, login: str) -> Human:
        """Act as a person.

        Raises:
            ValueError: there is no such account.
        """
        return Human(self._github, self._api, login)

    def as_app(
        self, slug: str, *, name: str | None = None, permissions: Mapping[str, str] = PERMISSIONS
    ) -> OtherApp:
        """Act as an App of somebody else's, a CI for example; it is registered on first use.

        Its bot is ``slug[bot]`` and its name whatever it likes, also that of the App under test.
        """
        return OtherApp(self._github, self._api, new_app(self._github, slug, name), permissions)

    def actions(self) -> Actions:
        """Act as GitHub Actions: workflow runs with jobs and logs."""
        return Actions(self._github, self._api, new_app(self._github, SLUG))

    def add_user(self, login: str) -> None:
        """Open an account."""
        self._github.add_user(login)

    def add_organization(self, login: str, *, owner: str, base_role: str = "read") -> None:
        """Open an organization with one owner; every member may do ``base_role`` in its repositories."""
        organization = self._github.add_user(login, "Organization")
        organization.members[owner] = "admin"
        organization.base_role = base_role

    def set_member(self, org: str, login: str, role: str | None = "member") -> None:
        """Make somebody a member of an organization, an owner (admin), or (None) neither."""
        members = self._github.world.users[org].members
        if role is None:
            members.pop(login, None)
        else:
            members[login] = role

    def add_team(
        self,
        org: str,
        slug: str,
        members: Iterable[str] = (),
        *,
        repositories: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> None:
        """Make a team; its members become members of the organization. ``repositories``: ``owner/name`` to a role."""
        world = self._github.world
        team = Team(world.next_id(), org, slug, slug.replace("-", " ").title(), parent=parent)
        for login in members:
            world.users[org].members.setdefault(login, "member")
            team.members[login] = "member"
        for repo, role in (repositories or {}).items():
            team.repositories[self._repository(repo).id] = role
        world.teams.append(team)

    def suspend_user(self, login: str, *, suspended: bool = True) -> None:
        """Suspend an account, or let it act again."""
        self._github.world.users[login].suspended_at = self._github.now() if suspended else None

    async def create_repo(
        self,
        full_name: str,
        *,
        files: Mapping[str, str | bytes | None] | None = None,
        private: bool = False,
        collaborators: Mapping[str, str] | None = None,
    ) -> None:
        """Make a repository ``owner/name`` whose owner exists.

        ``files`` become the first commit: a README by default, and no commit at all with ``{}``.
        """
        if files is None:
            files = {"README.md": f"# {full_name}\n"}
        await self._github.create_repository(
            full_name,
            files=files,
            private=private,
            collaborators=collaborators,
        )

    def protect_branch(self, repo: str, branch: str) -> None:
        """Let a branch take changes through pull requests only."""
        self._repository(repo).protected_branches.add(branch)

    def require_signatures(self, repo: str, pattern: str = "*") -> None:
        """Let branches whose name matches ``pattern`` take commits with verified signatures only."""
        self._repository(repo).signed_branches.add(pattern)

    def add_signing_key(self, login: str, public_key: str) -> None:
        """Give somebody an SSH signing key (the line of a ``.pub`` file); needs ``ssh-keygen`` for pushes."""
        self._github.world.users[login].signing_keys.append(public_key.strip())

    async def verification(self, repo: str, commit: str) -> Json:
        """Whether GitHub calls a commit verified, and why not."""
        repository = self._repository(repo)
        git = self._github.git(repository)
        return await verification(self._github, repository, git, commit)

    def set_role(self, repo: str, login: str, role: str) -> None:
        """Make somebody none, read, triage, write, maintain or admin."""
        self._repository(repo).collaborators[login] = role

    def add_large_file(self, repo: str, content: bytes) -> str:
        """Put an object into a repository's LFS store; returns the pointer file that stands for it in the tree."""
        return self._lfs.add(self._repository(repo), content).text()

    def large_file(self, repo: str, pointer: str) -> bytes | None:
        """The content that a pointer file stands for; None when the repository's LFS store does not have it."""
        found = parse_pointer(pointer.encode())
        path = self._lfs.path(self._repository(repo), found.oid) if found else None
        return path.read_bytes() if path and path.exists() else None

    def ping(self) -> None:
        """Send the ``ping`` that GitHub sends when a webhook is set up."""
        self._github.ping()

    def redeliver(self, delivery: Delivery) -> Delivery:
        """Send a delivery again, as the button on the App's page does."""
        return self._github.redeliver(delivery)

    async def deliveries_settled(self) -> None:
        """Wait until no push is being worked on and no webhook delivery is under way."""
        for repository in list(self._github.world.repositories.values()):
            async with self._github.git(repository).lock:
                pass
        await self._github.webhooks.settled()

    # ---- looking

    def issue(self, repo: str, number: int) -> Json:
        """An issue, or a pull request as an issue."""
        repository = self._repository(repo)
        return self._github.present.issue(repository, repository.issues[number])

    def issues(self, repo: str) -> list[Json]:
        """All issues without the pull requests, oldest first."""
        repository = self._repository(repo)
        found = [one for one in repository.issues.values() if one.pull is None]
        return [self._github.present.issue(repository, one) for one in found]

    def comments(self, repo: str, number: int) -> list[Json]:
        """The comments of an issue or pull request, oldest first."""
        repository = self._repository(repo)
        issue = repository.issues[number]
        return [self._github.present.comment(repository, issue, one) for one in issue.comments.values()]

    def reactions(
        self, repo: str, number: int, *, comment_id: int | None = None, review_id: int | None = None
    ) -> list[tuple[str, str]]:
        """Pairs of login and content, on an issue or pull request, one of its comments or one of its reviews."""
        issue = self._repository(repo).issues[number]
        found = issue.reactions if comment_id is None else issue.comments[comment_id].reactions
        if review_id is not None:
            assert issue.pull is not None
            found = issue.pull.reviews[review_id].reactions
        return [(one.login, one.content) for one in found]

    def pulls(self, repo: str) -> list[Json]:
        """All pull requests, oldest first."""
        repository = self._repository(repo)
        return [self._github.present.pull(repository, *pair) for pair in repository.pulls()]

    def reviews(self, repo: str, number: int) -> list[Json]:
        """The reviews of a pull request, oldest first."""
        repository = self._repository(repo)
        issue = repository.issues[number]
        found = issue.pull.reviews.values() if issue.pull else ()
        return [self._github.present.review(repository, issue, one) for one in found]

    def check_runs(self, repo: str, sha: str | None = None) -> list[Json]:
        """All check runs, or those of one commit, oldest first."""
        repository = self._repository(repo)
        found = [one for one in repository.check_runs.values() if sha in (None, one.head_sha)]
        return [self._github.present.check_run(repository, one) for one in found]

    async def branches(self, repo: str) -> dict[str, str]:
        """Branch names and the commits that they point at."""
        refs = await self._github.git(self._repository(repo)).refs("refs/heads")
        return {name.removeprefix("refs/heads/"): sha for name, sha in refs.items()}

    async def file(self, repo: str, branch: str, path: str) -> str | None:
        """A file's text on a branch (or at any commit); None when it is not there."""
        try:
            return await self._github.git(self._repository(repo)).text("show", f"{branch}:{path}")
        except GitError:
            return None

    async def diff(self, repo: str, base: str, head: str) -> str:
        """The diff between two branches or commits."""
        return await self._github.git(self._repository(repo)).diff(base, head)

    def _repository(self, repo: str) -> Repository:
        repository = self._github.world.repository(*repo.split("/", 1))
        if repository is None:
            raise LookupError(f"there is no repository {repo}")
        return repository


def _listener(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal():
        raise OSError(f"{listen} is not host:port")
    return socket.create_server((host or "127.0.0.1", int(port)), reuse_port=False)


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    # who listens everywhere is still best called on this machine
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104


class _Keeper:
    """Writes the world down soon after it changed, and at the end."""

    def __init__(self, world: World, snapshot: Path):
        self._world = world
        self._snapshot = snapshot
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SAVE_AFTER, self._save)

    def _save(self) -> None:
        self._timer = None
        save_world(self._world, self._snapshot)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._save()
