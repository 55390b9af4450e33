"""The life of the App's installations: installed, suspended, removed, repositories and permissions changed.

The App is told of all that without a subscription, also when it is the end of what it is told.
https://docs.github.com/en/webhooks/webhook-events-and-payloads#installation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bot.sandbox.github import GitHub
from bot.sandbox.present import Json, node_id
from bot.sandbox.state import Installation, Repository


def covered(github: GitHub, installation: Installation) -> list[Repository]:
    """The repositories that an installation is for."""
    world = github.world
    return [one for one in world.repositories.values() if world.installation_for(one) is installation]


def install(
    github: GitHub, account: str, sender: str, repositories: Sequence[Repository] | None = None
) -> Installation:
    """Install the App on an account, for some of its repositories or (None) for all.

    Raises:
        ValueError: it is installed there, or there is no such account.
    """
    world = github.world
    if account not in world.users:
        raise ValueError(f"there is no account {account}")
    if any(one.account == account for one in world.installations.values()):
        raise ValueError(f"the App is installed on {account} already")
    installation = Installation(
        id=world.next_id(),
        account=account,
        permissions=dict(world.app.permissions),
        events=list(world.app.events),
        created_at=github.now(),
        repository_ids=None if repositories is None else {one.id for one in repositories},
    )
    world.installations[installation.id] = installation
    payload = {"repositories": _short(covered(github, installation)), "requester": None}
    _tell(github, installation, sender, "installation", "created", payload)
    return installation


def uninstall(github: GitHub, installation: Installation, sender: str) -> None:
    """Remove the App from an account: its tokens end at once."""
    payload = {"repositories": _short(covered(github, installation))}
    del github.world.installations[installation.id]
    for text, token in list(github.world.tokens.items()):
        if token.installation_id == installation.id and token.app is None:
            del github.world.tokens[text]
    _tell(github, installation, sender, "installation", "deleted", payload)


def suspend(github: GitHub, installation: Installation, sender: str) -> None:
    """Let the App do nothing on an account until it is unsuspended."""
    installation.suspended_at, installation.suspended_by = github.now(), sender
    _tell(github, installation, sender, "installation", "suspend", {})


def unsuspend(github: GitHub, installation: Installation, sender: str) -> None:
    """Let the App work again."""
    installation.suspended_at = installation.suspended_by = None
    _tell(github, installation, sender, "installation", "unsuspend", {})


def accept_permissions(
    github: GitHub,
    installation: Installation,
    sender: str,
    permissions: Mapping[str, str],
    events: Sequence[str] | None = None,
) -> None:
    """Grant an installation what the App asks for by now; tokens that are out keep what they have."""
    installation.permissions = dict(permissions)
    if events is not None:
        installation.events = list(events)
    _tell(github, installation, sender, "installation", "new_permissions_accepted", {})


def choose_repositories(
    github: GitHub, installation: Installation, sender: str, repositories: Sequence[Repository] | None
) -> None:
    """Say which repositories an installation is for; None for all."""
    before = covered(github, installation)
    installation.repository_ids = None if repositories is None else {one.id for one in repositories}
    after = covered(github, installation)
    _tell_changes(github, installation, sender, before, after)


def coverage_changed(
    github: GitHub, repository: Repository, before: Installation | None, sender: str, *, was: Json
) -> None:
    """Tell the installations on both sides that a repository went from one account to another.

    Args:
        github: the sandbox.
        repository: as it is now.
        before: the installation that it was in.
        sender: who moved it.
        was: its JSON before.
    """
    after = github.world.installation_for(repository)
    if before is not None and before is not after:
        if before.repository_ids is not None:
            before.repository_ids.discard(repository.id)
        gone = [{key: was[key] for key in ("id", "node_id", "name", "full_name", "private")}]
        _tell_repositories(github, before, sender, "removed", [], gone)
    if after is not None and after is not before:
        _tell_repositories(github, after, sender, "added", _short([repository]), [])


def _tell_changes(
    github: GitHub,
    installation: Installation,
    sender: str,
    before: Sequence[Repository],
    after: Sequence[Repository],
) -> None:
    added = [one for one in after if one not in before]
    removed = [one for one in before if one not in after]
    if added:
        _tell_repositories(github, installation, sender, "added", _short(added), [])
    if removed:
        _tell_repositories(github, installation, sender, "removed", [], _short(removed))


def _tell_repositories(
    github: GitHub,
    installation: Installation,
    sender: str,
    action: str,
    added: list[Json],
    removed: list[Json],
) -> None:
    payload = {
        "repositories_added": added,
        "repositories_removed": removed,
        "repository_selection": "all" if installation.repository_ids is None else "selected",
        "requester": None,
    }
    _tell(github, installation, sender, "installation_repositories", action, payload)


def _tell(
    github: GitHub, installation: Installation, sender: str, event: str, action: str, payload: Json
) -> None:
    full = {
        "action": action,
        "installation": github.present.installation(installation),
        "sender": github.present.user(sender),
        **payload,
    }
    github.tell_app(event, full, installation.id)


def _short(repositories: Sequence[Repository]) -> list[Json]:
    return [
        {
            "id": one.id,
            "node_id": node_id("R", one.id),
            "name": one.name,
            "full_name": one.full_name,
            "private": one.private,
        }
        for one in repositories
    ]
