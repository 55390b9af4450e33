"""Secrets that are split, quoted, encoded or reversed; and the ordinary text that only looks like one."""

import base64
import codecs
import hashlib
import json
import random
import textwrap
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.needles import MAX_GAP, SHORTEST, Needles, forms, shape
from bot.redact import MASK, MAX_ADDED, Redactor

KNOWN = "Zk9-hunter2/Correct+Horse_42"
TOKEN = "ghs_" + "a1B2c3D4e5F6" * 3  # known by its shape alone

DISGUISES = {
    "plain": lambda s: s,
    "capitals": str.upper,
    "reversed": lambda s: s[::-1],
    "hex": lambda s: s.encode().hex(),
    "hex in capitals": lambda s: s.encode().hex().upper(),
    "hex with colons": lambda s: s.encode().hex(":"),
    "hex escapes": lambda s: "".join(f"\\x{ord(c):02x}" for c in s),
    "hex numbers": lambda s: ", ".join(f"0x{ord(c):02x}" for c in s),
    "unicode escapes": lambda s: "".join(f"\\u{ord(c):04x}" for c in s),
    "code points": lambda s: "".join(f"\\u{{{ord(c):x}}}" for c in s),
    "percent": lambda s: "".join(f"%{ord(c):02X}" for c in s),
    "quoted for a URL": lambda s: quote(s, safe=""),
    "character references": lambda s: "".join(f"&#{ord(c)};" for c in s),
    "hexadecimal references": lambda s: "".join(f"&#x{ord(c):x};" for c in s),
    "decimal numbers": lambda s: str(list(s.encode())),
    "octal": lambda s: "".join(f"\\{ord(c):03o}" for c in s),
    "rot13": lambda s: codecs.encode(s, "rot13"),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 with lines": lambda s: "\n".join(textwrap.wrap(base64.b64encode(s.encode()).decode(), 8)),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64, second place": lambda s: base64.b64encode(b":" + s.encode() + b" z").decode(),
    "base64, third place": lambda s: base64.b64encode(b"u:" + s.encode() + b" ").decode(),
    "base64 twice": lambda s: base64.b64encode(base64.b64encode(s.encode())).decode(),
    "base64 of UTF-16": lambda s: base64.b64encode(s.encode("utf-16-le")).decode(),
    "base64 reversed": lambda s: base64.b64encode(s.encode()).decode()[::-1],
    "base64 of hex": lambda s: base64.b64encode(s.encode().hex().encode()).decode(),
    "base32": lambda s: base64.b32encode(s.encode()).decode(),
    "base85": lambda s: base64.b85encode(s.encode()).decode(),
    "Ascii85": lambda s: base64.a85encode(s.encode()).decode(),
    "hex twice": lambda s: s.encode().hex().encode().hex(),
    "hex of base64": lambda s: base64.b64encode(s.encode()).hex(),
    "JSON in JSON": lambda s: json.dumps(json.dumps([s])),
    "one a line": lambda s: "\n".join(s),
    "added with +": lambda s: f'"{s[:5]}" + "{s[5:9]}" +\n    "{s[9:]}"',
    "side by side": lambda s: f"'{s[:7]}'  '{s[7:]}'",
    "a list": lambda s: json.dumps(list(s)),
    "a continued line": lambda s: f"{s[:9]}\\\n      {s[9:]}",
    "a wrapped line": lambda s: f"{s[:9]}\r\n\t\t{s[9:]}",
    "in a comment block": lambda s: f" * {s[:9]}\n * {s[9:]}",
    "invisible characters": lambda s: "\u200b".join(s),
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
@pytest.mark.parametrize("frame", ["{}", "key: '{}';", "x = f({}, 1)\n", "ü {} ü"])
def test_a_known_value_is_found_in_every_disguise(disguise, frame: str) -> None:
    hidden = disguise(KNOWN)
    text = frame.replace("{}", hidden)
    redactor = Redactor([KNOWN])
    shown = redactor.text(text)
    assert MASK in shown
    # a base64 group at each side may tell a few bits
    assert len(shown.replace(MASK, "")) <= len(text) - len(hidden) + 12
    assert redactor.holds_secret(text)


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_the_same_in_a_stream_of_single_characters(disguise) -> None:
    text = f"before\nx = {disguise(KNOWN)} \nafter\n"
    stream = Redactor([KNOWN]).stream()
    shown = "".join(map(stream.feed, text)) + stream.flush()
    assert MASK in shown
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert len(shown) <= len("before\nx =  \nafter\n") + len(MASK) + 12


@pytest.mark.parametrize(
    "name",
    [
        *(
            "plain",
            "reversed",
            "hex",
            "hex in capitals",
            "hex escapes",
            "unicode escapes",
            "code points",
            "percent",
        ),
        *(
            "character references",
            "hexadecimal references",
            "base64",
            "base64 for URLs",
            "base64, second place",
        ),
        *("base64, third place", "added with +", "side by side", "a continued line", "invisible characters"),
    ],
)
@pytest.mark.parametrize("token", [TOKEN, "sk-ant-api03-" + "q-W_4" * 12, "xoxb-" + "1234567890-aB" * 3])
def test_an_unknown_token_is_found_by_its_shape_in_disguise(name: str, token: str) -> None:
    redactor = Redactor()
    text = f"x = {DISGUISES[name](token)} ;"
    shown = redactor.text(text)
    assert MASK in shown
    assert token[8:] not in shown
    assert len(shown) <= len("x =  ;") + len(MASK) + 12
    assert redactor.holds_secret(text)


secrets = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+/=.", min_size=SHORTEST
).filter(lambda value: len(shape(value)) >= SHORTEST)


