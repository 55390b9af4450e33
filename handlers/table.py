"""All behaviours of the bot, in the order in which they see an event."""

from __future__ import annotations

from bot.routing import Router
from handlers import checks, ci, closed, commands, installs, labels, pulls, reviews
from handlers.context import Bot

router: Router[Bot] = Router(
    labels.router,
    commands.router,
    closed.router,
    checks.router,
    ci.router,
    pulls.router,
    reviews.router,
    installs.router,
)
