"""REST: check runs and check suites, and what happens when a person clicks in the Checks tab.

https://docs.github.com/en/rest/checks/runs and https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks
"""

from __future__ import annotations

import operator
from datetime import datetime
from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.github import GitHub
from bot.sandbox.merging import settle
from bot.sandbox.present import Json, suite_state
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.state import CheckRun, CheckSuite, Repository
from bot.sandbox.suites import suite_for


def tell_run(
    github: GitHub, repository: Repository, run: CheckRun, sender: str, action: str, **more: Any
) -> None:
    """Raise ``check_run``. Only the App that made the run is told what people do with it."""
    if run.app is not None and action in ("rerequested", "requested_action"):
        return
    suite = repository.check_suites[run.suite_id]
    shown = github.present.check_run(repository, run)
    shown["check_suite"] = github.present.check_suite(repository, suite)
    github.emit("check_run", repository, sender, {"action": action, "check_run": shown, **more})


def request_action(
    github: GitHub, repository: Repository, run: CheckRun, sender: str, identifier: str
) -> None:
    """A person clicks a button that the check run shows.

    Raises:
        Refusal: 404 when there is no such button.
    """
    if not any(one["identifier"] == identifier for one in run.actions):
        raise not_found()
    tell_run(github, repository, run, sender, "requested_action", requested_action={"identifier": identifier})


# ---- runs


