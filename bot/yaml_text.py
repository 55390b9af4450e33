"""A file that people write in YAML, and where in it each value stands. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the sentence, and where (from 1)."""

    message: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class BadText(Exception):
    """The text cannot be read as one mapping. ``problems`` tells what is wrong and where."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Document:
    """One mapping, read from YAML: its ``values``, and the places that they stand at."""

    def __init__(self, text: str, *, max_bytes: int) -> None:
        """Read ``text``. Raises BadText: no YAML, too large, no mapping, a key twice, an alias."""
        if len(text.encode()) > max_bytes:
            raise BadText(Problem(f"the file is larger than {max_bytes // 1024} KiB", 1, 1))
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            if self._root is not None:
                _refuse_aliases(text)
            values = yaml.safe_load(text) or {}
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise BadText(Problem(error.problem or "this is no YAML", *where)) from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise BadText(Problem("this is no YAML", 1, 1)) from error
        if not isinstance(values, dict):
            raise BadText(Problem("the file must be a mapping of names to values", 1, 1))
        repeated = [Problem(f"`{key}` stands here twice", *where) for key, where in _repeated(self._root)]
        if repeated:
            raise BadText(*repeated)
        self.values: dict[str, Any] = values

    def problem(self, detail: ErrorDetails) -> Problem:
        """What pydantic found wrong, as a sentence with its place."""
        path = [part for part in detail["loc"] if part != "[key]"]
        unknown = detail["type"] == "extra_forbidden"
        name = ".".join(str(part) for part in path)
        message = (
            f"`{name}` is not known"
            if unknown
            else f"`{name}`: {detail['msg'].removeprefix('Value error, ')}"
        )
        return Problem(message, *self.place(path, at_key=unknown))

    def place(self, path: Sequence[str | int], *, at_key: bool = False) -> tuple[int, int]:
        """Line and column of what stands at ``path``, or of the nearest thing above it that is there."""
        node, mark = self._root, self._root.start_mark if self._root else None
        for depth, part in enumerate(path):
            found = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == str(part):
                        found = value
                        mark = key.start_mark if at_key and depth == len(path) - 1 else value.start_mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = node.value[part]
                mark = found.start_mark
            if found is None:
                break
            node = found
        return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _refuse_aliases(text: str) -> None:
    """Anchors and aliases can make a small file huge, and nobody needs them here."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            mark = event.start_mark
            where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise BadText(Problem("aliases are not taken", *where))


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield str(key.value), (key.start_mark.line + 1, key.start_mark.column + 1)
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)
