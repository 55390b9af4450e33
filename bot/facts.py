"""The only reader of GitHub: what must be known before something is decided or started."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cachetools import TTLCache

from bot.github import GitHub, path
from bot.github_errors import Forbidden, NotFound, Redirected
from bot.model import Actor, JobKind, Repo, Request, TargetKind
from bot.people import PeopleFinder
from bot.policy import Facts, authorize, kind_for
from bot.profiles import FOLDER as PROFILES
from bot.profiles import NONE as NO_PROFILE
from bot.profiles import Profile, ProfileError, UnknownProfile, bundled_profile, find, name_of
from bot.profiles import read as read_profile
from bot.repo_config import MAX_BYTES, RepoConfig, RepoConfigError, parse
from bot.repo_config import PATH as CONFIG_PATH
from bot.repo_layers import ORGANISATION_REPOSITORY, ServerRules, merge, under
from bot.standing import Standing, at_least
from bot.yaml_text import Problem

#: How long an organisation's default may be older than what is there: it is asked for with every job.
DEFAULT_SECONDS = 60
#: A command about a fork's branch that is heard of so late is asked for again.
LATE = timedelta(minutes=2)
#: More files of a pull request are not listed.
MAX_FILES = 3000


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
    merged: bool = False


@dataclass(frozen=True, kw_only=True)
class OtherRepository:
    """What we need of a repository that a submodule names."""

    id: int
    full_name: str
    private: bool  # or internal: not everybody may read it


class FactFinder:
    """Questions to GitHub, each answered by its REST API as the App's installation."""

    def __init__(self, github: GitHub, server: ServerRules | None = None) -> None:
        """``server``: what no repository may undercut."""
        self._github = github
        self._server = server or ServerRules()
        self.people = PeopleFinder(github)
        self._defaults: TTLCache[tuple[int, str], RepoConfig] = TTLCache(1000, ttl=DEFAULT_SECONDS)

    async def permission(self, repo: Repo, login: str) -> str | None:
        """One of bot.standing.ROLES; None when it cannot be found out."""
        return await self.people.role(repo, login)

    async def who(self, repo: Repo, actor: Actor) -> Facts:
        """The facts for a command that starts nothing."""
        identity = await self._github.identity()
        return _with(
            Facts(actor=actor, permission=None, app_user_id=identity.user_id, account=repo.owner),
            await self.people.standing(repo, actor),
        )

    async def asker(self, repo: Repo, actor: Actor) -> Facts:
        """The facts for words that let an agent go on: as for a new job, without what that would be about."""
        facts = await self.who(repo, actor)
        if not at_least(facts.permission, "write"):
            return facts
        config, problem = await self._config(repo)
        facts = dataclasses.replace(facts, config=config, config_problem=problem)
        return await self._about_people(repo, None, facts)

    async def about(self, request: Request, *, is_open: bool) -> Facts:
        """The facts for a request to start work."""
        repo, number = request.repo, request.number
        facts = await self.who(repo, request.trigger.actor)
        if not at_least(facts.permission, "write"):
            return facts  # refused anyway: no more questions for a stranger
        is_pull = request.target is TargetKind.pull_request
        repository, issue, pull, (config, problem) = await asyncio.gather(
            self._get(repo, ""),
            self._issue(repo, number),
            self.pull(repo, number) if is_pull else _nothing(),
            self._config(repo),
        )
        if pull is not None:
            is_open = pull.open
        public = not repository.get("private", True)
        author = _actor(issue.get("user"))
        facts = dataclasses.replace(
            facts,
            archived=bool(repository.get("archived")) or bool(repository.get("disabled")),
            target=request.target,
            open=is_open,
            from_fork=pull is not None and pull.from_fork,
            head_sha=pull.head_sha if pull is not None else None,
            fork_moved=pull is not None and pull.from_fork and _may_have_moved(request, pull),
            config=config,
            config_problem=problem,
            labels=_labels(issue),
            public=public,
            author=author,
            title_now=str(issue.get("title") or ""),
            body_now=str(issue.get("body") or ""),
        )
        if public and author is not None and not author.is_bot:
            known = author.id == facts.actor.id
            permission = facts.permission if known else await self.permission(repo, author.login)
            facts = dataclasses.replace(facts, author_permission=permission)
        return await self._about_people(repo, pull, facts)

    async def _about_people(self, repo: Repo, pull: Pull | None, facts: Facts) -> Facts:
        """With what only some configurations need: changed paths, teams, code owners."""
        rule, plan = facts.config.who.may_ask, facts.config.approvals.plan
        if pull is not None and (rule.codeowners or plan.paths):
            paths, complete = await self.changed_paths(repo, pull.number)
            facts = dataclasses.replace(facts, paths=paths, paths_complete=complete)
        if rule.teams or rule.codeowners:
            standing = await self.people.standing(
                repo,
                facts.actor,
                [rule],
                paths=facts.paths if pull else None,
                ref=pull.base_ref if pull else None,
            )
            facts = _with(facts, standing)
        return facts

    async def with_profile(self, request: Request, facts: Facts) -> Facts:
        """With the profile that a job for ``request`` has: the one that is asked for, else the repository's usual one.

        For somebody who may not command us nothing is read.
        """
        if not authorize(facts).allowed or facts.config_problem:
            return facts
        kind = kind_for(facts, request)
        name = request.profile or facts.config.profile.usual(kind)
        if name is None or kind is JobKind.release:  # which has no agent
            return facts
        try:
            profile = await self.profile(request.repo, name)
        except (ProfileError, UnknownProfile) as error:
            return dataclasses.replace(facts, profile_problem=str(error))
        return dataclasses.replace(
            facts, profile=dataclasses.replace(profile, asked=request.profile is not None)
        )

    async def profile(self, repo: Repo, name: str) -> Profile:
        """The profile ``name``: the repository's own on its default branch, else the bundled one.

        Raises ProfileError when its file cannot be used, UnknownProfile when there is none.
        """
        if name.lower() == NO_PROFILE:
            return Profile(name=NO_PROFILE, text="")
        paths = await self.profile_paths(repo)
        found = find(name, paths)  # a path that GitHub told: a name of somebody's is never part of one
        if found is not None:
            text = await self.profile_text(repo, found)
            return read_profile(text, name_of(found) or name, path=found)[0]
        profile = bundled_profile(name)
        if profile is None:
            raise UnknownProfile(name, [name_of(path) or "" for path in paths])
        return profile

    async def profile_paths(self, repo: Repo, sha: str | None = None) -> list[str]:
        """The files of the repository's own profiles, on the default branch or at a commit.

        https://docs.github.com/en/rest/repos/contents#get-repository-content lists 1000 entries of a folder at most.
        """
        try:
            listed = await self._content(repo, PROFILES, sha)
        except NotFound:
            return []
        entries = listed if isinstance(listed, list) else []
        return [
            path
            for entry in entries
            # a link may point anywhere
            if entry.get("type") == "file" and name_of(path := str(entry["path"])) is not None
        ]

    async def profile_text(self, repo: Repo, file: str, sha: str | None = None) -> str:
        """The text of a profile's file, on the default branch or at a commit. Raises ProfileError: it is no text."""
        try:
            return text_of(await self._content(repo, file, sha))
        except RepoConfigError as error:
            raise ProfileError(file, error.problems) from error
        except NotFound as error:
            raise ProfileError(file, [Problem("it is not there any more", 1, 1)]) from error

    async def changed_paths(self, repo: Repo, number: int) -> tuple[tuple[str, ...], bool]:
        """What a pull request changes, also the old names of what it renames, and whether that is all.

        https://docs.github.com/en/rest/pulls/pulls#list-pull-requests-files lists 3000 files at most.
        """
        url = path(
            "/repos/{owner}/{repo}/pulls/{number}/files",
            None,
            owner=repo.owner,
            repo=repo.name,
            number=number,
        )
        paths: dict[str, None] = {}
        count = 0
        async for file in self._github.reader(repo.installation_id).getiter(url):
            count += 1
            for key in ("filename", "previous_filename"):
                if file.get(key):
                    paths[str(file[key])] = None
        return tuple(paths), count < MAX_FILES

    async def repo_config(self, repo: Repo) -> RepoConfig:
        """What counts for a repository; without files there are the defaults.

        Its own configuration on its default branch, over the default that its owner keeps in the repository
        ``.github``, below the server's rules.

        Raises RepoConfigError when there is a file that cannot be used; its problem names the file.
        https://docs.github.com/en/rest/repos/contents#get-repository-content
        """
        own, default = await asyncio.gather(self._file(repo), self._organisation(repo))
        config = parse(own) if own is not None else RepoConfig()
        return under(self._server, merge(default, config) if default else config)

    async def config_at(self, repo: Repo, sha: str) -> str | None:
        """The text of the repository's configuration at a commit; None when it has none there.

        Raises RepoConfigError when it is no plain text.
        """
        try:
            return text_of(await self._content(repo, CONFIG_PATH, sha))
        except NotFound:
            return None

    async def _content(self, repo: Repo, file: str, sha: str | None) -> Any:
        """A file, or the list of a folder, at a commit; without one on the default branch."""
        url = path(
            "/repos/{owner}/{repo}/contents/{+file}",
            {"ref": sha} if sha else None,
            owner=repo.owner,
            repo=repo.name,
            file=file,
        )
        return await self._github.reader(repo.installation_id).getitem(url)

    async def with_default(self, repo: Repo, own: RepoConfig) -> RepoConfig:
        """What would count if ``own`` stood on the default branch. Raises RepoConfigError as repo_config does."""
        default = await self._organisation(repo)
        return under(self._server, merge(default, own) if default else own)

    async def _config(self, repo: Repo) -> tuple[RepoConfig, str]:
        try:
            return await self.repo_config(repo), ""
        except RepoConfigError as error:
            return RepoConfig(), str(error)

    async def _organisation(self, repo: Repo) -> RepoConfig | None:
        """The default of the repository's owner, not older than DEFAULT_SECONDS; None when there is none."""
        if repo.name.lower() == ORGANISATION_REPOSITORY:
            return None  # there it is the repository's own
        key = (repo.installation_id, repo.owner.lower())
        if key in self._defaults:
            return self._defaults[key]
        of = dataclasses.replace(repo, name=ORGANISATION_REPOSITORY, id=0)
        try:
            text = await self._file(of)
            config = parse(text) if text is not None else RepoConfig()
        except RepoConfigError as error:
            raise RepoConfigError(error.problems, repository=of.full_name) from error
        self._defaults[key] = config
        return config

    async def _file(self, repo: Repo) -> str | None:
        """The text of the file on the default branch; None when there is none, or no such repository for us."""
        try:
            # without a ref GitHub reads the default branch, which others cannot push to by a pull request
            return text_of(await self._content(repo, CONFIG_PATH, None))
        except NotFound:
            return None

    async def _issue(self, repo: Repo, number: int) -> Mapping[str, Any]:
        """https://docs.github.com/en/rest/issues/issues#get-an-issue, which also knows pull requests."""
        found: Mapping[str, Any] = await self._get(repo, "/issues/{number}", number=number)
        return found

    async def labels(self, repo: Repo, number: int) -> tuple[str, ...]:
        """The labels of an issue or pull request; of one that is gone, none."""
        try:
            return _labels(await self._issue(repo, number))
        except (NotFound, Redirected):
            return ()

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
            merged=bool(found.get("merged")),
        )

    async def branch_sha(self, repo: Repo, branch: str) -> str | None:
        """The commit that a branch points at; None when there is no such branch."""
        try:
            found = await self._get(repo, "/git/ref/heads/{+branch}", branch=branch)
        except NotFound:
            return None
        return str(found["object"]["sha"])

    async def _get(self, repo: Repo, rest: str, **values: str | int) -> Any:
        client = self._github.reader(repo.installation_id)
        url = path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)
        return await client.getitem(url)


