"""What a provider's refusal means, and which key is next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bot.config import fixed_settings
from bot.errors import ConfigurationError
from runners.gateway.llm_keys import (
    LIMITED_REST,
    LONGEST_REST,
    REST,
    Key,
    KeyRing,
    Trouble,
    rest_of,
    retry_after,
    trouble,
)
from runners.gateway.llm_providers import Providers
from runners.gateway.llm_wires import WIRES


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b'{"error":{"message":"invalid x-api-key"}}', Trouble.key),
        (403, b"", Trouble.key),
        (402, b"", Trouble.key),
        (429, b'{"error":{"type":"insufficient_quota"}}', Trouble.key),
        (
            429,
            b'{"error":{"message":"You exceeded your current quota, please check your plan"}}',
            Trouble.key,
        ),
        (429, b'{"error":{"type":"usage_limit_reached"}}', Trouble.key),
        (429, b'{"error":{"type":"rate_limit_error","message":"slow down"}}', Trouble.limited),
        (400, b'{"error":{"message":"Your credit balance is too low to access the API"}}', Trouble.key),
        (400, b'{"error":{"message":"API key not valid. Please pass a valid API key."}}', Trouble.key),
        (400, b'{"error":{"message":"max_tokens: must be greater than 0"}}', Trouble.request),
        (404, b"", Trouble.request),
        (413, b"", Trouble.request),
        (500, b"", Trouble.provider),
        (503, b"", Trouble.provider),
        (529, b'{"error":{"type":"overloaded_error"}}', Trouble.provider),
        (501, b"", Trouble.request),
    ],
)
def test_what_a_refusal_means(status: int, body: bytes, expected: Trouble) -> None:
    assert trouble(status, body) is expected


def test_how_long_a_provider_wants_to_be_left_alone() -> None:
    assert retry_after({"Retry-After": "17"}, b"") == 17
    assert retry_after({"Retry-After": "17", "retry-after-ms": "250"}, b"") == 0.25
    google = b'{"error":{"details":[{"@type":"x.RetryInfo","retryDelay":"34.07s"}]}}'
    assert retry_after({}, google) == 34.07
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (retry_after({"Retry-After": at}, b"") or 0) <= 100
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    assert retry_after({"Retry-After": past}, b"") == 0
    for nonsense in ("soon", "-5", "1e9", "99999999999999", ""):
        assert retry_after({"Retry-After": nonsense}, b"") is None


def test_how_long_a_key_rests() -> None:
    assert rest_of(Trouble.key, None) == REST
    assert rest_of(Trouble.limited, None) == LIMITED_REST
    assert rest_of(Trouble.key, 7.0) == 7.0


def test_keys_take_turns() -> None:
    clock = 1000.0
    first, second = Key(value="a" * 8), Key(value="b" * 8)
    ring = KeyRing([first, second], now=lambda: clock)
    assert ring.pick() == first
    ring.rest(first, 60)
    assert ring.pick() == second
    assert ring.pick(refused={second.value}) is None, "the first one rests"
    ring.rest(second, 30)
    assert ring.pick() == second, "when all rest, the one whose rest ends first"
    clock += 61
    assert ring.pick() == first
    ring.rest(first, 10**9)
    clock += LONGEST_REST
    assert ring.pick() == first, "a provider cannot send a key to sleep for years"
    assert KeyRing([]).pick() is None


def test_a_key_is_not_shown() -> None:
    assert "hush" not in repr(Key(value="hush-hush"))


def test_a_subscription_token_is_a_bearer_token_with_a_flag() -> None:
    wire = WIRES["anthropic"]
    assert wire.auth("sk-ant-api03-x", "beta-1") == {"x-api-key": "sk-ant-api03-x"}
    shown = wire.auth("sk-ant-oat01-x", "beta-1, beta-2")
    assert shown == {
        "Authorization": "Bearer sk-ant-oat01-x",
        "anthropic-beta": "beta-1,beta-2,oauth-2025-04-20",
    }
    assert wire.auth("sk-ant-oat01-x", "oauth-2025-04-20")["anthropic-beta"] == "oauth-2025-04-20"


def test_which_provider_serves_which_agent() -> None:
    settings = fixed_settings(
        providers={
            "company": {"kind": "openai", "url": "http://llm.example/v1/", "keys": ["k-company-1"]},
            "anthropic": {"kind": "anthropic", "url": "http://a.example", "keys": ["k-1234567", "k-7654321"]},
        },
        agent_providers={"codex": "company"},
        llm_gemini_key="k-gemini-1",
    )
    providers = Providers(settings)
    company = providers.find("openai", "codex")
    assert company is not None
    assert (company.name, company.url, len(company.keys)) == ("company", "http://llm.example/v1", 1)
    others = providers.find("openai", "aider")
    assert others is not None
    assert (others.name, len(others.keys)) == ("openai", 0)
    # it does not speak that format
    foreign = providers.find("anthropic", "codex")
    assert foreign is not None
    assert [key.value for key in foreign.keys] == ["k-1234567", "k-7654321"]
    gemini = providers.find("gemini", "gemini")
    assert gemini is not None
    assert gemini.wire.auth("k-gemini-1", "") == {"x-goog-api-key": "k-gemini-1"}
    assert providers.find("company", "codex") is None, "a provider's name is no route"


def test_a_key_from_a_variable_that_is_not_set() -> None:
    settings = fixed_settings(
        providers={"x": {"kind": "openai", "url": "http://x", "keys": ["env:NOBODY_SET_THIS_KEY"]}}
    )
    with pytest.raises(ConfigurationError, match="NOBODY_SET_THIS_KEY"):
        Providers(settings)
    assert settings.secrets() == (), "another process may have it: no reason to fail here"


def test_keys_and_headers_of_providers_are_secrets() -> None:
    table = {"kind": "openai", "url": "http://x", "keys": ["k-secret-1"], "headers": {"X-Auth": "h-secret-2"}}
    settings = fixed_settings(providers={"x": table}, llm_gemini_key="g-secret-3")
    assert set(settings.secrets()) == {"k-secret-1", "h-secret-2", "g-secret-3"}
    assert "-secret-" not in repr(settings)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"agent_providers": {"codex": "compny"}}, "no provider 'compny'"),
        ({"providers": {"openai": {"kind": "gemini", "url": "http://x"}}}, "must be of kind 'openai'"),
        ({"providers": {"x": {"kind": "openai", "url": "x.example"}}}, "http:// or https://"),
        ({"providers": {"x": {"kind": "mistral", "url": "http://x"}}}, "kind"),
        ({"providers": {"x": {"kind": "openai", "url": "http://x", "key": "k"}}}, "key"),
        ({"budget_day": -1}, "budget_day"),
        ({"budget_day": float("nan")}, "budget_day"),
        ({"budget_unpriced": "maybe"}, "budget_unpriced"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fixed_settings(**values)
