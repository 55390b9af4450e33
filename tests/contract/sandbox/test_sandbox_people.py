"""Roles by collaboration, organization and team; suspended accounts; other bots; forks."""

from __future__ import annotations

import pytest

from bot.sandbox.human import HumanError
from bot.sandbox.permissions import ROLES

REPO = "/repos/acme/hello"


@pytest.fixture
async def insider(caller, mint, github):
    """The App's bot where the App may read members."""
    for installation in github.world.installations.values():
        installation.permissions["members"] = "read"
    return caller(await mint())


async def role(bot, login: str, repo: str = REPO) -> tuple[str, str]:
    found = await bot.get(f"{repo}/collaborators/{login}/permission")
    return found["permission"], found["role_name"]


@pytest.mark.parametrize(
    ("name", "permission"),
    [
        ("none", "read"),  # of a public repository
        ("read", "read"),
        ("triage", "read"),
        ("write", "write"),
        ("maintain", "write"),
        ("admin", "admin"),
    ],
)
async def test_roles_as_github_says_them(bot, github, name, permission):
    github.add_user("zoe")
    github.set_role("acme/hello", "zoe", name)
    found = await bot.get(f"{REPO}/collaborators/zoe/permission")
    assert (found["permission"], found["role_name"]) == (permission, name if name != "none" else "read")
    assert found["user"]["permissions"]["push"] == (ROLES[name] >= ROLES["write"])


async def test_members_of_the_organization(insider, github):
    await github.create_repo("acme/secret", private=True)
    repo = "/repos/acme/secret"
    assert await role(insider, "mallory", repo) == ("none", "none")
    github.set_member("acme", "mallory")
    assert await role(insider, "mallory", repo) == ("read", "read")
    github.world.users["acme"].base_role = "none"
    assert await role(insider, "mallory", repo) == ("none", "none")
    assert await role(insider, "octocat", repo) == ("admin", "admin")  # an owner
    assert (await insider.get("/orgs/acme/memberships/mallory"))["role"] == "member"
    assert (await insider.get("/orgs/acme/memberships/octocat"))["role"] == "admin"
    await insider.get("/orgs/acme/memberships/tom", status=404)
    await insider.get("/orgs/acme/members/mallory", status=204)
    await insider.get("/orgs/acme/members/tom", status=404)
    assert [one["login"] for one in await insider.get("/orgs/acme/members?role=admin")] == ["octocat"]
    assert (await insider.get("/orgs/acme"))["login"] == "acme"
    await insider.get("/orgs/octocat", status=404)
    github.set_member("acme", "mallory", None)
    await insider.get("/orgs/acme/memberships/mallory", status=404)


async def test_teams(insider, github, caller, mint):
    await github.create_repo("acme/secret", private=True)
    github.add_team("acme", "core-team", ["maria"], repositories={"acme/secret": "maintain"})
    github.add_team("acme", "below", ["mallory"], parent="core-team")
    repo = "/repos/acme/secret"
    assert await role(insider, "maria", repo) == ("write", "maintain")
    assert await role(insider, "mallory", repo) == ("write", "maintain")  # by the team above
    assert await role(insider, "tom", repo) == ("none", "none")
    listed = await insider.get("/orgs/acme/teams/core-team/members")
    assert {one["login"] for one in listed} == {"maria", "mallory"}
    path = "/orgs/acme/teams/core-team/memberships"
    assert (await insider.get(f"{path}/maria"))["state"] == "active"
    await insider.get(f"{path}/tom", status=404)
    await insider.get("/orgs/acme/teams/nothing/members", status=404)
    assert [one["slug"] for one in await insider.get("/orgs/acme/teams")] == ["core-team", "below"]
    assert (await insider.get("/orgs/acme/teams/below"))["parent"]["slug"] == "core-team"
    await insider.get("/orgs/acme/teams/core-team/repos/acme/secret", status=204)
    found = await insider.get(
        "/orgs/acme/teams/core-team/repos/acme/secret", Accept="application/vnd.github.v3.repository+json"
    )
    assert found["role_name"] == "maintain"
    await insider.get("/orgs/acme/teams/below/repos/acme/secret", status=404)
    weak = caller(await mint(permissions={"contents": "write"}))
    await weak.get(f"{path}/maria", status=403)
    assert weak.headers["X-Accepted-GitHub-Permissions"] == "members=read"
    [team] = await github.as_user("octocat").request("GET", "/repos/acme/secret/teams")
    assert (team["slug"], team["permission"]) == ("core-team", "maintain")


async def test_strangers_cannot_look_into_an_organization(github, insider):
    github.add_organization("other", owner="tom")
    github.add_team("other", "core", ["tom"])
    await insider.get("/orgs/other/teams/core/memberships/tom", status=404)
    with pytest.raises(HumanError, match="404"):
        await github.as_user("mallory").request("GET", "/orgs/other/teams")
    assert len(await github.as_user("tom").request("GET", "/orgs/other/teams")) == 1


