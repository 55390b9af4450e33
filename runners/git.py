"""The only place on the worker host that starts git (besides bot/githttp.py): hardened, timed, bounded.

Nothing that an agent or a user of this machine can write decides what git does here: no system or user
configuration, no hooks, no credential helpers, no prompts, no protocols but those that the caller asks for.
Secrets travel in the environment of the one process that needs them, never in argv, in a URL or on disk.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bot import child_process
from bot.errors import ConductorError, GitHubUnavailable, InfrastructureError, JobFailed
from bot.model import FailureKind, Phase

#: Seconds for a git command that only touches local disks.
LOCAL_TIMEOUT = 60.0
#: Bytes of standard output kept of one command; more is an error.
MAX_OUTPUT = 64 * 2**20
#: Bytes of standard error kept of one command; the rest is read and dropped.
MAX_STDERR = 64 * 2**10
#: For a git process that reads what an agent made: the largest single allocation, because a few bytes of delta
#: can ask for gigabytes. https://github.com/git/git/blob/master/wrapper.c (memory_limit_check)
WARY = {"GIT_ALLOC_LIMIT": "512m"}
#: The same for one that reads trees but no contents. It ends a difference of more than some 700,000 files (a "git
#: bomb": ten names for each of ten trees, ten levels deep), which diff-tree would gather in memory as a whole.
WARY_OF_TREES = {"GIT_ALLOC_LIMIT": "8m"}

Config = Iterable[tuple[str, str]]

# What git's process may inherit: how to find programs, how to trust servers, how to get out of this network.
_INHERITED = (
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)

# https://git-scm.com/docs/git-config; given by GIT_CONFIG_COUNT these win over a repository's own file.
_CONFIG: tuple[tuple[str, str], ...] = (
    ("safe.directory", "*"),  # an attempt's files may belong to another uid; nothing in them is executed
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("commit.gpgSign", "false"),
    ("push.gpgSign", "false"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
)


@dataclass(frozen=True, kw_only=True)
class GitOutput:
    """What a git command said. ``stderr`` has no secrets in it."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Standard output without the last line's end, undecodable bytes kept as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape").strip("\n")


class GitError(InfrastructureError):
    """A git command failed. Callers turn it into what it means for the job.

    ``code`` is the exit status, negative for a signal, None when we ended it (time or size limit).
    ``stdout`` is what it had printed; ``stderr`` has no secrets in it.
    """

    def __init__(self, command: str, code: int | None, stderr: str, stdout: bytes = b"") -> None:
        last = stderr.strip().splitlines()[-1:] or ["it said nothing"]
        how = "was ended" if code is None else f"ended with status {code}"
        super().__init__(f"`git {command}` {how}: {last[0]}", "The worker's log has its whole output.")
        self.command = command
        self.code = code
        self.stderr = stderr
        self.stdout = stdout


class GitTimeout(GitError):
    """A git command used up its time and was killed with everything it had started."""


