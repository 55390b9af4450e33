"""`conductor check-config`: places, exit codes, layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bot.cli.main import main


def run(*arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["check-config", *arguments], input=text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_file(folder: Path) -> None:
    (folder / "c.yml").write_text("agent: claude\n")
    done = run("c.yml")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "c.yml can be used.\n", "")


def test_the_usual_place_without_an_argument(folder: Path) -> None:
    (folder / ".github").mkdir()
    (folder / ".github/conductor.yml").write_text("agnet: claude\n")
    done = run()
    assert done.exit_code == 1
    assert done.stderr == ".github/conductor.yml:1:1: `agnet` is not known\n"


def test_standard_input_and_every_problem_on_its_line(folder: Path) -> None:
    done = run("-", text="limits:\n  timeout: 5\nwho: {may_ask: {permission: read}}\n")
    assert done.exit_code == 1
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["-:2:12:", "-:3:29:"]


def test_what_cannot_be_read(folder: Path) -> None:
    done = run("none.yml")
    assert done.exit_code == 2
    assert "cannot read none.yml" in done.stderr
    done = run("-", text=b"\xff\xfe")
    assert done.exit_code == 1
    assert done.stderr == "-:1:1: it is not text in UTF-8\n"


def test_what_the_server_makes_of_it(folder: Path) -> None:
    (folder / "conductor.toml").write_text('agents = ["claude"]\nplan_first = true\n')
    (folder / "c.yml").write_text("agent: codex\nnetwork: {allow: [example.com]}\n")
    assert run("c.yml").exit_code == 0, "nobody asked a server"
    done = run("c.yml", "--server", "--config", "conductor.toml")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "c.yml:2:18: warning: `example.com` is not what the server's operator lets a repository add.",
        "c.yml:1:8: The agent `codex` is not offered here; there are `claude`.",
    ]
    (folder / "c.yml").write_text("network: {allow: [example.com]}\n")
    done = run("c.yml", "--server", "--config", "conductor.toml", "--show")
    assert done.exit_code == 0
    assert "warning" in done.stderr
    assert "plan:\n    always: true" in done.stdout
    (folder / "conductor.toml").write_text("agnets = []\n")
    assert run("c.yml", "--server", "--config", "conductor.toml").exit_code == 2


def test_a_merge_that_waits_for_approvals_that_nobody_wants(folder: Path) -> None:
    (folder / "conductor.toml").write_text("approvals_required = 1\n")
    (folder / "c.yml").write_text("approvals:\n  merge: auto\n")
    done = run("c.yml")
    assert done.exit_code == 0
    (told,) = done.stderr.splitlines()
    assert told.startswith("c.yml:2:10: warning: `merge: auto` does nothing while no approvals are wanted")
    assert "--server" in told
    assert run("c.yml", "--server", "--config", "conductor.toml").stderr == "", "the server wants some"
    (folder / "conductor.toml").write_text("approvals_required = 0\n")
    done = run("c.yml", "--server", "--config", "conductor.toml")
    assert (done.exit_code, done.stderr.count("warning")) == (0, 1)
    (folder / "conductor.toml").write_text("approvals_required = 1\nautomatic_merges = false\n")
    assert "the server's operator" in run("c.yml", "--server", "--config", "conductor.toml").stderr
    (folder / "c.yml").write_text("approvals: {merge: queue, final: {required: 1}}\n")
    assert run("c.yml").stderr == ""
    (folder / "c.yml").write_text("approvals: {final: {required: 0}}\n")
    assert run("c.yml").stderr == ""


def test_the_organisations_default(folder: Path) -> None:
    (folder / "default.yml").write_text("protected: [a]\n")
    done = run("-", "--organisation", "default.yml", "--show", text="protected: [b]\n")
    assert (done.exit_code, done.stdout) == (0, "protected:\n- a\n- b\n")
    (folder / "default.yml").write_text("protectd: [a]\n")
    done = run("-", "--organisation", "default.yml", text="agent: x\n")
    assert done.exit_code == 1
    assert done.stderr == "default.yml:1:1: `protectd` is not known\n"
    some = [f"a{number}" for number in range(150)]
    (folder / "default.yml").write_text(f"protected: {some}\n")
    done = run("-", "--organisation", "default.yml", text=f"protected: {[f'b{n}' for n in range(150)]}\n")
    assert done.exit_code == 1
    assert "together with the organisation's default" in done.stderr


def test_the_profiles_beside_it(folder: Path) -> None:
    agents = folder / ".github/agents"
    agents.mkdir(parents=True)
    (agents / "careful.md").write_text("---\ndescription: x\ntools: [Read]\n---\n")
    (agents / "README.md").write_text("no profile\n")
    done = run()
    assert (done.exit_code, done.stdout) == (0, "The profiles in .github/agents can be used.\n"), (
        "no configuration"
    )
    assert done.stderr.startswith(".github/agents/careful.md:3:1: warning: `tools` has no effect here")
    (folder / ".github/conductor.yml").write_text("profile: {task: Careful, ask: planner}\n")
    assert (run().exit_code, run().stdout) == (0, ".github/conductor.yml can be used.\n")
    (agents / "broken.md").write_text("---\ndescription: Use: it\n---\n")
    done = run()
    assert (done.exit_code, done.stdout) == (1, "")
    assert ".github/agents/broken.md:2:17: mapping values are not allowed here\n" in done.stderr
    (agents / "broken.md").unlink()
    (folder / ".github/conductor.yml").write_text("profile: gone\njobs: {a: {profile: lost}}\n")
    done = run()
    assert done.exit_code == 1
    (_, warned, failed) = done.stderr.splitlines()
    assert warned.startswith(
        ".github/conductor.yml:2:21: warning: There is no profile `lost` here; there are `careful`"
    )
    assert failed.startswith(".github/conductor.yml:1:10: There is no profile `gone` here")


def test_one_profile(folder: Path) -> None:
    (folder / "mine.agent.md").write_text("---\ndescription: x\nagent: codex\n---\n")
    assert run("mine.agent.md").stdout == "mine.agent.md can be used.\n"
    (folder / "conductor.toml").write_text('agents = ["claude"]\n')
    done = run("mine.agent.md", "--server", "--config", "conductor.toml")
    assert (done.exit_code, done.stderr) == (
        0, "mine.agent.md:1:1: warning: The agent `codex` is not offered here.\n",
    )  # fmt: skip
    (folder / "none.md").write_text("---\ndescription: x\n---\n")
    assert run("none.md").exit_code == 1
    (folder / "bad.md").write_text("# Hello\n")
    done = run("bad.md")
    assert (done.exit_code, done.stderr[:11]) == (1, "bad.md:1:1:")


def test_the_help_teaches() -> None:
    shown = run("--help").output
    for part in (
        "\n    0  it can",
        "\n    conductor check-config\n",
        "git show :.github/conductor.yml",
        "--server",
        "--organisation",
    ):
        assert part in shown
