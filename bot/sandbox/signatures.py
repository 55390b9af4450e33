"""Which commits GitHub calls verified: those that it made itself, and those signed with an account's SSH key.

https://docs.github.com/en/authentication/managing-commit-signature-verification/about-commit-signature-verification
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from bot.sandbox.git import GitError, GitRepository
from bot.sandbox.github import GitHub
from bot.sandbox.present import Json, iso, unsigned
from bot.sandbox.state import Repository

RULE = "Commits must have verified signatures."
"""What GitHub says to those who push others."""


def write_signers(github: GitHub, repository: Repository) -> Path:
    """Write who may sign, as git and ssh-keygen read it ("ALLOWED SIGNERS" in ssh-keygen(1)); the file's path."""
    file = github.git(repository).path / "allowed-signers"
    lines = [
        f'{user.email} namespaces="git" {key}\n'
        for user in github.world.users.values()
        for key in user.signing_keys
    ]
    text = "".join(lines)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file


async def verification(github: GitHub, repository: Repository, git: GitRepository, sha: str) -> Json:
    """GitHub's ``verification`` object of a commit."""
    if sha in repository.signed_by_us:
        return github.present.own_signature(await git.commit(sha))
    raw = (await git.run("cat-file", "commit", sha)).decode(errors="replace")
    header, _, message = raw.partition("\n\n")
    at = github.now().isoformat().replace("+00:00", "Z")
    if sha in repository.signed_by_us:
        # the real one writes a PGP signature; nobody here could check it
        return {
            "verified": True,
            "reason": "valid",
            "signature": "(GitHub's)",
            "payload": raw,
            "verified_at": at,
        }
    lines = header.split("\n")
    begin = next((number for number, line in enumerate(lines) if line.startswith("gpgsig ")), None)
    if begin is None:
        return unsigned()
    end = begin + 1
    while end < len(lines) and lines[end].startswith(" "):
        end += 1
    signature = "\n".join(line.removeprefix("gpgsig ").removeprefix(" ") for line in lines[begin:end])
    payload = "\n".join([*lines[:begin], *lines[end:]]) + f"\n\n{message}"
    settings = ("-c", f"gpg.ssh.allowedSignersFile={write_signers(github, repository)}")
    state, signer, committer = (
        await git.text(*settings, "log", "--max-count=1", "--format=%G?%n%GS%n%ce", sha)
    ).split("\n")
    good = state == "G" and signer == committer
    reason = (
        "valid" if good else "bad_email" if state == "G" else "unknown_key" if state == "U" else "invalid"
    )
    return {
        "verified": good,
        "reason": reason,
        "signature": signature,
        "payload": payload,
        "verified_at": iso(github.now()) if good else None,
    }


async def check_signatures(github: GitHub, repository: Repository, ref: str, commit: str) -> list[str]:
    """The commits that a rule of ``ref`` refuses, of those that ``commit`` would bring."""
    branch = ref.removeprefix("refs/heads/")
    if not any(fnmatchcase(branch, pattern) for pattern in repository.signed_branches):
        return []
    git = github.git(repository)
    try:
        new = (await git.text("rev-list", commit, "--not", "--all")).split()
    except GitError:
        return []  # no commit: refused elsewhere
    return [sha for sha in new if not (await verification(github, repository, git, sha))["verified"]]
