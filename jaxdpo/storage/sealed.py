"""JSON files that carry a digest of themselves, and digests of parts of files.

A flipped bit in a number or a text of JSON is still JSON: only a digest tells.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdpo.storage.files import json_digest, replacing

_SEAL = "sha256"
_BLOCK = 2**22


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, whole and with its digest."""
    with replacing(path) as file:
        file.write(sealed(value))


def sealed(value: Mapping[str, Any]) -> str:
    """Returns the text of a JSON object with its digest."""
    # Through JSON first, in which tuples are lists and keys are text.
    plain = json.loads(json.dumps(value))
    return json.dumps({**plain, _SEAL: json_digest(plain)}, indent=1)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Reads what `write_sealed` wrote; None if it is missing or not as it was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        digest = value.pop(_SEAL)
        return value if digest == json_digest(value) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def digest_without(path: Path, spans: Iterable[tuple[int, int]]) -> str:
    """Computes the SHA-256 of a file's bytes outside of some spans, in hexadecimal.

    Args:
      path: The file.
      spans: Where each begins and ends, in order.

    Raises:
      OSError: If it cannot be read.
    """
    state = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = 0
        # The last, empty one stands at the end of the file.
        for begin, end in (*spans, (size, size)):
            while start < begin:
                block = os.pread(file.fileno(), min(_BLOCK, begin - start), start)
                if not block:
                    break
                state.update(block)
                start += len(block)
            start = end
    return state.hexdigest()
