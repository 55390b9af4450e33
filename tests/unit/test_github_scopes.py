"""What each client's tokens are for: many repositories and nothing but looking, or one repository and what it needs."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bot.errors import InfrastructureError
from bot.github import GitHub
from bot.github_auth import InstallationToken, Scope
from bot.github_errors import NotFound, RateLimited, Unprocessable
from bot.model import Repo
from bot.permissions import CHANGE, READ, SPEAK, within

API = "https://github.test"
REPO = Repo(owner="o", name="r", id=99, installation_id=7)
MINT = "/app/installations/7/access_tokens"
NOT_GRANTED = httpx.Response(
    422, json={"message": "The permissions requested are not granted to this installation."}
)


@pytest.fixture(scope="module")
def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


class Hub:
    """GitHub's edge: tokens are numbered, and everything below /repos is answered."""

    def __init__(self) -> None:
        self.router = respx.MockRouter(assert_all_called=False)
        self.minted: list[dict[str, Any]] = []
        self.refusals: list[httpx.Response] = []
        self.told: list[tuple[Scope, int]] = []
        self.broken = False
        self.router.post(f"{API}{MINT}").mock(side_effect=self._mint)
        self.calls = self.router.route(url__startswith=f"{API}/repos").respond(json={"id": 1})

    def _mint(self, request: httpx.Request) -> httpx.Response:
        if self.refusals:
            return self.refusals.pop(0)
        body = json.loads(request.content)
        self.minted.append(body)
        made = {"token": f"ghs_{len(self.minted)}", "expires_at": "2099-01-01T00:00:00Z"}
        return httpx.Response(201, json=made | {"permissions": body.get("permissions", {})})

    async def record(self, scope: Scope, token: InstallationToken) -> None:
        assert len(self.calls.calls) == len(self.told), "before anybody has it"
        if self.broken:
            raise InfrastructureError("The audit trail cannot be written.")
        self.told.append((scope, int(token.value.removeprefix("ghs_"))))


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def github(hub: Hub, pem: str) -> AsyncIterator[GitHub]:
    transport = httpx.MockTransport(hub.router.async_handler)
    async with GitHub(API, "1", pem, transport=transport, write_spacing=0, on_mint=hub.record) as github:
        yield github


async def test_who_looks_everywhere_can_change_nothing(hub: Hub, github: GitHub) -> None:
    await github.reader(7).getitem("/repos/o/r")
    assert hub.minted == [{"permissions": dict(READ)}]
    assert set(READ.values()) == {"read"}


@pytest.mark.parametrize("permissions", [SPEAK, CHANGE])
async def test_who_changes_something_sees_one_repository(hub: Hub, github: GitHub, permissions: Any) -> None:
    await github.repository(REPO, permissions).post("/repos/o/r/issues", data={})
    assert hub.minted == [{"repository_ids": [99], "permissions": dict(permissions)}]


async def test_each_scope_has_a_token_of_its_own_that_is_kept(hub: Hub, github: GitHub) -> None:
    other = Repo(owner="o", name="s", id=100, installation_id=7)
    for _ in range(2):
        await github.reader(7).getitem("/repos/o/r")
        for repo, permissions in itertools.product((REPO, other), (SPEAK, CHANGE)):
            await github.repository(repo, permissions).getitem("/repos/o/r")
    assert len(hub.minted) == 5
    used = [call.request.headers["authorization"].removeprefix("Bearer ") for call in hub.calls.calls]
    assert used == [f"ghs_{number}" for number in (1, 2, 3, 4, 5)] * 2


async def test_forgetting_an_installation_drops_them_all(hub: Hub, github: GitHub) -> None:
    for _ in range(2):
        await github.reader(7).getitem("/repos/o/r")
        await github.repository(REPO, SPEAK).getitem("/repos/o/r")
        github.forget(7)
    assert len(hub.minted) == 4


async def test_they_count_against_the_limits_of_their_installation_together(hub: Hub, github: GitHub) -> None:
    spent = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 3000)}
    hub.calls.respond(403, json={"message": "API rate limit exceeded"}, headers=spent)
    for client in (github.reader(7), github.repository(REPO, SPEAK)):
        with pytest.raises(RateLimited):
            await client.getitem("/repos/o/r")
    assert hub.calls.call_count == 1, "the second was not even sent"


async def test_a_permission_that_was_not_accepted_yet_is_left_out(hub: Hub, github: GitHub) -> None:
    hub.refusals = [NOT_GRANTED]
    granted = {"contents": "write", "issues": "read", "metadata": "read"}
    asked = hub.router.get(f"{API}/app/installations/7").respond(json={"permissions": granted})
    client = github.repository(REPO, {"contents": "write", "issues": "write", "checks": "write"})
    await client.getitem("/repos/o/r")
    await client.getitem("/repos/o/r")
    assert hub.minted == [{"repository_ids": [99], "permissions": {"contents": "write", "issues": "read"}}]
    assert asked.call_count == 1


@pytest.mark.parametrize("granted", [dict(SPEAK), {}, {"contents": "read"}])
async def test_a_repository_that_is_not_there_is_not_found(
    hub: Hub, github: GitHub, granted: dict[str, str]
) -> None:
    hub.refusals = [NOT_GRANTED, NOT_GRANTED]
    hub.router.get(f"{API}/app/installations/7").respond(json={"permissions": granted})
    with pytest.raises(NotFound, match="access_tokens") as told:
        await github.repository(REPO, SPEAK).getitem("/repos/o/r")
    assert "Add the repository to the App's installation" in told.value.hint
    assert (hub.minted, len(hub.calls.calls)) == ([], 0)


async def test_a_token_that_was_asked_for_by_name_is_never_less(hub: Hub, github: GitHub) -> None:
    hub.refusals = [NOT_GRANTED]
    with pytest.raises(Unprocessable):
        await github.token(7, repository_id=99, permissions={"contents": "write"})


async def test_a_token_is_told_before_anybody_has_it(hub: Hub, github: GitHub) -> None:
    await github.repository(REPO, SPEAK).getitem("/repos/o/r")
    ((scope, number),) = hub.told
    assert (scope.installation, scope.repository, dict(scope.permissions), number) == (7, 99, dict(SPEAK), 1)


async def test_a_token_that_cannot_be_told_is_not_used(hub: Hub, github: GitHub) -> None:
    hub.broken = True
    with pytest.raises(InfrastructureError, match="audit trail"):
        await github.reader(7).getitem("/repos/o/r")
    with pytest.raises(InfrastructureError, match="audit trail"):
        await github.token(7, repository_id=99, permissions={"contents": "read"}, fresh=True)
    assert len(hub.calls.calls) == 0
    hub.broken = False
    await github.reader(7).getitem("/repos/o/r")
    assert hub.calls.calls[0].request.headers["authorization"] == "Bearer ghs_3", "nobody got the first two"


@pytest.mark.parametrize(
    ("granted", "left"),
    [
        ({}, {}),
        ({"issues": "write", "checks": "write", "contents": "write", "pull_requests": "admin"}, dict(SPEAK)),
        ({"issues": "read"}, {"issues": "read"}),
        ({"issues": "admin", "secrets": "write"}, {"issues": "write"}),
    ],
)
def test_what_is_left_of_permissions(granted: dict[str, str], left: dict[str, str]) -> None:
    assert within(SPEAK, granted) == left
