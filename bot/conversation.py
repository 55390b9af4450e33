"""What is said in a pull request's review threads: what a review asks for is read, and what an agent says is posted.

Every method may be repeated: texts of ours are found again by their hidden marker. Nothing that is posted here approves
or blocks anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from bot.errors import GitHubUnavailable
from bot.events import Comment
from bot.facts import FactFinder
from bot.feedback import (
    Asked,
    Feedback,
    Reply,
    earlier_words,
    in_place,
    parse_replies,
    read_feedback,
    thread_ids,
)
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import GitHubError, NotFound, OutcomeUnknown, Unprocessable
from bot.model import Actor, Job, Repo, TargetKind
from bot.permissions import CHANGE, SPEAK
from bot.redact import Redactor
from bot.render import clip, marker, render
from bot.review_comments import Placed, place
from bot.standing import at_least
from bot.thread_replies import comments_on_diff, is_there, reply

log = structlog.get_logger(__name__)

MAX_FILES = (
    3_000  # GitHub lists no more: https://docs.github.com/en/rest/pulls/pulls#list-pull-requests-files
)
MAX_ASKED = 20  # people whose permission is looked up for one review; the words of others are left out
#: Of a review's text, for comments that cannot stand in the diff.
MAX_ELSEWHERE = 40_000

#: https://docs.github.com/en/graphql/reference/objects#pullrequestreviewthread; REST has no threads.
_THREADS = """
query($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) {
    pullRequest(number: $number) {
      reviewThreads(first: 100, after: $after) {
        nodes { id isResolved comments(first: 1) { nodes { fullDatabaseId } } }
        pageInfo { hasNextPage endCursor }
      }
    }
  }
}
"""
_RESOLVE = """
mutation($thread: ID!) {
  resolveReviewThread(input: {threadId: $thread}) { thread { isResolved } }
}
"""
_MAX_PAGES = 20  # of threads


class Conversation:
    """Reads and writes as the App's installation; every text that is posted is redacted and mentions nobody."""

    def __init__(
        self,
        github: GitHub,
        facts: FactFinder,
        redactor: Redactor,
        *,
        before_writing: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:
        """``before_writing``: called right before anything is posted for a job; what it raises keeps it back."""
        self._github = github
        self._facts = facts
        self._redactor = redactor
        self._before_writing = before_writing

    # --- what people say

    async def feedback(
        self, repo: Repo, number: int, review_id: int, *, body: str, author: Actor
    ) -> Feedback | None:
        """What a submitted review asks for; None when it does not count: gone, dismissed, not by ``author``.

        ``body`` is the review's text as its event has it. The caller has made sure before that ``author`` may command
        us; the words of others in the review's threads are included when they may write to the repository, or, in
        one that is not public, read it.
        """
        client = self._client(repo)
        try:
            review = await client.getitem(
                self._path(repo, "/pulls/{number}/reviews/{id}", number=number, id=review_id)
            )
        except NotFound:
            return None
        if (review.get("user") or {}).get("id") != author.id:
            return None
        comments = await comments_on_diff(client, repo, number)
        own = {_root(one) for one in comments if one.get("pull_request_review_id") == review_id}
        me = (await self._github.identity()).user_id
        trusted = await self._trusted(repo, [one for one in comments if _root(one) in own], author)
        return read_feedback(review, comments, body=body, trusted=trusted, me=me)

    async def approving(self, repo: Repo, number: int, *, since: datetime) -> list[tuple[int, Actor, str]]:
        """Reviews by people that approve, and were submitted after ``since``: id, author, text; oldest first."""
        url = self._path(repo, "/pulls/{number}/reviews", number=number)
        found = []
        async for one in self._client(repo).getiter(url):
            user, at = one.get("user"), one.get("submitted_at")
            person = user is not None and user.get("type") == "User"
            if person and one.get("state") == "APPROVED" and at and datetime.fromisoformat(at) > since:
                author = Actor(login=str(user["login"]), id=int(user["id"]), type="User")
                found.append((int(one["id"]), author, str(one.get("body") or "")))
        return found

    async def in_place(
        self, repo: Repo, number: int, comment: Comment, words: str, *, replies: bool
    ) -> Asked:
        """``words`` of an inline comment with the place in the diff, and what was said there before.

        The caller has made sure that the comment's author may command us; whose words else are shown is decided as
        for :meth:`feedback`. ``replies``: the agent may answer in the thread.
        """
        thread = comment.thread
        if thread is None:
            return Asked(text=words)
        if thread.id == comment.id:  # it began the thread
            return in_place(words, thread, replies=replies)
        try:
            found = await comments_on_diff(self._client(repo), repo, number)
            talk = [one for one in found if _root(one) == thread.id and int(one["id"]) < comment.id]
            earlier, left_out = earlier_words(
                talk,
                before=comment.id,
                at=comment.written_at or datetime.now(UTC),
                trusted=await self._trusted(repo, talk, comment.author),
                me=(await self._github.identity()).user_id,
            )
        except GitHubError as error:
            log.warning("thread not read", thread=thread.id, repo=repo.full_name, error=str(error))
            earlier, left_out = [], ["What was said in the thread before could not be read."]
        return in_place(words, replace(thread, earlier=earlier), left_out=left_out, replies=replies)

    async def _trusted(self, repo: Repo, comments: Sequence[Mapping[str, Any]], author: Actor) -> set[int]:
        """The ids of those who wrote ``comments`` and whose words an agent may read; ``author`` is one of them."""
        others = {
            one["user"]["id"]: one["user"]
            for one in comments
            if one.get("user") and one["user"].get("type") == "User"
        }
        others.pop(author.id, None)
        if not others:
            return {author.id}
        repository = await self._client(repo).getitem(self._path(repo, ""))
        needed = "read" if repository.get("private") else "write"
        people = list(others.values())[:MAX_ASKED]
        permissions = {one["id"]: await self._facts.permission(repo, str(one["login"])) for one in people}
        return {author.id} | {one for one, permission in permissions.items() if at_least(permission, needed)}

    # --- what the agent says to threads

    async def reply(self, job: Job, replies: object) -> list[str]:
        """Post the ``replies`` of an agent's result (unchecked) to the threads that its job was shown, once each.

        A thread is marked as resolved when the agent says that it is, and all of the job's work was pushed. Returns
        a sentence for each thing that did not work: those do not make the job fail.
        """
        number = _pull_of(job)
        shown = thread_ids(job.instructions)
        if number is None or not shown or not replies:
            return []
        try:
            comments = await comments_on_diff(self._client(job.repo), job.repo, number)
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("threads not read", error=str(error), **job.log_context())
            return ["The review's threads could not be read, so they were not answered."]
        first = {int(one["id"]) for one in comments if not one.get("in_reply_to_id")}
        wanted = parse_replies(replies, shown & first)
        failed = 0
        for answer in wanted:
            if not await self._post_reply(job, number, answer, comments):
                failed += 1
        sentences = [f"{_threads(failed)} of the review could not be answered."] if failed else []
        if job.head_sha and not job.held_back:
            sentences += await self._resolve(job, number, {one.thread for one in wanted if one.resolved})
        return sentences

    async def _post_reply(
        self, job: Job, number: int, answer: Reply, comments: Sequence[Mapping[str, Any]]
    ) -> bool:
        mark = marker("thread", f"{job.id}/{answer.thread}")
        body = self._clean(render("comments/thread.md.j2", marker=mark, reply=answer, job=job))
        try:
            await self._reply_once(job, number, answer.thread, body, mark, comments)
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("thread not answered", thread=answer.thread, error=str(error), **job.log_context())
            return False
        return True

    async def _reply_once(
        self,
        job: Job,
        number: int,
        thread: int,
        body: str,
        mark: str,
        comments: Sequence[Mapping[str, Any]],
    ) -> None:
        me = (await self._github.identity()).user_id
        if not is_there(comments, mark, me):
            await self._may_write(job)
            await reply(self._client(job.repo), job.repo, number, thread, body, mark=mark, me=me)

    async def _resolve(self, job: Job, number: int, threads: Collection[int]) -> list[str]:
        """Mark threads as resolved; sentences about those that could not be."""
        if not threads:
            return []
        client, missed = self._github.repository(job.repo, CHANGE), len(threads)
        try:
            async for thread in self._review_threads(client, job.repo, number):
                first = (thread.get("comments") or {}).get("nodes") or [None]
                if int((first[0] or {}).get("fullDatabaseId") or 0) not in threads:
                    continue
                if not thread.get("isResolved"):
                    await self._may_write(job)
                    await client.graphql(_RESOLVE, thread=thread["id"])
                missed -= 1
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("threads not resolved", error=str(error), **job.log_context())
        return [f"{_threads(missed)} could not be marked as resolved: please do it."] if missed else []

    async def _review_threads(
        self, client: GitHubClient, repo: Repo, number: int
    ) -> AsyncIterator[Mapping[str, Any]]:
        after: str | None = None
        for _ in range(_MAX_PAGES):
            data = await client.graphql(
                _THREADS, owner=repo.owner, name=repo.name, number=number, after=after
            )
            found = data["repository"]["pullRequest"]["reviewThreads"]
            for thread in found["nodes"] or ():
                yield thread
            if not found["pageInfo"]["hasNextPage"]:
                return
            after = found["pageInfo"]["endCursor"]

    # --- a review of ours

    async def post_review(self, job: Job, comments: object, *, sha: str) -> list[str]:
        """Post what an agent found as one review of the commit ``sha``, once; it neither approves nor blocks.

        ``comments`` are those of its result (unchecked); the job's summary is the review's text, and takes in what
        cannot stand in the diff. Where GitHub does not take the review any more, because the commit is gone from the
        pull request, the same words become an ordinary comment. Returns sentences about what was left out.
        """
        number, mark = _pull_of(job), marker("review", job.id)
        if number is None:
            raise ValueError("only a pull request can be reviewed")
        placed = place(comments, await self._files(job.repo, number, sha))
        left_out = [f"{placed.dropped} of its remarks could not be used."] if placed.dropped else []
        if await self._our_review(job.repo, number, mark):
            return left_out
        url = self._path(job.repo, "/pulls/{number}/reviews", number=number)
        # without comments in the diff, should GitHub not take one of them after all
        for inline in (True, False):
            body = self._review_body(job, placed, mark, inline=inline)
            data: dict[str, Any] = {"commit_id": sha, "event": "COMMENT", "body": body}
            if inline:
                data["comments"] = [one.as_json() | {"body": self._clean(one.body)} for one in placed.inline]
            await self._may_write(job)
            try:
                await self._client(job.repo).post(url, data=data)
            except Unprocessable as error:
                log.warning("review not taken", inline=inline, error=str(error), **job.log_context())
                continue
            except OutcomeUnknown:
                if not await self._our_review(job.repo, number, mark):
                    raise
            return left_out
        body = self._review_body(job, placed, mark, inline=False)
        await self._comment_once(job, number, mark, body)
        return [*left_out, "The commit is not in the pull request any more, so the review is a comment."]

    def _review_body(self, job: Job, placed: Placed, mark: str, *, inline: bool) -> str:
        elsewhere = [(one.path, one.line, one.body) for one in placed.elsewhere]
        if not inline:
            elsewhere = [(one.path, one.line, one.body) for one in placed.inline] + elsewhere
        room, shown = MAX_ELSEWHERE, []
        for item in elsewhere:
            room -= len(item[2]) + 100
            if room < 0:
                break
            shown.append(item)
        return self._clean(
            render(
                "comments/review.md.j2",
                marker=mark,
                job=job,
                elsewhere=shown,
                more=len(elsewhere) - len(shown),
                found=len(placed.inline) + len(placed.elsewhere),
            )
        )

    async def _files(self, repo: Repo, number: int, sha: str) -> list[Mapping[str, Any]]:
        """The files of the pull request with their patches as they were at ``sha``."""
        pull = await self._facts.pull(repo, number)
        client = self._client(repo)
        if pull.head_sha != sha:  # pushed to while the agent read: the lines are those of what it has read
            url = self._path(repo, "/compare/{basehead}", basehead=f"{pull.base_sha}...{sha}")
            try:
                return list((await client.getitem(url)).get("files") or ())
            except NotFound:
                return []
        found: list[Mapping[str, Any]] = []
        async for one in client.getiter(self._path(repo, "/pulls/{number}/files", number=number)):
            found.append(one)
            if len(found) == MAX_FILES:
                break
        return found

    async def _our_review(self, repo: Repo, number: int, mark: str) -> bool:
        me = (await self._github.identity()).user_id
        url = self._path(repo, "/pulls/{number}/reviews", number=number)
        async for one in self._client(repo).getiter(url):
            if (one.get("user") or {}).get("id") == me and mark in (one.get("body") or ""):
                return True
        return False

    # --- an answer

    async def answer(self, job: Job) -> None:
        """Post the agent's answer to a question as a comment of its own, once: those are noticed.

        It stands in the thread in which was asked; where that is gone, below the pull request.
        """
        mark, thread = marker("answer", job.id), job.trigger.thread
        body = self._clean(render("comments/answer.md.j2", marker=mark, job=job))
        if thread is not None and job.target is TargetKind.pull_request:
            try:
                comments = await comments_on_diff(self._client(job.repo), job.repo, job.number)
                await self._reply_once(job, job.number, thread, body, mark, comments)
            except (NotFound, Unprocessable) as error:
                log.info("the thread is gone", thread=thread, error=str(error), **job.log_context())
            else:
                return
        await self._comment_once(job, job.number, mark, body)

    async def _comment_once(self, job: Job, number: int, mark: str, body: str) -> None:
        if await self._our_comment(job.repo, number, mark):
            return
        url = self._path(job.repo, "/issues/{number}/comments", number=number)
        await self._may_write(job)
        try:
            await self._client(job.repo).post(url, data={"body": body})
        except OutcomeUnknown:
            if not await self._our_comment(job.repo, number, mark):
                raise

    async def _our_comment(self, repo: Repo, number: int, mark: str) -> bool:
        me = (await self._github.identity()).user_id
        url = self._path(repo, "/issues/{number}/comments", number=number)
        async for one in self._client(repo).getiter(url):
            if (one.get("user") or {}).get("id") == me and mark in (one.get("body") or ""):
                return True
        return False

    async def _may_write(self, job: Job) -> None:
        if self._before_writing is not None:
            await self._before_writing(job)

    def _client(self, repo: Repo) -> GitHubClient:
        return self._github.repository(repo, SPEAK)

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)

    def _clean(self, text: str) -> str:
        return clip(self._redactor.text(text))


def _root(comment: Mapping[str, Any]) -> int:
    return int(comment.get("in_reply_to_id") or comment["id"])


def _pull_of(job: Job) -> int | None:
    """The pull request that a job is about, or that its branch belongs to."""
    return job.pull_number or (job.number if job.target is TargetKind.pull_request else None)


def _threads(count: int) -> str:
    return "One thread" if count == 1 else f"{count} threads"
