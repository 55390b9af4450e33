"""Pull requests that bring a configuration along: whether it can be used stands in the check run `agent/config`."""

from __future__ import annotations

from bot.config_check import CHECK_NAME, number_of
from bot.events import Event
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("pull_request", "opened")
@router.on("pull_request", "synchronize")
@router.on("pull_request", "reopened")
async def pull_changed(event: Event, bot: Bot) -> None:
    """Look at the configuration, whoever changed it: nothing is started, and nothing of it counts before the merge."""
    await bot.config_check.look(event.repo, event.number)


@router.on("check_run", "rerequested")
async def once_more(event: Event, bot: Bot) -> None:
    """GitHub's "Re-run" on the check run."""
    check = event.check
    number = number_of(check.job_id) if check and check.name == CHECK_NAME else None
    if number is not None:
        await bot.config_check.look(event.repo, number)
