"""The story as a person sees it: the sandbox's pages in a real browser."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.scenarios.world import REPO, world

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


async def rendered(url: str, profile: Path) -> str:
    """The page's document after the browser has loaded it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser is not None
    process = await asyncio.create_subprocess_exec(
        browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out.decode()


def words(document: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", document))


async def test_a_person_can_follow_the_story(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        body = "<script>document.title='owned'</script>\n\n```sh\necho hello > hello.txt\n```"
        number = (await maria.open_issue(REPO, "Say <b>hello</b>", body))["number"]
        await maria.add_label(REPO, number, "agent")
        job = await box.ended(number)
        assert job.pull_number
        issue = await rendered(f"{box.github.url}/{REPO}/issues/{number}", tmp_path / "one")
        assert "Say &lt;b&gt;hello&lt;/b&gt;" in issue
        assert "<title>owned" not in issue
        assert "Done" in words(issue)
        assert "agent-conductor[bot]" in words(issue)
        assert "agent-conductor:job:" not in words(issue)  # the hidden marker is hidden
        pull = await rendered(f"{box.github.url}/{REPO}/pull/{job.pull_number}", tmp_path / "two")
        assert "hello.txt" in words(pull)
        assert "+hello" in words(pull).replace("+ hello", "+hello")
        assert "success" in words(pull)
