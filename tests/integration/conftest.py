"""What the tests of images share: the real engine, and a builder on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from runners.images import ImageBuilder


@pytest.fixture(scope="module")
def docker_client() -> Iterator[docker.DockerClient]:
    """A client of this machine's engine."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
async def builder() -> AsyncIterator[ImageBuilder]:
    """Builds images whose shim does nothing."""
    # a machine behind a TLS inspecting proxy says so in this variable
    bundle = os.environ.get("SSL_CERT_FILE")
    ca_bundle = Path(bundle).read_bytes() if bundle else b""
    builder = ImageBuilder(base="debian:bookworm-slim", shim=b"print('placeholder')\n", ca_bundle=ca_bundle)
    yield builder
    await builder.close()
