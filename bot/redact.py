"""Takes secrets out of text: the values that we know, and whatever has the shape of a credential.

Everything that is logged or published passes here. Known values are found plain, base64, URL-quoted and
JSON-escaped. The patterns follow the formats that their issuers publish, for GitHub:
https://github.blog/engineering/behind-githubs-new-authentication-token-formats/ and, for the long
``ghs_<app>_<jwt>`` form of installation tokens, https://docs.github.com/en/apps.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MASK = "«redacted»"
MINIMUM = 6  # characters; shorter values would blank ordinary words
_SHIFTED_MINIMUM = 8  # of base64 text that stands inside other base64 text

_PEM_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----"
_PEM_BODY = r"(?:\\[nr]|[A-Za-z0-9+/=\s:,-])"
_PEM_END = r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----"
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # a word's start, also after an escaped line end in JSON
_IS = (
    r"[\"'\\]{0,3}[ \t]{0,4}[:=][ \t]{0,4}[\"'\\]{0,3}"  # = or : with the quotes of shells and JSON around it
)
#: Quantifiers have upper bounds: no text makes the search slow, and a stream holds back only so much.
_SHAPES = (
    # a PEM private key, whole or cut off, or with its line ends escaped as in JSON
    rf"{_PEM_BEGIN}{_PEM_BODY}*?{_PEM_END}",
    rf"{_PEM_BEGIN}{_PEM_BODY}*",
    rf"{_START}gh[pousr]_[A-Za-z0-9_.-]{{15,2047}}[A-Za-z0-9_-]",
    rf"{_START}github_pat_[A-Za-z0-9_]{{20,255}}",
    rf"{_START}sk-[A-Za-z0-9_-]{{20,512}}",  # OpenAI sk-…, sk-proj-…; Anthropic sk-ant-…
    rf"{_START}(?:xox[abeoprs]-|xapp-)[A-Za-z0-9-]{{10,512}}",  # Slack
    rf"{_START}(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Z0-9])",  # AWS access key ids
    rf"{_START}AIza[A-Za-z0-9_-]{{35}}",  # Google
    rf"{_START}eyJ[A-Za-z0-9_-]{{8,2048}}\.eyJ[A-Za-z0-9_-]{{8,4096}}\.[A-Za-z0-9_-]{{16,1024}}",  # a JWT
)
#: Here only the group ``secret…`` goes, what stands before it stays readable.
_LABELLED = (
    rf"(?i:\b(?:proxy-)?authorization\b{_IS}(?:bearer|basic|token)[ \t]{{1,4}})(?P<secret1>[\w.~+/=:-]{{6,4096}})",
    r"(?i:\bbearer[ \t]{1,4})(?P<secret2>[\w.~+/=-]{20,4096})",
    rf"(?i:\bx-(?:api|goog-api)-key\b{_IS})(?P<secret3>[\w.~+/=-]{{6,4096}})",
    rf"(?i:\baws_?secret_?access_?key\b{_IS})(?P<secret4>[A-Za-z0-9/+=]{{40}})",
    r"\b[a-z][a-z0-9+.-]{1,30}://[^/\s:@\"'<>]{0,256}:(?P<secret5>[^/\s@\"'<>]{1,1024})@",
)
_PATTERN = re.compile("|".join((*_SHAPES, *_LABELLED)))
#: A text without any of these holds no match of _PATTERN: a quick way out for the common line.
_HINTS = (
    *("private key-----", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-", "xox", "xapp-"),
    *("akia", "asia", "aiza", "eyj", "bearer", "authorization", "-key", "secret"),
)
_CUT_KEY = re.compile(_PEM_BEGIN + _PEM_BODY + "*")
_IN_KEY = re.compile(_PEM_BODY + "*")
_KEY_END = re.compile(_PEM_END)

_LINE = 64 * 1024  # a stream holds back at most about this much of a line that does not end
_KEY = 8 * 1024  # and of a private key; after that it is dropped as it comes
_MARKER = 128  # more than the end marker of a key
_TOKEN = 12 * 1024  # longer than anything that the patterns match on one line


class Redactor:
    """Replaces secrets by a mask. Values may come and go while it is in use, from any thread."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Know ``secrets``; values shorter than six characters are ignored."""
        self._secrets: dict[str, tuple[str, ...]] = {}
        self._known: re.Pattern[str] | None = None
        self._spanning: tuple[str, ...] = ()
        for secret in secrets:
            self._learn(secret)
        self._compile()

    def add(self, secret: str) -> None:
        """Know one more value, for example a token that was just minted."""
        self._learn(secret)
        self._compile()

    def discard(self, secret: str) -> None:
        """Forget a value that is worth nothing any more."""
        if self._secrets.pop(secret, None) is not None:
            self._compile()

    def text(self, text: str) -> str:
        """``text`` with every secret replaced."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        return _PATTERN.sub(_mask, text) if _suspicious(text) else text

    def stream(self) -> RedactedStream:
        """A redactor for text that comes in chunks, however a secret is split over them."""
        return RedactedStream(self)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where ``text`` holds something that :meth:`text` would look at as a whole."""
        for pattern in (self._known, _PATTERN if _suspicious(text) else None):
            if pattern is not None:
                for match in pattern.finditer(text):
                    yield match.span()

    @property
    def spanning(self) -> tuple[str, ...]:
        """The known forms that hold a line end."""
        return self._spanning

    def _learn(self, secret: str) -> None:
        if len(secret) >= MINIMUM:
            self._secrets[secret] = tuple(_forms(secret))

    def _compile(self) -> None:
        forms = sorted({form for forms in self._secrets.values() for form in forms}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, forms))) if forms else None
        self._spanning = tuple(form for form in forms if "\n" in form)


