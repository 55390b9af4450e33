"""Checks by other Apps, GitHub Actions' jobs and their logs."""

from __future__ import annotations

import aiohttp
import pytest
from yarl import URL

from bot.sandbox.actions import Job
from bot.sandbox.human import HumanError

REPO = "/repos/acme/hello"


@pytest.fixture
async def sha(bot, pull) -> str:
    return (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]


async def test_another_apps_checks(bot, github, sha, events):
    ci = github.as_app("ci")
    note = {"path": "NEWS.md", "start_line": 1, "end_line": 1, "annotation_level": "failure", "message": "m"}
    run = await ci.check(
        "acme/hello", sha, "lint", "failure", title="1 error", summary="see", annotations=[note]
    )
    assert (run["app"]["slug"], run["conclusion"]) == ("ci", "failure")
    assert (await events())[-3:] == ["check_run.created", "check_run.completed", "check_suite.completed"]
    payload = github.deliveries[1].payload
    assert (payload["check_run"]["app"]["slug"], payload["sender"]["login"]) == ("ci", "ci[bot]")
    [shown] = await bot.get(f"{REPO}/check-runs/{run['id']}/annotations")
    assert (shown["message"], shown["annotation_level"]) == ("m", "failure")
    listed = await bot.get(f"{REPO}/commits/{sha}/check-runs?app_id={github.app_id}")
    assert listed["total_count"] == 0
    suites = (await bot.get(f"{REPO}/commits/{sha}/check-suites"))["check_suites"]
    assert {(one["app"]["slug"], one["conclusion"]) for one in suites} == {
        ("ci", "failure"),
        ("agent-conductor", None),
    }


async def test_each_app_has_its_own_checks(bot, github, sha, events):
    ci = github.as_app("ci")
    mine = await bot.post(f"{REPO}/check-runs", {"name": "lint", "head_sha": sha})
    theirs = await ci.check("acme/hello", sha, "lint", None)
    answer = await bot.patch(f"{REPO}/check-runs/{theirs['id']}", {"conclusion": "success"}, status=403)
    assert "can only be modified by the GitHub App that created it" in answer["message"]
    with pytest.raises(HumanError, match="403"):
        await ci.finish_check("acme/hello", mine["id"], "success")
    assert (await bot.get(f"{REPO}/commits/{sha}/check-runs"))["total_count"] == 2
    assert (await ci.finish_check("acme/hello", theirs["id"], "success"))["conclusion"] == "success"
    before = await events()
    await github.as_user("maria").rerequest_check("acme/hello", theirs["id"])
    assert await events() == before  # only the App that made it is asked to run it again


async def test_ci_may_set_statuses(bot, github, sha):
    ci = github.as_app("ci")
    await ci.status("acme/hello", sha, "failure", context="build", description="broken")
    combined = await bot.get(f"{REPO}/commits/{sha}/status")
    assert (combined["state"], combined["statuses"][0]["creator"]["login"]) == ("failure", "ci[bot]")
    weak = github.as_app("weak", permissions={"metadata": "read"})
    with pytest.raises(HumanError, match="not accessible by integration"):
        await weak.status("acme/hello", sha, "success")


async def test_jobs_and_their_logs(bot, github, pull, sha, events, session):
    actions = github.actions()
    run = await actions.run(
        "acme/hello",
        sha,
        {"test": Job("failure", log="collected 3 items\nE   assert 1 == 2"), "lint": Job(None)},
    )
    jobs = (await bot.get(f"{REPO}/actions/runs/{run.id}/jobs"))["jobs"]
    assert [(one["name"], one["status"], one["conclusion"]) for one in jobs] == [
        ("test", "completed", "failure"),
        ("lint", "in_progress", None),
    ]
    found = await bot.get(f"{REPO}/actions/runs?head_sha={sha}")
    assert [(one["status"], one["conclusion"]) for one in found["workflow_runs"]] == [("in_progress", None)]
    assert [one["number"] for one in found["workflow_runs"][0]["pull_requests"]] == [pull]
    await bot.get(f"{REPO}/actions/jobs/{jobs[1]['id']}/logs", status=404)
    await actions.finish("acme/hello", jobs[1]["id"], Job("success", log="fine"))
    one = await bot.get(f"{REPO}/actions/runs/{run.id}")
    assert (one["status"], one["conclusion"]) == ("completed", "failure")
    check = await bot.get(f"{REPO}/check-runs/{jobs[0]['id']}")
    assert (check["app"]["slug"], check["details_url"]) == ("github-actions", jobs[0]["html_url"])
    assert (await events())[-1] == "check_suite.completed"
    assert [one["number"] for one in github.deliveries[0].payload["check_suite"]["pull_requests"]] == [pull]
    await bot.get(f"{REPO}/actions/jobs/1", status=404)
    await bot.get(f"{REPO}/actions/runs/1", status=404)


async def test_a_log_lies_elsewhere_and_wants_no_token(bot, github, sha, clock, session, mint):
    await github.actions().run("acme/hello", sha, {"test": Job("failure", log="one\ntwo")})
    [job] = [one["id"] for one in github.check_runs("acme/hello") if one["name"] == "test"]

    async def link() -> str:
        headers = {"Authorization": f"Bearer {await mint()}"}
        url = f"{REPO}/actions/jobs/{job}/logs"
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            assert answer.status == 302
            return answer.headers["Location"]

    url = await link()
    assert URL(url).origin() != URL(github.url).origin()
    async with aiohttp.ClientSession() as elsewhere:
        async with elsewhere.get(url) as answer:
            lines = (await answer.text()).splitlines()
            assert [line.split(" ", 1)[1] for line in lines] == ["one", "two"]
        async with elsewhere.get(url, headers={"Authorization": "Bearer x"}) as answer:
            assert answer.status == 400
        async with elsewhere.get(url + "x") as answer:
            assert answer.status == 403
        clock.forward(seconds=61)
        async with elsewhere.get(url) as answer:
            assert answer.status == 403


async def test_logs_need_a_permission(caller, mint, github, sha):
    await github.actions().run("acme/hello", sha, {"test": Job("failure")})
    [job] = [one["id"] for one in github.check_runs("acme/hello") if one["name"] == "test"]
    weak = caller(await mint(permissions={"checks": "read"}))
    await weak.get(f"{REPO}/actions/jobs/{job}/logs", status=403)
    assert weak.headers["X-Accepted-GitHub-Permissions"] == "actions=read"


async def test_a_workflow_run_is_told_to_who_subscribed(github, sha, events):
    for installation in github.world.installations.values():
        installation.events.append("workflow_run")
    await github.actions().run("acme/hello", sha, {"test": Job("failure")})
    told = await events()
    assert "workflow_run.requested" in told
    assert told[-1] == "workflow_run.completed"


async def test_who_moved_a_branch(bot, github, git, pull):
    await git("fetch", "--quiet")
    await git("checkout", "--quiet", "feature")
    await git.commit(MORE="1")
    await git("push", "--quiet", "origin", "feature")
    await github.deliveries_settled()
    found = await bot.get(f"{REPO}/activity?ref=refs/heads/feature")
    assert [(one["activity_type"], one["actor"]["login"]) for one in found] == [
        ("push", "maria"),
        ("branch_creation", "maria"),
    ]
    await git("commit", "--quiet", "--amend", "--message", "Other")
    await git("push", "--quiet", "--force", "origin", "feature")
    await github.deliveries_settled()
    found = await bot.get(f"{REPO}/activity?ref=refs/heads/feature&activity_type=force_push")
    assert len(found) == 1
    assert found[0]["before"] != found[0]["after"]
