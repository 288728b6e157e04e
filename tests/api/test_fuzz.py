"""Requests made of the OpenAPI document, right ones and wrong ones: no answer may be one that it does not have."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from overbooked_lock.http.endpoints import ENDPOINTS
from overbooked_lock.http.openapi import document

from .tools import Served

DOCUMENT = document(ENDPOINTS)
SCHEMA: Any = schemathesis.openapi.from_dict(DOCUMENT)
# But for the stream, whose answer has no end: test_events.py has what it refuses.
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods if path != "/events"]
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.mark.parametrize("who", ["secret", "public", "nobody"])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_one_that_the_document_has(api: Served, path: str, method: str, who: str, soak: bool) -> None:
    """No 500, nothing outside the envelopes, no status and no field that is not documented."""
    operation = SCHEMA[path][method.upper()]
    cases = [operation.as_strategy(GenerationMode.POSITIVE)]
    if operation.body or any(operation.iter_parameters()):
        cases.append(operation.as_strategy(GenerationMode.NEGATIVE))
    key = {"secret": api.secret.key, "public": api.public.key}.get(who)
    slot = api.slot()["id"]

    @settings(
        max_examples=100 if soak else 10,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(cases), st.booleans())
    def fuzz(case: Any, of_ours: bool) -> None:
        if of_ours and case.path_parameters:
            case.path_parameters["id"] = slot
        case.headers = dict(case.headers or {})
        case.headers.pop("Authorization", None)
        if key is not None:
            case.headers["Authorization"] = f"Bearer {key}"
        response = case.call(base_url=api.url)
        assert list(response.json()) in (["data", "meta", "success"], ["error", "success"])
        case.validate_response(response, checks=CHECKS)

    fuzz()
