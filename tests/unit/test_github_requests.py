"""The GitHub client against scripted answers, without a network and without waiting."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import jwt
import pytest
import respx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bot.config import fixed_settings
from bot.errors import ConductorError, ConfigurationError, GitHubUnavailable
from bot.github import API_VERSION, GitHub, path
from bot.github_auth import InstallationToken
from bot.github_errors import (
    Conflict,
    Forbidden,
    ForeignAddress,
    GitHubError,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Redirected,
    Unauthorized,
    Unprocessable,
)
from bot.github_transport import Patience
from bot.permissions import READ

API = "https://api.github.com"
START = 1_800_000_000.0


def pem_of(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture(scope="session")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def pem(key):
    return pem_of(key)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = START
        self.slept = []

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Hub:
    """GitHub's edge: routes for a test, minted tokens, requests seen."""

    def __init__(self, api=API):
        self.api = api
        self.router = respx.MockRouter(assert_all_called=False, assert_all_mocked=True)
        self.time = Time()
        self.minted = []
        self.lifetime = timedelta(hours=1)
        self.prefix = "ghs_"
        self.refusals = []  # what the next mints are answered with instead of a token
        self.router.post(url__regex=rf"{api}/app/installations/\d+/access_tokens").mock(side_effect=self.mint)

    def __getattr__(self, name):
        return getattr(self.router, name)

    async def mint(self, request):
        await asyncio.sleep(0)  # others get their turn, as on a network
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            return refusal
        body = json.loads(request.content)
        self.minted.append((request.url.path, body))
        until = datetime.fromtimestamp(self.time.now, UTC) + self.lifetime
        return httpx.Response(
            201,
            json={
                "token": f"{self.prefix}{len(self.minted)}",
                "expires_at": f"{until:%Y-%m-%dT%H:%M:%SZ}",
                "permissions": body.get("permissions", {"contents": "write"}),
            },
        )

    def calls(self, prefix="/repos"):
        """(method, path) of the requests that were not about tokens."""
        return [
            (call.request.method, call.request.url.path)
            for call in self.router.calls
            if call.request.url.path.startswith(prefix)
        ]

    def calls_of(self, path):
        return [call for call in self.router.calls if call.request.url.path == path]

    def github(self, pem, **options):
        options = {"write_spacing": 0} | options
        return GitHub(
            self.api,
            "12345",
            pem,
            transport=httpx.MockTransport(self.router.async_handler),
            clock=self.time.clock,
            monotonic=self.time.clock,
            sleep=self.time.sleep,
            **options,
        )


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
async def github(hub, pem):
    async with hub.github(pem) as github:
        yield github


def bearer(call):
    return call.request.headers["authorization"].removeprefix("Bearer ")


# --- the App's JWT -----------------------------------------------------------------------------------


async def test_jwt_claims_and_headers(hub, github, key):
    route = hub.get(f"{API}/app").respond(json={"id": 1})
    await github.app_client.getitem("/app")
    request = route.calls.last.request
    token = bearer(route.calls.last)
    assert jwt.get_unverified_header(token)["alg"] == "RS256"
    claims = jwt.decode(
        token, key.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert claims == {"iss": "12345", "iat": START - 60, "exp": START + 540}
    assert request.headers["x-github-api-version"] == API_VERSION
    assert request.headers["accept"] == "application/vnd.github+json"
    assert request.headers["user-agent"].startswith("agent-conductor/")


@pytest.mark.parametrize("skew", [-7200, 7200])
async def test_a_wrong_clock_is_corrected_from_the_date_header(hub, github, skew):
    server_now = START + skew

    def judge(request):
        claims = jwt.decode(
            request.headers["authorization"].removeprefix("Bearer "), options={"verify_signature": False}
        )
        date = {"date": format_datetime(datetime.fromtimestamp(server_now, UTC), usegmt=True)}
        if claims["iat"] <= server_now < claims["exp"] <= server_now + 600:
            return httpx.Response(200, json={"id": 1}, headers=date)
        return httpx.Response(401, json={"message": "'Issued at' claim ('iat') is off"}, headers=date)

    route = hub.get(f"{API}/app").mock(side_effect=judge)
    await github.app_client.getitem("/app")
    assert route.call_count == 2
    await github.app_client.getitem("/app")
    assert route.call_count == 3  # the correction is kept


async def test_a_refused_jwt_with_the_right_clock_is_not_repeated(hub, github):
    date = format_datetime(datetime.fromtimestamp(START, UTC), usegmt=True)
    route = hub.get(f"{API}/app").respond(401, json={"message": "Bad credentials"}, headers={"date": date})
    with pytest.raises(Unauthorized, match="CONDUCTOR_GITHUB_PRIVATE_KEY"):
        await github.app_client.getitem("/app")
    assert route.call_count == 1


async def test_a_wrong_clock_is_corrected_once_only(hub, github):
    date = format_datetime(datetime.fromtimestamp(START + 7200, UTC), usegmt=True)
    route = hub.get(f"{API}/app").respond(401, json={"message": "no"}, headers={"date": date})
    with pytest.raises(Unauthorized):
        await github.app_client.getitem("/app")
    assert route.call_count == 2


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN RSA PRIVATE KEY-----\nsecretsecret\n"])
def test_a_key_that_is_none_is_a_configuration_error(text):
    with pytest.raises(ConfigurationError, match="CONDUCTOR_GITHUB_PRIVATE_KEY") as caught:
        GitHub(API, "1", text)
    assert "secretsecret" not in str(caught.value)


def test_encrypted_and_other_keys_are_configuration_errors(key):
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"password"),
    ).decode()
    for text in (encrypted, pem_of(ec.generate_private_key(ec.SECP256R1()))):
        with pytest.raises(ConfigurationError, match="private key"):
            GitHub(API, "1", text)


