"""The wheel works outside the checkout: templates, migrations and the sandbox's description come along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_plays_the_story(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("agent_conductor_app-*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    assert not [name for name in names if name.startswith("tests/")]
    assert "templates/profiles/reviewer.md" in names, "what is read without Jinja comes along, too"

    # Python looks here before it looks into the checkout
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    environment["PYTHONPATH"] = str(unpacked)
    where = [sys.executable, "-c", "import bot, templates, runners; print(bot.__file__, templates.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert found.stdout.count(str(unpacked)) == 2
    story = subprocess.run(
        [sys.executable, "-m", "bot", "demo", "--runner", "local"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert story.returncode == 0, story.stdout[-3000:] + story.stderr[-3000:]
    assert "+def farewell(name: str) -> str:" in story.stdout
    assert "check run `agent`: success" in story.stdout