@settings(deadline=None)
@given(
    secrets,
    st.lists(st.integers(1, 8), max_size=12),
    st.sampled_from(["\n", " ", '" + "', "',\n  '", "\\\n"]),
)
def test_any_value_is_found_however_it_is_cut(secret: str, sizes: list[int], gap: str) -> None:
    pieces, rest = [], secret
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    text = "say " + gap.join(filter(None, (*pieces, rest))) + " now"
    shown = Redactor([secret]).text(text)
    assert MASK in shown
    assert shape(secret) not in shape(shown.replace(MASK, ""))


@settings(deadline=None)
@given(secrets, st.binary(max_size=20), st.binary(max_size=20), st.booleans())
def test_any_value_is_found_inside_any_base64(secret: str, before: bytes, after: bytes, urls: bool) -> None:
    encode = base64.urlsafe_b64encode if urls else base64.b64encode
    hidden = encode(before + secret.encode() + after).decode()
    shown = Redactor([secret]).text(f"<{hidden}>")
    cores = [form for form in forms(secret) if len(form) >= SHORTEST and form in shape(hidden)]
    assert bool(cores) == (MASK in shown)
    assert not [core for core in cores if core in shape(shown.replace(MASK, " "))]


@settings(deadline=None)
@given(st.lists(secrets, max_size=6), st.text("abcAB12-. \n", max_size=300), st.randoms())
def test_needles_find_what_a_plain_search_finds(values: list[str], text: str, chance: random.Random) -> None:
    for value in values:
        at = chance.randint(0, len(text))
        text = text[:at] + value + text[at:]
    needles, hay = Needles(), shape(text)
    needles.add(shape(value) for value in values)
    expected = {
        (at, at + len(form))
        for form in set(map(shape, values))
        for at in range(len(hay))
        if hay.startswith(form, at)
    }
    assert set(needles.find(hay)) == expected
    needles.remove(shape(value) for value in values)
    assert needles.find(hay) == []


def test_a_value_that_is_torn_too_far_apart_is_another_text() -> None:
    text = KNOWN[:9] + " " * (MAX_GAP + 1) + KNOWN[9:]
    assert Redactor([KNOWN]).text(text) == text


def test_a_value_split_over_lines_is_found_in_a_stream_and_other_lines_are_not_late() -> None:
    stream = Redactor([KNOWN]).stream()
    assert stream.feed("building\n") == "building\n"
    assert stream.feed(f"key: {KNOWN[:12]}\n") == "key: "
    assert stream.feed(f"{KNOWN[12:]}\ndone\n") == f"{MASK}\ndone\n"
    assert stream.feed(f"{KNOWN[:8]}\n") == ""
    assert stream.feed("something else\n") == f"{KNOWN[:8]}\nsomething else\n"


def test_of_a_value_split_after_its_first_characters_only_those_are_shown() -> None:
    stream = Redactor([KNOWN]).stream()
    assert stream.feed(f"{KNOWN[:2]}\n") + stream.feed(f"{KNOWN[2:]}\n") == f"{KNOWN[:2]}\n{MASK}\n"


def test_old_tokens_are_forgotten_and_lasting_values_never() -> None:
    redactor = Redactor(["a-lasting-secret"])
    for number in range(MAX_ADDED + 10):
        redactor.add(f"minted-token-number-{number}")
    assert redactor.text("minted-token-number-3") != MASK
    assert redactor.text(f"minted-token-number-{MAX_ADDED}") == MASK
    assert redactor.text("a-lasting-secret") == MASK


