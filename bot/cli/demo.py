"""`conductor demo`: the whole story on one machine, against the sandbox GitHub, with visible progress."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from bot.cli.run import everything
from bot.config import Settings, fixed_settings
from bot.errors import ConfigurationError, InfrastructureError
from bot.logs import configure
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from runners.backends import create_runner

REPO = "acme/hello"
PERSON = "maria"
PATIENCE = 900.0  # seconds for the whole story; a first image takes a minute or two
ROOM = 2**30  # bytes that the story may take in memory
LOOK_INTERVAL = 0.1  # seconds between looks at the sandbox

#: What each agent that needs a model takes from the environment, under the provider's own names: key, address.
KEYS = {"claude": "ANTHROPIC_API_KEY", "codex": "OPENAI_API_KEY"}
FROM_ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "llm_anthropic_key",
    "ANTHROPIC_BASE_URL": "llm_anthropic_url",
    "OPENAI_API_KEY": "llm_openai_key",
    "OPENAI_BASE_URL": "llm_openai_url",
    # a company's own CA: needed to fetch the agents' packages while the image is built
    "SSL_CERT_FILE": "image_ca_bundle",
}

TITLE = "Say goodbye, too"
STEPS_BODY = """\
`hello` can greet. It should be able to say goodbye as well.

The `shell` agent needs no model: it runs the steps in these blocks.

```sh
cat >> hello/greeting.py <<'PYTHON'


def farewell(name: str) -> str:
    return f"Goodbye, {name}!"
PYTHON
```

```sh
python3 -B -c 'from hello.greeting import farewell; assert farewell("Ada") == "Goodbye, Ada!"'
python3 -B -m unittest
```
"""
MODEL_BODY = """\
`hello` can greet. Add a function `farewell(name)` to `hello/greeting.py` that returns `Goodbye, NAME!`, with a test.
"""


class Story:
    """Prints what happens, each with the seconds since the beginning."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def tell(self, text: str) -> None:
        """One step."""
        seconds = time.monotonic() - self._start
        click.echo(click.style(f"{seconds:6.1f} s  ", dim=True) + text)


async def play(*, agent: str, runner: str, keep: bool) -> None:
    """Play it. Raises ConductorError when it does not end well; nothing is left behind in any case."""
    folder = Path(tempfile.mkdtemp(prefix="conductor-demo-", dir=_short_temporary_folder()))
    settings: Settings | None = None
    story = Story()
    _end_on_signals()
    try:
        async with AsyncExitStack() as stack:
            runner = await _choose_runner(runner, agent, story)
            sandbox = await stack.enter_async_context(Sandbox.start(state_dir=folder / "github"))
            story.tell(f"a sandbox GitHub runs at {sandbox.url} with the repository {REPO}")
            settings = _settings(sandbox, folder, runner)
            redactor = Redactor(settings.secrets())
            configure("dev", "warning", redactor)
            address = await stack.enter_async_context(everything(settings, redactor))
            sandbox.webhook_url = f"{address}/webhook"
            story.tell(f"server, worker, embedded Redis and SQLite run; webhooks go to {address}/webhook")
            async with asyncio.timeout(PATIENCE):
                await _act(sandbox, agent, story)
            if keep:
                story.tell(f"everything stays up: look at {sandbox.url}, Ctrl-C ends it")
                await asyncio.Event().wait()
        story.tell("everything is stopped and removed")
    except TimeoutError as error:
        raise InfrastructureError(
            f"The story did not end within {PATIENCE:.0f} s.", "Run `conductor up` to see the logs."
        ) from error
    finally:
        if settings is not None:
            await _remove_containers(settings)
        shutil.rmtree(folder, ignore_errors=True)


