"""Who somebody is, asked of the sandbox GitHub: roles, teams, code owners, suspended accounts, and doubt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.facts import LATE, FactFinder
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import Actor, Repo, Request, TargetKind, Trigger
from bot.people import PeopleFinder
from bot.policy import Rules, authorize, decide
from bot.repo_config import PATH
from bot.repo_rules import People
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.seed import APP_PERMISSIONS
from tests.made_once import app_key

RULES = Rules(agents=("claude",), known_agents=("claude",), max_timeout=60, default_agent="claude")
TEAMS = APP_PERMISSIONS
WITHOUT_TEAMS = {name: level for name, level in APP_PERMISSIONS.items() if name != "members"}


@asynccontextmanager
async def asking(
    tmp_path: Path, files: Mapping[str, str] | None = None, permissions: Mapping[str, str] = TEAMS
) -> AsyncIterator[tuple[Sandbox, PeopleFinder, Repo]]:
    async with Sandbox.start(
        private_key=app_key(), state_dir=tmp_path / "github", app_permissions=permissions
    ) as sandbox:
        await sandbox.create_repo("acme/thing", files={"README.md": "x\n"} | dict(files or {}))
        for login in ("ann", "bea", "cleo"):
            sandbox.add_user(login)
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        async with GitHub(sandbox.url, str(sandbox.app_id), key, patience=Patience(tries=1)) as github:
            yield sandbox, PeopleFinder(github), repo
        assert [str(problem) for problem in sandbox.problems] == []


def person(sandbox: Sandbox, login: str) -> Actor:
    return Actor(login=login, id=sandbox.world.users[login].id, type="User")


@pytest.mark.parametrize("role", ["none", "read", "triage", "write", "maintain", "admin"])
async def test_every_role_is_told_apart(tmp_path: Path, role: str) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        if role != "none":
            sandbox.set_role("acme/thing", "ann", role)
        found = await people.role(repo, "ann")
        assert found == ("read" if role == "none" else role), "everybody may read a public repository"
        assert await people.role(repo, "nobody-of-that-name") == "none"


async def test_teams_and_those_above_them(tmp_path: Path) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.add_team("acme", "core", ["ann"])
        sandbox.add_team("acme", "inner", ["bea"], parent="core")
        rules = [People(teams=("Core", "acme/inner")), People(teams=("none-such",))]
        ann = await people.standing(repo, person(sandbox, "ann"), rules)
        assert ann.teams == {"acme/core"}
        assert ann.unknown_teams == frozenset()
        bea = await people.standing(repo, person(sandbox, "bea"), rules)
        assert bea.teams == {"acme/core", "acme/inner"}, "members of a team below are members"
        cleo = await people.standing(repo, person(sandbox, "cleo"), rules)
        assert cleo.teams == frozenset()


async def test_teams_that_nobody_may_ask_about_are_unknown(tmp_path: Path) -> None:
    async with asking(tmp_path, permissions=WITHOUT_TEAMS) as (sandbox, people, repo):
        sandbox.add_team("acme", "core", ["ann"])
        ann = await people.standing(repo, person(sandbox, "ann"), [People(teams=("core",))])
        assert (ann.teams, ann.unknown_teams) == (frozenset(), {"acme/core"})


OWNERS = "* @ann\n/db/ @acme/core\n/web/ web@example.com\n"


@pytest.mark.parametrize(
    ("login", "paths", "owner"),
    [
        ("ann", ("a",), True),
        ("Ann", ("a",), True),
        ("ann", ("db/x",), False),
        ("ann", ("db/x", "a"), True),
        ("bea", ("db/x",), True),
        ("bea", ("a", "web/x"), False),
        ("ann", (), False),
        ("bea", None, True),
        ("cleo", None, False),
    ],
)
async def test_code_owners(tmp_path: Path, login: str, paths: tuple[str, ...] | None, owner: bool) -> None:
    async with asking(tmp_path, {"docs/CODEOWNERS": "* @cleo\n", "CODEOWNERS": OWNERS}) as (
        sandbox,
        people,
        repo,
    ):
        sandbox.add_team("acme", "core", ["bea"])
        actor = Actor(login=login, id=1, type="User")
        standing = await people.standing(repo, actor, [People(codeowners=True)], paths=paths)
        assert standing.owner is owner


async def test_the_base_branch_says_who_owns_the_code(tmp_path: Path) -> None:
    async with asking(tmp_path, {"CODEOWNERS": "* @ann\n"}) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "write")
        await sandbox.as_user("ann").push_commit("acme/thing", "next", {"CODEOWNERS": "* @bea\n"})
        assert (await people.codeowners(repo)).of("a") == ("@ann",)
        assert (await people.codeowners(repo, "next")).of("a") == ("@bea",)


@pytest.mark.parametrize(("size", "owners"), [(1_500_000, ("@ann",)), (3 * 2**20, ())])
async def test_a_large_file_of_owners(tmp_path: Path, size: int, owners: tuple[str, ...]) -> None:
    """Above 1 MB the contents API leaves the text out; from 3 MB on GitHub ignores the file."""
    text = "* @ann\n" + "#" * (size - 8) + "\n"
    async with asking(tmp_path, {"CODEOWNERS": text}) as (_, people, repo):
        assert (await people.codeowners(repo)).of("a") == owners


async def test_no_file_no_owners(tmp_path: Path) -> None:
    async with asking(tmp_path) as (_, people, repo):
        assert (await people.codeowners(repo)).everybody() == ()


@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        (r"/collaborators/", "permission"),
        (r"^/users/", "suspended"),
        (r"/memberships/", "unknown_teams"),
        (r"/contents/", "owner"),
    ],
)
async def test_what_github_does_not_answer_is_unknown(tmp_path: Path, path: str, unknown: str) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "admin")
        sandbox.faults.add(Fault(path=path, status=502, times=None))
        rule = People(teams=("core",), codeowners=True)
        standing = await people.standing(repo, person(sandbox, "ann"), [rule])
        expected: object = frozenset({"acme/core"}) if unknown == "unknown_teams" else None
        assert getattr(standing, unknown) == expected


async def test_a_suspended_account_may_nothing(tmp_path: Path) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "admin")
        sandbox.suspend_user("ann")
        standing = await people.standing(repo, person(sandbox, "ann"))
        assert standing.suspended is True
        facts = await FactFinder(people._github).who(repo, person(sandbox, "ann"))
        assert not authorize(facts).allowed


def asks(repo: Repo, actor: Actor, number: int, target: TargetKind = TargetKind.issue) -> Request:
    trigger = Trigger(delivery_id="d", event="issue_comment.created", actor=actor)
    return Request(
        repo=repo, number=number, target=target, trigger=trigger, instructions="x", title="T", body="B"
    )


@pytest.mark.parametrize(
    ("rule", "login", "allowed"),
    [
        ("{users: [ann]}", "ann", True),
        ("{users: [ann]}", "bea", False),
        ("{teams: [core]}", "bea", True),
        ("{teams: [core]}", "ann", False),
        ("{codeowners: true}", "ann", True),
        ("{codeowners: true}", "bea", False),
        ("{permission: maintain}", "ann", False),
        ("{permission: maintain}", "cleo", True),
    ],
)
async def test_who_may_ask(tmp_path: Path, rule: str, login: str, allowed: bool) -> None:
    files = {PATH: f"who: {{may_ask: {rule}}}\n", "CODEOWNERS": "* @ann\n"}
    async with asking(tmp_path, files) as (sandbox, people, repo):
        for name, role in (("ann", "write"), ("bea", "write"), ("cleo", "maintain")):
            sandbox.set_role("acme/thing", name, role)
        sandbox.add_team("acme", "core", ["bea", "cleo"])
        issue = await sandbox.as_user("ann").open_issue("acme/thing", "T", "B")
        request = asks(repo, person(sandbox, login), issue["number"])
        facts = await FactFinder(people._github).about(request, is_open=True)
        assert decide(RULES, facts, agent="claude").allowed is allowed


async def test_a_code_owner_of_what_the_pull_request_changes(tmp_path: Path) -> None:
    files = {
        PATH: "who: {may_ask: {codeowners: true}}\napprovals: {plan: {paths: ['db/**']}}\n",
        "CODEOWNERS": "* @ann\n/db/ @bea\n",
    }
    async with asking(tmp_path, files) as (sandbox, people, repo):
        for name in ("ann", "bea"):
            sandbox.set_role("acme/thing", name, "write")
        await sandbox.as_user("ann").push_commit("acme/thing", "x", {"db/a.sql": "1\n"})
        pull = await sandbox.as_user("ann").open_pull("acme/thing", "x", "T")
        finder = FactFinder(people._github)
        for name, allowed in (("ann", False), ("bea", True)):
            request = asks(repo, person(sandbox, name), pull["number"], TargetKind.pull_request)
            facts = await finder.about(request, is_open=True)
            assert facts.paths == ("db/a.sql",)
            assert decide(RULES, facts, agent="claude").allowed is allowed


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"head_sha": "now"}, False),
        ({"head_sha": "before"}, True),
        ({"asked_at": timedelta()}, False),
        ({"asked_at": LATE * 2}, True),
        ({"head_sha": "now", "asked_at": LATE * 2}, False),
        ({}, False),
    ],
)
async def test_a_fork_that_moved_since_it_was_asked_about(
    tmp_path: Path, changes: dict[str, Any], moved: bool
) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "write")
        mallory = sandbox.as_user("mallory")
        await mallory.fork("acme/thing")
        before = await mallory.push_commit("mallory/thing", "x", {"a": "1\n"})
        pull = await mallory.open_pull("acme/thing", "mallory:x", "T")
        await mallory.push_commit("mallory/thing", "x", {"a": "2\n"})
        now = sandbox.pulls("acme/thing")[0]["head"]["sha"]
        if "head_sha" in changes:
            changes = changes | {"head_sha": {"before": before, "now": now}[changes["head_sha"]]}
        if "asked_at" in changes:  # how long ago
            changes = changes | {"asked_at": datetime.now(UTC) - changes["asked_at"]}
        request = asks(repo, person(sandbox, "ann"), pull["number"], TargetKind.pull_request)
        facts = await FactFinder(people._github).about(request.evolve(**changes), is_open=True)
        assert facts.from_fork
        assert facts.head_sha == now != before
        assert facts.fork_moved is moved
        assert decide(RULES, facts, agent="claude").allowed is not moved


async def test_the_issue_and_its_author(tmp_path: Path) -> None:
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "write")
        issue = await sandbox.as_user("bea").open_issue("acme/thing", "T", "B", labels=[])
        await sandbox.as_user("bea").edit_issue("acme/thing", issue["number"], body="other")
        request = asks(repo, person(sandbox, "ann"), issue["number"])
        facts = await FactFinder(people._github).about(request, is_open=True)
        assert facts.public
        assert facts.author is not None
        assert (facts.author.login, facts.author_permission) == ("bea", "read")
        assert (facts.title_now, facts.body_now) == ("T", "other")


async def test_who_has_taken_somebody_else_s_login_is_not_that_person(tmp_path: Path) -> None:
    """A login that was given up is anybody's: what was asked under it before is not the new owner's to answer for."""
    async with asking(tmp_path) as (sandbox, people, repo):
        sandbox.set_role("acme/thing", "ann", "admin")
        former = Actor(login="ann", id=sandbox.world.users["ann"].id + 1000, type="User")
        assert (await people.standing(repo, former)).permission == "none"
        assert (await people.standing(repo, person(sandbox, "ann"))).permission == "admin"
