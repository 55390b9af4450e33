"""Who waits for which container's end: one thread follows the engine's events and wakes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
import urllib3
from docker import APIClient
from docker.errors import DockerException
from docker.types import CancellableStream

#: A hundred waiting attempts must not cost a hundred threads, so nobody blocks in the engine's wait call.
_OVERLAP = 5  # seconds of past events asked for again: the engine answers before it has subscribed us
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_JOIN = 5.0

FOLLOW_ERRORS = (
    DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


class Endings:
    """Wakes waiters when their container may have ended. A hint only: they look at the container then.

    ``connect`` makes a client of its own for the thread; ``labels`` select our containers; ``key`` is the
    label that names the attempt. Belongs to the event loop that first calls :meth:`watch`.
    """

    def __init__(self, connect: Callable[[], APIClient], labels: Mapping[str, str], key: str) -> None:
        self._connect = connect
        self._filters = {"type": "container", "event": ["die", "destroy"]}
        self._labels = [f"{name}={value}" for name, value in labels.items()]
        self._key = key
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stream: CancellableStream[Any] | None = None
        self._closing = threading.Event()

    @contextlib.contextmanager
    def watch(self, attempt_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever it is worth looking at the attempt's container again."""
        self._start()
        woken = asyncio.Event()
        self._waiting.setdefault(attempt_id, set()).add(woken)
        try:
            yield woken
        finally:
            waiting = self._waiting[attempt_id]
            waiting.discard(woken)
            if not waiting:
                del self._waiting[attempt_id]

    async def close(self) -> None:
        """End the thread and its connection."""
        self._closing.set()
        self._cut()
        if self._thread is not None:
            # bounded: a hung engine may keep it in a call, and it is a daemon
            await asyncio.to_thread(self._thread.join, _JOIN)
            self._thread = None

    def _start(self) -> None:
        if self._thread is None and not self._closing.is_set():
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._follow, name="docker-events", daemon=True)
            self._thread.start()

    def _cut(self) -> None:
        with self._lock:
            if self._stream is not None:
                # it may have ended by itself in this moment
                with contextlib.suppress(OSError, AttributeError):
                    self._stream.close()

    def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            try:
                client = self._connect()
                try:
                    self._read(client)
                finally:
                    client.close()
                pause = _FIRST_PAUSE
            except FOLLOW_ERRORS:
                # the waiters see the same trouble when they look, and they decide how long to bear it
                pause = min(pause * 2, _LONGEST_PAUSE)
            self._closing.wait(pause)

    def _read(self, client: APIClient) -> None:
        stream = client.events(
            since=int(time.time()) - _OVERLAP, filters={**self._filters, "label": self._labels}, decode=True
        )
        with self._lock:
            self._stream = stream
        try:
            if self._closing.is_set():
                return
            self._wake(None)  # whatever ended while nobody listened
            for event in stream:
                attributes = event.get("Actor", {}).get("Attributes", {})
                self._wake(attributes.get(self._key))
        finally:
            self._cut()
            with self._lock:
                self._stream = None

    def _wake(self, attempt_id: str | None) -> None:
        def wake() -> None:
            chosen = self._waiting if attempt_id is None else (attempt_id,)
            for one in chosen:
                for woken in self._waiting.get(one, ()):
                    woken.set()

        assert self._loop is not None
        # a closed loop has nobody left who waits
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(wake)
