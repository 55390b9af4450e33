r"""Finds known values in a text, however they are written there: split, quoted, encoded, reversed.

Text and values are brought to one shape first: ASCII letters and digits alone, in lower case. ``"abc" + "def"``, a
value with a line break in it, one with its punctuation quoted for a URL and one in capitals are then the same, and
of an encoding only its letters and digits remain (``\x61\x62`` is ``x61x62``). One pass over the text looks at each
seventh group of six characters, however many values there are; so the time is linear in the text.
"""

from __future__ import annotations

import base64
import codecs
import json
import string
from collections.abc import Iterable, Iterator
from typing import TypeVar
from urllib.parse import quote, quote_plus

_T = TypeVar("_T")

#: Characters of the shape that a form must have: an occurrence then covers one of the looked-at groups whole.
SHORTEST = 12
#: Longer forms are cut: their beginning tells enough.
LONGEST = 4096
#: Other characters that may stand between two of a value's.
MAX_GAP = 64
#: A value that begins at a text's end is only held back for what follows when this much of it is there.
OPEN = 4

#: What different programs leave as it is in URLs: RFC 3986, paths, JavaScript's encodeURIComponent and encodeURI.
_UNQUOTED = ("", "/", "!*'()", "!*'();,/?:@&=+$#")
_GROUP, _STRIDE = 6, 7
_KEPT = frozenset(string.ascii_letters + string.digits)
_DROPPED = bytes(code for code in range(256) if chr(code) not in _KEPT)
_LOWER = bytes(range(256)).lower()


def shape(text: str) -> bytes:
    """The ASCII letters and digits of ``text``, in lower case."""
    return text.encode("ascii", "ignore").translate(_LOWER, _DROPPED)


def places(text: str) -> list[int]:
    """Where in ``text`` each byte of its shape comes from."""
    return [index for index, character in enumerate(text) if character in _KEPT]


def forms(value: str) -> Iterator[bytes]:
    """The shapes that ``value`` may have in a text; short ones too."""
    raw = value.encode("utf-8", "surrogatepass")
    wide = value.encode("utf-16-le", "surrogatepass")
    encoded = base64.b64encode(raw).decode()
    units = [int.from_bytes(wide[at : at + 2], "little") for at in range(0, len(wide), 2)]
    for text in (
        value,
        value[::-1],
        *(safely(value, safe=safe) for safely in (quote, quote_plus) for safe in _UNQUOTED),
        json.dumps(value)[1:-1],
        codecs.encode(value, "rot13"),
        encoded,
        encoded[::-1],
        base64.b64encode(raw[::-1]).decode(),
        base64.b32encode(raw).decode().rstrip("="),
        base64.b85encode(raw).decode(),
        base64.a85encode(raw).decode(),
        raw.hex(),
        raw.hex()[::-1],
        raw.hex().encode().hex(),
        encoded.encode().hex(),
        "".join(f"x{byte:02x}" for byte in raw),
        "".join(f"0x{byte:02x}" for byte in raw),
        "".join(f"u{unit:04x}" for unit in units),
        "".join(f"u{unit:x}" for unit in units),
        "".join(str(byte) for byte in raw),
        "".join(f"{byte:03o}" for byte in raw),
    ):
        yield shape(text)
    for inner in (raw, wide, encoded.encode(), raw.hex().encode()):
        for core in base64_cores(inner):
            yield shape(core)


def base64_cores(value: bytes) -> Iterator[str]:
    """The characters that base64 of any longer text has for ``value``, for each of the three places it can take."""
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + value)
        # only those that depend on nothing but the value
        yield encoded[(0, 2, 3)[offset] : (offset + len(value)) * 8 // 6].decode()


class Needles:
    """A set of shapes to look for. Adding and removing takes time for that one only; safe in any thread."""

    def __init__(self) -> None:
        self._count: dict[bytes, int] = {}
        self._anchors: dict[bytes, int] = {}  # where in a form the groups are that it is found by
        self._groups: dict[bytes, tuple[tuple[bytes, int], ...]] = {}
        self._starts: dict[bytes, tuple[bytes, ...]] = {}
        self._longest = 0

    def add(self, wanted: Iterable[bytes]) -> None:
        """Look for these, too. Those shorter than SHORTEST are passed over."""
        for form in wanted:
            form = form[:LONGEST]
            if len(form) < SHORTEST:
                continue
            self._count[form] = self._count.get(form, 0) + 1
            if self._count[form] > 1:
                continue
            self._longest = max(self._longest, len(form))
            anchor = self._anchors[form] = self._rarest(form)
            for at in range(anchor, anchor + _STRIDE):
                group = form[at : at + _GROUP]
                self._groups[group] = (*self._groups.get(group, ()), (form, at))
            start = form[:OPEN]
            self._starts[start] = (*self._starts.get(start, ()), form)

    def remove(self, wanted: Iterable[bytes]) -> None:
        """Take back what was added."""
        for form in wanted:
            form = form[:LONGEST]
            if form not in self._count:
                continue
            self._count[form] -= 1
            if self._count[form]:
                continue
            del self._count[form]
            anchor = self._anchors.pop(form)
            for at in range(anchor, anchor + _STRIDE):
                _take(self._groups, form[at : at + _GROUP], (form, at))
            _take(self._starts, form[:OPEN], form)

    def _rarest(self, form: bytes) -> int:
        """Where in ``form`` the groups have the fewest other forms: tokens of one kind begin all the same."""

        def crowd(anchor: int) -> int:
            return max(
                len(self._groups.get(form[at : at + _GROUP], ())) for at in range(anchor, anchor + _STRIDE)
            )

        last = len(form) - SHORTEST
        return min((0, last // 2, last), key=crowd)

    def find(self, hay: bytes) -> list[tuple[int, int]]:
        """Where in the shape ``hay`` something is, as (start, end) in no order."""
        groups = [hay[at : at + _GROUP] for at in range(0, len(hay) - _GROUP + 1, _STRIDE)]
        known = self._groups
        if known.keys().isdisjoint(groups):
            return []
        found = set()
        for number, group in enumerate(groups):
            for form, at in known.get(group, ()):
                start = number * _STRIDE - at
                if start >= 0 and hay.startswith(form, start):
                    found.add((start, start + len(form)))
        return list(found)

    def open_end(self, hay: bytes) -> int | None:
        """Where something begins that the end of ``hay`` cuts off, the earliest; None when nothing does."""
        for at in range(max(0, len(hay) - self._longest + 1), len(hay) - OPEN + 1):
            for form in self._starts.get(hay[at : at + OPEN], ()):
                if len(form) > len(hay) - at and form.startswith(hay[at:]):
                    return at
        return None


def _take(table: dict[bytes, tuple[_T, ...]], key: bytes, value: _T) -> None:
    left = tuple(one for one in table.get(key, ()) if one != value)
    if left:
        table[key] = left
    else:
        table.pop(key, None)
