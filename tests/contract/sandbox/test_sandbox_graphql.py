"""GraphQL: drafts, review threads, auto-merge and the merge queue."""

from __future__ import annotations

import pytest
from graphql import parse

from bot.sandbox.graphql_api import check_query, github_schema
from bot.sandbox.graphql_extract import cut
from bot.sandbox.human import HumanError
from bot.sandbox.state import BranchRules

REPO = "/repos/acme/hello"
READY = "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) { pullRequest { isDraft } } }"
DRAFT = "mutation($id: ID!) { convertPullRequestToDraft(input: {pullRequestId: $id}) { pullRequest { isDraft } } }"
RESOLVE = """mutation($id: ID!) {
  resolveReviewThread(input: {threadId: $id}) { thread { isResolved resolvedBy { login } } } }"""
UNRESOLVE = "mutation($id: ID!) { unresolveReviewThread(input: {threadId: $id}) { thread { isResolved } } }"
REACT = """mutation($id: ID!, $content: ReactionContent!) {
  addReaction(input: {subjectId: $id, content: $content}) { reaction { content user { login } } } }"""
AUTO = """mutation($id: ID!, $head: GitObjectID) {
  enablePullRequestAutoMerge(input: {pullRequestId: $id, mergeMethod: SQUASH, expectedHeadOid: $head}) {
    actor { login } pullRequest { autoMergeRequest { mergeMethod enabledBy { login } } } } }"""
ENQUEUE = """mutation($id: ID!, $head: GitObjectID) {
  enqueuePullRequest(input: {pullRequestId: $id, expectedHeadOid: $head}) {
    mergeQueueEntry { position state pullRequest { isInMergeQueue } } } }"""
THREADS = """query($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) { pullRequest(number: $number) { id isDraft
    reviewThreads(first: 2, after: $after) {
      pageInfo { endCursor hasNextPage } totalCount
      nodes { id isResolved isOutdated line originalLine path comments(first: 10) { nodes { databaseId } } } } } } }"""


@pytest.fixture
def ask(bot):
    """Run a query as the App's bot: its data, or the errors when it is ``refused``."""

    async def ask(query: str, *, by=bot, refused: bool = False, **variables):
        answer = await by.post("/graphql", {"query": query, "variables": variables}, status=200)
        assert ("errors" in answer) == refused, answer
        return answer["errors"] if refused else answer["data"]

    return ask


async def pull_id(bot, number: int) -> str:
    return (await bot.get(f"{REPO}/pulls/{number}"))["node_id"]


async def test_a_draft_becomes_ready_and_a_draft_again(bot, github, ask, events):
    await github.as_user("maria").push_commit("acme/hello", "x", {"a.txt": "1\n"})
    pull = await bot.post(f"{REPO}/pulls", {"title": "T", "head": "x", "base": "main", "draft": True})
    assert pull["draft"] is True
    answer = await ask(READY, id=pull["node_id"])
    assert answer == {"markPullRequestReadyForReview": {"pullRequest": {"isDraft": False}}}
    assert bot.headers["X-RateLimit-Resource"] == "graphql"
    [error] = await ask(READY, id=pull["node_id"], refused=True)
    assert (error["type"], error["path"]) == ("UNPROCESSABLE", ["markPullRequestReadyForReview"])
    await ask(DRAFT, id=pull["node_id"])
    assert (await bot.get(f"{REPO}/pulls/{pull['number']}"))["draft"] is True
    assert (await events())[-2:] == ["pull_request.ready_for_review", "pull_request.converted_to_draft"]


async def test_people_do_it_with_their_own_rights(github, pull):
    await github.as_user("octocat").to_draft("acme/hello", pull)
    with pytest.raises(HumanError, match="does not have the correct permissions"):
        await github.as_user("rita").ready("acme/hello", pull)
    await github.as_user("maria").ready("acme/hello", pull)


@pytest.mark.parametrize(
    "permissions", [{"pull_requests": "write"}, {"pull_requests": "read", "contents": "write"}]
)
async def test_writing_needs_contents_as_well(bot, ask, caller, mint, pull, permissions):
    weak = caller(await mint(permissions=permissions))
    [error] = await ask(DRAFT, by=weak, id=await pull_id(bot, pull), refused=True)
    assert (error["type"], error["message"]) == ("FORBIDDEN", "Resource not accessible by integration")
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["draft"] is False


async def test_reading_needs_pull_requests(ask, caller, mint, pull):
    blind = caller(await mint(permissions={"contents": "write"}))
    variables = {"owner": "acme", "name": "hello", "number": pull}
    [error] = await ask(THREADS, by=blind, refused=True, **variables)
    assert error["type"] == "FORBIDDEN"


