"""The GitHub client against the sandbox GitHub, every request and answer held against the official description."""

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from bot.errors import GitHubUnavailable
from bot.github import GitHub, path
from bot.github_errors import Forbidden, NotFound, OutcomeUnknown, RateLimited, Unauthorized, Unprocessable
from bot.model import Repo
from bot.permissions import SPEAK
from bot.sandbox.description import github_description
from bot.sandbox.faults import Fault, secondary_limit
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.seed import new_private_key
from bot.sandbox.transport import ContractError, ValidatingTransport

REPO = "/repos/acme/hello"


class Time:
    """One clock for both sides; sleeping moves it."""

    def __init__(self):
        self.now = float(int(time.time()))
        self.slept = []

    def clock(self):
        return self.now

    def moment(self):
        return datetime.fromtimestamp(self.now, UTC)

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Wire(httpx.AsyncBaseTransport):
    """The validated network; remembers what went over it."""

    def __init__(self):
        self._inner = ValidatingTransport(httpx.AsyncHTTPTransport(), github_description())
        self.seen = []

    async def handle_async_request(self, request):
        response = await self._inner.handle_async_request(request)
        self.seen.append((request.method, request.url.path, response.status_code))
        return response

    async def aclose(self):
        await self._inner.aclose()

    @property
    def minted(self):
        return sum(1 for _, url, status in self.seen if url.endswith("/access_tokens") and status == 201)


@pytest.fixture(scope="module")
def private_key():
    return new_private_key()


@pytest.fixture
def turned():
    return Time()


@pytest.fixture
async def sandbox(private_key, turned):
    async with Sandbox.start(private_key=private_key, clock=turned.moment) as sandbox:
        yield sandbox
        assert [str(problem) for problem in sandbox.problems] == []


@pytest.fixture
async def wire():
    return Wire()


@asynccontextmanager
async def client_of(sandbox, wire, turned, **options):
    key = sandbox.private_key_path.read_text()
    async with GitHub(
        sandbox.url,
        str(sandbox.app_id),
        key,
        transport=wire,
        clock=turned.clock,
        monotonic=turned.clock,
        sleep=turned.sleep,
        write_spacing=0,
        **options,
    ) as github:
        yield github


@pytest.fixture
async def github(sandbox, wire, turned):
    async with client_of(sandbox, wire, turned) as github:
        yield github


@pytest.fixture
def client(github, sandbox):
    return github.installation(sandbox.installation_id)


async def open_issues(client, count):
    for number in range(count):
        await client.post(f"{REPO}/issues", data={"title": f"number {number}"})


async def test_who_we_are(github, sandbox):
    identity = await github.identity()
    bot = sandbox.world.user("agent-conductor[bot]")
    assert (identity.id, identity.slug) == (sandbox.app_id, "agent-conductor")
    assert (identity.login, identity.user_id, identity.email) == (bot.login, bot.id, bot.email)


async def test_many_calls_one_token(client, wire):
    answers = await asyncio.gather(*[client.getitem(REPO) for _ in range(50)])
    assert {answer["full_name"] for answer in answers} == {"acme/hello"}
    assert wire.minted == 1


async def test_another_apps_key_is_refused(sandbox, turned):
    async with GitHub(
        sandbox.url, str(sandbox.app_id), new_private_key(), transport=Wire(), clock=turned.clock
    ) as github:
        with pytest.raises(Unauthorized, match="CONDUCTOR_GITHUB_PRIVATE_KEY"):
            await github.app_client.getitem("/app")


async def test_a_clock_that_is_wrong_by_an_hour(sandbox, wire, turned):
    wrong = Time()
    wrong.now -= 3600
    turned.now = time.time()  # the sandbox's Date header tells the real time
    async with client_of(sandbox, wire, wrong) as github:
        await github.installation(sandbox.installation_id).getitem(REPO)
    assert [status for _, _, status in wire.seen] == [401, 201, 200]


async def test_an_expired_token_is_renewed(client, wire, turned):
    await client.getitem(REPO)
    turned.now += 3600 - 299
    await client.getitem(REPO)
    assert wire.minted == 2
    assert [status for _, _, status in wire.seen] == [201, 200, 201, 200]  # renewed before any 401


async def test_a_token_that_dies_early_is_replaced(client, wire, sandbox, turned):
    await client.getitem(REPO)
    for token in sandbox.world.tokens.values():
        token.expires_at = turned.moment() - timedelta(seconds=1)
    await asyncio.gather(*[client.getitem(REPO) for _ in range(10)])
    assert wire.minted == 2


async def test_narrowed_tokens_reach_no_further(github, sandbox, turned):
    await sandbox.create_repo("acme/other", private=True)
    hello = sandbox.world.repository("acme", "hello")
    token = await github.token(
        sandbox.installation_id, repository_id=hello.id, permissions={"issues": "read"}
    )
    assert dict(token.permissions) in ({"issues": "read"}, {"issues": "read", "metadata": "read"})
    assert token.expires_at == turned.moment() + timedelta(hours=1)
    assert len(token.value) > 200
    headers = {"authorization": f"Bearer {token.value}", "user-agent": "test"}
    async with httpx.AsyncClient(base_url=sandbox.url, headers=headers) as bare:
        assert (await bare.get(f"{REPO}/issues")).status_code == 200
        assert (await bare.post(f"{REPO}/issues", json={"title": "no"})).status_code == 403
        assert (await bare.get("/repos/acme/other/issues")).status_code == 404
        await github.revoke(token)
        assert (await bare.get(f"{REPO}/issues")).status_code == 401
    await github.revoke(token)  # safe to repeat


