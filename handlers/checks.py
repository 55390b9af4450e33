"""The buttons of a job's check run: cancel, retry, resume, and GitHub's own "Re-run" and "Re-run all checks"."""

from __future__ import annotations

from bot.check_report import CANCEL_BUTTON, RESUME_BUTTON, RETRY_BUTTON, check_name
from bot.events import Event
from bot.model import Job, Trigger
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("check_run", "requested_action")
@router.on("check_run", "rerequested")
async def button_pressed(event: Event, bot: Bot) -> None:
    """Do what the button says to the check run's job. Who pressed it is asked, not who asked for the job."""
    check = event.check
    job = await bot.conductor.store.job(check.job_id) if check else None
    # the external id is text that any App may set: the job must be one of this very repository
    if check is None or job is None or job.repo.id != event.repo.id:
        return
    if check.button == CANCEL_BUTTON["identifier"]:
        await bot.conductor.cancel_job(job, _trigger(event))
    elif check.button in (None, RETRY_BUTTON["identifier"]):
        await bot.conductor.retry_job(job, _trigger(event))
    elif check.button == RESUME_BUTTON["identifier"]:
        await bot.conductor.retry_job(job, _trigger(event), go_on=True)


@router.on("check_suite", "rerequested")
async def all_pressed(event: Event, bot: Bot) -> None:
    """Do the newest job of each kind on this commit once more; those that have not ended go on as they are."""
    if event.suite is None:
        return
    newest: dict[str, Job] = {}
    for job in await bot.conductor.store.jobs_at(event.repo.id, event.suite.head_sha):
        if name := check_name(job.kind):
            newest.setdefault(name, job)
    ended = [job for job in newest.values() if job.state.final]
    # when none has, the first one answers for all
    for ordinal, job in enumerate(ended or list(newest.values())[:1]):
        await bot.conductor.retry_job(job, _trigger(event), ordinal=ordinal)


@router.on("check_suite", "rerequested")
async def all_looked_at(event: Event, bot: Bot) -> None:
    """The check runs that belong to no job are made anew for the same press: they start nothing and decide nothing."""
    if event.suite is None:
        return
    for number in await bot.final.pulls_at(event.repo, event.suite.head_sha):
        await bot.config_check.look(event.repo, number)
        await bot.final.update(event.repo, number, others=True)


def _trigger(event: Event) -> Trigger:
    return Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
