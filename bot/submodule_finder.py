"""Which submodules an attempt gets: found, allowed and fetched by the host, before there is a container.

``.gitmodules`` is read with plumbing from a commit that the asker could not change by a pull request; each submodule's
commit is what the tree to work on names. A submodule is served only

- from our GitHub, and where the App's installation may read it, or everybody may;
- when it is private: to a private repository, and for an asker who may read it. Whoever may write to one repository
  must not read another one through an agent, and an agent must not carry it into a public pull request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bot.changes import shown
from bot.errors import ConductorError, InfrastructureError, JobFailed
from bot.facts import FactFinder, OtherRepository
from bot.github import GitHub
from bot.github_errors import Forbidden, NotFound, Unprocessable
from bot.model import Job, Repo
from bot.standing import at_least
from bot.submodules import (
    FILE,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_SUBMODULES,
    BadSubmodule,
    Declared,
    check_place,
    declared,
    repository_of,
)
from bot.terms import SubmoduleTerms
from runners.git import WARY, GitError, git
from runners.mirrors import Mirrors

log = structlog.get_logger(__name__)

_READ = {"contents": "read"}
_GITLINK = "160000"


@dataclass
class Found:
    """What there is, parents first, and sentences about what there is not."""

    submodules: list[SubmoduleTerms] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A repository whose submodules are looked for."""

    full_name: str
    mirror: Path
    declared_at: str  # the commit whose .gitmodules counts
    tree: str  # the commit whose tree counts
    path: str  # from the work tree's root; "" for the job's own repository
    depth: int
    private: bool  # or below a private one


