"""How much disk each attempt uses: one question to the backend for all of them, asked at most now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from bot.ports import Runner

FRESH = 25.0  # seconds for which an answer is good


class Scales:
    """Weighs the workspaces of this host's attempts."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._weights: Mapping[str, int] = {}
        self._at = float("-inf")
        self._lock = asyncio.Lock()

    async def weigh(self, attempt_id: str) -> int:
        """Bytes of the attempt's workspace and home; 0 while they are not known. Raises InfrastructureError."""
        async with self._lock:
            if time.monotonic() - self._at > FRESH:
                self._weights = await self._runner.workspace_bytes()
                self._at = time.monotonic()
        return self._weights.get(attempt_id, 0)
