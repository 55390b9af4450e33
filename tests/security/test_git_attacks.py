"""Attacks on the host's git by whoever controls the container: canaries must not run, nothing bad gets out.

Attack classes 15, 16 and 18.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from git_host import (
    REPO,
    TOKEN,
    Attempt,
    GitHost,
    agent_git,
    clone_for_agent,
    commit,
    commit_tree,
    git_gateway,
    git_host,
    run_git,
    write,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.changes import ChangeRules, ViolationKind, check_changes
from bot.errors import InfrastructureError, JobFailed
from bot.model import FailureKind
from runners import quarantine
from runners.gateway.git import GitRoute
from runners.git import GitError, git
from runners.mirrors import Mirrors
from runners.quarantine import Person

BOT = Person(name="bot", email="bot@example.org")
LIMIT = 5 * 2**20
RULES = ChangeRules(max_files=3000, max_file_bytes=2**20, max_total_bytes=LIMIT)


@dataclass
class Place:
    """An attempt whose container is hostile."""

    host: GitHost
    mirrors: Mirrors
    mirror: Path
    quarantine: Path
    clone: Path
    base: str
    url: str
    canary: Path

    @property
    def bait(self) -> str:
        """A command that leaves the canary."""
        return f"touch {self.canary}; cat"

    async def push(self, *refs: str, ok: bool = True) -> str:
        """Push as the agent, through the gateway."""
        return await agent_git(
            self.clone, "push", "-q", self.url, *(refs or ["+HEAD:refs/heads/work"]), ok=ok
        )

    async def whole_way(self, *, publish: bool = True) -> str:
        """Everything that the host does with a push, up to GitHub; the published commit."""
        head = await quarantine.head(self.quarantine)
        assert head is not None
        await quarantine.inspect(self.quarantine, self.base, head)
        parts = quarantine.added_text(self.quarantine, self.base, head)
        async with contextlib.aclosing(parts):
            async for _ in parts:
                pass
        sealed = await quarantine.seal(
            self.quarantine, self.base, head,
            author=BOT, committer=BOT, message="x", moment=datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        if publish:
            await quarantine.push(
                self.quarantine,
                url=self.host.repo_url,
                token=TOKEN,
                sha=sealed,
                branch="agent/x",
                expected=None,
            )
        return sealed

    async def reasons(self, sha: str | None = None, rules: ChangeRules = RULES) -> set[ViolationKind]:
        """Push (a commit), inspect and judge it."""
        await self.push(f"+{sha or 'HEAD'}:refs/heads/work")
        head = await quarantine.head(self.quarantine)
        assert head is not None
        changes = await quarantine.inspect(self.quarantine, self.base, head)
        return {violation.kind for violation in check_changes(changes, rules)}

    def refs(self) -> list[str]:
        """What was let into the quarantine."""
        return run_git(self.quarantine, "for-each-ref", "--format=%(refname)").split()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with git_host(tmp_path / "host") as host:
        mirrors = Mirrors(tmp_path / "mirrors")
        mirror = await mirrors.fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
        path = await quarantine.create(tmp_path / "a" / "quarantine.git", mirror, max_input_bytes=LIMIT)
        async with git_gateway(GitRoute(max_push_bytes=LIMIT), Attempt(mirror, path)) as url:
            clone = clone_for_agent(mirror, tmp_path / "repo")
            yield Place(host, mirrors, mirror, path, clone, host.branch("main"), url, tmp_path / "canary")


# --- code that wants to run on the host


def evil_configuration(bait: str) -> str:
    return (
        f'[core]\n\tfsmonitor = "{bait}"\n\tsshCommand = "{bait}"\n\tpager = "{bait}"\n\teditor = "{bait}"\n'
        f'\taskPass = "{bait}"\n[filter "evil"]\n\tclean = "{bait}"\n\tsmudge = "{bait}"\n\tprocess = "{bait}"\n'
        f'[diff]\n\texternal = "{bait}"\n[diff "evil"]\n\ttextconv = "{bait}"\n\tcommand = "{bait}"\n'
        f'[merge "evil"]\n\tdriver = "{bait}"\n[credential]\n\thelper = "!{bait}"\n[gpg]\n\tprogram = "{bait}"\n'
        f'[uploadpack]\n\tpackObjectsHook = "{bait}"\n[core]\n\talternateRefsCommand = "{bait}"\n'
    ).replace("; cat", " && cat")


async def test_filters_textconv_and_hooks_of_the_tree_do_not_run(place: Place):
    commit(
        place.clone,
        {
            ".gitattributes": "* filter=evil diff=evil merge=evil text=auto\n",
            "victim.txt": "a\n",
            ".gitconfig": evil_configuration(place.bait),
        },
    )
    await place.push()
    with (place.clone / ".git" / "config").open("a") as file:
        file.write(evil_configuration(place.bait))
    # the bait works: whoever runs git in that tree is caught
    write(place.clone, {"victim.txt": "b\n"})
    await asyncio.to_thread(run_git_leniently, place.clone, "diff")
    assert place.canary.exists()
    place.canary.unlink()
    await place.whole_way()
    assert not place.canary.exists()


def run_git_leniently(folder: Path, *argv: str) -> None:
    with contextlib.suppress(AssertionError):
        run_git(folder, *argv)


async def test_hooks_in_our_own_repositories_do_not_run(place: Place):
    """As if something had written there: the second wall behind the file permissions."""
    for repository in (place.quarantine, place.mirror):
        for name in ("pre-receive", "update", "post-receive", "post-update", "pre-push", "reference-transaction",
                     "push-to-checkout", "proc-receive", "pre-auto-gc", "post-checkout"):  # fmt: skip
            hook = repository / "hooks" / name
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(f"#!/bin/sh\ntouch {place.canary}\n")
            hook.chmod(0o755)
    commit(place.clone, {"a.txt": "x"})
    await place.push()
    await place.whole_way()
    await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN, head="main")
    assert not place.canary.exists()


async def test_the_workers_environment_and_home_configure_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(
        tmp_path / "evil",
        {".gitconfig": evil_configuration(place.bait), "git/config": evil_configuration(place.bait)},
    )
    for name, value in {
        "HOME": tmp_path / "evil",
        "XDG_CONFIG_HOME": tmp_path / "evil",
        "GIT_CONFIG_GLOBAL": tmp_path / "evil" / ".gitconfig",
        "GIT_CONFIG_SYSTEM": tmp_path / "evil" / ".gitconfig",
        "GIT_CONFIG_PARAMETERS": f"'core.fsmonitor={place.bait}'",
        "GIT_EXTERNAL_DIFF": place.bait,
        "GIT_ASKPASS": place.bait,
        "GIT_PROXY_COMMAND": place.bait,
        "GIT_DIR": tmp_path,
        "GIT_OBJECT_DIRECTORY": tmp_path,
        "GIT_TEMPLATE_DIR": tmp_path,
        "GIT_EXEC_PATH": tmp_path,
        "GIT_TRACE": tmp_path / "trace",
        "GIT_TRACE_CURL": tmp_path / "trace",
    }.items():
        monkeypatch.setenv(name, str(value))
    commit(place.clone, {".gitattributes": "* filter=evil diff=evil\n"})
    await place.push()
    await place.whole_way()
    await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN, head="main")
    assert not place.canary.exists()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "address",
    ["ext::sh -c 'touch {canary}'", "--upload-pack=touch {canary}", "ssh://-oProxyCommand=touch%20{canary}/x",
     "fd::17", "git@host:x/y", "-u{canary}"],
)  # fmt: skip
async def test_addresses_that_run_commands_are_refused(place: Place, address: str):
    url = address.format(canary=place.canary)
    with pytest.raises(InfrastructureError, match="cannot be reached by"):
        await place.mirrors.fetch(REPO, url=url, token=TOKEN)
    for transports in ((), ("https",)):
        with pytest.raises(GitError):
            await git("ls-remote", "--", url, protocols=transports)
    assert not place.canary.exists()


async def test_no_transport_is_allowed_unless_asked_for(place: Place, tmp_path: Path):
    for url in (place.host.repo_url, f"file://{place.host.repository}", str(place.host.repository)):
        with pytest.raises(GitError, match=r"transport '(http|file)' not allowed"):
            await git("ls-remote", "--", url)
    # a server cannot send us elsewhere either: only what was asked for counts
    with pytest.raises(GitError, match="transport 'file' not allowed"):
        await git("ls-remote", "--", f"file://{place.host.repository}", protocols=("http", "https"))


@pytest.mark.parametrize(
    "ref", ["--upload-pack=touch {canary}", "-v", "--output={canary}", "refs/heads/main --all"]
)
async def test_refs_that_look_like_options(place: Place, ref: str):
    name = ref.format(canary=place.canary)
    with pytest.raises(JobFailed):
        await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN, refs=[name])
    with pytest.raises(JobFailed):
        await place.mirrors.resolve(place.mirror, name)
    with pytest.raises(JobFailed):
        await quarantine.inspect(place.quarantine, place.base, name)
    with pytest.raises(JobFailed):
        await quarantine.inspect(place.quarantine, name, place.base)
    assert not place.canary.exists()


@pytest.mark.parametrize("branch", ["--force", "-x", "--receive-pack=touch", "+main"])
async def test_a_valid_branch_that_looks_like_an_option_is_only_a_branch(place: Place, branch: str):
    commit(place.clone, {"a.txt": "x"})
    await place.push()
    sealed = await place.whole_way(publish=False)
    await quarantine.push(
        place.quarantine, url=place.host.repo_url, token=TOKEN, sha=sealed, branch=branch, expected=None
    )
    assert place.host.branch(branch) == sealed
    assert place.host.branch("main") == place.base


# --- ways into the quarantine


@pytest.mark.parametrize(
    "ref",
    ["refs/heads/main", "refs/heads/Work", "refs/heads/workx", "refs/tags/v1", "refs/replace/{base}", "refs/notes/x",
     "refs/meta/config", "refs/stash", "refs/remotes/origin/x", "refs/worktree/x", "refs/bisect/x",
     "refs/heads/checkpoint2"],
)  # fmt: skip
async def test_only_two_refs_can_be_pushed(place: Place, ref: str):
    commit(place.clone, {"a.txt": "x"})
    said = await place.push(f"HEAD:{ref.format(base=place.base)}", ok=False)
    assert "deny updating a hidden ref" in said
    assert place.refs() == []


async def test_work_is_not_deleted(place: Place):
    sha = commit(place.clone, {"a.txt": "x"})
    await place.push()
    assert "deny" in await place.push(":refs/heads/work", ok=False)
    assert await quarantine.head(place.quarantine) == sha


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quarantine alone, and a commit in it."""
    root = tmp_path_factory.mktemp("wire")
    run_git(root, "init", "-q", "--bare", "mirror.git")
    path = asyncio.run(quarantine.create(root / "q.git", root / "mirror.git", max_input_bytes=LIMIT))
    return path, run_git(path, "commit-tree", run_git(path, "mktree", stdin=b""), "-m", "x")


