"""Commits that GitHub makes and signs itself: blobs, trees, commits and refs through its API.

GitHub signs what an App's installation commits without naming an author, a committer or a signature:
https://docs.github.com/en/authentication/managing-commit-signature-verification/about-commit-signature-verification
The endpoints: https://docs.github.com/en/rest/git
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bot.changes import shown, size_text
from bot.errors import JobFailed
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import Conflict, Forbidden, GitHubError, NotFound, Unprocessable
from bot.model import FailureKind, Phase, Repo
from bot.permissions import CHANGE
from runners import quarantine
from runners.quarantine import TreeEntry, conflict

#: Bytes of one file, of text in one request, and of text that goes there rather than as a blob of its own.
MAX_FILE, MAX_TEXT, MAX_INLINE = 25 * 2**20, 2 * 2**20, 512 * 2**10
#: Files in one request, and blobs in one change: each is a request that counts for GitHub's rate limits.
MAX_ENTRIES, MAX_BLOBS = 500, 300


class ApiCommits:
    """Writes commits and refs as the App's installation."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def commit(self, repo: Repo, folder: Path, *, base_sha: str, tree: str, message: str) -> str:
        """Make a commit on ``base_sha`` with the quarantine's ``tree`` at GitHub and return its SHA.

        Repeating it makes another commit that nobody sees until a ref points at it. Raises JobFailed (publish) when
        the change is too large for this way, GitHub says no, or did not sign.
        """
        client = self._github.repository(repo, CHANGE)
        try:
            made_tree = await self._tree(client, repo, folder, base_sha, tree)
            if made_tree != tree:
                raise JobFailed(
                    Phase.publish,
                    FailureKind.refused,
                    "GitHub's API made another tree than the one that was checked, so it was not used.",
                    'The operator can set commit_signing to "ssh", which pushes the very commit.',
                )
            made = await client.post(
                _url(repo, "/git/commits"), data={"message": message, "tree": tree, "parents": [base_sha]}
            )
        except (Unprocessable, Forbidden, NotFound, Conflict) as error:
            raise _refused(error) from error
        if not made["verification"]["verified"]:
            raise JobFailed(
                Phase.publish,
                FailureKind.configuration,
                f"GitHub did not sign the commit ({made['verification']['reason']}).",
                "On GitHub Enterprise Server the administrator switches web commit signing on; else set "
                'commit_signing to "ssh".',
            )
        return str(made["sha"])

    async def is_it(self, repo: Repo, sha: str, *, tree: str, message: str) -> bool:
        """Whether a commit at GitHub is what :meth:`commit` makes of ``tree`` and ``message``."""
        client = self._github.repository(repo, CHANGE)
        try:
            found = await client.getitem(_url(repo, "/git/commits/{sha}", sha=sha))
        except NotFound:
            return False
        return bool(found["tree"]["sha"] == tree and found["message"].strip() == message.strip())

    async def branch(self, repo: Repo, branch: str) -> str | None:
        """Where the branch is; None when it does not exist."""
        client = self._github.repository(repo, CHANGE)
        try:
            found = await client.getitem(_url(repo, "/git/ref/heads/{+branch}", branch=branch))
        except NotFound:
            return None
        return str(found["object"]["sha"])

    async def move(self, repo: Repo, branch: str, sha: str, *, expected: str | None) -> None:
        """Make the branch be ``sha``, only if it is ``expected`` now (None: it does not exist); may be repeated.

        ``sha`` must be a child of ``expected``: GitHub then refuses whatever is no fast-forward. Raises JobFailed
        (publish, conflict) when the branch is somewhere else.
        """
        client = self._github.repository(repo, CHANGE)
        now = await self.branch(repo, branch)
        if now == sha:
            return
        if now != expected:
            raise conflict(branch, "somebody else pushed to it meanwhile")
        try:
            if expected is None:
                await client.post(_url(repo, "/git/refs"), data={"ref": f"refs/heads/{branch}", "sha": sha})
            else:
                await client.patch(
                    _url(repo, "/git/refs/heads/{+branch}", branch=branch), data={"sha": sha, "force": False}
                )
        except (Unprocessable, Conflict) as error:
            if await self.branch(repo, branch) not in (expected, sha):
                raise conflict(branch, "somebody else pushed to it meanwhile") from error
            raise _refused(error) from error
        except (Forbidden, NotFound) as error:
            raise _refused(error) from error

    async def _tree(self, client: GitHubClient, repo: Repo, folder: Path, base_sha: str, tree: str) -> str:
        made = await quarantine.tree_of(folder, base_sha)
        entries = await quarantine.difference(folder, base_sha, tree)
        _check_sizes(entries)
        blobs = 0
        for batch in _batches(entries):
            values: list[dict[str, Any]] = []
            for entry in batch:
                value: dict[str, Any] = {
                    "path": _name(entry),
                    "mode": f"{entry.mode or 0o100644:06o}",
                    "type": "blob",
                }
                if not entry.mode:
                    value["sha"] = None
                else:
                    content = await quarantine.blob(folder, entry.oid, max_bytes=MAX_FILE)
                    text = _as_text(content)
                    if text is not None and len(content) <= MAX_INLINE:
                        value["content"] = text
                    else:
                        blobs += 1
                        if blobs > MAX_BLOBS:
                            raise _too_large(f"more than {MAX_BLOBS} binary files")
                        value["sha"] = await self._blob(client, repo, content)
                values.append(value)
            answer = await client.post(_url(repo, "/git/trees"), data={"base_tree": made, "tree": values})
            made = str(answer["sha"])
        return made

    async def _blob(self, client: GitHubClient, repo: Repo, content: bytes) -> str:
        data = {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        return str((await client.post(_url(repo, "/git/blobs"), data=data))["sha"])


def _url(repo: Repo, rest: str, **values: str) -> str:
    return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)


