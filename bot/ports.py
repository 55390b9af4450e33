"""The ports: what a container backend and an agent CLI must offer. Only plain values cross them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bot.model import Usage

# --- the runner: where an attempt's container lives --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use. Sizes in bytes."""

    memory: int
    cpus: float
    pids: int
    tmp: int
    file: int  # largest single file


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """How to find out that a service is ready: ``command`` ends with 0 in its container."""

    command: Sequence[str]  # argv
    interval: float = 1.0  # seconds between two tries
    timeout: float = 5.0  # seconds for one
    retries: int = 60


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """A container beside the attempt's, in its network namespace: the agent finds it on localhost."""

    name: str
    image: str
    command: Sequence[str] = ()  # replaces the image's own
    env: Mapping[str, str] = field(default_factory=dict)
    health: HealthCheck | None = None  # None: the image's own, else it is ready when it runs
    memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One attempt's container. The runner adds the hardening itself; no field can weaken it."""

    attempt_id: str  # name and label
    image: str
    argv: Sequence[str]
    env: Mapping[str, str]
    socket_dir: Path  # host folder with the gateway's socket, seen as /run/conductor
    mirror: Path | None  # host folder of the bare mirror, seen read-only as /mirror
    limits: Limits
    labels: Mapping[str, str] = field(default_factory=dict)
    services: Sequence[ServiceSpec] = ()  # start and end with it


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A container that was started, found again by its attempt's id after a restart."""

    attempt_id: str
    ref: str  # the backend's own id
    running: bool = True


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How the agent's container ended. Never an infrastructure error: those are raised."""

    code: int | None
    signal: int | None = None
    oom: bool = False
    stopped: bool = False  # by our stop()
    host: bool = False  # not by itself: the engine or the host was restarted


class Runner(Protocol):
    """A container backend.

    Order of calls for one attempt: ``start`` once; ``wait``, ``stop``, ``pause``, ``unpause`` any number of
    times and from any task; ``remove`` at the end. Calls for different attempts may overlap. ``start`` with an
    attempt id that exists already returns that container's handle (a restarted worker may repeat it).
    ``stop``, ``pause``, ``unpause`` and ``remove`` are safe to repeat and on a container that is gone.
    ``list`` finds every container of this host's worker by label, running or not. What is said of the container
    goes for the services beside it, too. Infrastructure trouble is raised as InfrastructureError; what the agent
    did is told by ``Exit``.
    """

    async def check(self) -> None:
        """Raise InfrastructureError with the next step when the backend cannot be used."""

    async def start(self, spec: ContainerSpec) -> Handle:
        """Start the container, hardened, with fresh workspace and home, then its services, and wait for those.

        Raises JobFailed in phase start for a service that does not become ready.
        """

    async def wait(self, handle: Handle) -> Exit:
        """Return when the container has ended, however long that takes."""

    async def stop(self, handle: Handle, grace: float) -> None:
        """SIGTERM, and SIGKILL to everything in it after ``grace`` seconds."""

    async def pause(self, handle: Handle) -> None:
        """Freeze all its processes."""

    async def unpause(self, handle: Handle) -> None:
        """Let them go on."""

    async def list(self) -> list[Handle]:
        """Every container that belongs to us on this backend."""

    async def workspace_bytes(self) -> Mapping[str, int]:
        """How many bytes the workspace and home of each attempt hold, by attempt id."""

    async def remove(self, handle: Handle) -> None:
        """Remove the container and its volumes."""

    async def close(self) -> None:
        """Release connections; containers go on."""


# --- the agent: a CLI that we start and read ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One piece of work for the agent in its session. Travels to the shim as JSON."""

    number: int  # from 1
    prompt: str
    model: str | None
    session_id: str  # a UUID chosen by us; agents that choose their own report it as an event
    resume: bool
    timeout: int  # seconds


@dataclass(frozen=True, kw_only=True)
class AgentEvent:
    """One thing that the agent said or did, in our words."""

    kind: str  # "started", "text", "tool", "tool_result", "told", "retry", "final", "error", "log"
    text: str = ""
    piece: bool = False  # of a text: goes on the piece before it, until another kind of event comes
    session_id: str | None = None
    ok: bool = True
    failure: str | None = None  # with ok False: a FailureKind value when the agent told one
    usage: Usage | None = None  # of a step or of all of them; what a turn's events tell adds up


@dataclass(frozen=True, kw_only=True)
class Command:
    """How the shim starts an agent for one turn. Everything in it is visible to the agent."""

    argv: Sequence[str]
    stdin: str
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # path below HOME -> text


@dataclass(frozen=True, kw_only=True)
class Installation:
    """How a CLI gets into its agent's image when the operator says it: by commands, or with the base image."""

    program: str  # must be found in the image at the end
    #: For bash, as root; what is to stay lies below $AGENT, programs in its bin.
    commands: tuple[str, ...] = ()


class Agent(Protocol):
    """A coding-agent CLI."""

    name: str
    version: str  # exact version installed in the image; "" when nothing is installed
    #: "anthropic", "openai", "gemini": which proxy of the gateway it speaks to; "own"; None: it needs no model
    llm: str | None
    instruction_file: str | None  # the file in the repository that it reads by itself
    session_paths: Sequence[str]  # below HOME: what must be kept to resume
    tools: bool  # it is given the gateway's tools (MCP): progress, ask, request_approval
    installation: Installation | None  # None: templates/image/<name>.j2 knows

    def command(self, turn: Turn, *, gateway: str, token: str) -> Command:
        """How to run ``turn``. ``gateway`` is the base URL in the container, ``token`` the attempt's own."""

    def read(self, line: str) -> list[AgentEvent]:
        """Translate one line of its standard output. Never raises: an odd line is a "log" event."""
