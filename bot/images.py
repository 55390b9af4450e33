"""What an agent's container image is made of: its Dockerfile, its name and its labels, all from one value.

Equal ingredients give an equal name, so an image is built once and found again by its name alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field

import jinja2

from bot.errors import ConfigurationError

#: Debian packages in every agent image. The shim needs python3, checkpoints need git.
BASE_CAPABILITIES = frozenset({"bash", "ca-certificates", "curl", "git", "procps", "python3"})
#: The PyPI release of Node.js whose npm fetches the agents; no part of it stays in an image.
NODE_VERSION = "24.19.0"

REPOSITORY = "agent-conductor"
HASH_LABEL = "agent-conductor.image"
AGENT_LABEL = "agent-conductor.agent"
AGENT_VERSION_LABEL = "agent-conductor.agent-version"
SHIM_LABEL = "agent-conductor.shim"

# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_AGENT = re.compile(r"[a-z0-9][a-z0-9-]*")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")
# https://pkg.go.dev/github.com/distribution/reference, without its limits of length
_REFERENCE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The ingredients of one agent image.

    Every value ends up in a Dockerfile, so each is held against its grammar: ConfigurationError otherwise.
    """

    agent: str
    version: str = ""  # the CLI's exact version; "" for an agent without a CLI
    base: str  # reference of the base image
    base_digest: str  # the engine's id of that image: the same name may mean another one tomorrow
    shim: str  # SHA-256 of the shim, hex
    ca_bundle: str = ""  # SHA-256 of the CA bundle trusted while building, hex; "" without one
    capabilities: frozenset[str] = field(default_factory=frozenset)  # Debian packages besides the base set

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", frozenset(name.lower() for name in self.capabilities))
        checks = [(_AGENT, self.agent, "agent name"), (_REFERENCE, self.base, "image reference")]
        checks += [(_VERSION, self.version, "agent version")] if self.version else []
        checks += [(_PACKAGE, name, "capability") for name in sorted(self.capabilities)]
        for pattern, value, what in checks:
            if not pattern.fullmatch(value):
                raise ConfigurationError(f"{value!r} is not a valid {what}.")

    @property
    def packages(self) -> list[str]:
        """The Debian packages to install, sorted."""
        return sorted(BASE_CAPABILITIES | self.capabilities)


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
    try:
        template = environment.get_template(f"{spec.agent}.j2")
    except jinja2.TemplateNotFound as error:
        raise ConfigurationError(
            f"There is no image for the agent {spec.agent!r}.", "Add it as templates/image/<agent>.j2."
        ) from error
    # an empty version stays undefined, and a template that uses it then fails
    version = {"version": spec.version} if spec.version else {}
    try:
        return template.render(spec=spec, node=NODE_VERSION, **version)
    except jinja2.UndefinedError as error:
        raise ConfigurationError(f"The image for {spec.agent} cannot be described: {error}.") from error


def image_hash(spec: ImageSpec) -> str:
    """12 hex digits that change with any ingredient and with the Dockerfile's text."""
    ingredients = asdict(spec) | {"capabilities": spec.packages, "dockerfile": dockerfile(spec)}
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]


def image_tag(spec: ImageSpec) -> str:
    """The image's name: ``agent-conductor/<agent>:<12 hex>``."""
    return f"{REPOSITORY}/{spec.agent}:{image_hash(spec)}"


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
        HASH_LABEL: image_hash(spec),
        AGENT_LABEL: spec.agent,
        AGENT_VERSION_LABEL: spec.version or "none",
        SHIM_LABEL: spec.shim,
    }
