"""Forks, and repositories that get another name or another owner; their old names lead to them.

https://docs.github.com/en/repositories/creating-and-managing-repositories/renaming-a-repository
"""

from __future__ import annotations

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.github import GitHub
from bot.sandbox.installing import coverage_changed
from bot.sandbox.present import Json
from bot.sandbox.refusals import Refusal, invalid
from bot.sandbox.state import Repository


async def rename(github: GitHub, repository: Repository, name: str, sender: str) -> None:
    """Give a repository another name.

    Raises:
        Refusal: 422 when the name is taken.
    """
    before = repository.name
    await _move(github, repository, repository.owner, name)
    payload = {"action": "renamed", "changes": {"repository": {"name": {"from": before}}}}
    github.emit("repository", repository, sender, payload)


async def transfer(github: GitHub, repository: Repository, owner: str, sender: str) -> None:
    """Give a repository to another account; the App goes along only if it is installed there, too.

    Raises:
        Refusal: 422 when there is no such account or it has a repository of this name.
    """
    account = github.world.user(owner)
    if account is None:
        raise invalid("Repository", "new_owner")
    old = github.world.users[repository.owner]
    covered = github.world.installation_for(repository)
    was = github.present.repository(repository)
    await _move(github, repository, account.login, repository.name)
    for team in github.world.teams:
        team.repositories.pop(repository.id, None)
    kind = "organization" if old.type == "Organization" else "user"
    from_whom = (
        github.present.organization(old.login) if kind == "organization" else github.present.user(old.login)
    )
    coverage_changed(github, repository, covered, sender, was=was)
    payload = {"action": "transferred", "changes": {"owner": {"from": {kind: from_whom}}}}
    github.emit("repository", repository, sender, payload)


async def _move(github: GitHub, repository: Repository, owner: str, name: str) -> None:
    taken = github.world.repository(owner, name)
    if taken is not None and taken is not repository:
        message = f"The repository {name} already exists on this account"
        raise invalid("Repository", "name", "custom", message)
    old = repository.full_name
    await github.move(repository, owner, name)
    github.world.moved[old.lower()] = repository.id
    # a repository that stands where another one was hides it
    github.world.moved.pop(repository.full_name.lower(), None)


async def fork(github: GitHub, repository: Repository, login: str, name: str | None = None) -> Repository:
    """A copy of a repository for an account; the one that is there already if it has one."""
    for one in github.world.forks_of(repository):
        if one.owner == login:
            return one
    made = await github.create_repository(
        f"{login}/{name or repository.name}",
        private=repository.private,
        description=repository.description,
        collaborators={login: "admin"},
    )
    made.fork_of, made.default_branch = repository.id, repository.default_branch
    await github.git(made).fetch(github.git(repository), "+refs/heads/*:refs/heads/*")
    return made


# ---- REST


async def create_fork(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/forks."""
    if call.actor.kind != "user":
        raise Refusal(403, "Resource not accessible by integration")
    owner = call.body.get("organization") or call.login
    if owner == call.repository.owner:
        raise Refusal(403, "You cannot fork your own repository into the same account.")
    try:
        made = await fork(call.github, call.repository, owner, call.body.get("name"))
    except ValueError as error:
        raise invalid("Repository", "name", "custom", str(error)) from error
    return Answer(202, full(call, made))


async def list_forks(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/forks."""
    return call.page(call.github.world.forks_of(call.repository), call.github.present.repository)


async def update(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}: name, description, visibility, default branch and auto-merge."""
    repository, body = call.repository, call.body
    repository.description = body.get("description", repository.description)
    repository.private = body.get("private", repository.private)
    repository.allow_auto_merge = body.get("allow_auto_merge", repository.allow_auto_merge)
    branch = body.get("default_branch", repository.default_branch)
    if (
        f"refs/heads/{branch}" not in await call.git.refs("refs/heads")
        and branch != repository.default_branch
    ):
        raise invalid("Repository", "default_branch")
    repository.default_branch = branch
    if body.get("name", repository.name) != repository.name:
        await rename(call.github, repository, body["name"], call.login)
    return Answer(data=full(call, repository))


async def transfer_repository(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/transfer."""
    if call.body.get("new_name"):
        await rename(call.github, call.repository, call.body["new_name"], call.login)
    await transfer(call.github, call.repository, call.body["new_owner"], call.login)
    return Answer(202, call.github.present.repository(call.repository))


def full(call: Call, repository: Repository) -> Json:
    """A repository with the one that it was forked from."""
    shown = call.github.present.repository(repository)
    parent = call.github.world.repositories.get(repository.fork_of or 0)
    if parent is not None:
        shown["parent"] = call.github.present.repository(parent)
        shown["source"] = call.github.present.repository(parent)
    return shown


OPERATIONS: dict[str, Handler] = {
    "repos/create-fork": create_fork,
    "repos/list-forks": list_forks,
    "repos/update": update,
    "repos/transfer": transfer_repository,
}
