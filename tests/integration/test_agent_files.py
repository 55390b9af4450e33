"""Attack class 9: what a pull request may bring along for its agent to obey, held against what the agents read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bot.agent_config import CustomAgent
from bot.performer import agent_files
from bot.ports import Agent
from runners.agents.adapters.aider import CONVENTIONS
from runners.agents.codex import CODEX
from runners.agents.custom import custom_agent
from runners.agents.registry import AGENTS, agent

#: Read by the CLIs of runners/agents without being asked: instructions, skills, commands, hooks, settings, servers.
OBEYED = [
    "CLAUDE.md", "sub/CLAUDE.md", "CLAUDE.local.md", ".claude/settings.json", "sub/.claude/skills/x/SKILL.md",
    ".mcp.json", "AGENTS.md", "sub/AGENTS.md", "AGENTS.override.md", ".codex/config.toml", ".codex/skills/x/SKILL.md",
    ".agents/skills/x/SKILL.md", "sub/.agents/skills/x/SKILL.md", ".agents/commands/x.md", ".agent/skills/x/SKILL.md",
    "GEMINI.md", "sub/GEMINI.md", ".gemini/settings.json", "QWEN.md", ".qwen/settings.json", "opencode.json",
    "opencode.jsonc", ".opencode/plugin/x.js", "CONTEXT.md", ".factory/settings.json", ".aider.conf.yml",
    ".aiderignore", ".kiro/steering/x.md", ".amazonq/rules/x.md", ".cursorrules", ".cursor/rules/x.mdc", ".gitmodules",
    *CONVENTIONS,
]  # fmt: skip
WORK = ["README.md", "src/agent.py", "docs/agents.md", "agents/x.py", ".env.example", "claude/main.py"]


def restored(folder: Path, agent: Agent, files: list[str]) -> set[str]:
    """Those of ``files`` that the shim takes from the base branch, by git's own reading of the patterns."""

    def git(*argv: str) -> str:
        return subprocess.run(["git", *argv], cwd=folder, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("obey\n")
    git("add", "--all", "--force")
    found = git("ls-files", "-z", "--", *(f":(top,glob){pattern}" for pattern in agent_files(agent)))
    return set(found.split("\0")) - {""}


def test_09_whatever_an_agent_obeys_comes_from_the_base_branch_and_nothing_else(tmp_path: Path) -> None:
    assert restored(tmp_path, CODEX, [*OBEYED, *WORK]) == set(OBEYED)


@pytest.mark.parametrize("name", ["MINE.md", "docs/BOT.md"])
def test_09_the_file_that_an_operators_own_agent_reads_is_among_them(name: str, tmp_path: Path) -> None:
    mine = custom_agent("mine", CustomAgent(argv=("mine",), instruction_file=name))
    assert restored(tmp_path, mine, [name, f"sub/{name}", "OTHER.md"]) == {name, f"sub/{name}"}


def test_09_each_agents_own_file_is_known() -> None:
    known = {file for name in AGENTS if (file := agent(name).instruction_file)}
    assert len(known) > 3
    assert {f"**/{file}" for file in known} <= set(agent_files(CODEX))
