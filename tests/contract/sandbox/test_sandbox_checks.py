"""Check runs, suites and commit statuses."""

from __future__ import annotations

import pytest

from bot.sandbox.human import HumanError

REPO = "/repos/acme/hello"


@pytest.fixture
async def sha(bot, pull) -> str:
    return (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]


async def test_a_check_run_from_beginning_to_end(bot, github, pull, sha, events):
    run = await bot.post(
        f"{REPO}/check-runs", {"name": "agent", "head_sha": sha, "status": "in_progress", "external_id": "7"}
    )
    assert (run["status"], run["conclusion"], run["app"]["id"]) == ("in_progress", None, github.app_id)
    assert [one["number"] for one in run["pull_requests"]] == [pull]
    output = {"title": "Done", "summary": "**fine**"}
    note = {"path": "NEWS.md", "start_line": 1, "end_line": 1, "annotation_level": "notice", "message": "m"}
    for _ in range(2):
        body = {"output": {**output, "annotations": [note]}}
        await bot.patch(f"{REPO}/check-runs/{run['id']}", body)
    done = await bot.patch(f"{REPO}/check-runs/{run['id']}", {"conclusion": "success"})
    assert (done["status"], done["output"]["title"]) == ("completed", "Done")
    assert done["completed_at"]
    assert len(await bot.get(f"{REPO}/check-runs/{run['id']}/annotations")) == 2
    told = ["check_run.created", "check_run.completed", "check_suite.completed"]
    assert (await events())[-3:] == told
    listed = await bot.get(f"{REPO}/commits/{sha}/check-runs")
    assert [one["id"] for one in listed["check_runs"]] == [run["id"]]
    suites = (await bot.get(f"{REPO}/commits/feature/check-suites"))["check_suites"]
    assert [(one["status"], one["conclusion"]) for one in suites] == [("completed", "success")]
    again = await bot.patch(f"{REPO}/check-runs/{run['id']}", {"status": "in_progress"})
    assert (again["status"], again["conclusion"], again["completed_at"]) == ("in_progress", None, None)


async def test_the_newest_of_a_name_counts(bot, sha):
    ids = [
        (await bot.post(f"{REPO}/check-runs", {"name": name, "head_sha": sha}))["id"]
        for name in ("agent", "agent", "other")
    ]
    path = f"{REPO}/commits/{sha}/check-runs"
    assert {one["id"] for one in (await bot.get(path))["check_runs"]} == set(ids[1:])
    assert (await bot.get(f"{path}?filter=all"))["total_count"] == 3
    assert (await bot.get(f"{path}?check_name=other"))["total_count"] == 1
    assert (await bot.get(f"{path}?status=completed"))["total_count"] == 0


async def test_a_commit_must_exist(bot, sha):
    answer = await bot.post(f"{REPO}/check-runs", {"name": "x", "head_sha": "0" * 40}, status=422)
    assert answer["message"] == "No commit found for SHA: " + "0" * 40


@pytest.mark.parametrize(
    "body",
    [
        {"status": "completed"},
        {"conclusion": "stale"},
        {"output": {"title": "t", "summary": "s" * 65_536}},
        {"output": {"title": "t"}},
        {"actions": [{"label": "x" * 21, "description": "d", "identifier": "i"}]},
        {"actions": [{"label": "x", "description": "d", "identifier": "i"}] * 4},
    ],
)
async def test_what_github_refuses(bot, sha, client_problems, body):
    await bot.post(f"{REPO}/check-runs", {"name": "x", "head_sha": sha, **body}, status=422)
    assert client_problems()


async def test_buttons_and_re_runs(bot, github, sha, events):
    action = {"label": "Fix", "description": "Let the agent fix it", "identifier": "fix"}
    run = await bot.post(f"{REPO}/check-runs", {"name": "agent", "head_sha": sha, "status": "in_progress"})
    path = f"{REPO}/check-runs/{run['id']}"
    await bot.post(f"{path}/rerequest", status=422)
    await bot.patch(path, {"conclusion": "failure", "actions": [action]})
    maria = github.as_user("maria")
    await maria.click_check_button("acme/hello", run["id"], "fix")
    await events()
    payload = github.deliveries[0].payload
    assert (payload["action"], payload["requested_action"]) == ("requested_action", {"identifier": "fix"})
    assert payload["sender"]["login"] == "maria"
    await maria.rerequest_check("acme/hello", run["id"])
    assert (await events())[-1] == "check_run.rerequested"
    # GitHub leaves the run as it was
    assert (await bot.get(path))["conclusion"] == "failure"
    for attempt in (
        maria.click_check_button("acme/hello", 1, "fix"),
        github.as_user("rita").click_check_button("acme/hello", run["id"], "fix"),
        github.as_user("rita").rerequest_check("acme/hello", run["id"]),
    ):
        with pytest.raises(HumanError):
            await attempt


async def test_suites(bot, github, sha, events):
    suite = await bot.post(f"{REPO}/check-suites", {"head_sha": sha}, status=200)
    assert suite["head_branch"] == "feature"
    path = f"{REPO}/check-suites/{suite['id']}"
    assert (await bot.get(path))["head_commit"]["id"] == sha
    assert (await bot.get(f"{path}/check-runs"))["total_count"] == 0
    await bot.post(f"{path}/rerequest")
    assert (await events())[-1] == "check_suite.rerequested"
    await bot.get(f"{REPO}/check-suites/1", status=404)


async def test_statuses(bot, person, sha):
    maria = person("maria")
    for state in ("pending", "success"):
        await maria.post(f"{REPO}/statuses/{sha}", {"state": state, "context": "ci"})
    await maria.post(f"{REPO}/statuses/{sha}", {"state": "failure", "context": "docs"})
    combined = await bot.get(f"{REPO}/commits/{sha}/status")
    assert (combined["state"], combined["total_count"]) == ("failure", 2)
    assert len(await bot.get(f"{REPO}/commits/{sha}/statuses")) == 3
    await bot.post(f"{REPO}/statuses/{sha}", {"state": "success"}, status=403)
    assert bot.headers["X-Accepted-GitHub-Permissions"] == "statuses=write"


async def test_without_checks_permission_nothing_is_told(caller, mint, sha):
    reader = caller(await mint(permissions={"checks": "read"}))
    await reader.post(f"{REPO}/check-runs", {"name": "x", "head_sha": sha}, status=403)
    await reader.get(f"{REPO}/commits/{sha}/check-runs")
