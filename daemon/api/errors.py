"""HTTP answers to errors, all of the same JSON form."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from daemon.core.errors import (
    ConfigError,
    DiskFullError,
    ErrataError,
    FencedError,
    InvalidCorrectionError,
    LeaseHeldError,
    NotFoundError,
    RateLimitedError,
    StaleHeadError,
    UnavailableError,
)

_STATUS: tuple[tuple[type[ErrataError], int], ...] = (
    (InvalidCorrectionError, 422),
    (ConfigError, 422),
    (NotFoundError, 404),
    (StaleHeadError, 409),
    (FencedError, 409),
    (LeaseHeldError, 409),
    (RateLimitedError, 429),
    (UnavailableError, 503),
    (DiskFullError, 507),
)


def problem(
    status: int, code: str, message: str, *, hint: str = "", retryable: bool = False, **more: Any
) -> JSONResponse:
    """An error answer with ``code``, ``message``, ``hint`` and ``retryable``."""
    body = {"code": code, "message": message, "hint": hint, "retryable": retryable, **more}
    return JSONResponse(body, status_code=status)


def of_error(error: ErrataError) -> JSONResponse:
    """The answer to an ``ErrataError``."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    more = {"reason": error.reason} if isinstance(error, InvalidCorrectionError) else {}
    return problem(status, error.code, error.message, hint=error.hint, retryable=error.retryable, **more)


def answer_errors(app: FastAPI) -> None:
    """Make ``app`` answer all errors in this form."""

    @app.exception_handler(ErrataError)
    async def errata_error(_request: Request, error: ErrataError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def not_valid(_request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(str(at) for at in p['loc'])}: {p['msg']}" for p in error.errors()[:3]]
        return problem(422, "invalid_request", "; ".join(parts))

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, "http", str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> JSONResponse:
        return problem(500, "internal", "unexpected error in Errata", hint="the log shows the cause")