# --- what is no secret

LOCK = {
    "packages": {
        f"node_modules/p{number}": {
            "resolved": f"https://registry.example.org/p{number}/-/p{number}-1.2.{number}.tgz",
            "integrity": "sha512-" + base64.b64encode(hashlib.sha512(bytes([number])).digest()).decode(),
            "shasum": hashlib.sha1(bytes([number])).hexdigest(),
        }
        for number in range(200)
    }
}
ORDINARY = {
    "a lock file": json.dumps(LOCK, indent=2),
    "hashes of requirements": "\n".join(
        f"p{n}==1.{n} --hash=sha256:{hashlib.sha256(bytes([n])).hexdigest()}" for n in range(200)
    ),
    "go sums": "\n".join(
        f"example.org/m{n} v1.0.{n} h1:{base64.b64encode(hashlib.sha256(bytes([n])).digest()).decode()}"
        for n in range(200)
    ),
    "an image": "data:image/png;base64," + base64.b64encode(random.Random(1).randbytes(200_000)).decode(),
    "a source map": json.dumps({"mappings": "AAAA,SAASA,GAAGC,EAAGC,GACd;" * 3000}),
    "minified": "".join(
        f'function a{n}(e,t){{var n="a"+"b",r=\'x\'+e;return n?r.sk-t:{{"k":[1,2,"q"]}}}}'
        for n in range(2000)
    ),
    "style": ".sk-circle-fade-dot-animation{animation:sk-circle-fade-dot 1.2s} .risk-assessment-of-long-names{}",
    "a compose file": "DATABASE_URL: postgres://postgres:postgres@db:5432/app\nREDIS: redis://:${PASSWORD}@redis",
    "documentation": "curl -H 'Authorization: Bearer <TOKEN>' -H \"X-Api-Key: $KEY\" AKIAIOSFODNN7EXAMPLE",
    "a scanner": '["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-", "xoxb-", "AKIA"]',
    "a marker": 'if text.startswith("-----BEGIN OPENSSH PRIVATE KEY-----"):',
    "a certificate": "-----BEGIN CERTIFICATE-----\n"
    + "MIIBszCCAVmgAwIBAgI\n" * 30
    + "-----END CERTIFICATE-----",
    "identifiers": "\n".join(str(hashlib.md5(bytes([n])).hexdigest()) for n in range(200)),
    "an escaped page": "%3Cdiv%20class%3D%22a%22%3E" * 500 + "\\u003cb\\u003e" * 500,
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_files_may_be_published(text: str) -> None:
    redactor = Redactor([KNOWN, "another-secret-of-the-server", "hunter2!"])
    assert not redactor.holds_secret(text)


@pytest.mark.parametrize(
    "name",
    ["a lock file", "an image", "minified", "style", "a scanner", "a source map", "identifiers", "go sums"],
)
def test_ordinary_text_is_shown_as_it_is(name: str) -> None:
    assert Redactor([KNOWN]).text(ORDINARY[name]) == ORDINARY[name]


def test_this_repositorys_own_code_may_be_published() -> None:
    root = Path(__file__).parents[2]
    redactor = Redactor([KNOWN])
    refused = [str(path) for path in (root / "bot").rglob("*.py") if redactor.holds_secret(path.read_text())]
    assert refused == []


MEGABYTE = 2**20
HOSTILE = {
    "a value's beginning, over and over": KNOWN[:-1] * (MEGABYTE // len(KNOWN)),
    "quotes": '"+"' * (MEGABYTE // 3),
    "opening marks": "-----BEGIN PRIVATE KEY-----" * (MEGABYTE // 27),
    "addresses": "http://a:" * (MEGABYTE // 9),
    "half tokens": "ghs_" * (MEGABYTE // 4),
    "half web tokens": "eyJabcdefgh." * (MEGABYTE // 12),
    "one long run": "A" * MEGABYTE,
    "one long number": "0" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "backslashes": "\\" * MEGABYTE,
    "short lines": "\n" * MEGABYTE,
    "bearers": "bearer " * (MEGABYTE // 7),
}


@pytest.mark.timeout(120)  # what is quadratic would take hours
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_makes_the_search_slow(text: str) -> None:
    redactor = Redactor([KNOWN])
    redactor.text(text)
    stream = redactor.stream()
    for at in range(0, len(text), 4096):
        stream.feed(text[at : at + 4096])
    stream.flush()
