"""Whatever has the shape of a credential, also where it is quoted in pieces, escaped, encoded or reversed.

The shapes follow what the issuers publish, for GitHub:
https://github.blog/engineering/behind-githubs-new-authentication-token-formats/ and, for the long
``ghs_<app>_<jwt>`` form of installation tokens, https://docs.github.com/en/apps.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Where a secret stands in a text."""

    start: int
    end: int
    context: int  # where that begins which shows that it is one: at `start` or before


PEM_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----"
PEM_BODY = r"(?:\\[nr]|[A-Za-z0-9+/=\s:,-])"
PEM_END = r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----"
_IS = (
    r"[\"'\\]{0,3}[ \t]{0,4}[:=][ \t]{0,4}[\"'\\]{0,3}"  # = or : with the quotes of shells and JSON around it
)


class _Kind(NamedTuple):
    """One shape. Quantifiers have upper bounds: no text makes the search slow, a stream holds back only so much."""

    hints: tuple[str, ...]  # without one of these, in lower case, there is no match: the quick way out
    pattern: re.Pattern[str]  # a group, if there is one, is the secret; what stands before it stays readable
    at_word: bool = True  # only where a word begins


def _kind(hints: str, pattern: str, *, at_word: bool = True) -> _Kind:
    return _Kind(tuple(hints.split()), re.compile(pattern), at_word)


#: Each begins with the same characters, which makes the search fast.
_SHAPES = (
    _kind("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9_.-]{15,2047}[A-Za-z0-9_-]"),
    _kind("github_pat_", r"github_pat_[A-Za-z0-9_]{20,255}"),
    # OpenAI sk-…, sk-proj-…; Anthropic sk-ant-…; a name in CSS has no digit
    _kind("sk-", r"sk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,512}"),
    # Slack
    _kind("xox xapp-", r"x(?:ox[abeoprs]|app)-(?=[A-Za-z-]{0,200}[0-9])[A-Za-z0-9-]{10,512}"),
    _kind("akia asia", r"A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Z0-9])"),  # AWS access key ids
    _kind("aiza", r"AIza[A-Za-z0-9_-]{35}"),  # Google
    # a JWT
    _kind("eyj", r"eyJ[A-Za-z0-9_-]{8,2048}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{16,1024}"),
    # a PEM private key, whole or cut off, or with its line ends escaped as in JSON
    _kind(
        "-----begin",
        rf"{PEM_BEGIN}(?:{PEM_BODY}*?{PEM_END}|{PEM_BODY}*)",
        at_word=False,
    ),
)
_LABELLED = (
    _kind(
        "authorization",
        rf"(?i:\b(?:proxy-)?authorization\b{_IS}(?:bearer|basic|token)[ \t]{{1,4}})([\w.~+/=:-]{{6,4096}})",
    ),
    _kind("bearer", r"(?i:\bbearer[ \t]{1,4})([\w.~+/=-]{20,4096})"),
    _kind("api-key", rf"(?i:\bx-(?:api|goog-api)-key\b{_IS})([\w.~+/=-]{{6,4096}})"),
    _kind(
        "accesskey access_key access-key",
        rf"(?i:\baws[_-]?secret[_-]?access[_-]?key\b{_IS})([A-Za-z0-9/+=]{{40}})",
    ),
    _kind("://", r"://[^/\s:@\"'<>]{0,256}:([^/\s@\"'<>]{1,1024})@", at_word=False),
)
#: Longest scheme of a URL that is looked at.
_SCHEME = 32

# --- disguises

#: What stands between two pieces of one string: a closing and an opening quote with an operator, a continued line,
#: characters that nobody sees; and characters that are written as escapes.
_BETWEEN = re.compile(
    r"[\"'`][\s\\+.&|]{0,64}[bfru]{0,2}[\"'`]"
    r"|\\\r?\n[ \t]{0,64}"
    r"|[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]+"
    r"|%(?P<a>[2-7][0-9A-Fa-f])"
    r"|\\x(?P<b>[2-7][0-9A-Fa-f])"
    r"|\\u00(?P<c>[2-7][0-9A-Fa-f])"
    r"|\\u\{0{0,4}(?P<d>[2-7][0-9A-Fa-f])\}"
    r"|&#x0{0,4}(?P<e>[2-7][0-9A-Fa-f]);"
    r"|&#0{0,4}(?P<f>[1-9][0-9]{1,2});"
)
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{28,}")
_HEX = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{40,}")
_URLSAFE = str.maketrans("-_", "+/")
_BACKWARDS = tuple(
    hint[::-1]
    for hint in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-ant-", "sk-proj-", "xox", "AIza", "eyJ")
)  # fmt: skip
#: A text that ends like this may go on with the rest of a credential in the next line.
_OPEN = re.compile(
    r"(?:gh[pousr]_|github_pat_|sk-|xox[abeoprs]-|xapp-|AKIA|ASIA|AIza|eyJ)[\w.-]{0,300}[\"'`]?[\s\\+.&|]{0,64}\Z"
)
_OPEN_REACH = 500


