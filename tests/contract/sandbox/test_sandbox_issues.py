"""Issues, comments, labels, assignees and reactions."""

from __future__ import annotations

import pytest

REPO = "/repos/acme/hello"


@pytest.fixture
async def number(github) -> int:
    return (await github.as_user("rita").open_issue("acme/hello", "It is broken", "Look"))["number"]


async def test_an_issue_from_beginning_to_end(bot, person, github, events):
    issue = await person("octocat").post(f"{REPO}/issues", {"title": "A", "body": "b", "labels": ["agent"]})
    path = f"{REPO}/issues/{issue['number']}"
    assert [one["name"] for one in issue["labels"]] == ["agent"]
    assert issue["html_url"].endswith("/acme/hello/issues/1")
    await bot.patch(path, {"title": "B"})
    closed = await bot.patch(path, {"state": "closed", "state_reason": "not_planned"})
    assert (closed["state_reason"], closed["closed_by"]["login"]) == ("not_planned", "agent-conductor[bot]")
    opened = await bot.patch(path, {"state": "open"})
    assert (opened["state"], opened["state_reason"], opened["closed_at"]) == ("open", "reopened", None)
    told = ["opened", "labeled", "edited", "closed", "reopened"]
    assert [one for one in await events() if one.startswith("issues.")] == [f"issues.{one}" for one in told]
    payloads = {one.action: one.payload for one in github.deliveries if one.event == "issues"}
    # as with GitHub, "opened" carries the labels and each is told again
    assert [one["name"] for one in payloads["opened"]["issue"]["labels"]] == ["agent"]
    assert payloads["labeled"]["label"]["name"] == "agent"
    timeline = [one["event"] for one in await bot.get(f"{path}/timeline")]
    assert timeline == ["labeled", "renamed", "closed", "reopened"]


async def test_filters(bot, github):
    octocat = github.as_user("octocat")
    await octocat.open_issue("acme/hello", "one", labels=["Bug"])
    await octocat.open_issue("acme/hello", "two", labels=["bug", "agent"])
    await github.as_user("rita").open_issue("acme/hello", "three")
    await octocat.assign("acme/hello", 2, "maria")
    await octocat.close("acme/hello", 3)

    async def numbers(query: str) -> list[int]:
        return [one["number"] for one in await bot.get(f"{REPO}/issues?{query}")]

    assert await numbers("") == [2, 1]
    assert await numbers("state=all&direction=asc") == [1, 2, 3]
    assert await numbers("labels=bug,agent") == [2]
    assert await numbers("assignee=maria") == [2]
    assert await numbers("assignee=none") == [1]
    assert await numbers("creator=rita&state=closed") == [3]


async def test_comments(bot, github, number, events, clock):
    first = await bot.post(f"{REPO}/issues/{number}/comments", {"body": "I am on it"})
    assert first["user"]["type"] == "Bot"
    assert first["performed_via_github_app"]["id"] == github.app_id
    clock.forward(seconds=2)
    changed = await bot.patch(f"{REPO}/issues/comments/{first['id']}", {"body": "Done"})
    assert changed["updated_at"] > changed["created_at"]
    assert (await bot.get(f"{REPO}/issues/comments/{first['id']}"))["body"] == "Done"
    second = await github.as_user("rita").comment("acme/hello", number, "Thanks")
    assert second["author_association"] == "COLLABORATOR"
    assert [one["body"] for one in await bot.get(f"{REPO}/issues/{number}/comments")] == ["Done", "Thanks"]
    assert len(await bot.get(f"{REPO}/issues/comments")) == 2
    await bot.delete(f"{REPO}/issues/comments/{first['id']}")
    await bot.get(f"{REPO}/issues/comments/{first['id']}", status=404)
    assert (await events())[-4:] == [
        f"issue_comment.{one}" for one in ("created", "edited", "created", "deleted")
    ]
    await bot.post(f"{REPO}/issues/{number}/comments", {"body": " \n"}, status=422)
    await bot.post(f"{REPO}/issues/99/comments", {"body": "x"}, status=404)


