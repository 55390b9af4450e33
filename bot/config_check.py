"""The check run `agent/config`: whether the configuration and the profiles that a pull request brings can be used."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from bot.annotations import Annotation
from bot.check_runs import CheckRun, CheckRuns
from bot.config import Settings
from bot.facts import FactFinder
from bot.github_errors import NotFound
from bot.model import Repo
from bot.profiles import FOLDER, ProfileError, find, name_of, names_not_there
from bot.profiles import read as read_profile
from bot.render import render
from bot.repo_config import PATH, RepoConfig, RepoConfigError, read
from bot.repo_layers import NotOffered, not_offered, without_effect
from bot.repo_rules import People
from bot.yaml_text import Document, Problem

log = structlog.get_logger(__name__)

CHECK_NAME = "agent/config"
#: More profiles of one pull request are not read.
MAX_PROFILES = 30
_EXTERNAL_ID = re.compile(r"config/(\d{1,10})/[0-9a-f]{16}")


@dataclass(frozen=True)
class Judged:
    """What was found in one file: what makes it unusable, and what has no effect."""

    path: str
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Config:
    text: str | None  # None: it is no text, for the reasons in ``problems``
    problems: Sequence[Problem] = ()


class ConfigCheck:
    """Looks at pull requests that add, change or take away one of the files."""

    def __init__(
        self, facts: FactFinder, checks: CheckRuns, settings: Settings, known_agents: tuple[str, ...]
    ) -> None:
        self._facts = facts
        self._checks = checks
        self._settings = settings
        self._known_agents = known_agents

    async def look(self, repo: Repo, number: int) -> bool | None:
        """Check the files as they are at the pull request's head now, and say it in a check run.

        Returns whether they can be used; None when the pull request does not touch them. May be repeated.
        """
        try:
            pull = await self._facts.pull(repo, number)
        except NotFound:
            return None
        if not pull.open:
            return None
        sha = pull.head_sha
        config, profiles = await asyncio.gather(
            self._config_at(repo, sha), self._facts.profile_paths(repo, sha)
        )
        if config is None and not profiles:
            return None  # most pull requests: nothing more is asked about them
        paths, _ = await self._facts.changed_paths(repo, number)
        changed = [path for path in paths if name_of(path) is not None]
        if PATH not in paths and not changed:
            return None
        names = [name_of(path) or "" for path in profiles]
        judged = []
        if config is not None and PATH in paths:
            judged.append(await self._judge(repo, sha, config, names))
        elif config is not None and config.text is not None:
            judged += _names(config.text, names, changed)
        touched = [path for path in profiles if path in changed]
        judged += [await self._profile(repo, sha, path, profiles) for path in touched[:MAX_PROFILES]]
        if not judged:  # taken away, and nothing names them
            return None
        if len(touched) > MAX_PROFILES:
            said = f"{len(touched) - MAX_PROFILES} more profiles of this pull request were not checked"
            judged.append(Judged(FOLDER, (), (Problem(said, 1, 1),)))
        await self._checks.put(repo, sha, _run(number, judged))
        problems = [f"{one.path}: {problem}" for one in judged for problem in one.problems]
        log.info("configuration checked", repo=repo.full_name, number=number, problems=problems)
        return not problems

    async def _config_at(self, repo: Repo, sha: str) -> _Config | None:
        """The configuration's file, or why it is none; None when there is no such file."""
        try:
            text = await self._facts.config_at(repo, sha)
        except RepoConfigError as error:
            return _Config(None, error.problems)
        return None if text is None else _Config(text)

    async def _profile(self, repo: Repo, sha: str, path: str, profiles: Sequence[str]) -> Judged:
        """One profile that the pull request brings."""
        name = name_of(path) or ""
        try:
            find(name, profiles)
            profile, remarks = read_profile(await self._facts.profile_text(repo, path, sha), name, path=path)
        except ProfileError as error:
            return Judged(path, error.problems)
        usable = [name for name in self._settings.agents if name in self._known_agents]
        if profile.agent is not None and profile.agent not in usable:
            listed = ", ".join(f"`{one}`" for one in usable)
            said = f"The agent `{profile.agent}` is not offered here; there are {listed}."
            remarks = [Problem(said, 1, 1), *remarks]
        return Judged(path, (), tuple(remarks))

    async def _judge(self, repo: Repo, sha: str, found: _Config, names: Sequence[str]) -> Judged:
        """What makes the file unusable, and what it asks for in vain. ``names``: of the repository's own profiles."""
        if found.text is None:
            return Judged(PATH, tuple(found.problems))
        try:
            own, document = read(found.text)
        except RepoConfigError as error:
            return Judged(PATH, error.problems)
        try:
            config = await self._facts.with_default(repo, own)
        except RepoConfigError as error:
            return Judged(PATH, (Problem(error.message, 1, 1),))
        missing = not_offered(config, self._settings, self._known_agents)
        missing += names_not_there(config, names)
        missing += without_effect(own, config)
        missing += await self._unknown_owners(repo, sha, own)
        return _judged(PATH, missing, document)

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


def _names(text: str, names: Sequence[str], changed: Sequence[str]) -> list[Judged]:
    """What a configuration that the pull request does not change misses, because that takes profiles away."""
    try:
        config, document = read(text)
    except RepoConfigError:
        return []  # it could not be used before, either
    before = [*names, *(name_of(path) or "" for path in changed)]
    were_not = {one.place for one in names_not_there(config, before)}
    missing = [one for one in names_not_there(config, names) if one.place not in were_not]
    return [_judged(PATH, missing, document)] if missing else []


def _judged(path: str, missing: Sequence[NotOffered], document: Document) -> Judged:
    """What is asked for in vain, each once, where it stands."""
    said = {(one.stops, Problem(one.said, *document.place(one.place))): None for one in missing}
    return Judged(
        path,
        tuple(problem for stops, problem in said if stops),
        tuple(problem for stops, problem in said if not stops),
    )


def _run(number: int, judged: Sequence[Judged]) -> CheckRun:
    """The check run for what was found in these files."""
    lines = [f"{one.path}: {problem}" for one in judged for problem in (*one.problems, "", *one.remarks)]
    count = sum(len(one.problems) for one in judged)
    wrong = [one.path for one in judged if one.problems]
    title = "The configuration can be used"
    if count:
        where = wrong[0] if len(wrong) == 1 else f"{len(wrong)} files"
        title = f"{count} problem{'s' if count > 1 else ''} in {where}"
    return CheckRun(
        name=CHECK_NAME,
        # annotations cannot be taken back: another answer for the same commit is another run
        external_id=f"config/{number}/{hashlib.sha256(chr(0).join(lines).encode()).hexdigest()[:16]}",
        title=title,
        summary=render("check/config.md.j2", path=PATH, judged=judged),
        conclusion="failure" if count else "success",
        annotations=[
            *(_annotation(one.path, problem, "failure") for one in judged for problem in one.problems),
            *(_annotation(one.path, remark, "warning") for one in judged for remark in one.remarks),
        ],
    )


def _annotation(path: str, problem: Problem, level: str) -> Annotation:
    return Annotation(
        path=path, start_line=problem.line, column=problem.column, level=level, message=problem.message
    )
