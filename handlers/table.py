"""All behaviours of the bot, in the order in which they see an event."""

from __future__ import annotations

from bot.conductor import Conductor
from bot.routing import Router
from handlers import checks, closed, commands, labels

router: Router[Conductor] = Router(
    labels.router,
    commands.router,
    closed.router,
    checks.router,
)
