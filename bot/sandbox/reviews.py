"""REST: pull request reviews and comments on the diff.

https://docs.github.com/en/rest/pulls/reviews and https://docs.github.com/en/rest/pulls/comments
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.diffs import Row, hunk_until, row_at, row_of_position
from bot.sandbox.issues import note
from bot.sandbox.merging import settle
from bot.sandbox.refusals import Refusal, invalid, not_found
from bot.sandbox.state import Issue, Pull, Review, ReviewComment
from bot.sandbox.threads import follow

_STATES = {"APPROVE": "APPROVED", "REQUEST_CHANGES": "CHANGES_REQUESTED", "COMMENT": "COMMENTED"}
_OWN = {
    "APPROVE": "Can not approve your own pull request",
    "REQUEST_CHANGES": "Can not request changes on your own pull request",
}


async def create_review(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls/{pull_number}/reviews; without an event the review stays pending."""
    github, repository, body = call.github, call.repository, call.body
    issue, pull = call.pull()
    event = body.get("event")
    _not_ones_own(call, issue, event)
    if any(one.login == call.login and one.state == "PENDING" for one in pull.reviews.values()):
        raise Refusal(422, "Unprocessable Entity", ["User can only have one pending review per pull request"])
    commit = body.get("commit_id") or pull.head_sha
    if not await call.git.is_ancestor(commit, pull.head_sha):
        raise Refusal(422, "Unprocessable Entity", ["commit_id is not part of the pull request"])
    changed = await _patches(call, pull, commit)
    places = []
    for draft in body.get("comments", []):
        place = _place(changed, draft)
        if isinstance(place, str):
            raise Refusal(422, "Unprocessable Entity", [_WORDS_IN_REVIEWS[place]])
        places.append(place)
    review = Review(github.world.next_id(), call.login, body.get("body") or "", "PENDING", commit)
    pull.reviews[review.id] = review
    for draft, place in zip(body.get("comments", []), places, strict=True):
        await _add_comment(call, pull, review, draft, place)
    if event is not None:
        await _submit(call, issue, pull, review, event)
    return Answer(data=github.present.review(repository, issue, review))


async def submit_review(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}/events."""
    issue, pull, review = _review(call)
    if review.state != "PENDING":
        raise Refusal(422, "Unprocessable Entity", ["Could not submit the review: it is not pending"])
    _not_ones_own(call, issue, call.body["event"])
    review.body = call.body.get("body") or review.body
    await _submit(call, issue, pull, review, call.body["event"])
    return Answer(data=call.github.present.review(call.repository, issue, review))


async def list_reviews(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/reviews: oldest first; a pending one only to its author."""
    issue, pull = call.pull()
    seen = [one for one in pull.reviews.values() if one.state != "PENDING" or one.login == call.login]
    return call.page(seen, lambda one: call.github.present.review(call.repository, issue, one))


async def get_review(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}."""
    issue, _, review = _review(call)
    return Answer(data=call.github.present.review(call.repository, issue, review))


async def update_review(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}."""
    issue, _, review = _review(call)
    if review.login != call.login:
        raise Refusal(403, "Only the author of a review may change it.")
    before, review.body = review.body, call.body["body"]
    if review.state != "PENDING":
        _tell_review(call, issue, review, "edited", changes={"body": {"from": before}})
    return Answer(data=call.github.present.review(call.repository, issue, review))


async def delete_pending_review(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}."""
    issue, pull, review = _review(call)
    if review.state != "PENDING" or review.login != call.login:
        raise Refusal(422, "Unprocessable Entity", ["Can not delete a non-pending pull request review"])
    shown = call.github.present.review(call.repository, issue, review)
    del pull.reviews[review.id]
    pull.comments = {key: one for key, one in pull.comments.items() if one.review_id != review.id}
    return Answer(data=shown)


async def dismiss_review(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}/dismissals."""
    issue, _, review = _review(call)
    if review.state not in ("APPROVED", "CHANGES_REQUESTED"):
        sentence = f"Can not dismiss a {review.state.lower()} pull request review"
        raise Refusal(422, "Unprocessable Entity", [sentence])
    before, review.state = review.state, "DISMISSED"
    details = {
        "state": before.lower(),
        "review_id": review.id,
        "dismissal_message": call.body["message"],
    }
    note(call.github, issue, "review_dismissed", call.login, dismissed_review=details)
    _tell_review(call, issue, review, "dismissed")
    await settle(call.github, call.repository)
    return Answer(data=call.github.present.review(call.repository, issue, review))


