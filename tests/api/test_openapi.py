"""The OpenAPI document: valid, true to what is answered, and the page made of it."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from overbooked_lock.http.endpoints import ENDPOINTS
from overbooked_lock.http.openapi import ERRORS, document

from .tools import Served, data_of

DOCUMENT = document(ENDPOINTS)
DOCS = Path(__file__).parents[2] / "docs" / "http.md"


def operations() -> list[Any]:
    """Each operation of the document, under its id."""
    return [
        pytest.param(operation, id=operation["operationId"])
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
    ]


def check(schema: Any, value: Any) -> None:
    """Fails if a value is not what a schema of the document says."""
    whole = DRAFT202012.create_resource(DOCUMENT)
    registry = Registry[Any]().with_resource("urn:api", whole)
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:api#/'))
    Draft202012Validator(absolute, registry=registry).validate(value)


def test_it_is_served_and_valid(api: Served) -> None:
    """To whoever asks."""
    served = json.loads(api.client.get("/openapi.json").text)
    validate(served)
    assert served == DOCUMENT


@pytest.mark.parametrize("operation", operations())
def test_the_examples_are_what_the_schemas_say(operation: dict[str, Any]) -> None:
    """Of bodies and of answers."""
    contents = [response["content"] for response in operation["responses"].values()]
    contents += [operation["requestBody"]["content"]] if "requestBody" in operation else []
    for content in contents:
        [media] = content.values()
        check(media["schema"], media["example"])


def test_every_endpoint_is_there() -> None:
    """Under the path and the method of the table."""
    for endpoint in ENDPOINTS:
        assert DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]["operationId"] == endpoint.name


def test_answers_are_what_it_says(api: Served) -> None:
    """A slot, a list and an error against their schemas."""
    slot = api.slot()
    for path, method, answer in [
        ("/slots/{id}", "get", api.call("GET", f"/slots/{slot['id']}")),
        ("/slots", "get", api.call("GET", "/slots?limit=5&page=1")),
        ("/slots/{id}", "get", api.call("GET", "/slots/none")),
        ("/slots/{id}/lock", "post", api.lock(slot["id"])),
        ("/slots/{id}/lock", "post", api.lock(slot["id"], "other")),
        ("/locks", "get", api.call("GET", "/locks?limit=5&page=1")),
    ]:
        response = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
        check(response["content"]["application/json"]["schema"], answer.json())


def test_the_page_needs_no_network(api: Served) -> None:
    """Nothing is loaded from anywhere; every endpoint and every code is on it."""
    page = api.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|src=|https?://|@import|url\(", page.text)
    for endpoint in ENDPOINTS:
        assert f'id="{endpoint.name}"' in page.text
    for code in ERRORS:
        assert f"<code>{code}</code>" in page.text


def test_the_curls_on_the_page_work(api: Served) -> None:
    """As they are copied, with a key and a URL in the shell."""
    page = api.client.get("/docs").text
    curls = [html.unescape(text) for text in re.findall(r"<pre>(curl.*?)</pre>", page, re.DOTALL)]
    assert len(curls) == len(operations())
    for curl in curls:
        if "/events" in curl:
            continue  # it has no end
        filled = curl.replace("$URL", api.url).replace("$KEY", api.secret.key)
        words = shlex.split(filled.replace("\\\n", " "))
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        [url] = [word for word in words if word.startswith("http")]
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        answer = api.call(method, url, body)
        assert answer.is_success or answer.json()["error"]["code"] in {"E025", "E048", "E013"}, curl
        if "E013" in answer.text:
            assert "longest lock" in answer.text or "max_lock" in answer.text or "lock_until" in answer.text


def test_curl_itself_understands_one(api: Served) -> None:
    """Once for real."""
    page = api.client.get("/docs").text
    curls = [html.unescape(text) for text in re.findall(r"<pre>(curl.*?)</pre>", page, re.DOTALL)]
    [curl] = [curl for curl in curls if '-X POST "$URL/slots"' in curl]
    command = f"URL={api.url} KEY={api.secret.key}\n{curl} --silent"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=True, timeout=20)
    assert json.loads(done.stdout)["data"]["_object"] == "slot"


def test_the_reference_has_the_table_of_errors() -> None:
    """``docs/http.md`` and the code list the same codes with the same status."""
    listed = dict(re.findall(r"^\| (E\d{3}) \| (\d{3}) \|", DOCS.read_text(), re.MULTILINE))
    assert {code: int(status) for code, status in listed.items()} == {code: ERRORS[code][0] for code in ERRORS}


def test_home(api: Served) -> None:
    """The links lead somewhere."""
    for link in data_of(api.call("GET", "/")).values():
        assert api.client.get(f"/{link}").is_success
