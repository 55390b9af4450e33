"""``make bench``: every promise of speed, as a ratio against a baseline that is measured in the same run.

    python -m tests.bench [--only NAME ...] [--json FILE]

Each part runs in a process of its own, one after the other. What cannot run here is named with the reason.
Exit code: 0 when everything ran or was left out for a reason, 1 when a part broke. An aim that is missed is no error:
a busy machine must not look like a broken program.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.result import Result, progress

WANTED_P99 = 15.0  # ms, design §12
PART_SECONDS = 200  # for one part, far more than it takes
SHOWN = ("what", "baseline", "ours", "ratio", "aim", "met")


# --- the parts


def webhook() -> list[Result]:
    """Unwanted and wanted events."""
    from tests.bench import bench_webhook

    found = []
    for row in bench_webhook.rows():
        if row.baseline is None or row.baseline_value is None or row.ratio is None:
            continue  # a baseline itself
        aim, met = "", None
        if row.aim is not None:
            aim, met = f"at least {row.aim:.2f}", row.ratio >= row.aim
            if row.name.startswith("wanted"):
                aim, met = f"{aim}, p99 under {WANTED_P99:.0f} ms", met and row.p99_ms < WANTED_P99
        if row.errors:
            aim, met = aim or "no errors", False
        found.append(
            Result(
                name=row.name,
                baseline=row.baseline,
                baseline_value=row.baseline_value,
                value=row.value,
                unit=row.unit,
                ratio=row.ratio,
                aim=aim,
                met=met,
                note=f"p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms, {row.errors} errors; "
                f"by CPU time {row.cpu_ratio}; {row.note}",
            )
        )
    return found


def checkout() -> list[Result]:
    """The work tree."""
    from tests.bench import bench_checkout

    return [
        Result(
            name=row["name"],
            baseline=row["baseline"],
            baseline_value=row["baseline_value"],
            value=row["value"],
            unit=row["unit"],
            ratio=row["ratio"],
            aim=f"at most {row['aim']:.2f}" if row["aim"] else "",
            met=row["ratio"] <= row["aim"] if row["aim"] else None,
        )
        for row in bench_checkout.rows()
    ]


def _later(function: str) -> Callable[[], list[Result]]:
    """A function ``module.name`` below tests.bench, imported when it is called."""

    def call() -> list[Result]:
        module, _, name = function.rpartition(".")
        found: list[Result] = getattr(importlib.import_module(f"tests.bench.{module}"), name)()
        return found

    return call


#: name -> what it measures, whether it needs the Docker engine
PARTS: dict[str, tuple[Callable[[], list[Result]], bool]] = {
    "webhook": (webhook, False),
    "checkout": (checkout, False),
    "events": (_later("bench_events.results"), False),
    "start": (_later("bench_attempts.start_results"), True),
    "jobs": (_later("bench_attempts.job_results"), True),
    "memory": (_later("bench_attempts.memory_results"), True),
}


# --- the run


def run_part(name: str, folder: Path) -> tuple[list[Result], str]:
    """Its results; or why there are none."""
    answer = folder / f"{name}.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench", "--part", name, "--json", str(answer)],
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(PART_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        os.killpg(process.pid, signal.SIGINT)  # lets it remove its containers
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if isinstance(error, KeyboardInterrupt):
            raise
        return [], f"it took longer than {PART_SECONDS} seconds"
    if code or not answer.exists():
        return [], f"it ended with exit code {code}; its own words are above"
    return [Result(**row) for row in json.loads(answer.read_text())], ""


def engine_missing() -> str:
    """Why nothing can run in containers here, or an empty string."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=10)
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    try:
        client.images.get("debian:bookworm-slim")
    except ImageNotFound:
        return "the base image debian:bookworm-slim is missing; tests/provision.sh makes it"
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    finally:
        client.close()
    return ""


def number(value: float) -> str:
    """Three or four digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(results: list[Result], absent: dict[str, str]) -> str:
    """The table, in Markdown."""
    rows = [SHOWN, tuple("---" for _ in SHOWN)]
    rows += [
        (
            row.name,
            f"{row.baseline}: {number(row.baseline_value)} {row.unit}",
            f"{number(row.value)} {row.unit}",
            f"{row.ratio:.2f}" if row.ratio >= 0.1 else f"{row.ratio:.3f}",
            row.aim or "-",
            {True: "yes", False: "NO", None: "-"}[row.met],
        )
        for row in results
    ]
    rows += [(name, f"not available: {reason}", "", "", "", "-") for name, reason in absent.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"- {row.name}: {row.note}" for row in results if row.note]
    return "\n".join([*lines, "", *notes])


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="may be given several times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        rows = [asdict(row) for row in PARTS[options.part][0]()]
        options.json.write_text(json.dumps(rows))
        return 0
    results: list[Result] = []
    absent: dict[str, str] = {}
    broken = False
    about = machine()
    no_engine = engine_missing()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in options.only or PARTS:
            if PARTS[name][1] and no_engine:
                absent[name] = no_engine
                continue
            print(f"{name} …", file=sys.stderr, flush=True)
            started = time.monotonic()
            found, reason = run_part(name, Path(folder))
            progress(f"{time.monotonic() - started:.0f} s")
            results += found
            if reason:
                absent[name] = reason
                broken = True
    print(show(results, absent))
    cores = f"{about['cores']} core{'s' if about['cores'] != 1 else ''}"
    print(
        f"\n{cores}, Python {about['python']}, load {about['load']} before; {time.monotonic() - begun:.0f} s in all"
    )
    if options.json:
        told = {"machine": about, "rows": [asdict(row) for row in results], "not available": absent}
        options.json.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
