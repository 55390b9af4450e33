"""`conductor audit`: reading, checking and handing out the trail, as an operator does it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from bot.audit import CONDUCTOR, Audit
from bot.audit_chain import AuditKind
from bot.cli.main import main
from bot.database import create_engine, upgrade
from bot.model import Actor, Repo
from bot.reasons import Reason, all_of
from bot.redact import Redactor

ALICE = Actor(login="alice", id=3, type="User")
WIDGETS = Repo(owner="acme", name="widgets", id=10, installation_id=20)
NO = all_of("may start", [Reason(question="may the asker write", ok=False, said="You have read access.")])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "conductor.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    return path


def url(config: Path) -> str:
    return f"sqlite+aiosqlite:///{config.parent / 'data' / 'conductor.db'}"


def fill(config: Path, *entries: dict[str, Any]) -> None:
    async def run() -> None:
        engine = create_engine(url(config))
        await upgrade(engine)
        trail = Audit(engine, Redactor())
        for entry in entries:
            await trail.record(**({"kind": AuditKind.push, "actor": CONDUCTOR} | entry))
        await engine.dispose()

    asyncio.run(run())


def tamper(config: Path, *statements: str) -> None:
    """As somebody who owns the database."""

    async def run() -> None:
        engine = create_engine(url(config))
        async with engine.begin() as connection:
            for name in ("audit_no_update", "audit_no_delete", "audit_head_rises"):
                await connection.execute(text(f"DROP TRIGGER {name}"))
            for statement in statements:
                await connection.execute(text(statement))
        await engine.dispose()

    asyncio.run(run())


Run = Callable[..., Result]


@pytest.fixture
def run(config: Path) -> Run:
    def run(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["audit", command, "--config", str(config), *arguments])

    return run


@pytest.fixture
def story(config: Path) -> Path:
    refused = {"kind": AuditKind.job_refused, "actor": ALICE, "repo": WIDGETS, "number": 7, "decision": NO}
    fill(
        config,
        refused | {"delivery_id": "d1", "details": {"event": "issues.labeled"}},
        {
            "repo": WIDGETS,
            "number": 8,
            "job_id": "j1",
            "sha": "ab" * 20,
            "details": {"branch": "agent/8", "why": ""},
        },
        {"kind": AuditKind.operator, "actor": "operator:root", "job_id": "j1"},
    )
    return config


@pytest.mark.usefixtures("story")
def test_the_list_says_who_did_what_on_what_and_why(run: Run) -> None:
    done = run("list")
    assert done.exit_code == 0
    first, second, third = (line.split(" ", 2)[2] for line in done.stdout.splitlines())
    assert first == (
        '#1 job.refused acme/widgets#7 by alice because: You have read access. {"event":"issues.labeled"}'
    )
    assert second == '#2 push acme/widgets#8 by conductor job j1 sha abababababab {"branch":"agent/8"}'
    assert third == "#3 operator by operator:root job j1"
    assert done.stderr.startswith("The newest entry is 3:")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--repo", "acme/widgets"], [1, 2]),
        (["--repo", "acme/widgets", "--number", "8"], [2]),
        (["--kind", "push", "--kind", "operator"], [2, 3]),
        (["--actor", "alice"], [1]),
        (["--job", "j1"], [2, 3]),
        (["--delivery", "d1"], [1]),
        (["--limit", "1"], [3]),
        (["--since", "2020-01-01", "--until", "2020-01-02T03:04:05"], []),
        (["--since", "2020-01-01T00:00:00Z"], [1, 2, 3]),
    ],
)
@pytest.mark.usefixtures("story")
def test_only_what_was_asked_for(run: Run, arguments: list[str], found: list[int]) -> None:
    listed = run("list", *arguments).stdout
    assert [int(line.split()[2][1:]) for line in listed.splitlines() if "#" in line] == found
    assert found or listed == "No entry fits.\n"
    if "--limit" not in arguments:
        exported = run("export", *arguments).stdout.splitlines()
        assert [json.loads(line)["seq"] for line in exported] == found


@pytest.mark.parametrize(
    "arguments",
    [("list", "--kind", "mood"), ("list", "--since", "soon"), ("list", "--limit", "0"), ("export", "--format", "xml"),
     ("verify", "--anchor", "12"), ("verify", "--file", "no-such-file")],
)  # fmt: skip
def test_what_it_does_not_know(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_no_terminal_obeys_what_stands_in_an_entry(run: Run, config: Path) -> None:
    hostile = "\x1b[2J\x1b]0;mine\x07 evil\u202e\r\nover"
    fill(config, {"actor": hostile, "details": {"branch": hostile}})
    done = run("list")
    assert "evil" in done.stdout
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(done.stdout)
    assert len(done.stdout.splitlines()) == 1


# --- verify


@pytest.mark.usefixtures("story")
def test_a_true_trail(run: Run) -> None:
    done = run("verify")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("3 entries, each as it was written. The newest is 3:")
    link = done.stdout.split()[-1]
    assert run("verify", "--anchor", link).exit_code == 0


def test_an_empty_trail(run: Run) -> None:
    done = run("verify")
    assert (done.exit_code, done.stdout) == (0, "The audit trail is empty.\n")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE seq = 2", "changed: entry 2 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "missing: entry 2 is missing"),
        ("DELETE FROM audit WHERE seq = 3", "cut: entry 3 is missing, and all until 3: the end was cut off"),
    ],
)
def test_a_changed_trail_ends_with_1_and_says_where(run: Run, story: Path, statement: str, said: str) -> None:
    tamper(story, statement)
    done = run("verify")
    assert done.exit_code == 1
    assert said in done.stderr
    assert "The audit trail is not as it was written: 1 finding in" in done.stderr
    assert done.stdout == ""


def test_an_end_that_was_cut_off_well_is_told_by_what_was_noted(run: Run, story: Path) -> None:
    noted = run("verify").stdout.split()[-1]
    second = json.loads(run("export").stdout.splitlines()[1])["hash"]
    tamper(story, "DELETE FROM audit WHERE seq = 3", f"UPDATE audit_head SET seq = 2, hash = '{second}'")
    assert run("verify").exit_code == 0
    done = run("verify", "--anchor", noted)
    assert done.exit_code == 1
    assert "cut: entry 3 is missing, and was noted elsewhere" in done.stderr


def test_many_findings_are_counted_and_not_all_shown(run: Run, config: Path) -> None:
    fill(config, *[{} for _ in range(120)])
    tamper(config, "UPDATE audit SET actor = 'mallory'")
    done = run("verify")
    assert done.exit_code == 1
    assert done.stderr.count("changed: entry") == 100
    assert "120 findings in 120 entries, 20 of them not shown." in done.stderr


# --- export


@pytest.mark.usefixtures("story")
def test_json_lines_can_be_checked_without_the_database(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "audit.jsonl"
    done = run("export", "--output", str(target))
    assert done.exit_code == 0
    link = done.stderr.split()[-1]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    lines = target.read_text().splitlines()
    assert json.loads(lines[0])["decision"]["because"][0]["said"] == "You have read access."
    checked = run("verify", "--file", str(target), "--anchor", link)
    assert (checked.exit_code, checked.stdout.split()[-1]) == (0, link)
    for wrong in (
        [lines[0], lines[2]],
        [lines[1], lines[0], lines[2]],
        [*lines[:2], lines[2].replace("root", "toor")],
        [*lines, "{}"],
        [*lines, "no json"],
        [lines[0].replace('"seq":1', '"seq":"x"'), *lines[1:]],
        lines[:2],
    ):
        target.write_text("\n".join(wrong) + "\n")
        assert run("verify", "--file", str(target), "--anchor", link).exit_code == 1
    target.write_bytes(b"\xff\xfe\n")
    assert run("verify", "--file", str(target)).exit_code == 1


@pytest.mark.usefixtures("story")
def test_an_export_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "audit.jsonl"
    target.write_text("precious")
    done = run("export", "--output", str(target))
    assert done.exit_code == 1
    assert "exists already" in done.stderr
    assert target.read_text() == "precious"
    assert "cannot be written" in run("export", "--output", str(tmp_path / "no" / "x")).stderr


def test_an_unreadable_row_keeps_its_place_in_an_export(run: Run, story: Path, tmp_path: Path) -> None:
    tamper(story, "UPDATE audit SET details = 'no json' WHERE seq = 2")
    assert "#2 was changed: its details cannot be read" in run("list").stdout
    target = tmp_path / "audit.jsonl"
    run("export", "--output", str(target))
    checked = run("verify", "--file", str(target))
    assert checked.exit_code == 1
    assert "changed: entry 2 was changed" in checked.stderr
    rows = list(csv.reader(io.StringIO(run("export", "--format", "csv").stdout)))
    assert rows[2][:3] == ["2", "", "unreadable"]


def test_no_spreadsheet_takes_an_entry_for_a_formula(run: Run, config: Path) -> None:
    hostile = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "＝1",
        '=HYPERLINK("http://x","y")',
    ]
    fill(config, *[{"actor": value, "job_id": value[:40], "details": {"a": 1}} for value in hostile])
    rows = list(csv.DictReader(io.StringIO(run("export", "--format", "csv").stdout, newline="")))
    assert [row["actor"] for row in rows] == [f"'{value}" for value in hostile]
    assert all(row["job_id"].startswith("'") for row in rows)
    assert {row["details"] for row in rows} == {'{"a":1}'}
    assert rows[0]["repo_id"] == ""


def test_a_database_that_cannot_be_read(run: Run, config: Path) -> None:
    folder = config.parent / "data"
    folder.mkdir()
    (folder / "conductor.db").write_text("no database")
    for command in ("list", "verify", "export"):
        done = run(command)
        assert done.exit_code == 1
        assert "The database cannot be used" in done.stderr


@pytest.mark.parametrize("command", [[], ["list"], ["verify"], ["export"]])
def test_the_help_teaches(command: list[str]) -> None:
    done = CliRunner().invoke(main, ["audit", *command, "--help"])
    assert done.exit_code == 0
    if not command:
        assert "conductor audit list --repo acme/widgets --since 2026-11-01\n" in done.output
        assert "--anchor" in done.output
