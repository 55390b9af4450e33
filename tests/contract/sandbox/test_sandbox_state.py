"""The world survives a restart; the command says how to point a bot at it."""

from __future__ import annotations

import asyncio
import stat

import pytest

from bot.errors import ConfigurationError
from bot.sandbox.command import run_sandbox
from bot.sandbox.human import HumanError
from bot.sandbox.sandbox import Sandbox


@pytest.fixture
def start(private_key, tmp_path):
    return lambda **options: Sandbox.start(state_dir=tmp_path / "state", private_key=private_key, **options)


async def test_everything_is_there_again(start):
    async with start() as github:
        maria = github.as_user("maria")
        await maria.open_issue("acme/hello", "Remember", labels=["agent"])
        comment = await maria.comment("acme/hello", 1, "this")
        await maria.react("acme/hello", 1, "eyes", comment_id=comment["id"])
        sha = await maria.push_commit("acme/hello", "x", {"a": "b"})
        await maria.open_pull("acme/hello", "x", "P")
        await github.as_user("octocat").review("acme/hello", 2, "APPROVE")
        before = {
            "issue": github.issue("acme/hello", 1),
            "pulls": github.pulls("acme/hello"),
            "comments": github.comments("acme/hello", 1),
            "reviews": github.reviews("acme/hello", 2),
        }
        url, secret, deliveries = github.url, github.webhook_secret, len(github.deliveries)
        identity = (github.app_id, github.installation_id, github.private_key_path.read_text())
    async with start(webhook_secret="another") as github:
        after = {
            "issue": github.issue("acme/hello", 1),
            "pulls": github.pulls("acme/hello"),
            "comments": github.comments("acme/hello", 1),
            "reviews": github.reviews("acme/hello", 2),
        }
        assert repr(after).replace(github.url, url) == repr(before)
        assert (await github.branches("acme/hello"))["x"] == sha
        assert (github.webhook_secret, len(github.deliveries)) == (secret, deliveries)
        assert identity == (github.app_id, github.installation_id, github.private_key_path.read_text())
        # ids go on where they were
        new = await github.as_user("maria").open_issue("acme/hello", "Next")
        assert new["number"] == 3
        assert new["id"] > max(one.id for one in github.deliveries[1:])


async def test_the_world_is_on_disk_soon_after_a_change(start, tmp_path, until):
    async with start() as github:
        await github.as_user("maria").open_issue("acme/hello", "Not lost by a kill")
        file = tmp_path / "state" / "world.json"
        await until(lambda: file.exists() and "Not lost by a kill" in file.read_text())


async def test_secrets_are_for_their_owner_only(start, tmp_path):
    async with start() as github:
        assert stat.S_IMODE(github.private_key_path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state" / "world.json").stat().st_mode) == 0o600


async def test_without_a_folder_nothing_stays(private_key):
    async with Sandbox.start(private_key=private_key) as github:
        folder = github.private_key_path.parent
        assert folder.exists()
    assert not folder.exists()


async def test_the_command(tmp_path):
    said: list[str] = []
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_sandbox(
            "127.0.0.1:0", tmp_path / "state", "http://127.0.0.1:9/webhook", say=said.append, stop=stop
        )
    )
    while not said:
        await asyncio.wait({running}, timeout=0.01)
    stop.set()
    await running
    settings = dict(
        line.removeprefix("export ").split("=", 1) for line in said[0].splitlines() if "export " in line
    )
    assert settings.keys() == {
        "CONDUCTOR_GITHUB_API_URL",
        "CONDUCTOR_GITHUB_APP_ID",
        "CONDUCTOR_GITHUB_PRIVATE_KEY",
        "CONDUCTOR_WEBHOOK_SECRET",
    }
    assert settings["CONDUCTOR_GITHUB_PRIVATE_KEY"] == str(tmp_path / "state" / "app.private-key.pem")
    for expected in ("octocat-token", "acme/hello.git", "http://127.0.0.1:9/webhook", "maria (write)"):
        assert expected in said[0]


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:x", "192.0.2.1:0"])
async def test_an_address_that_cannot_be_had(listen):
    with pytest.raises(ConfigurationError, match="--listen"):
        await run_sandbox(listen, say=lambda _: None, stop=asyncio.Event())


async def test_a_port_that_is_taken(private_key):
    async with Sandbox.start(private_key=private_key) as github:
        with pytest.raises(ConfigurationError, match="Address already in use"):
            await run_sandbox(github.url.removeprefix("http://"), say=lambda _: None, stop=asyncio.Event())


async def test_a_damaged_state(tmp_path):
    (tmp_path / "world.json").write_text('{"app": 1}')
    with pytest.raises(ConfigurationError, match="Remove the folder"):
        await run_sandbox("127.0.0.1:0", tmp_path, say=lambda _: None, stop=asyncio.Event())


async def test_mistakes_of_a_script(github):
    with pytest.raises(ValueError, match="no account ghost"):
        github.as_user("ghost")
    with pytest.raises(LookupError, match="acme/nothing"):
        github.pulls("acme/nothing")
    with pytest.raises(ValueError, match="already"):
        github.add_user("OCTOCAT")
    with pytest.raises(ValueError, match="already"):
        await github.create_repo("acme/Hello")
    with pytest.raises(ValueError, match="no account nobody"):
        await github.create_repo("nobody/x")
    for attempt in (
        github.as_user("octocat").comment("acme/nothing", 1, "x"),
        github.as_user("octocat").push_commit("acme/nothing", "x", {}),
        github.as_user("rita").push_commit("acme/hello", "x", {}),
    ):
        with pytest.raises(HumanError):
            await attempt
    github.add_user("newcomer")
    github.set_role("acme/hello", "newcomer", "write")
    await github.as_user("newcomer").push_commit("acme/hello", "x", {"a": "b"})
