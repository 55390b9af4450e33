"""Review threads: a comment on the diff and its replies, which can be resolved, and which get outdated."""

from __future__ import annotations

from dataclasses import dataclass

from bot.sandbox.diffs import line_after
from bot.sandbox.git import GitRepository
from bot.sandbox.github import GitHub
from bot.sandbox.state import Issue, Pull, Repository, ReviewComment


@dataclass(frozen=True)
class Thread:
    """A thread, named by its first comment.

    Attributes:
        comments: oldest first; never empty.
        resolved_by: login of whoever resolved it; None while it is open.
    """

    comments: list[ReviewComment]
    resolved_by: str | None

    @property
    def first(self) -> ReviewComment:
        """The comment that began it."""
        return self.comments[0]


def threads_of(pull: Pull) -> list[Thread]:
    """The threads that everybody sees, oldest first; those of pending reviews are nobody else's business."""
    found: dict[int, list[ReviewComment]] = {}
    for comment in pull.comments.values():
        if pull.reviews[comment.review_id].state != "PENDING":
            found.setdefault(comment.in_reply_to_id or comment.id, []).append(comment)
    return [Thread(comments, pull.resolved_threads.get(first)) for first, comments in found.items()]


async def follow_lines(git: GitRepository, pull: Pull, old: str, new: str) -> None:
    """Move the comments along with the head; one whose line was changed is outdated from now on."""
    for comment in pull.comments.values():
        if comment.outdated or comment.subject_type == "file":
            comment.commit_id = new if not comment.outdated else comment.commit_id
            continue
        await follow(git, comment, old, new)


async def follow(git: GitRepository, comment: ReviewComment, old: str, new: str) -> None:
    """Move one comment from commit ``old`` to commit ``new``."""
    if comment.side == "LEFT":
        # the line is in the base, which a push does not change
        comment.commit_id = new
        return
    for name in ("line", "start_line"):
        before = getattr(comment, name)
        if before is None:
            continue
        after = await line_after(git, comment.path, before, old, new)
        if after is None:
            comment.line = comment.start_line = comment.position = None
            comment.outdated = True
            return
        setattr(comment, name, after)
    comment.commit_id = new


def set_resolved(
    github: GitHub, repository: Repository, issue: Issue, thread: Thread, login: str, *, resolved: bool
) -> Thread:
    """Resolve a thread or open it again, and tell the App; nothing happens when it is so already."""
    pull = issue.pull
    assert pull is not None
    if resolved == (thread.resolved_by is not None):
        return thread
    if resolved:
        pull.resolved_threads[thread.first.id] = login
    else:
        del pull.resolved_threads[thread.first.id]
    present = github.present
    payload = {
        "action": "resolved" if resolved else "unresolved",
        "thread": {
            "node_id": present.thread_id(thread.first),
            "comments": [present.review_comment(repository, issue, one) for one in thread.comments],
        },
        "pull_request": present.pull(repository, issue, pull),
    }
    github.emit("pull_request_review_thread", repository, login, payload)
    return Thread(thread.comments, login if resolved else None)
