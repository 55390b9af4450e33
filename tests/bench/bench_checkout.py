"""How long an attempt waits for its work tree, beside a plain ``git clone --shared`` in the same run.

    python -m tests.bench.bench_checkout [--files 5000] [--rounds 9]

Ours is what a job with a warm mirror goes through: the host's fetch that finds nothing new (over HTTP, token and
locks included), then the shim's own checkout, in a process of its own as in a container. Both sides work in the
same temporary folder and take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from git_host import REPO, TOKEN, GitHost, commit, git_host, run_git, write  # noqa: E402

from runners.git import with_token  # noqa: E402
from runners.mirrors import Mirrors  # noqa: E402
from runners.shim import Processes, Workspace  # noqa: E402

AIM = 1.3  # at most, design §12


@dataclass
class Turns:
    """Seconds of each turn, all in the same order."""

    fetch: list[float] = field(default_factory=list)
    checkout: list[float] = field(default_factory=list)
    plain_fetch: list[float] = field(default_factory=list)
    plain_clone: list[float] = field(default_factory=list)


def rows(files: int = 5000, rounds: int = 9) -> list[dict[str, Any]]:
    """Measure; the rows of design §12 that are about checkouts. Takes about ten seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-checkout-") as folder:
        turns = asyncio.run(_measure(Path(folder), files, rounds))
    whole = [sum(pair) for pair in zip(turns.fetch, turns.checkout, strict=True)]
    plain_whole = [sum(pair) for pair in zip(turns.plain_fetch, turns.plain_clone, strict=True)]
    clone = "git clone --shared from the same mirror"
    return [
        _row(f"checkout of {files} files by the shim", turns.checkout, clone, turns.plain_clone, AIM),
        _row(
            "no-change fetch of the mirror, then that checkout",
            whole,
            "git fetch, then git clone --shared",
            plain_whole,
            AIM,
        ),
        _row("no-change fetch of the mirror, then that checkout", whole, clone, turns.plain_clone, None),
    ]


def _row(name: str, own: list[float], baseline: str, base: list[float], aim: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(statistics.median(own) * 1000, 1),
        "unit": "ms",
        "baseline": baseline,
        "baseline_value": round(statistics.median(base) * 1000, 1),
        "ratio": round(statistics.median(a / b for a, b in zip(own, base, strict=True)), 2),
        "aim": aim,
        "better": "lower",
    }


async def _measure(folder: Path, files: int, rounds: int) -> Turns:
    turns = Turns()
    async with git_host(folder / "host") as host:
        base = await asyncio.to_thread(_fill, host, files)
        mirrors = Mirrors(folder / "mirrors")
        mirror = await mirrors.fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
        other = folder / "plain.git"
        await asyncio.to_thread(shutil.copytree, mirror, other)
        shim = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--shim", str(mirror), base,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert shim.stdin
        assert shim.stdout
        for number in range(rounds + 1):
            begun = time.perf_counter()
            await mirrors.fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
            fetch = time.perf_counter() - begun
            target, plain = folder / "ours", folder / "plain"
            target.mkdir()
            shim.stdin.write(f"{target}\n".encode())
            checkout = float(await shim.stdout.readline())
            [(key, value)] = with_token(TOKEN, host.repo_url)
            plain_fetch = await asyncio.to_thread(
                _timed,
                other,
                "-c",
                f"{key}={value}",
                "fetch",
                "-q",
                host.repo_url,
                "+refs/heads/*:refs/heads/*",
            )
            plain_clone = await asyncio.to_thread(
                _timed, folder, "clone", "-q", "--shared", str(mirror), str(plain)
            )
            for tree in (target / "repo", plain):
                count = sum(1 for file in tree.rglob("*.txt") if file.is_file())
                if count != files:
                    raise RuntimeError(f"{count} files were checked out, not {files}")
            shutil.rmtree(target)
            shutil.rmtree(plain)
            if number:  # the first round only warms the caches
                turns.fetch.append(fetch)
                turns.checkout.append(checkout)
                turns.plain_fetch.append(plain_fetch)
                turns.plain_clone.append(plain_clone)
        shim.stdin.close()
        await shim.wait()
    return turns


def _timed(folder: Path, *argv: str) -> float:
    begun = time.perf_counter()
    subprocess.run(["git", *argv], check=True, cwd=folder)
    return time.perf_counter() - begun


def _fill(host: GitHost, files: int) -> str:
    """A few thousand small files in folders of forty, over several commits; the newest commit."""
    for part in range(5):
        write(
            host.seed,
            {
                f"d{number // 400}/e{number // 40}/f{number}.txt": f"file {number}\n" * (5 + number % 60)
                for number in range(part, files, 5)
            },
        )
        commit(host.seed)
    run_git(host.seed, "push", "-q", str(host.repository), "HEAD:main")
    run_git(host.repository, "repack", "-adq")
    return host.branch("main")


async def _shim(mirror: str, base: str) -> None:
    """The shim's side: for each folder on standard input, check out into it and say how long that took."""
    processes = Processes()
    processes.watch()
    for line in iter(sys.stdin.readline, ""):
        folder = Path(line.strip())
        state = folder / "state"
        state.mkdir()
        workspace = Workspace(processes, folder, state, mirror, "bench")
        workspace.configure("http://127.0.0.1:9")
        begun = time.perf_counter()
        await workspace.check_out({"base_sha": base, "branch": "work"})
        print(time.perf_counter() - begun, flush=True)


def main() -> None:
    """Print the rows as JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shim", nargs=2, metavar=("MIRROR", "BASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shim:
        asyncio.run(_shim(*options.shim))
        return
    for row in rows(options.files, options.rounds):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
