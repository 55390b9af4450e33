"""`conductor audit`: read the audit trail, check that nobody changed it, and hand it out."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import click
import orjson
from sqlalchemy.exc import SQLAlchemyError

from bot.audit import Audit, Wanted
from bot.audit_chain import AuditKind, Entry, Link, Unreadable, Verifier, canonical
from bot.cli.run import config_option, fail, settings_from
from bot.config import Settings
from bot.database import create_engine, upgrade
from bot.errors import ConductorError, InfrastructureError
from bot.logs import harmless
from bot.reasons import from_data, refusals
from bot.redact import Redactor
from bot.render import oneline

DATES = click.DateTime(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
MAX_LINE = 300  # characters of details in one line of the list
#: What makes a spreadsheet compute: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - full width, too
COLUMNS = tuple(field.name for field in fields(Entry))

Command = Callable[..., None]


class LinkType(click.ParamType[Link]):
    """``SEQ:HASH``."""

    name = "SEQ:HASH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Link:
        """Part of click's interface."""
        if isinstance(value, Link):
            return value
        try:
            return Link.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def audit() -> None:
    """Read, check and hand out the audit trail: who did what, on what, and why it was allowed or refused.

    Every entry holds a hash over itself and the entry before it. So `verify` finds a changed, removed, inserted or
    moved entry. Nothing is ever deleted by itself.

    \b
    conductor audit list --repo acme/widgets --since 2026-11-01
    conductor audit list --kind approval.granted --kind approval.refused
    conductor audit verify
    conductor audit export --format jsonl --output audit.jsonl

    Whoever owns the database could compute all hashes anew. Against that, note elsewhere what `verify` prints (or keep
    the log, which has it, on another machine), and give it back with --anchor.
    """  # noqa: D301 - click wants a real backspace: "do not wrap this"


def _filters(command: Command) -> Command:
    options = (
        click.option("--since", type=DATES, help="From this moment on (UTC)."),
        click.option("--until", type=DATES, help="Before this moment (UTC)."),
        click.option("--repo", metavar="OWNER/NAME", help="Only this repository, as it was called then."),
        click.option("--number", type=int, help="Only this issue or pull request; with --repo."),
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            type=click.Choice([str(kind) for kind in AuditKind]),
            help="Only this kind; may be given several times.",
        ),
        click.option("--actor", help="Only what this login did; operator:NAME for somebody on the host."),
        click.option("--job", metavar="JOB", help="Only this job."),
        click.option("--delivery", metavar="ID", help="Only what this webhook delivery caused."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _wanted(options: dict[str, Any]) -> Wanted:
    return Wanted(
        since=_utc(options["since"]),
        until=_utc(options["until"]),
        repo=options["repo"],
        number=options["number"],
        kinds=options["kinds"],
        actor=options["actor"],
        job_id=options["job"],
        delivery_id=options["delivery"],
    )


@audit.command("list")
@config_option
@_filters
@click.option(
    "-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="How many entries."
)
def list_(config: Path | None, limit: int, **options: Any) -> None:
    """Show the newest entries that fit, the oldest of them first, and the newest link of the chain."""

    async def show(trail: Audit) -> None:
        entries = await trail.newest(_wanted(options), limit)
        for entry in entries:
            click.echo(line(entry))
        if not entries:
            click.echo("No entry fits.")
        click.echo(f"The newest entry is {await trail.head()}", err=True)

    _run(settings_from(config), show)


@audit.command()
@config_option
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    type=LinkType(),
    help="An entry as it was printed or logged earlier; it must still be in the chain. May be given several times.",
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Check an export in JSON Lines (without filters) instead of the database.",
)
def verify(config: Path | None, anchors: tuple[Link, ...], path: Path | None) -> None:
    """Check the whole chain. Exit code 0 when it is as it was written, 1 with what is wrong where.

    It prints the newest link, SEQ:HASH. Note it somewhere else, and give it with --anchor next time: only so a cut-off
    end, or a chain that was written anew from its beginning, can be told from a true one.
    """
    verifier = Verifier(anchors)
    if path is not None:
        try:
            with path.open(encoding="utf-8", errors="surrogateescape") as file:
                for entry in _read(file):
                    verifier.take(entry)
        except OSError as error:
            fail(ConductorError(f"{path} cannot be read: {error.strerror}."))
        verifier.finish()
    else:
        _run(settings_from(config), lambda trail: trail.verify(verifier))
    for finding in verifier.findings:
        click.secho(harmless(f"{finding.kind}: {finding.said}"), fg="red", err=True)
    if verifier.found:
        more = verifier.found - len(verifier.findings)
        click.echo(
            f"The audit trail is not as it was written: {_many(verifier.found, 'finding')} in "
            f"{_many(verifier.count, 'entry', 'entries')}"
            + (f", {more} of them not shown." if more else "."),
            err=True,
        )
        sys.exit(1)
    if verifier.newest is None:
        click.echo("The audit trail is empty.")
        return
    click.echo(
        f"{_many(verifier.count, 'entry', 'entries')}, each as it was written. The newest is {verifier.newest}"
    )


