"""The quarantine on real git: what came is told, sealed as ours, and pushed once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from git_host import REPO, TOKEN, GitHost, clone_for_agent, commit, commit_tree, git_host, run_git

from bot.changes import ChangedFile, Changes
from bot.errors import GitHubUnavailable, InfrastructureError, JobFailed
from bot.model import FailureKind, Phase
from runners import quarantine
from runners.git import GitError
from runners.mirrors import Mirrors
from runners.quarantine import Person

BOT = Person(name="conductor[bot]", email="1+conductor[bot]@users.noreply.github.com")
ASKER = Person(name="octocat", email="583231+octocat@users.noreply.github.com")
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BRANCH = "agent/issue-1-x"


@dataclass
class Place:
    """An attempt's repositories, with its clone as the shim makes it."""

    host: GitHost
    mirrors: Mirrors
    mirror: Path
    quarantine: Path
    clone: Path
    base: str

    def push(self, sha: str = "HEAD", branch: str = "work") -> str:
        """Push past the gateway; what the quarantine then has on the branch."""
        run_git(self.clone, "push", "-q", "-f", str(self.quarantine), f"{sha}:refs/heads/{branch}")
        return run_git(self.quarantine, "rev-parse", f"refs/heads/{branch}")

    async def changes(self, files: dict[str, str | bytes] | None = None) -> Changes:
        """Commit, push, inspect."""
        if files is not None:
            commit(self.clone, files)
        return await quarantine.inspect(self.quarantine, self.base, self.push())

    async def seal(self, head: str, **options) -> str:
        """Seal with the usual words."""
        usual = {"author": BOT, "committer": BOT, "message": "Do it", "moment": MOMENT}
        return await quarantine.seal(self.quarantine, self.base, head, **usual | options)

    async def publish(self, sha: str, *, expected: str | None = None, **options) -> None:
        """Push to the host."""
        usual = {"url": self.host.repo_url, "token": TOKEN, "branch": BRANCH}
        await quarantine.push(self.quarantine, sha=sha, expected=expected, **usual | options)

    async def added(self, **options) -> list[tuple[str, str]]:
        """All added text of the pushed work."""
        head = self.push()
        parts = quarantine.added_text(self.quarantine, self.base, head, **options)
        async with contextlib.aclosing(parts):
            return [tuple(part) async for part in parts]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with git_host(tmp_path / "host") as host:
        mirrors = Mirrors(tmp_path / "mirrors")
        mirror = await mirrors.fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
        path = await quarantine.create(tmp_path / "attempt" / "q.git", mirror, max_input_bytes=10 * 2**20)
        clone = clone_for_agent(mirror, tmp_path / "repo")
        yield Place(host, mirrors, mirror, path, clone, host.branch("main"))


def by_path(changes: Changes) -> dict[str, ChangedFile]:
    return {file.path: file for file in changes.files}


# --- create


async def test_created_whole_and_only_once(place: Place):
    commit(place.clone, {"a.txt": "x"})
    head = place.push()
    again = await quarantine.create(place.quarantine, place.mirror, max_input_bytes=1)
    assert again == place.quarantine
    assert await quarantine.head(again) == head
    assert sorted(file.name for file in again.parent.iterdir()) == ["q.git"]


async def test_a_creation_that_a_kill_interrupted_is_made_again(tmp_path: Path, place: Place):
    path = tmp_path / "other" / "q.git"
    (tmp_path / "other" / "q.git.new" / "objects").mkdir(parents=True)
    await quarantine.create(path, place.mirror, max_input_bytes=2**20)
    assert run_git(path, "cat-file", "-t", place.base) == "commit"  # through the mirror
    assert path.stat().st_mode & 0o077 == 0


async def test_a_push_brings_only_what_is_new(place: Place):
    commit(place.clone, {"a.txt": "x"})
    head = place.push()
    packs = list(place.quarantine.glob("objects/pack/*.pack"))
    assert len(packs) == 1
    assert len(run_git(place.quarantine, "verify-pack", "-v", str(packs[0])).split(head)) > 1
    assert run_git(place.quarantine, "count-objects", "-v").splitlines()[2] == "in-pack: 3"


async def test_nothing_was_pushed(place: Place):
    assert await quarantine.head(place.quarantine) is None


async def test_the_size_counts_everything(place: Place):
    before = quarantine.size(place.quarantine)
    commit(place.clone, {"a.bin": bytes(range(256)) * 1000})
    place.push()
    assert quarantine.size(place.quarantine) > before + 256


