"""Git LFS as data: pointer files, and the messages of the batch API.

https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md and …/docs/api/batch.md, basic-transfers.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: Bytes: whatever is longer is no pointer file.
MAX_POINTER = 1024
#: Objects in one request of the batch API; the client asks for 100 at once.
MAX_BATCH = 1000
MEDIA_TYPE = "application/vnd.git-lfs+json"

_VERSION = re.compile(r"version https?://\S{1,200}\Z")
_OID = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"\d{1,18}")

Oid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, order=True)
class Pointer:
    """What stands in the tree for a large file: the SHA-256 of its content, and its size in bytes."""

    oid: str
    size: int

    def text(self) -> str:
        """The pointer file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n"


def valid_oid(oid: str) -> bool:
    """Whether this is an object's id: 64 lower-case hex digits, and so no path that leads anywhere."""
    return _OID.fullmatch(oid) is not None


def parse_pointer(content: bytes) -> Pointer | None:
    """The pointer in a file; None when the file is none.

    Takes what the client takes for one, also with its older version lines, extensions and spaces at the ends.
    """
    if len(content) > MAX_POINTER or not content.strip().startswith(b"version "):
        return None
    try:
        version, *lines = content.decode("utf-8").strip().splitlines()
    except UnicodeDecodeError:
        return None
    pairs = dict(line.split(" ", 1) for line in lines if " " in line)
    kind, _, oid = pairs.get("oid", "").partition(":")
    size = pairs.get("size", "")
    if not _VERSION.match(version) or kind != "sha256" or not valid_oid(oid) or not _SIZE.fullmatch(size):
        return None
    return Pointer(oid, int(size))


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class BatchObject(_Message):
    """One object that a client asks about."""

    oid: Oid
    size: int = Field(ge=0, lt=1 << 60)

    @property
    def pointer(self) -> Pointer:
        """The same as a value."""
        return Pointer(self.oid, self.size)


class BatchRequest(_Message):
    """What a client asks."""

    operation: Literal["download", "upload"]
    transfers: tuple[str, ...] = Field(("basic",), max_length=20)
    objects: tuple[BatchObject, ...] = Field(max_length=MAX_BATCH)
    hash_algo: Literal["sha256"] = "sha256"


class Action(_Message):
    """Where to fetch, bring or confirm an object, and with which headers."""

    href: Annotated[str, StringConstraints(max_length=16_384)]
    header: Mapping[str, str] = Field(default_factory=dict)


class ObjectError(_Message):
    """Why there is no action."""

    code: int = 500
    message: str = ""


class AnsweredObject(_Message):
    """What the server says about one object. Neither actions nor an error: it has the object already."""

    oid: Oid
    size: int = Field(0, ge=0)
    actions: Mapping[str, Action] | None = None
    error: ObjectError | None = None

    def action(self, name: str) -> Action | None:
        """The action of this name."""
        return (self.actions or {}).get(name)


class BatchAnswer(_Message):
    """What the server says."""

    transfer: str = "basic"
    objects: tuple[AnsweredObject, ...] = Field((), max_length=MAX_BATCH)
