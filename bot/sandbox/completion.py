"""Fill in what GitHub's schemas require and a partial object does not say.

The sandbox's handlers state what matters (a title, a state, a SHA); the other hundred required fields of
a pull request come from here, with the emptiest value that the schema allows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from bot.sandbox.description import JSON, GitHubDescription

_MAX_DEPTH = 24


class Completer:
    """Completes objects by the schemas of one description.

    Args:
        description: whose schemas.
        url: what a required but unstated URL becomes.
    """

    def __init__(self, description: GitHubDescription, url: str = "https://api.github.com/"):
        self._description = description
        self._url = url

    def complete_response(self, operation: str, status: int, body: Any) -> Any:
        """``body`` with every field that this operation's answer requires."""
        content = self._description.operations[operation].responses.get(str(status), {})
        return self._complete(body, content[JSON], 0) if JSON in content else body

    def complete_webhook(self, event: str, payload: dict[str, Any]) -> dict[str, Any]:
        """``payload`` with every field that this event and action require."""
        schema = self._description.webhook_schema(event, payload)
        completed: dict[str, Any] = payload if schema is None else self._complete(payload, schema, 0)
        return completed

    def _complete(self, value: Any, schema: Mapping[str, Any], depth: int) -> Any:
        schema = self._description.resolve(schema)
        if depth > _MAX_DEPTH or value is None:
            return value
        if "anyOf" in schema:
            value = self._complete_union(value, schema["anyOf"], depth)
        for part in schema.get("allOf", ()):
            value = self._complete(value, part, depth + 1)
        if isinstance(value, dict):
            self._complete_object(value, schema, depth)
        elif isinstance(value, list) and "items" in schema:
            value = [self._complete(one, schema["items"], depth + 1) for one in value]
        return value

    def _complete_object(self, value: dict[str, Any], schema: Mapping[str, Any], depth: int) -> None:
        properties = schema.get("properties", {})
        for name in value.keys() & properties.keys():
            if isinstance(value[name], dict | list):
                value[name] = self._complete(value[name], properties[name], depth + 1)
        for name in schema.get("required", ()):
            if name not in value:
                emptiest = self._emptiest(properties.get(name, {}), depth + 1)
                value[name] = self._url if emptiest == "" and name.endswith(("url", "href")) else emptiest

    def _complete_union(self, value: Any, branches: list[Mapping[str, Any]], depth: int) -> Any:
        for branch in branches:
            if self._description.is_valid(branch, value):
                return value
        for branch in branches:
            candidate = self._complete(copy.deepcopy(value), branch, depth + 1)
            if self._description.is_valid(branch, candidate):
                return candidate
        return value

    def _emptiest(self, schema: Mapping[str, Any], depth: int) -> Any:
        schema = self._description.resolve(schema)
        kind, branches = schema.get("type"), schema.get("anyOf", [])
        if "const" in schema:
            return schema["const"]
        may_be_null = isinstance(kind, list) or any(
            self._description.resolve(one).get("type") == "null" for one in branches
        )
        if may_be_null or depth > _MAX_DEPTH:
            return None
        if "enum" in schema:
            return schema["enum"][0]
        if branches:
            return self._emptiest(branches[0], depth + 1)
        match kind:
            case "string":
                if schema.get("format") == "date-time":
                    return "1970-01-01T00:00:00Z"
                return "x" * int(schema.get("minLength", 0))
            case "integer" | "number":
                return schema.get("minimum", 0)
            case "boolean":
                return False
            case "array":
                return []
        if kind == "object" or schema.keys() & {"properties", "allOf"}:
            return self._complete({}, schema, depth + 1)
        return None
