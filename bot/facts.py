"""The only reader of GitHub: what must be known before something is decided or started."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import structlog

from bot.errors import GitHubUnavailable
from bot.github import GitHub, path
from bot.github_errors import Forbidden, GitHubError, NotFound
from bot.model import Actor, Repo, Request, TargetKind
from bot.policy import Facts
from bot.repo_config import MAX_BYTES, RepoConfig, RepoConfigError, parse
from bot.repo_config import PATH as CONFIG_PATH
from bot.yaml_text import Problem

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pull:
    """What we need of a pull request."""

    number: int
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    from_fork: bool
    open: bool


@dataclass(frozen=True, kw_only=True)
class OtherRepository:
    """What we need of a repository that a submodule names."""

    id: int
    full_name: str
    private: bool  # or internal: not everybody may read it


class FactFinder:
    """Questions to GitHub, each answered by its REST API as the App's installation."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def permission(self, repo: Repo, login: str) -> str | None:
        """``admin``, ``write``, ``read`` or ``none``; None when it cannot be found out.

        https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user
        (the comment's ``author_association`` is no substitute: a read-only collaborator is a COLLABORATOR).
        """
        try:
            found = await self._get(repo, "/collaborators/{user}/permission", user=login)
        except NotFound:
            return "none"
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("permission unknown", login=login, error=str(error))
            return None
        permission = str(found.get("permission") or "none")
        # an account that GitHub resolves to another login than we asked for is not who we mean
        user = found.get("user") or {}
        return permission if str(user.get("login", "")).lower() == login.lower() else "none"

    async def who(self, repo: Repo, actor: Actor) -> Facts:
        """The facts for a command that starts nothing."""
        identity = await self._github.identity()
        permission = None if actor.is_bot else await self.permission(repo, actor.login)
        return Facts(actor=actor, permission=permission, app_user_id=identity.user_id)

    async def about(self, request: Request, *, is_open: bool) -> Facts:
        """The facts for a request to start work."""
        facts = await self.who(request.repo, request.trigger.actor)
        if facts.permission not in ("write", "admin"):
            return facts  # refused anyway: no more questions for a stranger
        repository = await self._get(request.repo, "")
        fork = False
        if request.target is TargetKind.pull_request:
            pull = await self.pull(request.repo, request.number)
            fork, is_open = pull.from_fork, pull.open
        config, problem = RepoConfig(), ""
        try:
            config = await self.repo_config(request.repo)
        except RepoConfigError as error:
            problem = str(error)
        return Facts(
            actor=facts.actor,
            permission=facts.permission,
            app_user_id=facts.app_user_id,
            archived=bool(repository.get("archived")) or bool(repository.get("disabled")),
            target=request.target,
            open=is_open,
            from_fork=fork,
            config=config,
            config_problem=problem,
        )

    async def repo_config(self, repo: Repo) -> RepoConfig:
        """The repository's own configuration on its default branch; the defaults when it has none.

        Raises RepoConfigError when there is one that cannot be used.
        https://docs.github.com/en/rest/repos/contents#get-repository-content
        """
        try:
            # without a ref GitHub reads the default branch, which others cannot push to by a pull request
            found = await self._get(repo, "/contents/{+file}", file=CONFIG_PATH)
        except NotFound:
            return RepoConfig()
        if not isinstance(found, dict) or found.get("type") != "file":
            raise RepoConfigError([Problem("it is not a plain file", 1, 1)])
        if int(found.get("size") or 0) > MAX_BYTES or found.get("encoding") != "base64":
            raise RepoConfigError([Problem(f"the file is larger than {MAX_BYTES // 1024} KiB", 1, 1)])
        try:
            text = base64.b64decode(found.get("content") or "").decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise RepoConfigError([Problem("it is not text in UTF-8", 1, 1)]) from error
        return parse(text)

    async def default_branch(self, repo: Repo) -> str:
        """The name of the repository's default branch."""
        return str((await self._get(repo, ""))["default_branch"])

    async def other_repository(self, repo: Repo, full_name: str) -> OtherRepository | None:
        """What the installation of ``repo`` may know of a repository (``owner/name``); None: there is none for it.

        An installation also sees every public repository of its GitHub.
        """
        owner, _, name = full_name.partition("/")
        asked = Repo(owner=owner, name=name, id=0, installation_id=repo.installation_id)
        try:
            found = await self._get(asked, "")
        except (NotFound, Forbidden):
            return None
        return OtherRepository(
            id=int(found["id"]), full_name=str(found["full_name"]), private=bool(found.get("private", True))
        )

    async def pull(self, repo: Repo, number: int) -> Pull:
        """The pull request as it is now."""
        found = await self._get(repo, "/pulls/{number}", number=number)
        head_repo = found["head"].get("repo")
        return Pull(
            number=number,
            head_ref=str(found["head"]["ref"]),
            head_sha=str(found["head"]["sha"]),
            base_ref=str(found["base"]["ref"]),
            base_sha=str(found["base"]["sha"]),
            # a deleted fork leaves no repository behind
            from_fork=head_repo is None or int(head_repo["id"]) != repo.id,
            open=found.get("state") == "open",
        )

    async def branch_sha(self, repo: Repo, branch: str) -> str | None:
        """The commit that a branch points at; None when there is no such branch."""
        try:
            found = await self._get(repo, "/git/ref/heads/{+branch}", branch=branch)
        except NotFound:
            return None
        return str(found["object"]["sha"])

    async def _get(self, repo: Repo, rest: str, **values: str | int) -> Any:
        client = self._github.installation(repo.installation_id)
        url = path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)
        return await client.getitem(url)
