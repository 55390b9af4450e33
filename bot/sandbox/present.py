"""The world's values as GitHub's JSON.

Only what means something is said here; ``bot.sandbox.completion`` adds the other fields that the schemas require.
Every function makes new dicts, as completion writes into them.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, overload

from bot.sandbox.git import Commit, FileChange
from bot.sandbox.permissions import ROLES
from bot.sandbox.state import (
    CheckRun,
    CheckSuite,
    Comment,
    Installation,
    Issue,
    Label,
    Pull,
    Reaction,
    Repository,
    Review,
    ReviewComment,
    Status,
    Team,
    User,
    World,
)

Json = dict[str, Any]

REACTIONS = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")


@overload
def iso(moment: datetime) -> str: ...
@overload
def iso(moment: None) -> None: ...
def iso(moment: datetime | None) -> str | None:
    """A moment as GitHub writes it: UTC, whole seconds."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id(kind: str, number: int) -> str:
    """An opaque global id."""
    return f"{kind}_{b64encode(str(number).encode()).decode().rstrip('=')}"


def account_id(user: User) -> str:
    """The global id of an account."""
    return node_id({"Bot": "BOT", "Organization": "O"}.get(user.type, "U"), user.id)


def read_node_id(text: str) -> tuple[str, int] | None:
    """Kind and number behind a global id; None when it is none."""
    kind, _, code = text.partition("_")
    try:
        number = int(b64decode(code + "=" * (-len(code) % 4), validate=True))
    except ValueError:
        return None
    return kind, number


