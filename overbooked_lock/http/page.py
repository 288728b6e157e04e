"""The page at ``/docs``: the OpenAPI document for people, in one file without scripts: it needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #06c }
@media (prefers-color-scheme: dark) { :root { --link: #6af } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
a { color: var(--link) } code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; border-radius: 4px; user-select: all }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .25rem .6rem }
td { border-top: 1px solid var(--line) } article { margin: 1rem 0 } summary { cursor: pointer; padding: .4rem 0 }
.method { display: inline-block; min-width: 4.2rem; font-weight: 600 } .soft { opacity: .75 }
@media print { body { max-width: none; font-size: 11pt } pre { white-space: pre-wrap } article { break-inside: avoid } }
"""


def of(document: Mapping[str, Any]) -> bytes:
    """The page as HTML in UTF-8."""
    info = document["info"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    sections = "".join(
        f"<h2>{escape(tag['name'])}</h2>"
        + "".join(_operation(document, *operation) for operation in operations if tag["name"] in operation[2]["tags"])
        for tag in document["tags"]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1>{escape(info["title"])} <span class="soft">{escape(info["version"])}</span></h1>'
        f'<p>{escape(info["description"])} As data: <a href="openapi.json">openapi.json</a>.</p>'
        "<p>In the examples <code>$URL</code> is where this server is, and <code>$KEY</code> an API key. "
        "A lock&rsquo;s <code>lock_until</code> must be a date of yours, within 24 hours from now.</p>"
        f"{sections}<h2>errors</h2>{_errors(operations)}</body></html>"
    ).encode()


def _operation(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<p>{_text(operation['summary'])} {_text(operation.get('description', ''))} {_rights(operation)}</p>"]
    parameters = [_resolved(document, parameter) for parameter in operation.get("parameters", [])]
    rows = [
        (
            p["name"],
            f"{p['in']}{', required' if p.get('required') else ''}",
            _kind(p["schema"]),
            p.get("description", ""),
        )
        for p in parameters
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        # Where a list may come, too, the first form is that of one.
        model = _resolved(document, body["schema"].get("anyOf", [body["schema"]])[0])
        rows += [
            (
                name,
                _where("body", required=name in model.get("required", ())),
                _kind(field),
                _description(field),
            )
            for name, field in model["properties"].items()
        ]
    if rows:
        parts.append(
            "<table>"
            + "".join(
                f"<tr><td><code>{escape(name)}</code></td><td>{escape(where)}</td><td>{escape(kind)}</td>"
                f"<td>{_text(description)}</td></tr>"
                for name, where, kind, description in rows
            )
            + "</table>"
        )
    parts.append(f"<pre>{escape(_curl(method, path, parameters, body, operation))}</pre>")
    [(kind, content)] = operation["responses"]["200"]["content"].items()
    shown = json.dumps(content["example"], indent=2) if kind == "application/json" else content["example"].rstrip()
    parts.append(f"<pre>{escape(shown)}</pre>")
    parts.append(
        "<ul>"
        + "".join(
            f"<li><b>{status}</b> {_text(response['description'])}</li>"
            for status, response in operation["responses"].items()
            if status != "200"
        )
        + "</ul>"
    )
    return (
        f'<article id="{escape(operation["operationId"])}"><details open><summary>'
        f'<span class="method">{method}</span> <code>{escape(path)}</code> '
        f'<span class="soft">{escape(operation["operationId"])}</span></summary>{"".join(parts)}</details></article>'
    )


def _where(place: str, *, required: bool) -> str:
    return f"{place}, required" if required else place


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Any = document
    for step in schema["$ref"].split("/")[1:]:
        found = found[step]
    return dict(found)


def _rights(operation: Mapping[str, Any]) -> str:
    schemes = [name for scheme in operation["security"] for name in scheme]
    return {0: "No key.", 1: "Secret key.", 2: "Any key."}[len(schemes)]


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    return str(schema.get("format", schema.get("type", "")))


def _description(schema: Mapping[str, Any]) -> str:
    # What may be null has its description within.
    said = [kind["description"] for kind in (schema, *schema.get("anyOf", ())) if "description" in kind]
    return said[0] if said else ""


def _curl(
    method: str,
    path: str,
    parameters: list[Mapping[str, Any]],
    body: Mapping[str, Any] | None,
    operation: Mapping[str, Any],
) -> str:
    url = path
    for parameter in parameters:
        if parameter["in"] == "path":
            url = url.replace("{" + parameter["name"] + "}", parameter["example"])
    query = "&".join(f"{p['name']}={p['example']}" for p in parameters if p["in"] == "query" and p.get("required"))
    how = "" if method == "GET" else f" -X {method}"
    if "application/json" not in operation["responses"]["200"]["content"]:
        how = " --no-buffer"
    words = [f'curl{how} "$URL{url}{"?" + query if query else ""}"']
    if operation["security"]:
        words.append('-H "Authorization: Bearer $KEY"')
    if body:
        words += ['-H "Content-Type: application/json"', f"-d '{json.dumps(body['example'])}'"]
    return " \\\n  ".join(words)


def _errors(operations: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    said = {
        line.partition(": ")[0]: (status, line.partition(": ")[2])
        for _, _, operation in operations
        for status, response in operation["responses"].items()
        if status != "200"
        for line in re.split(r"; (?=E\d{3}: )", response["description"].rstrip("."))
    }
    rows = "".join(
        f"<tr><td><code>{code}</code></td><td>{status}</td><td>{_text(text)}</td></tr>"
        for code, (status, text) in sorted(said.items())
    )
    return f"<table><tr><th>code</th><th>status</th><th>when</th></tr>{rows}</table>"


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
