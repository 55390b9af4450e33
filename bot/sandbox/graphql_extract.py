"""Cut the part of GitHub's GraphQL schema that the sandbox serves out of the official one.

The source is ``schema.graphql`` of the npm package ``@octokit/graphql-schema`` (MIT, 1.2 MB, 1,600 types). What is
kept keeps its official signature: a field its type and all its arguments, an enumeration all its values, an input
object all its fields. The cut is committed beside this file.

    npm pack @octokit/graphql-schema@15.26.1 && tar xzf octokit-graphql-schema-15.26.1.tgz
    python -m bot.sandbox.graphql_extract --source package
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from graphql import (
    ConstDirectiveNode,
    DefinitionNode,
    DocumentNode,
    EnumTypeDefinitionNode,
    FieldDefinitionNode,
    InputObjectTypeDefinitionNode,
    InputValueDefinitionNode,
    InterfaceTypeDefinitionNode,
    ListTypeNode,
    NamedTypeNode,
    NonNullTypeNode,
    ObjectTypeDefinitionNode,
    ScalarTypeDefinitionNode,
    TypeNode,
    parse,
    print_ast,
)

SCHEMA = Path(__file__).with_name("github-schema.graphql")
"""Where the committed cut lies."""

WANTED: dict[str, str] = {
    "Query": "id node rateLimit repository viewer",
    "Mutation": """addReaction convertPullRequestToDraft dequeuePullRequest disablePullRequestAutoMerge
        enablePullRequestAutoMerge enqueuePullRequest markPullRequestReadyForReview resolveReviewThread
        unresolveReviewThread""",
    "AddReactionPayload": "clientMutationId reaction",
    "Reaction": "content createdAt databaseId id user",
    "Node": "id",
    "Actor": "login url",
    "User": "databaseId id login name url",
    "Bot": "databaseId id login url",
    "Organization": "databaseId id login name url",
    "RateLimit": "cost limit nodeCount remaining resetAt used",
    "PageInfo": "endCursor hasNextPage hasPreviousPage startCursor",
    "Repository": "autoMergeAllowed databaseId id isPrivate mergeQueue name nameWithOwner pullRequest url",
    "PullRequest": """author autoMergeRequest baseRefName baseRefOid body createdAt databaseId fullDatabaseId
        headRefName headRefOid id isDraft isInMergeQueue isMergeQueueEnabled mergeQueueEntry mergeStateStatus mergeable
        merged number repository reviewDecision reviewThreads reviews state title updatedAt url""",
    "PullRequestReviewThreadConnection": "nodes pageInfo totalCount",
    "PullRequestReviewThread": """comments diffSide id isCollapsed isOutdated isResolved line originalLine
        originalStartLine path pullRequest repository resolvedBy startDiffSide startLine subjectType viewerCanReply
        viewerCanResolve viewerCanUnresolve""",
    "PullRequestReviewCommentConnection": "nodes pageInfo totalCount",
    "PullRequestReviewComment": """author body createdAt databaseId fullDatabaseId id line originalLine outdated path
        pullRequest pullRequestReview replyTo updatedAt url""",
    "PullRequestReviewConnection": "nodes pageInfo totalCount",
    "PullRequestReview": "author body databaseId fullDatabaseId id pullRequest state submittedAt url",
    "AutoMergeRequest": "commitBody commitHeadline enabledAt enabledBy mergeMethod pullRequest",
    "MergeQueue": "id repository url",
    "MergeQueueEntry": "enqueuedAt enqueuer id jump mergeQueue position pullRequest solo state",
    "ConvertPullRequestToDraftPayload": "clientMutationId pullRequest",
    "DequeuePullRequestPayload": "clientMutationId mergeQueueEntry",
    "DisablePullRequestAutoMergePayload": "actor clientMutationId pullRequest",
    "EnablePullRequestAutoMergePayload": "actor clientMutationId pullRequest",
    "EnqueuePullRequestPayload": "clientMutationId mergeQueueEntry",
    "MarkPullRequestReadyForReviewPayload": "clientMutationId pullRequest",
    "ResolveReviewThreadPayload": "clientMutationId thread",
    "UnresolveReviewThreadPayload": "clientMutationId thread",
}
"""Type to the fields that are kept. What arguments take (inputs, enumerations, scalars) follows by itself."""

_BUILT_IN = frozenset({"Boolean", "Float", "ID", "Int", "String"})
_Fields = ObjectTypeDefinitionNode | InterfaceTypeDefinitionNode


def cut(source: DocumentNode) -> DocumentNode:
    """The wanted part of a schema.

    Raises:
        LookupError: the schema lacks a wanted type or field, or a kept field gives a type that is not wanted.
    """
    known = {
        one.name.value: one for one in source.definitions if hasattr(one, "name") and one.name is not None
    }
    kept: dict[str, DefinitionNode] = {}
    waiting: list[str] = []
    for name, fields in WANTED.items():
        definition = known.get(name)
        if not isinstance(definition, _Fields):
            raise LookupError(f"the schema has no object or interface {name}")
        kept[name] = _fields_only(definition, fields.split())
        waiting += _mentioned(kept[name])
    while waiting:
        name = waiting.pop()
        if name in kept or name in _BUILT_IN:
            continue
        definition = known.get(name)
        if not isinstance(
            definition, EnumTypeDefinitionNode | InputObjectTypeDefinitionNode | ScalarTypeDefinitionNode
        ):
            raise LookupError(f"{name} is the type of a kept field: add it to WANTED, or leave the field out")
        kept[name] = _bare(definition)
        waiting += _mentioned(definition)
    return DocumentNode(definitions=tuple(kept[name] for name in sorted(kept)))


def _fields_only(definition: _Fields, wanted: list[str]) -> _Fields:
    by_name = {one.name.value: one for one in definition.fields or ()}
    if missing := [name for name in wanted if name not in by_name]:
        raise LookupError(f"{definition.name.value} has no {', '.join(missing)}")
    return type(definition)(
        name=definition.name,
        interfaces=tuple(one for one in definition.interfaces or () if one.name.value in WANTED),
        fields=tuple(_field(by_name[name]) for name in sorted(wanted)),
        directives=(),
    )


def _field(field: FieldDefinitionNode) -> FieldDefinitionNode:
    return FieldDefinitionNode(
        name=field.name,
        arguments=tuple(_argument(one) for one in field.arguments or ()),
        type=field.type,
        directives=_deprecation(field.directives),
    )


def _argument(argument: InputValueDefinitionNode) -> InputValueDefinitionNode:
    return InputValueDefinitionNode(
        name=argument.name,
        type=argument.type,
        default_value=argument.default_value,
        directives=_deprecation(argument.directives),
    )


def _deprecation(directives: tuple[ConstDirectiveNode, ...] | None) -> tuple[ConstDirectiveNode, ...]:
    """GitHub's own directives (``@possibleTypes``, ``@docsCategory``) mean nothing outside its documentation."""
    return tuple(one for one in directives or () if one.name.value == "deprecated")


