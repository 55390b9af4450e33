"""Who may do what: a pure function of facts. Its answer is a tree of reasons that everything else renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from bot.config import Settings
from bot.model import Actor, Job, JobKind, Request, TargetKind
from bot.profiles import Profile
from bot.protected import matching
from bot.reasons import Reason, all_of, any_of, refusals
from bot.repo_config import PATH as CONFIG_PATH
from bot.repo_config import LimitsConfig, RepoConfig
from bot.repo_rules import PlanRule
from bot.standing import Standing, at_least, entitled

#: What it takes to command the bot at all: https://docs.github.com/en/rest/collaborators/collaborators
NEEDED = "write"
#: The priority of what a person waits for. What a schedule starts has a lower one.
PERSON = 10


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found out about a request before it is decided. ``None``: it could not be found out."""

    actor: Actor
    permission: str | None  # the actor's, one of bot.standing.ROLES
    suspended: bool | None = False
    teams: frozenset[str] = frozenset()  # the actor's, as bot.standing.Standing has them
    unknown_teams: frozenset[str] = frozenset()
    code_owner: bool | None = False
    account: str = ""  # whose repository it is
    app_user_id: int | None = None
    archived: bool = False
    target: TargetKind = TargetKind.issue
    open: bool = True
    from_fork: bool = False
    head_sha: str | None = None  # of the pull request, now
    fork_moved: bool = False  # it was, or may have been, pushed to since this was asked for
    config: RepoConfig = field(default_factory=RepoConfig)  # of the default branch
    config_problem: str = ""  # why that could not be used
    profile: Profile | None = None  # of the default branch, or bundled
    profile_problem: str = ""  # why there is none, though one is wanted
    unserved: tuple[str, ...] = ()  # capabilities it asks for that no worker host has
    labels: tuple[str, ...] = ()  # of the issue or pull request
    paths: tuple[str, ...] = ()  # that the pull request changes, where anybody needs to know
    paths_complete: bool = True
    planned: bool = False  # what is in the pull request was made by an approved plan
    public: bool = False  # anybody may read the repository, and so write issues and comments
    author: Actor | None = None  # of the issue or pull request; None: the account is gone
    author_permission: str | None = None
    title_now: str = ""  # as they stand on GitHub now, and not when it was asked for
    body_now: str = ""

    @property
    def standing(self) -> Standing:
        """The asker, for the rules that name people."""
        return Standing(
            login=self.actor.login,
            id=self.actor.id,
            human=not self.actor.is_bot and self.actor.id != self.app_user_id,
            permission=self.permission,
            suspended=self.suspended,
            teams=self.teams,
            unknown_teams=self.unknown_teams,
            owner=self.code_owner,
        )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the server allows."""

    agents: tuple[str, ...]
    known_agents: tuple[str, ...]
    max_timeout: int  # seconds
    default_agent: str = ""
    models: Mapping[str, str] = field(default_factory=dict)  # agent -> model, when nobody names one


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much at once, and how often. 0: no limit."""

    repository: int = 0  # running at once, as the two that follow
    installation: int = 0
    user: int = 0
    user_hour: int = 0  # accepted from one person in an hour
    queued: int = 0  # waiting in one repository
    repository_hour: int = 0  # accepted in one repository in an hour
    user_repository_hour: int = 0  # from one person in it
    conversation_hour: int = 0  # accepted in one conversation in an hour, whoever asked
    settle: int = 0  # seconds in which other reviews may join the job that one has started

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The operator's limits."""
        return cls(
            repository=settings.limit_repository,
            installation=settings.limit_installation,
            user=settings.limit_user,
            user_hour=settings.limit_user_hour,
            queued=settings.limit_queued,
            repository_hour=settings.limit_repository_hour,
            conversation_hour=settings.limit_conversation_hour,
            settle=settings.review_settle,
        )

    def within(self, wanted: LimitsConfig) -> Self:
        """With the repository's own limits on asking, where those are lower."""
        own = wanted.repository_hour or 0
        limits = [limit for limit in (self.repository_hour, own) if limit]
        return replace(
            self,
            repository_hour=min(limits) if limits else 0,
            user_repository_hour=wanted.user_hour or 0,
        )


