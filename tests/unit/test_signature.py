import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import ConfigurationError
from bot.signature import BadSignature, Verifier, require_well_formed

# https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation
SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_github_s_own_example() -> None:
    assert Verifier(SECRET).sign(BODY) == SIGNATURE
    Verifier(SECRET).verify(BODY, SIGNATURE)


@pytest.mark.parametrize("secret", ["", " ", "\n\t"])
def test_an_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="CONDUCTOR_WEBHOOK_SECRET"):
        Verifier(secret)


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        "sha256=",
        SIGNATURE.removeprefix("sha256="),
        SIGNATURE[:-1],
        SIGNATURE + "0",
        SIGNATURE + "\n",
        " " + SIGNATURE,
        SIGNATURE.upper(),
        SIGNATURE.replace("sha256", "sha512"),
        SIGNATURE.replace("757107", "٧٥٧١٠٧"),  # digits to Unicode, not to us
        SIGNATURE.replace("7", "é", 1),
        SIGNATURE.replace("7", "\udcff", 1),  # a byte that is not UTF-8, as aiohttp hands it over
        "sha1=" + hmac.digest(SECRET.encode(), BODY, "sha1").hex(),
        "sha256=" + hashlib.sha256(BODY).hexdigest(),
    ],
)
def test_odd_signatures_are_refused(signature: str | None) -> None:
    with pytest.raises(BadSignature):
        Verifier(SECRET).verify(BODY, signature)


@pytest.mark.parametrize(
    "signature", [None, "", SIGNATURE[:-1], SIGNATURE + "\n", SIGNATURE.upper(), "sha1=" + "0" * 40]
)
def test_what_is_not_well_formed_is_refused_before_the_body_is_read(signature: str | None) -> None:
    with pytest.raises(BadSignature, match="X-Hub-Signature-256"):
        require_well_formed(signature)


def test_a_sha1_only_delivery_is_told_what_is_missing() -> None:
    with pytest.raises(BadSignature, match="Only a SHA-1"):
        require_well_formed(None, "sha1=0123")


@given(st.binary(max_size=200), st.binary(max_size=200), st.text(min_size=1).filter(str.strip))
def test_only_the_signed_body_passes(body: bytes, other: bytes, secret: str) -> None:
    verifier = Verifier(secret if secret.isprintable() else "secret")
    verifier.verify(body, verifier.sign(body))
    if body != other:
        with pytest.raises(BadSignature, match="does not match"):
            verifier.verify(other, verifier.sign(body))


def test_another_secret_does_not_pass() -> None:
    with pytest.raises(BadSignature, match="does not match"):
        Verifier("another").verify(BODY, SIGNATURE)
