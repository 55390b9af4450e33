"""Which changes of branches GitHub refuses; the pre-receive hook says the same to those who push."""

from __future__ import annotations

from bot.sandbox.api import Call
from bot.sandbox.permissions import accepted_header
from bot.sandbox.refusals import Refusal
from bot.sandbox.signatures import RULE, check_signatures

WORKFLOWS = ".github/workflows/"


def may_write_workflows(call: Call) -> bool:
    """Whether the caller may touch workflow files: people may, an App needs ``workflows``."""
    return call.actor.token is None or call.actor.token.permissions.get("workflows") == "write"


async def check_branch(call: Call, ref: str, commit: str | None) -> None:
    """Refuse a change of a protected branch, and a workflow file by an App that may not.

    Args:
        call: the call that wants the change.
        ref: full name of the ref.
        commit: where the ref shall point; None when it shall go.

    Raises:
        Refusal: 422 or 403.
    """
    if ref.removeprefix("refs/heads/") in call.repository.protected_branches:
        raise Refusal(422, "Changes must be made through a pull request.")
    if commit is None:
        return
    if await check_signatures(call.github, call.repository, ref, commit):
        raise Refusal(422, f"Repository rule violations found\n\n{RULE}")
    if may_write_workflows(call):
        return
    new = ["log", "--format=", "--name-only", "-m", commit, "--not", "--all", "--", WORKFLOWS]
    if await call.git.text(*new):
        headers = {"X-Accepted-GitHub-Permissions": accepted_header(call.operation)}
        raise Refusal(403, "Resource not accessible by integration", headers=headers)
