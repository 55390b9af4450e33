"""REST: pull request reviews and comments on the diff.

https://docs.github.com/en/rest/pulls/reviews and https://docs.github.com/en/rest/pulls/comments
"""

from __future__ import annotations

from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.issues import note
from bot.sandbox.refusals import Refusal, invalid, not_found
from bot.sandbox.state import Issue, Pull, Review, ReviewComment

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
    changed = await _changed_paths(call, pull)
    for draft in body.get("comments", []):
        if draft["path"] not in changed:
            raise Refusal(422, "Unprocessable Entity", ["Path could not be resolved"])
    review = Review(github.world.next_id(), call.login, body.get("body") or "", "PENDING", commit)
    pull.reviews[review.id] = review
    for draft in body.get("comments", []):
        line = draft.get("line", draft.get("position"))
        _add_comment(call, pull, review, draft, line=line, patch=changed[draft["path"]])
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
    review.state = "DISMISSED"
    note(call.github, issue, "review_dismissed", call.login)
    _tell_review(call, issue, review, "dismissed")
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
    changed = await _changed_paths(call, pull)
    if call.body["path"] not in changed:
        raise invalid("PullRequestReviewComment", "path")
    whole_file = call.body.get("subject_type") == "file"
    line = call.body.get("line", call.body.get("position"))
    if line is None and not whole_file:
        raise invalid("PullRequestReviewComment", "line", "missing_field")
    review = Review(call.github.world.next_id(), call.login, "", "PENDING", call.body["commit_id"])
    pull.reviews[review.id] = review
    comment = _add_comment(call, pull, review, call.body, line=line, patch=changed[call.body["path"]])
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


async def _changed_paths(call: Call, pull: Pull) -> dict[str, str]:
    base = await call.git.merge_base(pull.base_sha, pull.head_sha) or pull.base_sha
    return {one.path: one.patch or "" for one in await call.git.changes(base, pull.head_sha)}


def _add_comment(
    call: Call, pull: Pull, review: Review, draft: dict[str, Any], *, line: int | None, patch: str
) -> ReviewComment:
    now = call.github.now()
    comment = ReviewComment(
        id=call.github.world.next_id(),
        review_id=review.id,
        login=call.login,
        body=draft["body"],
        path=draft["path"],
        commit_id=review.commit_id,
        created_at=now,
        updated_at=now,
        diff_hunk=patch,
        line=line,
        side=draft.get("side", "RIGHT"),
        start_line=draft.get("start_line"),
        start_side=draft.get("start_side"),
        subject_type=draft.get("subject_type", "line"),
    )
    pull.comments[comment.id] = comment
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
    draft = {"body": call.body["body"], "path": parent.path, "side": parent.side}
    comment = _add_comment(call, pull, review, draft, line=parent.line, patch=parent.diff_hunk)
    comment.in_reply_to_id = parent.id
    comment.subject_type = parent.subject_type
    _tell_review(call, issue, review, "submitted")
    _tell_comment(call, issue, comment, "created")
    return Answer(201, call.github.present.review_comment(call.repository, issue, comment))


async def _submit(call: Call, issue: Issue, pull: Pull, review: Review, event: str) -> None:
    review.state, review.submitted_at = _STATES[event], call.github.now()
    if call.login in pull.requested_reviewers:
        pull.requested_reviewers.remove(call.login)
    issue.updated_at = call.github.now()
    _tell_review(call, issue, review, "submitted")
    for comment in pull.comments.values():
        if comment.review_id == review.id:
            _tell_comment(call, issue, comment, "created")


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