PIECES = st.sampled_from([*"abw./-@{}~^:\\ \n\x01ü", "work", "refs/", "heads/", "..", "HEAD", "checkpoint"])


@settings(max_examples=60, deadline=None)
@given(name=st.lists(PIECES, max_size=6).map("".join))
@example("work/../main")
@example("../../HEAD")
@example("checkpoint")
def test_no_ref_name_on_the_wire_gets_in(bare: tuple[Path, str], name: str):
    """The raw protocol, which no client's own checks soften: receive-pack is fed directly."""
    path, sha = bare
    ref = name if name.startswith("refs/") else f"refs/heads/{name}"
    command = f"{'0' * 40} {sha} {ref}".encode() + b"\0report-status"
    line = f"{len(command) + 4:04x}".encode() + command + b"0000"
    pack = b"PACK" + struct.pack(">II", 2, 0)
    pack += hashlib.sha1(pack).digest()
    with contextlib.suppress(GitError):
        asyncio.run(git("receive-pack", "--stateless-rpc", str(path), input=line + pack))
    got = run_git(path, "for-each-ref", "--format=%(refname)").split()
    assert {"/".join(name.split("/")[:3]) for name in got} <= {"refs/heads/work", "refs/heads/checkpoint"}
    assert sorted(file.name for file in path.parent.iterdir()) == ["mirror.git", "q.git"]
    assert (path / "HEAD").read_text().startswith("ref: refs/heads/")
    for name in got:
        run_git(path, "update-ref", "-d", name)
    if ref == "refs/heads/checkpoint":
        assert got == [ref]  # the messages are well-formed: what is allowed does get in


