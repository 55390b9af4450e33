"""What a person is in a repository, and whether that is enough for something. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bot.reasons import Reason, all_of, any_of
from bot.repo_rules import Entitled, People

#: Roles of https://docs.github.com/en/organizations/managing-user-access-to-your-organizations-repositories/
#: managing-repository-roles/repository-roles-for-an-organization, rising.
ROLES = ("none", "read", "triage", "write", "maintain", "admin")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What was found out about a person. Whatever could not be found out is None or named as unknown."""

    login: str
    permission: str | None  # one of ROLES
    id: int = 0
    human: bool = True
    suspended: bool | None = False
    teams: frozenset[str] = frozenset()  # of the teams that were asked about: "organisation/team", lower case
    unknown_teams: frozenset[str] = frozenset()
    owner: bool | None = False  # CODEOWNERS names them for what it is about


def at_least(permission: str | None, wanted: str) -> bool:
    """Whether ``permission`` is ``wanted`` or more. One that is unknown is none."""
    return permission in ROLES and ROLES.index(permission) >= ROLES.index(wanted)


def team_name(team: str, owner: str) -> str:
    """``organisation/team`` in lower case of a team as a configuration of ``owner`` names it."""
    return (team if "/" in team else f"{owner}/{team}").lower()


def teams_in(rules: Iterable[People], owner: str) -> frozenset[str]:
    """The teams that ``rules`` name, as :func:`team_name` writes them."""
    return frozenset(team_name(team, owner) for rule in rules for team in rule.teams)


def entitled(rule: People, standing: Standing, owner: str) -> Reason:
    """Whether ``rule``, of a repository of ``owner``, lets this person. Deny when anything needed is unknown."""
    wanted = rule.permission if isinstance(rule, Entitled) else "write"
    reasons = [_person(standing), _active(standing), _permission(standing, wanted)]
    if not rule.anybody:
        reasons.append(_named(rule, standing, owner))
    return all_of("is this person entitled", reasons)


def _person(standing: Standing) -> Reason:
    return Reason(
        question="is it a person",
        ok=standing.human,
        said=f"@{standing.login} is {'a person' if standing.human else 'no person'}.",
    )


def _active(standing: Standing) -> Reason:
    said = {
        True: f"@{standing.login}'s account is suspended.",
        False: "The account is in use.",
        None: f"I could not find out whether @{standing.login}'s account is suspended. Try again later.",
    }
    return Reason(
        question="is the account in use", ok=standing.suspended is False, said=said[standing.suspended]
    )


def _permission(standing: Standing, wanted: str) -> Reason:
    has = standing.permission
    if has is None:
        said = f"I could not find out what @{standing.login} may do here. Try again later."
    elif at_least(has, wanted):
        said = f"@{standing.login} has {has} access."
    else:
        said = f"That needs {wanted} access to this repository; @{standing.login} has {has}."
    return Reason(question=f"has {wanted} access", ok=at_least(has, wanted), said=said)


def _named(rule: People, standing: Standing, owner: str) -> Reason:
    """Whether the person is one of those that the rule names."""
    reasons = []
    login = standing.login.lower()
    if rule.users:
        ok = login in {user.lower() for user in rule.users}
        said = f"@{standing.login} is {'' if ok else 'not '}named."
        reasons.append(Reason(question="is the login named", ok=ok, said=said))
    for team in sorted(teams_in([rule], owner)):
        if team in standing.unknown_teams:
            said = f"I could not find out who is in the team {team}."
        else:
            said = f"@{standing.login} is {'' if team in standing.teams else 'not '}in it."
        reasons.append(Reason(question=f"in the team {team}", ok=team in standing.teams, said=said))
    if rule.codeowners:
        said = {
            True: "CODEOWNERS names them.",
            False: "CODEOWNERS does not name them.",
            None: "I could not find out what CODEOWNERS says.",
        }[standing.owner]
        reasons.append(Reason(question="is a code owner", ok=standing.owner is True, said=said))
    found = any_of("is one of those who are named", reasons)
    if found.ok:
        return found
    unknown = any(f"{team}" in standing.unknown_teams for team in teams_in([rule], owner)) or (
        rule.codeowners and standing.owner is None
    )
    doubt = " I could not find out about all of them; try again later." if unknown else ""
    return any_of(
        found.question,
        reasons,
        said=f"Only {whom(rule)} may do that, and @{standing.login} is not one.{doubt}",
    )


def whom(rule: People) -> str:
    """Who is named, for a sentence. Nobody is mentioned by it: the names stand in code."""
    names = [f"`{user}`" for user in rule.users]
    names += [f"the team `{team}`" for team in rule.teams]
    names += ["the code owners"] if rule.codeowners else []
    return " and ".join(names) or "people with write access"
