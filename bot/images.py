"""What an agent's container image is made of: its Dockerfile, its name and its labels, all from one value.

Equal ingredients give an equal name, so an image is built once and found again by its name alone. What a repository's
own set-up steps leave behind is a second image on top of the first: for that repository alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from bot.capabilities import BASE_PACKAGES, TOOLS, Capability, check_capabilities, known_capabilities
from bot.errors import ConfigurationError
from bot.ports import Installation
from bot.terms import Terms

#: The PyPI release of Node.js whose npm fetches the agents; those that are scripts keep its program for themselves.
NODE_VERSION = "24.19.0"

REPOSITORY = "agent-conductor"
HASH_LABEL = "agent-conductor.image"
AGENT_LABEL = "agent-conductor.agent"
AGENT_VERSION_LABEL = "agent-conductor.agent-version"
SHIM_LABEL = "agent-conductor.shim"
CAPABILITIES_LABEL = "agent-conductor.capabilities"
SETUP_LABEL = "agent-conductor.setup"
OWNER_LABEL = "agent-conductor.repository"
#: Also on the stages of a build that are thrown away: by it they are found when they are collected.
BUILD_LABEL = "agent-conductor.build"

_AGENT = re.compile(r"[a-z0-9][a-z0-9-]*")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")
_PROGRAM = re.compile(r"[0-9A-Za-z_./][0-9A-Za-z_.+/-]*")
# https://pkg.go.dev/github.com/distribution/reference, without its limits of length
_REFERENCE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ImageNeeds:
    """What a job needs of its image besides the agent.

    With set-up steps also where they run: in a checkout of ``revision`` (a commit of the repository's default branch:
    what a pull request proposes must not reach later jobs) cloned from ``mirror``, with the egress of ``terms``.
    """

    capabilities: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # shell commands
    repository: int = 0  # GitHub's id
    mirror: Path | None = None
    revision: str = ""
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        if self.setup and not (self.repository and self.mirror and self.revision):
            raise ValueError("set-up steps need a repository, its mirror and a revision")


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The ingredients of one agent image.

    Every value ends up in a Dockerfile, so each is held against its grammar: ConfigurationError otherwise, also for a
    capability that is not in ``table``.
    """

    agent: str
    version: str = ""  # the CLI's exact version; "" for an agent without a CLI
    installation: Installation | None = None  # None: the agent's template has it
    base: str  # reference of the base image
    base_digest: str  # the engine's id of that image: the same name may mean another one tomorrow
    shim: str  # SHA-256 of the shim, hex
    ca_bundle: str = ""  # SHA-256 of the CA bundle trusted while building, hex; "" without one
    capabilities: frozenset[str] = field(
        default_factory=frozenset
    )  # in any spelling; kept in the canonical one
    table: Mapping[str, Capability] = field(default_factory=known_capabilities, repr=False, hash=False)

    def __post_init__(self) -> None:
        checks = [(_AGENT, self.agent, "agent name"), (_REFERENCE, self.base, "image reference")]
        checks += [(_VERSION, self.version, "agent version")] if self.version else []
        checks += [(_PROGRAM, self.installation.program, "program name")] if self.installation else []
        for pattern, value, what in checks:
            if not pattern.fullmatch(value):
                raise ConfigurationError(f"{value!r} is not a valid {what}.")
        object.__setattr__(self, "capabilities", check_capabilities(self.capabilities, self.table))

    @property
    def packages(self) -> list[str]:
        """The Debian packages to install besides the base set, sorted; ``a|b`` is the first that there is."""
        wanted = {package for name in self.capabilities for package in self.table[name].packages}
        return sorted(wanted - set(BASE_PACKAGES))

    @property
    def tools(self) -> dict[str, tuple[str, ...]]:
        """The commands that make the other capabilities, by name."""
        return {name: self.table[name].run for name in sorted(self.capabilities) if self.table[name].run}


@functools.lru_cache(maxsize=64)
def dockerfile(spec: ImageSpec) -> str:
    """The Dockerfile for ``spec``, from ``templates/image/<agent>.j2``.

    Its build context holds ``shim.py``, and ``ca-bundle.crt`` when the spec has one. Raises
    ConfigurationError for an agent that has no template, or needs a version and has none.
    """
    environment = jinja2.Environment(  # noqa: S701 - a Dockerfile is no HTML
        loader=jinja2.PackageLoader("templates", "image"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # the exec form: no character of a command means anything to the Dockerfile's own parser
    environment.filters["json"] = json.dumps
    try:
        template = environment.get_template("custom.j2" if spec.installation else f"{spec.agent}.j2")
    except jinja2.TemplateNotFound as error:
        raise ConfigurationError(
            f"There is no image for the agent {spec.agent!r}.", "Add it as templates/image/<agent>.j2."
        ) from error
    # an empty version stays undefined, and a template that uses it then fails
    version = {"version": spec.version} if spec.version else {}
    try:
        return template.render(
            spec=spec,
            node=NODE_VERSION,
            base_packages=BASE_PACKAGES,
            tools=TOOLS,
            build_label=BUILD_LABEL,
            **version,
        )
    except jinja2.UndefinedError as error:
        raise ConfigurationError(f"The image for {spec.agent} cannot be described: {error}.") from error


def image_hash(spec: ImageSpec) -> str:
    """12 hex digits that change with any ingredient and with the Dockerfile's text."""
    ingredients = {
        "agent": spec.agent,
        "version": spec.version,
        "base": spec.base,
        "base_digest": spec.base_digest,
        "shim": spec.shim,
        "ca_bundle": spec.ca_bundle,
        "dockerfile": dockerfile(spec),
    }
    return _digest(ingredients)


def image_tag(spec: ImageSpec) -> str:
    """The image's name: ``agent-conductor/<agent>:<12 hex>``."""
    return f"{REPOSITORY}/{spec.agent}:{image_hash(spec)}"


def setup_hash(spec: ImageSpec, needs: ImageNeeds) -> str:
    """12 hex digits that change with the image below, the repository, and any set-up step or their order."""
    return _digest({"image": image_hash(spec), "repository": needs.repository, "setup": list(needs.setup)})


def setup_tag(spec: ImageSpec, needs: ImageNeeds) -> str:
    """The name of the image with the set-up steps' work: that of the image below, a dash and 12 hex digits."""
    return f"{image_tag(spec)}-{setup_hash(spec, needs)}"


def image_labels(spec: ImageSpec) -> dict[str, str]:
    """The labels that tell what an image is and how to find all of ours.

    Names of the first kind: https://github.com/opencontainers/image-spec/blob/main/annotations.md
    """
    return {
        "org.opencontainers.image.title": f"{REPOSITORY}/{spec.agent}",
        "org.opencontainers.image.description": f"Runs {spec.agent} for Agent Conductor",
        "org.opencontainers.image.version": spec.version or "none",
        "org.opencontainers.image.base.name": spec.base,
        "org.opencontainers.image.base.digest": spec.base_digest,
        BUILD_LABEL: "1",
        HASH_LABEL: image_hash(spec),
        AGENT_LABEL: spec.agent,
        AGENT_VERSION_LABEL: spec.version or "none",
        CAPABILITIES_LABEL: " ".join(sorted(spec.capabilities)),
        SHIM_LABEL: spec.shim,
    }


def setup_labels(spec: ImageSpec, needs: ImageNeeds) -> dict[str, str]:
    """The labels of an image with a repository's set-up."""
    return image_labels(spec) | {
        SETUP_LABEL: setup_hash(spec, needs),
        OWNER_LABEL: str(needs.repository),
        "org.opencontainers.image.revision": needs.revision,
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
