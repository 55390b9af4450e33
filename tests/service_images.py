"""An image with real database servers, for tests of services: as their published ones, from Debian's packages."""

from __future__ import annotations

import hashlib
import io
import tarfile

import docker
from docker.errors import ImageNotFound

from tests.containers import BASE_IMAGE

#: As the entrypoint of the published image of PostgreSQL: root gives the data folder away and becomes another user.
_POSTGRES = r"""#!/bin/bash
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  chown -R postgres "$PGDATA" /var/run/postgresql
  chmod 700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ -z "${POSTGRES_PASSWORD:-}" ]; then echo "Error: POSTGRES_PASSWORD is not set" >&2; exit 1; fi
"$bin/initdb" -U postgres --auth=scram-sha-256 --pwfile=<(echo "$POSTGRES_PASSWORD") >/dev/null
exec "$bin/postgres" "$@"
"""
DOCKERFILE = f"""
FROM {BASE_IMAGE}
RUN set -eu; apt-get -q update; \
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
    postgresql redis-server python3 libcap2-bin iproute2; rm -rf /var/lib/apt/lists/*; \
    useradd --uid 1000 --create-home agent; install -d -o agent -g agent /workspace
COPY postgres.sh /usr/local/bin/postgres.sh
ENV PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
"""


def servers_image(client: docker.DockerClient) -> str:
    """The tag of an image with PostgreSQL (``postgres.sh``), Redis and their clients; built when there is none.

    It plays the agent's image as well: it has that user.
    """
    base = client.images.get(BASE_IMAGE).id
    text = DOCKERFILE
    tag = (
        f"agent-conductor-test-servers:{hashlib.sha256((base + text + _POSTGRES).encode()).hexdigest()[:16]}"
    )
    try:
        client.images.get(tag)
    except ImageNotFound:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for name, data in (("Dockerfile", text.encode()), ("postgres.sh", _POSTGRES.encode())):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o755
                tar.addfile(member, io.BytesIO(data))
        context.seek(0)
        client.images.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            rm=True,
            forcerm=True,
            timeout=900,
            network_mode="host",
        )
    return tag
