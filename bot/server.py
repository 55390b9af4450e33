"""`conductor serve`: the webhook server, its handlers and the housekeeping, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from aiohttp import web

from bot import __version__
from bot.approval_desk import ApprovalDesk
from bot.approval_store import ApprovalStore
from bot.approval_writer import ApprovalWriter
from bot.audit import Audit
from bot.catching_up import CatchingUp
from bot.check_reader import CheckReader
from bot.conductor import Conductor
from bot.config import Settings
from bot.config_check import ConfigCheck
from bot.conversation import Conversation
from bot.cursors import Cursors
from bot.database import create_engine, redacted_url, upgrade
from bot.delivery_log import DeliveryLog
from bot.dialogue import Dialogue
from bot.errors import InfrastructureError
from bot.events import NotForUs, parse_event
from bot.facts import FactFinder
from bot.failing_heads import FailingHeads
from bot.final_check import FinalCheck
from bot.fixer import Fixer
from bot.github import GitHub
from bot.housekeeping import Housekeeping
from bot.inbox import Delivery, Inbox
from bot.installation_store import InstallationStore
from bot.installs import Installs
from bot.ledger import Ledger
from bot.policy import Limits
from bot.presence import Presence, server_name
from bot.queue import Dispatcher
from bot.redact import Redactor
from bot.repo_layers import ServerRules
from bot.report import Reporter
from bot.repository_setup import RepositorySetup
from bot.reviews import ReviewFinder
from bot.scheduling import Scheduler
from bot.setup_backlog import SetupBacklog
from bot.shelf import Shelf
from bot.slash import parse_commands
from bot.store import Store
from bot.unanswered import Unanswered
from bot.web import PROCESSOR, create_app
from handlers.context import Bot
from handlers.labels import agent_in
from handlers.table import router
from runners.agents.registry import agent, known_agents

log = structlog.get_logger(__name__)

#: Deliveries are kept for longer than GitHub keeps them for redelivery (3 days).
KEEP_DELIVERIES = timedelta(days=8)


@asynccontextmanager
async def server(settings: Settings, redactor: Redactor) -> AsyncIterator[str]:
    """Serve while the block runs; yields the address. Raises ConductorError when something cannot be used."""
    settings.require("webhook_secret")
    async with _organs(settings, redactor) as organs:
        bot, dispatcher, github = organs.bot, organs.dispatcher, organs.github
        conductor, store = bot.conductor, bot.conductor.store
        await dispatcher.ping()
        presence = Presence(settings.redis_url, server_name(settings.host_name, settings.listen))
        inbox = Inbox(store.engine, server=presence.name)
        shelf = Shelf(store.engine, max_bytes=settings.session_max_bytes)

        async def prune() -> None:
            await inbox.prune(datetime.now(UTC) - KEEP_DELIVERIES)
            await shelf.expire(timedelta(days=settings.session_days))

        housekeeping = Housekeeping(
            store=store,
            scheduler=conductor.scheduler,
            reporter=conductor.reporter,
            prune=prune,
            patience=timedelta(days=settings.answer_days),
            also=(
                bot.fixer.sweep,
                bot.desk.settle,
                bot.installs.look,
                bot.installs.forget_removed,
                bot.installs.set_up_next,
            ),
        )
        app = create_app(
            settings,
            inbox=inbox,
            wanted=router.wanted,
            on_delivery=lambda delivery: handle(delivery, bot),
            checks={"database": store.ping, "redis": dispatcher.ping},
            gone=presence.gone,
        )
        catching_up = CatchingUp(
            delivery_log=DeliveryLog(github),
            unanswered=Unanswered(
                github=github,
                facts=FactFinder(github, ServerRules.of(settings)),
                store=store,
                inbox=inbox,
                wanted=router.wanted,
                is_label=lambda name: agent_in(name)[0],
                is_command=lambda text: bool(parse_commands(text)),
            ),
            inbox=inbox,
            cursors=Cursors(store.engine),
            locks=store.locks,
            reporter=conductor.reporter,
            wanted=router.wanted,
            take=app[PROCESSOR].take,
        )
        async with presence.shown(), _listening(app, settings) as address:
            keepers = [
                asyncio.create_task(housekeeping.run(), name="housekeeping"),
                asyncio.create_task(catching_up.run(), name="catching up"),
            ]
            await conductor.audit.started("server", settings)
            log.info(
                "serving",
                address=address,
                version=__version__,
                github=settings.github_api_url,
                database=redacted_url(settings.sql_url),
            )
            try:
                yield address
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)


@asynccontextmanager
async def heart(settings: Settings, redactor: Redactor) -> AsyncIterator[tuple[Conductor, Dispatcher]]:
    """What decides, with its database, Redis and GitHub: for the server, and for the operator's commands."""
    async with _organs(settings, redactor) as organs:
        yield organs.bot.conductor, organs.dispatcher


