"""Logging: one pipeline for our own lines and those of every library, with secrets taken out last.

A line carries whatever is bound with :func:`correlated`: the delivery's id goes with the work from the webhook
to the job and its container.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bot.redact import Redactor

Mode = Literal["dev", "prod"]

#: Libraries that tell more at INFO than an operator wants to read.
_QUIET = ("aiohttp.access", "alembic", "httpx", "httpcore", "rq.worker", "sqlalchemy.engine", "aiosqlite")

#: What a terminal would obey, and what makes one line look like two or like another one: texts of others hold it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
#: The same, but for colours.
_CONTROL_BUT_COLOURS = re.compile(rf"(?!\x1b\[[0-9;]*m){_CONTROL.pattern}")


def configure(mode: Mode, level: str, redactor: Redactor, *, stream: TextIO | None = None) -> None:
    """Send all logging to ``stream`` (default: standard error): JSON in ``prod``, for people in ``dev``.

    May be called again: the last call counts.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    control = _CONTROL
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if mode == "prod":
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
    else:
        colours = (stream or sys.stderr).isatty()
        final.append(structlog.dev.ConsoleRenderer(colors=colours))
        control = _CONTROL_BUT_COLOURS if colours else _CONTROL
    final.append(_safe(redactor, control))

    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()], processors=final
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, _Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # modules keep their loggers; a later call must reach them
    )


@contextmanager
def correlated(correlation: str, **values: object) -> Iterator[None]:
    """Bind ``correlation`` (a delivery's id, or what stands for it) and ``values`` to every line inside."""
    with structlog.contextvars.bound_contextvars(correlation=correlation, **values):
        yield


def correlation() -> str | None:
    """What :func:`correlated` bound here, to be handed on to another process."""
    return structlog.contextvars.get_contextvars().get("correlation")


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of :func:`configure`, which the next call replaces."""


def harmless(text: str, control: re.Pattern[str] = _CONTROL) -> str:
    """``text`` for a terminal: what that would obey is written out."""
    return control.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _safe(redactor: Redactor, control: re.Pattern[str]) -> Any:
    def safe(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
        return harmless(redactor.text(str(line)), control)

    return safe


def _dumps(event: Any, **_options: Any) -> str:
    # repr for what JSON does not know, as structlog's own default does
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
