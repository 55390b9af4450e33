"""An agent that works until the test lets it go on: no guess at how long anything takes."""

from __future__ import annotations

import contextlib

from docker.errors import DockerException

from tests.faults.parts import Engine

#: What it writes then, no other try writes.
GATE = "```sh\nuntil [ -e /tmp/go ]; do sleep 0.1; done\ndate +%s%N > when.txt\n```"


def let_go_on(engine: Engine, attempt: str) -> bool:
    """Open the gate of an attempt; False when its container is not there yet."""
    with contextlib.suppress(DockerException), engine.client() as client:
        done = client.containers.get(f"conductor-{attempt}").exec_run(["touch", "/tmp/go"], user="1000")
        return bool(done.exit_code == 0)
    return False
