"""Where comments may stand on a diff, and what becomes of reviews."""

from __future__ import annotations

import pytest

REPO = "/repos/acme/hello"
OLD = "".join(f"line {number}\n" for number in range(1, 41))
NEW = OLD.replace("line 5\n", "LINE 5\n").replace("line 35\n", "")


@pytest.fixture
async def long_pull(github) -> int:
    """Two hunks: line 5 is changed and line 35 is gone."""
    maria = github.as_user("maria")
    await maria.push_commit("acme/hello", "main", {"long.txt": OLD})
    await maria.push_commit("acme/hello", "long", {"long.txt": NEW})
    return (await maria.open_pull("acme/hello", "long", "Long"))["number"]


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ({"line": 5}, (5, "RIGHT", 5)),
        ({"line": 2}, (2, "RIGHT", 1)),
        ({"line": 8}, (8, "RIGHT", 8)),
        ({"line": 5, "side": "LEFT"}, (5, "LEFT", 4)),
        ({"line": 35, "side": "LEFT"}, (35, "LEFT", 13)),
        ({"position": 5}, (5, "RIGHT", 5)),
        ({"position": 4}, (5, "LEFT", 4)),
        ({"start_line": 3, "line": 6}, (6, "RIGHT", 6)),
    ],
)
async def test_lines_of_the_diff_take_comments(person, long_pull, place, found):
    path = f"{REPO}/pulls/{long_pull}/reviews"
    comment = {"path": "long.txt", "body": "hm", **place}
    review = await person("octocat").post(
        path, {"event": "COMMENT", "body": "x", "comments": [comment]}, status=200
    )
    [made] = await person("octocat").get(f"{path}/{review['id']}/comments")
    [listed] = await person("octocat").get(f"{REPO}/pulls/{long_pull}/comments")
    assert (listed["line"], listed["side"], made["position"]) == found
    assert listed.get("start_line") == place.get("start_line")
    assert listed["diff_hunk"].startswith("@@ -")
    assert len(listed["diff_hunk"].splitlines()) <= 9


@pytest.mark.parametrize(
    ("place", "said", "field"),
    [
        ({"path": "nowhere", "line": 1}, "Path could not be resolved", "path"),
        ({"line": 1}, "Line could not be resolved", "line"),
        ({"line": 20}, "Line could not be resolved", "line"),
        ({"line": 35}, None, None),
        ({"line": 1000}, "Line could not be resolved", "line"),
        ({"position": 99}, "Position could not be resolved", "position"),
        ({"line": 6, "start_line": 20}, "Start line could not be resolved", "start_line"),
        ({"line": 6, "start_line": 6}, "Start line must precede the end line.", "start_line"),
        (
            {"line": 35, "start_line": 6},
            "Start line must be part of the same hunk as the line.",
            "start_line",
        ),
    ],
)
async def test_other_lines_do_not(bot, person, long_pull, place, said, field):
    comment = {"path": "long.txt", "body": "hm", **place}
    status = 200 if said is None else 422
    body = {"event": "COMMENT", "body": "x", "comments": [comment]}
    answer = await person("octocat").post(f"{REPO}/pulls/{long_pull}/reviews", body, status=status)
    sha = (await bot.get(f"{REPO}/pulls/{long_pull}"))["head"]["sha"]
    status = 201 if said is None else 422
    single = await bot.post(
        f"{REPO}/pulls/{long_pull}/comments", {**comment, "commit_id": sha}, status=status
    )
    if said is not None:
        assert answer["errors"] == [said]
        assert single["errors"][0]["field"] == f"pull_request_review_thread.{field}"
        assert await bot.get(f"{REPO}/pulls/{long_pull}/reviews") == []


async def test_a_review_of_an_older_commit(bot, github, long_pull):
    old = (await bot.get(f"{REPO}/pulls/{long_pull}"))["head"]["sha"]
    new = await github.as_user("maria").push_commit(
        "acme/hello", "long", {"long.txt": NEW.replace("LINE 5", "five")}
    )
    octocat = github.as_user("octocat")
    review = await octocat.review(
        "acme/hello",
        long_pull,
        "APPROVE",
        commit_id=old,
        comments=[{"path": "long.txt", "line": 5, "body": "hm"}],
    )
    assert review["commit_id"] == old != new
    [comment] = await bot.get(f"{REPO}/pulls/{long_pull}/comments")
    assert (comment.get("line"), comment["original_line"], comment["original_commit_id"]) == (None, 5, old)
    strange = await github.as_user("maria").push_commit("acme/hello", "elsewhere", {"x": "y"})
    with pytest.raises(Exception, match="not part of the pull request"):
        await octocat.review("acme/hello", long_pull, "APPROVE", commit_id=strange)


async def test_what_the_app_hears_of_reviews(github, pull, events):
    octocat = github.as_user("octocat")
    review = await octocat.review("acme/hello", pull, "REQUEST_CHANGES", "Hm")
    await octocat.edit_review("acme/hello", pull, review["id"], "Hm?")
    await octocat.dismiss_review("acme/hello", pull, review["id"], "was wrong")
    assert (await events())[-3:] == [
        "pull_request_review.submitted",
        "pull_request_review.edited",
        "pull_request_review.dismissed",
    ]
    dismissed, edited, submitted = (one.payload for one in github.deliveries[:3])
    assert submitted["review"]["state"] == edited["review"]["state"] == "changes_requested"
    assert edited["changes"] == {"body": {"from": "Hm"}}
    assert (dismissed["review"]["state"], dismissed["sender"]["login"]) == ("dismissed", "octocat")


async def test_who_may_dismiss(github, bot, pull, person):
    review = await github.as_user("octocat").review("acme/hello", pull, "APPROVE")
    path = f"{REPO}/pulls/{pull}/reviews/{review['id']}/dismissals"
    await person("rita").put(path, {"message": "no"}, status=403)
    comment = await github.as_user("octocat").review("acme/hello", pull, "COMMENT", "hm")
    await bot.put(f"{REPO}/pulls/{pull}/reviews/{comment['id']}/dismissals", {"message": "no"}, status=422)
    await bot.put(path, {"message": "stale"})
    timeline = await bot.get(f"{REPO}/issues/{pull}/timeline")
    [event] = [one for one in timeline if one["event"] == "review_dismissed"]
    assert event["dismissed_review"] == {
        "state": "approved",
        "review_id": review["id"],
        "dismissal_message": "stale",
    }
