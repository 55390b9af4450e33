"""Logging: one pipeline for our own lines and those of every library, with secrets taken out last.

A line carries whatever is bound with :func:`correlated`: the delivery's id goes with the work from the webhook
to the job and its container.
"""

from __future__ import annotations

import logging
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
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if mode == "prod":
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
    else:
        final.append(structlog.dev.ConsoleRenderer(colors=(stream or sys.stderr).isatty()))
    final.append(_redacting(redactor))

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


def _redacting(redactor: Redactor) -> Any:
    def redact(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
        return redactor.text(str(line))

    return redact


def _dumps(event: Any, **_options: Any) -> str:
    # repr for what JSON does not know, as structlog's own default does
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