def _end_on_signals() -> None:
    """SIGTERM ends the story as Ctrl-C does, also where a script started us with SIGINT ignored."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _remove_containers(settings: Settings) -> None:
    """A worker that ends leaves its containers to the next one; here there is no next one."""
    runner = create_runner(settings.runner, settings)
    try:
        for handle in await runner.list():
            await runner.stop(handle, 1)
            await runner.remove(handle)
    finally:
        await runner.close()


async def _act(sandbox: Sandbox, agent: str, story: Story) -> None:
    person = sandbox.as_user(PERSON)
    body = STEPS_BODY if agent == "shell" else MODEL_BODY
    number = int((await person.open_issue(REPO, TITLE, body))["number"])
    story.tell(f"{PERSON} opened issue #{number}: “{TITLE}”")
    await person.add_label(REPO, number, f"agent:{agent}")
    story.tell(f"{PERSON} labelled it `agent:{agent}`")

    watch = _Watch(story)
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        comments = sandbox.comments(REPO, number)
        pulls = sandbox.pulls(REPO)
        runs = sandbox.check_runs(REPO)
        reactions = [content for _, content in sandbox.reactions(REPO, number)]
        watch.once("eyes", "eyes" in reactions, "the bot reacted 👀")
        watch.once("rocket", "rocket" in reactions, "the bot reacted 🚀: an agent starts")
        for comment in comments:
            headline = (comment["body"].splitlines()[1:2] or [comment["body"]])[0]
            watch.once(("comment", headline), True, f"its comment says: {headline}")
        for branch in await sandbox.branches(REPO):
            watch.once(("branch", branch), branch != "main", f"branch {branch} was pushed")
        for pull in pulls:
            opened = pull["number"]
            watch.once(("pull", opened), True, f"pull request #{opened} was opened: “{pull['title']}”")
        for run in runs:
            state = run["conclusion"] or run["status"]
            watch.once(("run", run["id"], state), True, f"check run `{run['name']}`: {state}")
        body = comments[-1]["body"] if comments else ""
        if "✅" in body and runs and runs[0]["conclusion"] == "success":
            break
        if any(sign in body for sign in ("❌", "🛑", "⏱️", "🔌", "☑️")):
            click.echo(body)
            raise InfrastructureError("The job did not succeed.", "The comment above says why.")
    pull = pulls[0]
    click.echo(click.style(f"\nThe diff of {pull['head']['ref']}:\n", bold=True))
    click.echo(await sandbox.diff(REPO, pull["base"]["ref"], pull["head"]["ref"]))


class _Watch:
    """Tells each thing once, as soon as it is so."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._told: set[Any] = set()

    def once(self, key: object, so: bool, text: str) -> None:
        """Tell ``text`` when ``so``, unless ``key`` was told."""
        if so and key not in self._told:
            self._told.add(key)
            self._story.tell(text)


def _settings(sandbox: Sandbox, folder: Path, runner: str) -> Settings:
    values: dict[str, Any] = {
        "mode": "dev",
        "github_api_url": sandbox.url,
        "github_app_id": str(sandbox.app_id),
        "github_private_key": str(sandbox.private_key_path),
        "webhook_secret": sandbox.webhook_secret,
        "listen": "127.0.0.1:0",
        "data_dir": folder / "data",
        "runner": runner,
        "allow_local_runner": runner == "local",
        "job_timeout": 600,
        "slots": 1,
        "host_name": f"demo-{os.getpid()}",
    }
    for variable, setting in FROM_ENVIRONMENT.items():
        if os.environ.get(variable):
            values[setting] = os.environ[variable]
    return fixed_settings(**values)


async def _choose_runner(wanted: str, agent: str, story: Story) -> str:
    """Docker where an engine with the base image can be used, else the local runner, and say so."""
    if agent not in ("shell", *KEYS):
        raise ConfigurationError(f"There is no agent {agent!r} for the demo.", "Use shell, claude or codex.")
    if agent in KEYS and not os.environ.get(KEYS[agent]):
        raise ConfigurationError(
            f"The agent {agent} needs a key.",
            f"Set {KEYS[agent]}, or play with --agent shell, which needs none.",
        )
    if wanted == "local":
        return "local"
    from runners.provision import engine_problem

    problem = await engine_problem(fixed_settings())
    if problem is None:
        return "docker"
    if wanted == "docker":
        raise problem
    story.tell(click.style("no containers: ", fg="yellow") + problem.message)
    story.tell(
        click.style("falling back to the local runner, which isolates nothing", fg="yellow")
        + ": fine for this demo's own steps, not for real work"
    )
    return "local"


def _short_temporary_folder() -> str | None:
    """Where files are made quickly and paths are short enough for Unix sockets, if there is room."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder of our own is made in it
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM:
        return str(memory)
    return None
