"""Mirrors on real git over real HTTP: made, updated, shared, damaged, interrupted."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from git_host import REPO, TOKEN, GitHost, clone_for_agent, commit, git_host, run_git

from bot.errors import GitHubUnavailable, InfrastructureError, JobFailed
from bot.model import FailureKind, Phase
from runners.git import GitError, GitTimeout, environment, git, remote_failure, stream, with_token
from runners.mirrors import Mirrors


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[GitHost]:
    async with git_host(tmp_path / "host") as host:
        yield host


@pytest.fixture
def mirrors(tmp_path: Path) -> Mirrors:
    return Mirrors(tmp_path / "mirrors")


async def fetch(mirrors: Mirrors, host: GitHost, **options) -> Path:
    return await mirrors.fetch(REPO, **{"url": host.repo_url, "token": TOKEN} | options)


def push_seed(host: GitHost, files: dict[str, str | bytes], branch: str = "main") -> str:
    seed = host.seed
    sha = commit(seed, files)
    run_git(seed, "push", "-q", "-f", str(host.repository), f"HEAD:refs/heads/{branch}")
    return sha


def objects(mirror: Path) -> set[Path]:
    return {file for file in mirror.rglob("*") if file.is_file() and "objects" in file.parts}


async def test_a_mirror_is_made_and_follows(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host, head="main")
    assert mirror == mirrors.path(REPO)
    assert await mirrors.resolve(mirror, "refs/heads/main") == host.branch("main")
    sha = push_seed(host, {"new.txt": "x"})
    push_seed(host, {"other.txt": "x"}, "feature/a")
    assert await fetch(mirrors, host, head="main") == mirror
    assert await mirrors.resolve(mirror, "refs/heads/main") == sha
    assert await mirrors.resolve(mirror, sha) == sha
    # a branch that becomes a folder of branches, and one that goes away
    run_git(host.repository, "update-ref", "-d", "refs/heads/feature/a")
    push_seed(host, {"third.txt": "x"}, "feature")
    await fetch(mirrors, host)
    assert run_git(mirror, "for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/feature",
        "refs/heads/main",
    ]
    assert run_git(mirror, "symbolic-ref", "HEAD") == "refs/heads/main"
    run_git(mirror, "fsck", "--strict")


async def test_only_branches_and_the_refs_that_are_asked_for(mirrors: Mirrors, host: GitHost):
    pull = push_seed(host, {"pull.txt": "x"}, "tmp")
    for ref in ("refs/pull/7/head", "refs/pull/8/head", "refs/tags/v1"):
        run_git(host.repository, "update-ref", ref, pull)
    run_git(host.repository, "update-ref", "-d", "refs/heads/tmp")
    mirror = await fetch(mirrors, host, refs=["refs/pull/7/head"])
    refs = run_git(mirror, "for-each-ref", "--format=%(refname)").split()
    assert refs == ["refs/heads/main", "refs/pull/7/head"]
    assert await mirrors.resolve(mirror, "refs/pull/7/head") == pull
    await fetch(mirrors, host)  # a later job that does not ask for it leaves it
    assert await mirrors.resolve(mirror, "refs/pull/7/head") == pull


async def test_a_force_pushed_branch_keeps_its_old_commits(mirrors: Mirrors, host: GitHost):
    old = push_seed(host, {"a.txt": "1"})
    mirror = await fetch(mirrors, host, borrower="j1-1")
    before = objects(mirror)
    run_git(host.seed, "reset", "-q", "--hard", "HEAD~1")
    new = push_seed(host, {"b.txt": "2"})
    await fetch(mirrors, host)
    assert await mirrors.resolve(mirror, "refs/heads/main") == new
    assert await mirrors.resolve(mirror, old) == old
    assert before <= objects(mirror)


async def test_a_renamed_repository_is_the_same_mirror(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host)
    asked = len(host.requests)
    renamed = replace(REPO, owner="other", name="name")
    assert await mirrors.fetch(renamed, url=host.repo_url, token=TOKEN) == mirror
    assert not any(
        "git-upload-pack" in line and "POST" in line and "fetch" in line for line in host.requests[asked:]
    )


async def test_tenants_share_nothing(mirrors: Mirrors, host: GitHost):
    other = replace(REPO, installation_id=8)
    first, second = await fetch(mirrors, host), await mirrors.fetch(other, url=host.repo_url, token=TOKEN)
    assert first != second
    assert not (second / "objects" / "info" / "alternates").exists()
    assert {file.stat().st_ino for file in objects(first)}.isdisjoint(
        file.stat().st_ino for file in objects(second)
    )


async def test_the_token_is_nowhere_but_in_the_request(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host)
    assert host.requests
    assert host.argv_with_token == []
    for file in mirror.parent.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes()


async def test_another_user_reads_it_and_strangers_do_not_get_there(mirrors: Mirrors, host: GitHost):
    push_seed(host, {"more.txt": "x"})
    mirror = await fetch(mirrors, host)
    push_seed(host, {"most.txt": "x"})
    await fetch(mirrors, host, head="main")
    for file in (mirror, *mirror.rglob("*")):
        wanted = 0o555 if file.is_dir() else 0o444
        assert file.stat().st_mode & wanted == wanted, file
        assert file.stat().st_mode & 0o022 == 0, file
    assert mirror.parent.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
async def test_user_1000_clones_from_it_mounted_anywhere(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host, head="main")
    with tempfile.TemporaryDirectory() as name:
        # what the bind mount does: the mirror alone, at a path that the user reaches
        mounted, home = Path(name) / "mirror", Path(name) / "home"
        Path(name).chmod(0o755)
        shutil.copytree(mirror, mounted)
        home.mkdir()
        (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        os.chown(home, 1000, 1000)
        subprocess.run(
            ["git", "clone", "-q", "--shared", str(mounted), str(home / "repo")],
            user=1000, group=1000, extra_groups=[], cwd="/", check=True,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
        )  # fmt: skip
        assert (home / "repo" / "README.md").read_text() == "hello\n"
        assert (home / "repo" / "README.md").stat().st_uid == 1000


async def test_clones_at_once_are_one_clone(mirrors: Mirrors, host: GitHost):
    one = await asyncio.gather(*(fetch(mirrors, host, borrower=f"j{i}-1") for i in range(5)))
    assert set(one) == {mirrors.path(REPO)}
    assert mirrors.borrowers() == {f"j{i}-1" for i in range(5)}
    run_git(one[0], "fsck")


async def test_another_process_holds_the_lock(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host)
    program = (
        "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.flock(f,fcntl.LOCK_EX)\n"
        "print('held',flush=True)\nsys.stdin.read()"
    )
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(mirror.with_suffix(".lock")),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    assert holder.stdin
    assert await holder.stdout.readline() == b"held\n"
    asked = len(host.requests)
    waiting = asyncio.create_task(fetch(mirrors, host))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    assert len(host.requests) == asked
    holder.stdin.close()
    await holder.wait()
    assert await waiting == mirror
    assert len(host.requests) > asked


async def test_a_cancelled_first_clone_leaves_nothing(mirrors: Mirrors, host: GitHost):
    host.hold = asyncio.Event()
    cloning = asyncio.create_task(fetch(mirrors, host))
    await host.held.wait()
    cloning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    host.hold.set()
    assert [file.name for file in mirrors.path(REPO).parent.iterdir()] == ["42.lock"]
    host.hold = None
    assert (await fetch(mirrors, host) / "HEAD").exists()


async def test_a_first_clone_that_a_kill_interrupted_is_made_again(mirrors: Mirrors, host: GitHost):
    left = mirrors.path(REPO).with_suffix(".new")
    (left / "objects" / "pack").mkdir(parents=True)
    (left / "objects" / "pack" / "tmp_pack_x").write_bytes(b"PACK")
    mirror = await fetch(mirrors, host)
    assert not left.exists()
    assert await mirrors.resolve(mirror, "refs/heads/main") == host.branch("main")


async def test_a_server_that_does_not_answer_ends_at_the_time_limit(mirrors: Mirrors, host: GitHost):
    host.hold = asyncio.Event()
    with pytest.raises(
        GitHubUnavailable, match=r"did not let us fetch octo/hello: no end after 0\.5 seconds"
    ):
        await fetch(mirrors, host, timeout=0.5)
    host.hold.set()
    assert not mirrors.path(REPO).exists()


def _cut_objects_off(mirror: Path) -> None:
    files = [*mirror.glob("objects/pack/*.pack"), *mirror.glob("objects/??/*")]
    assert files
    for file in files:
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:20])


def _spoil_the_ref(mirror: Path) -> None:
    (mirror / "refs" / "heads" / "main").write_text("rubbish\n")


def _spoil_the_configuration(mirror: Path) -> None:
    (mirror / "config").write_text("[core\nrubbish")


def _remove_the_store(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")


DAMAGES = [_cut_objects_off, _spoil_the_ref, _spoil_the_configuration, _remove_the_store]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_mirror_is_cloned_again_when_nobody_uses_it(
    mirrors: Mirrors, host: GitHost, damage: Callable[[Path], None]
):
    mirror = await fetch(mirrors, host, borrower="j1-1")
    damage(mirror)
    push_seed(host, {"next.txt": "x"})
    with pytest.raises(InfrastructureError, match="damaged and still in use by j1-1") as caught:
        await fetch(mirrors, host)
    assert "after those have ended" in caught.value.hint
    mirrors.release("j1-1")
    mirrors.release("j1-1")
    assert await fetch(mirrors, host) == mirror
    assert await mirrors.resolve(mirror, "refs/heads/main") == host.branch("main")
    run_git(mirror, "fsck")
    assert sorted(file.name for file in mirror.parent.iterdir()) == ["42.borrowers", "42.git", "42.lock"]


async def test_lost_objects_are_fetched_again(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host, borrower="j1-1")
    for folder in mirror.glob("objects/*"):
        shutil.rmtree(folder)
    with pytest.raises(JobFailed):
        await mirrors.resolve(mirror, "refs/heads/main")
    await fetch(mirrors, host)
    run_git(mirror, "fsck")
    assert await mirrors.resolve(mirror, "refs/heads/main") == host.branch("main")


async def test_a_mirror_that_cannot_be_read_is_told(mirrors: Mirrors, host: GitHost):
    mirror = await fetch(mirrors, host)
    _spoil_the_configuration(mirror)
    with pytest.raises(InfrastructureError, match=r"mirror .* cannot be read"):
        await mirrors.resolve(mirror, "refs/heads/main")


@pytest.mark.parametrize(
    "ref", ["refs/heads/nope", "0" * 39 + "1", "--help", "HEAD@{1}", "main", "refs/heads/main^"]
)
async def test_an_unknown_branch_is_a_clear_failure(mirrors: Mirrors, host: GitHost, ref: str):
    mirror = await fetch(mirrors, host)
    with pytest.raises(JobFailed, match="no branch or commit") as caught:
        await mirrors.resolve(mirror, ref)
    assert (caught.value.phase, caught.value.kind) == (Phase.workspace, FailureKind.configuration)


@pytest.mark.parametrize("ref", ["refs/pull/9/head", "--upload-pack=touch x", "refs/heads/*"])
async def test_a_ref_that_is_not_there_is_a_clear_failure(mirrors: Mirrors, host: GitHost, ref: str):
    with pytest.raises(JobFailed, match="no branch or commit"):
        await fetch(mirrors, host, refs=[ref])


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, FailureKind.auth), (403, FailureKind.auth), (404, FailureKind.configuration)],
)
async def test_what_people_must_change_fails_the_job(
    mirrors: Mirrors, host: GitHost, status: int, kind: FailureKind
):
    host.status, host.body = status, f"token was {TOKEN}"
    with pytest.raises(JobFailed, match="did not let us fetch octo/hello") as caught:
        await fetch(mirrors, host)
    assert (caught.value.phase, caught.value.kind) == (Phase.workspace, kind)
    assert caught.value.hint
    assert not mirrors.path(REPO).exists()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_what_passes_is_tried_again(mirrors: Mirrors, host: GitHost, status: int):
    mirror = await fetch(mirrors, host)
    host.status = status
    with pytest.raises(GitHubUnavailable):
        await fetch(mirrors, host)
    host.status = None
    assert await fetch(mirrors, host) == mirror


async def test_no_server_at_all(mirrors: Mirrors):
    with pytest.raises(GitHubUnavailable):
        await mirrors.fetch(REPO, url="http://127.0.0.1:9/octo/hello.git", token=TOKEN)


async def test_an_empty_repository_has_no_branch(mirrors: Mirrors, host: GitHost):
    run_git(host.repository, "update-ref", "-d", "refs/heads/main")
    mirror = await fetch(mirrors, host, head="main")
    with pytest.raises(JobFailed, match="needs a first commit"):
        await mirrors.resolve(mirror, "refs/heads/main")


async def test_the_clone_of_an_attempt_works_on_it(mirrors: Mirrors, host: GitHost, tmp_path: Path):
    mirror = await fetch(mirrors, host, head="main")
    clone = clone_for_agent(mirror, tmp_path / "repo")
    assert (clone / "src" / "app.py").read_text() == "print('hi')\n"


def test_a_borrower_is_an_attempts_id(mirrors: Mirrors):
    (mirrors.root / "7" / "42.borrowers").mkdir(parents=True)
    with pytest.raises(ValueError, match="not an attempt's id"):
        mirrors.release("../../x")


# --- runners.git itself


async def test_git_is_killed_with_all_that_it_started(tmp_path: Path):
    pids = tmp_path / "pid"
    script = f"!echo $$ > {pids}; sleep 1000 & wait"
    with pytest.raises(GitTimeout, match="no end after 1 seconds"):
        await git("-c", f"alias.hang={script}", "hang", timeout=1)
    pid = int(pids.read_text())
    await _gone(pid)


async def test_a_cancelled_git_is_gone(tmp_path: Path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    task = asyncio.create_task(
        git("-c", f"alias.hang=!echo $$ > {fifo}; exec sleep 1000", "hang", timeout=60)
    )
    pid = int(await asyncio.to_thread(fifo.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _gone(pid)


async def test_too_much_output_is_an_error():
    with pytest.raises(GitError, match="more than 1000 bytes of output") as caught:
        await git("-c", "alias.much=!yes", "much", timeout=30, max_output=1000)
    assert len(caught.value.stdout) <= 1000


async def test_a_stream_that_is_left_early_is_killed(tmp_path: Path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    run_git(tmp_path, "init", "-q", "--bare", "r.git")
    output = stream("-c", f"alias.much=!echo $$ > {fifo}; exec yes", "much", git_dir=tmp_path / "r.git")
    reading = asyncio.create_task(anext(output))
    pid = int(await asyncio.to_thread(fifo.read_text))
    assert (await reading).startswith(b"y\n")
    await output.aclose()
    await _gone(pid)


async def test_a_stream_ends_at_the_time_limit(tmp_path: Path):
    run_git(tmp_path, "init", "-q", "--bare", "r.git")
    with pytest.raises(GitTimeout):
        async for _ in stream(
            "-c", "alias.hang=!exec sleep 1000", "hang", git_dir=tmp_path / "r.git", timeout=0.5
        ):
            pass


async def test_a_stream_that_fails_raises(tmp_path: Path):
    with pytest.raises(GitError, match="status 128: fatal: not a git repository"):
        async for _ in stream("log", git_dir=tmp_path):
            pass


async def test_secrets_do_not_come_out_of_errors():
    config = with_token(TOKEN, "https://github.example")
    header = config[0][1]
    leak = f"!echo '{TOKEN} {header}' 'https://user:hunter2@host/' >&2; echo fatal: done >&2; exit 3"
    with pytest.raises(GitError) as caught:
        await git("-c", f"alias.leak={leak}", "leak", config=config)
    assert caught.value.code == 3
    for secret in (TOKEN, header.rpartition(" ")[2], "hunter2"):
        assert secret not in caught.value.stderr
        assert secret not in str(caught.value)


async def test_git_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="Install git"):
        await git("version")


async def test_input_that_git_does_not_read_is_no_error():
    assert (await git("version", input=b"x" * 2**20)).text.startswith("git version")


def test_the_token_goes_to_its_own_origin_only():
    [(key, value)] = with_token("t", "https://github.example:8443/octo/hello.git")
    assert key == "http.https://github.example:8443/.extraHeader"
    assert value == "Authorization: Basic eC1hY2Nlc3MtdG9rZW46dA=="
    assert with_token("t", "file:///x") == ()
    assert with_token("", "https://github.example") == ()


def test_only_what_git_needs_is_inherited(monkeypatch: pytest.MonkeyPatch):
    for name in ("GIT_DIR", "GIT_SSH_COMMAND", "LD_PRELOAD", "GITHUB_TOKEN", "GIT_TRACE_CURL", "HOME"):
        monkeypatch.setenv(name, "evil")
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/ca.pem")
    assert "evil" not in environment().values()
    assert environment()["GIT_SSL_CAINFO"] == "/ca.pem"


def test_words_that_we_do_not_know_stay_an_infrastructure_error():
    error = GitError("fetch", 128, "fatal: something new")
    assert remote_failure(error, Phase.workspace, "did nothing") is error


async def _gone(pid: int) -> None:
    """Return when the process is dead: a grandchild of ours, so the kernel may take a moment after its kill."""
    async with asyncio.timeout(10):
        while _alive(pid):
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