@dataclass(frozen=True, kw_only=True)
class Load:
    """What counts against the limits on asking."""

    user_hour: int = 0
    queued: int = 0
    repository_hour: int = 0
    user_repository_hour: int = 0
    conversation_hour: int = 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a job is done with: asked for, else as the repository says, else the server's default."""

    agent: str
    model: str | None
    timeout: int  # seconds


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Yes or no, with the whole tree. ``silent``: a no that nobody is told about (bots, ourselves)."""

    root: Reason
    silent: bool = False
    flood: bool = False  # a no that is told once and not for each thing that is asked
    lasting: bool = False  # a no to the person, who need not hear it again

    @property
    def allowed(self) -> bool:
        """Whether it may be done."""
        return self.root.ok

    @property
    def refusals(self) -> list[str]:
        """The sentences of every no."""
        return refusals(self.root)


def authorize(facts: Facts) -> Decision:
    """May this actor command the bot on this repository? Every trigger asks this; deny when in doubt."""
    if facts.actor.is_bot or facts.actor.id == facts.app_user_id:
        reason = Reason(
            question="is the asker a person", ok=False, said="Bots cannot start or stop work here."
        )
        return Decision(root=all_of("may command", [reason]), silent=True)
    if facts.suspended is not False:
        said = (
            "Your account is suspended, so you cannot start or stop work here."
            if facts.suspended
            else "I could not find out whether your account is in use, so I did nothing. Please try again later."
        )
        reason = Reason(question="is the asker's account in use", ok=False, said=said)
        return Decision(root=all_of("may command", [reason]), lasting=facts.suspended is True)
    may = at_least(facts.permission, NEEDED)
    if facts.permission is None:
        said = "I could not find out whether you have write access, so I did nothing. Please try again later."
    elif may:
        said = f"@{facts.actor.login} has {facts.permission} access."
    else:
        said = (
            f"Starting or stopping work needs write access to this repository; you have {facts.permission}."
        )
    reason = Reason(question="may the asker write", ok=may, said=said)
    lasting = facts.permission is not None and not may
    return Decision(root=all_of("may command", [reason]), lasting=lasting)


def not_their_own(actor: Actor, via_app: int | None = None) -> Decision:
    """The no to a command that this actor did not write as a person. ``via_app``: the App that did, if that is known.

    What an App writes in somebody's name a model may have written, or whoever the App lets. Nobody is told: they did
    not ask.
    """
    if via_app is not None:
        said = f"The App {via_app} wrote this as @{actor.login}."
    elif actor.is_bot:
        said = f"@{actor.login} is a bot, which may quote what others wrote."
    else:
        said = f"It is not certain that @{actor.login} wrote this: an App may have, or it was moved here."
    reason = Reason(question="did the asker write this", ok=False, said=said)
    return Decision(root=all_of("may command", [reason]), silent=True)


def may_go_on(facts: Facts) -> Decision:
    """May this actor let an agent that is there do more: answer it, or tell it something?"""
    access = authorize(facts)
    if not access.allowed:
        return access
    reasons = [
        *access.root.because,
        may_ask(facts),
        Reason(
            question="is the repository's configuration usable",
            ok=not facts.config_problem,
            said=facts.config_problem,
        ),
    ]
    return Decision(root=all_of("may let it go on", reasons))


def may_ask(facts: Facts) -> Reason:
    """Is the asker one of those whom the repository lets start jobs?"""
    rule = facts.config.who.may_ask
    if rule.anybody and rule.permission == NEEDED:
        return Reason(question="may the asker start jobs", ok=True, said="Everybody with write access may.")
    found = entitled(rule, facts.standing, facts.account)
    said = " ".join(refusals(found)) if not found.ok else "yes"
    return replace(found, question="may the asker start jobs", said=said)


def kind_for(facts: Facts, request: Request) -> JobKind:
    """What becomes of ``request``: a task that needs an approved plan is a plan first.

    What an approval started has its plan, and a review of what was made by that only follows it up. A review of a
    pull request without such work asks for whatever it says.
    """
    feedback = request.trigger.event.startswith("pull_request_review.")
    planned = request.approval_id is not None or (feedback and facts.planned)
    return JobKind.plan if not planned and plan_first(facts, request.kind).ok else request.kind


def plan_first(facts: Facts, kind: JobKind) -> Reason:
    """Must a person approve a plan before this work starts? ``ok``: yes, it must."""
    rule = facts.config.approvals.plan
    question = "must a plan be approved first"
    if kind is not JobKind.task:
        return Reason(question=question, ok=False, said=f"Not for a job of kind {kind}.")
    reasons = [Reason(question="is it always so", ok=rule.always, said="yes" if rule.always else "no")]
    reasons += _labelled(rule, facts) if rule.labels else []
    reasons += _touched(rule, facts) if rule.paths else []
    return any_of(question, reasons)


def _labelled(rule: PlanRule, facts: Facts) -> list[Reason]:
    wanted = {label.lower() for label in rule.labels}
    found = sorted({label for label in facts.labels if label.lower() in wanted})
    said = f"It has {', '.join(f'`{label}`' for label in found)}." if found else "It has none of them."
    return [Reason(question="has it a label that needs one", ok=bool(found), said=said)]


def _touched(rule: PlanRule, facts: Facts) -> list[Reason]:
    found = matching(rule.paths, facts.paths)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        said = f"The pull request changes `{found[0]}`{more}."
    elif not facts.paths_complete:
        said = "The pull request changes more files than GitHub lists."
    else:
        said = "It changes none of them."
    ok = bool(found) or not facts.paths_complete
    return [Reason(question="does it change paths that need one", ok=ok, said=said)]


def choose(rules: Rules, config: RepoConfig, request: Request, profile: Profile | None = None) -> Choice:
    """What is used for ``request`` in a repository with ``config``, with the job's ``profile``."""
    usual = config.agent or rules.default_agent
    own = (profile.agent, profile.model) if profile is not None else (None, None)
    agent = request.agent or own[0] or request.usual_agent or usual
    # a model fits its own agent only: the repository's is for the repository's agent, a profile's for the profile's
    models = ((own[0] or usual, own[1]), (request.usual_agent, request.usual_model), (usual, config.model))
    fitting = [model for whose, model in models if whose == agent and model]
    model = request.model or next(iter(fitting), None) or rules.models.get(agent)
    longest = longest_of(rules, config)
    timeout = request.timeout or request.usual_timeout or longest
    return Choice(agent=agent, model=model, timeout=min(timeout, longest))


