"""The settings: where they come from, and what is said about wrong ones."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.config import Settings, fixed_settings, load_settings
from bot.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Variables to set; taken away afterwards."""
    before = dict(os.environ)
    yield os.environ  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(before)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "conductor.toml"
    path.write_text(text)
    return path


def test_variables_win_over_the_file_and_options_over_both(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    path = file(tmp_path, 'slots = 3\nrunner = "local"\nlisten = "0.0.0.0:1"\n')
    environment["CONDUCTOR_RUNNER"] = "docker"
    settings = load_settings(path, listen="127.0.0.1:2")
    assert (settings.slots, settings.runner, settings.listen) == (3, "docker", "127.0.0.1:2")


@pytest.mark.parametrize(
    ("text", "variables", "says"),
    [
        ("solts = 3", {}, ["'solts'", "conductor.toml"]),
        ("", {"CONDUCTOR_SOLTS": "3"}, ["CONDUCTOR_SOLTS"]),
        ("slots = 0", {}, ["slots in", "greater than or equal to 1"]),
        ('listen = "here"', {}, ["host:port"]),
        ("", {"CONDUCTOR_LISTEN": "1"}, ["CONDUCTOR_LISTEN: must be host:port"]),
        ('github_api_url = "ftp://x"', {}, ["http:// or https://"]),
        ("slots = ", {}, ["not valid TOML"]),
        ('mode = "production"', {}, ["'dev' or 'prod'"]),
        ("[prices.x]\ninput = -1\noutput = 1", {}, ["prices", "greater than or equal to 0"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(
    tmp_path: Path, environment: dict[str, str], text: str, variables: dict[str, str], says: list[str]
) -> None:
    environment.update(variables)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file(tmp_path, text))
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(tmp_path / "none.toml")


def test_the_private_key_by_path_and_by_text(tmp_path: Path) -> None:
    pem = "-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----"
    path = tmp_path / "key.pem"
    path.write_text(pem)
    assert fixed_settings(github_private_key=str(path)).private_key_pem == pem
    assert fixed_settings(github_private_key=pem).private_key_pem == pem


@pytest.mark.parametrize(
    ("value", "says"), [("", "No GitHub App private key"), ("/nowhere/key.pem", "cannot be read")]
)
def test_a_missing_private_key_says_what_to_do(value: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        _ = fixed_settings(github_private_key=value).private_key_pem
    assert caught.value.hint


def test_required_settings_are_named_together() -> None:
    with pytest.raises(ConfigurationError, match="CONDUCTOR_GITHUB_APP_ID, CONDUCTOR_WEBHOOK_SECRET"):
        fixed_settings().require("github_app_id", "webhook_secret", "listen")


@pytest.mark.parametrize(
    ("api", "web"),
    [
        ("https://api.github.com", "https://github.com"),
        ("https://ghes.example.com/api/v3", "https://ghes.example.com"),
        ("https://api.acme.ghe.com", "https://acme.ghe.com"),
        ("http://127.0.0.1:8088", "http://127.0.0.1:8088"),
    ],
)
def test_where_git_lives(api: str, web: str) -> None:
    assert fixed_settings(github_api_url=api).github_url == web


def test_prices_by_the_longest_name() -> None:
    settings = fixed_settings(prices={"gpt-5.5": {"input": 2, "output": 8}})
    dated = settings.price_of("claude-sonnet-4-5-20250929")
    assert dated is not None
    assert dated.output == 15
    known = settings.price_of("gpt-5.5")
    assert known is not None
    assert known.input == 2
    assert settings.price_of("gpt-5.55") is None
    assert settings.price_of("unheard-of") is None


def test_secrets_are_listed_for_the_redactor_and_not_shown() -> None:
    settings = fixed_settings(webhook_secret="hush-hush", redis_url="redis://:pass-word@host/0")
    assert set(settings.secrets()) == {"hush-hush", "pass-word"}
    assert "hush-hush" not in repr(settings)


def test_the_example_file_names_every_setting_with_its_default() -> None:
    text = (ROOT / "deploy" / "conductor.example.toml").read_text()
    # every setting stands there commented out; taking the comment signs away gives a valid file
    lines = [line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
             for line in text.splitlines()]  # fmt: skip
    values = tomllib.loads("\n".join(lines))
    assert set(values) == set(Settings.model_fields)
    defaults = fixed_settings()
    given = fixed_settings(**values)
    # these have no default that TOML can say (the machine's name, none): an example stands there
    for name in set(Settings.model_fields) - {"host_name", "image_ca_bundle"}:
        assert getattr(given, name) == getattr(defaults, name), name


def test_a_password_in_a_url_is_a_secret_as_it_stands_and_as_it_is_meant() -> None:
    found = fixed_settings(database_url="postgresql+asyncpg://bot:p%40ss%2Fword%21@db/bot").secrets()
    assert found == ("p%40ss%2Fword%21", "p@ss/word!")
