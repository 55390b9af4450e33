"""REST: issues, and the conversation, labels and assignees of issues and pull requests alike."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.github import GitHub
from bot.sandbox.permissions import ROLES
from bot.sandbox.present import Json, iso, node_id
from bot.sandbox.pullstate import pull_json
from bot.sandbox.refusals import Refusal, invalid, not_found
from bot.sandbox.state import Comment, Issue, Label, Repository, TimelineEvent

MAX_ASSIGNEES = 10
"""GitHub overlooks the rest."""


# ---- what happens to issues, whoever causes it


def open_issue(github: GitHub, repository: Repository, login: str, title: str, body: str | None) -> Issue:
    """Add an issue without telling anybody; a pull request begins as one, too."""
    repository.last_number += 1
    now = github.now()
    issue = Issue(
        id=github.world.next_id(),
        number=repository.last_number,
        title=title,
        body=body,
        login=login,
        created_at=now,
        updated_at=now,
    )
    repository.issues[issue.number] = issue
    return issue


def note(github: GitHub, issue: Issue, event: str, login: str, **details: Any) -> None:
    """Write an event into the issue's timeline."""
    now = github.now()
    issue.timeline.append(TimelineEvent(github.world.next_id(), event, login, now, details))
    issue.updated_at = now


async def announce(
    github: GitHub, repository: Repository, issue: Issue, sender: str, action: str, **more: Any
) -> None:
    """Raise ``issues`` or ``pull_request``, whichever this is."""
    if issue.pull is None:
        payload = {"action": action, "issue": github.present.issue(repository, issue), **more}
        github.emit("issues", repository, sender, payload)
        return
    if action in _ISSUES_ONLY:
        return
    pull = await pull_json(github, repository, issue)
    payload = {"action": action, "number": issue.number, "pull_request": pull, **more}
    github.emit("pull_request", repository, sender, payload)


_ISSUES_ONLY = frozenset({"transferred", "pinned", "unpinned"})


async def close(
    github: GitHub, repository: Repository, issue: Issue, sender: str, reason: str | None = None
) -> None:
    """Close an issue or pull request and tell the App."""
    issue.state = "closed"
    issue.state_reason = None if issue.pull else reason or "completed"
    issue.closed_at, issue.closed_by = github.now(), sender
    note(github, issue, "closed", sender, state_reason=issue.state_reason)
    await announce(github, repository, issue, sender, "closed")


async def reopen(github: GitHub, repository: Repository, issue: Issue, sender: str) -> None:
    """Open an issue or pull request again and tell the App."""
    issue.state = "open"
    issue.state_reason = None if issue.pull else "reopened"
    issue.closed_at = issue.closed_by = None
    note(github, issue, "reopened", sender, state_reason=issue.state_reason)
    await announce(github, repository, issue, sender, "reopened")


def ensure_label(github: GitHub, repository: Repository, name: str, sender: str) -> Label:
    """The label of this name; an unknown one is made, as GitHub does."""
    label = repository.labels.get(name.lower())
    if label is None:
        label = Label(github.world.next_id(), name)
        repository.labels[name.lower()] = label
        payload = {"action": "created", "label": github.present.label(repository, label)}
        github.emit("label", repository, sender, payload)
    return label


# ---- issues


