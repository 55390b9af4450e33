"""The pages for people: what they show, what their forms do, and that nobody's text becomes markup."""

from __future__ import annotations

import pytest

from bot.sandbox.actions import Job

ISSUE = "/acme/hello/issues/1"


@pytest.fixture
async def page(session):
    async def page(path: str, *, status: int = 200) -> str:
        async with session.get(path) as answer:
            assert answer.status == status
            if status == 200:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            return await answer.text()

    return page


@pytest.fixture
async def form(session):
    """Send a form as a browser does, and follow to the page that it leads to."""

    async def form(path: str, *, status: int = 200, headers: dict | None = None, **fields: str) -> str:
        async with session.post(path, data=fields, headers=headers) as answer:
            assert answer.status == status, await answer.text()
            return await answer.text()

    return form


async def test_a_person_opens_talks_and_closes(page, form, github, events):
    shown = await form(
        "/acme/hello", user="octocat", title="Add Spanish", body="Hola **too**", labels="agent"
    )
    assert "Add Spanish" in shown
    assert "<strong>too</strong>" in shown
    await form(ISSUE, user="rita", action="comment", body="`code` and a | b")
    await form(ISSUE, user="tom", action="label", label="help wanted")
    await form(ISSUE, user="tom", action="unlabel", label="agent")
    await form(ISSUE, user="maria", action="react", content="rocket")
    comment = github.comments("acme/hello", 1)[0]
    await form(ISSUE, user="maria", action="react", content="eyes", comment_id=str(comment["id"]))
    shown = await form(ISSUE, user="octocat", action="close")
    assert "Closed</span>" in shown
    shown = await form(ISSUE, user="octocat", action="reopen")
    assert "<code>code</code>" in shown
    assert "🚀 1" in shown
    issue = github.issue("acme/hello", 1)
    assert [one["name"] for one in issue["labels"]] == ["help wanted"]
    assert github.reactions("acme/hello", 1) == [("maria", "rocket")]
    assert github.reactions("acme/hello", 1, comment_id=comment["id"]) == [("maria", "eyes")]
    told = ["opened", "labeled", "labeled", "unlabeled", "closed", "reopened"]
    assert [one for one in await events() if one.startswith("issues.")] == [f"issues.{one}" for one in told]


async def test_the_box_remembers_whom_one_plays(session, form, page, github):
    await form("/", user="maria", back="/acme/hello")
    assert "<option selected>maria</option>" in await page("/acme/hello")
    await form("/acme/hello", title="Mine")
    assert github.issue("acme/hello", 1)["user"]["login"] == "maria"


