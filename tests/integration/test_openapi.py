"""What the service answers, whatever it is asked, is what its OpenAPI document says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from asyncguard.service.app import create_app
from asyncguard.service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import schemathesis
    from schemathesis.checks import not_a_server_error
else:
    # In the group "check" of pyproject.toml: it needs newer versions of much that the oldest tests use.
    schemathesis = pytest.importorskip("schemathesis")
    not_a_server_error = schemathesis.checks.not_a_server_error

app = create_app(Settings(work_seconds=0))
guard = app.state.asyncguard.guards["work"]
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def full() -> Iterator[None]:
    held = guard.acquire_nowait()
    yield
    asyncio.run(held.release())


@schema.parametrize()
@few
def test_every_answer_is_described(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate()


@schema.parametrize()
@few
def test_every_refusal_is_described(case: schemathesis.Case[Any], full: None) -> None:
    response = case.call_and_validate(headers={"Prefer": "wait=0"}, excluded_checks=[not_a_server_error])
    if (case.method, case.path) == ("GET", "/test"):
        assert response.status_code == 503
