"""Builds the agents' container images on the Docker engine, each once, and finds them again by name."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import requests
import structlog
import urllib3
from docker.errors import DockerException, ImageNotFound, NotFound

from bot.capabilities import CAPABILITIES, Capability
from bot.errors import InfrastructureError
from bot.images import ImageSpec, dockerfile, image_labels, image_tag
from bot.ports import Installation
from runners.builds import Builds, LineCallback
from runners.container_lock import HOME
from runners.shim import EXCLUDED

#: Bytes that a repository's set-up may leave in its home folder: they are copied at the start of every attempt.
MAX_HOME = 8 << 30

#: So many last lines of its output come with a failed build.
TAIL_LINES = 40

#: What the SDK lets through when the engine is absent, breaks off or takes too long.
_ENGINE_TROUBLE = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)

_log = structlog.get_logger(__name__)


class ImageBuildFailed(InfrastructureError):
    """An agent image could not be built; ``tail`` holds the last lines of the build's output."""

    def __init__(self, message: str, hint: str, tail: str) -> None:
        super().__init__(message, hint)
        self.tail = tail


class SetupTooLarge(Exception):
    """The set-up steps left more in the home folder than an image may hold."""


class _EngineError(Exception):
    """The engine itself reports, in the midst of its output, that the work failed."""


