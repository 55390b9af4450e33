"""Repositories that get another name or owner, and the life of installations."""

from __future__ import annotations

import pytest

from bot.sandbox.human import HumanError

REPO = "/repos/acme/hello"


@pytest.fixture
def plain(session, mint):
    """One request whose redirection is not followed: status, Location and JSON."""

    async def plain(method: str, path: str, body: object = None) -> tuple[int, str, dict]:
        headers = {"Authorization": f"Bearer {await mint()}"}
        async with session.request(method, path, json=body, headers=headers, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location", ""), await answer.json()

    return plain


async def test_a_former_name_leads_on(bot, github, plain, events, git, pull):
    octocat = github.as_user("octocat")
    number = (await bot.get(REPO))["id"]
    renamed = await octocat.rename_repository("acme/hello", "greetings")
    assert (renamed["id"], renamed["full_name"]) == (number, "acme/greetings")
    assert (await events())[-1] == "repository.renamed"
    assert github.deliveries[0].payload["changes"] == {"repository": {"name": {"from": "hello"}}}
    status, url, body = await plain("GET", f"{REPO}/pulls?state=all")
    assert (status, url) == (301, f"{github.url}/repositories/{number}/pulls?state=all")
    assert body["url"] == url
    status, url, body = await plain("POST", f"{REPO}/issues", {"title": "T"})
    assert (status, body["message"]) == (307, "Moved Permanently")
    # a client that follows, as ours does
    assert [one["number"] for one in await bot.get(f"{REPO}/pulls")] == [pull]
    issue = await bot.post(f"{REPO}/issues", {"title": "T"})
    assert issue["url"].startswith(f"{github.url}/repos/acme/greetings/issues/")
    # git, too
    await git("fetch", "--quiet")
    await git.commit(x="1")
    await git("push", "--quiet", "origin", "HEAD:refs/heads/after")
    assert "after" in await github.branches("acme/greetings")


async def test_names_that_are_taken(github):
    await github.create_repo("acme/other")
    octocat = github.as_user("octocat")
    with pytest.raises(HumanError, match="already exists"):
        await octocat.rename_repository("acme/hello", "other")
    with pytest.raises(HumanError, match="403"):
        await github.as_user("maria").rename_repository("acme/hello", "mine")
    with pytest.raises(HumanError, match="422"):
        await octocat.transfer_repository("acme/hello", "nobody")
    # a new repository under a former name is not redirected
    await octocat.rename_repository("acme/hello", "elsewhere")
    await github.create_repo("acme/hello")
    found = await octocat.request("GET", REPO)
    assert found["full_name"] == "acme/hello"


async def test_a_transfer_to_where_the_app_is(bot, caller, app, github, events):
    octocat = github.as_user("octocat")
    number = (await bot.get(REPO))["id"]
    there = octocat.install_app("octocat")
    await octocat.transfer_repository("acme/hello", "octocat")
    told = await events()
    assert told[-4:] == [
        "installation.created",
        "installation_repositories.removed",
        "installation_repositories.added",
        "repository.transferred",
    ]
    transferred, added, removed = (one.payload for one in github.deliveries[:3])
    assert transferred["changes"]["owner"]["from"]["organization"]["login"] == "acme"
    assert transferred["installation"]["id"] == added["installation"]["id"] == there
    assert [one["id"] for one in added["repositories_added"]] == [number]
    assert removed["repositories_removed"][0]["full_name"] == "acme/hello"
    await bot.get(REPO, status=404)
    token = (await app.post(f"/app/installations/{there}/access_tokens"))["token"]
    assert (await caller(token).get("/repos/octocat/hello"))["id"] == number


async def test_a_transfer_to_where_the_app_is_not(bot, github, events):
    await github.as_user("octocat").transfer_repository("acme/hello", "octocat")
    assert (await events())[-1] == "installation_repositories.removed"
    await bot.get(REPO, status=404)


# ---- installations


async def test_suspended_and_back(bot, app, github, events):
    octocat = github.as_user("octocat")
    octocat.suspend_app("acme")
    assert (await events())[-1] == "installation.suspend"
    payload = github.deliveries[0].payload
    assert payload["installation"]["suspended_by"]["login"] == payload["sender"]["login"] == "octocat"
    answer = await bot.get(REPO, status=403)
    assert answer["message"] == "This installation has been suspended"
    await bot.post("/graphql", {"query": "{ viewer { login } }"}, status=403)
    path = f"/app/installations/{github.installation_id}"
    await app.post(f"{path}/access_tokens", status=403)
    await github.as_user("maria").open_issue("acme/hello", "T")
    assert (await events())[-1] == "installation.suspend"  # nothing is told meanwhile
    octocat.unsuspend_app("acme")
    assert (await events())[-1] == "installation.unsuspend"
    await bot.get(REPO)
    await app.put(f"{path}/suspended", status=204)
    assert (await app.get(path))["suspended_at"]
    await app.delete(f"{path}/suspended")
    assert (await app.get(path))["suspended_at"] is None


async def test_removed_and_installed_again(bot, app, github, events):
    octocat, old = github.as_user("octocat"), github.installation_id
    octocat.uninstall_app("acme")
    assert (await events())[-1] == "installation.deleted"
    payload = github.deliveries[0].payload
    assert [one["full_name"] for one in payload["repositories"]] == ["acme/hello"]
    await bot.get(REPO, status=401)
    await app.post(f"/app/installations/{old}/access_tokens", status=404)
    new = octocat.install_app("acme", ["acme/hello"])
    assert new != old
    assert (await events())[-1] == "installation.created"
    assert github.deliveries[0].payload["installation"]["repository_selection"] == "selected"
    with pytest.raises(ValueError, match="already"):
        octocat.install_app("acme")
    await app.delete(f"/app/installations/{new}")
    assert await app.get("/app/installations") == []


async def test_repositories_chosen(bot, github, events):
    await github.create_repo("acme/other")
    octocat = github.as_user("octocat")
    octocat.choose_repositories("acme", ["acme/other"])
    await bot.get(f"{REPO}/issues", status=404)
    assert (await events())[-1] == "installation_repositories.removed"
    octocat.choose_repositories("acme", ["acme/other", "acme/hello"])
    await bot.get(f"{REPO}/issues")
    octocat.choose_repositories("acme", None)
    assert (await events())[-1] == "installation_repositories.added"
    payload = github.deliveries[0].payload
    assert [one["full_name"] for one in payload["repositories_added"]] == ["acme/hello"]


async def test_permissions_accepted(app, caller, mint, github, events):
    wanted = {**dict(github.world.app.permissions), "administration": "read"}
    github.as_user("octocat").accept_permissions("acme", wanted)
    assert (await events())[-1] == "installation.new_permissions_accepted"
    assert github.deliveries[0].payload["installation"]["permissions"]["administration"] == "read"
    await caller(await mint(permissions={"administration": "read"})).get("/repos/acme/hello/teams")


async def test_only_owners_decide(github):
    for attempt in (
        github.as_user("maria").suspend_app,
        github.as_user("maria").uninstall_app,
        github.as_user("maria").install_app,
    ):
        with pytest.raises(HumanError, match="does not own acme"):
            attempt("acme")
    with pytest.raises(HumanError, match="404"):
        github.as_user("tom").suspend_app("tom")
