"""Bare mirrors of the repositories that this host works on: one per installation and repository id.

An attempt's container sees its repository's mirror read-only and clones from it with ``--shared``, and an
attempt's quarantine reads its objects through ``alternates``. So nothing is ever removed from a mirror's
objects: no gc, no repack, no prune of objects. Refs of deleted branches do go.

Layout below the root::

    <installation>/<repo id>.git         the mirror
    <installation>/<repo id>.lock        held (flock) while it is made or updated, by whichever process
    <installation>/<repo id>.new         a first clone that is still under way
    <installation>/<repo id>.borrowers/  one empty file for each attempt that reads the mirror
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from bot.branches import valid_branch, valid_ref
from bot.errors import InfrastructureError, JobFailed
from bot.model import FailureKind, Phase, Repo
from runners.git import GitError, git, protocols_for, remote_failure, with_token

#: Seconds for the first fetch of a repository, and for each one after it.
CLONE_TIMEOUT = 1800.0
UPDATE_TIMEOUT = 300.0
_LOCK_POLL = 0.05  # seconds; flock cannot be awaited

# The mirror's own configuration file. uploadpack.*: a container without the mount fetches through the gateway;
# it may ask for the base commit even if its branch has moved meanwhile (it is the same repository).
_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tbare = true
\tlogAllRefUpdates = false
\thooksPath = /dev/null
[gc]
\tauto = 0
[maintenance]
\tauto = false
[http]
\treceivepack = false
[uploadpack]
\tallowAnySHA1InWant = true
\tallowFilter = true
[pack]
\tthreads = 1
"""

