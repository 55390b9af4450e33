"""`conductor costs`: the ledger as a table for people and as JSON for programs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bot.cli.main import main
from bot.database import create_engine, upgrade
from bot.ledger import Entry, Ledger
from bot.model import Usage
from bot.terms import Terms

NOW = datetime.now(UTC)


def entry(cost: float | None, at: datetime = NOW, model: str = "m-1", **terms: object) -> Entry:
    usage = Usage(input_tokens=1000, output_tokens=20, cached_tokens=5, requests=1, cost=cost)
    values = {"job_id": "j1", "thread_id": "t", "repo_id": 10, "actor_id": 3} | terms
    return Entry(terms=Terms.model_validate(values), attempt_id="j1-1", at=at, model=model, usage=usage)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "conductor.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    return path


def fill(folder: Path, *entries: Entry) -> None:
    async def run() -> None:
        engine = create_engine(f"sqlite+aiosqlite:///{folder / 'data' / 'conductor.db'}")
        await upgrade(engine)
        await Ledger(engine).add(entries)
        await engine.dispose()

    asyncio.run(run())


def costs(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["costs", "--config", str(config), *arguments])


def test_a_table_with_its_sum(config: Path, tmp_path: Path) -> None:
    fill(tmp_path, entry(0.5), entry(0.25, model="m-2"), entry(None, model="unheard-of"))
    done = costs(config, "--by", "model")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert lines == [
        ["model", "calls", "tokens", "in", "out", "cached", "cost", "unpriced"],
        ["m-1", "1", "1,000", "20", "5", "$0.50", "0"],
        ["m-2", "1", "1,000", "20", "5", "$0.25", "0"],
        ["unheard-of", "1", "1,000", "20", "5", "$0.00", "1"],
        ["total", "3", "3,000", "60", "15", "$0.75", "1"],
    ]
    assert len({len(line) for line in done.output.splitlines()}) == 1, "the columns stand below each other"


def test_json_for_programs(config: Path, tmp_path: Path) -> None:
    fill(tmp_path, entry(0.5), entry(0.25, job_id="j2"))
    done = costs(config, "--by", "job", "--json")
    assert [json.loads(line) for line in done.output.splitlines()] == [
        {
            "job": name,
            "calls": 1,
            "input_tokens": 1000,
            "output_tokens": 20,
            "cached_tokens": 5,
            "cost": cost,
            "unpriced": 0,
        }
        for name, cost in (("j1", 0.5), ("j2", 0.25))
    ]


def test_since_a_day(config: Path, tmp_path: Path) -> None:
    long_ago = NOW - timedelta(days=100)
    fill(tmp_path, entry(1, long_ago), entry(2))
    assert "$2.00" in costs(config).output
    assert "$3.00" not in costs(config).output
    assert "$3.00" in costs(config, "--since", f"{long_ago:%Y-%m-%d}").output


def test_nothing_was_spent(config: Path) -> None:
    done = costs(config)
    assert (done.exit_code, done.output.startswith("No LLM calls since ")) == (0, True)


@pytest.mark.parametrize("arguments", [("--by", "mood"), ("--since", "yesterday")])
def test_what_it_does_not_know(config: Path, arguments: tuple[str, ...]) -> None:
    assert costs(config, *arguments).exit_code == 2