async def test_more_than_is_granted_is_refused(github, sandbox):
    hello = sandbox.world.repository("acme", "hello")
    with pytest.raises(Unprocessable):
        await github.token(
            sandbox.installation_id, repository_id=hello.id, permissions={"administration": "write"}
        )


async def test_who_looks_everywhere_can_write_nowhere(github, sandbox):
    await sandbox.create_repo("acme/other", private=True)
    reader = github.reader(sandbox.installation_id)
    for repo in (REPO, "/repos/acme/other"):
        assert (await reader.getitem(repo))["id"]
        with pytest.raises(Forbidden):
            await reader.post(f"{repo}/issues", data={"title": "no"})
        with pytest.raises(Forbidden):
            await reader.post(f"{repo}/git/refs", data={"ref": "refs/heads/no", "sha": "a" * 40})


async def test_who_writes_in_one_repository_cannot_in_another(github, sandbox):
    await sandbox.create_repo("acme/other", private=True)
    hello = sandbox.world.repository("acme", "hello")
    repo = Repo(owner="acme", name="hello", id=hello.id, installation_id=sandbox.installation_id)
    writer = github.repository(repo, SPEAK)
    assert (await writer.post(f"{REPO}/issues", data={"title": "yes"}))["number"]
    with pytest.raises(NotFound):
        await writer.post("/repos/acme/other/issues", data={"title": "no"})
    with pytest.raises(Forbidden):  # comments need no right to push
        await writer.post(f"{REPO}/git/refs", data={"ref": "refs/heads/no", "sha": "a" * 40})


async def test_a_permission_that_was_not_accepted_is_done_without(github, sandbox):
    granted = sandbox.world.installations[sandbox.installation_id].permissions
    sandbox.world.installations[sandbox.installation_id].permissions = {
        name: level for name, level in granted.items() if name not in ("actions", "members")
    }
    assert (await github.reader(sandbox.installation_id).getitem(REPO))["id"]
    gone = Repo(owner="acme", name="gone", id=424242, installation_id=sandbox.installation_id)
    with pytest.raises(NotFound, match="access_tokens"):
        await github.repository(gone, SPEAK).getitem("/repos/acme/gone")


async def test_an_unknown_and_a_suspended_installation(github, sandbox, turned):
    with pytest.raises(NotFound):
        await github.installation(1).getitem(REPO)
    sandbox.world.installations[sandbox.installation_id].suspended_at = turned.moment()
    with pytest.raises(Forbidden, match="Unsuspend"):
        await github.installation(sandbox.installation_id).getitem(REPO)


async def test_paging(client, wire):
    await open_issues(client, 101)
    titles = [issue["title"] async for issue in client.getiter(f"{REPO}/issues?state=all")]
    assert sorted(titles) == sorted(f"number {number}" for number in range(101))
    assert [url for method, url, _ in wire.seen if method == "GET"] == [f"{REPO}/issues"] * 2
    small = [issue["title"] async for issue in client.getiter(f"{REPO}/issues?per_page=50")]
    assert len(small) == 101


async def test_lists_inside_objects(client):
    names = [repo["full_name"] async for repo in client.getiter("/installation/repositories")]
    assert names == ["acme/hello"]


async def test_etags_save_requests_and_show_changes(client, wire, sandbox, turned):
    def used():
        return sandbox.rate_limit.resource(f"installation {sandbox.installation_id}", turned.moment())["used"]

    await open_issues(client, 1)
    issue = path("/repos/{owner}/{repo}/issues/{number}", owner="acme", repo="hello", number=1)
    first = await client.getitem(issue)
    before = used()
    first["title"] = "poison"
    again = await client.getitem(issue)
    assert again["title"] == "number 0"
    assert used() == before  # a 304 is free
    await client.patch(issue, data={"title": "renamed"})
    assert (await client.getitem(issue))["title"] == "renamed"
    assert [status for method, _, status in wire.seen if method == "GET"] == [200, 304, 200]


async def test_secondary_limits(client, sandbox, turned):
    sandbox.faults.add(secondary_limit(f"{REPO}/issues", retry_after=7))
    sandbox.faults.add(secondary_limit(f"{REPO}/issues", retry_after=None, status=429))
    await open_issues(client, 1)
    assert turned.slept[0] == 7
    assert turned.slept[1] >= 60
    assert len(sandbox.issues("acme/hello")) == 1


