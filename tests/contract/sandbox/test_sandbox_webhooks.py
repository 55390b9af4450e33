"""Webhook deliveries: signatures, headers, the log, redelivery, and who is told what."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json

import pytest
from aiohttp import web

from bot.sandbox.webhooks import signatures

REPO = "/repos/acme/hello"


def test_githubs_own_test_vector():
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation."""
    headers = signatures("It's a Secret to Everybody", b"Hello, World!")
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert headers["X-Hub-Signature-256"] == f"sha256={digest}"


async def test_a_delivery(github, receiver, bot):
    await github.as_user("octocat").open_issue("acme/hello", "News")
    await github.deliveries_settled()
    [(headers, body)] = receiver.got
    secret = github.webhook_secret.encode()
    assert headers["X-Hub-Signature-256"] == "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    assert headers["X-Hub-Signature"] == "sha1=" + hmac.new(secret, body, hashlib.sha1).hexdigest()
    assert headers["X-GitHub-Event"] == "issues"
    assert headers["X-GitHub-Hook-Installation-Target-ID"] == str(github.app_id)
    assert headers["X-GitHub-Hook-Installation-Target-Type"] == "integration"
    assert headers["User-Agent"].startswith("GitHub-Hookshot/")
    payload = json.loads(body)
    assert (payload["action"], payload["issue"]["title"]) == ("opened", "News")
    assert payload["installation"]["id"] == github.installation_id
    assert payload["organization"]["login"] == "acme"
    assert github.deliveries[0].guid == headers["X-GitHub-Delivery"]
    assert (github.deliveries[0].status, github.deliveries[0].status_code) == ("OK", 200)


async def test_a_failed_delivery_is_not_repeated_until_asked(github, receiver, app):
    receiver.status = 500
    await github.as_user("octocat").open_issue("acme/hello", "News")
    await github.deliveries_settled()
    [failed] = await app.get("/app/hook/deliveries")
    assert (failed["status"], failed["redelivery"]) == ("Invalid HTTP Response: 500", False)
    receiver.status = 202
    await app.post(f"/app/hook/deliveries/{failed['id']}/attempts", status=202)
    await github.deliveries_settled()
    newest, oldest = await app.get("/app/hook/deliveries")
    assert (newest["guid"], newest["redelivery"], newest["status"]) == (failed["guid"], True, "OK")
    assert oldest["id"] == failed["id"]
    (first, body), (second, again) = receiver.got
    assert (first["X-GitHub-Delivery"], body) == (second["X-GitHub-Delivery"], again)
    shown = await app.get(f"/app/hook/deliveries/{newest['id']}")
    assert shown["request"]["payload"]["issue"]["title"] == "News"
    assert shown["request"]["headers"]["X-GitHub-Event"] == "issues"
    assert shown["response"]["payload"] == "thanks"
    await app.get("/app/hook/deliveries/1", status=404)


async def test_the_log_goes_on_by_cursor(github, app):
    octocat = github.as_user("octocat")
    for number in range(5):
        await octocat.open_issue("acme/hello", f"{number}")
    seen, url = [], "/app/hook/deliveries?per_page=2"
    while url:
        seen += [one["id"] for one in await app.get(url)]
        url = app.links.get("next")
    assert seen == [one.id for one in github.deliveries]
    assert seen == sorted(seen, reverse=True)
    assert await app.get("/app/hook/deliveries?status=success") == []


async def test_nobody_listens(github):
    github.webhook_url = "http://127.0.0.1:9/webhook"
    github.ping()
    await github.deliveries_settled()
    assert github.deliveries[0].status == "failed to connect to host"
    github.webhook_url = None
    github.ping()
    assert github.deliveries[0].status == "The App has no webhook URL"


async def test_a_receiver_that_never_answers_is_cut_off_at_the_end(private_key):
    from bot.sandbox.sandbox import Sandbox

    reached, release = asyncio.Event(), asyncio.Event()

    async def stuck(_: web.Request) -> web.Response:
        reached.set()
        await release.wait()
        return web.Response()

    application = web.Application()
    application.router.add_post("/", stuck)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with Sandbox.start(private_key=private_key, webhook_url=url) as github:
        github.ping()
        await reached.wait()
        assert github.deliveries[0].status == "pending"
    release.set()
    await runner.cleanup()


async def test_a_ping(github, receiver):
    github.ping()
    await github.deliveries_settled()
    headers, body = receiver.got[0]
    assert headers["X-GitHub-Event"] == "ping"
    assert json.loads(body)["hook"]["app_id"] == github.app_id


@pytest.mark.parametrize("missing", ["issues", "installation", "suspended", "unsubscribed"])
async def test_who_is_not_told(github, events, clock, missing):
    installation = github.world.installations[github.installation_id]
    match missing:
        case "issues":
            del installation.permissions["issues"]
        case "installation":
            github.world.installations.clear()
        case "suspended":
            installation.suspended_at = clock.now
        case _:
            installation.events.remove("issues")
    await github.as_user("octocat").open_issue("acme/hello", "News")
    assert await events() == []


async def test_only_chosen_repositories(github, events):
    await github.create_repo("acme/other")
    installation = github.world.installations[github.installation_id]
    installation.repository_ids = {github.world.repository("acme", "other").id}
    await github.as_user("octocat").open_issue("acme/hello", "News")
    assert await events() == []
    await github.create_repo("acme/third", collaborators={"octocat": "admin"})
    installation.repository_ids = None
    await github.as_user("octocat").open_issue("acme/third", "News")
    assert await events() == ["issues.opened"]


async def test_check_events_come_without_subscription(github, events, pull):
    github.world.installations[github.installation_id].events.clear()
    await github.as_user("maria").push_commit("acme/hello", "feature", {"x": "1"})
    assert (await events())[-1] == "check_suite.requested"


async def test_the_bots_own_doings_are_told_to_it(bot, github, events):
    await bot.post(f"{REPO}/issues", {"title": "Mine"})
    assert await events() == ["issues.opened"]
    assert github.deliveries[0].payload["sender"]["type"] == "Bot"


async def test_a_dispatch(bot, events, github):
    await bot.post(f"{REPO}/dispatches", {"event_type": "go", "client_payload": {"a": 1}}, status=204)
    assert await events() == []
    github.world.installations[github.installation_id].events.append("repository_dispatch")
    await bot.post(f"{REPO}/dispatches", {"event_type": "go"}, status=204)
    assert await events() == ["repository_dispatch.go"]


async def test_branches_come_and_go(github, events):
    github.world.installations[github.installation_id].events += ["create", "delete", "status"]
    maria = github.as_user("maria")
    sha = await maria.push_commit("acme/hello", "x", {"a": "b"})
    await maria.request("POST", f"{REPO}/statuses/{sha}", {"state": "success"})
    await maria.delete_branch("acme/hello", "x")
    assert await events() == ["push", "create", "check_suite.requested", "status", "push", "delete"]