def environment(
    *, config: Config = (), env: Mapping[str, str] | None = None, protocols: Iterable[str] = ()
) -> dict[str, str]:
    """The whole environment of a hardened git process.

    ``config`` adds settings, ``env`` variables; ``protocols`` are the transports that it may use
    (https://git-scm.com/docs/git#Documentation/git.txt-GITALLOWPROTOCOL), none by default.
    """
    result = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    if "SSL_CERT_FILE" in result:  # OpenSSL's variable; git's own libcurl may be built on GnuTLS
        result.setdefault("GIT_SSL_CAINFO", result["SSL_CERT_FILE"])
    result.setdefault("PATH", os.defpath)
    result |= {
        "LC_ALL": "C",  # messages are matched: they must be the untranslated ones
        "HOME": "/nonexistent",
        "XDG_CONFIG_HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(protocols) or "none",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    settings = [*_CONFIG, *config]
    result["GIT_CONFIG_COUNT"] = str(len(settings))
    for index, (key, value) in enumerate(settings):
        result[f"GIT_CONFIG_KEY_{index}"] = key
        result[f"GIT_CONFIG_VALUE_{index}"] = value
    return result | dict(env or {})


def with_token(token: str, url: str) -> tuple[tuple[str, str], ...]:
    """The settings that authenticate requests to ``url``'s origin with a GitHub installation token.

    For ``config=`` of :func:`git`. Empty when ``token`` is empty or ``url`` is not HTTP.
    https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app
    """
    parts = urlsplit(url)
    if not token or parts.scheme not in ("http", "https"):
        return ()
    credentials = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return ((f"http.{parts.scheme}://{parts.netloc}/.extraHeader", f"Authorization: Basic {credentials}"),)


def protocols_for(url: str) -> tuple[str, ...]:
    """The transport that ``url`` needs. Raises InfrastructureError for any but http, https and file."""
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https", "file"):
        raise InfrastructureError(
            f"Repositories cannot be reached by {scheme or 'a path'!r}.",
            "Use an http:// or https:// address.",
        )
    return (scheme,)


async def git(
    *argv: str,
    git_dir: Path | None = None,
    cwd: Path | None = None,
    input: bytes | None = None,  # noqa: A002  # subprocess.run's own word
    env: Mapping[str, str] | None = None,
    config: Config = (),
    protocols: Iterable[str] = (),
    timeout: float = LOCAL_TIMEOUT,
    accept: Iterable[int] = (0,),
    max_output: int = MAX_OUTPUT,
    umask: int = -1,
) -> GitOutput:
    """Run ``git`` with ``argv`` and return what it said.

    ``timeout`` is in seconds; ``accept`` are the exit statuses that are answers; ``umask`` is for the files
    that it makes. On time-out and cancellation its whole process group is killed before this returns.
    Raises GitError for any other status or more than ``max_output`` bytes, GitTimeout, and InfrastructureError
    when git is not installed.
    """
    config = tuple(config)
    arguments = [*argv] if git_dir is None else [f"--git-dir={git_dir}", *argv]
    command = _command(argv)
    variables = environment(config=config, env=env, protocols=protocols)
    chunks: list[bytes] = []
    stderr = bytearray()
    async with _process(arguments, variables, cwd, umask, piped_input=input is not None) as process:
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                group.create_task(_feed(process, input))
                group.create_task(_keep(process, stderr))
                complete = group.create_task(_collect(process, chunks, max_output))
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            message = f"{_redact(stderr, config)}\nno end after {timeout:g} seconds".strip()
            raise GitTimeout(command, None, message, b"".join(chunks)) from None
    if not complete.result():
        raise GitError(command, None, f"more than {max_output} bytes of output", b"".join(chunks))
    code = process.returncode
    if code is None or code not in accept:
        raise GitError(command, code, _redact(stderr, config), b"".join(chunks))
    return GitOutput(code=code, stdout=b"".join(chunks), stderr=_redact(stderr, config))


async def stream(
    *argv: str,
    git_dir: Path,
    input: bytes | None = None,  # noqa: A002
    env: Mapping[str, str] | None = None,
    timeout: float = LOCAL_TIMEOUT,
    chunk: int = 64 * 2**10,
) -> AsyncGenerator[bytes]:
    """Run a local ``git`` and yield its output as it comes, at most ``chunk`` bytes at a time.

    Leaving the loop early kills it: use ``contextlib.aclosing``. Raises GitError and GitTimeout as
    :func:`git` does; the time limit covers the whole reading.
    """
    command = _command(argv)
    stderr = bytearray()
    deadline = asyncio.get_running_loop().time() + timeout
    variables = environment(env=env)
    arguments = [f"--git-dir={git_dir}", *argv]
    async with _process(arguments, variables, None, -1, piped_input=input is not None) as process:
        side = [asyncio.create_task(_feed(process, input)), asyncio.create_task(_keep(process, stderr))]
        try:
            assert process.stdout is not None
            while True:
                # `timeout_at` must not stay open across a yield: it would cancel whoever reads us
                async with asyncio.timeout_at(deadline):
                    data = await process.stdout.read(chunk)
                if not data:
                    break
                yield data
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*side)
                await process.wait()
        except TimeoutError:
            message = f"{_redact(stderr, ())}\nno end after {timeout:g} seconds".strip()
            raise GitTimeout(command, None, message) from None
        finally:
            for task in side:
                task.cancel()
            await asyncio.gather(*side, return_exceptions=True)
    if process.returncode != 0:
        raise GitError(command, process.returncode, _redact(stderr, ()))


def _command(argv: Sequence[str]) -> str:
    """The subcommand, for messages: what follows the options of git itself."""
    words = iter(argv)
    for word in words:
        if word == "-c":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


