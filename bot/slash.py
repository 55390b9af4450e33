"""The grammar of `/agent` commands in comments, and the help that is made from it.

A command starts its line. Lines in code blocks, quotes and HTML never count, so that a quoted or explained
command does nothing. The text of a command goes on until the next command or the end of the comment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from markdown_it import MarkdownIt

from bot.model import JobKind
from bot.repo_rules import is_profile_name

PREFIX = "/agent"
MAX_TEXT = 60_000
_COMMAND = re.compile(r"^/agent(?=\s|$)[ \t]*(.*)$")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,61}")
_NOT_COMMANDS = frozenset({"fence", "code_block", "blockquote_open", "html_block"})
#: Words that nobody can approve with: the answer says where to click.
DECISIONS = frozenset({"approve", "deny", "reject"})
#: Commands that start a job, by the kind of job that they start.
KINDS: Mapping[str, JobKind] = {
    "run": JobKind.task,
    "plan": JobKind.plan,
    "review": JobKind.review,
    "fix": JobKind.fix,
    "ask": JobKind.ask,
}


@dataclass(frozen=True, kw_only=True)
class CommandHelp:
    """One command as the help and the README show it."""

    name: str
    usage: str
    description: str
    who: str = "write access"


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option that a command may carry, before its text."""

    name: str
    value: str
    description: str


