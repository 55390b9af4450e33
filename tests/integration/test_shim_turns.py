"""The real shim as a real process against a real gateway, real git, and small shell scripts as agents."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import runners.shim
from tests.shim_host import HEARTBEAT, MAX_PUSH, PATIENT, Host, git, running

TERM_IGNORED = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


# --- the normal course --------------------------------------------------------------------------------


async def test_a_turn_from_prompt_to_pushed_commit(host: Host) -> None:
    async with running(host):
        outcome = await host.play(
            'cat > answer.txt; echo "at $(pwd)"; echo trouble >&2; printf last',
            command={"stdin": "write this\n"},
        )
        assert (outcome.exit_code, outcome.signal, outcome.error, outcome.push_error) == (0, None, None, None)
        assert not outcome.timed_out
        assert not outcome.stopped
        assert host.pushed("answer.txt") == "write this"
        assert outcome.head == git("rev-parse", "work", cwd=host.desk.quarantine)
        assert git("rev-parse", "work~1", cwd=host.desk.quarantine) == host.base
        assert git("log", "-1", "--format=%an <%ae> %cn %B", "work", cwd=host.desk.quarantine) == (
            "agent[bot] <bot@example.com> agent[bot] Do what was asked"
        )
        assert await host.lines() == [f"at {host.folder}/workspace/repo", "last"]
        assert await host.lines("stderr") == ["trouble"]
        host.desk.finish()
        assert await host.ended() == 0


async def test_without_a_mount_the_clone_comes_through_the_gateway(host: Host) -> None:
    host.shim_env = {"CONDUCTOR_MIRROR": ""}
    host.base = host.commit({"aside.txt": "as the head of a pull request\n"})
    git("update-ref", "refs/pull/1/head", host.base, cwd=host.source)
    git("reset", "-q", "--hard", "HEAD~1", cwd=host.source)  # no branch has it, so no clone brings it
    async with running(host):
        outcome = await host.play("cat aside.txt; echo new > new.txt")
        assert (outcome.error, outcome.push_error) == (None, None)
        assert await host.lines() == ["as the head of a pull request"]
        assert host.changes() == ["new.txt"]


async def test_a_second_turn_goes_on_in_the_same_tree_and_a_changeless_one_keeps_the_head(host: Host) -> None:
    async with running(host):
        first = await host.play("echo one > one.txt; echo kept > ../../home/note")
        second = await host.play("cat one.txt ../../home/note", number=2)
        assert await host.lines(number=2) == ["one", "kept"]
        assert second.head == first.head


async def test_the_agents_own_commits_are_kept_also_on_another_branch(host: Host) -> None:
    async with running(host):
        outcome = await host.play(
            "git checkout -q -b elsewhere && echo a > a.txt && git add a.txt && git commit -qm mine && echo b > b.txt"
        )
        assert outcome.push_error is None
        assert host.changes() == ["a.txt", "b.txt"]
        authors = git("log", "--format=%an %s", f"{host.base}..work", cwd=host.desk.quarantine)
        assert authors == "agent[bot] Do what was asked\nagent[bot] mine"


async def test_the_placeholder_becomes_the_relays_address_and_the_relay_reaches_the_gateway(
    host: Host,
) -> None:
    async with running(host):
        outcome = await host.play(
            'cat "$HOME/.tool/config"; echo; stat -c %a "$HOME/.tool/config"; ' + HEARTBEAT,
            command={
                "env": {"URL": "{gateway}", "KEY": host.desk.token},
                "files": {".tool/config": "url={gateway}"},
            },
        )
        assert outcome.exit_code == 0
        config, mode, status = await host.lines()
        assert config.startswith("url=http://127.0.0.1:")
        assert mode == "600"
        assert status == "204"


async def test_the_agents_environment_is_made_by_us(host: Host) -> None:
    host.shim_env = {"SECRET_OF_THE_HOST": "canary"}
    async with running(host):
        await host.play("env", command={"env": {"A": "b"}})
        env = dict(line.split("=", 1) for line in await host.lines())
    assert env["A"] == "b"
    assert env["TERM"] == "dumb"
    assert env["GIT_AUTHOR_NAME"] == "agent[bot]"
    assert "canary" not in env.values()
    assert not {"CONDUCTOR_TOKEN", "CONDUCTOR_SOCKET", "SECRET_OF_THE_HOST"} & env.keys()
    assert host.desk.token not in "".join(env.values())


async def test_a_prompt_of_200_kb_arrives_whole_and_need_not_be_read(host: Host) -> None:
    prompt = "".join(f"{number:07}\n" for number in range(25_000))
    async with running(host):
        read = await host.play("cat > got.txt", command={"stdin": prompt})
        assert read.exit_code == 0
        assert host.pushed("got.txt") == prompt.strip()
        unread = await host.play("exit 0", command={"stdin": prompt}, number=2)
        assert unread.exit_code == 0


async def test_ten_thousand_lines_arrive_once_each_in_order(host: Host) -> None:
    async with running(host):
        await host.play("seq 1 10000")
        events = await host.told()
    assert [event.line for event in events] == [str(number) for number in range(1, 10_001)]
    assert [event.seq for event in events] == list(range(1, 10_001))


async def test_a_line_without_an_end_is_cut_and_says_so(host: Host) -> None:
    async with running(host):
        await host.play(
            "head -c 3000000 /dev/zero | tr '\\0' x; echo; head -c 1000000 /dev/zero; echo; echo after"
        )
        long, control, after = await host.lines()
    assert long.startswith("x" * 1000)
    assert long.endswith("…[line cut, 1951424 bytes left out]")
    assert control == "\0" * 1_000_000
    assert after == "after"


async def test_bytes_that_are_no_text_arrive_as_marks(host: Host) -> None:
    async with running(host):
        await host.play(r"printf 'a\377b\r\n\n\303\244'")
        assert await host.lines() == ["a�b", "", "ä"]


# --- agents that end badly ----------------------------------------------------------------------------


async def test_a_crash_is_told_and_its_work_is_kept(host: Host) -> None:
    async with running(host):
        outcome = await host.play("echo half > half.txt; kill -SEGV $$")
        assert (outcome.exit_code, outcome.signal) == (None, signal.SIGSEGV)
        assert host.changes() == ["half.txt"]


async def test_a_program_that_is_not_there_is_told_and_the_shim_goes_on(host: Host) -> None:
    async with running(host):
        outcome = await host.play("", command={"argv": ["no-such-agent"]})
        assert outcome.exit_code is None
        assert outcome.error is not None
        assert "no-such-agent" in outcome.error
        assert (await host.play("exit 7", number=2)).exit_code == 7


async def test_an_agent_that_ignores_sigterm_is_killed_at_its_timeout(host: Host) -> None:
    async with running(host):
        outcome = await host.play("echo late > late.txt; " + TERM_IGNORED, timeout=1, grace=0.5)
        assert outcome.timed_out
        assert not outcome.stopped
        assert outcome.signal == signal.SIGKILL
        assert host.changes() == ["late.txt"]


async def test_what_the_agent_leaves_in_the_background_ends_with_the_turn(host: Host) -> None:
    # its own session, its own group, orphaned, holding the output open: nothing of that helps it
    async with running(host):
        outcome = await host.play(
            "setsid sh -c 'echo $$; exec sleep 1000' & setsid setsid sleep 999 & sleep 0.3; exit 0"
        )
        assert outcome.exit_code == 0
        assert outcome.duration < 60
        assert not alive(int((await host.lines())[0]))


async def test_orphans_of_the_agent_are_reaped_while_it_runs(host: Host) -> None:
    async with running(host):
        await host.play(
            "for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0.01 & '; done; sleep 0.5; "
            "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | awk -v p=$PPID '$2 == p && $1 == \"Z\"' | wc -l"
        )
        assert await host.lines() == ["0"]


async def test_a_lock_of_a_killed_git_does_not_lose_the_work(host: Host) -> None:
    async with running(host):
        outcome = await host.play(
            "touch .git/index.lock .git/HEAD.lock .git/refs/heads/work.lock; echo x > x.txt; kill -9 $$"
        )
        assert outcome.push_error is None
        assert host.changes() == ["x.txt"]


async def test_a_tree_without_git_is_told_and_no_other_repository_is_touched(host: Host) -> None:
    git("init", "-q", cwd=host.folder)  # one further up, as a developer's checkout would be
    async with running(host):
        outcome = await host.play("rm -rf .git; echo x > x.txt; git status >&2 && echo found")
        assert outcome.push_error is not None
        assert "not a git repository" in outcome.push_error
        assert outcome.head is None
        assert await host.lines() == []
    assert git("ls-files", cwd=host.folder) == ""


async def test_a_file_that_cannot_be_read_does_not_lose_the_others(host: Host) -> None:
    script = (
        "echo a > a.txt; git init -q broken; echo b > b.txt"  # a repository without a commit cannot be added
    )
    async with running(host):
        outcome = await host.play(script)
        assert outcome.push_error is None
        assert host.changes() == ["a.txt", "b.txt"]
        assert "broken" in "".join(await host.lines("conductor"))


async def test_a_refused_push_says_what_git_said(host: Host) -> None:
    async with running(host):
        outcome = await host.play(f"head -c {2 * MAX_PUSH} /dev/urandom > x.bin")
        assert outcome.push_error is not None
        assert "exceeds maximum allowed size" in outcome.push_error
        assert host.desk.token not in outcome.push_error
        assert outcome.head is not None


async def test_a_base_that_does_not_exist_is_told_as_an_error(host: Host) -> None:
    async with running(host):
        outcome = await host.play("echo never", checkout={"base_sha": "0" * 39 + "1"})
        assert outcome.error is not None
        assert "workspace could not be prepared" in outcome.error
        assert outcome.head is None
        assert await host.lines() == []


async def test_a_token_that_is_not_ours_ends_the_shim_with_a_reason(host: Host) -> None:
    host.shim_env = {"CONDUCTOR_TOKEN": "wrong"}
    async with running(host):
        assert await host.ended() == 1


async def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(Path(runners.shim.__file__)),
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"CONDUCTOR_TOKEN" in stderr


# --- the gateway goes away and comes back ---------------------------------------------------------------


async def test_a_restarted_worker_loses_no_line_and_gets_the_outcome(host: Host) -> None:
    go = host.folder / "go"
    async with running(host):
        script = (
            f"seq 1 500; echo first; until [ -e {go} ]; do sleep 0.02; done; seq 501 5000; echo x > x.txt"
        )
        host.desk.give(host.turn(script))
        await host.said("first")
        await host.gateway.aclose()
        host.desk.close()
        go.touch()
        workspace = host.folder / "workspace" / "repo" / "x.txt"
        async with asyncio.timeout(PATIENT):
            while not workspace.exists():  # the agent goes on without us
                await asyncio.sleep(0.01)
        await host.restart()
        outcome = await asyncio.wait_for(host.desk.outcome(1), PATIENT)
        assert outcome.exit_code == 0
        assert outcome.push_error is None
        numbers = [line for line in await host.lines() if line != "first"]
        assert numbers == [str(number) for number in range(1, 5001)]
        assert host.changes() == ["x.txt"]


async def test_an_agents_call_waits_for_a_restarting_gateway(host: Host) -> None:
    go, connected = host.folder / "go", host.folder / "connected"
    async with running(host):
        script = f"echo first; until [ -e {go} ]; do sleep 0.02; done; " + HEARTBEAT
        env = {"URL": "{gateway}", "KEY": host.desk.token, "CONNECTED": str(connected)}
        host.desk.give(host.turn(script, command={"env": env}))
        await host.said("first")
        await host.gateway.aclose()
        go.touch()
        async with asyncio.timeout(PATIENT):
            while not connected.exists():
                await asyncio.sleep(0.01)
        await host.restart()
        await asyncio.wait_for(host.desk.outcome(1), PATIENT)
        assert await host.lines() == ["first", "204"]


async def test_without_a_gateway_for_too_long_the_shim_ends_the_agent_and_itself(host: Host) -> None:
    host.shim_env = {"CONDUCTOR_PATIENCE": "2"}
    async with running(host):
        host.desk.give(host.turn("echo $$; echo ready; while :; do echo more; sleep 0.05; done", grace=1))
        await host.said("ready")
        pid = int((await anext(aiter(host.desk.events()))).line)
        await host.gateway.aclose()
        assert await host.ended() == 1
        assert not alive(pid)


# --- SIGTERM and checkpoints ----------------------------------------------------------------------------


async def test_sigterm_ends_the_agent_and_hands_in_what_there_is(host: Host) -> None:
    async with running(host):
        host.desk.give(host.turn("echo half > half.txt; echo ready; exec sleep 1000"))
        await host.said("ready")
        assert host.shim is not None
        host.shim.terminate()
        outcome = await asyncio.wait_for(host.desk.outcome(1), PATIENT)
        assert outcome.stopped
        assert not outcome.timed_out
        assert host.changes() == ["half.txt"]
        assert await host.ended() == 143


async def test_sigterm_between_turns_ends_the_shim(host: Host) -> None:
    async with running(host):
        await host.play("true")
        assert host.shim is not None
        host.shim.terminate()
        assert await host.ended() == 143


async def test_checkpoints_hold_the_unfinished_tree_and_leave_the_agents_index_alone(host: Host) -> None:
    async with running(host):
        staged = "echo staged > staged.txt; git add staged.txt; echo loose > loose.txt; echo ready; exec sleep 1000"
        host.desk.give(host.turn(staged, checkpoint_every=0.1))
        await host.said("ready")
        names: list[str] = []
        async with asyncio.timeout(PATIENT):
            while "loose.txt" not in names:
                await asyncio.sleep(0.02)
                if "refs/heads/checkpoint" in git("for-each-ref", cwd=host.desk.quarantine):
                    names = host.changes("checkpoint")
        assert names == ["loose.txt", "staged.txt"]
        repo = host.folder / "workspace" / "repo"
        status = git("status", "--porcelain", cwd=repo)
        assert status == "A  staged.txt\n?? loose.txt"
        assert git("rev-parse", "HEAD", cwd=repo) == host.base


# --- the agent's configuration comes from elsewhere -----------------------------------------------------


async def test_restored_paths_are_the_trusted_ones_and_never_show_in_the_diff(host: Host) -> None:
    trusted = host.commit(
        {"CLAUDE.md": "trusted\n", ".claude/settings.json": "{}\n", "sub/CLAUDE.md": "trusted sub\n"}
    )
    evil = host.commit(
        {
            "CLAUDE.md": "evil\n",
            ".claude/settings.json": None,
            ".claude/evil.json": "evil\n",
            ".mcp.json": "evil\n",
            "sub/CLAUDE.md": "evil\n",
            "code.txt": "the branch's work\n",
        }
    )
    host.base = evil
    async with running(host):
        outcome = await host.play(
            "cat CLAUDE.md sub/CLAUDE.md .claude/*; ls -A .claude; test -e .mcp.json && echo evil; "
            "git status --porcelain; echo done > done.txt; git add -A; git commit -qm mine; echo more > more.txt",
            checkout={"restore": ["**/CLAUDE.md", ".claude", ".mcp.json"], "restore_from": trusted},
        )
        assert outcome.error is None
        assert await host.lines() == ["trusted", "trusted sub", "{}", "settings.json"]
        assert host.changes() == ["done.txt", "more.txt"]


async def test_what_the_branch_brings_can_be_read_beside_the_tree_as_data(host: Host) -> None:
    trusted = host.commit({"CLAUDE.md": "trusted\n", "AGENTS.md": "the same\n"})
    host.base = host.commit(
        {"CLAUDE.md": "other\n", ".claude/settings.json": "{}\n", "big/CLAUDE.md": "x" * (17 << 20)},
        links={".mcp.json": "/etc/passwd"},
    )
    async with running(host):
        outcome = await host.play(
            "cd ../pull-request; find . -type f | sort; "
            "cat CLAUDE.md.txt .claude/settings.json.txt .mcp.json.txt; echo; "
            "cat INDEX.txt; cd ../repo; git status --porcelain; echo new > AGENTS.md",
            checkout={
                "restore": ["**/CLAUDE.md", "AGENTS.md", ".claude", ".mcp.json"],
                "restore_from": trusted,
            },
        )
        assert outcome.error is None
        lines = await host.lines()
        assert lines[:4] == [
            "./.claude/settings.json.txt",
            "./.mcp.json.txt",
            "./CLAUDE.md.txt",
            "./INDEX.txt",
        ]
        assert lines[4:7] == ["other", "{}", "/etc/passwd"]
        assert "'big/CLAUDE.md': left out: too large or too many" in lines
        assert "'.mcp.json': a symbolic link to '/etc/passwd'" in lines
        # what both have may be changed like any other file
        assert host.changes() == ["AGENTS.md"]


async def test_without_differences_there_is_nothing_beside_the_tree(host: Host) -> None:
    trusted = host.commit({"CLAUDE.md": "trusted\n"})
    host.base = host.commit({"code.txt": "x\n"})
    async with running(host):
        outcome = await host.play(
            "ls ..; cat CLAUDE.md", checkout={"restore": ["**/CLAUDE.md"], "restore_from": trusted}
        )
        assert outcome.error is None
        assert await host.lines() == ["repo", "trusted"]


@pytest.mark.parametrize("shape", ["link", "file", "parent"])
async def test_restored_folders_win_over_links_and_files_of_the_branch(host: Host, shape: str) -> None:
    trusted = host.commit({".tool/agents/one.md": "trusted\n"})
    links: dict[str, str] = {}
    files: dict[str, str | None] = {
        ".tool/agents/one.md": None,
        "evil/agents/two.md": "evil\n",
        "evil/one.md": "evil\n",
    }
    if shape == "parent":
        links[".tool"] = "evil"
    git("rm", "-rq", ".tool", cwd=host.source)
    files.pop(".tool/agents/one.md")
    if shape == "link":
        (host.source / ".tool").mkdir(exist_ok=True)
        links[".tool/agents"] = "../evil"
    if shape == "file":
        files[".tool"] = "a file\n"
    host.base = host.commit(files, links=links)
    async with running(host):
        outcome = await host.play(
            "ls .tool/agents; cat .tool/agents/*; git status --porcelain; echo x > x.txt; git add -A; git commit -qm x",
            checkout={"restore": [".tool/agents"], "restore_from": trusted},
        )
        assert outcome.error is None
        assert await host.lines() == ["one.md", "trusted"]
        assert host.changes() == ["x.txt"]


# --- sessions -------------------------------------------------------------------------------------------


async def test_a_session_goes_to_the_host_and_comes_back_into_another_container(
    host: Host, tmp_path: Path
) -> None:
    script = (
        "mkdir -p $HOME/.tool/deep; echo one > $HOME/.tool/deep/log; echo no > $HOME/.other; "
        "ln -s /etc/passwd $HOME/.tool/link; mkfifo $HOME/.tool/pipe"
    )
    async with running(host):
        await host.play(script, session_paths=[".tool"])
    with tarfile.open(host.desk.session_tar) as tar:
        assert tar.getnames() == [".tool/deep/log"]
    second = tmp_path / "second"
    second.mkdir()
    other = Host(second)
    other.desk.session_tar.write_bytes(host.desk.session_tar.read_bytes())
    async with running(other):
        await other.play("cat $HOME/.tool/deep/log; ls -A $HOME")
        assert await other.lines() == ["one", ".conductor", ".tool"]


async def test_a_session_that_is_too_large_is_left_out_and_the_turn_succeeds(host: Host) -> None:
    async with running(host):
        outcome = await host.play("truncate -s 200M $HOME/big; echo x > x.txt", session_paths=["big"])
        assert outcome.exit_code == 0
        assert host.changes() == ["x.txt"]
        assert "session was not saved" in "".join(await host.lines("conductor"))
    assert not host.desk.session_tar.exists()


# --- what a repository can bring along ------------------------------------------------------------------


async def test_hooks_and_filters_of_the_tree_do_not_run_in_the_shims_git(host: Host) -> None:
    canary = host.folder / "canary"
    evil = (
        f"for h in pre-commit commit-msg post-commit pre-push reference-transaction post-checkout; do "
        f"printf '#!/bin/sh\\necho $0 >> {canary}\\nexit 1\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
        f"git config core.fsmonitor 'echo fsmonitor >> {canary}; false'; "
        "git config commit.gpgSign true; echo x > x.txt"
    )
    async with running(host):
        outcome = await host.play("mkdir -p .git/hooks; " + evil)
        assert outcome.push_error is None
        assert host.changes() == ["x.txt"]
    assert not canary.exists()


async def test_the_token_is_in_no_file_and_no_argument(host: Host) -> None:
    async with running(host):
        await host.play("echo x > x.txt; git remote -v; cat .git/config")
        login = base64.b64encode(f"attempt:{host.desk.token}".encode()).decode()
        for line in await host.lines():
            assert host.desk.token not in line
            assert login not in line
        for folder in ("home", "workspace"):
            for path in (host.folder / folder).rglob("*"):
                if path.is_file():
                    assert host.desk.token.encode() not in path.read_bytes()
        assert host.shim is not None
        assert host.desk.token.encode() not in Path(f"/proc/{host.shim.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("path", ["../escape", "/etc/escape", ".conductor/gitconfig", ""])
async def test_a_file_outside_of_home_is_refused(host: Host, path: str) -> None:
    async with running(host):
        outcome = await host.play("echo never", command={"files": {path: "x"}})
        assert outcome.error is not None
        assert "not a path below the home folder" in outcome.error
        assert await host.lines() == []


async def test_a_link_out_of_home_is_not_followed(host: Host) -> None:
    outside = host.folder / "outside"
    outside.mkdir()
    async with running(host):
        await host.play(f"ln -s {outside} $HOME/.tool")
        outcome = await host.play("echo never", number=2, command={"files": {".tool/config": "x"}})
        assert outcome.error is not None
        assert "leads out of the home folder" in outcome.error
    assert not list(outside.iterdir())


async def test_the_turn_in_the_manual_is_a_turn(host: Host) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    example = json.loads(manual.partition("```json")[2].partition("```")[0])
    example["checkout"]["base_sha"] = host.base
    example["command"]["argv"] = ["/bin/sh", "-c", "cat; echo $A; cat $HOME/.codex/config.toml"]
    async with running(host):
        host.desk.give(example)
        outcome = await asyncio.wait_for(host.desk.outcome(1), PATIENT)
        assert (outcome.exit_code, outcome.error, outcome.push_error) == (0, None, None)
        assert await host.lines() == ["…b", "…"]