@audit.command()
@config_option
@_filters
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="jsonl can be checked with `verify --file`; csv is for spreadsheets.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A new file, for its owner alone; default: standard output.",
)
def export(config: Path | None, format_: str, output: Path | None, **options: Any) -> None:
    """Write all entries that fit, in order, however many they are."""
    settings = settings_from(config)

    async def write(trail: Audit) -> None:
        with _output(output) as file:
            writer = _Csv(file) if format_ == "csv" else _JsonLines(file)
            count, last = 0, None
            async for entry in trail.entries(_wanted(options)):
                writer.write(entry)
                count, last = count + 1, entry
            file.flush()
        link = f", the last is {last.link}" if isinstance(last, Entry) else ""
        click.echo(f"{_many(count, 'entry', 'entries')}{link}", err=True)

    _run(settings, write)


def line(entry: Entry | Unreadable) -> str:
    """One line for people: when, what, who, on what, and what matters about it."""
    if isinstance(entry, Unreadable):
        return f"#{entry.seq} was changed: {harmless(oneline(entry.why, MAX_LINE))}"
    about = f"{entry.repo}{f'#{entry.number}' if entry.number is not None else ''}"
    told = [f"{entry.at[:19].replace('T', ' ')} #{entry.seq} {entry.kind}", about, f"by {entry.actor}"]
    if entry.job_id:
        told.append(f"job {entry.job_id}")
    if entry.sha:
        told.append(f"sha {entry.sha[:12]}")
    if why := _why(entry.decision):
        told.append(f"because: {why}")
    shown = {name: value for name, value in (entry.details or {}).items() if value not in (None, "", [], {})}
    if shown:
        told.append(canonical(shown).decode(errors="replace"))
    return harmless(" ".join(oneline(part, MAX_LINE) for part in told if part))


def _why(decision: Any) -> str:
    try:
        return " ".join(refusals(from_data(decision))) if decision else ""
    except (KeyError, TypeError, AttributeError):
        return ""


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, entry: Entry | Unreadable) -> None:
        if isinstance(entry, Unreadable):
            # it keeps its place, and `verify --file` finds it
            self._file.write(orjson.dumps({"seq": entry.seq, "unreadable": entry.why}).decode() + "\n")
            return
        self._file.write(canonical(entry.values()).decode() + "\n")


class _Csv:
    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file)
        self._writer.writerow(COLUMNS)

    def write(self, entry: Entry | Unreadable) -> None:
        if isinstance(entry, Unreadable):
            self._writer.writerow([entry.seq, "", "unreadable", _cell(entry.why)])
            return
        self._writer.writerow([_cell(getattr(entry, name)) for name in COLUMNS])


def _cell(value: Any) -> str:
    """A value as text that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else canonical(value).decode()
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConductorError(
            f"{path} exists already.", "Name a new file: an export overwrites nothing."
        ) from None
    except OSError as error:
        raise ConductorError(f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        yield file


def _read(file: TextIO) -> Iterator[Entry | Unreadable]:
    """The entries of an export in JSON Lines."""
    known = frozenset(COLUMNS)
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        seq = number
        try:
            values = orjson.loads(text)
            seq = int(values["seq"])
            if set(values) != known:
                raise ValueError("it does not have the fields of an entry")
            yield Entry(**values)
        except (ValueError, TypeError, KeyError) as error:
            yield Unreadable(seq=seq, why=f"line {number}: {str(error)[:200]}")


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or f'{one}s'}"


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _run(settings: Settings, work: Callable[[Audit], Any]) -> None:
    async def run() -> None:
        async with _trail(settings) as trail:
            await work(trail)

    try:
        asyncio.run(run())
    except (SQLAlchemyError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise  # whoever read our output has seen enough; click ends quietly
        why = (str(error).splitlines() or [""])[0]
        fail(
            InfrastructureError(
                f"The database cannot be read: {why}", "Check CONDUCTOR_DATABASE_URL and DATA_DIR."
            )
        )
    except ConductorError as error:
        fail(error)


@asynccontextmanager
async def _trail(settings: Settings) -> AsyncIterator[Audit]:
    engine = create_engine(settings.sql_url)
    try:
        await upgrade(engine)
        yield Audit(engine, Redactor(settings.secrets()))
    finally:
        await engine.dispose()
