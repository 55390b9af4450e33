"""One line of the table that ``make bench`` prints."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement beside its baseline, both taken in the same run. Values are medians."""

    name: str
    baseline: str  # what it is compared with
    baseline_value: float
    value: float
    unit: str
    ratio: float  # value / baseline_value, as the median over the rounds where rounds can be paired
    aim: str  # in words; "" where the design names none
    met: bool | None  # None: no aim
    note: str = ""


def progress(text: str) -> None:
    """Say what is being done: the results themselves go elsewhere."""
    print(f"  {text}", file=sys.stderr, flush=True)


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie (nearest rank)."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
