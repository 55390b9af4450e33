"""The server's settings: ``conductor.toml`` and ``CONDUCTOR_*`` variables, the variables first.

A setting has one name: ``SLOTS`` is ``CONDUCTOR_SLOTS`` in the environment and ``slots`` in the file. A name
that we do not know is an error, so that a typing mistake never silently means a default.
"""

from __future__ import annotations

import math
import os
import re
import socket
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bot.agent_config import AgentName, CustomAgent
from bot.capabilities import Capability as ImageCapability
from bot.errors import ConfigurationError
from bot.network import Network, parse_rule
from bot.repo_config import Capability
from bot.repo_rules import Permission

ENV_PREFIX = "CONDUCTOR_"
CONFIG_FILE_VARIABLE = "CONDUCTOR_CONFIG"


#: How providers name the versions of a model: claude-sonnet-4-5-20250929, gpt-5-2025-08-07, gemini-2.5-pro-001.
_DATED = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|0\d\d|latest)$")


class FlatPrice(BaseModel):
    """What a model costs, in US dollars for a million tokens, whatever is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0, description="read from cache; default: as input")
    cache_write: float | None = Field(default=None, ge=0, description="written to cache; default: as input")

    def for_prompt(self, tokens: int) -> FlatPrice:
        """The price of a call that sends so many tokens, those from the cache included."""
        del tokens
        return self


class Price(FlatPrice):
    """What a model costs, in US dollars for a million tokens; ``beyond`` tells what calls with long prompts cost."""

    beyond: dict[PositiveInt, FlatPrice] = Field(
        default_factory=dict,
        description="tokens of the prompt -> the price of all tokens of a call that sends more",
    )

    def for_prompt(self, tokens: int) -> FlatPrice:
        """The price of a call that sends so many tokens, those from the cache included."""
        reached = [length for length in self.beyond if tokens > length]
        return self.beyond[max(reached)] if reached else self


#: Flags of Anthropic's `anthropic-beta`, without their date, that make a call cost more than its model's price: prompts
#: beyond 200,000 tokens, and quicker answers (https://platform.claude.com/docs/en/about-claude/pricing).
DearBeta = Literal["context-1m", "fast-mode"]

#: List prices of the models that our default agents use. The Claude figures are those that Claude Code 2.1
#: itself reports as `costBasis: list`, Gemini's are from https://ai.google.dev/gemini-api/docs/pricing, Qwen's those of
#: Alibaba Cloud outside China (https://www.alibabacloud.com/help/en/model-studio/model-pricing). The operator's
#: `prices` add to or replace them.
DEFAULT_PRICES: dict[str, Price] = {
    "claude-sonnet-4-5": Price(input=3, output=15, cached=0.30, cache_write=3.75),
    "claude-opus-4-5": Price(input=5, output=25, cached=0.50, cache_write=6.25),
    "claude-haiku-4-5": Price(input=1, output=5, cached=0.10, cache_write=1.25),
    "gpt-5": Price(input=1.25, output=10, cached=0.125),
    "gpt-5-codex": Price(input=1.25, output=10, cached=0.125),
    "gemini-2.5-pro": Price(
        input=1.25, output=10, cached=0.125, beyond={200_000: FlatPrice(input=2.5, output=15, cached=0.25)}
    ),
    "qwen3-coder-plus": Price(
        input=1,
        output=5,
        cached=0.2,
        beyond={
            32_000: FlatPrice(input=1.8, output=9, cached=0.36),
            128_000: FlatPrice(input=3, output=15, cached=0.6),
            256_000: FlatPrice(input=6, output=60, cached=1.2),
        },
    ),
}


class ProviderConfig(BaseModel):
    """An LLM provider, or a gateway that speaks like one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["anthropic", "openai", "gemini"] = Field(description="whose wire format it speaks")
    url: str = Field(description="openai: with /v1; anthropic and gemini: without a version")
    keys: tuple[SecretStr, ...] = Field((), description="in order of preference; env:NAME reads a variable")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="sent with every call")
    subscription: bool = Field(False, description="calls cost no money, whatever the price of the model")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return _http_url(value)

    def key_values(self) -> list[str]:
        """The keys, read from the environment where they say so. Raises ConfigurationError for an unset variable."""
        values = []
        for key in self.keys:
            value = key.get_secret_value().strip()
            if value.startswith("env:"):
                name = value.removeprefix("env:")
                value = os.environ.get(name, "").strip()
                if not value:
                    raise ConfigurationError(
                        f"The variable {name}, which should hold a key of an LLM provider, is not set.",
                        "Set it for `conductor worker`, or take it out of `providers` in conductor.toml.",
                    )
            if value:
                values.append(value)
        return values


