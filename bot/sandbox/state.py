"""The sandbox's memory: plain values, so that the whole world can be written to one JSON file and read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bot.sandbox.permissions import highest


@dataclass
class User:
    """An account: ``type`` is User, Bot or Organization."""

    id: int
    login: str
    type: str = "User"
    suspended_at: datetime | None = None
    members: dict[str, str] = field(default_factory=dict)
    """Of an organization: login to role, admin (an owner) or member."""
    base_role: str = "read"
    """Of an organization: what every member may do in all its repositories."""
    signing_keys: list[str] = field(default_factory=list)
    """SSH public keys whose signatures on commits count as this account's."""

    @property
    def email(self) -> str:
        """The address that hides the real one; GitHub links commits to accounts by it."""
        return f"{self.id}+{self.login}@users.noreply.github.com"


@dataclass
class Team:
    """A team of an organization.

    Attributes:
        members: login to role, member or maintainer.
        repositories: id of a repository to the role that the team has in it.
        parent: slug of the team above, whose rights its members have, too.
    """

    id: int
    org: str
    slug: str
    name: str
    members: dict[str, str] = field(default_factory=dict)
    repositories: dict[int, str] = field(default_factory=dict)
    parent: str | None = None


@dataclass
class App:
    """A GitHub App."""

    id: int
    client_id: str
    slug: str
    name: str
    owner: str
    created_at: datetime
    webhook_secret: str
    private_key: str
    """PEM. The real GitHub forgets it after the download; the sandbox prints its path."""
    events: list[str]
    permissions: dict[str, str]
    webhook_url: str | None = None

    @property
    def bot_login(self) -> str:
        """The account in whose name installation tokens act."""
        return f"{self.slug}[bot]"


@dataclass
class Installation:
    """The App on one account."""

    id: int
    account: str
    permissions: dict[str, str]
    events: list[str]
    created_at: datetime
    repository_ids: set[int] | None = None
    """None: all repositories of the account."""
    suspended_at: datetime | None = None
    suspended_by: str | None = None


@dataclass
class InstallationToken:
    """A token that was minted for an installation; ``repository_ids`` is None when it was not narrowed."""

    installation_id: int
    permissions: dict[str, str]
    repository_ids: set[int] | None
    expires_at: datetime
    app: str | None = None
    """Slug of the App, if it is not the one under test."""


@dataclass
class Reaction:
    """An emoji by somebody."""

    id: int
    login: str
    content: str
    created_at: datetime


@dataclass
class Comment:
    """A comment in the conversation of an issue or pull request."""

    id: int
    login: str
    body: str
    created_at: datetime
    updated_at: datetime
    reactions: list[Reaction] = field(default_factory=list)


@dataclass
class TimelineEvent:
    """Something that happened to an issue; ``details`` is what its kind adds to GitHub's answer."""

    id: int
    event: str
    login: str
    created_at: datetime
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Label:
    """A label of a repository."""

    id: int
    name: str
    color: str = "ededed"
    description: str | None = None


@dataclass
class ReviewComment:
    """A comment on a line, or on a file, of a pull request's diff."""

    id: int
    review_id: int
    login: str
    body: str
    path: str
    commit_id: str
    created_at: datetime
    updated_at: datetime
    diff_hunk: str = ""
    line: int | None = None
    """Where the line is in the newest version of the file; None once it is outdated, or for a whole file."""
    side: str = "RIGHT"
    start_line: int | None = None
    start_side: str | None = None
    position: int | None = None
    """The same place counted down the diff, as GitHub did before it had lines."""
    original_commit_id: str = ""
    original_line: int | None = None
    original_start_line: int | None = None
    original_position: int | None = None
    outdated: bool = False
    subject_type: str = "line"
    in_reply_to_id: int | None = None
    reactions: list[Reaction] = field(default_factory=list)


@dataclass
class Review:
    """A pull request review; ``state`` is PENDING, COMMENTED, APPROVED, CHANGES_REQUESTED or DISMISSED."""

    id: int
    login: str
    body: str
    state: str
    commit_id: str
    submitted_at: datetime | None = None
    reactions: list[Reaction] = field(default_factory=list)


@dataclass
class AutoMerge:
    """The wish that a pull request be merged as soon as nothing stands against it."""

    login: str
    method: str
    enabled_at: datetime
    title: str | None = None
    message: str | None = None


@dataclass
class MergeQueueEntry:
    """A pull request's place in a merge queue; ``branch`` and ``sha`` are what its checks run on."""

    id: int
    login: str
    enqueued_at: datetime
    branch: str
    sha: str
    jump: bool = False