async def list_comments_of_review(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/reviews/{review_id}/comments."""
    issue, pull, review = _review(call)
    found = [one for one in pull.comments.values() if one.review_id == review.id]
    return call.page(found, lambda one: call.github.present.review_comment(call.repository, issue, one))


# ---- comments on the diff


async def create_comment(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls/{pull_number}/comments: a review of its own with one comment."""
    issue, pull = call.pull()
    if "in_reply_to" in call.body:
        return _reply(call, issue, pull, call.body["in_reply_to"])
    commit = call.body["commit_id"]
    if await call.git.object_type(commit) != "commit" or not await call.git.is_ancestor(
        commit, pull.head_sha
    ):
        message = "commit_id is not part of the pull request"
        raise invalid("PullRequestReviewComment", "commit_id", "custom", message)
    place = _place(await _patches(call, pull, commit), call.body)
    if isinstance(place, str):
        raise _refused_place(place)
    review = Review(call.github.world.next_id(), call.login, "", "PENDING", commit)
    pull.reviews[review.id] = review
    comment = await _add_comment(call, pull, review, call.body, place)
    await _submit(call, issue, pull, review, "COMMENT")
    return Answer(201, call.github.present.review_comment(call.repository, issue, comment))


async def reply(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls/{pull_number}/comments/{comment_id}/replies."""
    issue, pull = call.pull()
    return _reply(call, issue, pull, int(call.args["comment_id"]))


async def list_comments(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/comments."""
    issue, pull = call.pull()
    shown = [one for one in pull.comments.values() if pull.reviews[one.review_id].state != "PENDING"]
    return call.page(shown, lambda one: call.github.present.review_comment(call.repository, issue, one))


async def get_comment(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/comments/{comment_id}."""
    issue, _, comment = find_review_comment(call)
    return Answer(data=call.github.present.review_comment(call.repository, issue, comment))


async def update_comment(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/pulls/comments/{comment_id}."""
    issue, _, comment = find_review_comment(call)
    before, comment.body = comment.body, call.body["body"]
    comment.updated_at = call.github.now()
    _tell_comment(call, issue, comment, "edited", changes={"body": {"from": before}})
    return Answer(data=call.github.present.review_comment(call.repository, issue, comment))


async def delete_comment(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/pulls/comments/{comment_id}."""
    issue, pull, comment = find_review_comment(call)
    del pull.comments[comment.id]
    _tell_comment(call, issue, comment, "deleted")
    return Answer(204)


OPERATIONS: dict[str, Handler] = {
    "pulls/create-review": create_review,
    "pulls/submit-review": submit_review,
    "pulls/list-reviews": list_reviews,
    "pulls/get-review": get_review,
    "pulls/update-review": update_review,
    "pulls/delete-pending-review": delete_pending_review,
    "pulls/dismiss-review": dismiss_review,
    "pulls/list-comments-for-review": list_comments_of_review,
    "pulls/create-review-comment": create_comment,
    "pulls/create-reply-for-review-comment": reply,
    "pulls/list-review-comments": list_comments,
    "pulls/get-review-comment": get_comment,
    "pulls/update-review-comment": update_comment,
    "pulls/delete-review-comment": delete_comment,
}


def find_review_comment(call: Call) -> tuple[Issue, Pull, ReviewComment]:
    """The comment on a diff that the path names.

    Raises:
        Refusal: 404.
    """
    number = int(call.args["comment_id"])
    for issue, pull in call.repository.pulls():
        if number in pull.comments:
            return issue, pull, pull.comments[number]
    raise not_found()


def _review(call: Call) -> tuple[Issue, Pull, Review]:
    issue, pull = call.pull()
    review = pull.reviews.get(int(call.args["review_id"]))
    if review is None or (review.state == "PENDING" and review.login != call.login):
        raise not_found()
    return issue, pull, review


def _not_ones_own(call: Call, issue: Issue, event: str | None) -> None:
    if event in _OWN and issue.login == call.login:
        raise Refusal(422, "Unprocessable Entity", [_OWN[event]])


async def _patches(call: Call, pull: Pull, commit: str) -> dict[str, str]:
    """Changed path to its patch, as the pull request was at ``commit``."""
    base = await call.git.merge_base(pull.base_sha, commit) or pull.base_sha
    return {one.path: one.patch or "" for one in await call.git.changes(base, commit)}


@dataclass(frozen=True)
class _Place:
    """Where a comment stands; ``row`` and ``start`` are None for a whole file."""

    row: Row | None
    start: Row | None
    side: str
    start_side: str | None
    hunk: str


# what is wrong with a place, in the words of reviews; those of single comments are below
_WORDS_IN_REVIEWS = {
    "path": "Path could not be resolved",
    "line": "Line could not be resolved",
    "line_missing": "Line could not be resolved",
    "position": "Position could not be resolved",
    "start_line": "Start line could not be resolved",
    "start_line_order": "Start line must precede the end line.",
    "hunk": "Start line must be part of the same hunk as the line.",
}


def _place(changed: Mapping[str, str], draft: Mapping[str, Any]) -> _Place | str:
    """Find a comment's line in the diff, or say which key of ``_WORDS_IN_REVIEWS`` is wrong with it."""
    patch = changed.get(draft["path"])
    if patch is None:
        return "path"
    if draft.get("subject_type") == "file":
        return _Place(None, None, "RIGHT", None, "")
    side = draft.get("side", "RIGHT")
    if draft.get("line") is not None:
        row = row_at(patch, draft["line"], side)
        if row is None:
            return "line"
    elif draft.get("position") is not None:
        row = row_of_position(patch, draft["position"])
        if row is None:
            return "position"
        side = "LEFT" if row.right is None else "RIGHT"
    else:
        return "line_missing"
    start, start_side = None, None
    if draft.get("start_line") is not None:
        start_side = draft.get("start_side", side)
        start = row_at(patch, draft["start_line"], start_side)
        if start is None:
            return "start_line"
        if start.position >= row.position:
            return "start_line_order"
        if start.hunk != row.hunk:
            return "hunk"
    return _Place(row, start, side, start_side, hunk_until(patch, row))


def _refused_place(what: str) -> Refusal:
    match what:
        case "path":
            return invalid("PullRequestReviewComment", "pull_request_review_thread.path")
        case "line_missing":
            return invalid("PullRequestReviewComment", "pull_request_review_thread.line", "missing_field")
        case "line" | "position" | "start_line":
            field = f"pull_request_review_thread.{what}"
            message = f"{field} must be part of the diff"
        case "hunk":
            field = "pull_request_review_thread.start_line"
            message = f"{field} must be part of the same hunk as the line."
        case _:
            field = "pull_request_review_thread.start_line"
            message = f"{field} must precede the end line."
    return invalid("PullRequestReviewComment", field, "custom", message)


async def _add_comment(
    call: Call, pull: Pull, review: Review, draft: Mapping[str, Any], place: _Place
) -> ReviewComment:
    now = call.github.now()
    line = place.row.line(place.side) if place.row else None
    start = place.start.line(place.start_side or place.side) if place.start else None
    position = place.row.position if place.row else 1
    comment = ReviewComment(
        id=call.github.world.next_id(),
        review_id=review.id,
        login=call.login,
        body=draft["body"],
        path=draft["path"],
        commit_id=review.commit_id,
        original_commit_id=review.commit_id,
        created_at=now,
        updated_at=now,
        diff_hunk=place.hunk,
        line=line,
        original_line=line,
        side=place.side,
        start_line=start,
        original_start_line=start,
        start_side=place.start_side,
        position=position,
        original_position=position,
        subject_type=draft.get("subject_type", "line"),
    )
    pull.comments[comment.id] = comment
    if review.commit_id != pull.head_sha:
        await follow(call.git, comment, review.commit_id, pull.head_sha)
    return comment


def _reply(call: Call, issue: Issue, pull: Pull, number: int) -> Answer:
    parent = pull.comments.get(number)
    if parent is None:
        raise not_found()
    if parent.in_reply_to_id is not None:
        # https://docs.github.com/en/rest/pulls/comments#create-a-reply-for-a-review-comment
        raise Refusal(422, "Replies to replies are not supported.")
    now = call.github.now()
    review = Review(call.github.world.next_id(), call.login, "", "COMMENTED", parent.commit_id, now)
    pull.reviews[review.id] = review
    comment = dataclasses.replace(
        parent,
        id=call.github.world.next_id(),
        review_id=review.id,
        login=call.login,
        body=call.body["body"],
        created_at=now,
        updated_at=now,
        in_reply_to_id=parent.id,
        reactions=[],
    )
    pull.comments[comment.id] = comment
    review.submitted_at = now
    _tell_review(call, issue, review, "submitted")
    _tell_comment(call, issue, comment, "created")
    return Answer(201, call.github.present.review_comment(call.repository, issue, comment))


async def _submit(call: Call, issue: Issue, pull: Pull, review: Review, event: str) -> None:
    review.state, review.submitted_at = _STATES[event], call.github.now()
    if call.login in pull.requested_reviewers:
        pull.requested_reviewers.remove(call.login)
    mine = {one.slug for one in call.github.world.teams_of(call.repository.owner, call.login)}
    pull.requested_teams = [slug for slug in pull.requested_teams if slug not in mine]
    issue.updated_at = call.github.now()
    _tell_review(call, issue, review, "submitted")
    for comment in pull.comments.values():
        if comment.review_id == review.id:
            _tell_comment(call, issue, comment, "created")
    await settle(call.github, call.repository)


def _tell_review(call: Call, issue: Issue, review: Review, action: str, **more: Any) -> None:
    assert issue.pull is not None
    present = call.github.present
    payload = {
        "action": action,
        "review": present.review(call.repository, issue, review, style="webhook"),
        "pull_request": present.pull(call.repository, issue, issue.pull),
        **more,
    }
    call.github.emit("pull_request_review", call.repository, call.login, payload)


def _tell_comment(call: Call, issue: Issue, comment: ReviewComment, action: str, **more: Any) -> None:
    assert issue.pull is not None
    present = call.github.present
    payload = {
        "action": action,
        "comment": present.review_comment(call.repository, issue, comment),
        "pull_request": present.pull(call.repository, issue, issue.pull),
        **more,
    }
    call.github.emit("pull_request_review_comment", call.repository, call.login, payload)
