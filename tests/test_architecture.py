"""The layers of the design: imports point down; and the App's manifest fits the handlers."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bot.installs import NEEDED
from handlers.table import router

ROOT = Path(__file__).parents[1]

#: Lower numbers must not import higher ones. The longest prefix of a module's name counts.
LAYERS: dict[str, int] = {
    "bot": 0,  # __init__: the version
    "bot.model": 0,
    "bot.errors": 0,
    "bot.agent_config": 1,
    "bot.approvals": 1,
    "bot.agent_requests": 1,
    "bot.annotations": 1,
    "bot.audit_chain": 1,
    "bot.branches": 1,
    "bot.budget": 1,
    "bot.capabilities": 1,
    "bot.changes": 1,
    "bot.child_process": 1,
    "bot.codeowners": 1,
    "bot.config": 1,
    "bot.credentials": 1,
    "bot.endings": 1,
    "bot.events": 1,
    "bot.failed_checks": 1,
    "bot.feedback": 1,
    "bot.held_back": 1,
    "bot.images": 1,
    "bot.needles": 1,
    "bot.lfs": 1,
    "bot.limits": 1,
    "bot.live_words": 1,
    "bot.network": 1,
    "bot.once_more": 1,
    "bot.outsiders": 1,
    "bot.planned_work": 1,
    "bot.permissions": 1,
    "bot.policy": 1,
    "bot.ports": 1,
    "bot.prompts": 1,
    "bot.protected": 1,
    "bot.reasons": 1,
    "bot.redact": 1,
    "bot.render": 1,
    "bot.repo_config": 1,
    "bot.profiles": 1,
    "bot.named_jobs": 1,
    "bot.repo_layers": 1,
    "bot.repo_rules": 1,
    "bot.results": 1,
    "bot.review_comments": 1,
    "bot.routing": 1,
    "bot.services": 1,
    "bot.signature": 1,
    "bot.slash": 1,
    "bot.standing": 1,
    "bot.steps": 1,
    "bot.submodules": 1,
    "bot.terms": 1,
    "bot.usage": 1,
    "bot.yaml_text": 1,
    "bot.audit": 2,
    "bot.approval_store": 2,
    "bot.claims": 2,
    "bot.cursors": 2,
    "bot.setup_backlog": 2,
    "bot.database": 2,
    "bot.embedded_redis": 2,
    "bot.failing_heads": 2,
    "bot.githttp": 2,
    "bot.github": 2,
    "bot.github_auth": 2,
    "bot.github_cache": 2,
    "bot.github_errors": 2,
    "bot.github_limits": 2,
    "bot.github_transport": 2,
    "bot.inbox": 2,
    "bot.installation_store": 2,
    "bot.ledger": 2,
    "bot.locks": 2,
    "bot.logs": 2,
    "bot.migrations": 2,
    "bot.presence": 2,
    "bot.processor": 2,
    "bot.queue": 2,
    "bot.scales": 2,
    "bot.schema": 2,
    "bot.shelf": 2,
    "bot.store": 2,
    "bot.thread_replies": 2,
    "runners": 2,
    "bot.api_commits": 3,
    "bot.approval_desk": 3,
    "bot.askers": 3,
    "bot.approval_writer": 3,
    "bot.final_check": 3,
    "bot.reviews": 3,
    "bot.check_report": 3,
    "bot.check_runs": 3,
    "bot.catching_up": 3,
    "bot.check_reader": 3,
    "bot.conductor": 3,
    "bot.config_check": 3,
    "bot.continuation": 3,
    "bot.conversation": 3,
    "bot.delivery_log": 3,
    "bot.dialogue": 3,
    "bot.facts": 3,
    "bot.fixer": 3,
    "bot.forks": 3,
    "bot.housekeeping": 3,
    "bot.installs": 3,
    "bot.repository_setup": 3,
    "bot.janitor": 3,
    "bot.lfs_publisher": 3,
    "bot.listener": 3,
    "bot.performer": 3,
    "bot.people": 3,
    "bot.progress": 3,
    "bot.proposals": 3,
    "bot.publisher": 3,
    "bot.report": 3,
    "bot.scheduling": 3,
    "bot.submodule_finder": 3,
    "bot.unanswered": 3,
    "bot.watch": 3,
    "bot.keeper": 3,
    "handlers": 4,
    "bot.cli": 5,
    "bot.__main__": 5,
    "bot.sandbox": 5,
    "bot.server": 5,
    "bot.web": 5,
    "bot.worker": 5,
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("bot", "handlers", "runners"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def layer(module: str) -> int | None:
    """The layer of a module of ours; None for other people's."""
    if module.split(".")[0] not in ("bot", "handlers", "runners"):
        return None
    name = module
    while name:
        if name in LAYERS and (name != "bot" or module == "bot"):
            return LAYERS[name]
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} has no layer: put it into LAYERS, where the design wants it")


