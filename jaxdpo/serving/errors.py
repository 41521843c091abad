"""Errors in the form of OpenAI's interface."""

from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class RequestError(Exception):
    """A request that is not answered, and why.

    Attributes:
      status: HTTP status.
      message: What is wrong, and the remedy.
      param: The field that it is about.
      code: A word for programs.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        """Describes the error.

        Args:
          status: HTTP status.
          message: What is wrong, and the remedy.
          param: The field that it is about.
          code: A word for programs.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """Returns the error as the body of a reply, or as an event of a stream."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
