"""The key-value store of JAX's coordination service, which every process of a run can reach."""

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

# Seconds that a process gives its last word to be read by the others, or to be taken by the store.
LAST_WORD = 3.0
_numbers = itertools.count()


class Store:
    """Texts by key, in folders that `/` separates.

    Args:
      client: The client of the coordination service.
    """

    def __init__(self, client: Any):
        self._client = client
        # A program may train several times; what was told in one run means nothing in the next.
        self._prefix = f"jaxdpo/{next(_numbers)}/"

    def tell(self, key: str, value: str) -> None:
        """Sets a value.

        Args:
          key: Its key.
          value: The text.

        Raises:
          RuntimeError: If the store does not answer.
        """
        self._client.key_value_set(self._prefix + key, value, allow_overwrite=True)

    def read(self, folder: str) -> dict[str, str]:
        """Returns the values below a folder, by what follows its name.

        Raises:
          RuntimeError: If the store does not answer.
        """
        found = self._client.key_value_dir_get(self._prefix + folder)
        return {key.removeprefix(self._prefix + folder).lstrip("/"): value for key, value in found}


def patiently(call: Callable[[], Any]) -> Any:
    """Calls the store for as long as a last word may take.

    Behind a cut link a call does not fail: it hangs.

    Args:
      call: What is called.

    Returns:
      Its result, or {} if it failed or took too long.
    """
    found: list[Any] = [{}]

    def attempt() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            found[0] = call()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(LAST_WORD + 0.5)
    return found[0]
