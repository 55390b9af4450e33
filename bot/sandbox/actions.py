"""GitHub Actions, as far as others see it: workflow runs, their jobs (which are check runs) and their logs.

https://docs.github.com/en/rest/actions/workflow-jobs and https://docs.github.com/en/rest/actions/workflow-runs
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.checks import tell_completion, tell_run
from bot.sandbox.github import GitHub
from bot.sandbox.present import Json, iso, node_id, suite_state
from bot.sandbox.refusals import not_found
from bot.sandbox.state import CheckRun, Repository, WorkflowRun
from bot.sandbox.suites import suite_for

SLUG = "github-actions"
"""The App whose check runs the jobs are."""

LINK_LIFE = timedelta(minutes=1)
"""https://docs.github.com/en/rest/actions/workflow-jobs#download-job-logs-for-a-workflow-run"""


@dataclass(frozen=True)
class Job:
    """How a job goes.

    Attributes:
        conclusion: success, failure, cancelled …; None for a job that goes on.
        log: its log, without time stamps.
        annotations: as in https://docs.github.com/en/rest/checks/runs#create-a-check-run
        steps: name to conclusion; by default one step that ends as the job does.
    """

    conclusion: str | None = "success"
    log: str = ""
    annotations: list[Json] = field(default_factory=list)
    steps: Mapping[str, str] = field(default_factory=dict)


async def start_workflow(
    github: GitHub,
    repository: Repository,
    sha: str,
    login: str,
    jobs: Mapping[str, Job],
    *,
    name: str = "CI",
    event: str = "push",
) -> WorkflowRun:
    """Run a workflow on a commit: jobs by name; those without a conclusion go on until ``finish_job``.

    Raises:
        ValueError: there is no such commit.
    """
    git = github.git(repository)
    if await git.object_type(sha) != "commit":
        raise ValueError(f"{repository.full_name} has no commit {sha}")
    refs = await git.refs("refs/heads")
    branch = next((ref.removeprefix("refs/heads/") for ref, tip in refs.items() if tip == sha), None)
    suite = suite_for(github, repository, sha, branch, SLUG)
    run = WorkflowRun(
        id=github.world.next_id(),
        suite_id=suite.id,
        number=len(repository.workflow_runs) + 1,
        name=name,
        path=f".github/workflows/{name.lower()}.yml",
        event=event,
        head_sha=sha,
        head_branch=branch,
        login=login,
        created_at=github.now(),
    )
    repository.workflow_runs[run.id] = run
    _tell(github, repository, run, "requested")
    for job_name in jobs:
        check = CheckRun(
            id=github.world.next_id(),
            suite_id=suite.id,
            name=job_name,
            head_sha=sha,
            status="in_progress",
            started_at=github.now(),
            app=SLUG,
        )
        check.details_url = f"{github.present.page_url(repository)}/actions/runs/{run.id}/job/{check.id}"
        repository.check_runs[check.id] = check
        run.jobs[check.id] = ""
        tell_run(github, repository, check, login, "created")
    for number, (job_name, job) in zip(list(run.jobs), jobs.items(), strict=True):
        assert repository.check_runs[number].name == job_name
        if job.conclusion is not None:
            await finish_job(github, repository, number, job)
    return run


async def finish_job(github: GitHub, repository: Repository, number: int, job: Job) -> None:
    """End a job that goes on."""
    run = _run_of(repository, number)
    check = repository.check_runs[number]
    stamp = github.now().strftime("%Y-%m-%dT%H:%M:%S.0000000Z")
    run.jobs[number] = "".join(f"{stamp} {line}\n" for line in job.log.splitlines())
    check.annotations = [dict(one) for one in job.annotations]
    check.status, check.conclusion, check.completed_at = "completed", job.conclusion, github.now()
    await tell_completion(github, repository, check, run.login, was="in_progress")
    if _state(repository, run)[0] == "completed":
        _tell(github, repository, run, "completed")


# ---- REST


