"""The App's log of deliveries: what it keeps and for how long, who may read it, and that nothing repeats itself."""

from __future__ import annotations

LOG = "/app/hook/deliveries"
#: https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook
FIELDS = {
    "id", "guid", "delivered_at", "redelivery", "duration", "status", "status_code", "event", "action",
    "installation_id", "repository_id", "throttled_at",
}  # fmt: skip


async def test_what_the_log_says_of_a_delivery(github, app, receiver):
    receiver.status = 202
    await github.as_user("octocat").open_issue("acme/hello", "News")
    await github.deliveries_settled()
    [entry] = await app.get(LOG)
    assert set(entry) == FIELDS
    assert (entry["event"], entry["action"], entry["status"]) == ("issues", "opened", "OK")
    assert (entry["status_code"], entry["redelivery"]) == (202, False)
    assert entry["installation_id"] == github.installation_id
    assert entry["repository_id"] == github.world.repository("acme", "hello").id
    shown = await app.get(f"{LOG}/{entry['id']}")
    assert set(shown) == FIELDS | {"url", "request", "response"}
    assert shown["url"] == github.webhook_url
    assert shown["request"]["headers"]["X-GitHub-Delivery"] == entry["guid"]
    assert shown["request"]["payload"]["issue"]["title"] == "News"


async def test_a_refused_connection_is_logged_and_never_tried_again(github, app, receiver):
    address, github.webhook_url = github.webhook_url, "http://127.0.0.1:9/webhook"
    await github.as_user("octocat").open_issue("acme/hello", "News")
    await github.deliveries_settled()
    github.webhook_url = address
    await github.as_user("octocat").open_issue("acme/hello", "More")
    await github.deliveries_settled()
    heard, missed = await app.get(LOG)
    assert (missed["status"], missed["status_code"]) == ("failed to connect to host", 0)
    assert [headers["X-GitHub-Delivery"] for headers, _ in receiver.got] == [heard["guid"]]
    # its payload can be had all the same, and on request it comes under the same id
    assert (await app.get(f"{LOG}/{missed['id']}"))["request"]["payload"]["issue"]["title"] == "News"
    assert await app.post(f"{LOG}/{missed['id']}/attempts", status=202) == {}
    await github.deliveries_settled()
    again = (await app.get(LOG))[0]
    assert (again["guid"], again["redelivery"], again["status"]) == (missed["guid"], True, "OK")
    assert receiver.got[-1][0]["X-GitHub-Delivery"] == missed["guid"]


async def test_the_log_forgets_after_three_days(github, app, clock, receiver, session, sign, caller):
    await github.as_user("octocat").open_issue("acme/hello", "Old")
    clock.forward(days=1)
    await github.as_user("octocat").open_issue("acme/hello", "Young")
    await github.deliveries_settled()
    young, old = await caller(sign()).get(LOG)
    clock.forward(days=2)
    later = caller(sign())
    assert [one["id"] for one in await later.get(LOG)] == [young["id"]]
    await later.get(f"{LOG}/{old['id']}", status=404)
    await later.post(f"{LOG}/{old['id']}/attempts", status=404)
    before = len(receiver.got)
    await later.post(f"{LOG}/{young['id']}/attempts", status=202)
    await github.deliveries_settled()
    assert len(receiver.got) == before + 1


async def test_the_next_page_keeps_what_was_asked_for(github, app, receiver):
    for number in range(3):
        await github.as_user("octocat").open_issue("acme/hello", f"{number}")
    await github.deliveries_settled()
    receiver.status = 500
    await github.as_user("octocat").open_issue("acme/hello", "refused")
    await github.deliveries_settled()
    first = await app.get(f"{LOG}?per_page=2&status=success")
    assert "status=success" in app.links["next"]
    second = await app.get(app.links["next"])
    assert [one["status"] for one in first + second] == ["OK"] * 3
    assert "next" not in app.links
    await app.get(f"{LOG}?cursor=nonsense", status=422)


async def test_only_the_app_itself_reads_its_log(github, bot, person):
    await bot.get(LOG, status=401)
    await bot.post(f"{LOG}/1/attempts", status=401)
    await person("octocat").get(LOG, status=401)


async def test_the_hooks_configuration(github, app, bot, receiver):
    shown = await app.get("/app/hook/config")
    assert shown == {
        "content_type": "json",
        "insecure_ssl": "0",
        "secret": "********",
        "url": github.webhook_url,
    }
    await bot.get("/app/hook/config", status=401)
