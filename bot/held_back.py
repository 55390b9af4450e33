"""The part of a change that waits for a person: a patch, kept with the job as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

#: Characters of a patch that a comment shows; GitHub takes 65,536 in all.
MAX_SHOWN = 20_000
#: Files that are listed.
MAX_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """What was not pushed. Everything in it is printable, and went through the redactor."""

    files: Sequence[str]  # at most MAX_LISTED, as shown to people
    count: int  # of all
    patch: str = ""  # "" when it is too long to be shown
    host: str = ""  # then: the worker host,
    stored: str = ""  # and the file there
    altered: bool = False  # it does not apply as it is: something in it was blacked out
    base_sha: str = ""  # what it applies to when nothing was pushed

    def dump(self) -> str:
        """As it is kept."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def load(cls, text: str) -> Self | None:
        """What :meth:`dump` wrote; None for an empty text: nothing was held back."""
        return cls(**json.loads(text)) if text else None