class SubmoduleFinder:
    """Finds the submodules of jobs of this host."""

    def __init__(self, *, github_url: str, github: GitHub, facts: FactFinder, mirrors: Mirrors) -> None:
        self._github_url = github_url
        self._github = github
        self._facts = facts
        self._mirrors = mirrors

    async def find(self, job: Job, mirror: Path, *, attempt: str, declared_at: str, tree: str) -> Found:
        """Fetch the submodules of ``job``, those of submodules too, into mirrors that ``attempt`` borrows.

        ``declared_at`` is the commit whose ``.gitmodules`` counts, ``tree`` the one whose tree does. What cannot be
        had is in ``missing``; raises InfrastructureError only when the disk or GitHub fails as a whole.
        """
        found = Found()
        own = await self._facts.other_repository(job.repo, job.repo.full_name)
        levels = [
            _Level(
                full_name=job.repo.full_name,
                mirror=mirror,
                declared_at=declared_at,
                tree=tree,
                path="",
                depth=1,
                private=own is not None and own.private,
            )
        ]
        while levels:
            level = levels.pop(0)
            for submodule, commit in await self._listed(level, found):
                path = f"{level.path}/{submodule.path}".lstrip("/")
                try:
                    if len(found.submodules) >= MAX_SUBMODULES:
                        raise BadSubmodule(f"there are more than {MAX_SUBMODULES}")
                    if level.depth > MAX_DEPTH:
                        raise BadSubmodule(f"it is nested more than {MAX_DEPTH} deep")
                    terms, below = await self._fetch(job, level, submodule, commit, path, attempt)
                except (BadSubmodule, JobFailed) as error:
                    found.missing.append(f"`{shown(path, 100)}`: {_reason(error)}")
                    continue
                found.submodules.append(terms)
                levels.append(below)
        if found.submodules or found.missing:
            log.info("submodules", found=len(found.submodules), missing=found.missing, **job.log_context())
        return found

    async def _listed(self, level: _Level, found: Found) -> Sequence[tuple[Declared, str]]:
        """The submodules of one repository with their commits."""
        try:
            entries = await _entries(level.mirror, level.declared_at, [FILE])
            mode, oid = entries.get(FILE, ("", ""))
            if not mode.startswith("100"):
                return []  # none, or a link to somewhere
            size = await git("cat-file", "-s", oid, git_dir=level.mirror, env=WARY)
            if int(size.text) > MAX_BYTES:
                found.missing.append(f"`{FILE}` is larger than {MAX_BYTES // 1024} KiB")
                return []
            text = await git(
                "config", "--blob", oid, "--no-includes", "-z", "--list", git_dir=level.mirror, env=WARY
            )
        except GitError as error:
            found.missing.append(
                f"`{FILE}` of {level.full_name} cannot be read: {error.stderr.strip()[:200]}"
            )
            return []
        pairs = [entry.partition("\n") for entry in text.text.split("\0") if entry]
        listed = []
        for submodule in declared((key, value) for key, _, value in pairs):
            try:
                check_place(submodule)
            except BadSubmodule as error:
                found.missing.append(f"`{shown(submodule.path, 100)}`: {error}")
            else:
                listed.append(submodule)
        places = await _entries(level.mirror, level.tree, [submodule.path for submodule in listed])
        return [
            (submodule, places[submodule.path][1])
            for submodule in listed
            if places.get(submodule.path, ("", ""))[0] == _GITLINK  # else declared, but not in the tree
        ]

    async def _fetch(
        self, job: Job, level: _Level, submodule: Declared, commit: str, path: str, attempt: str
    ) -> tuple[SubmoduleTerms, _Level]:
        """Fetch one. Raises BadSubmodule, or JobFailed for what its repository says."""
        name = repository_of(submodule.url, parent=level.full_name, github_url=self._github_url)
        other = await self._facts.other_repository(job.repo, name)
        if other is None:
            raise BadSubmodule(f"there is no {name}, or the App is not installed on it")
        owner, _, short = other.full_name.partition("/")
        repo = Repo(owner=owner, name=short, id=other.id, installation_id=job.repo.installation_id)
        await self._check_asker(job, level, other, repo)
        token = await self._token(repo, other)
        url = f"{self._github_url}/{other.full_name}.git"
        try:
            mirror = await self._mirrors.fetch(repo, url=url, token=token, borrower=attempt)
            await self._mirrors.fetch_commit(repo, commit, url=url, token=token)
        except InfrastructureError as error:
            raise BadSubmodule(f"{other.full_name} could not be fetched ({error.message})") from error
        terms = SubmoduleTerms(
            path=path,
            parent=level.path,
            name=submodule.name,
            repository=other.full_name,
            repo_id=other.id,
            commit=commit,
            anonymous=not token,
        )
        below = _Level(
            full_name=other.full_name,
            mirror=mirror,
            declared_at=commit,
            tree=commit,
            path=path,
            depth=level.depth + 1,
            private=level.private,
        )
        return terms, below

    async def _check_asker(self, job: Job, level: _Level, other: OtherRepository, repo: Repo) -> None:
        if not other.private:
            return
        if not level.private:
            raise BadSubmodule(f"{other.full_name} is private, and this repository is public")
        asker = job.trigger.actor.login
        if not at_least(await self._facts.permission(repo, asker), "read"):
            raise BadSubmodule(f"@{asker}, who asked for this, may not read {other.full_name}")

    async def _token(self, repo: Repo, other: OtherRepository) -> str:
        """A token that may read this one repository; "" where the App is not installed and everybody may."""
        try:
            token = await self._github.token(repo.installation_id, repository_id=repo.id, permissions=_READ)
        except (Unprocessable, NotFound, Forbidden) as error:
            if other.private:
                raise BadSubmodule(f"the App is not installed on {other.full_name}") from error
            return ""
        return token.value


def _reason(error: ConductorError | BadSubmodule) -> str:
    return error.message if isinstance(error, ConductorError) else str(error)


async def _entries(mirror: Path, commit: str, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Mode and object id of those of ``paths`` that are in the tree. Raises GitError."""
    if not paths:
        return {}
    listed = await git(
        "ls-tree",
        "-z",
        "--full-tree",
        commit,
        "--",
        *paths,
        git_dir=mirror,
        env={**WARY, "GIT_LITERAL_PATHSPECS": "1"},
    )
    found = {}
    for line in listed.text.split("\0"):
        if line:
            entry, _, path = line.partition("\t")
            mode, _, oid = entry.split(" ")
            found[path] = (mode, oid)
    return found


def note_for_agents(submodules: Sequence[SubmoduleTerms], missing: Sequence[str]) -> str:
    """What an agent must know about them; empty when there is nothing to know."""
    lines = []
    if submodules:
        names = ", ".join(f"`{one.path}`" for one in submodules)
        lines.append(
            f"These folders are submodules: {names}. You may read them; changes inside are not published."
        )
    if missing:
        lines.append(
            "These submodules could not be had, so their folders are empty: " + "; ".join(missing) + "."
        )
    return "\n".join(lines)


def note_for_people(missing: Sequence[str]) -> str:
    """The same for the comment."""
    if not missing:
        return ""
    return "**Worked without these submodules:**\n\n" + "\n".join(f"- {sentence}" for sentence in missing)