@pytest.mark.parametrize("status", [403, 429])
async def test_the_primary_limit(client, sandbox, turned, status):
    # the sandbox lives in the next hour, so its reset is more than an hour from the time in its Date headers
    turned.now += 3600 - turned.now % 3600
    sandbox.rate_limit.refusal = status
    sandbox.rate_limit.limit = 1
    await client.getitem(REPO)
    with pytest.raises(RateLimited) as caught:
        await client.getitem(f"{REPO}/labels")
    assert caught.value.until > turned.moment() + timedelta(minutes=59)
    assert turned.slept == []


async def test_missing_permissions_name_what_is_needed(client, sandbox, wire):
    granted = sandbox.world.installations[sandbox.installation_id].permissions
    del granted["issues"], granted["pull_requests"]
    with pytest.raises(Forbidden, match="issues=write") as caught:
        await open_issues(client, 1)
    assert "issues=write" in caught.value.accepted_permissions
    assert [status for method, url, status in wire.seen if url.endswith("/issues")] == [403]


async def test_trouble_is_tried_again_and_then_told(client, sandbox, turned):
    for drop in ("before", None):
        sandbox.faults.add(Fault(method="GET", path=REPO, drop=drop, status=None if drop else 502))
    assert (await client.getitem(REPO))["full_name"] == "acme/hello"
    assert len(turned.slept) == 2
    sandbox.faults.add(Fault(method="GET", path=REPO, status=503, times=None))
    with pytest.raises(GitHubUnavailable, match="status 503"):
        await client.getitem(REPO)


async def test_a_post_whose_answer_is_lost_is_done_once(client, sandbox):
    sandbox.faults.add(Fault(method="POST", path=f"{REPO}/issues", drop="after"))
    with pytest.raises(OutcomeUnknown):
        await open_issues(client, 1)
    assert len(sandbox.issues("acme/hello")) == 1


async def test_refs_with_odd_names(client):
    main = await client.getitem(f"{REPO}/git/ref/heads/main")
    odd = "heads/agent/fix-#1-50%"
    await client.post(f"{REPO}/git/refs", data={"ref": f"refs/{odd}", "sha": main["object"]["sha"]})
    got = await client.getitem(
        path("/repos/{owner}/{repo}/git/ref/{+ref}", owner="acme", repo="hello", ref=odd)
    )
    assert got["ref"] == f"refs/{odd}"
    with pytest.raises(Unprocessable, match="already exists"):
        await client.post(f"{REPO}/git/refs", data={"ref": f"refs/{odd}", "sha": main["object"]["sha"]})


# ---- GraphQL


READY = "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } } }"


async def a_draft(client, sandbox) -> dict:
    await sandbox.as_user("maria").push_commit("acme/hello", "drafted", {"a.txt": "1\n"})
    wanted = {"title": "T", "head": "drafted", "base": "main", "draft": True}
    return await client.post(f"{REPO}/pulls", data=wanted)


async def test_graphql_changes_what_rest_cannot(client, sandbox, wire):
    pull = await a_draft(client, sandbox)
    data = await client.graphql(READY, id=pull["node_id"])
    assert data == {"markPullRequestReadyForReview": {"pullRequest": {"isDraft": False}}}
    assert ("POST", "/graphql", 200) in wire.seen
    with pytest.raises(Unprocessable, match="draft"):
        await client.graphql(READY, id=pull["node_id"])


async def test_graphqls_errors_are_rests(client, sandbox):
    with pytest.raises(NotFound, match="PR_nothing"):
        await client.graphql(READY, id="PR_nothing")
    installation = next(iter(sandbox.world.installations.values()))
    pull = await a_draft(client, sandbox)
    for token in sandbox.world.tokens.values():
        token.permissions["contents"] = "read"
    assert installation.permissions["contents"] == "write"
    with pytest.raises(Forbidden, match="not accessible by integration"):
        await client.graphql(READY, id=pull["node_id"])


async def test_a_query_that_the_schema_does_not_know_fails_the_test(client):
    with pytest.raises(ContractError, match="isDraff"):
        await client.graphql(READY.replace("isDraft", "isDraff"), id="PR_1")


async def test_graphqls_own_rate_limit(client, sandbox):
    assert await client.graphql("query { viewer { login } }") == {"viewer": {"login": "agent-conductor"}}
    sandbox.rate_limit.limit = 1
    with pytest.raises(RateLimited):
        await client.graphql("query { viewer { login } }")


async def test_graphql_without_an_answer(client, sandbox):
    sandbox.faults.add(Fault(path="/graphql", drop="after"))
    with pytest.raises(OutcomeUnknown):
        await client.graphql("query { viewer { login } }")


# ---- repositories that move


async def test_a_renamed_repository_is_found_under_its_former_name(client, sandbox, wire):
    await sandbox.as_user("octocat").rename_repository("acme/hello", "greetings")
    assert (await client.getitem(REPO))["full_name"] == "acme/greetings"
    issue = await client.post(f"{REPO}/issues", data={"title": "Once"})
    number = sandbox.world.repository("acme", "greetings").id
    assert ("POST", f"/repositories/{number}/issues", 201) in wire.seen
    assert [one["title"] for one in sandbox.issues("acme/greetings")] == ["Once"]
    assert issue["repository_url"].endswith("/repos/acme/greetings")
