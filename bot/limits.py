"""What one attempt may use: the server's limits, and the repository's where those are lower."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bot.config import Settings
from bot.ports import Limits
from bot.repo_config import LimitsConfig

_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, kw_only=True)
class AttemptLimits:
    """Limits of the container, and those that the worker watches itself."""

    container: Limits
    workspace: int  # bytes of workspace and home together
    idle: float | None  # seconds without a sign of life from the agent; None: no limit


def limits_for(settings: Settings, asked: LimitsConfig) -> AttemptLimits:
    """The lower of what the server allows and the repository asks for, one by one."""
    idle = [seconds for seconds in (settings.idle_timeout, asked.idle) if seconds]
    return AttemptLimits(
        container=Limits(
            memory=_lower(settings.memory, asked.memory),
            cpus=min(settings.cpus, asked.cpus or settings.cpus),
            pids=min(settings.pids, asked.pids or settings.pids),
            tmp=size(settings.tmp_size),
            file=size(settings.file_size),
        ),
        workspace=_lower(settings.workspace_size, asked.workspace),
        idle=min(idle) if idle else None,
    )


def size(text: str) -> int:
    """Bytes of ``4g``, ``512m`` or ``64k``."""
    match = re.fullmatch(r"(\d+)([kmg])", text)
    if not match:
        raise ValueError(f"{text!r} is no size")
    return int(match[1]) * _UNITS[match[2]]


def _lower(ours: str, theirs: str | None) -> int:
    return min(size(ours), size(theirs)) if theirs else size(ours)