class RedactedStream:
    """Redacts a text that arrives in chunks: what comes out in all never shows a secret.

    Whole lines come out at once; an unfinished line is held back until it ends, is flushed, or grows past
    64 KiB. Of a private key nothing is kept: it is dropped from its first line to its last.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""
        self._in_key = False

    def feed(self, chunk: str) -> str:
        """Take ``chunk``; return what can be shown by now."""
        self._held += chunk
        shown = ""
        if self._in_key and not self._leave_key():
            return ""
        cut = self._cut()
        if cut:
            shown = self._redactor.text(self._held[:cut])
            self._held = self._held[cut:]
        if len(self._held) > _KEY and self._held.startswith("-----BEGIN"):
            key = _CUT_KEY.match(self._held)
            if key is not None and key.end() == len(self._held):
                shown += MASK
                self._held, self._in_key = self._held[-_MARKER:], True
        return shown

    def flush(self) -> str:
        """Return the rest; the stream may be used again afterwards."""
        rest = "" if self._in_key else self._redactor.text(self._held)
        self._held, self._in_key = "", False
        return rest

    def _leave_key(self) -> bool:
        """Drop what belongs to a private key; whether something else follows it."""
        body, end = _IN_KEY.match(self._held), _KEY_END.search(self._held)
        stop = body.end() if body else 0
        if end is not None and end.start() < stop:
            stop = end.end()
        elif self._held[stop:] in ("", "\\"):
            self._held = self._held[-_MARKER:]  # the end marker, or an escaped line end, may be split
            return False
        self._held, self._in_key = self._held[stop:], False
        return True

    def _cut(self) -> int:
        """How much of the held text can be shown without cutting through a secret."""
        held = self._held
        cut = held.rfind("\n") + 1
        if len(held) - cut > _LINE:
            cut = len(held) - _TOKEN
        for form in self._redactor.spanning:
            cut = min(cut, _start_of_partial(form, held))
        crossing = True
        while crossing and cut:
            # only ever backwards: a match of the one pattern may begin inside a match of the other
            starts = [
                start
                for start, end in self._redactor.spans(held)
                # what reaches the end of the text may go on in the next chunk
                if start < cut and (cut < end or end == len(held))
            ]
            crossing = bool(starts)
            cut = min(starts, default=cut)
        return cut


def _start_of_partial(form: str, text: str) -> int:
    """Where the end of ``text`` is the beginning of ``form``; the text's length if nowhere."""
    first_line = form[: form.index("\n") + 1]
    start = text.find(first_line, max(0, len(text) - len(form)))
    while start >= 0:
        if form.startswith(text[start:]):
            return start
        start = text.find(first_line, start + 1)
    return len(text)


def _suspicious(text: str) -> bool:
    lower = text.lower()
    return ("://" in lower and "@" in lower) or any(hint in lower for hint in _HINTS)


def _mask(match: re.Match[str]) -> str:
    for name, value in match.groupdict().items():
        if value is not None:
            start, end = match.span(name)
            whole, offset = match.group(0), match.start()
            return whole[: start - offset] + MASK + whole[end - offset :]
    return MASK


def _forms(secret: str) -> Iterator[str]:
    """How ``secret`` may look in a text."""
    plain = {secret, secret.strip()}
    if "\n" in secret:
        # each line of a key tells its part
        plain |= {line.strip() for line in secret.splitlines() if not line.startswith("-----")}
    for value in plain:
        if len(value) < MINIMUM:
            continue
        yield value
        yield quote(value, safe="")
        yield quote(value)
        yield quote_plus(value)
        yield json.dumps(value)[1:-1]
        yield json.dumps(value, ensure_ascii=False)[1:-1]
        yield from _base64_forms(value.encode(errors="surrogatepass"))


def _base64_forms(value: bytes) -> Iterator[str]:
    """Base64 of ``value`` alone, and as it looks inside the base64 of a longer text (user:password)."""
    yield base64.b64encode(value).decode().rstrip("=")
    yield base64.urlsafe_b64encode(value).decode().rstrip("=")
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + value)
        # only the characters that depend on nothing but the value
        first = (0, 2, 3)[offset]
        last = (offset + len(value)) * 8 // 6
        core = encoded[first:last].decode()
        if len(core) >= _SHIFTED_MINIMUM:
            yield core
            yield core.translate(str.maketrans("+/", "-_"))
