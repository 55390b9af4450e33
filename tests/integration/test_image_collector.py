"""Which images are collected, on the real engine, with small images that have a label of their own."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from bot.errors import InfrastructureError
from bot.images import AGENT_LABEL, OWNER_LABEL
from runners.docker import ATTEMPT_LABEL
from runners.image_collector import SPARED, ImageCollector
from runners.images import ImageBuilder, home_container
from tests import containers

pytestmark = pytest.mark.docker

DAY = 86400.0
MB = 1_000_000


class Shelf:
    """Images of one test, used in the order in which they are made, and the collector that sees only those."""

    def __init__(self, folder: Path) -> None:
        del folder
        self.client = containers.engine()
        self.mark = f"test-{uuid.uuid4().hex}"
        self.builder = ImageBuilder(base=containers.BASE_IMAGE, shim=b"")

    async def make(self, name: str, size: int, base: str = "", **labels: str) -> str:
        """An image that adds ``size`` bytes to ``base``; without a name as builds leave it behind."""
        tag = self.name(name) if name else None
        lines = [f"FROM {self.name(base) if base else containers.BASE_IMAGE}"]
        # the word keeps the engine from using an earlier build again
        lines.append(f"RUN : {self.mark} {name}; head -c {size} /dev/urandom > /{name or 'nameless'}")
        lines.append(f"LABEL {self.mark}=1 " + " ".join(f"{key}={value}" for key, value in labels.items()))
        image, _ = await asyncio.to_thread(
            self.client.images.build,
            fileobj=io.BytesIO("\n".join(lines).encode()),
            tag=tag,
            rm=True,
            network_mode="none",
        )
        return str(image.id)

    def name(self, name: str) -> str:
        return f"agent-conductor-test/{self.mark}:{name}"

    async def use(self, name: str) -> float:
        """Use it now; a moment after that, in seconds since the epoch."""
        await self.builder.note_use(self.name(name))
        return time.time()

    def collector(
        self, *, max_age: float = 30 * DAY, max_disk: int = 1 << 40, now: float | None = None
    ) -> ImageCollector:
        """By default a day has passed since all of them were used."""
        return ImageCollector(
            docker.from_env,
            max_age=max_age,
            max_disk=max_disk,
            label=f"{self.mark}=1",
            now=lambda: time.time() + DAY if now is None else now,
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
    for name in ("old", "young", "older"):
        await shelf.make(name, MB)
    between = await shelf.use("old")
    await shelf.use("young")
    collector = shelf.collector(now=between + 30 * DAY)
    assert await shelf.collector(now=between + 29 * DAY).collect() == []
    removed = await collector.collect()
    assert {image.name for image in removed} == {shelf.name("old"), shelf.name("older")}
    assert shelf.there() == {"young"}
    assert await collector.collect() == []


async def test_the_longest_unused_go_until_the_rest_fits(shelf: Shelf) -> None:
    for number in range(1, 5):
        await shelf.make(f"image{number}", 5 * MB)
    await shelf.use("image1")  # the first one is the last that was used
    base = await shelf.collector().disk() - 20 * MB
    assert 0 < base < 500 * MB, "the layers of the base image count once"
    removed = await shelf.collector(max_disk=base + 11 * MB).collect()
    assert [image.name for image in removed] == [shelf.name("image2"), shelf.name("image3")]
    assert shelf.there() == {"image1", "image4"}


async def test_what_images_share_counts_once(shelf: Shelf) -> None:
    await shelf.make("below", 20 * MB)
    await shelf.make("one", MB, base="below")
    await shelf.make("two", MB, base="below")
    disk = await shelf.collector().disk()
    sizes = [image.size for image in await shelf.collector().images()]
    assert sum(sizes) > disk + 40 * MB
    assert await shelf.collector(max_disk=disk).collect() == []


async def test_a_container_that_was_never_started_keeps_no_image_for_ever(shelf: Shelf) -> None:
    """A worker was killed while it made an image with a repository's set-up."""
    image = await shelf.make("busy", MB)
    shelf.client.api.create_container(image, "true", labels={shelf.mark: "1"})
    now = time.time()
    young = shelf.collector(max_disk=0, now=now + SPARED - 60)
    assert await young.collect(everything=True) == [], "it may be one that is being made"
    removed = await shelf.collector(max_disk=0, now=now + SPARED + 60).collect()
    assert [gone.name for gone in removed] == [shelf.name("busy")]


