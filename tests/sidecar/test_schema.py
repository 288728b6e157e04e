"""The JSON Schema is made of the table, and what goes to and fro is as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from overbooked_lock import EmbeddedServer
from overbooked_lock.sidecar import Sidecar, schema
from overbooked_lock.sidecar.operations import OPS

from .tools import Client, use_everything

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = schema.document()


def validator(name: str) -> Draft202012Validator:
    """What holds a document against a part of the schema."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DOCUMENT["$defs"]})


def test_the_file_is_made_of_the_models() -> None:
    """Else: python -c 'from overbooked_lock.sidecar import schema; print(schema.text(), end="")'."""
    Draft202012Validator.check_schema(DOCUMENT)
    assert (DOCS / "sidecar.schema.json").read_text() == schema.text()


@pytest.mark.parametrize("op", OPS)
def test_the_page_has_every_operation(op: str) -> None:
    """With the sentence of the table, and its own fields."""
    [row] = [line for line in (DOCS / "sidecar.md").read_text().splitlines() if line.startswith(f"| `{op}` |")]
    assert OPS[op].summary in row
    shared = {"id", "op", "client", "reply_to", "deadline_ms"}
    for name in OPS[op].takes.model_fields.keys() - shared:
        assert f"`{name}" in row


def test_the_examples_are_requests() -> None:
    """Each of its own operation, and of no other."""
    for op in OPS:
        [example] = DOCUMENT["$defs"][op]["examples"]
        validator("request").validate(example)
        assert not validator(op).is_valid({**example, "op": "another"})
        assert not validator(op).is_valid({name: value for name, value in example.items() if name != "client"})


async def test_what_goes_to_and_fro(sidecar: Sidecar, lock_server: EmbeddedServer, name: str) -> None:
    """Is what it says, for every operation, and for a refusal."""

    class Checking(Client):
        async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
            validator("request").validate(self.request(op, **fields))
            reply = await super().ask(op, **fields)
            validator(f"{op}-reply").validate(reply)
            return reply

    async with Checking(lock_server.url, name) as client:
        await use_everything(client)
        assert await client.error("get", slot_id="none")
    assert not validator("get-reply").is_valid(json.loads('{"id":"1","data":{},"meta":{},"success":true}'))