COMMANDS: Mapping[str, CommandHelp] = {
    help_.name: help_
    for help_ in (
        CommandHelp(
            name="run",
            usage="/agent [run] [options] TEXT",
            description="do what TEXT says: on an issue in a branch and pull request for it, on a pull request in its "
            "branch",
        ),
        CommandHelp(
            name="plan",
            usage="/agent plan [options] [TEXT]",
            description="say how it would be done, as a draft pull request; approving that starts the work",
        ),
        CommandHelp(
            name="review",
            usage="/agent review [options] [TEXT]",
            description="review this pull request, with comments on its lines; never an approval",
        ),
        CommandHelp(
            name="fix",
            usage="/agent fix [options] [TEXT]",
            description="make the failed checks of this pull request pass; the agent is given their logs",
        ),
        CommandHelp(
            name="ask",
            usage="/agent ask [options] TEXT",
            description="answer a question about the code; changes nothing",
        ),
        CommandHelp(
            name="job",
            usage="/agent job [NAME] [options] [TEXT]",
            description="start a job that this repository has given a name; without one: list them",
        ),
        CommandHelp(
            name="tell",
            usage="/agent tell TEXT",
            description="say something to the agent that works here; it reads it at once where it can, else when its "
            "turn ends",
        ),
        CommandHelp(
            name="status", usage="/agent status", description="show the jobs of this issue or pull request"
        ),
        CommandHelp(
            name="logs", usage="/agent logs", description="show the last lines of the last job's log"
        ),
        CommandHelp(name="cancel", usage="/agent cancel", description="stop what waits or runs here"),
        CommandHelp(
            name="retry", usage="/agent retry [options]", description="do the last job here once more, afresh"
        ),
        CommandHelp(
            name="resume",
            usage="/agent resume [options] [TEXT]",
            description="answer the question that a paused job asks; or go on from where the last job stopped",
        ),
        CommandHelp(name="help", usage="/agent help", description="show this list"),
    )
}
OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(name="agent", value="NAME", description="the coding agent, for example claude or codex"),
        Option(name="model", value="NAME", description="the model that the agent uses"),
        Option(
            name="timeout",
            value="TIME",
            description="the time limit: 90s, 30m, 2h",
        ),
        Option(
            name="budget",
            value="DOLLARS",
            description="what the job may cost: 2.50",
        ),
        Option(
            name="profile",
            value="NAME",
            description="how it is to be done: a profile of the repository, or a bundled one; `none`: without",
        ),
        Option(
            name="base",
            value="BRANCH",
            description="start from this branch (issues only; not of `retry` and `resume`)",
        ),
    )
}
#: Options that other commands than `run` take, too.
_ALSO_OF: Mapping[str, frozenset[str]] = dict.fromkeys(("retry", "resume"), frozenset(OPTIONS) - {"base"})
#: Commands that mean nothing without words, and what is said then.
_NEED_TEXT: Mapping[str, str] = {
    "run": "Say what to do",
    "ask": "Say what you want to know",
    "tell": "Say what the agent is to know",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that somebody wrote. ``problem`` says why it cannot be carried out as it stands."""

    name: str  # a key of COMMANDS, or "decide" (nobody can, in a comment), or "" with a problem
    text: str = ""
    job: str = ""  # of `job`: which one; "": list them
    options: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def timeout(self) -> int | None:
        """The time limit in seconds, if one was given."""
        return parse_duration(self.options["timeout"]) if "timeout" in self.options else None

    @property
    def budget(self) -> float | None:
        """The budget in US dollars, if one was given."""
        return parse_dollars(self.options["budget"]) if "budget" in self.options else None


def parse_commands(body: str) -> list[Command]:
    """Every command in a comment, in order. An empty list: the comment is not for us."""
    lines = body.replace("\r\n", "\n").split("\n")
    ignored = _ignored_lines(body.replace("\r\n", "\n"))
    starts = [
        (number, match[1])
        for number, line in enumerate(lines)
        if number not in ignored and (match := _COMMAND.match(line))
    ]
    commands = []
    for index, (number, rest) in enumerate(starts):
        end = starts[index + 1][0] if index + 1 < len(starts) else len(lines)
        commands.append(_parse(rest.strip(), "\n".join(lines[number + 1 : end])))
    return commands


def _ignored_lines(body: str) -> set[int]:
    ignored: set[int] = set()
    for token in MarkdownIt("commonmark").parse(body):
        if token.type in _NOT_COMMANDS and token.map:
            # a paragraph may continue a quote lazily, without `>`: the quote's map includes such lines
            ignored.update(range(*token.map))
    return ignored


def _parse(first: str, more: str) -> Command:
    words = first.split(maxsplit=1)
    word = words[0] if words else ""
    if word in DECISIONS:
        return Command(name="decide")
    if word in COMMANDS:
        name, first = word, words[1] if len(words) > 1 else ""
    elif re.fullmatch(r"[A-Za-z][\w-]*", first) and not more.strip():
        # one lonely word is no task: most likely a mistyped command
        near = difflib.get_close_matches(first.lower(), COMMANDS, n=1)
        guess = f" Did you mean `{PREFIX} {near[0]}`?" if near else ""
        return Command(name="", problem=f"I do not know the command `{first}`.{guess}")
    elif not first and not more.strip():
        name = "help"
    else:
        name = "run"
    job = ""
    if name == "job":
        job, first = _value(first)
        if not job and more.strip():
            return Command(name="", problem=f"Name the job in the same line: `{COMMANDS[name].usage}`.")
        if job and not _JOB_NAME.fullmatch(job):
            said = f"Name the job first: `{COMMANDS[name].usage}`."
            return Command(name="", problem=f"{said} `{PREFIX} job` lists them.")
    options: dict[str, str] = {}
    while match := re.match(r"--([a-z]+)(?:=|\s+|$)", first):
        option = match[1]
        if option not in OPTIONS:
            known = ", ".join(f"`--{known}`" for known in OPTIONS)
            return Command(name="", problem=f"I do not know the option `--{option}`. I know {known}.")
        value, first = _value(first[match.end() :])
        if not value:
            return Command(
                name="", problem=f"`--{option}` needs a value: `--{option} {OPTIONS[option].value}`."
            )
        options[option] = value
    text = f"{first.strip()}\n{more}".strip()
    if len(text) > MAX_TEXT:
        return Command(name="", problem=f"The text is longer than {MAX_TEXT} characters.")
    if "timeout" in options and parse_duration(options["timeout"]) is None:
        return Command(name="", problem="`--timeout` needs a time such as `90s`, `30m` or `2h`.")
    if "budget" in options and parse_dollars(options["budget"]) is None:
        return Command(name="", problem="`--budget` needs US dollars such as `2.50` or `$10`.")
    if "profile" in options and not is_profile_name(options["profile"]):
        return Command(name="", problem="`--profile` needs a name such as `reviewer`, and no path.")
    if name not in KINDS and name != "job" and set(options) - _ALSO_OF.get(name, frozenset()):
        known = ", ".join(f"`--{option}`" for option in sorted(_ALSO_OF.get(name, ())))
        takes = f"only the options {known}" if known else "no options"
        return Command(name="", problem=f"`{PREFIX} {name}` takes {takes}.")
    if name in _NEED_TEXT and not text:
        return Command(name="", problem=f"{_NEED_TEXT[name]}: `{COMMANDS[name].usage}`.")
    return Command(name=name, text=text, job=job.lower(), options=options)


def _value(text: str) -> tuple[str, str]:
    """The next word (or quoted words) and the rest."""
    match = re.match(r"""(?:"([^"]*)"|'([^']*)'|(\S+))\s*""", text)
    if not match:
        return "", text
    return match[1] or match[2] or match[3] or "", text[match.end() :]


def parse_duration(text: str) -> int | None:
    """Seconds of ``90s``, ``30m``, ``2h`` or plain seconds; None when it is none of these."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smh]?)", text.strip().lower())
    if not match:
        return None
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_dollars(text: str) -> float | None:
    """US dollars of ``2.50``, ``.5`` or ``$10``; None when it is none of these, or nothing at all."""
    match = re.fullmatch(r"\$?(\d{0,6}(?:\.\d{1,4})?)", text.strip())
    amount = float(match[1]) if match and match[1] else 0.0
    return amount if amount > 0 else None


def help_table() -> str:
    """The commands and options as Markdown tables: for `/agent help` and the README."""
    rows = [f"| `{help_.usage}` | {help_.description} |" for help_ in COMMANDS.values()]
    options = [f"| `--{option.name} {option.value}` | {option.description} |" for option in OPTIONS.values()]
    return "\n".join(
        [
            "| command | what it does |",
            "|---|---|",
            *rows,
            "",
            "| option of `run`, `plan`, `review`, `fix`, `ask`, `job`, `retry` and `resume` | meaning |",
            "|---|---|",
            *options,
        ]
    )