async def test_from_settings(pem):
    with pytest.raises(ConfigurationError, match="CONDUCTOR_GITHUB_APP_ID"):
        GitHub.from_settings(fixed_settings())
    settings = fixed_settings(github_app_id="1", github_private_key=pem)
    async with GitHub.from_settings(settings) as github:
        assert github.app_client.base_url == API


# --- installation tokens -----------------------------------------------------------------------------


async def test_fifty_concurrent_calls_mint_one_token(hub, github):
    hub.get(f"{API}/repos/o/r").respond(json={})
    client = github.installation(7)
    await asyncio.gather(*[client.getitem("/repos/o/r") for _ in range(50)])
    assert hub.minted == [("/app/installations/7/access_tokens", {})]
    assert len(hub.calls()) == 50


async def test_fifty_concurrent_narrowed_tokens_mint_one(hub, github):
    tokens = await asyncio.gather(
        *[github.token(7, repository_id=1, permissions={"contents": "write"}) for _ in range(50)]
    )
    assert len(hub.minted) == 1
    assert {token.value for token in tokens} == {"ghs_1"}


async def test_a_cancelled_first_caller_spoils_nothing_for_the_others(hub, github):
    hub.get(f"{API}/repos/o/r").respond(json={"id": 5})
    client = github.installation(7)
    tasks = [asyncio.create_task(client.getitem("/repos/o/r")) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [{"id": 5}] * 4


async def test_a_token_is_renewed_five_minutes_before_its_end(hub, github):
    route = hub.get(f"{API}/repos/o/r").respond(json={})
    client = github.installation(7)
    await client.getitem("/repos/o/r")
    hub.time.now += 3600 - 301
    await client.getitem("/repos/o/r")
    assert len(hub.minted) == 1
    hub.time.now += 2
    await client.getitem("/repos/o/r")
    assert [bearer(call) for call in route.calls] == ["ghs_1", "ghs_1", "ghs_2"]


async def test_a_short_lived_token_is_used_for_half_its_life(hub, github):
    hub.lifetime = timedelta(minutes=2)
    hub.get(f"{API}/repos/o/r").respond(json={})
    client = github.installation(7)
    await client.getitem("/repos/o/r")
    hub.time.now += 59
    await client.getitem("/repos/o/r")
    assert len(hub.minted) == 1
    hub.time.now += 2
    await client.getitem("/repos/o/r")
    assert len(hub.minted) == 2


async def test_a_revoked_token_is_replaced_once_for_all_callers(hub, github):
    revoked = {"ghs_1"}

    def answer(request):
        value = request.headers["authorization"].removeprefix("Bearer ")
        if value in revoked:
            return httpx.Response(401, json={"message": "Bad credentials"})
        return httpx.Response(200, json={"token": value})

    hub.get(f"{API}/repos/o/r").mock(side_effect=answer)
    client = github.installation(7)
    answers = await asyncio.gather(*[client.getitem("/repos/o/r") for _ in range(50)])
    assert {answer["token"] for answer in answers} == {"ghs_2"}
    assert len(hub.minted) == 2


async def test_a_new_token_that_is_refused_too_is_an_error_and_no_loop(hub, github):
    hub.get(f"{API}/repos/o/r").respond(401, json={"message": "Bad credentials"})
    with pytest.raises(Unauthorized) as caught:
        await github.installation(7).getitem("/repos/o/r")
    assert len(hub.calls()) == 2
    assert caught.value.status == 401


async def test_a_post_refused_with_401_is_sent_again_with_its_body(hub, github):
    seen = []

    def answer(request):
        seen.append((request.headers["authorization"], json.loads(request.content)))
        if len(seen) == 1:
            return httpx.Response(401, json={"message": "Bad credentials"})
        return httpx.Response(201, json={"id": 9})

    hub.post(f"{API}/repos/o/r/issues/1/comments").mock(side_effect=answer)
    made = await github.installation(7).post("/repos/o/r/issues/1/comments", data={"body": "hello"})
    assert made == {"id": 9}
    assert seen == [("Bearer ghs_1", {"body": "hello"}), ("Bearer ghs_2", {"body": "hello"})]


async def test_narrowed_tokens_ask_for_one_repository_and_these_permissions(hub, github):
    token = await github.token(7, repository_id=99, permissions={"contents": "write", "checks": "read"})
    assert hub.minted == [
        (
            "/app/installations/7/access_tokens",
            {"repository_ids": [99], "permissions": {"contents": "write", "checks": "read"}},
        )
    ]
    assert token.permissions == {"contents": "write", "checks": "read"}
    assert token.expires_at == datetime.fromtimestamp(START + 3600, UTC)


async def test_narrowed_tokens_are_shared_only_within_their_scope(hub, github):
    async def value(installation, repository, permissions, **options):
        token = await github.token(installation, repository_id=repository, permissions=permissions, **options)
        return token.value

    first = await value(7, 1, {"contents": "read", "issues": "read"})
    assert await value(7, 1, {"issues": "read", "contents": "read"}) == first
    others = [
        await value(7, 1, {"contents": "write"}),
        await value(7, 2, {"contents": "read", "issues": "read"}),
        await value(8, 1, {"contents": "read", "issues": "read"}),
        await value(7, 1, {"contents": "read", "issues": "read"}, fresh=True),
    ]
    assert len({first, *others}) == 5
    assert await value(7, 1, {"contents": "read", "issues": "read"}) == first  # fresh ones are not kept


async def test_a_narrowed_token_without_permissions_is_refused(hub, github):
    with pytest.raises(ValueError, match="at least one permission"):
        await github.token(7, repository_id=1, permissions={})
    assert hub.minted == []


async def test_tokens_of_the_new_format(hub, github):
    hub.prefix = "ghs_12345_" + "eyJhbGciOi-J_" * 20 + "." + "x" * 130 + "." + "y" * 110
    route = hub.get(f"{API}/repos/o/r").respond(json={})
    await github.installation(7).getitem("/repos/o/r")
    assert bearer(route.calls.last) == hub.prefix + "1"


async def test_revoking_speaks_as_the_token_and_drops_it(hub, github):
    route = hub.delete(f"{API}/installation/token").respond(204)
    token = await github.token(7, repository_id=1, permissions={"contents": "read"})
    await github.revoke(token)
    assert bearer(route.calls.last) == token.value
    again = await github.token(7, repository_id=1, permissions={"contents": "read"})
    assert again.value != token.value
    route.respond(401, json={"message": "Bad credentials"})
    await github.revoke(again)  # expired meanwhile: nothing to do


async def test_forget_drops_tokens_and_answers(hub, github):
    hub.get(f"{API}/repos/o/r").respond(json={}, headers={"etag": '"a"'})
    await github.installation(7).getitem("/repos/o/r")
    await github.installation(8).getitem("/repos/o/r")
    github.forget(7)
    await github.installation(7).getitem("/repos/o/r")
    await github.installation(8).getitem("/repos/o/r")
    assert [url for url, _ in hub.minted] == [f"/app/installations/{n}/access_tokens" for n in (7, 8, 7)]
    sent = [call.request.headers.get("if-none-match") for call in hub.calls_of("/repos/o/r")]
    assert sent == [None, None, None, '"a"']


@pytest.mark.parametrize(
    ("status", "message", "kind", "hint"),
    [
        (
            422,
            "The permissions requested are not granted to this installation.",
            Unprocessable,
            "not granted",
        ),
        (404, "Not Found", NotFound, "Not Found"),
        (403, "This installation has been suspended", Forbidden, "Unsuspend"),
    ],
)
async def test_a_refused_mint_is_told(hub, github, status, message, kind, hint):
    hub.refusals = [httpx.Response(status, json={"message": message})]
    with pytest.raises(kind, match=hint):
        await github.token(6, repository_id=1, permissions={"workflows": "write"})


async def test_secrets_stay_out_of_reprs_errors_and_logs(hub, pem, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    registered = []
    hub.prefix = "ghs_canarycanarycanary"
    hub.get(f"{API}/repos/o/r").respond(503)
    async with hub.github(pem, on_token=registered.append) as github:
        token = await github.token(7, repository_id=1, permissions={"contents": "read"})
        with pytest.raises(GitHubUnavailable) as caught:
            await github.installation(7).getitem("/repos/o/r")
    assert registered == ["ghs_canarycanarycanary1", "ghs_canarycanarycanary2"]
    assert "canary" not in repr(token)
    assert "canary" not in str(caught.value) + repr(caught.value)
    out = capsys.readouterr()
    assert "github_retry" in out.out + out.err + caplog.text
    for secret in ("canary", "eyJ", "PRIVATE KEY"):
        assert secret not in caplog.text + out.out + out.err


async def test_identity_is_asked_once(hub, github):
    app = hub.get(f"{API}/app").respond(json={"id": 12345, "slug": "my-agent", "name": "My Agent"})
    hub.get(f"{API}/app/installations").respond(json=[{"id": 6, "suspended_at": "2026-01-01"}, {"id": 7}])
    user = hub.get(f"{API}/users/my-agent%5Bbot%5D").respond(json={"id": 777})
    first, second = await asyncio.gather(github.identity(), github.identity())
    assert first is second
    assert (first.id, first.slug, first.name, first.user_id) == (12345, "my-agent", "My Agent", 777)
    assert first.login == "my-agent[bot]"
    assert first.email == "777+my-agent[bot]@users.noreply.github.com"
    assert (app.call_count, user.call_count) == (1, 1)
    assert hub.minted == [("/app/installations/7/access_tokens", {"permissions": dict(READ)})]


async def test_identity_before_the_first_installation(hub, github):
    hub.get(f"{API}/app").respond(json={"id": 1, "slug": "a", "name": "A"})
    hub.get(f"{API}/app/installations").respond(json=[])
    user = hub.get(f"{API}/users/a%5Bbot%5D").respond(json={"id": 2})
    assert (await github.identity()).user_id == 2
    assert "authorization" not in user.calls.last.request.headers


# --- ETags -------------------------------------------------------------------------------------------


def tagged(body, tag='"one"'):
    """Answers ``body`` with ``tag`` and 304 to whoever knows it."""

    def answer(request):
        if request.headers.get("if-none-match") == tag:
            return httpx.Response(304, headers={"etag": tag, "x-ratelimit-remaining": "17"})
        return httpx.Response(200, json=body, headers={"etag": tag})

    return answer


async def test_a_304_is_served_from_the_cache_and_cannot_be_poisoned(hub, github):
    route = hub.get(f"{API}/repos/o/r").mock(side_effect=tagged({"labels": ["a"]}))
    client = github.installation(7)
    first = await client.getitem("/repos/o/r")
    first["labels"].append("poison")
    second = await client.getitem("/repos/o/r")
    assert second == {"labels": ["a"]}
    second.clear()
    assert await client.getitem("/repos/o/r") == {"labels": ["a"]}
    assert [call.response.status_code for call in route.calls] == [200, 304, 304]


async def test_installations_never_share_answers(hub, github):
    bodies = {"Bearer ghs_1": {"private": 7}, "Bearer ghs_2": {"private": 8}}

    def answer(request):
        # a server that (wrongly) believes any tag: what comes back must still be the installation's own
        if "if-none-match" in request.headers:
            return httpx.Response(304)
        return httpx.Response(200, json=bodies[request.headers["authorization"]], headers={"etag": '"same"'})

    route = hub.get(f"{API}/repos/o/r").mock(side_effect=answer)
    assert await github.installation(7).getitem("/repos/o/r") == {"private": 7}
    assert await github.installation(8).getitem("/repos/o/r") == {"private": 8}
    assert await github.installation(7).getitem("/repos/o/r") == {"private": 7}
    assert await github.installation(8).getitem("/repos/o/r") == {"private": 8}
    assert [call.response.status_code for call in route.calls] == [200, 200, 304, 304]


async def test_media_types_never_share_answers(hub, github):
    def answer(request):
        # one tag for both, believed at once: what comes back must still be of the kind that was asked for
        if "if-none-match" in request.headers:
            return httpx.Response(304)
        if "diff" in request.headers["accept"]:
            kind = {"content-type": "application/vnd.github.diff; charset=utf-8", "etag": '"same"'}
            return httpx.Response(200, text="diff --git", headers=kind)
        return httpx.Response(200, json={"n": 1}, headers={"etag": '"same"'})

    route = hub.get(f"{API}/repos/o/r/pulls/1").mock(side_effect=answer)
    client = github.installation(7)
    for _ in range(2):
        assert await client.getitem("/repos/o/r/pulls/1") == {"n": 1}
        diff = await client.getitem("/repos/o/r/pulls/1", accept="application/vnd.github.diff")
        assert diff == "diff --git"
    assert [call.response.status_code for call in route.calls] == [200, 200, 304, 304]


async def test_the_cache_is_bounded(hub, pem):
    hub.get(url__regex=rf"{API}/repos/o/\d+").mock(side_effect=tagged({"x": "y" * 3000}))
    huge = hub.get(f"{API}/repos/o/huge").mock(side_effect=tagged({"x": "y" * 30000}))
    async with hub.github(pem, cache_bytes=10_000) as github:
        client = github.installation(7)
        for n in range(10):
            await client.getitem(f"/repos/o/{n}")
        await client.getitem("/repos/o/0")
        await client.getitem("/repos/o/9")
        for _ in range(2):
            await client.getitem("/repos/o/huge")
    assert [call.response.status_code for call in hub.calls_of("/repos/o/0")] == [200, 200]
    assert [call.response.status_code for call in hub.calls_of("/repos/o/9")] == [200, 304]
    assert [call.response.status_code for call in huge.calls] == [200, 200]


async def test_a_cached_page_keeps_its_next_link(hub, github):
    tag = '"p1"'

    def first(request):
        if request.headers.get("if-none-match") == tag:
            return httpx.Response(304)
        link = f'<{API}/repos/o/r/issues?per_page=100&page=2>; rel="next"'
        return httpx.Response(200, json=[1], headers={"etag": tag, "link": link})

    hub.get(f"{API}/repos/o/r/issues", params={"page": "2"}).respond(json=[2])
    hub.get(f"{API}/repos/o/r/issues").mock(side_effect=first)
    client = github.installation(7)
    for _ in range(2):
        assert [item async for item in client.getiter("/repos/o/r/issues")] == [1, 2]


async def test_a_401_on_a_conditional_request_is_still_served(hub, github):
    revoked = set()

    def answer(request):
        if request.headers["authorization"].removeprefix("Bearer ") in revoked:
            return httpx.Response(401, json={"message": "Bad credentials"})
        return tagged({"a": 1})(request)

    hub.get(f"{API}/repos/o/r").mock(side_effect=answer)
    client = github.installation(7)
    await client.getitem("/repos/o/r")
    revoked.add("ghs_1")
    assert await client.getitem("/repos/o/r") == {"a": 1}


# --- paging and addresses ----------------------------------------------------------------------------


async def test_paging_follows_links_with_a_hundred_a_page(hub, github):
    link = f'<{API}/repositories/1/issues?per_page=100&page=2>; rel="next", <{API}/x>; rel="last"'
    first = hub.get(f"{API}/repos/o/r/issues").respond(json=[1, 2], headers={"link": link})
    hub.get(f"{API}/repositories/1/issues").respond(json=[3])
    client = github.installation(7)
    assert [n async for n in client.getiter("/repos/o/r/issues?state=all")] == [1, 2, 3]
    assert dict(first.calls.last.request.url.params) == {"state": "all", "per_page": "100"}


@pytest.mark.parametrize("name", ["check_runs", "repositories", "items", "workflow_runs"])
async def test_wrapped_lists_are_found(hub, github, name):
    hub.get(f"{API}/x").respond(
        json={"total_count": 2, name: [{"id": 1}, {"id": 2}], "incomplete_results": False}
    )
    assert [item["id"] async for item in github.installation(7).getiter("/x")] == [1, 2]


async def test_an_answer_without_a_list_is_an_error_and_not_its_keys(hub, github):
    hub.get(f"{API}/none").respond(json={"total_count": 2})
    hub.get(f"{API}/two").respond(json={"a": [1], "b": [2]})
    client = github.installation(7)
    for url in ("/none", "/two"):
        with pytest.raises(ValueError, match="holds no list"):
            [item async for item in client.getiter(url)]
    assert [item async for item in client.getiter("/two", iterable_key="b")] == [2]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/repos/o/r",
        "http://api.github.com/repos/o/r",
        "https://api.github.com:444/repos/o/r",
        "https://api.github.com.evil.example/repos",
        "https://api.github.com@evil.example/repos",
        "///evil.example/repos",
        "file:///etc/passwd",
        "/repos/%2e%2e/x",
        "https://[bad/",
    ],
)
async def test_addresses_outside_the_api_are_refused(hub, github, url):
    client = github.installation(7)
    with pytest.raises((ForeignAddress, ValueError)):
        await client.getitem(url)
    with pytest.raises((ForeignAddress, ValueError)):
        await client.post(url, data={})
    assert hub.router.calls.call_count == 0  # not even a token was made


