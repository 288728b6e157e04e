"""``docs/event.schema.json`` is what an event looks like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from jsonschema import Draft202012Validator

from overbooked_lock import Event
from overbooked_lock.events import EventType

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "event.schema.json").read_text())
PAGE = (DOCS / "events.md").read_text()


def test_it_is_the_models() -> None:
    """As ``json.dumps(Event.model_json_schema(mode="serialization"), indent=2)`` writes it."""
    assert Event.model_json_schema(mode="serialization") == SCHEMA


def test_the_example_of_the_page_is_valid() -> None:
    """And its table has the types."""
    [example] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(example))
    assert Event.model_validate_json(example).type == "locked"
    assert tuple(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == get_args(EventType)
