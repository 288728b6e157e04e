"""The OpenAPI 3.1 document, made of the table of endpoints and the models it names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from overbooked_lock import __version__
from overbooked_lock.arguments import MAX_SLOTS
from overbooked_lock.http.endpoints import Endpoint
from overbooked_lock.http.inputs import Body

ERRORS: Mapping[str, tuple[int, str]] = {
    "E001": (500, "internal error"),
    "E002": (404, "no such route"),
    "E013": (400, "the body or a parameter is not valid; `param` names it"),
    "E015": (401, "a public key where a secret one is needed"),
    "E023": (422, "the start is not before the end"),
    "E025": (404, "no such slot"),
    "E042": (422, "a key or a value of the metadata is too long"),
    "E044": (422, "the slot can't be locked; `reason`: `not_lockable`, `disabled` or `full`"),
    "E045": (422, "the slot is locked by another key; `details.locked_until`, `details.retry_after_ms`"),
    "E046": (422, "the capacity is below the active bookings"),
    "E047": (400, "the capacity is not valid"),
    "E048": (404, "no such booking"),
    "E049": (422, "the slot is full"),
    "E050": (422, "the slot is locked, and not by this key"),
    "E051": (422, "the slot is disabled"),
    "E055": (401, "the API key is not valid"),
    "E056": (401, "no API key"),
    "E059": (403, "the lock is another key's"),
    "E060": (422, "active bookings are on the slot"),
    "E062": (429, "too many requests (`reason`: `rate`), or too many locks or streams at a time"),
    "E070": (503, "the store can't be reached or did not confirm; `details.outcome`: `not_applied` or `unknown`"),
}
"""Every code: its status, and what it says."""

_OF_ALL = ("E001", "E002", "E013", "E055", "E056", "E062", "E070")

_SLOT = {
    "_object": "slot",
    "available": True,
    "resource_id": "5b003c67-f69f-471b-9268-3896a9a3df29",
    "capacity": 1,
    "created_at": "2020-12-19T15:44:22.854Z",
    "end_date": "2020-10-21T22:50:00+02:00",
    "id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    "lockable": True,
    "locked_until": "2020-12-19T16:00:00.000Z",
    "metadata": {},
    "num_active_bookings": 0,
    "num_bookings": 0,
    "num_cancelled_bookings": 0,
    "start_date": "2020-10-21T22:30:00+02:00",
    "status": "active",
    "updated_at": "2020-12-19T15:44:22.854Z",
}
_BOOKING = {
    "_object": "booking",
    "resource_id": "5b003c67-f69f-471b-9268-3896a9a3df29",
    "created_at": "2020-12-19T15:44:22.854Z",
    "id": "b8f0a6c4-0a4c-4b5e-9b0c-2a1d8f4c1e2d",
    "metadata": {},
    "slot_id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    "status": "active",
    "updated_at": "2020-12-19T15:44:22.854Z",
}
_LOCK = {
    "slot_id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    "locked_until": "2020-12-19T16:00:00.000Z",
    "locked_since": "2020-12-19T15:45:00.000Z",
    "fencing_token": 1608392700000000,
    "key_hash": "1f0c9a3e",
}
_EVENT = {
    "id": "1608392700000-0.0",
    "type": "locked",
    "slot_id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    "resource_id": "5b003c67-f69f-471b-9268-3896a9a3df29",
    "locked_until": "2020-12-19T16:00:00.000Z",
    "fencing_token": 1608392700000000,
    "at": "2020-12-19T15:45:00.000Z",
}
_STREAM = (
    f"retry: 2000\nid: 1608392699000-0.0\n\nid: {_EVENT['id']}\nevent: {_EVENT['type']}\n"
    f"data: {json.dumps(_EVENT, separators=(',', ':'))}\n\n"
)
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {"Slot": _SLOT, "Booking": _BOOKING, "LockItem": _LOCK}

_SECURITY: Mapping[str, list[dict[str, list[str]]]] = {
    "any": [{"public_key": []}, {"secret_key": []}],
    "any, but strict": [{"public_key": []}, {"secret_key": []}],
    "secret": [{"secret_key": []}],
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document, as JSON has it."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    for path, summary in _OPEN.items():
        paths[path] = {"get": _open(path, summary)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "overbooked-lock",
            "version": __version__,
            "description": "Slots of a booking system, locked until a date. "
            "Clients of the published Overbooked API can use it unchanged.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "."}],
        "tags": [{"name": name} for name in dict.fromkeys(endpoint.name.partition(".")[0] for endpoint in endpoints)]
        + [{"name": "server"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(endpoints),
            "parameters": _PARAMETERS,
            "securitySchemes": {
                "public_key": _bearer("`pk_` and 64 hex digits: may sit in a browser."),
                "secret_key": _bearer("`sk_` and 64 hex digits: for servers."),
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.name.partition(".")[0]],
        "security": _SECURITY[endpoint.rights],
        "parameters": _parameters(endpoint),
        "responses": {"200": _success(endpoint)} | _failures([*_OF_ALL, *endpoint.errors, *_rights_error(endpoint)]),
    }
    if endpoint.rights == "any, but strict":
        operation["description"] = "A strict server asks for a secret key."
    if endpoint.takes is not None and issubclass(endpoint.takes, Body):
        schema = _ref(endpoint.takes.__name__)
        if endpoint.takes_lists:
            schema = {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_SLOTS}]}
        content = {"schema": schema, "example": dict(endpoint.takes.example)}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    return operation


def _rights_error(endpoint: Endpoint) -> Sequence[str]:
    return () if endpoint.rights == "any" and endpoint.name != "slot.unlock" else ("E015",)


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    used: list[dict[str, Any]] = []
    if "{id}" in endpoint.path:
        used.append({"$ref": "#/components/parameters/id"})
    if endpoint.takes is not None and endpoint.method == "GET":
        schema = endpoint.takes.model_json_schema()
        for name, field in schema["properties"].items():
            used.append(_query_parameter(name, field, required=name in schema.get("required", ())))
    if endpoint.reads_lock_key:
        used.append({"$ref": "#/components/parameters/lock_key"})
    if endpoint.streams:
        used.append({"$ref": "#/components/parameters/last_event_id"})
    if endpoint.creates:
        used.append({"$ref": "#/components/parameters/idempotency_key"})
    return used


def _query_parameter(name: str, field: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    # In a URL nothing is null, only absent.
    [schema] = [kind for kind in field.get("anyOf", [dict(field)]) if kind != {"type": "null"}]
    schema = {key: value for key, value in schema.items() if key not in {"title", "description", "examples", "default"}}
    parameter = {"name": name, "in": "query", "required": required, "schema": schema}
    if "description" in field:
        parameter["description"] = field["description"]
    if "examples" in field:
        parameter["example"] = field["examples"][0]
    return parameter


def _success(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.streams:
        return _stream()
    data: dict[str, Any] = {"type": "object", "maxProperties": 0}
    example: Any = {}
    if endpoint.answers is not None:
        name = endpoint.answers.__name__
        data, example = _ref(name), _example(endpoint, name)
    if endpoint.lists:
        data, example = {"type": "array", "items": data}, [example]
    elif endpoint.takes_lists:
        data = {"anyOf": [data, {"type": "array", "items": data}]}
    meta = _ref("Page") if endpoint.lists else {"type": "object"}
    envelope = {
        "type": "object",
        "required": ["data", "meta", "success"],
        "properties": {"data": data, "meta": meta, "success": {"const": True}},
    }
    shown = {"data": example, "meta": {"limit": 50, "page": 1, "total": 1} if endpoint.lists else {}, "success": True}
    headers = {"X-Request-Id": _header("Names this request in the server's log.", "string")}
    if endpoint.name == "slot.lock":
        headers["X-Fencing-Token"] = _header(
            "Rises with every new lock of a slot: let what the lock protects refuse a lower one than it has seen.",
            "integer",
        )
    return {
        "description": "Done.",
        "headers": headers,
        "content": {"application/json": {"schema": envelope, "example": shown}},
    }


def _stream() -> dict[str, Any]:
    description = (
        "`id` and `event` are those of the `Event` that `data` holds as JSON. After an `event: missed`, read the slots "
        "anew: what happened before is not kept any more."
    )
    return {
        "description": "The stream.",
        "headers": {"X-Request-Id": _header("Names this request in the server's log.", "string")},
        "content": {
            "text/event-stream": {"schema": {"type": "string", "description": description}, "example": _STREAM}
        },
    }


def _example(endpoint: Endpoint, name: str) -> dict[str, Any]:
    example = dict(_EXAMPLES[name])
    if name == "Slot" and endpoint.name != "slot.lock":
        example["locked_until"] = None
    if endpoint.name == "slot.disable":
        example |= {"available": False, "status": "disabled"}
    if endpoint.name == "booking.cancel":
        example["status"] = "cancelled"
    return example


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        by_status.setdefault(ERRORS[code][0], []).append(code)
    return {str(status): _failure(status, of_status) for status, of_status in sorted(by_status.items())}


def _failure(status: int, codes: Sequence[str]) -> dict[str, Any]:
    error = {"allOf": [_ref("Error"), {"properties": {"code": {"enum": list(codes)}, "status": {"const": status}}}]}
    shown = {"code": codes[0], "message": ERRORS[codes[0]][1].partition(";")[0], "status": status}
    failure: dict[str, Any] = {
        "description": "; ".join(f"{code}: {ERRORS[code][1]}" for code in codes) + ".",
        "headers": {"X-Request-Id": _header("Names this request in the server's log.", "string")},
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error", "success"],
                    "properties": {"error": error, "success": {"const": False}},
                },
                "example": {"error": shown | {"request_id": "6f1d0c1e"}, "success": False},
            }
        },
    }
    if {"E045", "E050", "E062"} & set(codes):
        failure["headers"]["Retry-After"] = _header("Seconds after which it may succeed.", "integer")
    return failure


_OPEN = {
    "/healthz": "The process lives.",
    "/readyz": "The store is there, can be written, and drops no locks.",
}


def _open(path: str, summary: str) -> dict[str, Any]:
    envelope = {
        "type": "object",
        "required": ["data", "meta", "success"],
        "properties": {
            "data": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
            "meta": {"type": "object"},
            "success": {"const": True},
        },
    }
    status = {"/healthz": "alive", "/readyz": "ready"}[path]
    example = {"data": {"status": status}, "meta": {}, "success": True}
    return {
        "operationId": f"server.{path.strip('/')}",
        "summary": summary,
        "tags": ["server"],
        "security": [],
        "responses": {
            "200": {
                "description": "Yes.",
                "content": {"application/json": {"schema": envelope, "example": example}},
            }
        }
        | _failures(["E001", "E070"]),
    }


def _schemas(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    models: list[tuple[type[BaseModel], Any]] = []
    for endpoint in endpoints:
        if endpoint.takes is not None and endpoint.method != "GET":
            models.append((endpoint.takes, "validation"))
        if endpoint.answers is not None:
            models.append((endpoint.answers, "serialization"))
    _, schemas = models_json_schema(list(dict.fromkeys(models)), ref_template="#/components/schemas/{model}")
    own: dict[str, Any] = {
        "Error": {
            "type": "object",
            "required": ["code", "message", "status"],
            "properties": {
                "code": {"type": "string", "enum": sorted(ERRORS)},
                "message": {"type": "string", "description": "For people."},
                "status": {"type": "integer", "description": "The HTTP status."},
                "reason": {"type": "string", "description": "Which of the code's reasons it is."},
                "param": {"type": "string", "description": "The field, parameter or header that is wrong."},
                "details": {"type": "object", "description": "Facts that go with the code."},
                "request_id": {"type": "string", "description": "Names this request in the server's log."},
            },
        },
        "Page": {
            "type": "object",
            "required": ["limit", "page", "total"],
            "properties": {name: {"type": "integer", "minimum": 0} for name in ("limit", "page", "total")},
        },
    }
    definitions: dict[str, Any] = schemas["$defs"]
    for name in {"Slot", "Booking"} & definitions.keys():
        definitions[name]["required"] = list(definitions[name]["properties"])
    return dict(sorted((definitions | own).items()))


_PARAMETERS: Mapping[str, Any] = {
    "id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The id, percent-encoded.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "example": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    },
    "lock_key": {
        "name": "X-Lock-Key",
        "in": "header",
        "description": "The key of the caller's own lock: it is answered as its holder.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "last_event_id": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Begin after the event with this id. A browser sends it when it connects again; `since` is not "
        "heeded then.",
        "schema": {"type": "string"},
    },
    "idempotency_key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key with the same body is answered with the first answer again, for 24 hours.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _bearer(description: str) -> dict[str, str]:
    return {"type": "http", "scheme": "bearer", "description": description}


def _header(description: str, kind: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}
