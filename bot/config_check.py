"""The check run `agent/config`: whether the configuration that a pull request brings along can be used."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import structlog

from bot.annotations import Annotation
from bot.check_runs import CheckRun, CheckRuns
from bot.config import Settings
from bot.facts import FactFinder
from bot.github_errors import NotFound
from bot.model import Repo
from bot.render import render
from bot.repo_config import PATH, RepoConfig, RepoConfigError, read
from bot.repo_layers import NotOffered, not_offered, without_effect
from bot.repo_rules import People
from bot.yaml_text import Problem

log = structlog.get_logger(__name__)

CHECK_NAME = "agent/config"
_EXTERNAL_ID = re.compile(r"config/(\d{1,10})/[0-9a-f]{16}")


class ConfigCheck:
    """Looks at pull requests that add or change the file."""

    def __init__(
        self, facts: FactFinder, checks: CheckRuns, settings: Settings, known_agents: tuple[str, ...]
    ) -> None:
        self._facts = facts
        self._checks = checks
        self._settings = settings
        self._known_agents = known_agents

    async def look(self, repo: Repo, number: int) -> bool | None:
        """Check the file as it is at the pull request's head now, and say it in a check run.

        Returns whether it can be used; None when the pull request does not touch it. May be repeated.
        """
        try:
            pull = await self._facts.pull(repo, number)
        except NotFound:
            return None
        if not pull.open:
            return None
        problems: Sequence[Problem] = ()
        text = None
        try:
            text = await self._facts.config_at(repo, pull.head_sha)
            if text is None:
                return None  # most pull requests: nothing more is asked about them
        except RepoConfigError as error:
            problems = error.problems
        paths, _ = await self._facts.changed_paths(repo, number)
        if PATH not in paths:
            return None
        remarks: Sequence[Problem] = ()
        if text is not None:
            problems, remarks = await self._judge(repo, pull.head_sha, text)
        digest = hashlib.sha256("\0".join(map(str, (*problems, "", *remarks))).encode()).hexdigest()[:16]
        title = "The configuration can be used"
        if problems:
            title = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {PATH}"
        await self._checks.put(
            repo,
            pull.head_sha,
            CheckRun(
                name=CHECK_NAME,
                # annotations cannot be taken back: another answer for the same commit is another run
                external_id=f"config/{number}/{digest}",
                title=title,
                summary=render("check/config.md.j2", path=PATH, problems=problems, remarks=remarks),
                conclusion="failure" if problems else "success",
                annotations=[
                    *(_annotation(problem, "failure") for problem in problems),
                    *(_annotation(remark, "warning") for remark in remarks),
                ],
            ),
        )
        log.info(
            "configuration checked", repo=repo.full_name, number=number, problems=[str(p) for p in problems]
        )
        return not problems

    async def _judge(self, repo: Repo, sha: str, text: str) -> tuple[Sequence[Problem], Sequence[Problem]]:
        """What makes the file unusable, and what it asks for in vain."""
        try:
            own, document = read(text)
        except RepoConfigError as error:
            return error.problems, ()
        try:
            config = await self._facts.with_default(repo, own)
        except RepoConfigError as error:
            return [Problem(error.message, 1, 1)], ()
        missing = not_offered(config, self._settings, self._known_agents)
        missing += without_effect(own, config)
        missing += await self._unknown_owners(repo, sha, own)
        return (
            [Problem(one.said, *document.place(one.place)) for one in missing if one.stops],
            [Problem(one.said, *document.place(one.place)) for one in missing if not one.stops],
        )

    async def _unknown_owners(self, repo: Repo, sha: str, own: RepoConfig) -> list[NotOffered]:
        """Code owners that are named in a way that only GitHub understands."""
        place = next((place for place, rule in _groups(own) if rule.codeowners), None)
        if place is None:
            return []
        owners = await self._facts.people.codeowners(repo, sha)
        # the addresses are not repeated: a check run is read by more people than the file
        count = sum(not owner.startswith("@") for owner in owners.everybody())
        if not count:
            return []
        are = f"{count} code owner{'s are' if count > 1 else ' is'}"
        said = (
            f"{are} named by an e-mail address in CODEOWNERS. Only GitHub can tell whose that is, so that they count "
            "for nobody here. Name them as `@login`."
        )
        return [NotOffered((*place, "codeowners"), said, stops=False)]


def _groups(config: RepoConfig) -> list[tuple[tuple[str, str], People]]:
    """The groups of people that a configuration knows, and where they stand in it."""
    approvals, who = config.approvals, config.who
    return [
        (("approvals", "final"), approvals.final),
        (("approvals", "request"), approvals.request),
        (("who", "may_ask"), who.may_ask),
        (("who", "may_approve"), who.may_approve),
        (("who", "may_spend"), who.may_spend),
    ]


def number_of(external_id: str) -> int | None:
    """The pull request of a check run of ours by its external id; None when that is none of this kind."""
    match = _EXTERNAL_ID.fullmatch(external_id)
    return int(match[1]) if match else None


def _annotation(problem: Problem, level: str) -> Annotation:
    return Annotation(
        path=PATH, start_line=problem.line, column=problem.column, level=level, message=problem.message
    )