async def test_a_next_link_to_another_host_is_refused(hub, github):
    link = '<https://evil.example/steal>; rel="next"'
    hub.get(f"{API}/repos/o/r/issues").respond(json=[1], headers={"link": link})
    items = github.installation(7).getiter("/repos/o/r/issues")
    assert await anext(items) == 1
    with pytest.raises(ForeignAddress, match=r"evil\.example"):
        await anext(items)


async def test_ghes(pem):
    hub = Hub("https://ghe.example/api/v3")
    hub.get(f"{hub.api}/app").respond(json={"id": 1, "slug": "a", "name": "A"})
    hub.get(f"{hub.api}/app/installations").respond(json=[])
    hub.get(f"{hub.api}/users/a%5Bbot%5D").respond(json={"id": 2})
    hub.get(f"{hub.api}/repos/o/r/issues", params={"page": "2"}).respond(json=[2])
    hub.get(f"{hub.api}/repos/o/r/issues").respond(
        json=[1], headers={"link": f'<{hub.api}/repos/o/r/issues?page=2>; rel="next"'}
    )
    async with hub.github(pem) as github:
        client = github.installation(7)
        assert [item async for item in client.getiter("/repos/o/r/issues")] == [1, 2]
        assert (await github.identity()).email == "2+a[bot]@users.noreply.ghe.example"
        for outside in ("https://ghe.example/o/r", "//o/r", "../../login", "https://api.github.com/app"):
            with pytest.raises(ForeignAddress):
                await client.getitem(outside)


