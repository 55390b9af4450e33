"""Cut the operations and webhooks that we use out of GitHub's OpenAPI description.

The source is the file ``generated/api.github.com.json`` of the npm package ``@octokit/openapi`` (MIT, 13
MB). It is written in OpenAPI 3.0's own schema dialect; the extract is plain JSON Schema 2020-12, a
fiftieth of the size once compressed, and is committed beside this file.

    npm pack @octokit/openapi@23.0.2 && tar xzf octokit-openapi-23.0.2.tgz
    python -m bot.sandbox.extract --source package/generated/api.github.com.json
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from pathlib import Path
from typing import Any

import orjson

from bot.sandbox.permissions import OPERATIONS

EXTRACT = Path(__file__).with_name("github-openapi.json.gz")
"""Where the committed extract lies."""

SCHEMA_BASE = "github:description"
"""URI under which validators know the extract; every ``$ref`` in it starts so."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EVENTS = _words(
    """ping push create delete issues issue_comment label pull_request pull_request_review
    pull_request_review_comment pull_request_review_thread check_run check_suite status installation
    installation_repositories repository repository_dispatch member sub_issues merge_group
    workflow_run"""
)
"""The webhook events whose schemas are kept."""

_VERBS = ("get", "post", "put", "patch", "delete")
_COPIED = _words(
    """type enum const required pattern minimum maximum multipleOf minLength maxLength minItems maxItems
    uniqueItems minProperties maxProperties"""
)
# GitHub's own values break these: URI templates such as ".../commits{/sha}", and the noreply address
# "1+some-app[bot]@users.noreply.github.com". The rest are number widths that JSON Schema does not know.
_USELESS_FORMATS = frozenset(
    {"uri", "uri-template", "email", "int32", "int64", "float", "double", "binary", "repo.nwo"}
)

Schema = dict[str, Any]


def to_json_schema(schema: Any) -> Any:
    """Translate one OpenAPI 3.0 schema object into JSON Schema 2020-12."""
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        # OpenAPI 3.0 ignores whatever stands beside a reference
        return {"$ref": f"{SCHEMA_BASE}#/schemas/{schema['$ref'].rsplit('/', 1)[1]}"}
    result: Schema = {key: value for key, value in schema.items() if key in _COPIED}
    if "format" in schema and schema["format"] not in _USELESS_FORMATS:
        result["format"] = schema["format"]
    for bound in ("Minimum", "Maximum"):
        exclusive = schema.get(f"exclusive{bound}")
        if exclusive is True:
            result[f"exclusive{bound}"] = result.pop(bound.lower())
        elif exclusive not in (None, False):
            result[f"exclusive{bound}"] = exclusive
    for key in ("properties", "patternProperties"):
        if key in schema:
            result[key] = {name: to_json_schema(value) for name, value in schema[key].items()}
    for key in ("items", "not", "additionalProperties"):
        if key in schema:
            result[key] = to_json_schema(schema[key])
    if "allOf" in schema:
        result["allOf"] = [to_json_schema(part) for part in schema["allOf"]]
    # GitHub's oneOf branches overlap in places (simple user and enterprise), so "any of" is what they mean
    unions = [[to_json_schema(part) for part in schema[key]] for key in ("anyOf", "oneOf") if key in schema]
    if len(unions) == 1 and len(unions[0]) == 1 and not result:
        result = unions[0][0]
    elif len(unions) == 1:
        result["anyOf"] = unions[0]
    elif unions:
        result["allOf"] = result.get("allOf", []) + [{"anyOf": union} for union in unions]
    return _nullable(result) if schema.get("nullable") is True else result


def _nullable(schema: Schema) -> Schema:
    if not schema:
        return schema
    if not isinstance(schema.get("type"), str) or schema.keys() & {"anyOf", "allOf", "not"}:
        return {"anyOf": [schema, {"type": "null"}]}
    schema["type"] = [schema["type"], "null"]
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema


def closed(schema: Any, *, evaluated_above: bool = False) -> Any:
    """Refuse properties that the schema does not name.

    GitHub ignores an unknown key of a request body in silence, so a misspelt key is invisible until
    somebody misses its effect. ``unevaluatedProperties`` looks through ``anyOf`` and ``allOf``, where
    ``additionalProperties`` cannot.

    Args:
        schema: a translated schema without references.
        evaluated_above: whether an enclosing schema already closes the same object.
    """
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    has_properties = "properties" in result
    if result.get("additionalProperties") is True:
        del result["additionalProperties"]
    for key in ("anyOf", "allOf"):
        if key in result:
            inside = evaluated_above or has_properties or key == "allOf"
            result[key] = [closed(part, evaluated_above=inside) for part in result[key]]
    if has_properties:
        result["properties"] = {name: closed(value) for name, value in result["properties"].items()}
    if "items" in result:
        result["items"] = closed(result["items"])
    if (has_properties or "allOf" in result) and not evaluated_above and "additionalProperties" not in result:
        result["unevaluatedProperties"] = False
    return result


