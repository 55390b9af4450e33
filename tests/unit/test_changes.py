"""What may be published and what not: the rules on facts, without git."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.branches import MAX_LENGTH, branch_for, valid_branch, valid_ref
from bot.changes import (
    MAX_VIOLATIONS,
    ChangedFile,
    ChangeRules,
    Changes,
    ViolationKind,
    check_changes,
    held_back,
    is_dot_git,
    link_problem,
    name_problem,
    shown,
    size_text,
)
from bot.config import fixed_settings
from bot.protected import Protection

RULES = ChangeRules(max_files=3, max_file_bytes=100, max_total_bytes=250)


def changed(path: str, *, mode: int = 0o100644, status: str = "M", size: int = 10, target: str | None = None):
    return ChangedFile(
        path=path,
        status=status,
        old_mode=0 if status == "A" else 0o100644,
        new_mode=0 if status == "D" else mode,
        size=0 if status == "D" else size,
        target=target,
    )


def kinds(*files: ChangedFile, rules: ChangeRules = RULES, **facts) -> list[str]:
    changes = Changes(
        **{"base_sha": "a" * 40, "head_sha": "b" * 40, "descends": True, "commits": 1, "files": files} | facts
    )
    return [violation.kind.value for violation in check_changes(changes, rules)]


def test_ordinary_work_is_published():
    assert (
        kinds(
            changed("src/app.py"),
            changed("bin/run", mode=0o100755, status="A"),
            changed("docs/old.md", status="D"),
        )
        == []
    )


def test_rules_come_from_the_settings():
    settings = fixed_settings(max_changed_files=5, max_file_bytes=6, max_push_bytes=7)
    rules = ChangeRules.of(settings)
    assert (rules.max_files, rules.max_file_bytes, rules.max_total_bytes) == (5, 6, 7)


def held(*files: ChangedFile, more: tuple[str, ...] = ()) -> list[str]:
    return [file.path for file in held_back(files, Protection(more))]


@pytest.mark.parametrize("status", ["A", "M", "D"])
@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml", ".github/CODEOWNERS", ".GitHub/workflows/x.yml", ".github", ".github/conductor.yml",
        ".gitmodules", ".GITMODULES", "CODEOWNERS", "docs/CODEOWNERS", "Docs/codeowners", ".github/agents/a/b.md",
    ],
)  # fmt: skip
def test_protected_paths_are_left_to_people(path: str, status: str):
    files = [changed("src/a.py"), changed(path, status=status)]
    assert held(*files) == [path]
    assert kinds(*files) == []  # the rest is published


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".g\u200cithub/x",
            ".gıthub\u200b/x".replace("ı", "i"),
            ".github./x",
            ".github /x",
            ".github::$DATA/x",
        ),
        *(".github\\workflows\\x.yml", "GITHUB~1/workflows/x.yml", "GITHUB~1", "github~12/x", "GITMOD~1"),
        *(
            "CODEOW~1",
            "codeow~2",
            "docs/CODEOW~1",
            "\uff23ODEOWNERS",
            "CODEOWNERS/x",
            "./.github/x",
            "CODEOWNERS.",
        ),
        *(".GITHUB/Workflows/X.YML", ".\u212aithub".replace("\u212a", "g"), "docs/CODEOWNERS/deep/er"),
    ],
)
def test_other_spellings_that_a_file_system_takes_for_the_same(path: str):
    assert Protection().covers(path)


@pytest.mark.parametrize(
    "path",
    [
        "src/.github/x",
        "github/x",
        ".githubx",
        "src/CODEOWNERS",
        "CODEOWNERS.md",
        ".gitattributes",
        "docs",
        "docs/x",
    ],
)
def test_their_neighbours_are_not(path: str):
    assert held(changed(path)) == []
    assert kinds(changed(path)) == []


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("deploy/**", ["deploy/a", "deploy/a/b", "Deploy/x"], ["deployed/a", "src/deploy/a"]),
        ("deploy", ["deploy", "deploy/a"], ["deploy.py"]),
        ("/deploy/", ["deploy", "deploy/a"], ["a/deploy"]),
        ("*.toml", ["a.toml", "A.TOML"], ["x/a.toml", "a.tom"]),
        ("**/*.pem", ["a.pem", "x/y/a.pem", "x/a.pem/b"], ["a.pen"]),
        (
            "infra/*/secrets.yml",
            ["infra/p/secrets.yml"],
            ["infra/secrets.yml", "infra/p/q/secrets.yml", "infra/p/x"],
        ),
        ("infra/**/secrets.yml", ["infra/secrets.yml", "infra/p/q/secrets.yml"], ["infra/p/secret.yml"]),
        ("v[12]?/x", ["v1a/x", "v2b/x"], ["v3a/x", "v1/x"]),
        ("**", ["anything", "at/all"], []),
        ("/", [], ["anything"]),
        ("Grüße/ß", ["gru\u0308sse/SS", "GRÜßE/ß"], ["gruesse/s"]),
    ],
)
def test_patterns_that_were_added(pattern: str, inside: list[str], outside: list[str]):
    protection = Protection([pattern])
    assert [path for path in inside if not protection.covers(path)] == []
    assert [path for path in outside if protection.covers(path)] == []


def test_the_operators_and_the_repositorys_paths_count_both():
    rules = ChangeRules.of(fixed_settings(protected_paths=["deploy/**"]), protected=["**/*.pem"])
    files = [changed(path) for path in ("deploy/x", "a/b.pem", ".github/x", "src/x")]
    assert [file.path for file in held_back(files, rules.protected)] == ["deploy/x", "a/b.pem", ".github/x"]


@pytest.mark.parametrize("mode", [0o120000, 0o160000])
def test_a_link_or_submodule_at_the_place_of_a_folder_with_protected_files_waits(mode: int):
    assert held(changed("docs", mode=mode, status="A", target="x"), changed("x/CODEOWNERS")) == ["docs"]
    assert held(changed(".github", mode=mode, status="A", target="x")) == [".github"]
    assert held(changed("infra/p", mode=mode, status="A", target="x"), more=("infra/*/secrets.yml",)) == [
        "infra/p"
    ]
    # not every link, because of a pattern that begins anywhere
    assert held(changed("other", mode=mode, status="A", target="x"), more=("**/a/*.pem",)) == []


def test_what_cannot_be_in_one_tree_with_a_protected_file_waits_too():
    gone = [changed("docs/CODEOWNERS", status="D"), changed("docs/a.md", status="D")]
    # the folder became a file: while CODEOWNERS stays, the file cannot be there
    assert held(*gone, changed("docs", status="A")) == ["docs/CODEOWNERS", "docs"]
    # a protected file became a folder
    assert held(changed("LICENSE", status="D"), changed("LICENSE/x", status="A"), more=("LICENSE",)) == [
        "LICENSE",
        "LICENSE/x",
    ]


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(st.text(max_size=20), max_size=4)
)
def test_any_path_and_any_pattern_have_an_answer(path: str, patterns: list[str]):
    assert Protection(patterns).covers(path, leads=True) in (True, False)
    assert Protection(patterns).covers(f".github/{path.lstrip('/')}")


def test_a_hostile_pattern_takes_no_time():
    assert not Protection(["*a" * 500, "**/" * 500 + "x"]).covers("a" * 250 + "/b" * 1000)


def test_one_more_than_allowed_is_too_much():
    ordinary = [changed(f"f{i}", size=83) for i in range(3)]
    assert kinds(*ordinary) == []
    assert kinds(*ordinary, changed("f4", size=0)) == ["too_many_files"]
    assert kinds(*ordinary[:2], changed("f3", size=85)) == ["total_too_large"]
    assert kinds(changed("f", size=100)) == []
    assert kinds(changed("f", size=101)) == ["file_too_large"]


def test_a_change_that_was_not_read_to_its_end_is_refused():
    assert kinds(changed("f"), complete=False) == ["too_many_files"]


def test_another_history_is_refused():
    assert kinds(changed("f"), descends=False, commits=0) == ["unrelated_history"]


def test_submodules_are_refused_and_may_be_deleted():
    assert kinds(changed("vendor/lib", mode=0o160000, status="A", size=0)) == ["submodule"]
    assert kinds(changed("vendor/lib", status="D")) == []


def test_an_unknown_kind_of_file_is_refused():
    assert kinds(changed("f", mode=0o020000)) == ["bad_name"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("link", "README.md"), ("a/link", "../README.md"), ("a/b/link", "../../x/y"), ("link", "./x"),
        ("link", "a/b/c"), ("a/link", "..hidden"), ("link", "gitignore"), ("a/b/link", "../.."),
    ],
)  # fmt: skip
def test_symlinks_inside_the_tree_are_fine(path: str, target: str):
    assert link_problem(path, target) is None
    assert kinds(changed(path, mode=0o120000, target=target)) == []


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("link", "/etc/passwd"), ("link", ".."), ("link", "../x"), ("a/link", "../../x"), ("link", "a/../../x"),
        ("a/b/link", "up/../../.."), ("link", "a/.."), ("link", ".git/hooks/pre-commit"), ("a/link", "../.GIT/config"),
        ("link", "\\\\server\\share"), ("link", "C:\\x"), ("link", "c:x"), ("link", "..\\x"), ("link", ""),
        ("link", "a\nb"), ("link", None), ("link", "//x"), ("link", "./../x"), ("link", "git~1/config"),
    ],
)  # fmt: skip
def test_symlinks_out_of_the_tree_are_refused(path: str, target: str | None):
    assert link_problem(path, target) is not None
    assert kinds(changed(path, mode=0o120000, target=target)) == ["symlink"]


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=7), st.integers(0, 3))
def test_no_accepted_target_leaves_the_tree(parts: list[str], depth: int):
    path, target = "/".join(["d"] * depth + ["link"]), "/".join(parts)
    if link_problem(path, target) is None:
        place = ["d"] * depth
        for part in target.split("/"):
            if part == "..":
                assert place, (path, target)
                place.pop()
            elif part not in ("", "."):
                place.append(part)


@pytest.mark.parametrize(
    "name",
    [
        ".git", ".GIT", ".Git", ".git ", ".git.", ".git. .", "git~1", "GIT~2", ".git::$INDEX_ALLOCATION",
        ".g\u200cit", "\ufeff.git", ".gi\u200dt",
    ],
)  # fmt: skip
def test_whatever_a_file_system_takes_for_dot_git(name: str):
    assert is_dot_git(name)
    assert kinds(changed(f"src/{name}/config")) == ["bad_name"]


@pytest.mark.parametrize("name", [".gitignore", ".github-x", "git", "git~", ".gitx", "digit~1", ".git-blame"])
def test_what_only_looks_like_it(name: str):
    assert not is_dot_git(name)
    assert kinds(changed(name)) == []


@pytest.mark.parametrize(
    "path",
    [
        "a\nb", "a\x1b[31mb", "a\x7f", "a\x85b", "x\u202etxt.exe", "a\u2028b", "a/../b", "/etc/passwd", "a//b", "./a",
        "a\\..\\b", "a\\.git\\config", "x" * 256, "ä" * 128, "d/" * 2100 + "f",
        b"caf\xe9".decode("utf-8", "surrogateescape"),
    ],
)  # fmt: skip
def test_bad_names_are_refused(path: str):
    assert kinds(changed(path, status="A")) == ["bad_name"]
    assert kinds(changed(path, status="D")) == []  # getting rid of one is welcome


@pytest.mark.parametrize(
    "path", ["ünï/cödé.md", "日本語.txt", "a b", "-x", "--help", "a\\b", "x" * 255, "🎉", "$(id)"]
)
def test_names_that_are_only_unusual_are_not(path: str):
    assert name_problem(path) is None
    assert kinds(changed(path)) == []


ANY_FILE = st.builds(
    changed,
    st.text(st.characters(), max_size=40),
    target=st.text(max_size=20),
    mode=st.sampled_from([0o100644, 0o120000, 0o160000, 0o100755, 0]),
    status=st.sampled_from("AMDT"),
)


@given(st.lists(ANY_FILE, max_size=8))
def test_any_names_give_printable_messages(files: list[ChangedFile]):
    changes = Changes(base_sha="a" * 40, head_sha="b" * 40, descends=False, commits=0, files=files)
    for violation in check_changes(changes, RULES):
        assert violation.message.isprintable(), violation
        assert violation.message.endswith(".")
        violation.message.encode()  # no surrogates: it goes to GitHub as JSON


def test_the_list_of_reasons_is_bounded():
    files = tuple(changed(f".git/{i}") for i in range(10_000))
    found = kinds(*files)
    assert len(found) == MAX_VIOLATIONS
    assert found[0] == "too_many_files"


def test_the_messages_name_the_file_and_the_limit():
    changes = Changes(
        base_sha="a" * 40, head_sha="b" * 40, descends=True, commits=1, files=[changed("big.bin", size=2**20)]
    )
    total, single = check_changes(changes, RULES)
    assert total.kind is ViolationKind.total_too_large
    assert single.message == "big.bin has 1.0 MiB; at most 100 bytes are allowed in one file."


def test_shown_escapes_and_cuts():
    assert shown("a\nb\x1b") == "a\\x0ab\\x1b"
    assert shown("\u202e") == "\\u202e"
    assert shown(b"\xff".decode("utf-8", "surrogateescape")) == "\\xff"
    assert len(shown("x" * 5000)) <= 200


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (50 * 2**20, "50.0 MiB"), (3 * 2**30, "3.0 GiB")]
)  # fmt: skip
def test_sizes_for_people(size: int, text: str):
    assert size_text(size) == text


def test_a_branch_says_what_it_is_for():
    assert branch_for(12, "Fix the thing!", "jdeadbeefab12cd") == "agent/issue-12-fix-the-thing-ab12cd"
    assert branch_for(12, "", "jdeadbeefab12cd") == "agent/issue-12-ab12cd"
    assert branch_for(12, "日本語", "jdeadbeefab12cd") == "agent/issue-12-ab12cd"
    assert branch_for(3, "Über-große Änderung", "j00000000ab12") == "agent/issue-3-uber-groe-anderung-00ab12"


def test_a_long_title_is_cut_between_words():
    name = branch_for(1, "The quick brown fox jumps over the lazy dog and then some more", "jdeadbeefab12cd")
    assert name == "agent/issue-1-the-quick-brown-fox-jumps-over-the-lazy-ab12cd"


def test_an_impossible_number_is_an_error():
    with pytest.raises(ValueError, match="start at 1"):
        branch_for(0, "x", "jdeadbeefab12cd")


@given(st.integers(1, 10**12), st.text(), st.text())
def test_a_branch_is_always_short_ascii_and_valid(number: int, title: str, job_id: str):
    name = branch_for(number, title, job_id)
    assert len(name) <= MAX_LENGTH
    assert re.fullmatch(r"agent/issue-[0-9]+(-[a-z0-9]+)+", name)
    assert valid_branch(name)
    assert branch_for(number, title, job_id) == name


@given(st.text())
def test_two_jobs_have_two_branches(title: str):
    assert branch_for(1, title, "j000000000001") != branch_for(1, title, "j000000000002")


@pytest.mark.parametrize(
    "ref", ["refs/heads/main", "refs/pull/7/head", "refs/heads/a/b", "refs/heads/-x", "refs/heads/ü"]
)
def test_valid_refs(ref: str):
    assert valid_ref(ref)


@pytest.mark.parametrize(
    "ref",
    ["main", "--upload-pack=x", "HEAD", "refs/heads/", "refs/heads/a..b", "refs/heads/a b", "refs/heads/a.lock",
     "refs/heads/.a", "refs/heads/a~1", "refs/heads/a^{}", "refs/heads/a:b", "refs/heads/@{-1}", "refs/heads/a//b",
     "refs/heads/a\n", "refs/heads/*", "refs/heads/a\\b", "refs/heads/a.", "refs/heads/\udcff",
     "refs/heads/" + "a" * 256],
)  # fmt: skip
def test_invalid_refs(ref: str):
    assert not valid_ref(ref)
