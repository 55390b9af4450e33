"""The buttons of a job's check run: cancel, retry, and GitHub's own "Re-run"."""

from __future__ import annotations

from bot.conductor import Conductor
from bot.events import Event
from bot.model import Trigger
from bot.report import CANCEL_BUTTON, RETRY_BUTTON
from bot.routing import Router

router: Router[Conductor] = Router()


@router.on("check_run", "requested_action")
@router.on("check_run", "rerequested")
async def button_pressed(event: Event, conductor: Conductor) -> None:
    """Do what the button says to the check run's job. Who pressed it is asked, not who asked for the job."""
    check = event.check
    job = await conductor.store.job(check.job_id) if check else None
    # the external id is text that any App may set: the job must be one of this very repository
    if check is None or job is None or job.repo.id != event.repo.id:
        return
    trigger = Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
    if check.button == CANCEL_BUTTON["identifier"]:
        await conductor.cancel_job(job, trigger)
    elif check.button in (None, RETRY_BUTTON["identifier"]):
        await conductor.retry_job(job, trigger)
