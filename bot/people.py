"""Who somebody is in a repository: their role, their teams, whether they own the code. Read from GitHub.

What cannot be found out is reported as unknown, and whoever asks has to say no then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from bot.codeowners import MAX_BYTES, PLACES, Owners
from bot.errors import GitHubUnavailable
from bot.github import GitHub, path
from bot.github_errors import GitHubError, NotFound
from bot.model import Actor, Repo
from bot.repo_rules import People
from bot.standing import ROLES, Standing, teams_in

log = structlog.get_logger(__name__)

#: Owners may be many teams; more of them are not asked about, and count as unknown.
_MAX_TEAMS = 30


class PeopleFinder:
    """Questions about people, as the App's installation."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def standing(
        self,
        repo: Repo,
        actor: Actor,
        rules: Iterable[People] = (),
        *,
        paths: Sequence[str] | None = None,
        ref: str | None = None,
    ) -> Standing:
        """What ``actor`` is in ``repo``, as far as ``rules`` need to know it. Never raises for what is not known.

        ``paths``: what it is about; whoever owns one of them is an owner. None: whoever owns anything. ``ref``: the
        base branch, whose CODEOWNERS counts; default: the default branch.
        """
        if actor.is_bot:
            return Standing(login=actor.login, id=actor.id, permission="none", human=False, owner=False)
        rules = tuple(rules)
        permission, suspended = await asyncio.gather(
            self.role(repo, actor.login, actor.id), self._suspended(repo, actor.login)
        )
        named = teams_in(rules, repo.owner)
        teams, unknown = await self._teams(repo, named, actor.login)
        owner: bool | None = False
        if any(rule.codeowners for rule in rules):
            owner = await self._owns(repo, actor.login, paths, ref)
        return Standing(
            login=actor.login,
            id=actor.id,
            permission=permission,
            suspended=suspended,
            teams=teams,
            unknown_teams=unknown,
            owner=owner,
        )

    async def role(self, repo: Repo, login: str, account: int | None = None) -> str | None:
        """One of bot.standing.ROLES; None when that cannot be told. ``account``: whose login it was when we heard it.

        https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user says
        "maintain" as ``write`` and "triage" as ``read`` in ``permission``; the rest stands in ``role_name`` and, for
        custom roles, in the user's ``permissions``. (A comment's ``author_association`` is no substitute: a
        collaborator who may only read is a COLLABORATOR.)
        """
        try:
            found = await self._get(repo, "/collaborators/{user}/permission", user=login)
        except NotFound:
            return "none"
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("permission unknown", login=login, error=str(error))
            return None
        # an account that GitHub resolves to another login than we asked for is not who we mean
        user = found.get("user") or {}
        if str(user.get("login", "")).lower() != login.lower():
            return "none"
        # nor is one that has taken a login which somebody else gave up
        if account is not None and user.get("id") != account:
            return "none"
        permission = str(found.get("permission") or "none")
        rights = user.get("permissions") or {}
        for coarse, fine in (("write", "maintain"), ("read", "triage")):
            if permission == coarse and (found.get("role_name") == fine or rights.get(fine) is True):
                return fine
        return permission if permission in ROLES else "none"

    async def codeowners(self, repo: Repo, ref: str | None = None) -> Owners:
        """The CODEOWNERS file that counts on ``ref`` (default: the default branch).

        Raises GitHubError or GitHubUnavailable when it cannot be read; a file that is too large counts as none, as
        on GitHub.
        """
        for place in PLACES:
            query = {"ref": ref} if ref else None
            try:
                found = await self._get(repo, "/contents/{+file}", query, file=place)
            except NotFound:
                continue
            if not isinstance(found, dict) or found.get("type") != "file":
                continue
            if int(found.get("size") or 0) >= MAX_BYTES:
                log.info("CODEOWNERS is too large", repo=repo.full_name, file=place)
                return Owners()
            if found.get("encoding") != "base64":  # GitHub leaves out the content of files above 1 MB here
                found = await self._get(repo, "/git/blobs/{sha}", sha=str(found["sha"]))
            try:
                text = base64.b64decode(found.get("content") or "").decode("utf-8", "replace")
            except binascii.Error:
                return Owners()
            return await asyncio.to_thread(Owners, text)
        return Owners()

    async def _owns(
        self, repo: Repo, login: str, paths: Sequence[str] | None, ref: str | None
    ) -> bool | None:
        try:
            owners = await self.codeowners(repo, ref)
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("code owners unknown", repo=repo.full_name, error=str(error))
            return None
        if paths is None:
            names = owners.everybody()
        else:
            names = await asyncio.to_thread(owners.of_any, paths)
        wanted = {name.removeprefix("@").lower() for name in names if name.startswith("@")}
        if login.lower() in wanted:
            return True
        teams = sorted(name for name in wanted if "/" in name)
        member, unknown = await self._teams(repo, teams[:_MAX_TEAMS], login)
        if member:
            return True
        return None if unknown or len(teams) > _MAX_TEAMS else False

    async def _teams(
        self, repo: Repo, teams: Iterable[str], login: str
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Those of ``teams`` that ``login`` is an active member of, and those that nobody can tell about."""
        teams = list(teams)
        answers = await asyncio.gather(*(self._in_team(repo, team, login) for team in teams))
        return (
            frozenset(team for team, answer in zip(teams, answers, strict=True) if answer is True),
            frozenset(team for team, answer in zip(teams, answers, strict=True) if answer is None),
        )

    async def _in_team(self, repo: Repo, team: str, login: str) -> bool | None:
        """https://docs.github.com/en/rest/teams/members#get-team-membership-for-a-user (members of child teams count).

        Needs the permission members:read. A team of somebody else's organisation answers as one that is not there.
        """
        organisation, _, slug = team.partition("/")
        url = path(
            "/orgs/{org}/teams/{slug}/memberships/{user}", None, org=organisation, slug=slug, user=login
        )
        try:
            found = await self._github.reader(repo.installation_id).getitem(url)
        except NotFound:
            return False
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("team unknown", team=team, login=login, error=str(error))
            return None
        return bool(found.get("state") == "active")

    async def _suspended(self, repo: Repo, login: str) -> bool | None:
        """https://docs.github.com/en/rest/users/users#get-a-user; an account that is hidden or gone is suspended."""
        url = path("/users/{login}", None, login=login)
        try:
            found = await self._github.reader(repo.installation_id).getitem(url)
        except NotFound:
            return True
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("account unknown", login=login, error=str(error))
            return None
        return bool(found.get("suspended_at"))

    async def _get(
        self, repo: Repo, rest: str, query: dict[str, str] | None = None, **values: str | int
    ) -> Any:
        client = self._github.reader(repo.installation_id)
        return await client.getitem(
            path("/repos/{owner}/{repo}" + rest, query, owner=repo.owner, repo=repo.name, **values)
        )
