"""Which handler wants which event. Handlers run in the order of their registration, each on its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import structlog

from bot.events import Event

Context = TypeVar("Context")
Handler = Callable[[Event, Context], Awaitable[None]]
log = structlog.get_logger(__name__)


class HandlersFailed(ExceptionGroup[Exception]):
    """One or more handlers failed; the others ran."""


class Router(Generic[Context]):
    """A table of handlers, made of other tables."""

    def __init__(self, *routers: Router[Context]) -> None:
        self.routes: list[tuple[str, str, Handler[Context]]] = [
            route for router in routers for route in router.routes
        ]

    def on(self, event: str, action: str) -> Callable[[Handler[Context]], Handler[Context]]:
        """Register the decorated handler for ``event`` with ``action``; "": of an event that has no actions."""

        def register(handler: Handler[Context]) -> Handler[Context]:
            self.routes.append((event, action, handler))
            return handler

        return register

    @property
    def wanted(self) -> Mapping[str, frozenset[str]]:
        """Event -> the actions that some handler wants."""
        table: dict[str, frozenset[str]] = {}
        for event, action, _ in self.routes:
            table[event] = table.get(event, frozenset()) | {action}
        return table

    async def dispatch(self, event: Event, context: Context) -> None:
        """Run every handler of the event, in order; one that fails does not keep the others from running.

        Raises HandlersFailed at the end, so that the delivery is tried again: handlers are safe to repeat.
        """
        failures: list[Exception] = []
        for name, action, handler in self.routes:
            if (name, action) == (event.name, event.action):
                try:
                    await handler(event, context)
                except Exception as error:
                    log.warning("handler failed", handler=getattr(handler, "__name__", "?"), exc_info=True)
                    failures.append(error)
        if failures:
            raise HandlersFailed(f"{event.kind}: {failures[0]}", failures)
