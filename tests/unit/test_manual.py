"""The manual says what the program does: commands, settings, links and files are compared with the real ones."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
import yaml
from pydantic import BaseModel

from bot.agent_config import CustomAgent
from bot.approval_writer import CHECK_NAME as APPROVAL_CHECK
from bot.audit_chain import MUST, AuditKind
from bot.check_report import CANCEL_BUTTON, RESUME_BUTTON, RETRY_BUTTON, check_name
from bot.cli.main import main
from bot.config import CONFIG_FILE_VARIABLE, ENV_PREFIX, Settings
from bot.config_check import CHECK_NAME as CONFIG_CHECK
from bot.model import JobKind
from bot.repo_config import RepoConfig, parse
from bot.repo_rules import Entitled
from bot.slash import COMMANDS, DECISIONS, OPTIONS, Command, help_table, parse_commands
from runners.agents.registry import AGENTS, agent
from tests.manual import parts_of, renewed

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "conductor.example.toml"
PAGES = sorted(
    path for folder in ("", "docs", "deploy") for path in (ROOT / folder).iterdir() if path.suffix == ".md"
)
#: Where else people are told what to type.
TOLD = [*PAGES, EXAMPLE, *sorted((ROOT / "deploy").rglob("*.service")), ROOT / "deploy" / "compose.yaml",
        ROOT / "deploy" / "env.example", ROOT / "deploy" / "Dockerfile"]  # fmt: skip
MANUAL = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/agents.md", "docs/approvals.md",
          "docs/architecture.md", "docs/configuration.md", "docs/installation.md", "docs/operations.md",
          "docs/performance.md", "docs/repository.md", "docs/security.md", "docs/using.md"]  # fmt: skip
USING = ROOT / "docs" / "using.md"
REPOSITORY = ROOT / "docs" / "repository.md"


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


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(((?:docs/)?[\w-]+\.md)[)#]", (ROOT / "README.md").read_text()))
    assert set(MANUAL) - {"README.md"} - linked == set()


@pytest.mark.parametrize("path", [ROOT / name for name in MANUAL], ids=name_of)
def test_what_is_made_from_the_code_is_up_to_date(path: Path) -> None:
    assert renewed(path.read_text()) == path.read_text(), "run `make manual`, and look at `git diff`"


def test_the_commands_are_in_the_pages_that_people_read_first() -> None:
    for page in (ROOT / "README.md", USING):
        assert parts_of(page.read_text()) == ["commands"], page.name


def test_a_part_is_written_and_the_rest_left_as_it_is() -> None:
    page = "# Page\n\n<!-- commands -->\n| old |\n<!-- /commands -->\n\nThe end.\n"
    assert renewed(page) == f"# Page\n\n<!-- commands -->\n{help_table()}\n<!-- /commands -->\n\nThe end.\n"
    with pytest.raises(KeyError):
        renewed("<!-- nothing-like-it -->\n<!-- /nothing-like-it -->\n")


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


def typed(path: Path) -> list[list[str]]:
    """The words after `conductor` of every command that a page shows, in a sentence or in a code block."""
    text = path.read_text()
    blocks = re.findall(r"^`{3,}(?:sh)?\n(.*?)^`{3,}$", text, re.M | re.S)
    code = [
        *(line for block in blocks for line in block.splitlines()),
        *re.findall(r"`([^`\n]+)`", prose(text)),
    ]
    found = [
        re.search(r"(?:^|/|\| )conductor ([^|]*)$", re.split(r"  +#|  {3,}", line)[0].strip())
        for line in code
    ]
    return [shlex.split(one[1], comments=True) for one in found if one and re.match(r"[a-z-]", one[1])]


@pytest.mark.parametrize("path", TOLD, ids=name_of)
def test_every_option_and_subcommand_of_conductor_that_is_named_exists(path: Path) -> None:
    wrong = []
    for words in typed(path):
        command: click.Command = main
        known = {"--help", "--version"}
        for before, word in itertools.pairwise(["", *words]):
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
                known |= {name for parameter in command.params for name in parameter.opts}
            elif word.startswith("--"):
                wrong += [] if word.partition("=")[0] in known else [" ".join(words)]
            elif isinstance(command, click.Group) and before not in known:
                wrong.append(" ".join(words))
    assert wrong == []


def test_enough_commands_are_shown_to_be_worth_a_look() -> None:
    assert len([words for path in PAGES for words in typed(path)]) > 40


def examples(path: Path) -> list[Command]:
    """The commands in the code blocks of a page, as the bot understands them when they stand in a comment."""
    blocks = re.findall(r"^(`{3,})[a-z]*\n(.*?)^\1$", path.read_text(), re.M | re.S)
    return [command for _, block in blocks for command in parse_commands(block)]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_comment_command_that_is_shown_is_understood(path: Path) -> None:
    shown = re.findall(r"`/agent( [^`\n]+)?`", path.read_text())
    words = {found.split()[0] for found in shown if re.match(r" [a-z]+( |$)", found)}
    assert words - set(COMMANDS) - DECISIONS == set()
    assert [command.problem for command in examples(path) if command.problem] == []


def test_the_page_about_using_it_has_an_example_of_every_command_and_option() -> None:
    found = examples(USING)
    assert {command.name for command in found} == set(COMMANDS)
    assert {option for command in found for option in command.options} == set(OPTIONS)


def test_the_page_about_using_it_tells_all_names_of_check_runs_and_all_buttons() -> None:
    text = USING.read_text()
    names = {check_name(kind) for kind in JobKind} - {None} | {APPROVAL_CHECK, CONFIG_CHECK}
    assert [name for name in names if f"`{name}`" not in text] == []
    for button in (CANCEL_BUTTON, RETRY_BUTTON, RESUME_BUTTON):
        assert f"| **{button['label']}**" in text


def test_the_page_about_using_it_explains_every_sign_that_a_comment_begins_with() -> None:
    sticky = (ROOT / "templates" / "comments" / "sticky.md.j2").read_text()
    signs = set(re.findall(r"^(\S+) \*\*", sticky, re.M))
    assert len(signs) > 10
    rows = re.findall(r"^\| (.+?) \| .+ \|$", USING.read_text(), re.M)
    assert {sign for sign in signs if not any(sign in row for row in rows)} == set()


# --- the repository's own configuration


def places(model: type[BaseModel], before: str = "") -> dict[str, bool]:
    """Every key that may stand in a mapping, as `a.b`, and whether it is one value and no mapping of its own."""
    found: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        key = f"{before}{name}"
        inner = next(
            (one for one in (field.annotation, *get_args(field.annotation)) if is_section(one)), None
        )
        found[key] = inner is None
        if inner is not None:
            key = f"{key}.NAME" if get_origin(field.annotation) is dict else key
            found |= places(inner, f"{key}.")
    return found


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


#: Keys that mean the same in each mapping that has them: they have a table of their own.
SHARED = set(Entitled.model_fields)


def test_every_key_of_the_repositorys_configuration_is_in_a_table() -> None:
    keys = {key: value for key, value in places(RepoConfig).items() if key.rpartition(".")[2] not in SHARED}
    assert len(keys) > 40
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| .+ \|$", REPOSITORY.read_text(), re.M)
    assert len(rows) == len(set(rows))
    assert {key for key, value in keys.items() if value} - set(rows) == set()
    assert set(rows) - set(keys) == SHARED


def test_the_defaults_of_the_repositorys_configuration_are_the_real_ones() -> None:
    checked = 0
    for key, default in re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| .+ \|$", REPOSITORY.read_text(), re.M):
        if key in SHARED:
            assert yaml.safe_load(default) == Entitled().model_dump(mode="json")[key], key
            continue
        least: dict[str, Any] = (
            {"services": {"name": {"image": "redis:7"}}} if key.startswith("services.") else {}
        )
        if key.startswith("jobs."):
            least = {"jobs": {"name": {}}}
        if ".health." in key:
            least["services"]["name"]["health"] = {"command": ["true"]}
        written = copy.deepcopy(least)
        *above, last = key.replace("NAME", "name").split(".")
        at = written
        for part in above:
            at = at.setdefault(part, {})
        at[last] = yaml.safe_load(default)
        shown, real = (RepoConfig.model_validate(one).model_dump() for one in (written, least))
        assert shown == real, key
        checked += 1
    assert checked > 20


def test_every_key_of_the_repositorys_configuration_has_an_example_that_can_be_used() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", REPOSITORY.read_text(), re.M | re.S)
    used: set[str] = set()

    def walk(value: object, key: str) -> None:
        used.add(re.sub(r"^(services|jobs)\.[^.]+", r"\1.NAME", key))
        if isinstance(value, dict):
            for name, one in value.items():
                walk(one, f"{key}.{name}" if key else name)

    for block in blocks:
        parse(block)
        walk(yaml.safe_load(block), "")
    wanted = {
        key for key, value in places(RepoConfig).items() if value and key.rpartition(".")[2] not in SHARED
    }
    assert wanted - used == {"approvals.plan.always"}, "which is written as `plan: always`"
    assert {key.rpartition(".")[2] for key in used} >= SHARED


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_piece_of_a_repositorys_configuration_that_is_shown_can_be_used(path: Path) -> None:
    """Also those in the middle of a sentence: `fix: {automatic: true}`, `forks: never`."""
    names = "|".join(RepoConfig.model_fields)
    for piece in re.findall(rf"`((?:{names}): [^`\n]+)`", path.read_text()):
        parse(piece)


def test_the_table_of_agents_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "agents.md").read_text()
    rows = {
        row[0]: row
        for row in re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (yes|no) \| (.*?) \|", text, re.M)
    }
    assert set(rows) == set(AGENTS)
    for name, (_, what, _, goes_on, reads) in rows.items():
        found = agent(name, Settings())
        assert found.version in what, name
        assert (goes_on == "yes") is bool(found.session_paths), name
        assert (found.instruction_file or "") in reads, name


def test_the_keys_of_an_agent_of_ones_own_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "agents.md").read_text().partition("## An agent of your own")[2]
    assert set(re.findall(r"^\| (\w+) \| .* \| .+ \|$", text, re.M)) - {"key"} == set(
        CustomAgent.model_fields
    )
    config = tomllib.loads(re.search(r"^```toml\n(.*?)^```", text, re.M | re.S)[1])  # type: ignore[index]
    assert Settings(**config).custom_agents["mine"].argv[0] == "mycli"


def test_the_agents_that_are_said_to_have_tools_are_those_that_have() -> None:
    text = (ROOT / "docs" / "agents.md").read_text().partition("\n## Tools\n")[2]
    first = text.strip().partition(" are given ")[0]
    assert set(re.findall(r"`(\w+)`", first)) == {name for name in AGENTS if agent(name, Settings()).tools}


def test_the_table_of_the_audit_trail_has_every_kind_on_the_right_side() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    before, after = (
        set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", row))
        for row in re.findall(r"^\| (`job\.\w+`.+?) \| (?:before|with) it", text, re.M)
    )
    assert before == set(MUST)
    assert after == set(AuditKind) - MUST


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


def test_the_apps_permissions_and_events_in_the_manual_are_those_of_its_manifest() -> None:
    manifest = yaml.safe_load((ROOT / "app.yml").read_text())
    rows = dict(
        re.findall(r"^\| ([\w ]+) \| (.+) \|$", (ROOT / "docs" / "installation.md").read_text(), re.M)
    )
    told: dict[str, str] = {}
    for row in ("Repository permissions", "Organization permissions"):
        for names, level in re.findall(r"([A-Z][\w ,]+): \*(Read and write|Read-only)\*", rows[row]):
            told |= {key_of(name): "read" if level == "Read-only" else "write" for name in names.split(", ")}
    assert told == manifest["default_permissions"]
    events = [key_of(name) for name in rows["Subscribe to events"].split(", ")]
    assert sorted(events) == sorted(manifest["default_events"])


def key_of(name: str) -> str:
    """GitHub's key for what its pages call ``name``."""
    return name.removeprefix("Commit ").lower().replace(" ", "_")


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