# --- inspect


async def test_all_kinds_of_changes_are_told(place: Place):
    (place.clone / "src" / "app.py").unlink()
    (place.clone / "link").symlink_to("src/../README.md")
    (place.clone / "README.md").chmod(0o755)
    changes = await place.changes({"ünï/new file": b"12345", "back\\slash": "x", "line\nend": "x"})
    assert changes.descends
    assert changes.commits == 1
    assert changes.complete
    assert not changes.empty
    files = by_path(changes)
    assert sorted(files) == ["README.md", "back\\slash", "line\nend", "link", "src/app.py", "ünï/new file"]
    assert files["README.md"] == ChangedFile(
        path="README.md", status="M", old_mode=0o100644, new_mode=0o100755, size=6
    )
    assert files["src/app.py"] == ChangedFile(path="src/app.py", status="D", old_mode=0o100644, new_mode=0)
    assert files["link"] == ChangedFile(
        path="link", status="A", old_mode=0, new_mode=0o120000, size=16, target="src/../README.md"
    )
    assert files["ünï/new file"].size == 5


async def test_a_file_that_becomes_a_link(place: Place):
    (place.clone / "README.md").unlink()
    (place.clone / "README.md").symlink_to("src")
    [file] = (await place.changes({})).files
    assert (file.status, file.is_symlink, file.target) == ("T", True, "src")


async def test_a_submodule_is_seen(place: Place):
    odd = commit_tree(place.clone, [("160000", "lib", "1" * 40)], place.base)
    run_git(place.clone, "reset", "-q", odd)
    [file] = [file for file in (await place.changes()).files if file.status == "A"]
    assert file.is_submodule
    assert (file.path, file.size) == ("lib", 0)


async def test_names_that_are_not_utf8_and_long_links(place: Place):
    odd = commit_tree(
        place.clone,
        [("100644", "caf\udce9", b"x"), ("120000", "far", b"a/" * 2000), ("120000", "farther", b"a/" * 2049)],
        place.base,
    )
    files = by_path(await quarantine.inspect(place.quarantine, place.base, place.push(odd)))
    assert files["caf\udce9"].size == 1
    assert files["far"].target == "a/" * 2000
    assert files["farther"].target is None


async def test_nothing_changed(place: Place):
    changes = await place.changes({})
    assert changes.empty
    assert changes.commits == 1
    same = await quarantine.inspect(place.quarantine, place.base, place.base)
    assert same.empty
    assert (same.descends, same.commits) == (True, 0)


async def test_what_was_undone_is_no_change(place: Place):
    commit(place.clone, {"a.txt": "x"})
    (place.clone / "a.txt").unlink()
    changes = await place.changes({})
    assert changes.empty
    assert changes.commits == 2


async def test_another_history_is_told(place: Place):
    run_git(place.clone, "checkout", "-q", "--orphan", "other")
    changes = await place.changes({"a.txt": "x"})
    assert not changes.descends
    assert [file.path for file in changes.files] == ["a.txt"]


async def test_reading_stops_at_the_limit(place: Place):
    commit(place.clone, {f"many/{i}": "x" for i in range(50)})
    changes = await quarantine.inspect(place.quarantine, place.base, place.push(), max_entries=50)
    assert changes.complete
    changes = await quarantine.inspect(place.quarantine, place.base, place.push(), max_entries=49)
    assert (len(changes.files), changes.complete) == (49, False)


@pytest.mark.parametrize("head", ["1" * 40, "HEAD", "--help", "a" * 39, "b" * 64, ""])
async def test_a_head_that_is_not_there_is_refused(place: Place, head: str):
    for reading in (
        quarantine.inspect(place.quarantine, place.base, head),
        anext(quarantine.added_text(place.quarantine, place.base, head)),
        place.seal(head),
    ):
        with pytest.raises((JobFailed, GitError)) as caught:
            await reading
        if isinstance(caught.value, JobFailed):
            assert (caught.value.phase, caught.value.kind) == (Phase.publish, FailureKind.refused)


async def test_a_head_that_is_no_commit_is_refused(place: Place):
    blob = run_git(place.clone, "rev-parse", f"{place.base}:README.md")
    with pytest.raises(JobFailed, match="cannot be read"):
        await quarantine.inspect(place.quarantine, place.base, blob)


# --- added_text


