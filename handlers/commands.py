"""`/agent` commands: in comments, inline comments and reviews, and in new issues and pull requests."""

from __future__ import annotations

from bot.events import Event
from bot.feedback import Asked
from bot.model import JobKind, Request, TargetKind, Trigger
from bot.once_more import Instead
from bot.policy import not_their_own
from bot.routing import Router
from bot.slash import KINDS, Command, parse_commands
from handlers.context import Bot
from handlers.labels import agent_in

router: Router[Bot] = Router()

#: More in one comment are not carried out: nobody means that.
MAX_COMMANDS = 5
#: The trigger's event of a command in a review: not the one of a review that is feedback.
COMMAND_IN_REVIEW = "pull_request_review_command.submitted"


@router.on("issue_comment", "created")
@router.on("pull_request_review_comment", "created")
async def comment_written(event: Event, bot: Bot) -> None:
    """Carry out the commands of a new comment. Edits never trigger: the text could be anybody's by then."""
    comment = event.comment
    if comment is None or not parse_commands(comment.body):
        return
    trigger = Trigger(
        delivery_id=event.delivery_id,
        event=event.kind,
        actor=event.actor,
        comment_id=comment.id,
        comment_kind=comment.kind,
        thread=comment.thread.id if comment.thread else None,
    )
    if comment.via_app is not None or comment.author.id != event.actor.id:
        no = not_their_own(event.actor, comment.via_app)
        await bot.conductor.pass_over(event.repo, event.number, trigger, no)
        return
    await _carry_out_all(comment.body, event, trigger, bot)


@router.on("issues", "opened")
@router.on("pull_request", "opened")
async def opened(event: Event, bot: Bot) -> None:
    """Carry out the commands in the text of a new issue or pull request. Edits never trigger.

    One that is opened with our label is served for that: its text is the task, and is not asked for twice. Bots, and
    we are one, quote what others wrote.
    """
    if not parse_commands(event.body) or any(agent_in(label)[0] for label in event.labels):
        return
    trigger = Trigger(delivery_id=event.delivery_id, event=event.kind, actor=event.actor)
    if event.opened_by is None or event.opened_by.is_bot:
        await bot.conductor.pass_over(event.repo, event.number, trigger, not_their_own(event.actor))
        return
    await _carry_out_all(event.body, event, trigger, bot)


@router.on("pull_request_review", "submitted")
async def review_written(event: Event, bot: Bot) -> None:
    """Carry out the commands of a review's own text. What else it says is the business of handlers.reviews.

    Whoever commands in this way is an asker like any other, and no reviewer whose wishes were followed.
    """
    review = event.review
    if review is None or review.author is None or review.author.id != event.actor.id:
        return
    trigger = Trigger(
        delivery_id=event.delivery_id,
        event=COMMAND_IN_REVIEW,
        actor=event.actor,
        comment_id=review.id,
        comment_kind="review_body",
    )
    await _carry_out_all(review.body, event, trigger, bot)


async def _carry_out_all(text: str, event: Event, trigger: Trigger, bot: Bot) -> None:
    """Carry out the commands of a text in order, and say how many of them were too many."""
    commands = parse_commands(text)
    for ordinal, command in enumerate(commands[:MAX_COMMANDS]):
        await carry_out(command, event, trigger, bot, ordinal)
    more = len(commands) - MAX_COMMANDS
    if more > 0:
        said = f"{more} more {'was' if more == 1 else 'were'} left out. Write {'it' if more == 1 else 'them'} again."
        said = f"I carry out the first {MAX_COMMANDS} commands of a text; {said}"
        await bot.dialogue.say(event.repo, event.number, trigger, said, ordinal=MAX_COMMANDS)


async def carry_out(command: Command, event: Event, trigger: Trigger, bot: Bot, ordinal: int) -> None:
    """Do what one command says."""
    repo, number = event.repo, event.number
    if command.problem:
        await bot.conductor.help(repo, number, trigger, problem=command.problem, ordinal=ordinal)
    elif command.name in KINDS or command.name == "job":
        asked = await _asked(command, event, bot)
        request = Request(
            repo=repo,
            number=number,
            target=event.target,
            trigger=trigger,
            instructions=asked.text,
            left_out=asked.left_out,
            title=event.title,
            body=event.body,
            agent=command.options.get("agent"),
            model=command.options.get("model"),
            timeout=command.timeout,
            budget=command.budget,
            base=command.options.get("base"),
            profile=command.options.get("profile"),
            kind=KINDS.get(command.name, JobKind.task),
            head_sha=event.head_sha,
            asked_at=event.comment.written_at if event.comment else None,
        )
        if command.name == "job":
            named = await bot.conductor.named_job(request, command.job, command.text, ordinal=ordinal)
            if named is None:
                return
            request = named
        await _start(request, event, bot, ordinal)
    elif command.name == "cancel":
        await bot.conductor.cancel(repo, number, trigger, ordinal=ordinal)
    elif command.name == "retry":
        await bot.conductor.retry(repo, number, trigger, ordinal=ordinal, instead=_instead(command))
    elif command.name == "resume":
        words = (await _asked(command, event, bot)).text
        await bot.conductor.resume(repo, number, trigger, words, ordinal=ordinal, instead=_instead(command))
    elif command.name == "tell":
        words = (await _asked(command, event, bot)).text
        await bot.dialogue.tell(repo, number, trigger, words, ordinal=ordinal)
    elif command.name == "logs":
        await bot.dialogue.logs(repo, number, trigger, ordinal=ordinal)
    elif command.name == "decide":
        text = await bot.desk.explain(repo, number)
        await bot.dialogue.say(repo, number, trigger, text, ordinal=ordinal)
    elif command.name == "status":
        await bot.conductor.status(repo, number, trigger, ordinal=ordinal)
    else:
        await bot.conductor.help(repo, number, trigger, ordinal=ordinal)


def _instead(command: Command) -> Instead:
    return Instead(
        agent=command.options.get("agent"),
        model=command.options.get("model"),
        profile=command.options.get("profile"),
        timeout=command.timeout,
        budget=command.budget,
    )


async def _start(request: Request, event: Event, bot: Bot, ordinal: int) -> None:
    """Start what a command asks for, by its kind."""
    if request.kind is JobKind.review and event.target is TargetKind.issue:
        problem = "An issue has no diff to review. Write `/agent review` in a pull request."
        await bot.conductor.help(
            request.repo, request.number, request.trigger, problem=problem, ordinal=ordinal
        )
    elif request.kind is JobKind.fix:
        await bot.dialogue.fix(request, ordinal=ordinal, is_open=event.open)
    else:
        await bot.conductor.submit(request, ordinal=ordinal, is_open=event.open)


async def _asked(command: Command, event: Event, bot: Bot) -> Asked:
    """What a command says. An inline one is about its place in the diff, whose thread its agent may answer.

    Without words the failed checks are meant, or what an answer is needed for, and not the place.
    """
    comment = event.comment
    if comment is None or comment.thread is None or (not command.text and command.name in ("fix", "resume")):
        return Asked(text=command.text)
    replies = command.name in ("run", "fix", "job")
    return await bot.dialogue.in_place(event.repo, event.number, comment, command.text, replies=replies)