def test_paths_are_quoted():
    assert path("/repos/{owner}/{repo}/issues/{n}", owner="o", repo="r", n=3) == "/repos/o/r/issues/3"
    assert path("/x/{name}", name="a/b #1?") == "/x/a%2Fb%20%231%3F"
    assert path("/git/ref/{+ref}", ref="heads/fix #1") == "/git/ref/heads/fix%20%231"
    assert path("/users/{login}", login="my-bot[bot]") == "/users/my-bot%5Bbot%5D"
    assert path("/x/{name}", name="{evil}") == "/x/%7Bevil%7D"
    assert path("/x/{name}", name="é") == "/x/%C3%A9"
    assert path("/x", {"state": "open", "head": "o:b&c"}) == "/x?state=open&head=o%3Ab%26c"


@pytest.mark.parametrize("value", ["", ".", ".."])
def test_paths_refuse_values_that_name_another_endpoint(value):
    with pytest.raises(ValueError, match="cannot be a part"):
        path("/repos/{owner}/{repo}", owner="o", repo=value)
    with pytest.raises(ValueError, match="cannot be a part"):
        path("/contents/{+file}", file=f"a/{value}/b")


def test_paths_refuse_missing_and_unknown_names():
    with pytest.raises(ValueError, match="takes"):
        path("/repos/{owner}", repo="r")
    with pytest.raises(ValueError, match="takes"):
        path("/repos", owner="o")


