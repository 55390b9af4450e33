"""`.github/conductor.yml`: what may stand in it, and how the layers of configuration go together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.config import fixed_settings
from bot.repo_config import RepoConfig, RepoConfigError, dump, parse, read
from bot.repo_layers import ServerRules, merge, not_offered, under
from bot.repo_rules import PlanRule

ALL = """
agent: claude
model: opus
needs: [gpu]
image: {capabilities: [node22], setup: ["npm ci"]}
services: {db: {image: "postgres:16"}}
network: {allow: ["api.example.com"]}
checkout: {lfs: true}
limits: {timeout: 30m, user_hour: 5, repository_hour: 20}
budget: {job: 2, thread: 10, day: 50}
protected: ["deploy/**"]
approvals:
  plan: {labels: [risky], paths: ["migrations/**"]}
  request: {teams: [core]}
  final: {required: 1, codeowners: true}
  expires: 2d
  remind: 0
  merge: auto
who:
  may_ask: {teams: [core], users: [maria]}
  may_approve: {permission: maintain}
  may_spend: {permission: admin}
fix: {automatic: true, attempts: 2, settle: 5m}
outsiders: never
"""


def test_everything_that_may_stand_in_it() -> None:
    config = parse(ALL)
    assert config.approvals.expires == 2 * 86400
    assert config.fix.settle == 300
    assert config.approvals.plan == PlanRule(labels=("risky",), paths=("migrations/**",))
    assert config.who.may_approve.permission == "maintain"
    assert RepoConfig.model_validate(dump(config)) == config, "what is kept with a job is the same"


@pytest.mark.parametrize(("text", "always"), [("never", False), ("always", True), ("{}", False)])
def test_a_plan_by_one_word(text: str, always: bool) -> None:
    config = parse(f"approvals: {{plan: {text}}}")
    assert config.approvals.plan.always is always
    assert RepoConfig.model_validate(dump(config)) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("approvals: {plan: sometimes}", "line 1, column 19: `approvals.plan`: must be never, always"),
        ("approvals: {final: {required: 7}}", "line 1, column 31: `approvals.final.required`"),
        ("approvals:\n  final:\n    requird: 1", "line 3, column 5: `approvals.final.requird` is not known"),
        ("approvals: {merge: yes}", "`approvals.merge`"),
        ("approvals: {expires: 1s}", "`approvals.expires`"),
        ("who: {may_ask: {permission: read}}", "line 1, column 29: `who.may_ask.permission`"),
        ("who: {may_ask: {users: ['@maria']}}", "`who.may_ask.users.0`"),
        ("who: {may_ask: {teams: [a/b/c]}}", "`who.may_ask.teams.0`"),
        ("who: {may_merge: {}}", "line 1, column 7: `who.may_merge` is not known"),
        ("fix: {attempts: 0}", "`fix.attempts`"),
        ("outsiders: always", "`outsiders`"),
        ("limits: {user_hour: 0}", "`limits.user_hour`"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(RepoConfigError) as caught:
        parse(text)
    assert says in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_problem_with_a_place(text: str) -> None:
    problems = None
    try:
        parse(text)
    except RepoConfigError as error:
        problems = error.problems
    assert problems is None or problems
    assert all(problem.line >= 1 and problem.column >= 1 for problem in problems or ())


def merged(organisation: str, own: str) -> RepoConfig:
    return merge(parse(organisation), parse(own))


@pytest.mark.parametrize(
    ("organisation", "own", "path", "value"),
    [
        ("agent: codex", "", "agent", "codex"),
        ("agent: codex", "agent: claude", "agent", "claude"),
        ("image: {setup: [a]}", "image: {capabilities: [git]}", "image.setup", ("a",)),
        ("image: {setup: [a]}", "image: {setup: [b]}", "image.setup", ("b",)),
        ("protected: [a, b]", "protected: [b, c]", "protected", ("a", "b", "c")),
        ("limits: {timeout: 10m}", "limits: {timeout: 1h}", "limits.timeout", 600),
        ("limits: {timeout: 1h}", "limits: {timeout: 10m}", "limits.timeout", 600),
        ("limits: {timeout: 1h}", "limits: {timeout: null}", "limits.timeout", 3600),
        ("limits: {memory: 2g}", "limits: {memory: 512m}", "limits.memory", "512m"),
        ("limits: {memory: 512m}", "limits: {memory: 2g, pids: 99}", "limits.memory", "512m"),
        ("budget: {job: 1}", "budget: {job: 5}", "budget.job", 1),
        ("budget: {job: 1}", "budget: {day: 5}", "budget.job", 1),
        (
            "approvals: {final: {required: 2}}",
            "approvals: {final: {required: 1}}",
            "approvals.final.required",
            2,
        ),
        ("", "approvals: {final: {required: 1}}", "approvals.final.required", 1),
        ("approvals: {plan: always}", "approvals: {plan: never}", "approvals.plan.always", True),
        (
            "approvals: {plan: {labels: [a]}}",
            "approvals: {plan: {labels: [b]}}",
            "approvals.plan.labels",
            ("a", "b"),
        ),
        ("approvals: {expires: 1d}", "approvals: {expires: 2d}", "approvals.expires", 2 * 86400),
        ("who: {may_ask: {users: [a]}}", "who: {may_ask: {teams: [b]}}", "who.may_ask.users", ()),
        ("who: {may_ask: {users: [a]}}", "who: {may_ask: {teams: [b]}}", "who.may_ask.teams", ("b",)),
        (
            "who: {may_ask: {users: [a]}}",
            "who: {may_ask: {permission: maintain}}",
            "who.may_ask.users",
            ("a",),
        ),
        (
            "who: {may_ask: {permission: admin}}",
            "who: {may_ask: {permission: write}}",
            "who.may_ask.permission",
            "admin",
        ),
        ("outsiders: never", "outsiders: endorsed", "outsiders", "never"),
        ("forks: never", "forks: branch", "forks", "never"),
        ("", "forks: never", "forks", "never"),
        ("fix: {attempts: 2}", "fix: {attempts: 5}", "fix.attempts", 2),
        ("fix: {attempts: 5}", "fix: {attempts: 2}", "fix.attempts", 2),
        ("", "fix: {attempts: 9}", "fix.attempts", 9),
    ],
)
def test_the_organisations_default_below_the_repositorys_own(
    organisation: str, own: str, path: str, value: object
) -> None:
    found: Any = merged(organisation, own)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize("text", [ALL, "", "agent: x"])
def test_one_layer_alone_is_as_it_is(text: str) -> None:
    assert merged("", text) == parse(text)
    assert merged(text, "") == parse(text)
    assert merged(text, text) == parse(text)


def test_both_together_may_be_too_much() -> None:
    some, more = ([f"{letter}{number}" for number in range(150)] for letter in "ab")
    with pytest.raises(RepoConfigError, match=r"together with the organisation's default"):
        merged(f"protected: {some}", f"protected: {more}")


def test_the_servers_word_is_above_both() -> None:
    server = ServerRules(
        ask="maintain", approve="admin", approvals=2, plan_first=True, automatic_fixes=False,
        automatic_merges=False,
    )  # fmt: skip
    config = under(server, parse(ALL))
    assert config.who.may_ask.permission == "maintain"
    assert config.who.may_approve.permission == "admin"
    assert config.who.may_spend.permission == "admin"
    assert config.approvals.final.required == 2
    assert config.approvals.plan.always
    assert config.approvals.plan.labels == ("risky",)
    assert config.approvals.merge == "none"
    assert not config.fix.automatic
    assert under(ServerRules(), parse(ALL)) == parse(ALL)
    assert RepoConfig.model_validate(dump(config)) == config


def test_what_the_server_does_not_offer() -> None:
    settings = fixed_settings(agents=("claude",), service_images=(), egress_may_allow=())
    config, document = read(
        "agent: codex\nimage:\n  capabilities: [cobol]\nservices:\n  db: {image: 'postgres:16'}\n"
        "network: {allow: [example.com]}\n"
    )
    found = not_offered(config, settings, ("claude", "codex"))
    assert [(one.place, one.stops, document.place(one.place)) for one in found] == [
        (("agent",), True, (1, 8)),
        (("image", "capabilities"), True, (3, 17)),
        (("services",), True, (5, 3)),
        (("network", "allow"), False, (6, 18)),
    ]
    assert not_offered(RepoConfig(), settings, ("claude",)) == []
