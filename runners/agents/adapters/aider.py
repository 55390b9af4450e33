"""One turn of aider (0.86), by its Python API, with events of ours (``runners.agents.adapter``) on standard output.

Its command line ends with 0 whatever happened, tells a refused key in prose only, and reads settings, keys and
commands from the repository. Here it is a library (https://aider.chat/docs/scripting.html): what the provider said,
what was answered and what was applied are known, and the repository brings nothing along but its own text.

Runs in aider's interpreter. The prompt is standard input, the rest ``turn.json`` beside this file; $AGENT_LLM_TOKEN is
the key.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

#: What is read along, as far as the repository has it.
CONVENTIONS = ("AGENTS.md", "CONVENTIONS.md")


class Events:
    """Prints events on what was standard output; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
        os.dup2(2, 1)

    def tell(self, kind: str, text: str = "", **values: object) -> None:
        """Print one event."""
        self._out.write(json.dumps({"kind": kind, "text": text, **values}) + "\n")
        self._out.flush()


def main() -> int:
    """Run the turn; 0 when the model answered and everything that it answered could be applied."""
    events = Events()
    prompt = sys.stdin.read()
    turn = json.loads(Path(__file__).with_name("turn.json").read_text("utf-8"))
    token = os.environ.pop("AGENT_LLM_TOKEN")  # commands that aider runs have no use for it
    events.tell("started", turn["model"], session_id=turn["session_id"])

    # these take seconds
    from aider import models
    from aider.coders import Coder, base_coder
    from aider.io import InputOutput
    from aider.repo import GitRepo
    from aider.repomap import RepoMap

    session = Path.home() / turn["session_folder"]
    session.mkdir(mode=0o700, exist_ok=True)
    chat, chosen = session / "chat.md", session / "files.json"
    base_coder.RETRY_TIMEOUT = turn["longest_wait"]  # seconds; its own 60 make two minutes of silence
    RepoMap.TAGS_CACHE_DIR = str(
        Path.home() / ".aider" / "tags"
    )  # not in the repository, where it would be committed

    class Said(InputOutput):  # type: ignore[misc]
        """aider's words, as events."""

        trouble = ""  # what the provider or aider last complained about

        def assistant_output(self, message: str, pretty: bool | None = None) -> None:
            """Rendered for people; the words as they came are told by ``Calls``."""

        def tool_output(self, *messages: str, log_only: bool = False, bold: bool = False) -> None:
            super().tool_output(*messages, log_only=log_only, bold=bold)
            words = " ".join(messages).strip()
            if log_only or not words:
                return
            if words.startswith("Retrying in "):
                events.tell("retry", f"{self.trouble} {words}".strip(), ok=False)
            else:
                events.tell("tool" if words.startswith(("Applied edit to", "Added ")) else "log", words)

        def tool_warning(self, message: str = "", strip: bool = True) -> None:
            super().tool_warning(message, strip)
            if message.startswith("litellm."):  # the provider's own words come as a warning
                self.trouble = message
                events.tell("error", message, ok=False)
            else:
                events.tell("log", message)

        def tool_error(self, message: str = "", strip: bool = True) -> None:
            super().tool_error(message, strip)
            if not self.trouble.startswith("litellm.") or message.startswith("litellm."):
                self.trouble = message
                events.tell("error", message, ok=False)

        def offer_url(self, *_: object, **__: object) -> bool:
            return False  # there is no browser

    class Calls:
        """Takes the place of aider's statistics: whether the last call to the model was answered."""

        answered = False

        def event(self, name: str, **_: object) -> None:
            if name == "message_send_starting":
                self.answered = False
            elif name == "message_send":
                self.answered = True
                said.trouble = ""
                if words := coder.partial_response_content:
                    events.tell("text", words)

    said, calls = Said(pretty=False, yes=True, chat_history_file=chat, fancy_input=False), Calls()
    model = models.Model(turn["model"], weak_model=turn["model"], editor_model=turn["model"])
    # aider waits and tries again by itself; the client below it need not, too
    model.extra_params = {
        **(model.extra_params or {}),
        "api_base": turn["base_url"],
        "api_key": token,
        "max_retries": 0,
    }
    repo = GitRepo(said, [], None, aider_ignore_file=".aiderignore", models=[model])
    coder = Coder.create(
        main_model=model,
        io=said,
        repo=repo,
        fnames=[name for name in _chosen(chosen) if Path(name).is_file()] if turn["resume"] else [],
        read_only_fnames=[name for name in CONVENTIONS if Path(name).is_file()],
        auto_commits=False,
        stream=False,
        map_tokens=None,
        restore_chat_history=turn["resume"],
        suggest_shell_commands=False,
        detect_urls=False,
        analytics=calls,
    )
    try:
        coder.run(with_message="\n" + prompt)  # a first character / or ! would make a command of it
    finally:
        chosen.write_text(json.dumps(sorted(coder.get_inchat_relative_files())), "utf-8")

    failed = ""
    if not calls.answered:
        failed = said.trouble or "aider got no answer from the model"
    elif coder.num_exhausted_context_windows:
        failed = said.trouble or "the model's context window is exhausted"
    elif coder.reflected_message:
        failed = f"aider could not apply what the model wrote: {coder.reflected_message}"
    usage = {"input": coder.total_tokens_sent, "output": coder.total_tokens_received}
    events.tell("final", failed, ok=not failed, usage=usage)
    return 1 if failed else 0


def _chosen(file: Path) -> list[str]:
    """The files that an earlier turn worked on."""
    try:
        names = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


if __name__ == "__main__":
    sys.exit(main())