async def test_threads(bot, github, ask, pull, events):
    octocat, maria = github.as_user("octocat"), github.as_user("maria")
    for line in (1, 2, 1):
        await octocat.comment_on_line("acme/hello", pull, "NEWS.md", line, "hm")
    first = (await bot.get(f"{REPO}/pulls/{pull}/comments"))[0]
    await maria.reply("acme/hello", pull, first["id"], "fixed")
    variables = {"owner": "acme", "name": "hello", "number": pull}
    page = (await ask(THREADS, **variables))["repository"]["pullRequest"]["reviewThreads"]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"], len(page["nodes"])) == (3, True, 2)
    thread = page["nodes"][0]
    assert thread["comments"]["nodes"][0] == {"databaseId": first["id"]}
    assert len(thread["comments"]["nodes"]) == 2
    rest = await ask(THREADS, **variables, after=page["pageInfo"]["endCursor"])
    assert len(rest["repository"]["pullRequest"]["reviewThreads"]["nodes"]) == 1
    answer = (await ask(RESOLVE, id=thread["id"]))["resolveReviewThread"]["thread"]
    assert answer == {"isResolved": True, "resolvedBy": {"login": "agent-conductor"}}
    await ask(RESOLVE, id=thread["id"])
    assert (await events())[
        -1
    ] == "pull_request_review_comment.created"  # the App did not subscribe to threads
    assert (
        await ask(
            "query($id: ID!) { node(id: $id) { ... on PullRequestReviewThread { isResolved } } }",
            id=thread["id"],
        )
    )["node"] == {"isResolved": True}
    await maria.resolve("acme/hello", pull, first["id"], resolved=False)
    page = (await ask(THREADS, **variables))["repository"]["pullRequest"]["reviewThreads"]
    assert page["nodes"][0]["isResolved"] is False


async def test_resolving_is_told_to_who_subscribed(github, ask, pull, events):
    for installation in github.world.installations.values():
        installation.events.append("pull_request_review_thread")
    await github.as_user("octocat").comment_on_line("acme/hello", pull, "NEWS.md", 1, "hm")
    comment = next(iter(github.world.repository("acme", "hello").issues[pull].pull.comments))
    await github.as_user("maria").resolve("acme/hello", pull, comment)
    await github.as_user("maria").resolve("acme/hello", pull, comment)
    await github.as_user("maria").resolve("acme/hello", pull, comment, resolved=False)
    assert (await events())[-2:] == [
        "pull_request_review_thread.resolved",
        "pull_request_review_thread.unresolved",
    ]


async def test_a_changed_line_makes_its_thread_outdated(bot, github, ask, pull):
    octocat, maria = github.as_user("octocat"), github.as_user("maria")
    for line in (1, 2):
        await octocat.comment_on_line("acme/hello", pull, "NEWS.md", line, "hm")
    new = await maria.push_commit("acme/hello", "feature", {"NEWS.md": "zero\nONE\ntwo\n"})
    variables = {"owner": "acme", "name": "hello", "number": pull}
    nodes = (await ask(THREADS, **variables))["repository"]["pullRequest"]["reviewThreads"]["nodes"]
    assert [(one["isOutdated"], one["line"], one["originalLine"]) for one in nodes] == [
        (True, None, 1),
        (False, 3, 2),
    ]
    gone, moved = await bot.get(f"{REPO}/pulls/{pull}/comments")
    assert "line" not in gone
    assert (moved["line"], moved["original_line"], moved["commit_id"]) == (3, 2, new)
    assert moved["original_commit_id"] != new


async def test_what_cannot_be_found_or_read(ask, bot, client_problems):
    query = 'query { repository(owner: "acme", name: "nothing") { id } }'
    [error] = await ask(query, refused=True)
    assert (error["type"], error["path"]) == ("NOT_FOUND", ["repository"])
    assert "acme/nothing" in error["message"]
    [error] = await ask('query { node(id: "PR_xyz") { id } }', refused=True)
    assert error["type"] == "NOT_FOUND"
    [error] = await ask("query { viewer { logon } }", refused=True)
    assert "logon" in error["message"]
    assert await ask("query {", refused=True)
    assert len(client_problems()) == 2
    await bot.post("/graphql", {"no": "query"}, status=400)
    assert len(client_problems()) == 1
    threads = THREADS.replace("first: 2, ", "")
    variables = {"owner": "acme", "name": "hello", "number": 1}
    [error] = await ask(threads, refused=True, **variables)
    assert error["message"] == "Could not resolve to a PullRequest with the number of 1."


