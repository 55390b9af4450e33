"""REST: the App, its installations, their tokens, and its webhook's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.auth import new_installation_token
from bot.sandbox.installing import suspend, uninstall, unsuspend
from bot.sandbox.permissions import covers
from bot.sandbox.present import iso
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.state import Installation, InstallationToken, Repository

TOKEN_LIFE = timedelta(hours=1)
"""https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app"""


async def get_authenticated(call: Call) -> Answer:
    """GET /app."""
    return Answer(data=call.github.present.app())


async def list_installations(call: Call) -> Answer:
    """GET /app/installations."""
    return call.page(call.github.world.installations.values(), call.github.present.installation)


async def get_installation(call: Call) -> Answer:
    """GET /app/installations/{installation_id}."""
    return Answer(data=call.github.present.installation(_installation(call)))


async def get_repo_installation(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/installation."""
    installation = call.github.world.installation_for(call.repository)
    assert installation is not None, "the App cannot see a repository where it is not installed"
    return Answer(data=call.github.present.installation(installation))


async def get_account_installation(call: Call) -> Answer:
    """GET /orgs/{org}/installation and GET /users/{username}/installation."""
    login = (call.args.get("org") or call.args["username"]).lower()
    for installation in call.github.world.installations.values():
        if installation.account.lower() == login:
            return Answer(data=call.github.present.installation(installation))
    raise not_found()


async def suspend_installation(call: Call) -> Answer:
    """PUT /app/installations/{installation_id}/suspended."""
    suspend(call.github, _installation(call), call.login)
    return Answer(204)


async def unsuspend_installation(call: Call) -> Answer:
    """DELETE /app/installations/{installation_id}/suspended."""
    unsuspend(call.github, _installation(call), call.login)
    return Answer(204)


async def delete_installation(call: Call) -> Answer:
    """DELETE /app/installations/{installation_id}."""
    uninstall(call.github, _installation(call), call.login)
    return Answer(204)


async def create_token(call: Call) -> Answer:
    """POST /app/installations/{installation_id}/access_tokens."""
    github, installation = call.github, _installation(call)
    if installation.suspended_at is not None:
        raise Refusal(403, "This installation has been suspended")
    permissions = _narrowed_permissions(installation, call.body.get("permissions"))
    repositories = _narrowed_repositories(call, installation)
    token = new_installation_token(github.world.app.id)
    expires = github.now() + TOKEN_LIFE
    github.world.tokens[token] = InstallationToken(
        installation.id,
        permissions,
        None if repositories is None else {one.id for one in repositories},
        expires,
    )
    selected = repositories is not None or installation.repository_ids is not None
    data: dict[str, Any] = {
        "token": token,
        "expires_at": iso(expires),
        "permissions": dict(permissions),
        "repository_selection": "selected" if selected else "all",
    }
    if repositories is not None:
        data["repositories"] = [github.present.repository(one) for one in repositories]
    return Answer(201, data)


async def revoke_token(call: Call) -> Answer:
    """DELETE /installation/token."""
    del call.github.world.tokens[call.actor.token_text]
    return Answer(204)


async def list_repositories(call: Call) -> Answer:
    """GET /installation/repositories."""
    token = call.actor.token
    assert token is not None
    covered = _covered(call, call.github.world.installations[token.installation_id])
    chosen = [one for one in covered if token.repository_ids is None or one.id in token.repository_ids]
    return call.page(chosen, call.github.present.repository, inside="repositories")


async def get_hook(call: Call) -> Answer:
    """GET /app/hook/config."""
    return Answer(data=_hook(call))


async def update_hook(call: Call) -> Answer:
    """PATCH /app/hook/config."""
    app = call.github.world.app
    app.webhook_url = call.body.get("url", app.webhook_url)
    app.webhook_secret = call.body.get("secret", app.webhook_secret)
    return Answer(data=_hook(call))


OPERATIONS: dict[str, Handler] = {
    "apps/get-authenticated": get_authenticated,
    "apps/list-installations": list_installations,
    "apps/get-installation": get_installation,
    "apps/get-repo-installation": get_repo_installation,
    "apps/get-org-installation": get_account_installation,
    "apps/get-user-installation": get_account_installation,
    "apps/suspend-installation": suspend_installation,
    "apps/unsuspend-installation": unsuspend_installation,
    "apps/delete-installation": delete_installation,
    "apps/create-installation-access-token": create_token,
    "apps/revoke-installation-access-token": revoke_token,
    "apps/list-repos-accessible-to-installation": list_repositories,
    "apps/get-webhook-config-for-app": get_hook,
    "apps/update-webhook-config-for-app": update_hook,
}


def _installation(call: Call) -> Installation:
    installation = call.github.world.installations.get(int(call.args["installation_id"]))
    if installation is None:
        raise not_found()
    return installation


def _covered(call: Call, installation: Installation) -> list[Repository]:
    repositories = call.github.world.repositories.values()
    return [one for one in repositories if call.github.world.installation_for(one) is installation]


def _narrowed_permissions(installation: Installation, wanted: Mapping[str, str] | None) -> dict[str, str]:
    if not wanted:
        return dict(installation.permissions)
    if not covers(installation.permissions, wanted):
        raise Refusal(422, "The permissions requested are not granted to this installation.")
    # reading metadata comes with every installation
    return {**wanted, "metadata": "read"}


def _narrowed_repositories(call: Call, installation: Installation) -> list[Repository] | None:
    names, ids = call.body.get("repositories"), call.body.get("repository_ids")
    if names is None and ids is None:
        return None
    covered = _covered(call, installation)
    chosen = [one for one in covered if one.name in (names or ()) or one.id in (ids or ())]
    if len({*(names or ()), *(ids or ())}) > len(chosen):
        raise Refusal(
            422,
            "There is at least one repository that does not exist or is not accessible to the parent installation.",
        )
    return chosen


def _hook(call: Call) -> dict[str, Any]:
    return {
        "content_type": "json",
        "insecure_ssl": "0",
        "secret": "********",
        "url": call.github.world.app.webhook_url or "",
    }