async def test_a_team_is_asked_for_a_review(bot, github, pull, events):
    github.add_team("acme", "core", ["maria", "tom"], repositories={"acme/hello": "write"})
    github.add_team("acme", "strangers", ["mallory"])
    path = f"{REPO}/pulls/{pull}/requested_reviewers"
    answer = await bot.post(path, {"team_reviewers": ["core"]})
    assert [one["slug"] for one in answer["requested_teams"]] == ["core"]
    assert (await events())[-1] == "pull_request.review_requested"
    assert github.deliveries[0].payload["requested_team"]["slug"] == "core"
    for wanted in ({"team_reviewers": ["strangers"]}, {"team_reviewers": ["no"]}, {"reviewers": ["nobody"]}):
        assert "not a collaborator" in (await bot.post(path, wanted, status=422))["message"]
    await github.as_user("tom").review("acme/hello", pull, "COMMENT", "fine")
    assert (await bot.get(path))["teams"] == []
    await bot.post(path, {"team_reviewers": ["core"]})
    await bot.delete(path, {"reviewers": [], "team_reviewers": ["core"]}, status=200)
    assert (await events())[-1] == "pull_request.review_request_removed"


async def test_a_suspended_account_can_do_nothing(bot, github, git):
    issue = await github.as_user("maria").open_issue("acme/hello", "T")
    github.suspend_user("maria")
    with pytest.raises(HumanError, match="Your account was suspended"):
        await github.as_user("maria").comment("acme/hello", issue["number"], "hi")
    assert "403" in await git("fetch", fails=True)
    await bot.get("/users/maria", status=404)
    await bot.get(f"{REPO}/collaborators/maria/permission", status=404)
    assert (await bot.get(f"{REPO}/issues/{issue['number']}"))["user"]["login"] == "maria"
    github.suspend_user("maria", suspended=False)
    await github.as_user("maria").comment("acme/hello", issue["number"], "hi")


async def test_other_bots(bot, github, events):
    issue = (await github.as_user("maria").open_issue("acme/hello", "T"))["number"]
    other = github.as_app("agent-conductor-2", name="Agent Conductor")
    comment = await other.comment("acme/hello", issue, "/agent do it")
    assert (comment["user"]["login"], comment["user"]["type"]) == ("agent-conductor-2[bot]", "Bot")
    app = comment["performed_via_github_app"]
    assert (app["name"], app["slug"]) == ("Agent Conductor", "agent-conductor-2")
    assert app["id"] != github.app_id
    assert (await events())[-1] == "issue_comment.created"
    assert await role(bot, "agent-conductor-2[bot]") == ("none", "none")
    github.add_user("agent-conductor")  # a person with the App's name
    comment = await github.as_user("agent-conductor").comment("acme/hello", issue, "/agent do it")
    assert (comment["user"]["type"], comment["performed_via_github_app"]) == ("User", None)


# ---- forks


async def test_a_pull_request_from_a_fork(bot, github, events):
    mallory = github.as_user("mallory")
    fork = await mallory.fork("acme/hello")
    assert (fork["full_name"], fork["fork"], fork["parent"]["full_name"]) == (
        "mallory/hello",
        True,
        "acme/hello",
    )
    assert (await mallory.fork("acme/hello"))["id"] == fork["id"]
    sha = await mallory.push_commit("mallory/hello", "patch", {"x.txt": "1\n"})
    pull = await mallory.open_pull("acme/hello", "mallory:patch", "Patch")
    assert (pull["head"]["repo"]["full_name"], pull["head"]["label"]) == ("mallory/hello", "mallory:patch")
    assert pull["head"]["sha"] == sha
    number = pull["number"]
    files = await bot.get(f"{REPO}/pulls/{number}/files")
    assert [one["filename"] for one in files] == ["x.txt"]
    assert (await bot.get(f"{REPO}/git/ref/pull/{number}/head"))["object"]["sha"] == sha
    run = await bot.post(f"{REPO}/check-runs", {"name": "x", "head_sha": sha, "conclusion": "success"})
    assert run["pull_requests"] == []
    new = await mallory.push_commit("mallory/hello", "patch", {"x.txt": "2\n"})
    assert (await bot.get(f"{REPO}/pulls/{number}"))["head"]["sha"] == new
    told = await events()
    assert told.count("pull_request.synchronize") == 1
    assert [one["number"] for one in await bot.get(f"{REPO}/pulls?head=mallory:patch")] == [number]
    assert [one["full_name"] for one in await bot.get(f"{REPO}/forks")] == ["mallory/hello"]
    await bot.put(f"{REPO}/pulls/{number}/update-branch", status=403)
    await bot.put(f"{REPO}/pulls/{number}/merge")
    assert await github.file("acme/hello", "main", "x.txt") == "2"


async def test_what_forks_cannot_do(bot, github):
    mallory = github.as_user("mallory")
    with pytest.raises(HumanError, match="422"):
        await mallory.open_pull("acme/hello", "mallory:patch", "No fork yet")
    await mallory.fork("acme/hello")
    with pytest.raises(HumanError, match="422"):
        await mallory.open_pull("acme/hello", "mallory:nothing", "No such branch")
    await mallory.push_commit("mallory/hello", "patch", {"x.txt": "1\n"})
    pull = await mallory.open_pull("acme/hello", "mallory:patch", "Patch")
    with pytest.raises(HumanError, match="already exists"):
        await mallory.open_pull("acme/hello", "mallory:patch", "Patch")
    await mallory.delete_branch("mallory/hello", "patch")
    assert (await bot.get(f"{REPO}/pulls/{pull['number']}"))["state"] == "closed"
    await bot.post(f"{REPO}/forks", {}, status=403)


async def test_nobody_pushes_the_heads_of_pull_requests(git, pull):
    answer = await git("push", "origin", f"HEAD:refs/pull/{pull}/head", fails=True)
    assert "hidden ref" in answer
