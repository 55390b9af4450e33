"""What stands against merging a pull request: conflicts, and what the base branch's rules ask for.

https://docs.github.com/en/repositories/configuring-branches-and-merges-in-your-repository/managing-protected-branches/about-protected-branches
"""

from __future__ import annotations

from bot.sandbox.git import GitRepository
from bot.sandbox.github import GitHub
from bot.sandbox.permissions import ROLES
from bot.sandbox.state import BranchRules, Issue, Pull, Repository, Review

_PASSED = frozenset({"success", "neutral", "skipped"})


def rules_for(repository: Repository, branch: str) -> BranchRules:
    """What merging into the branch takes."""
    return repository.branch_rules.get(branch, BranchRules())


def opinions(pull: Pull) -> dict[str, Review]:
    """Everybody's newest review that approves or requests changes and was not dismissed."""
    found: dict[str, Review] = {}
    for review in pull.reviews.values():
        if review.state in ("APPROVED", "CHANGES_REQUESTED"):
            found[review.login] = review
        elif review.state == "DISMISSED":
            found.pop(review.login, None)
    return found


def review_decision(github: GitHub, repository: Repository, pull: Pull) -> str | None:
    """What GitHub makes of the reviews: only those by people with write permission count."""
    states = [
        one.state
        for login, one in opinions(pull).items()
        if ROLES[github.world.role(repository, login)] >= ROLES["write"]
    ]
    needed = rules_for(repository, pull.base_ref).required_reviews
    if "CHANGES_REQUESTED" in states:
        return "CHANGES_REQUESTED"
    if states and states.count("APPROVED") >= needed:
        return "APPROVED"
    return "REVIEW_REQUIRED" if needed else None


def missing_checks(repository: Repository, branch: str, sha: str) -> list[str]:
    """Sentences about the required checks that are not successful at a commit."""
    sentences = []
    for name in rules_for(repository, branch).required_checks:
        runs = [one for one in repository.check_runs.values() if (one.name, one.head_sha) == (name, sha)]
        statuses = [one for one in repository.statuses if (one.context, one.sha) == (name, sha)]
        if not runs and not statuses:
            sentences.append(f'Required status check "{name}" is expected.')
        elif not (
            (runs and runs[-1].conclusion in _PASSED) or (statuses and statuses[-1].state == "success")
        ):
            failed = (runs and runs[-1].conclusion) or (
                statuses and statuses[-1].state in ("failure", "error")
            )
            sentences.append(f'Required status check "{name}" is {"failing" if failed else "in progress"}.')
    return sentences


def missing(github: GitHub, repository: Repository, pull: Pull) -> list[str]:
    """Sentences about what the base branch's rules still ask for."""
    sentences = missing_checks(repository, pull.base_ref, pull.head_sha)
    decision = review_decision(github, repository, pull)
    if rules_for(repository, pull.base_ref).required_reviews and decision != "APPROVED":
        if decision == "CHANGES_REQUESTED":
            sentences.append("Changes have been requested.")
        else:
            sentences.append("At least 1 approving review is required by reviewers with write access.")
    return sentences


async def can_merge(git: GitRepository, pull: Pull) -> bool:
    """Whether git can merge the head into the base without conflicts."""
    tip = await git.resolve(f"refs/heads/{pull.base_ref}")
    return tip is not None and await git.merge(tip, pull.head_sha) is not None


async def merge_state(github: GitHub, repository: Repository, issue: Issue, pull: Pull) -> str:
    """``mergeable_state`` in small letters, as REST says it."""
    if issue.state != "open":
        return "unknown"
    if not await can_merge(github.git(repository), pull):
        return "dirty"
    if pull.draft:
        return "draft"
    if missing(github, repository, pull):
        return "blocked"
    runs = {one.name: one for one in repository.check_runs.values() if one.head_sha == pull.head_sha}
    return "unstable" if any(one.conclusion not in _PASSED for one in runs.values()) else "clean"
