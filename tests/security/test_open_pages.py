"""Attack class 24, as far as there is anything: the server's few pages, and texts of others in a terminal."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import redis
import structlog
from yarl import URL

from bot import logs
from bot.redact import Redactor
from tests.scenarios.world import CANARIES, REPO, world

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
#: Where other programs of this kind have pages; and ways to files.
PATHS = (
    "/", "/jobs", "/api/jobs", "/logs", "/stream", "/events", "/ws", "/mcp", "/sse", "/admin", "/dashboard", "/rq",
    "/metrics", "/docs", "/openapi.json", "/debug", "/static/..%2f..%2fconductor.toml", "/.env", "/../../etc/passwd",
    "/healthz/../../data/conductor.db", "//etc/passwd", "/webhook/x", "/attempts", "/%2e%2e/%2e%2e/etc/passwd",
)  # fmt: skip


@pytest.mark.timeout(120)
async def test_24_without_a_signature_there_is_nothing_to_see_or_to_do(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        number = int(
            (await maria.open_issue(REPO, "A private title", "```sh\necho 1 > one.txt\n```"))["number"]
        )
        await maria.add_label(REPO, number, "agent")
        job = await box.ended(number)
        server = str(box.github.webhook_url).removesuffix("/webhook")
        said = []
        # as a page of somebody else's in the operator's browser would ask, with whatever cookies
        headers = {"Origin": "https://evil.example", "Cookie": "session=1", "Authorization": "Bearer x"}
        async with aiohttp.ClientSession(headers=headers) as client:
            for path in PATHS:
                for method in METHODS:
                    async with client.request(method, URL(server + path, encoded=True)) as answer:
                        assert answer.status in (404, 405), (method, path)
                        said.append(f"{dict(answer.headers)} {await answer.text()}")
        async with aiohttp.ClientSession(server, headers=headers) as client:
            for path in ("/healthz", "/readyz"):
                async with client.get(path) as answer:
                    assert answer.status == 200
                    said.append(f"{dict(answer.headers)} {await answer.text()}")
                for method in METHODS[3:]:
                    async with client.request(method, path) as answer:
                        assert answer.status == 405
            async with client.post("/webhook", json={"action": "labeled"}) as answer:
                assert answer.status == 401
            for path in ("/ws", "/healthz", "/webhook"):
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await client.ws_connect(path)
        everything = "\n".join(said)
        assert "access-control" not in everything.lower()
        assert "set-cookie" not in everything.lower()
        for text in (*CANARIES.values(), job.id, "private title", "maria", REPO, str(tmp_path), "redis.sock"):
            assert text not in everything


@pytest.mark.timeout(120)
async def test_24_what_is_wrong_inside_is_told_without_addresses(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        server = str(box.github.webhook_url).removesuffix("/webhook")
        async with aiohttp.ClientSession(server) as client, client.get("/readyz") as answer:
            checks = (await answer.json())["checks"]
        assert set(checks.values()) == {"ok"}
        redis_url = box.settings.redis_url
        with redis.Redis.from_url(redis_url) as operator:
            operator.config_set("requirepass", "a-new-password-4715")
            operator.client_kill_filter(skipme=True, _type="normal")
            async with aiohttp.ClientSession(server) as client:
                async with asyncio.timeout(20):
                    while True:
                        async with client.get("/readyz") as answer:
                            text = await answer.text()
                            if answer.status == 503:
                                break
                        await asyncio.sleep(0.05)
            operator.config_set("requirepass", "")
        assert redis_url not in text
        assert str(tmp_path) not in text
        assert "a-new-password" not in text
        assert set(json.loads(text)) == {"ready", "draining", "checks"}


# --- what others write, in the operator's terminal

#: Clears the screen, sets the title, hides the cursor; a forged line; C1 controls; text that runs backwards.
EVIL = "x\x1b[2J\x1b]0;owned\x07\x1b[?25l\x9b2J\r\nINFO all is well\x00\x7f\u202egnp.exe\u2028forged"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("mode", ["dev", "prod"])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_24_a_log_line_commands_no_terminal_and_forges_no_other_line(
    mode: logs.Mode, stream: type[io.StringIO]
) -> None:
    written = stream()
    logs.configure(mode, "info", Redactor([]), stream=written)
    log = structlog.get_logger("bot.somewhere")
    log.info("job accepted", title=EVIL, short="\x1b[2J", deep={"a": [EVIL]}, **{"by\x1b[2J": "x"})
    log.warning("interrupted", error=str(ValueError(EVIL)))
    logging.getLogger("library").error("GitHub said %s", EVIL.replace("\n", ""))
    text = written.getvalue()
    if mode == "dev" and stream is Terminal:
        assert "\x1b[" in text  # our own colours
        for colour in {part.partition("m")[0] for part in text.split("\x1b[")[1:]}:
            assert colour.replace(";", "").isdigit(), colour
            text = text.replace(f"\x1b[{colour}m", "")
    assert [character for character in text if not (character.isprintable() or character == "\n")] == []
    assert len(text.splitlines()) == 3
    if mode == "prod":
        assert json.loads(text.splitlines()[0])["title"] == EVIL  # nothing is lost
