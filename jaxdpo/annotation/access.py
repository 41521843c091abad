"""Access to a studio: names and tokens, bounds of requests, headers of every reply."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxdpo.annotation.config import NAME, StudioConfig
from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.reading.jsonl import check_value

# A long conversation has some 100 KiB; files are read by the server itself and never uploaded.
MAX_BODY = 1 << 20
_COOKIE = "studio"
# Scripts, styles and requests of this server alone; no markup may load or run anything else.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class RefusedError(Exception):
    """A request that cannot be done: an HTTP status, and the reason for the page to show."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Access:
    """Knows who a request is from, and refuses what a browser of this page would not send."""

    def __init__(self, config: StudioConfig) -> None:
        """Takes the names and tokens of a configuration."""
        self._config = config

    def annotator(self, request: Request) -> str | None:
        """Returns the name of the person whose browser asks; None for nobody known."""
        given = request.cookies.get(_COOKIE, "")
        if self._config.annotators:
            return self.owner(given)
        # On one's own machine a name is all that is needed: whoever can ask can read the file, too.
        return given if NAME.fullmatch(given) else "me"

    def owner(self, token: str) -> str | None:
        """Returns whose token it is."""
        found = None
        # All are compared, each in constant time: how long it takes tells nothing.
        for name, known in self._config.annotators.items():
            if hmac.compare_digest(token.encode(), known.encode()):
                found = name
        return found

    # HttpOnly, so that no script can read a token; Strict, so that no other site's link brings it.
    def remember(self, response: Response, value: str) -> None:
        """Has the browser send a token, or a name where none are needed."""
        response.set_cookie(_COOKIE, value, httponly=True, samesite="strict", max_age=30 * 86400)

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Returns the status and reason for which a request is refused; None for a good one."""
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self._config.is_loopback and host not in (*_LOOPBACK, self._config.host):
            # A foreign page whose name was pointed at this machine would have its own name here.
            return 421, f"ask for {self._config.host}, not for {host!r}"
        if request.method not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST are answered"
        if request.method == "POST":
            # A foreign page's form cannot send JSON, and its script must ask first.
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "send application/json"
            # Browsers say which page a script is of, and no script can say otherwise.
            origin = request.headers.get("origin")
            if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
                return 403, "a page of another server asks"
            # A body in chunks has no length before it has been read whole.
            if not request.headers.get("content-length", "").isdecimal():
                return 411, "say the length of the body"
            if int(request.headers["content-length"]) > MAX_BODY:
                return 413, f"a request may have {MAX_BODY // 1024} KiB"
        return None

    async def guard(
        self, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Answers a request, or refuses it, and sets the headers of every reply.

        Args:
          request: The request.
          answer: Answers it.
        """
        refused = self.refusal(request)
        if refused is not None:
            status, reason = refused
            response: Response = JSONResponse({"error": reason}, status)
        else:
            response = await answer(request)
        for key, value in _HEADERS.items():
            response.headers.setdefault(key, value)
        return response


async def body_of(request: Request) -> Any:
    """Returns the JSON object that a request bears; {} for anything else.

    Raises:
      RefusedError: If it holds what no file of feedback may: half a character, NUL, NaN.
    """
    try:
        value = await request.json()
        # What is kept must be readable again, by the same rules as any line of data.
        check_value(value)
    except BadPair as bad:
        raise RefusedError(400, bad.reason) from None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
