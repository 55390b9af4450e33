"""Profiles: how an agent is to work, as the repository wrote it down. Markdown below YAML front matter. Pure.

They are the files that other products call custom agents and sub-agents, so that a repository needs them once:
https://docs.github.com/en/copilot/reference/custom-agents-configuration (``.github/agents/NAME.md``, also
``NAME.agent.md``) and https://code.claude.com/docs/en/sub-agents. A profile says how to work. What an agent may do
is the server's and the repository's configuration alone: what other products let such a file grant or take away
(``tools``, ``mcp-servers``, ``permissionMode`` …) has no effect here, and that is said.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bot.errors import ConductorError
from bot.model import KEPT_PROFILE, Job
from bot.repo_config import Line, Name, RepoConfig
from bot.repo_layers import NotOffered
from bot.repo_rules import ProfilesConfig, is_profile_name
from bot.yaml_text import BadText, Document, Problem

FOLDER = ".github/agents"
MAX_BYTES = 64 * 1024
#: Characters of the Markdown part; the limit that Copilot has, too.
MAX_TEXT = 30_000
#: Instead of a name: without a profile, also where the repository has a usual one.
NONE = "none"
#: More names are not listed for people.
MAX_LISTED = 50

_FILE = re.compile(r"(?P<name>.+?)(?:\.agent)?\.md", re.IGNORECASE)
_OURS = ("name", "description", "agent", "model")
#: Keys of other products that let an agent do more or less there.
_RIGHTS = frozenset(
    {"tools", "disallowedTools", "mcp-servers", "mcpServers", "permissionMode", "hooks", "skills", "agents"}
)
#: ... and those that say when and how those products use the file.
_OTHERS = frozenset(
    {
        "target", "infer", "disable-model-invocation", "user-invocable", "metadata", "handoffs", "argument-hint",
        "color", "memory", "maxTurns", "effort", "isolation", "background", "initialPrompt", "mode",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One profile, as it is kept with a job."""

    name: str
    text: str  # Markdown
    description: str = ""
    agent: str | None = None
    model: str | None = None
    unused: tuple[str, ...] = ()  # keys that have no effect here
    bundled: bool = False  # comes with this program, and not from the repository
    asked: bool = False  # somebody named it, so that the conversation's next job has it, too


