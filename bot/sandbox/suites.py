"""Check suites: one for each App and commit."""

from __future__ import annotations

from bot.sandbox.github import GitHub
from bot.sandbox.state import CheckSuite, Repository


def suite_for(
    github: GitHub, repository: Repository, sha: str, branch: str | None, app: str | None = None
) -> CheckSuite:
    """An App's suite on a commit; made on first need."""
    for suite in repository.check_suites.values():
        if (suite.head_sha, suite.app) == (sha, app):
            return suite
    now = github.now()
    suite = CheckSuite(github.world.next_id(), sha, branch, now, now, app)
    repository.check_suites[suite.id] = suite
    return suite
