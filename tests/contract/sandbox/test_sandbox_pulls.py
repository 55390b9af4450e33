"""Pull requests and reviews."""

from __future__ import annotations

import pytest

REPO = "/repos/acme/hello"


async def test_opening(bot, github, events):
    await github.as_user("maria").push_commit("acme/hello", "topic/x", {"a.txt": "1\n", "README.md": None})
    pull = await bot.post(f"{REPO}/pulls", {"title": "T", "head": "topic/x", "base": "main", "draft": True})
    assert (pull["additions"], pull["changed_files"], pull["commits"]) == (1, 2, 1)
    assert (pull["head"]["ref"], pull["base"]["ref"], pull["draft"]) == ("topic/x", "main", True)
    assert (await events())[-1] == "pull_request.opened"
    # a pull request is an issue, too
    assert "pull_request" in await bot.get(f"{REPO}/issues/{pull['number']}")
    files = {one["filename"]: one for one in await bot.get(f"{REPO}/pulls/{pull['number']}/files")}
    assert (files["a.txt"]["status"], files["README.md"]["status"]) == ("added", "removed")
    assert files["a.txt"]["patch"] == "@@ -0,0 +1 @@\n+1"
    commits = await bot.get(f"{REPO}/pulls/{pull['number']}/commits")
    assert [one["author"]["login"] for one in commits] == ["maria"]


async def test_what_cannot_be_opened(bot, pull, github):
    async def refused(head: str, base: str = "main", **more: str) -> dict:
        answer = await bot.post(
            f"{REPO}/pulls", {"title": "T", "head": head, "base": base} | more, status=422
        )
        return answer["errors"][0]

    assert (await refused("feature"))["message"] == "A pull request already exists for acme:feature."
    assert (await refused("acme:feature"))["message"] == "A pull request already exists for acme:feature."
    assert (await refused("main"))["message"] == "No commits between main and main"
    assert (await refused("nothing"))["field"] == "head"
    assert (await refused("feature", base="nothing"))["field"] == "base"
    assert (await refused("mallory:x"))["field"] == "head"


async def test_a_title_is_needed(bot, github):
    await github.as_user("maria").push_commit("acme/hello", "x", {"a": "b"})
    answer = await bot.post(f"{REPO}/pulls", {"head": "x", "base": "main"}, status=422)
    assert answer["errors"][0] == {"resource": "PullRequest", "field": "title", "code": "missing_field"}


async def test_unrelated_histories(bot, github, git):
    await git("checkout", "--quiet", "--orphan", "other")
    await git.commit(x="1")
    await git("push", "--quiet", "origin", "other")
    answer = await bot.post(f"{REPO}/pulls", {"title": "T", "head": "other", "base": "main"}, status=422)
    assert "no history in common" in answer["errors"][0]["message"]


async def test_an_issue_becomes_a_pull_request(bot, github):
    issue = await github.as_user("octocat").open_issue("acme/hello", "Idea")
    await github.as_user("maria").push_commit("acme/hello", "idea", {"a": "b"})
    pull = await bot.post(f"{REPO}/pulls", {"issue": issue["number"], "head": "idea", "base": "main"})
    assert (pull["number"], pull["title"]) == (issue["number"], "Idea")


async def test_listing(bot, github, pull):
    maria = github.as_user("maria")
    await maria.push_commit("acme/hello", "second", {"a": "b"}, start="feature")
    second = (await maria.open_pull("acme/hello", "second", "Second", base="feature"))["number"]

    async def numbers(query: str) -> list[int]:
        return [one["number"] for one in await bot.get(f"{REPO}/pulls?{query}")]

    assert await numbers("") == [second, pull]
    assert await numbers("head=acme:feature") == [pull]
    assert await numbers("head=mallory:feature") == []
    assert await numbers("base=feature") == [second]
    await maria.close("acme/hello", pull)
    assert await numbers("state=closed") == [pull]
    assert await numbers("state=all&direction=asc") == [pull, second]


async def test_the_diff_and_the_patch(bot, pull):
    diff = await bot.get(f"{REPO}/pulls/{pull}", Accept="application/vnd.github.diff")
    assert diff.startswith("diff --git a/NEWS.md b/NEWS.md")
    patch = await bot.get(f"{REPO}/pulls/{pull}", Accept="application/vnd.github.patch")
    assert "Subject: [PATCH] Add news" in patch


async def test_changing(bot, github, pull, events):
    path = f"{REPO}/pulls/{pull}"
    answer = await bot.patch(path, {"title": "New title", "body": "New body"})
    assert (answer["title"], answer["body"]) == ("New title", "New body")
    await bot.patch(path, {"state": "closed"})
    assert (await bot.patch(path, {"state": "open"}))["state"] == "open"
    assert (await events())[-3:] == ["pull_request.edited", "pull_request.closed", "pull_request.reopened"]
    await github.as_user("maria").push_commit("acme/hello", "release", {"V": "1"})
    assert (await bot.patch(path, {"base": "release"}))["base"]["ref"] == "release"
    await bot.patch(path, {"base": "nothing"}, status=422)


