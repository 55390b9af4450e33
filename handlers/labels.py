"""Labels: `agent` or `agent:NAME` on an issue starts a job; taking the label away stops it."""

from __future__ import annotations

from bot.events import Event
from bot.model import Request, Trigger
from bot.repository_setup import LABEL
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


def agent_in(label: str | None) -> tuple[bool, str | None]:
    """Whether a label is ours, and the agent that it names. GitHub compares labels without case."""
    name, colon, agent = (label or "").lower().partition(":")
    if name.strip() != LABEL:
        return False, None
    return (True, agent.strip() or None) if colon else (True, None)


@router.on("issues", "labeled")
@router.on("pull_request", "labeled")
async def label_added(event: Event, bot: Bot) -> None:
    """Start a job for the issue or pull request. Who set the label is asked, not who wrote the issue."""
    ours, agent = agent_in(event.label)
    if not ours:
        return
    await bot.conductor.submit(
        Request(
            repo=event.repo,
            number=event.number,
            target=event.target,
            trigger=Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor),
            instructions="",
            title=event.title,
            body=event.body,
            agent=agent,
            head_sha=event.head_sha,
        ),
        is_open=event.open,
    )


@router.on("issues", "unlabeled")
@router.on("pull_request", "unlabeled")
async def label_removed(event: Event, bot: Bot) -> None:
    """Stop what waits or runs here."""
    ours, _ = agent_in(event.label)
    if ours:
        trigger = Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
        await bot.conductor.cancel(event.repo, event.number, trigger, silent=True)
