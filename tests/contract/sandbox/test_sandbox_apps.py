"""The App and its tokens, as docs.github.com describes them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import jwt
import pytest
import yaml

from bot.sandbox.permissions import covers
from bot.sandbox.seed import APP_EVENTS, APP_PERMISSIONS, new_private_key
from bot.sandbox.state import User

REPO = "/repos/acme/hello"


async def test_the_app_sees_itself_and_its_installation(app, github):
    assert (await app.get("/app"))["slug"] == "agent-conductor"
    assert [one["id"] for one in await app.get("/app/installations")] == [github.installation_id]
    for path in (
        f"/app/installations/{github.installation_id}",
        f"{REPO}/installation",
        "/orgs/acme/installation",
    ):
        assert (await app.get(path))["account"]["login"] == "acme"
    await app.get("/users/octocat/installation", status=404)
    await app.get("/app/installations/1", status=404)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": lambda now: now - 1}, "'Expiration time' claim ('exp') must be a numeric value"),
        ({"exp": lambda now: now + 3600}, "'Expiration time' claim ('exp') is too far in the future"),
        ({"iat": lambda now: now + 600}, "'Issued at' claim ('iat')"),
        ({"iss": lambda now: "1"}, "'Issuer' claim ('iss')"),
    ],
)
async def test_a_wrong_json_web_token(caller, sign, clock, claims, message):
    now = int(clock.now.timestamp())
    token = sign(**{name: value(now) for name, value in claims.items()})
    answer = await caller(token).get("/app", status=401)
    assert answer["message"].startswith(message)


async def test_another_key_is_refused(caller, github, clock):
    now = int(clock.now.timestamp())
    claims = {"iat": now, "exp": now + 60, "iss": str(github.app_id)}
    token = jwt.encode(claims, new_private_key(), algorithm="RS256")
    answer = await caller(token).get("/app", status=401)
    assert answer["message"] == "A JSON web token could not be decoded"


async def test_the_client_id_is_an_issuer_too(caller, sign, github):
    await caller(sign(iss=github.world.app.client_id)).get("/app")


async def test_no_credential_and_a_wrong_one(session, caller):
    assert (await caller("").get(REPO, Authorization="", status=401))["message"] == "Requires authentication"
    assert (await caller("ghs_nonsense").get(REPO, status=401))["message"] == "Bad credentials"
    await caller("nobody-token").get(REPO, status=401)
    await caller("acme-token").get(REPO, status=401)
    await caller("").get(REPO, Authorization="Basic !!", status=401)


async def test_all_ways_to_send_a_token(caller, mint):
    token = await mint()
    basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    for header in (f"Bearer {token}", f"token {token}", f"Basic {basic}"):
        await caller("").get(REPO, Authorization=header)


async def test_a_token_has_the_long_form(mint):
    token = await mint()
    assert re.fullmatch(r"ghs_\d+_[\w-]+\.[\w-]+\.[\w-]+", token)
    assert len(token) > 500


async def test_a_token_lives_one_hour(app, caller, mint, clock, sign):
    bot = caller(await mint())
    clock.forward(minutes=59)
    await bot.get(REPO)
    clock.forward(minutes=1)
    assert (await bot.get(REPO, status=401))["message"] == "Bad credentials"


async def test_a_token_can_be_revoked(bot):
    await bot.delete("/installation/token")
    await bot.get(REPO, status=401)


async def test_a_token_narrowed_to_permissions(app, caller, github, mint):
    bot = caller(await mint(permissions={"issues": "read"}))
    await bot.get(f"{REPO}/issues")
    answer = await bot.post(f"{REPO}/issues", {"title": "x"}, status=403)
    assert answer["message"] == "Resource not accessible by integration"
    assert bot.headers["X-Accepted-GitHub-Permissions"] == "issues=write"
    await bot.get(f"{REPO}/contents/README.md", status=403)
    # metadata comes with everything
    await bot.get(REPO)


async def test_a_token_narrowed_to_repositories(app, caller, github, mint):
    await github.create_repo("acme/other", private=True)
    both = caller(await mint())
    names = {one["name"] for one in (await both.get("/installation/repositories"))["repositories"]}
    assert names == {"hello", "other"}
    for body in (
        {"repositories": ["hello"]},
        {"repository_ids": [github.world.repository("acme", "hello").id]},
    ):
        path = f"/app/installations/{github.installation_id}/access_tokens"
        minted = await app.post(path, body)
        assert [one["name"] for one in minted["repositories"]] == ["hello"]
        bot = caller(minted["token"])
        assert (await bot.get("/installation/repositories"))["total_count"] == 1
        await bot.get(REPO)
        # what a token cannot see does not exist
        await bot.get("/repos/acme/other", status=404)


async def test_no_token_is_wider_than_the_installation(app, github):
    path = f"/app/installations/{github.installation_id}/access_tokens"
    for body in (
        {"permissions": {"administration": "write"}},
        {"permissions": {"statuses": "write"}},
        {"repositories": ["nothing"]},
        {"repositories": ["hello", "nothing"]},
        {"repository_ids": [1]},
    ):
        await app.post(path, body, status=422)
    await app.post("/app/installations/1/access_tokens", status=404)


async def test_a_suspended_installation(app, bot, github, clock):
    github.world.installations[github.installation_id].suspended_at = clock.now
    await bot.get(REPO, status=403)
    await app.post(f"/app/installations/{github.installation_id}/access_tokens", status=403)


async def test_an_uninstalled_app(bot, app, github):
    number = github.installation_id
    github.world.installations.clear()
    await bot.get(REPO, status=401)
    await app.post(f"/app/installations/{number}/access_tokens", status=404)


async def test_each_operation_wants_its_kind_of_credential(app, bot, person):
    await bot.get("/app", status=401)
    await person("octocat").get("/app", status=401)
    await app.get(f"{REPO}/issues", status=401)
    await person("octocat").get("/installation/repositories", status=403)
    await bot.get("/user", status=403)
    assert (await person("octocat").get("/user"))["login"] == "octocat"
    answer = await person("octocat").post(
        f"{REPO}/check-runs", {"name": "x", "head_sha": "0" * 40}, status=403
    )
    assert answer["message"] == "You must authenticate via a GitHub App."


async def test_only_the_app_sees_private_repositories_of_its_account(github, caller, mint, person):
    github.world.users["umbrella"] = User(7, "umbrella", "Organization")
    await github.create_repo("umbrella/secret", private=True)
    await caller(await mint()).get("/repos/umbrella/secret", status=404)
    await person("octocat").get("/repos/umbrella/secret", status=404)


async def test_the_webhook_can_be_set_by_the_app(app, github):
    answer = await app.patch("/app/hook/config", {"url": "http://127.0.0.1:1/hook", "secret": "new"})
    assert answer["url"] == "http://127.0.0.1:1/hook"
    assert github.webhook_secret == "new"
    assert (await app.get("/app/hook/config"))["secret"] == "********"


def test_the_app_of_the_sandbox_has_what_the_manifest_asks_for():
    manifest = yaml.safe_load((Path(__file__).parents[3] / "app.yml").read_text())
    assert covers(APP_PERMISSIONS, manifest["default_permissions"])
    assert set(manifest["default_events"]) <= set(APP_EVENTS)
