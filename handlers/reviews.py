"""Pull request reviews: decisions about what the bot asked, feedback for its work, and the last word on it."""

from __future__ import annotations

from bot.events import Event
from bot.final_check import number_in
from bot.routing import Router
from handlers.context import Bot

router: Router[Bot] = Router()


@router.on("pull_request_review", "submitted")
@router.on("pull_request_review", "edited")
@router.on("pull_request_review", "dismissed")
async def review_changed(event: Event, bot: Bot) -> None:
    """Decide what is asked here; if it is not about that, a new review is feedback."""
    decided = await bot.desk.reviewed(event)
    if event.review is not None and event.action == "submitted" and not decided:
        await bot.dialogue.reviewed(event, event.review)
    await bot.final.update(event.repo, event.number, others=True)


@router.on("pull_request", "synchronize")
@router.on("pull_request", "opened")
@router.on("pull_request", "reopened")
@router.on("pull_request", "ready_for_review")
async def head_moved(event: Event, bot: Bot) -> None:
    """What was approved was another commit: ask anew, and show on the new head what is missing.

    On a pull request of somebody else's: that the rule does not apply, if there is one.
    """
    await bot.desk.pushed(event.repo, event.number)
    await bot.final.update(event.repo, event.number, request=event.action != "synchronize", others=True)


@router.on("pull_request", "edited")
async def base_changed(event: Event, bot: Bot) -> None:
    """Another base branch: what people approved was another change, perhaps with other code owners."""
    if event.rebased_at is not None:
        await bot.desk.pushed(event.repo, event.number)
        await bot.final.rebased(event.repo, event.number, event.rebased_at)


@router.on("issue_comment", "edited")
@router.on("pull_request", "edited")
async def text_changed(event: Event, bot: Bot) -> None:
    """Somebody changed what reviewers read: if that was ours, and a question waits, it is shown again as it is."""
    await bot.desk.text_changed(event)


@router.on("pull_request", "closed")
async def pull_closed(event: Event, bot: Bot) -> None:
    """Nobody need decide about it any more."""
    await bot.desk.closed(event.repo, event.number)


@router.on("pull_request", "closed")
async def pull_merged(event: Event, bot: Bot) -> None:
    """It may have brought a configuration by which pull requests that are open already want approvals, too."""
    if event.merged:
        await bot.final.configured(event.repo, event.number)


@router.on("merge_group", "checks_requested")
async def queued(event: Event, bot: Bot) -> None:
    """What stands in a merge queue is a commit of its own: the check run that is required is wanted there, too."""
    if event.queued_sha is not None:
        await bot.final.queued(event.repo, event.number, event.queued_sha)


@router.on("check_run", "rerequested")
async def count_again(event: Event, bot: Bot) -> None:
    """Count the reviews once more on GitHub's own button: anybody may ask for that, because it decides nothing."""
    number = number_in(event.check.name, event.check.job_id) if event.check else None
    if number is not None:
        await bot.final.update(event.repo, number, others=True)
