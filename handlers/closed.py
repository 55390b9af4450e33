"""Closing an issue, or a pull request without merging it, stops what waits or runs there."""

from __future__ import annotations

from bot.events import Event
from bot.model import Trigger
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("issues", "closed")
@router.on("pull_request", "closed")
async def closed(event: Event, bot: Bot) -> None:
    """Stop the jobs, when who closed it may do that. A merge is no reason: the work was wanted.

    What would push after it ends by itself (``bot.endings.over``), with the reason and what was done kept.
    """
    if not event.merged:
        trigger = Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
        await bot.conductor.cancel(event.repo, event.number, trigger, silent=True)