async def test_a_file_that_is_too_large_on_the_wire(place: Place):
    commit(place.clone, {"big.bin": os.urandom(LIMIT + 2**20)})
    said = await place.push(ok=False)
    assert said
    assert place.refs() == []


async def test_a_huge_file_that_packs_small_is_refused_by_the_rules(place: Place):
    commit(place.clone, {"zeros.bin": bytes(64 * 2**20)})
    kinds = await place.reasons()
    assert kinds == {ViolationKind.file_too_large, ViolationKind.total_too_large}


async def test_ten_thousand_files_are_refused_by_the_rules(place: Place):
    write(place.clone, {f"many/{number // 100}/{number}.txt": str(number) for number in range(10_000)})
    commit(place.clone)
    assert await place.reasons() == {ViolationKind.too_many_files}


async def test_a_delta_that_asks_for_gigabytes_is_refused(place: Place):
    base = bytes(2**24)
    base_id = hashlib.sha1(b"blob %d\0" % len(base) + base).digest()
    size = 64 * (2**24 - 1)  # one gigabyte, from 64 copies of the base
    delta = _varint(len(base)) + _varint(size) + b"\xf0\xff\xff\xff" * 64
    pack = b"PACK" + struct.pack(">II", 2, 2)
    pack += (
        _entry(3, len(base)) + zlib.compress(base) + _entry(7, len(delta)) + base_id + zlib.compress(delta)
    )
    pack += hashlib.sha1(pack).digest()
    assert len(pack) < 50_000
    command = f"{'0' * 40} {place.base} refs/heads/work".encode() + b"\0report-status"
    body = f"{len(command) + 4:04x}".encode() + command + b"0000" + pack
    headers = {"Content-Type": "application/x-git-receive-pack-request"}
    url = f"{place.url}/git-receive-pack"
    async with aiohttp.ClientSession() as client, client.post(url, data=body, headers=headers) as answer:
        said = await answer.text()
    assert "unpack" in said
    assert "unpack ok" not in said
    assert place.refs() == []


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _entry(kind: int, size: int) -> bytes:
    first, size = kind << 4 | size & 15, size >> 4
    return bytes([first | (0x80 if size else 0)]) + (_varint(size) if size else b"")


