"""The manual says what the program does: commands, settings, links and files are compared with the real ones."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from bot.cli.main import main
from bot.config import CONFIG_FILE_VARIABLE, ENV_PREFIX, Settings
from bot.slash import COMMANDS, OPTIONS, RESERVED, help_table

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "conductor.example.toml"
PAGES = sorted(
    path for folder in ("", "docs", "deploy") for path in (ROOT / folder).iterdir() if path.suffix == ".md"
)
#: Where else people are told what to type.
TOLD = [*PAGES, EXAMPLE, *sorted((ROOT / "deploy").rglob("*.service")), ROOT / "deploy" / "compose.yaml",
        ROOT / "deploy" / "env.example", ROOT / "deploy" / "Dockerfile"]  # fmt: skip
MANUAL = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/using.md", "docs/installation.md",
          "docs/configuration.md", "docs/operations.md", "docs/security.md", "docs/architecture.md"]  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """The text without code blocks."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_manual_is_complete() -> None:
    assert {name_of(path) for path in PAGES} >= set(MANUAL)


def test_the_table_of_commands_is_the_generated_one() -> None:
    text = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- commands -->\n(.*?)\n<!-- /commands -->", text, re.S)
    assert shown is not None
    assert shown[1] == help_table(), "put the output of bot.slash.help_table() between README's markers"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_to_a_file_or_heading_leads_somewhere(path: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("path", TOLD, ids=name_of)
def test_every_variable_that_is_named_exists(path: Path) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {CONFIG_FILE_VARIABLE}
    named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]*[A-Z0-9]\b(?!\*)", path.read_text()))
    assert named - known == set()


@pytest.mark.parametrize("path", TOLD, ids=name_of)
def test_every_command_that_is_named_exists(path: Path) -> None:
    assert isinstance(main, click.Group)
    text = path.read_text()
    named = re.findall(r"(?:`|^ *|bin/|\()conductor +(-*[a-z]+(?:-[a-z]+)*)", text, re.M)
    assert set(named) - set(main.commands) - {"--help", "--version"} == set()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_option_of_conductor_that_is_named_exists(path: Path) -> None:
    assert isinstance(main, click.Group)
    for command, options in re.findall(
        r"conductor ([a-z]+)((?: --[a-z-]+(?:[ =][\w:./]+)?)+)", path.read_text()
    ):
        known = {name for parameter in main.commands[command].params for name in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_comment_command_that_is_shown_is_understood(path: Path) -> None:
    words = set(re.findall(r"`/agent ([a-z]+)`", path.read_text()))
    assert words & RESERVED == set()
    assert words <= set(COMMANDS)


def test_the_page_about_using_it_names_every_command() -> None:
    text = (ROOT / "docs" / "using.md").read_text()
    for name in set(COMMANDS) - {"run"}:  # which need not be written
        assert f"`/agent {name}`" in text
    for name in OPTIONS.keys() & {"agent", "timeout", "base"}:
        assert f"--{name}" in text


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_make_target_that_is_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^ *)make ([a-z-]+)", path.read_text(), re.M)) <= targets


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_of_ours_that_is_named_exists(path: Path) -> None:
    named = re.findall(r"`((?:bot|handlers|runners|templates|tests|deploy|docs)/[\w./-]+)`", path.read_text())
    made_by_people = {f"deploy/{line}" for line in (ROOT / "deploy" / ".gitignore").read_text().split()}
    wrong = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert set(wrong) <= made_by_people


def test_every_setting_is_in_the_manual_with_the_default_of_the_example_file() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| .+ \|$", (ROOT / "docs" / "configuration.md").read_text(), re.M
    )
    table = dict(rows)
    assert len(table) == len(rows)
    assert set(table) == set(Settings.model_fields)
    example = dict(re.findall(r"^#(\w+) = (.+)$", EXAMPLE.read_text(), re.M))
    for name in set(table) - {"host_name", "image_ca_bundle"}:  # whose defaults TOML cannot say
        shown = tomllib.loads(f"x = {table[name].strip('`')}")
        assert shown == tomllib.loads(f"x = {example[name]}"), name


def test_the_example_file_is_short_enough_to_read_on_any_screen() -> None:
    assert [line for line in EXAMPLE.read_text().splitlines() if len(line) > 120] == []


def test_every_message_in_the_troubleshooting_table_is_one_of_ours() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().partition("## Troubleshooting")[2]
    firsts = re.findall(r"^\| (`.+?) \|", text, re.M)
    assert len(firsts) > 20
    code = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # sentences are broken over lines
        for folder in ("bot", "runners")
        for path in (ROOT / folder).rglob("*.py")
    )
    code = re.sub(r"\{[^{}\n]*\}", "…", code)
    missing = [
        part
        for first in firsts
        for quoted in re.findall(r"`([^`]+)`", first)
        for part in re.split(r"\s*…\s*", quoted.replace("CONDUCTOR_…", "…"))
        if part.strip(" :") and part.strip(" :") not in code
    ]
    assert missing == []


def test_no_text_names_a_package_registry() -> None:
    # they are reached through the clients' own configuration, which may name a mirror
    hosts = ["pypi." + "org", "python" + "hosted.org", "npm" + "js.", "deb." + "debian.org", "rubygems" + ".org",
             "docker." + "io/", "archive." + "ubuntu.com", "crates" + ".io"]  # fmt: skip
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name] or PAGES
    texts = [path for path in files if path.suffix in (".md", ".toml", ".yaml", ".yml", ".service", ".j2")]
    assert texts
    wrong = [
        name_of(path) for path in texts if path.exists() and any(host in path.read_text() for host in hosts)
    ]
    assert wrong == []
