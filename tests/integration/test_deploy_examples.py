"""The files in deploy/ fit the program: they name its commands and settings, and hold no secret."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bot.cli.main import main
from bot.config import ENV_PREFIX, Settings, fixed_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))

#: What an operator fills into .env.
FILLED = {
    "CONDUCTOR_GITHUB_APP_ID": "123456",
    "CONDUCTOR_WEBHOOK_SECRET": "a-webhook-secret",
    "CONDUCTOR_LLM_ANTHROPIC_KEY": "an-anthropic-key",
    "CONDUCTOR_LLM_OPENAI_KEY": "an-openai-key",
    "POSTGRES_PASSWORD": "a-database-password",
    "REDIS_PASSWORD": "a-redis-password",
    "DOCKER_GID": "999",
    "CONDUCTOR_SLOTS": "3",
}


def substituted(value: Any, values: dict[str, str]) -> Any:
    """Compose's own substitution: https://docs.docker.com/reference/compose-file/interpolation/"""

    def one(match: re.Match[str]) -> str:
        name, operator, rest = match[1], match[2] or "", match[3] or ""
        if values.get(name):
            return values[name]
        if operator == ":?":
            raise KeyError(name)
        return rest

    if isinstance(value, dict):
        return {key: substituted(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [substituted(inner, values) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?:(:[?-])([^}]*))?\}", one, value).replace("$$", "$")
    return value


def compose(values: dict[str, str] = FILLED) -> dict[str, Any]:
    found: dict[str, Any] = substituted(yaml.safe_load((DEPLOY / "compose.yaml").read_text()), values)
    return found


def settings_of(service: dict[str, Any]) -> Settings:
    variables = {name: value for name, value in service["environment"].items() if name.startswith(ENV_PREFIX)}
    return fixed_settings(
        **{name.removeprefix(ENV_PREFIX).lower(): value for name, value in variables.items()}
    )


def test_the_compose_file_gives_each_process_what_it_needs_and_no_more() -> None:
    services = compose()["services"]
    serve, worker = settings_of(services["serve"]), settings_of(services["worker"])
    serve.require("github_app_id", "github_private_key", "webhook_secret", "redis_url", "database_url")
    worker.require("github_app_id", "github_private_key", "redis_url", "database_url", "host_name")
    assert worker.slots == 3
    assert "a-webhook-secret" not in str(services["worker"])
    assert "an-anthropic-key" not in str(services["serve"])
    assert "an-openai-key" not in str(services["serve"])
    assert serve.redis_url == worker.redis_url == "redis://:a-redis-password@redis:6379/0"
    # variables that the program does not know would keep it from starting
    assert serve.listen_address[0] == "0.0.0.0"


def test_the_worker_in_compose_can_reach_the_engine_and_the_server_cannot() -> None:
    services = compose()["services"]
    mounts = [mount.split(":") for mount in services["worker"]["volumes"]]
    assert ["/var/run/docker.sock", "/var/run/docker.sock"] in mounts
    # the engine mounts folders of the host: the worker must name them as the host does
    data = str(settings_of(services["worker"]).data_dir)
    assert [data, data] in mounts
    assert "volumes" not in services["serve"]
    assert services["worker"]["group_add"] == ["999"]


def test_the_stores_in_compose_are_reached_by_nobody_else() -> None:
    found = compose()
    assert found["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis"):
        assert found["services"][name]["networks"] == ["inside"]
        assert "ports" not in found["services"][name]
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?-alpine", found["services"][name]["image"])
    assert found["services"]["serve"]["ports"] == ["127.0.0.1:8000:8000"]
    assert all("healthcheck" in found["services"][name] for name in ("serve", "postgres", "redis"))


@pytest.mark.parametrize(
    "name",
    [
        "CONDUCTOR_GITHUB_APP_ID",
        "CONDUCTOR_WEBHOOK_SECRET",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "DOCKER_GID",
    ],
)
def test_compose_does_not_start_with_an_empty_secret(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose(FILLED | {name: ""})


def test_every_variable_of_compose_is_in_the_example_or_has_a_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    offered = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.M))
    optional = set(re.findall(r"\$\{(\w+):-", text))
    assert used - optional <= set(offered) <= used
    assert {value for name, value in offered.items() if name != "CONDUCTOR_SLOTS"} == {""}


def test_no_file_in_deploy_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(
                r"BEGIN [A-Z ]*PRIVATE KEY|sk-[A-Za-z0-9-]{16}|gh[ps]_\w{16}", path.read_text()
            ), path


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_there_is_a_unit_for_every_way_to_run_it() -> None:
    assert [path.stem for path in UNITS] == ["conductor-serve", "conductor-up", "conductor-worker"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_runs_a_command_of_ours_as_nobody_special(path: Path) -> None:
    assert isinstance(main, click.Group)
    service = unit(path)["Service"]
    program, command = service["ExecStart"].split()
    assert program == "/opt/agent-conductor/bin/conductor"
    assert command in main.commands
    assert path.stem == f"conductor-{command}"
    assert service["User"] == "conductor"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    # the engine is for those who start containers
    assert (service.get("SupplementaryGroups") == "docker") == (command != "serve")


def test_stopping_a_worker_kills_nothing_but_the_worker() -> None:
    assert unit(DEPLOY / "systemd" / "conductor-worker.service")["Service"]["KillMode"] == "process"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_understands_a_unit(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    sections = set(re.findall(r"^\[(\w+)\]$", text, re.M))
    assert sections == {"Unit", "Service", "Install"}
    if not shutil.which("systemd-analyze"):
        return  # Linux without systemd: what is above is all that can be said
    copy = tmp_path / path.name
    copy.write_text(text.replace("/opt/agent-conductor/bin/conductor", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if path.name in line]
    assert about_ours == []


def test_the_image_is_made_of_files_that_exist_and_runs_as_a_plain_user() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.M)
    assert re.findall(r"^USER (\w+)$", stages[-1], re.M) == ["conductor"]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for source in sources.split():
            assert "[" in source or (ROOT / source).exists(), source
    variables = set(re.findall(r"\bCONDUCTOR_(\w+)=", text))
    assert {name.lower() for name in variables} <= set(Settings.model_fields)
    base = re.search(r"^ARG BASE=(.+)$", text, re.M)
    assert base is not None
    assert base[1] == Settings.model_fields["base_image"].default
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    for file in ("Dockerfile", "compose.yaml", "README.md"):
        assert set(re.findall(r"agent-conductor:(\d[\w.]*)", (DEPLOY / file).read_text())) == {version[1]}


def test_everything_that_is_copied_into_the_image_is_in_the_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M):
        assert {source.replace("[t]", "t") for source in sources.split()} <= allowed


def test_ci_runs_the_gate_with_pinned_actions_and_few_rights() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
    assert any(".ci/run" in step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