def credentials(text: str, *, sure: bool = False) -> Iterator[Span]:
    """Where ``text`` holds something with the shape of a credential, in no order; spans may overlap.

    ``sure``: leave out what is more often an example than a secret (``postgres://user:password@db``).
    """
    for match in _matches(text, _SHAPES + _LABELLED):
        start, end = match.span(match.lastindex or 0)
        if not sure or _is_sure(match, text[start:end]):
            # the scheme of a URL stands before its match
            yield Span(
                start, end, max(0, match.start() - _SCHEME) if match[0].startswith("://") else match.start()
            )
    yield from _in_pieces(text)
    yield from _encoded(text)
    if any(hint in text for hint in _BACKWARDS):
        for match in _matches(text[::-1], _SHAPES):
            yield _span(len(text) - match.end(), len(text) - match.start())


def _matches(text: str, kinds: tuple[_Kind, ...]) -> Iterator[re.Match[str]]:
    lower = text.lower()
    for kind in kinds:
        if any(hint in lower for hint in kind.hints):
            for match in kind.pattern.finditer(text):
                if not kind.at_word or _at_word(text, match.start()):
                    yield match


def _at_word(text: str, start: int) -> bool:
    """Whether a word begins at ``start``, also after an escaped line end in JSON."""
    before = text[max(0, start - 2) : start]
    return not re.match(r"[A-Za-z0-9]", before[-1:]) or re.fullmatch(r"\\[nrt]", before) is not None


def open_end(text: str) -> int | None:
    """Where a string begins that may be a credential's first part, when ``text`` ends within it."""
    found = _OPEN.search(text, max(0, len(text) - _OPEN_REACH))
    return found.start() if found else None


def _span(start: int, end: int) -> Span:
    return Span(start, end, start)


def _is_sure(match: re.Match[str], value: str) -> bool:
    if match.lastindex:
        return _looks_random(value)
    if value.startswith("-----BEGIN"):
        return len(value) > 128  # the marker alone is no key
    mixed = re.search(r"[a-z]", value) and re.search(r"[A-Z]", value)
    # AWS' own documentation uses names with this end
    return bool(mixed or re.search(r"[0-9]", value)) and not value.endswith("EXAMPLE")


def _looks_random(value: str) -> bool:
    """Whether a machine rather than a person made up ``value``."""
    if len(value) < 16 or not any(map(str.isdigit, value)) or not any(map(str.isalpha, value)):
        return False
    if re.search(r"[${}<>*]|(?i:example|password|secret|token|changeme|dummy|placeholder)", value):
        return False
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts) >= 3.0


def _in_pieces(text: str) -> Iterator[Span]:
    """Credentials whose pieces or escapes make one string when the program runs."""
    view: list[str] = []
    starts, origins = [0], [0]  # from which place in the view on the text is shifted how
    length = end = 0
    for match in _BETWEEN.finditer(text):
        code = match.lastgroup and int(match[match.lastgroup], 10 if match.lastgroup == "f" else 16)
        if code and not 32 <= code < 127:
            continue
        view.append(text[end : match.start()])
        length += match.start() - end
        end = match.end()
        if code:
            view.append(chr(code))
            starts.append(length)
            origins.append(match.start())
            length += 1
        starts.append(length)
        origins.append(end)
    if not end:
        return
    view.append(text[end:])
    whole = "".join(view)

    def origin(at: int) -> int:
        index = bisect_right(starts, at) - 1
        return origins[index] + at - starts[index]

    for match in _matches(whole, _SHAPES):
        last = origin(match.end() - 1)
        index = bisect_right(starts, match.end() - 1)
        # the last character may be an escape, which is longer than what it stands for
        stop = origins[index] if index < len(starts) and starts[index] == match.end() else last + 1
        start = origin(match.start())
        yield _span(start, max(last + 1, stop if stop - last <= 12 else last + 1))


def _encoded(text: str) -> Iterator[Span]:
    """Credentials inside base64 or hexadecimal digits."""
    for match in _BASE64.finditer(text):
        run = match[0].translate(_URLSAFE)
        for offset in range(4):
            part = run[offset : offset + (len(run) - offset) // 4 * 4]
            for start, end in _inside(base64.b64decode(part)):
                first = match.start() + offset
                yield _span(first + start * 4 // 3, min(match.end(), first + math.ceil(end * 4 / 3)))
    for match in _HEX.finditer(text):
        for offset in range(2):
            part = match[0][offset : offset + (len(match[0]) - offset) // 2 * 2]
            try:
                decoded = binascii.unhexlify(part)
            except binascii.Error:  # pragma: no cover - the pattern takes nothing else
                continue
            for start, end in _inside(decoded):
                yield _span(match.start() + offset + start * 2, match.start() + offset + end * 2)


def _inside(decoded: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in _matches(decoded.decode("latin-1"), _SHAPES)]
