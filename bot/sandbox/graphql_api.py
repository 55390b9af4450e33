"""GitHub's GraphQL endpoint, ``POST /graphql``, for the part of the official schema that is committed here.

https://docs.github.com/en/graphql/guides/forming-calls-with-graphql
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import structlog
from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    Source,
    build_schema,
    execute,
    parse,
    validate,
)

from bot.sandbox.auth import Actor
from bot.sandbox.description import Problem
from bot.sandbox.github import GitHub
from bot.sandbox.graph import Graph, GraphRefusal
from bot.sandbox.graphql_extract import SCHEMA

PATH = "/graphql"
MAX_QUERY = 500_000
"""Characters of a query that the sandbox reads."""

Json = dict[str, Any]
log = structlog.get_logger(__name__)


@lru_cache(maxsize=1)
def github_schema() -> GraphQLSchema:
    """The committed part of GitHub's schema."""
    return build_schema(SCHEMA.read_text())


def check_query(body: bytes) -> list[Problem]:
    """Hold a client's request against GitHub's schema: its syntax, names, arguments and the variables' presence."""
    try:
        request = orjson.loads(body)
        document = parse(Source(request["query"]))
    except (ValueError, KeyError, TypeError, GraphQLError) as error:
        return [Problem("body", f"is no GraphQL request: {error}")]
    problems = [Problem("body", error.message) for error in validate(github_schema(), document)]
    return problems + _unused_variables(document, request.get("variables") or {})


def _unused_variables(document: DocumentNode, given: Mapping[str, Any]) -> list[Problem]:
    """GitHub overlooks variables that the query does not declare, so a misspelt one is invisible."""
    declared = {
        variable.variable.name.value
        for one in document.definitions
        if isinstance(one, OperationDefinitionNode)
        for variable in one.variable_definitions or ()
    }
    return [Problem("body", f"the query has no variable ${name}") for name in given.keys() - declared]


class GraphQLApi:
    """Runs queries.

    Args:
        github: what they are about.
    """

    def __init__(self, github: GitHub):
        self._github = github

    async def handle(self, actor: Actor, body: bytes) -> tuple[int, Json]:
        """Status and JSON of an answer. A query that fails is answered 200, too, and says why in ``errors``."""
        self._github.record("client", f"POST {PATH}", check_query(body))
        try:
            request = orjson.loads(body)
        except ValueError:
            return 400, {"message": "Problems parsing JSON", "status": "400"}
        query = request.get("query") if isinstance(request, dict) else None
        if not isinstance(query, str) or len(query) > MAX_QUERY:
            return 400, {
                "message": "A query attribute must be specified and must be a string.",
                "status": "400",
            }
        try:
            document = parse(Source(query))
        except GraphQLError as error:
            return 200, {"errors": [self._error(error)]}
        if errors := validate(github_schema(), document):
            return 200, {"errors": [self._error(one) for one in errors]}
        return 200, await self._run(actor, document, request)

    async def _run(self, actor: Actor, document: DocumentNode, request: Mapping[str, Any]) -> Json:
        graph = Graph(self._github, actor)
        name = request.get("operationName")
        operation = next(
            (
                one
                for one in document.definitions
                if isinstance(one, OperationDefinitionNode)
                and (not name or (one.name is not None and one.name.value == name))
            ),
            None,
        )
        changes = operation is not None and operation.operation is OperationType.MUTATION
        found = execute(
            github_schema(),
            document,
            root_value=graph.mutation() if changes else graph.query(),
            variable_values=request.get("variables") or {},
            operation_name=name,
            field_resolver=_resolve,
            type_resolver=lambda value, *_: str(value["__typename"]),
        )
        result: ExecutionResult = await found if inspect.isawaitable(found) else found
        answer: Json = {"data": result.data}
        if result.errors:
            answer["errors"] = [self._error(one) for one in result.errors]
        return answer

    def _error(self, error: GraphQLError) -> Json:
        shown: Json = {}
        cause = error.original_error
        if isinstance(cause, GraphRefusal):
            shown["type"] = cause.kind
        elif cause is not None and not isinstance(cause, GraphQLError):
            log.error("sandbox_crashed", request=f"POST {PATH}", exc_info=cause)
            self._github.record("sandbox", f"POST {PATH}", [Problem("crash", repr(cause))])
        if error.path:
            shown["path"] = list(error.path)
        if isinstance(cause, GraphRefusal) and cause.kind == "FORBIDDEN":
            shown["extensions"] = {"saml_failure": False}
        if error.locations:
            shown["locations"] = [{"line": one.line, "column": one.column} for one in error.locations]
        return {**shown, "message": error.message}


def _resolve(source: Mapping[str, Any], info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
    value = source[info.field_name]
    return value(**arguments) if callable(value) else value
