"""Checks that ended on a commit of the bot's: where the repository wants it, failures are fixed without being asked.

And what was approved while they ran is merged.
"""

from __future__ import annotations

from bot.events import Event
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("check_suite", "completed")
async def checks_ended(event: Event, bot: Bot) -> None:
    """One event for each App and commit, when the last of its check runs has ended; also when all went well.

    A failure may have had to wait for exactly this one. https://docs.github.com/en/webhooks/webhook-events-and-payloads
    """
    if event.suite is not None:
        await bot.fixer.completed(event.repo, event.suite.head_sha, app_id=event.suite.app_id)


@router.on("status", "")
async def status_set(event: Event, bot: Bot) -> None:
    """A service that reports by commit statuses has one more result; a success, too, may be what was waited for."""
    if event.status is not None and event.status.state != "pending":
        await bot.fixer.completed(event.repo, event.status.sha)


@router.on("check_suite", "completed")
async def checks_waited_for(event: Event, bot: Bot) -> None:
    """Merge what is approved and waited for this; of several check runs the failed ones may not be required."""
    if event.suite is not None:
        await bot.final.checks_ended(event.repo, event.suite.head_sha, [event.suite.branch])


@router.on("status", "")
async def status_waited_for(event: Event, bot: Bot) -> None:
    """The same of a commit status, of which only a success lets anything be merged."""
    if event.status is not None and event.status.state == "success":
        await bot.final.checks_ended(event.repo, event.status.sha, event.status.branches)