def _bare(definition: DefinitionNode) -> DefinitionNode:
    """Without descriptions, which are the larger part of the source."""
    if isinstance(definition, EnumTypeDefinitionNode):
        values = tuple(
            type(one)(name=one.name, directives=_deprecation(one.directives))
            for one in definition.values or ()
        )
        return EnumTypeDefinitionNode(name=definition.name, values=values, directives=())
    if isinstance(definition, InputObjectTypeDefinitionNode):
        fields = tuple(_argument(one) for one in definition.fields or ())
        return InputObjectTypeDefinitionNode(name=definition.name, fields=fields, directives=())
    assert isinstance(definition, ScalarTypeDefinitionNode)
    return ScalarTypeDefinitionNode(name=definition.name, directives=())


def _mentioned(definition: DefinitionNode) -> Iterator[str]:
    """Names of the types that a definition's fields and their arguments have."""
    if isinstance(definition, _Fields):
        for field in definition.fields or ():
            yield _innermost(field.type)
            yield from (_innermost(one.type) for one in field.arguments or ())
    elif isinstance(definition, InputObjectTypeDefinitionNode):
        yield from (_innermost(one.type) for one in definition.fields or ())


def _innermost(kind: TypeNode) -> str:
    while isinstance(kind, ListTypeNode | NonNullTypeNode):
        kind = kind.type
    assert isinstance(kind, NamedTypeNode)
    return kind.name.value


def main() -> None:
    """Write the cut and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m bot.sandbox.graphql_extract", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--source", type=Path, required=True, help="unpacked npm @octokit/graphql-schema")
    parser.add_argument("--target", type=Path, default=SCHEMA)
    options = parser.parse_args()
    version = json.loads((options.source / "package.json").read_text())["version"]
    document = cut(parse((options.source / "schema.graphql").read_text(), no_location=True))
    head = (
        f"# Cut from GitHub's public GraphQL schema, npm @octokit/graphql-schema {version} (MIT, see NOTICE), by\n"
        "# bot/sandbox/graphql_extract.py. Do not edit: names, types and arguments are GitHub's.\n\n"
    )
    options.target.write_text(head + print_ast(document) + "\n")
    sys.stdout.write(f"{options.target}: {len(document.definitions)} types\n")


if __name__ == "__main__":
    main()