class Presenter:
    """Writes JSON for one world under one base URL (REST and pages have the same host)."""

    def __init__(self, world: World, base_url: str):
        self._world = world
        self._base = base_url

    def repository_url(self, repository: Repository) -> str:
        """Root of the repository's REST paths."""
        return f"{self._base}/repos/{repository.full_name}"

    def page_url(self, repository: Repository, issue: Issue | None = None) -> str:
        """The page for people."""
        url = f"{self._base}/{repository.full_name}"
        if issue is None:
            return url
        return f"{url}/{'pull' if issue.pull else 'issues'}/{issue.number}"

    # ---- accounts

    def user(self, login: str) -> Json:
        """A simple user."""
        user = self._world.users[login]
        url = f"{self._base}/users/{login.replace('[', '%5B').replace(']', '%5D')}"
        return {
            "login": login,
            "id": user.id,
            "node_id": account_id(user),
            "avatar_url": f"{self._base}/avatars/{user.id}",
            "gravatar_id": "",
            "url": url,
            "html_url": f"{self._base}/{login}",
            "followers_url": f"{url}/followers",
            "following_url": f"{url}/following{{/other_user}}",
            "gists_url": f"{url}/gists{{/gist_id}}",
            "starred_url": f"{url}/starred{{/owner}}{{/repo}}",
            "subscriptions_url": f"{url}/subscriptions",
            "organizations_url": f"{url}/orgs",
            "repos_url": f"{url}/repos",
            "events_url": f"{url}/events{{/privacy}}",
            "received_events_url": f"{url}/received_events",
            "type": user.type,
            "site_admin": False,
        }

    def organization(self, login: str) -> Json:
        """A simple organization, as webhooks carry it."""
        user = self._world.users[login]
        return {"login": login, "id": user.id, "node_id": node_id("O", user.id), "description": None}

    def app(self, slug: str | None = None) -> Json:
        """An App; the one under test by default."""
        app = self._world.app_named(slug)
        return {
            "id": app.id,
            "client_id": app.client_id,
            "slug": app.slug,
            "node_id": node_id("A", app.id),
            "owner": self.user(app.owner),
            "name": app.name,
            "description": None,
            "external_url": self._base,
            "html_url": f"{self._base}/apps/{app.slug}",
            "created_at": iso(app.created_at),
            "updated_at": iso(app.created_at),
            "permissions": dict(app.permissions),
            # the description's list of events that an App may have is older than merge queues
            "events": [one for one in app.events if one != "merge_group"],
            "installations_count": len(self._world.installations),
        }

    def installation(self, installation: Installation) -> Json:
        """An installation of the App."""
        account = self._world.users[installation.account]
        return {
            "id": installation.id,
            "account": self.user(installation.account),
            "repository_selection": "all" if installation.repository_ids is None else "selected",
            "access_tokens_url": f"{self._base}/app/installations/{installation.id}/access_tokens",
            "repositories_url": f"{self._base}/installation/repositories",
            "html_url": f"{self._base}/organizations/{account.login}/settings/installations/{installation.id}",
            "app_id": self._world.app.id,
            "app_slug": self._world.app.slug,
            "target_id": account.id,
            "target_type": account.type,
            "permissions": dict(installation.permissions),
            "events": list(installation.events),
            "created_at": iso(installation.created_at),
            "updated_at": iso(installation.created_at),
            "single_file_name": None,
            "suspended_at": iso(installation.suspended_at),
            "suspended_by": self.user(installation.suspended_by) if installation.suspended_by else None,
        }

    def _author(self, repository: Repository, login: str) -> Json:
        """What GitHub says about the author of anything that has text."""
        role = ROLES[repository.collaborators.get(login, "none")]
        owner = self._world.users[repository.owner]
        app = self._world.app_of(login)
        slug = None if app is None or app is self._world.app else app.slug
        return {
            "user": self.user(login),
            "author_association": "OWNER"
            if login == repository.owner
            else "MEMBER"
            if login in owner.members or role >= ROLES["admin"]
            else "COLLABORATOR"
            if role
            else "NONE",
            "performed_via_github_app": self.app(slug) if app else None,
        }

    def team(self, team: Team) -> Json:
        """A team."""
        org = self._world.users[team.org]
        url = f"{self._base}/organizations/{org.id}/team/{team.id}"
        parent = self._world.team(team.org, team.parent) if team.parent else None
        return {
            "id": team.id,
            "node_id": node_id("T", team.id),
            "name": team.name,
            "slug": team.slug,
            "description": None,
            "privacy": "closed",
            "notification_setting": "notifications_enabled",
            "permission": "pull",
            "url": url,
            "html_url": f"{self._base}/orgs/{team.org}/teams/{team.slug}",
            "members_url": f"{url}/members{{/member}}",
            "repositories_url": f"{url}/repos",
            "parent": self.team(parent) if parent else None,
        }

    # ---- repositories

    def repository(self, repository: Repository) -> Json:
        """A repository."""
        page, url = self.page_url(repository), self.repository_url(repository)
        owner = self._world.users[repository.owner]
        open_issues = sum(issue.state == "open" for issue in repository.issues.values())
        return {
            "id": repository.id,
            "node_id": node_id("R", repository.id),
            "name": repository.name,
            "full_name": repository.full_name,
            "private": repository.private,
            "visibility": "private" if repository.private else "public",
            "owner": self.user(owner.login),
            "html_url": page,
            "url": url,
            "description": repository.description,
            "fork": repository.fork_of is not None,
            "default_branch": repository.default_branch,
            "clone_url": f"{page}.git",
            "git_url": f"{page}.git",
            "ssh_url": f"git@localhost:{repository.full_name}.git",
            "created_at": iso(repository.created_at),
            "updated_at": iso(repository.pushed_at),
            "pushed_at": iso(repository.pushed_at),
            "open_issues_count": open_issues,
            "open_issues": open_issues,
            "has_issues": True,
            "has_projects": False,
            "has_wiki": False,
            "archived": False,
            "disabled": False,
            "allow_merge_commit": True,
            "allow_squash_merge": True,
            "allow_rebase_merge": False,
            "allow_auto_merge": repository.allow_auto_merge,
            "issues_url": f"{url}/issues{{/number}}",
            "pulls_url": f"{url}/pulls{{/number}}",
        }

    def label(self, repository: Repository, label: Label) -> Json:
        """A label."""
        return {
            "id": label.id,
            "node_id": node_id("LA", label.id),
            "url": f"{self.repository_url(repository)}/labels/{label.name}",
            "name": label.name,
            "color": label.color,
            "default": False,
            "description": label.description,
        }

    # ---- issues

    def issue(self, repository: Repository, issue: Issue) -> Json:
        """An issue, or a pull request seen as one."""
        url = f"{self.repository_url(repository)}/issues/{issue.number}"
        page = self.page_url(repository, issue)
        answer = {
            "id": issue.id,
            "node_id": node_id("I", issue.id),
            "number": issue.number,
            "url": url,
            "repository_url": self.repository_url(repository),
            "labels_url": f"{url}/labels{{/name}}",
            "comments_url": f"{url}/comments",
            "events_url": f"{url}/events",
            "timeline_url": f"{url}/timeline",
            "html_url": page,
            "title": issue.title,
            "body": issue.body,
            **self._author(repository, issue.login),
            "labels": [self.label(repository, repository.labels[name.lower()]) for name in issue.labels],
            "state": issue.state,
            "state_reason": issue.state_reason,
            "locked": issue.locked,
            "active_lock_reason": issue.lock_reason,
            "assignee": self.user(issue.assignees[0]) if issue.assignees else None,
            "assignees": [self.user(login) for login in issue.assignees],
            "milestone": None,
            "comments": len(issue.comments),
            "created_at": iso(issue.created_at),
            "updated_at": iso(issue.updated_at),
            "closed_at": iso(issue.closed_at),
            "closed_by": self.user(issue.closed_by) if issue.closed_by else None,
            "reactions": self.reaction_rollup(url, issue.reactions),
        }
        if issue.pull:
            answer["draft"] = issue.pull.draft
            answer["pull_request"] = {
                "url": f"{self.repository_url(repository)}/pulls/{issue.number}",
                "html_url": page,
                "diff_url": f"{page}.diff",
                "patch_url": f"{page}.patch",
                "merged_at": iso(issue.pull.merged_at),
            }
        return answer

    def comment(self, repository: Repository, issue: Issue, comment: Comment) -> Json:
        """A comment of the conversation."""
        url = f"{self.repository_url(repository)}/issues/comments/{comment.id}"
        return {
            "id": comment.id,
            "node_id": node_id("IC", comment.id),
            "url": url,
            "html_url": f"{self.page_url(repository, issue)}#issuecomment-{comment.id}",
            "issue_url": f"{self.repository_url(repository)}/issues/{issue.number}",
            **self._author(repository, comment.login),
            "body": comment.body,
            "created_at": iso(comment.created_at),
            "updated_at": iso(comment.updated_at),
            "reactions": self.reaction_rollup(url, comment.reactions),
        }

    def reaction(self, reaction: Reaction) -> Json:
        """One reaction."""
        return {
            "id": reaction.id,
            "node_id": node_id("REA", reaction.id),
            "user": self.user(reaction.login),
            "content": reaction.content,
            "created_at": iso(reaction.created_at),
        }

    def reaction_rollup(self, url: str, reactions: Iterable[Reaction]) -> Json:
        """How many of each."""
        counts = Counter(one.content for one in reactions)
        return {
            "url": f"{url}/reactions",
            "total_count": counts.total(),
            **{content: counts[content] for content in REACTIONS},
        }

    # ---- pull requests

    def pull(self, repository: Repository, issue: Issue, pull: Pull) -> Json:
        """A pull request without what only git knows (counts, mergeability)."""
        url = f"{self.repository_url(repository)}/pulls/{issue.number}"
        page = self.page_url(repository, issue)
        conversation = self.issue(repository, issue)
        for key in ("labels_url", "events_url", "timeline_url", "state_reason", "closed_by", "reactions"):
            del conversation[key]
        for key in ("performed_via_github_app", "pull_request", "repository_url"):
            del conversation[key]
        reviewers = [self.user(login) for login in pull.requested_reviewers]
        statuses = f"{self.repository_url(repository)}/statuses/{pull.head_sha}"
        return {
            **conversation,
            "id": pull.id,
            "node_id": node_id("PR", pull.id),
            "url": url,
            "issue_url": conversation["url"],
            "diff_url": f"{page}.diff",
            "patch_url": f"{page}.patch",
            "commits_url": f"{url}/commits",
            "review_comments_url": f"{url}/comments",
            "review_comment_url": f"{self.repository_url(repository)}/pulls/comments{{/number}}",
            "statuses_url": statuses,
            "head": self._branch(self.head_repository(repository, pull), pull.head_ref, pull.head_sha),
            "base": self._branch(repository, pull.base_ref, pull.base_sha),
            "draft": pull.draft,
            "merged": pull.merged_at is not None,
            "merged_at": iso(pull.merged_at),
            "merged_by": self.user(pull.merged_by) if pull.merged_by else None,
            "merge_commit_sha": pull.merge_commit_sha,
            "maintainer_can_modify": pull.maintainer_can_modify,
            "requested_reviewers": reviewers,
            "requested_teams": [
                self.team(team)
                for slug in pull.requested_teams
                if (team := self._world.team(repository.owner, slug)) is not None
            ],
            "auto_merge": self._auto_merge(pull),
            "review_comments": len(pull.comments),
            "_links": {
                "self": {"href": url},
                "html": {"href": page},
                "issue": {"href": conversation["url"]},
                "comments": {"href": conversation["comments_url"]},
                "review_comments": {"href": f"{url}/comments"},
                "review_comment": {"href": f"{self.repository_url(repository)}/pulls/comments{{/number}}"},
                "commits": {"href": f"{url}/commits"},
                "statuses": {"href": statuses},
            },
        }

    def head_repository(self, repository: Repository, pull: Pull) -> Repository | None:
        """Where the head lies; None when that fork is gone."""
        if pull.head_repository_id is None:
            return repository
        return self._world.repositories.get(pull.head_repository_id)

    def _branch(self, repository: Repository | None, name: str, sha: str) -> Json:
        if repository is None:
            return {"label": None, "ref": name, "sha": sha, "user": None, "repo": None}
        return {
            "label": f"{repository.owner}:{name}",
            "ref": name,
            "sha": sha,
            "user": self.user(repository.owner),
            "repo": self.repository(repository),
        }

    def _auto_merge(self, pull: Pull) -> Json | None:
        wish = pull.auto_merge
        if wish is None:
            return None
        return {
            "enabled_by": self.user(wish.login),
            "merge_method": wish.method,
            "commit_title": wish.title or "",
            "commit_message": wish.message or "",
        }

    def pull_reference(self, repository: Repository, issue: Issue, pull: Pull) -> Json:
        """The short form that check runs carry."""
        where = {"id": repository.id, "url": self.repository_url(repository), "name": repository.name}
        return {
            "id": pull.id,
            "number": issue.number,
            "url": f"{self.repository_url(repository)}/pulls/{issue.number}",
            "head": {"ref": pull.head_ref, "sha": pull.head_sha, "repo": dict(where)},
            "base": {"ref": pull.base_ref, "sha": pull.base_sha, "repo": dict(where)},
        }

    def review(
        self,
        repository: Repository,
        issue: Issue,
        review: Review,
        *,
        style: Literal["rest", "webhook"] = "rest",
    ) -> Json:
        """A review. Its state is in capitals in REST and in small letters in webhooks."""
        page = f"{self.page_url(repository, issue)}#pullrequestreview-{review.id}"
        pull_url = f"{self.repository_url(repository)}/pulls/{issue.number}"
        author = self._author(repository, review.login)
        del author["performed_via_github_app"]
        answer = {
            "id": review.id,
            "node_id": node_id("PRR", review.id),
            **author,
            "body": review.body,
            "state": review.state if style == "rest" else review.state.lower(),
            "html_url": page,
            "pull_request_url": pull_url,
            "_links": {"html": {"href": page}, "pull_request": {"href": pull_url}},
            "commit_id": review.commit_id,
        }
        if review.submitted_at or style == "webhook":
            answer["submitted_at"] = iso(review.submitted_at)
        return answer

    def review_comment(self, repository: Repository, issue: Issue, comment: ReviewComment) -> Json:
        """A comment on the diff."""
        url = f"{self.repository_url(repository)}/pulls/comments/{comment.id}"
        page = f"{self.page_url(repository, issue)}#discussion_r{comment.id}"
        pull_url = f"{self.repository_url(repository)}/pulls/{issue.number}"
        author = self._author(repository, comment.login)
        del author["performed_via_github_app"]
        answer = {
            "id": comment.id,
            "node_id": node_id("PRRC", comment.id),
            "pull_request_review_id": comment.review_id,
            "url": url,
            "html_url": page,
            "pull_request_url": pull_url,
            **author,
            "body": comment.body,
            "path": comment.path,
            "diff_hunk": comment.diff_hunk,
            "commit_id": comment.commit_id,
            "original_commit_id": comment.original_commit_id,
            "line": comment.line,
            "original_line": comment.original_line,
            "position": comment.position,
            "original_position": comment.original_position,
            "start_line": comment.start_line,
            "original_start_line": comment.original_start_line,
            "start_side": comment.start_side,
            "side": comment.side,
            "subject_type": comment.subject_type,
            "created_at": iso(comment.created_at),
            "updated_at": iso(comment.updated_at),
            "reactions": self.reaction_rollup(url, comment.reactions),
            "_links": {"self": {"href": url}, "html": {"href": page}, "pull_request": {"href": pull_url}},
        }
        if comment.in_reply_to_id is not None:
            answer["in_reply_to_id"] = comment.in_reply_to_id
        return {
            key: value for key, value in answer.items() if value is not None or key not in _ABSENT_IF_NONE
        }

    def thread_id(self, first: ReviewComment) -> str:
        """Global id of the thread that a comment began; REST has no other way to name it."""
        return node_id("PRRT", first.id)

    # ---- checks

    def check_run(self, repository: Repository, run: CheckRun) -> Json:
        """A check run."""
        url = f"{self.repository_url(repository)}/check-runs/{run.id}"
        page = f"{self.page_url(repository)}/runs/{run.id}"
        return {
            "id": run.id,
            "node_id": node_id("CR", run.id),
            "name": run.name,
            "head_sha": run.head_sha,
            "external_id": run.external_id,
            "url": url,
            "html_url": page,
            "details_url": run.details_url or page,
            "status": run.status,
            "conclusion": run.conclusion,
            "started_at": iso(run.started_at),
            "completed_at": iso(run.completed_at),
            "output": {
                "title": run.title,
                "summary": run.summary,
                "text": run.text,
                "annotations_count": len(run.annotations),
                "annotations_url": f"{url}/annotations",
            },
            "check_suite": {"id": run.suite_id},
            "app": self.app(run.app),
            "pull_requests": self.pulls_at(repository, run.head_sha),
        }

    def check_suite(self, repository: Repository, suite: CheckSuite) -> Json:
        """A check suite; its state follows from its runs."""
        runs = [run for run in repository.check_runs.values() if run.suite_id == suite.id]
        status, conclusion = suite_state(runs)
        url = f"{self.repository_url(repository)}/check-suites/{suite.id}"
        return {
            "id": suite.id,
            "node_id": node_id("CS", suite.id),
            "head_branch": suite.head_branch,
            "head_sha": suite.head_sha,
            "status": status,
            "conclusion": conclusion,
            "url": url,
            "check_runs_url": f"{url}/check-runs",
            "before": None,
            "after": suite.head_sha,
            "pull_requests": self.pulls_at(repository, suite.head_sha),
            "app": self.app(suite.app),
            "created_at": iso(suite.created_at),
            "updated_at": iso(suite.updated_at),
            "latest_check_runs_count": len(runs),
        }

    def pulls_at(self, repository: Repository, sha: str) -> list[Json]:
        """The open pull requests whose head is this commit, in short."""
        return [
            self.pull_reference(repository, issue, pull)
            for issue, pull in repository.pulls()
            # pull requests from forks are not told here
            if pull.head_sha == sha and issue.state == "open" and pull.head_repository_id is None
        ]

    def status(self, repository: Repository, status: Status) -> Json:
        """A commit status."""
        return {
            "id": status.id,
            "node_id": node_id("SC", status.id),
            "url": f"{self.repository_url(repository)}/statuses/{status.sha}",
            "avatar_url": f"{self._base}/avatars/{self._world.users[status.login].id}",
            "state": status.state,
            "context": status.context,
            "description": status.description,
            "target_url": status.target_url,
            "created_at": iso(status.created_at),
            "updated_at": iso(status.created_at),
            "creator": self.user(status.login),
        }

    # ---- git

    def git_commit(self, repository: Repository, commit: Commit) -> Json:
        """A commit as the git database API shows it."""
        url = f"{self.repository_url(repository)}/git"
        people = {
            role: {"name": who.name, "email": who.email, "date": iso(who.date)}
            for role, who in (("author", commit.author), ("committer", commit.committer))
        }
        return {
            "sha": commit.sha,
            "node_id": f"C_{commit.sha}",
            "url": f"{url}/commits/{commit.sha}",
            "html_url": f"{self.page_url(repository)}/commit/{commit.sha}",
            **people,
            "message": commit.message,
            "tree": {"sha": commit.tree, "url": f"{url}/trees/{commit.tree}"},
            "parents": [self._commit_link(repository, sha, f"{url}/commits/{sha}") for sha in commit.parents],
            "verification": self.own_signature(commit)
            if commit.sha in repository.signed_by_us
            else unsigned(),
        }

    def own_signature(self, commit: Commit) -> Json:
        """The ``verification`` object of a commit that GitHub made; its real PGP signature nobody here could check."""
        return {
            "verified": True,
            "reason": "valid",
            "signature": "(GitHub's)",
            "payload": f"tree {commit.tree}\n\n{commit.message}",
            "verified_at": iso(commit.committer.date),
        }

    def commit(self, repository: Repository, commit: Commit) -> Json:
        """A commit as the repository's history shows it."""
        url = f"{self.repository_url(repository)}/commits"
        inner = self.git_commit(repository, commit)
        for key in ("sha", "node_id", "html_url", "parents"):
            del inner[key]
        return {
            "sha": commit.sha,
            "node_id": f"C_{commit.sha}",
            "url": f"{url}/{commit.sha}",
            "html_url": f"{self.page_url(repository)}/commit/{commit.sha}",
            "comments_url": f"{url}/{commit.sha}/comments",
            "commit": {**inner, "comment_count": 0},
            "author": self._account(commit.author.email),
            "committer": self._account(commit.committer.email),
            "parents": [self._commit_link(repository, sha, f"{url}/{sha}") for sha in commit.parents],
        }

    def simple_commit(self, commit: Commit) -> Json:
        """A commit as check suites and merge groups carry it."""
        return {
            "id": commit.sha,
            "tree_id": commit.tree,
            "message": commit.message,
            "timestamp": iso(commit.author.date),
            "author": {"name": commit.author.name, "email": commit.author.email},
            "committer": {"name": commit.committer.name, "email": commit.committer.email},
        }

    def push_commit(self, repository: Repository, commit: Commit, files: list[FileChange]) -> Json:
        """A commit as a push webhook carries it."""
        names: dict[str, list[str]] = {"added": [], "removed": [], "modified": []}
        for one in files:
            names.get(one.status, names["modified"]).append(one.path)
        return {
            "id": commit.sha,
            "tree_id": commit.tree,
            "distinct": True,
            "message": commit.message,
            "timestamp": commit.committer.date.isoformat(),
            "url": f"{self.page_url(repository)}/commit/{commit.sha}",
            "author": {"name": commit.author.name, "email": commit.author.email},
            "committer": {"name": commit.committer.name, "email": commit.committer.email},
            **names,
        }

    def file_change(self, repository: Repository, change: FileChange, head: str) -> Json:
        """A changed file of a commit, a comparison or a pull request."""
        answer = {
            "sha": change.blob,
            "filename": change.path,
            "status": change.status,
            "additions": change.additions,
            "deletions": change.deletions,
            "changes": change.additions + change.deletions,
            "blob_url": f"{self.page_url(repository)}/blob/{head}/{change.path}",
            "raw_url": f"{self.page_url(repository)}/raw/{head}/{change.path}",
            "contents_url": f"{self.repository_url(repository)}/contents/{change.path}?ref={head}",
        }
        if change.patch is not None:
            answer["patch"] = change.patch
        if change.previous_path is not None:
            answer["previous_filename"] = change.previous_path
        return answer

    def _commit_link(self, repository: Repository, sha: str, url: str) -> Json:
        return {"sha": sha, "url": url, "html_url": f"{self.page_url(repository)}/commit/{sha}"}

    def _account(self, email: str) -> Json | None:
        login = next((one.login for one in self._world.users.values() if one.email == email), None)
        return self.user(login) if login else None


# by the description they are numbers or not there
_ABSENT_IF_NONE = frozenset({"position", "original_position", "line", "original_line"})


def unsigned() -> Json:
    """The ``verification`` object of a commit without a signature."""
    return {"verified": False, "reason": "unsigned", "signature": None, "payload": None, "verified_at": None}


def suite_state(runs: list[CheckRun]) -> tuple[str, str | None]:
    """Status and conclusion of a suite with these runs: the worst conclusion counts."""
    if not runs:
        return "queued", None
    if any(run.status != "completed" for run in runs):
        return ("in_progress" if any(run.status != "queued" for run in runs) else "queued"), None
    worst_first = (
        "failure",
        "timed_out",
        "cancelled",
        "action_required",
        "stale",
        "success",
        "neutral",
        "skipped",
    )
    conclusions = {run.conclusion for run in runs}
    return "completed", next((one for one in worst_first if one in conclusions), "neutral")