async def test_only_added_lines_are_read(place: Place):
    (place.clone / "src" / "app.py").unlink()
    parts = await place.added() if commit(place.clone, {"README.md": "HELLO\nworld", "b": "1\n"}) else []
    assert dict(parts) == {"README.md": "HELLO\nworld\n", "b": "1\n"}


async def test_nothing_in_a_file_looks_like_the_patch(place: Place):
    tricky = "++ b/fake\n@@ -0,0 +1,9 @@\ndiff --git a/x b/x\n\\ No newline\n-- a\n+plus\n\n-minus\n"
    commit(place.clone, {"t": tricky, "z": "last\n"})
    assert await place.added() == [("t", tricky), ("z", "last\n")]


async def test_attributes_and_binaries_hide_nothing(place: Place):
    commit(
        place.clone,
        {".gitattributes": "* -diff -text binary\n", "x.bin": b"\0\1SECRET\xff\n", "y.txt": "SECRET2\n"},
    )
    texts = dict(await place.added())
    assert "SECRET" in texts["x.bin"]
    assert texts["y.txt"] == "SECRET2\n"


async def test_pieces_overlap_so_that_nothing_hides_on_a_border(place: Place):
    long = "".join(f"<{i:07d}>" for i in range(20_000))  # one line of 180,000 characters
    commit(place.clone, {"long": long, "many": "".join(f"line {i}\n" for i in range(10_000))})
    parts = await place.added(piece=40_000)
    for name, whole in (("long", long), ("many", None)):
        texts = [text for path, text in parts if path == name]
        assert len(texts) > 2
        assert all(len(text) < 250_000 for text in texts)
        if whole is not None:
            for at in range(0, len(whole) - 9, 9):
                assert any(whole[at : at + 9] in text for text in texts)
        for left, right in itertools.pairwise(texts):
            assert left[-4096:] in right


async def test_too_much_to_search_is_refused(place: Place):
    commit(place.clone, {"big": "x" * 5000 + "\n"})
    with pytest.raises(JobFailed, match="too large to be searched"):
        await place.added(max_bytes=4000)


async def test_a_deleted_file_costs_nothing(place: Place):
    (place.clone / "src" / "app.py").unlink()
    commit(place.clone)
    assert await place.added() == []


# --- seal


async def test_a_sealed_commit_is_ours_with_the_agents_tree(place: Place):
    commit(place.clone, {"a.txt": "1"}, "by the agent")
    head = commit(place.clone, {"b.txt": "2"}, "again\n\nCo-authored-by: Evil <e@example.org>")
    place.push()
    sealed = await place.seal(head, message="Fix the thing\n\nBecause.", co_author=ASKER)
    told = run_git(place.quarantine, "log", "-1", "--format=%P|%T|%an|%ae|%cn|%ce|%at|%ct|%B", sealed)
    tree = run_git(place.clone, "rev-parse", f"{head}^{{tree}}")
    stamp = int(MOMENT.timestamp())
    assert told == (
        f"{place.base}|{tree}|{BOT.name}|{BOT.email}|{BOT.name}|{BOT.email}|{stamp}|{stamp}|"
        f"Fix the thing\n\nBecause.\n\nCo-authored-by: {ASKER.name} <{ASKER.email}>"
    )


async def test_sealing_again_gives_the_same_commit(place: Place):
    head = commit(place.clone, {"a.txt": "1"})
    place.push()
    first = await place.seal(head)
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert await place.seal(head, moment=elsewhere) == first
    assert await place.seal(head, moment=MOMENT + timedelta(seconds=1)) != first
    with pytest.raises(ValueError, match="time zone"):
        await place.seal(head, moment=datetime(2026, 1, 1))  # noqa: DTZ001


async def test_odd_names_and_messages_break_nothing(place: Place):
    head = commit(place.clone, {"a.txt": "1"})
    place.push()
    odd = Person(name="Eve\n<x>\nparent 0", email="a>b\n")
    sealed = await place.seal(
        head, author=odd, committer=Person(name="<>", email=""), message="\x00\udc80-m x\n\n"
    )
    raw = run_git(place.quarantine, "cat-file", "commit", sealed)
    assert f"\nauthor Evexparent 0 <ab> {int(MOMENT.timestamp())} +0000\n" in raw
    assert "\ncommitter unknown <unknown> " in raw
    assert raw.endswith("\n\n?-m x")
    assert run_git(place.quarantine, "log", "-1", "--format=%P", sealed) == place.base


