"""Connections that must send and read: one that does neither is closed."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(timeout: float) -> type[H11Protocol]:
    """Returns uvicorn's HTTP protocol, with bounds that it does not have.

    uvicorn waits for ever for the rest of a request, and for a client to read its reply, so a few
    hundred idle connections would be all that it takes to stop a server.

    Args:
      timeout: Seconds within which a request must have come whole, and within which a client must
        go on reading.
    """

    class BoundedProtocol(H11Protocol):
        """A connection whose client has little time."""

        _late: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._late = self.loop.call_later(timeout, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # The rest of the head or of the body is still to come. Between two requests uvicorn has
            # a bound, and a request that comes while another is answered waits its turn.
            state = self.conn.their_state
            incomplete = state is h11.SEND_BODY or (
                state is h11.IDLE and bool(self.conn.trailing_data[0])
            )
            if not incomplete:
                self._late = _cancelled(self._late)
            elif self._late is None:
                self._late = self.loop.call_later(timeout, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stalled = _cancelled(self._stalled)

        def connection_lost(self, exc: Exception | None) -> None:
            self._late, self._stalled = _cancelled(self._late), _cancelled(self._stalled)
            super().connection_lost(exc)

    return BoundedProtocol


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
