"""What a repository gets when the App comes into it: the labels that start jobs, and a welcome if that is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from bot.github import GitHub, path
from bot.github_errors import Forbidden, NotFound, Unprocessable
from bot.model import Repo
from bot.permissions import SPEAK
from bot.render import render
from bot.store import Store

log = structlog.get_logger(__name__)

LABEL = "agent"
COLOUR = "1d76db"  # six hexadecimal digits without the sign
_WELCOME = "Agent Conductor works here now"


class RepositorySetup:
    """Makes what is missing and changes nothing that is there; may be repeated."""

    def __init__(self, github: GitHub, store: Store, *, agents: Sequence[str]) -> None:
        """``agents``: the names that people may put behind the label; the first one is what it means alone."""
        self._github = github
        self._store = store
        self._agents = tuple(agents)

    async def labels(self, repo: Repo) -> int:
        """Create ``agent`` and, where there is a choice, ``agent:NAME`` for each agent; how many were missing.

        Labels that are there keep their colour and their description.
        https://docs.github.com/en/rest/issues/labels#create-a-label answers 422 for them.
        """
        made = 0
        client = self._github.repository(repo, SPEAK)
        for name, description in self._wanted():
            data = {"name": name, "color": COLOUR, "description": description}
            try:
                await client.post(
                    path("/repos/{owner}/{repo}/labels", owner=repo.owner, repo=repo.name), data=data
                )
            except Unprocessable:
                continue  # it is there
            except (Forbidden, NotFound) as error:
                # an archived repository, issues switched off, or gone meanwhile: people can do without
                log.warning("labels not created", repo=repo.full_name, error=str(error))
                break
            made += 1
        return made

    async def welcome(self, repo: Repo, delivery_id: str) -> None:
        """Open an issue that says how to begin; once for ever in each repository, by the delivery that came first.

        One issue too many is opened only if the process ends between that and the delivery's end.
        """
        if not await self._store.say_once(f"welcome:{repo.id}", delivery_id):
            return
        client = self._github.repository(repo, SPEAK)
        body = render("comments/welcome.md.j2", label=LABEL, agents=self._agents)
        try:
            await client.post(
                path("/repos/{owner}/{repo}/issues", owner=repo.owner, repo=repo.name),
                data={"title": _WELCOME, "body": body},
            )
        except (Forbidden, NotFound) as error:
            log.warning("no welcome", repo=repo.full_name, error=str(error))

    def _wanted(self) -> list[tuple[str, str]]:
        default, *others = self._agents or ("",)
        first = (LABEL, "Let a coding agent work on this")
        if not others:
            return [first]
        return [
            first,
            *((f"{LABEL}:{name}", f"Let {name} work on this"[:100]) for name in (default, *others)),
        ]
