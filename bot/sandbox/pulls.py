"""REST: pull requests.

https://docs.github.com/en/rest/pulls/pulls
"""

from __future__ import annotations

from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.github import GitHub
from bot.sandbox.issues import announce, edit, note, open_issue
from bot.sandbox.merging import drop_auto_merge, merge_pull
from bot.sandbox.present import Json
from bot.sandbox.pullstate import pull_json
from bot.sandbox.pushes import move_ref
from bot.sandbox.refusals import Refusal, custom, invalid, not_found
from bot.sandbox.state import Issue, Pull, Repository, Team, User

MAX_COMMITS = 250
"""Commits that GitHub lists of one pull request."""


async def create(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls."""
    github, repository, git, body = call.github, call.repository, call.git, call.body
    owner, _, head_ref = body["head"].rpartition(":")
    base_ref = body["base"]
    home = _head_repository(call, owner, body.get("head_repo"))
    refs = await git.refs("refs/heads")
    heads = refs if home is repository else await github.git(home).refs("refs/heads")
    for field, name, known in (("base", base_ref, refs), ("head", head_ref, heads)):
        if f"refs/heads/{name}" not in known:
            raise invalid("PullRequest", field)
    head, base = heads[f"refs/heads/{head_ref}"], refs[f"refs/heads/{base_ref}"]
    home_id = None if home is repository else home.id
    for issue, pull in repository.pulls():
        same = (pull.head_ref, pull.base_ref, pull.head_repository_id) == (head_ref, base_ref, home_id)
        if issue.state == "open" and same:
            message = f"A pull request already exists for {home.owner}:{head_ref}."
            raise custom("PullRequest", message)
    if home is not repository:
        await git.fetch(github.git(home), head)
    if await git.merge_base(base, head) is None:
        message = f"The {head_ref} branch has no history in common with {base_ref}"
        raise custom("PullRequest", message)
    if await git.count(f"{base}..{head}") == 0:
        raise custom("PullRequest", f"No commits between {base_ref} and {head_ref}")
    issue = _conversation(call)
    issue.pull = Pull(
        id=github.world.next_id(),
        head_ref=head_ref,
        head_sha=head,
        base_ref=base_ref,
        base_sha=base,
        head_repository_id=home_id,
        draft=body.get("draft", False),
        maintainer_can_modify=body.get("maintainer_can_modify", home_id is not None),
    )
    await git.update_ref(f"refs/pull/{issue.number}/head", head)
    await announce(github, repository, issue, call.login, "opened")
    return Answer(201, await pull_json(github, repository, issue))


def _head_repository(call: Call, owner: str, name: str | None) -> Repository:
    """Where the head branch is: here, or in a fork of its owner's."""
    repository = call.repository
    if not owner or owner.lower() == repository.owner.lower():
        return repository
    for one in call.github.world.forks_of(repository):
        if one.owner.lower() == owner.lower() and name in (None, one.name):
            return one
    raise invalid("PullRequest", "head")


def _conversation(call: Call) -> Issue:
    """A new conversation, or that of the issue which the body names."""
    if "issue" in call.body:
        issue = call.repository.issues.get(call.body["issue"])
        if issue is None or issue.pull is not None:
            raise invalid("PullRequest", "issue")
        return issue
    if not call.body.get("title"):
        raise invalid("PullRequest", "title", "missing_field")
    return open_issue(call.github, call.repository, call.login, call.body["title"], call.body.get("body"))


async def get(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}, as JSON, as a diff or as a patch."""
    issue, pull = call.pull()
    if ".diff" in call.accept or ".patch" in call.accept:
        kind = "diff" if ".diff" in call.accept else "patch"
        base = await call.git.merge_base(pull.base_sha, pull.head_sha) or pull.base_sha
        if kind == "diff":
            text = await call.git.diff(base, pull.head_sha)
        else:
            text = await call.git.text("format-patch", "--stdout", f"{base}..{pull.head_sha}")
        return Answer(text=text, content_type=f"application/vnd.github.{kind}; charset=utf-8")
    return Answer(data=await pull_json(call.github, call.repository, issue, mergeable=True))


async def list_pulls(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls."""
    query, repository = call.query, call.repository
    state, head = query.get("state", "open"), query.get("head")
    if head is not None and ":" not in head:
        # GitHub ignores a head without its owner
        head = None
    found = [
        (issue, pull)
        for issue, pull in repository.pulls()
        if state in ("all", issue.state)
        and head in (None, _label(call, pull))
        and query.get("base") in (None, pull.base_ref)
    ]
    newest_first = query.get("direction", "desc") == "desc"
    found.sort(key=lambda pair: _order(pair[0], query.get("sort", "created")), reverse=newest_first)
    present = call.github.present
    return call.page(found, lambda pair: present.pull(repository, *pair))


def _label(call: Call, pull: Pull) -> str:
    home = call.github.present.head_repository(call.repository, pull)
    return f"{home.owner if home else ''}:{pull.head_ref}"


def _order(issue: Issue, sort: str) -> Any:
    return issue.updated_at if sort == "updated" else issue.number


async def update(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/pulls/{pull_number}."""
    issue, pull = call.pull()
    new_base = call.body.get("base", pull.base_ref)
    if new_base != pull.base_ref:
        tip = (await call.git.refs("refs/heads")).get(f"refs/heads/{new_base}")
        if tip is None:
            raise invalid("PullRequest", "base")
        changes = {"base": {"ref": {"from": pull.base_ref}, "sha": {"from": pull.base_sha}}}
        pull.base_ref, pull.base_sha = new_base, tip
        await announce(call.github, call.repository, issue, call.login, "edited", changes=changes)
    if call.body.get("state") == "open" and issue.state == "closed" and pull.merged_at is None:
        await _reopenable(call, pull)
    await edit(call, issue)
    return Answer(data=await pull_json(call.github, call.repository, issue))


async def _reopenable(call: Call, pull: Pull) -> None:
    home = call.github.present.head_repository(call.repository, pull)
    refs = await call.github.git(home).refs("refs/heads") if home else {}
    head = refs.get(f"refs/heads/{pull.head_ref}")
    if head is None:
        message = f"state cannot be changed. The {pull.head_ref} branch has been deleted."
        raise invalid("PullRequest", "state", "custom", message)
    if home is not None and home is not call.repository:
        await call.git.fetch(call.github.git(home), head)
    pull.head_sha = head


async def list_files(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/files."""
    _, pull = call.pull()
    base = await call.git.merge_base(pull.base_sha, pull.head_sha) or pull.base_sha
    changes = await call.git.changes(base, pull.head_sha)
    present = call.github.present
    return call.page(changes, lambda one: present.file_change(call.repository, one, pull.head_sha))


async def list_commits(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/commits."""
    _, pull = call.pull()
    commits = await call.git.log("--reverse", f"{pull.base_sha}..{pull.head_sha}")
    return call.page(commits[:MAX_COMMITS], lambda one: call.github.present.commit(call.repository, one))


async def set_draft(github: GitHub, repository: Repository, issue: Issue, login: str, *, draft: bool) -> None:
    """Make a pull request a draft or ready for review, and tell the App; REST has no such operation."""
    pull = issue.pull
    assert pull is not None
    if pull.draft == draft:
        return
    pull.draft = draft
    action = "converted_to_draft" if draft else "ready_for_review"
    note(github, issue, "convert_to_draft" if draft else action, login)
    await announce(github, repository, issue, login, action)
    if draft and pull.auto_merge is not None:
        await drop_auto_merge(github, repository, issue, login, "Pull request was converted to a draft")


async def check_merged(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/merge."""
    _, pull = call.pull()
    if pull.merged_at is None:
        raise not_found()
    return Answer(204)


async def merge(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/pulls/{pull_number}/merge, by a merge commit or squashed."""
    issue, pull = call.pull()
    if issue.state == "open" and call.body.get("sha", pull.head_sha) != pull.head_sha:
        raise Refusal(409, "Head branch was modified. Review and try the merge again.")
    commit = await merge_pull(
        call.github,
        call.repository,
        issue,
        call.login,
        method=call.body.get("merge_method", "merge"),
        title=call.body.get("commit_title"),
        message=call.body.get("commit_message"),
    )
    data = {"sha": commit, "merged": True, "message": "Pull Request successfully merged"}
    return Answer(data=data)


async def update_branch(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/pulls/{pull_number}/update-branch: merge the base branch into the head."""
    github, git = call.github, call.git
    _, pull = call.pull()
    if pull.head_repository_id is not None:
        raise Refusal(403, "Resource not accessible by integration")
    if call.body.get("expected_head_sha", pull.head_sha) != pull.head_sha:
        raise Refusal(422, "expected_head_sha was not the head sha of the pull request")
    tip = await git.resolve(f"refs/heads/{pull.base_ref}")
    if tip is None or await git.is_ancestor(tip, pull.head_sha):
        raise Refusal(422, "There are no new commits on the base branch.")
    tree = await git.merge(pull.head_sha, tip)
    if tree is None:
        raise Refusal(422, "merge conflict between base and head")
    message = f"Merge branch '{pull.base_ref}' into {pull.head_ref}"
    commit = await git.write_commit(tree, [pull.head_sha, tip], message, github.identity(call.login))
    name = f"refs/heads/{pull.head_ref}"
    await move_ref(github, call.repository, call.login, name, commit, old=pull.head_sha)
    url = f"{github.present.repository_url(call.repository)}/pulls/{call.args['pull_number']}"
    return Answer(202, {"message": "Updating pull request branch.", "url": url})


# ---- requested reviewers


async def list_reviewers(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/pulls/{pull_number}/requested_reviewers."""
    shown = _simple(call, *call.pull())
    return Answer(data={"users": shown["requested_reviewers"], "teams": shown["requested_teams"]})


async def request_reviewers(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/pulls/{pull_number}/requested_reviewers."""
    issue, pull = call.pull()
    world, repository = call.github.world, call.repository
    wanted, teams = call.body.get("reviewers", []), call.body.get("team_reviewers", [])
    if issue.login in wanted:
        raise Refusal(422, "Review cannot be requested from pull request author.")
    found = [world.team(repository.owner, slug) for slug in teams]
    people = [world.user(login) for login in wanted]
    if any(one is None or repository.id not in one.repositories for one in found) or any(
        one is None or world.role(repository, one.login, public=False) == "none" for one in people
    ):
        raise Refusal(
            422,
            "Reviews may only be requested from collaborators. One or more of the users or teams you specified "
            f"is not a collaborator of the {repository.full_name} repository.",
        )
    for user in people:
        if user is not None and user.login not in pull.requested_reviewers:
            pull.requested_reviewers.append(user.login)
            await _tell_request(call, issue, user, "review_requested")
    for team in found:
        if team is not None and team.slug not in pull.requested_teams:
            pull.requested_teams.append(team.slug)
            await _tell_request(call, issue, team, "review_requested")
    return Answer(201, _simple(call, issue, pull))


async def remove_reviewers(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/pulls/{pull_number}/requested_reviewers."""
    issue, pull = call.pull()
    world = call.github.world
    for login in call.body.get("reviewers", []):
        if login in pull.requested_reviewers:
            pull.requested_reviewers.remove(login)
            await _tell_request(call, issue, world.users[login], "review_request_removed")
    for slug in call.body.get("team_reviewers", []):
        team = world.team(call.repository.owner, slug)
        if team is not None and team.slug in pull.requested_teams:
            pull.requested_teams.remove(team.slug)
            await _tell_request(call, issue, team, "review_request_removed")
    return Answer(data=_simple(call, issue, pull))


async def _tell_request(call: Call, issue: Issue, wanted: User | Team, action: str) -> None:
    github, present = call.github, call.github.present
    if isinstance(wanted, User):
        asked = {"requested_reviewer": present.user(wanted.login)}
    else:
        asked = {"requested_team": present.team(wanted)}
    note(github, issue, action, call.login)
    await announce(github, call.repository, issue, call.login, action, **asked)


def _simple(call: Call, issue: Issue, pull: Pull) -> Json:
    return call.github.present.pull(call.repository, issue, pull)


OPERATIONS: dict[str, Handler] = {
    "pulls/create": create,
    "pulls/get": get,
    "pulls/list": list_pulls,
    "pulls/update": update,
    "pulls/list-files": list_files,
    "pulls/list-commits": list_commits,
    "pulls/check-if-merged": check_merged,
    "pulls/merge": merge,
    "pulls/update-branch": update_branch,
    "pulls/list-requested-reviewers": list_reviewers,
    "pulls/request-reviewers": request_reviewers,
    "pulls/remove-requested-reviewers": remove_reviewers,
}