async def test_a_tree_bomb_ends_at_the_limit(place: Place):
    """Ten levels of ten names for the same tree: 10^10 files in eleven objects."""
    entries: list[tuple[str, str, bytes | str]] = [("100644", f"f{i}", b"x") for i in range(10)]
    bomb = commit_tree(place.clone, entries, None)
    for _ in range(9):
        tree = run_git(place.clone, "rev-parse", f"{bomb}^{{tree}}")
        bomb = commit_tree(place.clone, [("040000", f"d{i}", tree) for i in range(10)], place.base)
    with pytest.raises(JobFailed, match="too large to be read") as caught:
        await place.reasons(bomb)
    assert caught.value.kind is FailureKind.refused
    with pytest.raises(JobFailed, match="too large to be read"):
        await anext(quarantine.added_text(place.quarantine, place.base, bomb))


async def test_a_small_tree_bomb_is_counted(place: Place):
    """10^5 files."""
    entries: list[tuple[str, str, bytes | str]] = [("100644", f"f{i}", b"x") for i in range(10)]
    bomb = commit_tree(place.clone, entries, None)
    for _ in range(4):
        tree = run_git(place.clone, "rev-parse", f"{bomb}^{{tree}}")
        bomb = commit_tree(place.clone, [("040000", f"d{i}", tree) for i in range(10)], place.base)
    assert ViolationKind.too_many_files in await place.reasons(bomb)
    with pytest.raises(JobFailed, match="more than 20000 files"):
        await anext(quarantine.added_text(place.quarantine, place.base, bomb))


async def test_a_deep_tree_is_refused_and_crashes_nothing(place: Place):
    tree = run_git(place.clone, "rev-parse", f"{place.base}^{{tree}}")
    for _ in range(900):
        tree = run_git(place.clone, "mktree", stdin=f"040000 tree {tree}\tdddd\n".encode())
    deep = run_git(place.clone, "commit-tree", tree, "-p", place.base, "-m", "deep")
    await place.push(f"+{deep}:refs/heads/work")
    assert await place.reasons(deep) == {ViolationKind.bad_name}


