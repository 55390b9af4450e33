"""`conductor worker`: what runs on each worker host, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from bot import __version__
from bot.approval_desk import ApprovalDesk
from bot.approval_store import ApprovalStore
from bot.approval_writer import ApprovalWriter
from bot.audit import Audit
from bot.config import Settings
from bot.conversation import Conversation
from bot.database import create_engine, upgrade
from bot.facts import FactFinder
from bot.github import GitHub
from bot.janitor import Janitor
from bot.keeper import Keeper
from bot.ledger import Ledger
from bot.lfs_publisher import LfsPublisher
from bot.limits import size
from bot.performer import Performer, Workshop
from bot.policy import Limits
from bot.proposals import Proposals
from bot.publisher import Publisher
from bot.queue import Dispatcher
from bot.redact import Redactor
from bot.repo_layers import ServerRules
from bot.report import Reporter
from bot.reviews import ReviewFinder
from bot.scales import Scales
from bot.scheduling import Scheduler
from bot.shelf import Shelf
from bot.store import Store
from bot.submodule_finder import SubmoduleFinder
from runners.backends import create_runner
from runners.gateway.egress import Egress
from runners.gateway.git import GitRoute
from runners.gateway.lfs import LfsRoute
from runners.gateway.live_words import LiveWordsRoute
from runners.gateway.llm import LlmProxy
from runners.gateway.mcp import McpRoute
from runners.gateway.server import Gateway
from runners.lfs_remote import LfsRemote
from runners.lfs_store import ObjectCache
from runners.mirrors import Mirrors
from runners.presets import ImagePresets
from runners.provision import create_images
from runners.supervisor import Slots, Supervisor
from runners.worker import QueueThread

log = structlog.get_logger(__name__)


@asynccontextmanager
async def worker(settings: Settings, redactor: Redactor) -> AsyncIterator[Supervisor]:
    """Take and carry out jobs while the block runs. Containers go on when it ends; the next process adopts them."""
    settings.require("github_app_id", "github_private_key", "redis_url")
    engine = create_engine(settings.sql_url)
    audit = Audit(engine, redactor)
    github = GitHub.from_settings(settings, on_token=redactor.add, on_mint=audit.minted)
    dispatcher = Dispatcher(settings.redis_url)
    runner = create_runner(settings.runner, settings)
    llm = LlmProxy(settings, Ledger(engine))
    lfs_remote = LfsRemote(settings.github_url)
    lfs_cache = ObjectCache(settings.data_dir / "lfs", limit=size(settings.lfs_cache_disk))
    lfs = LfsRoute(
        cache=lfs_cache,
        remote=lfs_remote,
        token=lambda installation, repository: _read_token(github, installation, repository),
        max_object_bytes=settings.lfs_max_file_bytes,
        max_new_bytes=settings.lfs_max_push_bytes,
    )
    git = GitRoute(max_push_bytes=settings.max_push_bytes, lfs=lfs)
    mcp = McpRoute(settings, proxied=settings.runner != "local")
    store = Store(engine, Limits.of(settings), audit=audit)
    gateway = Gateway(
        {
            "git": git.serve,
            "llm": llm.serve,
            "mcp": mcp.serve,
            "live-words": LiveWordsRoute(store.live_words).serve,
        },
        egress=Egress.from_settings(settings),
    )
    images = create_images(settings, runner, gateway)
    try:
        await upgrade(engine)
        await dispatcher.ping()
        await runner.check()
        async with github:
            scheduler = Scheduler(store, dispatcher)
            mirrors = Mirrors(settings.data_dir / "mirrors")
            facts = FactFinder(github, ServerRules.of(settings))
            reporter = Reporter(
                github,
                store,
                redactor,
                may_allow=settings.egress_may_allow,
                web_url=settings.github_url,
                audit=audit,
            )
            publisher = Publisher(
                settings=settings,
                store=store,
                github=github,
                facts=facts,
                reporter=reporter,
                redactor=redactor,
                audit=audit,
                lfs=LfsPublisher(
                    github=github, remote=lfs_remote, cache=lfs_cache, redactor=redactor, audit=audit
                ),
            )
            await publisher.signer()  # a key that cannot sign is told now, not at the end of a job
            supervisor = Supervisor(
                store=store,
                host=settings.host_name,
                slots=Slots(settings.slots),
                lease=timedelta(seconds=settings.lease_seconds),
                serves=settings.host_capabilities,
                frozen=timedelta(seconds=settings.hibernate_after),
                perform=Performer(
                    Workshop(
                        settings=settings,
                        store=store,
                        github=github,
                        scheduler=scheduler,
                        facts=facts,
                        reporter=reporter,
                        publisher=publisher,
                        audit=audit,
                        redactor=redactor,
                        runner=runner,
                        images=images,
                        gateway=gateway,
                        mirrors=mirrors,
                        submodules=SubmoduleFinder(
                            github_url=settings.github_url, github=github, facts=facts, mirrors=mirrors
                        ),
                        conversation=Conversation(
                            github,
                            facts,
                            redactor,
                            before_writing=lambda job: store.check_fence(job.id, job.fence),
                        ),
                        proposals=Proposals(
                            settings=settings,
                            store=store,
                            publisher=publisher,
                            desk=ApprovalDesk(
                                github=github,
                                store=store,
                                approvals=ApprovalStore(engine, audit),
                                reviews=ReviewFinder(github),
                                writer=ApprovalWriter(github, reporter, github_url=settings.github_url),
                            ),
                        ),
                        keeper=Keeper(Shelf(engine, max_bytes=settings.session_max_bytes)),
                        scales=Scales(runner),
                        presets=None if settings.runner == "local" else ImagePresets(),
                    )
                ),
            )
            janitor = Janitor(
                store=store,
                host=settings.host_name,
                runner=runner,
                images=images,
                mirrors=mirrors,
                folder=settings.data_dir / "attempts",
                owned=lambda: supervisor.running,
            )
            queue = QueueThread(settings.redis_url, supervisor, asyncio.get_running_loop())
            await supervisor.adopt()
            await scheduler.offer_waiting()  # what only this host may have been waited for
            tasks = [
                asyncio.create_task(supervisor.run(), name="supervisor"),
                asyncio.create_task(janitor.run(), name="janitor"),
            ]
            queue.start()
            await audit.started("worker", settings)
            log.info("working", host=settings.host_name, slots=settings.slots, version=__version__)
            try:
                yield supervisor
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await supervisor.close()
                await queue.stop()
                await gateway.aclose()
    finally:
        await llm.close()
        await lfs_remote.close()
        await images.close()
        await runner.close()
        dispatcher.close()
        await engine.dispose()


async def _read_token(github: GitHub, installation_id: int, repository_id: int) -> str:
    """A token that may read the contents of one repository."""
    token = await github.token(installation_id, repository_id=repository_id, permissions={"contents": "read"})
    return token.value