async def test_pages_have_limits(ask, pull):
    for size, kind in (("", "MISSING_PAGINATION_BOUNDARIES"), ("first: 101, ", "EXCESSIVE_PAGINATION")):
        [error] = await ask(
            THREADS.replace("first: 2, ", size), owner="acme", name="hello", number=pull, refused=True
        )
        assert error["type"] == kind


async def test_nobody_asks_without_a_token(session, app):
    async with session.post("/graphql", json={"query": "{ viewer { login } }"}) as answer:
        assert answer.status == 401
    await app.post("/graphql", {"query": "{ viewer { login } }"}, status=401)


async def test_ids_of_rest_and_graphql_are_the_same(bot, github, ask, pull):
    await github.as_user("octocat").review(
        "acme/hello", pull, "COMMENT", "hm", comments=[{"path": "NEWS.md", "line": 1, "body": "a"}]
    )
    [review] = await bot.get(f"{REPO}/pulls/{pull}/reviews")
    [comment] = await bot.get(f"{REPO}/pulls/{pull}/comments")
    query = """query($id: ID!) { node(id: $id) { __typename id
      ... on PullRequest { databaseId } ... on PullRequestReview { databaseId }
      ... on PullRequestReviewComment { databaseId } ... on User { databaseId } ... on Repository { databaseId } } }"""
    for thing, kind in (
        (await bot.get(f"{REPO}/pulls/{pull}"), "PullRequest"),
        (review, "PullRequestReview"),
        (comment, "PullRequestReviewComment"),
        (comment["user"], "User"),
        (await bot.get(REPO), "Repository"),
    ):
        node = (await ask(query, id=thing["node_id"]))["node"]
        assert node == {"__typename": kind, "id": thing["node_id"], "databaseId": thing["id"]}


async def test_auto_merge_waits_for_what_is_required(bot, github, ask, pull, events):
    repository = github.world.repository("acme", "hello")
    number = await pull_id(bot, pull)
    [error] = await ask(AUTO, id=number, refused=True)
    assert error["message"] == "Pull request Pull request is in clean status"
    repository.branch_rules["main"] = BranchRules(required_checks=["agent/approval"], required_reviews=1)
    repository.allow_auto_merge = False
    [error] = await ask(AUTO, id=number, refused=True)
    assert "not allowed for this repository" in error["message"]
    repository.allow_auto_merge = True
    [error] = await ask(AUTO, id=number, head="0" * 40, refused=True)
    assert error["type"] == "UNPROCESSABLE"
    refusal = await bot.put(f"{REPO}/pulls/{pull}/merge", status=405)
    assert 'Required status check "agent/approval" is expected.' in refusal["message"]
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["mergeable_state"] == "blocked"
    found = await bot.get(f"{REPO}/pulls/{pull}")
    done = (await ask(AUTO, id=number, head=found["head"]["sha"]))["enablePullRequestAutoMerge"]
    assert done["pullRequest"]["autoMergeRequest"] == {
        "mergeMethod": "SQUASH",
        "enabledBy": {"login": "agent-conductor"},
    }
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["auto_merge"]["merge_method"] == "squash"
    await github.as_user("octocat").review("acme/hello", pull, "APPROVE")
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["merged"] is False
    body = {"name": "agent/approval", "head_sha": found["head"]["sha"], "conclusion": "success"}
    await bot.post(f"{REPO}/check-runs", body)
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["merged"] is True
    assert "pull_request.auto_merge_enabled" in await events()


async def test_changes_requested_block(bot, github, pull):
    github.world.repository("acme", "hello").branch_rules["main"] = BranchRules(required_reviews=1)
    octocat = github.as_user("octocat")
    review = await octocat.review("acme/hello", pull, "REQUEST_CHANGES", "no")
    answer = await bot.put(f"{REPO}/pulls/{pull}/merge", status=405)
    assert answer["message"] == "Changes have been requested."
    await octocat.dismiss_review("acme/hello", pull, review["id"], "yes")
    answer = await bot.put(f"{REPO}/pulls/{pull}/merge", status=405)
    assert answer["message"].startswith("At least 1 approving review")
    await github.as_user("mallory").review("acme/hello", pull, "APPROVE")
    await bot.put(f"{REPO}/pulls/{pull}/merge", status=405)
    await octocat.review("acme/hello", pull, "APPROVE")
    await bot.put(f"{REPO}/pulls/{pull}/merge")


