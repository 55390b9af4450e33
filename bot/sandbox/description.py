"""GitHub's official OpenAPI description, ready to hold requests, answers and webhooks against."""

from __future__ import annotations

import functools
import gzip
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jsonschema_rs
import orjson

from bot.sandbox.extract import EXTRACT, SCHEMA_BASE
from bot.sandbox.rules import broken_rules

JSON = "application/json"

# Answers that every operation may give, although the description lists them for some only.
_ANYWHERE = frozenset({301, 304, 307, 400, 401, 403, 404, 409, 415, 422, 429, 500, 501, 502, 503})
_MAX_ERRORS = 5
_BY_ID = re.compile(r"^/repositories/\d+(?=/|$)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One way in which traffic departs from the description."""

    where: str
    """``route``, ``path``, ``query``, ``body``, ``rule``, ``status``, ``response``, ``webhook`` or ``crash``."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(slots=True)
class Operation:
    """One REST operation of the description."""

    id: str
    method: str
    path: str
    parameters: list[dict[str, Any]]
    request: dict[str, Any] | None
    responses: dict[str, dict[str, Any]]
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        kinds = {one["name"]: one for one in self.parameters if one["in"] == "path"}

        def group(match: re.Match[str]) -> str:
            name = match.group(1)
            kind = kinds.get(name, {})
            if kind.get("multi_segment"):
                # /contents/ is the root folder
                value = ".*" if name == "path" else ".+"
            else:
                value = "[0-9]+" if kind.get("schema", {}).get("type") == "integer" else "[^/]+"
            return f"(?P<{name}>{value})"

        literal = re.escape(self.path).replace(r"\{", "{").replace(r"\}", "}")
        self.pattern = re.compile(re.sub(r"\{([A-Za-z_]+)\}", group, literal))

    @property
    def precedence(self) -> tuple[bool, int, list[bool]]:
        """Paths without greedy parameters first, then the longer of the greedy ones, then literals."""
        greedy = any(one["multi_segment"] for one in self.parameters)
        segments = self.path.split("/")
        # `commits/{ref}` would swallow what belongs to `commits/{ref}/check-runs`
        return greedy, -len(segments) if greedy else 0, [segment.startswith("{") for segment in segments]


class GitHubDescription:
    """Look-up and validation by method and path, or by webhook event.

    Validators are compiled on first use. Loading takes about 20 ms.

    Args:
        source: the extract written by ``bot.sandbox.extract``.
    """

    def __init__(self, source: Path = EXTRACT):
        extract = orjson.loads(gzip.decompress(source.read_bytes()))
        self.source: str = extract["source"]
        self.schemas: dict[str, Any] = extract["schemas"]
        self.webhooks: dict[str, dict[str, Any]] = extract["webhooks"]
        self.operations: dict[str, Operation] = {one["id"]: Operation(**one) for one in extract["operations"]}
        self._registry = jsonschema_rs.Registry([(SCHEMA_BASE, {"schemas": self.schemas})])
        self._validators: dict[int, jsonschema_rs.Draft202012Validator] = {}
        ordered = sorted(self.operations.values(), key=lambda one: one.precedence)
        self._routes = {
            method: [one for one in ordered if one.method == method]
            for method in {one.method for one in ordered}
        }

    # ---- look-up

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        """The operation behind a request line, and its path parameters decoded; ``path`` is encoded.

        Redirections of moved repositories lead to ``/repositories/{id}``, which the description does not mention.
        """
        path = _BY_ID.sub("/repos/-/-", path)
        for operation in self._routes.get(method.upper(), ()):
            if match := operation.pattern.fullmatch(path):
                return operation, {name: unquote(value) for name, value in match.groupdict().items()}
        return None

    def webhook_schema(self, event: str, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The schema for this event and the payload's action; None when the description has none."""
        actions: dict[str, dict[str, Any]] = self.webhooks.get(event, {})
        # the action of a repository_dispatch is whatever the caller chose
        if len(actions) == 1 and (event == "repository_dispatch" or "action" not in payload):
            return next(iter(actions.values()))
        return actions.get(payload.get("action", ""), actions.get(""))

    def resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow references until there is a schema in hand."""
        while "$ref" in schema:
            schema = self.schemas[schema["$ref"].rsplit("/", 1)[1]]
        return schema

    # ---- validation

    def is_valid(self, schema: Any, value: Any) -> bool:
        """Whether ``value`` satisfies a schema that is part of this description."""
        return self._validator(schema).is_valid(value)

    def check_request(
        self, method: str, url: str, body: Any = None, content_type: str = JSON
    ) -> tuple[str | None, list[Problem]]:
        """Hold one request against the description.

        Args:
            method: HTTP method.
            url: path with query; scheme and host are not looked at.
            body: raw bytes, or the decoded JSON value; None or empty for no body.
            content_type: of the body.

        Returns:
            The operation's id, None when no operation has this method and path, and what is wrong.
        """
        split = urlsplit(url)
        found = self.find(method, split.path)
        if found is None:
            return None, [Problem("route", f"{method} {split.path} is no operation of the extract")]
        operation, path_values = found
        problems = self._check_parameters(operation, path_values, split.query)
        return operation.id, problems + self._check_body(operation, body, content_type)

    def check_response(
        self, method: str, url: str, status: int, body: Any = None, content_type: str | None = JSON
    ) -> tuple[str | None, list[Problem]]:
        """Hold one answer against the description; arguments as in ``check_request``."""
        path = urlsplit(url).path
        found = self.find(method, path)
        if found is None:
            return None, [Problem("route", f"{method} {path} is no operation of the extract")]
        operation, _ = found
        if str(status) not in operation.responses:
            if status in _ANYWHERE:
                return operation.id, []
            known = ", ".join(operation.responses)
            return operation.id, [Problem("status", f"{operation.id} answers {known}, never {status}")]
        return operation.id, self._check_answer(operation.responses[str(status)], status, body, content_type)

    def check_webhook(self, event: str, payload: Mapping[str, Any]) -> list[Problem]:
        """Hold a webhook's decoded payload against the description."""
        schema = self.webhook_schema(event, payload)
        if schema is None:
            return [Problem("webhook", f"no event {event} with action {payload.get('action')!r}")]
        return self._errors("webhook", schema, payload)

    def _check_parameters(
        self, operation: Operation, path_values: Mapping[str, str], query: str
    ) -> list[Problem]:
        problems = []
        unknown = dict(parse_qsl(query, keep_blank_values=True))
        for parameter in operation.parameters:
            name, where = parameter["name"], parameter["in"]
            if where not in ("path", "query"):
                continue
            text = path_values.get(name) if where == "path" else unknown.pop(name, None)
            if text is None:
                if parameter["required"]:
                    problems.append(Problem(where, f"{name} is missing"))
                continue
            problems += self._check_parameter(parameter, text)
        return problems + [Problem("query", f"there is no parameter {name!r}") for name in unknown]

    def _check_parameter(self, parameter: Mapping[str, Any], text: str) -> list[Problem]:
        name, where, schema = parameter["name"], parameter["in"], parameter["schema"]
        value: Any = text
        match schema.get("type"):
            case "integer":
                if not re.fullmatch(r"-?\d+", text):
                    return [Problem(where, f"{name}={text!r} is not an integer")]
                value = int(text)
            case "boolean":
                if text not in ("true", "false"):
                    return [Problem(where, f"{name}={text!r} is not true or false")]
                value = text == "true"
            case "array":
                return []
        problems = [Problem(where, f"{name}: {one.message}") for one in self._errors(where, schema, value)]
        if name == "per_page" and not 1 <= value <= 100:
            problems.append(Problem(where, f"per_page={value}: GitHub gives at most 100 and does not say so"))
        return problems

    def _check_body(self, operation: Operation, body: Any, content_type: str) -> list[Problem]:
        empty = body is None or body == b""
        if operation.request is None:
            return [] if empty or body == {} else [Problem("body", f"{operation.id} takes no body")]
        if empty:
            return [Problem("body", "is missing")] if operation.request["required"] else []
        kind = content_type.split(";")[0].strip().lower()
        schema = operation.request["content"].get(kind)
        if schema is None:
            known = ", ".join(operation.request["content"])
            return [Problem("body", f"content type {kind or '(none)'} is not one of {known}")]
        if kind != JSON:
            return []
        if isinstance(body, bytes | str):
            try:
                body = orjson.loads(body)
            except ValueError as error:
                return [Problem("body", f"is not JSON: {error}")]
        rules = [Problem("rule", sentence) for sentence in broken_rules(operation.id, body)]
        return self._errors("body", schema, body) + rules

    def _check_answer(
        self, content: Mapping[str, Any], status: int, body: Any, content_type: str | None
    ) -> list[Problem]:
        if not content:
            # errors always carry a message, also where the description shows none
            empty = body is None or body in (b"", "") or status >= 400
            return [] if empty else [Problem("response", f"status {status} has no body")]
        kind = (content_type or "").split(";")[0].strip().lower()
        if kind != JSON:
            # diffs, patches and raw files are asked for by media types that the description does not list
            return [] if kind else [Problem("response", "has no content type")]
        schema = content.get(JSON, next(iter(content.values())))
        if isinstance(body, bytes | str):
            try:
                body = orjson.loads(body)
            except ValueError as error:
                return [Problem("response", f"is not JSON: {error}")]
        return self._errors("response", schema, body)

    def _validator(self, schema: Any) -> jsonschema_rs.Draft202012Validator:
        # by identity: the schemas live as long as the description and are many, large and never changed
        validator = self._validators.get(id(schema))
        if validator is None:
            validator = jsonschema_rs.Draft202012Validator(
                schema, registry=self._registry, validate_formats=True
            )
            self._validators[id(schema)] = validator
        return validator

    def _errors(self, where: str, schema: Any, value: Any) -> list[Problem]:
        validator = self._validator(schema)
        if validator.is_valid(value):
            return []
        errors = itertools.islice(validator.iter_errors(value), _MAX_ERRORS)
        return [Problem(where, _sentence(error)) for error in errors]


@functools.cache
def github_description() -> GitHubDescription:
    """The description that everything in this process shares: a compiled validator takes about a megabyte."""
    return GitHubDescription()


def _sentence(error: jsonschema_rs.ValidationError) -> str:
    place = "/".join(str(part) for part in error.instance_path)
    return f"{place}: {error.message[:300]}" if place else error.message[:300]


def problems_text(problems: Iterable[Problem]) -> str:
    """Problems, one a line."""
    return "\n".join(f"  {problem}" for problem in problems)
