"""The App's own life: installed, suspended, removed, let into repositories; repositories and issues that move or go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bot.events import Event
from bot.installation_store import Installation
from bot.model import Trigger
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("installation", "created")
async def created(event: Event, bot: Bot) -> None:
    """Set up the repositories of the account."""
    if event.installation is not None:
        await bot.installs.installed(_installation(event), event.installation.added, _trigger(event))


@router.on("installation", "deleted")
async def deleted(event: Event, bot: Bot) -> None:
    """Stop everything there."""
    await _changed(event, bot.installs.removed)


@router.on("installation", "suspend")
async def suspended(event: Event, bot: Bot) -> None:
    """Stop everything there."""
    await _changed(event, bot.installs.suspended)


@router.on("installation", "unsuspend")
async def unsuspended(event: Event, bot: Bot) -> None:
    """Work again."""
    await _changed(event, bot.installs.unsuspended)


@router.on("installation", "new_permissions_accepted")
async def permissions_accepted(event: Event, bot: Bot) -> None:
    """Use what was granted, and tell what is missing."""
    await _changed(event, bot.installs.permissions_accepted)


@router.on("installation_repositories", "added")
async def repositories_added(event: Event, bot: Bot) -> None:
    """Set the repositories up."""
    if event.installation is not None:
        added = event.installation.added
        await bot.installs.repositories_added(_installation(event), added, _trigger(event))


@router.on("installation_repositories", "removed")
async def repositories_removed(event: Event, bot: Bot) -> None:
    """Stop what is there."""
    if event.installation is not None:
        removed = event.installation.removed
        await bot.installs.repositories_removed(_installation(event), removed, _trigger(event))


@router.on("repository", "renamed")
@router.on("repository", "transferred")
async def moved(event: Event, bot: Bot) -> None:
    """Let jobs know the new name."""
    await bot.installs.moved(event.repo, event.former, _trigger(event))


@router.on("repository", "archived")
async def archived(event: Event, bot: Bot) -> None:
    """Stop everything there: nothing can be pushed or said any more."""
    await bot.installs.closed_down(event.repo, _trigger(event), "who archived the repository")


@router.on("repository", "deleted")
async def repository_deleted(event: Event, bot: Bot) -> None:
    """Stop everything there."""
    await bot.installs.closed_down(event.repo, _trigger(event), "who deleted the repository")


@router.on("issues", "deleted")
async def issue_deleted(event: Event, bot: Bot) -> None:
    """Stop its jobs: whoever may delete it is asked by GitHub, and where it was nobody can be told."""
    await bot.installs.issue_gone(event.repo, event.number, _trigger(event), "who deleted the issue")


@router.on("issues", "transferred")
async def issue_transferred(event: Event, bot: Bot) -> None:
    """Stop its jobs: what they would change is not in the repository that it is in now."""
    await bot.installs.issue_gone(event.repo, event.number, _trigger(event), "who transferred the issue")


async def _changed(event: Event, act: Callable[[Installation, Trigger], Awaitable[None]]) -> None:
    if event.installation is not None:
        await act(_installation(event), _trigger(event))


def _installation(event: Event) -> Installation:
    change = event.installation
    assert change is not None, "asked before"
    return Installation(
        id=event.repo.installation_id,
        account=change.account,
        account_type=change.account_type,
        suspended=change.suspended,
        permissions=change.permissions,
    )


def _trigger(event: Event) -> Trigger:
    return Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
