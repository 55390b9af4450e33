"""What holds for every operation: validation, paging, conditional requests, limits, faults."""

from __future__ import annotations

import aiohttp
import pytest

from bot.sandbox.faults import Fault, secondary_limit
from bot.sandbox.permissions import OPERATIONS
from bot.sandbox.server import HANDLERS

REPO = "/repos/acme/hello"


def test_every_operation_with_a_permission_has_a_handler_and_a_description(description):
    assert set(HANDLERS) == set(OPERATIONS) == set(description.operations)


async def test_what_does_not_exist_says_so(bot, client_problems):
    answer = await bot.get("/repos/acme/hello/actions/secrets", status=501)
    assert "does not implement GET /repos/acme/hello/actions/secrets" in answer["message"]
    assert len(client_problems()) == 1


async def test_a_request_without_user_agent(github, client_problems):
    async with (
        aiohttp.ClientSession(github.url, skip_auto_headers=["User-Agent"]) as session,
        session.get(REPO) as answer,
    ):
        assert answer.status == 403


async def test_an_unknown_api_version(bot):
    await bot.get(REPO, X_GitHub_Api_Version="2022-11-28")
    assert bot.headers["X-GitHub-Api-Version-Selected"] == "2022-11-28"
    await bot.get(REPO, X_GitHub_Api_Version="1999-01-01", status=400)


async def test_a_misspelt_key_is_recorded_although_github_overlooks_it(bot, client_problems):
    await bot.post(f"{REPO}/issues", {"title": "x", "boddy": "y"})
    assert client_problems() == ["body: Unevaluated properties are not allowed ('boddy' was unexpected)"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{REPO}/issues", {"body": "no title"}, 422),
        (f"{REPO}/issues", {"title": ["no", "string"]}, 422),
        (f"{REPO}/issues", {"title": "x", "body": "y" * 65_537}, 422),
        (f"{REPO}/labels", {"name": "x", "description": "y" * 101}, 422),
        (f"{REPO}/issues", ["no", "object"], 400),
    ],
)
async def test_a_body_that_github_refuses(bot, client_problems, path, body, status):
    await bot.post(path, body, status=status)
    assert client_problems()


async def test_a_body_that_is_no_json(session, bot, mint, client_problems):
    headers = {"Authorization": f"token {await mint()}", "Content-Type": "application/json"}
    async with session.post(f"{REPO}/issues", data=b"{", headers=headers) as answer:
        assert answer.status == 400
        assert (await answer.json())["message"] == "Problems parsing JSON"
    assert client_problems()


async def test_too_long_a_body_is_refused_in_githubs_words(bot, client_problems):
    answer = await bot.post(f"{REPO}/issues", {"title": "x", "body": "y" * 65_537}, status=422)
    assert answer["errors"][0]["message"] == "Body is too long (maximum is 65536 characters)"
    assert client_problems()


async def test_paging(bot, github):
    octocat = github.as_user("octocat")
    for number in range(1, 8):
        await octocat.open_issue("acme/hello", f"Issue {number}")
    seen, pages, url = [], 0, f"{REPO}/issues?per_page=3&direction=asc"
    while url:
        seen += [one["number"] for one in await bot.get(url)]
        pages += 1
        url = bot.links.get("next")
    assert (seen, pages) == (list(range(1, 8)), 3)
    await bot.get(f"{REPO}/issues?per_page=3&page=2")
    assert list(bot.links) == ["prev", "next", "last", "first"]


async def test_a_page_has_at_most_100(bot, github, client_problems):
    octocat = github.as_user("octocat")
    number = (await octocat.open_issue("acme/hello", "Talk"))["number"]
    for _ in range(101):
        await octocat.comment("acme/hello", number, "again")
    assert len(await bot.get(f"{REPO}/issues/{number}/comments?per_page=500")) == 100
    assert "at most 100" in client_problems()[0]
    assert len(await bot.get(f"{REPO}/issues/{number}/comments")) == 30


