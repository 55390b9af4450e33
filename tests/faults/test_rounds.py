"""Twenty stories at once while every part is killed at random points: nothing lost, nothing twice, all answered.

`make faults` plays fifty rounds. A round's random numbers come from its seed, which is printed; the seed alone decides
which stories there are and which part dies at which point of their progress. What the machine makes of it in between is
never quite the same twice.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.parts import Postgres, SqliteFile, engine
from tests.faults.plant import plant


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(0)  # a round has a limit of its own
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def test_every_part_is_killed_while_twenty_stories_run(
    kind: str,
    tmp_path: Path,
    image_files: list[Path],
    faults_seed: int,
    faults_rounds: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database = SqliteFile(tmp_path) if kind == "sqlite" else Postgres(tmp_path)
    async with engine(image_files) as own, plant(tmp_path, own, database) as everything:
        for seed in range(faults_seed, faults_seed + max(1, faults_rounds // 2)):
            with capsys.disabled():
                print(f"\nfaults, {kind}: CONDUCTOR_FAULTS_SEED={seed} ", end="", flush=True)
            await everything.round(seed)
            print(everything.timeline)
