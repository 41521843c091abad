"""Bodies that nobody reads: they are taken in before a refusal is sent, so that it arrives."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Times the largest body that is answered. A client that sends even more sees its connection close.
_TIMES_LIMIT = 16
# Seconds for the rest of a body: a refusal must not hold a connection as long as an answer may.
_SECONDS = 10.0


class ReadsToTheEnd:
    """An application whose replies wait until the request has come whole.

    A connection that is closed while its client still sends is reset, and the client shows a
    network error in place of the reply that says what was wrong. So what is left of a refused body
    is read and thrown away first, up to a bound.
    """

    def __init__(self, app: ASGIApp, body_bytes: int) -> None:
        """Wraps an application.

        Args:
          app: The application.
          body_bytes: The largest body that it takes, in bytes.
        """
        self._app, self._most = app, _TIMES_LIMIT * body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its reply back once nothing of the request is left."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        # Such a client sends its body only once it is asked to, which the first read would do.
        waits = b"expect" in headers
        whole = False

        async def reading() -> Message:
            nonlocal whole, waits
            waits = False
            message = await receive()
            # A client that has gone sends no more either.
            whole = not message.get("more_body", False)
            return message

        async def replying(message: Message) -> None:
            if message["type"] == "http.response.start" and not (whole or waits):
                await self._discard(reading)
            await send(message)

        await self._app(scope, reading, replying)

    async def _discard(self, receive: Receive) -> None:
        size = 0
        try:
            async with asyncio.timeout(_SECONDS):
                while size <= self._most:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            # Too slow: it gets its reply now, for what that is worth.
            return
