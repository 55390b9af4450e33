import io
import json
import logging
import re
import warnings
from collections.abc import Iterator

import pytest
import structlog

from bot import logs
from bot.redact import MASK, Redactor

SECRET = 'canary "secret" value'


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configured(mode: logs.Mode = "prod", level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(mode, level, Redactor([SECRET]), stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_prod_writes_one_json_object_a_line() -> None:
    stream = configured()
    structlog.get_logger("bot.somewhere").info("job accepted", job="j1", count=3)
    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "job accepted",
        "level": "info",
        "logger": "bot.somewhere",
        "job": "j1",
        "count": 3,
    }


def test_libraries_go_the_same_way() -> None:
    stream = configured()
    logging.getLogger("some.library").warning("%s is slow", "it", extra={"seconds": 3})
    logging.getLogger("httpx").info("a line for every request")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("it is slow", "some.library", "warning")
    assert line["seconds"] == 3


def test_a_line_below_the_level_is_not_written() -> None:
    stream = configured(level="warning")
    structlog.get_logger().info("not this")
    logging.getLogger("x").info("nor this")
    structlog.get_logger().warning("but this")
    assert [line["event"] for line in lines(stream)] == ["but this"]


@pytest.mark.parametrize("mode", ["dev", "prod"])
def test_secrets_are_taken_out_wherever_they_stand(mode: logs.Mode) -> None:
    stream = configured(mode)
    log = structlog.get_logger()
    token = "ghs_" + "a1B2" * 9
    log.info(f"saw {SECRET}", value=SECRET, deep={"list": [token]}, odd=ValueError(SECRET))
    logging.getLogger("library").error("failed with %s", SECRET)
    try:
        raise RuntimeError(f"about {SECRET} and {token}")
    except RuntimeError:
        log.exception("it broke")
        logging.getLogger("library").exception("broke too")
    text = stream.getvalue()
    assert "canary" not in text
    assert token not in text
    assert text.count(MASK) >= 8
    if mode == "prod":
        assert "RuntimeError" in str(lines(stream)[-1]["exception"])


def test_the_correlation_id_is_on_every_line_inside() -> None:
    stream = configured()
    with logs.correlated("guid-1", repo="o/r"):
        structlog.get_logger().info("one")
        logging.getLogger("library").info("two")
        assert logs.correlation() == "guid-1"
    structlog.get_logger().info("three")
    assert [(line["event"], line.get("correlation"), line.get("repo")) for line in lines(stream)] == [
        ("one", "guid-1", "o/r"),
        ("two", "guid-1", "o/r"),
        ("three", None, None),
    ]
    assert logs.correlation() is None


def test_dev_is_for_people() -> None:
    stream = configured("dev")
    structlog.get_logger().info("job accepted", job="j1")
    assert re.search(r"info .*job accepted .*job=j1", stream.getvalue())


def test_configuring_again_replaces_the_first() -> None:
    log = structlog.get_logger("kept")
    first = configured()
    log.info("one")
    second = configured()
    log.info("two")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two"]


def test_warnings_are_logged() -> None:
    stream = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("something old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "something old" in str(lines(stream)[0]["event"])
