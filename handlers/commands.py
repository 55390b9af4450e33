"""`/agent` commands in comments on issues and pull requests, and in inline comments of a diff."""

from __future__ import annotations

from bot.conductor import Conductor
from bot.events import Event
from bot.model import Request, Trigger
from bot.routing import Router
from bot.slash import Command, parse_commands

router: Router[Conductor] = Router()

#: More in one comment are not carried out: nobody means that.
MAX_COMMANDS = 5


@router.on("issue_comment", "created")
@router.on("pull_request_review_comment", "created")
async def comment_written(event: Event, conductor: Conductor) -> None:
    """Carry out the commands of a new comment. Edits never trigger: the text could be anybody's by then."""
    comment = event.comment
    if comment is None or comment.via_app is not None or comment.author.id != event.actor.id:
        return
    for ordinal, command in enumerate(parse_commands(comment.body)[:MAX_COMMANDS]):
        trigger = Trigger(
            delivery_id=event.delivery_id,
            event=event.kind,
            actor=event.actor,
            comment_id=comment.id,
            comment_kind=comment.kind,
        )
        await carry_out(command, event, trigger, conductor, ordinal)


async def carry_out(
    command: Command, event: Event, trigger: Trigger, conductor: Conductor, ordinal: int
) -> None:
    """Do what one command says."""
    repo, number = event.repo, event.number
    if command.problem:
        await conductor.help(repo, number, trigger, problem=command.problem, ordinal=ordinal)
    elif command.name == "run":
        request = Request(
            repo=repo,
            number=number,
            target=event.target,
            trigger=trigger,
            instructions=command.text,
            title=event.title,
            body=event.body,
            agent=command.options.get("agent"),
            model=command.options.get("model"),
            timeout=command.timeout,
            budget=command.budget,
            base=command.options.get("base"),
        )
        await conductor.submit(request, ordinal=ordinal, is_open=event.open)
    elif command.name == "cancel":
        await conductor.cancel(repo, number, trigger, ordinal=ordinal)
    elif command.name == "retry":
        await conductor.retry(repo, number, trigger, ordinal=ordinal, budget=command.budget)
    elif command.name == "resume":
        await conductor.resume(repo, number, trigger, command.text, ordinal=ordinal, budget=command.budget)
    elif command.name == "status":
        await conductor.status(repo, number, trigger, ordinal=ordinal)
    else:
        await conductor.help(repo, number, trigger, ordinal=ordinal)