def text_of(found: Any) -> str:
    """The text of a file as the contents API answers. Raises RepoConfigError when it is no plain text."""
    if not isinstance(found, dict) or found.get("type") != "file":
        raise RepoConfigError([Problem("it is not a plain file", 1, 1)])
    if int(found.get("size") or 0) > MAX_BYTES or found.get("encoding") != "base64":
        raise RepoConfigError([Problem(f"the file is larger than {MAX_BYTES // 1024} KiB", 1, 1)])
    try:
        return base64.b64decode(found.get("content") or "").decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise RepoConfigError([Problem("it is not text in UTF-8", 1, 1)]) from error


def _with(facts: Facts, standing: Standing) -> Facts:
    return dataclasses.replace(
        facts,
        permission=standing.permission if standing.human else None,
        suspended=standing.suspended,
        teams=standing.teams,
        unknown_teams=standing.unknown_teams,
        code_owner=standing.owner,
    )


def _labels(issue: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(label.get("name") or "") for label in issue.get("labels") or ())


def _actor(user: Mapping[str, Any] | None) -> Actor | None:
    if not user:
        return None
    return Actor(login=str(user["login"]), id=int(user["id"]), type=str(user.get("type") or "User"))


def _may_have_moved(request: Request, pull: Pull) -> bool:
    """Whether the branch may have been pushed to since the asker looked at it.

    A comment's event does not tell the head, so that only its age can: a server that was down hears of it late.
    """
    if request.head_sha is not None:
        return request.head_sha != pull.head_sha
    return request.asked_at is not None and datetime.now(UTC) - request.asked_at > LATE


async def _nothing() -> None:
    return None