async def test_the_merge_queue(bot, github, ask, pull, events):
    repository = github.world.repository("acme", "hello")
    number = await pull_id(bot, pull)
    [error] = await ask(ENQUEUE, id=number, refused=True)
    assert error["message"] == "The merge queue is not enabled for this branch."
    repository.branch_rules["main"] = BranchRules(required_checks=["ci"], merge_queue=True)
    for installation in github.world.installations.values():
        installation.events.append("merge_group")
        installation.permissions["merge_queues"] = "read"
    [error] = await ask(ENQUEUE, id=number, refused=True)
    assert error["message"] == 'Required status check "ci" is expected.'
    head = (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]
    await bot.post(f"{REPO}/check-runs", {"name": "ci", "head_sha": head, "conclusion": "success"})
    entry = (await ask(ENQUEUE, id=number))["enqueuePullRequest"]["mergeQueueEntry"]
    assert entry == {"position": 1, "state": "AWAITING_CHECKS", "pullRequest": {"isInMergeQueue": True}}
    await events()
    group = next(one.payload for one in github.deliveries if one.event == "merge_group")["merge_group"]
    assert group["head_ref"].startswith("refs/heads/gh-readonly-queue/main/pr-")
    await bot.post(
        f"{REPO}/check-runs", {"name": "ci", "head_sha": group["head_sha"], "conclusion": "success"}
    )
    found = await bot.get(f"{REPO}/pulls/{pull}")
    assert (found["merged"], found["merge_commit_sha"]) == (True, group["head_sha"])
    assert not [one for one in await github.branches("acme/hello") if one.startswith("gh-readonly-queue")]


async def test_a_failed_check_throws_out_of_the_queue(bot, github, ask, pull, events):
    github.world.repository("acme", "hello").branch_rules["main"] = BranchRules(["ci"], merge_queue=True)
    head = (await bot.get(f"{REPO}/pulls/{pull}"))["head"]["sha"]
    await bot.post(f"{REPO}/check-runs", {"name": "ci", "head_sha": head, "conclusion": "success"})
    await ask(ENQUEUE, id=await pull_id(bot, pull))
    sha = github.world.repository("acme", "hello").issues[pull].pull.queued.sha
    await bot.post(f"{REPO}/check-runs", {"name": "ci", "head_sha": sha, "conclusion": "failure"})
    assert (await bot.get(f"{REPO}/pulls/{pull}"))["merged"] is False
    assert "pull_request.dequeued" in await events()
    payload = next(one.payload for one in github.deliveries if one.action == "dequeued")
    assert payload["reason"] == "CI_FAILURE"


def test_the_check_of_a_clients_query_finds_mistakes():
    assert check_query(b'{"query": "{ viewer { login } }"}') == []
    for body in (
        b"{",
        b"[]",
        b'{"query": "{ viewer { logon } }"}',
        b'{"query": "{ viewer { login } }", "variables": {"x": 1}}',
        b'{"query": "mutation { resolveReviewThread(input: {}) { thread { id } } }"}',
    ):
        assert check_query(body)


def test_the_cut_keeps_official_signatures():
    fields = github_schema().query_type.fields
    assert str(fields["node"].type) == "Node"
    assert str(github_schema().type_map["PullRequest"].fields["reviewThreads"].args["first"].type) == "Int"
    with pytest.raises(LookupError, match="no object or interface Query"):
        cut(parse("type Something { id: ID }"))


async def test_a_reaction_to_a_review(bot, github, ask, caller, mint):
    maria = github.as_user("maria")
    await maria.push_commit("acme/hello", "x", {"a.txt": "1\n"})
    pull = await bot.post(f"{REPO}/pulls", {"title": "T", "head": "x", "base": "main"})
    review = await maria.review("acme/hello", pull["number"], "COMMENT", "Well …")
    for _ in range(2):  # nobody gives the same one twice
        answer = await ask(REACT, id=review["node_id"], content="EYES")
        given = answer["addReaction"]["reaction"]
        assert given == {"content": "EYES", "user": {"login": "agent-conductor"}}
    await ask(REACT, id=review["node_id"], content="ROCKET")
    found = github.reactions("acme/hello", pull["number"], review_id=review["id"])
    assert found == [("agent-conductor[bot]", "eyes"), ("agent-conductor[bot]", "rocket")]
    assert github.reactions("acme/hello", pull["number"]) == []
    [error] = await ask(REACT, id=pull["head"]["sha"], content="EYES", refused=True)
    assert error["type"] == "NOT_FOUND"
    weak = caller(await mint(permissions={"pull_requests": "read"}))
    [error] = await ask(REACT, by=weak, id=review["node_id"], content="HEART", refused=True)
    assert error["type"] == "FORBIDDEN"