@pytest.mark.parametrize("back", ["https://example.com/", "//example.com", "/\\example.com"])
async def test_the_box_leads_to_no_other_site(session, back):
    async with session.post("/", data={"user": "maria", "back": back}, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_another_site_cannot_send_forms(form, github):
    headers = {"Origin": "https://example.com"}
    await form("/acme/hello", user="octocat", title="x", status=403, headers=headers)
    assert github.issues("acme/hello") == []


async def test_what_a_person_may_not_do(form, github):
    await github.as_user("octocat").open_issue("acme/hello", "x")
    said = await form(ISSUE, user="rita", action="label", label="agent", status=422)
    assert "GitHub refused" in said
    await form(ISSUE, user="octocat", action="dance", status=400)
    await form(ISSUE, user="octocat", action="unlabel", label="nothing", status=422)


async def test_a_pull_request_is_reviewed_and_merged(page, form, github, bot, pull, events):
    path = f"/acme/hello/pull/{pull}"
    shown = await page(path)
    assert '<span class="add">+one</span>' in shown
    assert "NEWS.md" in shown
    sha = github.pulls("acme/hello")[0]["head"]["sha"]
    action = {"label": "Fix it", "description": "Let the agent", "identifier": "fix"}
    body = {
        "name": "agent",
        "head_sha": sha,
        "conclusion": "failure",
        "actions": [action],
        "output": {"title": "Two problems", "summary": "- **one**\n- two", "text": "Details"},
    }
    run = await bot.post("/repos/acme/hello/check-runs", body)
    assert "Fix it" in await page(path)
    shown = await page(f"/acme/hello/runs/{run['id']}")
    assert "<strong>one</strong>" in shown
    await form(path, user="maria", action="click", run=str(run["id"]), identifier="fix")
    await form(path, user="maria", action="rerequest", run=str(run["id"]))
    assert (await events())[-2:] == ["check_run.requested_action", "check_run.rerequested"]
    said = await form(path, user="maria", action="review", event="APPROVE", status=422)
    assert "own pull request" in said
    await form(path, user="octocat", action="review", event="REQUEST_CHANGES", body="Hm")
    shown = await form(path, user="octocat", action="review", event="APPROVE")
    assert "changes requested" in shown
    assert "approved" in shown
    shown = await form(path, user="octocat", action="merge")
    assert '<span class="state merged">Merged</span>' in shown
    assert await github.file("acme/hello", "main", "NEWS.md") == "one\ntwo"


async def test_the_other_pages(page, github, pull):
    sha = github.pulls("acme/hello")[0]["head"]["sha"]
    assert "acme/hello" in await page("/")
    assert "News" in await page("/acme/hello")
    assert "Add news" in await page(f"/acme/hello/commit/{sha}")
    assert "NEWS.md" in await page("/acme/hello/compare/main...feature")
    assert "NEWS.md" in await page("/acme/hello/tree/feature")
    assert await page("/acme/hello/raw/feature/NEWS.md") == "one\ntwo\n"
    assert "Read all about it" in await page(f"/acme/hello/issues/{pull}")  # leads to the pull request
    first = (await github.branches("acme/hello"))["main"]
    assert "README.md" in await page(f"/acme/hello/commit/{first}")


async def test_a_branch_with_slashes(page, github):
    await github.as_user("maria").push_commit("acme/hello", "agent/1/x", {"a/b.txt": "deep\n"})
    assert await page("/acme/hello/blob/agent/1/x/a/b.txt") == "deep\n"


@pytest.mark.parametrize(
    "path",
    [
        "/acme/nothing",
        "/acme/hello/issues/9",
        "/acme/hello/runs/9",
        "/acme/hello/commit/0000000",
        "/acme/hello/tree/none",
        "/acme/hello/compare/main...none",
        "/acme/hello/raw/main/none",
    ],
)
async def test_what_is_not_there(page, path):
    await page(path, status=404)


async def test_nobodys_text_becomes_markup(page, github, bot, pull):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    link = "[click](javascript:alert(1))"
    octocat = github.as_user("octocat")
    await octocat.open_issue("acme/hello", evil, f"{evil} {link}", labels=[evil[:50]])
    await octocat.comment("acme/hello", 2, f"{evil} {link}")
    await octocat.review("acme/hello", pull, "COMMENT", evil)
    await github.as_user("maria").push_commit("acme/hello", "feature", {f"{evil.replace('/', '')}.txt": evil})
    sha = github.pulls("acme/hello")[0]["head"]["sha"]
    output = {"title": evil, "summary": evil, "text": link}
    run = await bot.post("/repos/acme/hello/check-runs", {"name": evil, "head_sha": sha, "output": output})
    for path in (
        "/acme/hello",
        "/acme/hello/issues/2",
        f"/acme/hello/pull/{pull}",
        f"/acme/hello/runs/{run['id']}",
        "/acme/hello/tree/feature",
        f"/acme/hello/commit/{sha}",
    ):
        shown = await page(path)
        assert "<script" not in shown
        assert "<img" not in shown
        assert 'href="javascript' not in shown


async def test_a_file_is_shown_as_text(session, github):
    await github.as_user("maria").push_commit("acme/hello", "x", {"page.html": "<script>alert(1)</script>"})
    async with session.get("/acme/hello/raw/x/page.html") as answer:
        assert answer.content_type == "text/plain"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_conversation_about_lines(page, form, github, pull):
    where = f"/acme/hello/pull/{pull}"
    await form(
        where, user="octocat", action="comment_on_line", file="NEWS.md", line="2", body="why <b>two</b>?"
    )
    [number] = github.world.repository("acme", "hello").issues[pull].pull.comments
    shown = await form(where, user="maria", action="reply", comment=str(number), body="Because.")
    assert "why &lt;b&gt;two&lt;/b&gt;?" in shown
    assert "Because." in shown
    assert "resolved by maria" in await form(where, user="maria", action="resolve", comment=str(number))
    shown = await form(where, user="maria", action="resolve", comment=str(number), resolved="no")
    assert "resolved by" not in shown
    said = await form(where, user="rita", action="resolve", comment=str(number), status=422)
    assert "does not have the correct permissions" in said
    await form(where, user="maria", action="resolve", comment="1", status=422)
    said = await form(
        where, user="octocat", action="comment_on_line", file="NEWS.md", line="99", body="x", status=422
    )
    assert "must be part of the diff" in said
    await github.as_user("maria").push_commit("acme/hello", "feature", {"NEWS.md": "all new\n"})
    assert ">outdated<" in await page(where)


async def test_drafts_and_dismissals(form, github, pull):
    where = f"/acme/hello/pull/{pull}"
    assert "Ready for review" in await form(where, user="maria", action="to_draft")
    assert "Convert to draft" in await form(where, user="maria", action="ready")
    review = await github.as_user("octocat").review("acme/hello", pull, "APPROVE")
    await form(where, user="rita", action="dismiss", review=str(review["id"]), message="no", status=422)
    shown = await form(where, user="maria", action="dismiss", review=str(review["id"]), message="Too early")
    assert "dismissed" in shown
    assert github.reviews("acme/hello", pull)[0]["state"] == "DISMISSED"


async def test_the_log_of_a_job(page, github, pull):
    sha = (await github.branches("acme/hello"))["feature"]
    run = await github.actions().run("acme/hello", sha, {"test": Job("failure", log="it <broke>")})
    assert "it <broke>" in await page(f"/acme/hello/actions/runs/{run.id}/job/{next(iter(run.jobs))}")
    await page(f"/acme/hello/actions/runs/{run.id}/job/1", status=404)
