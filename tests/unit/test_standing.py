"""Whether a person is entitled to something: every no, and deny when anything needed is unknown."""

from __future__ import annotations

import pytest

from bot.reasons import as_markdown, refusals
from bot.repo_rules import Entitled, FinalRule, People
from bot.standing import ROLES, Standing, at_least, entitled, team_name, teams_in, whom


def maria(**changes: object) -> Standing:
    return Standing(**{"login": "Maria", "permission": "write"} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("wanted", ["write", "maintain", "admin"])
@pytest.mark.parametrize("has", [*ROLES, None, "owner", ""])
def test_the_permission(has: str | None, wanted: str) -> None:
    enough = has in ROLES and ROLES.index(str(has)) >= ROLES.index(wanted)
    assert at_least(has, wanted) is enough
    assert entitled(Entitled(permission=wanted), maria(permission=has), "acme").ok is enough


@pytest.mark.parametrize(
    ("rule", "changes", "ok"),
    [
        (People(users=("maria",)), {}, True),  # logins know no case
        (People(users=("joe",)), {}, False),
        (People(users=("maria",)), {"permission": "read"}, False),  # named, but may not write
        (People(users=("maria",)), {"human": False}, False),
        (People(users=("maria",)), {"suspended": True}, False),
        (People(users=("maria",)), {"suspended": None}, False),
        (People(teams=("Core",)), {"teams": frozenset({"acme/core"})}, True),
        (People(teams=("other/core",)), {"teams": frozenset({"acme/core"})}, False),
        (People(teams=("core",)), {"unknown_teams": frozenset({"acme/core"})}, False),
        (People(teams=("core",), users=("maria",)), {"unknown_teams": frozenset({"acme/core"})}, True),
        (People(codeowners=True), {"owner": True}, True),
        (People(codeowners=True), {"owner": False}, False),
        (People(codeowners=True), {"owner": None}, False),
        (Entitled(users=("maria",), permission="admin"), {}, False),
        (FinalRule(required=2, users=("joe",)), {}, False),
        (Entitled(), {}, True),
    ],
)
def test_who_is_named(rule: People, changes: dict[str, object], ok: bool) -> None:
    assert entitled(rule, maria(**changes), "Acme").ok is ok


def test_doubt_is_told_apart_from_no() -> None:
    rule = People(teams=("core",))
    unknown = entitled(rule, maria(unknown_teams=frozenset({"acme/core"})), "acme")
    assert "could not find out" in " ".join(refusals(unknown))
    assert "try again later" in " ".join(refusals(unknown))
    plain = entitled(rule, maria(), "acme")
    assert refusals(plain) == ["Only the team `core` may do that, and @Maria is not one."]
    assert "in the team acme/core" in as_markdown(plain)


def test_names_of_teams() -> None:
    assert team_name("Core", "Acme") == "acme/core"
    assert team_name("Other/Core", "Acme") == "other/core"
    assert teams_in([People(teams=("a", "acme/a")), People(teams=("b",))], "acme") == {"acme/a", "acme/b"}
    assert whom(People(users=("maria",), codeowners=True)) == "`maria` and the code owners"