def _batches(entries: Sequence[TreeEntry]) -> Iterator[list[TreeEntry]]:
    """What goes into one request each: first what shall go, because it may be where a folder comes."""
    batch: list[TreeEntry] = []
    size = 0
    for entry in sorted(entries, key=lambda entry: bool(entry.mode)):
        amount = entry.size if entry.size <= MAX_INLINE else 0
        if batch and (len(batch) == MAX_ENTRIES or size + amount > MAX_TEXT):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += amount
    if batch:
        yield batch


def _as_text(content: bytes) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _name(entry: TreeEntry) -> str:
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        raise JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"The file name {shown(entry.path)} is not valid UTF-8, which GitHub's API does not take.",
            "Rename it by hand, or have the operator set commit_signing to ssh.",
        ) from None
    return entry.path


def _check_sizes(entries: Sequence[TreeEntry]) -> None:
    for entry in entries:
        if entry.size > MAX_FILE:
            raise _too_large(
                f"{shown(entry.path)} has {size_text(entry.size)}, more than {size_text(MAX_FILE)}"
            )


def _too_large(why: str) -> JobFailed:
    return JobFailed(
        Phase.publish,
        FailureKind.refused,
        f"The change is too large to be committed through GitHub's API: {why}.",
        "Ask for it in smaller steps, or have the operator set commit_signing to ssh.",
    )


def _refused(error: GitHubError) -> JobFailed:
    words = f"{error.reason} {error.errors}"
    if "verified signature" in words:
        hint = "The rule does not take GitHub's own signature from an App; exempt the App in the rule."
    elif isinstance(error, Forbidden):
        hint = error.hint or "Give the App the repository permission “Contents: read and write”, then retry."
    else:
        hint = "Change what it names, or exempt the App in the repository's rules, then retry."
    kind = FailureKind.auth if isinstance(error, (Forbidden, NotFound)) else FailureKind.refused
    return JobFailed(Phase.publish, kind, f"GitHub refused the commit: {error.reason}.", hint)