# --- push


async def sealed_work(place: Place, name: str = "a.txt") -> str:
    head = commit(place.clone, {name: "1"})
    place.push()
    return await place.seal(head)


async def test_exactly_that_commit_is_pushed(place: Place):
    sealed = await sealed_work(place)
    await place.publish(sealed)
    assert place.host.branch(BRANCH) == sealed
    assert run_git(place.host.repository, "for-each-ref", "--format=%(refname)").split() == [
        f"refs/heads/{BRANCH}",
        "refs/heads/main",
    ]
    unsealed = await quarantine.head(place.quarantine)
    run_git(place.host.repository, "cat-file", "-e", str(unsealed), ok=False)  # the agent's commit stays here
    assert place.host.argv_with_token == []
    for file in place.quarantine.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes()


async def test_a_repeated_push_changes_nothing(place: Place):
    sealed = await sealed_work(place)
    await place.publish(sealed)
    place.host.hook("exit 1")  # and nothing may even be asked for
    await place.publish(sealed)
    await place.publish(sealed, expected=place.base)
    assert place.host.branch(BRANCH) == sealed


async def test_an_existing_branch_moves_forward(place: Place):
    sealed = await sealed_work(place)
    await place.publish(sealed, branch="main", expected=place.base)
    assert place.host.branch("main") == sealed


async def test_a_branch_that_moved_is_a_conflict(place: Place):
    sealed = await sealed_work(place)
    theirs = commit(place.host.seed, {"theirs.txt": "x"})
    run_git(place.host.seed, "push", "-q", str(place.host.repository), "HEAD:main")
    with pytest.raises(JobFailed, match="somebody else pushed to it") as caught:
        await place.publish(sealed, branch="main", expected=place.base)
    assert (caught.value.phase, caught.value.kind) == (Phase.publish, FailureKind.conflict)
    assert "Nothing was overwritten" in caught.value.hint
    assert place.host.branch("main") == theirs


async def test_a_branch_that_appeared_is_a_conflict(place: Place):
    sealed = await sealed_work(place)
    run_git(place.host.repository, "branch", BRANCH, "main")
    with pytest.raises(JobFailed, match="somebody else pushed to it") as caught:
        await place.publish(sealed)
    assert caught.value.kind is FailureKind.conflict
    assert place.host.branch(BRANCH) == place.base


async def test_a_branch_that_was_rewound_is_a_conflict(place: Place):
    sealed = await sealed_work(place)
    await place.publish(sealed)
    head = commit(place.clone, {"b.txt": "2"})
    place.push()
    following = await quarantine.seal(
        place.quarantine, sealed, head, author=BOT, committer=BOT, message="x", moment=MOMENT
    )
    run_git(place.host.repository, "update-ref", f"refs/heads/{BRANCH}", place.base)
    with pytest.raises(JobFailed) as caught:
        await place.publish(following, expected=sealed)
    assert caught.value.kind is FailureKind.conflict
    assert place.host.branch(BRANCH) == place.base


async def test_a_branch_that_was_deleted_is_a_conflict(place: Place):
    sealed = await sealed_work(place)
    with pytest.raises(JobFailed) as caught:
        await place.publish(sealed, expected=place.base)
    assert caught.value.kind is FailureKind.conflict
    assert place.host.branch(BRANCH) == ""


async def test_history_is_never_rewritten(place: Place):
    theirs = commit(place.host.seed, {"theirs.txt": "x"})
    run_git(place.host.seed, "push", "-q", str(place.host.repository), "HEAD:main")
    sealed = await sealed_work(place)
    asked = len(place.host.requests)
    with pytest.raises(JobFailed, match="does not contain the branch's newest commit") as caught:
        await place.publish(sealed, branch="main", expected=theirs)
    assert caught.value.kind is FailureKind.conflict
    assert len(place.host.requests) == asked
    await place.mirrors.fetch(REPO, url=place.host.repo_url, token=TOKEN)
    with pytest.raises(JobFailed, match="does not contain the branch's newest commit"):
        await place.publish(sealed, branch="main", expected=theirs)  # now we know that commit
    assert place.host.branch("main") == theirs


