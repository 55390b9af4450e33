"""`conductor check-config`: whether a repository's configuration can be used, before anybody merges it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
import yaml

from bot.cli.run import config_option, fail, settings_from
from bot.errors import ConductorError
from bot.profiles import FOLDER, ProfileError, find, name_in, names_not_there
from bot.profiles import read as read_profile
from bot.repo_config import PATH, RepoConfig, RepoConfigError, read
from bot.repo_layers import NotOffered, ServerRules, merge, not_offered, under, without_effect
from bot.yaml_text import Document, Problem
from runners.agents.registry import known_agents


@click.command("check-config")
@click.argument("file", default=PATH)
@click.option(
    "--organisation",
    metavar="FILE",
    help=f"The default below it: {PATH} of the owner's repository `.github`.",
)
@click.option("--server", is_flag=True, help="Also check it against this server's settings.")
@click.option("--show", is_flag=True, help="Print what counts in the end, without what is a default.")
@config_option
def check_config(file: str, organisation: str | None, server: bool, show: bool, config: Path | None) -> None:
    """Check a repository's configuration; FILE may be - for standard input.

    With it the profiles in the folder `agents` beside it are checked. A FILE that ends with .md is one
    profile. Each problem is one line, FILE:LINE:COLUMN: what is wrong. The same is said in the check run
    `agent/config` of a pull request that brings the files along.

    \b
    In a repository:
      conductor check-config
    As a hook, what is about to be committed:
      git show :.github/conductor.yml | conductor check-config -
    What a server would make of it:
      conductor check-config --server --config conductor.toml FILE
    With the organisation's default below it:
      conductor check-config --organisation ../.github/.github/conductor.yml
    One profile:
      conductor check-config .github/agents/reviewer.md

    \b
    Exit codes:
      0  it can be used (what has no effect, or what a server does not offer but can do without, is told as a
         warning)
      1  it cannot be used
      2  there is no such file, or the server's own settings are wrong
    """  # noqa: D301 - click wants a real backspace: "do not wrap this"
    agents = _agents(config) if server else None
    if file.endswith(".md"):
        if not _profiles_good([Path(file)], agents):
            sys.exit(1)
        click.echo(f"{file} can be used.")
        return
    profiles = _profiles(file)
    good = _profiles_good(profiles, agents)
    if profiles and file == PATH and not Path(file).exists():  # profiles need no configuration
        click.echo(f"The profiles in {FOLDER} can be used." if good else "", nl=good)
        sys.exit(0 if good else 1)
    try:
        own, document = read(_text(file))
    except RepoConfigError as error:
        _end(file, error.problems)
    default = RepoConfig()
    if organisation:
        try:
            default, _ = read(_text(organisation))
        except RepoConfigError as error:
            _end(organisation, error.problems)
    try:
        whole = merge(default, own)
    except RepoConfigError as error:
        _end(file, error.problems)
    if file != "-":
        absent = names_not_there(whole, [name_in(profile.name) or "" for profile in profiles])
        _warn(file, [one for one in absent if not one.stops], document)
        if stops := _placed([one for one in absent if one.stops], document):
            _end(file, stops)
    if server:
        settings = settings_from(config)
        whole = under(ServerRules.of(settings), whole)
        try:
            missing = not_offered(whole, settings, known_agents(settings))
        except ConductorError as error:
            fail(error)
        _warn(file, [*(one for one in missing if not one.stops), *without_effect(own, whole)], document)
        if stops := _placed([one for one in missing if one.stops], document):
            _end(file, stops)
    else:
        told = without_effect(own, whole)
        _warn(file, told, document, also=" A server may want some by itself: --server tells.")
    if not good:
        sys.exit(1)
    if show:
        values = whole.model_dump(mode="json", exclude_defaults=True)
        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)
    else:
        click.echo(f"{file} can be used.")


def _agents(config: Path | None) -> list[str]:
    """The agents that this server offers."""
    settings = settings_from(config)
    try:
        known = known_agents(settings)
    except ConductorError as error:
        fail(error)
    return [name for name in settings.agents if name in known]


def _profiles(file: str) -> list[Path]:
    """The profiles that belong to the configuration in ``file``: those in the folder beside it."""
    folder = Path(file).parent / Path(FOLDER).name
    if file == "-" or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and name_in(path.name) is not None)


def _profiles_good(files: Sequence[Path], agents: list[str] | None) -> bool:
    """Say what is wrong in these profiles; whether all of them can be used. ``agents``: those of a server, if any."""
    good = True
    for file in files:
        name = name_in(file.name)
        if name is None:
            _tell(
                str(file), Problem("a profile's name has letters, digits, `.`, `_` and `-`; not `none`", 1, 1)
            )
            good = False
            continue
        try:
            find(name, [f"{FOLDER}/{one.name}" for one in files])
            profile, remarks = read_profile(_text(str(file)), name)
        except ProfileError as error:
            for problem in error.problems:
                _tell(str(file), problem)
            good = False
            continue
        if agents is not None and profile.agent is not None and profile.agent not in agents:
            remarks = [Problem(f"The agent `{profile.agent}` is not offered here.", 1, 1), *remarks]
        for remark in remarks:
            _tell(str(file), Problem(f"warning: {remark.message}", remark.line, remark.column))
    return good


def _placed(found: Sequence[NotOffered], document: Document) -> list[Problem]:
    """What is asked for in vain, each once, where it stands."""
    return list(dict.fromkeys(Problem(one.said, *document.place(one.place)) for one in found))


def _text(file: str) -> str:
    """What stands in ``file``; ends the program with 2 when it cannot be read, and with 1 when it is no text."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        click.secho(f"conductor: cannot read {file}: {error.strerror}.", fg="red", err=True)
        click.echo("  Name the file to check, or - for standard input.", err=True)
        sys.exit(2)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        _end(file, [Problem("it is not text in UTF-8", 1, 1)])


def _tell(file: str, problem: Problem) -> None:
    """One line, as compilers write it, so that editors find the place."""
    click.echo(f"{file}:{problem.line}:{problem.column}: {problem.message}", err=True)


def _warn(file: str, remarks: Sequence[NotOffered], document: Document, *, also: str = "") -> None:
    for one in _placed(remarks, document):
        _tell(file, Problem(f"warning: {one.message}{also}", one.line, one.column))


def _end(file: str, problems: Sequence[Problem]) -> NoReturn:
    for problem in problems:
        _tell(file, problem)
    sys.exit(1)
