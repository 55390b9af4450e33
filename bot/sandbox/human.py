"""People who use the sandbox: everything a person can do on GitHub's pages, as methods.

They go through the same REST API as everybody, with their own token and their own rights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from bot.sandbox.api import Api, Request
from bot.sandbox.auth import user_token
from bot.sandbox.checks import request_action
from bot.sandbox.github import GitHub
from bot.sandbox.installing import (
    accept_permissions,
    choose_repositories,
    install,
    suspend,
    uninstall,
    unsuspend,
)
from bot.sandbox.permissions import ROLES
from bot.sandbox.present import Json
from bot.sandbox.pushes import move_ref
from bot.sandbox.state import Installation


class HumanError(Exception):
    """GitHub refused what a person tried.

    Args:
        status: HTTP status.
        body: the answer.
    """

    def __init__(self, status: int, body: Any):
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Human:
    """One person.

    Repositories are named ``owner/name``. Methods return GitHub's JSON and raise ``HumanError`` when refused.

    Args:
        github: the sandbox.
        api: its REST API.
        login: who acts.
    """

    def __init__(self, github: GitHub, api: Api, login: str):
        if login not in github.world.users:
            raise ValueError(f"there is no account {login}")
        self._github = github
        self._api = api
        self.login = login

    def _credential(self) -> str:
        return user_token(self.login)

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Call any REST operation; returns the decoded answer, None for an empty one."""
        response = await self._api.handle(
            Request(
                method=method,
                path=quote(path.partition("?")[0], safe="/%:@"),
                query=path.partition("?")[2],
                headers={
                    "authorization": f"token {self._credential()}",
                    "user-agent": "a person's browser",
                    "content-type": "application/json",
                },
                body=b"" if body is None else orjson.dumps(body),
            )
        )
        answer = orjson.loads(response.body) if response.body else None
        if response.status >= 400:
            raise HumanError(response.status, answer)
        return answer

    async def graphql(self, query: str, **variables: Any) -> Json:
        """Run a GraphQL query or mutation and return its ``data``.

        Raises:
            HumanError: status 200 and the list of errors, or the status of the refusal.
        """
        answer: Json = await self.request("POST", "/graphql", {"query": query, "variables": variables})
        if "errors" in answer:
            raise HumanError(200, answer["errors"])
        data: Json = answer["data"]
        return data

    # ---- issues

    async def open_issue(self, repo: str, title: str, body: str = "", *, labels: Sequence[str] = ()) -> Json:
        """Open an issue."""
        wanted: Json = {"title": title, "body": body}
        if labels:
            wanted["labels"] = list(labels)
        return await self._object("POST", f"/repos/{repo}/issues", wanted)

    async def edit_issue(self, repo: str, number: int, **changes: Any) -> Json:
        """Change an issue's title, body and so on."""
        return await self._object("PATCH", f"/repos/{repo}/issues/{number}", changes)

    async def close(self, repo: str, number: int) -> Json:
        """Close an issue or a pull request."""
        return await self._object("PATCH", f"/repos/{repo}/issues/{number}", {"state": "closed"})

    async def reopen(self, repo: str, number: int) -> Json:
        """Open an issue or a pull request again."""
        return await self._object("PATCH", f"/repos/{repo}/issues/{number}", {"state": "open"})

    async def comment(self, repo: str, number: int, body: str) -> Json:
        """Comment on an issue or a pull request."""
        return await self._object("POST", f"/repos/{repo}/issues/{number}/comments", {"body": body})

    async def edit_comment(self, repo: str, comment_id: int, body: str) -> Json:
        """Change a comment."""
        return await self._object("PATCH", f"/repos/{repo}/issues/comments/{comment_id}", {"body": body})

    async def delete_comment(self, repo: str, comment_id: int) -> None:
        """Delete a comment."""
        await self.request("DELETE", f"/repos/{repo}/issues/comments/{comment_id}")

    async def add_label(self, repo: str, number: int, *labels: str) -> None:
        """Label an issue or a pull request; an unknown label is made."""
        await self.request("POST", f"/repos/{repo}/issues/{number}/labels", {"labels": list(labels)})

    async def remove_label(self, repo: str, number: int, label: str) -> None:
        """Take a label off."""
        await self.request("DELETE", f"/repos/{repo}/issues/{number}/labels/{quote(label, safe='')}")

    async def assign(self, repo: str, number: int, *logins: str) -> Json:
        """Assign people."""
        return await self._object(
            "POST", f"/repos/{repo}/issues/{number}/assignees", {"assignees": list(logins)}
        )

    async def react(self, repo: str, number: int, content: str, *, comment_id: int | None = None) -> Json:
        """React to an issue, or to one of its comments."""
        what = f"comments/{comment_id}" if comment_id is not None else str(number)
        return await self._object("POST", f"/repos/{repo}/issues/{what}/reactions", {"content": content})

    # ---- pull requests

    async def open_pull(
        self, repo: str, head: str, title: str, body: str = "", *, base: str = "main"
    ) -> Json:
        """Open a pull request."""
        wanted = {"head": head, "base": base, "title": title, "body": body}
        return await self._object("POST", f"/repos/{repo}/pulls", wanted)

    async def review(
        self,
        repo: str,
        number: int,
        event: str,
        body: str = "",
        *,
        comments: Sequence[Mapping[str, Any]] = (),
        commit_id: str | None = None,
    ) -> Json:
        """Review a pull request; ``event`` is APPROVE, REQUEST_CHANGES or COMMENT."""
        wanted: Json = {"event": event}
        if body:
            wanted["body"] = body
        if comments:
            wanted["comments"] = [dict(one) for one in comments]
        if commit_id:
            wanted["commit_id"] = commit_id
        return await self._object("POST", f"/repos/{repo}/pulls/{number}/reviews", wanted)

    async def dismiss_review(self, repo: str, number: int, review_id: int, message: str) -> Json:
        """Dismiss somebody's review."""
        path = f"/repos/{repo}/pulls/{number}/reviews/{review_id}/dismissals"
        return await self._object("PUT", path, {"message": message})

    async def edit_review(self, repo: str, number: int, review_id: int, body: str) -> Json:
        """Change the words of one's own review."""
        return await self._object("PUT", f"/repos/{repo}/pulls/{number}/reviews/{review_id}", {"body": body})

    async def comment_on_line(
        self, repo: str, number: int, path: str, line: int, body: str, *, commit_id: str | None = None
    ) -> Json:
        """Comment on one line of the diff without a review."""
        pull = await self.request("GET", f"/repos/{repo}/pulls/{number}")
        wanted = {
            "body": body,
            "path": path,
            "line": line,
            "side": "RIGHT",
            "commit_id": commit_id or pull["head"]["sha"],
        }
        return await self._object("POST", f"/repos/{repo}/pulls/{number}/comments", wanted)

    async def reply(self, repo: str, number: int, comment_id: int, body: str) -> Json:
        """Answer a comment on the diff in its thread."""
        path = f"/repos/{repo}/pulls/{number}/comments/{comment_id}/replies"
        return await self._object("POST", path, {"body": body})

    async def resolve(self, repo: str, number: int, comment_id: int, *, resolved: bool = True) -> None:
        """Resolve the thread that a comment on the diff began, or open it again."""
        issue = self._repository(repo).issues.get(number)
        comment = issue.pull.comments.get(comment_id) if issue and issue.pull else None
        if comment is None:
            raise HumanError(404, {"message": "Not Found"})
        thread_id = self._github.present.thread_id(comment)
        name = "resolveReviewThread" if resolved else "unresolveReviewThread"
        query = f"mutation($id: ID!) {{ {name}(input: {{threadId: $id}}) {{ thread {{ isResolved }} }} }}"
        await self.graphql(query, id=thread_id)

    async def ready(self, repo: str, number: int) -> None:
        """Mark a draft as ready for review."""
        await self._set_draft(repo, number, "markPullRequestReadyForReview")

    async def to_draft(self, repo: str, number: int) -> None:
        """Make a pull request a draft again."""
        await self._set_draft(repo, number, "convertPullRequestToDraft")

    async def _set_draft(self, repo: str, number: int, name: str) -> None:
        pull = await self.request("GET", f"/repos/{repo}/pulls/{number}")
        query = f"mutation($id: ID!) {{ {name}(input: {{pullRequestId: $id}}) {{ pullRequest {{ id }} }} }}"
        await self.graphql(query, id=pull["node_id"])

    async def request_review(self, repo: str, number: int, *logins: str, teams: Sequence[str] = ()) -> Json:
        """Ask people and teams (by their slugs) for a review."""
        wanted: Json = {"reviewers": list(logins), "team_reviewers": list(teams)}
        return await self._object("POST", f"/repos/{repo}/pulls/{number}/requested_reviewers", wanted)

    async def merge(self, repo: str, number: int, *, method: str = "merge") -> Json:
        """Merge a pull request."""
        return await self._object("PUT", f"/repos/{repo}/pulls/{number}/merge", {"merge_method": method})

    async def rename_repository(self, repo: str, name: str) -> Json:
        """Give a repository another name."""
        return await self._object("PATCH", f"/repos/{repo}", {"name": name})

    async def transfer_repository(self, repo: str, owner: str) -> Json:
        """Give a repository to another account."""
        return await self._object("POST", f"/repos/{repo}/transfer", {"new_owner": owner})

    async def fork(self, repo: str) -> Json:
        """Fork a repository into one's own account."""
        return await self._object("POST", f"/repos/{repo}/forks", {})

    # ---- the App's installations, on the settings page of an account that one owns

    def install_app(self, account: str, repos: Sequence[str] | None = None) -> int:
        """Install the App for some repositories of an account, or for all; returns the installation's id."""
        self._must_own(account)
        chosen = None if repos is None else [self._repository(repo) for repo in repos]
        return install(self._github, account, self.login, chosen).id

    def uninstall_app(self, account: str) -> None:
        """Remove the App from an account."""
        uninstall(self._github, self._installation(account), self.login)

    def suspend_app(self, account: str) -> None:
        """Suspend the App on an account."""
        suspend(self._github, self._installation(account), self.login)

    def unsuspend_app(self, account: str) -> None:
        """Let the App work on an account again."""
        unsuspend(self._github, self._installation(account), self.login)

    def choose_repositories(self, account: str, repos: Sequence[str] | None) -> None:
        """Say which repositories of an account the App may see; None for all."""
        installation = self._installation(account)
        chosen = None if repos is None else [self._repository(repo) for repo in repos]
        choose_repositories(self._github, installation, self.login, chosen)

    def accept_permissions(
        self, account: str, permissions: Mapping[str, str], events: Sequence[str] | None = None
    ) -> None:
        """Grant the App what it asks for by now."""
        accept_permissions(self._github, self._installation(account), self.login, permissions, events)

    # ---- checks

    async def rerequest_check(self, repo: str, check_run_id: int) -> None:
        """Click "Re-run"."""
        self._must_be_writer(repo)
        repository = self._repository(repo)
        actor = f"/repos/{repository.full_name}/check-runs/{check_run_id}/rerequest"
        await self.request("POST", actor)

    async def click_check_button(self, repo: str, check_run_id: int, identifier: str) -> None:
        """Click one of a check run's own buttons."""
        self._must_be_writer(repo)
        repository = self._repository(repo)
        run = repository.check_runs.get(check_run_id)
        if run is None:
            raise HumanError(404, {"message": "Not Found"})
        request_action(self._github, repository, run, self.login, identifier)

    # ---- git

    async def push_commit(
        self,
        repo: str,
        branch: str,
        files: Mapping[str, str | bytes | None],
        *,
        message: str = "Update",
        start: str | None = None,
    ) -> str:
        """Commit files (None deletes one) on a branch and return the commit's SHA.

        A new branch starts at ``start``, by default at the default branch.
        """
        self._must_be_writer(repo)
        repository = self._repository(repo)
        git = self._github.git(repository)
        tip = await git.resolve(f"refs/heads/{branch}")
        parent = tip or await git.resolve(start or repository.default_branch)
        identity = self._github.identity(self.login)
        sha = await git.write_files(parent, files, message, identity)
        await move_ref(self._github, repository, self.login, f"refs/heads/{branch}", sha, old=tip)
        return sha

    async def push_submodules(self, repo: str, branch: str, submodules: Mapping[str, str]) -> str:
        """Commit submodules (path -> ``owner/name``) at the tips of their default branches; returns the commit's SHA.

        ``.gitmodules`` is a file like others: push it with ``push_commit``.
        """
        self._must_be_writer(repo)
        repository = self._repository(repo)
        git = self._github.git(repository)
        tip = await git.resolve(f"refs/heads/{branch}")
        links: dict[str, tuple[str, str] | None] = {}
        for path, name in submodules.items():
            other = self._repository(name)
            commit = await self._github.git(other).resolve(other.default_branch)
            links[path] = ("160000", commit or "")
        tree = await git.write_tree(tip, links)
        parents = [tip] if tip else []
        identity = self._github.identity(self.login)
        sha = await git.write_commit(tree, parents, "Add submodules", identity)
        await move_ref(self._github, repository, self.login, f"refs/heads/{branch}", sha, old=tip)
        return sha

    async def delete_branch(self, repo: str, branch: str) -> None:
        """Delete a branch."""
        await self.request("DELETE", f"/repos/{repo}/git/refs/heads/{branch}")

    # ---- inside

    async def _object(self, method: str, path: str, body: Any) -> Json:
        answer: Json = await self.request(method, path, body)
        return answer

    def _repository(self, repo: str) -> Any:
        repository = self._github.world.repository(*repo.split("/", 1))
        if repository is None:
            raise HumanError(404, {"message": "Not Found"})
        return repository

    def _installation(self, account: str) -> Installation:
        self._must_own(account)
        for one in self._github.world.installations.values():
            if one.account == account:
                return one
        raise HumanError(404, {"message": "Not Found"})

    def _must_own(self, account: str) -> None:
        user = self._github.world.users.get(account)
        if user is None or not (account == self.login or user.members.get(self.login) == "admin"):
            raise HumanError(403, {"message": f"{self.login} does not own {account}."})

    def _must_be_writer(self, repo: str) -> None:
        if ROLES[self._github.world.role(self._repository(repo), self.login)] < ROLES["write"]:
            raise HumanError(403, {"message": f"{self.login} has no write access to {repo}."})