# Git's words for a store that is broken, not for a remote that is.
_DAMAGE = re.compile(
    r"object file .* is empty|is corrupt|corrupt (loose )?object|inflate: data stream error|bad object"
    r"|not a git repository|unable to (read|parse|find) [0-9a-f]{40}|missing (blob|tree|commit|necessary)"
    r"|packfile .* (cannot be accessed|is far too short|index unavailable|does not match)"
    r"|did not send all necessary objects|pack has bad object|index file .* (is too small|corrupt)"
    r"|loose object .* \(stored in|failed to (read|parse|traverse)|bad (signature|config|tree object)"
    r"|unresolved deltas|could not parse|does not point to a valid object|wrong (index|packfile)",
    re.IGNORECASE,
)
_SHA = re.compile(r"[0-9a-f]{40}")
_BORROWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Mirrors:
    """The mirrors below ``root``. Any number of processes of this host may use the same root at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    def path(self, repo: Repo) -> Path:
        """Where the mirror of ``repo`` is (or will be): by ids, so a renamed repository keeps its mirror."""
        return self.root / str(int(repo.installation_id)) / f"{int(repo.id)}.git"

    async def fetch(
        self,
        repo: Repo,
        *,
        url: str,
        token: str,
        refs: Sequence[str] = (),
        borrower: str | None = None,
        head: str | None = None,
        timeout: float | None = None,
    ) -> Path:
        """Bring the mirror of ``repo`` up to date with all branches of ``url``, and ``refs`` besides.

        ``refs`` are full names such as ``refs/pull/7/head``. ``borrower`` (an attempt's id) is noted before
        anybody else can touch the mirror and keeps it from being replaced until :meth:`release`. ``head`` is
        the default branch, for clones. ``timeout`` in seconds covers the transfer.
        Safe to repeat. Raises JobFailed in phase workspace for what people must change, InfrastructureError
        (GitHubUnavailable when GitHub does not answer) for the rest.
        """
        specs = ["+refs/heads/*:refs/heads/*", *(f"+{_checked_ref(ref)}:{ref}" for ref in refs)]
        mirror = self.path(repo)
        async with self._locked(mirror):
            if not (mirror / "HEAD").exists():
                await self._create(mirror, specs, url, token, repo, timeout)
            else:
                try:
                    await _fetch(mirror, specs, url, token, timeout or UPDATE_TIMEOUT)
                except GitError as error:
                    if not _DAMAGE.search(error.stderr):
                        raise _meaning(error, repo) from error
                    self._refuse_when_borrowed(mirror, repo, error)
                    await self._create(mirror, specs, url, token, repo, timeout)
            if head is not None and valid_branch(head):
                wanted = f"ref: refs/heads/{head}\n"
                if (mirror / "HEAD").read_text() != wanted:
                    await git("symbolic-ref", "HEAD", f"refs/heads/{head}", git_dir=mirror, umask=0o022)
            if borrower is not None:
                self._note(mirror, borrower)
        return mirror

    async def fetch_commit(self, repo: Repo, sha: str, *, url: str, token: str) -> None:
        """Make sure that the mirror of ``repo``, which was fetched before, has the commit ``sha`` and all below it.

        GitHub gives commits by their id, also those that only a tag leads to. Raises as :meth:`fetch`.
        """
        if not _SHA.fullmatch(sha):
            raise _no_such(sha)
        mirror = self.path(repo)
        async with self._locked(mirror):
            try:
                await git("cat-file", "-e", f"{sha}^{{commit}}", git_dir=mirror)
                return
            except GitError as error:
                if error.code not in (1, 128):
                    raise
            try:
                # under a ref, so that a later fetch knows that it is here
                await _fetch(mirror, [f"+{sha}:refs/conductor/{sha}"], url, token, UPDATE_TIMEOUT)
            except GitError as error:
                if "not our ref" in error.stderr or "no such remote ref" in error.stderr:
                    raise _no_such(sha) from error
                raise _meaning(error, repo) from error

    async def resolve(self, mirror: Path, ref: str) -> str:
        """The commit that ``ref`` (a full name, or 40 hex digits) is in ``mirror``.

        Raises JobFailed in phase workspace when there is no such commit.
        """
        if not _SHA.fullmatch(ref) and not valid_ref(ref):
            raise _no_such(ref)
        try:
            found = await git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", git_dir=mirror
            )
        except GitError as error:
            if error.code == 1:
                raise _no_such(ref) from error
            raise InfrastructureError(
                f"The mirror of the repository on this worker cannot be read: {error.stderr.strip()[:300]}.",
                "It is cloned again with the next job once no running job uses it.",
            ) from error
        return found.text

    def borrowers(self) -> set[str]:
        """Everyone who is noted as reading a mirror: the janitor releases those that are gone."""
        return {file.name for file in self.root.glob("*/*.borrowers/*")}

    def release(self, borrower: str) -> None:
        """Forget ``borrower`` in all mirrors. Safe to repeat."""
        for folder in self.root.glob("*/*.borrowers"):
            (folder / _checked_borrower(borrower)).unlink(missing_ok=True)

    async def _create(
        self, mirror: Path, specs: Sequence[str], url: str, token: str, repo: Repo, timeout: float | None
    ) -> None:
        """Make the mirror aside and move it into place: one that has a HEAD in its place is whole."""
        new = mirror.with_suffix(".new")
        old = mirror.with_suffix(".old")
        await asyncio.to_thread(_remove, new, old)
        try:
            await git("init", "--quiet", "--bare", "--template=", "--", str(new), umask=0o022)
            (new / "config").write_text(_CONFIG)
            await _fetch(new, specs, url, token, timeout or CLONE_TIMEOUT)
        except GitError as error:
            await asyncio.to_thread(_remove, new)
            raise _meaning(error, repo) from error
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_remove, new))
            raise
        new.chmod(0o755)  # whoever made the folder around it keeps strangers of this host out
        if mirror.exists():
            mirror.rename(old)
        new.rename(mirror)
        await asyncio.to_thread(_remove, old)

    def _refuse_when_borrowed(self, mirror: Path, repo: Repo, error: GitError) -> None:
        folder = mirror.with_suffix(".borrowers")
        names = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
        if names:
            raise InfrastructureError(
                f"The mirror of {repo.full_name} on this worker is damaged and still in use by "
                f"{', '.join(names)}: {error.stderr.strip()[:300]}.",
                "It is cloned again with the next job after those have ended.",
            ) from error

    def _note(self, mirror: Path, borrower: str) -> None:
        folder = mirror.with_suffix(".borrowers")
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / _checked_borrower(borrower)).touch()

    @contextlib.asynccontextmanager
    async def _locked(self, mirror: Path) -> AsyncIterator[None]:
        """One maker or updater of ``mirror`` at a time, in this process and in all others."""
        lock = self._locks.setdefault(mirror, asyncio.Lock())
        async with lock:
            # 0700: the mirrors themselves are readable by all, for the containers' users who get them mounted
            mirror.parent.mkdir(parents=True, exist_ok=True)
            mirror.parent.chmod(0o700)
            handle = os.open(mirror.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                await _flock(handle, mirror)
                yield
            finally:
                os.close(handle)


def beside(mirror: Path, repo_id: int) -> Path:
    """The mirror of another repository of the same installation."""
    return mirror.with_name(f"{int(repo_id)}.git")


async def _flock(handle: int, mirror: Path) -> None:
    """Take the lock, waiting as long as a first clone by another process may take."""
    try:
        async with asyncio.timeout(CLONE_TIMEOUT + UPDATE_TIMEOUT):
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_POLL)
                else:
                    return
    except TimeoutError as error:
        raise InfrastructureError(
            f"Another process has held the lock of the mirror {mirror.name} for too long.",
            f"Find it with `fuser {mirror.with_suffix('.lock')}`.",
        ) from error


async def _fetch(mirror: Path, specs: Sequence[str], url: str, token: str, timeout: float) -> None:
    await git(
        "fetch",
        "--quiet",
        "--prune",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-auto-maintenance",
        "--no-recurse-submodules",
        "--no-show-forced-updates",
        "--",
        url,
        *specs,
        git_dir=mirror,
        config=with_token(token, url),
        protocols=protocols_for(url),
        timeout=timeout,
        umask=0o022,
    )


def _meaning(error: GitError, repo: Repo) -> Exception:
    missing = re.search(r"couldn't find remote ref (\S+)", error.stderr)
    if missing:
        return _no_such(missing[1])
    return remote_failure(error, Phase.workspace, f"did not let us fetch {repo.full_name}")


def _no_such(ref: str) -> JobFailed:
    name = ref.removeprefix("refs/heads/")
    return JobFailed(
        Phase.workspace,
        FailureKind.configuration,
        f"The repository has no branch or commit {name!a}.",
        "Check the name (an empty repository needs a first commit), then retry.",
    )


def _checked_ref(ref: str) -> str:
    if not valid_ref(ref):
        raise _no_such(ref)
    return ref


def _checked_borrower(borrower: str) -> str:
    if not _BORROWER.fullmatch(borrower):
        raise ValueError(f"not an attempt's id: {borrower!r}")
    return borrower


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