#: The ways in which an agent may speak to a provider: the routes of the gateway.
LLM_ROUTES = ("anthropic", "openai", "gemini")


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    return value.rstrip("/")


class Settings(BaseSettings):
    """Everything an operator may set. ``deploy/conductor.example.toml`` explains each with its default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, nested_model_default_partial_update=False
    )

    mode: Literal["dev", "prod"] = Field("prod", description="dev: readable logs; prod: JSON logs")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    github_api_url: str = Field("https://api.github.com", description="GHES: https://HOST/api/v3")
    github_app_id: str = Field(
        "", coerce_numbers_to_str=True, description="the App's id, from its settings page"
    )
    github_private_key: SecretStr = Field(SecretStr(""), description="PEM text, or the path of a PEM file")
    webhook_secret: SecretStr = Field(SecretStr(""), description="the App's webhook secret")

    listen: str = Field("127.0.0.1:8000", description="host:port of the webhook server")
    data_dir: Path = Field(Path("data"), description="database, mirrors, attempts: keep it")
    database_url: str = Field("", description="default: SQLite in data_dir; postgresql+asyncpg://…")
    redis_url: str = Field("", description="default: an embedded Redis in data_dir (`conductor up` only)")

    host_name: str = Field(default_factory=socket.gethostname, description="unique per worker host")
    runner: str = Field("docker", description="docker, local, or a dotted path")
    allow_local_runner: bool = Field(False, description="the local runner isolates nothing: agree to that")
    slots: int = Field(2, ge=1, le=1000, description="attempts at once on this host")
    lease_seconds: int = Field(60, ge=10, description="a host silent for this long loses its attempts")
    host_capabilities: tuple[Capability, ...] = Field(
        (), description="what this host has that a repository's `needs` may ask for, for example gpu"
    )
    limit_repository: int = Field(5, ge=0, description="jobs that run at once in a repository; 0: no limit")
    limit_installation: int = Field(0, ge=0, description="the same for an installation (an account)")
    limit_user: int = Field(5, ge=0, description="the same for whoever asked")
    limit_user_hour: int = Field(
        60, ge=0, description="jobs that a person may ask for in an hour; 0: no limit"
    )
    limit_queued: int = Field(100, ge=0, description="jobs that may wait in a repository; 0: no limit")
    limit_repository_hour: int = Field(
        0, ge=0, description="jobs that may be asked for in a repository in an hour; 0: no limit"
    )
    limit_conversation_hour: int = Field(
        20,
        ge=0,
        description="jobs that may be asked for on an issue and its pull request in an hour; 0: no limit",
    )
    limit_answers_hour: int = Field(
        30, ge=0, description="answers to commands that start nothing, for a person in an hour; 0: no limit"
    )

    review_settle: int = Field(
        10, ge=0, le=600, description="seconds that a review's job waits for others to join it"
    )

    ask_permission: Permission = Field("write", description="what it takes to start a job, at least")
    approve_permission: Permission = Field("write", description="what it takes to approve, at least")
    approvals_required: int = Field(0, ge=0, le=6, description="approvals that a pull request of ours needs")
    plan_first: bool = Field(False, description="every job needs an approved plan")
    automatic_fixes: bool = Field(True, description="repositories may let failed checks start a job")
    automatic_merges: bool = Field(True, description="repositories may let an approval merge")

    default_agent: str = Field("claude", description="for the plain label and commands that name none")
    agents: tuple[str, ...] = Field(("claude", "codex", "shell"), description="agents that may be used")
    custom_agents: dict[AgentName, CustomAgent] = Field(
        default_factory=dict, description="name -> an agent of your own; its name must also be in `agents`"
    )
    kiro_api_key: SecretStr = Field(SecretStr(""), description="for the agent q, which can read it")
    kiro_install: tuple[str, ...] = Field((), description="bash commands that put kiro-cli below $AGENT")
    job_timeout: int = Field(3600, ge=10, le=86400, description="seconds of wall clock for a job")

    idle_timeout: int = Field(
        1800, ge=0, le=86400, description="seconds without a sign of life from the agent; 0: no limit"
    )
    hibernate_after: int = Field(
        600, ge=0, le=3000, description="seconds that a container stays frozen while a person is asked"
    )
    create_labels: bool = Field(True, description="make the labels agent and agent:NAME in new repositories")
    welcome_issue: bool = Field(False, description="open an issue that says how to begin in new repositories")
    answer_days: float = Field(
        7, gt=0, le=365, description="an unanswered question ends the job after so long"
    )
    restarts: int = Field(
        2, ge=0, le=20, description="how often a job goes on by itself after its host failed"
    )
    session_days: float = Field(30, gt=0, description="how long sessions and unfinished work are kept")
    session_max_bytes: int = Field(64 * 2**20, ge=2**20, description="a larger session is not kept")

    llm_anthropic_url: str = "https://api.anthropic.com"
    llm_anthropic_key: SecretStr = SecretStr("")
    llm_openai_url: str = "https://api.openai.com/v1"
    llm_openai_key: SecretStr = SecretStr("")
    llm_gemini_url: str = "https://generativelanguage.googleapis.com"
    llm_gemini_key: SecretStr = SecretStr("")
    providers: dict[str, ProviderConfig] = Field(
        default_factory=dict, description="more providers; one named as a route serves that route"
    )
    agent_providers: dict[str, str] = Field(
        default_factory=dict, description="agent -> provider, where it is not its route's own"
    )
    models_allowed: tuple[str, ...] = Field((), description="patterns such as claude-*; empty: any model")
    llm_server_tools: tuple[str, ...] = Field(
        (), description="tools that the provider may run itself, e.g. web_search; each is a way out"
    )
    llm_betas: tuple[DearBeta, ...] = Field(
        (), description="which betas of Anthropic may be used that cost more than a model's price says"
    )
    models: dict[str, str] = Field(
        default_factory=lambda: {
            "claude": "claude-sonnet-4-5",
            "codex": "gpt-5-codex",
            "gemini": "gemini-2.5-pro",
            "qwen": "qwen3-coder-plus",
        },
        description="agent -> model, when the asker names none",
    )
    prices: dict[str, Price] = Field(default_factory=dict, description="model -> price; adds to the defaults")

    budget_job: float = Field(math.inf, ge=0, description="US dollars for one job; inf: no limit")
    budget_thread: float = Field(math.inf, ge=0, description="for all jobs of an issue and its pull request")
    budget_user_day: float = Field(math.inf, ge=0, description="for what one person asks for in a UTC day")
    budget_repository_day: float = Field(math.inf, ge=0, description="for one repository in a UTC day")
    budget_day: float = Field(math.inf, ge=0, description="for everything in a UTC day")
    budget_unpriced: Literal["refuse", "allow"] = Field(
        "refuse", description="what becomes of calls without a known price where there is a budget"
    )

    base_image: str = Field("debian:bookworm-slim", description="what agent images are built from")
    image_ca_bundle: Path | None = Field(None, description="PEM bundle trusted in builds and in containers")
    image_capabilities: dict[str, ImageCapability] = Field(
        default_factory=dict, description="name -> packages, run; adds to the capabilities that are built in"
    )
    image_max_age: float = Field(30, gt=0, description="days without use after which an image is removed")
    image_max_disk: str = Field("20g", pattern=r"^\d+[kmg]$", description="of all our images; the oldest go")
    setup_timeout: int = Field(1800, ge=1, le=86400, description="seconds for a repository's set-up steps")
    service_images: tuple[str, ...] = Field(
        (), description="images that repositories may run as services; * stands for anything but a slash"
    )
    memory: str = Field("4g", pattern=r"^\d+[kmg]$", description="limit of a container")
    cpus: float = Field(2.0, gt=0)
    pids: int = Field(512, ge=32)
    tmp_size: str = Field("1g", pattern=r"^\d+[kmg]$", description="size of /tmp in a container")
    workspace_size: str = Field(
        "20g", pattern=r"^\d+[kmg]$", description="an attempt whose workspace and home grow larger is ended"
    )
    file_size: str = Field("2g", pattern=r"^\d+[kmg]$", description="largest file an agent may write")

    max_changed_files: int = Field(3000, ge=1, description="more are not published")
    max_file_bytes: int = Field(50 * 2**20, ge=1, description="a larger file is not published")
    max_push_bytes: int = Field(200 * 2**20, ge=1, description="a larger push is refused by the gateway")
    lfs_max_file_bytes: int = Field(
        2 * 2**30, ge=1, description="a larger file of Git LFS is neither fetched nor published"
    )
    lfs_max_push_bytes: int = Field(2**30, ge=1, description="new LFS files of one attempt, in all")
    lfs_cache_disk: str = Field(
        "20g", pattern=r"^\d+[kmg]$", description="fetched LFS files that a host keeps; the oldest go"
    )
    protected_paths: tuple[str, ...] = Field((), description="only people change these, besides .github/** …")
    close_issues: bool = Field(True, description="merging a pull request of ours closes its issue")
    commit_signing: Literal["none", "api", "ssh"] = Field("none", description="who signs the commits")
    signing_key: SecretStr = Field(
        SecretStr(""), description="ssh: private key text, or the path of its file"
    )
    signing_committer: str = Field("", description="ssh: Name <email> of the account that the key belongs to")

    egress_allow: tuple[str, ...] = Field((), description="where every container may connect: host, *.suffix")
    egress_may_allow: tuple[str, ...] = Field(
        (), description="what a repository may add; *: every public host"
    )
    egress_image_presets: bool = Field(
        True, description="let the image's package managers reach their registries"
    )
    egress_presets: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="preset -> hosts; adds to what the image configures"
    )
    egress_private: tuple[Network, ...] = Field(
        (), description="private networks that our own rules may lead to"
    )
    egress_upstream: str = Field("", description="http:// proxy to connect through; none: connect directly")
    egress_max_bytes: int = Field(10 * 2**30, ge=1, description="more is not moved in or out for one attempt")

    @field_validator("llm_anthropic_url", "llm_openai_url", "llm_gemini_url", "github_api_url")
    @classmethod
    def _url(cls, value: str) -> str:
        return _http_url(value)

    @field_validator("providers")
    @classmethod
    def _providers(cls, value: dict[str, ProviderConfig]) -> dict[str, ProviderConfig]:
        for name, provider in value.items():
            if name in LLM_ROUTES and provider.kind != name:
                raise ValueError(f"the provider {name!r} must be of kind {name!r}: that route is its own")
        return value

    @model_validator(mode="after")
    def _known_providers(self) -> Settings:
        for agent, name in self.agent_providers.items():
            if name not in self.providers and name not in LLM_ROUTES:
                raise ValueError(f"agent_providers: there is no provider {name!r} for {agent!r}")
        return self

    @field_validator("egress_allow", "egress_may_allow")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_rule(rule)) for rule in value)

    @field_validator("egress_presets")
    @classmethod
    def _presets(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {name: tuple(str(parse_rule(rule)) for rule in rules) for name, rules in value.items()}

    @field_validator("egress_upstream")
    @classmethod
    def _upstream(cls, value: str) -> str:
        parts = urlsplit(value)
        if value not in ("", "none") and (parts.scheme != "http" or not parts.hostname):
            raise ValueError("must be http://[user:password@]host:port, or none")
        return value

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port, for example 127.0.0.1:8000")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables win over the file (which :func:`load_settings` hands in as init values)."""
        return env_settings, init_settings

    @property
    def private_key_pem(self) -> str:
        """The App's private key as PEM text, read from its file when a path was given."""
        value = self.github_private_key.get_secret_value().strip()
        if not value:
            raise ConfigurationError(
                "No GitHub App private key is configured.",
                "Set CONDUCTOR_GITHUB_PRIVATE_KEY to the PEM text or to the path of the .pem file "
                "that you downloaded from the App's settings page.",
            )
        if value.startswith("-----BEGIN"):
            return value
        path = Path(value).expanduser()
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigurationError(
                f"The GitHub App private key file {str(path)!r} cannot be read: {error.strerror}.",
                "Set CONDUCTOR_GITHUB_PRIVATE_KEY to the path of the downloaded .pem file.",
            ) from error
        if "-----BEGIN" not in text:
            raise ConfigurationError(
                f"{str(path)!r} holds no PEM key.", "Download a private key from the App's settings page."
            )
        return text

    @property
    def signing_key_text(self) -> str:
        """The SSH key that signs commits, read from its file when a path was given; empty when there is none."""
        value = self.signing_key.get_secret_value().strip()
        if not value or value.startswith("-----BEGIN"):
            return value
        path = Path(value).expanduser()
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"The signing key file {str(path)!r} cannot be read: {error}.",
                "Set CONDUCTOR_SIGNING_KEY to the path of an SSH private key that the worker may read.",
            ) from error

    @property
    def github_url(self) -> str:
        """Where git repositories and web pages are: derived from the API's URL.

        ``https://api.github.com`` -> ``https://github.com``; ``https://HOST/api/v3`` (GHES) ->
        ``https://HOST``; ``https://api.SUB.ghe.com`` -> ``https://SUB.ghe.com``; else the same host.
        """
        url = self.github_api_url.removesuffix("/api/v3")
        parts = urlsplit(url)
        host = parts.netloc
        if host.startswith("api.") and (host == "api.github.com" or host.endswith(".ghe.com")):
            host = host.removeprefix("api.")
        return f"{parts.scheme}://{host}{parts.path}"

    @property
    def sql_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.data_dir / 'conductor.db').absolute()}"

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def price_of(self, model: str) -> Price | None:
        """The price of ``model``: its own, or that of the model whose dated version it is.

        A name that goes on in another way is another model: GPT-5 pro costs twelve times as much as GPT-5.
        """
        table = DEFAULT_PRICES | self.prices
        return table.get(model) or table.get(_DATED.sub("", model))

    def secrets(self) -> tuple[str, ...]:
        """Every secret value that must never be published, for the redactor."""
        values = [
            secret.get_secret_value()
            for secret in (
                self.webhook_secret,
                self.llm_anthropic_key,
                self.llm_openai_key,
                self.llm_gemini_key,
                self.kiro_api_key,
            )
        ]
        for provider in self.providers.values():
            with suppress(ConfigurationError):  # set on the worker hosts only, where it is asked for again
                values.extend(provider.key_values())
            values.extend(header.get_secret_value() for header in provider.headers.values())
        for agent in self.custom_agents.values():
            with suppress(ConfigurationError):
                values.extend(agent.secrets().values())
        pem = self.github_private_key.get_secret_value()
        if pem:
            values.append(self.private_key_pem.strip())
        with suppress(ConfigurationError):  # set on the worker hosts only
            values.append(self.signing_key_text)
        for url in (self.redis_url, self.database_url, self.egress_upstream):
            password = urlsplit(url).password or ""
            values += [password, unquote(password)]  # drivers quote it as it is meant
        return tuple(dict.fromkeys(value for value in values if value))

    def require(self, *names: Annotated[str, "setting names"]) -> None:
        """Fail with one clear message when any of the settings ``names`` is empty."""
        missing = []
        for name in names:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if not value:
                missing.append(f"{ENV_PREFIX}{name.upper()}")
        if missing:
            raise ConfigurationError(
                f"Not configured: {', '.join(missing)}.",
                "Set the variables, or the same names in lower case in conductor.toml "
                "(deploy/conductor.example.toml explains each).",
            )


