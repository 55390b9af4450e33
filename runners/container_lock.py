"""How every attempt's container is locked, whatever the attempt asks for. Values only, no engine calls."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

from docker.types import HostConfig, LogConfig, Mount, Ulimit

from bot.errors import ConfigurationError
from bot.ports import ContainerSpec

USER = "1000:1000"  # `agent` in our images
HOSTNAME = "agent"
WORKSPACE = "/workspace"
HOME = "/home/agent"
RUN = "/run/conductor"
MIRROR = "/mirror"
SOCKET_NAME = "gateway.sock"
LISTEN_PORT = 8080
SHM_BYTES = 64 * 2**20
OPEN_FILES = 16384  # enough for big builds, below the hard limits that engines commonly run with

#: Never mounted: neither one of these, nor anything in them, nor a folder that holds one of them.
FORBIDDEN_TREES = (
    "/proc",
    "/sys",
    "/etc",
    "/boot",
    "/root/.docker",
    "/root/.ssh",
    "/run/containerd",
    "/run/docker",
    "/run/podman",
    "/run/secrets",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
)
#: Sockets through which a container could start others, and so own the host.
ENGINE_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/var/run/docker.sock",
)
_ENGINE_SOCKET_NAMES = frozenset(Path(path).name for path in ENGINE_SOCKETS)
_ATTEMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def checked_attempt_id(attempt_id: str) -> str:
    """``attempt_id`` when it can be part of a container's name and of a path, else ConfigurationError."""
    if not _ATTEMPT_ID.fullmatch(attempt_id):
        raise ConfigurationError(
            f"{attempt_id!r} cannot be an attempt's id.",
            "Use at most 100 letters, digits, dots, dashes and underscores, first a letter or digit.",
        )
    return attempt_id


def environment(spec: ContainerSpec) -> dict[str, str]:
    """The variables of the container: the attempt's own, and where it finds its folders, which always win."""
    variables = {"LANG": "C.UTF-8"} | dict(spec.env)
    variables |= {
        "HOME": HOME,
        "CONDUCTOR_WORKSPACE": WORKSPACE,
        "CONDUCTOR_SOCKET": f"{RUN}/{SOCKET_NAME}",
        "CONDUCTOR_LISTEN_PORT": str(LISTEN_PORT),
    }
    if spec.mirror is not None:
        variables["CONDUCTOR_MIRROR"] = MIRROR
    return variables


def mounts(
    spec: ContainerSpec, volumes: dict[str, str], labels: dict[str, str], engine_socket: Path | None
) -> list[Mount]:
    """What the container sees of the host. ``volumes``: target -> name of a volume with ``labels``.

    The volumes are empty when they are made, so the engine fills them from the image's folder of the same
    path, owner and mode included (https://docs.docker.com/engine/storage/volumes/).
    A socket in a folder that is mounted read-only can be connected to all the same.
    """
    found = [Mount(target, name, type="volume", labels=labels) for target, name in volumes.items()]
    run = checked_bind(spec.socket_dir, engine_socket)
    _check_sockets(run, engine_socket)
    found.append(Mount(RUN, str(run), type="bind", read_only=True, propagation="rprivate"))
    if spec.mirror is not None:
        mirror = checked_bind(spec.mirror, engine_socket)
        found.append(Mount(MIRROR, str(mirror), type="bind", read_only=True, propagation="rprivate"))
    return found


def host_config(
    spec: ContainerSpec, api_version: str, mounted: list[Mount], host_cpus: int, security: list[str]
) -> dict[str, Any]:
    """The engine's HostConfig: https://docs.docker.com/reference/api/engine/ (ContainerCreate).

    ``host_cpus`` caps the CPU limit, because the engine refuses more than it has; ``security`` are security
    options that this engine needs to be told.
    """
    limits = spec.limits
    return HostConfig(
        api_version,
        network_mode="none",
        init=True,
        read_only=True,
        privileged=False,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true", *security],
        ipc_mode="private",
        cgroupns="private",
        mem_limit=limits.memory,
        memswap_limit=limits.memory,  # equal: no swap
        nano_cpus=int(min(limits.cpus, host_cpus) * 1e9),
        pids_limit=limits.pids,
        ulimits=[
            Ulimit(name="fsize", soft=limits.file, hard=limits.file),
            Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
            Ulimit(name="core", soft=0, hard=0),
        ],
        # builds run what they just wrote to /tmp, so it is not noexec
        tmpfs={"/tmp": f"rw,exec,nosuid,nodev,size={limits.tmp},mode=1777"},  # noqa: S108
        shm_size=SHM_BYTES,
        mounts=mounted,
        # the shim sends every line itself; a log driver would only lose some when it rotates
        log_config=LogConfig(type=LogConfig.types.NONE),
        restart_policy={"Name": "no"},
        auto_remove=False,
        publish_all_ports=False,
    )


def checked_bind(path: Path, engine_socket: Path | None = None) -> Path:
    """``path`` without links, when an untrusted container may see that folder, else ConfigurationError."""
    if not path.is_absolute():
        raise ConfigurationError(
            f"Only an absolute path can be mounted into a container, not {str(path)!r}.",
            "Set CONDUCTOR_DATA_DIR to an absolute path.",
        )
    real = path.resolve()
    known = [*FORBIDDEN_TREES, *ENGINE_SOCKETS, *([str(engine_socket)] if engine_socket else [])]
    forbidden = {Path(tree) for tree in known} | {Path(tree).resolve() for tree in known}
    devices = Path("/dev")
    if (
        any(real == tree or tree in real.parents or real in tree.parents for tree in forbidden)
        or real == devices
        or (devices in real.parents and Path("/dev/shm") not in real.parents)  # noqa: S108
    ):
        raise ConfigurationError(
            f"{str(path)!r} must never be visible in a container: it is, holds or lies in a part of the "
            "host's system.",
            "Set CONDUCTOR_DATA_DIR to a folder that holds nothing but this program's data.",
        )
    if not real.is_dir():
        raise ConfigurationError(
            f"{str(path)!r} cannot be mounted into a container: there is no such folder.",
            "It is made before the container is started; check CONDUCTOR_DATA_DIR.",
        )
    return real


def _check_sockets(folder: Path, engine_socket: Path | None) -> None:
    """Refuse a folder with any door but the gateway's socket."""
    engine = {
        (found.st_dev, found.st_ino)
        for path in (*map(Path, ENGINE_SOCKETS), *([engine_socket] if engine_socket else []))
        if (found := _stat(path)) is not None
    }
    for entry in sorted(folder.iterdir()):
        found = entry.lstat()
        other = stat.S_ISSOCK(found.st_mode) and entry.name != SOCKET_NAME
        if (
            other
            or entry.name in _ENGINE_SOCKET_NAMES
            or (found.st_dev, found.st_ino) in engine
            or stat.S_ISLNK(found.st_mode)
            or stat.S_ISBLK(found.st_mode)
            or stat.S_ISCHR(found.st_mode)
        ):
            raise ConfigurationError(
                f"{str(entry)!r} must not be visible in a container: its only door is {SOCKET_NAME}.",
                "Remove it; nothing but the gateway may put a socket there.",
            )


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None