async def get_job(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/actions/jobs/{job_id}."""
    run, check = _job(call)
    return Answer(data=_job_json(call, run, check))


async def get_log(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/actions/jobs/{job_id}/logs: an address elsewhere that is good for a minute."""
    _, check = _job(call)
    if check.status != "completed":
        raise not_found()
    github = call.github
    key = secrets.token_urlsafe(24)
    github.log_links[key] = (call.repository.id, check.id, github.now() + LINK_LIFE)
    # another host, as with GitHub: whoever follows must leave the token behind
    address = urlsplit(github.base_url)
    host = address.netloc.replace("127.0.0.1", "localhost")
    return Answer(302, headers={"Location": f"{address.scheme}://{host}/_logs/{check.id}?sig={key}"})


async def list_jobs(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/actions/runs/{run_id}/jobs."""
    run = _run(call)
    checks = [call.repository.check_runs[number] for number in run.jobs]
    return call.page(checks, lambda one: _job_json(call, run, one), inside="jobs")


async def get_run(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/actions/runs/{run_id}."""
    return Answer(data=_run_json(call.github, call.repository, _run(call)))


async def list_runs(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/actions/runs: newest first."""
    query, repository = call.query, call.repository
    found = [
        run
        for run in reversed(repository.workflow_runs.values())
        if query.get("head_sha") in (None, run.head_sha)
        and query.get("branch") in (None, run.head_branch)
        and query.get("event") in (None, run.event)
        and query.get("status") in (None, *_state(repository, run))
    ]
    return call.page(found, lambda one: _run_json(call.github, repository, one), inside="workflow_runs")


OPERATIONS: dict[str, Handler] = {
    "actions/get-job-for-workflow-run": get_job,
    "actions/download-job-logs-for-workflow-run": get_log,
    "actions/list-jobs-for-workflow-run": list_jobs,
    "actions/get-workflow-run": get_run,
    "actions/list-workflow-runs-for-repo": list_runs,
}


async def serve_log(github: GitHub, request: web.Request) -> web.Response:
    """What a log's address answers. Like the storage behind GitHub it takes no other credentials."""
    if "Authorization" in request.headers:
        return web.Response(status=400, text="InvalidAuthenticationInfo: the address is its own credential.")
    repository_id, number, until = github.log_links.get(request.query.get("sig", ""), (0, 0, None))
    if until is None or until < github.now() or str(number) != request.match_info["job"]:
        return web.Response(status=403, text="AuthenticationFailed: Signature not valid.")
    repository = github.world.repositories[repository_id]
    return web.Response(text=_run_of(repository, number).jobs[number])


def _run(call: Call) -> WorkflowRun:
    run = call.repository.workflow_runs.get(int(call.args["run_id"]))
    if run is None:
        raise not_found()
    return run


def _job(call: Call) -> tuple[WorkflowRun, CheckRun]:
    number = int(call.args["job_id"])
    try:
        return _run_of(call.repository, number), call.repository.check_runs[number]
    except LookupError:
        raise not_found() from None


def _run_of(repository: Repository, job: int) -> WorkflowRun:
    for run in repository.workflow_runs.values():
        if job in run.jobs:
            return run
    raise LookupError(f"there is no job {job}")


def _state(repository: Repository, run: WorkflowRun) -> tuple[str, str | None]:
    return suite_state([repository.check_runs[number] for number in run.jobs])


def _job_json(call: Call, run: WorkflowRun, check: CheckRun) -> Json:
    url = call.github.present.repository_url(call.repository)
    step = {
        "name": "Run",
        "number": 1,
        "status": check.status,
        "conclusion": check.conclusion,
        "started_at": iso(check.started_at),
        "completed_at": iso(check.completed_at),
    }
    return {
        "id": check.id,
        "run_id": run.id,
        "run_url": f"{url}/actions/runs/{run.id}",
        "node_id": node_id("CR", check.id),
        "head_sha": run.head_sha,
        "head_branch": run.head_branch,
        "url": f"{url}/actions/jobs/{check.id}",
        "html_url": check.details_url,
        "check_run_url": f"{url}/check-runs/{check.id}",
        "status": check.status,
        "conclusion": check.conclusion,
        "created_at": iso(run.created_at),
        "started_at": iso(check.started_at),
        "completed_at": iso(check.completed_at),
        "name": check.name,
        "steps": [step],
        "labels": ["ubuntu-latest"],
        "workflow_name": run.name,
        "run_attempt": 1,
    }


def _run_json(github: GitHub, repository: Repository, run: WorkflowRun) -> Json:
    status, conclusion = _state(repository, run)
    url = github.present.repository_url(repository)
    return {
        "id": run.id,
        "node_id": node_id("WFR", run.id),
        "name": run.name,
        "display_title": run.name,
        "path": run.path,
        "run_number": run.number,
        "run_attempt": 1,
        "event": run.event,
        "status": status,
        "conclusion": conclusion,
        "head_sha": run.head_sha,
        "head_branch": run.head_branch,
        "check_suite_id": run.suite_id,
        "check_suite_node_id": node_id("CS", run.suite_id),
        "check_suite_url": f"{url}/check-suites/{run.suite_id}",
        "workflow_id": 1,
        "url": f"{url}/actions/runs/{run.id}",
        "html_url": f"{github.present.page_url(repository)}/actions/runs/{run.id}",
        "jobs_url": f"{url}/actions/runs/{run.id}/jobs",
        "logs_url": f"{url}/actions/runs/{run.id}/logs",
        "created_at": iso(run.created_at),
        "updated_at": iso(run.created_at),
        "run_started_at": iso(run.created_at),
        "actor": github.present.user(run.login),
        "triggering_actor": github.present.user(run.login),
        "pull_requests": github.present.pulls_at(repository, run.head_sha),
        "repository": github.present.repository(repository),
        "head_repository": github.present.repository(repository),
    }


def _tell(github: GitHub, repository: Repository, run: WorkflowRun, action: str) -> None:
    workflow: dict[str, Any] = {"id": 1, "name": run.name, "path": run.path, "state": "active"}
    payload = {"action": action, "workflow_run": _run_json(github, repository, run), "workflow": workflow}
    github.emit("workflow_run", repository, run.login, payload)