async def test_a_quoted_path_arrives_as_it_is(hub, github):
    route = hub.get(url__regex=rf"{API}/repos/.*").respond(json={})
    ref = path("/repos/{owner}/{repo}/git/ref/{+ref}", owner="o", repo="r", ref="heads/fix #1 {x} 50%")
    await github.installation(7).getitem(ref)
    expected = b"/repos/o/r/git/ref/heads/fix%20%231%20%7Bx%7D%2050%25"
    assert route.calls.last.request.url.raw_path == expected


# --- rate limits -------------------------------------------------------------------------------------

SECONDARY = {"message": "You have exceeded a secondary rate limit."}


async def test_retry_after_is_honoured_for_posts_too(hub, github):
    route = hub.post(f"{API}/repos/o/r/issues").mock(
        side_effect=[
            httpx.Response(403, json=SECONDARY, headers={"retry-after": "17"}),
            httpx.Response(429, json=SECONDARY, headers={"retry-after": "3"}),
            httpx.Response(201, json={"number": 1}),
        ]
    )
    assert await github.installation(7).post("/repos/o/r/issues", data={}) == {"number": 1}
    assert hub.time.slept == [17, 3]
    assert route.call_count == 3


async def test_a_secondary_limit_without_a_time_waits_a_minute_and_doubles(hub, github):
    limited = httpx.Response(403, json=SECONDARY, headers={"x-ratelimit-remaining": "4000"})
    hub.get(f"{API}/repos/o/r").mock(side_effect=[limited, limited, httpx.Response(200, json={})])
    await github.installation(7).getitem("/repos/o/r")
    assert hub.time.slept == [60, 120]


