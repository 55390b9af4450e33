"""Three layers of configuration: the organisation's default, the repository's own file, and the server's word. Pure.

A repository's own value replaces its organisation's; what is not a single value, and what protects, follows the
rules of :func:`merge`. The server's settings stand above both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from bot.capabilities import check_capabilities
from bot.config import Settings
from bot.errors import ConfigurationError
from bot.limits import size
from bot.network import rules_for
from bot.repo_config import STEPS_AGENT, RepoConfig, RepoConfigError
from bot.repo_rules import Entitled, Permission
from bot.services import services_of
from bot.standing import ROLES
from bot.yaml_text import Problem

#: The repository of an account that holds the default of all its others.
#: https://docs.github.com/en/communities/setting-up-your-project-for-healthy-contributions/creating-a-default-community-health-file
ORGANISATION_REPOSITORY = ".github"

#: Groups of people: one that names anybody replaces the organisation's group, so that nobody is in it by accident.
_GROUPS = (
    ("approvals", "final"),
    ("approvals", "request"),
    ("who", "may_ask"),
    ("who", "may_approve"),
    ("who", "may_spend"),
)
_MEMBERS = ("users", "teams", "codeowners")


@dataclass(frozen=True, kw_only=True)
class ServerRules:
    """What no repository may undercut."""

    ask: Permission = "write"
    approve: Permission = "write"
    approvals: int = 0
    plan_first: bool = False
    automatic_fixes: bool = True
    automatic_merges: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The operator's."""
        return cls(
            ask=settings.ask_permission,
            approve=settings.approve_permission,
            approvals=settings.approvals_required,
            plan_first=settings.plan_first,
            automatic_fixes=settings.automatic_fixes,
            automatic_merges=settings.automatic_merges,
        )


def merge(organisation: RepoConfig, own: RepoConfig) -> RepoConfig:
    """The repository's ``own`` configuration over its organisation's default.

    Mappings are merged key by key; a single value or a list of the repository replaces the organisation's. But:

    - protected paths, and the labels and paths that need a plan, add up;
    - of two limits, budgets or numbers of attempts the lower counts; of two numbers of approvals, and of two
      permissions that people need, the higher; ``plan: always`` and ``never`` of either stay;
    - a group of people that names anybody, and a named job, replaces the organisation's as one.

    Raises RepoConfigError when both together are too much.
    """
    over, under = _set(own), _set(organisation)
    for section, name in _GROUPS:
        if any(key in over.get(section, {}).get(name, {}) for key in _MEMBERS):
            for key in _MEMBERS:
                under.get(section, {}).get(name, {}).pop(key, None)
    for name in over.get("jobs", {}):
        under.get("jobs", {}).pop(name, None)
    merged = _deep(under, over)
    for key, lower in (
        ("limits", _lower_limit),
        ("budget", min),
    ):
        both = organisation.model_dump(exclude_unset=True).get(key, {})
        for name, value in own.model_dump(exclude_unset=True).get(key, {}).items():
            if value is None or both.get(name) is None:
                merged.setdefault(key, {})[name] = both.get(name) if value is None else value
            else:
                merged[key][name] = lower(value, both[name])
    try:
        found = _stricter(RepoConfig.model_validate(merged), organisation, own)
        # the lists that add up have lengths, too
        return RepoConfig.model_validate(found.model_dump(mode="json", exclude_unset=True))
    except ValidationError as error:
        raise RepoConfigError(
            [
                Problem(f"together with the organisation's default: {detail['loc']}: {detail['msg']}", 1, 1)
                for detail in error.errors()
            ]
        ) from error


def under(server: ServerRules, config: RepoConfig) -> RepoConfig:
    """``config`` with the server's word above it."""
    approvals, who = config.approvals, config.who
    plan = approvals.plan
    if server.plan_first:
        plan = plan.model_copy(update={"always": True})
    final = approvals.final.model_copy(update={"required": max(approvals.final.required, server.approvals)})
    approvals = approvals.model_copy(
        update={
            "plan": plan,
            "final": final,
            "merge": approvals.merge if server.automatic_merges else "none",
        }
    )
    who = who.model_copy(
        update={
            "may_ask": _at_least(who.may_ask, server.ask),
            "may_approve": _at_least(who.may_approve, server.approve),
            "may_spend": _at_least(who.may_spend, server.approve),
        }
    )
    fix = config.fix
    if not server.automatic_fixes:
        fix = fix.model_copy(update={"automatic": False})
    return config.model_copy(update={"approvals": approvals, "who": who, "fix": fix})