async def create(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/issues."""
    github, repository = call.github, call.repository
    issue = open_issue(github, repository, call.login, str(call.body["title"]), call.body.get("body"))
    # GitHub drops labels and assignees in silence when the caller may not set them
    may = (
        call.actor.kind == "installation"
        or ROLES[github.world.role(repository, call.login)] >= ROLES["triage"]
    )
    labels = _attach(call, issue, _names(call.body.get("labels", []))) if may else []
    assignees = _add(call, issue, _assignees(call.body)) if may else []
    # the payload of "opened" has them already; then each is told once more
    await announce(github, repository, issue, call.login, "opened")
    for label in labels:
        await _tell_label(call, issue, label, "labeled")
    for login in assignees:
        await _tell_assignment(call, issue, login, "assigned")
    return Answer(201, github.present.issue(repository, issue))


async def get(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/{issue_number}."""
    return Answer(data=call.github.present.issue(call.repository, call.issue()))


async def list_issues(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues: pull requests are issues here."""
    query, repository = call.query, call.repository
    state = query.get("state", "open")
    labels = {name.lower() for name in query.get("labels", "").split(",") if name}
    found = [
        issue
        for issue in repository.issues.values()
        if state in ("all", issue.state)
        and labels <= {name.lower() for name in issue.labels}
        and query.get("creator") in (None, issue.login)
        and _is_assigned(issue, query.get("assignee"))
        and _since(issue.updated_at, query.get("since"))
    ]
    return call.page(_sorted(found, call), lambda issue: call.github.present.issue(repository, issue))


async def update(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/issues/{issue_number}."""
    github, repository, issue = call.github, call.repository, call.issue()
    await edit(call, issue)
    if call.body.get("labels") is not None:
        await _replace_labels(call, issue, _names(call.body["labels"]))
    if call.body.get("assignees") is not None:
        wanted = _assignees(call.body)
        await _unassign(call, issue, [one for one in issue.assignees if one not in wanted])
        await _assign(call, issue, wanted)
    return Answer(data=github.present.issue(repository, issue))


async def edit(call: Call, issue: Issue) -> None:
    """Change title, body and state as the call's body says."""
    github, repository, body = call.github, call.repository, call.body
    changes: dict[str, Any] = {}
    for key in ("title", "body"):
        new = body.get(key, getattr(issue, key))
        if new is not None and new != getattr(issue, key):
            changes[key] = {"from": getattr(issue, key) or ""}
            setattr(issue, key, new)
    if changes:
        if "title" in changes:
            note(github, issue, "renamed", call.login, rename={**changes["title"], "to": issue.title})
        issue.updated_at = github.now()
        await announce(github, repository, issue, call.login, "edited", changes=changes)
    state = body.get("state", issue.state)
    if state == "closed" and issue.state == "open":
        await close(github, repository, issue, call.login, body.get("state_reason"))
    elif state == "open" and issue.state == "closed":
        if issue.pull and issue.pull.merged_at:
            raise Refusal(422, "Validation Failed", [_cannot_reopen("merged")])
        await reopen(github, repository, issue, call.login)


async def lock(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/issues/{issue_number}/lock."""
    issue = call.issue()
    issue.locked, issue.lock_reason = True, call.body.get("lock_reason")
    await announce(call.github, call.repository, issue, call.login, "locked")
    return Answer(204)


async def unlock(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/issues/{issue_number}/lock."""
    issue = call.issue()
    issue.locked, issue.lock_reason = False, None
    await announce(call.github, call.repository, issue, call.login, "unlocked")
    return Answer(204)


async def list_timeline(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/{issue_number}/timeline."""
    issue, present = call.issue(), call.github.present
    commented = [
        (one.created_at, one.id, _commented(present.comment(call.repository, issue, one)))
        for one in issue.comments.values()
    ]
    events = [
        (
            one.created_at,
            one.id,
            _event(call, one, f"{present.repository_url(call.repository)}/issues/events"),
        )
        for one in issue.timeline
    ]
    entries = sorted([*commented, *events], key=lambda entry: entry[:2])
    return call.page(entries, lambda entry: entry[2])


# ---- comments


async def create_comment(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/issues/{issue_number}/comments."""
    github, repository, issue = call.github, call.repository, call.issue()
    if not call.body["body"].strip():
        raise invalid("IssueComment", "body", "missing_field", "Body cannot be blank")
    if (
        issue.locked
        and call.actor.kind == "user"
        and ROLES[github.world.role(repository, call.login)] < ROLES["write"]
    ):
        raise Refusal(403, "Unable to create comment because issue is locked.")
    now = github.now()
    comment = Comment(github.world.next_id(), call.login, call.body["body"], now, now)
    issue.comments[comment.id] = comment
    issue.updated_at = now
    _tell_comment(call, issue, comment, "created")
    return Answer(201, github.present.comment(repository, issue, comment))


async def list_comments(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/{issue_number}/comments: oldest first."""
    issue = call.issue()
    found = [one for one in issue.comments.values() if _since(one.updated_at, call.query.get("since"))]
    return call.page(found, lambda one: call.github.present.comment(call.repository, issue, one))


async def list_repository_comments(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/comments."""
    found = [
        (issue, one)
        for issue in call.repository.issues.values()
        for one in issue.comments.values()
        if _since(one.updated_at, call.query.get("since"))
    ]
    found.sort(key=lambda pair: pair[1].id, reverse=call.query.get("direction") == "desc")
    return call.page(found, lambda pair: call.github.present.comment(call.repository, *pair))


async def get_comment(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/comments/{comment_id}."""
    return Answer(data=call.github.present.comment(call.repository, *find_comment(call)))


async def update_comment(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}."""
    issue, comment = find_comment(call)
    _only_its_author(call, comment.login)
    before, comment.body = comment.body, call.body["body"]
    comment.updated_at = call.github.now()
    _tell_comment(call, issue, comment, "edited", changes={"body": {"from": before}})
    return Answer(data=call.github.present.comment(call.repository, issue, comment))


async def delete_comment(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/issues/comments/{comment_id}."""
    issue, comment = find_comment(call)
    _only_its_author(call, comment.login)
    del issue.comments[comment.id]
    _tell_comment(call, issue, comment, "deleted")
    return Answer(204)


def find_comment(call: Call) -> tuple[Issue, Comment]:
    """The comment that the path names.

    Raises:
        Refusal: 404.
    """
    number = int(call.args["comment_id"])
    for issue in call.repository.issues.values():
        if number in issue.comments:
            return issue, issue.comments[number]
    raise not_found()


def _only_its_author(call: Call, login: str) -> None:
    # an App may touch the comments of others with issues:write only; people were checked by their role
    if call.actor.token is not None and login != call.login:
        if call.actor.token.permissions.get("issues") == "write":
            return
        raise Refusal(403, "Resource not accessible by integration")


def _tell_comment(call: Call, issue: Issue, comment: Comment, action: str, **more: Any) -> None:
    present = call.github.present
    payload = {
        "action": action,
        "issue": present.issue(call.repository, issue),
        "comment": present.comment(call.repository, issue, comment),
        **more,
    }
    call.github.emit("issue_comment", call.repository, call.login, payload)


# ---- labels


async def list_repository_labels(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/labels."""
    present = call.github.present
    return call.page(call.repository.labels.values(), lambda label: present.label(call.repository, label))


async def get_label(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/labels/{name}."""
    return Answer(data=call.github.present.label(call.repository, _label_named(call)))


async def create_label(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/labels."""
    github, repository, name = call.github, call.repository, call.body["name"]
    if name.lower() in repository.labels:
        raise invalid("Label", "name", "already_exists")
    label = Label(
        github.world.next_id(), name, call.body.get("color", "ededed"), call.body.get("description")
    )
    repository.labels[name.lower()] = label
    payload = {"action": "created", "label": github.present.label(repository, label)}
    github.emit("label", repository, call.login, payload)
    return Answer(201, github.present.label(repository, label))


async def update_label(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/labels/{name}."""
    repository, label = call.repository, _label_named(call)
    old, new = label.name, call.body.get("new_name", label.name)
    if new.lower() != old.lower() and new.lower() in repository.labels:
        raise invalid("Label", "name", "already_exists")
    repository.labels = {
        (new.lower() if one is label else key): one for key, one in repository.labels.items()
    }
    label.name = new
    label.color = call.body.get("color", label.color)
    label.description = call.body.get("description", label.description)
    for issue in repository.issues.values():
        issue.labels = [new if name.lower() == old.lower() else name for name in issue.labels]
    shown = call.github.present.label(repository, label)
    changes = {"name": {"from": old}} if old != new else {}
    payload = {"action": "edited", "label": dict(shown), "changes": changes}
    call.github.emit("label", repository, call.login, payload)
    return Answer(data=shown)


async def delete_label(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/labels/{name}."""
    repository, label = call.repository, _label_named(call)
    shown = call.github.present.label(repository, label)
    for issue in repository.issues.values():
        if label.name in issue.labels:
            await _unlabel(call, issue, label.name)
    del repository.labels[label.name.lower()]
    call.github.emit("label", repository, call.login, {"action": "deleted", "label": shown})
    return Answer(204)


async def list_labels(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/issues/{issue_number}/labels."""
    return _labels_of(call, call.issue())


async def add_labels(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/issues/{issue_number}/labels."""
    issue = call.issue()
    await _label(call, issue, _names(call.body.get("labels", [])))
    return _labels_of(call, issue)


async def set_labels(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/issues/{issue_number}/labels."""
    issue = call.issue()
    await _replace_labels(call, issue, _names(call.body.get("labels", [])))
    return _labels_of(call, issue)


async def remove_label(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/issues/{issue_number}/labels/{name}."""
    issue, name = call.issue(), call.args["name"].lower()
    carried = next((one for one in issue.labels if one.lower() == name), None)
    if carried is None:
        raise Refusal(404, "Label does not exist")
    await _unlabel(call, issue, carried)
    return _labels_of(call, issue)


async def remove_all_labels(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/issues/{issue_number}/labels."""
    await _replace_labels(call, call.issue(), [])
    return Answer(204)


def _label_named(call: Call) -> Label:
    label = call.repository.labels.get(call.args["name"].lower())
    if label is None:
        raise not_found()
    return label


def _labels_of(call: Call, issue: Issue) -> Answer:
    labels = [call.repository.labels[name.lower()] for name in issue.labels]
    return call.page(labels, lambda label: call.github.present.label(call.repository, label))


def _attach(call: Call, issue: Issue, names: Iterable[str]) -> list[Label]:
    """Put labels on the issue and return those that are new there."""
    new = []
    for name in names:
        label = ensure_label(call.github, call.repository, name, call.login)
        if label.name not in issue.labels:
            issue.labels.append(label.name)
            new.append(label)
    return new


async def _label(call: Call, issue: Issue, names: Iterable[str]) -> None:
    for label in _attach(call, issue, names):
        await _tell_label(call, issue, label, "labeled")


async def _unlabel(call: Call, issue: Issue, name: str) -> None:
    issue.labels.remove(name)
    await _tell_label(call, issue, call.repository.labels[name.lower()], "unlabeled")


async def _tell_label(call: Call, issue: Issue, label: Label, action: str) -> None:
    github, repository = call.github, call.repository
    note(github, issue, action, call.login, label={"name": label.name, "color": label.color})
    shown = github.present.label(repository, label)
    await announce(github, repository, issue, call.login, action, label=shown)


async def _replace_labels(call: Call, issue: Issue, names: list[str]) -> None:
    kept = {name.lower() for name in names}
    for name in [one for one in issue.labels if one.lower() not in kept]:
        await _unlabel(call, issue, name)
    await _label(call, issue, names)


# ---- assignees


async def add_assignees(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/issues/{issue_number}/assignees."""
    issue = call.issue()
    await _assign(call, issue, call.body.get("assignees", []))
    return Answer(201, call.github.present.issue(call.repository, issue))


async def remove_assignees(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/issues/{issue_number}/assignees."""
    issue = call.issue()
    await _unassign(call, issue, call.body.get("assignees", []))
    return Answer(data=call.github.present.issue(call.repository, issue))


async def list_assignees(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/assignees."""
    logins = [login for login in call.github.world.users if _assignable(call, login)]
    return call.page(logins, call.github.present.user)


async def check_assignee(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/assignees/{assignee}."""
    if not _assignable(call, call.args["assignee"]):
        raise not_found()
    return Answer(204)


def _assignable(call: Call, login: str) -> bool:
    user = call.github.world.user(login)
    if user is None or user.type != "User":
        return False
    return call.github.world.role(call.repository, user.login, public=False) != "none"


def _add(call: Call, issue: Issue, logins: Iterable[str]) -> list[str]:
    """Assign people and return those who are new; GitHub overlooks those who cannot be assigned."""
    new = []
    for login in logins:
        full = len(issue.assignees) >= MAX_ASSIGNEES
        if login not in issue.assignees and not full and _assignable(call, login):
            issue.assignees.append(login)
            new.append(login)
    return new


async def _assign(call: Call, issue: Issue, logins: Iterable[str]) -> None:
    for login in _add(call, issue, logins):
        await _tell_assignment(call, issue, login, "assigned")


async def _unassign(call: Call, issue: Issue, logins: Iterable[str]) -> None:
    for login in logins:
        if login in issue.assignees:
            issue.assignees.remove(login)
            await _tell_assignment(call, issue, login, "unassigned")


async def _tell_assignment(call: Call, issue: Issue, login: str, action: str) -> None:
    note(call.github, issue, action, call.login, assignee=login)
    assignee = call.github.present.user(login)
    await announce(call.github, call.repository, issue, call.login, action, assignee=assignee)


OPERATIONS: dict[str, Handler] = {
    "issues/create": create,
    "issues/get": get,
    "issues/list-for-repo": list_issues,
    "issues/update": update,
    "issues/lock": lock,
    "issues/unlock": unlock,
    "issues/list-events-for-timeline": list_timeline,
    "issues/create-comment": create_comment,
    "issues/list-comments": list_comments,
    "issues/list-comments-for-repo": list_repository_comments,
    "issues/get-comment": get_comment,
    "issues/update-comment": update_comment,
    "issues/delete-comment": delete_comment,
    "issues/list-labels-for-repo": list_repository_labels,
    "issues/get-label": get_label,
    "issues/create-label": create_label,
    "issues/update-label": update_label,
    "issues/delete-label": delete_label,
    "issues/list-labels-on-issue": list_labels,
    "issues/add-labels": add_labels,
    "issues/set-labels": set_labels,
    "issues/remove-label": remove_label,
    "issues/remove-all-labels": remove_all_labels,
    "issues/add-assignees": add_assignees,
    "issues/remove-assignees": remove_assignees,
    "issues/list-assignees": list_assignees,
    "issues/check-user-can-be-assigned": check_assignee,
}


# ---- reading requests and writing timelines


def _names(labels: Iterable[Any]) -> list[str]:
    """Labels come as names or as objects with a name."""
    return [one if isinstance(one, str) else one["name"] for one in labels]


def _assignees(body: Json) -> list[str]:
    wanted = [one if isinstance(one, str) else one["login"] for one in body.get("assignees") or []]
    return [body["assignee"]] if body.get("assignee") and not wanted else wanted


def _is_assigned(issue: Issue, wanted: str | None) -> bool:
    match wanted:
        case None:
            return True
        case "none":
            return not issue.assignees
        case "*":
            return bool(issue.assignees)
    return wanted in issue.assignees


def _since(moment: datetime, since: str | None) -> bool:
    return since is None or moment >= datetime.fromisoformat(since)


def _sorted(issues: list[Issue], call: Call) -> list[Issue]:
    key = {"updated": lambda one: one.updated_at, "comments": lambda one: len(one.comments)}.get(
        call.query.get("sort", "created"), lambda one: one.number
    )
    return sorted(issues, key=key, reverse=call.query.get("direction", "desc") == "desc")


def _cannot_reopen(why: str) -> dict[str, str]:
    message = f"state cannot be changed. The pull request was {why}."
    return {"resource": "PullRequest", "code": "custom", "field": "state", "message": message}


def _commented(comment: Json) -> Json:
    return {**comment, "event": "commented", "actor": dict(comment["user"])}


def _event(call: Call, event: TimelineEvent, url: str) -> Json:
    actor = call.github.present.user(event.login)
    answer = {
        "id": event.id,
        "node_id": node_id("EV", event.id),
        "url": f"{url}/{event.id}",
        "actor": actor,
        "event": event.event,
        "commit_id": None,
        "commit_url": None,
        "created_at": iso(event.created_at),
        "performed_via_github_app": None,
        **event.details,
    }
    if "assignee" in event.details:
        answer["assignee"] = call.github.present.user(event.details["assignee"])
    return answer