def longest_of(rules: Rules, config: RepoConfig) -> int:
    """How long a job may take, in seconds: the lower one of the server's limit and the repository's."""
    return min(rules.max_timeout, config.limits.timeout or rules.max_timeout)


def throttle(limits: Limits, load: Load, login: str) -> Decision:
    """May one more job be accepted, or would that be too many?"""
    reasons = [
        Reason(
            question="has the asker asked seldom enough",
            ok=not limits.user_hour or load.user_hour < limits.user_hour,
            said=f"@{login} has asked for {load.user_hour} jobs within an hour, and no more are taken. "
            "Ask again later; until then I stay silent.",
        ),
        Reason(
            question="is the line short enough",
            ok=not limits.queued or load.queued < limits.queued,
            said=f"{load.queued} jobs of this repository wait already, and no more are taken. "
            "Ask again when some of them are done; until then I stay silent.",
        ),
        Reason(
            question="has the repository had few enough",
            ok=not limits.repository_hour or load.repository_hour < limits.repository_hour,
            said=f"{load.repository_hour} jobs of this repository were asked for within an hour, and no more are "
            "taken. Ask again later; until then I stay silent.",
        ),
        Reason(
            question="has the asker asked seldom enough here",
            ok=not limits.user_repository_hour or load.user_repository_hour < limits.user_repository_hour,
            said=f"@{login} has asked for {load.user_repository_hour} jobs of this repository within an hour, and "
            f"`{CONFIG_PATH}` allows no more. Ask again later; until then I stay silent.",
        ),
    ]
    if limits.conversation_hour and load.conversation_hour >= limits.conversation_hour:
        said = (
            f"{load.conversation_hour} jobs were asked for here within an hour, which looks like a loop, so no more "
            "are taken. Ask again later; until then I stay silent."
        )
        reasons.append(Reason(question="has the conversation had few enough", ok=False, said=said))
    return Decision(root=all_of("may be accepted now", reasons), flood=True)