@dataclass(frozen=True)
class NotOffered:
    """Something that a repository asks for in vain, for example because this server does not have it."""

    place: tuple[str, ...]  # the keys that lead to it in the file
    said: str
    stops: bool = True  # no job can start; else it starts without


def not_offered(config: RepoConfig, settings: Settings, known_agents: tuple[str, ...]) -> list[NotOffered]:
    """What ``config`` asks for in vain."""
    found: list[NotOffered] = []
    usable = [name for name in settings.agents if name in known_agents]
    if config.agent is not None and config.agent not in usable:
        listed = ", ".join(f"`{name}`" for name in usable)
        found.append(
            NotOffered(("agent",), f"The agent `{config.agent}` is not offered here; there are {listed}.")
        )

    # the others start without it
    found += [
        NotOffered(
            ("jobs", name, "agent"),
            f"The agent `{agent}` is not offered here: this job does not start.",
            stops=False,
        )
        for name, job in config.jobs.items()
        if (agent := job.agent or (STEPS_AGENT if job.steps else None)) is not None and agent not in usable
    ]

    def check(place: tuple[str, ...], work: Callable[[], object]) -> None:
        try:
            work()
        except ConfigurationError as error:
            found.append(NotOffered(place, str(error)))

    check(
        ("image", "capabilities"),
        lambda: check_capabilities(config.image.capabilities, settings.image_capabilities),
    )
    check(("services",), lambda: services_of(config.services, settings))
    # without the registries of the image, which only a worker host can tell
    refused = rules_for(settings, config.network.model_copy(update={"presets": ()}), {}).refused
    found += [
        NotOffered(
            ("network", "allow"),
            f"`{entry}` is not what the server's operator lets a repository add.",
            stops=False,
        )
        for entry in refused
    ]
    return found


def without_effect(own: RepoConfig, whole: RepoConfig) -> list[NotOffered]:
    """What the repository's ``own`` file asks for and what changes nothing. ``whole``: what counts in the end."""
    wanted, place = own.approvals.merge, ("approvals", "merge")
    if wanted == "none":
        return []
    if whole.approvals.merge == "none":
        said = f"`merge: {wanted}` does nothing: the server's operator lets nothing be merged automatically."
    elif whole.approvals.final.required == 0:
        said = (
            f"`merge: {wanted}` does nothing while no approvals are wanted: set `approvals.final.required` to 1 or "
            "more."
        )
    else:
        return []
    return [NotOffered(place, said, stops=False)]


def _set(config: RepoConfig) -> dict[str, Any]:
    """What the file says, and nothing that it leaves to the defaults."""
    return config.model_dump(mode="json", exclude_unset=True)


def _deep(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _deep(merged[key], value)
        else:
            merged[key] = value
    return merged


def _lower_limit(one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return one if size(one) <= size(other) else other
    return min(one, other)


def _stricter(found: RepoConfig, organisation: RepoConfig, own: RepoConfig) -> RepoConfig:
    """``found`` with what protects from both."""
    plans = [config.approvals.plan for config in (organisation, own)]
    approvals = found.approvals.model_copy(
        update={
            "plan": plans[0].model_copy(
                update={
                    "always": any(plan.always for plan in plans),
                    "labels": _both(plans[0].labels, plans[1].labels),
                    "paths": _both(plans[0].paths, plans[1].paths),
                }
            ),
            "final": found.approvals.final.model_copy(
                update={
                    "required": max(config.approvals.final.required for config in (organisation, own)),
                }
            ),
        }
    )
    who = found.who.model_copy(
        update={
            name: _at_least(getattr(found.who, name), getattr(organisation.who, name).permission)
            for name in ("may_ask", "may_approve", "may_spend")
        }
    )
    fix = found.fix
    if "attempts" in organisation.fix.model_fields_set:
        fix = fix.model_copy(update={"attempts": min(found.fix.attempts, organisation.fix.attempts)})
    return found.model_copy(
        update={
            "protected": _both(organisation.protected, own.protected),
            "approvals": approvals,
            "who": who,
            "fix": fix,
            "outsiders": "never" if "never" in (organisation.outsiders, own.outsiders) else "endorsed",
            "forks": "never" if "never" in (organisation.forks, own.forks) else "branch",
        }
    )


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _at_least(rule: Entitled, wanted: str) -> Entitled:
    higher = max(rule.permission, wanted, key=ROLES.index)
    return rule.model_copy(update={"permission": higher})
