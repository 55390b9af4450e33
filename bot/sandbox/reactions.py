"""REST: reactions to issues, comments and comments on a diff."""

from __future__ import annotations

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.github import GitHub
from bot.sandbox.issues import find_comment
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.reviews import find_review_comment
from bot.sandbox.state import Reaction


def _target(call: Call) -> list[Reaction]:
    """The reactions of what the path names."""
    if "issue_number" in call.args:
        return call.issue().reactions
    if "/pulls/comments/" in call.request.path:
        return find_review_comment(call)[2].reactions
    return find_comment(call)[1].reactions


async def create(call: Call) -> Answer:
    """POST .../reactions: 201 for a new reaction, 200 when the caller gave it before."""
    reaction, new = give(call.github, _target(call), call.login, call.body["content"])
    return Answer(201 if new else 200, call.github.present.reaction(reaction))


def give(github: GitHub, reactions: list[Reaction], login: str, content: str) -> tuple[Reaction, bool]:
    """The reaction of ``login`` among ``reactions``, and whether it is new: nobody gives the same one twice."""
    for one in reactions:
        if (one.login, one.content) == (login, content):
            return one, False
    reaction = Reaction(github.world.next_id(), login, content, github.now())
    reactions.append(reaction)
    return reaction, True


async def list_reactions(call: Call) -> Answer:
    """GET .../reactions."""
    wanted = call.query.get("content")
    found = [one for one in _target(call) if wanted in (None, one.content)]
    return call.page(found, call.github.present.reaction)


async def delete(call: Call) -> Answer:
    """DELETE .../reactions/{reaction_id}."""
    reactions, number = _target(call), int(call.args["reaction_id"])
    for one in reactions:
        if one.id == number:
            if one.login != call.login:
                raise Refusal(403, "Only the author of a reaction may delete it.")
            reactions.remove(one)
            return Answer(204)
    raise not_found()


OPERATIONS: dict[str, Handler] = {
    "reactions/create-for-issue": create,
    "reactions/create-for-issue-comment": create,
    "reactions/create-for-pull-request-review-comment": create,
    "reactions/list-for-issue": list_reactions,
    "reactions/list-for-issue-comment": list_reactions,
    "reactions/list-for-pull-request-review-comment": list_reactions,
    "reactions/delete-for-issue": delete,
    "reactions/delete-for-issue-comment": delete,
    "reactions/delete-for-pull-request-comment": delete,
}
