"""How fast an agent's output reaches the host: a real shim, the gateway's socket, the desk's file, a follower.

    python -m tests.bench --only events

The shim and the agent are processes of their own, as in a container; the gateway and the follower run in this one, as
in a worker. Every line carries its number, so one that is lost or doubled ends the run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.result import Result, percentile, progress
from tests.shim_host import Host, running

LINES = 400  # of one round of latencies
PAUSE = 0.01  # seconds between two of them
SIZE = 128  # bytes of a line, with its end
VOLUME = 64 << 20  # bytes of one round of throughput
ROUNDS = 3
AIM_P99 = 50.0  # ms, design §12
AIM_RATE = 50.0  # MiB/s

#: Prints the time, again and again.
CLOCK = f"""
import time
for _ in range({LINES}):
    print(time.time_ns(), flush=True)
    time.sleep({PAUSE})
"""
#: Prints when it begins, then numbered lines as fast as they are taken.
FLOOD = f"""
import os, time
def put(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
put(b"%d\\n" % time.time_ns())
for start in range(0, {VOLUME // SIZE}, 8192):
    put(b"".join(b"%0{SIZE - 1}d\\n" % n for n in range(start, start + 8192)))
"""
#: Sends back what comes, line by line.
ECHO = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := connection.recv(4096):
    connection.sendall(data)
"""


def results() -> list[Result]:
    """Measure; about half a minute."""
    return asyncio.run(_measure())


async def _measure() -> list[Result]:
    base99, ours99, ours50, base50 = [], [], [], []
    pipe, rates, shim_cpu, host_cpu = [], [], [], []
    for number in range(ROUNDS):
        progress(f"latency of a line, round {number + 1} of {ROUNDS}")
        echoed = await _echoes()
        arrived = await _latencies()
        base50.append(percentile(echoed, 0.5))
        base99.append(percentile(echoed, 0.99))
        ours50.append(percentile(arrived, 0.5))
        ours99.append(percentile(arrived, 0.99))
    for number in range(ROUNDS):
        progress(f"{VOLUME >> 20} MiB of lines, round {number + 1} of {ROUNDS}")
        pipe.append(await asyncio.to_thread(_plain_pipe))
        measured, shim, host = await _flood()
        rates.append(measured)
        shim_cpu.append(shim)
        host_cpu.append(host)
    p99, rate = statistics.median(ours99), statistics.median(rates)
    return [
        Result(
            name="event line, agent -> shim -> gateway -> desk -> follower, p99",
            baseline="echo of a line over local loopback, p99",
            baseline_value=statistics.median(base99),
            value=p99,
            unit="ms",
            ratio=statistics.median(a / b for a, b in zip(ours99, base99, strict=True)),
            aim=f"p99 under {AIM_P99:.0f} ms",
            met=p99 < AIM_P99,
            note=f"p50 {statistics.median(ours50):.2f} ms against {statistics.median(base50):.3f} ms; "
            f"{LINES} lines a round, {1 / PAUSE:.0f} a second; every line arrived",
        ),
        Result(
            name="event lines, the same way, as fast as they are taken",
            baseline="one Python process that reads the lines from a pipe",
            baseline_value=statistics.median(pipe),
            value=rate,
            unit="MiB/s",
            ratio=statistics.median(a / b for a, b in zip(rates, pipe, strict=True)),
            aim=f"at least {AIM_RATE:.0f} MiB/s, no line lost",
            met=rate >= AIM_RATE,
            note=f"{VOLUME >> 20} MiB in lines of {SIZE} bytes a round; every line arrived once and in order; "
            f"CPU seconds of a round: shim {statistics.median(shim_cpu):.2f}, "
            f"gateway, desk and follower {statistics.median(host_cpu):.2f}",
        ),
    ]


async def _latencies() -> list[float]:
    """Milliseconds from the agent's print to the follower."""
    with tempfile.TemporaryDirectory(prefix="bench-events-") as folder:
        async with running(Host(Path(folder))) as host, asyncio.timeout(60):
            host.desk.give(host.turn("exec python3 -c '" + CLOCK + "'"))
            found = [
                (time.time_ns() - int(event.line)) / 1e6
                async for event in host.desk.events(turn=1)
                if event.stream == "stdout"
            ]
    if len(found) != LINES:
        raise RuntimeError(f"{len(found)} of {LINES} lines arrived")
    return found


async def _echoes() -> list[float]:
    """Milliseconds of a line's way to another process and back."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        async with asyncio.timeout(60):
            for _ in range(LINES):
                begun = time.perf_counter()
                writer.write(f"{time.time_ns()}\n".encode())
                await reader.readline()
                found.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(PAUSE)
        writer.close()
        await writer.wait_closed()
        return found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _flood() -> tuple[float, float, float]:
    """MiB a second from the agent's first byte to the follower's last line; CPU seconds of the shim and of us."""
    expected = VOLUME // SIZE
    own, shim = time.process_time(), 0.0
    with tempfile.TemporaryDirectory(prefix="bench-events-") as folder:
        async with running(Host(Path(folder))) as host, asyncio.timeout(120):
            host.desk.give(host.turn("exec python3 -c '" + FLOOD + "'"))
            began, count, ended = 0, 0, 0
            async for event in host.desk.events(turn=1):
                if event.stream != "stdout":
                    raise RuntimeError(f"{event.stream}: {event.line}")
                if not began:
                    began = int(event.line)
                    continue
                if int(event.line) != count:
                    raise RuntimeError(f"line {event.line.lstrip('0')} came where {count} was expected")
                count += 1
                if count == expected:
                    ended = time.time_ns()
                    own = time.process_time() - own
                    assert host.shim is not None
                    shim = _cpu_of(host.shim.pid)
    if count != expected:
        raise RuntimeError(f"{count} of {expected} lines arrived")
    return VOLUME / 2**20 / ((ended - began) / 1e9), shim, own


def _cpu_of(pid: int) -> float:
    """User and system seconds of a process, its children left out (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _plain_pipe() -> float:
    with subprocess.Popen([sys.executable, "-c", FLOOD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        began = int(process.stdout.readline())
        count = 0
        for line in process.stdout:
            if int(line) != count:
                raise RuntimeError(f"line {count} is missing")
            count += 1
        ended = time.time_ns()
    if count != VOLUME // SIZE:
        raise RuntimeError(f"{count} lines arrived")
    return VOLUME / 2**20 / ((ended - began) / 1e9)
