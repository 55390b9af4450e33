"""Hosts as network namespaces of one machine: a hub, and hosts that reach only the hub, by a link of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

HUB_ADDRESS = "10.213.0.1"  # inside the namespaces only
COMMAND_TIMEOUT = 20  # seconds


@dataclass(frozen=True)
class Network:
    """Names of the namespaces: ``hub`` and one for each host."""

    hub: str
    hosts: Sequence[str]

    def cut(self, host: str) -> None:
        """Take the host's link down: what it sends, and what is sent to it, vanishes without a word."""
        _ip("-n", self.hub, "link", "set", _link(self, host), "down")

    def mend(self, host: str) -> None:
        """Put it back."""
        _ip("-n", self.hub, "link", "set", _link(self, host), "up")


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """A hub with ``count`` hosts, gone at the end; the running test is skipped where that is not possible."""
    if os.getuid() != 0 or not (shutil.which("ip") and shutil.which("nsenter")):
        pytest.skip("network namespaces need root, ip (iproute2) and nsenter (util-linux)")
    made = Network(hub=f"faults{os.getpid()}h", hosts=[f"faults{os.getpid()}{n}" for n in range(count)])
    try:
        _ip("netns", "add", made.hub)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode(errors='replace').strip()}")
    try:
        _ip("-n", made.hub, "link", "set", "lo", "up")
        _ip("-n", made.hub, "address", "add", f"{HUB_ADDRESS}/32", "dev", "lo")
        for number, host in enumerate(made.hosts, 1):
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            _ip(
                *("-n", made.hub, "link", "add", _link(made, host), "type", "veth"),
                *("peer", "name", "eth0", "netns", host),
            )
            _ip("-n", made.hub, "address", "add", f"10.213.{number}.1/30", "dev", _link(made, host))
            _ip("-n", made.hub, "link", "set", _link(made, host), "up")
            _ip("-n", host, "address", "add", f"10.213.{number}.2/30", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "route", "add", "default", "via", f"10.213.{number}.1")
        yield made
    finally:
        for name in (*made.hosts, made.hub):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _ip("netns", "delete", name)


def _link(made: Network, host: str) -> str:
    return f"host{list(made.hosts).index(host)}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=COMMAND_TIMEOUT)
