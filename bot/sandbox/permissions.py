"""Which permission each REST operation needs, and who may call it at all.

The installation token part follows GitHub's own data for "Permissions required for GitHub Apps"
(https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps). Some operations accept
one of several sets of permissions; GitHub names them all in the header ``X-Accepted-GitHub-Permissions``,
``;`` between alternatives and ``,`` inside one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LEVELS = {"": 0, "read": 1, "write": 2, "admin": 3}
"""What an App's permission may be, in rising order; the empty word means that it was not granted."""

ROLES = {"none": 0, "read": 1, "triage": 2, "write": 3, "maintain": 4, "admin": 5}
"""What a person may be in a repository, in rising order."""

Alternatives = tuple[Mapping[str, str], ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(*rows: tuple[str, str]) -> dict[str, Alternatives]:
    """Spread ``("contents=read; issues=read", "one/operation another/operation")`` over its operations."""
    table: dict[str, Alternatives] = {}
    for needs, operations in rows:
        alternatives = tuple(
            dict(pair.strip().split("=", 1) for pair in one.split(",")) for one in needs.split(";")
        )
        table.update(dict.fromkeys(operations.split(), alternatives))
    return table


INSTALLATION_NEEDS: dict[str, Alternatives] = _table(
    (
        "metadata=read",
        """rate-limit/get users/get-by-username repos/get repos/get-collaborator-permission-level
        repos/check-collaborator repos/list-collaborators repos/list-languages repos/list-forks
        repos/get-branch-rules orgs/get""",
    ),
    (
        "contents=read",
        """repos/get-content repos/get-readme repos/get-branch repos/list-branches repos/get-commit
        repos/list-commits repos/compare-commits-with-basehead
        repos/list-pull-requests-associated-with-commit git/get-ref git/list-matching-refs
        git/get-commit git/get-tree git/get-blob repos/list-activities""",
    ),
    (
        "contents=write",
        """git/create-blob git/create-tree git/create-commit git/delete-ref repos/create-dispatch-event
        pulls/merge repos/delete-file""",
    ),
    (
        # the second set as soon as a file below .github/workflows changes
        "contents=write; contents=write,workflows=write",
        "repos/create-or-update-file-contents git/create-ref git/update-ref",
    ),
    (
        "members=read",
        """orgs/list-members orgs/check-membership-for-user orgs/get-membership-for-user teams/list
        teams/get-by-name teams/list-members-in-org teams/get-membership-for-user-in-org
        teams/check-permissions-for-repo-in-org""",
    ),
    ("administration=read", "repos/list-teams"),
    ("administration=write", "repos/update repos/transfer"),
    ("administration=write,contents=read", "repos/create-fork"),
    (
        "actions=read",
        """actions/get-job-for-workflow-run actions/download-job-logs-for-workflow-run
        actions/list-jobs-for-workflow-run actions/get-workflow-run actions/list-workflow-runs-for-repo""",
    ),
    ("statuses=read", "repos/get-combined-status-for-ref repos/list-commit-statuses-for-ref"),
    ("statuses=write", "repos/create-commit-status"),
    (
        "checks=read",
        """checks/get checks/list-annotations checks/list-for-ref checks/list-for-suite checks/get-suite
        checks/list-suites-for-ref""",
    ),
    (
        "checks=write",
        "checks/create checks/update checks/rerequest-run checks/rerequest-suite checks/create-suite",
    ),
    (
        "issues=read",
        "issues/get issues/list-for-repo reactions/list-for-issue-comment reactions/list-for-issue",
    ),
    (
        "issues=write",
        """issues/create reactions/create-for-issue reactions/delete-for-issue
        reactions/create-for-issue-comment reactions/delete-for-issue-comment""",
    ),
    (
        "issues=read; pull_requests=read",
        """issues/list-comments issues/list-comments-for-repo issues/get-comment
        issues/list-labels-on-issue issues/get-label issues/list-labels-for-repo
        issues/list-events-for-timeline issues/check-user-can-be-assigned issues/list-assignees""",
    ),
    (
        "issues=write; pull_requests=write",
        """issues/update issues/create-comment issues/update-comment issues/delete-comment
        issues/add-labels issues/remove-label issues/remove-all-labels issues/set-labels
        issues/create-label issues/update-label issues/delete-label issues/add-assignees
        issues/remove-assignees issues/lock issues/unlock""",
    ),
    ("pull_requests=read; contents=read", "pulls/get"),
    (
        "pull_requests=read",
        """pulls/list pulls/list-files pulls/list-commits pulls/check-if-merged
        pulls/list-requested-reviewers pulls/list-reviews pulls/get-review
        pulls/list-comments-for-review pulls/list-review-comments pulls/get-review-comment
        reactions/list-for-pull-request-review-comment""",
    ),
    (
        "pull_requests=write",
        """pulls/create pulls/update pulls/update-branch pulls/request-reviewers
        pulls/remove-requested-reviewers pulls/create-review pulls/submit-review
        pulls/dismiss-review pulls/update-review pulls/delete-pending-review
        pulls/create-review-comment pulls/create-reply-for-review-comment
        pulls/update-review-comment pulls/delete-review-comment
        reactions/create-for-pull-request-review-comment
        reactions/delete-for-pull-request-comment""",
    ),
)
"""Operation -> the sets of permissions, one of which an installation token must hold."""

APP_ONLY = _words(
    """apps/get-authenticated apps/list-installations apps/get-installation
    apps/suspend-installation apps/unsuspend-installation apps/delete-installation
    apps/create-installation-access-token apps/get-repo-installation apps/get-org-installation
    apps/get-user-installation apps/list-webhook-deliveries apps/get-webhook-delivery
    apps/redeliver-webhook-delivery apps/get-webhook-config-for-app
    apps/update-webhook-config-for-app"""
)
"""Operations that only the App itself may call, with its JSON web token."""

INSTALLATION_ONLY = _words(
    """apps/list-repos-accessible-to-installation apps/revoke-installation-access-token"""
)
"""Operations that any installation token may call and nobody else."""

USER_ONLY = frozenset({"users/get-authenticated"})
"""Operations that only a person's token may call."""

OPERATIONS = frozenset(INSTALLATION_NEEDS) | APP_ONLY | INSTALLATION_ONLY | USER_ONLY
"""Every operation that the sandbox answers."""

_READER_MAY = _words(
    """issues/create issues/create-comment reactions/create-for-issue reactions/delete-for-issue
    reactions/create-for-issue-comment reactions/delete-for-issue-comment
    reactions/create-for-pull-request-review-comment reactions/delete-for-pull-request-comment
    pulls/create-review pulls/submit-review pulls/update-review pulls/delete-pending-review
    pulls/create-review-comment pulls/create-reply-for-review-comment pulls/create repos/create-fork"""
)
_ADMIN_ONLY = _words("repos/update repos/transfer repos/list-teams")
_AUTHOR_OR_TRIAGE = frozenset({"issues/update", "pulls/update"})
_AUTHOR_OR_WRITER = _words(
    """issues/update-comment issues/delete-comment pulls/update-review-comment pulls/delete-review-comment"""
)
_TRIAGE_MAY = _words(
    """issues/add-labels issues/remove-label issues/remove-all-labels issues/set-labels
    issues/add-assignees issues/remove-assignees pulls/request-reviewers
    pulls/remove-requested-reviewers"""
)


def role_needed(operation: str, *, author: bool) -> str:
    """The least role with which a person may call ``operation``.

    Args:
        operation: OpenAPI operation id, such as ``issues/create-comment``.
        author: whether the person wrote the thing that the call changes.
    """
    if operation in _AUTHOR_OR_TRIAGE:
        return "read" if author else "triage"
    if operation in _AUTHOR_OR_WRITER:
        return "read" if author else "write"
    if operation in _TRIAGE_MAY:
        return "triage"
    if operation in _ADMIN_ONLY:
        return "admin"
    writes = any("write" in one.values() for one in INSTALLATION_NEEDS.get(operation, ()))
    return "write" if writes and operation not in _READER_MAY else "read"


def covers(granted: Mapping[str, str], needed: Mapping[str, str]) -> bool:
    """Whether ``granted`` holds at least every level that ``needed`` names."""
    return all(LEVELS.get(granted.get(name, ""), 0) >= LEVELS[level] for name, level in needed.items())


def installation_may(operation: str, granted: Mapping[str, str]) -> bool:
    """Whether an installation token with these permissions may call ``operation``."""
    return any(covers(granted, needed) for needed in INSTALLATION_NEEDS.get(operation, ()))


def accepted_header(operation: str) -> str:
    """The value of ``X-Accepted-GitHub-Permissions`` for ``operation``."""
    return "; ".join(
        ",".join(f"{name}={level}" for name, level in one.items())
        for one in INSTALLATION_NEEDS.get(operation, ())
    )


def role_as_permission(role: str) -> str:
    """The coarse word that GitHub reports beside ``role_name``: maintain is write, triage is read."""
    return {"maintain": "write", "triage": "read"}.get(role, role)


def highest(roles: Iterable[str]) -> str:
    """The strongest of several roles."""
    return max(roles, key=ROLES.__getitem__, default="none")