async def test_a_push_synchronizes(bot, github, pull, events):
    old = (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]
    new = await github.as_user("maria").push_commit("acme/hello", "feature", {"NEWS.md": "three\n"})
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"] == new
    assert "pull_request.synchronize" in await events()
    payload = next(one.payload for one in github.deliveries if one.action == "synchronize")
    assert (payload["before"], payload["after"]) == (old, new)


async def test_a_deleted_branch_closes(bot, github, pull, events):
    await github.as_user("maria").delete_branch("acme/hello", "feature")
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["state"] == "closed"
    answer = await bot.patch(f"{REPO}/pulls/{pull}", {"state": "open"}, status=422)
    assert "has been deleted" in answer["errors"][0]["message"]


@pytest.mark.parametrize(("method", "parents"), [("merge", 2), ("squash", 1)])
async def test_merging(bot, github, events, method, parents):
    maria = github.as_user("maria")
    issue = (await maria.open_issue("acme/hello", "Say goodbye"))["number"]
    await maria.push_commit("acme/hello", "bye", {"bye.txt": "bye\n"})
    number = (await maria.open_pull("acme/hello", "bye", "Bye", f"Fixes #{issue}"))["number"]
    path = f"{REPO}/pulls/{number}/merge"
    await bot.get(path, status=404)
    await bot.put(path, {"sha": "0" * 40}, status=409)
    merged = await bot.put(path, {"merge_method": method})
    await bot.get(path, status=204)
    commit = await bot.get(f"{REPO}/git/commits/{merged['sha']}")
    assert len(commit["parents"]) == parents
    assert await github.file("acme/hello", "main", "bye.txt") == "bye"
    assert github.issue("acme/hello", issue)["state"] == "closed"
    pull = await bot.get(f"{REPO}/pulls/{number}")
    assert (pull["merged"], pull["merged_by"]["login"]) == (True, "agent-conductor[bot]")
    assert [one for one in await events() if one == "pull_request.closed"] == ["pull_request.closed"]
    await bot.put(path, status=405)
    await bot.patch(f"{REPO}/pulls/{number}", {"state": "open"}, status=422)


async def test_what_cannot_be_merged(bot, github, pull):
    maria = github.as_user("maria")
    path = f"{REPO}/pulls/{pull}"
    assert (await bot.get(path))["mergeable"] is True
    assert (await bot.put(f"{path}/merge", {"merge_method": "rebase"}, status=405))["message"]
    await maria.push_commit("acme/hello", "main", {"NEWS.md": "different\n"})
    answer = await bot.get(path)
    assert (answer["mergeable"], answer["mergeable_state"]) == (False, "dirty")
    assert (await bot.put(f"{path}/merge", status=405))["message"] == "Pull Request is not mergeable"
    github.world.repository("acme", "hello").issues[pull].pull.draft = True
    assert (await bot.put(f"{path}/merge", status=405))["message"] == "Pull Request is still a draft"


async def test_a_push_to_the_base_merges(github, pull, bot, git):
    await git("fetch", "--quiet")
    await git("merge", "--quiet", "--ff-only", "origin/feature")
    await git("push", "--quiet", "origin", "main")
    await github.deliveries_settled()
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["merged"] is True


async def test_updating_the_branch(bot, github, pull):
    path = f"{REPO}/pulls/{pull}/update-branch"
    await bot.put(path, status=422)
    await github.as_user("maria").push_commit("acme/hello", "main", {"other.txt": "x\n"})
    await bot.put(path, {"expected_head_sha": "0" * 40}, status=422)
    await bot.put(path, status=202)
    assert await github.file("acme/hello", "feature", "other.txt") == "x"


async def test_requested_reviewers(bot, pull, events):
    path = f"{REPO}/pulls/{pull}/requested_reviewers"
    answer = await bot.post(path, {"reviewers": ["octocat"]})
    assert [one["login"] for one in answer["requested_reviewers"]] == ["octocat"]
    assert "not a collaborator" in (await bot.post(path, {"reviewers": ["mallory"]}, status=422))["message"]
    assert "author" in (await bot.post(path, {"reviewers": ["maria"]}, status=422))["message"]
    await bot.delete(path, {"reviewers": ["octocat"]}, status=200)
    assert (await bot.get(path))["users"] == []
    told = ["pull_request.review_requested", "pull_request.review_request_removed"]
    assert (await events())[-2:] == told


# ---- reviews


async def test_a_review(bot, github, pull, person, events):
    await bot.post(f"{REPO}/pulls/{pull}/requested_reviewers", {"reviewers": ["octocat"]})
    review = await github.as_user("octocat").review(
        "acme/hello", pull, "REQUEST_CHANGES", "Hm", comments=[{"path": "NEWS.md", "line": 2, "body": "why?"}]
    )
    head = (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]
    assert (review["state"], review["commit_id"]) == ("CHANGES_REQUESTED", head)
    assert (await bot.get(f"{REPO}/pulls/{pull}/requested_reviewers"))["users"] == []
    told = await events()
    assert told[-2:] == ["pull_request_review.submitted", "pull_request_review_comment.created"]
    payload = github.deliveries[1].payload
    assert (payload["review"]["state"], payload["review"]["commit_id"]) == ("changes_requested", head)
    path = f"{REPO}/pulls/{pull}/reviews/{review['id']}"
    assert [one["body"] for one in await bot.get(f"{path}/comments")] == ["why?"]
    dismissed = await bot.put(f"{path}/dismissals", {"message": "never mind"})
    assert dismissed["state"] == "DISMISSED"
    await bot.put(f"{path}/dismissals", {"message": "again"}, status=422)
    assert [one["state"] for one in await bot.get(f"{REPO}/pulls/{pull}/reviews")] == ["DISMISSED"]