async def create_run(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/check-runs."""
    github, repository, body = call.github, call.repository, call.body
    sha = body["head_sha"]
    if await call.git.object_type(sha) != "commit":
        raise Refusal(422, f"No commit found for SHA: {sha}")
    app = call.actor.token.app if call.actor.token else None
    suite = suite_for(github, repository, sha, await _branch_at(call, sha), app)
    run = CheckRun(
        id=github.world.next_id(),
        suite_id=suite.id,
        name=body["name"],
        head_sha=sha,
        status="queued",
        started_at=github.now(),
        app=app,
    )
    repository.check_runs[run.id] = run
    _write(call, run)
    tell_run(github, repository, run, call.login, "created")
    await tell_completion(github, repository, run, call.login, was="queued")
    return Answer(201, github.present.check_run(repository, run))


async def update_run(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/check-runs/{check_run_id}."""
    run = _run(call)
    if call.actor.token is not None and call.actor.token.app != run.app:
        raise Refusal(
            403,
            f"Invalid app_id `{call.login}` - check run can only be "
            "modified by the GitHub App that created it.",
        )
    was = run.status
    _write(call, run)
    await tell_completion(call.github, call.repository, run, call.login, was=was)
    return Answer(data=call.github.present.check_run(call.repository, run))


async def get_run(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/check-runs/{check_run_id}."""
    return Answer(data=call.github.present.check_run(call.repository, _run(call)))


async def list_annotations(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/check-runs/{check_run_id}/annotations."""
    run = _run(call)
    blob = f"{call.github.present.page_url(call.repository)}/blob/{run.head_sha}"
    return call.page(
        run.annotations, lambda one: {**_ANNOTATION, **one, "blob_href": f"{blob}/{one['path']}"}
    )


async def rerequest_run(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/check-runs/{check_run_id}/rerequest: the run itself stays as it is."""
    run = _run(call)
    if run.status != "completed":
        raise Refusal(422, "This check run is not rerequestable.")
    tell_run(call.github, call.repository, run, call.login, "rerequested")
    return Answer(201, {})


async def list_runs_for_ref(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{ref}/check-runs."""
    sha = await _commit_of(call)
    return _runs(call, [run for run in call.repository.check_runs.values() if run.head_sha == sha])


async def list_runs_for_suite(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/check-suites/{check_suite_id}/check-runs."""
    suite = _suite(call)
    return _runs(call, [run for run in call.repository.check_runs.values() if run.suite_id == suite.id])


# ---- suites


async def create_suite(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/check-suites: 201 for a new one, 200 for the one that is there."""
    sha = call.body["head_sha"]
    if await call.git.object_type(sha) != "commit":
        raise Refusal(422, f"No commit found for SHA: {sha}")
    app = call.actor.token.app if call.actor.token else None
    known = {(suite.head_sha, suite.app) for suite in call.repository.check_suites.values()}
    suite = suite_for(call.github, call.repository, sha, await _branch_at(call, sha), app)
    return Answer(200 if (sha, app) in known else 201, await _suite_json(call, suite))


async def get_suite(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/check-suites/{check_suite_id}."""
    return Answer(data=await _suite_json(call, _suite(call)))


async def rerequest_suite(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/check-suites/{check_suite_id}/rerequest."""
    suite = _suite(call)
    shown = call.github.present.check_suite(call.repository, suite)
    payload = {"action": "rerequested", "check_suite": shown}
    if suite.app is None:
        call.github.emit("check_suite", call.repository, call.login, payload)
    return Answer(201, {})


async def list_suites_for_ref(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{ref}/check-suites."""
    sha = await _commit_of(call)
    shown = [
        await _suite_json(call, suite)
        for suite in call.repository.check_suites.values()
        if suite.head_sha == sha
        and call.query.get("app_id") in (None, str(call.github.world.app_named(suite.app).id))
    ]
    return call.page(shown, lambda one: one, inside="check_suites")


OPERATIONS: dict[str, Handler] = {
    "checks/create": create_run,
    "checks/update": update_run,
    "checks/get": get_run,
    "checks/list-annotations": list_annotations,
    "checks/rerequest-run": rerequest_run,
    "checks/list-for-ref": list_runs_for_ref,
    "checks/list-for-suite": list_runs_for_suite,
    "checks/create-suite": create_suite,
    "checks/get-suite": get_suite,
    "checks/rerequest-suite": rerequest_suite,
    "checks/list-suites-for-ref": list_suites_for_ref,
}

_ANNOTATION: Json = {
    "start_column": None,
    "end_column": None,
    "title": None,
    "raw_details": None,
}


def _run(call: Call) -> CheckRun:
    run = call.repository.check_runs.get(int(call.args["check_run_id"]))
    if run is None:
        raise not_found()
    return run


def _suite(call: Call) -> CheckSuite:
    suite = call.repository.check_suites.get(int(call.args["check_suite_id"]))
    if suite is None:
        raise not_found()
    return suite


async def _commit_of(call: Call) -> str:
    sha = await call.git.resolve(call.args["ref"])
    if sha is None:
        raise Refusal(422, f"No commit found for SHA: {call.args['ref']}")
    return sha


async def _branch_at(call: Call, sha: str) -> str | None:
    refs = await call.git.refs("refs/heads")
    return next((name.removeprefix("refs/heads/") for name, tip in refs.items() if tip == sha), None)


def _runs(call: Call, runs: list[CheckRun]) -> Answer:
    wanted = {key: call.query[key] for key in ("check_name", "status") if key in call.query}
    runs = [
        run
        for run in runs
        if wanted.get("check_name", run.name) == run.name and wanted.get("status", run.status) == run.status
    ]
    if "app_id" in call.query:
        world, wanted_app = call.github.world, int(call.query["app_id"])
        runs = [run for run in runs if world.app_named(run.app).id == wanted_app]
    if call.query.get("filter", "latest") == "latest":
        # of several runs with one name, the newest counts
        runs = list(
            {(run.app, run.name): run for run in sorted(runs, key=operator.attrgetter("id"))}.values()
        )
    return call.page(
        runs, lambda run: call.github.present.check_run(call.repository, run), inside="check_runs"
    )


async def _suite_json(call: Call, suite: CheckSuite) -> Json:
    github, repository = call.github, call.repository
    commit = await call.git.commit(suite.head_sha)
    return {
        **github.present.check_suite(repository, suite),
        "head_commit": github.present.simple_commit(commit),
        "repository": github.present.repository(repository),
    }


def _write(call: Call, run: CheckRun) -> None:
    """Apply what the body says about a run."""
    body = call.body
    run.name = body.get("name", run.name)
    run.external_id = body.get("external_id", run.external_id)
    run.details_url = body.get("details_url", run.details_url)
    if "started_at" in body:
        run.started_at = datetime.fromisoformat(body["started_at"])
    output = body.get("output", {})
    for key in ("title", "summary", "text"):
        if key in output:
            setattr(run, key, output[key])
    run.annotations += output.get("annotations", [])
    if "actions" in body:
        run.actions = list(body["actions"])
    if body.get("conclusion"):
        run.status, run.conclusion = "completed", body["conclusion"]
        ended = body.get("completed_at")
        run.completed_at = datetime.fromisoformat(ended) if ended else call.github.now()
    elif "status" in body and body["status"] != "completed":
        # a run that goes on again has no conclusion any more
        run.status, run.conclusion, run.completed_at = body["status"], None, None


async def tell_completion(
    github: GitHub, repository: Repository, run: CheckRun, sender: str, *, was: str
) -> None:
    """Raise what follows when a run is completed, and merge what waited for it."""
    if run.status != "completed" or was == "completed":
        return
    tell_run(github, repository, run, sender, "completed")
    suite = repository.check_suites[run.suite_id]
    suite.updated_at = github.now()
    runs = [one for one in repository.check_runs.values() if one.suite_id == suite.id]
    if suite_state(runs)[0] == "completed":
        shown = github.present.check_suite(repository, suite)
        github.emit("check_suite", repository, sender, {"action": "completed", "check_suite": shown})
    await settle(github, repository)
