from __future__ import annotations

from pathlib import Path

import pytest

from bot.config import Settings, fixed_settings
from bot.errors import ConfigurationError
from runners.backends import BACKENDS, create_runner


class OwnRunner:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings


NOT_CALLABLE = 1


async def test_the_short_names_are_the_two_backends(tmp_path: Path) -> None:
    settings = fixed_settings(host_name="h", data_dir=tmp_path, allow_local_runner=True)
    assert {name: type(create_runner(name, settings)).__name__ for name in BACKENDS} == {
        "docker": "DockerRunner",
        "local": "LocalRunner",
    }


def test_a_dotted_path_is_a_runner_of_ones_own() -> None:
    settings = fixed_settings(host_name="h")
    runner = create_runner(f"{__name__}.OwnRunner", settings)
    assert isinstance(runner, OwnRunner)
    assert runner.settings is settings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kubernets", "no runner called 'kubernets'.*docker or local"),
        ("", "no runner called ''"),
        ("no.such.Runner", "'no.such.Runner' cannot be imported"),
        ("runners.docker.NoRunner", "'runners.docker.NoRunner' cannot be imported"),
        (".Runner", "no runner called"),
        ("..Runner", "cannot be imported"),
        (f"{__name__}.NOT_CALLABLE", "is not a class"),
    ],
)
def test_any_other_name_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_runner(name, fixed_settings(host_name="h"))


def test_the_local_runner_refuses_until_it_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"isolates nothing.*CONDUCTOR_ALLOW_LOCAL_RUNNER=true"):
        create_runner("local", fixed_settings(host_name="h"))