@dataclass
class Pull:
    """What a pull request has beyond an issue."""

    id: int
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    draft: bool = False
    merged_at: datetime | None = None
    merged_by: str | None = None
    merge_commit_sha: str | None = None
    maintainer_can_modify: bool = False
    head_repository_id: int | None = None
    """The fork that the head lies in; None: this repository itself."""
    requested_reviewers: list[str] = field(default_factory=list)
    requested_teams: list[str] = field(default_factory=list)
    """Slugs."""
    reviews: dict[int, Review] = field(default_factory=dict)
    comments: dict[int, ReviewComment] = field(default_factory=dict)
    resolved_threads: dict[int, str] = field(default_factory=dict)
    """Id of a thread's first comment to the login of whoever resolved it."""
    auto_merge: AutoMerge | None = None
    queued: MergeQueueEntry | None = None


@dataclass
class Issue:
    """An issue, or the conversation side of a pull request."""

    id: int
    number: int
    title: str
    body: str | None
    login: str
    created_at: datetime
    updated_at: datetime
    state: str = "open"
    state_reason: str | None = None
    closed_at: datetime | None = None
    closed_by: str | None = None
    locked: bool = False
    lock_reason: str | None = None
    labels: list[str] = field(default_factory=list)
    assignees: list[str] = field(default_factory=list)
    comments: dict[int, Comment] = field(default_factory=dict)
    reactions: list[Reaction] = field(default_factory=list)
    timeline: list[TimelineEvent] = field(default_factory=list)
    pull: Pull | None = None


@dataclass
class CheckSuite:
    """An App's check runs on one commit; ``app`` is its slug, None for the one under test."""

    id: int
    head_sha: str
    head_branch: str | None
    created_at: datetime
    updated_at: datetime
    app: str | None = None


@dataclass
class CheckRun:
    """One check run."""

    id: int
    suite_id: int
    name: str
    head_sha: str
    status: str
    started_at: datetime
    conclusion: str | None = None
    completed_at: datetime | None = None
    external_id: str = ""
    details_url: str | None = None
    title: str | None = None
    summary: str | None = None
    text: str | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, str]] = field(default_factory=list)
    app: str | None = None


@dataclass
class WorkflowRun:
    """A run of GitHub Actions; its jobs are check runs of the suite, and their state is its state."""

    id: int
    suite_id: int
    number: int
    name: str
    path: str
    event: str
    head_sha: str
    head_branch: str | None
    login: str
    created_at: datetime
    jobs: dict[int, str] = field(default_factory=dict)
    """Id of a job, which is its check run's, to its log."""


@dataclass
class Activity:
    """A branch moved: who did it cannot be told from its commits."""

    id: int
    login: str
    ref: str
    before: str
    after: str
    kind: str
    at: datetime


@dataclass
class Status:
    """A commit status, the older sibling of the check run."""

    id: int
    sha: str
    login: str
    state: str
    context: str
    created_at: datetime
    description: str | None = None
    target_url: str | None = None


@dataclass
class BranchRules:
    """What GitHub asks of a pull request before it may be merged into a branch."""

    required_checks: list[str] = field(default_factory=list)
    """Names of check runs or contexts of statuses that must be successful on the head."""
    required_reviews: int = 0
    """Approvals by people with write permission."""
    merge_queue: bool = False


@dataclass
class Repository:
    """A repository; its git data lies in a bare repository on disk."""

    id: int
    owner: str
    name: str
    created_at: datetime
    pushed_at: datetime
    private: bool = False
    fork_of: int | None = None
    description: str | None = None
    default_branch: str = "main"
    collaborators: dict[str, str] = field(default_factory=dict)
    """Login to role: read, triage, write, maintain or admin."""
    protected_branches: set[str] = field(default_factory=set)
    """Branches that take changes through pull requests only."""
    branch_rules: dict[str, BranchRules] = field(default_factory=dict)
    """Branch to what merging into it takes."""
    allow_auto_merge: bool = True
    signed_branches: set[str] = field(default_factory=set)
    """Patterns (``*``, ``agent/*``) of branches whose commits must have verified signatures."""
    signed_by_us: set[str] = field(default_factory=set)
    """Commits that were made through the API, which GitHub signs itself."""
    last_number: int = 0
    issues: dict[int, Issue] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    """By lower-case name: GitHub compares label names without case."""
    check_suites: dict[int, CheckSuite] = field(default_factory=dict)
    check_runs: dict[int, CheckRun] = field(default_factory=dict)
    workflow_runs: dict[int, WorkflowRun] = field(default_factory=dict)
    statuses: list[Status] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        """``owner/name``."""
        return f"{self.owner}/{self.name}"

    def pulls(self) -> list[tuple[Issue, Pull]]:
        """The pull requests, oldest first."""
        return [(issue, issue.pull) for issue in self.issues.values() if issue.pull is not None]


