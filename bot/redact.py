"""Takes secrets out of text: the values that we know, and whatever has the shape of a credential.

Everything that is logged or published passes here. Known values are found plain, split over lines or strings, quoted
for URLs, JSON and HTML, in hexadecimal, base64 (also inside longer base64) and more, and reversed: `bot.needles`. What
a credential looks like is in `bot.credentials`.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from urllib.parse import quote, quote_plus

from bot.credentials import PEM_BEGIN, PEM_BODY, PEM_END, Span, credentials
from bot.credentials import open_end as open_credential
from bot.needles import MAX_GAP, OPEN, SHORTEST, Needles, base64_cores, forms, places, shape

MASK = "«redacted»"
MINIMUM = 6  # characters; shorter values would blank ordinary words
#: Values that were added later (tokens, which live for an hour); beyond these the oldest is forgotten.
MAX_ADDED = 1000
_SHIFTED_MINIMUM = 8  # of base64 text that stands inside other base64 text

_CUT_KEY = re.compile(PEM_BEGIN + PEM_BODY + "*")
_IN_KEY = re.compile(PEM_BODY + "*")
_KEY_END = re.compile(PEM_END)

_SIGNS = 8  # that a value may begin with
_LINE = 64 * 1024  # a stream holds back at most about this much of a line that does not end
_KEY = 8 * 1024  # and of a private key; after that it is dropped as it comes
_MARKER = 128  # more than the end marker of a key
_TOKEN = 16 * 1024  # longer than anything that is matched on one line


class Redactor:
    """Replaces secrets by a mask. Values may come and go while it is in use, from any thread."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Know ``secrets`` for good; values shorter than six characters are ignored."""
        self._lock = threading.Lock()
        self._shapes: dict[str, tuple[bytes, ...]] = {}
        self._exact: dict[str, tuple[str, ...]] = {}
        self._edges: dict[bytes, tuple[tuple[str, str], ...]] = {}
        self._needles = Needles()
        self._pattern: re.Pattern[str] | None = None
        self._spanning: tuple[str, ...] = ()
        for secret in secrets:
            self._learn(secret)
        self._lasting = frozenset(self._shapes)

    def add(self, secret: str) -> None:
        """Know one more value, for example a token that was just minted."""
        with self._lock:
            self._learn(secret)
            added = len(self._shapes) - len(self._lasting)
            if added > MAX_ADDED:
                self._forget(next(value for value in self._shapes if value not in self._lasting))

    def discard(self, secret: str) -> None:
        """Forget a value that is worth nothing any more."""
        with self._lock:
            self._forget(secret)
            self._lasting -= {secret}

    def text(self, text: str) -> str:
        """``text`` with every secret replaced."""
        spans = self.spans(text)
        return _masked(text, spans) if spans else text

    def holds_secret(self, text: str) -> bool:
        """Whether ``text`` must not be published: as :meth:`text`, without what is more often an example."""
        if next(self._known(text), None) is not None:
            return True
        return next(credentials(text, sure=True), None) is not None

    def stream(self) -> RedactedStream:
        """A redactor for text that comes in chunks, however a secret is split over them."""
        return RedactedStream(self)

    def spans(self, text: str) -> list[Span]:
        """Where the secrets of ``text`` are: in order, none within another."""
        found = sorted((*self._known(text), *credentials(text)))
        merged: list[Span] = []
        for span in found:
            if merged and span.start < merged[-1].end:
                last = merged[-1]
                merged[-1] = Span(last.start, max(last.end, span.end), min(last.context, span.context))
            else:
                merged.append(span)
        return merged

    def open_end(self, text: str) -> int | None:
        """Where something begins that may turn out to be a secret when more comes; None when nothing does."""
        ends = [open_credential(text)]
        # a value's shape is never longer than this in a text, or it is no match
        tail = text[-_TOKEN:]
        kept = places(tail)
        if kept and len(tail) - kept[-1] <= MAX_GAP:
            at = self._needles.open_end(shape(tail))
            if at is not None:
                start = kept[at]
                # the signs before it may be the value's own
                while start > max(0, kept[at] - _SIGNS) and not tail[start - 1].isspace():
                    start -= 1
                ends.append(len(text) - len(tail) + start)
        ends += [_start_of_partial(form, text) for form in self._spanning]
        return min((end for end in ends if end is not None), default=None)

    # --- what we know

    def _known(self, text: str) -> Iterator[Span]:
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                yield Span(*match.span(), match.start())
        hay = shape(text)
        found = self._needles.find(hay)
        if not found:
            return
        kept = places(text)
        for first, last in found:
            if all(after - before <= MAX_GAP for before, after in pairwise(kept[first:last])):
                yield self._with_edges(text, hay[first:last], kept[first], kept[last - 1] + 1)

    def _with_edges(self, text: str, form: bytes, start: int, end: int) -> Span:
        """The span with the signs at the value's own beginning and end."""
        for lead, trail in self._edges.get(form, ()):
            if text.endswith(lead, 0, start) and text.startswith(trail, end):
                start, end = start - len(lead), end + len(trail)
                break
        return Span(start, end, start)

    def _learn(self, secret: str) -> None:
        if len(secret) < MINIMUM or secret in self._shapes:
            return
        shapes: set[bytes] = set()
        exact: set[str] = set()
        values = {secret.strip()}
        if "\n" in secret:
            # each line of a key tells its part; the whole is needed for what its lines are too short for
            shapes.add(shape(secret))
            values = {line.strip() for line in secret.splitlines() if not line.startswith("-----")}
        for value in values:
            if len(value) < MINIMUM:
                continue
            shapes.update(forms(value))
            own = shape(value)
            if len(own) < SHORTEST:
                exact.update(_exact_forms(value))
            else:
                lead = re.match(r"[^A-Za-z0-9]*", value)
                trail = re.search(r"[^A-Za-z0-9]*\Z", value)
                edges = (lead[0] if lead else "", trail[0] if trail else "")
                self._edges[own] = (*self._edges.get(own, ()), edges)
        if "\n" in secret and len(shape(secret)) < SHORTEST:
            exact.add(secret)
        self._shapes[secret] = tuple(shapes)
        self._needles.add(shapes)
        if exact:
            self._exact[secret] = tuple(exact)
            self._compile()

    def _forget(self, secret: str) -> None:
        shapes = self._shapes.pop(secret, None)
        if shapes is None:
            return
        self._needles.remove(shapes)
        for form in shapes:
            self._edges.pop(form, None)
        if self._exact.pop(secret, None) is not None:
            self._compile()

    def _compile(self) -> None:
        all_forms = sorted({form for some in self._exact.values() for form in some}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, all_forms))) if all_forms else None
        self._spanning = tuple(form for form in all_forms if "\n" in form)