@pytest.mark.parametrize(
    "name", [".git", ".GIT", "git~1", ".git ", ".g\u200cit", "..", "."],
)  # fmt: skip
async def test_names_that_write_into_git_are_refused_at_the_door(place: Place, name: str):
    # git's own tools do not make such a tree
    blob = run_git(place.clone, "hash-object", "-w", "--stdin", stdin=b"[core]\n\tfsmonitor = x\n")
    inner = run_git(place.clone, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    raw = b"40000 " + name.encode() + b"\0" + bytes.fromhex(inner)
    tree = run_git(place.clone, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw)
    evil = run_git(place.clone, "commit-tree", tree, "-p", place.base, "-m", "x")
    said = await place.push(f"+{evil}:refs/heads/work", ok=False)
    assert "fsck error" in said or "hasDot" in said
    assert place.refs() == []


@pytest.mark.parametrize(
    "text",
    ['[submodule "x"]\n\tpath = x\n\turl = --upload-pack=touch canary\n',
     '[submodule "../../hooks"]\n\tpath = x\n\turl = https://example.org\n',
     '[submodule "x"]\n\tpath = -x\n\turl = https://example.org\n',
     '[submodule "x"]\n\tpath = x\n\turl = https://example.org\n\tupdate = !touch canary\n'],
)  # fmt: skip
async def test_poisoned_gitmodules_are_refused_at_the_door(place: Place, text: str):
    commit(place.clone, {".gitmodules": text})
    assert "fsck error" in await place.push(ok=False)
    assert place.refs() == []


async def test_harmless_looking_submodules_need_a_human(place: Place):
    text = b'[submodule "lib"]\n\tpath = lib\n\turl = https://example.org/lib.git\n'
    odd = commit_tree(place.clone, [("100644", ".gitmodules", text), ("160000", "lib", "1" * 40)], place.base)
    assert await place.reasons(odd) == {ViolationKind.submodule}


async def test_gitmodules_that_is_a_link_is_refused_at_the_door(place: Place):
    odd = commit_tree(place.clone, [("120000", ".gitmodules", b"elsewhere")], place.base)
    assert "fsck error" in await place.push(f"+{odd}:refs/heads/work", ok=False)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", ".git/config", "src/../../x"])
async def test_links_out_of_the_tree_are_refused_by_the_rules(place: Place, target: str):
    (place.clone / "link").symlink_to(target)
    commit(place.clone)
    assert await place.reasons() == {ViolationKind.symlink}


async def test_another_history_is_refused_by_the_rules(place: Place):
    run_git(place.clone, "checkout", "-q", "--orphan", "other")
    commit(place.clone, {"a.txt": "x"})
    assert await place.reasons() == {ViolationKind.unrelated_history}


async def test_a_replaced_or_grafted_base_does_not_make_it_descend(place: Place):
    """refs/replace and info/grafts could pretend that the base is an ancestor."""
    stranger = commit_tree(place.clone, [("100644", "a", b"x")], None)
    pretender = commit_tree(place.clone, [("100644", "a", b"x")], place.base)
    await place.push(f"+{stranger}:refs/heads/work")
    await place.push(f"+{pretender}:refs/heads/checkpoint")
    (place.quarantine / "refs" / "replace").mkdir()
    (place.quarantine / "refs" / "replace" / stranger).write_text(f"{pretender}\n")
    # the attack works on an ordinary git
    run_git(place.quarantine, "merge-base", "--is-ancestor", place.base, stranger)
    changes = await quarantine.inspect(place.quarantine, place.base, stranger)
    assert not changes.descends


# --- ways out


async def test_the_agents_commits_and_identity_never_leave(place: Place):
    commit(place.clone, {"secret.txt": "hunter2hunter2\n"}, "secret in the message")
    (place.clone / "secret.txt").unlink()
    head = commit(place.clone, {"good.txt": "x"}, "removed it again")
    await place.push()
    sealed = await place.whole_way()
    listed = run_git(place.host.repository, "log", "--format=%an %ae %cn %ce %B", sealed, "--not", place.base)
    assert "Mallory" not in listed
    assert "secret" not in listed
    assert run_git(place.host.repository, "rev-parse", f"{sealed}^{{tree}}") == run_git(
        place.clone, "rev-parse", f"{head}^{{tree}}"
    )
    everything = run_git(place.host.repository, "cat-file", "--batch-all-objects", "--batch-check")
    blob = run_git(place.clone, "rev-parse", f"{head}~1:secret.txt")
    assert blob not in everything


async def test_a_push_during_publishing_changes_nothing(place: Place):
    good = commit(place.clone, {"good.txt": "x"})
    await place.push()
    sealed = await place.whole_way(publish=False)
    commit(place.clone, {"evil.txt": "x"})
    await place.push()
    assert await quarantine.head(place.quarantine) != good
    await quarantine.push(
        place.quarantine, url=place.host.repo_url, token=TOKEN, sha=sealed, branch="agent/x", expected=None
    )
    names = run_git(place.host.repository, "ls-tree", "-r", "--name-only", "agent/x").split()
    assert "good.txt" in names
    assert "evil.txt" not in names


async def test_the_token_is_in_no_file_and_no_argv(place: Place, tmp_path: Path):
    commit(place.clone, {"a.txt": "x"})
    await place.push()
    await place.whole_way()
    assert place.host.argv_with_token == []
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes(), file


async def test_a_hostile_mirror_answer_is_only_an_error(place: Place):
    place.host.status, place.host.body = 200, "<html>\nnot git\n</html>"
    with pytest.raises((InfrastructureError, JobFailed)):
        await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN)
    assert await place.mirrors.resolve(place.mirror, "refs/heads/main") == place.base
    place.host.status = None
    assert await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN) == place.mirror
