"""Removes images of ours that nobody needs: unused for too long, or the longest unused while all take too much space.

Never one that a container has, nor one that was used a short while ago: an attempt may be about to start from it. When
an image was last used is kept by the engine: it is when it last got its name (``ImageBuilder.note_use``). A container
of no attempt that was made a while ago and never started is none that needs its image: a worker was killed while it
made another image of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import structlog
import urllib3
from docker.errors import APIError, DockerException, NotFound

from bot.errors import InfrastructureError
from bot.images import AGENT_LABEL, BUILD_LABEL, CAPABILITIES_LABEL, OWNER_LABEL
from runners.docker import ATTEMPT_LABEL

if TYPE_CHECKING:
    import docker

#: Seconds after its last use before an image may go, however much space it takes: its attempt may still be fetching
#: a large repository before it starts the container.
SPARED = 2 * 3600.0

_ENGINE_TROUBLE = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldImage:
    """An image of ours on this engine."""

    id: str
    name: str  # "" for what builds leave behind
    agent: str
    capabilities: str
    repository: str  # GitHub's id for one with set-up steps, else ""
    size: int  # bytes, with everything that it shares
    used: float  # seconds since the epoch
    busy: bool  # a container has it


class ImageCollector:
    """Collects the images of this engine that have ``label``. ``max_age`` in seconds, ``max_disk`` in bytes."""

    def __init__(
        self,
        connect: Callable[[], docker.DockerClient],
        *,
        max_age: float,
        max_disk: int,
        label: str = f"{BUILD_LABEL}=1",
        now: Callable[[], float] = time.time,
    ) -> None:
        self._connect = connect
        self._max_age = max_age
        self._max_disk = max_disk
        self._label = label
        self._now = now

    async def images(self) -> list[HeldImage]:
        """Every image of ours, the most recently used first. Raises InfrastructureError."""
        return await self._call(lambda client: [entry.image for entry in self._look(client)])

    async def disk(self) -> int:
        """Bytes of all of them together, what they share counted once. Raises InfrastructureError."""
        return await self._call(lambda client: _total(self._look(client)))

    async def collect(self, *, everything: bool = False) -> list[HeldImage]:
        """Remove what must go; ``everything``: whatever is not in use. What was removed.

        Raises InfrastructureError.
        """
        return await self._call(lambda client: self._collect(client, everything))

    async def _call(self, function: Callable[[docker.DockerClient], _T]) -> _T:
        def run() -> _T:
            with contextlib.closing(self._connect()) as client:
                return function(client)

        try:
            return await asyncio.to_thread(run)
        except _ENGINE_TROUBLE as error:
            raise InfrastructureError(
                f"The Docker engine's images cannot be looked at: {error}.",
                "Check that it runs and that this user may use it (`docker info`).",
            ) from error

    def _look(self, client: docker.DockerClient) -> list[_Entry]:
        """Our images, the most recently used first, each with its layers."""
        busy = {found["ImageID"] for found in client.api.containers(all=True)}
        found = []
        history: Callable[[str], list[dict[str, Any]]] = client.api.history
        inspect: Callable[[str], dict[str, Any]] = client.api.inspect_image
        for image in client.api.images(filters={"label": self._label}):
            names = [name for name in image.get("RepoTags") or [] if name != "<none>:<none>"]
            labels = image.get("Labels") or {}
            with contextlib.suppress(NotFound):  # removed meanwhile
                named = _time(inspect(image["Id"])["Metadata"]["LastTagTime"])
                steps = history(image["Id"])
                for name in names or [""]:
                    held = HeldImage(
                        id=image["Id"],
                        name=name,
                        agent=labels.get(AGENT_LABEL, "") if name else "",
                        capabilities=labels.get(CAPABILITIES_LABEL, ""),
                        repository=labels.get(OWNER_LABEL, ""),
                        size=int(image["Size"]),
                        used=max(float(image["Created"]), named),
                        busy=image["Id"] in busy,
                    )
                    found.append(_Entry.of(held, steps))
        return sorted(found, key=lambda entry: (-entry.image.used, entry.image.name, entry.image.id))

    def _remove_forgotten(self, client: docker.DockerClient, now: float) -> None:
        unstarted = {"status": "created", "label": self._label}
        for found in client.api.containers(all=True, filters=unstarted):
            # of an attempt it is the janitor's
            if ATTEMPT_LABEL in found["Labels"] or now - float(found["Created"]) < SPARED:
                continue
            with contextlib.suppress(NotFound):
                client.api.remove_container(found["Id"], v=True)
                _log.info("container_removed", container=found["Id"], image=found["Image"])

    def _collect(self, client: docker.DockerClient, everything: bool) -> list[HeldImage]:
        now = self._now()
        self._remove_forgotten(client, now)
        held = self._look(client)
        removed = []
        # what no image needs any more is only a cache: it goes before any image that has a name
        # and of those used at the same time the ones that others are built on are the last
        order = sorted(
            held, key=lambda entry: (entry.image.name != "", entry.image.used, not entry.image.repository)
        )
        for entry in order:
            image = entry.image
            old = now - image.used > self._max_age
            full = _total(held) > self._max_disk
            needed = any(image.id in other.below for other in held if other is not entry)
            due = everything or (now - image.used > SPARED and (old or full))
            if image.busy or needed or not due:
                continue
            if _remove(client, image):
                held.remove(entry)
                removed.append(image)
                _log.info("image_removed", image=image.name or image.id, old=old, full=full, bytes=image.size)
        return removed


#: What tells one layer of an image from all others: when it was made, how, and its size.
_Layer = tuple[int, str, int]


@dataclass(frozen=True)
class _Entry:
    """An image and what it is made of."""

    image: HeldImage
    layers: frozenset[_Layer]
    below: frozenset[str]  # ids of the images that it was built on

    @classmethod
    def of(cls, image: HeldImage, history: Sequence[dict[str, Any]]) -> _Entry:
        return cls(
            image,
            frozenset((int(step["Created"]), str(step["CreatedBy"]), int(step["Size"])) for step in history),
            frozenset(str(step["Id"]) for step in history[1:]),
        )


def _time(text: str) -> float:
    """Seconds since the epoch; 0 for an image that never had a name."""
    # the engine tells nanoseconds, and for never the year 1
    stamp = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00"))
    return stamp.timestamp() if stamp.year > 1 else 0.0


def _total(entries: Iterable[_Entry]) -> int:
    return sum(size for _, _, size in frozenset[_Layer]().union(*(entry.layers for entry in entries)))


def _remove(client: docker.DockerClient, image: HeldImage) -> bool:
    """Whether it could be removed: not while a container has it."""
    try:
        # without force: the engine refuses what is in use, also by a container that was made just now
        client.api.remove_image(image.name or image.id)
    except NotFound:
        return True
    except APIError as error:
        if error.status_code != 409:
            raise
        return False
    return True