async def test_a_limit_that_never_ends_is_given_up(hub, github):
    hub.get(f"{API}/repos/o/r").respond(403, json=SECONDARY)
    with pytest.raises(RateLimited):
        await github.installation(7).getitem("/repos/o/r")
    assert hub.time.slept == [60, 120]  # 240 more would be over five minutes
    assert len(hub.calls()) == 3


async def test_a_limit_that_asks_for_no_wait_ends_too(hub, github):
    hub.get(f"{API}/repos/o/r").respond(429, json=SECONDARY, headers={"retry-after": "0"})
    with pytest.raises(RateLimited):
        await github.installation(7).getitem("/repos/o/r")
    assert len(hub.calls()) == Patience().tries


async def test_the_primary_limit_waits_for_its_reset(hub, github):
    spent = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(START) + 100)}
    hub.get(f"{API}/repos/o/r").mock(
        side_effect=[
            httpx.Response(403, json={"message": "API rate limit exceeded"}, headers=spent),
            httpx.Response(200, json={}),
        ]
    )
    await github.installation(7).getitem("/repos/o/r")
    assert hub.time.slept == [101]


async def test_a_far_reset_is_told_with_its_time_and_closes_the_gate(hub, github):
    spent = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(START) + 3000)}
    hub.get(f"{API}/repos/o/r").respond(403, json={"message": "API rate limit exceeded"}, headers=spent)
    other = hub.get(f"{API}/repos/o/other").respond(json={})
    for url in ("/repos/o/r", "/repos/o/other"):
        with pytest.raises(RateLimited, match="try again then") as caught:
            await github.installation(7).getitem(url)
        assert caught.value.until == datetime.fromtimestamp(START + 3001, UTC)
    assert isinstance(caught.value, GitHubUnavailable)
    assert hub.time.slept == []
    assert other.call_count == 0  # nobody asks while the limit lasts
    await github.installation(8).getitem("/repos/o/other")  # another installation has its own limit
    hub.time.now += 3002
    await github.installation(7).getitem("/repos/o/other")
    assert other.call_count == 2


