"""Exceptions -> responses: JSON with one sentence, no traceback, and no path of this machine."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from smalti.core.errors import SmaltiError
from smalti.web.limits import Refusal

logger = logging.getLogger("smalti")
DEFECT = "the server has a defect that this request has met; its log has the details"


async def _on_smalti_error(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else 400
    headers = {"retry-after": "30"} if status == 503 else {}
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)


async def _on_wrong_arguments(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, message = str(first["loc"][-1]), str(first["msg"])
    sentence = f"{name} = {first.get('input')!r:.60}: {message[:1].lower()}{message[1:]}"
    return JSONResponse({"error": sentence}, status_code=400)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "there is nothing at this address", 405: "this address does not take such a request"}
    message = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": message}, status_code=error.status_code, headers=error.headers)


async def _on_defect(request: Request, error: Exception) -> Response:
    logger.error("a request of the page failed", exc_info=error)
    return JSONResponse({"error": DEFECT}, status_code=500)


def add_error_handlers(app: FastAPI) -> None:
    """Let the application answer every exception with a sentence."""
    app.add_exception_handler(SmaltiError, _on_smalti_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_arguments)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_defect)