@asynccontextmanager
async def everything_that_acts(settings: Settings, redactor: Redactor) -> AsyncIterator[Bot]:
    """What handlers work with, for operators' commands that do what people do on GitHub."""
    async with _organs(settings, redactor) as organs:
        yield organs.bot


@dataclass(frozen=True, kw_only=True)
class _Organs:
    bot: Bot
    dispatcher: Dispatcher
    github: GitHub


@asynccontextmanager
async def _organs(settings: Settings, redactor: Redactor) -> AsyncIterator[_Organs]:
    settings.require("github_app_id", "github_private_key", "redis_url")
    engine = create_engine(settings.sql_url)
    dispatcher = Dispatcher(settings.redis_url)
    try:
        await upgrade(engine)
        audit = Audit(engine, redactor)
        async with GitHub.from_settings(settings, on_token=redactor.add, on_mint=audit.minted) as github:
            store = Store(engine, Limits.of(settings), audit=audit)
            facts = FactFinder(github, ServerRules.of(settings))
            approvals = ApprovalStore(engine, audit)
            conductor = Conductor(
                settings=settings,
                store=store,
                scheduler=Scheduler(store, dispatcher),
                facts=facts,
                reporter=Reporter(
                    github,
                    store,
                    redactor,
                    may_allow=settings.egress_may_allow,
                    web_url=settings.github_url,
                    answers_hour=settings.limit_answers_hour,
                    audit=audit,
                ),
                ledger=Ledger(engine),
                audit=audit,
                approvals=approvals,
                known_agents=known_agents(settings),
            )
            checks = CheckReader(github, redactor)
            dialogue = Dialogue(
                conductor=conductor,
                facts=facts,
                conversation=Conversation(github, facts, redactor),
                checks=checks,
                approvals=approvals,
                listens=lambda name: bool(agent(name, settings).session_paths),
                unable=lambda name: unable(name, settings),
            )
            reviews = ReviewFinder(github)
            writer = ApprovalWriter(github, conductor.reporter, github_url=settings.github_url)
            yield _Organs(
                bot=Bot(
                    conductor=conductor,
                    dialogue=dialogue,
                    desk=ApprovalDesk(
                        github=github,
                        store=store,
                        approvals=approvals,
                        reviews=reviews,
                        writer=writer,
                        outcome=dialogue,
                    ),
                    final=FinalCheck(
                        github=github,
                        store=store,
                        approvals=approvals,
                        facts=facts,
                        reviews=reviews,
                        writer=writer,
                        audit=audit,
                    ),
                    config_check=ConfigCheck(
                        facts, conductor.reporter.checks, settings, known_agents(settings)
                    ),
                    fixer=Fixer(
                        github=github,
                        store=store,
                        heads=FailingHeads(engine),
                        facts=facts,
                        checks=checks,
                        submit=conductor.submit,
                        tell=conductor.reporter.reply,
                        unable=lambda name: unable(name, settings),
                    ),
                    installs=Installs(
                        conductor=conductor,
                        approvals=approvals,
                        github=github,
                        states=InstallationStore(engine),
                        setup=RepositorySetup(github, store, agents=settings.agents),
                        backlog=SetupBacklog(Cursors(engine), store.locks),
                        create_labels=settings.create_labels,
                        welcome_issue=settings.welcome_issue,
                    ),
                ),
                dispatcher=dispatcher,
                github=github,
            )
    finally:
        dispatcher.close()
        await engine.dispose()


def unable(name: str, settings: Settings) -> str:
    """Why an agent that has worked cannot be told what is wrong now, a part of a sentence; "" when it can."""
    if name not in settings.agents or name not in known_agents(settings):
        return f"the agent `{name}`, which worked here, is not offered any more"
    if agent(name, settings).llm is None:
        return f"the agent `{name}`, which worked here, runs what it is given and has no model to understand more"
    return ""


async def handle(delivery: Delivery, bot: Bot) -> None:
    """Give a stored delivery to the handlers. Raises when it is to be tried again."""
    try:
        event = parse_event(delivery.id, delivery.event, delivery.payload())
    except NotForUs as error:
        log.info("not for us", delivery=delivery.id, event_name=delivery.event, reason=str(error))
        return
    await router.dispatch(event, bot)


@asynccontextmanager
async def _listening(app: web.Application, settings: Settings) -> AsyncIterator[str]:
    host, port = settings.listen_address
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise InfrastructureError(
                f"Cannot listen on {settings.listen}: {error.strerror}.",
                "Set CONDUCTOR_LISTEN to a free host:port.",
            ) from error
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