class ImageBuilder:
    """Provides the agents' images on one engine.

    ``connect`` makes a client of the engine. ``shim`` is the text of the program that goes into every
    image. ``ca_bundle`` (PEM) is trusted while agents are fetched, and in the image. ``timeout``
    bounds one build or pull, in seconds; ``memory`` one step of a build, in bytes. ``network_mode`` is that of
    the build's steps; None leaves it to the engine. ``locks`` is a folder by which the processes of this host agree
    who builds. Call `close` at the end.
    """

    def __init__(
        self,
        connect: Callable[[], docker.DockerClient] = docker.from_env,
        *,
        base: str,
        shim: bytes,
        ca_bundle: bytes = b"",
        timeout: float = 1200,
        memory: int = 3 * 2**30,
        network_mode: str | None = None,
        locks: Path | None = None,
    ) -> None:
        self._connect = connect
        self._base = base
        self._shim = shim
        self._ca_bundle = ca_bundle
        self._timeout = timeout
        self._memory = memory
        self._network_mode = network_mode
        self.builds = Builds(locks)

    async def spec(
        self,
        agent: str,
        version: str,
        capabilities: Iterable[str] = (),
        table: Mapping[str, Capability] = CAPABILITIES,
        installation: Installation | None = None,
    ) -> ImageSpec:
        """The spec of ``agent``'s image on the base image as the engine has it, pulled when it has none.

        Raises InfrastructureError when there is no engine or no base image, ConfigurationError when the agent
        or its version cannot be written into a Dockerfile, or a capability is not in ``table``.
        """
        digest = await self.image_id(self._base)
        if digest is None:
            digest = await self._pull_base()
        return ImageSpec(
            agent=agent,
            version=version,
            installation=installation,
            base=self._base,
            base_digest=digest,
            shim=hashlib.sha256(self._shim).hexdigest(),
            ca_bundle=hashlib.sha256(self._ca_bundle).hexdigest() if self._ca_bundle else "",
            capabilities=frozenset(capabilities),
            table=table,
        )

    async def ensure(self, spec: ImageSpec, on_line: LineCallback | None = None) -> str:
        """The engine's id of the image for ``spec``, which is built when there is none.

        Any number of callers may wait for the same build; one that is cancelled does not end it for the
        others. ``on_line`` is told what the build prints from now on. Raises ImageBuildFailed,
        InfrastructureError when the engine cannot be used, ConfigurationError for an agent without an image.
        """
        tag = image_tag(spec)
        return await self.builds.once(tag, lambda tell: self._provide(spec, tag, tell), on_line)

    async def note_use(self, tag: str) -> None:
        """Let the engine remember that the image ``tag`` is used now: giving it its name again sets its time.

        Kept by the engine, so that all workers which share it see the same. Raises InfrastructureError.
        """
        repository, _, version = tag.rpartition(":")

        def name() -> None:
            with contextlib.closing(self._connect()) as client:
                client.api.tag(tag, repository, version)

        try:
            await asyncio.to_thread(name)
        except _ENGINE_TROUBLE as error:
            raise _unreachable(error) from error

    async def keep_home(self, container: str, image: str, tag: str, labels: Mapping[str, str]) -> str:
        """Make the image ``tag``: ``image`` and the home folder of ``container`` as it was left; the id.

        Nothing else of the container gets into it: no variable, no other file. Raises SetupTooLarge,
        InfrastructureError.
        """

        def make() -> str:
            with contextlib.closing(self._connect()) as client:
                return _keep_home(client.api, container, image, tag, labels)

        try:
            return await asyncio.to_thread(make)
        except (*_ENGINE_TROUBLE, tarfile.TarError) as error:
            raise _unreachable(error) from error

    async def close(self) -> None:
        """Break off the builds under way. Those who wait for them are cancelled."""
        await self.builds.close()

    async def _provide(self, spec: ImageSpec, tag: str, tell: LineCallback) -> str:
        found = await self.image_id(tag)
        if found is not None:
            return found
        tail: deque[str] = deque(maxlen=TAIL_LINES)

        def heard(line: str) -> None:
            tail.append(line)
            tell(line)

        _log.info("image_build_started", image=tag, base=spec.base)
        context = _context(dockerfile(spec), self._shim, self._ca_bundle)
        try:
            await self._stream(
                lambda api: api.build(
                    fileobj=io.BytesIO(context),
                    custom_context=True,
                    tag=tag,
                    labels=image_labels(spec),
                    # the steps' containers go, also after a failure; their layers stay as a cache
                    rm=True,
                    forcerm=True,
                    container_limits={"memory": self._memory, "memswap": self._memory},
                    network_mode=self._network_mode,
                    use_config_proxy=True,
                    timeout=int(self._timeout) + 1,
                    decode=True,
                ),
                heard,
            )
        except _EngineError as error:
            reason = str(error)
        except TimeoutError:
            reason = f"not done after {self._timeout:g} s"
        else:
            found = await self.image_id(tag)
            if found is not None:
                _log.info("image_built", image=tag)
                return found
            reason = "the engine broke off"
        raise ImageBuildFailed(
            f"The image {tag} could not be built: {reason}.",
            "Read the end of the build's output. Builds need the Debian, PyPI and npm registries; where TLS is "
            "inspected, name the CA bundle in CONDUCTOR_IMAGE_CA_BUNDLE.",
            "\n".join(tail),
        )

    async def _pull_base(self) -> str:
        name = self._base
        _log.info("base_image_pull_started", image=name)
        try:
            await self._stream(lambda api: api.pull(name, stream=True, decode=True), lambda _: None)
        except (_EngineError, TimeoutError, InfrastructureError) as error:
            reason = str(error) or f"not done after {self._timeout:g} s"
        else:
            digest = await self.image_id(name)
            if digest is not None:
                return digest
            reason = "the engine broke off"
        raise InfrastructureError(
            f"The engine has no base image {name} and could not pull it: {reason}.",
            "Import one, for example: debootstrap --variant=minbase --include=ca-certificates bookworm ROOT && "
            f"tar -C ROOT -c . | docker import - {name}. Or set CONDUCTOR_BASE_IMAGE to a Debian image that "
            "the engine has.",
        )

    # --- the engine: the SDK blocks, so it is called in threads ---------------------------------------

    async def image_id(self, name: str) -> str | None:
        """The engine's id of the image ``name``; None when it has none. Raises InfrastructureError."""

        def inspect() -> str | None:
            with contextlib.closing(self._connect()) as client:
                try:
                    return client.images.get(name).id
                except ImageNotFound:
                    return None

        try:
            return await asyncio.to_thread(inspect)
        except _ENGINE_TROUBLE as error:
            raise _unreachable(error) from error

    async def _stream(
        self, call: Callable[[docker.APIClient], Iterable[dict[str, Any]]], tell: LineCallback
    ) -> None:
        """Run one call that answers with a stream of events, and tell the lines in them.

        Raises _EngineError when an event reports one, TimeoutError, InfrastructureError. However it ends, the
        connection is closed and the thread is done: the engine ends work that nobody listens to.
        """
        loop = asyncio.get_running_loop()
        responses: list[requests.Response] = []
        cut = False

        def seen(response: requests.Response, *_: object, **__: object) -> None:
            responses.append(response)
            if cut:
                _shut(response)

        def run() -> None:
            with contextlib.closing(self._connect()) as client:
                client.api.hooks["response"].append(seen)
                try:
                    for event in call(client.api):
                        for line in _lines(event):
                            loop.call_soon_threadsafe(tell, line)
                        if "error" in event:
                            raise _EngineError(str(event["error"]).strip())
                finally:
                    for response in responses:
                        response.close()

        thread = asyncio.create_task(asyncio.to_thread(run))
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(thread)
        except (TimeoutError, asyncio.CancelledError):
            cut = True
            for response in tuple(responses):
                _shut(response)
            await asyncio.wait([thread])
            thread.exception()  # only what the cut itself caused
            raise
        except _ENGINE_TROUBLE as error:
            raise _unreachable(error) from error