async def test_a_race_during_the_push_overwrites_nothing(place: Place):
    sealed = await sealed_work(place)
    theirs = commit(place.host.seed, {"theirs.txt": "x"})
    run_git(place.host.seed, "push", "-q", str(place.host.repository), "HEAD:refs/heads/theirs")
    # while the server looks at our push, somebody else's arrives
    place.host.hook(f"env -u GIT_QUARANTINE_PATH git update-ref refs/heads/main {theirs}")
    with pytest.raises(JobFailed, match="somebody else pushed to it") as caught:
        await place.publish(sealed, branch="main", expected=place.base)
    assert caught.value.kind is FailureKind.conflict
    assert place.host.branch("main") == theirs


async def test_two_publishers_at_once_are_one_push(place: Place):
    sealed = await sealed_work(place)
    await asyncio.gather(*(place.publish(sealed) for _ in range(3)), return_exceptions=True)
    await place.publish(sealed)
    assert place.host.branch(BRANCH) == sealed


WORKFLOW = (
    "echo 'refusing to allow a GitHub App to create or update workflow"
    " `.github/workflows/x.yml` without `workflows` permission' >&2; exit 1"
)
PROTECTED = (
    "echo 'error: GH006: Protected branch update failed for refs/heads/main.' >&2;"
    "echo 'error: At least 1 approving review is required.' >&2; exit 1"
)
RULES = (
    "echo 'error: GH013: Repository rule violations found for refs/heads/x.' >&2;"
    "printf -- '- Push cannot contain secrets\\033[31m\\n' >&2; exit 1"
)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (WORKFLOW, r"\.github/workflows/x\.yml: it has no permission for workflows"),
        (PROTECTED, "is protected.*GitHub says: GH006.*approving review is required"),
        (RULES, r"A rule of the repository.*GH013.*Push cannot contain secrets\[31m"),
        ("echo too sleepy >&2; exit 1", r"refused the push \(pre-receive hook declined\).*too sleepy"),
    ],
)
async def test_githubs_refusals_are_told(place: Place, script: str, words: str):
    sealed = await sealed_work(place)
    place.host.hook(script)
    with pytest.raises(JobFailed, match=words) as caught:
        await place.publish(sealed)
    assert (caught.value.phase, caught.value.kind) == (Phase.publish, FailureKind.refused)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert place.host.branch(BRANCH) == ""


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, "", FailureKind.auth, "did not accept the App's token"),
        (403, "Write access to repository not granted.", FailureKind.auth, "permissions do not allow"),
        (403, "This repository was archived so it is read-only.", FailureKind.refused, "is archived"),
        (404, "Not Found", FailureKind.configuration, "no such repository"),
    ],
)
async def test_a_closed_door_is_told(place: Place, status: int, body: str, kind: FailureKind, words: str):
    sealed = await sealed_work(place)
    place.host.status, place.host.body = status, body
    with pytest.raises(JobFailed, match=words) as caught:
        await place.publish(sealed)
    assert (caught.value.phase, caught.value.kind) == (Phase.publish, kind)


@pytest.mark.parametrize("status", [500, 503])
async def test_githubs_trouble_passes(place: Place, status: int):
    sealed = await sealed_work(place)
    place.host.status = status
    with pytest.raises(GitHubUnavailable):
        await place.publish(sealed)
    place.host.status = None
    await place.publish(sealed)
    assert place.host.branch(BRANCH) == sealed


async def test_a_server_that_does_not_answer_ends_at_the_time_limit(place: Place):
    sealed = await sealed_work(place)
    place.host.hold = asyncio.Event()
    with pytest.raises(GitHubUnavailable, match=r"no end after 0\.5 seconds"):
        await place.publish(sealed, timeout=0.5)
    place.host.hold.set()


async def test_a_wrong_token_is_refused_by_the_server(place: Place):
    sealed = await sealed_work(place)
    with pytest.raises(JobFailed) as caught:
        await place.publish(sealed, token="ghs_wrong")
    assert caught.value.kind is FailureKind.auth
    assert place.host.branch(BRANCH) == ""


@pytest.mark.parametrize("branch", ["", "a..b", "x.lock", "a b", "a:b", "@{-1}"])
async def test_a_bad_branch_is_refused(place: Place, branch: str):
    sealed = await sealed_work(place)
    with pytest.raises(JobFailed, match="is not a branch name"):
        await place.publish(sealed, branch=branch)


async def test_other_transports_are_refused(place: Place):
    sealed = await sealed_work(place)
    for url in ("ssh://host/x", "ext::sh -c id", "/etc", "-x", "git://host/x"):
        with pytest.raises(InfrastructureError, match="cannot be reached by"):
            await place.publish(sealed, url=url)
