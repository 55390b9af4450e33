"""The purse of one worker host: no call begins that a budget does not allow, and every call is written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.budget import Limit, Scope, dollars, limits, most, next_step, scopes, sentence, used_up
from bot.config import ENV_PREFIX, Settings
from bot.ledger import Entry, Ledger, today
from bot.terms import Terms

DATABASE_TIMEOUT = 15.0  # seconds
WAIT = 300.0  # seconds that a call waits for others whose price may use up the budget
MAX_UNSAVED = 10_000  # entries that are kept while the database is away

_AWAY = (SQLAlchemyError, OSError)  # TimeoutError is an OSError

log = structlog.get_logger(__name__)


class NoMoney(Exception):
    """The call must not be made. ``halt``: nor any other of this attempt, and this is what its people are told."""

    def __init__(self, message: str, *, halt: str = "", status: int = 402) -> None:
        super().__init__(message)
        self.message = message  # for the agent
        self.halt = halt
        self.status = status


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hold:
    """A call on its way, with what it may cost at most."""

    terms: Terms
    amount: float


class Purse:
    """Asks the ledger before a call and tells it afterwards. Without a ledger there are no budgets."""

    def __init__(self, settings: Settings, ledger: Ledger | None, *, wait: float = WAIT) -> None:
        self._settings = settings
        self._ledger = ledger
        self._wait = wait
        self._holds: set[_Hold] = set()
        self._ended = 0  # calls that are over
        self._changed = asyncio.Event()
        self._unsaved: list[Entry] = []

    @asynccontextmanager
    async def hold(
        self, terms: Terms, *, model: str, free: bool, request_bytes: int, max_output: int | None
    ) -> AsyncIterator[None]:
        """Keep back what a call may cost while the block runs. Raises NoMoney when it must not be made."""
        limits_ = limits(self._settings, terms)
        if self._ledger is None or not limits_:
            yield
            return
        price = self._settings.price_of(model) if model else None
        if price is None and not free and self._settings.budget_unpriced == "refuse":
            raise NoMoney(
                f"The model {model!r} has no known price, so its calls cannot be counted against the budget. Use "
                f"another model; the server's operator can add its price to {ENV_PREFIX}PRICES."
            )
        amount = 0.0 if free else most(price, request_bytes=request_bytes, max_output=max_output)
        hold = _Hold(terms=terms, amount=amount)
        try:
            async with asyncio.timeout(self._wait):
                await self._begin(self._ledger, hold, limits_)
        except TimeoutError as error:
            raise NoMoney(
                "Other calls are on their way that may use up what is left of the budget. Try again in a minute.",
                status=429,
            ) from error
        try:
            yield
        finally:
            self._holds.discard(hold)
            self._ended += 1
            self._notify()

    async def _begin(self, ledger: Ledger, hold: _Hold, limits_: Sequence[Limit]) -> None:
        while True:
            ended, changed = self._ended, self._changed
            spent = await self._spent(ledger, hold.terms, limits_)
            limit = used_up(limits_, spent)
            if limit is not None:
                words = sentence(limit, spent[limit.scope], today())
                raise NoMoney(f"{words} {next_step(limit)}", halt=words)
            if ended != self._ended:
                continue  # what that call cost may be missing in the sums
            if self._fits(hold, limits_, spent):
                self._holds.add(hold)
                return
            log.info("llm call waits for the budget", job=hold.terms.job_id, may_cost=dollars(hold.amount))
            await changed.wait()

    def _fits(self, hold: _Hold, limits_: Sequence[Limit], spent: Mapping[Scope, float]) -> bool:
        """Whether the calls on their way leave enough. One alone may always go: its price is not known before."""
        for limit in limits_:
            others = [other for other in self._holds if _shares(limit.scope, hold.terms, other.terms)]
            held = sum(other.amount for other in others)
            if others and spent[limit.scope] + held + hold.amount > limit.dollars:
                return False
        return True

    async def _spent(self, ledger: Ledger, terms: Terms, limits_: Sequence[Limit]) -> Mapping[Scope, float]:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                await self._save(ledger)
                return await ledger.spent(terms, scopes(limits_))
        except _AWAY as error:
            log.warning("the budget cannot be checked", error=str(error).splitlines()[:1])
            raise NoMoney(
                "The budget cannot be checked, because the database does not answer. Try again in a minute.",
                status=503,
            ) from error

    async def record(self, entry: Entry) -> None:
        """Write a call down; while the database is away it is kept in memory, and counted with the next one."""
        if self._ledger is None:
            return
        self._unsaved.append(entry)
        del self._unsaved[:-MAX_UNSAVED]
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                await self._save(self._ledger)
        except _AWAY as error:
            log.warning("an llm call is not in the ledger yet", error=str(error).splitlines()[:1])

    async def close(self) -> None:
        """Write down what could not be written before."""
        if self._ledger is not None and self._unsaved:
            with suppress(*_AWAY):
                async with asyncio.timeout(DATABASE_TIMEOUT):
                    await self._save(self._ledger)

    async def _save(self, ledger: Ledger) -> None:
        entries, self._unsaved = self._unsaved, []
        if not entries:
            return
        try:
            await ledger.add(entries)
        except BaseException:
            self._unsaved = entries + self._unsaved
            raise

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _shares(scope: Scope, one: Terms, other: Terms) -> bool:
    """Whether two attempts draw on the same budget."""
    match scope:
        case Scope.job:
            return one.job_id == other.job_id
        case Scope.thread:
            return one.thread_id == other.thread_id
        case Scope.user_day:
            return one.actor_id == other.actor_id
        case Scope.repository_day:
            return one.repo_id == other.repo_id
        case Scope.day:
            return True
