import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.redact import MASK, Redactor

SECRET = 'p&ss/w+rd "zwölf" \\ 42'
KEY_LINES = [f"MIIEowIBAAKCAQEA{index:02}" + "Qx/+" * 11 for index in range(20)]
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join(KEY_LINES) + "\n-----END RSA PRIVATE KEY-----\n"
LONG_INSTALLATION_TOKEN = "ghs_1234567_eyJhbGciOiJ-." + "Ab3_-" * 60 + "." + "Xy9-_" * 40

SHAPES = {
    "classic installation token": "ghs_" + "a1B2" * 9,
    "long installation token": LONG_INSTALLATION_TOKEN,
    "classic personal token": "ghp_" + "Z9y8" * 9,
    "oauth token": "gho_" + "Z9y8" * 9,
    "user token": "ghu_" + "Z9y8" * 9,
    "refresh token": "ghr_" + "Z9y8" * 19,
    "fine-grained token": "github_pat_11ABCDEFG0" + "a_B1" * 16,
    "anthropic": "sk-ant-api03-" + "q-W_" * 20,
    "openai": "sk-" + "T3st" * 12,
    "openai project": "sk-proj-" + "T3st" * 12,
    "slack bot": "xoxb-" + "123456789012-" + "a" * 24,
    "slack app": "xapp-" + "1-A0" * 8,
    "aws key id": "AKIA" + "I0SFODNN7EXAMPLE"[:16],
    "aws session key id": "ASIA" + "I0SFODNN7EXAMPLE"[:16],
    "google": "AIza" + "S" * 35,
    "jwt": "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxMjM0NSJ9." + "s1G_-" * 20,
    "pem": PEM.strip(),
    "pem escaped": PEM.strip().replace("\n", "\\n"),
}


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "frame", ["{}", "x {} y", '{{"a":"{}"}}', "KEY={}", "'{}'", "({})", "`{}`", "{}, ", "a\\n{}"]
)
def test_credentials_are_known_by_their_shape(secret: str, frame: str) -> None:
    assert Redactor().text(frame.format(secret)) == frame.format(MASK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {MASK}"),
        ("authorization: basic dXNlcjpwYXNz", f"authorization: basic {MASK}"),
        ('{"Authorization": "token abcdef123"}', f'{{"Authorization": "token {MASK}"}}'),
        ('{\\"Authorization\\": \\"Bearer abcdef123\\"}', f'{{\\"Authorization\\": \\"Bearer {MASK}\\"}}'),
        ("x-api-key: 0123456789", f"x-api-key: {MASK}"),
        ("postgresql+asyncpg://bot:hunter2@db/x", f"postgresql+asyncpg://bot:{MASK}@db/x"),
        ("redis://:hunter2@127.0.0.1:6379/0", f"redis://:{MASK}@127.0.0.1:6379/0"),
        ("https://x-access-token:abc@github.com/o/r", f"https://x-access-token:{MASK}@github.com/o/r"),
        ("aws_secret_access_key = " + "aB3/" * 10, f"aws_secret_access_key = {MASK}"),
    ],
)
def test_only_the_value_goes_where_a_label_tells_it(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A task-list, a risk-assessment and sk-short stay.",
        "https://github.com/octo/repo/pull/1#issuecomment-2",
        "mail someone@example.com or git@github.com:o/r.git",
        "the bearer of bad news",
        "0123456789abcdef0123456789abcdef01234567",
        "ghost_writer and ghp_ alone",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor(["a secret that is not there"]).text(text) == text


def test_a_key_that_is_cut_off_goes_too() -> None:
    assert Redactor().text("see: " + PEM[:200]) == f"see: {MASK}"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        base64.b64encode(SECRET.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    ],
)
def test_known_values_are_found_in_every_form(form: str) -> None:
    assert Redactor([SECRET]).text(f"<{form}>") == f"<{MASK}>"


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(min_size=10, max_size=40).map(bytes.hex))
def test_a_known_value_is_found_inside_longer_base64(before: bytes, after: bytes, secret: str) -> None:
    encoded = base64.b64encode(before + secret.encode() + after).decode()
    shown = Redactor([secret]).text(encoded)
    assert MASK in shown
    # what is left tells less than one group at each side
    assert len(shown.replace(MASK, "")) <= len(base64.b64encode(before + after)) + 12


def test_every_line_of_a_known_key_is_known() -> None:
    assert Redactor([PEM]).text(f"tail: {KEY_LINES[7]}") == f"tail: {MASK}"