class ProfileError(ConductorError):
    """A profile cannot be used. ``problems`` tells what is wrong in its file and where."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        listed = "; ".join(str(problem) for problem in problems[:5])
        super().__init__(
            f"The profile `{path}` on the default branch cannot be used: {listed}.",
            "Correct the file on the default branch, then ask again.",
        )


class UnknownProfile(ConductorError):
    """There is no profile of this name; those that there are, are listed."""

    def __init__(self, name: str, own: Iterable[str]) -> None:
        own, others = sorted(own, key=str.lower), sorted(set(bundled()) - {one.lower() for one in own})
        listed = ", ".join(f"`{one}`" for one in [*own, *others][:MAX_LISTED])
        super().__init__(
            f"There is no profile `{name}` here; there are {listed}.",
            f"A profile of your own is a file `{FOLDER}/NAME.md` on the default branch.",
        )


class _FrontMatter(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    description: str = Field(min_length=1, max_length=8000)
    name: str | None = Field(None, min_length=1, max_length=200)  # for people: the file's name counts
    agent: Name | None = None
    model: Line | None = None

    @field_validator("model", mode="before")
    @classmethod
    def _first(cls, value: Any) -> Any:
        # a list is an order of preference in VS Code; `inherit` is Claude Code's word for no choice
        first = value[0] if isinstance(value, list) and value else value
        return None if first == "inherit" else first


def read(text: str, name: str, *, path: str = "", bundled: bool = False) -> tuple[Profile, list[Problem]]:
    """The profile in a file's ``text``, and what in it has no effect here.

    Raises ProfileError, which tells line and column of each mistake; ``path`` is the file for its sentence.
    """
    path = path or f"{FOLDER}/{name}.md"
    if len(text.encode()) > MAX_BYTES:
        raise ProfileError(path, [Problem(f"the file is larger than {MAX_BYTES // 1024} KiB", 1, 1)])
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        said = "the file must begin with `---`, then its front matter in YAML: at least a `description`"
        raise ProfileError(path, [Problem(said, 1, 1)])
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise ProfileError(path, [Problem("the front matter has no end: a line `---`", 1, 1)])
    try:
        # an empty line in place of the first one: so all places are those of the file
        document = Document("\n".join(["", *lines[1:end]]), max_bytes=MAX_BYTES)
        front = _FrontMatter.model_validate(document.values)
    except BadText as error:
        raise ProfileError(path, error.problems) from error
    except ValidationError as error:
        raise ProfileError(path, [document.problem(detail) for detail in error.errors()]) from error
    body = "\n".join(lines[end + 1 :]).strip()
    if len(body) > MAX_TEXT:
        said = f"the text below the front matter is longer than {MAX_TEXT} characters"
        raise ProfileError(path, [Problem(said, end + 2, 1)])
    unused = [str(key) for key in document.values if key not in _OURS]
    remarks = [Problem(_no_effect(key), *document.place([key], at_key=True)) for key in unused]
    profile = Profile(
        name=name,
        text=body,
        description=" ".join(front.description.split()),
        agent=front.agent,
        model=front.model,
        unused=tuple(key[:40] for key in unused[:20]),
        bundled=bundled,
    )
    return profile, remarks


def _no_effect(key: str) -> str:
    if key in _RIGHTS:
        return (
            f"`{key}` has no effect here: what an agent may do is decided by the kind of job and by the "
            "configuration of the server and the repository, never by a profile"
        )
    if key in _OTHERS:
        return f"`{key}` is of another product and has no effect here"
    near = difflib.get_close_matches(key, _OURS, n=1)
    guess = f"; did you mean `{near[0]}`?" if near else ""
    return f"`{key[:100]}` is not known and has no effect{guess}"


def name_of(path: str) -> str | None:
    """The name of the profile in a file of the repository, by its path; None when that is none."""
    folder, _, file = path.rpartition("/")
    return name_in(file) if folder == FOLDER else None


def name_in(file: str) -> str | None:
    """The name of the profile in a file of :data:`FOLDER`; None when that is none."""
    match = _FILE.fullmatch(file)
    if match is None or file.lower() == "readme.md":
        return None
    usable = is_profile_name(match["name"]) and match["name"].lower() != NONE
    return match["name"] if usable else None


def find(name: str, paths: Iterable[str]) -> str | None:
    """Which of ``paths`` holds the profile of this name, in whatever case; None when none does.

    Raises ProfileError when two of them do.
    """
    found = sorted(path for path in paths if (name_of(path) or "").lower() == name.lower())
    if len(found) > 1:
        raise ProfileError(found[0], [Problem(f"`{found[1]}` has the same name", 1, 1)])
    return found[0] if found else None


def bundled() -> Mapping[str, str]:
    """The profiles that come with this program: name -> the file's text."""
    folder = files("templates.profiles")
    return {
        one.name.removesuffix(".md"): one.read_text(encoding="utf-8")
        for one in sorted(folder.iterdir(), key=lambda one: one.name)
        if one.name.endswith(".md")
    }


def bundled_profile(name: str) -> Profile | None:
    """The bundled profile of this name; None when there is none."""
    text = bundled().get(name.lower())
    return None if text is None else read(text, name.lower(), bundled=True)[0]


def names_not_there(config: RepoConfig, own: Sequence[str]) -> list[NotOffered]:
    """The profiles that ``config`` names and that there are not. ``own``: the names of the repository's own."""
    known = {name.lower() for name in own} | set(bundled()) | {NONE}
    named: dict[tuple[str, ...], str | None] = {
        ("profile", kind): config.profile.usual(kind) for kind in ProfilesConfig.model_fields
    }
    named |= {("jobs", name, "profile"): job.profile for name, job in config.jobs.items()}
    return [
        # without the usual one no job of that kind starts
        NotOffered(place, UnknownProfile(name, own).message, stops=place[0] == "profile")
        for place, name in named.items()
        if name is not None and name.lower() not in known
    ]


def keep(profile: Profile) -> Mapping[str, Any]:
    """What a job's ``config`` has of its profile, besides the repository's configuration."""
    return {KEPT_PROFILE: asdict(profile) | {"unused": list(profile.unused)}}


def kept(job: Job) -> Profile | None:
    """The profile of ``job`` as it stood when the job was accepted; None without one."""
    values = job.config.get(KEPT_PROFILE)
    return None if values is None else Profile(**values | {"unused": tuple(values["unused"])})


def asked_for(job: Job) -> str | None:
    """The profile that the conversation's next job has, because somebody named it for ``job``; None: the usual one."""
    if job.config.get(KEPT_PROFILE) is None:
        return None
    return job.profile if job.config[KEPT_PROFILE]["asked"] else None