async def test_an_edit_tells_what_was_there(bot, github, number, events):
    comment = await github.as_user("rita").comment("acme/hello", number, "before")
    await github.as_user("rita").edit_comment("acme/hello", comment["id"], "after")
    await events()
    payload = github.deliveries[0].payload
    assert payload["changes"] == {"body": {"from": "before"}}
    assert payload["comment"]["body"] == "after"
    assert payload["sender"]["login"] == "rita"


async def test_who_may_do_what(person, github, number):
    await person("rita").post(f"{REPO}/issues/{number}/labels", {"labels": ["agent"]}, status=403)
    await person("tom").post(f"{REPO}/issues/{number}/labels", {"labels": ["agent"]}, status=200)
    # the author may close, a stranger may not, triage may
    await person("mallory").patch(f"{REPO}/issues/{number}", {"state": "closed"}, status=403)
    await person("rita").patch(f"{REPO}/issues/{number}", {"state": "closed"})
    await person("tom").patch(f"{REPO}/issues/{number}", {"state": "open"})
    mine = await person("mallory").post(f"{REPO}/issues/{number}/comments", {"body": "hi"})
    assert mine["author_association"] == "NONE"
    await person("rita").patch(f"{REPO}/issues/comments/{mine['id']}", {"body": "x"}, status=403)
    await person("maria").patch(f"{REPO}/issues/comments/{mine['id']}", {"body": "x"})
    await person("tom").post(f"{REPO}/labels", {"name": "new"}, status=403)
    await person("maria").post(f"{REPO}/labels", {"name": "new"})


async def test_labels_of_strangers_are_dropped_in_silence(person):
    issue = await person("mallory").post(f"{REPO}/issues", {"title": "x", "labels": ["agent"]})
    assert issue["labels"] == []


async def test_a_private_repository_does_not_exist_for_strangers(github, person):
    await github.create_repo("acme/secret", private=True, collaborators={"rita": "read"})
    await person("rita").get("/repos/acme/secret")
    await person("mallory").get("/repos/acme/secret", status=404)
    await person("mallory").post("/repos/acme/secret/issues", {"title": "x"}, status=404)


async def test_a_locked_conversation(bot, person, number):
    await bot.put(f"{REPO}/issues/{number}/lock", {"lock_reason": "too heated"}, status=204)
    await person("rita").post(f"{REPO}/issues/{number}/comments", {"body": "x"}, status=403)
    await person("maria").post(f"{REPO}/issues/{number}/comments", {"body": "x"})
    await bot.delete(f"{REPO}/issues/{number}/lock")
    await person("rita").post(f"{REPO}/issues/{number}/comments", {"body": "x"})


async def test_labels(bot, number, events):
    await bot.post(f"{REPO}/labels", {"name": "Agent", "color": "ff0000", "description": "d"})
    answer = await bot.post(f"{REPO}/labels", {"name": "agent"}, status=422)
    assert answer["errors"][0]["code"] == "already_exists"
    path = f"{REPO}/issues/{number}/labels"
    # compared without case; an unknown one is made
    names = [one["name"] for one in await bot.post(path, {"labels": ["AGENT", "new one"]}, status=200)]
    assert names == ["Agent", "new one"]
    await bot.delete(f"{path}/new%20one", status=200)
    assert (await bot.delete(f"{path}/new%20one", status=404))["message"] == "Label does not exist"
    assert [one["name"] for one in await bot.put(path, {"labels": ["x", "y"]})] == ["x", "y"]
    await bot.patch(f"{REPO}/labels/x", {"new_name": "z"})
    assert [one["name"] for one in await bot.get(path)] == ["z", "y"]
    await bot.delete(f"{REPO}/labels/z")
    await bot.get(f"{REPO}/labels/z", status=404)
    await bot.delete(path)
    assert await bot.get(path) == []
    assert {one["name"] for one in await bot.get(f"{REPO}/labels")} == {"Agent", "new one", "y"}
    assert [one for one in await events() if one.startswith("issues.")][1:5] == [
        "issues.labeled",
        "issues.labeled",
        "issues.unlabeled",
        "issues.unlabeled",
    ]


