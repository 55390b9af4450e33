"""Signs commits with an SSH key of the operator's.

https://git-scm.com/docs/git-config#Documentation/git-config.txt-gpgformat and https://docs.github.com/en/
authentication/managing-commit-signature-verification/about-commit-signature-verification#ssh-commit-signature-verification
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bot import child_process
from bot.config import Settings
from bot.errors import ConfigurationError

TIMEOUT = 10.0  # seconds that ssh-keygen may take


@dataclass(frozen=True, kw_only=True)
class SshSigner:
    """A private key that was tried, and the account that it belongs to."""

    key: str  # OpenSSH's text of it
    name: str
    email: str
    program: str  # ssh-keygen

    def __repr__(self) -> str:
        return f"<SshSigner {self.name} <{self.email}>>"

    @classmethod
    async def create(cls, settings: Settings) -> Self:
        """The signer that ``settings`` describe. Raises ConfigurationError when it cannot sign."""
        key = settings.signing_key_text
        if not key:
            raise ConfigurationError(
                'commit_signing is "ssh", and no signing_key is set.',
                "Make one with `ssh-keygen -t ed25519 -N '' -f signing`, add signing.pub to the bot's account as a "
                "signing key, and set signing_key to the path of `signing`.",
            )
        committer = re.fullmatch(
            r"\s*([^<>\n]*[^<>\s])\s*<([^<>\s@]+@[^<>\s@]+)>\s*", settings.signing_committer
        )
        if committer is None:
            raise ConfigurationError(
                'commit_signing is "ssh", and signing_committer is not `Name <email>`.',
                "GitHub calls a commit verified only if its committer's address belongs to the account that has the "
                "signing key: set signing_committer to that account's name and address.",
            )
        program = shutil.which("ssh-keygen")
        if program is None:
            raise ConfigurationError(
                'commit_signing is "ssh", and there is no `ssh-keygen` on this worker host.',
                "Install it (Debian: openssh-client), or set commit_signing to api.",
            )
        signer = cls(key=key, name=committer[1], email=committer[2], program=program)
        await signer._try()
        return signer

    @contextlib.contextmanager
    def ready(self) -> Iterator[tuple[tuple[str, str], ...]]:
        """The settings for a git that signs; the key is in a file that only we can read as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="conductor-signing-") as folder:
            file = Path(folder) / "key"
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as writer:
                writer.write(self.key + "\n")
            yield (
                ("gpg.format", "ssh"),
                ("gpg.ssh.program", self.program),
                ("user.signingKey", str(file)),
            )

    async def _try(self) -> None:
        """Read the key as ssh-keygen does: it must be one, and must not need a passphrase."""
        with self.ready() as config:
            file = dict(config)["user.signingKey"]
            process = await child_process.start(
                self.program,
                *("-y", "-P", "", "-f", file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            )
            try:
                async with asyncio.timeout(TIMEOUT):
                    _, said = await process.communicate()
            except TimeoutError:
                said = b"it did not end"
            finally:
                if process.returncode is None:
                    await child_process.end(process)
        if process.returncode != 0:
            words = said.decode("utf-8", "replace").replace(file, "the key").strip().splitlines()
            raise ConfigurationError(
                f"signing_key cannot be used: {words[-1] if words else 'ssh-keygen refuses it'}.",
                "It must be an SSH private key without a passphrase, as text or as the path of its file.",
            )