def once(under_way: Job | None) -> Decision:
    """Is it new, or is the very same work waiting or running already (``under_way``)?"""
    said = ""
    if under_way is not None:
        said = (
            f"Job `{under_way.id}` is at it already: {under_way.trigger.actor.login} asked for the same. Write "
            "`/agent` and what else you want done."
        )
    reason = Reason(question="is nobody at it already", ok=under_way is None, said=said)
    return Decision(root=all_of("is new", [reason]))


def afford(used_up: str) -> Decision:
    """Is there money left? ``used_up``: the sentence about the budget that is not, "" when there is."""
    return Decision(
        root=all_of("may spend", [Reason(question="is there money left", ok=not used_up, said=used_up)])
    )


def decide(
    rules: Rules, facts: Facts, *, agent: str, timeout: int | None = None, base: str | None = None
) -> Decision:
    """May this job be started?"""
    access = authorize(facts)
    if not access.allowed:
        return access
    usable = [name for name in rules.agents if name in rules.known_agents]
    names = ", ".join(f"`{name}`" for name in usable)
    wrong_base = bool(base) and facts.target is TargetKind.pull_request
    max_timeout = longest_of(rules, facts.config)
    unserved = " and ".join(f"`{name}`" for name in facts.unserved)
    reasons = [
        *access.root.because,
        may_ask(facts),
        Reason(
            question="is the repository's configuration usable",
            ok=not facts.config_problem,
            said=facts.config_problem,
        ),
        Reason(
            question="is there such a profile",
            ok=not facts.profile_problem,
            said=facts.profile_problem,
        ),
        Reason(
            question="is there a host for it",
            ok=not facts.unserved,
            said=f"No worker host serves {unserved}, which `{CONFIG_PATH}` asks for under `needs`.",
        ),
        Reason(
            question="is the agent offered",
            # without a usable configuration or profile nobody knows which agent is meant
            ok=agent in usable or bool(facts.config_problem or facts.profile_problem),
            said=f"The agent `{agent}` is not offered here; there are {names}.",
        ),
        Reason(
            question="is the repository alive",
            ok=not facts.archived,
            said="This repository is archived: nothing can be pushed to it.",
        ),
        Reason(
            question="is it open",
            ok=facts.open,
            said="This is closed. Reopen it first, then ask again.",
        ),
        Reason(
            question="may the branch be worked on",
            ok=not facts.from_fork or facts.config.forks == "branch",
            said="This pull request comes from a fork, and this repository wants no work on those (`forks: never`). "
            "Open an issue for the change instead.",
        ),
        Reason(
            question="is the fork as it was",
            ok=not facts.fork_moved,
            said="The fork's branch was pushed to since you asked, or may have been, because I heard of it late. "
            "Look at what is there now, then ask again.",
        ),
        Reason(
            question="is the base fitting",
            ok=not wrong_base,
            said="`--base` is for issues; work on a pull request starts from its own branch.",
        ),
        Reason(
            question="is the time limit allowed",
            ok=timeout is None or timeout <= max_timeout,
            said=f"The time limit here is at most {max_timeout} seconds.",
        ),
    ]
    return Decision(root=all_of("may start", reasons))