def load_settings(file: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings from ``file`` (default: ``$CONDUCTOR_CONFIG`` or ``./conductor.toml``) and variables.

    ``overrides`` (from command line options) win over both. Raises ConfigurationError that names every
    wrong key and where it stands.
    """
    named = os.environ.get(CONFIG_FILE_VARIABLE)
    path = file or (Path(named) if named else Path("conductor.toml"))
    values: dict[str, Any] = {}
    if path.exists() or file or named:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigurationError(
                f"The configuration file {str(path)!r} cannot be read: {error.strerror}.",
                "Give an existing file with --config or $CONDUCTOR_CONFIG.",
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error
    _refuse_unknown(values, path)
    try:
        settings = Settings(**values)
        if overrides:
            # validated again as a whole; `model_copy` would skip that
            settings = _with(settings, overrides)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, path if values else None)) from error
    return settings


class _Fixed(Settings):
    """Settings from given values alone: neither file nor environment is read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def fixed_settings(**values: Any) -> Settings:
    """Settings from ``values`` and defaults only (the demo and the tests: no file, no environment)."""
    return _Fixed(**values)


def _with(settings: Settings, overrides: dict[str, Any]) -> Settings:
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return fixed_settings(**(values | overrides))


def _refuse_unknown(values: dict[str, Any], path: Path) -> None:
    known = set(Settings.model_fields)
    unknown = [f"{key!r} in {path}" for key in sorted(set(values) - known)]
    for variable in sorted(os.environ):
        if variable.startswith(ENV_PREFIX) and variable != CONFIG_FILE_VARIABLE:
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in known:
                unknown.append(f"the variable {variable}")
    if unknown:
        raise ConfigurationError(
            f"Unknown setting: {', '.join(unknown)}.",
            "deploy/conductor.example.toml lists every setting; check the spelling.",
        )


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "?"
        inner = ".".join(str(part) for part in problem["loc"][1:])
        variable = f"{ENV_PREFIX}{name.upper()}"
        where = variable if variable in os.environ else f"{name} in {path}" if path else variable
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}{' (' + inner + ')' if inner else ''}: {message}")
    return "Bad setting: " + "; ".join(lines) + "."