async def test_a_review_stays_with_its_commit(bot, github, pull):
    octocat = github.as_user("octocat")
    await octocat.review("acme/hello", pull, "APPROVE")
    old = github.reviews("acme/hello", pull)[0]["commit_id"]
    new = await github.as_user("maria").push_commit("acme/hello", "feature", {"x": "y"})
    assert github.reviews("acme/hello", pull)[0]["commit_id"] == old
    await octocat.review("acme/hello", pull, "APPROVE")
    assert github.reviews("acme/hello", pull)[1]["commit_id"] == new


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ("APPROVE", "Can not approve your own pull request"),
        ("REQUEST_CHANGES", "Can not request changes on your own pull request"),
    ],
)
async def test_ones_own_pull_request(person, pull, event, sentence):
    path = f"{REPO}/pulls/{pull}/reviews"
    answer = await person("maria").post(path, {"event": event, "body": "x"}, status=422)
    assert answer["errors"] == [sentence]
    await person("maria").post(path, {"event": "COMMENT", "body": "x"}, status=200)


async def test_the_bots_own_pull_request(bot, github, git):
    await github.as_user("maria").push_commit("acme/hello", "b", {"x": "y"})
    number = (await bot.post(f"{REPO}/pulls", {"title": "T", "head": "b", "base": "main"}))["number"]
    await bot.post(f"{REPO}/pulls/{number}/reviews", {"event": "APPROVE"}, status=422)


async def test_a_pending_review_is_its_authors_secret(person, bot, pull, events):
    before = await events()
    octocat = person("octocat")
    path = f"{REPO}/pulls/{pull}/reviews"
    review = await octocat.post(path, {"body": "draft"}, status=200)
    assert review["state"] == "PENDING"
    assert await bot.get(path) == []
    await bot.get(f"{path}/{review['id']}", status=404)
    assert await events() == before
    await octocat.post(path, {"body": "another"}, status=422)
    submitted = await octocat.post(f"{path}/{review['id']}/events", {"event": "APPROVE"}, status=200)
    assert submitted["state"] == "APPROVED"
    await octocat.post(f"{path}/{review['id']}/events", {"event": "APPROVE"}, status=422)
    await octocat.delete(f"{path}/{review['id']}", status=422)
    await octocat.put(f"{path}/{review['id']}", {"body": "changed"})
    await bot.put(f"{path}/{review['id']}", {"body": "changed"}, status=403)
    second = await octocat.post(path, {"body": "draft"}, status=200)
    await octocat.delete(f"{path}/{second['id']}", status=200)
    assert len(await octocat.get(path)) == 1


async def test_a_review_needs_a_body_unless_it_approves(person, pull, client_problems):
    await person("octocat").post(f"{REPO}/pulls/{pull}/reviews", {"event": "COMMENT"}, status=422)
    await person("octocat").post(f"{REPO}/pulls/{pull}/reviews", {"event": "APPROVED"}, status=422)
    assert len(client_problems()) == 2


async def test_strangers_may_review_but_not_merge(person, pull):
    await person("mallory").post(f"{REPO}/pulls/{pull}/reviews", {"event": "APPROVE"}, status=200)
    await person("mallory").put(f"{REPO}/pulls/{pull}/merge", status=403)


async def test_comments_on_the_diff(bot, person, github, pull, events):
    sha = (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]
    path = f"{REPO}/pulls/{pull}/comments"
    body = {"body": "typo", "commit_id": sha, "path": "NEWS.md", "line": 1}
    comment = await person("octocat").post(path, body)
    answer = await bot.post(f"{path}/{comment['id']}/replies", {"body": "fixed"})
    assert answer["in_reply_to_id"] == comment["id"]
    await bot.post(f"{path}/{answer['id']}/replies", {"body": "no"}, status=422)
    await bot.post(path, {**body, "path": "nowhere"}, status=422)
    await bot.post(path, {key: value for key, value in body.items() if key != "line"}, status=422)
    await bot.post(path, {"body": "whole file", "commit_id": sha, "path": "NEWS.md", "subject_type": "file"})
    assert len(await bot.get(path)) == 3
    one = f"{REPO}/pulls/comments/{comment['id']}"
    await bot.post(f"{one}/reactions", {"content": "eyes"})
    assert (await bot.get(one))["reactions"]["eyes"] == 1
    await person("octocat").patch(one, {"body": "changed"})
    await person("octocat").delete(one)
    await bot.get(one, status=404)
    assert (await events())[-2:] == [
        "pull_request_review_comment.edited",
        "pull_request_review_comment.deleted",
    ]
