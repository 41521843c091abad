"""A client of OpenAI-compatible chat servers: the key, retries, and what the errors mean.

Both the servers that answer prompts (`generation.server`) and those that judge
(`evaluation.judges.server`) are asked through it. It needs no jax.
"""

import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from jaxdpo.errors import UserError

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

# How often a request is sent whose answer is no chat completion: the client itself retries only
# what fails with a status (429, 5xx) or a time-out.
ATTEMPTS = 3
_KEY = "OPENAI_API_KEY"


class RequestRefused(Exception):
    """One request that the server will not answer, however often it is sent: the reason in words.

    Another request to the same server may well be answered.
    """


class ChatClient:
    """A server that is asked for chat completions, from any number of threads at a time."""

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        trusted: bool = False,
    ) -> None:
        """Opens the client; nothing is sent yet.

        Args:
          name: The beginning of error messages, such as "judge gpt-5".
          base_url: Address of the server; default: $OPENAI_BASE_URL, or OpenAI's own.
          key_env: Environment variable of the key; default: OPENAI_API_KEY for OpenAI's own server,
            for $OPENAI_BASE_URL and for trusted ones, and no key for any other.
          timeout: Seconds until a request is given up, however its reply trickles in.
          retries: Times a request is sent again at time-outs, 429 and 5xx, with growing pauses.
          trusted: Whether the user has named this server where the default key was meant for it,
            and not in a file that may come from somebody else.

        Raises:
          UserError: If the openai package is not installed, the key is not set, or it would travel
            unencrypted.
        """
        # Imported here: it is an extra, and most commands never ask a server.
        try:
            import openai
        except ImportError:
            raise UserError(
                f"{name}: needs the openai client; pip install 'jaxdpo[judge]'"
            ) from None
        from jaxdpo.servers.bounded import bounded_client

        self.name, self.retries = name, retries
        self._client = openai.OpenAI(
            # Servers of one's own take any key, but the client does not send a request without one.
            api_key=_key_for(name, base_url, key_env, trusted) or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=retries,
            http_client=bounded_client(timeout),
        )

    @property
    def base_url(self) -> str:
        """The server's address, the default resolved."""
        return str(self._client.base_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def complete(self, body: dict[str, Any]) -> "ChatCompletion":
        """Sends one request and returns its chat completion, which has at least one choice.

        Args:
          body: Fields of the request; `extra_body` holds those that are not OpenAI's own.

        Raises:
          RequestRefused: If the server refuses this request, or never sends a chat completion.
          UserError: If it refuses the key or the model, or does not answer after all attempts.
        """
        import openai
        from openai.types.chat import ChatCompletion

        for _ in range(ATTEMPTS):
            with self._explained():
                try:
                    found: Any = self._client.chat.completions.create(**body)
                except (
                    openai.APIResponseValidationError,
                    json.JSONDecodeError,
                    UnicodeDecodeError,
                ):
                    continue
            # The client checks no types: a proxy's page or an empty object comes through as it is.
            if isinstance(found, ChatCompletion) and found.choices and found.choices[0].message:
                return found
        raise RequestRefused(f"the server sent no chat completion, {ATTEMPTS} times")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import openai

        from jaxdpo.servers.bounded import ReplyTooLarge

        try:
            yield
        except openai.APIResponseValidationError:
            raise
        except ReplyTooLarge as error:
            raise UserError(f"{self.name} at {self.base_url} sent no answer: {error}") from error
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            status = error.status_code if isinstance(error, openai.APIStatusError) else None
            # Malformed for this server, too long for the model, or not processable: 429 and 5xx
            # were sent again by the client before they came here.
            if status in (400, 413, 422):
                raise RequestRefused(f"the server refuses the request: {error.message}") from error
            raise UserError(f"{self.name} at {self.base_url} {self._reason(error)}") from error

    def _reason(self, error: "openai.APIStatusError | openai.APIConnectionError") -> str:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return (
                f"refuses the key ({error.message}); name the environment variable of the key that "
                "is meant for this server in key_env"
            )
        if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
            return (
                f"redirects to {error.response.headers.get('location')}, which is not followed; "
                "set base_url to that address if you trust it"
            )
        if isinstance(error, openai.NotFoundError):
            return f"is not there ({error.message}); set model or base_url"
        status = f"status {error.status_code}: " if isinstance(error, openai.APIStatusError) else ""
        return (
            f"did not answer, asked {self.retries + 1} times ({status}{error.message}); what it "
            "said before is kept, and the same command continues"
        )


def _key_for(name: str, base_url: str | None, key_env: str | None, trusted: bool) -> str | None:
    """Returns the key that is sent to a server, or None if none is meant for it."""
    key = os.environ.get(key_env or _KEY)
    if not key and (key_env or not base_url):
        raise UserError(f"{name}: the environment has no {key_env or _KEY}; set it to the key")
    if not base_url:
        return key
    meant = trusted or base_url.rstrip("/") == os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
    if not key_env and not meant:
        return None
    if _travels_safely(base_url):
        return key
    if key_env:
        raise UserError(
            f"{name}: the key in {key_env} is not sent to {base_url}, which is not encrypted; use "
            "https, or leave key_env out if the server needs no key"
        )
    return None


def _travels_safely(base_url: str) -> bool:
    """Tells whether a request to this address is encrypted, or never leaves the machine."""
    address = urlsplit(base_url)
    if address.scheme == "https" or address.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.hostname or "").is_loopback
    except ValueError:
        return False
