"""What our tokens may do: each part of the program gets a token with the permissions that it needs, and no more.

https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps
"""

from __future__ import annotations

from collections.abc import Mapping

#: To look, in any repository of an installation. Nothing can be changed with it.
READ: Mapping[str, str] = {
    "actions": "read",
    "checks": "read",
    "contents": "read",
    "issues": "read",
    "members": "read",
    "pull_requests": "read",
    "statuses": "read",
}
#: To speak in one repository: comments, reactions, reviews, labels, check runs, pull requests.
SPEAK: Mapping[str, str] = {
    "checks": "write",
    "contents": "read",
    "issues": "write",
    "pull_requests": "write",
}
#: To change one repository: commits through the API, a branch removed, a merge, and the mutations of GraphQL that ask
#: for it (review threads, drafts).
CHANGE: Mapping[str, str] = {"contents": "write", "pull_requests": "write"}

_LEVELS = ("", "read", "write", "admin")


def within(wanted: Mapping[str, str], granted: Mapping[str, str]) -> dict[str, str]:
    """``wanted``, cut down to what an installation has granted: it may not have accepted a new permission yet."""
    found = {name: min(level, granted.get(name, ""), key=_LEVELS.index) for name, level in wanted.items()}
    return {name: level for name, level in found.items() if level}
