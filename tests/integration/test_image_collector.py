"""Which images are collected, on the real engine, with small images that have a label of their own."""

from __future__ import annotations

import asyncio
import io
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from bot.errors import InfrastructureError
from bot.images import AGENT_LABEL, OWNER_LABEL
from runners.image_collector import SPARED, ImageCollector
from runners.image_uses import ImageUses
from tests import containers

pytestmark = pytest.mark.docker

DAY = 86400.0
MB = 1_000_000


class Shelf:
    """Images of one test, and the collector that sees only those."""

    def __init__(self, folder: Path) -> None:
        self.client = containers.engine()
        self.mark = f"test-{uuid.uuid4().hex}"
        self.uses = ImageUses(folder / "used")
        self.now = time.time()

    def make(self, name: str, size: int, base: str = "", *, used: float = 0.0, **labels: str) -> str:
        """An image that adds ``size`` bytes to ``base``, last used ``used`` seconds ago."""
        tag = f"agent-conductor-test/{self.mark}:{name}" if name else None
        lines = [f"FROM {self.name(base) if base else containers.BASE_IMAGE}"]
        # the word keeps the engine from using an earlier build again
        lines.append(f"RUN : {self.mark} {name}; head -c {size} /dev/urandom > /{name or 'nameless'}")
        lines.append(f"LABEL {self.mark}=1 " + " ".join(f"{key}={value}" for key, value in labels.items()))
        image, _ = self.client.images.build(
            fileobj=io.BytesIO("\n".join(lines).encode()), tag=tag, rm=True, network_mode="none"
        )
        if tag:
            self.use(name, used)
        return str(image.id)

    def name(self, name: str) -> str:
        return f"agent-conductor-test/{self.mark}:{name}"

    def use(self, name: str, ago: float) -> None:
        """Note that it was used ``ago`` seconds before now; the clock is set so far ahead of its creation."""
        self.uses.note(self.name(name))
        stamp = self.now + 100 * DAY - ago
        os.utime(self.uses._file(self.name(name)), (stamp, stamp))

    def collector(self, *, max_age: float = 30 * DAY, max_disk: int = 1 << 40) -> ImageCollector:
        return ImageCollector(
            docker.from_env,
            self.uses,
            max_age=max_age,
            max_disk=max_disk,
            label=f"{self.mark}=1",
            now=lambda: self.now + 100 * DAY,
        )

    def there(self) -> set[str]:
        return {
            tag.rpartition(":")[2]
            for image in self.client.images.list(filters={"label": f"{self.mark}=1"})
            for tag in image.tags
        }

    def close(self) -> None:
        for container in self.client.api.containers(all=True, filters={"label": self.mark}):
            self.client.api.remove_container(container["Id"], force=True)
        for _ in range(4):  # those that others are built on go last
            for image in self.client.api.images(filters={"label": f"{self.mark}=1"}):
                try:
                    self.client.api.remove_image(image["Id"], force=True)
                except (ImageNotFound, docker.errors.APIError):
                    continue
        assert self.client.api.images(filters={"label": f"{self.mark}=1"}) == []
        self.client.close()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.close()


async def test_what_was_unused_for_long_goes(shelf: Shelf) -> None:
    shelf.make("old", MB, used=31 * DAY)
    shelf.make("young", MB, used=29 * DAY)
    shelf.make("never-noted", MB)
    shelf.uses.forget(shelf.name("never-noted"))  # its creation counts: 100 days ago
    removed = await shelf.collector().collect()
    assert {image.name for image in removed} == {shelf.name("old"), shelf.name("never-noted")}
    assert shelf.there() == {"young"}
    assert shelf.uses.last(shelf.name("old")) is None
    assert await shelf.collector().collect() == []


async def test_the_longest_unused_go_until_the_rest_fits(shelf: Shelf) -> None:
    for number in range(1, 5):
        shelf.make(f"day{number}", 5 * MB, used=number * DAY)
    base = await shelf.collector().disk() - 20 * MB
    assert 0 < base < 500 * MB, "the layers of the base image count once"
    removed = await shelf.collector(max_disk=base + 11 * MB).collect()
    assert [image.name for image in removed] == [shelf.name("day4"), shelf.name("day3")]
    assert shelf.there() == {"day1", "day2"}


async def test_what_images_share_counts_once(shelf: Shelf) -> None:
    shelf.make("below", 20 * MB, used=3 * DAY)
    shelf.make("one", MB, base="below", used=DAY)
    shelf.make("two", MB, base="below", used=2 * DAY)
    disk = await shelf.collector().disk()
    sizes = [image.size for image in await shelf.collector().images()]
    assert sum(sizes) > disk + 40 * MB
    assert await shelf.collector(max_disk=disk).collect() == []


async def test_an_image_that_a_container_has_stays(shelf: Shelf) -> None:
    image = shelf.make("busy", MB, used=50 * DAY)
    shelf.make("idle", MB, used=40 * DAY)
    made = shelf.client.api.create_container(image, "true", labels={shelf.mark: "1"})
    removed = await shelf.collector(max_disk=0).collect()
    assert [gone.name for gone in removed] == [shelf.name("idle")]
    assert await shelf.collector(max_disk=0).collect(everything=True) == []
    (held,) = await shelf.collector().images()
    assert held.busy
    shelf.client.api.remove_container(made["Id"])
    assert len(await shelf.collector().collect()) == 1


async def test_an_image_that_an_attempt_may_be_starting_from_stays(shelf: Shelf) -> None:
    shelf.make("starting", MB, used=SPARED - 60)
    shelf.make("idle", MB, used=SPARED + 60)
    removed = await shelf.collector(max_disk=0).collect()
    assert [gone.name for gone in removed] == [shelf.name("idle")]
    assert shelf.there() == {"starting"}


async def test_an_image_that_others_are_built_on_goes_after_them(shelf: Shelf) -> None:
    shelf.make("below", MB, used=40 * DAY)
    shelf.make("above", MB, base="below", used=DAY, **{AGENT_LABEL: "shell", OWNER_LABEL: "7"})
    assert await shelf.collector().collect() == [], "it keeps its name, whatever its age"
    shelf.use("above", 40 * DAY)
    removed = await shelf.collector().collect()
    assert [image.name for image in removed] == [shelf.name("above"), shelf.name("below")]
    assert (removed[0].agent, removed[0].repository) == ("shell", "7")
    assert shelf.there() == set()


async def test_what_builds_leave_behind_goes_first(shelf: Shelf) -> None:
    nameless = shelf.make("", 5 * MB)
    shelf.make("named", MB, used=50 * DAY)
    disk = await shelf.collector().disk()
    removed = await shelf.collector(max_age=1000 * DAY, max_disk=disk - MB).collect()
    assert [(image.id, image.name) for image in removed] == [(nameless, "")]
    assert shelf.there() == {"named"}


async def test_everything_that_is_not_in_use_can_be_asked_for(shelf: Shelf) -> None:
    shelf.make("fresh", MB, used=0.0)
    assert len(await shelf.collector().collect(everything=True)) == 1
    assert shelf.there() == set()


async def test_an_engine_that_is_not_there_is_explained(tmp_path: Path) -> None:
    collector = ImageCollector(
        lambda: docker.DockerClient(base_url="tcp://127.0.0.1:9"),
        ImageUses(tmp_path),
        max_age=1,
        max_disk=1,
    )
    with pytest.raises(InfrastructureError, match="images cannot be looked at"):
        await asyncio.wait_for(collector.collect(), 60)
