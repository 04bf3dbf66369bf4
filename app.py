"""The service, for `uvicorn app:app` and `fastapi run` from a checkout."""

from asyncguard.service.app import app

__all__ = ["app"]