class Extractor:
    """Reads the whole description and collects the wanted part of it."""

    def __init__(self, description: dict[str, Any]):
        self.description = description
        self.components: dict[str, dict[str, Any]] = description["components"]

    def extract(self) -> dict[str, Any]:
        """The extract as one JSON object.

        Raises:
            LookupError: a wanted operation or event is not in the source.
        """
        operations = self._operations()
        webhooks = self._webhooks()
        missing = sorted(OPERATIONS - {one["id"] for one in operations}) + sorted(EVENTS - webhooks.keys())
        if missing:
            raise LookupError(f"not in this description: {', '.join(missing)}; is it api.github.com.json?")
        return {
            "source": f"npm @octokit/openapi {self.description['info']['version']}",
            "operations": operations,
            "webhooks": webhooks,
            "schemas": self._schemas_behind([operations, webhooks]),
        }

    def _resolve(self, value: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in value:
            _, _, kind, name = value["$ref"].split("/", 3)
            value = self.components[kind][name]
        return value

    def _inline(self, schema: Any) -> Any:
        """Put referenced schemas in place, as ``closed`` needs. Request bodies are small, not recursive."""
        if isinstance(schema, list):
            return [self._inline(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        return {key: self._inline(value) for key, value in self._resolve(schema).items()}

    def _operations(self) -> list[dict[str, Any]]:
        return [
            self._operation(path, verb, item[verb], item.get("parameters", []))
            for path, item in self.description["paths"].items()
            for verb in _VERBS
            if verb in item and item[verb]["operationId"] in OPERATIONS
        ]

    def _operation(
        self, path: str, verb: str, operation: dict[str, Any], shared: list[dict[str, Any]]
    ) -> dict[str, Any]:
        parameters = [self._resolve(one) for one in [*shared, *operation.get("parameters", [])]]
        request = self._resolve(operation["requestBody"]) if "requestBody" in operation else None
        return {
            "id": operation["operationId"],
            "method": verb.upper(),
            "path": path,
            "parameters": [
                {
                    "name": one["name"],
                    "in": one["in"],
                    "required": bool(one.get("required")),
                    # the value may hold slashes, as in /contents/{path}
                    "multi_segment": bool(one.get("x-multi-segment")),
                    "schema": to_json_schema(one.get("schema", {})),
                }
                for one in parameters
            ],
            "request": request
            and {
                "required": bool(request.get("required")),
                "content": {
                    kind: closed(to_json_schema(self._inline(media.get("schema", {}))))
                    for kind, media in request["content"].items()
                },
            },
            "responses": {
                status: {
                    kind: to_json_schema(media.get("schema", {}))
                    for kind, media in self._resolve(response).get("content", {}).items()
                }
                for status, response in operation["responses"].items()
            },
        }

    def _webhooks(self) -> dict[str, dict[str, Any]]:
        webhooks: dict[str, dict[str, Any]] = {}
        for item in self.description["x-webhooks"].values():
            operation = item["post"]
            # the event's name is the subcategory; the example of the header parameter is wrong in several
            # places
            event = operation["x-github"]["subcategory"].replace("-", "_")
            if event in EVENTS:
                _, _, action = operation["operationId"].partition("/")
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                webhooks.setdefault(event, {})[action.replace("-", "_")] = to_json_schema(schema)
        return webhooks

    def _schemas_behind(self, roots: Any) -> dict[str, Any]:
        """Every named schema that is reachable from ``roots``."""
        found: dict[str, Any] = {}
        waiting = [roots]
        while waiting:
            text = orjson.dumps(waiting.pop()).decode()
            for name in set(re.findall(rf'"\$ref":"{SCHEMA_BASE}#/schemas/([^"]+)"', text)) - found.keys():
                found[name] = to_json_schema(self.components["schemas"][name])
                waiting.append(found[name])
        return dict(sorted(found.items()))


def main() -> None:
    """Write the extract and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m bot.sandbox.extract", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="api.github.com.json of npm @octokit/openapi"
    )
    parser.add_argument("--target", type=Path, default=EXTRACT)
    options = parser.parse_args()
    extract = Extractor(orjson.loads(options.source.read_bytes())).extract()
    # no time stamp: the same source gives the same bytes
    options.target.write_bytes(gzip.compress(orjson.dumps(extract), mtime=0))
    sys.stdout.write(
        f"{options.target}: {extract['source']}, {len(extract['operations'])} operations, "
        f"{len(extract['webhooks'])} events, {len(extract['schemas'])} schemas\n"
    )


if __name__ == "__main__":
    main()