async def test_a_missing_permission_is_not_tried_again(hub, github):
    headers = {
        "x-accepted-github-permissions": "issues=write; pull_requests=write",
        "x-ratelimit-remaining": "0",
    }
    route = hub.post(f"{API}/repos/o/r/issues").respond(
        403, json={"message": "Resource not accessible by integration"}, headers=headers
    )
    with pytest.raises(Forbidden, match="issues=write; pull_requests=write") as caught:
        await github.installation(7).post("/repos/o/r/issues", data={})
    assert caught.value.accepted_permissions == "issues=write; pull_requests=write"
    assert route.call_count == 1
    assert hub.time.slept == []


# --- trouble -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(502),
        httpx.Response(503),
        httpx.Response(504),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.ConnectError("refused"),
    ],
    ids=lambda trouble: getattr(trouble, "status_code", type(trouble).__name__),
)
async def test_repeatable_requests_are_tried_again(hub, github, method, trouble):
    route = hub.route(method=method, url=f"{API}/repos/o/r").mock(
        side_effect=[trouble, trouble, httpx.Response(200, json={"ok": True})]
    )
    client = github.installation(7)
    if method == "GET":
        await client.getitem("/repos/o/r")
    else:
        await getattr(client, method.lower())("/repos/o/r", data={"a": 1})
    assert route.call_count == 3
    first, second = hub.time.slept
    assert 0.25 <= first <= 0.5 <= second <= 1.0


async def test_tries_are_bounded(hub, github):
    hub.get(f"{API}/repos/o/r").respond(502)
    with pytest.raises(
        GitHubUnavailable, match=r"GET /repos/o/r was tried 6 times, last: status 502"
    ) as caught:
        await github.installation(7).getitem("/repos/o/r")
    assert "githubstatus.com" in caught.value.hint
    assert len(hub.calls()) == 6
    assert len(hub.time.slept) == 5


async def test_an_unreachable_github_is_told(hub, github):
    hub.get(f"{API}/repos/o/r").mock(side_effect=httpx.ConnectError("[Errno 111] Connection refused"))
    with pytest.raises(GitHubUnavailable, match="Connection refused") as caught:
        await github.installation(7).getitem("/repos/o/r")
    assert "CONDUCTOR_GITHUB_API_URL" in caught.value.hint


@pytest.mark.parametrize(
    "trouble",
    [httpx.Response(500), httpx.Response(502), httpx.ReadTimeout("slow"), httpx.WriteError("reset")],
    ids=lambda trouble: getattr(trouble, "status_code", type(trouble).__name__),
)
async def test_a_post_that_may_have_arrived_is_not_repeated(hub, github, trouble):
    route = hub.post(f"{API}/repos/o/r/issues").mock(side_effect=[trouble, httpx.Response(201, json={})])
    with pytest.raises(OutcomeUnknown, match="look before"):
        await github.installation(7).post("/repos/o/r/issues", data={})
    assert route.call_count == 1


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
async def test_a_post_that_never_left_is_tried_again(hub, github, fault):
    route = hub.post(f"{API}/repos/o/r/issues").mock(side_effect=[fault, httpx.Response(201, json={"id": 1})])
    assert await github.installation(7).post("/repos/o/r/issues", data={}) == {"id": 1}
    assert route.call_count == 2


async def test_a_mint_is_repeated_because_a_token_too_many_is_harmless(hub, github):
    hub.refusals = [httpx.Response(502), httpx.ReadTimeout("slow")]
    token = await github.token(6, repository_id=1, permissions={"contents": "read"})
    assert token.value == "ghs_1"
    assert len(hub.calls("/app")) == 3


