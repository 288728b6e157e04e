"""The JSON Schema of requests and answers, made of the table; ``docs/sidecar.schema.json`` is this."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from overbooked_lock.sidecar.operations import OPS, BareSlot, Op
from overbooked_lock.sidecar.requests import Until

_ERROR = {
    "type": "object",
    "required": ["code", "message", "status", "request_id"],
    "properties": {
        "code": {"type": "string", "pattern": "^E\\d{3}$"},
        "message": {"type": "string"},
        "status": {"type": "integer"},
        "reason": {"type": "string"},
        "param": {"type": "string"},
        "details": {"type": "object"},
        "request_id": {"type": "string"},
    },
}


class _WithoutTitles(GenerateJsonSchema):
    """A field's title would be its name once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def document() -> dict[str, Any]:
    """The schema: ``#/$defs/request``, and ``#/$defs/<op>-reply`` for each operation's answer."""
    requests = [(op.takes, "validation") for op in OPS.values()]
    answers = [(op.answers, "serialization") for op in OPS.values() if op.answers is not None]
    models: Any = dict.fromkeys([*requests, *answers, (BareSlot, "serialization")])
    references, shared = models_json_schema(
        list(models), ref_template="#/$defs/{model}", schema_generator=_WithoutTitles
    )
    definitions: dict[str, Any] = shared["$defs"]
    for name, op in OPS.items():
        definitions[name] = _request(op, references[op.takes, "validation"])
        answer = None if op.answers is None else references[op.answers, "serialization"]
        definitions[f"{name}-reply"] = {"anyOf": [_reply(op, answer), {"$ref": "#/$defs/failure"}]}
    definitions["request"] = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in OPS]}
    definitions["failure"] = {
        "type": "object",
        "required": ["id", "error", "success"],
        "properties": {"id": {"type": "string"}, "error": _ERROR, "success": {"const": False}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Requests to an overbooked-lock sidecar, and its answers",
        "$ref": "#/$defs/request",
        "$defs": definitions,
    }


def text() -> str:
    """The document as it stands in the file."""
    return json.dumps(document(), indent=2, sort_keys=True) + "\n"


def _request(op: Op, model: dict[str, Any]) -> dict[str, Any]:
    rules = [model, {"anyOf": [{"required": ["client"]}, {"required": ["reply_to"]}]}]
    if issubclass(op.takes, Until):
        rules.append({"oneOf": [{"required": ["lock_until"]}, {"required": ["lock_for_ms"]}]})
    return {
        "description": op.summary,
        "allOf": rules,
        "properties": {"op": {"const": op.name}},
        "examples": [{"id": "1", "op": op.name, "client": "web", **op.takes.example}],
    }


def _reply(op: Op, answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        data: dict[str, Any] = {"type": "object"}
    elif op.fencing is not None or op.name.startswith("unlock"):
        data = {"anyOf": [answer, {"$ref": "#/$defs/BareSlot"}, {"type": "object", "maxProperties": 0}]}
    else:
        data = answer
    properties: dict[str, Any] = {
        "id": {"type": "string"},
        "data": {"type": "array", "items": data} if op.lists else data,
        "meta": {"type": "object"},
        "success": {"const": True},
    }
    if op.fencing is not None:
        token = {"type": "integer", "description": "Rises with every new lock of a slot."}
        properties[op.fencing] = {"type": "array", "items": token} if op.lists else token
    return {"type": "object", "required": ["id", "data", "meta", "success"], "properties": properties}
