"""The routes of an endpoint, over HTTP."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, Optional

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trl_step.sampling.endpoint.batching import Batches, Drawn
from trl_step.sampling.endpoint.calls import Call, Calls
from trl_step.sampling.endpoint.errors import ApiError
from trl_step.sampling.endpoint.replies import Reply, models
from trl_step.sampling.endpoint.settings import EPISODE_HEADER

BODY_SECONDS = 60.0
"""In which a request must have come."""
LONGEST_ID = 128
"""Characters of an episode's id."""


def make_app(calls: Calls, batches: Batches, token: str) -> ASGIApp:
    """The application that answers those who have the `token`."""

    async def list_models(request: Request) -> Response:
        return JSONResponse(models([calls.settings.model_name]))

    def answering(read: Callable[[dict[str, Any], Optional[str]], Call]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            episode = request.path_params.get("episode", request.headers.get(EPISODE_HEADER))
            if episode is not None and not 0 < len(episode) <= LONGEST_ID:
                raise ApiError(400, f"the id of an episode has 1 to {LONGEST_ID} characters, got {len(episode)}")
            call = read(await _body(request, calls.settings.max_body), episode)
            drawn = await _while_connected(request, batches.submit(call.prompts, call.asked.sampling))
            reply, record = calls.answer(call, drawn)
            if call.asked.stream:
                return StreamingResponse(
                    _events(reply, record, call.asked.include_usage), media_type="text/event-stream"
                )
            record()
            return JSONResponse(reply.whole())

        return answer

    routes = [
        Route("/models", list_models),
        Route("/chat/completions", answering(calls.read_chat), methods=["POST"]),
        Route("/completions", answering(calls.read_completion), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        ClientDisconnect: _gone,
        Exception: _unexpected,
    }
    mounts = [Mount("/v1", routes=routes), Mount("/episode/{episode:path}/v1", routes=routes)]
    return Guard(Starlette(routes=mounts, exception_handlers=handlers), token)


class Guard:
    """Answers nothing but 401 to those who do not have the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if secrets.compare_digest(given, self._expected):  # in the same time wherever the two differ
            await self._app(scope, receive, send)
        else:
            error = ApiError(
                401, "the token is missing or wrong; give endpoint.token as api_key", None, "invalid_api_key"
            )
            await JSONResponse(error.body(), error.status)(scope, receive, send)


async def _body(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a request."""
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > most:
                raise ApiError(413, f"the request has more than {most} bytes", None, "too_large")

    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise ApiError(413, f"the request has {declared} bytes; at most {most} are read", None, "too_large")
    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
        content = json.loads(body)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the request did not come within {BODY_SECONDS:g} seconds") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError(400, f"the request must be a JSON object, got a {type(content).__name__}")
    return content


async def _while_connected(request: Request, answers: list[Future[Drawn]]) -> list[Drawn]:
    """The results of `answers`; they are cancelled if the client breaks off."""
    work: list[asyncio.Future[Any]] = [asyncio.wrap_future(answer) for answer in answers]
    gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
    try:
        left = set(work)
        while left:
            done, _ = await asyncio.wait({*left, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                raise ClientDisconnect
            left -= done
            for error in [each.exception() for each in done]:
                if error is not None:
                    raise error
        return [each.result() for each in work]
    finally:
        for each in (gone, *work):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(reply: Reply, record: Callable[[], None], include_usage: bool) -> AsyncIterator[str]:
    """The events of a stream; the answer is recorded once the client has taken it, before it hears of the end."""
    for event in reply.before_the_end():
        yield event
    record()
    for event in reply.end(include_usage):
        yield event


async def _api_error(request: Request, error: ApiError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    found = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(found.body(), found.status, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of this package, which the server's log has in full."""
    found = ApiError(500, f"the endpoint failed: {type(error).__name__}: {error}")
    return JSONResponse(found.body(), found.status)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it
