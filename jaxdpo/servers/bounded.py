"""A client for replies of servers that nobody here runs: bounded in time and in size.

The HTTP library's own limit is one on the silence between two packets. A server that sends a byte
now and then keeps a request for ever, and one that never stops sending takes all memory.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import openai

# A chat completion of the longest answers with log-probs takes a few megabytes.
MOST_BYTES = 32 * 2**20


class ReplyTooLarge(Exception):
    """A reply of more bytes than any chat completion has, or one that may grow to as many."""


def bounded_client(timeout: float) -> Any:
    """Returns the HTTP client that openai's client is to use.

    Replies end `timeout` seconds after they were asked for, or after `MOST_BYTES`. Redirects, which
    would carry the question and perhaps the key to another server, are not followed.

    Args:
      timeout: Seconds from sending a request to the last byte of its reply.
    """
    # Versions of openai stand on httpx or on httpx2, whose interface is the same.
    kind: Any = openai.DefaultHttpxClient
    http: Any = sys.modules[kind.__mro__[1].__module__.partition(".")[0]]

    class Stream(http.SyncByteStream):
        def __init__(self, stream: Any, request: Any, deadline: float) -> None:
            self._stream, self._request, self._deadline = stream, request, deadline

        def __iter__(self) -> Iterator[bytes]:
            read = 0
            for part in self._stream:
                read += len(part)
                if read > MOST_BYTES:
                    raise ReplyTooLarge(f"the reply has more than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > self._deadline:
                    raise http.ReadTimeout("the reply took too long", request=self._request)
                yield part

        def close(self) -> None:
            self._stream.close()

    class Transport(http.HTTPTransport):
        def handle_request(self, request: Any) -> Any:
            deadline = time.monotonic() + timeout
            response = super().handle_request(request)
            if response.headers.get("content-encoding", "identity") != "identity":
                # A few kilobytes may unpack to gigabytes, and nobody asked for them packed.
                response.close()
                raise ReplyTooLarge("the reply is compressed")
            response.stream = Stream(response.stream, request, deadline)
            return response

    return kind(
        transport=Transport(), headers={"Accept-Encoding": "identity"}, follow_redirects=False
    )