def home_container(tag: str) -> str:
    """The name of the container that the image ``tag`` is made of: one that a killed worker left is found by it."""
    return f"conductor-home-{hashlib.sha256(tag.encode()).hexdigest()[:16]}"


def _keep_home(api: docker.APIClient, container: str, image: str, tag: str, labels: Mapping[str, str]) -> str:
    name = home_container(tag)
    with contextlib.suppress(NotFound):
        api.remove_container(name, force=True, v=True)
    chunks, _ = api.get_archive(container, HOME)
    made = api.create_container(
        image, name=name, labels=dict(labels), network_disabled=True, use_config_proxy=False
    )["Id"]
    try:
        api.put_archive(made, str(PurePosixPath(HOME).parent), home_archive(chunks))
        # never started, so its configuration is the image's own with the labels
        repository, _, version = tag.rpartition(":")
        api.commit(made, repository=repository, tag=version)
    finally:
        api.remove_container(made, force=True, v=True)
    inspect: Callable[[str], dict[str, Any]] = api.inspect_image
    return str(inspect(tag)["Id"])


def home_archive(chunks: Iterable[bytes], limit: int = MAX_HOME) -> Iterator[bytes]:
    """The tar of a home folder without the shim's own folder, devices and set-id bits.

    Raises SetupTooLarge above ``limit`` bytes.
    """
    size = 0
    # a pipe: nothing is ever held in memory or on disk as a whole
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parts[1:2] == (EXCLUDED,) or not (
                member.isdir() or member.isreg() or member.issym() or member.islnk()
            ):
                continue
            size += member.size
            if size > limit:
                raise SetupTooLarge(f"more than {limit >> 20} MiB")
            member.mode &= 0o1777
            yield member.tobuf(tarfile.PAX_FORMAT)
            source = tar.extractfile(member) if member.isreg() else None
            while source is not None and (data := source.read(1 << 18)):
                yield data
            yield bytes(-member.size % tarfile.BLOCKSIZE if member.isreg() else 0)
    yield bytes(2 * tarfile.BLOCKSIZE)


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a file to read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while size < 0 or have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        cut = len(data) if size < 0 else size
        self._rest = data[cut:]
        return data[:cut]


def _shut(response: requests.Response) -> None:
    """Wake the thread that reads ``response``: it sees the end of the stream."""
    # gone already when the thread has just closed it
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        response.raw.shutdown()


def _lines(event: dict[str, Any]) -> Iterator[str]:
    for line in str(event.get("stream", "")).splitlines():
        if line.strip():
            yield line.rstrip()


def _unreachable(error: Exception) -> InfrastructureError:
    return InfrastructureError(
        f"The Docker engine does not do its work: {error}.",
        "Check that it runs and that this user may use it (`docker info`).",
    )


def _context(text: str, shim: bytes, ca_bundle: bytes) -> bytes:
    """The build context as a tar: equal contents give equal bytes."""
    files = {"Dockerfile": text.encode(), "shim.py": shim}
    if ca_bundle:
        files["ca-bundle.crt"] = ca_bundle
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