async def test_what_a_killed_worker_made_an_image_of_is_made_anew(shelf: Shelf) -> None:
    text = f"FROM {containers.BASE_IMAGE}\nRUN install -d /home/agent; echo 1 > /home/agent/mine\nLABEL {shelf.mark}=1"
    base, _ = await asyncio.to_thread(
        shelf.client.images.build, fileobj=io.BytesIO(text.encode()), rm=True, network_mode="none"
    )
    api, tag, labels = shelf.client.api, shelf.name("home"), {shelf.mark: "1"}
    done = api.create_container(base.id, "true", labels=labels)["Id"]
    left = api.create_container(base.id, "true", name=home_container(tag), labels=labels)["Id"]
    image = await shelf.builder.keep_home(done, base.id, tag, labels)
    assert shelf.there() == {"home"}
    found = api.containers(all=True, filters={"label": shelf.mark})
    assert [one["Id"] for one in found] == [done] != [left]
    made = api.create_container(image, "true", labels=labels)["Id"]
    assert containers.file_in(shelf.client, made, "/home/agent/mine") == "1\n"


async def test_an_image_that_a_container_has_stays(shelf: Shelf) -> None:
    image = await shelf.make("busy", MB)
    await shelf.make("idle", MB)
    # an attempt's: it was made, and is just being started
    labels = {shelf.mark: "1", ATTEMPT_LABEL: "j1-1"}
    made = shelf.client.api.create_container(image, "true", labels=labels)
    removed = await shelf.collector(max_disk=0).collect()
    assert [gone.name for gone in removed] == [shelf.name("idle")]
    assert await shelf.collector(max_disk=0).collect(everything=True) == []
    (held,) = await shelf.collector().images()
    assert held.busy
    shelf.client.api.remove_container(made["Id"])
    assert len(await shelf.collector(max_disk=0).collect()) == 1


async def test_an_image_that_an_attempt_may_be_starting_from_stays(shelf: Shelf) -> None:
    await shelf.make("idle", MB)
    await shelf.make("starting", MB)
    between = await shelf.use("idle")
    await shelf.use("starting")
    removed = await shelf.collector(max_disk=0, now=between + SPARED).collect()
    assert [gone.name for gone in removed] == [shelf.name("idle")]
    assert shelf.there() == {"starting"}


async def test_an_image_that_others_are_built_on_goes_after_them(shelf: Shelf) -> None:
    await shelf.make("below", MB)
    await shelf.make("above", MB, base="below", **{AGENT_LABEL: "shell", OWNER_LABEL: "7"})
    between = await shelf.use("below")
    last = await shelf.use("above")
    assert await shelf.collector(now=between + 30 * DAY).collect() == [], (
        "it keeps its name, whatever its age"
    )
    # as an attempt uses them: first the one below
    removed = await shelf.collector(now=last + 31 * DAY).collect()
    assert [image.name for image in removed] == [shelf.name("above")]
    assert (removed[0].agent, removed[0].repository) == ("shell", "7")
    assert [image.name for image in await shelf.collector(now=last + 31 * DAY).collect()] == [
        shelf.name("below")
    ]
    assert shelf.there() == set()


async def test_what_builds_leave_behind_goes_first(shelf: Shelf) -> None:
    await shelf.make("named", MB)
    nameless = await shelf.make("", 5 * MB)
    disk = await shelf.collector().disk()
    removed = await shelf.collector(max_disk=disk - MB).collect()
    assert [(image.id, image.name) for image in removed] == [(nameless, "")]
    assert shelf.there() == {"named"}


async def test_everything_that_is_not_in_use_can_be_asked_for(shelf: Shelf) -> None:
    await shelf.make("fresh", MB)
    await shelf.use("fresh")
    assert len(await shelf.collector(now=time.time()).collect(everything=True)) == 1
    assert shelf.there() == set()


async def test_an_engine_that_is_not_there_is_explained() -> None:
    nobody = lambda: docker.DockerClient(base_url="tcp://127.0.0.1:9")  # noqa: E731
    with pytest.raises(InfrastructureError, match="images cannot be looked at"):
        await ImageCollector(nobody, max_age=1, max_disk=1).collect()
    with pytest.raises(InfrastructureError, match="does not do its work"):
        await ImageBuilder(nobody, base="x", shim=b"").note_use("a:b")