async def test_an_unchanged_answer_costs_nothing(bot, github):
    await bot.get(REPO)
    etag, used = bot.headers["ETag"], bot.headers["X-RateLimit-Used"]
    assert await bot.get(REPO, If_None_Match=etag, status=304) == ""
    assert bot.headers["X-RateLimit-Used"] == used
    await github.as_user("octocat").open_issue("acme/hello", "Something new")
    await bot.get(REPO, If_None_Match=etag)
    assert bot.headers["ETag"] != etag


async def test_an_etag_is_good_for_one_token_and_media_type_only(bot, caller, mint):
    await bot.get(REPO)
    etag = bot.headers["ETag"]
    await caller(await mint()).get(REPO, If_None_Match=etag)
    await bot.get(REPO, If_None_Match=etag, Accept="application/vnd.github.raw+json")


@pytest.mark.parametrize("refusal", [403, 429])
async def test_the_primary_rate_limit(bot, person, github, clock, refusal):
    github.rate_limit.limit, github.rate_limit.refusal = 2, refusal
    await bot.get(REPO)
    assert bot.headers["X-RateLimit-Remaining"] == "1"
    await bot.get(REPO)
    answer = await bot.get(REPO, status=refusal)
    assert answer["message"].startswith("API rate limit exceeded")
    assert bot.headers["X-RateLimit-Remaining"] == "0"
    assert int(bot.headers["X-RateLimit-Reset"]) > clock.now.timestamp()
    # asking costs nothing, and others have their own
    assert (await bot.get("/rate_limit"))["resources"]["core"]["remaining"] == 0
    await person("octocat").get(REPO)


async def test_the_rate_limit_turns_with_the_hour(person, github, clock):
    octocat = person("octocat")
    github.rate_limit.limit = 1
    await octocat.get(REPO)
    await octocat.get(REPO, status=403)
    clock.forward(hours=1)
    await octocat.get(REPO)


async def test_faults_come_once_in_order_and_only_where_meant(bot, github):
    github.faults.add(Fault(method="GET", path="/issues", status=502))
    github.faults.add(secondary_limit("/issues", retry_after=7))
    await bot.get(REPO)
    await bot.get(f"{REPO}/issues", status=502)
    answer = await bot.get(f"{REPO}/issues", status=403)
    assert "secondary rate limit" in answer["message"]
    assert bot.headers["Retry-After"] == "7"
    assert await bot.get(f"{REPO}/issues") == []


async def test_a_fault_may_come_back(bot, github):
    github.faults.add(Fault(path="/issues", status=500, times=None))
    for _ in range(3):
        await bot.get(f"{REPO}/issues", status=500)
    github.faults.clear()
    await bot.get(f"{REPO}/issues")


@pytest.mark.parametrize(("drop", "done"), [("before", 0), ("after", 1)])
async def test_a_dropped_connection(bot, github, drop, done):
    github.faults.add(Fault(method="POST", path="/issues$", drop=drop))
    with pytest.raises(aiohttp.ClientError):
        await bot.post(f"{REPO}/issues", {"title": "Did it happen?"})
    assert len(github.issues("acme/hello")) == done


async def test_faults_over_http(session, bot):
    async with session.post(
        "/_sandbox/faults", json={"path": "/issues", "status": 503, "times": 2}
    ) as answer:
        assert answer.status == 201
    await bot.get(f"{REPO}/issues", status=503)
    async with session.get("/_sandbox/faults") as answer:
        assert [one["times"] for one in await answer.json()] == [1]
    async with session.delete("/_sandbox/faults") as answer:
        assert answer.status == 204
    await bot.get(f"{REPO}/issues")


@pytest.mark.parametrize("wrong", [{"stat": 500}, {"path": "("}, {"drop": "maybe"}, [1]])
async def test_a_fault_that_makes_no_sense(session, wrong):
    async with session.post("/_sandbox/faults", json=wrong) as answer:
        assert answer.status == 422
        assert "no fault" in (await answer.json())["message"]


async def test_problems_over_http(session, bot, client_problems):
    await bot.get(f"{REPO}/issues?stat=open")
    async with session.get("/_sandbox/problems") as answer:
        assert [(one["side"], one["kind"]) for one in await answer.json()] == [("client", "query")]
    client_problems()
