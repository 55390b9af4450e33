"""Work in progress as a file: a git bundle of what an attempt pushed into its quarantine and did not publish.

It is given back only into a container, which could have made every byte of it anyway.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from bot.errors import InfrastructureError
from runners.git import WARY, GitError, git
from runners.quarantine import CHECKPOINT, WORK, head

MAX_NEEDS = 200  # commits that a bundle stands on
_MAX_HEADER = 64 * 1024
_PREREQUISITE = re.compile(rb"-([0-9a-f]{40})(?: .*)?")
_HEAD = re.compile(rb"([0-9a-f]{40}) (refs/heads/[a-z]+)")


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of itself: the commit it brings and those that must be there before."""

    head: str
    ref: str
    needs: frozenset[str]


async def pack(quarantine: Path, base_sha: str, to: Path, *, finished: bool) -> bool:
    """Write a bundle of the newest work above ``base_sha`` to ``to``; False when there is none.

    ``finished``: the turn has ended, so what it handed in counts; else the last checkpoint. Raises
    InfrastructureError when git cannot do it.
    """
    for branch in (WORK, CHECKPOINT) if finished else (CHECKPOINT, WORK):
        sha = await head(quarantine, branch)
        if sha is not None:
            break
    else:
        return False
    if sha == base_sha:
        return False
    to.unlink(missing_ok=True)
    try:
        await git(
            "bundle", "create", "--quiet", str(to), f"^{base_sha}", f"refs/heads/{branch}",
            git_dir=quarantine, env=WARY,
        )  # fmt: skip
    except GitError as error:
        if "empty bundle" in error.stderr:
            return False
        raise InfrastructureError(f"The work in progress cannot be kept: {error}.") from error
    return True


async def unpack(bundle: Path, quarantine: Path) -> str | None:
    """Take a bundle's commits into a bare repository of ours; returns the newest one, or None when they do not fit.

    Nothing is checked out, and no ref is made. Raises InfrastructureError.
    """
    found = await describe(bundle)
    if found is None:
        return None
    try:
        # as objects only: https://git-scm.com/docs/git-bundle ("unbundle"); ours, so no transport need be allowed
        await git("bundle", "unbundle", str(bundle), git_dir=quarantine, env=WARY)
    except GitError as error:
        if error.code in (1, 128):
            return None
        raise InfrastructureError(f"The kept work cannot be read: {error}.") from error
    return found.head


async def describe(bundle: Path) -> Bundle | None:
    """What is in a bundle, by its header (https://git-scm.com/docs/gitformat-bundle); None when it is none of ours."""
    try:
        header = await asyncio.to_thread(_header, bundle)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InfrastructureError(
            f"{bundle} cannot be read: {error}.", "Check the disk of DATA_DIR."
        ) from error
    lines = header.split(b"\n\n", 1)[0].split(b"\n")
    if lines[0] != b"# v2 git bundle":
        return None
    needs, heads = set(), []
    for line in lines[1:]:
        if found := _PREREQUISITE.fullmatch(line):
            needs.add(found[1].decode())
        elif found := _HEAD.fullmatch(line):
            heads.append((found[1].decode(), found[2].decode()))
        else:
            return None
    return Bundle(*heads[0], frozenset(needs)) if len(heads) == 1 else None


async def began_at(bundle: Bundle, mirror: Path) -> str | None:
    """The commit of ``mirror`` that the work began at; None when it does not fit there.

    Work that merged another branch needs several commits: then it is the one that has all the others below it
    (https://git-scm.com/docs/git-merge-base, ``--independent``). Raises InfrastructureError.
    """
    if not 0 < len(bundle.needs) <= MAX_NEEDS:
        return None
    try:
        found = await git("merge-base", "--independent", *sorted(bundle.needs), git_dir=mirror)
    except GitError as error:
        if error.code in (1, 128):  # it has not all of them
            return None
        raise InfrastructureError(f"The mirror cannot be read: {error}.") from error
    tops = found.text.split()
    return tops[0] if len(tops) == 1 else None


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_HEADER)
