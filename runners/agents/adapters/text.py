"""Runs a CLI whose output is plain text, and prints events of ours (``runners.agents.adapter``) about it.

Usage: ``python3 -I text.py [--session ID] -- ARGV…``; the prompt is standard input and goes to the CLI as it is. Each
line that the CLI prints is passed on as it comes; all of them together are its last words, for nothing else is told.
It did its work when it exits with 0: our exit code is its own. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import deque

MAX_LINES = 5000  # of its end that are kept as its last words
MAX_LINE = 100_000  # characters
#: Colours and cursor movements (ECMA-48), which some CLIs print even into a pipe.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def tell(kind: str, **values: object) -> None:
    """Print one event."""
    print(json.dumps({"kind": kind, **values}), flush=True)  # noqa: T201 - our output


def main(argv: list[str]) -> int:
    """Run ``argv``; its exit code, or that of a shell for a signal."""
    try:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        tell(
            "final", ok=False, text=f"{argv[0]} cannot be started: {error.strerror}.", failure="configuration"
        )
        return 127
    said: deque[str] = deque(maxlen=MAX_LINES)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            line = _CONTROL.sub("", line.rstrip("\r\n"))[:MAX_LINE]
            said.append(line)
            tell("log", text=line)
    code = process.returncode
    words = "\n".join(said).strip()
    if words:
        tell("text", text=words)
    if code == 0:
        tell("final")
    else:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        last = next((line for line in reversed(said) if line.strip()), "it printed nothing")
        tell("final", ok=False, text=f"{argv[0]} ended with {how}: {last[-500:]}")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    before = sys.argv.index("--")
    tell("started", session_id=sys.argv[2] if sys.argv[1] == "--session" else None)
    sys.exit(main(sys.argv[before + 1 :]))