class RedactedStream:
    """Redacts a text that arrives in chunks: what comes out in all never shows a secret.

    Whole lines come out at once, unless a secret may have begun in them; an unfinished line is held back until it
    ends, is flushed, or grows past 64 KiB. Of a private key nothing is kept: it is dropped from its first line to
    its last. Of a known value that is split over lines at most its first three characters are shown.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._before = ""  # the end of what was shown: a value may have begun there
        self._held = ""
        self._in_key = False

    def feed(self, chunk: str) -> str:
        """Take ``chunk``; return what can be shown by now."""
        self._held += chunk
        shown = ""
        if self._in_key and not self._leave_key():
            return ""
        if "\n" not in chunk and len(self._held) <= _LINE:
            return ""  # nothing new to decide on
        cut = self._held.rfind("\n") + 1
        if len(self._held) - cut > _LINE:
            cut = len(self._held) - _TOKEN
        if cut:
            shown = self._show(cut)
        if len(self._held) > _KEY and self._held.startswith("-----BEGIN"):
            key = _CUT_KEY.match(self._held)
            if key is not None and key.end() == len(self._held):
                shown += MASK
                self._held, self._in_key, self._before = self._held[-_MARKER:], True, ""
        return shown

    def flush(self) -> str:
        """Return the rest; the stream may be used again afterwards."""
        rest = "" if self._in_key else self._masked(len(self._held), self._spans())
        self._held, self._before, self._in_key = "", "", False
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

    def _show(self, cut: int) -> str:
        """Give out as much of what stands before ``cut`` as cuts through no secret."""
        spans = self._spans()
        before = len(self._before)
        open_end = self._redactor.open_end(self._before + self._held)
        if open_end is not None:
            cut = min(cut, max(0, open_end - before))
        for span in reversed(spans):
            # what reaches the end of the text may go on in the next chunk
            if span.context < cut and (cut < span.end or span.end == len(self._held)):
                cut = max(0, span.context)
        shown = self._masked(cut, spans)
        if cut:
            passed = (self._before + self._held[:cut])[-MAX_GAP:]
            kept = places(passed)
            self._before = passed[kept[-min(OPEN - 1, len(kept))] :] if kept else ""
            self._held = self._held[cut:]
        return shown

    def _spans(self) -> list[Span]:
        """Secrets in what is held; those that began in what was shown have a start below zero."""
        before = len(self._before)
        return [
            Span(*(place - before for place in span))
            for span in self._redactor.spans(self._before + self._held)
            if span.end > before
        ]

    def _masked(self, cut: int, spans: Sequence[Span]) -> str:
        inside = [Span(max(0, span.start), span.end, 0) for span in spans if span.start < cut]
        return _masked(self._held[:cut], inside)


def _masked(text: str, spans: Iterable[Span]) -> str:
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], MASK]
        at = span.end
    return "".join((*parts, text[at:]))


def _start_of_partial(form: str, text: str) -> int | None:
    """Where the end of ``text`` is the beginning of ``form``."""
    first_line = form[: form.index("\n") + 1]
    start = text.find(first_line, max(0, len(text) - len(form)))
    while start >= 0:
        if form.startswith(text[start:]):
            return start
        start = text.find(first_line, start + 1)
    return None


def _exact_forms(value: str) -> Iterator[str]:
    """How a value may look of which too few letters and digits are left to look for those alone."""
    yield value
    yield value[::-1]
    yield quote(value, safe="")
    yield quote(value)
    yield quote_plus(value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    raw = value.encode(errors="surrogatepass")
    for encoded in (base64.b64encode(raw).decode().rstrip("="), *base64_cores(raw)):
        if len(encoded) >= _SHIFTED_MINIMUM:
            yield encoded
            yield encoded.translate(str.maketrans("+/", "-_"))
