"""Replies: JSON, streams of events, and work that ends when its client has gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from jaxdpo.serving.errors import RequestError

# nginx's status for a client that has gone; nobody reads it, but the log has it.
CLIENT_GONE = 499


def error_reply(error: RequestError) -> JSONResponse:
    """Returns an error as a reply."""
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


def event_stream(events: AsyncIterator[Sequence[dict[str, Any]]]) -> StreamingResponse:
    """Returns a stream of server-sent events, ended by `[DONE]`; an error is its last event.

    Args:
      events: The events; those that come together are sent together, which costs as much as one.
    """

    async def lines() -> AsyncIterator[str]:
        try:
            async for together in events:
                yield "".join(map(_line, together))
        except RequestError as error:
            # The status has been sent long ago.
            yield _line(error.body())
        yield "data: [DONE]\n\n"

    # Proxies that collect a reply would hold the pieces back.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Returns what a coroutine replies; it is cancelled as soon as the client has gone.

    Args:
      request: The request, its body read.
      work: Makes the reply.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=CLIENT_GONE)
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