def test_short_values_are_ignored() -> None:
    assert Redactor(["", "a", "12345"]).text("a 12345") == "a 12345"
    assert Redactor(["123456"]).text("a 123456") == f"a {MASK}"


def test_values_come_and_go() -> None:
    redactor = Redactor()
    redactor.add("short-lived value")
    assert redactor.text("a short-lived value") == f"a {MASK}"
    redactor.discard("short-lived value")
    redactor.discard("never known")
    assert redactor.text("a short-lived value") == "a short-lived value"


def test_the_longer_of_two_values_wins() -> None:
    assert Redactor(["secret", "secret-extended"]).text("secret-extended") == MASK


words = st.sampled_from(
    [
        *SHAPES.values(),
        SECRET,
        PEM,
        quote(SECRET),
        "word",
        " ",
        "\n",
        "-----BEGIN",
        "eyJ",
        "gh",
        "://",
        "ü",
        '"',
        "\\n",
        "Authorization: Bearer abcdef123456",
        "https://u:hunter2@h/",
    ]
)
CANARIES = [
    SECRET,
    quote(SECRET),
    *KEY_LINES,
    *(value for name, value in SHAPES.items() if "pem" not in name),
]


gaps = st.sampled_from([" ", "\n", '"', ", ", "=", "(", "", "x"])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(words | gaps, max_size=20).map("".join),
    st.lists(st.integers(1, 4000), max_size=20),
    st.booleans(),
)
def test_chunk_borders_never_let_a_secret_through(text: str, sizes: list[int], tiny: bool) -> None:
    redactor = Redactor([SECRET, PEM])
    stream = redactor.stream()
    shown, rest = "", text
    for size in [3] * (len(text) // 3) if tiny else sizes:
        shown += stream.feed(rest[:size])
        rest = rest[size:]
    shown += stream.feed(rest) + stream.flush()
    assert shown == redactor.text(text)


@settings(deadline=None)
@given(st.lists(words, max_size=12), st.sampled_from([" ", "\n", '"', ", ", "=", "\\n"]), st.integers(1, 500))
def test_no_credential_comes_out_of_a_stream(parts: list[str], gap: str, size: int) -> None:
    stream, text = Redactor([SECRET, PEM]).stream(), gap.join(parts)
    shown = "".join(stream.feed(text[at : at + size]) for at in range(0, len(text), size)) + stream.flush()
    assert not [canary for canary in CANARIES if canary in shown]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 90_000), st.integers(100, 30_000), st.sampled_from([LONG_INSTALLATION_TOKEN, SECRET]))
def test_a_line_without_an_end_is_cut_beside_secrets(before: int, size: int, secret: str) -> None:
    redactor = Redactor([SECRET])
    stream = redactor.stream()
    text = "x " * (before // 2) + secret + " y" * 20_000
    shown = "".join(stream.feed(text[at : at + size]) for at in range(0, len(text), size)) + stream.flush()
    assert shown == text.replace(secret, MASK)


def test_an_endless_line_comes_out_and_is_not_kept() -> None:
    stream = Redactor().stream()
    shown = sum(len(stream.feed("word " * 2000)) for _ in range(100))
    assert shown > 100 * 10_000 - 80 * 1024


def test_an_endless_key_is_dropped_not_kept() -> None:
    stream = Redactor().stream()
    shown = stream.feed("before\n-----BEGIN PRIVATE KEY-----\n")
    for _ in range(3000):
        shown += stream.feed("QUJD" * 16 + "\n")
    shown += stream.feed("-----END PRIVATE KEY-----\nafter\n")
    assert shown == f"before\n{MASK}\nafter\n"


def test_what_follows_a_key_that_never_ends_is_shown() -> None:
    redactor = Redactor()
    text = "-----BEGIN PRIVATE KEY-----\n" + ("QUJD" * 16 + "\n") * 300 + "(and so on)\nafter\n"
    stream = redactor.stream()
    shown = "".join(stream.feed(text[at : at + 100]) for at in range(0, len(text), 100)) + stream.flush()
    assert shown == redactor.text(text) == f"{MASK}(and so on)\nafter\n"


def test_whole_lines_come_out_at_once() -> None:
    stream = Redactor().stream()
    assert stream.feed("one\ntwo") == "one\n"
    assert stream.feed(" three\n") == "two three\n"
    assert stream.flush() == ""
