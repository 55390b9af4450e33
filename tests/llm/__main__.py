"""``python -m tests.llm --script story.yaml``: prints its URL and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from tests.llm import Script, ScriptedLlm


async def serve(arguments: argparse.Namespace) -> None:
    variables = dict(pair.split("=", 1) for pair in arguments.var)
    script = Script.load(arguments.script, variables)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ScriptedLlm(script, host=arguments.host, port=arguments.port, log=arguments.log) as llm:
        print(llm.url, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.llm", description=__doc__)
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append every request as a line of JSON")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
