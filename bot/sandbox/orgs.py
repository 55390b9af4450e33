"""REST: organizations, their members and their teams.

https://docs.github.com/en/rest/orgs/members and https://docs.github.com/en/rest/teams
"""

from __future__ import annotations

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.permissions import ROLES
from bot.sandbox.present import Json, iso
from bot.sandbox.refusals import not_found
from bot.sandbox.state import Team, User

_RIGHTS = {"pull": "read", "triage": "triage", "push": "write", "maintain": "maintain", "admin": "admin"}


def _org(call: Call) -> User:
    """The organization that the path names, for those who may look into it."""
    org = call.github.world.user(call.args["org"])
    if org is None or org.type != "Organization":
        raise not_found()
    token = call.actor.token
    if token is not None and token.app is None:
        installation = call.github.world.installations[token.installation_id]
        if installation.account != org.login:
            raise not_found()
    if call.actor.kind == "user" and call.operation != "orgs/get" and call.login not in org.members:
        raise not_found()
    return org


def _team(call: Call) -> Team:
    team = call.github.world.team(_org(call).login, call.args["team_slug"])
    if team is None:
        raise not_found()
    return team


async def get_org(call: Call) -> Answer:
    """GET /orgs/{org}."""
    org = _org(call)
    since = iso(call.github.world.app.created_at)
    page = f"{call.github.base_url}/{org.login}"
    data = {**call.github.present.organization(org.login), "html_url": page, "type": "Organization"}
    return Answer(data=data | {"created_at": since, "updated_at": since, "archived_at": None})


async def list_members(call: Call) -> Answer:
    """GET /orgs/{org}/members."""
    role = call.query.get("role", "all")
    members = [login for login, one in _org(call).members.items() if role in ("all", one)]
    return call.page(members, call.github.present.user)


async def check_member(call: Call) -> Answer:
    """GET /orgs/{org}/members/{username}."""
    user = call.github.world.user(call.args["username"])
    if user is None or user.login not in _org(call).members:
        raise not_found()
    return Answer(204)


async def get_org_membership(call: Call) -> Answer:
    """GET /orgs/{org}/memberships/{username}."""
    org, user = _org(call), call.github.world.user(call.args["username"])
    if user is None or user.login not in org.members:
        raise not_found()
    url = f"{call.github.base_url}/orgs/{org.login}"
    data = {
        "url": f"{url}/memberships/{user.login}",
        "state": "active",
        "role": org.members[user.login],
        "organization_url": url,
        "organization": call.github.present.organization(org.login),
        "user": call.github.present.user(user.login),
    }
    return Answer(data=data)


async def list_teams(call: Call) -> Answer:
    """GET /orgs/{org}/teams."""
    org = _org(call)
    teams = [one for one in call.github.world.teams if one.org == org.login]
    return call.page(teams, call.github.present.team)


async def get_team(call: Call) -> Answer:
    """GET /orgs/{org}/teams/{team_slug}."""
    team = _team(call)
    since = iso(call.github.world.app.created_at)
    data = {
        **call.github.present.team(team),
        "members_count": len(team.members),
        "repos_count": len(team.repositories),
        "created_at": since,
        "updated_at": since,
        "organization": call.github.present.organization(team.org),
    }
    return Answer(data=data)


async def list_team_members(call: Call) -> Answer:
    """GET /orgs/{org}/teams/{team_slug}/members: those of teams below, too."""
    team, role = _team(call), call.query.get("role", "all")
    world = call.github.world
    members = [
        login for login in world.users if (have := world.in_team(team, login)) and role in ("all", have)
    ]
    return call.page(members, call.github.present.user)


async def get_team_membership(call: Call) -> Answer:
    """GET /orgs/{org}/teams/{team_slug}/memberships/{username}."""
    team, user = _team(call), call.github.world.user(call.args["username"])
    role = call.github.world.in_team(team, user.login) if user else None
    if user is None or role is None:
        raise not_found()
    url = f"{call.github.base_url}/organizations/{call.github.world.users[team.org].id}/team/{team.id}"
    data = {"url": f"{url}/memberships/{user.login}", "role": role, "state": "active"}
    return Answer(data=data)


async def check_team_repository(call: Call) -> Answer:
    """GET /orgs/{org}/teams/{team_slug}/repos/{owner}/{repo}."""
    team = _team(call)
    role = team.repositories.get(call.repository.id)
    if role is None:
        raise not_found()
    if "repository+json" not in call.accept:
        return Answer(204)
    data = call.github.present.repository(call.repository)
    return Answer(data=data | {"role_name": role, "permissions": rights(role)})


async def list_repository_teams(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/teams."""
    number = call.repository.id
    teams = [one for one in call.github.world.teams if number in one.repositories]
    words = {"read": "pull", "write": "push"}

    def present(team: Team) -> Json:
        role = team.repositories[number]
        return call.github.present.team(team) | {
            "permission": words.get(role, role),
            "permissions": rights(role),
        }

    return call.page(teams, present)


def rights(role: str) -> dict[str, bool]:
    """A role as GitHub's ``permissions`` object spells it out."""
    return {name: ROLES[role] >= ROLES[least] for name, least in _RIGHTS.items()}


OPERATIONS: dict[str, Handler] = {
    "orgs/get": get_org,
    "orgs/list-members": list_members,
    "orgs/check-membership-for-user": check_member,
    "orgs/get-membership-for-user": get_org_membership,
    "teams/list": list_teams,
    "teams/get-by-name": get_team,
    "teams/list-members-in-org": list_team_members,
    "teams/get-membership-for-user-in-org": get_team_membership,
    "teams/check-permissions-for-repo-in-org": check_team_repository,
    "repos/list-teams": list_repository_teams,
}
