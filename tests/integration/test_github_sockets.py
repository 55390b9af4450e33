"""The GitHub client on real sockets: servers that refuse, hang up, drip, cut short and compress."""

import asyncio
import gzip
import json
import socket
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bot.errors import GitHubUnavailable
from bot.github import GitHub
from bot.github_errors import OutcomeUnknown
from bot.github_transport import Patience

TOKEN = json.dumps({"token": "ghs_x", "expires_at": "2099-01-01T00:00:00Z"}).encode()


@pytest.fixture(scope="module")
def pem():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def answer(status, body=b"", *headers):
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Answers with what ``script`` says, one entry a request (tokens apart): bytes, or a coroutine function."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.tasks = set()

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (field.partition(": ") for field in fields if field)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if "access_tokens" in line:
                    writer.write(answer(201, TOKEN))
                    continue
                self.requests.append((line.split()[0], headers, body))
                step = self.script.pop(0)
                if callable(step):
                    await step(writer)
                    return
                writer.write(step)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def hang_up(_writer):
    """Closes without a word."""


async def say_nothing(_writer):
    await asyncio.Event().wait()


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def cut_short(writer):
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{"a":')
    await writer.drain()


async def answer_and_close(writer):
    """A kept-alive connection that the server gives up without having said so."""
    writer.write(answer(200, b"{}"))
    await writer.drain()


async def no_wait(_seconds):
    await asyncio.sleep(0)


def github(url, pem, **patience):
    values = {"tries": 3, "request_timeout": 20.0} | patience
    return GitHub(url, "1", pem, patience=Patience(**values), write_spacing=0, sleep=no_wait)


@pytest.mark.parametrize("trouble", [hang_up, cut_short])
async def test_a_get_survives_a_broken_connection(pem, trouble):
    server = Server(trouble, trouble, answer(200, b'{"a": 1}'))
    async with server.running() as url, github(url, pem) as hub:
        assert await hub.installation(7).getitem("/repos/o/r") == {"a": 1}
    assert len(server.requests) == 3


@pytest.mark.parametrize("trouble", [hang_up, cut_short])
async def test_a_post_over_a_broken_connection_is_sent_once(pem, trouble):
    server = Server(trouble, answer(201, b"{}"))
    async with server.running() as url, github(url, pem) as hub:
        with pytest.raises(OutcomeUnknown):
            await hub.installation(7).post("/repos/o/r/issues", data={"title": "t"})
    assert [(method, json.loads(body)) for method, _, body in server.requests] == [("POST", {"title": "t"})]


@pytest.mark.parametrize("trouble", [say_nothing, drip])
async def test_a_server_that_never_ends_is_left(pem, trouble):
    server = Server(trouble, trouble)
    async with server.running() as url, github(url, pem, tries=2, request_timeout=0.5) as hub:
        with pytest.raises(GitHubUnavailable, match="no answer in time"):
            await hub.installation(7).getitem("/repos/o/r")
    assert len(server.requests) == 2


async def test_a_post_after_the_server_dropped_the_idle_connection(pem):
    server = Server(answer_and_close, answer(201, b'{"number": 1}'))
    async with server.running() as url, github(url, pem) as hub:
        client = hub.installation(7)
        await client.getitem("/repos/o/r")
        await asyncio.gather(*server.tasks)  # that connection is closed
        assert await client.post("/repos/o/r/issues", data={}) == {"number": 1}


async def test_nobody_listens(pem):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with github(f"http://127.0.0.1:{port}", pem) as hub:
        with pytest.raises(GitHubUnavailable, match="was tried 3 times") as caught:
            await hub.app_client.getitem("/app")
    assert "CONDUCTOR_GITHUB_API_URL" in caught.value.hint
    assert not isinstance(caught.value, OutcomeUnknown)


async def test_compressed_answers_and_their_304(pem):
    body = gzip.compress(b'{"a": [1, 2]}')
    compressed = answer(200, body, "Content-Encoding: gzip", 'ETag: "t"')
    server = Server(compressed, b'HTTP/1.1 304 Not Modified\r\nETag: "t"\r\n\r\n')
    async with server.running() as url, github(url, pem) as hub:
        client = hub.installation(7)
        assert await client.getitem("/repos/o/r") == {"a": [1, 2]}
        assert await client.getitem("/repos/o/r") == {"a": [1, 2]}
    assert server.requests[1][1]["if-none-match"] == '"t"'


async def test_loopback_is_reached_without_the_proxy(pem, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = Server(answer(200, b"{}"))
    async with server.running() as url, github(url, pem) as hub:
        await hub.app_client.getitem("/app")
    assert len(server.requests) == 1


async def test_another_host_is_reached_through_the_proxy(pem, monkeypatch):
    server = Server(answer(200, b'{"id": 1}'))
    async with server.running() as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with github("http://ghe.invalid/api/v3", pem) as hub:
            assert await hub.app_client.getitem("/app") == {"id": 1}
    assert server.requests[0][1]["host"] == "ghe.invalid"
