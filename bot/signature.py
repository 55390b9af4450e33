"""Webhook signatures: HMAC-SHA256 over the raw body, compared in constant time.

https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
"""

from __future__ import annotations

import hmac
import re

from bot.errors import ConductorError, ConfigurationError

SIGNATURE_HEADER = "X-Hub-Signature-256"
LEGACY_HEADER = "X-Hub-Signature"  # SHA-1; GitHub sends it beside the other, and we never trust it

_WELL_FORMED = re.compile(r"sha256=[0-9a-f]{64}", re.ASCII)


class BadSignature(ConductorError):
    """The delivery is not signed with our secret; the message is the short reason."""


class Verifier:
    """Tells deliveries of GitHub from those of anybody else."""

    def __init__(self, secret: str) -> None:
        """Raise ConfigurationError for an empty ``secret``: with it anybody could sign."""
        if not secret.strip():
            raise ConfigurationError(
                "The webhook secret is empty, so anybody could forge a delivery.",
                "Set CONDUCTOR_WEBHOOK_SECRET to the webhook secret of the App's settings page.",
            )
        self._key = secret.encode()

    def sign(self, body: bytes) -> str:
        """The value of the signature header for ``body``."""
        return f"sha256={hmac.digest(self._key, body, 'sha256').hex()}"

    def verify(self, body: bytes, signature: str | None) -> None:
        """Raise BadSignature unless ``signature`` is ours for ``body``; it may be any text."""
        # as bytes: for text that is not ASCII compare_digest raises TypeError
        given = (signature or "").encode(errors="surrogateescape")
        if not hmac.compare_digest(self.sign(body).encode(), given):
            raise BadSignature("The signature does not match the body.")


def require_well_formed(signature: str | None, legacy: str | None = None) -> None:
    """Raise BadSignature for what cannot be right whatever the body is: to be called before that is read.

    ``legacy`` (the SHA-1 header) only words the reason.
    """
    if not signature:
        if legacy:
            raise BadSignature(f"Only a SHA-1 signature was sent; {SIGNATURE_HEADER} is needed.")
        raise BadSignature(f"The header {SIGNATURE_HEADER} is missing.")
    if not _WELL_FORMED.fullmatch(signature):
        raise BadSignature(f"{SIGNATURE_HEADER} must be sha256= and 64 lower-case hexadecimal digits.")