def imports(path: Path) -> Iterator[str]:
    known = dict(modules())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    own = layer(module)
    assert own is not None
    wrong = [name for name in imports(path) if (other := layer(name)) is not None and other > own]
    assert not wrong, f"{module} (layer {own}) imports {wrong}"


@pytest.mark.parametrize("banned", ["utils", "helpers", "manager", "common", "misc", "base", "service"])
def test_no_module_is_named_after_nothing(banned: str) -> None:
    assert [name for name, _ in modules() if name.split(".")[-1] == banned] == []


def test_the_web_process_never_imports_a_container_engine() -> None:
    code = "import sys, bot.server, bot.cli.main; print('docker' in sys.modules, 'runners.docker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


#: Every App is told of these; a manifest that lists them is refused.
#: https://docs.github.com/en/webhooks/webhook-events-and-payloads#installation
IMPLICIT = {"installation", "installation_repositories"}


def test_the_manifest_asks_for_the_events_that_handlers_want() -> None:
    manifest = yaml.safe_load((ROOT / "app.yml").read_text())
    assert set(manifest["default_events"]) == set(router.wanted) - IMPLICIT


def test_the_bot_knows_which_permissions_it_asks_for() -> None:
    manifest = yaml.safe_load((ROOT / "app.yml").read_text())
    assert manifest["default_permissions"] == {**NEEDED, "metadata": "read"}


def test_the_manifest_asks_for_no_more_than_is_used() -> None:
    manifest = yaml.safe_load((ROOT / "app.yml").read_text())
    assert manifest["default_permissions"] == {
        "metadata": "read",
        "contents": "write",
        "issues": "write",
        "pull_requests": "write",
        "checks": "write",
        "members": "read",
        "merge_queues": "read",
        "actions": "read",
        "statuses": "read",
    }


def test_only_one_module_writes_what_people_read() -> None:
    """Reads are in bot.facts, writes in bot.report; bot.github holds the client, with its own token calls.

    Commits leave by `git push`, or through the API by bot.api_commits.
    """
    writers: list[str] = []
    for name, path in modules():
        if name.startswith(("bot.sandbox", "bot.github")):
            continue
        writers += [name for node in ast.walk(ast.parse(path.read_text())) if _writes(node)]
    assert set(writers) == {
        "bot.report",
        "bot.approval_writer",
        "bot.conversation",
        "bot.repository_setup",
        "bot.api_commits",
        "bot.check_runs",
        "bot.thread_replies",
    }


def _writes(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("post", "patch", "put", "delete")
        and isinstance(node.func.value, ast.Name | ast.Call)
        and "client" in ast.dump(node.func.value)
    )


def test_nothing_uses_all_the_rights_of_an_installation() -> None:
    """Each part has a token of its own: GitHub.reader, GitHub.repository or GitHub.token."""
    users = [
        name
        for name, path in modules()
        if not name.startswith(("bot.sandbox", "bot.github"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "installation"
    ]
    assert users == []


def test_what_is_imported_is_installed_without_the_tools_of_developers() -> None:
    """A product that runs only where its tests do: with what the group `dev` happens to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    ahead = [*project["dependencies"], *project["optional-dependencies"]["postgresql"]]
    while ahead:
        needed = Requirement(ahead.pop())
        name = canonicalize_name(needed.name)
        if name in found or (
            needed.marker
            and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", "crypto", "asyncio"))
        ):
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            ahead += metadata.requires(name) or []
    whose = metadata.packages_distributions()
    # these run in an agent's own environment
    imported = {name.partition(".")[0] for _, path in modules() for name in imports(path)}
    imported -= {*sys.stdlib_module_names, "bot", "handlers", "runners", "templates", "aider", "minisweagent"}
    assert len(imported) > 20
    missing = {
        name for name in imported if not {canonicalize_name(one) for one in whose.get(name, [name])} & found
    }
    assert missing == set()