async def test_assignees_who_cannot_be_assigned_are_dropped(bot, number, events):
    path = f"{REPO}/issues/{number}/assignees"
    issue = await bot.post(path, {"assignees": ["maria", "mallory", "agent-conductor[bot]"]})
    assert [one["login"] for one in issue["assignees"]] == ["maria"]
    await bot.get(f"{REPO}/assignees/maria", status=204)
    await bot.get(f"{REPO}/assignees/mallory", status=404)
    assert "maria" in [one["login"] for one in await bot.get(f"{REPO}/assignees")]
    issue = await bot.delete(path, {"assignees": ["maria"]}, status=200)
    assert issue["assignees"] == []
    assert (await events())[-2:] == ["issues.assigned", "issues.unassigned"]


async def test_reactions(bot, person, github, number):
    path = f"{REPO}/issues/{number}/reactions"
    first = await bot.post(path, {"content": "eyes"})
    assert (await bot.post(path, {"content": "eyes"}, status=200))["id"] == first["id"]
    other = await person("rita").post(path, {"content": "eyes"})
    assert (await bot.get(f"{REPO}/issues/{number}"))["reactions"]["eyes"] == 2
    await bot.delete(f"{path}/{other['id']}", status=403)
    await bot.delete(f"{path}/{first['id']}")
    assert [one["user"]["login"] for one in await bot.get(path)] == ["rita"]
    comment = await bot.post(f"{REPO}/issues/{number}/comments", {"body": "x"})
    path = f"{REPO}/issues/comments/{comment['id']}/reactions"
    await bot.post(path, {"content": "rocket"})
    assert len(await bot.get(f"{path}?content=rocket")) == 1
    assert github.reactions("acme/hello", number, comment_id=comment["id"]) == [
        ("agent-conductor[bot]", "rocket")
    ]


async def test_a_reaction_that_does_not_exist(bot, number, client_problems):
    await bot.post(f"{REPO}/issues/{number}/reactions", {"content": "thumbsup"}, status=422)
    assert client_problems()


@pytest.mark.parametrize(
    ("login", "permission", "role"),
    [
        ("octocat", "admin", "admin"),
        ("maria", "write", "write"),
        ("tom", "read", "triage"),
        ("rita", "read", "read"),
        ("mallory", "read", "read"),  # the repository is public
        ("agent-conductor%5Bbot%5D", "none", "none"),
    ],
)
async def test_the_permission_of_people(bot, login, permission, role):
    answer = await bot.get(f"{REPO}/collaborators/{login}/permission")
    assert (answer["permission"], answer["role_name"]) == (permission, role)


async def test_the_permission_of_a_maintainer_and_of_strangers(bot, github):
    github.set_role("acme/hello", "maria", "maintain")
    answer = await bot.get(f"{REPO}/collaborators/maria/permission")
    assert (answer["permission"], answer["role_name"]) == ("write", "maintain")
    await bot.get(f"{REPO}/collaborators/ghost/permission", status=404)
    await github.create_repo("acme/secret", private=True)
    answer = await bot.get("/repos/acme/secret/collaborators/mallory/permission")
    assert answer["permission"] == "none"


async def test_the_bots_account(bot, github):
    user = await bot.get("/users/agent-conductor%5Bbot%5D")
    assert (user["login"], user["type"]) == ("agent-conductor[bot]", "Bot")
    assert user["id"] != github.app_id
    await bot.get("/users/ghost", status=404)