@contextlib.asynccontextmanager
async def _process(
    arguments: list[str], variables: dict[str, str], cwd: Path | None, umask: int, *, piped_input: bool
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running git in its own process group, which is gone when the block is left in whatever way."""
    try:
        process = await child_process.start(
            "git",
            *arguments,
            cwd=cwd or "/",
            env=variables,
            stdin=asyncio.subprocess.PIPE if piped_input else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            umask=umask,
        )
    except FileNotFoundError as error:
        raise InfrastructureError(
            "git could not be started.", "Install git 2.34 or newer on the worker host."
        ) from error
    try:
        yield process
    except BaseException:
        await child_process.end(process)
        raise


async def _feed(process: asyncio.subprocess.Process, data: bytes | None) -> None:
    if process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its exit status tells more
        process.stdin.write(data or b"")
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _collect(process: asyncio.subprocess.Process, chunks: list[bytes], limit: int) -> bool:
    """Gather standard output; False, and the process is killed, when it goes over ``limit`` bytes."""
    assert process.stdout is not None
    size = 0
    while data := await process.stdout.read(2**16):
        size += len(data)
        if size <= limit:
            chunks.append(data)
        else:
            child_process.kill_group(process)
    return size <= limit


async def _keep(process: asyncio.subprocess.Process, kept: bytearray) -> None:
    assert process.stderr is not None
    while data := await process.stderr.read(2**14):
        kept += data[: max(0, MAX_STDERR - len(kept))]


_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_AUTHORIZATION = re.compile(r"(?i)(authorization:\s*)\S.*")


def _redact(stderr: bytes | bytearray, config: Config) -> str:
    """Standard error as printable text without the credentials that went in."""
    text = stderr.decode("utf-8", "replace")
    for _, value in config:
        if value.startswith("Authorization: Basic "):
            credentials = value.removeprefix("Authorization: Basic ")
            token = base64.b64decode(credentials).decode().partition(":")[2]
            text = text.replace(credentials, "[secret]").replace(token, "[secret]")
    text = _AUTHORIZATION.sub(r"\1[secret]", _CREDENTIALS_IN_URL.sub("", text))
    # progress lines end with a carriage return; other control characters are somebody's terminal trick
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text.replace("\r", "\n"))


_NETWORK = re.compile(
    r"could not resolve host|couldn't resolve host|failed to connect|couldn't connect|connection (refused|reset"
    r"|timed out)|could not connect|empty reply from server|operation (timed out|too slow)|early eof"
    r"|the remote end hung up unexpectedly|unexpected disconnect|rpc failed|gnutls|ssl|tls|http/2 stream"
    r"|returned error: (429|5\d\d)|internal server error|server certificate|transfer closed",
    re.IGNORECASE,
)


def remote_failure(error: GitError, phase: Phase, doing: str) -> ConductorError:
    """What a failed fetch or push means: JobFailed for what people must change, else InfrastructureError.

    ``doing`` completes "GitHub … ": for example "did not let us fetch octo/repo".
    """
    words = error.stderr
    if "archived so it is read-only" in words:
        return JobFailed(
            phase,
            FailureKind.refused,
            "The repository is archived, so nothing can be pushed to it.",
            "Unarchive it in its settings, then retry.",
        )
    if re.search(
        r"returned error: 403|Permission to .* denied|Write access to repository not granted", words
    ):
        return JobFailed(
            phase,
            FailureKind.auth,
            f"GitHub {doing}: the App's permissions do not allow it.",
            "Give the App the repository permission “Contents: read and write”, accept the new permissions "
            "in the installation's settings, then retry.",
        )
    if re.search(
        r"returned error: 401|Authentication failed|could not read Username|Invalid username", words
    ):
        return JobFailed(
            phase,
            FailureKind.auth,
            f"GitHub {doing}: it did not accept the App's token.",
            "Check that the App is still installed on this repository and not suspended, then retry.",
        )
    if re.search(r"repository .*not found|returned error: 404|does not appear to be a git repo", words, re.I):
        return JobFailed(
            phase,
            FailureKind.configuration,
            f"GitHub {doing}: there is no such repository, or the App is not installed on it.",
            "Add the repository to the App's installation, then retry.",
        )
    if isinstance(error, GitTimeout) or _NETWORK.search(words):
        last = words.strip().splitlines()[-1:] or ["no answer"]
        return GitHubUnavailable(
            f"GitHub {doing}: {last[0][:300]}.", "It is tried again; if it stays, check the worker's network."
        )
    return error