async def test_a_server_that_asks_to_come_back_later_is_heard(hub, github):
    busy = httpx.Response(503, headers={"retry-after": "9"})
    hub.get(f"{API}/repos/o/r").mock(side_effect=[busy, httpx.Response(200, json={})])
    await github.installation(7).getitem("/repos/o/r")
    assert hub.time.slept == [9]


async def test_one_try_has_a_time_limit(hub, pem):
    tries = []

    async def never(request):
        tries.append(request)
        await asyncio.Event().wait()

    hub.get(f"{API}/repos/o/r").mock(side_effect=never)
    async with hub.github(pem, patience=Patience(tries=2, request_timeout=0.2)) as github:
        with pytest.raises(GitHubUnavailable, match="no answer in time"):
            await github.installation(7).getitem("/repos/o/r")
    assert len(tries) == 2


# --- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, GitHubError),
        (404, NotFound),
        (405, GitHubError),
        (409, Conflict),
        (410, NotFound),
        (451, GitHubError),
    ],
)
async def test_refusals_have_a_type_and_githubs_words(hub, github, status, kind):
    hub.get(f"{API}/repos/o/r").respond(status, json={"message": "Just no."})
    with pytest.raises(kind, match=f"GitHub answered {status} to GET /repos/o/r: Just no") as caught:
        await github.installation(7).getitem("/repos/o/r")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (status, "Just no")
    assert isinstance(caught.value, ConductorError)
    assert len(hub.calls()) == 1
    assert await github.installation(7).getstatus("/repos/o/r") == status


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"message": "Reference already exists"}, "Reference already exists"),
        (
            {
                "message": "Validation Failed",
                "errors": [{"message": "A pull request already exists for o:b."}],
            },
            "A pull request already exists for o:b.",
        ),
        (
            {
                "message": "Validation Failed",
                "errors": [{"resource": "Label", "field": "name", "code": "already_exists"}],
            },
            "Label name already_exists",
        ),
        ({"message": "Validation Failed", "errors": "plain text"}, "plain text"),
        ({"message": "Validation Failed", "errors": ["one", "two", 3]}, "one; two"),
    ],
)
async def test_unprocessable_carries_the_details(hub, github, body, text):
    hub.post(f"{API}/repos/o/r/pulls").respond(422, json=body)
    with pytest.raises(Unprocessable, match=text) as caught:
        await github.installation(7).post("/repos/o/r/pulls", data={})
    errors = body.get("errors", [])
    assert list(caught.value.errors) == ([errors] if isinstance(errors, str) else errors)


async def test_an_error_that_is_no_json_is_told_by_its_status(hub, github):
    hub.get(f"{API}/repos/o/r").respond(404, html="<h1>nope</h1>")
    with pytest.raises(NotFound, match="404 to GET /repos/o/r: Not Found"):
        await github.installation(7).getitem("/repos/o/r")


async def test_a_page_instead_of_json_names_the_setting(hub, github):
    hub.get(f"{API}/repos/o/r").respond(200, html="<h1>Sign in</h1>")
    with pytest.raises(GitHubUnavailable, match="CONDUCTOR_GITHUB_API_URL"):
        await github.installation(7).getitem("/repos/o/r")


@pytest.mark.parametrize("body", [b'{"a": ', b'{"a": "\xff"}'])
async def test_broken_json_is_told(hub, github, body):
    hub.get(f"{API}/repos/o/r").respond(200, content=body, headers={"content-type": "application/json"})
    with pytest.raises(GitHubUnavailable, match="broken JSON"):
        await github.installation(7).getitem("/repos/o/r")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_renamed_repository_is_followed_with_the_same_request(hub, github, status):
    hub.post(f"{API}/repos/o/old/issues").respond(
        status, headers={"location": f"{API}/repositories/5/issues"}
    )
    route = hub.post(f"{API}/repositories/5/issues").respond(201, json={"number": 1})
    made = await github.installation(7).post("/repos/o/old/issues", data={"title": "t"})
    assert made == {"number": 1}
    assert json.loads(route.calls.last.request.content) == {"title": "t"}
    assert bearer(route.calls.last) == "ghs_1"


async def test_redirections_elsewhere_are_not_followed(hub, github):
    hub.get(f"{API}/repos/o/r/zipball").respond(302, headers={"location": "https://codeload.example/z"})
    hub.get(f"{API}/repos/o/loop").respond(302, headers={"location": f"{API}/repos/o/loop"})
    for url in ("/repos/o/r/zipball", "/repos/o/loop"):
        with pytest.raises(Redirected):
            await github.installation(7).getitem(url)
    assert len(hub.calls("/repos/o/loop")) == 6


def test_a_token_compares_by_value_and_hides_it():
    token = InstallationToken("ghs_secret", datetime.now(UTC), {"contents": "read"})
    assert "ghs_secret" not in f"{token} {token!r}"