@dataclass
class Delivery:
    """One attempt to deliver a webhook."""

    id: int
    guid: str
    event: str
    action: str | None
    delivered_at: datetime
    payload: dict[str, Any]
    repository_id: int | None
    installation_id: int | None
    redelivery: bool = False
    url: str = ""
    duration: float = 0.0
    status: str = "pending"
    status_code: int = 0
    request_headers: dict[str, str] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    response_body: str = ""


@dataclass
class World:
    """Everything that the sandbox remembers."""

    app: App
    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[int, Repository] = field(default_factory=dict)
    installations: dict[int, Installation] = field(default_factory=dict)
    tokens: dict[str, InstallationToken] = field(default_factory=dict)
    other_apps: dict[str, App] = field(default_factory=dict)
    """By slug: Apps of other people, CI for example."""
    teams: list[Team] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)
    """A former ``owner/name`` in small letters to the repository's id."""
    deliveries: list[Delivery] = field(default_factory=list)
    """Newest first."""
    last_id: int = 10_000

    def next_id(self) -> int:
        """A database id that nothing else has."""
        self.last_id += 1
        return self.last_id

    def user(self, login: str) -> User | None:
        """The account with this login, whatever its case."""
        if login in self.users:
            return self.users[login]
        return next((one for one in self.users.values() if one.login.lower() == login.lower()), None)

    def repository(self, owner: str, name: str) -> Repository | None:
        """The repository with this name, whatever its case."""
        full_name = f"{owner}/{name}".lower()
        return next((one for one in self.repositories.values() if one.full_name.lower() == full_name), None)

    def role(self, repository: Repository, login: str, *, public: bool = True) -> str:
        """What somebody may do in a repository; without ``public``, as if everybody could not read a public one."""
        user = self.users.get(login)
        if user is not None and user.suspended_at is not None:
            return "none"
        if repository.owner == login:
            return "admin"
        everybody = "read" if public and not repository.private else "none"
        roles = [repository.collaborators.get(login, "none"), everybody]
        owner = self.users.get(repository.owner)
        match owner.members.get(login) if owner is not None else None:
            case "admin":
                return "admin"
            case "member":
                assert owner is not None
                roles.append(owner.base_role)
                roles += [
                    one.repositories[repository.id]
                    for one in self.teams_of(repository.owner, login)
                    if repository.id in one.repositories
                ]
        return highest(roles)

    def team(self, org: str, slug: str) -> Team | None:
        """The team with this slug, whatever its case."""
        wanted = (org.lower(), slug.lower())
        return next((one for one in self.teams if (one.org.lower(), one.slug.lower()) == wanted), None)

    def in_team(self, team: Team, login: str) -> str | None:
        """Somebody's role in a team, by membership or by that in a team below it."""
        below = [one for one in self.teams if one.org == team.org and one.parent == team.slug]
        return team.members.get(login) or next(
            (role for one in below if (role := self.in_team(one, login)) is not None), None
        )

    def teams_of(self, org: str, login: str) -> list[Team]:
        """The organization's teams that somebody is in."""
        return [one for one in self.teams if one.org == org and self.in_team(one, login) is not None]

    def app_named(self, slug: str | None) -> App:
        """The App with this slug; the one under test for None."""
        return self.app if slug is None else self.other_apps[slug]

    def app_of(self, login: str) -> App | None:
        """The App whose bot this is."""
        return next((one for one in (self.app, *self.other_apps.values()) if one.bot_login == login), None)

    def forks_of(self, repository: Repository) -> list[Repository]:
        """The repository's forks."""
        return [one for one in self.repositories.values() if one.fork_of == repository.id]

    def installation_for(self, repository: Repository) -> Installation | None:
        """The App's installation that covers this repository."""
        for one in self.installations.values():
            chosen = one.repository_ids is None or repository.id in one.repository_ids
            if one.account == repository.owner and chosen:
                return one
        return None


_ADAPTER = TypeAdapter(World)


def save_world(world: World, file: Path) -> None:
    """Write the world to ``file``; a crash leaves the old file or the new one."""
    draft = file.with_suffix(".new")
    draft.write_bytes(_ADAPTER.dump_json(world))
    draft.chmod(0o600)
    draft.replace(file)


def load_world(file: Path) -> World:
    """Read what ``save_world`` wrote.

    Raises:
        pydantic.ValidationError: the file is damaged or of another version.
    """
    return _ADAPTER.validate_json(file.read_bytes())
